//! What a machine needs of the hypervisor whatever it will be: made by a thread of its own while its snapshot is read.

use std::{
    sync::{Arc, mpsc},
    thread::{Builder, Scope, ScopedJoinHandle},
};

use hypervisor::{Hypervisor, HypervisorError, Vm, VmOptions, x86_64::CpuidEntry};

/// A VM without memory or processors, on its way, and what its processors can be.
pub struct Blank<'scope> {
    hypervisor: &'scope dyn Hypervisor,
    supported: mpsc::Receiver<Result<Vec<CpuidEntry>, HypervisorError>>,
    vm: Option<ScopedJoinHandle<'scope, Result<Arc<dyn Vm>, HypervisorError>>>,
}

impl<'scope> Blank<'scope> {
    /// Begins to make it.
    pub fn begin<'env>(scope: &'scope Scope<'scope, 'env>, hypervisor: &'scope dyn Hypervisor) -> Self {
        let (tell, supported) = mpsc::channel();
        let made = Builder::new().name("hypervisor".into()).spawn_scoped(scope, move || {
            // Nobody listens where the snapshot is refused meanwhile.
            let _ = tell.send(hypervisor.supported_cpuid());
            hypervisor.create_vm(&VmOptions::default())
        });
        // A host without another thread makes it when it is asked for.
        Self { hypervisor, supported, vm: made.ok() }
    }

    /// What CPU identification the host can give. To be asked once.
    ///
    /// # Errors
    /// The hypervisor does not say.
    pub fn supported(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        self.supported.recv().unwrap_or_else(|_| self.hypervisor.supported_cpuid())
    }

    /// The VM.
    ///
    /// # Errors
    /// The hypervisor refuses.
    pub fn vm(self) -> Result<Arc<dyn Vm>, HypervisorError> {
        match self.vm.map(ScopedJoinHandle::join) {
            Some(Ok(made)) => made,
            // A panic aborts the process.
            Some(Err(_)) | None => self.hypervisor.create_vm(&VmOptions::default()),
        }
    }
}

impl std::fmt::Debug for Blank<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blank").field("vm", &self.vm).finish_non_exhaustive()
    }
}
