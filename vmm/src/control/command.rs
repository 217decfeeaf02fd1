//! What the control thread can be asked to do, and how others ask it.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, mpsc},
};

use api_client::wire;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::error::CommandError;
use crate::snapshot::{Rehearsal, RestoreReport, SaveReport};

/// Everything that changes a VM, or needs the machine. What merely asks does not come here: see
/// [`Board`](super::Board).
#[derive(Debug)]
pub enum Command {
    /// Stores a configuration.
    Create(Box<wire::VmConfig>),
    /// Forgets it, after a shutdown if that is needed.
    Delete,
    /// Builds the machine and lets it run.
    Boot,
    /// Takes the machine down; its configuration stays.
    Shutdown,
    /// Takes it down and boots it again.
    Reboot,
    /// Brings it to a standstill.
    Pause,
    /// Lets it run again.
    Resume,
    /// Presses the power button.
    PowerButton,
    /// Delivers a non-maskable interrupt to every processor.
    Nmi,
    /// Changes processors, memory, balloon.
    Resize(wire::VmResize),
    /// Changes the size of a disk.
    ResizeDisk(wire::VmResizeDisk),
    /// Changes the size of a memory zone.
    ResizeZone(wire::VmResizeZone),
    /// Adds a device.
    Add(Box<Addition>),
    /// Removes a device.
    Remove(wire::VmRemoveDevice),
    /// Takes a snapshot.
    Snapshot(wire::VmSnapshotConfig),
    /// Restores a VM from one.
    Restore(Box<Restore>),
    /// Dumps the guest's memory.
    Coredump(wire::VmCoredumpData),
    /// Moves the VM to another host.
    SendMigration(Box<wire::SendMigrationData>),
    /// Waits for a VM that moves here.
    ReceiveMigration(Box<Receive>),
    /// Deletes the VM and ends the process.
    Quit,
}

/// A device to be added.
#[derive(Debug)]
pub enum Addition {
    /// A device of the host, by VFIO; over the API with its descriptor.
    Device(wire::DeviceConfig, Option<OwnedFd>),
    /// A disk.
    Disk(wire::DiskConfig),
    /// A shared file system.
    Fs(wire::FsConfig),
    /// A device on a vhost-user back end.
    GenericVhostUser(wire::GenericVhostUserConfig),
    /// A network device, with its descriptors.
    Net(wire::NetConfig),
    /// Persistent memory.
    Pmem(wire::PmemConfig),
    /// A device in another process.
    UserDevice(wire::UserDeviceConfig),
    /// A vDPA device.
    Vdpa(wire::VdpaConfig),
    /// The socket device.
    Vsock(wire::VsockConfig),
}

/// What to restore, and the descriptors that came with the request, in the order that they are named.
#[derive(Debug)]
pub struct Restore {
    /// The request.
    pub said: wire::RestoreConfig,
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// What to receive, and the descriptors that came with the request.
#[derive(Debug)]
pub struct Receive {
    /// The request.
    pub said: wire::ReceiveMigrationData,
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// A device is now there.
    Added(wire::PciDeviceInfo),
    /// The VM was saved, so.
    Saved(Box<SaveReport>),
    /// A VM was restored, so.
    Restored(Box<RestoreReport>),
    /// A VM could be restored, so.
    Rehearsed(Box<Rehearsal>),
}

/// Who is told what came of a command. Called once, on the control thread; it must not wait.
pub type Reply = Box<dyn FnOnce(Result<Answer, CommandError>) + Send>;

/// A way to ask the control thread. Copies lead to the same one.
#[derive(Clone)]
pub struct Handle(Arc<Inbox>);

impl Handle {
    /// A new inbox and the way to it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(super) fn new() -> io::Result<(Self, Arc<Inbox>)> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let inbox = Arc::new(Inbox { waiting: Mutex::new(Some(VecDeque::new())), event });
        Ok((Self(Arc::clone(&inbox)), inbox))
    }

    /// Asks for something. Returns at once; `reply` is called when it is done, and in any case.
    pub fn send(&self, command: Command, reply: Reply) {
        let refused = {
            let mut waiting = self.0.waiting.lock();
            match &mut *waiting {
                Some(waiting) => {
                    waiting.push_back((command, reply));
                    None
                }
                None => Some(reply),
            }
        };
        match refused {
            Some(reply) => reply(Err(CommandError::Ending)),
            // Fails only when the counter is full, which means it is signalled.
            None => drop(rustix::io::write(&self.0.event, &1u64.to_ne_bytes())),
        }
    }

    /// Asks for something and waits for what comes of it. Not for the control thread itself.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn call(&self, command: Command) -> Result<Answer, CommandError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(command, Box::new(move |result| drop(sender.send(result))));
        receiver.recv().unwrap_or(Err(CommandError::Ending))
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

/// What the control thread has been asked and has not begun with. Readable as a descriptor when there is
/// something.
pub(super) struct Inbox {
    // `None` when nothing is taken any more. Each client waits for its answer, so it stays short.
    waiting: Mutex<Option<VecDeque<(Command, Reply)>>>,
    event: OwnedFd,
}

impl Inbox {
    /// The oldest command, if there is one.
    pub(super) fn take(&self) -> Option<(Command, Reply)> {
        let mut waiting = self.waiting.lock();
        let oldest = waiting.as_mut().and_then(VecDeque::pop_front);
        if waiting.as_ref().is_none_or(VecDeque::is_empty) {
            // Fails only if it was not signalled.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        oldest
    }

    /// Refuses everything that waits, and from now on.
    pub(super) fn close(&self) {
        for (_, reply) in self.waiting.lock().take().into_iter().flatten() {
            reply(Err(CommandError::Ending));
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
