//! The network device (virtio 1.3 section 5.1), in front of a tap or whatever else deals in frames with a
//! virtio header ([`NetBackend`]).
//!
//! Each pair of queues has a thread that moves frames between guest memory and the back end without copying
//! them; checksums and segmentation are left to whichever end is asked to do them. The control queue has a
//! thread of its own. Receive filters, VLAN filters and RSS are absent: the host end filters nothing.

mod control;
mod device;
mod queue;
mod state;
#[cfg(test)]
mod tests;

use std::{fmt, fs::File, io, sync::Arc};

pub use device::{Net, NetConfig, NetControl};
pub use state::NetState;

use crate::host::tap::Offloads;

/// Feature bits (virtio 1.3 section 5.1.3).
pub mod features {
    /// The device finishes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksum is not finished.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver can change what it takes.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The MTU is given.
    pub const MTU: u64 = 1 << 3;
    /// The MAC address is given.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes unsegmented TCP over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes unsegmented TCP over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes unsegmented TCP with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes unfragmented UDP.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device segments TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device segments TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device segments TCP with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The device fragments UDP.
    pub const HOST_UFO: u64 = 1 << 14;
    /// A frame may fill several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The status field is there.
    pub const STATUS: u64 = 1 << 16;
    /// The control queue is there.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The driver announces itself when asked.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The driver can set its MAC address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
}

/// Where frames come from and go to.
pub trait NetBackend: Send + Sync + fmt::Debug {
    /// The descriptor of a queue pair: non-blocking, one frame with its header a read or write.
    fn queue(&self, pair: u16) -> Option<&Arc<File>>;

    /// What frames for the guest may be left unfinished.
    ///
    /// # Errors
    /// The back end cannot do that.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Lets frames for the guest come by the first `pairs` queues alone.
    ///
    /// # Errors
    /// The host refuses.
    fn enable_queues(&self, pairs: u16) -> io::Result<()>;
}
