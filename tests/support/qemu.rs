//! The test guest in QEMU: the peer that shows what is the guest's doing and what is the VMM's.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};

use crate::guest::{self, Console};

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Its own emulation.
    Tcg,
    /// The host's `/dev/kvm`.
    Kvm,
}

/// A guest that runs in QEMU. Dropping it ends the process.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    /// The guest's serial port.
    pub console: Console,
}

impl Qemu {
    /// Boots the guest on `machine` (`microvm` or `q35`, with options after commas) with `arguments` added to the command line, and with
    /// `orders` as its kernel command line.
    ///
    /// # Panics
    ///
    /// If QEMU cannot be started.
    pub fn boot<A: AsRef<OsStr>>(accel: Accel, machine: &str, orders: &str, arguments: &[A]) -> Self {
        let accel = match accel {
            Accel::Tcg => "tcg,thread=multi",
            Accel::Kvm => "kvm",
        };
        let machine = match machine.strip_prefix("microvm") {
            Some(options) => &format!("microvm,auto-kernel-cmdline=off{options}"),
            None => machine,
        };
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-machine", machine, "-accel", accel, "-display", "none", "-nodefaults", "-no-reboot"])
            .args([
                "-device",
                "isa-debug-exit,iobase=0x501",
                "-serial",
                "stdio",
                "-append",
                orders,
                "-kernel",
            ])
            .arg(guest::path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-system-x86_64 cannot be started: {error}"));
        let output = child.stdout.take().expect("it is piped");
        let input = child.stdin.take().expect("it is piped");
        Self { child, console: Console::new(output, input) }
    }

    /// Waits for the end and returns the code that the guest gave to the order `exit`; `None` if it ended otherwise.
    ///
    /// # Panics
    ///
    /// If QEMU cannot be waited for.
    pub fn exit_code(mut self) -> Option<u8> {
        while self.console.line().is_some() {}
        let status = self.child.wait().expect("a child can be waited for");
        // QEMU turns the value written to the port into (value << 1) | 1.
        let code = u8::try_from(status.code()?).ok()?;
        (code & 1 == 1).then_some(code >> 1)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
