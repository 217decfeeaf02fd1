//! Which sections the saved state of a machine must have, and of which kinds: known from its layout alone, so that a
//! state which cannot be loaded is refused before anything is opened or made for it.

use std::collections::{BTreeMap, BTreeSet};

use devices::{
    Stateful,
    pci::ConfigPorts,
    platform::{
        DebugExit, DebugPort, Events, I8042, IoApic, PmTimer, PowerControl, PvPanic, ResetControl, Rtc,
        Serial,
    },
};
use hypervisor::IrqchipMode;
use serde::Deserialize;
use virtio_devices::{
    block::Block, console::Console, net::Net, pmem::Pmem, rng::Rng, transport::pci::VirtioPciState,
    vsock::Vsock,
};
use vm_migration::{LoadError, Section, State};

use super::{
    flash::{self, SavedFlash},
    platform::SERIAL_ID,
    state::hypervisors_own,
};
use crate::{
    config::DeviceKind,
    layout::{DeviceLayout, Layout},
};

/// Kind of a state, and the newest version of it that can be read.
pub(super) type Kind = (&'static str, u32);

/// Checks that there is one section for each part of the machine and no other, each of the right kind and of a
/// version that can be read. What is in them is not looked at.
///
/// # Errors
/// One is missing, belongs to nothing, or is of another kind or version; it is named.
pub fn check(
    sections: &BTreeMap<String, Section>,
    layout: &Layout,
    irqchip: IrqchipMode,
) -> Result<(), LoadError> {
    let mut known = BTreeSet::new();
    let mut expect = |id: &str, (kind, newest): Kind| {
        let section = sections.get(id).ok_or_else(|| LoadError::Missing { id: id.to_owned() })?;
        known.insert(id.to_owned());
        section.check_kind(kind, newest)?;
        Ok(section)
    };
    for (id, kind) in hypervisors_own(layout) {
        expect(&id, kind)?;
    }
    for (id, kind) in platform(layout, irqchip) {
        expect(id, kind)?;
    }
    if layout.flash.is_some() {
        expect(flash::ID, (SavedFlash::KIND, SavedFlash::VERSION))?;
    }
    for DeviceLayout { id, kind, .. } in &layout.devices {
        let (kind, newest) = device(*kind);
        let function = expect(id, (VirtioPciState::KIND, VirtioPciState::VERSION))?;
        function.content::<Function>()?.device.check_kind(kind, newest)?;
    }
    match sections.keys().find(|id| !known.contains(*id)) {
        Some(id) => {
            Err(LoadError::Unexpected { id: id.clone(), why: "the machine has nothing of that name" })
        }
        None => Ok(()),
    }
}

/// The state of a virtio device itself, behind its function.
///
/// # Errors
/// There is none, or it is another device's or cannot be read.
pub(super) fn device_state<S: State>(sections: &BTreeMap<String, Section>, id: &str) -> Result<S, LoadError> {
    let function = sections.get(id).ok_or_else(|| LoadError::Missing { id: id.to_owned() })?;
    function.content::<Function>()?.device.load()
}

/// As much of a virtio function's state as says what device it is.
#[derive(Deserialize)]
struct Function {
    device: Section,
}

fn of<D: Stateful>() -> Kind {
    (D::State::KIND, D::State::VERSION)
}

fn device(kind: DeviceKind) -> Kind {
    match kind {
        DeviceKind::Console => of::<Console>(),
        DeviceKind::Block => of::<Block>(),
        DeviceKind::Net => of::<Net>(),
        DeviceKind::Rng => of::<Rng>(),
        DeviceKind::Pmem => of::<Pmem>(),
        DeviceKind::Vsock => of::<Vsock>(),
    }
}

/// The platform devices of a machine, as [`Platform`](super::platform::Platform) builds them.
pub(super) fn platform(layout: &Layout, irqchip: IrqchipMode) -> Vec<(&'static str, Kind)> {
    let always = [
        ("__pci_config", of::<ConfigPorts>()),
        ("__reset", of::<ResetControl>()),
        ("__i8042", of::<I8042>()),
        ("__power", of::<PowerControl>()),
        ("__pm_timer", of::<PmTimer>()),
        ("__rtc_cmos", of::<Rtc>()),
        ("__debug_port", of::<DebugPort>()),
        ("__events", of::<Events>()),
    ];
    let sometimes = [
        (layout.pvpanic, ("__pvpanic", of::<PvPanic>())),
        (irqchip == IrqchipMode::Split, ("__io_apic", of::<IoApic>())),
        (layout.debug_exit.is_some(), ("__debug_exit", of::<DebugExit>())),
        (layout.serial, (SERIAL_ID, of::<Serial>())),
    ];
    let there = sometimes.into_iter().filter_map(|(there, section)| there.then_some(section));
    always.into_iter().chain(there).collect()
}
