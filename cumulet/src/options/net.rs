//! `--net`.

use std::net::IpAddr;

use api_client::wire::{Descriptors, MacAddress, NetConfig, VhostMode};

use super::{
    descriptor,
    disk::{LIMITS, limits},
    grammar::{GrammarError, Keys, Pairs},
    place::{IOMMU, PCI, Place},
};

/// Its keys.
pub const KEYS: Keys = &[
    &[
        "tap=NAME",
        "ip=ADDRESS",
        "mask=ADDRESS",
        "mac=ADDRESS",
        "host_mac=ADDRESS",
        "mtu=BYTES",
        "fd=[FD,...]",
        "num_queues=2",
        "queue_size=256",
        "vhost_user=off",
        "socket=PATH",
        "vhost_mode=client",
        "offload_tso=on",
        "offload_ufo=on",
        "offload_csum=on",
        "packed=on",
    ],
    LIMITS,
    PCI,
    IOMMU,
];

const VHOST_MODES: [(&str, VhostMode); 2] = [("client", VhostMode::Client), ("server", VhostMode::Server)];

/// Reads it. Descriptors that were handed over are duplicated.
///
/// # Errors
/// A key or value that is none, or a descriptor that is not open.
pub fn parse(text: &str) -> Result<NetConfig, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let default = NetConfig::default();
    let fds: Option<Vec<i32>> = pairs.integers("fd")?;
    let descriptors = fds.as_deref().unwrap_or_default().iter().map(|fd| descriptor::inherited("fd", *fd));
    Ok(NetConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        tap: pairs.text("tap"),
        ip: pairs.read("ip", ip)?,
        mask: pairs.read("mask", ip)?,
        mac: pairs.read("mac", mac)?,
        host_mac: pairs.read("host_mac", mac)?,
        mtu: pairs.number("mtu")?,
        num_queues: pairs.number("num_queues")?.unwrap_or(default.num_queues),
        queue_size: pairs.number("queue_size")?.unwrap_or(default.queue_size),
        vhost_user: pairs.toggle("vhost_user")?.unwrap_or(default.vhost_user),
        vhost_socket: pairs.text("socket"),
        vhost_mode: pairs.word("vhost_mode", &VHOST_MODES)?.unwrap_or_default(),
        descriptors: Descriptors(descriptors.collect::<Result<_, _>>()?),
        fds,
        rate_limiter_config: limits(&pairs)?,
        offload_tso: pairs.toggle("offload_tso")?.unwrap_or(default.offload_tso),
        offload_ufo: pairs.toggle("offload_ufo")?.unwrap_or(default.offload_ufo),
        offload_csum: pairs.toggle("offload_csum")?.unwrap_or(default.offload_csum),
        packed: pairs.toggle("packed")?.unwrap_or(default.packed),
    })
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address"))
}

/// A MAC address: six pairs of hexadecimal digits with colons between them.
///
/// # Errors
/// It is none.
pub(super) fn mac(text: &str) -> Result<MacAddress, String> {
    text.parse().map_err(|_| format!("{text:?} is not a MAC address like 12:34:56:78:9a:bc"))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn every_key_arrives() {
        let text = "tap=t0,ip=10.0.0.1,mask=255.0.0.0,mac=12:34:56:78:9a:bc,host_mac=2e:00:00:00:00:01,mtu=1400,\
                    num_queues=4,queue_size=512,vhost_user=on,socket=/s,vhost_mode=Server,offload_tso=off,\
                    offload_ufo=off,offload_csum=off,packed=off,bw_size=1,bw_one_time_burst=0,bw_refill_time=1,ops_size=1,\
                    ops_one_time_burst=0,ops_refill_time=1,id=n0,pci_segment=1,pci_device_id=7,iommu=on";
        let net = parse(text).unwrap();
        assert!(
            net.rate_limiter_config.is_some_and(|limits| limits.bandwidth.is_some() && limits.ops.is_some())
        );
        let expected = NetConfig {
            id: Some("n0".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(7),
            tap: Some("t0".into()),
            ip: Some("10.0.0.1".parse().unwrap()),
            mask: Some("255.0.0.0".parse().unwrap()),
            mac: Some(MacAddress([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc])),
            host_mac: Some(MacAddress([0x2e, 0, 0, 0, 0, 1])),
            mtu: Some(1400),
            num_queues: 4,
            queue_size: 512,
            vhost_user: true,
            vhost_socket: Some("/s".into()),
            vhost_mode: VhostMode::Server,
            fds: None,
            descriptors: Descriptors::default(),
            rate_limiter_config: net.rate_limiter_config,
            offload_tso: false,
            offload_ufo: false,
            offload_csum: false,
            packed: false,
        };
        assert_eq!(net, expected);
        assert_eq!(parse(""), Ok(NetConfig::default()));
        assert_eq!(parse("tap="), Ok(NetConfig::default()), "an empty tap is any tap");
    }

    #[test]
    fn descriptors_are_taken_over() {
        let files = [File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap()];
        let [one, two] = [files[0].as_raw_fd(), files[1].as_raw_fd()];
        let net = parse(&format!("fd=[{one},{two}],num_queues=4")).unwrap();
        assert_eq!(net.fds, Some(vec![one, two]));
        assert_eq!(net.descriptors.0.len(), 2);
        assert!(net.descriptors.0.iter().all(|own| own.as_raw_fd() != one && own.as_raw_fd() != two));
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        for (text, said) in [
            ("ip=ten", r#"ip: "ten" is not an IP address"#),
            ("mac=1:2:3:4:5:6", r#"mac: "1:2:3:4:5:6" is not a MAC address like 12:34:56:78:9a:bc"#),
            ("fd=1", "fd: 1 is one of the standard descriptors"),
            ("fd=[]", r#"fd: "" is not a decimal number"#),
            ("vhost_mode=peer", r#"vhost_mode: "peer" is not one of client, server"#),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said, "{text}");
        }
        assert!(parse("fd=99999").unwrap_err().to_string().starts_with("fd: 99999 "));
    }
}
