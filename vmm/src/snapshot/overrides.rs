//! What a request to restore lays over the saved configuration: the host's resources, by the id of the device
//! that uses them. Everything is checked before the first of it is applied.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use api_client::wire::{self, ConsoleMode, PciDevice, RestoreOverride};
use thiserror::Error;

use crate::{
    config::wire::{CONSOLE_ID, memory_zone},
    machine::platform::SERIAL_ID,
};

/// Id of all processors together.
const PROCESSORS: &str = "__cpus";

/// An override that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OverrideError {
    /// Nothing has that id.
    #[error("overrides: the snapshot has nothing with the id {0:?}")]
    Unknown(String),
    /// Two are for one id.
    #[error("overrides: {0} is there twice")]
    Twice(String),
    /// It changes nothing.
    #[error("overrides: {0}: nothing is said of it")]
    Empty(String),
    /// That kind of thing has no such key.
    #[error("overrides: {id}: {key} is nothing that a {kind} has")]
    Key {
        /// Which.
        id: String,
        /// The key.
        key: &'static str,
        /// What it is.
        kind: &'static str,
    },
    /// The value of a key cannot be.
    #[error("overrides: {id}: {key}: {why}")]
    Value {
        /// Which.
        id: String,
        /// The key.
        key: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A file is not there.
    #[error("overrides: {id}: {key}: there is no {}", .path.display())]
    Missing {
        /// Which.
        id: String,
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// Lays `overrides` over `said`; returns what they change, as `ID.KEY`.
///
/// # Errors
/// One of them cannot be; `said` is as it was.
pub fn apply(said: &mut wire::VmConfig, overrides: &[RestoreOverride]) -> Result<Vec<String>, OverrideError> {
    let mut changed = said.clone();
    let (mut keys, mut seen) = (Vec::new(), BTreeSet::new());
    for wanted in overrides {
        let id = &wanted.id;
        if !seen.insert(id) {
            return Err(OverrideError::Twice(id.clone()));
        }
        let given = given(wanted);
        if given.is_empty() {
            return Err(OverrideError::Empty(id.clone()));
        }
        let kind = lay(&mut changed, wanted)?;
        if let Some(key) = given.iter().find(|key| !kind.keys().contains(key)) {
            return Err(OverrideError::Key { id: id.clone(), key, kind: kind.name() });
        }
        keys.extend(given.iter().map(|key| format!("{id}.{key}")));
    }
    *said = changed;
    Ok(keys)
}

/// What has resources of the host that can be others.
#[derive(Clone, Copy)]
enum Kind {
    Disk,
    Net,
    Pmem,
    Console,
    Vsock,
    Zone,
    Processors,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Net => "network device",
            Self::Pmem => "persistent memory device",
            Self::Console => "console",
            Self::Vsock => "socket device",
            Self::Zone => "memory zone",
            Self::Processors => "set of processors",
        }
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Disk => &["path"],
            Self::Net => &["tap", "mac", "host_mac"],
            Self::Pmem => &["file"],
            Self::Console => &["mode", "file", "socket"],
            Self::Vsock => &["socket", "cid"],
            Self::Zone => &["file", "host_numa_node"],
            Self::Processors => &["affinity"],
        }
    }
}

/// The keys that are there.
fn given(wanted: &RestoreOverride) -> Vec<&'static str> {
    let RestoreOverride {
        id: _,
        path,
        tap,
        mac,
        host_mac,
        mode,
        file,
        socket,
        cid,
        host_numa_node,
        affinity,
    } = wanted;
    let all = [
        ("path", path.is_some()),
        ("tap", tap.is_some()),
        ("mac", mac.is_some()),
        ("host_mac", host_mac.is_some()),
        ("mode", mode.is_some()),
        ("file", file.is_some()),
        ("socket", socket.is_some()),
        ("cid", cid.is_some()),
        ("host_numa_node", host_numa_node.is_some()),
        ("affinity", affinity.is_some()),
    ];
    all.into_iter().filter_map(|(key, there)| there.then_some(key)).collect()
}

/// Lays one over the thing that it is for.
fn lay(said: &mut wire::VmConfig, wanted: &RestoreOverride) -> Result<Kind, OverrideError> {
    let id = wanted.id.as_str();
    fn is<D: PciDevice>(id: &str) -> impl FnMut(&&mut D) -> bool {
        move |device| device.id() == Some(id)
    }
    if let Some(disk) = said.disks.iter_mut().flatten().find(is(id)) {
        if let Some(path) = &wanted.path {
            exists(id, "path", path)?;
            disk.path = Some(path.clone());
        }
        return Ok(Kind::Disk);
    }
    if let Some(net) = said.net.iter_mut().flatten().find(is(id)) {
        net_device(net, wanted);
        return Ok(Kind::Net);
    }
    if let Some(pmem) = said.pmem.iter_mut().flatten().find(is(id)) {
        if let Some(file) = &wanted.file {
            exists(id, "file", file)?;
            pmem.file.clone_from(file);
        }
        return Ok(Kind::Pmem);
    }
    if let Some(vsock) = said.vsock.iter_mut().find(is(id)) {
        if let Some(socket) = &wanted.socket {
            exists(id, "socket", directory_of(socket))?;
            vsock.socket.clone_from(socket);
        }
        vsock.cid = wanted.cid.unwrap_or(vsock.cid);
        return Ok(Kind::Vsock);
    }
    let key = if wanted.file.is_some() { "file" } else { "host_numa_node" };
    let zone = memory_zone(&mut said.memory, id).map_err(|why| OverrideError::Value {
        id: id.to_owned(),
        key,
        why,
    })?;
    if let Some(zone) = zone {
        if let Some(file) = &wanted.file {
            exists(id, "file", file)?;
            zone.file = Some(file.clone());
        }
        zone.host_numa_node = wanted.host_numa_node.or(zone.host_numa_node);
        return Ok(Kind::Zone);
    }
    let serial = &mut said.serial;
    if id == SERIAL_ID && serial.mode != ConsoleMode::Off {
        (serial.mode, serial.file, serial.socket) = target(wanted)?;
        return Ok(Kind::Console);
    }
    let console = &mut said.console;
    if id == console.id.as_deref().unwrap_or(CONSOLE_ID) && console.mode != ConsoleMode::Off {
        (console.mode, console.file, console.socket) = target(wanted)?;
        return Ok(Kind::Console);
    }
    if id == PROCESSORS {
        if wanted.affinity.is_some() {
            said.cpus.affinity.clone_from(&wanted.affinity);
        }
        return Ok(Kind::Processors);
    }
    Err(OverrideError::Unknown(id.to_owned()))
}

fn net_device(net: &mut wire::NetConfig, wanted: &RestoreOverride) {
    if let Some(tap) = &wanted.tap {
        // It takes the place of descriptors, if the device had those.
        (net.tap, net.fds, net.descriptors) = (Some(tap.clone()), None, wire::Descriptors::default());
    }
    net.mac = wanted.mac.or(net.mac);
    net.host_mac = wanted.host_mac.or(net.host_mac);
}

type Target = (ConsoleMode, Option<PathBuf>, Option<PathBuf>);

/// A console's new target: all of it, as nothing of one mode makes sense in another.
fn target(wanted: &RestoreOverride) -> Result<Target, OverrideError> {
    let wrong = |key, why| Err(OverrideError::Value { id: wanted.id.clone(), key, why });
    let Some(mode) = wanted.mode else { return wrong("mode", "it is needed") };
    if mode == ConsoleMode::Off {
        return wrong("mode", "Off would take a device away that the guest has");
    }
    for (key, of, path) in
        [("file", ConsoleMode::File, &wanted.file), ("socket", ConsoleMode::Socket, &wanted.socket)]
    {
        match path {
            Some(_) if mode != of => return wrong(key, "it does not go with this mode"),
            None if mode == of => return wrong(key, "it is needed in this mode"),
            // It is made if it is not there, in a directory that is.
            Some(path) => exists(&wanted.id, key, directory_of(path))?,
            None => {}
        }
    }
    Ok((mode, wanted.file.clone(), wanted.socket.clone()))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn exists(id: &str, key: &'static str, path: &Path) -> Result<(), OverrideError> {
    if path.exists() {
        return Ok(());
    }
    Err(OverrideError::Missing { id: id.to_owned(), key, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said() -> wire::VmConfig {
        serde_json::from_value(json!({
            "payload": { "kernel": "/k" },
            "disks": [{ "id": "_disk0", "path": "/a" }, { "id": "other", "path": "/b" }],
            "pmem": [{ "id": "_pmem3", "file": "/p" }],
            "net": [{ "id": "_net1", "tap": "tap0" }, { "id": "_net2", "fds": [3] }],
            "serial": { "mode": "Null" },
            "console": { "mode": "Null" },
            "vsock": { "id": "_vsock3", "cid": 3, "socket": "/run/old" },
            "memory": { "size": 0, "zones": [{ "id": "z", "size": 1 << 20 }] },
        }))
        .unwrap()
    }

    fn changed(overrides: Value) -> Result<(wire::VmConfig, Vec<String>), String> {
        let overrides: Vec<RestoreOverride> =
            serde_json::from_value(overrides).map_err(|error| error.to_string())?;
        let mut config = said();
        let result = apply(&mut config, &overrides);
        if result.is_err() {
            assert_eq!(config, said(), "nothing of it is applied");
        }
        result.map(|keys| (config, keys)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_resource_can_be_another() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let (config, keys) = changed(json!([
            { "id": "other", "path": place },
            { "id": "_net1", "tap": "tap7", "mac": "2e:00:00:00:00:01", "host_mac": "2e:00:00:00:00:02" },
            { "id": "_net2", "tap": "tap8" },
            { "id": "__serial", "mode": "File", "file": place.join("serial") },
            { "id": "__console", "mode": "Pty" },
            { "id": "_pmem3", "file": place },
            { "id": "_vsock3", "socket": place.join("vsock"), "cid": 44 },
            { "id": "z", "file": place, "host_numa_node": 1 },
            { "id": "__cpus", "affinity": [{ "vcpu": 0, "host_cpus": [0] }] },
        ]))
        .unwrap();
        let disks = config.disks.unwrap();
        assert_eq!(disks[0].path.as_deref(), Some(Path::new("/a")));
        assert_eq!(disks[1].path.as_deref(), Some(place));
        let nets = config.net.unwrap();
        assert_eq!((nets[1].tap.as_deref(), &nets[1].fds), (Some("tap8"), &None));
        let net = &nets[0];
        assert_eq!(net.tap.as_deref(), Some("tap7"));
        assert_eq!(net.mac.unwrap().to_string(), "2e:00:00:00:00:01");
        assert_eq!(net.host_mac.unwrap().to_string(), "2e:00:00:00:00:02");
        assert_eq!((config.serial.mode, config.serial.file), (ConsoleMode::File, Some(place.join("serial"))));
        assert_eq!(config.console.mode, ConsoleMode::Pty);
        assert_eq!(config.pmem.unwrap()[0].file, place);
        let vsock = config.vsock.unwrap();
        assert_eq!((vsock.cid, vsock.socket), (44, place.join("vsock")));
        let zone = &config.memory.zones.unwrap()[0];
        assert_eq!((zone.file.as_deref(), zone.host_numa_node), (Some(place), Some(1)));
        assert_eq!(config.cpus.affinity.unwrap()[0].host_cpus, [0]);
        let expected =
            ["other.path", "_net1.tap", "_net1.mac", "_net1.host_mac", "_net2.tap", "__serial.mode"];
        assert_eq!(keys[..6], expected);
        assert!(keys.contains(&"_vsock3.socket".into()) && keys.contains(&"_vsock3.cid".into()));
        assert_eq!(keys.len(), 14);
    }

    #[test]
    fn plain_memory_is_a_zone_too() {
        let overrides: Vec<RestoreOverride> =
            serde_json::from_value(json!([{ "id": "mem0", "file": "/", "host_numa_node": 1 }])).unwrap();
        let mut plain = wire::VmConfig::default();
        assert_eq!(apply(&mut plain, &overrides).unwrap(), ["mem0.file", "mem0.host_numa_node"]);
        let zone = &plain.memory.zones.as_ref().unwrap()[0];
        assert_eq!((zone.file.as_deref(), zone.host_numa_node), (Some(Path::new("/")), Some(1)));
        assert_eq!((zone.size, plain.memory.size), (512 << 20, 0));
        plain = wire::VmConfig::default();
        plain.memory.hotplug_size = Some(1 << 30);
        let before = plain.clone();
        let said = apply(&mut plain, &overrides).unwrap_err().to_string();
        assert!(said.starts_with("overrides: mem0: file: ") && said.contains("ACPI"), "{said}");
        assert_eq!(plain, before);
    }

    #[test]
    fn what_cannot_be_is_refused_by_id_and_key() {
        for (overrides, expected) in [
            (json!([{ "id": "_disk9", "path": "/" }]), r#"nothing with the id "_disk9""#),
            (json!([{ "id": "_disk0", "path": "/missing/a" }]), "_disk0: path: there is no /missing/a"),
            (json!([{ "id": "_disk0", "tap": "t" }]), "_disk0: tap is nothing that a disk has"),
            (
                json!([{ "id": "_pmem3", "path": "/" }]),
                "_pmem3: path is nothing that a persistent memory device has",
            ),
            (json!([{ "id": "_pmem3", "file": "/missing/p" }]), "_pmem3: file: there is no /missing/p"),
            (json!([{ "id": "_disk0", "colour": "t" }]), "unknown field `colour`"),
            (json!([{ "id": "_disk0" }]), "_disk0: nothing is said of it"),
            (
                json!([{ "id": "_disk0", "path": "/" }, { "id": "_disk0", "path": "/" }]),
                "_disk0 is there twice",
            ),
            (json!([{ "id": "_net1", "mac": "no" }]), "a MAC address like"),
            (json!([{ "id": "__serial", "mode": "Off" }]), "__serial: mode: Off would take"),
            (json!([{ "id": "__serial", "file": "/f" }]), "__serial: mode: it is needed"),
            (json!([{ "id": "__serial", "mode": "Socket" }]), "__serial: socket: it is needed"),
            (
                json!([{ "id": "__serial", "mode": "Null", "file": "/f" }]),
                "__serial: file: it does not go with",
            ),
            (
                json!([{ "id": "__console", "mode": "File", "file": "/missing/f" }]),
                "__console: file: there is no /missing",
            ),
            (json!([{ "id": "_vsock3", "socket": "/missing/v" }]), "_vsock3: socket: there is no /missing"),
            (json!([{ "id": "_vsock3", "path": "/" }]), "_vsock3: path is nothing that a socket device has"),
            (json!([{ "id": "_disk0", "cid": 4 }]), "_disk0: cid is nothing that a disk has"),
            (json!([{ "id": "z", "file": "/missing/z" }]), "z: file: there is no /missing/z"),
            (
                json!([{ "id": "__cpus", "path": "/" }]),
                "__cpus: path is nothing that a set of processors has",
            ),
        ] {
            let said = changed(overrides.clone()).unwrap_err();
            assert!(said.contains(expected), "{overrides}: {said}");
        }
    }
}
