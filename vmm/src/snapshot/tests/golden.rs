//! The snapshots that are kept in tests/golden, and the host that they are from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use api_client::wire::RestoreOverride;
use hypervisor::{
    Capabilities, Hypervisor, HypervisorError, HypervisorKind, Vm, VmOptions,
    fake::{FakeHypervisor, capable},
    x86_64::CpuidEntry,
};
use serde_json::{Value, json, value::RawValue};
use tempfile::TempDir;
use vm_migration::snapshot::{MANIFEST, STATE, Snapshot};

use super::super::{Opened, Rehearsal, Request, RestoreError, Verify};
use crate::{
    config::wire::IdCounter,
    machine::{ClockPolicy, Commits, Host, TscFrequency},
};

/// A copy of it that a test may do anything to.
pub(super) struct Golden {
    place: TempDir,
    /// The directory that is restored.
    top: &'static str,
    /// CPU identification that its guest was given.
    pub(super) cpu: Vec<CpuidEntry>,
}

impl Golden {
    pub(super) fn unpacked() -> Self {
        Self::of(&["format-1"], "snapshot")
    }

    /// The one of format 2, on top of that of format 1, which is `../snapshot` from there.
    pub(super) fn chain() -> Self {
        Self::of(&["format-1", "format-2"], "top")
    }

    fn of(formats: &[&str], top: &'static str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        for format in formats {
            let packed = golden.join(format).join("snapshot.tar.gz");
            let tar =
                Command::new("tar").arg("-xzf").arg(packed).arg("-C").arg(place.path()).status().unwrap();
            assert!(tar.success());
        }
        let snapshot = Snapshot::open(&place.path().join(top), true).unwrap();
        let cpu = serde_json::from_str(snapshot.manifest.cpu.get()).unwrap();
        Self { place, top, cpu }
    }

    pub(super) fn snapshot(&self) -> PathBuf {
        self.place.path().join(self.top)
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.place.path().join("disk")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.snapshot().join(name)
    }

    /// What lets it live where it has been unpacked.
    pub(super) fn overrides(&self) -> Vec<RestoreOverride> {
        let serial = self.place.path().join("serial");
        serde_json::from_value(json!([
            { "id": "_disk0", "path": self.disk() },
            { "id": "__serial", "mode": "Socket", "socket": serial },
        ]))
        .unwrap()
    }

    /// What a restore would come to, on a host of the kind that it is from.
    pub(super) fn rehearse(&self, verify: Verify) -> Result<Rehearsal, RestoreError> {
        self.try_out(self.request(verify), &Offering::host(self.cpu.clone()))
    }

    /// What that restore would come to on that host.
    pub(super) fn try_out(&self, request: Request, host: &Host) -> Result<Rehearsal, RestoreError> {
        let mut opened = Opened::open(request)?;
        opened.lay_over(&self.overrides())?;
        opened.check(host, IdCounter::default())?.rehearse(host)
    }

    /// What it would come to on a host on which nothing is at its place.
    pub(super) fn rehearse_on(&self, host: &Host) -> Result<Rehearsal, RestoreError> {
        Opened::open(self.request(Verify::Full))?.check(host, IdCounter::default())?.rehearse(host)
    }

    pub(super) fn request(&self, verify: Verify) -> Request {
        Request {
            source: self.snapshot(),
            memory: None,
            verify: Some(verify),
            fill: None,
            record: None,
            prefault: false,
            commits: Commits::Once,
            new_generation: true,
            clock: ClockPolicy::Wall,
            tsc: TscFrequency::Saved,
        }
    }

    /// Changes the manifest; its checksum is right again afterwards.
    pub(super) fn forge_manifest(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read(self.file(MANIFEST)).unwrap();
        let mut whole: Value = serde_json::from_slice(&text).unwrap();
        change(&mut whole["manifest"]);
        let text = whole["manifest"].to_string();
        let root = crc32c::crc32c(text.as_bytes());
        fs::write(self.file(MANIFEST), format!("{{\"root\":{root},\"manifest\":{text}}}")).unwrap();
    }

    /// Changes the list of sections; all checksums are right again afterwards.
    pub(super) fn forge_state(&self, change: impl FnOnce(&mut Vec<Value>)) {
        let mut sections: Vec<Value> = serde_json::from_slice(&fs::read(self.file(STATE)).unwrap()).unwrap();
        change(&mut sections);
        let text = serde_json::to_string(&sections).unwrap();
        fs::write(self.file(STATE), &text).unwrap();
        // As they are in the text, not as a reader might write them again.
        let raw: Vec<Box<RawValue>> = serde_json::from_str(&text).unwrap();
        let digests: Vec<Value> = (sections.iter().zip(&raw))
            .map(|(section, raw)| {
                let of: vm_migration::Section = serde_json::from_str(raw.get()).unwrap();
                let crc32c = crc32c::crc32c(of.state.get().as_bytes());
                json!({ "id": section["id"], "kind": section["kind"], "version": section["version"], "crc32c": crc32c })
            })
            .collect();
        self.forge_manifest(|manifest| {
            manifest["state"] = json!({ "size": text.len(), "crc32c": crc32c::crc32c(text.as_bytes()) });
            manifest["sections"] = json!(digests);
        });
    }
}

/// A fake hypervisor whose processors can do what is given.
pub(super) struct Offering {
    inner: FakeHypervisor,
    cpuid: Vec<CpuidEntry>,
}

impl Offering {
    pub(super) fn host(cpuid: Vec<CpuidEntry>) -> Host {
        Self::able_to(capable(), cpuid)
    }

    /// One that can do no more than that.
    pub(super) fn able_to(capabilities: Capabilities, cpuid: Vec<CpuidEntry>) -> Host {
        Host::new(Arc::new(Self { inner: FakeHypervisor::with_capabilities(capabilities), cpuid })).unwrap()
    }
}

impl Hypervisor for Offering {
    fn kind(&self) -> HypervisorKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(self.cpuid.clone())
    }

    fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError> {
        self.inner.check_tsc_khz(khz)
    }

    fn create_vm(&self, _options: &VmOptions) -> Result<Arc<dyn Vm>, HypervisorError> {
        panic!("a machine is made of what is only tried");
    }
}
