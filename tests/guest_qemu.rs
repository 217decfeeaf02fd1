//! The test guest in QEMU, under software emulation and under KVM: it boots, and each order does what it says.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use cumulet_tests::guest::{self, number};
use cumulet_tests::qemu::{Accel, Qemu};
use test_guest::pattern;

/// First address that is the tests' own (docs/test-guest.md).
const FREE: u64 = 32 << 20;

/// Makes two tests of each function: under software emulation and under KVM.
macro_rules! under_both {
    ($($name:ident => $test:ident;)*) => {
        mod tcg {
            $(#[test] fn $name() { super::$test(super::Accel::Tcg) })*
        }
        mod kvm {
            $(#[test] fn $name() {
                if super::kvm_is_usable() {
                    super::$test(super::Accel::Kvm);
                }
            })*
        }
    };
}

under_both! {
    boots_on_both_machines => boots_on_both_machines;
    obeys_its_command_line => obeys_its_command_line;
    fills_and_sums_memory => fills_and_sums_memory;
    refuses_bad_orders => refuses_bad_orders;
    reaches_ports_memory_and_registers => reaches_ports_memory_and_registers;
    counts_ticks => counts_ticks;
    starts_all_processors => starts_all_processors;
    dirties_memory_alone => dirties_memory_alone;
    dirties_memory_on_all_processors => dirties_memory_on_all_processors;
    finds_moves_and_sizes_pci_functions => finds_moves_and_sizes_pci_functions;
    drives_split_queues => drives_split_queues;
    drives_packed_queues => drives_packed_queues;
    drives_queues_with_events => drives_queues_with_events;
    drives_queues_without_interrupts => drives_queues_without_interrupts;
    drives_entropy_and_console => drives_entropy_and_console;
    keeps_320_queues_live => keeps_320_queues_live;
    stresses_a_disk => stresses_a_disk;
    answers_on_the_network => answers_on_the_network;
    lives_on_after_a_restore => lives_on_after_a_restore;
    shuts_down => shuts_down;
    reports_faults => reports_faults;
}

/// Returns whether `/dev/kvm` can be opened; without it, a test fails unless the run is declared to be without KVM.
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
fn kvm_is_usable() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) if env::var_os("CUMULET_WITHOUT_KVM").is_some_and(|value| value == "1") => {
            println!("SKIPPED: /dev/kvm cannot be opened: {error}");
            false
        }
        Err(error) => panic!("/dev/kvm cannot be opened: {error}"),
    }
}

/// The machines to repeat a test on. The firmware of q35 takes seconds on a KVM that emulates guest kernel code.
fn machines(accel: Accel) -> &'static [&'static str] {
    match accel {
        Accel::Tcg => &["microvm", "q35"],
        Accel::Kvm => &["microvm"],
    }
}

/// Boots a microvm with PCI Express, and gives addresses to its functions: no firmware has done that there, and no
/// table says where they are. The numbers are QEMU's.
fn boot_with_pci(accel: Accel, arguments: &[&str]) -> Qemu {
    let arguments = [&["-m", "256M"], arguments].concat();
    let mut guest = Qemu::boot(accel, "microvm,pcie=on", "", &arguments);
    guest.console.ready();
    guest.console.ok("pci-ecam 0xe0000000 1");
    assert_ne!(number(&guest.console.ok("pci-assign 0xc0000000 16M")), 0);
    guest
}

fn boot(accel: Accel, orders: &str) -> Qemu {
    Qemu::boot(accel, "microvm", orders, &["-m", "256M"])
}

fn boots_on_both_machines(accel: Accel) {
    let mut nonces = Vec::new();
    for machine in ["microvm", "q35"] {
        let mut guest = Qemu::boot(accel, machine, "", &["-m", "256M"]);
        let ready = guest.console.ready();
        assert_eq!(ready.version, 1);
        assert_eq!(ready.cpus, 1);
        assert!((255 << 20..=256 << 20).contains(&ready.memory_bytes), "{ready:?}");
        assert_eq!(guest.console.ok("ping"), "");
        assert_eq!(number(&guest.console.ok("nonce")), ready.nonce);
        nonces.push(ready.nonce);
        guest.console.send("exit 5");
        assert_eq!(guest.exit_code(), Some(5));
    }
    assert_ne!(nonces[0], nonces[1], "the nonce is the same at each boot");
}

fn obeys_its_command_line(accel: Accel) {
    let mut guest = boot(accel, "quiet orders=ping;fill 0x2000000 4K 1;sum 0x2000000 4K;exit 9");
    guest.console.ready();
    assert_eq!(guest.console.reply(), Ok(String::new()));
    assert_eq!(guest.console.reply(), Ok(String::new()));
    let sum = guest.console.reply().expect("sum");
    assert_eq!(number(&sum), pattern::pattern_checksum(1, 4096));
    assert_eq!(guest.exit_code(), Some(9));
}

fn fills_and_sums_memory(accel: Accel) {
    let mut guest = boot(accel, "");
    let console = &mut guest.console;
    console.ready();
    let len = 3 << 20;
    console.ok(&format!("fill {FREE:#x} {len} 0x1234"));
    let sum = console.ok(&format!("sum {FREE:#x} {len}"));
    assert_eq!(number(&sum), pattern::pattern_checksum(0x1234, len));
    assert_eq!(console.ok(&format!("verify {FREE:#x} {len} 0x1234")), "same");

    let word = pattern::word(0x1234, 1000);
    let at = FREE + 8 * 1000;
    assert_eq!(number(&console.ok(&format!("peek {at:#x} 8"))), word);
    console.ok(&format!("poke {at:#x} 8 77"));
    let differs = console.ok(&format!("verify {FREE:#x} {len} 0x1234"));
    assert_eq!(differs, format!("mismatch {at:#x} is 0x4d want {word:#x}"));
    assert_ne!(console.ok(&format!("sum {FREE:#x} {len}")), sum);
}

fn refuses_bad_orders(accel: Accel) {
    let mut guest = boot(accel, "");
    let console = &mut guest.console;
    console.ready();
    for (order, reason) in [
        ("nothing", "nothing: no such order"),
        ("fill", "fill: ADDR is missing"),
        ("fill 1 x", "fill: LEN is not a number in range"),
        ("fill 1 8 0", "fill: ADDR and LEN must be multiples of 8"),
        ("sum 0 8", "sum: the range at 0x0 is not free memory"),
        ("sum 0x100000 8", "sum: the range at 0x100000 is not free memory"),
        ("sum 0x2000000 1G", "sum: the range at 0x2000000 is not free memory"),
        ("sum 0xfffffffffffffff8 16", "sum: the range at 0xfffffffffffffff8 is not free memory"),
        ("in 0x3f8 8", "in: WIDTH is not a number in range"),
        ("out 0x10000 1 0", "out: PORT is not a number in range"),
        ("out 0x80 1 256", "out: VALUE is not a number in range"),
        ("ping 1", "ping: too many words"),
    ] {
        assert_eq!(console.order(order), Err(reason.to_owned()), "{order}");
    }
    let beyond = console.order("peek 0x7fffffffffff 8").expect_err("no machine has so much");
    assert!(beyond.contains("beyond"), "{beyond}");
    assert_eq!(console.ok("ping"), "");
}

fn reaches_ports_memory_and_registers(accel: Accel) {
    let mut guest = boot(accel, "");
    let console = &mut guest.console;
    console.ready();
    // The scratch register of the serial port keeps what is written to it.
    console.ok("out 0x3ff 1 0xa5");
    assert_eq!(number(&console.ok("in 0x3ff 1")), 0xa5);
    for (width, value) in [(1, 0x12), (2, 0x1234), (4, 0x1234_5678), (8, 0x1234_5678_9abc_def0_u64)] {
        console.ok(&format!("poke {FREE:#x} {width} {value:#x}"));
        assert_eq!(number(&console.ok(&format!("peek {FREE:#x} {width}"))), value);
    }
    // EFER: long mode is enabled and active.
    assert_eq!(number(&console.ok("msr 0xc0000080")) & 0x500, 0x500);
    // The vendor is text.
    let vendor = console.ok("cpuid 0");
    let vendor: Vec<u64> = vendor.split(' ').map(number).collect();
    assert_eq!(vendor.len(), 4);
    assert!(vendor[1].to_le_bytes()[..4].iter().all(u8::is_ascii_graphic), "{vendor:x?}");
    let first: Vec<u64> = console.ok("tsc").split(' ').map(number).collect();
    let second: Vec<u64> = console.ok("tsc").split(' ').map(number).collect();
    assert!(second[0] > first[0] && second[1] > first[1], "{first:?} {second:?}");
}

fn counts_ticks(accel: Accel) {
    let mut guest = boot(accel, "");
    let console = &mut guest.console;
    console.ready();
    console.ok("ticks start 500");
    while number(&console.ok("ticks")) < 20 {}
    // The tick belongs to its own count: it goes on while an order runs.
    let before = number(&console.ok("ticks"));
    console.ok("fill 0x2000000 64M 1");
    assert!(number(&console.ok("ticks")) > before);
    let stopped = number(&console.ok("ticks stop"));
    assert_eq!(number(&console.ok("ticks")), stopped);
    assert!(guest::field(&console.ok("interrupts"), "0x40") >= stopped);

    let timer: Vec<u64> = console.ok("timer 1000 50").split(' ').map(number).collect();
    // 50 interrupts at 1 kHz take 50 ms, or more where the host is late.
    assert!(timer[0] * 1000 >= timer[1] * 45, "{timer:?}");
    assert!(number(&console.ok("spin 100000")) > 0);
    assert!(number(&console.ok("ioexit 10")) > 0);
}

fn starts_all_processors(accel: Accel) {
    for machine in machines(accel) {
        let mut guest = Qemu::boot(accel, machine, "", &["-m", "256M", "-smp", "4"]);
        assert_eq!(guest.console.ready().cpus, 4);
        let cpus: Vec<u64> = guest.console.ok("cpus").split(' ').map(number).collect();
        assert_eq!(cpus[..2], [4, 0]);
        let mut ids = cpus[1..].to_vec();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3]);

        guest.console.ok("watch start");
        while guest::field(&guest.console.ok("watch"), "rounds") == 0 {}
        assert!(guest::field(&guest.console.ok("watch stop"), "gap") > 0);
    }
}

fn dirties_memory_alone(accel: Accel) {
    let mut guest = boot(accel, "");
    dirties_memory(&mut guest, "dirty", 1);
}

fn dirties_memory_on_all_processors(accel: Accel) {
    let mut guest = Qemu::boot(accel, "microvm", "", &["-m", "256M", "-smp", "3"]);
    dirties_memory(&mut guest, "dirty-all", 2);
}

fn dirties_memory(guest: &mut Qemu, order: &str, workers: u64) {
    let console = &mut guest.console;
    console.ready();
    // More pages than fit, so that the check sees several rounds.
    assert_eq!(number(&console.ok(&format!("{order} {FREE:#x} 64K 0"))), workers);
    // Each processor has been round its part, however late it began.
    while guest::field(&console.ok("dirty-state"), "least") < 1000 {}
    let check = console.ok("dirty-check");
    assert!(guest::field(&check, "pages") >= 1000, "{check}");
    assert_eq!(guest::field(&check, "good"), 16, "{check}");
    assert_eq!(guest::field(&check, "bad"), 0, "{check}");
    assert_eq!(guest::field(&console.ok("dirty-state"), "running"), 0);
    console.ok(&format!("poke {FREE:#x} 8 0"));
    assert_eq!(guest::field(&console.ok("dirty-check"), "bad"), 1);

    // A rate: in 1 second no more than that, and it ends by itself.
    console.ok(&format!("{order} {FREE:#x} 1M 400K 1"));
    while guest::field(&console.ok("dirty-state"), "running") > 0 {}
    let written = number(&console.ok("dirty-stop"));
    assert!((1..=100).contains(&written), "{written}");
}

#[test]
fn reads_the_tables() {
    let mut guest = Qemu::boot(Accel::Tcg, "q35", "", &["-m", "3G"]);
    let console = &mut guest.console;
    console.ready();
    let tables = console.ok("acpi");
    for name in ["XSDT=", "FACP=", "DSDT=", "APIC=", "MCFG="] {
        assert!(tables.contains(name) || name == "XSDT=" && tables.contains("RSDT="), "{tables}");
    }
    assert!(!tables.contains(",bad"), "{tables}");
    // Memory above 4 GiB is free too, and is mapped when it is touched.
    let map = console.ok("mem");
    let high = map.split(' ').find_map(|range| range.strip_prefix("free=0x100000000,")).expect("high memory");
    let last = 0x1_0000_0000 + number(high) - 8;
    console.ok(&format!("poke {last:#x} 8 0x1122334455667788"));
    assert_eq!(number(&console.ok(&format!("peek {last:#x} 8"))), 0x1122_3344_5566_7788);
}

fn finds_moves_and_sizes_pci_functions(accel: Accel) {
    let mut guest = boot_with_pci(accel, &["-device", "virtio-rng-pci,addr=4"]);
    let console = &mut guest.console;
    let functions = console.ok("pci");
    assert!(functions.contains("[00:00.0 1b36:0008 060000]"), "{functions}");
    assert!(functions.contains("[00:04.0 1af4:1005 00ff00"), "{functions}");
    assert_eq!(number(&console.ok("pci-read 00:04.0 0 4")), 0x1005_1af4);
    assert_eq!(number(&console.ok("pci-read 00:05.0 0 4")), 0xffff_ffff);
    assert!(console.order("pci-size 00:05.0").is_err());

    let bars = console.ok("pci-size 00:04.0");
    let (_, bar4) = bars.split_once("bar4=mem64,").expect("the virtio registers are BAR 4");
    let (address, size) = bar4.split_once(',').expect("an address and a size");
    assert_eq!(number(size), 0x4000);
    // The device answers at the new address: 1 queue in the common configuration, and not at the old one.
    let queues = |base: u64| format!("peek {:#x} 2", base + 0x12);
    let old = number(address);
    assert_eq!(number(&console.ok(&queues(old))), 1);
    let new = old + 0x10_0000;
    console.ok(&format!("pci-move 00:04.0 4 {new:#x}"));
    assert_eq!(number(&console.ok(&queues(new))), 1);
    assert_ne!(number(&console.ok(&queues(old))), 1);
}

/// Arguments of a block device in slot 4 that reads what was written to it, and forgets it at the end.
fn disk(directory: &Path) -> [String; 4] {
    let image = directory.join("disk");
    File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("a disk image can be made");
    [
        "-drive".to_owned(),
        format!("id=disk,if=none,format=raw,file={}", image.display()),
        "-device".to_owned(),
        "virtio-blk-pci,drive=disk,addr=4,num-queues=3,serial=disk-1,packed=on".to_owned(),
    ]
}

fn drives_split_queues(accel: Accel) {
    drives_block_queues(accel, "");
    drives_block_queues(accel, "indirect size 32");
}

fn drives_packed_queues(accel: Accel) {
    drives_block_queues(accel, "packed");
    drives_block_queues(accel, "packed indirect size 50");
}

fn drives_queues_with_events(accel: Accel) {
    drives_block_queues(accel, "event-idx");
    drives_block_queues(accel, "packed event-idx");
}

fn drives_queues_without_interrupts(accel: Accel) {
    drives_block_queues(accel, "poll");
    drives_block_queues(accel, "packed poll queues 3 size 8");
}

fn drives_block_queues(accel: Accel, options: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = disk(directory.path());
    let mut guest = boot_with_pci(accel, &disk.each_ref().map(String::as_str));
    let console = &mut guest.console;
    let devices = console.ok("virtio");
    assert!(devices.contains("[00:04.0 type=2 queues=3 msix=4"), "{devices}");
    assert!(devices.contains("status=0x0 live=0]"), "{devices}");
    let reply = console.ok(&format!("vinit 00:04.0 {options}"));
    assert_eq!(guest::field(&reply, "queues"), 3);
    // VERSION_1, and RING_PACKED as asked for.
    let features = guest::field(&reply, "features");
    assert_ne!(features & 1 << 32, 0);
    assert_eq!(features & 1 << 34 != 0, options.contains("packed"));
    let devices = console.ok("virtio");
    assert!(devices.contains("status=0xf live=3]"), "{devices}");

    // What one queue writes, another reads.
    console.ok(&format!("fill {FREE:#x} 64K 3"));
    let sum = pattern::pattern_checksum(3, 64 << 10);
    let written = console.ok(&format!("vblk-write 00:04.0 0 1000 128 {FREE:#x}"));
    assert_eq!((guest::field(&written, "status"), guest::field(&written, "sum")), (0, sum));
    assert_eq!(guest::field(&console.ok("vblk-flush 00:04.0 1"), "status"), 0);
    let read = console.ok("vblk-read 00:04.0 2 1000 128 0x2800000");
    assert_eq!((guest::field(&read, "status"), guest::field(&read, "sum")), (0, sum));
    let read = console.ok("vblk-read 00:04.0 2 1001 127 0x2800000");
    assert_ne!(guest::field(&read, "sum"), sum);
    assert_eq!(console.ok("vblk-id 00:04.0 1"), "status=0 id=disk-1");
    // Beyond the end: the device's answer, not the guest's.
    assert_eq!(guest::field(&console.ok("vblk-read 00:04.0 0 32768 1 0x2800000"), "status"), 1);

    for order in ["vblk-bench 00:04.0 0 write 4096 8 400", "vblk-bench 00:04.0 1 read 512 2 400 9"] {
        let bench = console.ok(order);
        assert_eq!(guest::field(&bench, "bad"), 0, "{bench}");
        assert!(guest::field(&bench, "ticks") > 0, "{bench}");
        let interrupts = guest::field(&bench, "interrupts");
        assert_eq!(interrupts == 0, options.contains("poll"), "{bench}");
    }
    for _ in 0..2 {
        console.ok(&format!("vblk-submit 00:04.0 2 write 0 8 {FREE:#x}"));
    }
    console.ok("vkick 00:04.0 2");
    assert_eq!(console.ok("vblk-wait 00:04.0 2"), "done=2 bad=0");
    let check = console.ok("vcheck");
    assert!(check.starts_with("asked=3 answered=3 "), "{check}");
    assert_eq!(guest::field(&check, "vectors"), guest::field(&check, "signalled"), "{check}");
    let state = console.ok("vqueue-state 00:04.0 2");
    assert_eq!(state.starts_with("packed"), options.contains("packed"), "{state}");
    assert_eq!(guest::field(&state, "free"), guest::field(&state, "size"), "{state}");

    console.ok("vreset 00:04.0");
    assert!(console.order("vqueue-state 00:04.0 2").is_err());
    assert!(console.ok("virtio").contains("status=0x0 live=0]"));
    assert!(console.order("vinit 00:04.0 queues 4").is_err());
    assert!(console.order("vinit 00:00.0").is_err());
}

fn drives_entropy_and_console(accel: Accel) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("console");
    let chardev = format!("file,id=console,path={}", path.display());
    let mut guest = boot_with_pci(
        accel,
        &[
            "-device",
            "virtio-rng-pci,addr=4",
            "-device",
            "virtio-serial-pci,addr=5",
            "-chardev",
            &chardev,
            "-device",
            "virtconsole,chardev=console",
        ],
    );
    let console = &mut guest.console;
    console.ok("vinit 00:04.0");
    let (first, second) = (console.ok("vrng 00:04.0 64"), console.ok("vrng 00:04.0 64"));
    assert_eq!(guest::field(&first, "len"), 64);
    assert_ne!(guest::field(&first, "sum"), guest::field(&second, "sum"));
    console.ok("vinit 00:05.0");
    console.ok("vcon-write 00:05.0 hello   from ring 3");
    assert_eq!(console.ok("vcon-read 00:05.0"), "none");
    assert_eq!(fs::read_to_string(path).expect("QEMU made it"), "hello from ring 3\n");
}

/// As many queues as 8 network devices of 32 and 16 disks of 4, on as many devices.
fn keeps_320_queues_live(accel: Accel) {
    let mut arguments = Vec::new();
    for slot in 1..=24 {
        arguments.push("-drive".to_owned());
        arguments.push(format!("id=d{slot},if=none,format=raw,file.driver=null-co,file.size=16M"));
        arguments.push("-device".to_owned());
        arguments.push(format!("virtio-blk-pci,drive=d{slot},addr={slot:#x},num-queues=14"));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut guest = boot_with_pci(accel, &arguments);
    for slot in 1..=24 {
        assert_eq!(guest::field(&guest.console.ok(&format!("vinit 00:{slot:02x}.0")), "queues"), 14);
    }
    for _ in 0..3 {
        let check = guest.console.ok("vcheck");
        assert!(check.starts_with("asked=336 answered=336 vectors=62 signalled=62 "), "{check}");
    }
    // Set up once more, the driver takes the same memory.
    let left = guest::field(&guest.console.ok("mem"), "heap_left");
    guest.console.ok("vinit 00:01.0");
    assert_eq!(guest::field(&guest.console.ok("mem"), "heap_left"), left);
}

fn stresses_a_disk(accel: Accel) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = disk(directory.path());
    let mut guest = boot_with_pci(accel, &disk.each_ref().map(String::as_str));
    let console = &mut guest.console;
    for options in ["", "packed event-idx"] {
        console.ok(&format!("vinit 00:04.0 {options}"));
        console.ok("vstress start 00:04.0 1 5");
        while guest::field(&console.ok("vstress"), "rounds") < 100 {}
        assert!(console.order("vblk-wait 00:04.0 1").is_err());
        assert!(console.order("vcheck").is_err());
        let end = console.ok("vstress stop");
        assert!(end.ends_with(" in_flight=0 bad_status=0 bad_data=0"), "{end}");
        assert!(console.ok("vcheck").starts_with("asked=3 answered=3 "));
    }
    // The comparison finds what it is made to find: a block that somebody else overwrites.
    console.ok("vstress start 00:04.0 1 5");
    console.ok("fill 0x2000000 1M 1");
    while guest::field(&console.ok("vstress"), "bad_data") == 0 {
        for chunk in 0..16 {
            console.ok(&format!("vblk-write 00:04.0 0 {} 2048 0x2000000", 2048 * chunk));
        }
    }
}

/// The other end of a network device's wire: frames, each after its length (QEMU's stream network).
struct Wire(UnixStream);

impl Wire {
    fn send(&mut self, frame: &[u8]) {
        let len = u32::try_from(frame.len()).expect("a frame");
        self.0.write_all(&len.to_be_bytes()).expect("QEMU listens");
        self.0.write_all(frame).expect("QEMU listens");
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.0.read_exact(&mut len).expect("QEMU sends");
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(len)).expect("a length")];
        self.0.read_exact(&mut frame).expect("QEMU sends");
        frame
    }
}

/// The Internet checksum (RFC 1071).
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("16 bits")
}

fn answers_on_the_network(accel: Accel) {
    const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wire");
    let listener = UnixListener::bind(&path).expect("a socket");
    let netdev = format!("stream,id=wire,server=off,addr.type=unix,addr.path={}", path.display());
    let device = "virtio-net-pci,netdev=wire,mac=52:54:00:01:02:03,addr=4";
    let mut guest = boot_with_pci(accel, &["-netdev", &netdev, "-device", device]);
    let console = &mut guest.console;
    let mut wire = Wire(listener.accept().expect("QEMU connects").0);
    console.ok("vinit 00:04.0 size 64");

    // Raw frames, both ways.
    let mut frame = [&HOST_MAC[..], &GUEST_MAC, &[0x88, 0xb5]].concat();
    frame.extend(0..46);
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    console.ok(&format!("vnet-tx 00:04.0 0 {hex}"));
    assert_eq!(wire.receive(), frame);
    frame[..6].copy_from_slice(&GUEST_MAC);
    wire.send(&frame);
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(console.ok("vnet-rx 00:04.0 0 10000"), hex);
    assert_eq!(console.ok("vnet-rx 00:04.0 0"), "none");

    // Who has 10.0.0.2?
    console.ok("vnet-serve 00:04.0 10.0.0.2");
    let arp = [0, 1, 8, 0, 6, 4, 0, 1];
    let request =
        [&[0xff; 6], &HOST_MAC[..], &[8, 6], &arp, &HOST_MAC, &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]];
    wire.send(&request.concat());
    let arp = [0, 1, 8, 0, 6, 4, 0, 2];
    let reply =
        [&HOST_MAC[..], &GUEST_MAC, &[8, 6], &arp, &GUEST_MAC, &[10, 0, 0, 2], &HOST_MAC, &[10, 0, 0, 1]];
    assert_eq!(wire.receive(), reply.concat());

    // More pings than the guest has buffers, so that each comes round.
    let ethernet = [&GUEST_MAC[..], &HOST_MAC, &[8, 0]].concat();
    for number in 0..100_u8 {
        let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, number];
        icmp.extend((0..56).map(|byte: u8| byte.wrapping_mul(number)));
        let sum = internet_checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let ip = [0x45, 0, 0, 84, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        wire.send(&[&ethernet[..], &ip, &icmp].concat());
        let reply = wire.receive();
        assert_eq!(reply[..12], [HOST_MAC, GUEST_MAC].concat());
        assert_eq!(reply[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        let answer = &reply[34..];
        assert_eq!((answer[0], internet_checksum(answer)), (0, 0), "ping {number}");
        assert_eq!(answer[4..], icmp[4..]);
    }
    // A UDP datagram to the echo port, and one to another port, which nobody answers.
    for (port, ip_to) in [(8, [10, 0, 0, 2]), (7, [10, 0, 0, 3]), (7, [10, 0, 0, 2])] {
        let ip = [&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1][..], &ip_to].concat();
        wire.send(&[&ethernet[..], &ip, &[0x30, 0x39, 0, port, 0, 12, 0, 0], b"echo"].concat());
    }
    let reply = wire.receive();
    assert_eq!(reply[34..], [&[0, 7, 0x30, 0x39, 0, 12, 0, 0][..], b"echo"].concat());
    assert_eq!(console.ok("vnet-serve"), "answered=102 ignored=2");
    assert!(console.order("vnet-rx 00:04.0 0").is_err());
    console.ok("vnet-serve stop");
    assert!(console.ok("vcheck").starts_with("asked="));
}

fn lives_on_after_a_restore(accel: Accel) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let disk = disk(directory.path());
    let disk = disk.each_ref().map(String::as_str);
    let arguments = [&["-m", "128M", "-smp", "2", "-device", "virtio-rng-pci,addr=5"], &disk[..]].concat();
    let machine = "microvm,pcie=on";
    let (mut guest, mut monitor) =
        Qemu::boot_with_monitor(accel, machine, &arguments, &path("monitor-1"), None);
    let console = &mut guest.console;
    let ready = console.ready();
    console.ok("pci-ecam 0xe0000000 1");
    console.ok("pci-assign 0xc0000000 16M");
    console.ok("vinit 00:04.0 packed event-idx");
    console.ok("vinit 00:05.0");
    console.ok("vcheck");
    console.ok("fill 0x2000000 8M 6");
    console.ok("ticks start 200");
    console.ok("dirty 0x3000000 1M 0");
    console.ok("vstress start 00:04.0 2 9");
    while guest::field(&console.ok("vstress"), "rounds") < 10 {}
    let ticks = number(&console.ok("ticks"));
    monitor.save(&path("state"));
    drop(guest);

    let (mut guest, mut monitor) =
        Qemu::boot_with_monitor(accel, machine, &arguments, &path("monitor-2"), Some(&path("state")));
    monitor.command("cont");
    let console = &mut guest.console;
    assert_eq!(number(&console.ok("nonce")), ready.nonce);
    while number(&console.ok("ticks")) < ticks + 10 {}
    let rounds = guest::field(&console.ok("vstress"), "rounds");
    while guest::field(&console.ok("vstress"), "rounds") < rounds + 10 {}
    assert!(console.ok("vstress stop").ends_with(" in_flight=0 bad_status=0 bad_data=0"));
    assert_eq!(console.ok("verify 0x2000000 8M 6"), "same");
    assert_eq!(guest::field(&console.ok("dirty-state"), "running"), 1);
    assert_eq!(guest::field(&console.ok("dirty-check"), "bad"), 0);
    let check = console.ok("vcheck");
    assert!(check.starts_with("asked=4 answered=4 vectors=4 signalled=4 "), "{check}");
}

fn shuts_down(accel: Accel) {
    for (machine, order) in
        [("microvm", "shutdown"), ("q35", "shutdown"), ("q35", "reset"), ("microvm", "triple")]
    {
        let mut guest = Qemu::boot(accel, machine, "", &["-m", "256M"]);
        guest.console.ready();
        guest.console.send(order);
        // QEMU ends (a reset too, by -no-reboot), and not by the debug exit port.
        assert_eq!(guest.exit_code(), None, "{machine} {order}");
    }
}

fn reports_faults(accel: Accel) {
    let mut guest = boot(accel, "");
    guest.console.ready();
    guest.console.ok("fault");
    let lines: Vec<String> = std::iter::from_fn(|| guest.console.line()).collect();
    assert!(lines.iter().any(|line| line.starts_with("fault vector=6 error=0x0 rip=0x1")), "{lines:?}");
    assert_eq!(guest.exit_code(), Some(0x7e));
}

#[test]
fn is_a_static_elf_at_a_fixed_address() {
    let elf = fs::read(guest::path()).expect("the guest was built");
    assert_eq!(elf[..5], *b"\x7fELF\x02");
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(elf[16], 2, "ET_EXEC");
    let headers = usize::try_from(word(32)).expect("an offset");
    let count = usize::from(elf[56]);
    let mut image_bytes = 0;
    for index in 0..count {
        let header = headers + 56 * index;
        match elf[header] {
            1 => image_bytes += word(header + 32),
            2 | 3 => panic!("the guest wants a dynamic linker"),
            _ => {}
        }
    }
    assert!((1..192 << 10).contains(&image_bytes), "{image_bytes} bytes to load");
}
