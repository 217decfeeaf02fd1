//! Which pages of some bytes are not zero.

use std::ops::Range;

use crate::config::PAGE_SIZE;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // In blocks without a branch inside, which the compiler makes wide.
    let blocks = bytes.chunks_exact(64);
    let rest = blocks.remainder().iter().all(|byte| *byte == 0);
    rest && blocks.into_iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The runs of pages in `bytes` that are not zero, as byte ranges.
pub fn filled(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs = Runs::default();
    for content in bytes.chunks(page()) {
        runs.add(content.len(), !is_zero(content));
    }
    runs.found
}

/// The runs of pages in `bytes` that are not the same in `others`, which are as many, as byte ranges.
pub fn different(bytes: &[u8], others: &[u8]) -> Vec<Range<usize>> {
    let mut runs = Runs::default();
    for (content, other) in bytes.chunks(page()).zip(others.chunks(page())) {
        runs.add(content.len(), content != other);
    }
    runs.found
}

fn page() -> usize {
    usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX)
}

/// Runs of what was chosen of bytes that follow one another.
#[derive(Default)]
struct Runs {
    at: usize,
    found: Vec<Range<usize>>,
}

impl Runs {
    fn add(&mut self, length: usize, chosen: bool) {
        let (start, end) = (self.at, self.at + length);
        self.at = end;
        match self.found.last_mut() {
            _ if !chosen => {}
            Some(run) if run.end == start => run.end = end,
            _ => self.found.push(start..end),
        }
    }
}
