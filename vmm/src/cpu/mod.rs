//! The vCPU threads: one a vCPU, named `vcpu<N>`, that create, set up and run it.
//!
//! A thread owns its vCPU; nobody else touches it. What others want of it ([`Vcpus::pause`], state
//! to save or load) they hand to the thread as a job. An exit is dispatched on the published wiring
//! without a lock ([`bus`]). What is absent: what a guest's request leads to (`control`), and how
//! registers and CPUID come about (`arch`).

pub mod bus;
mod cookie;
mod mailbox;
mod thread;

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use address_manager::AddressManager;
use devices::{GuestRequest, RequestSink};
use hypervisor::{
    HypervisorError, Vcpu, Vm,
    x86_64::{CpuidEntry, ReadyRegisters, VcpuState},
};
use thiserror::Error;

use self::mailbox::{EndGuard, Mailbox};
pub use self::{bus::ExitCounters, cookie::Cookie, mailbox::Answer};
use crate::host::NoCpu;

/// How long a vCPU may take to answer before the handshake is given up.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A vCPU thread failed, or did not answer.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// The thread could not be started.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// Which vCPU.
        index: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The thread cannot run where it shall.
    #[error("vCPU {index}: affinity")]
    Affinity {
        /// Which vCPU.
        index: u32,
        /// Which host CPU is the cause.
        #[source]
        source: NoCpu,
    },
    /// The vCPU cannot have a core to itself.
    #[error("vCPU {index}: core_scheduling: the host cannot keep other programs off its core")]
    CoreScheduling {
        /// Which vCPU.
        index: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The vCPU could not be made or set up.
    #[error("vCPU {index} cannot be set up")]
    SetUp {
        /// Which vCPU.
        index: u32,
        /// Why.
        #[source]
        source: HypervisorError,
    },
    /// An operation on the vCPU failed.
    #[error("vCPU {index}: {operation} failed")]
    Operation {
        /// Which vCPU.
        index: u32,
        /// What was asked for.
        operation: &'static str,
        /// Why.
        #[source]
        source: HypervisorError,
    },
    /// There is a thread, and nothing is known of its vCPU.
    #[error("vCPU {index}: nothing says what it shall be")]
    NoPlan {
        /// Which vCPU.
        index: u32,
    },
    /// The thread did not answer in time.
    #[error("vCPU {index} did not {what} within {seconds} s", seconds = ANSWER_TIMEOUT.as_secs())]
    NoAnswer {
        /// Which vCPU.
        index: u32,
        /// What it was asked to do.
        what: &'static str,
    },
}

/// What a vCPU starts from.
#[derive(Clone, Debug)]
pub enum VcpuStart {
    /// Registers of a boot protocol: the first vCPU of a boot.
    Ready(Box<ReadyRegisters>),
    /// Waiting for its start-up interrupt: the others of a boot.
    Waiting,
    /// A saved state.
    Saved(Box<VcpuState>),
}

/// One vCPU to be.
#[derive(Clone, Debug)]
pub struct VcpuPlan {
    /// Index, 0 up.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: u32,
    /// CPU identification.
    pub cpuid: Vec<CpuidEntry>,
    /// What it starts from.
    pub start: VcpuStart,
    /// Host CPUs its thread may run on; empty for any.
    pub affinity: Vec<usize>,
    /// What may share a core with its thread.
    pub cookie: Arc<Cookie>,
}

/// The vCPU threads of a machine. They are paused when made.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<VcpuThread>,
}

#[derive(Debug)]
struct VcpuThread {
    index: u32,
    mailbox: Arc<Mailbox>,
    counters: Arc<ExitCounters>,
    /// Where the thread learns what its vCPU shall be; gone once it knows.
    begin: Option<mpsc::Sender<thread::Begin>>,
    // Taken when joined.
    join: Option<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each of the vCPUs of these indices. There is no vCPU yet: the threads can be made before there
    /// is a machine, beside whatever else has to be done for one.
    ///
    /// # Errors
    /// The host has no thread left; those that were started are stopped again.
    pub fn start(indices: &[u32]) -> Result<Self, VcpuError> {
        let mut vcpus = Self { threads: Vec::with_capacity(indices.len()) };
        for &index in indices {
            let mailbox = Arc::new(Mailbox::new(index));
            let (begin, told) = mpsc::channel();
            let end = EndGuard(Arc::clone(&mailbox));
            let join = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || thread::main(&told, end))
                .map_err(|source| VcpuError::Spawn { index, source })?;
            let counters = Arc::new(ExitCounters::default());
            vcpus.threads.push(VcpuThread { index, mailbox, counters, begin: Some(begin), join: Some(join) });
        }
        Ok(vcpus)
    }

    /// Has each thread create and set up the vCPU of its index, all at the same time. Returns when all are ready.
    ///
    /// # Errors
    /// One of them fails, or has no plan.
    pub fn set_up(
        &mut self,
        vm: &Arc<dyn Vm>,
        manager: &Arc<AddressManager>,
        requests: &Arc<dyn RequestSink>,
        plans: Vec<VcpuPlan>,
    ) -> Result<(), VcpuError> {
        let (ready, answers) = mpsc::channel();
        let mut told = 0usize;
        for plan in plans {
            let index = plan.index;
            let thread = self.threads.iter_mut().find(|thread| thread.index == index);
            let Some((thread, begin)) =
                thread.and_then(|thread| thread.begin.take().map(|begin| (thread, begin)))
            else {
                continue;
            };
            let shared = thread::Shared {
                vm: Arc::clone(vm),
                dispatcher: manager.dispatcher(),
                requests: Arc::clone(requests),
                mailbox: Arc::clone(&thread.mailbox),
                counters: Arc::clone(&thread.counters),
            };
            // The thread waits for nothing else.
            told += usize::from(begin.send((plan, shared, ready.clone())).is_ok());
        }
        drop(ready);
        for _ in 0..told {
            // A thread that ends without an answer has panicked, and a panic aborts the process.
            if let Ok(Err(error)) = answers.recv() {
                return Err(error);
            }
        }
        match self.threads.iter().find(|thread| thread.begin.is_some()) {
            Some(VcpuThread { index, .. }) => Err(VcpuError::NoPlan { index: *index }),
            None => Ok(()),
        }
    }

    /// Number of vCPUs.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        for thread in &self.threads {
            thread.mailbox.set_running(true);
        }
    }

    /// Stops all vCPUs between two instructions and waits until they stand still.
    ///
    /// # Errors
    /// One did not stop in time; those that did stay stopped.
    pub fn pause(&self) -> Result<(), VcpuError> {
        for thread in &self.threads {
            thread.mailbox.set_running(false);
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        for VcpuThread { index, mailbox, .. } in &self.threads {
            if !mailbox.wait_parked(deadline) {
                return Err(VcpuError::NoAnswer { index: *index, what: "stop" });
            }
        }
        Ok(())
    }

    /// Keeps a vCPU's thread busy until there is something to receive, or nobody to send it.
    #[cfg(test)]
    pub(crate) fn occupy(&self, index: usize, until: mpsc::Receiver<()>) {
        self.threads[index].mailbox.ask(move |_: &dyn Vcpu| until.recv().is_ok());
    }

    /// The state of every vCPU, in index order. They must be paused.
    ///
    /// # Errors
    /// One cannot be saved or does not answer.
    pub fn save(&self) -> Result<Vec<VcpuState>, VcpuError> {
        let asked: Vec<Answer<_>> =
            self.threads.iter().map(|thread| thread.mailbox.ask(|vcpu: &dyn Vcpu| vcpu.save())).collect();
        self.collect(asked, "save")
    }

    /// Delivers a non-maskable interrupt to every vCPU.
    ///
    /// # Errors
    /// One refuses it or does not answer.
    pub fn inject_nmi(&self) -> Result<(), VcpuError> {
        let asked = self
            .threads
            .iter()
            .map(|thread| thread.mailbox.ask(|vcpu: &dyn Vcpu| vcpu.inject_nmi()))
            .collect();
        self.collect(asked, "NMI").map(|_: Vec<()>| ())
    }

    /// Exits of each vCPU since it was made, in index order.
    pub fn counters(&self) -> impl Iterator<Item = (u32, &ExitCounters)> {
        self.threads.iter().map(|thread| (thread.index, &*thread.counters))
    }

    /// The same, to be read by others for as long as they like.
    pub fn shared_counters(&self) -> Vec<(u32, Arc<ExitCounters>)> {
        self.threads.iter().map(|thread| (thread.index, Arc::clone(&thread.counters))).collect()
    }

    fn collect<T>(
        &self,
        asked: Vec<Answer<Result<T, HypervisorError>>>,
        operation: &'static str,
    ) -> Result<Vec<T>, VcpuError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let answers = self.threads.iter().zip(asked).map(|(thread, answer)| {
            let index = thread.index;
            match answer.wait(deadline) {
                Some(Ok(value)) => Ok(value),
                Some(Err(source)) => Err(VcpuError::Operation { index, operation, source }),
                None => Err(VcpuError::NoAnswer { index, what: operation }),
            }
        });
        answers.collect()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.begin = None;
            thread.mailbox.stop();
        }
        for VcpuThread { index, join, .. } in &mut self.threads {
            if join.take().is_some_and(|join| join.join().is_err()) {
                log::error!("thread of vCPU {index} ended in a panic");
            }
        }
    }
}

/// What a vCPU thread reports to the machine besides what its guest asks for.
pub(crate) fn report_failure(requests: &dyn RequestSink, index: u32, why: &str) {
    log::error!("vCPU {index} cannot go on: {why}");
    requests.request(GuestRequest::Failed);
}
