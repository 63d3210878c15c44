//! Sparse files: maps of which bytes an archive carries.

use std::io;

use super::header::malformed;
use super::pax::decimal;
use super::{BLOCK, Run};

/// The most runs a file may have. A megabyte of map per gigabyte of file is far beyond what tools write.
pub(super) const RUN_LIMIT: usize = 1 << 20;

/// Pairs of offset and length, as PAX 0.0 and 0.1 have them.
pub(super) fn pairs(map: &[u64]) -> io::Result<Vec<Run>> {
    if !map.len().is_multiple_of(2) {
        return Err(malformed("its sparse map has an odd number of entries"));
    }
    Ok(map.chunks_exact(2).map(|pair| Run { offset: pair[0], length: pair[1] }).collect())
}

/// Checks that the runs ascend without overlap, lie inside the file and add up to what the archive carries.
pub(super) fn check(runs: &[Run], real_size: u64, stored: u64) -> io::Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for run in runs {
        if run.offset < end {
            return Err(malformed("its sparse map goes backwards"));
        }
        end = run
            .offset
            .checked_add(run.length)
            .filter(|end| *end <= real_size)
            .ok_or_else(|| malformed("its sparse map goes beyond its size"))?;
        sum += run.length;
    }
    if sum != stored {
        return Err(malformed(format!("its sparse map speaks of {sum} bytes, the archive carries {stored}")));
    }
    Ok(())
}

/// The map of PAX 1.0: at the start of the data, one decimal number a line, padded to a block. Blocks are fed in one
/// by one until it is complete.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapReader {
    /// Takes one block; `true` when the map is complete.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> io::Result<bool> {
        for byte in block {
            if self.complete() {
                return Ok(true);
            }
            if *byte != b'\n' {
                if self.line.len() >= 20 {
                    return Err(malformed("its sparse map is not a list of numbers"));
                }
                self.line.push(*byte);
                continue;
            }
            let number = decimal(&self.line).ok_or_else(|| malformed("its sparse map is not a list of numbers"))?;
            self.line.clear();
            match self.count {
                None if number > RUN_LIMIT as u64 => {
                    return Err(malformed("its sparse map is too long"));
                }
                None => self.count = Some(number),
                Some(_) => self.numbers.push(number),
            }
        }
        Ok(self.complete())
    }

    fn complete(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() as u64 == count * 2)
    }

    /// The runs.
    pub(super) fn finish(self) -> io::Result<Vec<Run>> {
        pairs(&self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_lie_are_refused() {
        let run = |offset, length| Run { offset, length };
        assert!(check(&[run(0, 5), run(10, 5), run(20, 0)], 20, 10).is_ok());
        for (runs, stored) in
            [(vec![run(5, 5), run(9, 1)], 6), (vec![run(0, 21)], 21), (vec![run(u64::MAX, 2)], 2), (vec![run(0, 5)], 6)]
        {
            assert!(check(&runs, 20, stored).is_err(), "{runs:?}");
        }
        assert!(pairs(&[1]).is_err());
    }

    #[test]
    fn a_map_in_the_data_spans_blocks() {
        let text: String = std::iter::once("100\n".to_string())
            .chain((0..100).map(|at| format!("{}\n{}\n", at * 8192, 4096)))
            .collect();
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut reader = MapReader::default();
        let blocks: Vec<bool> =
            bytes.chunks_exact(BLOCK).map(|block| reader.feed(block.try_into().unwrap()).unwrap()).collect();
        assert_eq!(blocks.iter().filter(|done| **done).count(), 1);
        assert_eq!(reader.finish().unwrap().len(), 100);
        assert!(MapReader::default().feed(b"x\n".repeat(256).as_slice().try_into().unwrap()).is_err());
    }
}
