//! What a machine has of the hypervisor, made by a thread of its own: the VM while its snapshot is read, and what is in it
//! while its devices are opened and loaded.

use std::{
    sync::{Arc, mpsc},
    thread::{Builder, Scope, ScopedJoinHandle},
    time::Instant,
};

use hypervisor::{Hypervisor, HypervisorError, Vm, VmOptions, x86_64::CpuidEntry};

use super::BuildError;
use crate::cpu::Vcpus;

/// A VM without memory or processors, on its way, and what its processors can be.
pub struct Blank<'scope> {
    hypervisor: &'scope dyn Hypervisor,
    supported: mpsc::Receiver<Result<Vec<CpuidEntry>, HypervisorError>>,
    vm: mpsc::Receiver<Result<Arc<dyn Vm>, HypervisorError>>,
    beside: Beside<'scope>,
}

impl<'scope> Blank<'scope> {
    /// Begins to make it.
    pub fn begin<'env>(scope: &'scope Scope<'scope, 'env>, hypervisor: &'scope dyn Hypervisor) -> Self {
        let (tell_supported, supported) = mpsc::channel();
        let (tell_vm, vm) = mpsc::channel();
        let (give, work) = mpsc::channel::<Making>();
        let thread = Builder::new().name("hypervisor".into()).spawn_scoped(scope, move || {
            // Nobody listens where the snapshot is refused meanwhile, and then there is no work either.
            let _ = tell_supported.send(hypervisor.supported_cpuid());
            let _ = tell_vm.send(hypervisor.create_vm(&VmOptions::default()));
            work.recv().ok().map(make)
        });
        // A host without another thread makes it when it is asked for.
        let beside = Beside(thread.ok().map(|thread| (give, thread)));
        Self { hypervisor, supported, vm, beside }
    }

    /// What CPU identification the host can give. To be asked once.
    ///
    /// # Errors
    /// The hypervisor does not say.
    pub fn supported(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        self.supported.recv().unwrap_or_else(|_| self.hypervisor.supported_cpuid())
    }

    /// The VM, and who made it.
    ///
    /// # Errors
    /// The hypervisor refuses.
    pub fn vm(self) -> Result<(Arc<dyn Vm>, Beside<'scope>), HypervisorError> {
        let made = self.vm.recv();
        let vm = made.unwrap_or_else(|_| self.hypervisor.create_vm(&VmOptions::default()))?;
        Ok((vm, self.beside))
    }
}

impl std::fmt::Debug for Blank<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blank").field("beside", &self.beside).finish_non_exhaustive()
    }
}

/// Makes what is in the VM.
pub(super) type Making = Box<dyn FnOnce() -> Result<Vcpus, BuildError> + Send>;

/// What came of it, and when.
pub(super) struct Made {
    pub(super) vcpus: Result<Vcpus, BuildError>,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

fn make(making: Making) -> Made {
    let began = Instant::now();
    let vcpus = making();
    Made { vcpus, began, ended: Instant::now() }
}

/// A thread that has nothing to do yet, if there is one.
#[derive(Debug)]
pub struct Beside<'scope>(Option<(mpsc::Sender<Making>, ScopedJoinHandle<'scope, Option<Made>>)>);

impl<'scope> Beside<'scope> {
    /// No thread: what would be done beside is done when it is asked for.
    pub fn nobody() -> Self {
        Self(None)
    }

    pub(super) fn begin(self, making: Making) -> Begun<'scope> {
        match self.0 {
            Some((give, thread)) => match give.send(making) {
                Ok(()) => Begun::Beside(thread),
                Err(mpsc::SendError(making)) => Begun::Later(making),
            },
            None => Begun::Later(making),
        }
    }
}

/// Work that is under way, or waits to be asked for.
pub(super) enum Begun<'scope> {
    Beside(ScopedJoinHandle<'scope, Option<Made>>),
    Later(Making),
}

impl Begun<'_> {
    /// Waits for it.
    pub(super) fn made(self) -> Result<Made, BuildError> {
        match self {
            Self::Later(making) => Ok(make(making)),
            // A thread that was given something made it: a panic aborts the process.
            Self::Beside(thread) => thread.join().ok().flatten().ok_or_else(|| {
                BuildError::Host(std::io::Error::other("the thread that makes processors has gone"))
            }),
        }
    }
}
