//! The two command lines: the same guest, the same devices, each VMM's own way to say it.

use std::path::PathBuf;
use std::process::Command;

/// Memory of the guest. `measure` tells guest memory by its size, so it is larger than anything else in a VMM.
pub const MEMORY_MIB: u32 = 512;

/// `quiet` leaves the first line to the guest's init.
const COMMAND_LINE: &str = "console=hvc0 quiet panic=-1 mitigations=off";

/// What is booted.
#[derive(Debug)]
pub struct Guest {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub vcpus: u8,
    pub disks: Vec<PathBuf>,
}

/// A VMM.
#[derive(Debug)]
pub struct Contender {
    pub name: &'static str,
    program: PathBuf,
    arguments: fn(&Guest) -> Vec<String>,
}

impl Contender {
    pub fn cumulet(program: PathBuf) -> Self {
        Self { name: "Cumulet", program, arguments: cumulet }
    }

    /// A q35 with what a direct-booted guest needs, all devices as virtio-pci 1.0.
    pub fn qemu(program: PathBuf) -> Self {
        Self { name: "QEMU q35", program, arguments: qemu }
    }

    pub fn command(&self, guest: &Guest) -> Command {
        let mut command = Command::new(&self.program);
        command.args((self.arguments)(guest));
        command
    }
}

fn cumulet(guest: &Guest) -> Vec<String> {
    let mut args = words(&["--kernel", &text(&guest.kernel), "--initramfs", &text(&guest.initramfs)]);
    args.extend(words(&["--cmdline", COMMAND_LINE, "--serial", "off", "--console", "tty"]));
    args.extend(words(&[
        "--cpus",
        &format!("boot={}", guest.vcpus),
        "--memory",
        &format!("size={MEMORY_MIB}M"),
    ]));
    if !guest.disks.is_empty() {
        args.push("--disk".to_owned());
        args.extend(guest.disks.iter().map(|disk| format!("path={},image_type=raw", text(disk))));
    }
    args
}

fn qemu(guest: &Guest) -> Vec<String> {
    let mut args =
        words(&["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35,accel=kvm", "-cpu", "host"]);
    args.extend(words(&["-smp", &guest.vcpus.to_string(), "-m", &format!("{MEMORY_MIB}M")]));
    args.extend(words(&[
        "-kernel",
        &text(&guest.kernel),
        "-initrd",
        &text(&guest.initramfs),
        "-append",
        COMMAND_LINE,
    ]));
    args.extend(words(&["-chardev", "stdio,id=console", "-device", "virtio-serial-pci,disable-legacy=on"]));
    args.extend(words(&[
        "-device",
        "virtconsole,chardev=console",
        "-device",
        "virtio-rng-pci,disable-legacy=on",
    ]));
    for (index, disk) in guest.disks.iter().enumerate() {
        let drive = format!("file,node-name=disk{index},filename={},aio=io_uring", text(disk));
        let device = format!("virtio-blk-pci,drive=disk{index},num-queues=1,disable-legacy=on");
        args.extend(words(&["-blockdev", &drive, "-device", &device]));
    }
    args
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
