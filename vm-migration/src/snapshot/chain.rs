//! What a snapshot of differences builds on: the snapshots below it, and which pages each of them supplies.
//!
//! The list is flat. Whoever writes a snapshot on top of another takes its list, takes out of it the pages
//! that are in the new one, and drops whoever supplies none any more; so no page is ever looked for, and a
//! chain is opened without reading more of those below than the checksum that says that they are the same.
//!
//! A page that became zero is a run of the new snapshot's that is a hole in its file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{MANIFEST, Manifest, PageRuns, Snapshot, SnapshotError, read};

/// Snapshots that a chain has at most, the full one at its bottom and the last one included.
pub const CHAIN_LIMIT: usize = 64;

/// What a snapshot of differences consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// The full snapshot at the bottom, which supplies all that nobody else does.
    pub base: Ancestor,
    /// Snapshots of differences above it, oldest first.
    pub between: Vec<Layer>,
    /// The pages that this snapshot's own memory file supplies.
    pub own: PageRuns,
}

/// A snapshot that others build on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// Its directory; a relative one is relative to the directory of whom it is an ancestor.
    pub directory: PathBuf,
    /// The checksum over all of it.
    pub root: u32,
}

/// An ancestor that supplies certain pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The ancestor.
    pub snapshot: Ancestor,
    /// The pages that it supplies.
    pub pages: PageRuns,
}

impl Chain {
    /// The chain of a snapshot in `target` that has `own` pages of its own, and the others of `parent`.
    ///
    /// # Errors
    /// The chain would be too long, or where the snapshots are cannot be found out or written down.
    pub fn over(parent: &Snapshot, own: PageRuns, target: &Path) -> Result<Self, SnapshotError> {
        let target = canonical(target)?;
        let below = |directory: &Path, root| {
            let directory = canonical(&parent.directory().join(directory))?;
            if directory.to_str().is_none() {
                let source = io::Error::new(io::ErrorKind::InvalidFilename, "its name is not text in UTF-8");
                return Err(SnapshotError::Directory { path: directory, source });
            }
            Ok(Ancestor { directory: seen_from(&target, directory), root })
        };
        let parent_itself = below(Path::new(""), parent.root())?;
        let chain = match &parent.manifest.chain {
            None => Self { base: parent_itself, between: Vec::new(), own },
            Some(chain) => {
                let layers = chain.between.iter().map(|layer| {
                    let snapshot = below(&layer.snapshot.directory, layer.snapshot.root)?;
                    Ok(Layer { snapshot, pages: layer.pages.without(&own) })
                });
                let mut between = layers.collect::<Result<Vec<_>, SnapshotError>>()?;
                between.push(Layer { snapshot: parent_itself, pages: chain.own.without(&own) });
                between.retain(|layer| !layer.pages.is_empty());
                Self { base: below(&chain.base.directory, chain.base.root)?, between, own }
            }
        };
        let length = chain.length();
        if length > CHAIN_LIMIT {
            return Err(SnapshotError::ChainLength { path: target, length });
        }
        Ok(chain)
    }

    /// Number of snapshots, the one on top included.
    pub fn length(&self) -> usize {
        self.between.len().saturating_add(2)
    }

    /// The snapshots below, the full one first.
    pub fn ancestors(&self) -> impl Iterator<Item = &Ancestor> {
        std::iter::once(&self.base).chain(self.between.iter().map(|layer| &layer.snapshot))
    }

    /// The runs of each layer but the base, oldest first, this snapshot's own last.
    pub(super) fn layers(&self) -> impl Iterator<Item = &PageRuns> {
        self.between.iter().map(|layer| &layer.pages).chain([&self.own])
    }

    /// Whether it can be the chain of a memory file of so many pages: it comes from a file, and is hostile.
    ///
    /// # Errors
    /// What does not fit.
    pub(super) fn check(&self, pages: u64) -> Result<(), String> {
        if self.length() > CHAIN_LIMIT {
            return Err(format!("a chain of {} snapshots, {CHAIN_LIMIT} at most", self.length()));
        }
        let mut all = Vec::new();
        for layer in self.layers() {
            layer.check(pages)?;
            all.extend(layer.iter().map(|run| (run.start, run.end)));
        }
        all.sort_unstable();
        let twice = all.windows(2).find_map(|pair| match pair {
            [(_, end), (next, _)] if next < end => Some(next),
            _ => None,
        });
        match twice {
            Some(page) => Err(format!("page {page} is supplied by two snapshots of the chain")),
            None => Ok(()),
        }
    }
}

impl Ancestor {
    /// Its directory, as one of the snapshot in `directory`.
    pub fn seen_from(&self, directory: &Path) -> PathBuf {
        directory.join(&self.directory)
    }

    /// Checks that what is there is what was built on. Returns where that is.
    ///
    /// # Errors
    /// It is not there, damaged, or another snapshot.
    pub(super) fn check(&self, descendant: &Path) -> Result<PathBuf, SnapshotError> {
        let directory = self.seen_from(descendant);
        let path = directory.join(MANIFEST);
        let text = read::manifest(&directory)?;
        let found = Manifest::root_of(&text, &path)?;
        if found == self.root {
            return Ok(directory);
        }
        Err(SnapshotError::Another { path: directory, found, expected: self.root })
    }
}

fn canonical(directory: &Path) -> Result<PathBuf, SnapshotError> {
    fs::canonicalize(directory)
        .map_err(|source| SnapshotError::Directory { path: directory.to_owned(), source })
}

/// How `directory` is named from `target`: by its name alone where they are neighbours, so that they can be moved
/// together. Both are absolute.
fn seen_from(target: &Path, directory: PathBuf) -> PathBuf {
    match (target.parent(), directory.parent(), directory.file_name()) {
        (Some(here), Some(there), Some(name)) if here == there => Path::new("..").join(name),
        _ => directory,
    }
}
