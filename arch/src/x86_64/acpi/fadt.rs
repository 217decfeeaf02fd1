//! The FADT (ACPI 6.5, 5.2.9): a hardware-reduced machine with sleep, reset and timer registers.

use acpi_tables::{
    Aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
};

use super::{AcpiConfig, table};

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11): no VGA to probe, no PCI Express power
/// management to control. That bits 0 and 1 are clear says that there is no 8042 to probe either; a
/// reset through its port works all the same.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4;

/// What the FADT says; its bytes follow when the address of the DSDT is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fadt {
    sleep_control: u16,
    sleep_status: u16,
    reset: u16,
    reset_value: u8,
    pm_timer: Option<u16>,
}

impl Fadt {
    /// Size of the table.
    pub const SIZE: usize = 276;

    pub fn new(config: &AcpiConfig) -> Self {
        let power = config.power;
        Self {
            sleep_control: power.sleep_control,
            sleep_status: power.sleep_status,
            reset: power.reset,
            reset_value: power.reset_value,
            pm_timer: config.pm_timer_port,
        }
    }

    /// The table, with the address of the DSDT.
    pub fn pointing_to(&self, dsdt: u64) -> Vec<u8> {
        let (oem_id, oem_table_id, oem_revision) = table::identity();
        let byte = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
        let mut fadt = FADTBuilder::new(oem_id, oem_table_id, oem_revision)
            .dsdt_64(dsdt)
            .flag(Flags::Wbinvd)
            .flag(Flags::PwrButton) // the button is a device, no fixed event
            .flag(Flags::SlpButton)
            .flag(Flags::ResetRegSup)
            .flag(Flags::HwReducedAcpi);
        fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
        fadt.reset_reg = byte(self.reset);
        fadt.reset_value = self.reset_value;
        fadt.sleep_control_reg = byte(self.sleep_control);
        fadt.sleep_status_reg = byte(self.sleep_status);
        if let Some(port) = self.pm_timer {
            fadt = fadt.flag(Flags::TmrValExt);
            fadt.pm_tmr_blk = u32::from(port).into();
            fadt.pm_tmr_len = 4;
            fadt.x_pm_tmr_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, port.into());
        }
        let mut bytes = Vec::with_capacity(Self::SIZE);
        fadt.finalize().to_aml_bytes(&mut bytes);
        bytes
    }
}
