//! Opening the device, and what it says of itself.

use std::{error::Error, path::Path};

use super::host;
use crate::{HypervisorError, HypervisorKind, VmOptions, kvm::open_at};

#[test]
fn a_missing_device_is_named() {
    let error = open_at(Path::new("/dev/there-is-no-such-device")).err().unwrap();
    assert!(matches!(error, HypervisorError::NoDevice { .. }), "{error}");
    assert!(error.to_string().contains("/dev/there-is-no-such-device"));
}

#[test]
fn a_device_that_cannot_be_opened_is_named_with_the_reason() {
    let error = open_at(Path::new("/dev")).err().unwrap();
    assert_eq!(error.to_string(), "cannot open hypervisor device /dev");
    assert!(error.source().unwrap().to_string().contains("directory"));
}

#[test]
fn another_device_is_not_taken_for_kvm() {
    let error = open_at(Path::new("/dev/null")).err().unwrap();
    assert!(matches!(error, HypervisorError::Open { .. }), "{error}");
}

#[test]
fn the_host_tells_its_limits() {
    let Some(host) = host() else { return };
    assert_eq!(host.kind(), HypervisorKind::Kvm);
    let caps = host.capabilities();
    assert!(caps.max_vcpus >= 1 && caps.max_vcpu_id >= caps.max_vcpus);
    assert!(caps.max_slots >= 32 && caps.max_gsis >= 24);
    assert!(caps.immediate_exit);
    let cpuid = host.supported_cpuid().unwrap();
    assert!(cpuid.iter().any(|entry| entry.leaf == 0 && entry.eax >= 1));
    assert!(cpuid.iter().any(|entry| entry.leaf == 1));
    assert!(cpuid.iter().any(|entry| entry.subleaf_significant));
}

#[test]
fn a_dirty_ring_that_the_host_has_not_is_refused() {
    let Some(host) = host() else { return };
    for entries in [3, u32::MAX, 1 << 31] {
        let error = host.create_vm(&VmOptions { dirty_ring_entries: entries }).err().unwrap();
        assert!(error.to_string().contains("dirty ring"), "{error}");
    }
}
