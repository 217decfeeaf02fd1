//! What a request to restore a VM must satisfy before anything is opened.

use std::collections::BTreeSet;

use api_client::wire;

use super::error::CommandError;
use crate::config::ConfigError;

/// Checks a request to restore a VM.
///
/// # Errors
/// It says something that cannot be, or the same thing twice.
pub(super) fn restore(said: &wire::RestoreConfig) -> Result<(), CommandError> {
    if said.prefault && said.memory_restore_mode == wire::MemoryRestoreMode::OnDemand {
        let what = "prefault and memory_restore_mode OnDemand exclude each other";
        return Err(CommandError::Request(what.to_owned()));
    }
    unique(said.net_fds.iter().flatten().map(|net| net.id.as_str()))?;
    unique(said.vfio_fds.iter().flatten().map(|device| device.id.as_str()))?;
    zones(&said.zone_updates)
}

/// Checks which memory zones shall come from which nodes.
///
/// # Errors
/// A zone has no name, or is there twice.
pub(super) fn zones(said: &[wire::ZoneUpdate]) -> Result<(), CommandError> {
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

fn unique<'ids>(ids: impl Iterator<Item = &'ids str>) -> Result<(), CommandError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(CommandError::Config(ConfigError::DuplicateId(id.to_owned())));
        }
    }
    Ok(())
}
