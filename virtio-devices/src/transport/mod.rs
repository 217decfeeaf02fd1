//! How a virtio device appears to its guest. PCI is the only transport, and modern the only interface.

pub mod pci;
