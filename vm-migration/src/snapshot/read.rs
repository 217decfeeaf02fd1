//! Opening a snapshot: everything but memory is read and checked before anything is built from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, retry_on_intr},
};

use super::{
    Ancestor, CONFIG, FileDigest, MANIFEST, MEMORY, Manifest, MemoryFile, STATE, SavedMemory, SectionDigest,
    SnapshotError, split::split,
};
use crate::state::{LoadError, Section};

/// Longest file that is read into memory, in bytes: no VM's state comes near.
const FILE_LIMIT: u64 = 1 << 30;

/// A snapshot whose manifest and state have been checked.
#[derive(Debug)]
pub struct Snapshot {
    directory: PathBuf,
    root: u32,
    /// Memory files of the snapshots below, the full one first.
    below: Vec<MemoryFile>,
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
        let (manifest, root) = Manifest::with_root(&self::manifest(directory)?, &manifest_path)?;
        let below = below(directory, &manifest)?;
        let config_path = directory.join(CONFIG);
        let config = String::from_utf8(read(&config_path)?).map_err(|_| SnapshotError::Contradiction {
            path: config_path,
            why: "is not text in UTF-8".to_owned(),
        })?;
        let sections = sections(&directory.join(STATE), &manifest, verify)?;
        Ok(Self { directory: directory.to_owned(), root, below, manifest, config, sections })
    }

    /// The checksum over all of it.
    pub fn root(&self) -> u32 {
        self.root
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

    /// The memory, in files that are as long as they must be.
    ///
    /// # Errors
    /// The file cannot be opened, has another length, or is that of a snapshot below.
    pub fn open_memory(&self) -> Result<SavedMemory, SnapshotError> {
        let table = self.manifest.memory.clone();
        let own = open_memory(&self.directory, table.size)?;
        let (Some(chain), Some((base, between))) = (&self.manifest.chain, self.below.split_first()) else {
            return Ok(SavedMemory::new(table, own));
        };
        let files = between.iter().cloned().chain([own]);
        Ok(SavedMemory::new(table, base.clone()).with_layers(files.zip(chain.layers())))
    }
}

/// The memory files of the snapshots that one builds on, if these are what it built on.
fn below(directory: &Path, manifest: &Manifest) -> Result<Vec<MemoryFile>, SnapshotError> {
    let Some(chain) = &manifest.chain else { return Ok(Vec::new()) };
    let mut seen = BTreeSet::from([identity(directory)?]);
    let mut open = |ancestor: &Ancestor| {
        let found = ancestor.check(directory)?;
        if !seen.insert(identity(&found)?) {
            let why = "the snapshot is there twice, or builds on itself".to_owned();
            return Err(SnapshotError::Contradiction { path: found, why });
        }
        open_memory(&found, manifest.memory.size)
    };
    let files = chain.ancestors().map(|ancestor| {
        open(ancestor).map_err(|source| SnapshotError::Ancestor {
            path: directory.to_owned(),
            ancestor: ancestor.seen_from(directory),
            source: Box::new(source),
        })
    });
    files.collect()
}

/// What tells one directory from another, whatever they are called.
fn identity(directory: &Path) -> Result<(u64, u64), SnapshotError> {
    let metadata = std::fs::metadata(directory)
        .map_err(|source| SnapshotError::Directory { path: directory.to_owned(), source })?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The memory file of a snapshot, which is to have that length.
fn open_memory(directory: &Path, expected: u64) -> Result<MemoryFile, SnapshotError> {
    let path = directory.join(MEMORY);
    let (file, found) = open(&path)?;
    if found != expected {
        return Err(SnapshotError::Length { path, found, expected });
    }
    Ok(MemoryFile::new(file, path))
}

/// The text of a snapshot's manifest.
pub(super) fn manifest(directory: &Path) -> Result<Vec<u8>, SnapshotError> {
    match read(&directory.join(MANIFEST)) {
        Err(SnapshotError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            // Is it the manifest that is missing, or the directory?
            std::fs::read_dir(directory)
                .map_err(|source| SnapshotError::Directory { path: directory.to_owned(), source })?;
            Err(SnapshotError::None { path: directory.to_owned() })
        }
        text => text,
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
    let digest = verify.then(|| FileDigest::of(&text));
    let form = |source| SnapshotError::Form { path: path.to_owned(), source };
    let listed: Vec<Section> = match String::from_utf8(text).map(Arc::new) {
        Ok(text) => match split(&text) {
            Some(listed) => listed,
            None => serde_json::from_str(&text).map_err(form)?,
        },
        // It says where.
        Err(error) => serde_json::from_slice(error.as_bytes()).map_err(form)?,
    };
    if let Some(found) = digest.filter(|digest| *digest != expected) {
        return Err(name_damage(path, &listed, manifest, found));
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
    // By id: there may be many, and a comparison of each with each has no end then.
    let entries: BTreeMap<&str, &SectionDigest> =
        manifest.sections.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    for section in &listed {
        if !entries.get(section.id.as_str()).is_some_and(|entry| describes(entry, section)) {
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
    read_up_to(FILE_LIMIT, path)
}

/// A whole file that has at most `limit` bytes.
pub(super) fn read_up_to(limit: u64, path: &Path) -> Result<Vec<u8>, SnapshotError> {
    let (file, size) = open(path)?;
    if size > limit {
        return Err(SnapshotError::TooLong { path: path.to_owned(), size, limit });
    }
    // One more, so that a file that is as long as it says is read in one go.
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    let failed = |source| SnapshotError::File { operation: "read", path: path.to_owned(), source };
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// Opens a regular file; returns its length, too. Whoever made the directory may have put something else there: a pipe,
/// which would keep the thread waiting for a writer, or a device, which never ends.
fn open(path: &Path) -> Result<(File, u64), SnapshotError> {
    let failed = |operation| move |source| SnapshotError::File { operation, path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()));
    let file = match opened {
        Ok(file) => File::from(file),
        // A socket, or the node of a device that is not there.
        Err(Errno::NXIO | Errno::NODEV) => return Err(SnapshotError::NotFile { path: path.to_owned() }),
        Err(error) => return Err(failed("open")(error.into())),
    };
    let metadata = file.metadata().map_err(failed("examine"))?;
    if !metadata.is_file() {
        return Err(SnapshotError::NotFile { path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}
