//! Virtio console: its terminal, and the size of that.

use std::sync::Arc;

use virtio_devices::{console::Console, worker::PlainThreads};

use super::{AttachError, Attached, Context, virtio};
use crate::{config::ConsoleConfig, layout::DeviceLayout, machine::consoles::Seat};

/// Opens the target and builds the device.
///
/// # Errors
/// The target cannot be opened, or is none that a console can have.
pub fn attach(
    config: &ConsoleConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let terminal = context
        .consoles
        .take(Seat::Virtio, &config.target)?
        .ok_or(AttachError::Unavailable { what: "a console that is off" })?;
    let (columns, rows) = crate::terminal::size();
    let device = Console::new(&config.id, terminal, columns, rows, Arc::new(PlainThreads));
    virtio::function(Box::new(device), layout, context).map(Attached::plain).map_err(AttachError::Function)
}
