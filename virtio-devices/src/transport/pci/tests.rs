//! The function against a guest, with a device that only notes what happens to it.

use std::sync::Arc;

use address_manager::{Arm, Transaction};
use devices::{Device, PauseError, Stateful, pci::PciFunction};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, State};

use super::*;
use crate::{
    device::{ActivateError, FeatureRule, Queues},
    testing::{
        Buffer,
        machine::{DATA, Machine},
    },
    worker::consume,
};

const OK: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
const ACTIVE: u8 = OK | status::DRIVER_OK;
const FEATURE: u64 = 1 << 5;
/// Needs [`FEATURE`].
const OTHER: u64 = 1 << 6;

#[derive(Debug, Default)]
struct Noted {
    calls: Vec<String>,
    queues: Vec<ActiveQueue>,
    refuse: bool,
    stuck: bool,
}

struct Probe {
    noted: Arc<Mutex<Noted>>,
    config: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeState {
    config: Vec<u8>,
}

impl State for ProbeState {
    const KIND: &'static str = "probe";
    const VERSION: u32 = 1;
}

impl Stateful for Probe {
    type State = ProbeState;

    fn save(&self) -> ProbeState {
        ProbeState { config: self.config.clone() }
    }

    fn load(&mut self, state: ProbeState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let ProbeState { config } = state;
        self.config = config;
        Ok(())
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        FEATURE | OTHER
    }

    fn feature_rules(&self) -> &'static [FeatureRule] {
        &[(OTHER, FEATURE)]
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64, 128, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (at, byte) in (offset..).zip(data) {
            if let Some(old) = self.config.get_mut(at) {
                *old = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut noted = self.noted.lock();
        if noted.refuse {
            return Err(ActivateError::QueueMissing(2));
        }
        let numbers: Vec<_> = activation.queues.iter().map(|queue| queue.index).collect();
        noted.calls.push(format!("activate {numbers:?} {:#x}", activation.features));
        noted.queues = activation.queues;
        Ok(())
    }

    fn reset(&mut self) {
        self.config = vec![1, 2, 3, 4];
    }
}

impl Queues for Probe {
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let mut noted = self.noted.lock();
        noted.calls.push(format!("start {}", queue.index));
        noted.queues.push(queue);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, PauseError> {
        let mut noted = self.noted.lock();
        noted.calls.push(format!("stop {index}"));
        let at = noted.queues.iter().position(|queue| queue.index == index);
        Ok(at.map(|at| noted.queues.remove(at).queue.state()))
    }

    fn stop(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        let mut noted = self.noted.lock();
        if noted.stuck {
            return Err(PauseError { who: "probe".into(), why: "told to".into() });
        }
        noted.calls.push("stop".into());
        Ok(noted.queues.drain(..).map(|queue| (queue.index, queue.queue.state())).collect())
    }

    fn ask_to_pause(&self) {
        self.noted.lock().calls.push("ask to pause".into());
    }

    fn pause(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        let mut noted = self.noted.lock();
        noted.calls.push("pause".into());
        Ok(noted.queues.iter().map(|queue| (queue.index, queue.queue.state())).collect())
    }

    fn resume(&mut self) {
        self.noted.lock().calls.push("resume".into());
    }
}

fn probe() -> (Arc<Mutex<Noted>>, Box<dyn VirtioDevice>) {
    let noted = Arc::new(Mutex::new(Noted::default()));
    (Arc::clone(&noted), Box::new(Probe { noted, config: vec![1, 2, 3, 4] }))
}

fn machine() -> (Arc<Mutex<Noted>>, Machine) {
    let (noted, device) = probe();
    (noted, Machine::new(device))
}

fn calls(noted: &Mutex<Noted>) -> Vec<String> {
    std::mem::take(&mut noted.lock().calls)
}

#[test]
fn a_driver_brings_the_device_up() {
    let (noted, mut machine) = machine();
    assert_eq!(machine.read16(18), 3);
    let features = machine.negotiate(FEATURE | features::RING_EVENT_IDX);
    assert_eq!(features, FEATURE | features::RING_EVENT_IDX | features::VERSION_1);
    assert!(machine.take_life().is_empty());
    machine.enable_vectors();
    machine.enable_queue(0, 32);
    machine.enable_queue(2, 64);
    assert!(machine.vm.wiring_state().doorbells.is_empty());
    machine.driver_ok();
    assert_eq!(machine.status(), ACTIVE);
    assert_eq!(machine.take_life(), ["activated"]);
    assert_eq!(calls(&noted)[1..], [format!("activate [0, 2] {features:#x}"), "resume".into()]);
    // One doorbell for each enabled queue, in one transaction.
    assert_eq!(machine.vm.wiring_state().doorbells.len(), 2);
    let report = machine.manager.reports().pop().unwrap();
    assert_eq!(report.label, "doorbells");
    // Kicks and interrupts reach the other side.
    assert!(machine.kick(2));
    assert!(!machine.kick(1));
    let noted = noted.lock();
    assert_eq!(noted.queues[1].kick.read().unwrap(), 1);
    assert!(noted.queues[0].kick.read().is_err());
    noted.queues[1].interrupt.signal();
    assert_eq!(machine.take_interrupts(), [3]);
}

#[test]
fn doorbells_stay_through_a_reset() {
    let (_, mut machine) = machine();
    machine.start(0, 16);
    let commits = machine.manager.totals().commits;
    machine.start(0, 16);
    assert_eq!(machine.manager.totals().commits, commits);
    assert!(machine.kick(1));
}

#[test]
fn status_bits_come_in_order() {
    let (noted, mut machine) = machine();
    for wrong in [status::DRIVER, status::FEATURES_OK, status::DRIVER_OK, OK & !status::DRIVER] {
        machine.set_status(wrong);
        assert_eq!(machine.status(), 0, "{wrong:#x}");
    }
    machine.set_status(status::ACKNOWLEDGE);
    machine.set_status(status::ACKNOWLEDGE | status::DRIVER_OK | status::FEATURES_OK);
    assert_eq!(machine.status(), status::ACKNOWLEDGE);
    machine.negotiate(0);
    // Bits are not taken away.
    machine.set_status(status::ACKNOWLEDGE);
    assert_eq!(machine.status(), OK);
    machine.set_status(OK | status::FAILED);
    assert_eq!(machine.status(), OK | status::FAILED);
    assert!(!calls(&noted).iter().any(|call| call.starts_with("activate")));
}

#[test]
fn features_that_do_not_fit_are_not_accepted() {
    let (_, mut machine) = machine();
    let negotiate = |machine: &mut Machine, low: u32, high: u32| {
        machine.set_status(0);
        machine.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for (select, half) in [(0u32, low), (1, high)] {
            machine.write(8, &select.to_le_bytes());
            machine.write(12, &half.to_le_bytes());
        }
        machine.set_status(OK);
        machine.status()
    };
    let driver = status::ACKNOWLEDGE | status::DRIVER;
    // No version 1, one that is not offered, both.
    assert_eq!(negotiate(&mut machine, 1 << 5, 0), driver);
    assert_eq!(negotiate(&mut machine, 1 << 7, 1), driver);
    assert_eq!(negotiate(&mut machine, 1 << 5, 1 << 1 | 1), driver);
    // One that needs another.
    assert_eq!(negotiate(&mut machine, 1 << 6, 1), driver);
    assert_eq!(negotiate(&mut machine, 1 << 6 | 1 << 5, 1), OK);
    assert_eq!(negotiate(&mut machine, 1 << 5, 1), OK);
    // Frozen from then on.
    machine.write(8, &0u32.to_le_bytes());
    machine.write(12, &0u32.to_le_bytes());
    assert_eq!(machine.read::<4>(12), (1u32 << 5).to_le_bytes());
}

#[test]
fn queue_registers_are_frozen_once_enabled() {
    let (_, mut machine) = machine();
    machine.negotiate(0);
    let driver = machine.enable_queue(1, 128);
    machine.write16(24, 16);
    machine.write(32, &0xdead_0000u64.to_le_bytes());
    machine.write(44, &1u32.to_le_bytes());
    machine.write16(28, 0);
    assert_eq!((machine.read16(24), machine.read16(28)), (128, 1));
    assert_eq!(u64::from_le_bytes(machine.read(32)), driver.config().descriptors);
    assert_eq!(u64::from_le_bytes(machine.read(40)), driver.config().driver);
    // A size that is too large or no power of two is not taken.
    machine.write16(22, 0);
    for size in [0, 3, 128] {
        machine.write16(24, size);
        assert_eq!(machine.read16(24), 64);
    }
    // A queue that does not exist.
    machine.write16(22, 3);
    machine.write16(28, 1);
    assert_eq!((machine.read16(24), machine.read16(28), machine.read16(26)), (0, 0, 0xffff));
    // None is added once the device is active.
    machine.driver_ok();
    machine.write16(22, 0);
    machine.write16(28, 1);
    assert_eq!(machine.read16(28), 0);
}

#[test]
fn a_packed_queue_has_any_size() {
    let (noted, mut machine) = machine();
    machine.negotiate(features::RING_PACKED);
    machine.enable_queue(0, 33);
    machine.driver_ok();
    assert_eq!(machine.status(), ACTIVE);
    assert_eq!(noted.lock().queues[0].queue.size(), 33);
}

#[test]
fn packed_queues_are_offered_unless_withheld() {
    for packed in [true, false] {
        let mut machine = Machine::with_packed(probe().1, packed);
        machine.write(0, &1u32.to_le_bytes());
        let offered = u64::from(u32::from_le_bytes(machine.read(4))) << 32;
        assert_eq!(offered & features::RING_PACKED != 0, packed);
        assert_ne!(offered & features::VERSION_1, 0);
    }
}

#[test]
fn rings_outside_of_memory_need_a_reset() {
    let (_, mut machine) = machine();
    machine.negotiate(0);
    machine.enable_vectors();
    machine.write16(22, 0);
    machine.write(32, &u64::MAX.to_le_bytes());
    machine.write16(28, 1);
    machine.driver_ok();
    assert_eq!(machine.status(), ACTIVE | status::NEEDS_RESET);
    machine.wait_config();
    assert!(machine.vm.wiring_state().doorbells.is_empty());
    // A new driver starts over.
    machine.start(0, 16);
    assert_eq!(machine.status(), ACTIVE);
}

#[test]
fn a_device_that_cannot_begin_needs_a_reset() {
    let (noted, mut machine) = machine();
    noted.lock().refuse = true;
    machine.negotiate(0);
    machine.driver_ok();
    assert_eq!(machine.status(), ACTIVE | status::NEEDS_RESET);
}

#[test]
fn a_queue_is_reset_alone() {
    let (noted, mut machine) = machine();
    machine.start(features::RING_RESET, 16);
    calls(&noted);
    machine.write16(22, 1);
    machine.write16(58, 1);
    assert_eq!(calls(&noted), ["stop 1"]);
    assert_eq!((machine.read16(58), machine.read16(28), machine.read16(24)), (0, 0, 128));
    assert_eq!(machine.read16(26), 0xffff);
    assert_eq!(machine.status(), ACTIVE);
    let commits = machine.manager.totals().commits;
    machine.enable_queue(1, 64);
    assert_eq!(calls(&noted), ["start 1"]);
    assert_eq!(machine.manager.totals().commits, commits, "its doorbell was there");
    // Without the feature nothing of that happens.
    machine.start(0, 16);
    calls(&noted);
    machine.write16(22, 1);
    machine.write16(58, 1);
    assert_eq!((calls(&noted).len(), machine.read16(28)), (0, 1));
}

#[test]
fn a_reset_waits_for_the_device() {
    let (noted, mut machine) = machine();
    machine.start(0, 16);
    noted.lock().stuck = true;
    machine.set_status(0);
    assert_eq!(machine.status(), ACTIVE);
    // Nothing is accepted until it is done.
    machine.write16(22, 2);
    assert_eq!(machine.read16(22), 2, "as the queue set up last left it");
    machine.write16(22, 1);
    assert_eq!(machine.read16(22), 2);
    noted.lock().stuck = false;
    assert_eq!(machine.status(), 0);
    assert_eq!(machine.take_life(), ["activated", "reset"]);
    machine.start(0, 16);
}

#[test]
fn the_interrupt_status_is_cleared_by_reading() {
    let (noted, mut machine) = machine();
    machine.negotiate(0);
    machine.enable_queue(0, 16);
    machine.driver_ok();
    // Without vectors, all there is is the status.
    noted.lock().queues[0].interrupt.signal();
    machine.function.lock().interrupts.config().changed();
    assert_eq!(machine.read::<1>(0x1000), [3]);
    assert_eq!(machine.read::<1>(0x1000), [0]);
    assert_eq!(machine.read::<1>(21), [1], "the generation");
    assert!(machine.take_interrupts().is_empty());
}

#[test]
fn vectors_that_do_not_exist_are_none() {
    let (_, mut machine) = machine();
    machine.write16(16, 3);
    assert_eq!(machine.read16(16), 3);
    machine.write16(16, 4);
    assert_eq!(machine.read16(16), 0xffff);
    machine.write16(22, 2);
    machine.write16(26, 4);
    assert_eq!(machine.read16(26), 0xffff);
}

/// Finds the window's capability.
fn window(machine: &Machine) -> u16 {
    let mut function = machine.function.lock();
    let mut at = 0x34;
    loop {
        let mut next = [0];
        function.config_read(at, &mut next);
        assert_ne!(next[0], 0, "no window");
        let here = u16::from(next[0]);
        let mut head = [0; 4];
        function.config_read(here, &mut head);
        if head[0] == 9 && head[3] == 5 {
            return here;
        }
        at = here + 1;
    }
}

#[test]
fn the_window_reaches_every_region() {
    let (noted, mut machine) = machine();
    let at = window(&machine);
    let aim = |machine: &Machine, offset: u32, length: u32| {
        let mut function = machine.function.lock();
        function.config_write(at + 4, &[0]);
        function.config_write(at + 8, &offset.to_le_bytes());
        function.config_write(at + 12, &length.to_le_bytes());
    };
    let read = |machine: &Machine| {
        let mut data = [0; 4];
        machine.function.lock().config_read(at + 16, &mut data);
        u32::from_le_bytes(data)
    };
    aim(&machine, 0x2000, 4);
    assert_eq!(read(&machine), 0x0403_0201);
    aim(&machine, 18, 2);
    assert_eq!(read(&machine), 3);
    aim(&machine, 20, 1);
    machine.function.lock().config_write(at + 16, &[1]);
    assert_eq!(machine.status(), 1);
    // A vector's data.
    aim(&machine, 0x4008, 4);
    machine.function.lock().config_write(at + 16, &0x77u32.to_le_bytes());
    assert_eq!(machine.read::<4>(0x4008), 0x77u32.to_le_bytes());
    // Activation and kicks.
    machine.start(0, 16);
    aim(&machine, 0x3008, 2);
    machine.function.lock().config_write(at + 16, &[2, 0, 0, 0]);
    assert_eq!(noted.lock().queues[2].kick.read().unwrap(), 1);
    // Beyond the BAR, misaligned, another BAR, a width that is none: nothing happens.
    for (offset, length) in [(0x8000, 4), (0x2001, 4), (0x2000, 3), (u32::MAX, 1), (u32::MAX - 3, 4)] {
        aim(&machine, offset, length);
        machine.function.lock().config_write(at + 16, &[9; 4]);
        assert_eq!(read(&machine), 0x0909_0909);
    }
}

#[test]
fn a_driver_that_activates_through_the_window_gets_its_doorbells() {
    let (_, mut machine) = machine();
    machine.negotiate(0);
    machine.enable_queue(0, 16);
    let at = window(&machine);
    machine.try_config(at + 8, &20u32.to_le_bytes());
    machine.try_config(at + 12, &1u32.to_le_bytes());
    machine.try_config(at + 16, &u32::from(ACTIVE).to_le_bytes());
    assert_eq!(machine.status(), ACTIVE);
    assert_eq!(machine.vm.wiring_state().doorbells.len(), 1);
}

#[test]
fn a_restored_function_is_wired_late_and_loses_no_kick() {
    for wanted in [0, features::RING_PACKED | features::RING_EVENT_IDX] {
        let (noted, mut machine) = machine();
        let mut drivers = machine.start(wanted, 16);
        // Two requests are done, one was kicked and is still there.
        let memory = machine.memory();
        for _ in 0..2 {
            drivers[0].add(&*memory, &[Buffer::writable(DATA, 8)], false).unwrap();
            let mut noted = noted.lock();
            let queue = &mut noted.queues[0].queue;
            let chain = queue.pop(&*memory).unwrap().unwrap();
            queue.add_used(&*memory, chain, 1).unwrap();
            drivers[0].take_used(&*memory).unwrap();
        }
        drivers[0].add(&*memory, &[Buffer::writable(DATA, 8)], false).unwrap();
        let saved = machine.save();
        // Stopped after each number of armed doorbells.
        for armed in 0..=3 {
            let (noted, device) = probe();
            let mut restored = Machine::restore(&machine, device, &saved).unwrap();
            assert!(restored.vm.wiring_state().doorbells.is_empty());
            assert_eq!(calls(&noted).len(), 1, "active, and not yet resumed");
            restored.resume();
            assert_eq!(calls(&noted), ["resume"]);
            assert_eq!(restored.arm_late(armed), armed);
            assert_eq!(restored.vm.wiring_state().doorbells.len(), armed);
            {
                // What was kicked before is found by looking.
                let mut noted = noted.lock();
                assert!(noted.queues[0].queue.pop(&*memory).unwrap().is_some());
                assert!(noted.queues[0].queue.pop(&*memory).unwrap().is_none());
            }
            for queue in 0..3u16 {
                assert_eq!(restored.kick(queue), usize::from(queue) < armed);
                assert_eq!(noted.lock().queues[usize::from(queue)].kick.read().unwrap(), 1);
            }
            // The rest is armed whenever the function is wired anew.
            restored.try_config(4, &0u16.to_le_bytes());
            assert!(restored.vm.wiring_state().doorbells.is_empty());
            restored.try_config(4, &6u16.to_le_bytes());
            assert_eq!(restored.vm.wiring_state().doorbells.len(), 3);
            // And a new driver drives it.
            if armed == 3 {
                restored.start(wanted, 16);
            }
        }
    }
}

#[test]
fn states_that_do_not_fit_are_refused_by_name() {
    let (_, mut machine) = machine();
    machine.start(features::RING_EVENT_IDX | FEATURE, 16);
    let saved = machine.save();
    let error = |from: &str, to: &str| {
        assert!(saved.contains(from), "{from} is not in {saved}");
        let error = Machine::restore(&machine, probe().1, &saved.replacen(from, to, 1)).err();
        let error = error.unwrap_or_else(|| panic!("{from} -> {to} was accepted"));
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    let features = FEATURE | features::RING_EVENT_IDX | features::VERSION_1;
    let more = features | 1 << 9;
    let with = |features: u64| format!("\"driver_features\":{features}");
    assert!(error(&with(features), &with(more)).contains("0x200, which this device does not offer"));
    assert!(error(&with(features), &with(features & !FEATURE | OTHER)).contains("contradict"));
    assert!(error("\"status\":15", "\"status\":14").contains("lacks a bit"));
    assert!(error("\"status\":15", "\"status\":31").contains("reserved bits"));
    assert!(error("\"status\":15", "\"status\":11").contains("not served"));
    assert!(error("\"config_vector\":0", "\"config_vector\":4").contains("vector 4 does not exist"));
    assert!(error("\"size\":16", "\"size\":17").contains("queues[0].size"));
    assert!(error("\"descriptors\":4096", "\"descriptors\":4097").contains("queues[0]"));
    assert!(error("\"isr\":0", "\"isr\":4").contains("isr"));
    assert!(error("\"kind\":\"probe\"", "\"kind\":\"other\"").contains("expected \"probe\""));
    let progress = "\"progress\":{\"split\":{\"next_avail\":0,\"next_used\":0,\"signalled\":null}}";
    assert!(error(progress, "\"progress\":null").contains("queues[0].progress: missing"));
    let wrong = progress.replace("\"next_used\":0", "\"next_used\":1");
    assert!(error(progress, &wrong).contains("next_used"));
}

#[test]
fn a_broken_device_is_saved_and_reset_after_the_restore() {
    let (_, mut machine) = machine();
    machine.start(0, 16);
    machine.function.lock().interrupts.config().needs_reset("dev0", &"a test");
    let saved = machine.save();
    let (noted, device) = probe();
    let mut restored = Machine::restore(&machine, device, &saved).unwrap();
    restored.resume();
    assert!(calls(&noted).is_empty(), "it serves nothing");
    assert_eq!(restored.status(), ACTIVE | status::NEEDS_RESET);
    assert_eq!(restored.save(), saved);
    restored.resume();
    restored.start(0, 16);
    assert_eq!(restored.status(), ACTIVE);
}

#[test]
fn a_driver_that_has_only_begun_goes_on_after_a_restore() {
    let (_, mut machine) = machine();
    machine.negotiate(features::RING_EVENT_IDX);
    machine.enable_queue(0, 16);
    let saved = machine.save();
    let (noted, device) = probe();
    let mut restored = Machine::restore(&machine, device, &saved).unwrap();
    restored.resume();
    restored.arm_late(3);
    assert!(calls(&noted).is_empty(), "nothing is served yet");
    assert_eq!(restored.status(), machine.status());
    assert_eq!(restored.save(), saved);
    restored.resume();
    restored.enable_queue(2, 32);
    restored.driver_ok();
    assert_eq!(restored.status(), ACTIVE);
    let features = features::VERSION_1 | features::RING_EVENT_IDX;
    assert_eq!(calls(&noted), [format!("activate [0, 2] {features:#x}"), "resume".to_owned()]);
}

#[test]
fn a_queue_that_was_reset_stays_so_over_a_restore() {
    let (_, mut machine) = machine();
    machine.start(features::RING_RESET, 16);
    machine.write16(22, 1);
    machine.write16(58, 1);
    let saved = machine.save();
    let (noted, device) = probe();
    let mut restored = Machine::restore(&machine, device, &saved).unwrap();
    let features = features::VERSION_1 | features::RING_RESET;
    assert_eq!(calls(&noted), [format!("activate [0, 2] {features:#x}")]);
    assert_eq!(restored.save(), saved);
    restored.resume();
    restored.arm_late(3);
    calls(&noted);
    assert_eq!((restored.read16(28), restored.status()), (0, ACTIVE));
    restored.enable_queue(1, 64);
    assert_eq!(calls(&noted), ["start 1"]);
    assert!(restored.kick(1), "its doorbell is there");
}

#[test]
fn the_machine_resets_an_active_function() {
    let (noted, mut machine) = machine();
    machine.start(0, 16);
    calls(&noted);
    machine.function.lock().reset();
    assert_eq!(calls(&noted), ["stop"]);
    machine.try_config(4, &6u16.to_le_bytes());
    assert!(machine.vm.wiring_state().doorbells.is_empty());
    assert_eq!(machine.status(), 0);
    machine.start(0, 16);
    assert_eq!(machine.vm.wiring_state().doorbells.len(), 3);
}

#[test]
fn a_kick_that_was_late_is_only_a_look() {
    let (noted, mut machine) = machine();
    machine.start(0, 16);
    consume(&noted.lock().queues[0].kick);
    machine.kick(0);
    machine.set_status(0);
    // Left over from the driver before: the next one's queue starts with a needless look.
    machine.start(0, 16);
    assert_eq!(noted.lock().queues[0].kick.read().unwrap(), 1);
    let armed = machine.manager.live().doorbells().filter(|doorbell| doorbell.arm == Arm::Now).count();
    assert_eq!(armed, 3);
}
