//! Virtio network device: opens or takes over its tap. The host's end is set up when all else has succeeded.

use std::{net::IpAddr, os::fd::OwnedFd, sync::Arc};

use virtio_devices::{
    host::tap::{Interface, TapError, Taps},
    net::{self, Net},
    worker::PlainThreads,
};

use super::{AttachError, Attached, Context, Control, limiter, virtio};
use crate::{config::NetConfig, layout::DeviceLayout};

/// The host's end of a tap that was opened by its name, or made.
#[derive(Clone, Debug)]
pub struct Tap {
    interface: Interface,
    made: bool,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    address: Option<(IpAddr, IpAddr)>,
}

/// What a tap was before it was set up.
#[derive(Debug)]
pub struct Before {
    interface: Interface,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
}

/// A tap that was not there, and is made for a network device; it goes with the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeTap {
    /// The device.
    pub id: String,
    /// The tap's name; none before it is made, if the configuration has none.
    pub tap: Option<String>,
}

impl Tap {
    /// Its name, if it was not there before.
    pub fn made(&self) -> Option<&str> {
        self.made.then(|| self.interface.name())
    }

    /// Gives it what the configuration says, and lets it carry frames.
    ///
    /// # Errors
    /// The host refuses. Its MAC address and MTU are as they were.
    pub fn set_up(&self) -> Result<Before, AttachError> {
        let interface = &self.interface;
        let before = || -> Result<Before, TapError> {
            let mac = self.mac.map(|_| interface.mac()).transpose()?;
            let mtu = self.mtu.map(|_| interface.mtu()).transpose()?;
            let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok());
            Ok(Before { interface: interface.clone(), mac, mtu })
        };
        let before = before().map_err(AttachError::Tap)?;
        match self.change() {
            Ok(()) => Ok(before),
            Err(error) => {
                before.put_back();
                Err(AttachError::Tap(error))
            }
        }
    }

    fn change(&self) -> Result<(), TapError> {
        if let Some(mac) = self.mac {
            self.interface.set_mac(mac)?;
        }
        if let Some(mtu) = self.mtu {
            self.interface.set_mtu(mtu)?;
        }
        if let Some((address, mask)) = self.address {
            self.interface.set_address(address, mask)?;
        }
        self.interface.set_up()
    }
}

impl Before {
    /// Gives the tap its MAC address and MTU back. Addresses that it was given it keeps.
    pub fn put_back(self) {
        let Self { interface, mac, mtu } = self;
        let put = mac.map_or(Ok(()), |mac| interface.set_mac(mac));
        if let Err(error) = put.and(mtu.map_or(Ok(()), |mtu| interface.set_mtu(mtu))) {
            log::warn!("it stays as it was set up: {}", crate::error::chain(&error));
        }
    }
}

/// The tap that would be made for a device, if none is there.
pub fn would_make(config: &NetConfig) -> Option<MadeTap> {
    let made = config.fds.is_empty() && !is_there(config);
    made.then(|| MadeTap { id: config.id.clone(), tap: config.tap.clone() })
}

fn is_there(config: &NetConfig) -> bool {
    config.tap.as_deref().is_some_and(|name| Interface::named(name).is_there())
}

/// Opens the tap and builds the device. The host's end is not changed yet.
///
/// # Errors
/// The tap cannot be opened, or the configuration gives the guest no MAC address.
pub fn attach(
    config: &NetConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let mac =
        config.mac.ok_or(AttachError::Unavailable { what: "a network device without a MAC address" })?;
    let was_there = is_there(config);
    let taps = open(config)?;
    log::info!("{}: tap {} with {} queues", config.id, taps.name(), taps.queues());
    let control = match config.fds.as_slice() {
        [] => Control::Tap(Tap {
            interface: Interface::named(taps.name()),
            made: !was_there,
            mac: config.host_mac,
            mtu: config.mtu,
            address: config.address,
        }),
        // An interface that came as descriptors is somebody else's to set up.
        [..] => Control::None,
    };
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
    let device =
        virtio::function(Box::new(device), layout, context, config.packed).map_err(AttachError::Function)?;
    Ok(Attached { device, control })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A tap of this host's, which has to say so if it has none.
    fn tap() -> Option<Taps> {
        if std::env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
            println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
            return None;
        }
        Some(Taps::open(Some(&format!("cmn{:x}", std::process::id())), 1).unwrap())
    }

    #[test]
    fn a_tap_that_cannot_be_set_up_is_as_it_was() {
        let Some(opened) = tap() else { return };
        let interface = Interface::named(opened.name());
        let before = (interface.mac().unwrap(), interface.mtu().unwrap());
        let mac = [0x2e, 1, 2, 3, 4, 5];
        let wanted = |mtu| Tap {
            interface: interface.clone(),
            made: false,
            mac: Some(mac),
            mtu: Some(mtu),
            address: None,
        };
        // Longer than what any tap carries, with its header.
        let error = crate::error::chain(&wanted(u16::MAX).set_up().unwrap_err());
        assert!(error.contains("cannot set its MTU"), "{error}");
        assert_eq!((interface.mac().unwrap(), interface.mtu().unwrap()), before);
        // Another device's may fail after this one's.
        let was = wanted(1400).set_up().unwrap();
        assert_eq!((interface.mac().unwrap(), interface.mtu().unwrap()), (mac, 1400));
        was.put_back();
        assert_eq!((interface.mac().unwrap(), interface.mtu().unwrap()), before);
    }
}
