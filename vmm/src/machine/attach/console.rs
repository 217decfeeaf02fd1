//! Virtio console: its terminal, and the size of that.

use std::{io, sync::Arc};

use devices::terminal::Terminal;
use virtio_devices::{
    console::{Console, ConsoleControl},
    worker::PlainThreads,
};

use super::{
    AttachError, Attached, Context, Control, virtio,
    window::{Notice, Watch},
};
use crate::{
    config::{ConsoleConfig, ConsoleTarget},
    layout::DeviceLayout,
    machine::consoles::Seat,
};

/// Columns and rows of a terminal that has no size.
const DEFAULT_SIZE: (u16, u16) = (80, 25);

/// The window of a console, whose size the guest is told. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Window {
    sizer: Arc<Sizer>,
    // Stops when the last clone is dropped.
    _watch: Option<Arc<Watch>>,
}

#[derive(Debug)]
struct Sizer {
    terminal: Arc<Terminal>,
    control: ConsoleControl,
}

impl Sizer {
    fn refresh(&self) {
        if let Some((columns, rows)) = self.terminal.size() {
            self.control.resize(columns, rows);
        }
    }
}

impl Window {
    fn watch(target: &ConsoleTarget, terminal: Arc<Terminal>, control: ConsoleControl) -> io::Result<Self> {
        let sizer = Arc::new(Sizer { terminal, control });
        let notice = match target {
            ConsoleTarget::Tty if sizer.terminal.size().is_some() => Some(Notice::Signal),
            ConsoleTarget::Pty => Some(Notice::Asking),
            _ => None,
        };
        let changed = Arc::clone(&sizer);
        let watch = notice.map(|notice| Watch::start(notice, move || changed.refresh())).transpose()?;
        Ok(Self { sizer, _watch: watch.map(Arc::new) })
    }

    /// Tells the guest the size that the window has now, if that is another one: a machine that was restored had
    /// another window.
    pub fn refresh(&self) {
        self.sizer.refresh();
    }
}

/// Opens the target and builds the device.
///
/// # Errors
/// The target cannot be opened, or is none that a console can have.
pub fn attach(
    config: &ConsoleConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let terminal = context
        .consoles
        .take(Seat::Virtio, &config.target)?
        .ok_or(AttachError::Unavailable { what: "a console that is off" })?;
    let (columns, rows) = terminal.size().unwrap_or(DEFAULT_SIZE);
    let device = Console::new(&config.id, Arc::clone(&terminal), columns, rows, Arc::new(PlainThreads));
    let window = Window::watch(&config.target, terminal, device.control()).map_err(AttachError::Function)?;
    let device = virtio::function(Box::new(device), layout, context, true).map_err(AttachError::Function)?;
    Ok(Attached { device, control: Control::Window(window) })
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd,
        time::{Duration, Instant},
    };

    use rustix::{
        process::{Signal, getpid, kill_process},
        termios::{Winsize, tcsetwinsize},
    };
    use virtio_devices::device::VirtioDevice;

    use super::*;
    use crate::terminal::tests::pty;

    fn resize(terminal: impl AsFd, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).unwrap();
    }

    /// Waits until the guest is told of that size.
    fn expect(console: &Console, columns: u16, rows: u16) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let told = || {
            let mut bytes = [0; 4];
            console.read_config(0, &mut bytes);
            let [a, b, c, d] = bytes;
            (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
        };
        while told() != (columns, rows) {
            assert!(Instant::now() < deadline, "the guest is told {:?}", told());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_guest_is_told_of_another_size() {
        for target in [ConsoleTarget::Tty, ConsoleTarget::Pty] {
            let (user, ours) = pty();
            resize(&user, 100, 30);
            let terminal = match target {
                ConsoleTarget::Tty => Terminal::standard(ours.try_clone().unwrap(), None).unwrap(),
                _ => Terminal::pty(user.try_clone().unwrap(), ours.try_clone().unwrap()).unwrap(),
            };
            let console = Console::new("c", Arc::clone(&terminal), 1, 1, Arc::new(PlainThreads));
            let window = Window::watch(&target, terminal, console.control()).unwrap();
            window.refresh();
            expect(&console, 100, 30);
            // The user's terminal emulator sets the size; a program in a pseudo-terminal of ours sees it.
            resize(&user, 132, 50);
            if target == ConsoleTarget::Tty {
                kill_process(getpid(), Signal::WINCH).unwrap();
            }
            expect(&console, 132, 50);
        }
    }

    #[test]
    fn what_has_no_size_is_not_watched() {
        let terminal = Terminal::null().unwrap();
        let console = Console::new("c", Arc::clone(&terminal), 80, 25, Arc::new(PlainThreads));
        let window = Window::watch(&ConsoleTarget::Null, terminal, console.control()).unwrap();
        window.refresh();
        assert!(window._watch.is_none());
        expect(&console, 80, 25);
    }
}
