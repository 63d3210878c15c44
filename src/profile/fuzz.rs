//! Any text as a profile.

use std::path::Path;

use super::file::File;
use super::precedence;
use crate::layer::Layer;
use crate::spec::Spec;

/// A profile is refused with its file and a line of it, or it is settings that come back from where they are kept and that either make
/// a request or are refused in one line.
pub(crate) fn profile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("/etc/sandbox/web.toml");
    let file = match File::parse(text, path) {
        Ok(file) => file,
        Err(error) => {
            let line = crate::error::line(&error);
            let number =
                line.strip_prefix("/etc/sandbox/web.toml:").and_then(|rest| rest.split(':').next()?.parse().ok());
            let lines = text.matches('\n').count() + 1;
            assert!(number.is_some_and(|number: usize| (1..=lines).contains(&number)), "{line}");
            return assert_eq!(line.lines().count(), 1, "{line}");
        }
    };
    let lines = text.matches('\n').count() + 1;
    assert!(file.origins.iter().all(|origin| (1..=lines).contains(&origin.line)), "{:?}", file.origins);
    let kept = serde_json::to_string(&file.layer).unwrap_or_else(|error| panic!("{error}"));
    assert!(!kept.contains("\\u0000"), "no kernel takes a NUL: {kept}");
    let again: Layer = serde_json::from_str(&kept).unwrap_or_else(|error| panic!("{error}: {kept}"));
    assert_eq!(format!("{again:?}"), format!("{:?}", file.layer));
    // Nothing over a profile, and a profile over nothing, is the profile.
    let alone = precedence::over(file.layer.clone(), Layer::default());
    assert_eq!(format!("{alone:?}"), format!("{:?}", file.layer));
    request(precedence::over(Layer::default(), file.layer));
}

/// What the settings ask for; a file that they name is not opened, since reading some of this machine's never ends.
fn request(mut layer: Layer) {
    layer.seccomp = None;
    if let Err(error) = Spec::from_layer(layer) {
        let line = crate::error::line(&error);
        assert!(line.lines().count() == 1 && !line.contains(char::is_control), "{line:?}");
    }
}
