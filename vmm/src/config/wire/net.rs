//! Network devices.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

use api_client::wire;

use super::{
    disk::{queues, rate_limit},
    place, wrong,
};
use crate::config::{ConfigError, NetConfig};

/// Longest name of a network interface, in bytes (IFNAMSIZ with its NUL).
const MAX_TAP_NAME: usize = 15;

/// First byte of the addresses that are given: locally administered, of one station.
const GIVEN_PREFIX: u8 = 0x2e;

/// Gives a MAC address to every device that has none.
pub(super) fn give_addresses(said: &mut wire::VmConfig) {
    for net in said.net.iter_mut().flatten() {
        net.mac.get_or_insert_with(random_address);
    }
}

/// The standard library's keys are random: an address must differ from others, not be a secret.
fn random_address() -> wire::MacAddress {
    let [a, b, c, d, e, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    wire::MacAddress([GIVEN_PREFIX, a, b, c, d, e])
}

/// Neither a Linux guest nor the host's kernel brings an interface up that has an address of another kind.
fn check_station(address: Option<wire::MacAddress>) -> Result<(), String> {
    match address {
        // The bit that makes it the address of a group (IEEE 802.3, 3.2.3); broadcast has it too.
        Some(address) if address.0[0] & 1 != 0 => {
            Err(format!("{address}: the address of a group, and one station's is expected"))
        }
        Some(address) if address.0 == [0; 6] => Err(format!("{address}: no station's address")),
        _ => Ok(()),
    }
}

pub(super) fn resolve(said: &wire::NetConfig) -> Result<NetConfig, ConfigError> {
    let id = said.id.clone().unwrap_or_default();
    if said.vhost_socket.is_some() && !said.vhost_user {
        return Err(wrong(&id, "vhost_socket needs vhost_user"));
    }
    if let Some(tap) = &said.tap
        && (tap.is_empty() || tap.len() > MAX_TAP_NAME || tap.contains(['/', '\0']))
    {
        return Err(wrong(&id, format!("tap {tap:?}: a name of 1 to {MAX_TAP_NAME} bytes without /")));
    }
    if said.num_queues < 2 || !said.num_queues.is_multiple_of(2) {
        let what = format!("num_queues {}: pairs of a receive and a transmit queue", said.num_queues);
        return Err(wrong(&id, what));
    }
    for (key, address) in [("mac", said.mac), ("host_mac", said.host_mac)] {
        check_station(address).map_err(|what| wrong(&id, format!("{key} {what}")))?;
    }
    let announced = said.fds.as_ref().map_or(0, Vec::len);
    let received = said.descriptors.0.len();
    if announced != received {
        return Err(wrong(&id, format!("fds: {announced} are announced, {received} were received")));
    }
    if said.fds.is_some() && said.num_queues != 2 * received {
        let what = format!("num_queues {}: twice the number of fds ({received})", said.num_queues);
        return Err(wrong(&id, what));
    }
    let address = match (said.ip, said.mask) {
        // Clients send an address with descriptors too, whose taps have theirs already.
        _ if received != 0 => None,
        (None, None) => None,
        (Some(ip @ IpAddr::V4(_)), Some(mask @ IpAddr::V4(_)))
        | (Some(ip @ IpAddr::V6(_)), Some(mask @ IpAddr::V6(_))) => Some((ip, mask)),
        (Some(ip), Some(mask)) => {
            return Err(wrong(&id, format!("ip {ip} and mask {mask} are of different families")));
        }
        (Some(_), None) => return Err(wrong(&id, "ip needs a mask")),
        (None, Some(_)) => return Err(wrong(&id, "mask needs an ip")),
    };
    Ok(NetConfig {
        place: place(said),
        tap: said.tap.clone(),
        fds: said.descriptors.0.clone(),
        address,
        mac: said.mac.map(|address| address.0),
        host_mac: said.host_mac.map(|address| address.0),
        mtu: said.mtu,
        queue_pairs: queues(&id, said.num_queues / 2)?,
        queue_size: said.queue_size,
        rate_limit: said.rate_limiter_config.as_ref().and_then(rate_limit),
        offload_tso: said.offload_tso,
        offload_ufo: said.offload_ufo,
        offload_csum: said.offload_csum,
        packed: said.packed,
        id,
    })
}
