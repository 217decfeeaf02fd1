//! The manifest: what makes a directory a snapshot, and what every other file in it must be.

use std::path::Path;

use serde::{Deserialize, Serialize, de::Error};
use serde_json::value::RawValue;

use super::{Chain, MemoryTable, PAGE_SIZE, SnapshotError};

/// The format of a snapshot that stands alone.
pub const FORMAT: u32 = 1;

/// The format of one that builds on others. A program that does not know of these must not take it for whole.
pub const FORMAT_CHAIN: u32 = 2;

/// What a snapshot consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of the snapshot: [`FORMAT`], or [`FORMAT_CHAIN`] if it has a chain.
    pub format: u32,
    /// Name and version of the program that wrote it.
    pub program: String,
    /// CPU identification that the guest was given.
    pub cpu: Box<RawValue>,
    /// The guest's map.
    pub layout: Box<RawValue>,
    /// The configuration at the time. The copy in `config.json` may have been edited since.
    pub config: Box<RawValue>,
    /// `state.json`.
    pub state: FileDigest,
    /// The sections of `state.json`, in order.
    pub sections: Vec<SectionDigest>,
    /// `memory-ranges`.
    pub memory: MemoryTable,
    /// The snapshots below, if this one has only what changed since. The table is of all of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
}

/// What a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Length in bytes.
    pub size: u64,
    /// CRC32C of the content.
    pub crc32c: u32,
}

impl FileDigest {
    /// Of some content.
    pub fn of(content: &[u8]) -> Self {
        Self { size: content.len() as u64, crc32c: crc32c::crc32c(content) }
    }
}

/// What a section must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionDigest {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Version of its layout.
    pub version: u32,
    /// CRC32C of its content.
    pub crc32c: u32,
}

/// The file: a manifest, and the checksum of its text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    root: u32,
    manifest: Box<RawValue>,
}

/// As much of a manifest as every format has.
#[derive(Deserialize)]
struct Head {
    format: u32,
    program: String,
}

impl Manifest {
    /// The text of `manifest.json`.
    ///
    /// # Errors
    /// Never with values that came out of JSON.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let manifest = serde_json::value::to_raw_value(self)?;
        let root = crc32c::crc32c(manifest.get().as_bytes());
        serde_json::to_string(&Envelope { root, manifest })
    }

    /// Reads `manifest.json`; `path` is for errors.
    ///
    /// # Errors
    /// The text is damaged, of another format, or contradicts itself.
    pub fn from_text(text: &[u8], path: &Path) -> Result<Self, SnapshotError> {
        Self::with_root(text, path).map(|(manifest, _)| manifest)
    }

    /// Likewise, with the checksum over all.
    pub(super) fn with_root(text: &[u8], path: &Path) -> Result<(Self, u32), SnapshotError> {
        let form = |source| SnapshotError::Form { path: path.to_owned(), source };
        let Envelope { manifest: text, root } = opened(text, path)?;
        let Head { format: found, program } = serde_json::from_str(text.get()).map_err(form)?;
        if ![FORMAT, FORMAT_CHAIN].contains(&found) {
            return Err(SnapshotError::Format { found, program, known: FORMAT_CHAIN });
        }
        let manifest: Self = serde_json::from_str(text.get()).map_err(form)?;
        manifest.check().map_err(|why| SnapshotError::Contradiction { path: path.to_owned(), why })?;
        Ok((manifest, root))
    }

    /// The checksum over all that the text of a manifest carries, and that is right; the rest of it is not
    /// looked at.
    ///
    /// # Errors
    /// The text is damaged.
    pub fn root_of(text: &[u8], path: &Path) -> Result<u32, SnapshotError> {
        opened(text, path).map(|envelope| envelope.root)
    }

    fn check(&self) -> Result<(), String> {
        self.memory.check()?;
        let expected = if self.chain.is_some() { FORMAT_CHAIN } else { FORMAT };
        if self.format != expected {
            return Err(format!("format {}, and what it has is of format {expected}", self.format));
        }
        self.chain.as_ref().map_or(Ok(()), |chain| chain.check(self.memory.size / PAGE_SIZE))
    }

    /// The checksum over all: of the text that carries every other one.
    ///
    /// # Errors
    /// As for [`to_text`](Self::to_text).
    pub fn root(&self) -> Result<u32, serde_json::Error> {
        serde_json::to_string(self).map(|text| crc32c::crc32c(text.as_bytes()))
    }
}

/// What is in the envelope, if its checksum is right.
fn opened(text: &[u8], path: &Path) -> Result<Envelope, SnapshotError> {
    let form = |source| SnapshotError::Form { path: path.to_owned(), source };
    // Serde would read its members from a list, too.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(form(serde_json::Error::custom("a list, and an object is expected")));
    }
    let envelope: Envelope = serde_json::from_slice(text).map_err(form)?;
    let found = crc32c::crc32c(envelope.manifest.get().as_bytes());
    if found == envelope.root {
        return Ok(envelope);
    }
    let (what, expected) = ("the manifest".to_owned(), envelope.root);
    Err(SnapshotError::Damaged { path: path.to_owned(), what, found, expected })
}
