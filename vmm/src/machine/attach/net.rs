//! Virtio network device: opens or takes over its tap, and sets the host's end up.

use std::{os::fd::OwnedFd, sync::Arc};

use virtio_devices::{
    host::tap::{Interface, TapError, Taps},
    net::{self, Net},
    worker::PlainThreads,
};

use super::{AttachError, Attached, Context, limiter, virtio};
use crate::{config::NetConfig, layout::DeviceLayout};

/// Opens the tap and builds the device.
///
/// # Errors
/// The tap cannot be opened or set up, or the configuration gives the guest no MAC address.
pub fn attach(
    config: &NetConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let mac =
        config.mac.ok_or(AttachError::Unavailable { what: "a network device without a MAC address" })?;
    let taps = open(config)?;
    set_up(config, taps.name()).map_err(AttachError::Tap)?;
    log::info!("{}: tap {} with {} queues", config.id, taps.name(), taps.queues());
    let parts = net::NetConfig {
        id: config.id.clone(),
        mac,
        mtu: config.mtu,
        pairs: config.queue_pairs,
        queue_size: config.queue_size,
        offload_csum: config.offload_csum,
        offload_tso: config.offload_tso,
        offload_ufo: config.offload_ufo,
        receive_limiter: config.rate_limit.map(limiter),
        transmit_limiter: config.rate_limit.map(limiter),
    };
    let device = Net::new(parts, Arc::new(taps), Arc::new(PlainThreads));
    virtio::function(Box::new(device), layout, context, config.packed)
        .map(Attached::plain)
        .map_err(AttachError::Function)
}

fn open(config: &NetConfig) -> Result<Taps, AttachError> {
    if config.fds.is_empty() {
        return Taps::open(config.tap.as_deref(), config.queue_pairs).map_err(AttachError::Tap);
    }
    // The configuration keeps its own: the guest may reboot.
    let duplicates: Result<Vec<OwnedFd>, _> = config.fds.iter().map(|fd| fd.try_clone()).collect();
    let duplicates = duplicates.map_err(AttachError::Function)?;
    Taps::from_descriptors(duplicates).map_err(AttachError::Tap)
}

/// Gives the host's end what the configuration says. An interface that came as descriptors is somebody else's to set up.
fn set_up(config: &NetConfig, name: &str) -> Result<(), TapError> {
    if !config.fds.is_empty() {
        return Ok(());
    }
    let interface = Interface::named(name);
    if let Some(mac) = config.host_mac {
        interface.set_mac(mac)?;
    }
    if let Some(mtu) = config.mtu {
        interface.set_mtu(mtu)?;
    }
    if let Some((address, mask)) = config.address {
        interface.set_address(address, mask)?;
    }
    interface.set_up()
}
