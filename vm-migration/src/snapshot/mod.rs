//! The snapshot directory: what a VM is saved to and lives again from.
//!
//! | file | content |
//! | --- | --- |
//! | `config.json` | the configuration, as the REST API has it; may be edited before a restore |
//! | `state.json` | the saved state: one [`Section`](crate::Section) for each device, vCPU and interrupt controller |
//! | `memory-ranges` | guest memory, zone after zone, with holes where it is zero |
//! | `manifest.json` | what the others must be: format, layout, sections, digests; written last |
//!
//! Beside them there may be a `working-set.json`: what a VM touched first after an earlier restore ([`WorkingSet`]).
//!
//! The manifest is what makes a directory a snapshot. It carries a checksum of everything else and one
//! of itself ([`Manifest::root`]), so that damage is found before anything is built from it. Writing
//! ([`SnapshotWriter`]) is all or nothing: the files are made in a directory of their own, synced, moved
//! into place, the manifest last, and the directory synced.
//!
//! A snapshot can hold what changed since another one, its parent ([`Chain`]); together they are as good as a
//! full one.
//!
//! What is absent: what a section or a configuration means, and guest memory itself, which `vmm` writes
//! chunk by chunk, with a [`MemoryTable`] of what is where, and reads through [`SavedMemory`].

mod chain;
mod error;
mod manifest;
mod memory;
mod read;
mod runs;
mod saved;
mod split;
mod target;
#[cfg(test)]
mod tests;
mod working_set;
mod write;

pub use self::{
    chain::{Ancestor, CHAIN_LIMIT, Chain, Layer},
    error::SnapshotError,
    manifest::{FORMAT, FORMAT_CHAIN, FileDigest, Manifest, SectionDigest},
    memory::{CHUNK_SIZE, ChunkDigests, MemoryTable, ZoneContent},
    read::Snapshot,
    runs::{PAGE_SIZE, PageRuns},
    saved::{ChunkError, Extent, MemoryFile, SavedMemory},
    working_set::{PageRun, WorkingSet, ZonePages},
    write::SnapshotWriter,
};

/// The configuration, in the form of the REST API.
pub const CONFIG: &str = "config.json";
/// The sections.
pub const STATE: &str = "state.json";
/// Guest memory.
pub const MEMORY: &str = "memory-ranges";
/// What the others must be.
pub const MANIFEST: &str = "manifest.json";
/// What was touched first after a restore; beside the snapshot, no part of it.
pub const WORKING_SET: &str = "working-set.json";
