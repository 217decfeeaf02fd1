//! The synchronous engine: each request is done when it was kicked.

use std::{collections::VecDeque, fs::File, sync::Arc};

use vmm_sys_util::eventfd::EventFd;

use super::{Completion, Engine, Request, carry_out};

#[derive(Debug)]
pub(super) struct Synchronous {
    file: Arc<File>,
    done: VecDeque<Completion>,
}

impl Synchronous {
    pub(super) fn new(file: &Arc<File>) -> Self {
        Self { file: Arc::clone(file), done: VecDeque::new() }
    }
}

impl Engine for Synchronous {
    fn submit(&mut self, request: Request) {
        carry_out(&self.file, request, &mut self.done);
    }

    fn kick(&mut self) {}

    fn event(&self) -> Option<&EventFd> {
        None
    }

    fn completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
}
