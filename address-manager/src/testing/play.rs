//! A player: takes a byte string for a sequence of operations, makes them on an
//! [`AddressManager`] over the fake back end and on the naive model, and compares the two after
//! each. Property tests feed it random strings, a fuzz target those that reach new code.
//!
//! Every wiring that the string commits is tried first with a step that fails: its slots, and then no more,
//! a listener that does not start, one that does not finish, and each kernel call in turn.

use std::{collections::BTreeMap, os::fd::AsRawFd, sync::Arc};

use hypervisor::{
    DoorbellSpec, IoSpace, MsiMessage, RouteTarget, SlotFlags,
    fake::{FakeDoorbell, FakeIrqfd, FakeVm, FakeWiring, Fault},
};
use parking_lot::Mutex;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Naive, Noted, PAGE, event, host};
use crate::{
    AddressManager, Arm, CommitError, CommitReport, CommitTotals, Dispatcher, Doorbell, Handler,
    HandlerRange, Interest, IrqEvent, ListenerError, MemoryRange, Owner, Route, Slot, SlotRole, Step,
    Transaction, Window, WindowError, WindowKind, Windows, Wired, Wiring, WiringChange, WiringListener,
};

/// Guest-physical pages that are played with.
const PAGES: u64 = 24;
/// Pages of each host mapping.
const MAPPED: u64 = 16;
/// Ports that are played with.
const PORTS: u64 = 48;
/// The window that is played with.
const WINDOW: Window = Window::new(WindowKind::Gsi, 0);
const WINDOW_BASE: u64 = 24;
const WINDOW_SIZE: u64 = 40;

/// Runs `bytes` as operations. Panics where the address manager and the naive model differ.
pub fn play(bytes: &[u8]) -> Played {
    let mut player = Player::new(bytes);
    while !player.script.is_empty() {
        player.transaction();
    }
    player.played.totals = player.manager.totals();
    player.played
}

/// How far a script got: to see that scripts reach what they are to test.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Parts of devices that were added, replaced or removed.
    pub accepted: u64,
    /// The same, refused.
    pub refused: u64,
    /// What was committed; `failed` counts the attempts with a failing step.
    pub totals: CommitTotals,
}

impl Played {
    fn note(&mut self, accepted: bool) {
        self.accepted += u64::from(accepted);
        self.refused += u64::from(!accepted);
    }
}

/// The bytes that are left.
struct Script<'b>(&'b [u8]);

impl Script<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte, taken modulo `below`; 0 when none is left.
    fn next(&mut self, below: u8) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first % below
    }

    /// True once in `times`.
    fn rarely(&mut self, times: u8) -> bool {
        self.next(times) == 1
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        let below = u8::try_from(from.len()).unwrap();
        &from[usize::from(self.next(below))]
    }
}

/// What pieces are made of.
struct World {
    mappings: Vec<Arc<MmapRegion>>,
    handlers: Vec<Arc<Noted>>,
    events: Vec<Arc<EventFd>>,
    owners: Vec<Owner>,
}

impl World {
    fn wired(&self, script: &mut Script<'_>) -> Wired {
        let mut wired = Wired::default();
        // Few pieces at a time: one that is refused refuses all.
        let kinds = script.next(u8::MAX);
        let mut count = |kind: u8| match kinds >> kind & 1 {
            0 => 0,
            _ => 1 + u8::from(script.rarely(8)),
        };
        let counts = [0, 1, 2, 3, 4].map(&mut count);
        (0..counts[0]).for_each(|_| wired.slots.push(self.slot(script)));
        (0..counts[1]).for_each(|_| wired.handlers.push(self.handler(script)));
        (0..counts[2]).for_each(|_| wired.doorbells.push(self.doorbell(script)));
        (0..counts[3]).for_each(|_| wired.routes.push(self.route(script)));
        (0..counts[4]).for_each(|_| wired.irq_events.push(self.irq_event(script)));
        wired
    }

    fn slot(&self, script: &mut Script<'_>) -> Slot {
        let page = u64::from(script.next(24));
        let odd = if script.rarely(40) { 0x800 } else { 0 };
        let kind = script.next(64);
        // Most show the mapping at its own address, so that neighbours join.
        let offset = if kind & 3 == 0 { u64::from(script.next(16)) } else { page % MAPPED };
        Slot {
            base: page * PAGE + odd,
            size: *script.pick(&[1, 1, 1, 2, 2, 3, 4, 0]) * PAGE,
            mapping: Arc::clone(script.pick(&self.mappings)),
            offset: offset * PAGE,
            flags: if kind / 4 == 15 { SlotFlags::READ_ONLY } else { SlotFlags::empty() },
            role: match kind / 4 {
                13 => SlotRole::Persistent,
                14 => SlotRole::Device,
                _ => SlotRole::Ram,
            },
            owner: script.pick(&self.owners).clone(),
        }
    }

    fn handler(&self, script: &mut Script<'_>) -> HandlerRange {
        let ports = script.rarely(3);
        let place = u64::from(script.next(96));
        let (space, base, size) = if ports {
            let base = if place > 90 { 0xfffe } else { place / 2 };
            (IoSpace::Pio, base, *script.pick(&[1, 1, 2, 4, 0]))
        } else {
            (IoSpace::Mmio, place * (PAGE / 4), *script.pick(&[1, 1, 2, 3, 0]) * (PAGE / 4))
        };
        let handler = Arc::clone(script.pick(&self.handlers)) as Arc<dyn Handler>;
        HandlerRange { space, base, size, handler, owner: script.pick(&self.owners).clone() }
    }

    fn doorbell(&self, script: &mut Script<'_>) -> Doorbell {
        let space = if script.rarely(4) { IoSpace::Pio } else { IoSpace::Mmio };
        let width = *script.pick(&[2, 2, 2, 2, 4, 4, 4, 1, 8, 0, 3]);
        let data_match = *script.pick(&[None, None, Some(0), Some(1), Some(2), Some(3), Some(0x1_0000)]);
        let address = *script.pick(&[0, 4, 8, 12, 16, 20, 24, 28, 0xffff, u64::MAX]);
        Doorbell {
            spec: DoorbellSpec { space, address, width, data_match },
            event: Arc::clone(script.pick(&self.events)),
            arm: *script.pick(&[Arm::Now, Arm::Now, Arm::Late]),
            owner: script.pick(&self.owners).clone(),
        }
    }

    fn route(&self, script: &mut Script<'_>) -> Route {
        let gsi = u32::from(script.next(8));
        let value = u32::from(script.next(5));
        let target = if value < 3 {
            RouteTarget::Msi(MsiMessage { address: 0xfee0_0000, data: value, device_id: 0 })
        } else {
            RouteTarget::Irqchip { chip: u32::from(script.next(3)), pin: gsi }
        };
        Route { gsi, target, owner: script.pick(&self.owners).clone() }
    }

    fn irq_event(&self, script: &mut Script<'_>) -> IrqEvent {
        let resample = script.rarely(4).then(|| Arc::clone(script.pick(&self.events)));
        IrqEvent {
            gsi: u32::from(script.next(8)),
            event: Arc::clone(script.pick(&self.events)),
            resample,
            owner: script.pick(&self.owners).clone(),
        }
    }
}

/// All that a commit changes or leaves alone, in the naive way.
#[derive(Clone, Default)]
struct Model {
    wiring: Naive,
    /// Ranges given out of the window.
    ranges: Vec<(u64, u64, Owner)>,
    /// Devices: each is made of parts that move on their own and go together.
    devices: Vec<Vec<Wired>>,
}

struct Player<'b> {
    script: Script<'b>,
    world: World,
    manager: Arc<AddressManager>,
    vm: Arc<FakeVm>,
    vcpu: Dispatcher,
    mirrors: Vec<Arc<Mirror>>,
    live: Model,
    played: Played,
}

impl<'b> Player<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        let vm = FakeVm::new();
        let windows = Windows::new().with(WINDOW, WINDOW_BASE, WINDOW_SIZE);
        let mut script = Script(bytes);
        // With few slots, some wirings need more than there are.
        let max_slots = if script.rarely(4) { 8 } else { 509 };
        let manager = AddressManager::new(Arc::clone(&vm) as Arc<dyn hypervisor::Vm>, max_slots, windows);
        let mirrors = vec![
            Mirror::new(Interest { device_slots: true, tracking: true }),
            Mirror::new(Interest::default()),
        ];
        for mirror in &mirrors {
            manager.add_listener(Arc::clone(mirror) as Arc<dyn WiringListener>).unwrap();
        }
        Self {
            script,
            world: World {
                mappings: (0..2).map(|_| host(MAPPED)).collect(),
                handlers: (1..6).map(Noted::new).collect(),
                events: (0..12).map(|_| event()).collect(),
                owners: ["a", "b"].map(Owner::from).to_vec(),
            },
            vcpu: manager.dispatcher(),
            manager,
            vm,
            mirrors,
            live: Model::default(),
            played: Played::default(),
        }
    }

    fn transaction(&mut self) {
        let manager = Arc::clone(&self.manager);
        let tx = manager.begin();
        let mut staged = self.live.clone();
        let before = self.snapshot();
        while !self.script.is_empty() {
            match self.script.next(64) {
                0 => {
                    drop(tx);
                    return self.check_unchanged(&before);
                }
                58..=59 => match tx.set_slots_ahead() {
                    Ok(()) => assert_eq!(slot_pages(&self.vm.wiring_state()), staged.wiring.pages()),
                    Err(error) => assert!(matches!(error, CommitError::Slots(_)), "{error}"),
                },
                1..=4 => break,
                5..=30 => self.add_device(&tx, &mut staged),
                31..=34 => self.remove_device(&tx, &mut staged),
                35..=48 => self.move_part(&tx, &mut staged),
                49..=52 => {
                    let route = self.world.route(&mut self.script);
                    assert_eq!(tx.set_route(route.clone()).is_ok(), staged.wiring.set_route(&route));
                }
                53..=54 => {
                    let limit = usize::from(self.script.next(3));
                    assert_eq!(tx.arm_late(limit), staged.wiring.arm_late(limit));
                }
                55..=57 => {
                    let on = self.script.rarely(2);
                    tx.track_dirty(on);
                    staged.wiring.track_dirty(on);
                }
                _ => self.use_window(&tx, &mut staged),
            }
            check_wiring(&tx.wiring(), &staged.wiring);
            check_memory(&tx.memory(), &staged.wiring);
        }
        self.commit(tx, staged, &before);
    }

    /// A device of several parts: all of them, or none.
    fn add_device(&mut self, tx: &Transaction<'_>, staged: &mut Model) {
        let count = 1 + self.script.next(3);
        let parts: Vec<Wired> = (0..count).map(|_| self.world.wired(&mut self.script)).collect();
        let before = staged.wiring.clone();
        for (index, part) in parts.iter().enumerate() {
            let added = tx.add(part).is_ok();
            assert_eq!(added, staged.wiring.add(part), "adding {part:?}");
            self.played.note(added);
            if !added {
                parts[..index].iter().rev().for_each(|part| tx.remove(part).unwrap());
                staged.wiring = before;
                return;
            }
        }
        staged.devices.push(parts);
    }

    fn remove_device(&mut self, tx: &Transaction<'_>, staged: &mut Model) {
        let count = u8::try_from(staged.devices.len()).unwrap_or(u8::MAX);
        if count == 0 {
            return;
        }
        let index = usize::from(self.script.next(count));
        let mut left = Vec::new();
        for part in std::mem::take(&mut staged.devices[index]) {
            let removed = tx.remove(&part).is_ok();
            assert_eq!(removed, staged.wiring.remove(&part), "removing {part:?}");
            self.played.note(removed);
            // A route of it may have been led elsewhere under another owner's name.
            left.extend((!removed).then_some(part));
        }
        if left.is_empty() {
            staged.devices.remove(index);
        } else {
            staged.devices[index] = left;
        }
    }

    fn move_part(&mut self, tx: &Transaction<'_>, staged: &mut Model) {
        let Some(device) = staged.devices.len().checked_sub(1) else { return };
        let device = usize::from(self.script.next(u8::MAX)) % (device + 1);
        let part = usize::from(self.script.next(u8::MAX)) % staged.devices[device].len();
        let old = staged.devices[device][part].clone();
        let new = self.world.wired(&mut self.script);
        let moved = tx.replace(&old, new.clone()).is_ok();
        assert_eq!(moved, staged.wiring.replace(&old, &new), "replacing {old:?} by {new:?}");
        self.played.note(moved);
        if moved {
            staged.devices[device][part] = new;
        }
    }

    fn use_window(&mut self, tx: &Transaction<'_>, staged: &mut Model) {
        let owner = self.script.pick(&self.world.owners).clone();
        let base = WINDOW_BASE + u64::from(self.script.next(41)) - 1;
        let size = u64::from(self.script.next(6));
        let ranges = &mut staged.ranges;
        let free = |ranges: &[(u64, u64, Owner)], base: u64| {
            size != 0
                && base >= WINDOW_BASE
                && base + size <= WINDOW_BASE + WINDOW_SIZE
                && ranges.iter().all(|(there, length, _)| base + size <= *there || there + length <= base)
        };
        match self.script.next(3) {
            0 => {
                let align = 1 << self.script.next(4);
                let fits = |base: &u64| free(ranges, *base) && base.is_multiple_of(align);
                let anywhere = (WINDOW_BASE..WINDOW_BASE + WINDOW_SIZE).any(|base| fits(&base));
                match tx.allocate(WINDOW, size, align, &owner) {
                    Ok(base) => {
                        assert!(fits(&base));
                        ranges.push((base, size, owner));
                    }
                    Err(WindowError::Malformed { .. }) => assert_eq!(size, 0),
                    Err(error) => assert!(!anywhere, "{error}"),
                }
            }
            1 => {
                let ok = tx.reserve(WINDOW, base, size, &owner).is_ok();
                assert_eq!(ok, free(ranges, base));
                ranges.extend(ok.then_some((base, size, owner)));
            }
            _ => {
                let there = ranges.iter().position(|(there, _, whose)| *there == base && *whose == owner);
                assert_eq!(tx.release(WINDOW, base, &owner).is_ok(), there.is_some());
                there.map(|there| ranges.remove(there));
            }
        }
    }

    /// Commits, having tried it with each step failing.
    fn commit(&mut self, tx: Transaction<'_>, staged: Model, before: &Snapshot) {
        let wanted = tx.wiring();
        // It is given up after its slots.
        let done = tx.set_slots_ahead();
        drop(tx);
        self.check_unchanged(before);
        match done {
            Ok(()) => {}
            Err(CommitError::Slots(error)) => {
                assert!(error.needed > error.limit as usize);
                return;
            }
            other => panic!("{other:?}"),
        }

        let manager = Arc::clone(&self.manager);
        if wanted.slots().next().is_some() {
            for bad in [Bad::Start, Bad::Finish] {
                let tx = self.stage_again(&manager, &wanted, &staged);
                tx.add_listener(Arc::new(bad));
                let Err(CommitError::Apply(error)) = tx.commit() else { panic!("a listener failed") };
                assert!(matches!(error.step, Step::StartListener(_) | Step::FinishListener(_)));
                assert!(error.undo_failures.is_empty());
                self.check_unchanged(before);
            }
        }

        // Some slots ahead of the rest, all of them, or a part of what they will be.
        let ahead = self.script.next(3);
        for k in 0.. {
            self.vm.inject(Fault::Wiring(k));
            let tx = self.stage_again(&manager, &wanted, &staged);
            let result = self.ahead(&tx, ahead, &wanted).and_then(|()| tx.commit());
            self.vm.recorder().clear_fault();
            match result {
                Ok(report) => {
                    assert_eq!(report.operations.kernel_calls(), k as u64, "every step was made to fail");
                    self.check_report(&report, &staged, ahead < 2);
                    break;
                }
                Err(error) => {
                    assert!(error.undo_failures().is_empty(), "{error}");
                    self.check_unchanged(before);
                }
            }
        }
        self.live = staged;
        self.check_live();
    }

    /// Sets slots ahead: none; all; or first those of another wiring, some of which are not wanted in the end.
    fn ahead(&self, tx: &Transaction<'_>, which: u8, wanted: &Wiring) -> Result<(), CommitError> {
        match which {
            0 => Ok(()),
            1 => tx.set_slots_ahead(),
            _ => {
                let every_other = wanted.slots().step_by(2).cloned().collect();
                let part = Wired { slots: every_other, ..Wired::default() };
                tx.remove(&part).unwrap();
                let done = tx.set_slots_ahead();
                tx.add(&part).unwrap();
                // A part may need more slots than the whole, which joins them.
                if matches!(done, Err(CommitError::Slots(_))) { Ok(()) } else { done }
            }
        }
    }

    /// A new transaction with the wiring of one that failed.
    fn stage_again<'m>(
        &self,
        manager: &'m AddressManager,
        wanted: &Wiring,
        staged: &Model,
    ) -> Transaction<'m> {
        let tx = manager.begin();
        tx.track_dirty(staged.wiring.tracking);
        tx.replace(&manager.live().pieces(), wanted.pieces()).unwrap();
        assert_eq!(tx.wiring(), *wanted);
        for (base, _, owner) in &self.live.ranges {
            tx.release(WINDOW, *base, owner).unwrap();
        }
        for (base, size, owner) in &staged.ranges {
            tx.reserve(WINDOW, *base, *size, owner).unwrap();
        }
        tx
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            wiring: self.manager.live(),
            windows: self.manager.windows(),
            kernel: self.vm.wiring_state(),
            numbers: self.manager.slot_numbers(),
            mirrors: self.mirrors.iter().map(|mirror| mirror.told()).collect(),
        }
    }

    fn check_unchanged(&mut self, before: &Snapshot) {
        let now = self.snapshot();
        assert!(Arc::ptr_eq(&now.wiring, &before.wiring));
        assert_eq!(now.windows, before.windows);
        assert_eq!(now.kernel, before.kernel);
        assert_eq!(now.numbers, before.numbers);
        assert_eq!(now.mirrors, before.mirrors);
        self.check_live();
    }

    /// Compares all that can be seen of the live wiring with the model.
    fn check_live(&mut self) {
        let naive = &self.live.wiring;
        check_wiring(&self.manager.live(), naive);
        check_memory(&self.manager.memory().view(), naive);
        check_kernel(&self.vm.wiring_state(), naive);
        let numbers: Vec<_> = self.vm.wiring_state().slots.into_values().collect();
        let mut numbers: Vec<_> =
            numbers.iter().map(|slot| (slot.slot, slot.guest_address, slot.size)).collect();
        numbers.sort_by_key(|(_, base, _)| *base);
        assert_eq!(self.manager.slot_numbers(), numbers);

        let windows = self.manager.windows();
        let given_out: Vec<_> =
            windows.given_out(WINDOW).map(|(base, size, owner)| (base, size, owner.clone())).collect();
        let mut ranges = self.live.ranges.clone();
        ranges.sort();
        assert_eq!(given_out, ranges);

        for (mirror, all) in self.mirrors.iter().zip([true, false]) {
            let ranges = mirror.ranges.lock();
            let told: BTreeMap<u64, u64> = ranges.iter().flat_map(pages_of).collect();
            let slots = naive.pieces.slots.iter().filter(|slot| all || slot.role != SlotRole::Device);
            let there: BTreeMap<u64, u64> = slots
                .flat_map(|slot| (0..slot.size / PAGE).map(|page| page * PAGE).map(move |at| (slot, at)))
                .map(|(slot, at)| (slot.base + at, slot.host_address() + at))
                .collect();
            assert_eq!(told, there);
        }

        let ports = (0..PORTS).chain([0xfffe, 0xffff]).map(|port| (IoSpace::Pio, port));
        let mmio = (0..PAGES * 4).map(|quarter| (IoSpace::Mmio, quarter * PAGE / 4));
        for (space, address) in ports.chain(mmio).chain([(IoSpace::Mmio, u64::MAX)]) {
            for len in [1, 4] {
                let mut data = [0; 4];
                let data = &mut data[..len];
                let answered = self.vcpu.read(space, address, data);
                let expected = naive.answers(space, address, len as u64);
                assert_eq!(answered, expected.is_some(), "{space:?} {address:#x}");
                let mut number = [0xff];
                if let Some(range) = expected {
                    range.handler.read(0, &mut number);
                }
                assert!(data.iter().all(|byte| *byte == number[0]));
            }
        }
        self.world.handlers.iter().for_each(|handler| handler.seen.lock().clear());
    }

    /// A commit must make the calls that the difference needs, and no more; if it did not go `straight`, slots may have
    /// come and gone.
    fn check_report(&self, report: &CommitReport, staged: &Model, straight: bool) {
        let (before, after) = (kernel_of(&self.live.wiring), kernel_of(&staged.wiring));
        let only_in = |these: &[FakeDoorbell], others: &[FakeDoorbell]| {
            these.iter().filter(|doorbell| !others.contains(doorbell)).count() as u64
        };
        let counts = &report.operations;
        assert_eq!(counts.doorbells_removed.count, only_in(&before.doorbells, &after.doorbells));
        assert_eq!(counts.doorbells_added.count, only_in(&after.doorbells, &before.doorbells));
        let only_in = |these: &FakeWiring, others: &FakeWiring| {
            these.irqfds.iter().filter(|(event, irqfd)| others.irqfds.get(event) != Some(irqfd)).count()
                as u64
        };
        assert_eq!(counts.irqfds_removed.count, only_in(&before, &after));
        assert_eq!(counts.irqfds_added.count, only_in(&after, &before));
        assert_eq!(counts.routing_writes.count, u64::from(before.routes != after.routes));

        let roles = |naive: &Naive| {
            let slots = naive.pieces.slots.iter();
            slots
                .flat_map(|slot| (0..slot.size / PAGE).map(|page| (slot.base + page * PAGE, slot.role)))
                .collect()
        };
        let (roles_before, roles_after): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (roles(&self.live.wiring), roles(&staged.wiring));
        if straight && self.live.wiring.pages() == staged.wiring.pages() && roles_before == roles_after {
            assert_eq!(counts.slots_removed.count + counts.slots_added.count + counts.slot_flags.count, 0);
        }
    }
}

struct Snapshot {
    wiring: Arc<Wiring>,
    windows: Windows,
    kernel: FakeWiring,
    numbers: Vec<(u32, u64, u64)>,
    mirrors: Vec<Vec<(u64, u64, u64)>>,
}

fn check_wiring(wiring: &Wiring, naive: &Naive) {
    let mut pieces = naive.pieces.clone();
    pieces.slots.sort_by_key(|slot| slot.base);
    pieces.handlers.sort_by_key(|range| (range.space, range.base));
    pieces.doorbells.sort_by_key(|doorbell| doorbell.spec);
    pieces.routes.sort_by_key(route_order);
    pieces.irq_events.sort_by_key(|event| (event.gsi, event.event.as_raw_fd()));
    assert_eq!(wiring.pieces(), pieces);
}

fn route_order(route: &Route) -> (u32, Option<u32>) {
    match route.target {
        RouteTarget::Msi(_) => (route.gsi, None),
        RouteTarget::Irqchip { chip, .. } => (route.gsi, Some(chip)),
    }
}

fn check_memory(view: &crate::GuestMemoryView, naive: &Naive) {
    let reachable = |slot: &&Slot| slot.role != SlotRole::Device;
    let held: u64 = naive.pieces.slots.iter().filter(reachable).map(|slot| slot.size).sum();
    assert_eq!(view.iter().map(GuestMemoryRegion::len).sum::<u64>(), held);
    for slot in naive.pieces.slots.iter().filter(reachable) {
        for page in 0..slot.size / PAGE {
            let host = view.get_host_address(GuestAddress(slot.base + page * PAGE)).unwrap();
            assert_eq!(host as u64, slot.host_address() + page * PAGE);
        }
    }
}

/// What a kernel must hold for the model, but for how memory is cut into slots.
fn kernel_of(naive: &Naive) -> FakeWiring {
    let pieces = &naive.pieces;
    let armed = pieces.doorbells.iter().filter(|doorbell| doorbell.arm == Arm::Now);
    let mut doorbells: Vec<_> = armed
        .map(|doorbell| FakeDoorbell { doorbell: doorbell.spec, event: doorbell.event.as_raw_fd() })
        .collect();
    doorbells.sort();
    let mut routes: Vec<&Route> = pieces.routes.iter().collect();
    routes.sort_by_key(|route| route_order(route));
    let routes = routes.iter().map(|route| hypervisor::Route { gsi: route.gsi, target: route.target });
    let irqfds = pieces.irq_events.iter().map(|irq| {
        let resample = irq.resample.as_ref().map(|event| event.as_raw_fd());
        (irq.event.as_raw_fd(), FakeIrqfd { gsi: irq.gsi, resample })
    });
    FakeWiring { slots: BTreeMap::new(), doorbells, routes: routes.collect(), irqfds: irqfds.collect() }
}

/// Each page that the kernel shows the guest: where it is in this process, and how.
fn slot_pages(kernel: &FakeWiring) -> BTreeMap<u64, (u64, SlotFlags)> {
    let pages = kernel.slots.values().flat_map(|slot| {
        (0..slot.size / PAGE)
            .map(|page| page * PAGE)
            .map(|at| (slot.guest_address + at, (slot.host_address + at, slot.flags)))
    });
    pages.collect()
}

fn check_kernel(kernel: &FakeWiring, naive: &Naive) {
    assert_eq!(slot_pages(kernel), naive.pages());
    assert_eq!(FakeWiring { slots: BTreeMap::new(), ..kernel.clone() }, kernel_of(naive));
}

fn pages_of(range: &MemoryRange) -> impl Iterator<Item = (u64, u64)> + use<> {
    let (base, host) = (range.base, range.host_address());
    (0..range.size / PAGE).map(move |page| (base + page * PAGE, host + page * PAGE))
}

/// A listener that keeps the ranges it was told of.
struct Mirror {
    interest: Interest,
    ranges: Mutex<Vec<MemoryRange>>,
    started: Mutex<bool>,
}

impl Mirror {
    fn new(interest: Interest) -> Arc<Self> {
        Arc::new(Self { interest, ranges: Mutex::default(), started: Mutex::default() })
    }

    /// First guest-physical address, length and host address of each range.
    fn told(&self) -> Vec<(u64, u64, u64)> {
        self.ranges.lock().iter().map(|range| (range.base, range.size, range.host_address())).collect()
    }

    fn change(&self, removed: &[MemoryRange], added: &[MemoryRange]) {
        let mut ranges = self.ranges.lock();
        for range in removed {
            let at = ranges.iter().position(|there| there.base == range.base && there.size == range.size);
            ranges.remove(at.expect("what is removed was told"));
        }
        ranges.extend_from_slice(added);
        ranges.sort_by_key(|range| range.base);
        assert!(ranges.windows(2).all(|pair| pair[0].end() <= pair[1].base), "told of an overlap");
    }
}

impl WiringListener for Mirror {
    fn name(&self) -> &str {
        "mirror"
    }

    fn interest(&self) -> Interest {
        self.interest
    }

    fn start(&self, change: &WiringChange) -> Result<(), ListenerError> {
        assert!(!change.is_empty(), "told of nothing");
        assert!(self.interest.tracking || change.reflagged.is_empty());
        assert!(!std::mem::replace(&mut *self.started.lock(), true), "started twice");
        self.change(&change.removed, &change.added);
        Ok(())
    }

    fn finish(&self) -> Result<(), ListenerError> {
        assert!(std::mem::replace(&mut *self.started.lock(), false), "finished without a start");
        Ok(())
    }

    fn undo(&self, change: &WiringChange) {
        assert!(!*self.started.lock(), "undone before it finished");
        self.change(&change.added, &change.removed);
    }
}

/// A listener that fails.
#[derive(Clone, Copy)]
enum Bad {
    Start,
    Finish,
}

impl WiringListener for Bad {
    fn name(&self) -> &str {
        "bad"
    }

    fn interest(&self) -> Interest {
        Interest { device_slots: true, tracking: false }
    }

    fn start(&self, _change: &WiringChange) -> Result<(), ListenerError> {
        match self {
            Self::Start => Err(ListenerError::new("does not start")),
            Self::Finish => Ok(()),
        }
    }

    fn finish(&self) -> Result<(), ListenerError> {
        Err(ListenerError::new("does not finish"))
    }

    fn undo(&self, _change: &WiringChange) {}
}
