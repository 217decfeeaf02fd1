use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::testing::{Buffer, Driver};

type Memory = GuestMemoryMmap<()>;

const MEMORY: usize = 0x80_0000;
const DATA: u64 = 0x40_0000;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn formats() -> impl Iterator<Item = RingFeatures> {
    (0..8).map(|bits| RingFeatures {
        packed: bits & 1 != 0,
        event_idx: bits & 2 != 0,
        indirect: bits & 4 != 0,
    })
}

fn pair(memory: &Memory, size: u16, features: RingFeatures) -> (Driver, Queue) {
    let driver = Driver::new(0, size, features);
    let queue = Queue::new(driver.config(), features, memory).unwrap();
    (driver, queue)
}

#[test]
fn a_request_goes_through() {
    for features in formats() {
        let memory = memory();
        let (mut driver, queue) = pair(&memory, 8, features);
        let traffic = Arc::default();
        let mut queue = queue.counted(&traffic);
        assert!(queue.pop(&memory).unwrap().is_none());
        memory.write_slice(b"hello, device", GuestAddress(DATA)).unwrap();
        let buffers = [
            Buffer::readable(DATA, 5),
            Buffer::readable(DATA + 5, 8),
            Buffer::writable(DATA + 0x100, 3),
            Buffer::writable(DATA + 0x200, 4),
        ];
        let id = driver.add(&memory, &buffers, features.indirect).unwrap();
        assert!(driver.needs_kick(&memory));
        let chain = queue.pop(&memory).unwrap().unwrap();
        assert_eq!((chain.id(), chain.readable_len(), chain.writable_len()), (id, 13, 7));
        assert_eq!(&chain.read_array::<7, _>(&memory, 3).unwrap(), b"lo, dev");
        assert!(matches!(chain.read(&memory, 7, &mut [0; 7]), Err(QueueError::Short { end: 14 })));
        chain.write(&memory, 1, b"answer").unwrap();
        assert!(chain.write(&memory, 2, b"answer").is_err());
        queue.add_used(&memory, chain, 7).unwrap();
        assert!(queue.needs_notification(&memory).unwrap());
        assert_eq!(driver.take_used(&memory), Some((id, 7)));
        assert_eq!((traffic.count().requests, traffic.count().bytes), (1, 13 + 7));
        let mut answer = [0; 7];
        memory.read_slice(&mut answer[..3], GuestAddress(DATA + 0x100)).unwrap();
        memory.read_slice(&mut answer[3..], GuestAddress(DATA + 0x200)).unwrap();
        assert_eq!(&answer[1..], b"answer");
    }
}

#[test]
fn used_chains_appear_together() {
    for features in formats() {
        let memory = memory();
        let (mut driver, mut queue) = pair(&memory, 8, features);
        for _ in 0..3 {
            driver.add(&memory, &[Buffer::writable(DATA, 16)], false).unwrap();
        }
        for _ in 0..3 {
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.put_used(&memory, chain, 1).unwrap();
            assert!(!driver.has_used(&memory));
        }
        queue.publish_used(&memory).unwrap();
        for _ in 0..3 {
            assert!(driver.take_used(&memory).is_some());
        }
        assert!(driver.take_used(&memory).is_none());
    }
}

#[test]
fn a_chain_given_back_comes_again() {
    for features in formats() {
        let memory = memory();
        let (mut driver, mut queue) = pair(&memory, 4, features);
        for round in 0..20 {
            let start = queue.state();
            let id = driver.add(&memory, &[Buffer::writable(DATA, 16), Buffer::writable(DATA, 8)], false);
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.give_back(chain);
            assert_eq!(queue.state(), start, "round {round}");
            let chain = queue.pop(&memory).unwrap().unwrap();
            assert_eq!(Some(chain.id()), id);
            queue.add_used(&memory, chain, 0).unwrap();
            assert_eq!(driver.take_used(&memory).map(|(id, _)| id), id);
        }
    }
}

#[test]
fn bad_configurations_are_refused() {
    let memory = memory();
    let split = RingFeatures::default();
    let packed = RingFeatures { packed: true, ..split };
    let good = QueueConfig { size: 8, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
    for features in [split, packed] {
        assert!(Queue::new(good, features, &memory).is_ok());
        let end = MEMORY as u64;
        for bad in [
            QueueConfig { size: 0, ..good },
            QueueConfig { size: 32769, ..good },
            QueueConfig { descriptors: 0x1008, ..good },
            QueueConfig { driver: 0x2001, ..good },
            QueueConfig { device: 0x3002, ..good },
            QueueConfig { descriptors: end - 0x70, ..good },
            QueueConfig { driver: end - 2, ..good },
            QueueConfig { device: end, ..good },
            QueueConfig { descriptors: u64::MAX - 0xf, ..good },
            QueueConfig { driver: u64::MAX - 3, ..good },
            QueueConfig { device: u64::MAX - 3, ..good },
        ] {
            assert!(Queue::new(bad, features, &memory).is_err(), "{bad:?} {features:?}");
        }
    }
    let odd = QueueConfig { size: 12, ..good };
    assert!(Queue::new(odd, split, &memory).is_err());
    assert!(Queue::new(odd, packed, &memory).is_ok());
}

/// Writes one split descriptor.
fn descriptor(memory: &Memory, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    let at = table + 16 * u64::from(index);
    memory.write_obj(address, GuestAddress(at)).unwrap();
    memory.write_obj(len, GuestAddress(at + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    memory.write_obj(next, GuestAddress(at + 14)).unwrap();
}

/// What a split queue of 8 with indirect descriptors says about hand-made descriptors, head 0.
fn split_verdict(fill: impl FnOnce(&Memory)) -> QueueError {
    let memory = memory();
    let features = RingFeatures { indirect: true, ..RingFeatures::default() };
    let (driver, mut queue) = pair(&memory, 8, features);
    fill(&memory);
    memory.write_obj(1u16, GuestAddress(driver.config().driver + 2)).unwrap();
    let error = queue.pop(&memory).unwrap_err();
    assert!(queue.is_broken());
    assert!(matches!(queue.pop(&memory), Err(QueueError::Broken)));
    assert!(matches!(queue.needs_notification(&memory), Err(QueueError::Broken)));
    error
}

#[test]
fn a_driver_that_breaks_the_rules_breaks_the_queue() {
    let avail = 16 * 8;
    let loops = split_verdict(|memory| {
        descriptor(memory, 0, 0, DATA, 1, F_NEXT, 1);
        descriptor(memory, 0, 1, DATA, 1, F_NEXT, 0);
    });
    assert!(matches!(loops, QueueError::ChainLength { limit: 8 }));
    let beyond = split_verdict(|memory| descriptor(memory, 0, 0, DATA, 1, F_NEXT, 8));
    assert!(matches!(beyond, QueueError::DescriptorIndex { index: 8, len: 8 }));
    let head = split_verdict(|memory| memory.write_obj(9u16, GuestAddress(avail + 4)).unwrap());
    assert!(matches!(head, QueueError::DescriptorIndex { index: 9, len: 8 }));
    let order = split_verdict(|memory| {
        descriptor(memory, 0, 0, DATA, 1, F_NEXT | F_WRITE, 1);
        descriptor(memory, 0, 1, DATA, 1, 0, 0);
    });
    assert!(matches!(order, QueueError::Order));
    let outside = split_verdict(|memory| descriptor(memory, 0, 0, MEMORY as u64 - 1, 2, 0, 0));
    assert!(matches!(outside, QueueError::Outside { .. }));
    let wraps = split_verdict(|memory| descriptor(memory, 0, 0, u64::MAX, 2, 0, 0));
    assert!(matches!(wraps, QueueError::Outside { .. }));
    let bytes = split_verdict(|memory| {
        let half = u32::try_from(MEMORY).unwrap();
        descriptor(memory, 0, 0, 0, half, F_NEXT, 1);
        descriptor(memory, 0, 1, 0, u32::MAX, F_WRITE, 0);
    });
    assert!(matches!(bytes, QueueError::ChainBytes));
    for (len, flags) in [(0, F_INDIRECT), (15, F_INDIRECT), (32, F_INDIRECT | F_NEXT)] {
        let table = split_verdict(|memory| descriptor(memory, 0, 0, DATA, len, flags, 0));
        assert!(matches!(table, QueueError::Indirect { .. }));
    }
    let long = split_verdict(|memory| descriptor(memory, 0, 0, DATA, 16 * 1025, F_INDIRECT, 0));
    assert!(matches!(long, QueueError::ChainLength { limit: 1024 }));
    let nested = split_verdict(|memory| {
        descriptor(memory, 0, 0, DATA, 32, F_INDIRECT, 0);
        descriptor(memory, DATA, 0, DATA, 16, F_INDIRECT, 0);
    });
    assert!(matches!(nested, QueueError::Indirect { .. }));
    let table_loop = split_verdict(|memory| {
        descriptor(memory, 0, 0, DATA, 32, F_INDIRECT, 0);
        descriptor(memory, DATA, 0, DATA, 1, F_NEXT, 1);
        descriptor(memory, DATA, 1, DATA, 1, F_NEXT, 0);
    });
    assert!(matches!(table_loop, QueueError::ChainLength { limit: 2 }));
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    let memory = memory();
    let (driver, mut queue) = pair(&memory, 8, RingFeatures::default());
    memory.write_obj(9u16, GuestAddress(driver.config().driver + 2)).unwrap();
    assert!(matches!(queue.pop(&memory), Err(QueueError::AvailableIndex { index: 9, expected: 0, size: 8 })));
}

#[test]
fn descriptors_that_the_device_has_cannot_be_made_available_again() {
    let memory = memory();
    let (driver, mut queue) = pair(&memory, 4, RingFeatures::default());
    descriptor(&memory, 0, 0, DATA, 1, 0, 0);
    let mut chains = Vec::new();
    for index in 1u16..=4 {
        memory.write_obj(index, GuestAddress(driver.config().driver + 2)).unwrap();
        chains.push(queue.pop(&memory).unwrap().unwrap());
    }
    memory.write_obj(5u16, GuestAddress(driver.config().driver + 2)).unwrap();
    assert!(matches!(queue.pop(&memory), Err(QueueError::InFlight { size: 4 })));
}

#[test]
fn a_packed_ring_of_one_endless_chain_breaks_the_queue() {
    let memory = memory();
    let features = RingFeatures { packed: true, ..RingFeatures::default() };
    let (_, mut queue) = pair(&memory, 8, features);
    for slot in 0..8 {
        descriptor(&memory, 0, slot, DATA, 1, 7, F_NEXT | 1 << 7);
    }
    assert!(matches!(queue.pop(&memory), Err(QueueError::ChainLength { limit: 8 })));
}

#[test]
fn states_are_checked() {
    let split = RingFeatures::default();
    let packed = RingFeatures { packed: true, ..split };
    let split_at = |next_avail, next_used| QueueState {
        progress: RingProgress::Split { next_avail, next_used, signalled: Some(3) },
    };
    let packed_at = |next_avail, next_used, used_wrap| QueueState {
        progress: RingProgress::Packed {
            next_avail,
            avail_wrap: true,
            next_used,
            used_wrap,
            unsignalled: None,
        },
    };
    assert!(split_at(65535, 65535).check(8, split).is_ok());
    assert!(split_at(4, 3).check(8, split).is_err());
    assert!(split_at(4, 4).check(8, packed).is_err());
    assert!(packed_at(7, 7, true).check(8, packed).is_ok());
    assert!(packed_at(8, 8, true).check(8, packed).is_err());
    assert!(packed_at(7, 6, true).check(8, packed).is_err());
    assert!(packed_at(7, 7, false).check(8, packed).is_err());
    assert!(packed_at(7, 7, true).check(8, split).is_err());
    let text = serde_json::to_string(&split_at(4, 4)).unwrap();
    assert_eq!(text, r#"{"progress":{"split":{"next_avail":4,"next_used":4,"signalled":3}}}"#);
    assert_eq!(serde_json::from_str::<QueueState>(&text).unwrap(), split_at(4, 4));
}

/// One step of the two sides.
#[derive(Clone, Debug)]
enum Step {
    Add { lens: Vec<u16>, readable: usize, indirect: bool },
    Kick,
    Pop,
    GiveBack,
    Use { which: usize, written: u32, publish: bool },
    Interrupt,
    TakeUsed,
    DriverInterrupts(bool),
    DeviceNotifications(bool),
    SaveAndLoad,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (proptest::collection::vec(1u16..512, 1..6), 0usize..6, any::<bool>())
            .prop_map(|(lens, readable, indirect)| Step::Add { lens, readable, indirect }),
        2 => Just(Step::Kick),
        4 => Just(Step::Pop),
        1 => Just(Step::GiveBack),
        4 => (any::<usize>(), 0u32..100, any::<bool>())
            .prop_map(|(which, written, publish)| Step::Use { which, written, publish }),
        3 => Just(Step::Interrupt),
        4 => Just(Step::TakeUsed),
        1 => any::<bool>().prop_map(Step::DriverInterrupts),
        2 => any::<bool>().prop_map(Step::DeviceNotifications),
        1 => Just(Step::SaveAndLoad),
    ]
}

/// The naive model: two queues of chains, and who was promised a signal.
#[derive(Default)]
struct Model {
    available: std::collections::VecDeque<(u16, Vec<Buffer>)>,
    used: std::collections::VecDeque<(u16, u32)>,
    unpublished: std::collections::VecDeque<(u16, u32)>,
    /// The device was told that nothing is there and asked for a notification.
    device_sleeps: bool,
    /// Something was added since.
    device_owed: bool,
    /// The driver found nothing and asked for an interrupt.
    driver_sleeps: bool,
    driver_owed: bool,
}

fn check_steps(size: u16, features: RingFeatures, steps: &[Step]) -> Result<(), TestCaseError> {
    let memory = memory();
    let (mut driver, mut queue) = pair(&memory, size, features);
    let mut model = Model::default();
    let mut popped: Vec<(Chain, Vec<Buffer>)> = Vec::new();
    let mut last_was_pop = false;
    for step in steps {
        let was_pop = std::mem::replace(&mut last_was_pop, false);
        match step {
            Step::Add { lens, readable, indirect } => {
                let mut at = DATA;
                let mut buffers = Vec::new();
                for (position, len) in lens.iter().enumerate() {
                    let len = u32::from(*len);
                    buffers.push(Buffer { address: at, len, writable: position >= *readable });
                    at += u64::from(len) + 7;
                }
                if let Some(id) = driver.add(&memory, &buffers, *indirect && features.indirect) {
                    model.available.push_back((id, buffers));
                    model.device_owed = true;
                }
            }
            Step::Kick => {
                let kicked = driver.needs_kick(&memory);
                if model.device_sleeps && model.device_owed {
                    prop_assert!(kicked, "the device sleeps and would not learn of a chain");
                }
                if kicked {
                    model.device_sleeps = false;
                }
                model.device_owed = false;
            }
            Step::Pop => match (queue.pop(&memory).unwrap(), model.available.pop_front()) {
                (Some(chain), Some((id, buffers))) => {
                    prop_assert_eq!(chain.id(), id);
                    let seen: Vec<Buffer> = chain
                        .readable()
                        .iter()
                        .map(|s| Buffer::readable(s.address, s.len))
                        .chain(chain.writable().iter().map(|s| Buffer::writable(s.address, s.len)))
                        .collect();
                    prop_assert_eq!(&seen, &buffers);
                    popped.push((chain, buffers));
                    last_was_pop = true;
                }
                (None, None) => {}
                (chain, expected) => prop_assert!(false, "popped {chain:?}, expected {expected:?}"),
            },
            Step::GiveBack => {
                if was_pop && let Some((chain, buffers)) = popped.pop() {
                    model.available.push_front((chain.id(), buffers));
                    queue.give_back(chain);
                }
            }
            Step::Use { which, written, publish } => {
                if !popped.is_empty() {
                    let (chain, _) = popped.swap_remove(which % popped.len());
                    model.unpublished.push_back((chain.id(), *written));
                    queue.put_used(&memory, chain, *written).unwrap();
                }
                if *publish {
                    queue.publish_used(&memory).unwrap();
                    if !model.unpublished.is_empty() {
                        model.driver_owed = true;
                    }
                    model.used.append(&mut model.unpublished);
                }
            }
            Step::Interrupt => {
                // A device decides after it has published.
                queue.publish_used(&memory).unwrap();
                if !model.unpublished.is_empty() {
                    model.driver_owed = true;
                }
                model.used.append(&mut model.unpublished);
                let interrupted = queue.needs_notification(&memory).unwrap();
                if model.driver_sleeps && model.driver_owed {
                    prop_assert!(interrupted, "the driver sleeps and would not learn of a used chain");
                }
                if interrupted {
                    model.driver_sleeps = false;
                }
                model.driver_owed = false;
            }
            Step::TakeUsed => prop_assert_eq!(driver.take_used(&memory), model.used.pop_front()),
            Step::DriverInterrupts(true) => {
                let more = driver.enable_interrupts(&memory);
                prop_assert_eq!(more, !model.used.is_empty());
                model.driver_sleeps = !more;
                model.driver_owed = false;
            }
            Step::DriverInterrupts(false) => {
                driver.disable_interrupts(&memory);
                model.driver_sleeps = false;
            }
            Step::DeviceNotifications(true) => {
                let more = queue.enable_notification(&memory).unwrap();
                prop_assert_eq!(more, !model.available.is_empty());
                model.device_sleeps = !more;
                model.device_owed = false;
            }
            Step::DeviceNotifications(false) => {
                queue.disable_notification(&memory).unwrap();
                model.device_sleeps = false;
            }
            Step::SaveAndLoad => {
                if popped.is_empty() && model.unpublished.is_empty() && !model.driver_owed {
                    let text = serde_json::to_string(&queue.state()).unwrap();
                    let state: QueueState = serde_json::from_str(&text).unwrap();
                    queue = Queue::from_state(driver.config(), features, &state, &memory).unwrap();
                    prop_assert_eq!(queue.state(), state);
                }
            }
        }
        prop_assert_eq!(usize::from(queue.in_flight()), popped.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_model(
        bits in 0u8..8,
        shift in 0u32..6,
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let features = RingFeatures {
            packed: bits & 1 != 0,
            event_idx: bits & 2 != 0,
            indirect: bits & 4 != 0,
        };
        check_steps(1 << shift, features, &steps)?;
    }

    /// Whatever is in the rings: an answer, in bounded time, without a panic.
    #[test]
    fn survives_junk(
        bits in 0u8..8,
        junk in proptest::collection::vec(any::<(u16, u64)>(), 0..200),
        rings in proptest::collection::vec(any::<u8>(), 512),
    ) {
        let features = RingFeatures {
            packed: bits & 1 != 0,
            event_idx: bits & 2 != 0,
            indirect: bits & 4 != 0,
        };
        let memory = memory();
        memory.write_slice(&rings, GuestAddress(0)).unwrap();
        for (at, value) in junk {
            memory.write_obj(value & 0xffff_ffff_0080_7fff, GuestAddress(u64::from(at) % 0x800)).unwrap();
        }
        let (_, mut queue) = pair(&memory, 16, features);
        for _ in 0..64 {
            match queue.pop(&memory) {
                Ok(Some(chain)) => {
                    let written = chain.writable_len();
                    if queue.add_used(&memory, chain, written).is_err() {
                        break;
                    }
                }
                Ok(None) | Err(_) => break,
            }
            let _ = queue.needs_notification(&memory);
            let _ = queue.enable_notification(&memory);
        }
    }
}
