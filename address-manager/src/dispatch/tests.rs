//! The table and the way through it.

use hypervisor::IoSpace;

use super::{Dispatch, Dispatcher};
use crate::{
    Wired, Wiring,
    publish::Publication,
    testing::{Noted, handler},
};

fn dispatcher(wired: Wired) -> Dispatcher {
    let mut wiring = Wiring::default();
    wiring.add(&wired).unwrap();
    Dispatcher::new(&Publication::new(Dispatch::new(&wiring)))
}

#[test]
fn an_access_goes_to_the_range_that_has_all_of_it() {
    let [low, high, port] = [1, 2, 3].map(Noted::new);
    let mut vcpu = dispatcher(Wired {
        handlers: vec![
            handler(IoSpace::Mmio, 0x1000, 0x10, &low),
            handler(IoSpace::Mmio, 0x1010, 0x10, &high),
            handler(IoSpace::Pio, 0x1000, 4, &port),
        ],
        ..Wired::default()
    });
    let mut read = |space, address, len| {
        let mut data = [0; 8];
        let answered = vcpu.read(space, address, &mut data[..len]);
        assert!(data[..len].iter().all(|byte| *byte == data[0]));
        (answered, data[0])
    };
    assert_eq!(read(IoSpace::Mmio, 0x1000, 8), (true, 1));
    assert_eq!(read(IoSpace::Mmio, 0x100c, 4), (true, 1));
    assert_eq!(read(IoSpace::Mmio, 0x1010, 4), (true, 2));
    assert_eq!(read(IoSpace::Pio, 0x1000, 4), (true, 3));
    // Across two ranges, across an end, below, above, at the end of the space: all ones.
    for (space, address, len) in [
        (IoSpace::Mmio, 0x100e, 4),
        (IoSpace::Mmio, 0x101e, 4),
        (IoSpace::Mmio, 0xfff, 1),
        (IoSpace::Mmio, 0x1020, 1),
        (IoSpace::Mmio, u64::MAX, 8),
        (IoSpace::Pio, 0x1002, 4),
        (IoSpace::Pio, 0xffff, 1),
    ] {
        assert_eq!(read(space, address, len), (false, 0xff), "{space:?} {address:#x}");
    }
    assert!(!vcpu.read(IoSpace::Mmio, 0x1000, &mut []));

    assert!(vcpu.write(IoSpace::Mmio, 0x1014, &[9, 8]));
    assert!(!vcpu.write(IoSpace::Mmio, 0x100f, &[9, 8]));
    assert!(!vcpu.write(IoSpace::Pio, 0xfff, &[9]));
    assert_eq!(high.seen.lock().last(), Some(&(4, Some(vec![9, 8]))));
    assert_eq!(low.seen.lock().iter().filter(|(_, written)| written.is_some()).count(), 0);
}

#[test]
fn an_empty_table_answers_nothing() {
    let mut vcpu = dispatcher(Wired::default());
    let mut data = [0; 2];
    assert!(!vcpu.read(IoSpace::Mmio, 0, &mut data));
    assert_eq!(data, [0xff; 2]);
    assert!(Dispatch::default().is_empty());
}
