//! The keys of `send-migration` and `receive-migration`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use api_client::wire::{MemoryMode, ReceiveMigrationData, SendMigrationData, TimeoutStrategy};

use crate::options::{
    grammar::{GrammarError, Keys, Pairs},
    restore::{vfio_descriptors, zone_updates},
};

/// Keys of `send-migration`.
pub(super) const SEND_KEYS: Keys = &[&[
    "destination_url=URL",
    "local=off",
    "preserve_source=off",
    "downtime_ms=300",
    "timeout_s=3600",
    "timeout_strategy=cancel|ignore",
    "connections=1",
    "tls_dir=DIRECTORY",
    "memory_mode=precopy|postcopy",
]];

/// Keys of `receive-migration`.
pub(super) const RECEIVE_KEYS: Keys = &[&[
    "receiver_url=URL",
    "tls_dir=DIRECTORY",
    "memory_mode=precopy|postcopy",
    "vfio_fds=[ID@FD,...]",
    "iommufd_fd=FD",
    "zone_updates=[ZONE@NODE,...]",
]];

const MODES: [(&str, MemoryMode); 2] = [("precopy", MemoryMode::Precopy), ("postcopy", MemoryMode::Postcopy)];
const STRATEGIES: [(&str, TimeoutStrategy); 2] =
    [("cancel", TimeoutStrategy::Cancel), ("ignore", TimeoutStrategy::Ignore)];

/// Reads the argument of `send-migration`.
///
/// # Errors
/// A key or value that is none, a count of 0, no destination.
pub(super) fn send(text: &str) -> Result<SendMigrationData, GrammarError> {
    let pairs = Pairs::parse(text, SEND_KEYS)?;
    let mut said = SendMigrationData::to(pairs.required("destination_url")?);
    let none = |key: &str| GrammarError::value(key, "0 is none");
    said.local = pairs.toggle("local")?.unwrap_or(said.local);
    said.preserve_source = pairs.toggle("preserve_source")?.unwrap_or(said.preserve_source);
    if let Some(downtime) = pairs.number::<u64>("downtime_ms")? {
        said.downtime_ms = downtime.try_into().map_err(|_| none("downtime_ms"))?;
    }
    if let Some(timeout) = pairs.number::<u64>("timeout_s")? {
        said.timeout_s = timeout.try_into().map_err(|_| none("timeout_s"))?;
    }
    if let Some(connections) = pairs.number::<u32>("connections")? {
        said.connections = connections.try_into().map_err(|_| none("connections"))?;
    }
    said.timeout_strategy = pairs.word("timeout_strategy", &STRATEGIES)?.unwrap_or_default();
    said.tls_dir = pairs.path("tls_dir");
    said.memory_mode = pairs.word("memory_mode", &MODES)?.unwrap_or_default();
    check_keys(said.tls_dir.as_deref(), "client")?;
    Ok(said)
}

/// Reads the argument of `receive-migration`. Descriptors that were handed over are duplicated.
///
/// # Errors
/// A key or value that is none, no place to listen, or a descriptor that is not open.
pub(super) fn receive(text: &str) -> Result<(ReceiveMigrationData, Vec<Arc<OwnedFd>>), GrammarError> {
    let pairs = Pairs::parse(text, RECEIVE_KEYS)?;
    let mut descriptors = Vec::new();
    let vfio_fds = vfio_descriptors(&pairs, &mut descriptors)?;
    let said = ReceiveMigrationData {
        receiver_url: pairs.required("receiver_url")?,
        tls_dir: pairs.path("tls_dir"),
        memory_mode: pairs.word("memory_mode", &MODES)?.unwrap_or_default(),
        vfio_fds,
        zone_updates: zone_updates(&pairs)?,
    };
    check_keys(said.tls_dir.as_deref(), "server")?;
    Ok((said, descriptors))
}

/// Whether a directory has what a side of a TLS connection needs.
fn check_keys(directory: Option<&std::path::Path>, side: &str) -> Result<(), GrammarError> {
    let Some(directory) = directory else { return Ok(()) };
    for name in ["ca-cert.pem".to_owned(), format!("{side}-cert.pem"), format!("{side}-key.pem")] {
        let file = directory.join(name);
        if !file.is_file() {
            return Err(GrammarError::value("tls_dir", format!("{} is no file", file.display())));
        }
    }
    Ok(())
}
