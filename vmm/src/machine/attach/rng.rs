//! Virtio entropy source: opens where entropy is read from.

use std::sync::Arc;

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
    let source = probe::entropy(&config.source)?;
    let device = Rng::new(&config.id, source, Arc::new(PlainThreads));
    virtio::function(Box::new(device), layout, context, true)
        .map(Attached::plain)
        .map_err(AttachError::Function)
}
