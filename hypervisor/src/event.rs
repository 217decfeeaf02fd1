//! Borrowing the descriptor of an eventfd: `vmm_sys_util`'s type does not lend it safely itself.

#![expect(unsafe_code, reason = "a raw descriptor is turned into a borrowed one")]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of `event`, for as long as `event` is borrowed.
pub fn borrow_event(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` is there (it is closed by its drop alone),
    // the result borrows `event`, and an open descriptor is never -1.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
