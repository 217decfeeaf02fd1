//! A machine's devices as the API shows them.

use std::collections::BTreeMap;

use api_client::wire::{DeviceNode, PciBarType, Resource};
use virtio_devices::transport::pci::BarLayout;

use crate::layout::{DeviceLayout, Layout, RangeLayout};

/// The devices of a machine, by id.
pub(super) fn device_tree(layout: &Layout) -> BTreeMap<String, DeviceNode> {
    let mut tree = BTreeMap::new();
    let mut add = |node: DeviceNode| tree.insert(node.id.clone(), node);
    for device in &layout.devices {
        let [function, inner] = virtio(device);
        add(function);
        add(inner);
    }
    let board = [("__ioapic", true), ("__serial", layout.serial), ("__pvpanic", layout.pvpanic)];
    for (id, _) in board.into_iter().filter(|(_, there)| *there) {
        add(DeviceNode {
            id: id.to_owned(),
            resources: Vec::new(),
            parent: None,
            children: Vec::new(),
            pci_bdf: None,
        });
    }
    tree
}

/// The id of the PCI function that a virtio device sits behind.
pub(super) fn function_id(id: &str) -> String {
    format!("_virtio-pci-{id}")
}

/// The memory that a device shows.
fn window(RangeLayout { base, size }: RangeLayout) -> Resource {
    Resource::MmioAddressRange { base, size }
}

/// A virtio device and the function that it sits behind.
fn virtio(device: &DeviceLayout) -> [DeviceNode; 2] {
    let function = function_id(&device.id);
    let spec = BarLayout::new(u16::try_from(device.queue_sizes.len()).unwrap_or(u16::MAX)).spec();
    let bar = Resource::PciBar {
        index: usize::from(spec.index),
        base: device.bar,
        size: spec.size,
        type_: PciBarType::Mmio64,
        prefetchable: spec.prefetchable,
    };
    [
        DeviceNode {
            id: function.clone(),
            resources: vec![bar],
            parent: None,
            children: vec![device.id.clone()],
            pci_bdf: Some(device.bdf.to_string()),
        },
        DeviceNode {
            id: device.id.clone(),
            resources: device.window.into_iter().map(window).collect(),
            parent: Some(function),
            children: Vec::new(),
            pci_bdf: None,
        },
    ]
}
