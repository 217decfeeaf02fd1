//! Which format an image file has, by its own marks. What bears none is raw.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes and nothing else.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// Virtual Hard Disk of fixed size: raw with a footer.
    FixedVhd,
    /// Virtual Hard Disk that grows or differs.
    DynamicVhd,
    /// Virtual Hard Disk v2.
    Vhdx,
    /// VMware, a text descriptor or a sparse extent.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// QEMU enhanced disk.
    Qed,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::FixedVhd => "fixed VHD",
            Self::DynamicVhd => "dynamic VHD",
            Self::Vhdx => "VHDX",
            Self::Vmdk => "VMDK",
            Self::Vdi => "VDI",
            Self::Qed => "QED",
        })
    }
}

/// Bytes of the beginning that are looked at. A multiple of every block size, for files opened for direct
/// I/O.
const HEAD: usize = 4096;
/// Size of a VHD footer.
const FOOTER: usize = 512;
/// Offset of the disk type in a VHD footer, and its value for a fixed disk.
const VHD_TYPE: usize = 60;
const VHD_FIXED: u32 = 2;

/// Looks at the beginning and the end of `file`, which has `size` bytes and was not opened for direct I/O.
///
/// # Errors
/// It cannot be read.
pub fn probe(file: &File, size: u64) -> io::Result<ImageFormat> {
    let mut head = [0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
        match file.read_at(head.get_mut(filled..).unwrap_or_default(), filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let head = head.get(..filled).unwrap_or_default();
    let marks: [(usize, &[u8], ImageFormat); 7] = [
        (0, b"QFI\xfb", ImageFormat::Qcow2),
        (0, b"vhdxfile", ImageFormat::Vhdx),
        (0, b"KDMV", ImageFormat::Vmdk),
        (0, b"# Disk DescriptorFile", ImageFormat::Vmdk),
        (0, b"QED\0", ImageFormat::Qed),
        (64, b"\x7f\x10\xda\xbe", ImageFormat::Vdi),
        // A copy of the footer comes first in all but fixed disks.
        (0, b"conectix", ImageFormat::DynamicVhd),
    ];
    for (at, mark, format) in marks {
        if head.get(at..).is_some_and(|rest| rest.starts_with(mark)) {
            return Ok(format);
        }
    }
    if let Some(at) = size.checked_sub(FOOTER as u64) {
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, at)?;
        if footer.starts_with(b"conectix") {
            let kind = footer.get(VHD_TYPE..VHD_TYPE + 4).and_then(|bytes| bytes.try_into().ok());
            let fixed = kind.map(u32::from_be_bytes) == Some(VHD_FIXED);
            return Ok(if fixed { ImageFormat::FixedVhd } else { ImageFormat::DynamicVhd });
        }
    }
    Ok(ImageFormat::Raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> ImageFormat {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        probe(&file, bytes.len() as u64).unwrap()
    }

    #[test]
    fn formats_are_told_apart() {
        assert_eq!(of(b""), ImageFormat::Raw);
        assert_eq!(of(&[0; 100]), ImageFormat::Raw);
        assert_eq!(of(&[0; 8192]), ImageFormat::Raw);
        assert_eq!(of(b"QFI\xfb\0\0\0\x03"), ImageFormat::Qcow2);
        assert_eq!(of(b"QFI"), ImageFormat::Raw);
        assert_eq!(of(b"vhdxfile"), ImageFormat::Vhdx);
        assert_eq!(of(b"KDMV\x01"), ImageFormat::Vmdk);
        assert_eq!(of(b"# Disk DescriptorFile\nversion=1"), ImageFormat::Vmdk);
        let mut vdi = [0; 1024];
        vdi[64..68].copy_from_slice(&0xbeda_107fu32.to_le_bytes());
        assert_eq!(of(&vdi), ImageFormat::Vdi);
        let mut vhd = [0; 4096];
        vhd[3584..3592].copy_from_slice(b"conectix");
        assert_eq!(of(&vhd), ImageFormat::DynamicVhd);
        vhd[3584 + 63] = 2;
        assert_eq!(of(&vhd), ImageFormat::FixedVhd);
        // A boot sector is no format.
        let mut disk = [0; 4096];
        disk[510] = 0x55;
        disk[511] = 0xaa;
        assert_eq!(of(&disk), ImageFormat::Raw);
    }
}
