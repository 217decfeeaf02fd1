//! The table of guest memory: which zone is where in the file, and a checksum for each chunk.

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes of guest memory that one checksum covers, and that are brought in at once where memory is paged
/// in on demand.
pub const CHUNK_SIZE: u64 = 256 << 10;

/// Where each zone's content is in the memory file, and what it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTable {
    /// Bytes that a checksum covers; a power of two, a multiple of 4 KiB.
    pub chunk_size: u64,
    /// Length of the memory file in bytes.
    pub size: u64,
    /// The zones, in file order.
    pub zones: Vec<ZoneContent>,
    /// Checksums of the chunks of the file that are not zero.
    pub chunks: ChunkDigests,
}

/// A zone's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneContent {
    /// The zone.
    pub zone: String,
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in the memory file, a multiple of the chunk size; none for a zone whose own file
    /// keeps its content.
    pub offset: Option<u64>,
}

impl ZoneContent {
    /// The chunks of the memory file, by number, that have its content; none if its own file keeps it.
    pub fn chunks(&self, chunk_size: u64) -> Option<Range<u64>> {
        let offset = self.offset?;
        let first = offset.checked_div(chunk_size)?;
        Some(first..offset.saturating_add(self.size).div_ceil(chunk_size))
    }
}

impl MemoryTable {
    /// A table for zones of those names and sizes; `kept` says which are to be in the memory file.
    /// `None` if they are together longer than a file can be.
    pub fn new<'zone>(zones: impl IntoIterator<Item = (&'zone str, u64, bool)>) -> Option<Self> {
        let mut table = Self { chunk_size: CHUNK_SIZE, ..Self::default() };
        for (zone, size, kept) in zones {
            let offset = kept.then_some(table.size);
            if kept {
                let end = table.size.checked_add(size)?;
                table.size = end.checked_next_multiple_of(CHUNK_SIZE)?;
            }
            table.zones.push(ZoneContent { zone: zone.to_owned(), size, offset });
        }
        i64::try_from(table.size).ok().map(|_| table)
    }

    /// Whether the table is one that can be: it comes from a file, and is hostile.
    ///
    /// # Errors
    /// What does not fit.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.chunk_size.is_power_of_two() || !(4096..=1 << 30).contains(&self.chunk_size) {
            return Err(format!("memory chunks of {} bytes", self.chunk_size));
        }
        if !self.size.is_multiple_of(self.chunk_size) || i64::try_from(self.size).is_err() {
            return Err(format!("a memory file of {} bytes", self.size));
        }
        let mut end = 0u64;
        for ZoneContent { zone, size, offset } in &self.zones {
            let Some(offset) = *offset else { continue };
            if !offset.is_multiple_of(self.chunk_size) || offset < end {
                return Err(format!("memory zone {zone} at {offset:#x} of the memory file"));
            }
            end = offset.checked_add(*size).filter(|end| *end <= self.size).ok_or_else(|| {
                format!("memory zone {zone} of {size} bytes reaches beyond the end of the memory file")
            })?;
        }
        let chunks = self.size / self.chunk_size;
        if self.chunks.runs.last().is_some_and(|run| run.end() > chunks) {
            return Err("checksums beyond the end of the memory file".to_owned());
        }
        let overlap = self.chunks.runs.windows(2).any(|pair| match pair {
            [first, second] => first.end() > second.first,
            _ => false,
        });
        if overlap { Err("checksums of memory that overlap".to_owned()) } else { Ok(()) }
    }

    /// The content of a zone, if it is known.
    pub fn zone(&self, id: &str) -> Option<&ZoneContent> {
        self.zones.iter().find(|content| content.zone == id)
    }
}

/// CRC32C checksums of chunks, by number. A chunk without one is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkDigests {
    runs: Vec<Run>,
}

/// Checksums of chunks that follow one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    first: u64,
    #[serde(serialize_with = "write_hex", deserialize_with = "read_hex")]
    crc32c: Vec<u32>,
}

impl Run {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.crc32c.len() as u64)
    }
}

impl ChunkDigests {
    /// From checksums in the order of their chunks' numbers.
    pub fn from_sorted(digests: impl IntoIterator<Item = (u64, u32)>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (chunk, digest) in digests {
            match runs.last_mut() {
                Some(run) if run.end() == chunk => run.crc32c.push(digest),
                _ => runs.push(Run { first: chunk, crc32c: vec![digest] }),
            }
        }
        Self { runs }
    }

    /// The checksum of a chunk; `None` for one that is zero.
    pub fn get(&self, chunk: u64) -> Option<u32> {
        let after = self.runs.partition_point(|run| run.first <= chunk);
        let run = self.runs.get(after.checked_sub(1)?)?;
        run.crc32c.get(usize::try_from(chunk.checked_sub(run.first)?).ok()?).copied()
    }

    /// Number and checksum of each chunk that is not zero, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.runs.iter().flat_map(|run| (run.first..).zip(run.crc32c.iter().copied()))
    }

    /// Number of chunks that are not zero.
    pub fn count(&self) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.crc32c.len() as u64))
    }
}

/// Eight hexadecimal digits a checksum, without separators: a large memory has many.
fn write_hex<S: Serializer>(digests: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(digests.len() * 8);
    for digest in digests {
        for shift in (0..32).step_by(4).rev() {
            text.push(char::from_digit(digest >> shift & 0xf, 16).unwrap_or('0'));
        }
    }
    serializer.serialize_str(&text)
}

fn read_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    let digits = text.as_bytes().chunks_exact(8);
    if !digits.remainder().is_empty() {
        return Err(D::Error::custom("checksums of eight hexadecimal digits each expected"));
    }
    let read = |digits: &[u8]| {
        digits.iter().try_fold(0u32, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
    };
    digits
        .map(|digits| read(digits).ok_or_else(|| D::Error::custom("a checksum is not hexadecimal")))
        .collect()
}
