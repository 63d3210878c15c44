//! `--change`: the lines of a Dockerfile that change an image's config, without building anything.

use std::str::FromStr;

use serde_json::{Value, json};

use crate::error::{Result, fault};

/// One instruction: what it sets in the `config` object of an image config (OCI image spec, config.md).
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Instruction {
    /// This field becomes this.
    Set(&'static str, Value),
    /// A variable, `NAME=value`: in place of the one with the same name.
    Variables(Vec<(String, String)>),
    /// Keys of a map, with their values.
    Entries(&'static str, Vec<(String, Value)>),
}

impl FromStr for Instruction {
    type Err = anyhow::Error;

    /// Parses a line such as `CMD ["top", "-b"]`.
    ///
    /// # Errors
    /// With the line and what is accepted.
    fn from_str(line: &str) -> Result<Instruction> {
        let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        let wrong =
            |accepted: &str| -> anyhow::Error { fault(format!("--change {line:?}: accepted is {accepted}")).into() };
        if rest.is_empty() && !word.is_empty() {
            return Err(wrong(&format!("{word} and a value")));
        }
        let set = |field, value: &str| Ok(Instruction::Set(field, json!(value)));
        match word.to_ascii_uppercase().as_str() {
            "CMD" => Ok(Instruction::Set("Cmd", json!(command(rest)))),
            "ENTRYPOINT" => Ok(Instruction::Set("Entrypoint", json!(command(rest)))),
            "USER" => set("User", rest),
            "WORKDIR" if rest.starts_with('/') => set("WorkingDir", rest),
            "WORKDIR" => Err(wrong("WORKDIR and a path that begins with /")),
            "STOPSIGNAL" => {
                crate::value::signal(rest).map_err(|_| wrong("STOPSIGNAL and a signal's name or number"))?;
                set("StopSignal", rest)
            }
            "ENV" => pairs(rest).map(Instruction::Variables).ok_or_else(|| wrong("ENV NAME=VALUE…")),
            "LABEL" => {
                let pairs = pairs(rest).ok_or_else(|| wrong("LABEL KEY=VALUE…"))?;
                Ok(Instruction::Entries("Labels", pairs.into_iter().map(|(key, value)| (key, json!(value))).collect()))
            }
            "VOLUME" => {
                Ok(Instruction::Entries("Volumes", list(rest).into_iter().map(|path| (path, json!({}))).collect()))
            }
            "EXPOSE" => {
                let port = |text: String| if text.contains('/') { text } else { format!("{text}/tcp") };
                let ports = list(rest).into_iter().map(|text| (port(text), json!({}))).collect();
                Ok(Instruction::Entries("ExposedPorts", ports))
            }
            _ => Err(wrong("CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR and a value")),
        }
    }
}

/// A JSON array, or words for a shell.
fn command(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| ["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

/// A JSON array, or words.
fn list(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| text.split_whitespace().map(str::to_owned).collect())
}

/// `A=1 B="two words"`, or one `NAME rest of the line`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = words(text)?;
    if let Some((name, value)) = text.split_once(char::is_whitespace).filter(|(name, _)| !name.contains('=')) {
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| {
        word.split_once('=').filter(|(name, _)| !name.is_empty()).map(|(n, v)| (n.to_owned(), v.to_owned()))
    };
    words.into_iter().map(pair).collect()
}

/// Words with a shell's quotes and backslashes; `None` where a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(characters.next()?),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Carries the instructions out on a whole image config.
pub(super) fn change(config: &mut Value, instructions: &[Instruction]) {
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    let run = &mut config["config"];
    for instruction in instructions {
        match instruction {
            Instruction::Set(field, value) => run[*field] = value.clone(),
            Instruction::Variables(pairs) => {
                let mut all: Vec<String> = serde_json::from_value(run["Env"].clone()).unwrap_or_default();
                for (name, value) in pairs {
                    let line = format!("{name}={value}");
                    match all.iter_mut().find(|other| other.split('=').next() == Some(name)) {
                        Some(other) => *other = line,
                        None => all.push(line),
                    }
                }
                run["Env"] = json!(all);
            }
            Instruction::Entries(field, entries) => {
                if !run[*field].is_object() {
                    run[*field] = json!({});
                }
                for (key, value) in entries {
                    run[*field][key] = value.clone();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> Value {
        let mut config = json!({ "config": { "Env": ["PATH=/bin", "A=0"], "Labels": null } });
        let instructions: Vec<Instruction> = lines.iter().map(|line| line.parse().unwrap()).collect();
        change(&mut config, &instructions);
        config["config"].clone()
    }

    #[test]
    fn lines_of_a_dockerfile() {
        let config = changed(&[
            r#"CMD ["top", "-b"]"#,
            "entrypoint exec top",
            r#"ENV A=1 B="two words" C=x\ y"#,
            "ENV OLD the rest of it",
            "LABEL k=v",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "USER 5:6",
            "WORKDIR /srv",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(config["Cmd"], json!(["top", "-b"]));
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "exec top"]));
        assert_eq!(config["Env"], json!(["PATH=/bin", "A=1", "B=two words", "C=x y", "OLD=the rest of it"]));
        assert_eq!(config["Labels"], json!({ "k": "v" }));
        assert_eq!(config["ExposedPorts"], json!({ "80/tcp": {}, "53/udp": {} }));
        assert_eq!(config["Volumes"], json!({ "/data": {} }));
        assert_eq!(
            (&config["User"], &config["WorkingDir"], &config["StopSignal"]),
            (&json!("5:6"), &json!("/srv"), &json!("SIGINT"))
        );
    }

    #[test]
    fn what_is_none_is_refused_with_what_is_accepted() {
        for (line, accepted) in [
            ("RUN x", "CMD, ENTRYPOINT"),
            ("CMD", "CMD and a value"),
            ("ENV A", "NAME=VALUE"),
            ("ENV =x", "NAME=VALUE"),
            ("ENV A=\"open", "NAME=VALUE"),
            ("WORKDIR srv", "begins with /"),
            ("STOPSIGNAL SIGNONE", "signal"),
        ] {
            let error = line.parse::<Instruction>().unwrap_err().to_string();
            assert!(error.contains(accepted) && error.starts_with("--change"), "{line}: {error}");
        }
    }
}
