//! Whether this user can have the host's KVM, and what to do when not.

use std::{fs::OpenOptions, io::ErrorKind};

const DEVICE: &str = "/dev/kvm";

const MISSING: &str = "\
Load the module (`modprobe kvm_intel` or `modprobe kvm_amd`); if it refuses, switch on virtualization in the
firmware set-up; in a virtual machine, ask its host for nested virtualization; in a container, pass the
device in (`--device /dev/kvm`).";

const FORBIDDEN: &str = "\
Become a member of its group (`sudo usermod -aG kvm $USER`, then log in again), or run as root.";

/// Opens the device for reading and writing, as the monitor does.
///
/// # Errors
/// It cannot be opened: the message says what is missing and how to get it.
pub fn check() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => {
            let advice = match error.kind() {
                ErrorKind::PermissionDenied => FORBIDDEN,
                _ => MISSING,
            };
            Err(format!("{DEVICE} cannot be opened: {error}\n{advice}"))
        }
    }
}
