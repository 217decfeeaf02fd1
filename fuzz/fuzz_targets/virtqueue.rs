//! A guest that writes whatever it likes into the rings of a queue, in both formats, and a saved state that is
//! as wild.
//!
//! Whatever the bytes say: no panic, every buffer that comes out lies in guest memory, no more chains are out
//! than the queue has descriptors, and a queue that reported an error stays broken.

#![no_main]

use std::sync::LazyLock;

use cumulet_fuzz::Bytes;
use libfuzzer_sys::fuzz_target;
use virtio_devices::queue::{Chain, Queue, QueueConfig, QueueState, RingFeatures, RingProgress, Segment};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Two regions with a hole between them, so that a range can lie across an edge.
const REGION: usize = 0x4000;
const HOLE_END: u64 = 0x6000;

/// More would only repeat.
const MAX_OPERATIONS: usize = 64;

static MEMORY: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    let regions = [(GuestAddress(0), REGION), (GuestAddress(HOLE_END), REGION)];
    GuestMemoryMmap::from_ranges(&regions).expect("32 KiB can be mapped")
});

fuzz_target!(|input: &[u8]| {
    let _ = run(Bytes::new(input));
});

/// `None` when the input is used up.
fn run(mut input: Bytes<'_>) -> Option<()> {
    let flags = input.byte()?;
    let features =
        RingFeatures { packed: flags & 1 != 0, event_idx: flags & 2 != 0, indirect: flags & 4 != 0 };
    let config = QueueConfig {
        size: input.half()?,
        descriptors: area(&mut input)?,
        driver: area(&mut input)?,
        device: area(&mut input)?,
    };
    let state = if flags & 8 != 0 {
        QueueState { progress: RingProgress::start(features.packed) }
    } else {
        saved(&mut input, flags)?
    };
    let operations: Vec<u8> =
        (0..usize::from(input.byte()?).min(MAX_OPERATIONS)).map_while(|_| input.byte()).collect();
    fill(input.rest());
    let memory = &*MEMORY;
    let mut queue = Queue::from_state(config, features, &state, memory).ok()?;
    let mut out = Out::default();
    for operation in operations {
        step(&mut queue, &mut out, operation);
        assert!(queue.in_flight() <= queue.size(), "{} chains of {}", queue.in_flight(), queue.size());
    }
    // What was saved can be loaded, once nothing is in flight.
    if !queue.is_broken() && queue.in_flight() == 0 {
        let again = Queue::from_state(config, features, &queue.state(), memory);
        assert_eq!(again.expect("a state of our own is accepted").state(), queue.state());
    }
    Some(())
}

/// An address that is often in memory and often aligned.
fn area(input: &mut Bytes<'_>) -> Option<u64> {
    let place = input.half()?;
    Some(if place == u16::MAX { input.double()? } else { u64::from(place) })
}

fn saved(input: &mut Bytes<'_>, flags: u8) -> Option<QueueState> {
    let (next_avail, next_used, marked) = (input.half()?, input.half()?, input.half()?);
    let marked = (flags & 16 != 0).then_some(marked);
    let progress = if flags & 32 != 0 {
        let (avail_wrap, used_wrap) = (flags & 64 != 0, flags & 128 != 0);
        RingProgress::Packed { next_avail, avail_wrap, next_used, used_wrap, unsignalled: marked }
    } else {
        RingProgress::Split { next_avail, next_used, signalled: marked }
    };
    Some(QueueState { progress })
}

/// The same memory in every run with the same input: the input, and zeros behind it.
fn fill(content: &[u8]) {
    let mut image = [0; REGION];
    let len = content.len().min(REGION);
    image[..len].copy_from_slice(&content[..len]);
    MEMORY.write_slice(&image, GuestAddress(0)).expect("the region is there");
    image.fill(0);
    MEMORY.write_slice(&image, GuestAddress(HOLE_END)).expect("the region is there");
}

/// The chains that are out.
#[derive(Default)]
struct Out {
    chains: Vec<Chain>,
    /// How many of the last ones were popped since one was handed back: those may be given back.
    fresh: usize,
}

fn step(queue: &mut Queue, out: &mut Out, operation: u8) {
    let memory = &*MEMORY;
    let was_broken = queue.is_broken();
    let failed = match operation % 8 {
        0..=2 => match queue.pop(memory) {
            Ok(Some(chain)) => {
                look_at(&chain);
                out.chains.push(chain);
                out.fresh += 1;
                false
            }
            other => other.is_err(),
        },
        3 | 4 => match out.chains.pop() {
            Some(chain) => {
                out.fresh = 0;
                let written = chain.writable_len().min(u32::from(operation));
                queue.add_used(memory, chain, written).is_err()
            }
            None => false,
        },
        5 => {
            if let Some(chain) = out.chains.pop_if(|_| out.fresh > 0) {
                out.fresh -= 1;
                queue.give_back(chain);
            }
            false
        }
        6 => queue.needs_notification(memory).is_err(),
        _ if operation & 8 != 0 => queue.enable_notification(memory).is_err(),
        _ => queue.disable_notification(memory).is_err(),
    };
    assert_eq!(queue.is_broken(), was_broken || failed, "operation {operation}");
}

/// What a popped chain promises.
fn look_at(chain: &Chain) {
    let memory = &*MEMORY;
    for (segments, len) in
        [(chain.readable(), chain.readable_len()), (chain.writable(), chain.writable_len())]
    {
        let sum: u64 = segments.iter().map(|Segment { len, .. }| u64::from(*len)).sum();
        assert_eq!(sum, u64::from(len));
        for Segment { address, len } in segments {
            assert!(memory.check_range(GuestAddress(*address), *len as usize), "{address:#x}+{len:#x}");
        }
    }
    let mut byte = [0];
    assert_eq!(chain.read(memory, 0, &mut byte).is_ok(), chain.readable_len() > 0);
    assert!(chain.write(memory, chain.writable_len(), &byte).is_err());
}
