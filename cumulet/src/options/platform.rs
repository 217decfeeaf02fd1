//! The machine around the devices: `--platform`, `--numa`, `--pci-segment`, `--landlock-rules`.

use api_client::wire::{LandlockConfig, NumaConfig, NumaDistance, PciSegmentConfig, PlatformConfig};

use super::{
    grammar::{GrammarError, Keys, Pairs},
    values::number,
};

/// The keys of `--platform`.
pub const KEYS: Keys = &[&[
    "num_pci_segments=1",
    "iommu_segments=[SEGMENT,...]",
    "iommu_address_width=64",
    "iommufd=off",
    "iommufd_fd=FD",
    "vfio_p2p_dma=on",
    "system_manufacturer=TEXT",
    "system_product_name=TEXT",
    "system_version=TEXT",
    "system_serial_number=TEXT",
    "serial_number=TEXT",
    "system_uuid=UUID",
    "uuid=UUID",
    "system_sku_number=TEXT",
    "system_family=TEXT",
    "chassis_asset_tag=TEXT",
    "oem_strings=[TEXT,...]",
]];

/// The keys of `--numa`.
pub const NUMA_KEYS: Keys = &[&[
    "guest_numa_id=NODE",
    "cpus=[VCPU,...]",
    "distances=[NODE@DISTANCE,...]",
    "memory_zones=[ID,...]",
    "pci_segments=[SEGMENT,...]",
    "device_id=ID",
]];

/// The keys of `--pci-segment`.
pub const SEGMENT_KEYS: Keys = &[&["pci_segment=0", "mmio32_aperture_weight=1", "mmio64_aperture_weight=1"]];

/// The keys of `--landlock-rules`.
pub const LANDLOCK_KEYS: Keys = &[&["path=PATH", "access=r|w|rw"]];

/// Reads `--platform`.
///
/// # Errors
/// A key or value that is none.
pub fn parse(text: &str) -> Result<PlatformConfig, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    let default = PlatformConfig::default();
    let iommufd_fd = pairs.number("iommufd_fd")?;
    Ok(PlatformConfig {
        num_pci_segments: pairs.number("num_pci_segments")?.unwrap_or(default.num_pci_segments),
        iommu_segments: pairs.integers("iommu_segments")?,
        iommu_address_width_bits: pairs
            .number("iommu_address_width")?
            .unwrap_or(default.iommu_address_width_bits),
        system_serial_number: renamed(&pairs, "system_serial_number", "serial_number"),
        system_uuid: renamed(&pairs, "system_uuid", "uuid"),
        oem_strings: pairs.strings("oem_strings")?,
        system_manufacturer: pairs.text("system_manufacturer"),
        system_product_name: pairs.text("system_product_name"),
        system_version: pairs.text("system_version"),
        system_family: pairs.text("system_family"),
        system_sku_number: pairs.text("system_sku_number"),
        chassis_asset_tag: pairs.text("chassis_asset_tag"),
        iommufd: pairs.toggle("iommufd")?.unwrap_or(iommufd_fd.is_some()),
        iommufd_fd,
        vfio_p2p_dma: pairs.toggle("vfio_p2p_dma")?.unwrap_or(default.vfio_p2p_dma),
        tdx: false,
        sev_snp: false,
    })
}

/// The new name wins over the old one.
fn renamed(pairs: &Pairs, new: &str, old: &str) -> Option<String> {
    let said = pairs.text(old);
    if said.is_some() {
        log::warn!("--platform: {old} is the old name of {new}");
    }
    pairs.text(new).or(said)
}

/// Reads `--numa`.
///
/// # Errors
/// A key or value that is none, or no node.
pub fn numa(text: &str) -> Result<NumaConfig, GrammarError> {
    let pairs = Pairs::parse(text, NUMA_KEYS)?;
    let wrong = |what| GrammarError::value("distances", what);
    let distance = |(node, distance): (String, u8)| {
        Ok(NumaDistance { destination: number(&node).map_err(wrong)?, distance })
    };
    let distances = pairs.single_tuples("distances")?;
    Ok(NumaConfig {
        guest_numa_id: pairs.number("guest_numa_id")?.ok_or(GrammarError::Missing("guest_numa_id"))?,
        cpus: pairs.integers("cpus")?,
        distances: distances.map(|tuples| tuples.into_iter().map(distance).collect()).transpose()?,
        memory_zones: pairs.strings("memory_zones")?,
        pci_segments: pairs.integers("pci_segments")?,
        device_id: pairs.text("device_id"),
    })
}

/// Reads `--pci-segment`.
///
/// # Errors
/// A key or value that is none.
pub fn pci_segment(text: &str) -> Result<PciSegmentConfig, GrammarError> {
    let pairs = Pairs::parse(text, SEGMENT_KEYS)?;
    let default = PciSegmentConfig::default();
    let weight = |key, default| Ok(pairs.number(key)?.unwrap_or(default));
    Ok(PciSegmentConfig {
        pci_segment: pairs.number("pci_segment")?.unwrap_or(default.pci_segment),
        mmio32_aperture_weight: weight("mmio32_aperture_weight", default.mmio32_aperture_weight)?,
        mmio64_aperture_weight: weight("mmio64_aperture_weight", default.mmio64_aperture_weight)?,
    })
}

/// Reads `--landlock-rules`.
///
/// # Errors
/// A key or value that is none, no path, or no access.
pub fn landlock_rule(text: &str) -> Result<LandlockConfig, GrammarError> {
    let pairs = Pairs::parse(text, LANDLOCK_KEYS)?;
    let (path, access) = (pairs.required("path")?, pairs.required("access")?);
    if !(1..=2).contains(&access.len()) || !access.chars().all(|letter| "rw".contains(letter)) {
        return Err(GrammarError::value("access", format!("{access:?} is not r, w or rw")));
    }
    Ok(LandlockConfig { path: path.into(), access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_platform_arrives() {
        let text = "num_pci_segments=4,iommu_segments=[1,3],iommu_address_width=48,iommufd=on,iommufd_fd=7,\
                    vfio_p2p_dma=off,system_manufacturer=a,system_product_name=b,system_version=c,\
                    system_serial_number=d,system_uuid=e,system_sku_number=f,system_family=g,chassis_asset_tag=h,\
                    oem_strings=[i,j]";
        let expected = PlatformConfig {
            num_pci_segments: 4,
            iommu_segments: Some(vec![1, 3]),
            iommu_address_width_bits: 48,
            system_serial_number: Some("d".into()),
            system_uuid: Some("e".into()),
            oem_strings: Some(vec!["i".into(), "j".into()]),
            system_manufacturer: Some("a".into()),
            system_product_name: Some("b".into()),
            system_version: Some("c".into()),
            system_family: Some("g".into()),
            system_sku_number: Some("f".into()),
            chassis_asset_tag: Some("h".into()),
            iommufd: true,
            iommufd_fd: Some(7),
            vfio_p2p_dma: false,
            tdx: false,
            sev_snp: false,
        };
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(PlatformConfig::default()));
        assert!(parse("tdx=on").is_err(), "there is no such build");
    }

    #[test]
    fn old_names_count_if_the_new_ones_are_absent() {
        let old = parse("serial_number=s,uuid=u").unwrap();
        assert_eq!((old.system_serial_number.as_deref(), old.system_uuid.as_deref()), (Some("s"), Some("u")));
        let both = parse("system_uuid=new,uuid=old").unwrap();
        assert_eq!(both.system_uuid.as_deref(), Some("new"));
    }

    #[test]
    fn a_descriptor_turns_iommufd_on() {
        assert_eq!(parse("iommufd_fd=7").map(|platform| platform.iommufd), Ok(true));
        assert_eq!(parse("iommufd_fd=7,iommufd=off").map(|platform| platform.iommufd), Ok(false));
    }

    #[test]
    fn every_key_of_a_numa_node_arrives() {
        let text = "guest_numa_id=1,cpus=[0,2-3],distances=[0@20,2@30],memory_zones=[a,b],pci_segments=[1],device_id=d";
        let expected = NumaConfig {
            guest_numa_id: 1,
            cpus: Some(vec![0, 2, 3]),
            distances: Some(vec![
                NumaDistance { destination: 0, distance: 20 },
                NumaDistance { destination: 2, distance: 30 },
            ]),
            memory_zones: Some(vec!["a".into(), "b".into()]),
            pci_segments: Some(vec![1]),
            device_id: Some("d".into()),
        };
        assert_eq!(numa(text), Ok(expected));
        assert_eq!(numa("cpus=0"), Err(GrammarError::Missing("guest_numa_id")));
        assert!(
            numa("guest_numa_id=0,distances=[1@256]").unwrap_err().to_string().starts_with("distances: ")
        );
        assert!(numa("guest_numa_id=0,distances=[a@20]").unwrap_err().to_string().starts_with("distances: "));
    }

    #[test]
    fn every_key_of_a_segment_arrives() {
        let text = "pci_segment=1,mmio32_aperture_weight=2,mmio64_aperture_weight=3";
        let expected =
            PciSegmentConfig { pci_segment: 1, mmio32_aperture_weight: 2, mmio64_aperture_weight: 3 };
        assert_eq!(pci_segment(text), Ok(expected));
        assert_eq!(pci_segment(""), Ok(PciSegmentConfig::default()));
        assert!(pci_segment("pci_segment=1.5").is_err());
    }

    #[test]
    fn landlock_rules_say_what_may_be_done_where() {
        for access in ["r", "w", "rw", "wr"] {
            let expected = LandlockConfig { path: "/p".into(), access: access.into() };
            assert_eq!(landlock_rule(&format!("path=/p,access={access}")), Ok(expected));
        }
        for access in ["x", "rwr", "R"] {
            assert!(landlock_rule(&format!("path=/p,access={access}")).is_err(), "{access}");
        }
        assert_eq!(landlock_rule("access=r"), Err(GrammarError::Missing("path")));
        assert_eq!(landlock_rule("path=/p"), Err(GrammarError::Missing("access")));
    }
}
