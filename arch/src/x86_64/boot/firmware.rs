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
//! after reset. [`kind`] tells the two apart.

use super::{BootError, ReadAt, elf};
use crate::x86_64::layout::{self, Range};

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
/// The image is empty, cannot be read, or is data that does not fit below 4 GiB.
pub fn kind(image: &dyn ReadAt) -> Result<FirmwareKind, BootError> {
    if image.size() == 0 {
        return Err(BootError::Empty);
    }
    if elf::is_elf(image)? {
        return Ok(FirmwareKind::Pvh);
    }
    Ok(FirmwareKind::Flash(layout::flash(image.size())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let elf = [&b"\x7fELF"[..], &[0; 100]].concat();
        assert_eq!(kind(&elf).unwrap(), FirmwareKind::Pvh);
        let data = vec![0; 0x2_0000];
        assert_eq!(kind(&data).unwrap(), FirmwareKind::Flash(Range { start: 0xfffe_0000, size: 0x2_0000 }));
        assert!(matches!(kind(&vec![]), Err(BootError::Empty)));
        assert_eq!(
            kind(&vec![0; 100]).unwrap_err().to_string(),
            "firmware image of 0x64 bytes: expected a multiple of 4096 up to 0x1000000"
        );
    }
}
