//! The requests that kvm-ioctls has not, or has only for an `EventFd` that it can borrow whole.
//!
//! Each function is one system call, and sound for any argument: the kernel checks values, and what
//! it reads or writes through a pointer is sized here.
#![expect(unsafe_code, reason = "ioctl")]

use std::{
    ffi::{c_int, c_uint},
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_irqfd, kvm_userspace_memory_region,
    kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::{
    ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_ptr, ioctl_with_ref},
    ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr,
};

use crate::{DoorbellSpec, IoSpace, Irqfd};

/// Requests by number, as in `include/uapi/linux/kvm.h`.
mod number {
    use super::*;

    ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
    ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
    ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
    ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
    ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `KVM_SET_USER_MEMORY_REGION` (KVM API 4.35).
pub(super) fn set_memory_region(vm: &VmFd, region: kvm_userspace_memory_region) -> io::Result<()> {
    // SAFETY: KVM reaches guest memory through this process's page tables, with its checks: a range
    // that is not mapped faults. That the range stays what it was is the contract of
    // `WiringOps::set_slot`.
    unsafe { vm.set_user_memory_region(region) }.map_err(Into::into)
}

/// `KVM_IOEVENTFD` (KVM API 4.59).
pub(super) fn ioeventfd(
    vm: &VmFd,
    doorbell: &DoorbellSpec,
    event: BorrowedFd<'_>,
    add: bool,
) -> io::Result<()> {
    let mut flags = 0;
    if doorbell.data_match.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    if doorbell.space == IoSpace::Pio {
        flags |= 1 << kvm_ioeventfd_flag_nr_pio;
    }
    if !add {
        flags |= 1 << kvm_ioeventfd_flag_nr_deassign;
    }
    let request = kvm_ioeventfd {
        datamatch: doorbell.data_match.unwrap_or(0),
        addr: doorbell.address,
        len: doorbell.width.into(),
        fd: event.as_raw_fd(),
        flags,
        pad: [0; 36],
    };
    // SAFETY: the kernel reads one `kvm_ioeventfd` and takes its own hold of the eventfd.
    done(unsafe { ioctl_with_ref(vm, number::KVM_IOEVENTFD(), &request) })
}

/// `KVM_IRQFD` (KVM API 4.75).
pub(super) fn irqfd(vm: &VmFd, irqfd: &Irqfd<'_>, add: bool) -> io::Result<()> {
    let mut flags = if add { 0 } else { KVM_IRQFD_FLAG_DEASSIGN };
    let mut resample = 0;
    // KVM refuses the two flags together: the eventfd alone names what goes.
    if let (Some(fd), true) = (irqfd.resample, add) {
        flags |= KVM_IRQFD_FLAG_RESAMPLE;
        resample = fd.as_raw_fd().cast_unsigned();
    }
    let request = kvm_irqfd {
        fd: irqfd.event.as_raw_fd().cast_unsigned(),
        gsi: irqfd.gsi,
        flags,
        resamplefd: resample,
        pad: [0; 16],
    };
    // SAFETY: the kernel reads one `kvm_irqfd` and takes its own hold of the eventfds.
    done(unsafe { ioctl_with_ref(vm, number::KVM_IRQFD(), &request) })
}

/// `KVM_CLEAR_DIRTY_LOG` (KVM API 4.117): pages whose bit is set are protected again.
///
/// `first_page` is a multiple of 64, and `pages` too, or ends with the slot.
pub(super) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    bitmap: &[u64],
) -> io::Result<()> {
    if bitmap.len().saturating_mul(64) < usize::try_from(pages).unwrap_or(usize::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let request = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads one request and a bit for each page, which `bitmap` holds.
    done(unsafe { ioctl_with_ref(vm, number::KVM_CLEAR_DIRTY_LOG(), &request) })
}

/// `KVM_RESET_DIRTY_RINGS` (KVM API 4.135): harvested entries may be used again.
pub(super) fn reset_dirty_rings(vm: &VmFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    done(unsafe { ioctl(vm, number::KVM_RESET_DIRTY_RINGS()) })
}

/// `KVM_GET_XSAVE` or, beyond 4 KiB, `KVM_GET_XSAVE2` (KVM API 4.44, 4.134). `size` is what
/// `KVM_CAP_XSAVE2` says, at least 4096.
pub(super) fn get_xsave(vcpu: &VcpuFd, size: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; xsave_len(size)];
    let request =
        if bytes.len() > size_of::<kvm_xsave>() { number::KVM_GET_XSAVE2() } else { number::KVM_GET_XSAVE() };
    // SAFETY: the kernel writes `size` bytes at most for the second request, 4096 for the first, and
    // the buffer has as many.
    done(unsafe { ioctl_with_mut_ptr(vcpu, request, bytes.as_mut_ptr()) })?;
    Ok(bytes)
}

/// `KVM_SET_XSAVE` (KVM API 4.45). `size` as in [`get_xsave`]; shorter content is filled with zeros.
pub(super) fn set_xsave(vcpu: &VcpuFd, size: u32, content: &[u8]) -> io::Result<()> {
    let mut bytes = content.to_vec();
    bytes.resize(xsave_len(size).max(content.len()), 0);
    // SAFETY: the kernel reads `size` bytes at most, and the buffer has as many.
    done(unsafe { ioctl_with_ptr(vcpu, number::KVM_SET_XSAVE(), bytes.as_ptr()) })
}

fn xsave_len(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).max(size_of::<kvm_xsave>())
}

const _: () = assert!(size_of::<kvm_xsave>() == 4096 && size_of::<c_uint>() == 4);
