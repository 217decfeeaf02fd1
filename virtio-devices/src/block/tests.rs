use std::{collections::BTreeMap, fs::File, os::unix::fs::OpenOptionsExt, sync::Arc, time::Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    device::VirtioDevice,
    features as ring,
    host::{
        disk::{
            DiskImage,
            raw::{RawImage, RawOptions},
        },
        lock::Granularity,
        rate_limiter::{BucketConfig, RateLimiter},
    },
    interrupt::status,
    testing::{
        Buffer, Driver,
        conformance::conformance,
        machine::{DATA, Machine},
    },
    worker::PlainThreads,
};

const SECTORS: u64 = 2048;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OPTIONS: RawOptions = RawOptions {
    read_only: false,
    direct: false,
    sparse: true,
    lock: Granularity::Full,
    io_uring: true,
    aio: true,
};

fn config() -> BlockConfig {
    BlockConfig {
        id: "dev0".into(),
        read_only: false,
        protect_first_sector: false,
        serial: "a serial of twenty-two".into(),
        queues: 1,
        queue_size: 64,
        limiter: None,
        affinity: BTreeMap::new(),
    }
}

/// A disk of 1 MiB; sector `n` begins with `n`.
fn file(direct: bool) -> File {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut content = vec![0; usize::try_from(SECTORS * 512).unwrap()];
    for (number, sector) in (0u64..).zip(content.chunks_exact_mut(512)) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
    }
    std::fs::write(path.path(), content).unwrap();
    let flags = if direct { libc::O_DIRECT } else { 0 };
    File::options().read(true).write(true).custom_flags(flags).open(path.path()).unwrap()
}

fn image(options: RawOptions) -> Arc<dyn DiskImage> {
    Arc::new(RawImage::new(file(options.direct), options).unwrap())
}

fn block(config: BlockConfig, options: RawOptions) -> Block {
    Block::new(config, image(options), Arc::new(PlainThreads))
}

fn make() -> Box<dyn VirtioDevice> {
    Box::new(block(BlockConfig { queues: 2, ..config() }, OPTIONS))
}

/// A guest's way to queue 0.
struct Guest<'m> {
    machine: &'m mut Machine,
    driver: Driver,
}

impl<'m> Guest<'m> {
    fn start(machine: &'m mut Machine, wanted: u64) -> Self {
        let driver = machine.start(wanted, 64).remove(0);
        Self { machine, driver }
    }

    /// Puts a request into memory of its own and makes it available.
    fn add(&mut self, at: u64, kind: u32, sector: u64, out: &[u8], into: u32) -> u16 {
        let memory = self.machine.memory();
        memory.write_obj(kind.to_le(), GuestAddress(at)).unwrap();
        memory.write_obj(sector.to_le(), GuestAddress(at + 8)).unwrap();
        memory.write_slice(out, GuestAddress(at + 0x100)).unwrap();
        memory.write_obj(0xeeu8, GuestAddress(at + 0x80)).unwrap();
        let mut buffers = vec![Buffer::readable(at, 16)];
        if !out.is_empty() {
            buffers.push(Buffer::readable(at + 0x100, u32::try_from(out.len()).unwrap()));
        }
        if into > 0 {
            buffers.push(Buffer::writable(at + 0x100, into));
        }
        buffers.push(Buffer::writable(at + 0x80, 1));
        self.driver.add(&*memory, &buffers, self.driver.features().indirect).unwrap()
    }

    fn result(&self, at: u64, len: u32) -> (u8, Vec<u8>) {
        let memory = self.machine.memory();
        let mut data = vec![0; len as usize];
        memory.read_slice(&mut data, GuestAddress(at + 0x100)).unwrap();
        (memory.read_obj(GuestAddress(at + 0x80)).unwrap(), data)
    }

    fn run(&mut self, kind: u32, sector: u64, out: &[u8], into: u32) -> (u8, Vec<u8>) {
        let id = self.add(DATA, kind, sector, out, into);
        let written = self.machine.run(&mut self.driver, 0, id);
        let (status, data) = self.result(DATA, into);
        assert_eq!(written, if status == 0 { into + 1 } else { 1 });
        (status, data)
    }

    fn read(&mut self, sector: u64, sectors: u32) -> Vec<u8> {
        let (status, data) = self.run(IN, sector, &[], sectors * 512);
        assert_eq!(status, 0);
        data
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8..12].copy_from_slice(&sectors.to_le_bytes());
        segment[12..].copy_from_slice(&flags.to_le_bytes());
        self.run(kind, 0, &segment, 0).0
    }
}

fn formats() -> [u64; 3] {
    [
        0,
        ring::RING_INDIRECT_DESC | ring::RING_EVENT_IDX,
        ring::RING_PACKED | ring::RING_EVENT_IDX | ring::RING_INDIRECT_DESC,
    ]
}

fn drive(machine: &mut Machine) {
    for wanted in formats() {
        let mut guest = Guest::start(machine, wanted | features::FLUSH);
        for sector in 1..20 {
            assert_eq!(guest.read(sector, 2)[..8], sector.to_le_bytes());
            assert_eq!(guest.run(FLUSH, 0, &[], 0).0, 0);
        }
    }
}

conformance!(conforms, make: make, drive: drive);

#[test]
fn data_is_what_was_written_with_every_engine() {
    for direct in [false, true] {
        for (io_uring, aio, name) in [(true, true, "io_uring"), (false, true, "aio"), (false, false, "sync")]
        {
            let device = block(config(), RawOptions { direct, io_uring, aio, ..OPTIONS });
            assert_eq!(device.engine(), name);
            let mut machine = Machine::new(Box::new(device));
            for wanted in formats() {
                let mut guest = Guest::start(&mut machine, wanted);
                // Ten requests at a time, each with data of its own.
                let at = |slot: u64| DATA + slot * 0x1_0000;
                let data = |slot: u64| -> Vec<u8> {
                    (0..4096u64).map(|index| (index * 7 + slot * 31 + wanted).to_le_bytes()[0]).collect()
                };
                let mut ids: Vec<_> =
                    (0..10).map(|slot| guest.add(at(slot), OUT, 8 * slot, &data(slot), 0)).collect();
                guest.machine.kick(0);
                wait_all(&mut guest, &mut ids);
                let mut ids: Vec<_> = (0..10)
                    .map(|slot| {
                        let memory = guest.machine.memory();
                        memory.write_slice(&[0; 4096], GuestAddress(at(slot) + 0x100)).unwrap();
                        guest.add(at(slot), IN, 8 * slot, &[], 4096)
                    })
                    .collect();
                guest.machine.kick(0);
                wait_all(&mut guest, &mut ids);
                for slot in 0..10 {
                    let (status, seen) = guest.result(at(slot), 4096);
                    assert_eq!(status, 0);
                    assert!(seen == data(slot), "{name}, direct {direct}: request {slot}");
                }
            }
        }
    }
}

fn wait_all(guest: &mut Guest<'_>, ids: &mut Vec<u16>) {
    let memory = guest.machine.memory();
    while !ids.is_empty() {
        match guest.driver.take_used(&*memory) {
            Some((id, _)) => ids.retain(|out| *out != id),
            None => {
                if !guest.driver.enable_interrupts(&*memory) {
                    guest.machine.wait_queue(0);
                }
            }
        }
    }
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let device = block(BlockConfig { queues: 2, queue_size: 128, ..config() }, OPTIONS);
    let mut machine = Machine::new(Box::new(device));
    let word = |machine: &mut Machine, at| u32::from_le_bytes(machine.config(at));
    assert_eq!(u64::from_le_bytes(machine.config(0)), SECTORS);
    assert_eq!(word(&mut machine, 12), 126);
    assert_eq!(word(&mut machine, 20), 512);
    assert_eq!(machine.config::<2>(24), [3, 0], "8 blocks of 512 are a physical one");
    assert_eq!(u16::from_le_bytes(machine.config(26)), 8);
    assert_eq!(machine.config::<1>(32), [1]);
    assert_eq!(u16::from_le_bytes(machine.config(34)), 2);
    assert_eq!(word(&mut machine, 40), 1);
    assert_eq!(machine.config::<1>(56), [1]);
    let offered = machine.offered();
    for bit in
        [features::MQ, features::FLUSH, features::DISCARD, features::WRITE_ZEROES, features::CONFIG_WCE]
    {
        assert!(offered & bit != 0);
    }
    assert_eq!(offered & features::RO, 0);
    let device =
        block(BlockConfig { read_only: true, ..config() }, RawOptions { read_only: true, ..OPTIONS });
    let offered = Machine::new(Box::new(device)).offered();
    assert_eq!(offered & (features::MQ | features::DISCARD | features::WRITE_ZEROES), 0);
    assert_ne!(offered & features::RO, 0);
    let device = block(config(), RawOptions { sparse: false, ..OPTIONS });
    assert_eq!(Machine::new(Box::new(device)).offered() & features::DISCARD, 0);
}

#[test]
fn the_serial_is_twenty_bytes() {
    let mut machine = Machine::new(Box::new(block(config(), OPTIONS)));
    let mut guest = Guest::start(&mut machine, 0);
    assert_eq!(guest.run(GET_ID, 0, &[], 20), (0, b"a serial of twenty-t".to_vec()));
    assert_eq!(guest.run(GET_ID, 0, &[], 8), (0, b"a serial".to_vec()));
    let id = guest.add(DATA, GET_ID, 0, &[], 64);
    assert_eq!(guest.machine.run(&mut guest.driver, 0, id), 21);
}

#[test]
fn requests_that_make_no_sense_fail_alone() {
    let device = block(BlockConfig { protect_first_sector: true, ..config() }, OPTIONS);
    let mut machine = Machine::new(Box::new(device));
    let mut guest = Guest::start(&mut machine, 0);
    let sector = [7; 512];
    for (what, status) in [
        (guest.run(IN, SECTORS, &[], 512), 1),
        (guest.run(IN, SECTORS - 1, &[], 1024), 1),
        (guest.run(IN, u64::MAX, &[], 512), 1),
        (guest.run(IN, u64::MAX / 512, &[], 512), 1),
        (guest.run(IN, 0, &[], 511), 1),
        (guest.run(IN, 0, &[], 0), 1),
        (guest.run(OUT, SECTORS, &sector, 0), 1),
        (guest.run(OUT, 5, &sector[..100], 0), 1),
        (guest.run(OUT, 0, &sector, 0), 1),
        (guest.run(OUT, 1, &sector, 0), 0),
        (guest.run(99, 0, &[], 0), 2),
        (guest.run(14, 0, &[], 0), 2),
    ] {
        assert_eq!(what.0, status, "{what:?}");
    }
    for (kind, sector, sectors, flags, status) in [
        (DISCARD, 8, 8, 0, 0),
        (DISCARD, 8, 8, 1, 2),
        (DISCARD, 8, 8, 2, 2),
        (DISCARD, SECTORS, 8, 0, 1),
        (DISCARD, u64::MAX, 8, 0, 1),
        (DISCARD, 0, 8, 0, 1),
        (DISCARD, 8, u32::MAX, 0, 1),
        (WRITE_ZEROES, 8, 8, 0, 0),
        (WRITE_ZEROES, 8, 8, 1, 0),
        (WRITE_ZEROES, 8, 8, 3, 2),
        (WRITE_ZEROES, 8, 0, 0, 1),
    ] {
        assert_eq!(guest.range(kind, sector, sectors, flags), status, "{kind} {sector} {sectors} {flags}");
    }
    // Two segments, where one is allowed.
    assert_eq!(guest.run(DISCARD, 0, &[0; 32], 0).0, 1);
    assert_eq!(guest.read(1, 1), sector);
    assert_eq!(guest.machine.status() & status::NEEDS_RESET, 0);
}

#[test]
fn a_request_without_header_or_status_breaks_the_queue() {
    for buffers in [
        vec![Buffer::readable(DATA, 16)],
        vec![Buffer::readable(DATA, 15), Buffer::writable(DATA, 1)],
        vec![Buffer::writable(DATA, 513)],
    ] {
        let mut machine = Machine::new(make());
        let mut guest = Guest::start(&mut machine, 0);
        let memory = guest.machine.memory();
        guest.driver.add(&*memory, &buffers, false).unwrap();
        guest.machine.kick(0);
        guest.machine.wait_config();
        assert_ne!(guest.machine.status() & status::NEEDS_RESET, 0);
        // And is usable after the reset that it asked for.
        drive(&mut machine);
    }
}

#[test]
fn zeros_and_discards_read_as_zeros() {
    for wanted in [features::DISCARD, features::WRITE_ZEROES] {
        let mut machine = Machine::new(make());
        let mut guest = Guest::start(&mut machine, wanted);
        let kind = if wanted == features::DISCARD { DISCARD } else { WRITE_ZEROES };
        assert_eq!(guest.range(kind, 16, 8, 0), 0);
        assert!(guest.read(16, 8).iter().all(|byte| *byte == 0));
        assert_eq!(guest.read(15, 1)[..8], 15u64.to_le_bytes());
        assert_eq!(guest.read(24, 1)[..8], 24u64.to_le_bytes());
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let device =
        block(BlockConfig { read_only: true, ..config() }, RawOptions { read_only: true, ..OPTIONS });
    let mut machine = Machine::new(Box::new(device));
    let mut guest = Guest::start(&mut machine, 0);
    assert_eq!(guest.run(OUT, 3, &[1; 512], 0).0, 1);
    assert_eq!(guest.range(WRITE_ZEROES, 3, 1, 0), 1);
    assert_eq!(guest.range(DISCARD, 3, 1, 0), 2);
    assert_eq!(guest.read(3, 1)[..8], 3u64.to_le_bytes());
}

#[test]
fn the_write_cache_is_the_drivers_choice() {
    for io_uring in [true, false] {
        let mut machine = Machine::new(Box::new(block(config(), RawOptions { io_uring, ..OPTIONS })));
        // It is the driver's, where it knows of it; else it follows from whether the driver can flush.
        for (wanted, writeback) in [(0, 0), (features::FLUSH, 1), (features::FLUSH | features::CONFIG_WCE, 1)]
        {
            let mut guest = Guest::start(&mut machine, wanted);
            assert_eq!(guest.machine.config::<1>(32), [writeback]);
            assert_eq!(guest.run(OUT, 3, &[1; 512], 0).0, 0);
            guest.machine.write(0x2000 + 32, &[0]);
            let expected = if wanted & features::CONFIG_WCE != 0 { 0 } else { writeback };
            assert_eq!(guest.machine.config::<1>(32), [expected]);
            assert_eq!(guest.run(OUT, 4, &[2; 512], 0).0, 0);
            assert_eq!(guest.read(3, 2), [[1; 512], [2; 512]].concat());
        }
        // Saved and restored.
        let saved = machine.save();
        assert!(saved.contains("\"writeback\":false"));
        let device = block(config(), RawOptions { io_uring, ..OPTIONS });
        let mut restored = Machine::restore(&machine, Box::new(device), &saved).unwrap();
        restored.resume();
        assert_eq!(restored.config::<1>(32), [0]);
    }
}

#[test]
fn a_disk_that_shrank_is_refused_and_one_that_grew_is_told() {
    let mut machine = Machine::new(make());
    Guest::start(&mut machine, 0);
    let saved = machine.save();
    let sized = |bytes: u64| -> Box<dyn VirtioDevice> {
        let file = file(false);
        file.set_len(bytes).unwrap();
        let image = Arc::new(RawImage::new(file, OPTIONS).unwrap());
        Box::new(Block::new(BlockConfig { queues: 2, ..config() }, image, Arc::new(PlainThreads)))
    };
    let error = Machine::restore(&machine, sized(SECTORS * 256), &saved).err().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("the disk had 2048 sectors, its image now has 1024"), "{cause}");
    let mut grown = Machine::restore(&machine, sized(SECTORS * 1024), &saved).unwrap();
    assert!(grown.take_interrupts().is_empty());
    grown.resume();
    grown.wait_config();
    assert_eq!(u64::from_le_bytes(grown.config(0)), 2 * SECTORS);
}

#[test]
fn a_disk_is_resized_while_it_works() {
    let device = block(config(), OPTIONS);
    let control = device.control();
    let mut machine = Machine::new(Box::new(device));
    Guest::start(&mut machine, 0);
    let generation = machine.read::<1>(21);
    control.resize(2 << 20).unwrap();
    machine.wait_config();
    assert_eq!(u64::from_le_bytes(machine.config(0)), 4096);
    assert_ne!(machine.read::<1>(21), generation);
    assert!(control.resize(1000).is_err());
    assert!(control.resize(0).is_err());
    let mut guest = Guest::start(&mut machine, 0);
    assert_eq!(guest.read(4095, 1), [0; 512]);
}

#[test]
fn an_image_that_became_shorter_fails_requests() {
    let short = file(false);
    let same = short.try_clone().unwrap();
    let image = Arc::new(RawImage::new(short, OPTIONS).unwrap());
    let device = Block::new(config(), image, Arc::new(PlainThreads));
    let mut machine = Machine::new(Box::new(device));
    let mut guest = Guest::start(&mut machine, 0);
    same.set_len(5 * 512).unwrap();
    assert_eq!(guest.run(IN, 4, &[], 2048).0, 1);
    assert_eq!(guest.read(4, 1)[..8], 4u64.to_le_bytes());
}

#[test]
fn a_throttled_disk_is_slow_and_loses_nothing() {
    let bucket = BucketConfig { size: 2, one_time_burst: 0, refill_ms: 20 };
    let limiter = Arc::new(RateLimiter::new(None, Some(bucket), Instant::now()));
    let device = block(BlockConfig { limiter: Some(Arc::clone(&limiter)), ..config() }, OPTIONS);
    let mut machine = Machine::new(Box::new(device));
    for wanted in formats() {
        let mut guest = Guest::start(&mut machine, wanted);
        let mut ids: Vec<_> =
            (0..10).map(|slot| guest.add(DATA + slot * 0x1000, IN, slot, &[], 512)).collect();
        guest.machine.kick(0);
        // In between it is paused, with requests that wait for their tokens.
        let saved = guest.machine.save();
        assert!(saved.contains("progress"));
        guest.machine.resume();
        wait_all(&mut guest, &mut ids);
        for slot in 0..10 {
            assert_eq!(guest.result(DATA + slot * 0x1000, 8), (0, slot.to_le_bytes().to_vec()));
        }
    }
}

#[test]
fn counters_count_what_went_through() {
    let mut machine = Machine::new(make());
    let mut guest = Guest::start(&mut machine, 0);
    guest.read(0, 4);
    guest.run(OUT, 3, &[1; 512], 0);
    guest.run(IN, SECTORS, &[], 512);
    let counters = machine.function.lock().counters();
    assert_eq!((counters["read_bytes"], counters["read_ops"]), (2048, 1));
    assert_eq!((counters["write_bytes"], counters["write_ops"]), (512, 1));
    assert!(counters["read_latency_min"] <= counters["read_latency_max"]);
}

#[test]
fn a_queue_that_is_reset_alone_begins_again() {
    for wanted in formats() {
        let mut machine = Machine::new(make());
        let mut guest = Guest::start(&mut machine, wanted | ring::RING_RESET);
        guest.read(1, 1);
        guest.machine.write16(22, 0);
        guest.machine.write16(58, 1);
        assert_eq!(guest.machine.read16(28), 0);
        guest.driver = guest.machine.enable_queue(0, 32);
        assert_eq!(guest.read(2, 1)[..8], 2u64.to_le_bytes());
    }
}

#[test]
fn every_queue_of_a_restored_disk_is_served_without_a_kick() {
    for wanted in formats() {
        let mut machine = Machine::new(make());
        let mut guest = Guest::start(&mut machine, wanted);
        guest.read(1, 1);
        // Stopped, a request comes: its kick goes to an eventfd that nobody will read again.
        devices::Device::pause(&mut *guest.machine.function.lock()).unwrap();
        let id = guest.add(DATA, IN, 9, &[], 512);
        let memory = guest.machine.memory();
        guest.driver.enable_interrupts(&*memory);
        let saved = guest.machine.save();
        let restored = Machine::restore(guest.machine, make(), &saved).unwrap();
        restored.resume();
        let written = restored.finish(&mut guest.driver, 0, id);
        assert_eq!(written, 513);
        assert_eq!(guest.result(DATA, 8), (0, 9u64.to_le_bytes().to_vec()));
    }
}

#[test]
fn images_that_cannot_be_disks_are_refused() {
    let empty = tempfile::tempfile().unwrap();
    let error = RawImage::new(empty, OPTIONS).unwrap_err();
    assert_eq!(error.to_string(), "the image has 0 bytes, less than a sector");
    let null = File::open("/dev/null").unwrap();
    assert!(
        RawImage::new(null, OPTIONS).unwrap_err().to_string().contains("neither a file nor a block device")
    );
    let directory = File::open("/").unwrap();
    assert!(RawImage::new(directory, OPTIONS).is_err());
}
