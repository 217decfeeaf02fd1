//! Virtio network device: opens or takes over its tap. The host's end is set up when all else has succeeded.

use std::{net::IpAddr, os::fd::OwnedFd, sync::Arc};

use virtio_devices::{
    host::tap::{Interface, Replaced, TapError, Taps},
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

/// What of a tap has been set, and what it was before.
#[derive(Debug)]
pub struct Before {
    interface: Interface,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    address: Option<Replaced>,
    /// Whether it carried no frames.
    was_down: bool,
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
    /// The host refuses. It is as it was.
    pub fn set_up(&self) -> Result<Before, AttachError> {
        let interface = self.interface.clone();
        let mut before = Before { interface, mac: None, mtu: None, address: None, was_down: false };
        match self.change(&mut before) {
            Ok(()) => Ok(before),
            Err(error) => {
                before.put_back();
                Err(AttachError::Tap(error))
            }
        }
    }

    fn change(&self, before: &mut Before) -> Result<(), TapError> {
        let interface = &self.interface;
        if let Some(mac) = self.mac {
            let was = interface.mac()?;
            interface.set_mac(mac)?;
            before.mac = Some(was);
        }
        if let Some(mtu) = self.mtu {
            let was = interface.mtu()?;
            interface.set_mtu(mtu)?;
            before.mtu = u16::try_from(was).ok();
        }
        if let Some((address, mask)) = self.address {
            before.address = Some(interface.set_address(address, mask)?);
        }
        before.was_down = interface.set_up()?;
        Ok(())
    }
}

impl Before {
    /// Makes the tap what it was, in the reverse order.
    pub fn put_back(self) {
        let Self { interface, mac, mtu, address, was_down } = self;
        let put = [
            if was_down { interface.set_down().map(drop) } else { Ok(()) },
            address.map_or(Ok(()), |address| interface.put_address_back(address)),
            mtu.map_or(Ok(()), |mtu| interface.set_mtu(mtu)),
            mac.map_or(Ok(()), |mac| interface.set_mac(mac)),
        ];
        for error in put.into_iter().filter_map(Result::err) {
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
    use std::process::Command;

    use super::*;

    /// A tap of this host's, which has to say so if it has none.
    fn tap() -> Option<Taps> {
        if std::env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
            println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
            return None;
        }
        Some(Taps::open(Some(&format!("cmn{:x}", std::process::id())), 1).unwrap())
    }

    /// All that is set of a tap: flags, MAC address, MTU and addresses.
    fn shown(interface: &Interface) -> String {
        let said = Command::new("ip").args(["address", "show", "dev", interface.name()]).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        let said = String::from_utf8(said.stdout).unwrap();
        // The kernel by itself gives one that carries frames an address, and a queue for them, for good; it finds out its
        // state at leisure, and tells how long addresses are to last.
        let lines = said.lines().filter(|line| !line.contains("fe80:") && !line.contains("valid_lft"));
        let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
        let before = |index: usize| index.checked_sub(1).and_then(|at| words.get(at).copied());
        let kept = words.iter().enumerate();
        let kept = kept.filter(|(index, _)| !matches!(before(*index), Some("qdisc" | "state")));
        kept.map(|(_, word)| format!("{word} ")).collect()
    }

    #[test]
    fn a_tap_that_cannot_be_set_up_is_as_it_was() {
        let Some(opened) = tap() else { return };
        let interface = Interface::named(opened.name());
        let before = shown(&interface);
        let (mac, ours) = ([0x2e, 1, 2, 3, 4, 5], "192.0.2.1".parse().unwrap());
        let wanted = |mtu, mask: &str| Tap {
            interface: interface.clone(),
            made: false,
            mac: Some(mac),
            mtu: Some(mtu),
            address: Some((ours, mask.parse().unwrap())),
        };
        // Longer than what any tap carries, with its header; and the step behind that one.
        for (mtu, mask, expected) in [
            (u16::MAX, "255.255.255.0", "cannot set its MTU"),
            (1400, "255.0.255.0", "255.0.255.0 is no mask for 192.0.2.1"),
        ] {
            let error = crate::error::chain(&wanted(mtu, mask).set_up().unwrap_err());
            assert!(error.contains(expected), "{error}");
            assert_eq!(shown(&interface), before);
        }
        // Another device's may fail after this one's.
        let was = wanted(1400, "255.255.255.0").set_up().unwrap();
        let set = shown(&interface);
        assert!(set.contains("mtu 1400") && set.contains("2e:01:02:03:04:05"), "{set}");
        assert!(set.contains("inet 192.0.2.1/24") && set.contains("MULTICAST,UP"), "{set}");
        // What was so before stays.
        wanted(1400, "255.255.255.0").set_up().unwrap().put_back();
        assert_eq!(shown(&interface), set);
        was.put_back();
        assert_eq!(shown(&interface), before);

        // The host's own addresses stay where the wanted one is among them: the kernel drops what depends on one that goes.
        for address in ["192.0.2.9/24", "192.0.2.1/24", "192.0.2.5/24"] {
            let added =
                Command::new("ip").args(["address", "add", address, "dev", interface.name()]).status();
            assert!(added.unwrap().success());
        }
        let before = shown(&interface);
        let was = wanted(1400, "255.255.255.0").set_up().unwrap();
        let set = shown(&interface);
        for address in ["192.0.2.9/24", "192.0.2.1/24", "192.0.2.5/24"] {
            assert!(set.contains(&format!("inet {address} ")), "{set}");
        }
        was.put_back();
        assert_eq!(shown(&interface), before);
    }
}
