//! What requests must satisfy before anything is opened or kept. The client program asks here too, before it
//! sends one.

use std::{collections::BTreeSet, io};

use api_client::wire::{self, BackgroundFill};

use super::error::CommandError;
use crate::config::ConfigError;

/// Longest configuration, in bytes of JSON: so long may the answer be that tells it.
const MAX_CONFIG: u64 = 8 << 20;

/// Checks that a configuration does not take more room than any machine needs, in whatever steps it grew.
///
/// # Errors
/// It does.
pub(super) fn size(said: &wire::VmConfig) -> Result<(), CommandError> {
    struct Counter(u64);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // What cannot be written (a path that is no text) is told to whoever asks for it.
    if serde_json::to_writer(&mut counter, said).is_ok() && counter.0 > MAX_CONFIG {
        let what = format!("the configuration: {} bytes of JSON, {MAX_CONFIG} at most", counter.0);
        return Err(CommandError::Request(what));
    }
    Ok(())
}

/// Checks a request to restore a VM.
///
/// # Errors
/// It says something that cannot be, or the same thing twice.
pub fn restore(said: &wire::RestoreConfig) -> Result<(), CommandError> {
    if said.prefault && said.memory_restore_mode == Some(wire::MemoryRestoreMode::OnDemand) {
        let what = "prefault and memory_restore_mode OnDemand exclude each other";
        return Err(CommandError::Request(what.to_owned()));
    }
    fill(said)?;
    unique(said.net_fds.iter().flatten().map(|net| net.id.as_str()))?;
    unique(said.vfio_fds.iter().flatten().map(|device| device.id.as_str()))?;
    zones(&said.zone_updates)
}

/// How many descriptors come with a request to restore a VM: those of network devices in the order of
/// `net_fds`, then those for devices of the host.
pub(crate) fn announced(said: &wire::RestoreConfig) -> usize {
    let nets = said.net_fds.iter().flatten().fold(0usize, |sum, net| sum.saturating_add(net.num_fds));
    nets.saturating_add(passed_through(said.vfio_fds.as_deref()))
}

/// Descriptors for devices of the host: one each, and one of the IOMMU that they share.
pub(crate) fn passed_through(devices: Option<&[wire::RestoredVfioConfig]>) -> usize {
    devices.map_or(0, |devices| devices.len().saturating_add(1))
}

/// Checks what is said of memory that is brought in beside what the VM touches.
fn fill(said: &wire::RestoreConfig) -> Result<(), CommandError> {
    /// Ten minutes: what a VM has touched by then is no working set any more.
    const WINDOW_MAX_MS: u32 = 600_000;
    let wire::RestoreConfig { background_fill, fill_bytes_per_second, record_working_set_ms, .. } = said;
    let all = *background_fill == Some(BackgroundFill::All);
    let something = background_fill.is_some_and(|fill| fill != BackgroundFill::None);
    let mistakes = [
        (
            all != fill_bytes_per_second.is_some(),
            "background_fill all and fill_bytes_per_second need each other",
        ),
        (
            record_working_set_ms.is_some_and(|time| time.get() > WINDOW_MAX_MS),
            "record_working_set_ms: 600000 at most",
        ),
        (
            record_working_set_ms.is_some() && (something || said.prefault),
            "record_working_set_ms: what is brought in anyhow cannot be told from what the VM touches: \
             not with background_fill or prefault",
        ),
    ];
    match mistakes.iter().find(|(made, _)| *made) {
        Some((_, what)) => Err(CommandError::Request((*what).to_owned())),
        None => Ok(()),
    }
}

/// Checks which memory zones shall come from which nodes.
///
/// # Errors
/// A zone has no name, or is there twice.
fn zones(said: &[wire::ZoneUpdate]) -> Result<(), CommandError> {
    let mut seen = BTreeSet::new();
    for zone in said {
        if zone.id.is_empty() {
            return Err(CommandError::Request("zone_updates: an id is empty".to_owned()));
        }
        if !seen.insert(&zone.id) {
            return Err(CommandError::Request(format!("zone_updates: {} is there twice", zone.id)));
        }
    }
    Ok(())
}

/// Checks a request to move the VM to another host.
///
/// # Errors
/// It says something that cannot be.
pub fn send(said: &wire::SendMigrationData) -> Result<(), CommandError> {
    const MAX_CONNECTIONS: u32 = 128;
    let connections = said.connections.get();
    let endpoint = endpoint("destination_url", &said.destination_url)?;
    let postcopy = said.memory_mode == wire::MemoryMode::Postcopy;
    let over_tcp = endpoint == Endpoint::Tcp;
    let mistakes = [
        (connections > MAX_CONNECTIONS, "connections: 128 at most"),
        (
            connections > 1 && (!over_tcp || postcopy),
            "connections: more than one only by tcp, and before the VM runs there",
        ),
        (said.local && (over_tcp || postcopy), "local: only by unix, and before the VM runs there"),
        (said.preserve_source && !said.local, "preserve_source: only with local"),
        (said.tls_dir.is_some() && !over_tcp, "tls_dir: only by tcp"),
    ];
    match mistakes.iter().find(|(made, _)| *made) {
        Some((_, what)) => Err(CommandError::Migration((*what).to_owned())),
        None => Ok(()),
    }
}

/// Checks a request to wait for a VM.
///
/// # Errors
/// It says something that cannot be, or the same thing twice.
pub fn receive(said: &wire::ReceiveMigrationData) -> Result<(), CommandError> {
    let endpoint = endpoint("receiver_url", &said.receiver_url)?;
    if said.tls_dir.is_some() && endpoint != Endpoint::Tcp {
        return Err(CommandError::Migration("tls_dir: only by tcp".to_owned()));
    }
    unique(said.vfio_fds.iter().flatten().map(|device| device.id.as_str()))?;
    zones(&said.zone_updates)
}

/// By what two hosts are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Tcp,
    Unix,
}

/// `tcp:` with host and port, or `unix:` with a path.
fn endpoint(field: &str, url: &str) -> Result<Endpoint, CommandError> {
    if url.strip_prefix("unix:").is_some_and(|path| !path.is_empty()) {
        return Ok(Endpoint::Unix);
    }
    let host_and_port = url.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':'));
    let is_host = |host: &str| !host.is_empty() && (!host.contains(':') || host.starts_with('['));
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    match host_and_port {
        Some((host, port)) if is_host(host) && is_port(port) => Ok(Endpoint::Tcp),
        _ => Err(CommandError::Migration(format!("{field} {url:?}: tcp:HOST:PORT or unix:PATH is expected"))),
    }
}

fn unique<'ids>(ids: impl Iterator<Item = &'ids str>) -> Result<(), CommandError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(CommandError::Config(ConfigError::DuplicateId(id.to_owned())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_cannot_grow_for_ever() {
        let disk = wire::DiskConfig { path: Some("x".repeat(1 << 20).into()), ..wire::DiskConfig::default() };
        let mut said = wire::VmConfig::default();
        for _ in 0..7 {
            said.disks.get_or_insert_default().push(disk.clone());
            size(&said).unwrap();
        }
        said.disks.get_or_insert_default().push(disk);
        let error = size(&said).unwrap_err();
        assert!(error.to_string().ends_with(" bytes of JSON, 8388608 at most"), "{error}");
        assert_eq!((error.class(), error.code()), (crate::control::FailureClass::Invalid, "request-invalid"));
    }

    #[test]
    fn endpoints_are_of_two_kinds() {
        for url in ["tcp:host:1", "tcp:1.2.3.4:65535", "tcp:[::1]:0"] {
            assert_eq!(endpoint("u", url).unwrap(), Endpoint::Tcp);
        }
        assert_eq!(endpoint("u", "unix:/a:b").unwrap(), Endpoint::Unix);
        for url in
            ["", "unix:", "tcp:host", "tcp::1", "tcp:host:65536", "tcp:host:+1", "tcp:::1:5", "file:///a"]
        {
            assert!(endpoint("u", url).is_err(), "{url}");
        }
    }

    #[test]
    fn what_is_brought_in_and_what_is_recorded_exclude_each_other() {
        let refused = |change: fn(&mut wire::RestoreConfig)| {
            let mut said = wire::RestoreConfig::default();
            change(&mut said);
            restore(&said).is_err()
        };
        let number = |number| std::num::NonZeroU32::new(number);
        assert!(!refused(|said| said.background_fill = Some(BackgroundFill::WorkingSet)));
        assert!(refused(|said| said.background_fill = Some(BackgroundFill::All)));
        assert!(refused(|said| said.fill_bytes_per_second = std::num::NonZeroU64::new(1)));
        assert!(!refused(|said| said.record_working_set_ms = std::num::NonZeroU32::new(600_000)));
        assert!(refused(|said| said.record_working_set_ms = std::num::NonZeroU32::new(600_001)));
        for (fill, prefault, expected) in [
            (Some(BackgroundFill::None), false, false),
            (Some(BackgroundFill::WorkingSet), false, true),
            (None, true, true),
        ] {
            let said = wire::RestoreConfig {
                background_fill: fill,
                prefault,
                record_working_set_ms: number(100),
                ..wire::RestoreConfig::default()
            };
            assert_eq!(restore(&said).is_err(), expected, "{said:?}");
        }
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        let refused = |change: fn(&mut wire::SendMigrationData), url: &str| {
            let mut said = wire::SendMigrationData::to(url);
            change(&mut said);
            send(&said).is_err()
        };
        assert!(!refused(|_| {}, "tcp:a:1"));
        assert!(!refused(|said| said.local = true, "unix:/a"));
        assert!(refused(|said| said.local = true, "tcp:a:1"));
        assert!(refused(|said| said.preserve_source = true, "unix:/a"));
        assert!(refused(|said| said.tls_dir = Some("/a".into()), "unix:/a"));
        assert!(refused(|said| said.connections = said.connections.saturating_add(1), "unix:/a"));
        assert!(!refused(|said| said.connections = said.connections.saturating_add(127), "tcp:a:1"));
        assert!(refused(|said| said.connections = said.connections.saturating_add(128), "tcp:a:1"));
    }
}
