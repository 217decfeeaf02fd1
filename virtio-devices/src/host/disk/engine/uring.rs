//! io_uring: requests are queued without a system call, begun together by one, and found done without one.
#![expect(unsafe_code, reason = "requests of a ring refer to memory by address")]

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::{Arc, OnceLock},
};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Completion, Engine, InFlight, Operation, Request, carry_out, file};
use crate::host::buffers::Buffers;

/// Whether the kernel gives us a ring that knows our requests. Asked once: a ring costs more than the answer is worth
/// for every disk again.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(probe)
}

fn probe() -> bool {
    let probed = IoUring::new(1).and_then(|ring| {
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        Ok(probe)
    });
    let needed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
    probed.is_ok_and(|probe| needed.iter().all(|code| probe.is_supported(*code)))
}

pub(super) struct Uring {
    // Dropped before the file and the requests' memory.
    ring: IoUring,
    file: Arc<File>,
    event: EventFd,
    in_flight: InFlight<Request>,
    /// Requests that the ring has no room for yet.
    waiting: VecDeque<usize>,
    /// Requests that the ring has: never more than it can report done, since what overflows is found only
    /// by a system call, and is not told by the eventfd.
    in_ring: u32,
    done: VecDeque<Completion>,
}

impl Uring {
    pub(super) fn new(file: &Arc<File>, depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth.clamp(1, 4096)).next_power_of_two();
        let ring = IoUring::new(entries)?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let file = Arc::clone(file);
        Ok(Self {
            ring,
            file,
            event,
            in_flight: InFlight::new(),
            waiting: VecDeque::new(),
            in_ring: 0,
            done: VecDeque::new(),
        })
    }

    fn entry(&self, index: usize, request: &Request) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let vectors = request.buffers.as_ref().map(Buffers::vectors).unwrap_or_default();
        let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
        let entry = match request.operation {
            Operation::Read { offset } => {
                opcode::Readv::new(fd, vectors.as_ptr(), count).offset(offset).build()
            }
            Operation::Write { offset } => {
                opcode::Writev::new(fd, vectors.as_ptr(), count).offset(offset).build()
            }
            Operation::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Discard { offset, len } => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(file::DISCARD_MODE).build()
            }
            Operation::WriteZeroes { offset, len, unmap } => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(file::zero_mode(unmap)).build()
            }
        };
        entry.user_data(index as u64)
    }

    /// Queues what waits, as far as there is room.
    fn push(&mut self) {
        let most = self.ring.params().cq_entries();
        while let Some(index) = self.waiting.front().copied().filter(|_| self.in_ring < most) {
            if let Some(request) = self.in_flight.get(index) {
                let entry = self.entry(index, request);
                // SAFETY: the vectors and the memory behind them are in `in_flight` until the request is
                // done, and so is the file; `Drop` waits for all requests.
                if unsafe { self.ring.submission().push(&entry) }.is_err() {
                    return;
                }
                self.in_ring += 1;
            }
            self.waiting.pop_front();
        }
    }

    fn begin(&mut self, wait_for: usize) {
        match self.ring.submit_and_wait(wait_for) {
            Ok(_) => {}
            // The completion queue is full or the kernel is short of memory: what is done is collected
            // first, and the next kick begins the rest.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)) => {}
            Err(error) => log::error!("io_uring_enter: {error}"),
        }
    }

    fn collect(&mut self) {
        while let Some(entry) = self.ring.completion().next() {
            self.in_ring = self.in_ring.saturating_sub(1);
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(request) = self.in_flight.remove(index) else { continue };
            let result = entry.result();
            let unsupported = [libc::EOPNOTSUPP, libc::ENOSYS].contains(&-result);
            if unsupported && matches!(request.operation, Operation::WriteZeroes { .. }) {
                // The file system cannot do it: zeros are written.
                carry_out(&self.file, request, &mut self.done);
                continue;
            }
            let Request { tag, operation: _, buffers } = request;
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            self.done.push_back(Completion { tag, result, buffers });
        }
    }
}

impl Engine for Uring {
    fn submit(&mut self, request: Request) {
        let index = self.in_flight.insert(request);
        self.waiting.push_back(index);
        self.push();
    }

    fn kick(&mut self) {
        self.push();
        if !self.ring.submission().is_empty() {
            self.begin(0);
        }
    }

    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }

    fn completion(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.collect();
            if !self.waiting.is_empty() {
                self.kick();
            }
        }
        self.done.pop_front()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel must not write memory after it was freed.
        while self.in_flight.len() > 0 {
            self.push();
            self.begin(1);
            self.collect();
        }
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring({} in flight)", self.in_flight.len())
    }
}
