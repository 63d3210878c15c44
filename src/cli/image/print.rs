//! Tables and text of the image commands.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::error::Result;
use crate::image::reference::Reference;
use crate::image::view::Details;

/// All about one image.
pub(super) fn show(details: &Details) -> Result<()> {
    let config = &details.config;
    let names: Vec<String> = details.names.iter().map(Reference::familiar).collect();
    let labels: Vec<String> = config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut fields = vec![("Image ID", details.id.to_string())];
    fields.push(("Names", if names.is_empty() { details.name.clone() } else { names.join(", ") }));
    fields.extend(details.manifests.iter().map(|manifest| ("Manifest", manifest.to_string())));
    fields.push(("Platform", details.platform.clone()));
    fields.push(("Created", details.created.clone().unwrap_or_default()));
    fields.push(("Imported", details.imported.clone().unwrap_or_default()));
    fields.push(("Entrypoint", words(&config.entrypoint)));
    fields.push(("Cmd", words(&config.cmd)));
    fields.extend(config.env.iter().map(|pair| ("Env", pair.clone())));
    fields.push(("User", config.user.clone()));
    fields.push(("WorkingDir", config.working_dir.clone()));
    fields.push(("StopSignal", config.stop_signal.clone()));
    fields.push(("Volumes", config.volumes.join(", ")));
    fields.push(("ExposedPorts", config.exposed_ports.join(", ")));
    fields.extend(labels.into_iter().map(|label| ("Label", label)));
    let mut out = io::stdout().lock();
    for (key, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{key:<13} {value}")?;
    }
    writeln!(out)?;
    drop(out);
    let mut table = table(&["", "DIFF ID", "CHAIN ID", "SIZE", "DIRECTORY"], &[0, 3]);
    for (at, layer) in details.layers.iter().enumerate() {
        table.add_row([
            (at + 1).to_string(),
            layer.diff_id.short(),
            layer.chain_id.short(),
            layer.size.map_or_else(String::new, size),
            layer.directory.clone(),
        ]);
    }
    print_table(&table)?;
    Ok(())
}

/// A command line as one would type it.
fn words(words: &[String]) -> String {
    let plain =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=,+@%".contains(&b));
    let quote = |word: &String| {
        if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

pub(in crate::cli) fn print_json(value: &impl Serialize) -> Result<u8> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(0)
}

/// A table without lines; on a terminal it is made to fit.
pub(super) fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header);
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout())
        && size.ws_col > 0
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(size.ws_col);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(super) fn print_table(table: &Table) -> Result<u8> {
    let mut out = io::stdout().lock();
    for line in table.lines() {
        writeln!(out, "{}", line.strip_prefix(' ').unwrap_or(&line).trim_end())?;
    }
    Ok(0)
}

/// A number of bytes with three digits or so: `812`, `5.3M`, `1.2G`. The units are powers of 1024, as systemd's.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];
    let mut unit = 0;
    let mut whole = bytes;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    if unit == 0 || whole >= 100 {
        format!("{whole}{}", UNITS[unit])
    } else {
        format!("{whole}.{}{}", rest * 10 / 1024, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_words() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (243_269_632, "232M"), (5 << 40, "5.0T")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(words(&["sh".into(), "-c".into(), "it's".into(), String::new()]), r"sh -c 'it'\''s' ''");
    }
}
