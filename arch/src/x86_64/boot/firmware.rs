//! Firmware images.
//!
//! OVMF built for Cloud Hypervisor (`CLOUDHV.fd`, since edk2-stable202205) is an ELF file: one load
//! segment, the whole 4 MiB image to 1 MiB, and a Xen note with its 32-bit entry point. It is booted
//! with [`plan`](super::plan) like any PVH kernel and finds everything through the start info: RAM
//! in the PVH memory map (it takes all of 1 MiB to the highest RAM address below 4 GiB for RAM),
//! the ACPI tables behind the root pointer (it installs every table of the XSDT, and the DSDT that
//! the FADT's 64-bit field names), SMBIOS at 0xf_0000. It takes no command line and no initramfs.
//! It insists on host bridge device id 0x0d57 at 00:00.0.
//!
//! Older builds, and those for confidential guests, are data only: they are mapped read-only so
//! that they end at 4 GiB, and the boot CPU starts at the reset vector, with the registers it has
//! after reset ([`registers::reset`](super::registers::reset)). [`kind`] tells the two apart.

use super::{BootError, ReadAt, bzimage, elf, image};
use crate::x86_64::layout::{self, Range};

/// Bytes from the reset vector to the end of the image.
const RESET_VECTOR_SIZE: u64 = 16;

/// How a firmware image is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwareKind {
    /// An ELF file, booted with [`plan`](super::plan).
    Pvh,
    /// Mapped here, read-only; the boot CPU keeps its reset state.
    Flash(Range),
}

/// Finds out how a firmware image is started.
///
/// # Errors
/// The image is empty, cannot be read, is a Linux kernel, or is data that does not fit below 4 GiB or has nothing where
/// the processor would begin.
pub fn kind(image: &dyn ReadAt) -> Result<FirmwareKind, BootError> {
    if image.size() == 0 {
        return Err(BootError::Empty);
    }
    if elf::is_elf(image)? {
        return Ok(FirmwareKind::Pvh);
    }
    if bzimage::is_bzimage(image)? {
        return Err(BootError::NotFirmware { why: "it is a Linux bzImage, which is a kernel".into() });
    }
    let range = layout::flash(image.size())?;
    let first = image::read(image, range.size - RESET_VECTOR_SIZE, RESET_VECTOR_SIZE)?;
    // What erased flash and holes of files are full of. Anything else may be code.
    for blank in [0, 0xff] {
        if first.iter().all(|byte| *byte == blank) {
            let why = format!(
                "neither an ELF file nor flash: its last {RESET_VECTOR_SIZE} bytes, where a processor begins, are all {blank:#04x}"
            );
            return Err(BootError::NotFirmware { why });
        }
    }
    Ok(FirmwareKind::Flash(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let elf = [&b"\x7fELF"[..], &[0; 100]].concat();
        assert_eq!(kind(&elf).unwrap(), FirmwareKind::Pvh);
        let mut data = vec![0; 0x2_0000];
        data[0x1_fff0] = 0xf4;
        assert_eq!(kind(&data).unwrap(), FirmwareKind::Flash(Range { start: 0xfffe_0000, size: 0x2_0000 }));
    }

    #[test]
    fn what_is_no_firmware_is_told_why() {
        assert!(matches!(kind(&vec![]), Err(BootError::Empty)));
        let said = |image: Vec<u8>| kind(&image).unwrap_err().to_string();
        let sizes = "expected a multiple of 4096 up to 0x1000000";
        assert_eq!(said(vec![0x90; 100]), format!("firmware image of 0x64 bytes: {sizes}"));
        assert_eq!(said(vec![0x90; 0x100_1000]), format!("firmware image of 0x1001000 bytes: {sizes}"));
        for blank in [0, 0xff] {
            let said = said(vec![blank; 0x1000]);
            assert!(
                said.starts_with("no firmware: ") && said.ends_with(&format!("are all {blank:#04x}")),
                "{said}"
            );
        }
        let mut kernel = vec![0x90; 0x1000];
        kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(said(kernel), "no firmware: it is a Linux bzImage, which is a kernel");
    }
}
