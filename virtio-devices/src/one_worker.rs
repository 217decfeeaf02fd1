//! Devices that have one thread for all their queues: what the transport asks of the queues is asked of that thread.
//! Block and network devices have several, and answer for themselves.

use std::sync::Arc;

use devices::PauseError;

use crate::{
    device::{ActivateError, ActiveQueue, Queues, StoppedQueue},
    queue::QueueState,
    worker::{Job, Spawn, Worker},
};

/// A job that serves all queues of a device.
pub(crate) trait DeviceJob: Job + Sized {
    /// Takes a queue.
    fn start_queue(&mut self, queue: ActiveQueue);

    /// Gives a queue up, if it has it.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;

    /// Where its queues stand.
    fn states(&self) -> Vec<StoppedQueue>;

    /// The worker of a device that is activated; paused.
    fn begin(self, id: &str, spawn: &Arc<dyn Spawn>) -> Result<Worker<Self>, ActivateError> {
        Worker::new(id, self, spawn).map_err(|error| ActivateError::host("cannot make an eventfd", error))
    }
}

/// A device with one worker.
pub(crate) trait OneWorker: Send {
    /// What the worker does.
    type Job: DeviceJob;

    /// The worker, of a device that is active.
    fn worker(&self) -> Option<&Worker<Self::Job>>;

    /// The place of the worker. It is left when all queues are given up.
    fn worker_mut(&mut self) -> &mut Option<Worker<Self::Job>>;

    /// The device is not active any more.
    fn stopped(&mut self) {}
}

impl<D: OneWorker> Queues for D {
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        if let Some(worker) = self.worker() {
            worker.job().start_queue(queue);
            worker.wake();
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, PauseError> {
        Ok(self.worker().and_then(|worker| worker.job().stop_queue(index)))
    }

    fn stop(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        let Some(worker) = self.worker_mut() else { return Ok(Vec::new()) };
        worker.stop()?;
        let stopped = worker.job().states();
        *self.worker_mut() = None;
        self.stopped();
        Ok(stopped)
    }

    fn ask_to_pause(&self) {
        self.worker().into_iter().for_each(Worker::ask_to_pause);
    }

    fn pause(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        let Some(worker) = self.worker() else { return Ok(Vec::new()) };
        worker.pause()?;
        Ok(worker.job().states())
    }

    fn resume(&mut self) {
        if let Some(worker) = self.worker_mut() {
            worker.resume();
        }
    }
}
