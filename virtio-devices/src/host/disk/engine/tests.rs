//! Every engine against an array of bytes.

use std::{os::unix::fs::OpenOptionsExt, path::Path};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, MmapRegion};

use address_manager::{GuestMemoryView, RamRegion};

use super::*;
use crate::{
    host::buffers::Part,
    queue::{Chain, Queue, RingFeatures},
    testing::{Buffer, Driver},
};

const MEMORY: usize = 0x40_0000;
const DATA: u64 = 0x20_0000;
const DISK: usize = 0x10_0000;

fn memory() -> Arc<GuestMemoryView> {
    let mapping = Arc::new(MmapRegion::new(MEMORY).unwrap());
    let region = RamRegion::new(GuestAddress(0), MEMORY as u64, mapping, 0).unwrap();
    Arc::new(GuestMemoryView::from_regions(vec![region]).unwrap())
}

/// Chains for a test's buffers, by way of a queue.
struct Chains {
    memory: Arc<GuestMemoryView>,
    driver: Driver,
    queue: Queue,
}

impl Chains {
    fn new() -> Self {
        let memory = memory();
        let driver = Driver::new(0, 64, RingFeatures::default());
        let queue = Queue::new(driver.config(), RingFeatures::default(), &*memory).unwrap();
        Self { memory, driver, queue }
    }

    fn chain(&mut self, pieces: &[(u64, u32)], writable: bool) -> Chain {
        let buffers: Vec<_> =
            pieces.iter().map(|(address, len)| Buffer { address: *address, len: *len, writable }).collect();
        self.driver.add(&*self.memory, &buffers, false).unwrap();
        self.queue.pop(&*self.memory).unwrap().unwrap()
    }

    fn done(&mut self, chain: Chain) {
        self.queue.add_used(&*self.memory, chain, 0).unwrap();
        self.driver.take_used(&*self.memory).unwrap();
    }
}

fn image(direct: bool) -> (tempfile::NamedTempFile, Arc<File>) {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(DISK as u64).unwrap();
    let file = open(path.path(), direct);
    (path, file)
}

fn open(path: &Path, direct: bool) -> Arc<File> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = File::options().read(true).write(true).custom_flags(flags).open(path);
    Arc::new(file.expect("a file system with direct I/O"))
}

/// Runs one request to its end.
fn run(engine: &mut dyn Engine, operation: Operation, buffers: Option<Buffers>) -> Completion {
    engine.submit(Request { tag: 7, operation, buffers });
    wait(engine)
}

fn wait(engine: &mut dyn Engine) -> Completion {
    engine.kick();
    loop {
        if let Some(done) = engine.completion() {
            return done;
        }
        let event = engine.event().expect("an engine without event is done at once");
        let poll = vmm_sys_util::poll::PollContext::<u32>::new().unwrap();
        poll.add(event, 0).unwrap();
        poll.wait().unwrap();
        crate::worker::consume(event);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read { block: usize, blocks: usize, skew: u64 },
    Write { block: usize, blocks: usize, skew: u64, seed: u8 },
    Flush,
    Discard { block: usize, blocks: usize },
    Zeroes { block: usize, blocks: usize, unmap: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let block = 0..DISK / 4096 - 16;
    let blocks = 1usize..16;
    // Guest buffers need not be aligned as the file wants it.
    let skew = prop_oneof![Just(0u64), Just(512), Just(12)];
    prop_oneof![
        (block.clone(), blocks.clone(), skew.clone()).prop_map(|(block, blocks, skew)| Step::Read {
            block,
            blocks,
            skew
        }),
        (block.clone(), blocks.clone(), skew, any::<u8>())
            .prop_map(|(block, blocks, skew, seed)| Step::Write { block, blocks, skew, seed }),
        Just(Step::Flush),
        (block.clone(), blocks.clone()).prop_map(|(block, blocks)| Step::Discard { block, blocks }),
        (block, blocks, any::<bool>()).prop_map(|(block, blocks, unmap)| Step::Zeroes {
            block,
            blocks,
            unmap
        }),
    ]
}

/// Two pieces that do not touch.
fn pieces(blocks: usize, skew: u64) -> [(u64, u32); 2] {
    let len = u32::try_from(blocks).unwrap() * 4096;
    let first = len / 2 / 4096 * 4096;
    let first = if first == 0 { 512 } else { first };
    [(DATA + skew, first), (DATA + 0x10_0000 + skew, len - first)]
}

fn check(kind: EngineKind, direct: bool, steps: &[Step]) {
    let (path, file) = image(direct);
    let align = if direct { 4096 } else { 1 };
    let mut engine = kind.create(&file, 16).unwrap();
    let mut model = vec![0u8; DISK];
    let mut chains = Chains::new();
    for step in steps {
        match *step {
            Step::Read { block, blocks, skew } => {
                let (at, len) = (block * 4096, blocks * 4096);
                let chain = chains.chain(&pieces(blocks, skew), true);
                let count = u32::try_from(len).unwrap();
                let buffers = Buffers::new(&chain, Part::Writable, 0, count, &chains.memory, align).unwrap();
                let done = run(&mut *engine, Operation::Read { offset: at as u64 }, Some(buffers));
                assert_eq!(done.result.unwrap(), len, "{kind}");
                done.buffers.unwrap().deliver(&chain, 0, count, &chains.memory).unwrap();
                let mut seen = Vec::new();
                for (address, len) in pieces(blocks, skew) {
                    let mut part = vec![0; len as usize];
                    chains.memory.read_slice(&mut part, GuestAddress(address)).unwrap();
                    seen.extend(part);
                }
                assert!(seen == model[at..at + len], "{kind}: read at {at:#x}");
                chains.done(chain);
            }
            Step::Write { block, blocks, skew, seed } => {
                let (at, len) = (block * 4096, blocks * 4096);
                let data: Vec<u8> =
                    (0..len).map(|index| index.to_le_bytes()[0].wrapping_mul(3) ^ seed).collect();
                let mut rest = &data[..];
                for (address, len) in pieces(blocks, skew) {
                    let (part, tail) = rest.split_at(len as usize);
                    chains.memory.write_slice(part, GuestAddress(address)).unwrap();
                    rest = tail;
                }
                let chain = chains.chain(&pieces(blocks, skew), false);
                let count = u32::try_from(len).unwrap();
                let buffers = Buffers::new(&chain, Part::Readable, 0, count, &chains.memory, align).unwrap();
                let done = run(&mut *engine, Operation::Write { offset: at as u64 }, Some(buffers));
                assert_eq!(done.result.unwrap(), len, "{kind}");
                model[at..at + len].copy_from_slice(&data);
                chains.done(chain);
            }
            Step::Flush => assert!(run(&mut *engine, Operation::Flush, None).result.is_ok()),
            Step::Discard { block, blocks } => {
                let (at, len) = (block * 4096, blocks * 4096);
                let operation = Operation::Discard { offset: at as u64, len: len as u64 };
                run(&mut *engine, operation, None).result.unwrap();
                // Files read as zeros where they have holes.
                model[at..at + len].fill(0);
            }
            Step::Zeroes { block, blocks, unmap } => {
                let (at, len) = (block * 4096, blocks * 4096);
                let operation = Operation::WriteZeroes { offset: at as u64, len: len as u64, unmap };
                run(&mut *engine, operation, None).result.unwrap();
                model[at..at + len].fill(0);
            }
        }
    }
    drop(engine);
    assert!(std::fs::read(path.path()).unwrap() == model, "{kind}: the file itself");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_engine_agrees_with_an_array(
        direct in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        for kind in EngineKind::ALL {
            check(kind, direct, &steps);
        }
    }
}

#[test]
fn this_host_has_every_engine() {
    // The tests above would prove less otherwise.
    for kind in EngineKind::ALL {
        assert!(kind.is_available(), "{kind}");
    }
}

#[test]
fn requests_are_done_in_any_number_at_a_time() {
    for kind in EngineKind::ALL {
        let (_path, file) = image(false);
        // More requests than the engine's queue has places.
        let mut engine = kind.create(&file, 4).unwrap();
        let mut chains = Chains::new();
        let mut out = Vec::new();
        for tag in 0..32u16 {
            let address = DATA + u64::from(tag) * 4096;
            chains.memory.write_slice(&[tag.to_le_bytes()[0] + 1; 4096], GuestAddress(address)).unwrap();
            let chain = chains.chain(&[(address, 4096)], false);
            let buffers = Buffers::new(&chain, Part::Readable, 0, 4096, &chains.memory, 1).unwrap();
            let offset = u64::from(tag) * 4096;
            engine.submit(Request { tag, operation: Operation::Write { offset }, buffers: Some(buffers) });
            out.push(chain);
        }
        let mut tags: Vec<u16> = (0..32)
            .map(|_| {
                let done = wait(&mut *engine);
                assert_eq!(done.result.unwrap(), 4096);
                done.tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..32).collect::<Vec<_>>(), "{kind}");
        let mut bytes = vec![0; 32 * 4096];
        std::os::unix::fs::FileExt::read_exact_at(&*file, &mut bytes, 0).unwrap();
        assert!(bytes.chunks(4096).zip(1..).all(|(chunk, value)| chunk.iter().all(|byte| *byte == value)));
    }
}

#[test]
fn errors_are_those_of_the_host() {
    for kind in EngineKind::ALL {
        let (path, _) = image(false);
        let read_only = Arc::new(File::open(path.path()).unwrap());
        let mut engine = kind.create(&read_only, 4).unwrap();
        let mut chains = Chains::new();
        let chain = chains.chain(&[(DATA, 512)], false);
        let buffers = Buffers::new(&chain, Part::Readable, 0, 512, &chains.memory, 1).unwrap();
        let done = run(&mut *engine, Operation::Write { offset: 0 }, Some(buffers));
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EBADF), "{kind}");
        // Beyond the end there is nothing.
        let chain = chains.chain(&[(DATA, 512)], true);
        let buffers = Buffers::new(&chain, Part::Writable, 0, 512, &chains.memory, 1).unwrap();
        let done = run(&mut *engine, Operation::Read { offset: DISK as u64 }, Some(buffers));
        assert_eq!(done.result.unwrap(), 0, "{kind}");
    }
}

#[test]
fn an_engine_that_is_dropped_waits_for_its_requests() {
    for kind in EngineKind::ALL {
        for _ in 0..20 {
            let (_path, file) = image(true);
            let mut engine = kind.create(&file, 16).unwrap();
            let mut chains = Chains::new();
            for tag in 0..16 {
                let chain = chains.chain(&[(DATA + 1, 65536)], true);
                // Memory of our own that is freed with the request.
                let buffers = Buffers::new(&chain, Part::Writable, 0, 65536, &chains.memory, 4096).unwrap();
                engine.submit(Request {
                    tag,
                    operation: Operation::Read { offset: 0 },
                    buffers: Some(buffers),
                });
            }
            engine.kick();
            drop(engine);
        }
    }
}

#[test]
fn a_guest_cannot_make_us_allocate_at_will() {
    let mut chains = Chains::new();
    // 200 MiB of the same 2 MiB, not aligned.
    let pieces: Vec<_> = (0..64).map(|_| (DATA + 1, 0x1f_0000)).collect();
    let chain = chains.chain(&pieces, true);
    let len = chain.writable_len();
    assert!(Buffers::new(&chain, Part::Writable, 0, len, &chains.memory, 1).is_ok());
    let refused = Buffers::new(&chain, Part::Writable, 0, len, &chains.memory, 512);
    assert!(matches!(refused, Err(crate::queue::QueueError::ChainBytes)));
}

#[test]
fn what_is_left_of_a_transfer_is_known() {
    let mut chains = Chains::new();
    let chain = chains.chain(&[(DATA, 100), (DATA + 0x1000, 50), (DATA + 0x2000, 7)], true);
    let mut buffers = Buffers::new(&chain, Part::Writable, 0, 157, &chains.memory, 1).unwrap();
    let mut left = 157;
    for count in [0, 30, 70, 1, 50, 6] {
        buffers.advance(count);
        left -= count;
        assert_eq!(buffers.remaining(), left);
    }
    assert!(buffers.vectors().is_empty());
    buffers.advance(10);
    assert_eq!(buffers.remaining(), 0);
}
