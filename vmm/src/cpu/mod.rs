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
    // Taken when joined.
    join: Option<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each of the vCPUs of `plans`, and has it create and set up its vCPU while the next ones are
    /// started. `before` is done before there is any vCPU, while the first thread starts. Returns when all are ready.
    ///
    /// # Errors
    /// `before` fails, the host has no thread left, or one of them fails; those that were started are stopped again.
    pub fn make<E: From<VcpuError>>(
        plans: Vec<VcpuPlan>,
        vm: &Arc<dyn Vm>,
        manager: &Arc<AddressManager>,
        requests: &Arc<dyn RequestSink>,
        before: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut vcpus = Self { threads: Vec::with_capacity(plans.len()) };
        let (ready, answers) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let start = |plan: VcpuPlan, wait: Option<mpsc::Receiver<()>>| {
            let index = plan.index;
            let mailbox = Arc::new(Mailbox::new(index));
            let counters = Arc::new(ExitCounters::default());
            let shared = thread::Shared {
                vm: Arc::clone(vm),
                dispatcher: manager.dispatcher(),
                requests: Arc::clone(requests),
                mailbox: Arc::clone(&mailbox),
                counters: Arc::clone(&counters),
            };
            let (ready, end) = (ready.clone(), EndGuard(Arc::clone(&mailbox)));
            let join = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || thread::main(plan, shared, wait.as_ref(), &ready, end))
                .map_err(|source| VcpuError::Spawn { index, source })?;
            Ok::<_, VcpuError>(VcpuThread { index, mailbox, counters, join: Some(join) })
        };
        let mut plans = plans.into_iter();
        if let Some(first) = plans.next() {
            vcpus.threads.push(start(first, Some(wait))?);
        }
        before()?;
        // If that thread has gone, nothing is heard of it below.
        let _ = go.send(());
        for plan in plans {
            vcpus.threads.push(start(plan, None)?);
        }
        drop(ready);
        for _ in &vcpus.threads {
            // A thread that ends without an answer has panicked, and a panic aborts the process.
            if let Ok(Err(error)) = answers.recv() {
                return Err(error.into());
            }
        }
        Ok(vcpus)
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
        for thread in &self.threads {
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
