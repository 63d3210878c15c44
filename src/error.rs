//! One error, one line: what failed with the object in it, and where there is one, the command that mends it.

use std::fmt;

/// The result of everything that can fail.
pub(crate) type Result<T> = anyhow::Result<T>;

/// An error that a user reads: one line, an optional hint and the exit status it leads to.
///
/// It travels inside [`anyhow::Error`]; contexts put around it become the front of the line.
#[derive(Debug)]
pub(crate) struct Fault {
    message: String,
    hint: Option<String>,
    status: u8,
}

/// Makes a [`Fault`] with exit status 125 (`sandbox` itself failed, the payload never ran).
pub(crate) fn fault(message: impl Into<String>) -> Fault {
    Fault { message: message.into(), hint: None, status: 125 }
}

impl Fault {
    /// Adds the second line: the command or flag that mends it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit status: 126 found but not executable, 127 not found.
    pub(crate) fn status(mut self, status: u8) -> Fault {
        self.status = status;
        self
    }

    /// The second line.
    pub(crate) fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit status this error leads to.
    pub(crate) fn exit_status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
