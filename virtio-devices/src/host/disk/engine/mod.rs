//! How requests of an image are carried out: synchronously, by Linux AIO, or by io_uring.
//!
//! An engine serves one queue, on one thread. It owns the memory of a request until the request is done, and
//! waits for all of them when it is dropped.

mod aio;
mod file;
mod synchronous;
#[cfg(test)]
mod tests;
mod uring;

use std::{collections::VecDeque, fmt, fs::File, io, sync::Arc};

use vmm_sys_util::eventfd::EventFd;

use crate::host::buffers::Buffers;

/// What to do. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffers from `offset` on.
    Read {
        /// Where.
        offset: u64,
    },
    /// Write the buffers to `offset`.
    Write {
        /// Where.
        offset: u64,
    },
    /// What was written becomes stable.
    Flush,
    /// The range is not needed; its content is undefined after that.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The range reads as zeros.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// Whether its space may be given back.
        unmap: bool,
    },
}

/// A request. `tag` comes back with its completion.
#[derive(Debug)]
pub struct Request {
    /// The submitter's name for it.
    pub tag: u16,
    /// What to do.
    pub operation: Operation,
    /// Its memory, for reads and writes.
    pub buffers: Option<Buffers>,
}

/// A request that is done.
#[derive(Debug)]
pub struct Completion {
    /// The submitter's name for it.
    pub tag: u16,
    /// Bytes transferred, which may be fewer than asked for.
    pub result: io::Result<usize>,
    /// Its memory.
    pub buffers: Option<Buffers>,
}

/// Carries requests out.
pub trait Engine: Send + fmt::Debug {
    /// Takes a request; at most as many at a time as the engine was made for. It begins at
    /// [`kick`](Self::kick) at the latest.
    fn submit(&mut self, request: Request);

    /// Begins what was submitted.
    fn kick(&mut self);

    /// Signalled when requests are done; none if they are done when [`kick`](Self::kick) returns.
    fn event(&self) -> Option<&EventFd>;

    /// The next request that is done.
    fn completion(&mut self) -> Option<Completion>;
}

/// Which kind of engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// Linux AIO.
    Aio,
    /// One request after the other, on the queue's thread.
    Synchronous,
}

impl EngineKind {
    /// All kinds, best first.
    pub const ALL: [Self; 3] = [Self::IoUring, Self::Aio, Self::Synchronous];

    /// The name under which it is reported.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Aio => "aio",
            Self::Synchronous => "sync",
        }
    }

    /// Whether this host lets us use it.
    pub fn is_available(self) -> bool {
        match self {
            Self::IoUring => uring::is_available(),
            Self::Aio => aio::is_available(),
            Self::Synchronous => true,
        }
    }

    /// An engine of this kind for a file.
    ///
    /// # Errors
    /// The host has no resources for it.
    pub fn create(self, file: &Arc<File>, depth: u16) -> io::Result<Box<dyn Engine>> {
        Ok(match self {
            Self::IoUring => Box::new(uring::Uring::new(file, depth)?),
            Self::Aio => Box::new(aio::Aio::new(file, depth)?),
            Self::Synchronous => Box::new(synchronous::Synchronous::new(file)),
        })
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Requests in flight, by a number of our own that the kernel gets.
#[derive(Debug)]
struct InFlight<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> InFlight<T> {
    fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    fn insert(&mut self, value: T) -> usize {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index)
        {
            *slot = Some(value);
            return index;
        }
        self.slots.push(Some(value));
        self.slots.len() - 1
    }

    fn get(&self, index: usize) -> Option<&T> {
        self.slots.get(index)?.as_ref()
    }

    fn remove(&mut self, index: usize) -> Option<T> {
        let value = self.slots.get_mut(index)?.take()?;
        self.free.push(index);
        Some(value)
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// Carries a request out at once, whatever it is.
fn carry_out(file: &File, request: Request, done: &mut VecDeque<Completion>) {
    let Request { tag, operation, buffers } = request;
    let vectors = buffers.as_ref().map(Buffers::vectors).unwrap_or_default();
    let result = match operation {
        Operation::Read { offset } => file::read(file, vectors, offset),
        Operation::Write { offset } => file::write(file, vectors, offset),
        Operation::Flush => file.sync_data().map(|()| 0),
        Operation::Discard { offset, len } => file::discard(file, offset, len).map(|()| 0),
        Operation::WriteZeroes { offset, len, unmap } => {
            file::write_zeroes(file, offset, len, unmap).map(|()| 0)
        }
    };
    done.push_back(Completion { tag, result, buffers });
}
