//! Sets of pages of a memory file, as runs.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes of a page: what is compared, and what layers of a chain are told apart by.
pub const PAGE_SIZE: u64 = 4096;

/// Pages of a memory file by number: runs of a first page and a count, in order and apart from one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageRuns(Vec<(u64, u64)>);

impl PageRuns {
    /// From ranges of pages, in any order; those that overlap or touch are joined.
    pub fn from_ranges(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| range.start < range.end).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined.into_iter().map(|range| (range.start, range.end - range.start)).collect())
    }

    /// The runs.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(first, count)| *first..first.saturating_add(*count))
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Without the pages of `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        let mut cuts = other.iter().peekable();
        for Range { mut start, end } in self.iter() {
            // A cut may reach into the next run too: it is only passed when it has ended before this one.
            while cuts.next_if(|cut| cut.end <= start).is_some() {}
            while let Some(cut) = cuts.peek().filter(|cut| cut.start < end) {
                if start < cut.start {
                    left.push((start, cut.start - start));
                }
                start = cut.end.max(start);
                if cut.end >= end {
                    break;
                }
                cuts.next();
            }
            if start < end {
                left.push((start, end - start));
            }
        }
        Self(left)
    }

    /// Whether they can be pages of a memory file of `pages`: they come from a file, and are hostile.
    ///
    /// # Errors
    /// What does not fit.
    pub(super) fn check(&self, pages: u64) -> Result<(), String> {
        let mut before = 0;
        for (first, count) in &self.0 {
            let end = first.checked_add(*count).filter(|end| *end <= pages);
            let end = end.ok_or_else(|| format!("{count} pages from {first} on, of {pages}"))?;
            if *count == 0 || *first < before {
                return Err(format!("{count} pages from {first} on, out of order"));
            }
            before = end;
        }
        Ok(())
    }
}
