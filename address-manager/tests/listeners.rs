//! Listeners: told once a commit with the whole difference, started before any is finished, and
//! taken back.

use std::sync::Arc;

use address_manager::{
    Interest, ListenerError, Slot, SlotFlags, SlotRole, WiringChange, WiringListener,
    testing::{PAGE, host, manager, msi, ram},
};
use parking_lot::Mutex;
use vm_memory::GuestMemoryBackend;

/// Writes down what it is told in a log that it shares with others.
struct Logged {
    name: &'static str,
    interest: Interest,
    fails: Option<&'static str>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Logged {
    fn note(&self, what: &'static str, change: Option<&WiringChange>) -> Result<(), ListenerError> {
        let ranges = change.map_or(String::new(), |change| {
            let pages = |ranges: &[address_manager::MemoryRange]| {
                ranges.iter().map(|range| range.size / PAGE).sum::<u64>()
            };
            let (gone, come) = (pages(&change.removed), pages(&change.added));
            let flags = pages(&change.reflagged);
            let regions = [change.memory_before.num_regions(), change.memory.num_regions()];
            format!(" -{gone} +{come} ~{flags} {}->{}", regions[0], regions[1])
        });
        self.log.lock().push(format!("{} {what}{ranges}", self.name));
        match self.fails {
            Some(fails) if fails == what => Err(ListenerError::new("back end went away")),
            _ => Ok(()),
        }
    }
}

impl WiringListener for Logged {
    fn name(&self) -> &str {
        self.name
    }

    fn interest(&self) -> Interest {
        self.interest
    }

    fn start(&self, change: &WiringChange) -> Result<(), ListenerError> {
        self.note("start", Some(change))
    }

    fn finish(&self) -> Result<(), ListenerError> {
        self.note("finish", None)
    }

    fn undo(&self, change: &WiringChange) {
        assert!(self.note("undo", Some(change)).is_ok(), "no test has an undo that fails");
    }
}

type Log = Arc<Mutex<Vec<String>>>;

fn logged(name: &'static str, log: &Log) -> Logged {
    Logged { name, interest: Interest::default(), fails: None, log: Arc::clone(log) }
}

fn taken(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock())
}

#[test]
fn each_is_told_once_a_commit_and_only_of_what_it_cares_for() {
    let (manager, _vm) = manager();
    let log = Log::default();
    let all = Interest { device_slots: true, tracking: true };
    manager.add_listener(Arc::new(logged("ram", &log))).unwrap();
    manager.add_listener(Arc::new(Logged { interest: all, ..logged("all", &log) })).unwrap();
    assert_eq!(taken(&log), [""; 0], "there is no memory to be told of");

    let memory = host(16);
    let window = Slot { role: SlotRole::Device, ..ram(8, 2, &memory, 8) };
    let tx = manager.begin();
    for page in 0..4 {
        tx.add_slot(ram(page, 1, &memory, page)).unwrap();
    }
    tx.add_slot(window.clone()).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!(
        taken(&log),
        ["ram start -0 +4 ~0 0->1", "all start -0 +6 ~0 0->1", "ram finish", "all finish"]
    );
    assert_eq!(report.operations.listeners.count, 2);

    // A window moves: nothing to those who look at main memory alone.
    let tx = manager.begin();
    tx.remove_slot(&window).unwrap();
    tx.add_slot(Slot { base: 12 * PAGE, ..window }).unwrap();
    tx.commit().unwrap();
    assert_eq!(taken(&log), ["all start -2 +2 ~0 1->1", "all finish"]);

    let tx = manager.begin();
    tx.track_dirty(true);
    let report = tx.commit().unwrap();
    assert_eq!(taken(&log), ["all start -0 +0 ~4 1->1", "all finish"]);
    assert_eq!((report.operations.slot_flags.count, report.operations.kernel_calls()), (1, 1));
    assert!(manager.live().slots().any(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY)));

    // Interrupts are nobody's business; memory that leaves and comes back is no change.
    let tx = manager.begin();
    tx.add_route(msi(30, 1)).unwrap();
    tx.remove_slot(&ram(0, 1, &memory, 0)).unwrap();
    tx.add_slot(ram(0, 1, &memory, 0)).unwrap();
    tx.commit().unwrap();
    assert_eq!(taken(&log), [""; 0]);
}

#[test]
fn a_new_listener_is_told_the_whole_once() {
    let (manager, _vm) = manager();
    let log = Log::default();
    let memory = host(16);
    let tx = manager.begin();
    tx.add_slot(ram(0, 4, &memory, 0)).unwrap();
    tx.commit().unwrap();

    let id = manager.add_listener(Arc::new(logged("later", &log))).unwrap();
    assert_eq!(taken(&log), ["later start -0 +4 ~0 0->1", "later finish"]);

    // One that comes with a transaction is told the staged memory, at commit.
    let tx = manager.begin();
    tx.add_listener(Arc::new(logged("staged", &log)));
    tx.add_slot(ram(8, 1, &memory, 8)).unwrap();
    assert_eq!(taken(&log), [""; 0]);
    tx.commit().unwrap();
    assert_eq!(
        taken(&log),
        ["later start -0 +1 ~0 1->2", "staged start -0 +5 ~0 0->2", "later finish", "staged finish"]
    );

    // One whose transaction is dropped was never there, nor is one that was removed.
    let tx = manager.begin();
    tx.add_listener(Arc::new(logged("dropped", &log)));
    drop(tx);
    manager.remove_listener(id);
    let tx = manager.begin();
    tx.remove_slot(&ram(8, 1, &memory, 8)).unwrap();
    tx.commit().unwrap();
    assert_eq!(taken(&log), ["staged start -1 +0 ~0 2->1", "staged finish"]);
}

#[test]
fn when_one_fails_all_that_were_started_finish_and_go_back() {
    for (fails, expected) in [
        (
            "start",
            vec![
                "first start -0 +1 ~0 0->1",
                "bad start -0 +1 ~0 0->1",
                "first finish",
                "first undo -0 +1 ~0 0->1",
            ],
        ),
        (
            "finish",
            vec![
                "first start -0 +1 ~0 0->1",
                "bad start -0 +1 ~0 0->1",
                "last start -0 +1 ~0 0->1",
                "first finish",
                "bad finish",
                "last finish",
                "last undo -0 +1 ~0 0->1",
                "bad undo -0 +1 ~0 0->1",
                "first undo -0 +1 ~0 0->1",
            ],
        ),
    ] {
        let (manager, vm) = manager();
        let log = Log::default();
        let memory = manager.memory();
        manager.add_listener(Arc::new(logged("first", &log))).unwrap();
        manager.add_listener(Arc::new(Logged { fails: Some(fails), ..logged("bad", &log) })).unwrap();
        manager.add_listener(Arc::new(logged("last", &log))).unwrap();
        let tx = manager.begin();
        tx.add_slot(ram(0, 1, &host(1), 0)).unwrap();
        let error = tx.commit().unwrap_err();
        assert_eq!(taken(&log), expected);
        assert!(error.to_string().contains("bad"), "{error}");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "back end went away");
        assert!(vm.wiring_state().slots.is_empty());
        assert_eq!(memory.view().num_regions(), 0);
    }
}

#[test]
fn one_that_cannot_take_the_live_memory_over_is_not_added() {
    let (manager, _vm) = manager();
    let log = Log::default();
    let tx = manager.begin();
    tx.add_slot(ram(0, 1, &host(1), 0)).unwrap();
    tx.commit().unwrap();
    let bad = Logged { fails: Some("finish"), ..logged("bad", &log) };
    assert!(manager.add_listener(Arc::new(bad)).is_err());
    assert_eq!(taken(&log), ["bad start -0 +1 ~0 0->1", "bad finish", "bad undo -0 +1 ~0 0->1"]);
    let tx = manager.begin();
    tx.add_slot(ram(1, 1, &host(1), 0)).unwrap();
    tx.commit().unwrap();
    assert_eq!(taken(&log), [""; 0]);
}
