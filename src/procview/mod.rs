//! The truthful /proc: what runs inside sees its own limits, not the machine.
//!
//! [`table`] has the virtual files, each a pure function from [`statistics::Statistics`] and the host's text to the sandbox's.
//! [`reader`] reads the statistics.

mod cpu;
mod disk;
mod memory;
mod reader;
mod statistics;
mod table;
#[cfg(test)]
mod tests;

use table::Row;

/// The name of a file in our file system: its path, flat.
fn file_name(row: &Row) -> String {
    row.path.trim_start_matches('/').replace('/', "-")
}
