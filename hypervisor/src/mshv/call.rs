//! The requests that mshv-ioctls has not, or has only for an `EventFd` of its own, and the way
//! from its errors to ours.
//!
//! Each function is one system call, and sound for any argument: the kernel checks values, and
//! what it reads or writes through a pointer is sized here.
#![expect(unsafe_code, reason = "ioctl")]

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use mshv_bindings::{
    HVCALL_GET_PARTITION_PROPERTY_EX, HVCALL_REGISTER_INTERCEPT_RESULT, HvError,
    hv_input_get_partition_property_ex, hv_input_register_intercept_result,
    hv_intercept_type_HV_INTERCEPT_TYPE_X64_CPUID, hv_partition_property_ex,
    hv_register_intercept_result_parameters, hv_register_x64_cpuid_result_parameters, make_args,
    mshv_root_hvcall, mshv_user_ioeventfd, mshv_user_irqfd,
};
use mshv_ioctls::{
    MSHV_IOEVENTFD, MSHV_IRQFD, MSHV_ROOT_HVCALL, MSHV_SET_MSI_ROUTING, MshvError, VcpuFd, VmFd,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

use crate::HypervisorError;

/// How often a hypercall is made again after memory was deposited for it. The driver deposits one
/// page at a time; a call that still has not enough after so many will never have.
const DEPOSITS: u32 = 64;

/// An error of ours out of one of mshv-ioctls, whose kinds carry an errno or a hypercall status.
pub(super) fn failed(
    operation: &'static str,
    detail: impl Into<String>,
    error: MshvError,
) -> HypervisorError {
    HypervisorError::Call { operation, detail: detail.into(), source: io_error(error) }
}

/// The same for a system call made here.
pub(super) fn refused(
    operation: &'static str,
    detail: impl Into<String>,
    source: io::Error,
) -> HypervisorError {
    HypervisorError::Call { operation, detail: detail.into(), source }
}

/// A value that cannot be used.
pub(super) fn invalid(what: &'static str, detail: impl Into<String>) -> HypervisorError {
    HypervisorError::Invalid { what, detail: detail.into() }
}

pub(super) fn io_error(error: MshvError) -> io::Error {
    match error {
        MshvError::Errno(errno) => io::Error::from_raw_os_error(errno.errno()),
        status @ MshvError::Hypercall { .. } => io::Error::other(status),
    }
}

/// Makes a call again for as long as it fails for want of memory, which the driver has deposited
/// by the time it says so (`EAGAIN`).
pub(super) fn with_deposits<T>(mut call: impl FnMut() -> Result<T, MshvError>) -> Result<T, MshvError> {
    let mut result = call();
    for _ in 0..DEPOSITS {
        let wanting =
            matches!(result, Err(MshvError::Hypercall { status: Some(HvError::InsufficientMemory), .. }));
        if !wanting {
            break;
        }
        result = call();
    }
    result
}

/// `MSHV_IOEVENTFD`, which mshv-ioctls cannot say a width without a value for.
pub(super) fn ioeventfd(vm: &VmFd, request: &mshv_user_ioeventfd) -> io::Result<()> {
    // SAFETY: the kernel reads one request and takes its own hold of the eventfd.
    done(unsafe { ioctl_with_ref(vm, MSHV_IOEVENTFD(), request) })
}

/// `MSHV_IRQFD`.
pub(super) fn irqfd(vm: &VmFd, request: &mshv_user_irqfd) -> io::Result<()> {
    // SAFETY: the kernel reads one request and takes its own hold of the eventfds.
    done(unsafe { ioctl_with_ref(vm, MSHV_IRQFD(), request) })
}

/// `MSHV_SET_MSI_ROUTING` with a table as [`routing_table`](super::wiring::routing_table) makes it.
///
/// # Panics
/// The first word is not the number of entries that follow: our own mistake, which the kernel would
/// answer by reading past the end.
pub(super) fn set_msi_routing(vm: &VmFd, table: &[u32]) -> io::Result<()> {
    let entries = table.first().map_or(0, |count| *count as usize);
    assert_eq!(table.len(), 2 + 4 * entries, "a routing table of {entries} entries");
    // SAFETY: the kernel reads two words and as many entries of four as the first word says, which
    // was compared with the length.
    done(unsafe { ioctl_with_ptr(vm, MSHV_SET_MSI_ROUTING(), table.as_ptr()) })
}

/// HvCallRegisterInterceptResult for CPUID: what the guest reads from one leaf.
pub(super) fn register_cpuid_result(
    vcpu: &VcpuFd,
    vp_index: u32,
    cpuid: hv_register_x64_cpuid_result_parameters,
) -> Result<(), MshvError> {
    let input = hv_input_register_intercept_result {
        vp_index,
        intercept_type: hv_intercept_type_HV_INTERCEPT_TYPE_X64_CPUID,
        parameters: hv_register_intercept_result_parameters { cpuid },
        ..Default::default() // the driver fills in the partition
    };
    with_deposits(|| {
        let mut args = make_args!(HVCALL_REGISTER_INTERCEPT_RESULT, input);
        vcpu.hvcall(&mut args)
    })
}

/// One bank of a property of the host's own partition that is longer than a word: HvCallGetPartitionPropertyEx.
pub(super) fn host_property_bank(device: BorrowedFd<'_>, property_code: u32) -> Result<u64, MshvError> {
    let input = hv_input_get_partition_property_ex { property_code, ..Default::default() };
    let mut output = Box::new(hv_partition_property_ex::default());
    let mut args = make_args!(HVCALL_GET_PARTITION_PROPERTY_EX, input, *output);
    // SAFETY: the kernel reads and writes as many bytes at the two pointers as the request says,
    // which is the size of what they point at.
    let result = unsafe { ioctl_with_mut_ref(&device, MSHV_ROOT_HVCALL(), &mut args) };
    if result != 0 {
        return Err(MshvError::from_hvcall(vmm_sys_util::errno::Error::last(), args));
    }
    // SAFETY: every byte pattern is an array of bytes.
    let bytes = unsafe { output.buffer };
    // A count of banks and three reserved half-words come first.
    let bank = bytes.get(8..16).and_then(|bank| bank.try_into().ok()).map_or(0, u64::from_le_bytes);
    Ok(bank)
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The raw number of a descriptor, for a request that the kernel reads it from.
pub(super) fn raw(fd: BorrowedFd<'_>) -> i32 {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTING: MshvError =
        MshvError::Hypercall { code: 1, status_raw: 0xb, status: Some(HvError::InsufficientMemory) };

    #[test]
    fn a_call_short_of_memory_is_made_again() {
        let mut left = 3;
        let result = with_deposits(|| {
            left -= 1;
            if left == 0 { Ok(7) } else { Err(WANTING) }
        });
        assert_eq!(result, Ok(7));
    }

    #[test]
    fn it_is_not_made_for_ever_nor_for_other_errors() {
        let mut calls = 0;
        let result: Result<(), _> = with_deposits(|| {
            calls += 1;
            Err(WANTING)
        });
        assert_eq!((result, calls), (Err(WANTING), 1 + DEPOSITS));

        let mut calls = 0;
        let result: Result<(), _> = with_deposits(|| {
            calls += 1;
            Err(libc::EINVAL.into())
        });
        assert_eq!((result, calls), (Err(libc::EINVAL.into()), 1));
    }

    #[test]
    fn errors_keep_their_reason() {
        let errno = failed("create", "partition", libc::EACCES.into());
        let HypervisorError::Call { source, .. } = &errno else { panic!("{errno}") };
        assert_eq!(source.raw_os_error(), Some(libc::EACCES));
        let status = failed("set", "registers of vCPU 1", WANTING);
        let HypervisorError::Call { source, .. } = &status else { panic!("{status}") };
        assert!(source.to_string().contains("InsufficientMemory"), "{source}");
        assert_eq!(status.to_string(), "set registers of vCPU 1");
    }
}
