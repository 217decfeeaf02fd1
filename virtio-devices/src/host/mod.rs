//! What virtio devices use of the host: images, locks on files, taps, sockets, rate limits. Everything here works on
//! descriptors that somebody else has opened; only names of network interfaces are looked up.

pub mod affinity;
pub mod buffers;
pub mod disk;
pub mod lock;
pub mod rate_limiter;
pub mod tap;
pub mod vsock;
