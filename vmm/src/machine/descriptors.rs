//! Whether there is room for the descriptors that a machine's devices take when they begin to work. That is after the
//! restore has been answered, and a device that gets none then can only ask its driver for a reset.

use std::{io, path::Path};

use rustix::{
    io::Errno,
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
        DeviceKind::Console | DeviceKind::Net | DeviceKind::Rng | DeviceKind::Pmem | DeviceKind::Vsock => 1,
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
    match limit.checked_sub(needed) {
        Some(left) if open_descriptors()? <= left => Ok(()),
        _ => Err(Errno::MFILE.into()),
    }
}

/// How many this process has. None is opened to find out: a number near the limit would have the kernel make the table
/// of all of them larger, and every thread wait for it.
fn open_descriptors() -> io::Result<u64> {
    let directory = Path::new("/proc/self/fd");
    // Linux 6.2 tells without a look at each (Documentation/filesystems/proc.rst, 3.12).
    match directory.metadata()?.len() {
        0 => Ok(directory.read_dir()?.count() as u64),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn room_is_what_the_limit_leaves() {
        let limit = getrlimit(Resource::Nofile).current.expect("tests run with a limit");
        let open = open_descriptors().unwrap();
        assert!((3..limit).contains(&open), "{open}");
        check_room(0).unwrap();
        // Other tests of this process open and close some meanwhile.
        check_room(limit - open - 50).unwrap();
        for too_many in [limit - 2, limit, limit + 1, u64::MAX] {
            assert_eq!(check_room(too_many).unwrap_err().raw_os_error(), Some(libc::EMFILE), "{too_many}");
        }
        let more: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(open_descriptors().unwrap() > open + 100);
        drop(more);
    }
}
