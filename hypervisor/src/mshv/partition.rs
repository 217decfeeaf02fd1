//! What a new partition can do: the host's features without those that this back end cannot save,
//! restore or answer for.
//!
//! Pure: from the host's properties to the argument of the creation call. Bit positions are those
//! of HV_PARTITION_PROCESSOR_FEATURES, HV_PARTITION_PROCESSOR_XSAVE_FEATURES and
//! HV_PARTITION_SYNTHETIC_PROCESSOR_FEATURES (Hyper-V TLFS, "Partition properties").

use mshv_bindings::{
    MSHV_NUM_CPU_FEATURES_BANKS, MSHV_PT_BIT_CPU_AND_XSAVE_FEATURES, MSHV_PT_BIT_GPA_SUPER_PAGES,
    MSHV_PT_BIT_LAPIC, MSHV_PT_BIT_X2APIC, MSHV_PT_ISOLATION_NONE, mshv_create_partition_v2,
};

/// Bit 63 of the first bank is reserved, as are 61 and 62 of the second. A newer hypervisor may
/// give them a meaning that this back end does not know.
const RESERVED: [u64; 2] = [1 << 63, 1 << 61 | 1 << 62];

/// Bit 70: nested virtualization, whose state this back end cannot save.
const NESTED: [u64; 2] = [0, 1 << (70 - 64)];

/// XSAVE, XSAVEOPT, AVX, AVX2, FMA, XSAVEC, XSAVES: what fits the 4 KiB XSAVE area that
/// mshv-ioctls moves, and is known to be saved whole.
const XSAVE: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 11 | 1 << 12;

/// The synthetic features a Linux guest uses: presence and identification (0, 1), reference counter
/// (3), SynIC (4), synthetic timers (5), APIC registers (6), hypercalls (7), VP index (8), reference
/// TSC (9), guest idle (10), frequencies (11), direct timers (22), TLB flush (25), cluster IPI (26),
/// VP registers (38).
const SYNTHETIC: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 10
    | 1 << 11
    | 1 << 22
    | 1 << 25
    | 1 << 26
    | 1 << 38;

/// Features of a processor, in three words of the hypervisor's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Two banks of instruction-set features.
    pub processor: [u64; 2],
    /// Features of the extended state.
    pub xsave: u64,
    /// The hypervisor's own.
    pub synthetic: u64,
}

impl Features {
    /// What a guest gets on a host with `host`. `assignable` are the synthetic features that the
    /// hypervisor lets a partition be given, where it says.
    pub fn for_guest(host: &Self, assignable: Option<u64>) -> Self {
        let [first, second] = host.processor;
        Self {
            processor: [first & !RESERVED[0] & !NESTED[0], second & !RESERVED[1] & !NESTED[1]],
            xsave: host.xsave & XSAVE,
            synthetic: SYNTHETIC & assignable.unwrap_or(u64::MAX),
        }
    }

    /// Whether the feature with this number (0 to 127) is there.
    pub fn has(&self, number: u32) -> bool {
        let [first, second] = self.processor;
        (u128::from(first) | u128::from(second) << 64) >> number.min(127) & 1 != 0
    }

    /// Whether the extended-state feature with this number (0 to 63) is there.
    pub fn has_xsave(&self, number: u32) -> bool {
        self.xsave >> number.min(63) & 1 != 0
    }

    /// The argument of the creation call, which lists what is *disabled*.
    pub fn creation_arguments(&self) -> mshv_create_partition_v2 {
        let flags = [
            MSHV_PT_BIT_LAPIC,
            MSHV_PT_BIT_X2APIC,
            MSHV_PT_BIT_GPA_SUPER_PAGES,
            MSHV_PT_BIT_CPU_AND_XSAVE_FEATURES,
        ];
        let [first, second] = self.processor;
        mshv_create_partition_v2 {
            pt_flags: flags.iter().fold(0, |all, bit| all | 1 << bit),
            pt_isolation: u64::from(MSHV_PT_ISOLATION_NONE),
            pt_num_cpu_fbanks: u16::try_from(MSHV_NUM_CPU_FEATURES_BANKS).unwrap_or(2),
            pt_cpu_fbanks: [!first, !second],
            pt_disabled_xsave: !self.xsave,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use mshv_bindings::{
        hv_partition_processor_features__bindgen_ty_1, hv_partition_processor_xsave_features__bindgen_ty_1,
        hv_partition_synthetic_processor_features__bindgen_ty_1,
    };

    use super::*;

    const ALL: Features = Features { processor: [u64::MAX; 2], xsave: u64::MAX, synthetic: u64::MAX };

    #[test]
    fn the_masks_are_the_named_bits() {
        let mut features = hv_partition_processor_features__bindgen_ty_1::default();
        features.set_reserved_bank0(1);
        features.set_reserved0(1);
        features.set_reserved1(1);
        assert_eq!(RESERVED, [features._bitfield_1.get(0, 64), features._bitfield_1.get(64, 64)]);

        let mut features = hv_partition_processor_features__bindgen_ty_1::default();
        features.set_nested_virt_support(1);
        assert_eq!(NESTED, [features._bitfield_1.get(0, 64), features._bitfield_1.get(64, 64)]);

        let mut features = hv_partition_processor_xsave_features__bindgen_ty_1::default();
        features.set_xsave_support(1);
        features.set_xsaveopt_support(1);
        features.set_avx_support(1);
        features.set_avx2_support(1);
        features.set_fma_support(1);
        features.set_xsave_comp_support(1);
        features.set_xsave_supervisor_support(1);
        assert_eq!(XSAVE, features._bitfield_1.get(0, 64));

        let mut features = hv_partition_synthetic_processor_features__bindgen_ty_1::default();
        features.set_hypervisor_present(1);
        features.set_hv1(1);
        features.set_access_partition_reference_counter(1);
        features.set_access_synic_regs(1);
        features.set_access_synthetic_timer_regs(1);
        features.set_access_intr_ctrl_regs(1);
        features.set_access_hypercall_regs(1);
        features.set_access_vp_index(1);
        features.set_access_partition_reference_tsc(1);
        features.set_access_guest_idle_reg(1);
        features.set_access_frequency_regs(1);
        features.set_direct_synthetic_timers(1);
        features.set_tb_flush_hypercalls(1);
        features.set_synthetic_cluster_ipi(1);
        features.set_access_vp_regs(1);
        assert_eq!(SYNTHETIC, features._bitfield_1.get(0, 64));
    }

    #[test]
    fn a_guest_gets_no_more_than_the_host_has() {
        let host = Features { processor: [0b101, 0], xsave: 0b1, synthetic: 0 };
        let guest = Features::for_guest(&host, None);
        assert_eq!((guest.processor, guest.xsave), ([0b101, 0], 1));
        assert!(guest.has(0) && !guest.has(1) && guest.has(2) && !guest.has(127));
    }

    #[test]
    fn reserved_and_nested_are_left_out() {
        let guest = Features::for_guest(&ALL, None);
        assert!(!guest.has(63) && !guest.has(70) && !guest.has(125) && !guest.has(126));
        assert!(guest.has(62) && guest.has(69) && guest.has(71) && guest.has(127));
        assert!(guest.has_xsave(12) && !guest.has_xsave(6), "AVX-512 is not saved");
        assert_eq!(Features::for_guest(&ALL, Some(0b11)).synthetic, 0b11);
    }

    #[test]
    fn the_call_lists_what_is_disabled() {
        let arguments = Features::for_guest(&ALL, None).creation_arguments();
        let (flags, banks, xsave) =
            (arguments.pt_flags, arguments.pt_cpu_fbanks, arguments.pt_disabled_xsave);
        assert_eq!(flags, 0b1111, "local APIC, x2APIC, large pages, features; neither nested nor SMT");
        assert_eq!(banks, [1 << 63, 1 << 61 | 1 << 62 | 1 << 6]);
        assert_eq!(xsave, !XSAVE);
        assert_eq!({ arguments.pt_num_cpu_fbanks }, 2);
    }
}
