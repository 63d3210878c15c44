//! Settings as people read them.

use std::fmt;

use super::property::{Assignment, Setting, Value};
use super::translate::shown;

impl Assignment {
    /// What the user typed.
    pub(crate) fn asked(&self) -> &str {
        &self.0.asked
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            // What is a structure on the bus is best said in the user's own words.
            Value::Addresses(_) | Value::Ports(_) | Value::Interfaces(_) | Value::NftSets(_) | Value::Conditions(_) => {
                f.write_str(&self.asked)
            }
            _ => write!(f, "{}={}", self.name, shown(&self.value)),
        }
    }
}
