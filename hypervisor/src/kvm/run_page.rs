//! The page through which KVM says why a vCPU came back (KVM API 5, `struct kvm_run`).
//!
//! One vCPU owns the page and reads it between two runs. Other threads touch a single byte of it,
//! `immediate_exit`, and only through [`ExitRequest`]. KVM looks at that byte when a run begins and
//! comes back at once if it is not 0, after it has finished an access that was answered; so its bits
//! are ours to name.
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::AsRawFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering},
    },
};

use kvm_bindings::{kvm_run, kvm_run__bindgen_ty_1};
use zerocopy::FromBytes;

use super::mapping::Mapping;

/// Another thread wants the vCPU back.
pub(super) const KICKED: u8 = 1 << 0;
/// The vCPU's own thread wants pending accesses finished and nothing run.
pub(super) const SETTLING: u8 = 1 << 1;

const EXIT_DATA: usize = offset_of!(kvm_run, __bindgen_anon_1);
const EXIT_DATA_SIZE: usize = size_of::<kvm_run__bindgen_ty_1>();
const IMMEDIATE_EXIT: usize = offset_of!(kvm_run, immediate_exit);
const EXIT_REASON: usize = offset_of!(kvm_run, exit_reason);
const _: () =
    assert!(IMMEDIATE_EXIT < EXIT_DATA && EXIT_REASON.is_multiple_of(4) && EXIT_DATA.is_multiple_of(8));

/// A vCPU's own view of its run page. Not shared: the vCPU's thread alone has it.
#[derive(Debug)]
pub(super) struct RunPage {
    mapping: Arc<Mapping>,
}

impl RunPage {
    /// Maps the run page of a vCPU's descriptor, `len` bytes as KVM says (KVM API 4.5).
    pub(super) fn map(vcpu: &impl AsRawFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Self { mapping: Arc::new(Mapping::new(vcpu, 0, len)?) })
    }

    /// Why the last run ended.
    pub(super) fn exit_reason(&self) -> u32 {
        self.read(EXIT_REASON)
    }

    /// The part of the page that describes the exit, as the structure that the reason calls for.
    pub(super) fn exit_data<T: FromBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= EXIT_DATA_SIZE && align_of::<T>() <= 8) };
        self.read(EXIT_DATA)
    }

    /// Offset in the page of a field of the exit's structure.
    pub(super) fn exit_field(field: usize) -> usize {
        EXIT_DATA + field
    }

    /// Bytes of the page behind its fixed head: an access's data. Nothing if they are not all there.
    pub(super) fn bytes(&mut self, offset: usize, len: usize) -> Option<&mut [u8]> {
        let end = offset.checked_add(len)?;
        if offset < EXIT_DATA || end > self.mapping.len() {
            return None;
        }
        // SAFETY: the range is inside the mapping (checked above).
        let first = unsafe { self.mapping.start().add(offset) };
        // SAFETY: the range is mapped and initialised; `&mut self` keeps this thread from making a
        // second reference and from entering the kernel's run with it; other threads reach only
        // `immediate_exit`, which is below `EXIT_DATA`.
        Some(unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), len) })
    }

    /// Asks the next run to end at once.
    pub(super) fn request_exit(&self, why: u8) {
        immediate_exit(&self.mapping).fetch_or(why, Ordering::SeqCst);
    }

    /// Takes such a request back.
    pub(super) fn clear_exit(&self, why: u8) {
        immediate_exit(&self.mapping).fetch_and(!why, Ordering::SeqCst);
    }

    /// What another thread may hold: it does not keep the vCPU alive.
    pub(super) fn remote(&self) -> ExitRequest {
        ExitRequest { mapping: Arc::downgrade(&self.mapping) }
    }

    fn read<T: FromBytes>(&self, offset: usize) -> T {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= size_of::<kvm_run>());
        // SAFETY: `map` made sure that a whole `kvm_run` is mapped, and the range is inside it.
        let field = unsafe { self.mapping.start().add(offset) };
        // SAFETY: mapped, aligned, valid for any bytes (`FromBytes`); KVM writes there only during a
        // run, which this thread is not in.
        unsafe { field.cast::<T>().read() }
    }
}

/// The one byte of a run page that other threads write.
#[derive(Clone, Debug)]
pub(super) struct ExitRequest {
    mapping: Weak<Mapping>,
}

impl ExitRequest {
    /// Asks the next run to end at once. Says whether the vCPU is still there.
    pub(super) fn request(&self, why: u8) -> bool {
        let Some(mapping) = self.mapping.upgrade() else { return false };
        immediate_exit(&mapping).fetch_or(why, Ordering::SeqCst);
        true
    }
}

fn immediate_exit(mapping: &Mapping) -> &AtomicU8 {
    // SAFETY: the byte is in the head of the page, which is mapped as long as `mapping` lives.
    let byte = unsafe { mapping.start().add(IMMEDIATE_EXIT) };
    // SAFETY: mapped for the lifetime of the reference; in this process it is reached by this
    // function alone, so every access to it is atomic. The kernel reads it once.
    unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
}
