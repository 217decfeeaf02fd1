//! Devices that somebody else provides: `--device`, `--user-device`, `--generic-vhost-user`.

use api_client::wire::{DeviceConfig, GenericVhostUserConfig, UserDeviceConfig};

use super::{
    grammar::{GrammarError, Keys, Pairs},
    place::{IOMMU, PCI, Place},
    values::number,
};

/// The keys of `--device`.
pub const DEVICE_KEYS: Keys =
    &[&["path=PATH", "fd=FD", "x_nv_gpudirect_clique=NUMBER", "x_exclude_mmap_bars=[BAR,...]"], PCI, IOMMU];
/// The keys of `--user-device`.
pub const USER_DEVICE_KEYS: Keys = &[&["socket=PATH"], PCI];
/// The keys of `--generic-vhost-user`.
pub const GENERIC_KEYS: Keys =
    &[&["device_type=TYPE", "virtio_id=TYPE", "socket=PATH", "queue_sizes=[SIZE,...]"], PCI];

/// BARs of a PCI function.
const BARS: u8 = 6;

/// Device types of the virtio specification, section 5, by name.
const DEVICE_TYPES: [(&str, u32); 27] = [
    ("net", 1),
    ("block", 2),
    ("console", 3),
    ("rng", 4),
    ("balloon", 5),
    ("rpmsg", 7),
    ("scsi", 8),
    ("9p", 9),
    ("gpu", 16),
    ("input", 18),
    ("vsock", 19),
    ("crypto", 20),
    ("iommu", IOMMU_TYPE),
    ("mem", 24),
    ("sound", 25),
    ("fs", 26),
    ("pmem", 27),
    ("rpmb", 28),
    ("video-encoder", 30),
    ("video-decoder", 31),
    ("scmi", 32),
    ("i2c", 34),
    ("watchdog", WATCHDOG_TYPE),
    ("can", 36),
    ("bt", 40),
    ("gpio", 41),
    ("media", 48),
];

/// The IOMMU is the machine's.
const IOMMU_TYPE: u32 = 23;
/// So is the watchdog: it resets the machine.
const WATCHDOG_TYPE: u32 = 35;

/// Reads `--device`.
///
/// # Errors
/// A key or value that is none, or neither or both of path and fd.
pub fn device(text: &str) -> Result<DeviceConfig, GrammarError> {
    let pairs = Pairs::parse(text, DEVICE_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let bars: Vec<u8> = pairs.integers("x_exclude_mmap_bars")?.unwrap_or_default();
    if let Some(bar) = bars.iter().find(|bar| **bar >= BARS) {
        return Err(GrammarError::value("x_exclude_mmap_bars", format!("there is no BAR {bar}")));
    }
    let (path, fd) = (pairs.path("path"), pairs.number("fd")?);
    if path.is_some() == fd.is_some() {
        return Err(GrammarError::Whole("either path or fd is expected".into()));
    }
    Ok(DeviceConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        path,
        fd,
        x_nv_gpudirect_clique: pairs.number("x_nv_gpudirect_clique")?,
        x_exclude_mmap_bars: bars,
    })
}

/// Reads `--user-device`.
///
/// # Errors
/// A key or value that is none, or no socket.
pub fn user_device(text: &str) -> Result<UserDeviceConfig, GrammarError> {
    let pairs = Pairs::parse(text, USER_DEVICE_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    Ok(UserDeviceConfig { id, iommu, pci_segment, pci_device_id, socket: pairs.required("socket")?.into() })
}

/// Reads `--generic-vhost-user`.
///
/// # Errors
/// A key or value that is none, no type, socket or queues, or a type that must be the machine's own.
pub fn generic_vhost_user(text: &str) -> Result<GenericVhostUserConfig, GrammarError> {
    let pairs = Pairs::parse(text, GENERIC_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let old = pairs.read("virtio_id", device_type)?;
    if old.is_some() {
        log::warn!("--generic-vhost-user: virtio_id is the old name of device_type");
    }
    let device_type = pairs.read("device_type", device_type)?.or(old);
    Ok(GenericVhostUserConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        socket: pairs.required("socket")?.into(),
        queue_sizes: pairs.integers("queue_sizes")?.ok_or(GrammarError::Missing("queue_sizes"))?,
        device_type: device_type.ok_or(GrammarError::Missing("device_type"))?,
    })
}

fn device_type(text: &str) -> Result<u32, String> {
    let named = DEVICE_TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    let device_type = match named {
        Some((_, device_type)) => *device_type,
        None if text.starts_with('0') => return Err(format!("{text:?} is no device type")),
        None => number(text).map_err(|_| format!("{text:?} is no device type"))?,
    };
    match device_type {
        IOMMU_TYPE | WATCHDOG_TYPE => Err(format!("{text:?} must be the machine's own")),
        device_type => Ok(device_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "id=x,pci_segment=1,pci_device_id=2";

    #[test]
    fn every_key_of_a_device_arrives() {
        let expected = DeviceConfig {
            id: Some("x".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            path: Some("/sys/d/".into()),
            fd: None,
            x_nv_gpudirect_clique: Some(3),
            x_exclude_mmap_bars: vec![0, 2, 3],
        };
        let text =
            format!("path=/sys/d/,x_nv_gpudirect_clique=3,x_exclude_mmap_bars=[0,2-3],iommu=on,{PLACE}");
        assert_eq!(device(&text), Ok(expected));
        assert_eq!(device("fd=7").map(|device| device.fd), Ok(Some(7)));
        assert!(device("path=/d,fd=7").is_err());
        assert!(device("iommu=on").is_err());
        assert!(device("path=/d,x_exclude_mmap_bars=6").unwrap_err().to_string().contains("no BAR 6"));
    }

    #[test]
    fn every_key_of_a_user_device_arrives() {
        let expected = UserDeviceConfig {
            id: Some("x".into()),
            iommu: false,
            pci_segment: 1,
            pci_device_id: Some(2),
            socket: "/s".into(),
        };
        assert_eq!(user_device(&format!("socket=/s,{PLACE}")), Ok(expected));
        assert_eq!(user_device(""), Err(GrammarError::Missing("socket")));
    }

    #[test]
    fn every_key_of_a_generic_device_arrives() {
        let expected = GenericVhostUserConfig {
            id: Some("x".into()),
            iommu: false,
            pci_segment: 1,
            pci_device_id: Some(2),
            socket: "/s".into(),
            queue_sizes: vec![64, 128],
            device_type: 26,
        };
        let text = format!("device_type=fs,socket=/s,queue_sizes=[64,128],{PLACE}");
        assert_eq!(generic_vhost_user(&text), Ok(expected));
        for missing in ["socket=/s,queue_sizes=1", "device_type=1,queue_sizes=1", "device_type=1,socket=/s"] {
            let error = generic_vhost_user(missing).unwrap_err();
            assert!(matches!(error, GrammarError::Missing(_)), "{missing}: {error}");
        }
    }

    #[test]
    fn device_types_are_numbers_or_names() {
        let of = |keys: &str| {
            generic_vhost_user(&format!("socket=/s,queue_sizes=1,{keys}")).map(|device| device.device_type)
        };
        assert_eq!(of("device_type=999"), Ok(999));
        assert_eq!(of("device_type=GPU"), Ok(16));
        assert_eq!(of("virtio_id=2"), Ok(2));
        assert_eq!(of("virtio_id=2,device_type=3"), Ok(3), "the new name wins");
        for text in ["01", "0", "toaster", "-1", "watchdog", "35", "iommu", "23"] {
            let said = of(&format!("device_type={text}")).unwrap_err().to_string();
            assert!(said.starts_with("device_type: "), "{text}: {said}");
        }
    }
}
