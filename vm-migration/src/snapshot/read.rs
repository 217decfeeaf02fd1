//! Opening a snapshot: everything but memory is read and checked before anything is built from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    CONFIG, FileDigest, MANIFEST, MEMORY, Manifest, STATE, SavedMemory, SectionDigest, SnapshotError,
};
use crate::state::{LoadError, Section};

/// Longest file that is read into memory, in bytes: no VM's state comes near.
const FILE_LIMIT: u64 = 1 << 30;

/// A snapshot whose manifest and state have been checked.
#[derive(Debug)]
pub struct Snapshot {
    directory: PathBuf,
    /// What it consists of.
    pub manifest: Manifest,
    /// The configuration as it is now in `config.json`: perhaps edited.
    pub config: String,
    sections: BTreeMap<String, Section>,
}

impl Snapshot {
    /// Opens the snapshot in `directory`. With `verify` the state is checked against its checksums; the
    /// manifest always is.
    ///
    /// # Errors
    /// There is none, it is damaged, or a newer program wrote it.
    pub fn open(directory: &Path, verify: bool) -> Result<Self, SnapshotError> {
        let manifest_path = directory.join(MANIFEST);
        let text = match read(&manifest_path) {
            Err(SnapshotError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // Is it the manifest that is missing, or the directory?
                std::fs::read_dir(directory)
                    .map_err(|source| SnapshotError::Directory { path: directory.to_owned(), source })?;
                return Err(SnapshotError::None { path: directory.to_owned() });
            }
            text => text?,
        };
        let manifest = Manifest::from_text(&text, &manifest_path)?;
        let config_path = directory.join(CONFIG);
        let config = String::from_utf8(read(&config_path)?).map_err(|_| SnapshotError::Contradiction {
            path: config_path,
            why: "is not text in UTF-8".to_owned(),
        })?;
        let sections = sections(&directory.join(STATE), &manifest, verify)?;
        Ok(Self { directory: directory.to_owned(), manifest, config, sections })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The section of that id.
    ///
    /// # Errors
    /// There is none.
    pub fn section(&self, id: &str) -> Result<&Section, LoadError> {
        self.sections.get(id).ok_or_else(|| LoadError::Missing { id: id.to_owned() })
    }

    /// The ids of all sections.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.sections.keys().map(String::as_str)
    }

    /// All sections, by id.
    pub fn sections(&self) -> &BTreeMap<String, Section> {
        &self.sections
    }

    /// All sections, by id.
    pub fn into_sections(self) -> BTreeMap<String, Section> {
        self.sections
    }

    /// The memory, in a file that is as long as it must be.
    ///
    /// # Errors
    /// It cannot be opened, or has another length.
    pub fn open_memory(&self) -> Result<SavedMemory, SnapshotError> {
        let path = self.directory.join(MEMORY);
        let failed = |operation| {
            move |source| SnapshotError::File { operation, path: self.directory.join(MEMORY), source }
        };
        let file = File::open(&path).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("examine"))?;
        let (found, expected) = (metadata.len(), self.manifest.memory.size);
        if !metadata.is_file() || found != expected {
            return Err(SnapshotError::Length { path, found, expected });
        }
        Ok(SavedMemory::new(self.manifest.memory.clone(), file, path))
    }
}

/// The sections of `state.json`, by id.
fn sections(
    path: &Path,
    manifest: &Manifest,
    verify: bool,
) -> Result<BTreeMap<String, Section>, SnapshotError> {
    let text = read(path)?;
    let expected = manifest.state;
    if text.len() as u64 != expected.size {
        return Err(SnapshotError::Length {
            path: path.to_owned(),
            found: text.len() as u64,
            expected: expected.size,
        });
    }
    let whole = !verify || FileDigest::of(&text) == expected;
    let form = |source| SnapshotError::Form { path: path.to_owned(), source };
    let listed: Vec<Section> = serde_json::from_slice(&text).map_err(form)?;
    if !whole {
        return Err(name_damage(path, &listed, manifest, FileDigest::of(&text)));
    }
    let ids: BTreeSet<&str> = listed.iter().map(|section| section.id.as_str()).collect();
    if let Some(id) = first_twice(&listed) {
        return Err(LoadError::Unexpected { id, why: "it is there twice" }.into());
    }
    for entry in &manifest.sections {
        if !ids.contains(entry.id.as_str()) {
            return Err(LoadError::Missing { id: entry.id.clone() }.into());
        }
    }
    for section in &listed {
        let known = manifest.sections.iter().any(|entry| describes(entry, section));
        if !known {
            let id = section.id.clone();
            return Err(LoadError::Unexpected { id, why: "the manifest does not list it so" }.into());
        }
    }
    Ok(listed.into_iter().map(|section| (section.id.clone(), section)).collect())
}

fn first_twice(sections: &[Section]) -> Option<String> {
    let mut seen = BTreeSet::new();
    sections.iter().find(|section| !seen.insert(&section.id)).map(|section| section.id.clone())
}

fn describes(entry: &SectionDigest, section: &Section) -> bool {
    entry.id == section.id && entry.kind == section.kind && entry.version == section.version
}

/// Says which section is the damaged one, where that can be told.
fn name_damage(path: &Path, sections: &[Section], manifest: &Manifest, found: FileDigest) -> SnapshotError {
    for section in sections {
        let entry = manifest.sections.iter().find(|entry| describes(entry, section));
        let found = crc32c::crc32c(section.state.get().as_bytes());
        if let Some(expected) = entry.map(|entry| entry.crc32c).filter(|expected| *expected != found) {
            let what = format!("the state of {}", section.id);
            return SnapshotError::Damaged { path: path.to_owned(), what, found, expected };
        }
    }
    let (found, expected) = (found.crc32c, manifest.state.crc32c);
    SnapshotError::Damaged { path: path.to_owned(), what: "the state".to_owned(), found, expected }
}

/// A whole file, if it is one of ours by its length.
fn read(path: &Path) -> Result<Vec<u8>, SnapshotError> {
    let failed = |operation| move |source| SnapshotError::File { operation, path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed("open"))?;
    let size = file.metadata().map_err(failed("examine"))?.len();
    if size > FILE_LIMIT {
        return Err(SnapshotError::TooLong { path: path.to_owned(), size, limit: FILE_LIMIT });
    }
    // One more, so that a file that is as long as it says is read in one go.
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.by_ref().take(FILE_LIMIT).read_to_end(&mut content).map_err(failed("read"))?;
    Ok(content)
}
