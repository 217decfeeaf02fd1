//! What a snapshot is and whether it is whole, told of its directory alone: no host, no VM, nothing changed.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use arch::x86_64::{cpuid, feature};
use hypervisor::x86_64::{CpuidEntry, VmClock};
use serde::Serialize;
use vm_migration::snapshot::{
    Ancestor, CONFIG, Chain, MANIFEST, MEMORY, Manifest, STATE, Snapshot, SnapshotError, WORKING_SET,
};

use super::{
    RestoreError,
    restore::{Opened, read},
};
use crate::{
    config::DeviceKind,
    layout::Layout,
    machine::MachineState,
    memory::content::{self, Tally},
};

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Where it is.
    pub directory: PathBuf,
    /// Format of the snapshot.
    pub format: u32,
    /// Name and version of the program that wrote it.
    pub program: String,
    /// The checksum over all.
    pub root: String,
    /// The snapshots that it builds on, the full one first; none for one that stands alone.
    pub chain: Vec<Link>,
    /// When the VM was paused, in seconds since 1970; none where the hypervisor did not tell.
    pub paused_at: Option<u64>,
    /// When it was written, in seconds since 1970: what the file system says of the manifest.
    pub written_at: Option<u64>,
    /// The processors.
    pub processors: Processors,
    /// The memory.
    pub memory: Memory,
    /// The PCI devices, in layout order.
    pub devices: Vec<Device>,
    /// The sections of the state, in order.
    pub sections: Vec<SectionInfo>,
    /// The files of the directory, by name.
    pub files: Vec<FileInfo>,
    /// Members of the configuration that were edited since the snapshot.
    pub edited: Vec<String>,
}

/// A snapshot that others build on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Where it is.
    pub directory: PathBuf,
    /// Its checksum over all.
    pub root: String,
    /// Pages of 4 KiB that it supplies; none for the full one, which supplies all that nobody else does.
    pub pages: Option<u64>,
}

/// The processors of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Processors {
    /// Those that are there.
    pub present: usize,
    /// Those that there can be.
    pub max: usize,
    /// Maker, as CPUID names it.
    pub vendor: String,
    /// Bits of a physical address.
    pub physical_address_bits: u8,
    /// What the guest may use, by the names of `/proc/cpuinfo`.
    pub features: Vec<&'static str>,
}

/// The memory of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes of all zones.
    pub size: u64,
    /// Bytes of the chunks that are not zero.
    pub content: u64,
    /// Bytes that one checksum covers.
    pub chunk_size: u64,
    /// The zones.
    pub zones: Vec<Zone>,
}

/// A memory zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Zone {
    /// Its id.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether its content is in the snapshot; if not, it is in a file of its own.
    pub stored: bool,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its id.
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Where it is.
    pub bdf: String,
    /// Number of its virtqueues.
    pub queues: usize,
}

/// A section of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SectionInfo {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Version of its layout.
    pub version: u32,
    /// Length of its content in bytes.
    pub size: usize,
}

/// A file of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// What it takes on the disk, in bytes.
    pub on_disk: u64,
    /// Whether it is one of the snapshot's.
    pub known: bool,
}

impl Opened {
    /// Tells what it is.
    ///
    /// # Errors
    /// The layout, the processors' table or the clock cannot be read, or the directory cannot.
    pub fn inspect(&self) -> Result<Inspection, RestoreError> {
        let (directory, snapshot) = (&self.request.source, &self.snapshot);
        let manifest = &snapshot.manifest;
        let layout: Layout = read("the layout", manifest.layout.get())?;
        let cpu: Vec<CpuidEntry> = read("CPU identification", manifest.cpu.get())?;
        Ok(Inspection {
            directory: directory.to_owned(),
            format: manifest.format,
            program: manifest.program.clone(),
            root: hexadecimal(snapshot.root()),
            chain: manifest.chain.as_ref().map_or_else(Vec::new, |chain| links(chain, directory)),
            paused_at: paused_at(snapshot),
            written_at: written_at(&directory.join(MANIFEST)),
            processors: processors(&layout, &cpu),
            memory: memory(manifest),
            devices: layout.devices.iter().map(Device::of).collect(),
            sections: sections(snapshot),
            files: files(directory)?,
            edited: self.edited.clone(),
        })
    }

    /// Checks all of it against its checksums, as no restore has to: also what is not in use, and that there is nothing
    /// that no checksum covers. `tally` is told of the bytes of memory.
    ///
    /// # Errors
    /// Something is damaged; it is named, with its place.
    pub fn verify(&self, tally: &dyn Tally) -> Result<(), RestoreError> {
        let snapshot = &self.snapshot;
        let path = self.request.source.join(STATE);
        for digest in &snapshot.manifest.sections {
            let section = snapshot.section(&digest.id).map_err(SnapshotError::from)?;
            let found = crc32c::crc32c(section.state.get().as_bytes());
            if found != digest.crc32c {
                let (what, expected) = (format!("the state of {}", digest.id), digest.crc32c);
                return Err(SnapshotError::Damaged { path, what, found, expected }.into());
            }
        }
        let saved = snapshot.open_memory()?;
        content::verify(&saved, true, tally)?;
        Ok(())
    }

    /// Bytes of memory that [`verify`](Self::verify) reads, about.
    pub fn bytes_to_verify(&self) -> u64 {
        let memory = &self.snapshot.manifest.memory;
        memory.chunks.count().saturating_mul(memory.chunk_size)
    }
}

fn hexadecimal(root: u32) -> String {
    format!("{root:#010x}")
}

fn links(chain: &Chain, directory: &Path) -> Vec<Link> {
    let link = |ancestor: &Ancestor, pages| Link {
        directory: ancestor.seen_from(directory),
        root: hexadecimal(ancestor.root),
        pages,
    };
    let between = chain.between.iter().map(|layer| link(&layer.snapshot, Some(layer.pages.pages())));
    std::iter::once(link(&chain.base, None)).chain(between).collect()
}

impl Device {
    fn of(layout: &crate::layout::DeviceLayout) -> Self {
        let crate::layout::DeviceLayout { id, kind, bdf, queue_sizes, .. } = layout;
        Self { id: id.clone(), kind: *kind, bdf: bdf.to_string(), queues: queue_sizes.len() }
    }
}

fn paused_at(snapshot: &Snapshot) -> Option<u64> {
    let clock: Option<VmClock> = MachineState::clock_of(snapshot.sections()).ok()?;
    Some(clock?.realtime_ns? / 1_000_000_000)
}

fn written_at(manifest: &Path) -> Option<u64> {
    let modified = fs::metadata(manifest).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

fn processors(layout: &Layout, cpu: &[CpuidEntry]) -> Processors {
    Processors {
        present: layout.vcpus.iter().filter(|vcpu| vcpu.present).count(),
        max: layout.vcpus.len(),
        vendor: cpuid::vendor_string(cpu),
        physical_address_bits: cpuid::phys_bits(cpu, u8::MAX),
        features: feature::of(cpu),
    }
}

fn memory(manifest: &Manifest) -> Memory {
    let table = &manifest.memory;
    Memory {
        size: table.zones.iter().fold(0, |sum, zone| sum.saturating_add(zone.size)),
        content: table.chunks.count().saturating_mul(table.chunk_size),
        chunk_size: table.chunk_size,
        zones: table
            .zones
            .iter()
            .map(|zone| Zone { id: zone.zone.clone(), size: zone.size, stored: zone.offset.is_some() })
            .collect(),
    }
}

/// In the manifest's order, which is that of the machine.
fn sections(snapshot: &Snapshot) -> Vec<SectionInfo> {
    let digests = snapshot.manifest.sections.iter();
    let of = |id: &str| snapshot.section(id).map_or(0, |section| section.state.get().len());
    digests
        .map(|digest| SectionInfo {
            id: digest.id.clone(),
            kind: digest.kind.clone(),
            version: digest.version,
            size: of(&digest.id),
        })
        .collect()
}

fn files(directory: &Path) -> Result<Vec<FileInfo>, SnapshotError> {
    let failed = |source: io::Error| SnapshotError::Directory { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = entry.metadata().map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = [CONFIG, MANIFEST, MEMORY, STATE, WORKING_SET].contains(&name.as_str());
        // Blocks are of 512 bytes, whatever the file system's are.
        let on_disk = metadata.blocks().saturating_mul(512);
        files.push(FileInfo { name, size: metadata.len(), on_disk, known });
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}
