//! Settings as people read them.

use std::fmt;

use super::property::{Assignment, Setting};
use super::translate::shown;

impl Assignment {
    /// What the user typed.
    pub(crate) fn asked(&self) -> &str {
        &self.0.asked
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, shown(&self.value))
    }
}
