//! The other end of a console: opens standard input and output, a pty, a file, a socket; and pumps input into the serial
//! port, which has no thread of its own.

use std::{
    fmt,
    fs::{File, FileType, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, OpenOptionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use devices::{platform::Serial, terminal::Terminal};
use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, eventfd},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::AttachError;
use crate::{config::ConsoleTarget, terminal};

/// The other end of a console, open.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub terminal: Arc<Terminal>,
    /// Where the guest's side of it is, if it is a pseudo-terminal of ours.
    pub pty: Option<PathBuf>,
    /// The file that it writes to, if that was made for it.
    pub made: Option<PathBuf>,
}

/// What becomes of a file that a console writes to, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It begins anew, with the machine.
    Truncate,
    /// It goes on, as a restored machine does.
    Append,
}

/// Opens a target; `None` if there shall be no device.
///
/// # Errors
/// Something cannot be opened, made or listened on.
pub fn open(target: &ConsoleTarget, existing: Existing) -> Result<Option<Opened>, AttachError> {
    let mut made = None;
    let opened = match target {
        ConsoleTarget::Off => return Ok(None),
        ConsoleTarget::Null => Terminal::null(),
        ConsoleTarget::Tty => {
            return standard().map(|terminal| Some(Opened { terminal, pty: None, made }));
        }
        ConsoleTarget::Pty => return pseudo_terminal().map(Some),
        ConsoleTarget::File(path) => {
            let (file, is_new) = create(path, existing)?;
            made = is_new.then(|| path.clone());
            output_to(file)
        }
        ConsoleTarget::Socket(path) => {
            let listener = UnixListener::bind(path)
                .map_err(|source| AttachError::Open { path: path.clone(), source })?;
            // Whoever comes next must find the place free.
            Terminal::socket(listener).inspect_err(|_| drop(std::fs::remove_file(path)))
        }
    };
    match opened {
        Ok(terminal) => Ok(Some(Opened { terminal, pty: None, made })),
        Err(error) => {
            made.iter().for_each(|path| remove_if_empty(path));
            Err(AttachError::Function(error))
        }
    }
}

fn standard() -> Result<Arc<Terminal>, AttachError> {
    let duplicate = |fd: BorrowedFd<'_>, what| {
        fd.try_clone_to_owned().map(File::from).map_err(|source| AttachError::Standard { what, source })
    };
    let output = duplicate(rustix::stdio::stdout(), "standard output")?;
    let input = duplicate(rustix::stdio::stdin(), "standard input")?;
    terminal::make_raw(rustix::stdio::stdin())
        .map_err(|source| AttachError::Standard { what: "the terminal of standard input", source })?;
    Terminal::standard(output, Some(input))
        .map_err(|source| AttachError::Standard { what: "standard output", source })
}

fn pseudo_terminal() -> Result<Opened, AttachError> {
    let pair = || -> io::Result<(File, File, String)> {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&main)?;
        unlockpt(&main)?;
        let name = ptsname(&main, Vec::new())?.to_string_lossy().into_owned();
        let subordinate = OpenOptions::new().read(true).write(true).open(&name)?;
        terminal::make_pty_raw(&subordinate)?;
        Ok((File::from(main), subordinate, name))
    };
    let failed = |source| AttachError::Standard { what: "a new pseudo-terminal", source };
    let (main, subordinate, name) = pair().map_err(failed)?;
    log::warn!("console at {name}");
    let terminal = Terminal::pty(main, subordinate).map_err(failed)?;
    Ok(Opened { terminal, pty: Some(name.into()), made: None })
}

/// The file, and whether it was made.
fn create(path: &Path, existing: Existing) -> Result<(File, bool), AttachError> {
    let mut options = OpenOptions::new();
    options.write(true).append(existing == Existing::Append);
    let opened = match options.clone().create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A link that leads nowhere is there already, and what it leads to is made.
            options.create(true).truncate(existing == Existing::Truncate);
            open_output(path, options).map(|file| (file, false))
        }
        Err(error) => Err(error),
    };
    opened.map_err(|source| AttachError::Open { path: path.to_path_buf(), source })
}

/// Opens what is there for a console to write to, without waiting for whoever is at the other end of it.
///
/// # Errors
/// It cannot be opened that way, or is neither a regular file nor a character device.
pub(super) fn open_output(path: &Path, mut options: OpenOptions) -> io::Result<File> {
    // The reader of a pipe would see a writer come and go: it is not even opened.
    if let Ok(there) = path.metadata() {
        refuse_kind(there.file_type())?;
    }
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    // Something else may have come in its place meanwhile.
    refuse_kind(file.metadata()?.file_type())?;
    Ok(file)
}

/// A pipe or socket makes its writer wait for a reader, or gives it an error that ends the console's output when there is
/// none; a disk is no place for text.
fn refuse_kind(kind: FileType) -> io::Result<()> {
    let what = if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        return Ok(());
    };
    let why = format!("it is {what}: a console writes to a regular file or a character device");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// A regular file takes everything at once. A device may be a terminal, whose reader can stop it.
fn output_to(file: File) -> io::Result<Arc<Terminal>> {
    if file.metadata()?.is_file() { Terminal::file(file) } else { Terminal::standard(file, None) }
}

/// Removes a file that was made for a console, unless something has been written to it.
pub fn remove_if_empty(path: &Path) {
    let removed = match path.symlink_metadata() {
        Ok(there) if there.is_file() && there.len() == 0 => std::fs::remove_file(path),
        _ => Ok(()),
    };
    if let Err(error) = removed {
        log::warn!("{} stays: {error}", path.display());
    }
}

/// What becomes of input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// It waits where it is: the machine stands still, or its state has not been loaded yet.
    Held,
    /// The guest gets it.
    Flows,
    /// The machine is gone.
    Over,
}

/// What serves a serial port's terminal, on a thread of its own from when the guest first gets input; ends when dropped.
pub struct InputPump {
    // Held by the thread while it hands input over.
    flow: Arc<Mutex<Flow>>,
    changed: Arc<OwnedFd>,
    stage: Mutex<Stage>,
}

/// The thread is made when there is something for it to do: a restore does not wait for it.
enum Stage {
    Waiting(Box<Pump>),
    Running(JoinHandle<()>),
    Ended,
}

impl InputPump {
    /// Makes what will tend `terminal` and, once [let](Self::let_flow), hand what arrives to `serial`, as far as it has
    /// room.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(terminal: Arc<Terminal>, serial: Arc<Mutex<Serial>>) -> io::Result<Self> {
        let changed = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let flow = Arc::new(Mutex::new(Flow::Held));
        let epoll = Epoll::new()?;
        let pump = Pump {
            flow: Arc::clone(&flow),
            changed: Arc::clone(&changed),
            epoll,
            terminal,
            serial,
            polled: Vec::new(),
        };
        pump.add(pump.changed.as_raw_fd(), EventSet::IN)?;
        pump.add(pump.terminal.backlog_event().as_raw_fd(), EventSet::IN)?;
        Ok(Self { flow, changed, stage: Mutex::new(Stage::Waiting(Box::new(pump))) })
    }

    /// From now on the guest gets its input, or does not: when this returns, nothing of it is on its way.
    ///
    /// # Errors
    /// The host has no thread for it; the guest's output is not kept from the terminal by that.
    pub fn let_flow(&self, flows: bool) -> io::Result<()> {
        self.set(if flows { Flow::Flows } else { Flow::Held });
        if flows {
            let mut stage = self.stage.lock();
            *stage = match std::mem::replace(&mut *stage, Stage::Ended) {
                Stage::Waiting(pump) => {
                    let thread = std::thread::Builder::new().name("serial-manager".into());
                    Stage::Running(thread.spawn(move || pump.run())?)
                }
                other => other,
            };
        }
        Ok(())
    }

    fn set(&self, flow: Flow) {
        *self.flow.lock() = flow;
        // An eventfd that cannot be written is signalled already.
        let _ = rustix::io::write(&*self.changed, &1u64.to_ne_bytes());
    }
}

impl fmt::Debug for InputPump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputPump")
    }
}

impl Drop for InputPump {
    fn drop(&mut self) {
        self.set(Flow::Over);
        if let Stage::Running(thread) = std::mem::replace(self.stage.get_mut(), Stage::Ended) {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

/// While the guest does not read, how often it is asked whether it has, in milliseconds.
const FULL_POLL_MS: i32 = 10;

struct Pump {
    flow: Arc<Mutex<Flow>>,
    changed: Arc<OwnedFd>,
    epoll: Epoll,
    terminal: Arc<Terminal>,
    serial: Arc<Mutex<Serial>>,
    /// What is polled of the terminal.
    polled: Vec<(RawFd, EventSet)>,
}

impl Pump {
    fn add(&self, fd: RawFd, events: EventSet) -> io::Result<()> {
        let data = u64::try_from(fd).unwrap_or(u64::MAX);
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
    }

    fn run(mut self) {
        let mut events = [EpollEvent::default(); 8];
        loop {
            let flow = *self.flow.lock();
            let room = match flow {
                Flow::Over => return,
                Flow::Held => 0,
                Flow::Flows => self.serial.lock().room(),
            };
            if let Err(error) = self.watch(room > 0) {
                log::error!("the serial port's terminal is not served any more: {error}");
                return;
            }
            let timeout = if room == 0 && flow == Flow::Flows { FULL_POLL_MS } else { -1 };
            match self.epoll.wait(timeout, &mut events) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("the serial port's terminal is not served any more: {error}");
                    return;
                }
            }
            // Fails only if it was not signalled.
            let _ = rustix::io::read(&*self.changed, &mut [0; 8]);
            self.take_input(room);
            if self.terminal.tend() {
                self.forget();
            }
        }
    }

    fn take_input(&self, room: usize) {
        let flow = self.flow.lock();
        if *flow != Flow::Flows {
            return;
        }
        let mut buffer = [0; 64];
        let length = room.min(buffer.len());
        let read = self.terminal.read(buffer.get_mut(..length).unwrap_or_default());
        if read > 0 {
            self.serial.lock().receive(buffer.get(..read).unwrap_or_default());
        }
    }

    /// Polls what the terminal names, input only while there is room for it.
    fn watch(&mut self, room: bool) -> io::Result<()> {
        let watch = self.terminal.watch();
        let mut wanted: Vec<(RawFd, EventSet)> = Vec::new();
        let mut want = |fd: Option<RawFd>, events: EventSet| {
            let Some(fd) = fd else { return };
            match wanted.iter_mut().find(|(there, _)| *there == fd) {
                Some((_, all)) => *all |= events,
                None => wanted.push((fd, events)),
            }
        };
        want(watch.input.filter(|_| room), EventSet::IN);
        want(watch.output, EventSet::OUT);
        want(watch.listener, EventSet::IN);
        if wanted != self.polled {
            self.forget();
            for (fd, events) in &wanted {
                self.add(*fd, *events)?;
            }
            self.polled = wanted;
        }
        Ok(())
    }

    fn forget(&mut self) {
        for (fd, _) in self.polled.drain(..) {
            // One that was closed has left by itself.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }
}
