//! The in-kernel interrupt controllers and timer: making, saving and loading them.
//!
//! With [`IrqchipMode::Split`] KVM holds local APICs only, which belong to the vCPUs, so there is
//! nothing to save here.

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config,
};
use zerocopy::IntoBytes;

use super::{
    call, invalid,
    parts::{self, ParsedIrqchip, parse_irqchip, part},
    vm::VmShared,
};
use crate::{
    HypervisorError, IrqchipMode,
    x86_64::{IDENTITY_MAP_ADDRESS, IrqchipState, TSS_ADDRESS},
};

/// Routes that KVM sets aside for the IOAPIC in this process: one for each of its pins.
const SPLIT_IOAPIC_PINS: u64 = 24;

pub(super) fn create(vm: &VmShared, mode: IrqchipMode, pit: bool) -> Result<(), HypervisorError> {
    if pit && mode == IrqchipMode::Split {
        return Err(invalid("interval timer", "it needs the in-kernel PIC"));
    }
    if pit && !vm.host.details.pit {
        return Err(HypervisorError::Missing { what: "an in-kernel interval timer (KVM_CAP_PIT2)" });
    }
    // Where processors without unrestricted guest mode find their real mode (KVM API 4.41, 4.38);
    // other hosts ignore both. Before the first vCPU.
    vm.fd
        .set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(|error| call("cannot set the identity map address to", hex(IDENTITY_MAP_ADDRESS), error))?;
    let tss = usize::try_from(TSS_ADDRESS).unwrap_or(usize::MAX);
    vm.fd
        .set_tss_address(tss)
        .map_err(|error| call("cannot set the TSS address to", hex(TSS_ADDRESS), error))?;
    match mode {
        IrqchipMode::Kernel => vm
            .fd
            .create_irq_chip()
            .map_err(|error| call("cannot create", "the interrupt controllers".to_owned(), error))?,
        IrqchipMode::Split => {
            if !vm.host.capabilities.split_irqchip {
                return Err(HypervisorError::Missing {
                    what: "a split interrupt controller (KVM_CAP_SPLIT_IRQCHIP)",
                });
            }
            vm.enable("split interrupt controllers", KVM_CAP_SPLIT_IRQCHIP, [SPLIT_IOAPIC_PINS, 0])?;
        }
    }
    // KVM has refused a second controller already.
    let _ = vm.irqchip.set(mode);
    if pit {
        // Port 0x61 in the kernel as well, so that the speaker's data port needs no exit.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        vm.fd
            .create_pit2(config)
            .map_err(|error| call("cannot create", "the interval timer".to_owned(), error))?;
    }
    Ok(())
}

const CHIPS: [(u32, &str); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, parts::PIC_MASTER),
    (KVM_IRQCHIP_PIC_SLAVE, parts::PIC_SLAVE),
    (KVM_IRQCHIP_IOAPIC, parts::IOAPIC),
];

pub(super) fn save(vm: &VmShared) -> Result<IrqchipState, HypervisorError> {
    let mut state = IrqchipState::default();
    if vm.irqchip.get() != Some(&IrqchipMode::Kernel) {
        return Ok(state);
    }
    for (chip_id, name) in CHIPS {
        let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
        vm.fd.get_irqchip(&mut chip).map_err(|error| call("cannot save", name.to_owned(), error))?;
        state.parts.push(part(name, chip_bytes(&chip, name)));
    }
    match vm.fd.get_pit2() {
        Ok(pit) => state.parts.push(part(parts::PIT, pit.as_bytes())),
        // KVM's answer when there is none.
        Err(error) if error.errno() == libc::ENXIO => {}
        Err(error) => return Err(call("cannot save", parts::PIT.to_owned(), error)),
    }
    Ok(state)
}

/// To be called when every vCPU has its state: an interrupt that waits in the IOAPIC is delivered to
/// a local APIC at once, and would be overwritten there.
pub(super) fn load(vm: &VmShared, state: &IrqchipState) -> Result<(), HypervisorError> {
    let ParsedIrqchip { chips, pit } = parse_irqchip(state)?;
    match (vm.irqchip.get(), &chips) {
        (Some(IrqchipMode::Kernel), None) => {
            return Err(invalid("interrupt controller state", format!("{} is missing", parts::PIC_MASTER)));
        }
        (Some(IrqchipMode::Split) | None, Some(_)) => {
            return Err(invalid("interrupt controller state", "this VM's controllers are not in the kernel"));
        }
        _ => {}
    }
    if let Some(chips) = chips {
        for (chip, (_, name)) in chips.iter().zip(CHIPS) {
            vm.fd.set_irqchip(chip).map_err(|error| call("cannot load", name.to_owned(), error))?;
        }
    }
    if let Some(pit) = pit {
        vm.fd.set_pit2(&pit).map_err(|error| call("cannot load", parts::PIT.to_owned(), error))?;
    }
    Ok(())
}

/// The bytes of a chip's own structure, which begins behind the id.
fn chip_bytes<'chip>(chip: &'chip kvm_irqchip, name: &str) -> &'chip [u8] {
    let content = chip.as_bytes().get(parts::CHIP_OFFSET..).unwrap_or_default();
    content.get(..parts::chip_len(name)).unwrap_or_default()
}

fn hex(address: u64) -> String {
    format!("{address:#x}")
}
