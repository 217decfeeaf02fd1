//! The devices that need few words: `--rng`, `--rtc`, `--balloon`, `--fs`, `--pmem`, `--vdpa`, `--vsock`, `--tpm`.

use api_client::wire::{
    BalloonConfig, FsConfig, PmemConfig, RngConfig, RtcConfig, TpmConfig, VdpaConfig, VsockConfig,
};

use super::{
    grammar::{GrammarError, Keys, Pairs},
    place::{IOMMU, PCI, Place},
};

/// The keys of `--rng`.
pub const RNG_KEYS: Keys = &[&["src=/dev/urandom"], PCI, IOMMU];
/// The keys of `--rtc`.
pub const RTC_KEYS: Keys = &[PCI, IOMMU];
/// The keys of `--balloon`.
pub const BALLOON_KEYS: Keys = &[&["size=0", "deflate_on_oom=off", "free_page_reporting=off"], PCI, IOMMU];
/// The keys of `--fs`.
pub const FS_KEYS: Keys = &[&["tag=TAG", "socket=PATH", "num_queues=1", "queue_size=1024"], PCI];
/// The keys of `--pmem`.
pub const PMEM_KEYS: Keys = &[&["file=PATH", "size=SIZE", "discard_writes=off"], PCI, IOMMU];
/// The keys of `--vdpa`.
pub const VDPA_KEYS: Keys = &[&["path=PATH", "num_queues=1"], PCI, IOMMU];
/// The keys of `--vsock`.
pub const VSOCK_KEYS: Keys = &[&["cid=CID", "socket=PATH"], PCI, IOMMU];
/// The key of `--tpm`.
pub const TPM_KEYS: Keys = &[&["socket=PATH"]];

/// Longest name of a shared file system, in bytes: the tag field of the virtio specification, 5.11.4.
const MAX_TAG: usize = 36;

/// Reads `--rng`.
///
/// # Errors
/// A key or value that is none.
pub fn rng(text: &str) -> Result<RngConfig, GrammarError> {
    let pairs = Pairs::parse(text, RNG_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let src = pairs.path("src").unwrap_or_else(|| RngConfig::default().src);
    Ok(RngConfig { id, iommu, pci_segment, pci_device_id, src })
}

/// Reads `--rtc`.
///
/// # Errors
/// A key or value that is none.
pub fn rtc(text: &str) -> Result<RtcConfig, GrammarError> {
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&Pairs::parse(text, RTC_KEYS)?)?;
    Ok(RtcConfig { id, iommu, pci_segment, pci_device_id })
}

/// Reads `--balloon`.
///
/// # Errors
/// A key or value that is none.
pub fn balloon(text: &str) -> Result<BalloonConfig, GrammarError> {
    let pairs = Pairs::parse(text, BALLOON_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    Ok(BalloonConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        size: pairs.size("size")?.unwrap_or(0),
        deflate_on_oom: pairs.toggle("deflate_on_oom")?.unwrap_or(false),
        free_page_reporting: pairs.toggle("free_page_reporting")?.unwrap_or(false),
    })
}

/// Reads `--fs`.
///
/// # Errors
/// A key or value that is none, no tag or socket, or a tag that is too long.
pub fn fs(text: &str) -> Result<FsConfig, GrammarError> {
    let pairs = Pairs::parse(text, FS_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let default = FsConfig::default();
    let tag = pairs.required("tag")?;
    if tag.len() > MAX_TAG {
        return Err(GrammarError::value("tag", format!("{tag:?} has more than {MAX_TAG} bytes")));
    }
    Ok(FsConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        tag,
        socket: pairs.required("socket")?.into(),
        num_queues: pairs.number("num_queues")?.unwrap_or(default.num_queues),
        queue_size: pairs.number("queue_size")?.unwrap_or(default.queue_size),
    })
}

/// Reads `--pmem`.
///
/// # Errors
/// A key or value that is none, or no file.
pub fn pmem(text: &str) -> Result<PmemConfig, GrammarError> {
    let pairs = Pairs::parse(text, PMEM_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    Ok(PmemConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        file: pairs.required("file")?.into(),
        size: pairs.size("size")?,
        discard_writes: pairs.toggle("discard_writes")?.unwrap_or(false),
    })
}

/// Reads `--vdpa`.
///
/// # Errors
/// A key or value that is none, or no path.
pub fn vdpa(text: &str) -> Result<VdpaConfig, GrammarError> {
    let pairs = Pairs::parse(text, VDPA_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let num_queues = pairs.number("num_queues")?.unwrap_or(VdpaConfig::default().num_queues);
    Ok(VdpaConfig { id, iommu, pci_segment, pci_device_id, path: pairs.required("path")?.into(), num_queues })
}

/// Reads `--vsock`.
///
/// # Errors
/// A key or value that is none, no cid, or no socket.
pub fn vsock(text: &str) -> Result<VsockConfig, GrammarError> {
    let pairs = Pairs::parse(text, VSOCK_KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let cid = pairs.number("cid")?.ok_or(GrammarError::Missing("cid"))?;
    Ok(VsockConfig { id, iommu, pci_segment, pci_device_id, cid, socket: pairs.required("socket")?.into() })
}

/// Reads `--tpm`.
///
/// # Errors
/// A key or value that is none, or no socket.
pub fn tpm(text: &str) -> Result<TpmConfig, GrammarError> {
    Ok(TpmConfig { socket: Pairs::parse(text, TPM_KEYS)?.required("socket")?.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "id=x,pci_segment=1,pci_device_id=2";

    #[test]
    fn every_key_of_the_rng_arrives() {
        let expected = RngConfig {
            id: Some("x".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            src: "/dev/hwrng".into(),
        };
        assert_eq!(rng(&format!("src=/dev/hwrng,iommu=on,{PLACE}")), Ok(expected));
        assert_eq!(rng(""), Ok(RngConfig::default()));
        assert!(rng("source=/dev/hwrng").is_err());
    }

    #[test]
    fn every_key_of_the_clock_arrives() {
        let expected =
            RtcConfig { id: Some("x".into()), iommu: true, pci_segment: 1, pci_device_id: Some(2) };
        assert_eq!(rtc(&format!("iommu=on,{PLACE}")), Ok(expected));
        assert_eq!(rtc(""), Ok(RtcConfig::default()));
        assert!(rtc("pci_segment=70000").is_err());
    }

    #[test]
    fn every_key_of_the_balloon_arrives() {
        let expected = BalloonConfig {
            id: Some("x".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            size: 64 << 20,
            deflate_on_oom: true,
            free_page_reporting: true,
        };
        let text = format!("size=64M,deflate_on_oom=on,free_page_reporting=on,iommu=on,{PLACE}");
        assert_eq!(balloon(&text), Ok(expected));
        assert_eq!(balloon(""), Ok(BalloonConfig::default()));
        assert!(balloon("size=big").unwrap_err().to_string().starts_with("size: "));
    }

    #[test]
    fn every_key_of_a_file_system_arrives() {
        let expected = FsConfig {
            id: Some("x".into()),
            iommu: false,
            pci_segment: 1,
            pci_device_id: Some(2),
            tag: "t".into(),
            socket: "/s".into(),
            num_queues: 2,
            queue_size: 512,
        };
        assert_eq!(fs(&format!("tag=t,socket=/s,num_queues=2,queue_size=512,{PLACE}")), Ok(expected));
        let short = fs("tag=t,socket=/s").unwrap();
        assert_eq!((short.num_queues, short.queue_size), (1, 1024));
        assert_eq!(fs("socket=/s"), Err(GrammarError::Missing("tag")));
        assert_eq!(fs("tag=t"), Err(GrammarError::Missing("socket")));
        assert!(fs(&format!("socket=/s,tag={}", "t".repeat(36))).is_ok());
        assert!(fs(&format!("socket=/s,tag={}", "t".repeat(37))).is_err());
        assert!(fs("tag=t,socket=/s,iommu=on").unwrap_err().to_string().contains("unknown key"));
    }

    #[test]
    fn every_key_of_persistent_memory_arrives() {
        let expected = PmemConfig {
            id: Some("x".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            file: "/f".into(),
            size: Some(2 << 30),
            discard_writes: true,
        };
        assert_eq!(pmem(&format!("file=/f,size=2G,discard_writes=on,iommu=on,{PLACE}")), Ok(expected));
        assert_eq!(pmem("size=2G"), Err(GrammarError::Missing("file")));
    }

    #[test]
    fn every_key_of_vdpa_arrives() {
        let expected = VdpaConfig {
            id: Some("x".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            path: "/dev/vhost-vdpa-0".into(),
            num_queues: 3,
        };
        assert_eq!(vdpa(&format!("path=/dev/vhost-vdpa-0,num_queues=3,iommu=on,{PLACE}")), Ok(expected));
        assert_eq!(vdpa(""), Err(GrammarError::Missing("path")));
    }

    #[test]
    fn every_key_of_vsock_arrives() {
        let expected = VsockConfig {
            id: Some("x".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            cid: 3,
            socket: "/s".into(),
        };
        assert_eq!(vsock(&format!("cid=3,socket=/s,iommu=on,{PLACE}")), Ok(expected));
        assert_eq!(vsock("socket=/s"), Err(GrammarError::Missing("cid")));
        assert_eq!(vsock("cid=3"), Err(GrammarError::Missing("socket")));
        assert!(vsock("cid=4294967296,socket=/s").unwrap_err().to_string().contains("32 bits"));
    }

    #[test]
    fn a_tpm_has_a_socket() {
        assert_eq!(tpm("socket=/s"), Ok(TpmConfig { socket: "/s".into() }));
        assert_eq!(tpm(""), Err(GrammarError::Missing("socket")));
    }
}
