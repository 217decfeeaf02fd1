//! The host's end of a console: standard input and output, a pty, a file, a socket, nothing.
//!
//! A [`Terminal`] is made of descriptors that somebody else has opened. Nothing of it blocks: output that
//! nobody takes is kept, the newest MiB of it, and the guest goes on. Whoever serves it polls what
//! [`Terminal::watch`] names and calls [`Terminal::tend`] when something is ready; the device on the other
//! side writes from any thread.
//!
//! Shared by the serial port and the virtio console. It changes no terminal settings; that is the machine's
//! business.

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{self, IsTerminal, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
    termios::tcgetwinsize,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of output that are kept when nobody takes them.
pub const BACKLOG: usize = 1 << 20;

/// Bytes that a descriptor that says it is writable surely takes: by a terminal, and by a pipe.
const TERMINAL_CHUNK: usize = 256;
const PIPE_CHUNK: usize = 4096;

/// What is to be polled now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Readable: there is input, or its end.
    pub input: Option<RawFd>,
    /// Writable: kept output can go on.
    pub output: Option<RawFd>,
    /// Readable: somebody wants to connect.
    pub listener: Option<RawFd>,
}

/// The host's end of a console.
pub struct Terminal {
    inner: Mutex<Inner>,
    backlog: EventFd,
}

struct Inner {
    end: End,
    kept: VecDeque<u8>,
    /// Input has ended, or failed.
    input_ended: bool,
    /// The other side has gone; whoever polls closes the descriptor.
    broken: bool,
}

enum End {
    Null,
    /// Not polled: it takes everything at once.
    File(File),
    /// Two descriptors, which may be shared with other processes and so must not be made non-blocking.
    Standard {
        input: Option<File>,
        output: File,
        chunk: Option<usize>,
    },
    /// Our side of a pty. The other side is held open, so that it never hangs up.
    Pty {
        main: File,
        _subordinate: File,
    },
    Socket {
        listener: UnixListener,
        client: Option<UnixStream>,
    },
}

impl Terminal {
    fn new(end: End) -> io::Result<Arc<Self>> {
        let inner = Inner { end, kept: VecDeque::new(), input_ended: false, broken: false };
        Ok(Arc::new(Self { inner: Mutex::new(inner), backlog: EventFd::new(EFD_NONBLOCK)? }))
    }

    /// Output goes nowhere, input never comes.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn null() -> io::Result<Arc<Self>> {
        Self::new(End::Null)
    }

    /// Output goes to a file.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn file(output: File) -> io::Result<Arc<Self>> {
        Self::new(End::File(output))
    }

    /// Standard output, or whatever is in its place, and standard input if that is to be read. Input that nobody can
    /// wait for (a regular file, `/dev/null`) has ended from the start.
    ///
    /// # Errors
    /// What they are cannot be found out.
    pub fn standard(output: File, input: Option<File>) -> io::Result<Arc<Self>> {
        let kind = output.metadata()?.file_type();
        let chunk = if output.is_terminal() {
            Some(TERMINAL_CHUNK)
        } else if kind.is_fifo() || kind.is_socket() {
            Some(PIPE_CHUNK)
        } else {
            None
        };
        let input = match input {
            Some(input) if can_be_waited_for(input.as_fd())? => Some(input),
            // A file, or /dev/null: no console's input. Whoever polls would be refused it.
            _ => None,
        };
        Self::new(End::Standard { input, output, chunk })
    }

    /// A pty of our own: our side of it and the other.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn pty(main: File, subordinate: File) -> io::Result<Arc<Self>> {
        rustix::io::ioctl_fionbio(&main, true)?;
        Self::new(End::Pty { main, _subordinate: subordinate })
    }

    /// Whoever connects, one at a time.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn socket(listener: UnixListener) -> io::Result<Arc<Self>> {
        listener.set_nonblocking(true)?;
        Self::new(End::Socket { listener, client: None })
    }

    /// Takes output, all of it and at once: what cannot be passed on now is kept, and the oldest of it
    /// dropped where there is too much.
    pub fn write(&self, bytes: &[u8]) {
        let mut inner = self.inner.lock();
        let before = inner.needs_care();
        let passed = if inner.kept.is_empty() { inner.pass(bytes) } else { 0 };
        inner.keep(bytes.get(passed..).unwrap_or_default());
        if !before && inner.needs_care() {
            // Only fails when it is signalled already.
            let _ = self.backlog.write(1);
        }
    }

    /// Takes input, as far as there is any. Never blocks.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        self.inner.lock().read(buffer)
    }

    /// What to poll now. Of one terminal only one thread polls, and calls [`tend`](Self::tend): the
    /// descriptors stay open until then.
    pub fn watch(&self) -> Watch {
        self.inner.lock().watch()
    }

    /// Signalled when [`watch`](Self::watch) has something new to poll because of a
    /// [`write`](Self::write).
    pub fn backlog_event(&self) -> &EventFd {
        &self.backlog
    }

    /// Does what can be done now: lets somebody connect, closes what has gone, passes kept output on. True
    /// if descriptors were opened or closed: a number that was polled may mean another one now.
    pub fn tend(&self) -> bool {
        let _ = self.backlog.read();
        self.inner.lock().tend()
    }

    /// Columns and rows; `None` where it has no size.
    pub fn size(&self) -> Option<(u16, u16)> {
        let inner = self.inner.lock();
        let file = match &inner.end {
            End::Standard { output, .. } => output,
            End::Pty { main, .. } => main,
            End::Null | End::File(_) | End::Socket { .. } => return None,
        };
        let size = tcgetwinsize(file).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }

    /// Bytes of output that are kept.
    pub fn kept(&self) -> usize {
        self.inner.lock().kept.len()
    }

    /// A writer for devices that want one.
    pub fn writer(self: &Arc<Self>) -> impl Write + Send + use<> {
        Writer(Arc::clone(self))
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        let kind = match inner.end {
            End::Null => "null",
            End::File(_) => "file",
            End::Standard { .. } => "standard",
            End::Pty { .. } => "pty",
            End::Socket { .. } => "socket",
        };
        write!(f, "Terminal({kind}, {} bytes kept)", inner.kept.len())
    }
}

struct Writer(Arc<Terminal>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    /// Passes on as much as is taken now; how much that was.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while let Some(rest) = bytes.get(passed..).filter(|rest| !rest.is_empty()) {
            let result = match &mut self.end {
                End::Null => return bytes.len(),
                End::File(file) => write_all(file, rest),
                End::Standard { output, chunk: None, .. } => write_all(output, rest),
                End::Standard { output, chunk: Some(chunk), .. } => {
                    if !is_writable(output.as_fd()) {
                        break;
                    }
                    output.write(rest.get(..*chunk).unwrap_or(rest))
                }
                End::Pty { main, .. } => main.write(rest),
                End::Socket { client: Some(client), .. } if !self.broken => client.write(rest),
                End::Socket { .. } => break,
            };
            match result {
                Ok(0) => break,
                Ok(count) => passed += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.failed(&error);
                    break;
                }
            }
        }
        passed
    }

    fn failed(&mut self, error: &io::Error) {
        if matches!(self.end, End::Socket { .. }) {
            self.broken = true;
        } else {
            // The guest writes as often as it likes: said once, by there being no output from then on.
            log::warn!("console output ends: {error}");
            self.end = End::Null;
            self.kept.clear();
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if matches!(self.end, End::Null) {
            return;
        }
        let newest = bytes.get(bytes.len().saturating_sub(BACKLOG)..).unwrap_or_default();
        let excess = (self.kept.len() + newest.len()).saturating_sub(BACKLOG);
        self.kept.drain(..excess.min(self.kept.len()));
        self.kept.extend(newest);
    }

    fn read(&mut self, buffer: &mut [u8]) -> usize {
        if self.input_ended || self.broken || buffer.is_empty() {
            return 0;
        }
        let result = match &mut self.end {
            End::Standard { input: Some(input), .. } if is_readable(input.as_fd()) => input.read(buffer),
            End::Pty { main, .. } => main.read(buffer),
            End::Socket { client: Some(client), .. } => client.read(buffer),
            _ => return 0,
        };
        match result {
            Ok(0) => {
                self.ended();
                0
            }
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => {
                log::debug!("console input: {error}");
                self.ended();
                0
            }
        }
    }

    fn ended(&mut self) {
        match self.end {
            End::Socket { .. } => self.broken = true,
            _ => self.input_ended = true,
        }
    }

    /// Whether whoever polls has something to do that no descriptor tells it of.
    fn needs_care(&self) -> bool {
        self.broken || self.watch().output.is_some()
    }

    fn watch(&self) -> Watch {
        let input = |fd: BorrowedFd<'_>| (!self.input_ended).then_some(fd.as_raw_fd());
        let output = |fd: BorrowedFd<'_>| (!self.kept.is_empty()).then_some(fd.as_raw_fd());
        match &self.end {
            End::Null | End::File(_) => Watch::default(),
            End::Standard { input: from, output: to, .. } => Watch {
                input: from.as_ref().and_then(|from| input(from.as_fd())),
                output: output(to.as_fd()),
                listener: None,
            },
            End::Pty { main, .. } => {
                Watch { input: input(main.as_fd()), output: output(main.as_fd()), listener: None }
            }
            End::Socket { client: Some(client), .. } => {
                Watch { input: Some(client.as_raw_fd()), output: output(client.as_fd()), listener: None }
            }
            End::Socket { listener, client: None } => {
                Watch { listener: Some(listener.as_raw_fd()), ..Watch::default() }
            }
        }
    }

    fn tend(&mut self) -> bool {
        let mut changed = false;
        if let End::Socket { listener, client } = &mut self.end {
            if std::mem::take(&mut self.broken) {
                *client = None;
                changed = true;
            }
            if client.is_none() {
                match listener.accept() {
                    Ok((stream, _)) => match stream.set_nonblocking(true) {
                        Ok(()) => {
                            *client = Some(stream);
                            changed = true;
                        }
                        Err(error) => log::warn!("console socket: {error}"),
                    },
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => log::warn!("console socket: {error}"),
                }
            }
        }
        let kept = std::mem::take(&mut self.kept);
        let (first, second) = kept.as_slices();
        let mut passed = self.pass(first);
        if passed == first.len() {
            passed += self.pass(second);
        }
        // What failed has no output any more.
        if !matches!(self.end, End::Null) {
            self.kept = kept;
            self.kept.drain(..passed);
        }
        changed
    }
}

fn write_all(mut file: &File, bytes: &[u8]) -> io::Result<usize> {
    file.write_all(bytes).map(|()| bytes.len())
}

/// Whether epoll takes the descriptor: it takes no file, directory or device whose driver has no way to poll it.
fn can_be_waited_for(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let asked = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(&asked, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    is_ready(fd, PollFlags::OUT)
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    is_ready(fd, PollFlags::IN)
}

/// Whether it is so now; an end or error counts as ready, and shows when the descriptor is used.
fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, events)];
    let now = Timespec::try_from(Duration::ZERO).ok();
    poll(&mut polled, now.as_ref()).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::{io::Seek, os::unix::fs::OpenOptionsExt};

    use super::*;

    fn pipe() -> (File, File) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (File::from(read), File::from(write))
    }

    #[test]
    fn only_terminals_have_a_size() {
        let (_read, write) = pipe();
        assert_eq!(Terminal::standard(write, None).unwrap().size(), None);
        assert_eq!(Terminal::null().unwrap().size(), None);
        assert_eq!(Terminal::file(tempfile::tempfile().unwrap()).unwrap().size(), None);
    }

    #[test]
    fn a_file_takes_everything() {
        let mut file = tempfile::tempfile().unwrap();
        let terminal = Terminal::file(file.try_clone().unwrap()).unwrap();
        terminal.write(b"boot");
        terminal.writer().write_all(b"ing\n").unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), terminal.kept()), ("booting\n", 0));
        assert_eq!(terminal.watch(), Watch::default());
    }

    #[test]
    fn a_full_pipe_does_not_block_and_the_newest_is_kept() {
        let (mut read, write) = pipe();
        let terminal = Terminal::standard(write, None).unwrap();
        let data: Vec<u8> = (0..3 * BACKLOG).map(|index| (index / 1000).to_le_bytes()[0]).collect();
        for part in data.chunks(7777) {
            terminal.write(part);
        }
        assert_eq!(terminal.kept(), BACKLOG);
        assert!(terminal.watch().output.is_some());
        assert_eq!(terminal.backlog_event().read().unwrap(), 1);
        // The beginning is in the pipe, the rest goes on as the pipe is read.
        let mut seen = Vec::new();
        let mut buffer = [0; 65536];
        while terminal.kept() > 0 {
            let count = read.read(&mut buffer).unwrap();
            seen.extend(&buffer[..count]);
            terminal.tend();
        }
        assert!(terminal.watch().output.is_none());
        drop(terminal);
        read.read_to_end(&mut seen).unwrap();
        assert_eq!(seen[seen.len() - BACKLOG..], data[data.len() - BACKLOG..]);
        assert_eq!(seen[..60000], data[..60000]);
    }

    #[test]
    fn input_comes_and_ends() {
        let (read, mut write) = pipe();
        let terminal = Terminal::standard(tempfile::tempfile().unwrap(), Some(read)).unwrap();
        let mut buffer = [0; 3];
        assert_eq!(terminal.read(&mut buffer), 0);
        write.write_all(b"hello").unwrap();
        assert_eq!((terminal.read(&mut buffer), &buffer), (3, b"hel"));
        assert_eq!(terminal.read(&mut buffer), 2);
        assert!(terminal.watch().input.is_some());
        drop(write);
        assert_eq!(terminal.read(&mut buffer), 0);
        assert!(terminal.watch().input.is_none(), "an end is not polled for ever");
    }

    #[test]
    fn input_that_cannot_be_waited_for_is_no_input() {
        let open = |path: &str| File::open(path).unwrap();
        for input in [tempfile::tempfile().unwrap(), open("/dev/null"), open("/dev/zero"), open("/")] {
            let terminal = Terminal::standard(tempfile::tempfile().unwrap(), Some(input)).unwrap();
            assert_eq!(terminal.watch(), Watch::default());
            assert_eq!(terminal.read(&mut [0; 8]), 0);
        }
    }

    #[test]
    fn output_whose_reader_has_gone_is_dropped() {
        let (read, write) = pipe();
        let terminal = Terminal::standard(write, None).unwrap();
        drop(read);
        terminal.write(b"anybody?");
        assert_eq!((terminal.kept(), terminal.watch()), (0, Watch::default()));
    }

    #[test]
    fn a_pty_keeps_output_until_it_is_read() {
        let main = File::options()
            .read(true)
            .write(true)
            .custom_flags(0o400)
            .open("/dev/ptmx")
            .expect("a host with ptys");
        rustix::pty::unlockpt(&main).unwrap();
        let name = rustix::pty::ptsname(&main, Vec::new()).unwrap();
        let open = || File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let subordinate = open();
        let mut settings = rustix::termios::tcgetattr(&subordinate).unwrap();
        settings.make_raw();
        rustix::termios::tcsetattr(&subordinate, rustix::termios::OptionalActions::Now, &settings).unwrap();
        let terminal = Terminal::pty(main, subordinate).unwrap();
        let data = vec![b'x'; 100_000];
        terminal.write(&data);
        assert!(terminal.kept() > 0);
        let mut reader = open();
        let mut seen = 0;
        let mut buffer = [0; 4096];
        while seen < data.len() {
            seen += reader.read(&mut buffer).unwrap();
            terminal.tend();
        }
        assert_eq!(terminal.kept(), 0);
        reader.write_all(b"ls\n").unwrap();
        let mut typed = [0; 8];
        assert_eq!(terminal.read(&mut typed), 3);
        // Nobody there is no end.
        drop(reader);
        assert_eq!(terminal.read(&mut typed), 0);
        assert!(terminal.watch().input.is_some());
    }

    #[test]
    fn a_socket_has_one_client_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let terminal = Terminal::socket(UnixListener::bind(&path).unwrap()).unwrap();
        terminal.write(b"before anybody came\n");
        assert!(terminal.watch().listener.is_some());
        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        terminal.tend();
        assert!(terminal.watch().listener.is_none());
        let mut buffer = [0; 64];
        let count = first.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"before anybody came\n");
        first.write_all(b"hi").unwrap();
        assert_eq!(terminal.read(&mut buffer), 2);
        drop(first);
        assert_eq!(terminal.read(&mut buffer), 0);
        terminal.write(b"next\n");
        terminal.tend();
        let count = second.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"next\n");
    }
}
