//! What a vCPU thread does: make its vCPU, say so, then run it until told to stop.

use std::sync::{Arc, mpsc};

use address_manager::Dispatcher;
use devices::{GuestRequest, RequestSink};
use hypervisor::{HypervisorError, Vcpu, VcpuExit, Vm};

use super::{
    VcpuError, VcpuPlan, VcpuStart,
    bus::{Bus, ExitCounters},
    mailbox::{EndGuard, Mailbox, Next},
    report_failure,
};

/// What the thread is given.
pub(super) struct Shared {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) dispatcher: Dispatcher,
    pub(super) requests: Arc<dyn RequestSink>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<ExitCounters>,
}

/// `wait` tells when the vCPU may be made, if not at once; `ready` is where the thread says that it is.
pub(super) fn main(
    plan: VcpuPlan,
    shared: Shared,
    wait: Option<&mpsc::Receiver<()>>,
    ready: &mpsc::Sender<Result<(), VcpuError>>,
    end: EndGuard,
) {
    let _end = end;
    let Shared { vm, dispatcher, requests, mailbox, counters } = shared;
    let index = plan.index;
    let placed = place(&plan);
    // What vCPUs need could not be made.
    if wait.is_some_and(|wait| wait.recv().is_err()) {
        return;
    }
    let made = placed.and_then(|()| set_up(&plan, &*vm).map_err(|source| VcpuError::SetUp { index, source }));
    // A saved state is large, and is not needed again.
    drop(plan);
    // The VM must not outlive its last user because of this thread.
    drop(vm);
    let mut vcpu = match made {
        Ok(mut vcpu) => {
            mailbox.set_kicker(vcpu.kicker());
            // A creator that has given up drops the other end, and then stops this thread.
            let _ = ready.send(Ok(()));
            vcpu
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let mut bus = Bus::new(dispatcher, counters);
    loop {
        match mailbox.look() {
            Next::Stop => return,
            Next::Job(job) => job(&mut *vcpu),
            Next::Run => {
                run(&mut *vcpu, &mut bus, &mailbox, &*requests);
                // An access that was answered is finished before anybody looks at the registers.
                if let Err(error) = vcpu.settle(&mut bus) {
                    report_failure(&*requests, index, &error.to_string());
                }
                vcpu.notify_pause();
            }
        }
    }
}

/// Where the thread runs, and beside whom.
fn place(plan: &VcpuPlan) -> Result<(), VcpuError> {
    let index = plan.index;
    crate::host::pin_thread(&plan.affinity).map_err(|source| VcpuError::Affinity { index, source })?;
    plan.cookie.give().map_err(|source| VcpuError::CoreScheduling { index, source })
}

fn set_up(plan: &VcpuPlan, vm: &dyn Vm) -> Result<Box<dyn Vcpu>, HypervisorError> {
    let mut vcpu = vm.create_vcpu(plan.index, plan.apic_id)?;
    match &plan.start {
        VcpuStart::Ready(registers) => {
            vcpu.set_cpuid(&plan.cpuid)?;
            vcpu.set_ready(registers)?;
        }
        VcpuStart::Waiting => vcpu.set_cpuid(&plan.cpuid)?,
        VcpuStart::Saved(state) => vcpu.load(state)?,
    }
    Ok(vcpu)
}

/// Runs the guest until the mailbox wants attention or the guest cannot go on.
fn run(vcpu: &mut dyn Vcpu, bus: &mut Bus, mailbox: &Mailbox, requests: &dyn RequestSink) {
    while !mailbox.wants_attention() {
        match vcpu.run(bus) {
            Ok(VcpuExit::Handled) => {}
            Ok(VcpuExit::Interrupted) => bus.counters().interrupted(),
            Ok(VcpuExit::EndOfInterrupt(_)) => {}
            Ok(VcpuExit::Reset) => {
                log::warn!(
                    "vCPU {} cannot go on (a triple fault, by which some guests also reboot): the machine is reset",
                    vcpu.index()
                );
                requests.request(GuestRequest::Reset);
                mailbox.park();
            }
            Ok(VcpuExit::Shutdown) => {
                requests.request(GuestRequest::PowerOff);
                mailbox.park();
            }
            Ok(VcpuExit::Halted) => {
                // No interrupt controller of the kernel's will wake it, and there is no other.
                mailbox.park();
            }
            Ok(VcpuExit::Failed(why)) => {
                report_failure(requests, vcpu.index(), &why);
                mailbox.park();
            }
            Err(error) => {
                report_failure(requests, vcpu.index(), &crate::error::chain(&error));
                mailbox.park();
            }
        }
    }
}
