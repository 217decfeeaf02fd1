//! Whether there is room for the descriptors that a machine's devices take when they begin to work. That is after the
//! restore has been answered, and a device that gets none then can only ask its driver for a reset.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, fcntl_dupfd_cloexec},
    process::{Resource, getrlimit},
};

use crate::{config::DeviceKind, layout::Layout};

/// What others may take meanwhile: clients of the API and of a console.
const SPARE: u64 = 8;

/// How many the devices of a layout take, at most.
pub(super) fn taken_at_work(layout: &Layout) -> u64 {
    let of = |kind: DeviceKind| match kind {
        // Each queue's thread has what it waits with; a disk's has a ring besides, and its event.
        DeviceKind::Block => 3,
        DeviceKind::Console | DeviceKind::Net | DeviceKind::Rng => 1,
    };
    let queues = |device: &crate::layout::DeviceLayout| device.queue_sizes.len() as u64;
    let devices = layout.devices.iter();
    devices.fold(SPARE, |sum, device| sum.saturating_add(queues(device).saturating_mul(of(device.kind))))
}

/// Checks that `needed` more can be had.
///
/// # Errors
/// They cannot.
pub(super) fn check_room(needed: u64) -> io::Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    let none_left = || io::Error::from(Errno::MFILE);
    let first = limit.checked_sub(needed).ok_or_else(none_left)?;
    let probe = eventfd(0, EventfdFlags::CLOEXEC)?;
    // The kernel gives the lowest number that is free: where this one is, those above it mostly are.
    let lowest = RawFd::try_from(first).map_err(|_| none_left())?;
    if fcntl_dupfd_cloexec(&probe, lowest).is_ok_and(|copy| copy.as_raw_fd() == lowest) {
        return Ok(());
    }
    // Somebody has handed us one with a high number, or there is no room: counting tells.
    let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    if open.saturating_add(needed) <= limit { Ok(()) } else { Err(none_left()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_the_limit_leaves() {
        let limit = getrlimit(Resource::Nofile).current.expect("tests run with a limit");
        check_room(0).unwrap();
        check_room(16).unwrap();
        for too_many in [limit, limit - 1, limit + 1, u64::MAX] {
            assert_eq!(check_room(too_many).unwrap_err().raw_os_error(), Some(libc::EMFILE), "{too_many}");
        }
        // One with a high number is in nobody's way.
        let probe = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let high = fcntl_dupfd_cloexec(&probe, RawFd::try_from(limit - 10).unwrap()).unwrap();
        check_room(16).unwrap();
        drop(high);
    }
}
