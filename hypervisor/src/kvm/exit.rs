//! The structures in which KVM describes an exit (KVM API 5), and the text for those that end a VM.

use std::{
    fmt::Write,
    mem::{offset_of, size_of},
};

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run__bindgen_ty_1__bindgen_ty_4,
    kvm_run__bindgen_ty_1__bindgen_ty_6, kvm_run__bindgen_ty_1__bindgen_ty_13,
};
use zerocopy::FromBytes;

/// `KVM_EXIT_IO`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(super) struct Io {
    pub(super) direction: u8,
    /// Bytes of one access: 1, 2 or 4.
    pub(super) size: u8,
    pub(super) port: u16,
    /// Accesses: more than one for string I/O.
    pub(super) count: u32,
    /// Where in the run page the data is.
    pub(super) data_offset: u64,
}

/// `KVM_EXIT_MMIO`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(super) struct Mmio {
    pub(super) address: u64,
    pub(super) data: [u8; 8],
    pub(super) len: u32,
    pub(super) is_write: u8,
    _padding: [u8; 3],
}

/// `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(super) struct InternalError {
    suberror: u32,
    count: u32,
    data: [u64; 16],
}

/// `KVM_EXIT_FAIL_ENTRY`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(super) struct FailEntry {
    pub(super) reason: u64,
    pub(super) cpu: u32,
    _padding: u32,
}

/// `KVM_EXIT_SYSTEM_EVENT`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(super) struct SystemEvent {
    pub(super) kind: u32,
    pub(super) count: u32,
    pub(super) data: [u64; 16],
}

/// `KVM_EXIT_MEMORY_FAULT`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(super) struct MemoryFault {
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) size: u64,
}

// Ours must lie where KVM's do.
const _: () = {
    type KvmIo = kvm_run__bindgen_ty_1__bindgen_ty_4;
    type KvmMmio = kvm_run__bindgen_ty_1__bindgen_ty_6;
    type KvmInternal = kvm_run__bindgen_ty_1__bindgen_ty_13;
    assert!(size_of::<Io>() == size_of::<KvmIo>());
    assert!(offset_of!(Io, data_offset) == offset_of!(KvmIo, data_offset));
    assert!(size_of::<Mmio>() == size_of::<KvmMmio>());
    assert!(offset_of!(Mmio, is_write) == offset_of!(KvmMmio, is_write));
    assert!(size_of::<InternalError>() == size_of::<KvmInternal>());
    assert!(offset_of!(InternalError, data) == offset_of!(KvmInternal, data));
};

impl InternalError {
    /// What went wrong, with the bytes of the instruction where KVM tells them.
    pub(super) fn describe(&self) -> String {
        let mut text = match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".to_owned(),
            KVM_INTERNAL_ERROR_SIMUL_EX => "KVM met simultaneous exceptions".to_owned(),
            KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM cannot deliver an event".to_owned(),
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "KVM met an unexpected exit".to_owned(),
            other => format!("KVM internal error {other}"),
        };
        let count = usize::try_from(self.count).unwrap_or(usize::MAX).min(self.data.len());
        if let Some(instruction) = self.instruction() {
            text.push_str(": instruction");
            for byte in instruction {
                let _ = write!(text, " {byte:02x}");
            }
        } else if count != 0 && self.suberror != KVM_INTERNAL_ERROR_EMULATION {
            text.push_str(": data");
            for word in &self.data[..count] {
                let _ = write!(text, " {word:#x}");
            }
        }
        text
    }

    /// For a failed emulation: flags, then a length byte and up to 15 bytes of the instruction
    /// (`emulation_failure` in the KVM API).
    fn instruction(&self) -> Option<Vec<u8>> {
        if self.suberror != KVM_INTERNAL_ERROR_EMULATION || self.count < 3 {
            return None;
        }
        let [flags, first, second, ..] = self.data;
        if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
            return None;
        }
        let mut bytes = [first.to_le_bytes(), second.to_le_bytes()].concat();
        let len = usize::from(bytes.remove(0)).min(bytes.len());
        bytes.truncate(len);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(flags: u64, count: u32, words: [u64; 2]) -> InternalError {
        let mut data = [0; 16];
        data[..3].copy_from_slice(&[flags, words[0], words[1]]);
        InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, count, data }
    }

    #[test]
    fn instruction_bytes_are_told_when_given() {
        let given = failed(1, 4, [u64::from_le_bytes([3, 0x0f, 0xc7, 0x0e, 0xff, 0xff, 0xff, 0xff]), 0]);
        assert_eq!(given.describe(), "KVM cannot emulate an instruction: instruction 0f c7 0e");
        assert_eq!(failed(0, 4, [3, 0]).describe(), "KVM cannot emulate an instruction");
        assert_eq!(failed(1, 1, [3, 0]).describe(), "KVM cannot emulate an instruction");
    }

    #[test]
    fn lengths_from_the_kernel_are_bounded_all_the_same() {
        assert_eq!(failed(1, u32::MAX, [0xff, 0]).instruction().unwrap().len(), 15);
        let error = InternalError { suberror: 3, count: u32::MAX, data: [1; 16] };
        assert_eq!(error.describe().matches("0x1").count(), 16);
    }
}
