//! A registry's own words for what went wrong (distribution-spec, "Error Codes").

use std::io::Read;

use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;

/// What an error's body says, on one line.
pub(super) fn said(response: Response<Body>) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut text = String::new();
    // Whatever it is, it is not worth failing for.
    let _ = response.into_body().into_reader().take(16 << 10).read_to_string(&mut text);
    match serde_json::from_str::<Errors>(&text) {
        Ok(Errors { errors }) => errors
            .iter()
            .map(|error| if error.message.is_empty() { error.code.clone() } else { error.message.clone() })
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => String::new(),
    }
}
