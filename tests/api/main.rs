//! The API of a real process on the host's hypervisor: what clients send and expect, and what they should not send.

mod clients;
mod events;
mod hostile;
mod jobs;
mod life;
mod metrics;
mod remote;
mod slow;
