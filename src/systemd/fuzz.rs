//! Any text as a property.

use super::property::{Asked, Assignment, KeptSetting, Setting};
use super::{CgroupMode, Directive, translate};

/// A property is refused in one line, or it comes back from where it is kept; and as a line of a unit file it is one line that
/// means the same.
pub(crate) fn property(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if text.contains('\0') {
        // Neither an argument nor a profile can have it.
        return;
    }
    match Asked::parse(text) {
        Err(error) => {
            let line = crate::error::line(&error);
            assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
        }
        Ok(Asked::Own(_)) => {}
        Ok(Asked::Unit(assignment)) => kept(&assignment.0),
    }
    for mode in [CgroupMode::Unified, CgroupMode::Hybrid, CgroupMode::Legacy] {
        line(text, mode);
    }
}

fn kept(setting: &Setting) {
    let text = serde_json::to_string(&KeptSetting::from(setting)).unwrap_or_else(|error| panic!("{error}"));
    let again: KeptSetting = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(again.setting().as_ref(), Some(setting), "{text}");
}

/// What of `text` goes to systemd.
fn sent(text: &str, mode: CgroupMode) -> Option<Setting> {
    let assignment = Assignment::parse(text).ok()?;
    let sent = translate(&[assignment], mode).ok()?.settings.pop()?;
    Some(Setting { asked: String::new(), property: "", ..sent })
}

fn line(text: &str, mode: CgroupMode) {
    let Ok(Some(directive)) = Directive::of(text, mode) else { return };
    let Directive { name, value, .. } = &directive;
    assert!(name.bytes().all(|letter| letter.is_ascii_alphanumeric()), "{directive:?}");
    assert!(!value.contains(char::is_control) && !value.ends_with('\\'), "{directive:?}");
    if let Some(wanted) = sent(text, mode) {
        // systemd reads %% as one.
        let written = format!("{name}={}", value.replace("%%", "%"));
        let found = sent(&written, mode);
        assert_eq!(found, Some(wanted), "{text:?} as {written:?} with {mode:?}");
    }
}
