//! The test guest in QEMU, under software emulation and under KVM: it boots, and each order does what it says.

use std::env;
use std::fs::{self, File};

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
    assert!((1..128 << 10).contains(&image_bytes), "{image_bytes} bytes to load");
}
