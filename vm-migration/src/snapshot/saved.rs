//! The memory of a snapshot, open for reading: the one place where its chunks come from, be they in one file or
//! in those of a chain.

use std::{fmt::Write, fs::File, io, ops::Range, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use thiserror::Error;

use super::{MemoryTable, PAGE_SIZE, PageRuns};

/// Saved memory cannot be read, or is not what was saved.
#[derive(Debug, Error)]
pub enum ChunkError {
    /// The file cannot be read.
    #[error("cannot read {} at {offset:#x}", .path.display())]
    Read {
        /// The memory file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Content does not match its checksum.
    #[error(
        "{}: memory at {offset:#x} is damaged: checksum {found:#010x}, expected {expected:#010x}",
        names(.files)
    )]
    Damaged {
        /// The memory files that have a part in it, the newest first.
        files: Vec<PathBuf>,
        /// Where in them, in bytes.
        offset: u64,
        /// Checksum of what is there.
        found: u32,
        /// Checksum of what was saved.
        expected: u32,
    },
}

fn names(files: &[PathBuf]) -> String {
    let mut text = String::new();
    for (number, file) in files.iter().enumerate() {
        // A string takes whatever is written to it.
        let _ = write!(text, "{}{}", if number == 0 { "" } else { " over " }, file.display());
    }
    text
}

/// A memory file that is open.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    /// The file.
    pub file: Arc<File>,
    /// Its path, for errors.
    pub path: PathBuf,
}

impl MemoryFile {
    /// A file, and how errors call it.
    pub fn new(file: File, path: PathBuf) -> Self {
        Self { file: Arc::new(file), path }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), ChunkError> {
        let read = self.file.read_exact_at(buffer, offset);
        read.map_err(|source| ChunkError::Read { path: self.path.clone(), offset, source })
    }
}

/// Bytes of the memory that one file of a chain supplies, at the same place in the file.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'saved> {
    /// Where it begins, in bytes.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// The file.
    pub from: &'saved MemoryFile,
}

/// The memory of a snapshot: its table, and the files that have its chunks.
#[derive(Debug)]
pub struct SavedMemory {
    table: MemoryTable,
    /// Has whatever no layer has.
    base: MemoryFile,
    /// The files of a chain above the base, oldest first.
    layers: Vec<MemoryFile>,
    /// Pages that come from a layer, with its number: in order, apart from one another.
    supplied: Vec<(Range<u64>, usize)>,
}

impl SavedMemory {
    /// Memory that `table` describes, in one file, which is as long as the table says.
    pub fn new(table: MemoryTable, base: MemoryFile) -> Self {
        Self { table, base, layers: Vec::new(), supplied: Vec::new() }
    }

    /// Likewise, with layers above it, oldest first, which supply pages that do not overlap.
    #[must_use]
    pub fn with_layers<'runs>(self, layers: impl IntoIterator<Item = (MemoryFile, &'runs PageRuns)>) -> Self {
        let (mut files, mut supplied) = (Vec::new(), Vec::new());
        for (file, pages) in layers {
            supplied.extend(pages.iter().map(|run| (run, files.len())));
            files.push(file);
        }
        supplied.sort_unstable_by_key(|(run, _)| run.start);
        Self { layers: files, supplied, ..self }
    }

    /// What is where, and what it must be.
    pub fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// The memory file at the bottom, or the only one.
    pub fn base(&self) -> &MemoryFile {
        &self.base
    }

    /// All memory files, oldest first.
    pub fn files(&self) -> impl Iterator<Item = &MemoryFile> {
        std::iter::once(&self.base).chain(&self.layers)
    }

    /// The memory file on top, or the only one.
    pub fn newest(&self) -> &MemoryFile {
        self.layers.last().unwrap_or(&self.base)
    }

    /// Bytes of a chunk, as a buffer's length.
    pub fn chunk_length(&self) -> usize {
        usize::try_from(self.table.chunk_size).unwrap_or(usize::MAX)
    }

    /// The chunks of a zone, by number; none for a zone that is not in the file.
    pub fn chunks_of(&self, zone: &str) -> Range<u64> {
        let content = self.table.zone(zone);
        content.and_then(|content| content.chunks(self.table.chunk_size)).unwrap_or(0..0)
    }

    /// What of some bytes does not come from the base, in order.
    pub fn overlaid(&self, bytes: Range<u64>) -> impl Iterator<Item = Extent<'_>> {
        let first =
            self.supplied.partition_point(|(run, _)| run.end.saturating_mul(PAGE_SIZE) <= bytes.start);
        let rest = self.supplied.get(first..).unwrap_or_default();
        rest.iter().map_while(move |(run, layer)| {
            let start = run.start.saturating_mul(PAGE_SIZE).max(bytes.start);
            let end = run.end.saturating_mul(PAGE_SIZE).min(bytes.end);
            (start < end).then_some(Extent { start, end, from: self.layers.get(*layer)? })
        })
    }

    /// Reads a chunk into `buffer`, which is as long as a chunk; with `check` it is held against its checksum,
    /// or, if it has none, against zeros.
    ///
    /// # Errors
    /// It cannot be read, or is not what was saved.
    pub fn read_chunk(&self, chunk: u64, buffer: &mut [u8], check: bool) -> Result<(), ChunkError> {
        let offset = chunk.saturating_mul(self.table.chunk_size);
        for part in self.parts(offset, buffer.len() as u64) {
            let place = within(part.start, offset)..within(part.end, offset);
            part.from.read(buffer.get_mut(place).unwrap_or_default(), part.start)?;
        }
        if !check {
            return Ok(());
        }
        let found = crc32c::crc32c(buffer);
        let expected = self.table.chunks.get(chunk);
        let expected = expected.unwrap_or_else(|| crc32c::crc32c(&vec![0; buffer.len()]));
        if found == expected {
            return Ok(());
        }
        let parts = self.parts(offset, buffer.len() as u64);
        let named = self.files().filter(|file| parts.iter().any(|part| part.from.path == file.path));
        let mut files: Vec<_> = named.map(|file| file.path.clone()).collect();
        files.reverse();
        Err(ChunkError::Damaged { files, offset, found, expected })
    }

    /// Which file has what of some bytes, without gaps.
    fn parts(&self, offset: u64, length: u64) -> Vec<Extent<'_>> {
        let end = offset.saturating_add(length);
        let mut parts = Vec::with_capacity(1);
        let mut at = offset;
        for extent in self.overlaid(offset..end) {
            if at < extent.start {
                parts.push(Extent { start: at, end: extent.start, from: &self.base });
            }
            at = extent.end;
            parts.push(extent);
        }
        if at < end {
            parts.push(Extent { start: at, end, from: &self.base });
        }
        parts
    }
}

fn within(at: u64, start: u64) -> usize {
    usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX)
}
