//! What all virtio devices have in common when they are attached: the PCI function in front of them.

use std::{io, sync::Arc};

use devices::{SharedDevice, pci::Bdf};
use virtio_devices::{
    device::VirtioDevice,
    transport::pci::{LifeEvents, PciHandles, PciPlace, VirtioPci},
};

use super::Context;
use crate::{events::Events, layout::DeviceLayout};

/// Puts `device` behind a function at the place that the layout gives it. With `packed` its driver may choose the packed
/// ring format.
///
/// # Errors
/// The host has no descriptor left.
pub fn function(
    device: Box<dyn VirtioDevice>,
    layout: &DeviceLayout,
    context: &Context<'_>,
    packed: bool,
) -> io::Result<SharedDevice> {
    let place = PciPlace {
        id: layout.id.clone(),
        segment: layout.bdf.segment(),
        requester: requester(layout.bdf),
        bar: layout.bar,
    };
    let handles = PciHandles {
        memory: context.manager.memory(),
        msi: Arc::clone(context.interrupts) as _,
        manager: Arc::clone(context.manager),
        events: Arc::new(Told(context.events.clone())),
        doorbell_any_width: context.doorbell_any_width,
        packed,
    };
    Ok(SharedDevice::from_arc(VirtioPci::new(&place, handles, device)?))
}

/// Bus, device and function in one number (PCI Express 4.0 section 2.2.6.2).
fn requester(bdf: Bdf) -> u32 {
    u32::from(bdf.bus()) << 8 | u32::from(bdf.device()) << 3 | u32::from(bdf.function())
}

/// Tells the log and the event stream of a device's life.
struct Told(Events);

impl LifeEvents for Told {
    fn activated(&self, id: &str) {
        log::info!("{id}: activated by the guest's driver");
        self.0.tell_with("virtio-device", "activated", &[("id", id)]);
    }

    fn reset(&self, id: &str) {
        log::info!("{id}: reset by the guest's driver");
        self.0.tell_with("virtio-device", "reset", &[("id", id)]);
    }
}
