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
    let page = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for content in bytes.chunks(page) {
        let end = at + content.len();
        if !is_zero(content) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}
