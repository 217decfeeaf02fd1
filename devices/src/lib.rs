//! PCI and platform devices, and the handles and traits that every device is written against.
