//! From a device's configuration to the device: opens files, taps and sockets, and calls one
//! constructor. This is the only place that matches over all kinds of devices. It knows no address:
//! the layout has them.

mod block;
mod console;
mod net;
mod rng;
pub mod terminal;
mod virtio;

use std::{io, path::PathBuf, sync::Arc};

use address_manager::AddressManager;
use devices::SharedDevice;
use thiserror::Error;
use virtio_devices::host::{rate_limiter, tap::TapError};

use super::sinks::Interrupts;
use crate::{
    config::{BucketConfig, DeviceConfig, DeviceKind},
    layout::DeviceLayout,
};

/// What a device needs could not be had.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A file cannot be opened or made.
    #[error("cannot open {}", .path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard input or output cannot be used.
    #[error("cannot use {what}")]
    Standard {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image is of a format that this version does not read.
    #[error("{} is a {format} image: raw is what this version reads", .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it is.
        format: String,
    },
    /// The image cannot be used.
    #[error("cannot use {}", .path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tap cannot be used.
    #[error("network")]
    Tap(#[source] TapError),
    /// The host has no descriptor or thread left for it.
    #[error("no resources of the host's are left for it")]
    Function(#[source] io::Error),
    /// This build cannot do that.
    #[error("this version has no support for {what}")]
    Unavailable {
        /// What was asked for.
        what: &'static str,
    },
    /// The configuration and the layout name different kinds.
    #[error("configured as {configured:?}, laid out as {laid_out:?}")]
    Kind {
        /// What the configuration says.
        configured: DeviceKind,
        /// What the layout says.
        laid_out: DeviceKind,
    },
}

/// What every device is built with.
#[derive(Debug)]
pub struct Context<'machine> {
    /// The owner of the wiring.
    pub manager: &'machine Arc<AddressManager>,
    /// Where interrupts go.
    pub interrupts: &'machine Arc<Interrupts>,
    /// Whether a doorbell may match a write of any width.
    pub doorbell_any_width: bool,
}

/// Opens what `config` needs and builds the device at the place that `layout` gives it.
///
/// # Errors
/// Something cannot be opened, or the constructor refuses it.
pub fn attach(
    config: &DeviceConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<SharedDevice, AttachError> {
    if config.kind() != layout.kind {
        return Err(AttachError::Kind { configured: config.kind(), laid_out: layout.kind });
    }
    match config {
        DeviceConfig::Rng(config) => rng::attach(config, layout, context),
        DeviceConfig::Console(config) => console::attach(config, layout, context),
        DeviceConfig::Block(config) => block::attach(config, layout, context),
        DeviceConfig::Net(config) => net::attach(config, layout, context),
    }
}

/// A token bucket as the devices take it.
fn bucket(config: BucketConfig) -> rate_limiter::BucketConfig {
    let BucketConfig { size, one_time_burst, refill_ms } = config;
    rate_limiter::BucketConfig { size, one_time_burst, refill_ms }
}
