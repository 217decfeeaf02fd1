//! Linux AIO (io_submit(2)). Reads, writes and flushes are asynchronous where the file was opened for direct
//! I/O; discards and zeros are carried out at once.

use std::{collections::VecDeque, fs::File, io, os::fd::AsRawFd, sync::Arc};

use vmm_sys_util::{
    aio::{
        IOCB_CMD_FDSYNC, IOCB_CMD_PREADV, IOCB_CMD_PWRITEV, IOCB_FLAG_RESFD, IoContext, IoControlBlock,
        IoEvent,
    },
    eventfd::{EFD_NONBLOCK, EventFd},
};

use super::{Completion, Engine, InFlight, Operation, Request, carry_out};
use crate::host::buffers::Buffers;

pub(super) fn is_available() -> bool {
    IoContext::new(1).is_ok()
}

pub(super) struct Aio {
    file: Arc<File>,
    context: IoContext,
    event: EventFd,
    in_flight: InFlight<Request>,
    done: VecDeque<Completion>,
}

impl Aio {
    pub(super) fn new(file: &Arc<File>, depth: u16) -> io::Result<Self> {
        Ok(Self {
            file: Arc::clone(file),
            context: IoContext::new(u32::from(depth.max(1)))?,
            event: EventFd::new(EFD_NONBLOCK)?,
            in_flight: InFlight::new(),
            done: VecDeque::new(),
        })
    }

    /// Collects what the kernel has done; waits for `minimum` of them.
    fn collect(&mut self, minimum: i64) {
        let mut events: [IoEvent; 32] = std::array::from_fn(|_| IoEvent::default());
        let count = match self.context.get_events(minimum, &mut events, None) {
            Ok(count) => count,
            Err(error) => {
                log::error!("io_getevents: {error}");
                0
            }
        };
        for event in events.iter().take(count) {
            let index = usize::try_from(event.data).unwrap_or(usize::MAX);
            if let Some(Request { tag, operation: _, buffers }) = self.in_flight.remove(index) {
                self.done.push_back(Completion { tag, result: result(event.res), buffers });
            }
        }
    }
}

/// A count, or a negated error number.
fn result(value: i64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| {
        let number = value.checked_neg().and_then(|number| i32::try_from(number).ok());
        io::Error::from_raw_os_error(number.unwrap_or(libc::EIO))
    })
}

impl Engine for Aio {
    fn submit(&mut self, request: Request) {
        let (command, offset) = match request.operation {
            Operation::Read { offset } => (IOCB_CMD_PREADV, offset),
            Operation::Write { offset } => (IOCB_CMD_PWRITEV, offset),
            Operation::Flush => (IOCB_CMD_FDSYNC, 0),
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                return carry_out(&self.file, request, &mut self.done);
            }
        };
        let vectors = request.buffers.as_ref().map(Buffers::vectors).unwrap_or_default();
        // The kernel copies the vectors while it takes the request; the memory behind them is kept until
        // the request is done.
        let mut block = IoControlBlock {
            aio_fildes: u32::try_from(self.file.as_raw_fd()).unwrap_or(u32::MAX),
            aio_lio_opcode: u16::try_from(command).unwrap_or(u16::MAX),
            aio_buf: vectors.as_ptr() as u64,
            aio_nbytes: vectors.len() as u64,
            aio_offset: i64::try_from(offset).unwrap_or(-1),
            aio_flags: IOCB_FLAG_RESFD,
            aio_resfd: u32::try_from(self.event.as_raw_fd()).unwrap_or(u32::MAX),
            ..IoControlBlock::default()
        };
        let index = self.in_flight.insert(request);
        block.aio_data = index as u64;
        match self.context.submit(&[&mut block]) {
            Ok(1) => {}
            // Not taken: the file system cannot do this one asynchronously, or the queue is full.
            _ => {
                if let Some(request) = self.in_flight.remove(index) {
                    carry_out(&self.file, request, &mut self.done);
                }
            }
        }
    }

    fn kick(&mut self) {}

    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }

    fn completion(&mut self) -> Option<Completion> {
        if self.done.is_empty() && self.in_flight.len() > 0 {
            self.collect(0);
        }
        self.done.pop_front()
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        while self.in_flight.len() > 0 {
            let before = self.in_flight.len();
            self.collect(1);
            if self.in_flight.len() == before {
                // The kernel does not answer: rather lose the memory than have it written after it was freed.
                std::mem::forget(std::mem::replace(&mut self.in_flight, InFlight::new()));
            }
        }
    }
}

impl std::fmt::Debug for Aio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aio({} in flight)", self.in_flight.len())
    }
}
