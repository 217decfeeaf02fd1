//! The PC as Cumulet builds it: 64-bit x86, no BIOS, one IOAPIC, PCI Express.

pub mod acpi;
pub mod boot;
pub mod compat;
pub mod cpuid;
pub mod feature;
pub mod layout;
pub mod memory_map;
pub mod reset_vector;
pub mod smbios;
pub mod topology;
