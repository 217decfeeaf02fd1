//! Windows: what the player of `testing` does not look at.

use super::{Window, WindowError, WindowKind, Windows};
use crate::Owner;

const MMIO: Window = Window::new(WindowKind::Mmio64, 3);

#[test]
fn small_holes_are_used_before_large_ones() {
    let owner = Owner::from("a");
    let mut windows = Windows::new().with(MMIO, 0x1000, 0x10000);
    let places: Vec<u64> = (0..4).map(|_| windows.allocate(MMIO, 0x1000, 0x1000, &owner).unwrap()).collect();
    assert_eq!(places, [0x1000, 0x2000, 0x3000, 0x4000]);
    windows.release(MMIO, 0x2000, &owner).unwrap();
    assert_eq!(windows.allocate(MMIO, 0x800, 0x800, &owner), Ok(0x2000));
    // Aligned: the rest of the hole does not do.
    assert_eq!(windows.allocate(MMIO, 0x800, 0x1000, &owner), Ok(0x5000));
    assert_eq!(windows.allocate(MMIO, 0x800, 0x800, &owner), Ok(0x2800));
}

#[test]
fn what_is_given_back_is_whole_again() {
    let owner = Owner::from("a");
    let fresh = Windows::new().with(MMIO, 0x1000, 0x4000);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let mut windows = fresh.clone();
        for _ in 0..4 {
            windows.allocate(MMIO, 0x1000, 1, &owner).unwrap();
        }
        for page in order {
            windows.release(MMIO, 0x1000 + page * 0x1000, &owner).unwrap();
        }
        assert_eq!(windows, fresh);
    }
}

#[test]
fn refusals_say_what_and_whose() {
    let (a, b) = (Owner::from("a"), Owner::from("b"));
    let mut windows = Windows::new().with(MMIO, 0x1000, 0x2000);
    windows.reserve(MMIO, 0x1000, 0x1000, &a).unwrap();
    let says = |result: Result<(), WindowError>| result.unwrap_err().to_string();
    assert_eq!(
        says(windows.reserve(MMIO, 0x1800, 0x1000, &b)),
        "0x1800+0x1000 of b overlaps 0x1000+0x1000 of a in the 64-bit MMIO window of segment 3"
    );
    assert_eq!(
        says(windows.allocate(MMIO, 0x2000, 0x1000, &b).map(drop)),
        "64-bit MMIO window of segment 3 has no 0x2000 free, aligned to 0x1000, for b; the largest free range has 0x1000"
    );
    assert_eq!(
        says(windows.release(MMIO, 0x1000, &b)),
        "b has no range at 0x1000 in the 64-bit MMIO window of segment 3"
    );
    assert_eq!(
        says(windows.reserve(MMIO, u64::MAX, 2, &b)),
        "0xffffffffffffffff+0x2 of b is not inside the 64-bit MMIO window of segment 3"
    );
    let gsi = Window::new(WindowKind::Gsi, 0);
    assert_eq!(windows.allocate(gsi, 1, 1, &a), Err(WindowError::Unknown { window: gsi }));
    assert!(matches!(windows.allocate(MMIO, 1, 3, &a), Err(WindowError::Malformed { .. })));
    assert!(matches!(windows.allocate(MMIO, 1, 0, &a), Err(WindowError::Malformed { .. })));
}

#[test]
fn the_end_of_the_address_space_does_not_overflow() {
    let owner = Owner::from("a");
    let mut windows = Windows::new().with(MMIO, u64::MAX - 0xfff, u64::MAX);
    assert_eq!(windows.range(MMIO), Some((u64::MAX - 0xfff, 0xfff)));
    assert!(windows.allocate(MMIO, u64::MAX, 1, &owner).is_err());
    assert!(windows.allocate(MMIO, 1, 1 << 63, &owner).is_err());
    assert!(windows.allocate(MMIO, 0xfff, 1, &owner).is_ok());
}
