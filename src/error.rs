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

/// The whole chain on one line, outermost first, as a person reads it: without the numbers that Rust adds to the kernel's words.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let text = plain(&format!("{error:#}"));
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(" (os error ") {
        out.push_str(before);
        rest = after.split_once(')').map_or("", |(_, tail)| tail);
    }
    out + rest
}

/// `text` with a space for each control character: names come from images and file systems, and would speak to a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_kernels_words_only() {
        let error = anyhow::Error::from(std::io::Error::from_raw_os_error(libc::EACCES)).context("open /x");
        assert_eq!(line(&error), "open /x: Permission denied");
        let twice =
            anyhow::Error::from(fault("a: No such file or directory (os error 2)")).context("b (os error 1): c");
        assert_eq!(line(&twice), "b: c: a: No such file or directory");
    }

    #[test]
    fn a_line_says_nothing_to_the_terminal() {
        let error =
            anyhow::Error::from(fault("its interpreter /\u{1b}]0;x\u{7}\u{1b}[31m\u{9b}2J\r\u{7f} is missing\n"))
                .context("run é\tb");
        assert_eq!(line(&error), "run é b: its interpreter / ]0;x  [31m 2J   is missing ");
    }
}
