//! A monitor with the test guest in it, whose serial port is a socket.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::process::Invocation;

/// How long the monitor may take to serve its guest's serial port, and the guest to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running monitor. Dropped, it is killed.
pub struct Vm {
    child: Child,
    serial: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Vm {
    /// Starts `command`, shows it, and connects to the serial port in `place`.
    ///
    /// # Errors
    /// It cannot be started, or ends before it serves the port.
    pub fn start(command: Invocation, place: &Path) -> Result<Self, String> {
        println!("   $ {}", command.shortened());
        let socket = place.join("serial");
        let mut child = command
            .spawn(Stdio::piped())
            .map_err(|error| format!("`{command}` could not be run: {error}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => {
                    let timed = stream.set_read_timeout(Some(PATIENCE));
                    timed.map_err(|error| format!("the serial port: {error}"))?;
                    return Ok(Self { child, serial: BufReader::new(stream), socket });
                }
                Err(_) if Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    // Fails only if it has ended.
                    let _ = child.kill();
                    return Err(format!("`{command}`: no serial port: {error}\n{}", said(&mut child)));
                }
            }
        }
    }

    /// Waits until the guest has booted.
    ///
    /// # Errors
    /// It does not.
    pub fn ready(&mut self) -> Result<(), String> {
        while !self.line()?.contains("test-guest ready") {}
        Ok(())
    }

    /// Has the guest set up every virtio device; returns their number.
    ///
    /// # Errors
    /// It refuses.
    pub fn set_up_devices(&mut self) -> Result<usize, String> {
        let listed = self.obey("virtio")?;
        let addresses: Vec<&str> =
            listed.split('[').skip(1).filter_map(|device| device.split_whitespace().next()).collect();
        for address in &addresses {
            self.obey(&format!("vinit {address}"))?;
        }
        Ok(addresses.len())
    }

    /// Gives the guest an order; returns what it answers.
    ///
    /// # Errors
    /// It refuses, or the port is closed.
    pub fn obey(&mut self, order: &str) -> Result<String, String> {
        let sent = self.serial.get_mut().write_all(format!("{order}\n").as_bytes());
        sent.map_err(|error| format!("order {order:?}: {error}"))?;
        let line = self.line()?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ok", result) => Ok(result.to_owned()),
            _ => Err(format!("the guest did not obey {order:?}: {line}")),
        }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.serial.read_line(&mut line) {
            Ok(0) => Err(format!("the guest has gone\n{}", said(&mut self.child))),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("the serial port: {error}")),
        }
    }

    /// Kills the process, as the out-of-memory killer would.
    ///
    /// # Errors
    /// It cannot be.
    pub fn kill(mut self) -> Result<(), String> {
        let killed = self.child.kill().and_then(|()| self.child.wait().map(drop));
        killed.map_err(|error| format!("the monitor cannot be killed: {error}"))?;
        // Nobody else could remove it.
        fs::remove_file(&self.socket).map_err(|error| format!("{}: {error}", self.socket.display()))
    }

    /// Has the guest end the machine; returns what the monitor said.
    ///
    /// # Errors
    /// It does not end well.
    pub fn end(mut self) -> Result<String, String> {
        let sent = self.serial.get_mut().write_all(b"exit 0\n");
        sent.map_err(|error| format!("order \"exit 0\": {error}"))?;
        let status =
            self.child.wait().map_err(|error| format!("the monitor cannot be waited for: {error}"))?;
        let said = said(&mut self.child);
        if status.success() { Ok(said) } else { Err(format!("the monitor ended with {status}\n{said}")) }
    }
}

/// What a process that has ended said on standard error.
fn said(child: &mut Child) -> String {
    let mut said = String::new();
    let read = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
    match read {
        Some(Err(error)) => format!("({error})"),
        _ => said,
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _: io::Result<()> = self.child.kill();
        let _ = self.child.wait();
    }
}
