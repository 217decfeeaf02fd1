//! Virtio entropy source: opens where entropy is read from.

use std::{fs::File, sync::Arc};

use virtio_devices::{rng::Rng, worker::PlainThreads};

use super::{AttachError, Attached, Context, probe, virtio};
use crate::{config::RngConfig, layout::DeviceLayout};

/// Opens the source and builds the device.
///
/// # Errors
/// The source cannot be opened, or the host has no descriptor left.
pub fn attach(
    config: &RngConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    probe::refuse_pipe(&config.source)?;
    let source = File::open(&config.source)
        .map_err(|source| AttachError::Open { path: config.source.clone(), source })?;
    let device = Rng::new(&config.id, source, Arc::new(PlainThreads));
    virtio::function(Box::new(device), layout, context, true)
        .map(Attached::plain)
        .map_err(AttachError::Function)
}
