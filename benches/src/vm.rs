//! The test guest in a VMM, saved and brought back: by Cumulet and by QEMU.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::kernel;

/// What can go wrong: the text is for whoever ran the benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Median and least, in milliseconds.
pub fn shown(times: &mut [Duration]) -> String {
    times.sort_unstable();
    match (times.get(times.len() / 2), times.first()) {
        (Some(median), Some(least)) => {
            format!("{:.1} [{:.1}]", median.as_secs_f64() * 1e3, least.as_secs_f64() * 1e3)
        }
        _ => "-".to_owned(),
    }
}

/// Who does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Cumulet, with further keys of `--restore` and options.
    Cumulet {
        /// Keys, each after a comma.
        keys: &'static str,
        /// Options.
        options: &'static [&'static str],
    },
    /// QEMU, on that machine type.
    Qemu {
        /// Its name, with options after commas.
        machine: &'static str,
    },
}

/// The test guest, as it is built for release.
const TEST_GUEST: &str = "target/release/test-guest";
/// The program, as it is built for release.
pub const PROGRAM: &str = "target/release/cumulet";
/// Size of each disk.
pub const DISK_BYTES: u64 = 16 << 20;

/// A machine.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of network devices, and queue pairs of each.
    pub nets: (u32, u32),
    /// Number of disks, and queues of each.
    pub disks: (u32, u32),
}

/// A process with the guest in it. Dropped, it is killed.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Vm {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("no pipes".into()) };
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let mut said = String::new();
            if let Some(mut stderr) = self.child.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            return Err(format!("the guest has gone: {said}").into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn wait_for(&mut self, words: &str) -> Result<String> {
        loop {
            let line = self.line()?;
            if line.contains(words) {
                return Ok(line);
            }
        }
    }

    /// Boots a guest; returns it and the time from the start of the process to the guest's first line.
    ///
    /// # Errors
    /// It cannot be started, or ends.
    pub fn boot(contender: &Contender, shape: &Shape, place: &Path) -> Result<(Self, Duration)> {
        make_disks(shape, place)?;
        // Of an earlier process.
        let _ = fs::remove_file(place.join("control"));
        let mut command = boot(contender, shape, place, Path::new(TEST_GUEST));
        let started = Instant::now();
        let mut vm = Self::start(&mut command)?;
        vm.wait_for("test-guest ready")?;
        Ok((vm, started.elapsed()))
    }

    /// The time from the start of the process until a guest that only says that it has begun has said so.
    ///
    /// # Errors
    /// It cannot be started, or ends.
    pub fn first_instruction(contender: &Contender, shape: &Shape, place: &Path) -> Result<Duration> {
        make_disks(shape, place)?;
        let _ = fs::remove_file(place.join("control"));
        let kernel = place.join("kernel");
        fs::write(&kernel, kernel::first_instruction())?;
        let mut command = boot(contender, shape, place, &kernel);
        let started = Instant::now();
        let mut vm = Self::start(&mut command)?;
        let mut said = [0];
        if let Err(error) = vm.output.read_exact(&mut said) {
            return Err(format!("the guest has not begun: {error}").into());
        }
        let took = started.elapsed();
        if said[0] == kernel::SAYS { Ok(took) } else { Err(format!("the guest says {said:?}").into()) }
    }

    /// Brings back the guest of a snapshot, with further keys of `--restore`, each after a comma, and the API at a
    /// socket if it is to have one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restore(snapshot: &Path, keys: &str, control: Option<&Path>) -> Result<Self> {
        let mut command = restore(Path::new(PROGRAM), snapshot, keys);
        if let Some(control) = control {
            command.arg("--api-socket").arg(control);
        }
        Self::start(&mut command)
    }

    /// Has the guest set up every virtio device; returns the address of each and its type.
    ///
    /// # Errors
    /// It refuses, or ends.
    pub fn set_up_devices(&mut self) -> Result<Vec<(String, String)>> {
        let listed = self.obey("virtio")?;
        let devices: Vec<(String, String)> = listed
            .split('[')
            .skip(1)
            .filter_map(|device| {
                let mut words = device.split_whitespace();
                Some((words.next()?.to_owned(), words.next()?.strip_prefix("type=")?.to_owned()))
            })
            .collect();
        for (address, _) in &devices {
            self.obey(&format!("vinit {address}"))?;
        }
        Ok(devices)
    }

    /// Gives an order, and waits for its answer.
    ///
    /// # Errors
    /// It ends.
    pub fn obey(&mut self, order: &str) -> Result<String> {
        writeln!(self.input, "{order}")?;
        let line = self.wait_for("ok")?;
        Ok(line.trim_start_matches("ok").trim().to_owned())
    }

    /// What it says on standard error, once it has ended by the guest's order.
    ///
    /// # Errors
    /// It has ended before.
    pub fn end(mut self) -> Result<String> {
        writeln!(self.input, "exit 0")?;
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        self.child.wait()?;
        Ok(said)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A saved machine.
#[derive(Debug)]
pub struct Saved {
    contender: Contender,
    shape: Shape,
    place: PathBuf,
    /// How long saving took, each time.
    pub saving: Vec<Duration>,
}

/// A guest that was brought back, and how that went.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// From the start of the process until the guest answered.
    pub time: Duration,
    /// Of QEMU: from its being told to take the state, all devices being there, until it ran.
    pub loading: Option<Duration>,
    /// What the program reported.
    pub report: String,
}

/// Calls that change a guest's wiring, counted by strace until a processor runs: memory slots, doorbells, irqfds, routing
/// tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls(pub [usize; 4]);

impl Calls {
    /// What they are called.
    const NAMES: [&str; 4] =
        ["KVM_SET_USER_MEMORY_REGION", "KVM_IOEVENTFD", "KVM_IRQFD", "KVM_SET_GSI_ROUTING"];

    fn of(trace: &str) -> Self {
        let before: Vec<&str> = trace.lines().take_while(|line| !line.contains("KVM_RUN")).collect();
        // A call that waits has two lines, of which one says what it is.
        let count =
            |name: &str| before.iter().filter(|line| line.contains("ioctl(") && line.contains(name)).count();
        Self(Self::NAMES.map(count))
    }

    /// All of them.
    pub fn sum(self) -> usize {
        self.0.iter().sum()
    }
}

impl Saved {
    /// Boots the guest, has it use all devices and write `dirty_mib` of memory, and saves it in `place`, a directory of
    /// its own, that many times.
    ///
    /// # Errors
    /// Something cannot be started or saved.
    pub fn make(
        contender: &Contender,
        shape: &Shape,
        dirty_mib: u64,
        place: &Path,
        times: usize,
    ) -> Result<Self> {
        fs::create_dir_all(place)?;
        let (mut vm, _) = Vm::boot(contender, shape, place)?;
        if shape.nets.0 + shape.disks.0 > 0 {
            vm.set_up_devices()?;
            vm.obey("vcheck")?;
        }
        vm.obey(&format!("fill 0x2000000 {dirty_mib}M 7"))?;
        let socket = place.join("control");
        let mut saving = Vec::with_capacity(times);
        match contender {
            Contender::Cumulet { .. } => {
                let snapshot = place.join("snapshot");
                let request =
                    api_client::wire::VmSnapshotConfig::to(format!("file://{}", snapshot.display()));
                let mut client = api_client::Client::connect(&socket)?;
                for _ in 0..times {
                    if snapshot.exists() {
                        fs::remove_dir_all(&snapshot)?;
                        client.resume()?;
                    }
                    fs::create_dir(&snapshot)?;
                    let started = Instant::now();
                    client.pause()?;
                    client.snapshot(&request)?;
                    saving.push(started.elapsed());
                }
            }
            Contender::Qemu { .. } => {
                let mut monitor = UnixStream::connect(&socket)?;
                // It would keep to 128 MiB/s otherwise.
                hmp(&mut monitor, "migrate_set_parameter max-bandwidth 100G")?;
                for _ in 0..times {
                    if state(place).exists() {
                        fs::remove_file(state(place))?;
                        hmp(&mut monitor, "cont")?;
                    }
                    let started = Instant::now();
                    hmp(&mut monitor, "stop")?;
                    hmp(&mut monitor, &format!("migrate -d \"exec:cat > {}\"", state(place).display()))?;
                    loop {
                        let told = hmp(&mut monitor, "info migrate")?;
                        if told.contains("completed") {
                            break;
                        }
                        if told.contains("failed") {
                            return Err(format!("QEMU cannot save: {told}").into());
                        }
                        thread::sleep(Duration::from_micros(500));
                    }
                    saving.push(started.elapsed());
                }
            }
        }
        Ok(Self { contender: contender.clone(), shape: shape.clone(), place: place.to_owned(), saving })
    }

    /// Brings the guest back once, and has what it touches while it obeys `order` be recorded for the next times.
    ///
    /// # Errors
    /// It cannot be brought back, or nothing is recorded.
    pub fn record(&self, order: &str) -> Result<()> {
        let mut vm = Vm::start(&mut self.command(",record_working_set=3000"))?;
        vm.obey(order)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.place.join("snapshot/working-set.json").exists() {
            if Instant::now() > deadline {
                return Err("nothing was recorded".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        vm.end().map(|_| ())
    }

    /// Starts the program, has it bring the guest back, and gives the guest `order`.
    ///
    /// # Errors
    /// It cannot be brought back.
    pub fn restore(&self, order: &str) -> Result<Restored> {
        let mut command = self.command("");
        let _ = fs::remove_file(self.place.join("control"));
        let started = Instant::now();
        let mut vm = Vm::start(&mut command)?;
        let loading = self.take_state()?;
        vm.obey(order)?;
        let time = started.elapsed();
        Ok(Restored { time, loading, report: vm.end()? })
    }

    /// The same by another build of this program, whatever the snapshot is of.
    ///
    /// # Errors
    /// It cannot be brought back.
    pub fn restore_by(&self, program: &Path, order: &str) -> Result<Restored> {
        let started = Instant::now();
        let mut vm = Vm::start(&mut restore(program, &self.place.join("snapshot"), ""))?;
        vm.obey(order)?;
        let time = started.elapsed();
        Ok(Restored { time, loading: None, report: vm.end()? })
    }

    /// Has QEMU, which waits for it, take the state, and run; how long that took. Cumulet does so by itself.
    fn take_state(&self) -> Result<Option<Duration>> {
        if !matches!(self.contender, Contender::Qemu { .. }) {
            return Ok(None);
        }
        // QEMU loses input that comes before the serial port's state; and it does not run until it is told to.
        let mut monitor = connect(&self.place.join("control"))?;
        hmp(&mut monitor, "")?;
        let started = Instant::now();
        hmp(&mut monitor, &format!("migrate_incoming \"exec:cat {}\"", state(&self.place).display()))?;
        while hmp(&mut monitor, "info status")?.contains("inmigrate") {}
        hmp(&mut monitor, "cont")?;
        Ok(Some(started.elapsed()))
    }

    /// Counts the calls of a restore from outside; and what the program reported.
    ///
    /// # Errors
    /// It cannot be brought back, or not be traced.
    pub fn calls(&self) -> Result<(Calls, String)> {
        let log = self.place.join("calls");
        let plain = self.command("");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=ioctl", "-o"]).arg(&log);
        command.arg(plain.get_program()).args(plain.get_args());
        let _ = fs::remove_file(self.place.join("control"));
        let mut vm = Vm::start(&mut command)?;
        self.take_state()?;
        vm.obey("ping")?;
        let report = vm.end()?;
        Ok((Calls::of(&fs::read_to_string(log)?), report))
    }

    /// The command that brings the guest back, with `more` keys, which QEMU does not have.
    fn command(&self, more: &str) -> Command {
        match &self.contender {
            Contender::Cumulet { keys, options } => {
                let snapshot = self.place.join("snapshot");
                let mut command = restore(Path::new(PROGRAM), &snapshot, &format!("{keys}{more}"));
                command.args(*options);
                command
            }
            Contender::Qemu { .. } => {
                let mut command = boot(&self.contender, &self.shape, &self.place, Path::new(TEST_GUEST));
                command.args(["-incoming", "defer"]);
                command
            }
        }
    }
}

fn restore(program: &Path, snapshot: &Path, keys: &str) -> Command {
    let mut command = Command::new(program);
    let source = format!("source_url=file://{},resume=on", snapshot.display());
    command.args(["--restore", &format!("{source}{keys}"), "--report"]);
    command
}

fn make_disks(shape: &Shape, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    for disk in 0..shape.disks.0 {
        let path = place.join(format!("disk{disk}"));
        if !path.exists() {
            fs::File::create(path)?.set_len(DISK_BYTES)?;
        }
    }
    Ok(())
}

fn state(place: &Path) -> PathBuf {
    place.join("state")
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// One command to QEMU's monitor, and what it says up to its next prompt.
fn hmp(monitor: &mut UnixStream, command: &str) -> Result<String> {
    if !command.is_empty() {
        monitor.write_all(format!("{command}\n").as_bytes())?;
    }
    let mut answer = Vec::new();
    let mut prompts = 0;
    let mut byte = [0];
    while prompts == 0 {
        if monitor.read(&mut byte)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        answer.extend_from_slice(&byte);
        prompts += usize::from(answer.ends_with(b"(qemu) "));
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The command that boots a kernel in a machine of that shape.
fn boot(contender: &Contender, shape: &Shape, place: &Path, kernel: &Path) -> Command {
    let Shape { vcpus, memory_mib, nets, disks } = shape;
    let control = place.join("control");
    match contender {
        Contender::Cumulet { .. } => {
            let mut command = Command::new(PROGRAM);
            command.arg("--api-socket").arg(control).arg("--kernel").arg(kernel);
            command.args(["--serial", "tty", "--console", "off"]);
            command.args(["--debug-exit", "0x501", "--cpus", &format!("boot={vcpus}")]);
            command.args(["--memory", &format!("size={memory_mib}M")]);
            for disk in 0..disks.0 {
                let path = place.join(format!("disk{disk}"));
                let disk = format!("path={},num_queues={},image_type=raw", path.display(), disks.1);
                command.args(["--disk", &disk]);
            }
            for net in 0..nets.0 {
                command.args(["--net", &format!("tap={},num_queues={}", tap(net), 2 * nets.1)]);
            }
            command
        }
        Contender::Qemu { machine } => {
            let mut command = Command::new("qemu-system-x86_64");
            command.args([
                "-machine",
                machine,
                "-accel",
                "kvm",
                "-display",
                "none",
                "-nodefaults",
                "-no-reboot",
            ]);
            command.args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0x501"]);
            command.arg("-kernel").arg(kernel);
            command.args(["-m", &format!("{memory_mib}M"), "-smp", &vcpus.to_string()]);
            command.args(["-monitor", &format!("unix:{},server=on,wait=off", control.display())]);
            for disk in 0..disks.0 {
                let path = place.join(format!("disk{disk}"));
                command.args([
                    "-drive",
                    &format!("if=none,id=d{disk},format=raw,aio=io_uring,file={}", path.display()),
                ]);
                command.args(["-device", &format!("virtio-blk-pci,drive=d{disk},num-queues={}", disks.1)]);
            }
            for net in 0..nets.0 {
                let pairs = nets.1;
                let queues = if pairs > 1 { format!(",queues={pairs}") } else { String::new() };
                let more =
                    if pairs > 1 { format!(",mq=on,vectors={}", 2 * pairs + 2) } else { String::new() };
                let back = format!("tap,id=n{net},ifname={},script=no,downscript=no{queues}", tap(net));
                command.args(["-netdev", &back, "-device", &format!("virtio-net-pci,netdev=n{net}{more}")]);
            }
            command
        }
    }
}

/// Name of a tap that [`Taps`] makes.
pub fn tap(number: u32) -> String {
    format!("cbench{number}")
}

/// Taps that stay while machines come and go, as an orchestrator makes them. Removed when dropped.
#[derive(Debug)]
pub struct Taps(u32);

impl Taps {
    /// Makes them.
    ///
    /// # Errors
    /// The host does not let us.
    pub fn make(count: u32, pairs: u32) -> Result<Self> {
        let taps = Self(count);
        for net in 0..count {
            let name = tap(net);
            let queues: &[&str] = if pairs > 1 { &["multi_queue"] } else { &[] };
            ip(&[&["tuntap", "add", "dev", &name, "mode", "tap"], queues].concat())?;
            ip(&["link", "set", &name, "up"])?;
        }
        Ok(taps)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for net in 0..self.0 {
            // What is not there needs no removal.
            let _ = ip(&["link", "del", &tap(net)]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).stderr(Stdio::null()).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ip {} ended with {status}", arguments.join(" ")).into())
    }
}
