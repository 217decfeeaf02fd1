//! The MCFG (PCI Firmware Specification 3.3, 4.1.2): where the configuration space of each segment
//! lies in memory.

use super::{PciSegment, table};

pub(super) fn build(segments: &[PciSegment]) -> Vec<u8> {
    let mut body = vec![0; 8];
    for segment in segments {
        let (first_bus, last_bus) = (0, 0);
        body.extend_from_slice(&segment.ecam.start.to_le_bytes());
        body.extend_from_slice(&segment.id.to_le_bytes());
        body.extend_from_slice(&[first_bus, last_bus, 0, 0, 0, 0]);
    }
    table::table(b"MCFG", 1, &body)
}
