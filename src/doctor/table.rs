//! The checks as a person reads them: a table as wide as the terminal.

use super::{Check, State};

/// How the table looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Columns of the terminal; `None`: lines are as long as they are.
    pub(crate) width: Option<usize>,
    /// With colours.
    pub(crate) colour: bool,
}

/// Columns of the word that says how a thing stands.
const WORD: usize = 9;

/// At least so many columns stay for text, however narrow the terminal is.
const NARROW: usize = 24;

/// The whole table and what it comes to.
pub(crate) fn table(checks: &[Check], style: Style) -> String {
    let longest = checks.iter().map(|check| check.name.len()).max();
    // A long name gets a line of its own where there is little room.
    let name = longest.unwrap_or(0).min(match style.width {
        Some(width) if width < 100 => 20,
        _ => usize::MAX,
    });
    let indent = WORD + name + 2;
    let mut text = String::new();
    for check in checks {
        row(&mut text, check, name, indent, style);
    }
    text.push('\n');
    text.push_str(&wrap(&summary(checks), 0, style.width));
    text
}

fn row(text: &mut String, check: &Check, name: usize, indent: usize, style: Style) {
    let (word, colour) = word(check);
    let (on, off) = if style.colour { (colour, "\x1b[0m") } else { ("", "") };
    let head = format!("{on}{word:<WORD$}{off}{:<name$}", check.name);
    text.push_str(&head);
    if check.name.len() > name {
        text.push('\n');
        text.push_str(&" ".repeat(indent));
    } else {
        text.push_str("  ");
    }
    text.push_str(&wrap(&check.found, indent, style.width));
    if let Some(advice) = &check.advice {
        text.push_str(&" ".repeat(indent));
        text.push_str(&wrap(advice, indent, style.width));
    }
    if let Some(command) = &check.command {
        // Commands have long words, so they begin further left where there is little room.
        let indent = match style.width {
            Some(width) if width < indent + 70 => WORD,
            _ => indent,
        };
        text.push_str(&" ".repeat(indent));
        text.push_str("$ ");
        text.push_str(&wrap_command(command, indent + 2, style.width));
    }
}

/// The word and its colour; an optional thing that is not there is no reason for alarm.
fn word(check: &Check) -> (&'static str, &'static str) {
    match (check.state, check.needed) {
        (State::Found, _) => ("ok", "\x1b[32m"),
        (State::Limited, _) => ("limited", "\x1b[33m"),
        (State::Missing, true) => ("MISSING", "\x1b[1;31m"),
        (State::Missing, false) => ("absent", "\x1b[33m"),
    }
}

fn summary(checks: &[Check]) -> String {
    let missing: Vec<&str> =
        checks.iter().filter(|check| check.needed && check.state == State::Missing).map(|check| check.name).collect();
    if missing.is_empty() {
        "`sandbox run` has all that it needs here.".to_owned()
    } else {
        format!("`sandbox run` without flags cannot work here: {}.", missing.join(", "))
    }
}

/// Breaks prose between words; ends with a newline.
fn wrap(text: &str, indent: usize, width: Option<usize>) -> String {
    fold(text.split(' '), indent, width, "")
}

/// Breaks a command between words outside of quotes, with a backslash, so that it can still be pasted.
fn wrap_command(command: &str, indent: usize, width: Option<usize>) -> String {
    let mut words = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, c) in command.char_indices() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => {
                words.extend(command.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    words.extend(command.get(start..));
    fold(words.into_iter(), indent, width, " \\")
}

fn fold<'a>(words: impl Iterator<Item = &'a str>, indent: usize, width: Option<usize>, mark: &str) -> String {
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent + mark.len()).max(NARROW));
    let mut text = String::new();
    let mut column = 0;
    for word in words {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > room {
            text.push_str(mark);
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check {
        Check::new("user namespaces of plain users", State::Missing, "a kernel setting forbids them")
            .advice("only root can start sandboxes")
            .command(
                "printf '[Service]\\nDelegate=cpu io\\n' | install -D -m 644 /dev/stdin /etc/systemd/system/x.conf",
            )
    }

    #[test]
    fn it_fits_the_terminal() {
        for width in [60, 72, 80, 100, 200] {
            let style = Style { width: Some(width), colour: false };
            let text = table(&[check(), Check::new("kernel", State::Found, "x")], style);
            let longest = text.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(width), "{width}: {text}");
        }
    }

    #[test]
    fn a_broken_command_is_still_the_same_command() {
        let style = Style { width: Some(80), colour: false };
        let text = table(&[check()], style);
        let (_, command) = text.split_once("$ ").unwrap();
        let command = command.split("\n\n").next().unwrap();
        assert!(command.contains(" \\\n"), "{command}");
        let words: Vec<&str> = command.split_whitespace().filter(|word| *word != "\\").collect();
        assert_eq!(Some(words.join(" ")), check().command);
    }

    #[test]
    fn without_a_terminal_a_row_is_a_line_without_colour() {
        let style = Style { width: None, colour: false };
        let long = Check::new("openat2", State::Limited, "word ".repeat(60).trim());
        let text = table(&[long.needed(true)], style);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\x1b'));
        assert!(text.contains("has all that it needs"));
        let missing = Check::new("new /proc", State::Missing, "x").needed(true);
        let style = Style { colour: true, ..style };
        let text = table(&[missing], style);
        assert!(text.contains("\x1b[1;31mMISSING") && text.contains("cannot work here: new /proc."), "{text}");
    }
}
