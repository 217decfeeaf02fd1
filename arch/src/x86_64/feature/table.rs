//! The feature bits by name, and which feature cannot be without which.
//!
//! Bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`.

use super::{
    Register::{Eax, Ebx, Ecx, Edx},
    Word,
};

const fn word(leaf: u32, subleaf: u32, register: super::Register) -> Word {
    Word { leaf, subleaf, register }
}

/// The names of the bits of each register, from bit 0 up. A dash is a bit without a name; a bit
/// with several has them separated by bars.
pub static WORDS: &[(Word, &str)] = &[
    (
        word(1, 0, Edx),
        "fpu vme de pse tsc msr pae mce \
         cx8 apic - sep mtrr pge mca cmov \
         pat pse36 pn clflush - dts acpi mmx \
         fxsr sse sse2 ss ht tm - pbe",
    ),
    (
        word(1, 0, Ecx),
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est \
         tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
         - pcid dca sse4_1 sse4_2 x2apic movbe popcnt \
         tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (word(6, 0, Eax), "- - arat"),
    (
        word(7, 0, Ebx),
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep \
         bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt \
         clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        word(7, 0, Ecx),
        "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 user_shstk \
         gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - \
         la57 - - - - - rdpid - \
         bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc",
    ),
    (
        word(7, 0, Edx),
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - \
         avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu \
         tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 \
         amx_tile amx_int8 spec_ctrl|ibrs|ibpb stibp flush_l1d arch_capabilities core_capabilities ssbd",
    ),
    (
        word(7, 1, Eax),
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 - cmpccxadd \
         - - fzrm fsrs fsrc - - - \
         - fred lkgs wrmsrns - amx_fp16 hreset avx_ifma \
         - - lam",
    ),
    (
        word(7, 1, Edx),
        "- - - - avx_vnni_int8 avx_ne_convert - - \
         amx_complex - avx_vnni_int16 - - - prefetchi - \
         - - - avx10",
    ),
    (word(7, 2, Edx), "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    (word(0xd, 1, Eax), "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (
        word(0x8000_0001, 0, Edx),
        "fpu vme de pse tsc msr pae mce \
         cx8 apic - syscall mtrr pge mca cmov \
         pat pse36 - mp nx - mmxext mmx \
         fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (
        word(0x8000_0001, 0, Ecx),
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse \
         3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core \
         perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    (word(0x8000_0007, 0, Ebx), "overflow_recov succor - smca"),
    (
        word(0x8000_0007, 0, Edx),
        "- - - - - - - - \
         nonstop_tsc",
    ),
    (
        word(0x8000_0008, 0, Ebx),
        "clzero irperf xsaveerptr - rdpru - - - \
         - wbnoinvd - - ibpb - ibrs stibp \
         amd_ibrs_always_on amd_stibp_always_on - - - - - amd_ppin \
         ssbd virt_ssbd amd_ssb_no cppc psfd btc_no",
    ),
    (
        word(0x8000_000a, 0, Edx),
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists \
         - - pausefilter - pfthreshold avic - v_vmsave_vmload \
         vgif - x2avic - v_spec_ctrl - - - \
         - vnmi",
    ),
    (
        word(0x8000_0021, 0, Eax),
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - \
         autoibrs no_smm_ctl_msr - - - - - - \
         - - - - prefetchi - - - \
         - - - sbpb ibpb_brtype srso_no",
    ),
    (
        word(0x4000_0001, 0, Eax),
        "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt \
         - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id \
         kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
         kvm_clocksource_stable",
    ),
];

/// What cannot be without what: a feature, and those that need it.
pub static DEPENDENTS: &[(&str, &str)] = &[
    ("xsave", "osxsave xsaveopt xsavec xgetbv1 xsaves avx mpx pku lwp"),
    ("xsaves", "xfd user_shstk enqcmd arch_lbr"),
    ("xfd", "amx_tile"),
    ("amx_tile", "amx_bf16 amx_int8 amx_fp16 amx_complex"),
    ("pku", "ospke"),
    ("fxsr", "fxsr_opt mmx sse"),
    ("mmx", "mmxext 3dnow"),
    ("3dnow", "3dnowext"),
    ("sse", "sse2 misalignsse"),
    ("sse2", "pni aes pclmulqdq sha_ni gfni"),
    ("pni", "ssse3 sse4a"),
    ("ssse3", "sse4_1"),
    ("sse4_1", "sse4_2"),
    ("avx", "avx2 fma f16c xop fma4 vaes vpclmulqdq"),
    ("aes", "vaes"),
    ("pclmulqdq", "vpclmulqdq"),
    (
        "avx2",
        "avx512f avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert sha512 \
         sm3 sm4",
    ),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl \
         avx512_4vnniw avx512_4fmaps avx512_vp2intersect avx512_vpopcntdq avx512_vnni \
         avx10",
    ),
    ("avx512bw", "avx512vbmi avx512_vbmi2 avx512_bitalg avx512_bf16 avx512_fp16"),
    ("apic", "x2apic tsc_deadline_timer"),
    ("tsc", "tsc_adjust tsc_deadline_timer rdtscp nonstop_tsc"),
    ("pcid", "invpcid"),
    ("sgx", "sgx_lc"),
    ("lkgs", "fred"),
    ("rtm", "tsxldtrk"),
    ("cx8", "cx16"),
    (
        "svm",
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists \
         pausefilter pfthreshold avic v_vmsave_vmload vgif x2avic v_spec_ctrl vnmi",
    ),
];
