//! A guest that writes junk to every register there is, in every width: it gets on each device a device that works again,
//! on the others what it had, and the VMM goes on. The orders are in docs/test-guest.md.

use std::{fs::File, io::Read};

use cumulet_tests::{
    cumulet::{self, Vm},
    guest, saved,
};

/// First address that is the tests' own (docs/test-guest.md).
const FREE: u64 = 32 << 20;
/// Past what the guest's junk queues are given.
const KEPT: u64 = 64 << 20;

/// Classes of the functions, as `pci` lists them.
const HOST_BRIDGE: &str = "060000";
const DISK: &str = "018000";
const NET: &str = "020000";
const CONSOLE: &str = "078000";
const RNG: &str = "ff0000";
/// The entropy source has the same.
const PMEM: &str = "ff0000 persistent memory";
/// Its device number, behind that of the vendor.
const PMEM_NUMBER: &str = "1af4:105b";
const SOCKET: &str = "028000";

/// A machine with a device of each kind, and a second disk that is left alone but for its work.
struct Junkyard {
    vm: Vm,
    witness: String,
    functions: Vec<(String, String)>,
    _images: [tempfile::NamedTempFile; 2],
    _stores: tempfile::TempDir,
    _console: tempfile::NamedTempFile,
    _sockets: tempfile::TempDir,
}

impl Junkyard {
    fn new(cpus: &str, more: &[&str]) -> Self {
        let images = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a file can be made"));
        let console = tempfile::NamedTempFile::new().expect("a file can be made");
        let [junked, witness] = images.each_ref().map(|image| {
            image.as_file().set_len(1 << 20).expect("it can be sized");
            format!("path={},image_type=raw,num_queues=2", image.path().display())
        });
        let stores = saved::quick_directory();
        let store = stores.path().join("store");
        File::create(&store).and_then(|file| file.set_len(2 << 20)).expect("there is room");
        let store = format!("file={}", store.display());
        let to_file = format!("file={}", console.path().display());
        let sockets = tempfile::tempdir().expect("a directory can be made");
        let socket = format!("cid=3,socket={}", sockets.path().join("socket").display());
        let arguments = [
            &[
                "--cpus",
                cpus,
                "--memory",
                "size=128M",
                "--console",
                &to_file,
                "--disk",
                &junked,
                &witness,
                "--pmem",
                &store,
                "--vsock",
                &socket,
            ][..],
            if cumulet::may_make_taps() { &["--net", "mac=2e:00:00:00:00:01,num_queues=4"][..] } else { &[] },
            more,
        ]
        .concat();
        let mut vm = Vm::boot("", &arguments);
        vm.console.ready();
        let listed = vm.console.ok("pci");
        let functions: Vec<(String, String)> = listed
            .split('[')
            .filter_map(|function| {
                let mut words = function.split([' ', ']']);
                let (bdf, number, class) = (words.next()?, words.next()?, words.next()?);
                let class = if number == PMEM_NUMBER { PMEM } else { class };
                Some((bdf.to_owned(), class.to_owned()))
            })
            .collect();
        let witness = functions.iter().rfind(|(_, class)| class == DISK).expect("there are disks").0.clone();
        vm.console.ok(&format!("vinit {witness}"));
        // What a junk queue finds in memory is junk as well.
        vm.console.ok(&format!("fill {FREE:#x} 32M 1"));
        vm.console.ok(&format!("fill {KEPT:#x} 1M 2"));
        let mut yard = Self {
            vm,
            witness,
            functions,
            _images: images,
            _stores: stores,
            _console: console,
            _sockets: sockets,
        };
        yard.others_are_well();
        yard
    }

    /// The functions of a class but for the witness.
    fn of(&self, class: &str) -> Vec<String> {
        let wanted = |(bdf, is): &&(String, String)| is == class && *bdf != self.witness;
        self.functions.iter().filter(wanted).map(|(bdf, _)| bdf.clone()).collect()
    }

    /// The guest answers, its memory is its own, and the other disk works, with its interrupts.
    fn others_are_well(&mut self) {
        self.vm.console.ok("ping");
        assert_eq!(self.vm.console.ok(&format!("verify {KEPT:#x} 1M 2")), "same");
        let checked = self.vm.console.ok("vcheck");
        let count = |name: &str| guest::field(&checked, name);
        assert!(count("asked") >= 2, "{checked}");
        assert_eq!((count("answered"), count("signalled")), (count("asked"), count("vectors")), "{checked}");
    }

    /// A device that was given junk works again once it is set up.
    fn works_again(&mut self, bdf: &str, class: &str) {
        let set_up = self.vm.console.ok(&format!("vinit {bdf}"));
        self.others_are_well();
        match class {
            CONSOLE => {
                let line = format!("after the junk {set_up}");
                self.vm.console.ok(&format!("vcon-write {bdf} {line}"));
                let mut said = String::new();
                let mut file = self._console.reopen().expect("it is there");
                // The device has used the line before the order is answered.
                file.read_to_string(&mut said).expect("the guest said text");
                assert!(said.contains(&line), "{said:?}");
            }
            PMEM => {
                // Wherever its BAR was, its window is where it was.
                self.vm.console.ok(&format!("vpmem {bdf}"));
                assert_eq!(self.vm.console.ok(&format!("vpmem-flush {bdf}")), "ret=0x0");
            }
            SOCKET => {
                self.vm.console.ok(&format!("vsock-serve {bdf} 7"));
                // Nobody listens there, which the device is there to say.
                let said = self.vm.console.order("vsock-connect 7").expect_err("there is nobody");
                assert!(said.contains("the host refuses"), "{said}");
            }
            RNG => assert!(self.vm.console.ok(&format!("vrng {bdf} 64")).starts_with("len=64 ")),
            _ => {}
        }
        self.vm.console.ok(&format!("vreset {bdf}"));
    }

    /// Ends the run as the guest wants it, with a log that did not grow with what the guest did.
    fn end(mut self) {
        self.others_are_well();
        self.vm.console.send("exit 9");
        let (status, said) = self.vm.end();
        assert_eq!(status.code(), Some(9), "{said}");
        assert!(said.len() < 64 << 10, "the guest can fill the log: {said}");
    }
}

/// Junk for every function of a class: first as the machine has it from boot, then with queues in use.
fn junk_is_survived(class: &str) {
    if !cumulet::kvm_is_usable() || (class == NET && !cumulet::may_make_taps()) {
        return;
    }
    let mut yard = Junkyard::new("boot=2", &[]);
    let functions = yard.of(class);
    assert!(!functions.is_empty(), "{:?}", yard.functions);
    for bdf in functions {
        for (seed, active) in [(11, false), (12, true), (13, true)] {
            if active {
                yard.vm.console.ok(&format!("vinit {bdf}"));
            }
            if active && class == DISK {
                for sector in 0..4 {
                    yard.vm.console.ok(&format!("vblk-submit {bdf} 1 read {sector} 8 {FREE:#x}"));
                }
            }
            let written = yard.vm.console.ok(&format!("junk {bdf} {seed}"));
            assert!(guest::field(&written, "config") > 9000, "{written}");
            assert!(guest::field(&written, "bars") > 9000, "{written}");
            yard.works_again(&bdf, class);
        }
    }
    yard.end();
}

#[test]
fn junk_for_a_disk() {
    junk_is_survived(DISK);
}

#[test]
fn junk_for_a_network_device() {
    junk_is_survived(NET);
}

#[test]
fn junk_for_a_console() {
    junk_is_survived(CONSOLE);
}

#[test]
fn junk_for_an_entropy_device() {
    junk_is_survived(RNG);
}

#[test]
fn junk_for_persistent_memory() {
    junk_is_survived(PMEM);
}

#[test]
fn junk_for_a_socket_device() {
    junk_is_survived(SOCKET);
}

#[test]
fn junk_for_bridges_and_for_nobody() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut yard = Junkyard::new("boot=2", &["--platform", "num_pci_segments=2"]);
    let mut functions = yard.of(HOST_BRIDGE);
    assert_eq!(functions, ["00:00.0", "0001:00:00.0"]);
    // A slot that is empty, a function that no device has, a bus that is not there.
    functions.extend(["00:1f.0", "00:00.7", "01:00.0"].map(str::to_owned));
    for (seed, bdf) in (21..).zip(functions) {
        let written = yard.vm.console.ok(&format!("junk {bdf} {seed}"));
        // Bus 1 is in no window: it is the ports' alone.
        let least = if bdf == "01:00.0" { 800 } else { 8700 };
        assert!(guest::field(&written, "config") > least, "{written}");
        assert_eq!(guest::field(&written, "bars"), 0);
        yard.others_are_well();
    }
    yard.end();
}

#[test]
fn a_bar_on_top_of_something_hides_nothing() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut yard = Junkyard::new("boot=2", &[]);
    let bdf = yard.of(DISK).remove(0);
    let bars = |listed: &str, bdf: &str| {
        let (_, function) = listed.split_once(&format!("[{bdf} ")).expect("the function is there");
        let (_, bar) = function.split_once("bar0=mem64,").expect("it has a BAR");
        guest::number(bar.split_once(']').expect("the list ends").0)
    };
    let listed = yard.vm.console.ok("pci");
    let (own, witness) = (bars(&listed, &bdf), bars(&listed, &yard.witness));
    let places =
        [KEPT, 0, 1 << 20, witness, witness + 0x1000, 0xe000_0000, 0xfec0_0000, 0xfee0_0000, 0xffff_8000];
    for place in places {
        for active in [false, true] {
            if active {
                yard.vm.console.ok(&format!("vinit {bdf}"));
            }
            let put = |yard: &mut Junkyard, address: u64| {
                // With decoding on, first one half of the address and then the other.
                yard.vm.console.ok(&format!("pci-write {bdf} 0x14 4 {:#x}", address >> 32));
                yard.vm.console.ok(&format!("pci-write {bdf} 0x10 4 {:#x}", address & 0xffff_ffff));
            };
            put(&mut yard, place);
            // A driver whose device is gone waits in vain.
            if !active {
                yard.others_are_well();
            }
            assert_eq!(yard.vm.console.ok(&format!("verify {KEPT:#x} 1M 2")), "same");
            put(&mut yard, own);
            yard.others_are_well();
        }
        yard.works_again(&bdf, DISK);
    }
    yard.end();
}

/// Ports of the platform's devices: the keyboard controller, the clock, the debug port, the serial port, the panic
/// notifier, the registers of ACPI with the PM timer, PCI configuration with the reset register; and some of nobody.
const PORTS: [(u16, u16); 9] = [
    (0x60, 8),
    (0x70, 8),
    (0x80, 4),
    (0x3f0, 0x18),
    (0x4f8, 0x10),
    (0x5f8, 0x20),
    (0xcf0, 0x18),
    (0x8000, 4),
    (0xfff0, 0x10),
];

/// Addresses of the event device, the I/O APIC, and of nobody.
const MMIO: [(u64, u64); 4] = [(0xf000_0000, 32), (0xfec0_0000, 96), (0xfed0_0000, 32), (0xf800_0000, 32)];

fn junk_on_the_platform(cpus: &str) {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut yard = Junkyard::new(cpus, &["--pvpanic"]);
    for (seed, (first, count)) in (31..).zip(PORTS) {
        yard.vm.console.send(&format!("junk-ports {first:#x} {count} {seed}"));
        // What the serial port was made to send comes before the answer.
        let written = loop {
            let line = yard.vm.console.line().expect("the guest goes on");
            assert!(!line.starts_with("err "), "{line}");
            if let Some(result) = line.strip_prefix("ok writes=") {
                break guest::number(result.trim_end());
            }
        };
        assert!(written >= u64::from(count) * 2, "{written}");
        yard.others_are_well();
    }
    for (seed, (address, len)) in (41..).zip(MMIO) {
        yard.vm.console.ok(&format!("junk-memory {address:#x} {len} {seed}"));
        yard.others_are_well();
    }
    yard.end();
}

#[test]
fn junk_for_the_platform() {
    junk_on_the_platform("boot=2");
}

#[test]
fn junk_for_the_platform_with_an_io_apic_of_our_own() {
    // The kernel has no I/O APIC where an APIC id takes more than eight bits.
    junk_on_the_platform("boot=2,max=300");
}
