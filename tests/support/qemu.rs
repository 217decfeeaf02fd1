//! The test guest in QEMU: the peer that shows what is the guest's doing and what is the VMM's.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

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

    /// Boots as `boot` does, with a monitor at `socket`; takes the state from `state` if there is one, instead of booting,
    /// and is then stopped.
    ///
    /// # Panics
    ///
    /// If QEMU cannot be started.
    pub fn boot_with_monitor(
        accel: Accel,
        machine: &str,
        arguments: &[&str],
        socket: &Path,
        state: Option<&Path>,
    ) -> (Self, Monitor) {
        let monitor = format!("unix:{},server=on,wait=off", socket.display());
        let incoming = state.map(|state| format!("exec:cat {}", state.display()));
        let mut arguments = [arguments, &["-monitor", &monitor]].concat();
        if let Some(incoming) = &incoming {
            arguments.extend(["-incoming", incoming]);
        }
        let qemu = Self::boot(accel, machine, "", &arguments);
        // The socket is there when QEMU has got that far.
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut monitor = Monitor { stream };
        monitor.answer();
        // What comes over the serial port before the state is there would be overwritten by it.
        while monitor.command("info status").contains("inmigrate") {
            thread::sleep(Duration::from_millis(10));
        }
        (qemu, monitor)
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

/// QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
}

impl Monitor {
    /// Gives a command and returns what the monitor says to it.
    ///
    /// # Panics
    ///
    /// If the monitor is gone.
    pub fn command(&mut self, command: &str) -> String {
        self.stream.write_all(format!("{command}\n").as_bytes()).expect("the monitor listens");
        self.answer()
    }

    /// Stops the guest and saves its state to a file.
    ///
    /// # Panics
    ///
    /// If QEMU fails to.
    pub fn save(&mut self, state: &Path) {
        self.command("stop");
        self.command(&format!("migrate \"exec:cat > {}\"", state.display()));
        loop {
            let status = self.command("info migrate");
            assert!(!status.contains("failed"), "{status}");
            if status.contains("completed") {
                return;
            }
        }
    }

    /// Reads up to the next prompt.
    fn answer(&mut self) -> String {
        const PROMPT: &[u8] = b"(qemu) ";
        let mut answer = Vec::new();
        while !answer.ends_with(PROMPT) {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("the monitor answers");
            answer.push(byte[0]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
