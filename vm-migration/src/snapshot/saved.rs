//! The memory of a snapshot, open for reading: the one place where its chunks come from.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::MemoryTable;

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
        .path.display()
    )]
    Damaged {
        /// The memory file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// Checksum of what is there.
        found: u32,
        /// Checksum of what was saved.
        expected: u32,
    },
}

/// The memory of a snapshot: its table, and the file that has its chunks.
#[derive(Debug)]
pub struct SavedMemory {
    table: MemoryTable,
    file: Arc<File>,
    path: PathBuf,
}

impl SavedMemory {
    /// Memory that `table` describes, in `file`, which is as long as the table says; `path` is for errors.
    pub fn new(table: MemoryTable, file: File, path: PathBuf) -> Self {
        Self { table, file: Arc::new(file), path }
    }

    /// What is where, and what it must be.
    pub fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// The memory file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
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

    /// Reads a chunk into `buffer`, which is as long as a chunk; with `check` it is held against its checksum,
    /// or, if it has none, against zeros.
    ///
    /// # Errors
    /// It cannot be read, or is not what was saved.
    pub fn read_chunk(&self, chunk: u64, buffer: &mut [u8], check: bool) -> Result<(), ChunkError> {
        let offset = chunk.saturating_mul(self.table.chunk_size);
        let read = self.file.read_exact_at(buffer, offset);
        read.map_err(|source| ChunkError::Read { path: self.path.clone(), offset, source })?;
        if !check {
            return Ok(());
        }
        let found = crc32c::crc32c(buffer);
        let expected = self.table.chunks.get(chunk);
        let expected = expected.unwrap_or_else(|| crc32c::crc32c(&vec![0; buffer.len()]));
        if found == expected {
            return Ok(());
        }
        Err(ChunkError::Damaged { path: self.path.clone(), offset, found, expected })
    }
}
