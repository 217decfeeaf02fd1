//! The same calls on the host's own KVM: it takes what the fake back end takes, and after an undo it
//! has nothing left that a second attempt would run into.

#![expect(clippy::print_stdout, reason = "a skip is told in a line that is counted")]

use std::sync::Arc;

use address_manager::{
    AddressManager, Arm, CommitError, Doorbell, IoSpace, ListenerError, Route, RouteTarget, Slot, SlotFlags,
    Wired, WiringChange, WiringListener,
    testing::{Noted, PAGE, doorbell, event, handler, host, irqfd, msi, ram, windows},
};
use hypervisor::{Hypervisor, HypervisorKind, IrqchipMode, Vm, VmOptions};

/// KVM, or nothing if this run was told to do without.
fn kvm() -> Option<Arc<dyn Hypervisor>> {
    match hypervisor::open(Some(HypervisorKind::Kvm)) {
        Ok(hypervisor) => Some(hypervisor),
        Err(error) if std::env::var_os("CUMULET_WITHOUT_KVM").is_some_and(|set| set == "1") => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error} (to test without KVM, set CUMULET_WITHOUT_KVM=1)"),
    }
}

fn machine(hypervisor: &dyn Hypervisor) -> (Arc<AddressManager>, Arc<dyn Vm>) {
    let vm = hypervisor.create_vm(&VmOptions::default()).expect("a VM can be made");
    (AddressManager::new(Arc::clone(&vm), hypervisor.capabilities().max_slots, windows()), vm)
}

/// Every kind of piece, at a place that `shift` moves.
struct Pieces {
    memory: Arc<vm_memory::MmapRegion>,
    noted: Arc<Noted>,
    rung: Vec<Arc<vmm_sys_util::eventfd::EventFd>>,
    raised: Vec<Arc<vmm_sys_util::eventfd::EventFd>>,
    /// Whether the host has read-only slots.
    read_only: bool,
}

impl Pieces {
    fn new(hypervisor: &dyn Hypervisor) -> Self {
        let read_only = hypervisor.capabilities().read_only_slots;
        let events = |count| (0..count).map(|_| event()).collect();
        Self { memory: host(16), noted: Noted::new(1), rung: events(5), raised: events(3), read_only }
    }

    fn at(&self, shift: u64) -> Wired {
        let bar = 0xc000_0000 + shift * PAGE;
        let bell = |number: usize| {
            let address = bar + 4 * u64::try_from(number).expect("small");
            doorbell(address, &self.rung[number])
        };
        let matching = |number: usize, value| {
            let mut matching = Doorbell { event: Arc::clone(&self.rung[number]), ..bell(4) };
            matching.spec.data_match = Some(value);
            matching
        };
        let gsi = 30 + u32::try_from(shift).expect("small");
        let flags = if self.read_only { SlotFlags::READ_ONLY } else { SlotFlags::empty() };
        let rom = Slot { flags, ..ram(64 + shift, 1, &self.memory, 15) };
        Wired {
            slots: vec![
                ram(shift, 2, &self.memory, 0),
                ram(shift + 2, 2, &self.memory, 2),
                ram(shift + 8, 1, &self.memory, 8),
                rom,
            ],
            handlers: vec![handler(IoSpace::Mmio, bar, PAGE, &self.noted)],
            doorbells: vec![
                bell(0),
                bell(1),
                Doorbell { arm: Arm::Late, ..bell(2) },
                matching(3, 1),
                matching(4, 2),
            ],
            routes: vec![
                msi(gsi, 0x41),
                msi(gsi + 1, 0x42),
                Route { target: RouteTarget::Irqchip { chip: 2, pin: 5 }, ..msi(5, 0) },
            ],
            irq_events: vec![
                irqfd(gsi, &self.raised[0]),
                irqfd(gsi + 1, &self.raised[1]),
                irqfd(5, &self.raised[2]),
            ],
        }
    }
}

/// The lines of the kernel's controllers.
fn lines() -> Vec<Route> {
    let routes = IrqchipMode::Kernel.first_routes().into_iter();
    routes.map(|route| Route { target: route.target, ..msi(route.gsi, 0) }).collect()
}

#[test]
fn lines_that_come_with_the_controllers_are_kept_and_counted() {
    let Some(hypervisor) = kvm() else { return };
    let (manager, vm) = machine(&*hypervisor);
    let controllers = || vm.save_irqchip().expect("they are in the kernel");
    // Whether a line reaches a controller, as far as one can see it there.
    let is_connected = |line| {
        let before = controllers();
        vm.set_irq_line(line, true).expect("there is such a line");
        controllers() != before
    };

    // Nobody needs another route, so nothing is written.
    let tx = manager.begin();
    tx.adopt_routes(lines()).unwrap();
    tx.set_slots_ahead().unwrap();
    vm.create_irqchip(IrqchipMode::Kernel, false).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.operations.kernel_calls(), report.routing_entries), (0, 0));
    assert_eq!(manager.live().routes().count(), 40);
    assert!(is_connected(3));

    // Once, with all that the kernel gets.
    let tx = manager.begin();
    tx.add_route(msi(30, 0x41)).unwrap();
    tx.add_route(msi(31, 0x42)).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.operations.routing_writes.count, report.routing_entries), (1, 42));
    assert!(is_connected(4));

    // A line that is taken away leads nowhere; what fails leaves it where it was.
    let cut = |line| Wired {
        routes: lines().into_iter().filter(|to| to.gsi == line).collect(),
        ..Wired::default()
    };
    let tx = manager.begin();
    tx.remove(&cut(5)).unwrap();
    tx.add_listener(Arc::new(Refuses));
    // A listener is told of memory only.
    tx.add_slot(ram(0, 1, &host(1), 0)).unwrap();
    assert!(tx.commit().is_err());
    assert!(is_connected(5));
    let tx = manager.begin();
    tx.remove(&cut(6)).unwrap();
    assert_eq!(tx.commit().unwrap().routing_entries, 40);
    assert!(!is_connected(6));
}

struct Refuses;

impl WiringListener for Refuses {
    fn name(&self) -> &str {
        "one that refuses"
    }

    fn start(&self, _change: &WiringChange) -> Result<(), ListenerError> {
        Ok(())
    }

    fn finish(&self) -> Result<(), ListenerError> {
        Err(ListenerError::new("not today"))
    }

    fn undo(&self, _change: &WiringChange) {}
}

#[test]
fn kvm_takes_every_kind_of_change() {
    let Some(hypervisor) = kvm() else { return };
    let (manager, vm) = machine(&*hypervisor);
    let pieces = Pieces::new(&*hypervisor);

    let tx = manager.begin();
    tx.add(&pieces.at(0)).unwrap();
    tx.set_slots_ahead().unwrap();
    vm.create_irqchip(IrqchipMode::Kernel, false).unwrap();
    let report = tx.commit().unwrap();
    let counts = &report.operations;
    assert_eq!((counts.slots_added.count, counts.doorbells_added.count), (3, 4));
    assert_eq!((counts.routing_writes.count, counts.irqfds_added.count), (1, 3));

    // Tracked in place, armed, moved to where parts of it were, and taken away.
    let tx = manager.begin();
    tx.track_dirty(true);
    assert_eq!(tx.arm_late(9), 1);
    let report = tx.commit().unwrap();
    assert_eq!(report.operations.slot_flags.count, 3);
    let tx = manager.begin();
    tx.replace(&pieces.at(0), pieces.at(1)).unwrap();
    tx.commit().unwrap();
    let tx = manager.begin();
    tx.remove(&pieces.at(1)).unwrap();
    tx.commit().unwrap();
    assert!(manager.slot_numbers().is_empty());

    // All of it fits again: nothing was left behind.
    let tx = manager.begin();
    tx.add(&pieces.at(0)).unwrap();
    tx.commit().unwrap();
}

#[test]
fn an_undo_leaves_kvm_as_it_was() {
    let Some(hypervisor) = kvm() else { return };
    let (manager, vm) = machine(&*hypervisor);
    vm.create_irqchip(IrqchipMode::Kernel, false).unwrap();
    let pieces = Pieces::new(&*hypervisor);
    let tx = manager.begin();
    tx.add(&pieces.at(0)).unwrap();
    tx.commit().unwrap();

    // A listener fails when every call was made; a slot beyond the guest's address space fails at
    // the first; a GSI beyond the limit in the middle.
    let too_far = Slot { base: 1 << 62, ..ram(0, 1, &host(1), 0) };
    let attempts: [&dyn Fn(&address_manager::Transaction<'_>); 3] = [
        &|tx| {
            tx.add_listener(Arc::new(Refuses));
        },
        &|tx| tx.add_slot(too_far.clone()).unwrap(),
        &|tx| tx.add_route(msi(1 << 20, 1)).unwrap(),
    ];
    for spoil in attempts {
        for _ in 0..2 {
            let tx = manager.begin();
            tx.replace(&pieces.at(0), pieces.at(1)).unwrap();
            tx.track_dirty(true);
            spoil(&tx);
            let error = tx.commit().unwrap_err();
            assert!(matches!(error, CommitError::Apply(_)), "{error}");
            assert!(error.undo_failures().is_empty(), "{error}");
        }
    }
    let tx = manager.begin();
    tx.replace(&pieces.at(0), pieces.at(1)).unwrap();
    tx.set_slots_ahead().unwrap();
    drop(tx);

    let tx = manager.begin();
    tx.replace(&pieces.at(0), pieces.at(1)).unwrap();
    tx.commit().unwrap();
    let tx = manager.begin();
    tx.remove(&pieces.at(1)).unwrap();
    tx.commit().unwrap();
}
