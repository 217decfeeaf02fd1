//! Network devices.

use std::{fmt, net::IpAddr, os::fd::OwnedFd, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::{pci::pci_device, rate_limit::RateLimiterConfig};

pci_device! {
    /// A virtio network device: on a tap, or on a vhost-user back end.
    #[serde(default)]
    pub struct NetConfig {
        ..pci,
        /// Name of the tap to open or to make; a free one if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tap: Option<String>,
        /// Address of the tap; comes with `mask`. Of no effect with `fds`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ip: Option<IpAddr>,
        /// Mask of the tap's network.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mask: Option<IpAddr>,
        /// The guest's MAC address; a random one if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mac: Option<MacAddress>,
        /// The tap's MAC address.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub host_mac: Option<MacAddress>,
        /// MTU of both ends, 1280 at least.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mtu: Option<u16>,
        /// Number of receive and transmit queues together; with `fds` twice their number.
        pub num_queues: usize,
        /// Size of a queue: a power of two.
        pub queue_size: u16,
        /// Whether a vhost-user back end serves it.
        pub vhost_user: bool,
        /// The back end's socket.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub vhost_socket: Option<String>,
        /// Who connects to whom on that socket.
        pub vhost_mode: VhostMode,
        /// Opened taps, one a pair of queues. Over the API only their number counts: the descriptors
        /// travel beside the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub fds: Option<Vec<i32>>,
        /// The descriptors that `fds` announces.
        #[serde(skip)]
        pub descriptors: Descriptors,
        /// Limits, for each direction.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub rate_limiter_config: Option<RateLimiterConfig>,
        /// TCP segmentation offload.
        pub offload_tso: bool,
        /// UDP fragmentation offload.
        pub offload_ufo: bool,
        /// Checksum offload, which the other two need.
        pub offload_csum: bool,
        /// Whether the guest may use packed queues. Cumulet's own.
        pub packed: bool,
    }
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            tap: None,
            ip: None,
            mask: None,
            mac: None,
            host_mac: None,
            mtu: None,
            num_queues: 2,
            queue_size: 256,
            vhost_user: false,
            vhost_socket: None,
            vhost_mode: VhostMode::default(),
            fds: None,
            descriptors: Descriptors::default(),
            rate_limiter_config: None,
            offload_tso: true,
            offload_ufo: true,
            offload_csum: true,
            packed: true,
        }
    }
}

/// Who connects to whom on a vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VhostMode {
    /// The VMM connects.
    #[default]
    Client,
    /// The VMM listens.
    Server,
}

/// Open descriptors that belong to a configuration and are no part of its JSON.
#[derive(Clone, Debug, Default)]
pub struct Descriptors(pub Vec<Arc<OwnedFd>>);

impl PartialEq for Descriptors {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(one, two)| Arc::ptr_eq(one, two))
    }
}

impl Eq for Descriptors {}

/// A MAC address, as `xx:xx:xx:xx:xx:xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no MAC address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("a MAC address like 12:34:56:78:9a:bc is expected")]
pub struct BadMacAddress;

impl FromStr for MacAddress {
    type Err = BadMacAddress;

    fn from_str(text: &str) -> Result<Self, BadMacAddress> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(BadMacAddress)?;
            // A sign would be taken for a digit.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(BadMacAddress);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| BadMacAddress)?;
        }
        if parts.next().is_some() {
            return Err(BadMacAddress);
        }
        Ok(Self(address))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
    }
}
