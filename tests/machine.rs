//! The test guest on Cumulet, on the host's own hypervisor: it boots, obeys, and ends as it should; and what cannot be
//! booted is refused in one line that says why.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::{fs::OpenOptionsExt, net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use cumulet_tests::{
    cumulet::{self, Vm},
    guest::{self, Console},
};
use rustix::{
    fs::OFlags,
    process::{Resource, Rlimit, Signal, setrlimit},
    pty::{OpenptFlags, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use test_guest::pattern;

/// First address that is the tests' own (docs/test-guest.md).
const FREE: u64 = 32 << 20;

#[test]
fn boots_obeys_and_ends_with_the_guests_code() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut vm = Vm::boot("", &["--cpus", "boot=2", "--memory", "size=256M"]);
    let ready = vm.console.ready();
    // The first megabyte and what the tables take are not RAM to the guest.
    assert!((255 << 20..=256 << 20).contains(&ready.memory_bytes), "{ready:?}");
    vm.console.ok("ping");
    vm.console.ok(&format!("fill {FREE:#x} 1M 7"));
    assert_eq!(vm.console.ok(&format!("verify {FREE:#x} 1M 7")), "same");
    let sum = guest::number(&vm.console.ok(&format!("sum {FREE:#x} 4096")));
    assert_eq!(sum, pattern::pattern_checksum(7, 4096));
    vm.console.send("exit 42");
    assert_eq!(vm.exit_code(), 42);
}

#[test]
fn every_processor_runs() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut vm = Vm::boot("", &["--cpus", "boot=4", "--memory", "size=128M"]);
    assert_eq!(vm.console.ready().cpus, 4);
    vm.console.send("exit 0");
    assert_eq!(vm.exit_code(), 0);
}

#[test]
fn processors_beyond_eight_bits_of_apic_id_run() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    // 9 cores of a die and 9 dies take 256 ids for 81 processors.
    let mut vm = Vm::boot("", &["--cpus", "boot=83,max=162,topology=1:9:9:2", "--memory", "size=128M"]);
    assert_eq!(vm.console.ready().cpus, 83);
    let ids = vm.console.ok("cpus");
    assert!(ids.contains("256") && ids.contains("257"), "{ids}");
    // KVM_FEATURE_MSI_EXT_DEST_ID: bit 15 of eax.
    let features = vm.console.ok("cpuid 0x40000001");
    assert_ne!(guest::number(features.split_ascii_whitespace().next().unwrap()) & 1 << 15, 0, "{features}");
    vm.console.send("exit 0");
    assert_eq!(vm.exit_code(), 0);
}

#[test]
fn memory_can_be_shared_and_reach_beyond_the_hole() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut vm = Vm::boot("", &["--memory", "size=5G,shared=on"]);
    let ready = vm.console.ready();
    assert!(ready.memory_bytes > (5 << 30) - (2 << 20), "{ready:?}");
    let above = 0x1_0000_0000u64;
    vm.console.ok(&format!("fill {above:#x} 64K 9"));
    assert_eq!(vm.console.ok(&format!("verify {above:#x} 64K 9")), "same");
    vm.console.send("exit 1");
    assert_eq!(vm.exit_code(), 1);
}

#[test]
fn hidden_features_are_hidden() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    // CPUID leaf 1, ECX, bit 13. (Other bits are no example: a back end that runs the guest's user code natively shows
    // the host's for most of them, whatever table it is given. What the table holds is tested in `arch`.)
    let cx16 = |hide: &str| {
        let mut vm = Vm::boot("", &["--cpus", &format!("boot=1{hide}")]);
        vm.console.ready();
        let leaf = vm.console.ok("cpuid 1");
        guest::number(leaf.split_ascii_whitespace().nth(2).unwrap()) & 1 << 13
    };
    assert_ne!(cx16(""), 0);
    assert_eq!(cx16(",hide=[cx16]"), 0);
}

#[test]
fn a_reset_boots_anew_in_the_same_process() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut vm = Vm::boot("", &["--memory", "size=64M"]);
    let mut nonces = vec![vm.console.ready().nonce];
    for order in ["reset", "triple", "reset"] {
        vm.console.send(order);
        nonces.push(vm.console.ready().nonce);
    }
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), 4, "each boot has its own nonce");
    vm.console.send("exit 5");
    assert_eq!(vm.exit_code(), 5);
}

#[test]
fn power_off_is_a_normal_end() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    // The sleep control register: sleep type 5, enable.
    let vm = Vm::boot("out 0x600 1 0x34", &["--memory", "size=64M"]);
    assert_eq!(vm.exit_code(), 0);
}

#[test]
fn a_signal_is_a_normal_end() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    for name in ["TERM", "INT"] {
        let mut vm = Vm::boot("", &["--cpus", "boot=2"]);
        vm.console.ready();
        vm.signal(name);
        assert_eq!(vm.exit_code(), 0, "SIG{name}");
    }
}

#[test]
fn the_report_tells_one_commit() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vm = Vm::boot("exit 0", &["--report"]);
    let (status, said) = vm.end();
    assert!(status.success(), "{said}");
    assert!(said.starts_with("commit 1 (boot): "), "{said}");
    assert_eq!(said.matches("commit ").count(), 1, "{said}");
}

#[test]
fn the_keyboard_controller_resets() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut vm = Vm::boot("", &["--memory", "size=64M"]);
    let first = vm.console.ready().nonce;
    // Any other command, and the data port, do nothing.
    vm.console.ok("out 0x64 1 0xfd");
    vm.console.ok("out 0x60 1 0xfe");
    assert_eq!(guest::number(&vm.console.ok("nonce")), first);
    vm.console.send("out 0x64 1 0xfe");
    assert_ne!(vm.console.ready().nonce, first);
    vm.console.send("exit 7");
    assert_eq!(vm.exit_code(), 7);
}

#[test]
fn a_device_of_the_second_segment_works() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let images = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    let [first, second] = images.each_ref().map(|image| {
        image.as_file().set_len(1 << 20).unwrap();
        format!("path={},image_type=raw", image.path().to_str().unwrap())
    });
    let second = format!("{second},pci_segment=1");
    let mut vm =
        Vm::boot("", &["--platform", "num_pci_segments=2", "--disk", first.as_str(), second.as_str()]);
    vm.console.ready();
    let functions = vm.console.ok("pci");
    let disks: Vec<&str> = functions
        .split('[')
        .filter_map(|function| function.split_once(" 1af4:1042 ").map(|(address, _)| address))
        .collect();
    assert!(matches!(disks[..], [_, "0001:00:01.0"]), "{functions}");
    assert!(functions.contains("[0001:00:00.0 8086:0d57 060000]"), "{functions}");
    vm.console.ok(&format!("fill {FREE:#x} 4096 11"));
    for disk in disks {
        vm.console.ok(&format!("vinit {disk}"));
    }
    let checked = vm.console.ok("vcheck");
    assert!(checked.starts_with("asked=2 answered=2 vectors=2 signalled=2 "), "{checked}");
    assert!(vm.console.ok(&format!("vblk-write 0001:00:01.0 0 16 8 {FREE:#x}")).starts_with("status=0 "));
    vm.console.send("exit 2");
    assert_eq!(vm.exit_code(), 2);
    let written = images.map(|image| fs::read(image.path()).unwrap());
    assert!(written[0].iter().all(|byte| *byte == 0), "the other disk is untouched");
    assert_eq!(written[1][8192..8200], pattern::word(11, 0).to_le_bytes());
}

#[test]
fn a_tap_is_made_and_set_up_as_configured() {
    if !cumulet::kvm_is_usable() || !cumulet::may_make_taps() {
        return;
    }
    let tap = format!("cmv{:x}", std::process::id());
    let net = format!(
        "tap={tap},mac=2e:01:02:03:04:05,host_mac=2e:0a:0b:0c:0d:0e,mtu=1400,ip=192.0.2.1,mask=255.255.255.0"
    );
    let mut vm = Vm::boot("", &["--net", &net]);
    let host_side = |file: &str| {
        let read = fs::read_to_string(format!("/sys/class/net/{tap}/{file}"));
        read.map(|text| text.trim().to_owned())
    };
    for _ in 0..2 {
        vm.console.ready();
        assert_eq!(host_side("address").unwrap(), "2e:0a:0b:0c:0d:0e");
        assert_eq!(host_side("mtu").unwrap(), "1400");
        // IFF_UP.
        assert_eq!(guest::number(&host_side("flags").unwrap()) & 1, 1);
        let functions = vm.console.ok("pci");
        let bdf = functions.split('[').find_map(|function| function.split_once(" 1af4:1041 ")).unwrap().0;
        // VIRTIO_NET_F_MTU: what the guest is told, behind its MAC address.
        let offered = vm.console.ok(&format!("vinit {bdf} features 0x8"));
        assert_ne!(guest::field(&offered, "features") & 1 << 3, 0, "{offered}");
        let told = |vm: &mut Vm, at: u32| {
            let read = vm.console.ok(&format!("vconfig {bdf} {at} 2"));
            guest::number(read.split_ascii_whitespace().next().unwrap())
        };
        assert_eq!([0, 2, 4, 10].map(|at| told(&mut vm, at)), [0x012e, 0x0302, 0x0504, 1400]);
        // The guest boots anew, and so is the host's end.
        vm.console.send("reset");
    }
    vm.console.ready();
    vm.console.send("exit 4");
    assert_eq!(vm.exit_code(), 4);
    assert!(host_side("mtu").is_err(), "it goes with the machine");
}

#[test]
fn a_bar_moves_with_its_doorbells() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = format!("path={},image_type=raw,num_queues=4", image.path().to_str().unwrap());
    let mut vm = Vm::boot("", &["--cpus", "boot=4", "--disk", &disk]);
    vm.console.ready();
    let functions = vm.console.ok("pci");
    let address = |functions: &str| {
        let (_, disk) = functions.split_once(" 1af4:1042 ").expect("there is a disk");
        let (_, bar) = disk.split_once("bar0=mem64,").expect("it has a BAR");
        guest::number(bar.split_once(']').unwrap().0)
    };
    let bdf = functions.split('[').find_map(|function| function.split_once(" 1af4:1042 ")).unwrap().0;
    vm.console.ok(&format!("vinit {bdf}"));
    let works = |vm: &mut Vm| {
        let checked = vm.console.ok("vcheck");
        assert!(checked.starts_with("asked=4 answered=4 vectors=4 signalled=4 "), "{checked}");
    };
    works(&mut vm);
    let first = address(&functions);
    for new in [first + (1 << 30), first + (1 << 30) + (1 << 20), first] {
        let old = address(&vm.console.ok("pci"));
        vm.console.ok(&format!("pci-move {bdf} 0 {new:#x}"));
        assert_eq!(address(&vm.console.ok("pci")), new);
        works(&mut vm);
        // The number of queues in the common configuration, and nobody where it was.
        assert_eq!(guest::number(&vm.console.ok(&format!("peek {:#x} 2", new + 0x12))), 4);
        assert_eq!(guest::number(&vm.console.ok(&format!("peek {:#x} 2", old + 0x12))), 0xffff);
    }
    vm.console.send("exit 3");
    assert_eq!(vm.exit_code(), 3);
}

/// Runs the program with options that cannot be, and returns the one line that it says.
fn refusal(arguments: &[&str]) -> String {
    let (code, said) = cumulet::refusal(arguments);
    assert_eq!(code, Some(1), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "one line says it all: {said}");
    said
}

fn refused_kernel(path: &Path, memory: &str) -> String {
    refusal(&[
        "--kernel",
        path.to_str().expect("a path of ours is text"),
        "--memory",
        memory,
        "--console",
        "off",
    ])
}

/// A copy of the test guest with some bytes changed, cut to a length.
fn damaged(directory: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut image = fs::read(guest::path()).expect("the guest can be read");
    change(&mut image);
    let path = directory.join(name);
    fs::write(&path, image).expect("a copy can be written");
    path
}

#[test]
fn kernels_that_cannot_be_booted_are_refused() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let cases = [
        (place.join("missing"), "No such file"),
        (place.to_path_buf(), "not a regular file"),
        (damaged(place, "empty", Vec::clear), "is empty"),
        (damaged(place, "text", |image| image.splice(0..4, *b"#!/b").for_each(drop)), "23 21 2f 62"),
        (damaged(place, "truncated", |image| image.truncate(100)), "truncated"),
        (damaged(place, "machine", |image| image[18] = 40), "machine is 0x28"),
    ];
    for (kernel, expected) in cases {
        let said = refused_kernel(&kernel, "size=64M");
        assert!(said.contains(expected), "{}: {said:?} has no {expected:?}", kernel.display());
        assert!(said.contains("kernel"), "{said}");
    }
    let said = refused_kernel(guest::path(), "size=1M");
    assert!(said.contains("memory") || said.contains("RAM"), "{said}");
}

/// Where in the flash image below there is a byte to be read and written.
const FLASH_BYTE: usize = 0x100;

/// A flat firmware image of 64 KiB: it tries to write `X` over a byte of itself, says the byte on COM1 and exits with 42.
fn flash_image() -> Vec<u8> {
    let code: &[&[u8]] = &[
        &[0x2e, 0xc6, 0x06, 0x00, 0x01, b'X'], // mov byte [cs:0x100], 'X'
        &[0x2e, 0xa0, 0x00, 0x01],             // mov al, [cs:0x100]
        &[0xba, 0xf8, 0x03],                   // mov dx, 0x3f8
        &[0xee],                               // out dx, al
        &[0xb0, b'\n'],                        // mov al, '\n'
        &[0xee],                               // out dx, al
        &[0xba, 0x01, 0x05],                   // mov dx, 0x501
        &[0xb0, 42],                           // mov al, 42
        &[0xee],                               // out dx, al
        &[0xf4],                               // hlt
    ];
    let mut image = vec![0x90; 64 << 10];
    image.splice(..code.concat().len(), code.concat());
    image[FLASH_BYTE] = b'F';
    // At the reset vector: jmp to the image's first byte.
    image.splice(0xfff0..0xfff3, [0xe9, 0x0d, 0x00]);
    image
}

#[test]
fn flat_firmware_runs_from_the_reset_vector_and_cannot_be_written() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flash");
    fs::write(&path, flash_image()).unwrap();
    let firmware = ["--firmware", path.to_str().unwrap(), "--memory", "size=64M", "--console", "off"];
    let consoles = ["--serial", "tty", "--debug-exit", "0x501"];
    let ran = cumulet::run(cumulet::path(), &[&firmware[..], &consoles].concat(), "");
    assert_eq!((ran.code, ran.stdout.trim_end()), (Some(42), "F"), "{}", ran.stderr);
    // Nor is the file.
    assert_eq!(fs::read(&path).unwrap()[FLASH_BYTE], b'F');
}

#[test]
fn firmware_that_cannot_be_started_is_refused() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let written = |name: &str, content: &[u8]| {
        fs::write(place.join(name), content).unwrap();
        place.join(name)
    };
    let cases = [
        (place.join("missing"), "No such file"),
        (place.to_path_buf(), "not a regular file"),
        (written("empty", &[]), "is empty"),
        (written("odd", &flash_image()[1..]), "expected a multiple of 4096"),
        (written("large", &vec![0x90; (16 << 20) + 4096]), "expected a multiple of 4096 up to 0x1000000"),
        (written("blank", &[0xff; 64 << 10]), "no firmware"),
    ];
    for (firmware, expected) in cases {
        let path = firmware.to_str().unwrap();
        let said = refusal(&["--firmware", path, "--console", "off"]);
        assert!(said.contains("firmware") && said.contains(path), "{said}");
        assert!(said.contains(expected), "{path}: {said:?} has no {expected:?}");
    }
}

#[test]
fn initramfs_images_that_cannot_be_loaded_are_refused() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    fs::write(place.join("empty"), []).unwrap();
    let cases = [
        (place.join("missing"), "No such file"),
        (place.to_path_buf(), "not a regular file"),
        (place.join("empty"), "is empty"),
    ];
    let kernel = guest::path().to_str().unwrap();
    for (initramfs, expected) in cases {
        let path = initramfs.to_str().unwrap();
        let said = refusal(&["--kernel", kernel, "--initramfs", path, "--console", "off"]);
        assert!(said.contains("initramfs") && said.contains(path), "{said}");
        assert!(said.contains(expected), "{path}: {said:?} has no {expected:?}");
    }
}

#[test]
fn disks_that_cannot_be_used_are_refused() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    fs::write(place.join("empty"), []).unwrap();
    fs::write(place.join("short"), [0; 511]).unwrap();
    let cases = [
        (place.join("missing"), "No such file"),
        (place.to_path_buf(), "directory"),
        (place.join("empty"), "0 bytes, less than a sector"),
        (place.join("short"), "511 bytes, less than a sector"),
    ];
    let kernel = guest::path().to_str().unwrap();
    for (image, expected) in cases {
        let path = image.to_str().unwrap();
        for options in ["", ",image_type=raw", ",readonly=on"] {
            let disk = format!("path={path}{options},id=root");
            let said = refusal(&["--kernel", kernel, "--console", "off", "--disk", &disk]);
            assert!(said.contains("device root") && said.contains(path), "{said}");
            assert!(said.contains(expected), "{disk}: {said:?} has no {expected:?}");
        }
    }
}

#[test]
fn an_id_that_is_there_twice_is_refused() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let kernel = guest::path().to_str().unwrap();
    let cases: [&[&str]; 4] = [
        &["--disk", "path=/a,id=twin", "path=/b,id=twin"],
        &["--disk", "path=/a,id=twin", "--net", "tap=none,id=twin"],
        &["--disk", "path=/a,id=twin", "--rng", "src=/dev/urandom,id=twin"],
        &["--memory", "size=0", "--memory-zone", "id=twin,size=32M", "id=twin,size=32M"],
    ];
    for arguments in cases {
        let said = refusal(&[&["--kernel", kernel, "--console", "off"], arguments].concat());
        assert!(said.contains("twin is not unique"), "{arguments:?}: {said}");
    }
}

#[test]
fn an_image_is_locked_against_other_machines() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let path = image.path().to_str().unwrap();
    let writing = format!("path={path},image_type=raw");
    let reading = format!("{writing},readonly=on");
    let kernel = guest::path().to_str().unwrap();
    let refused = |disk: &str| {
        let said = refusal(&["--kernel", kernel, "--console", "off", "--disk", disk]);
        assert!(said.contains(path) && said.contains("in use"), "{said}");
    };

    let mut writer = Vm::boot("", &["--disk", &writing]);
    writer.console.ready();
    refused(&writing);
    refused(&reading);
    // A guest that boots anew keeps its image.
    writer.console.send("reset");
    writer.console.ready();
    refused(&writing);
    writer.console.send("exit 3");
    assert_eq!(writer.exit_code(), 3);

    let mut readers = [(); 2].map(|()| Vm::boot("", &["--disk", &reading]));
    for reader in &mut readers {
        reader.console.ready();
    }
    refused(&writing);
    for mut reader in readers {
        reader.console.send("exit 4");
        assert_eq!(reader.exit_code(), 4);
    }
}

#[test]
fn the_socket_of_a_serial_port_is_there_as_long_as_the_vm() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let target = format!("socket={}", path.display());
    let kernel = guest::path().to_str().unwrap();
    let arguments = ["--kernel", kernel, "--serial", &target, "--console", "off", "--debug-exit", "0x501"];
    fs::write(&path, "somebody's").unwrap();
    let said = refusal(&arguments);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("in use"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    fs::remove_file(&path).unwrap();

    let running = std::thread::spawn({
        let arguments = arguments.map(str::to_owned);
        move || cumulet::refusal(&arguments)
    });
    let connect = || {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Console::new(stream.try_clone().unwrap(), stream),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut console = connect();
    let first = console.ready().nonce;
    console.send("reset");
    // The end of the connection is the end of the old machine.
    while console.line().is_some() {}
    let mut console = connect();
    assert_ne!(console.ready().nonce, first);
    console.send("exit 6");
    assert_eq!(running.join().unwrap().0, Some(6));
    assert!(!path.exists());
}

#[test]
fn the_terminal_is_given_back() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    // `script` is the terminal emulator.
    let directory = tempfile::tempdir().unwrap();
    let run = format!(
        "cd {}; stty -a > before; {} --kernel {} --serial tty --console off --debug-exit 0x501 --cmdline 'exit 8'; \
         echo $? > code; stty -a > after",
        directory.path().display(),
        cumulet::path().display(),
        guest::path().display(),
    );
    let ended = Command::new("script").args(["-q", "-e", "-c", &run, "/dev/null"]).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!(read("code").trim(), "8");
    assert_eq!(read("before"), read("after"));
    assert!(read("after").contains(" echo "), "{}", read("after"));
}

/// A VM whose standard input is a terminal of ours: our side, the other, and the VM. The terminal is the one that its
/// process is controlled by.
fn vm_on_a_terminal() -> io::Result<(File, File, Child)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?.into_string().map_err(io::Error::other)?;
    let theirs = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(name)?;
    // No dump of a guest's memory.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let mut vm = Command::new("setsid")
        .arg("--ctty")
        .arg(cumulet::path())
        .arg("--kernel")
        .arg(guest::path())
        .args(["--serial", "tty", "--console", "off", "--memory", "size=64M", "--debug-exit", "0x501"])
        .stdin(theirs.try_clone()?)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(vm.stdout.take().expect("it is piped"));
    let mut line = String::new();
    lines.read_line(&mut line)?;
    assert!(line.contains("test-guest ready"), "{line:?}");
    Ok((ours.into(), theirs, vm))
}

fn echoes(terminal: &File) -> bool {
    tcgetattr(terminal).expect("it is a terminal").local_modes.contains(LocalModes::ECHO)
}

#[test]
fn every_signal_that_ends_the_process_gives_the_terminal_back() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    // The last is a real-time signal, which every `kill` calls by another name.
    for name in [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "USR1", "SEGV", "USR2", "ALRM", "TERM",
        "STKFLT", "VTALRM", "PROF", "XCPU", "POLL", "PWR", "SYS", "64",
    ] {
        let (_ours, terminal, mut vm) = vm_on_a_terminal().unwrap();
        assert!(!echoes(&terminal), "SIG{name}: the guest has the terminal");
        let sent = Command::new("kill").args([&format!("-{name}"), &vm.id().to_string()]).status();
        assert!(sent.unwrap().success(), "SIG{name}");
        let status = vm.wait().unwrap();
        assert!(echoes(&terminal), "SIG{name}: {status}");
        // Whoever waits for it learns the truth.
        let orderly = ["INT", "TERM"].contains(&name);
        assert_eq!((status.success(), status.signal().is_some()), (orderly, !orderly), "SIG{name}: {status}");
    }
}

#[test]
fn a_terminal_that_goes_away_ends_the_process() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let (ours, theirs, mut vm) = vm_on_a_terminal().unwrap();
    drop(theirs);
    drop(ours);
    assert_eq!(vm.wait().unwrap().signal(), Some(Signal::HUP.as_raw()));
}

/// Reads so late the first few times that more has come than there is room for.
struct SlowReader(File, u32);

impl Read for SlowReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1 > 0 {
            self.1 -= 1;
            thread::sleep(Duration::from_millis(50));
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_service_without_input_gives_all_its_output_to_a_slow_reader() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let (output, theirs) = rustix::pipe::pipe().unwrap();
    // The smallest pipe: one page, which is full as soon as there is a byte.
    rustix::pipe::fcntl_setpipe_size(&theirs, 4096).unwrap();
    let orders = "mem;".repeat(50) + "nonce";
    let mut vm = Command::new(cumulet::path())
        .arg("--kernel")
        .arg(guest::path())
        .args(["--serial", "tty", "--console", "off", "--cmdline", &orders])
        .stdin(Stdio::null())
        .stdout(theirs)
        .spawn()
        .unwrap();
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut output = BufReader::new(SlowReader(File::from(output), 8));
        let mut line = String::new();
        while output.read_line(&mut line).is_ok_and(|length| length > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                break;
            }
        }
    });
    let mut seen = Vec::new();
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(60)) {
        seen.push(line);
        if seen.len() == 52 {
            break;
        }
    }
    vm.kill().unwrap();
    vm.wait().unwrap();
    let last = seen.last().map_or("", String::as_str);
    assert!(seen.len() == 52 && last.starts_with("ok 0x"), "{} lines, the last is {last:?}", seen.len());
}

#[test]
fn machines_that_cannot_be_are_refused() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let kernel = guest::path().to_str().unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["--cpus", "boot=0"], "at least 1 vCPU"),
        (&["--cpus", "boot=5000,max=5000"], "5000"),
        (&["--cpus", "boot=2,max=1"], "2"),
        (&["--cpus", "boot=1,hide=[flux]"], "flux"),
        (&["--memory", "size=0"], "0"),
        (&["--memory", "size=4095"], "4095"),
        (&["--memory", "size=1000000G"], "1073741824000000"),
        (&["--memory", "size=99999999999G"], "64 bits"),
        (&["--memory", "sise=1G"], "sise"),
    ];
    for (arguments, expected) in cases {
        let said = refusal(&[&["--kernel", kernel, "--console", "off"], arguments].concat());
        assert!(said.contains(expected), "{arguments:?}: {said:?} has no {expected:?}");
    }
}
