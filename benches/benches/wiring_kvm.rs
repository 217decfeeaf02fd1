//! The same wiring put in place on the host's own KVM in several ways: by one commit, and by a
//! commit for each piece, as a machine does that wires each device as it is restored.
//!
//! `cargo bench -p cumulet-benches --bench wiring_kvm [-- ROUNDS]`. Every round makes a VM for each
//! way, in turn; the table shows medians.

use std::{process::ExitCode, sync::Arc, time::Instant};

use address_manager::{AddressManager, Arm, CommitTotals, Wired};
use cumulet_benches::guest::{Device, Guest, Shape, StageError};
use hypervisor::{Hypervisor, HypervisorKind, IrqchipMode, VmOptions};

const ROUNDS: usize = 20;
const SHAPE: Shape = Shape { scale: 1, irqfds: true, arm: Arm::Now };

/// How the wiring is put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One commit.
    One,
    /// One commit, doorbells left to be armed in the background.
    OneLate,
    /// One commit, neither doorbells nor routes nor irqfds: the devices live in this process, send
    /// their interrupts by message, and have their doorbells armed in the background.
    OneInProcess,
    /// A commit for each slot, then for each other piece, device by device.
    SlotsFirst,
    /// A commit for each piece, the slots spread over the devices that they belong to.
    DeviceOrder,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::One, Self::OneLate, Self::OneInProcess, Self::SlotsFirst, Self::DeviceOrder];

    fn name(self) -> &'static str {
        match self {
            Self::One => "one commit",
            Self::OneLate => "one, doorbells late",
            Self::OneInProcess => "one, in-process devices",
            Self::SlotsFirst => "one by one, slots first",
            Self::DeviceOrder => "one by one, device order",
        }
    }

    /// The guest as this way wires it.
    fn guest(self) -> Guest {
        let mut guest = match self {
            Self::OneLate | Self::OneInProcess => Guest::new(Shape { arm: Arm::Late, ..SHAPE }),
            Self::One | Self::SlotsFirst | Self::DeviceOrder => Guest::new(SHAPE),
        };
        if self == Self::OneInProcess {
            for device in &mut guest.devices {
                device.wired.routes.clear();
                device.wired.irq_events.clear();
            }
        }
        guest
    }
}

type Failure = Box<dyn std::error::Error>;

/// What one round of one way took.
struct Measured {
    totals: CommitTotals,
    /// From the first begin to the end of the last commit, without the interrupt controller.
    ns: u64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a benchmark prints")]
            {
                eprintln!("wiring_kvm: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    // cargo adds `--bench`.
    let rounds = match std::env::args().skip(1).find(|argument| argument != "--bench") {
        Some(argument) => argument.parse().map_err(|_| format!("{argument:?} is no number of rounds"))?,
        None => ROUNDS,
    };
    let hypervisor = hypervisor::open(Some(HypervisorKind::Kvm))?;
    let mut columns: Vec<(Way, Vec<Measured>)> = Way::ALL.map(|way| (way, Vec::new())).into();
    for round in 0..rounds.max(1) {
        // The end of a VM keeps the kernel busy for a while: over 20 rounds, every way comes after
        // each of the others equally often, as their number is a prime.
        for turn in 0..columns.len() {
            let index = (round + turn * (1 + round / columns.len() % (columns.len() - 1))) % columns.len();
            let Some((way, measured)) = columns.get_mut(index) else { continue };
            measured.push(measure(&*hypervisor, *way)?);
        }
    }
    print(&columns);
    Ok(())
}

fn measure(hypervisor: &dyn Hypervisor, way: Way) -> Result<Measured, Failure> {
    let guest = way.guest();
    let vm = hypervisor.create_vm(&VmOptions::default())?;
    let manager = AddressManager::new(Arc::clone(&vm), hypervisor.capabilities().max_slots, Guest::windows());
    let begun = Instant::now();
    let mut irqchip_ns = 0;
    let mut irqchip = || {
        let since = Instant::now();
        let made = vm.create_irqchip(IrqchipMode::Kernel, false);
        irqchip_ns = nanoseconds(since);
        made
    };
    match way {
        Way::One | Way::OneLate | Way::OneInProcess => {
            let tx = manager.begin();
            guest.stage(&tx).map_err(no_fit)?;
            tx.set_slots_ahead()?;
            irqchip()?;
            tx.commit()?;
        }
        Way::SlotsFirst => {
            commit_slots(&manager, &guest, 0..guest.slots.len())?;
            irqchip()?;
            for device in &guest.devices {
                commit_pieces(&manager, device)?;
            }
        }
        Way::DeviceOrder => {
            // Main memory comes first in any case: the interrupt controller needs it.
            let mut slots = commit_slots(&manager, &guest, 0..2)?;
            irqchip()?;
            for device in &guest.devices {
                slots = commit_slots(&manager, &guest, slots..(slots + 1).min(guest.slots.len()))?;
                commit_pieces(&manager, device)?;
            }
        }
    }
    let ns = nanoseconds(begun).saturating_sub(irqchip_ns);
    Ok(Measured { totals: manager.totals(), ns })
}

/// A commit for each slot of a range; returns where the range ends.
fn commit_slots(
    manager: &AddressManager,
    guest: &Guest,
    range: std::ops::Range<usize>,
) -> Result<usize, Failure> {
    let end = range.end;
    for slot in &guest.slots[range] {
        let tx = manager.begin();
        tx.add_slot(slot.clone())?;
        tx.commit()?;
    }
    Ok(end)
}

/// A commit for each piece of a device, in the order in which a restored device makes them: its
/// BAR, then queue by queue the doorbell, the route and the irqfd.
fn commit_pieces(manager: &AddressManager, device: &Device) -> Result<(), Failure> {
    let Wired { slots: _, handlers, doorbells, routes, irq_events } = &device.wired;
    let piece = |wired: Wired| -> Result<(), Failure> {
        let tx = manager.begin();
        Device { owner: device.owner.clone(), wired }.stage(&tx).map_err(no_fit)?;
        tx.commit()?;
        Ok(())
    };
    for range in handlers {
        piece(Wired { handlers: vec![range.clone()], ..Wired::default() })?;
    }
    for (queue, route) in routes.iter().enumerate() {
        if let Some(doorbell) = doorbells.get(queue) {
            piece(Wired { doorbells: vec![doorbell.clone()], ..Wired::default() })?;
        }
        piece(Wired { routes: vec![route.clone()], ..Wired::default() })?;
        if let Some(event) = irq_events.get(queue) {
            piece(Wired { irq_events: vec![event.clone()], ..Wired::default() })?;
        }
    }
    Ok(())
}

fn no_fit(error: StageError) -> Failure {
    format!("{error:?}").into()
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// A table in Markdown: calls by kind with their time, one column a way.
#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn print(columns: &[(Way, Vec<Measured>)]) {
    let row = |name: &str, cell: &dyn Fn(&[Measured]) -> String| {
        let cells: Vec<String> = columns.iter().map(|(_, measured)| cell(measured)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    let names: Vec<&str> = columns.iter().map(|(way, _)| way.name()).collect();
    println!("| | {} |", names.join(" | "));
    println!("|---|{}", "---:|".repeat(columns.len()));
    let of = |measured: &[Measured], value: &dyn Fn(&Measured) -> u64| {
        median(measured.iter().map(value).collect())
    };
    row("commits", &|measured| of(measured, &|one| one.totals.commits).to_string());
    for (kind, (name, _)) in CommitTotals::default().operations.kinds().into_iter().enumerate() {
        let counts =
            |one: &Measured| one.totals.operations.kinds().get(kind).map_or(0, |(_, count)| count.count);
        let times = |one: &Measured| one.totals.operations.kinds().get(kind).map_or(0, |(_, count)| count.ns);
        if columns.iter().any(|(_, measured)| of(measured, &counts) != 0) {
            row(name, &|measured| format!("{} ({})", of(measured, &counts), millis(of(measured, &times))));
        }
    }
    row("routing entries written", &|measured| of(measured, &|one| one.totals.routing_entries).to_string());
    row("kernel calls", &|measured| of(measured, &|one| one.totals.operations.kernel_calls()).to_string());
    row("time in all, median", &|measured| millis(of(measured, &|one| one.ns)));
    let best = |measured: &[Measured]| measured.iter().map(|one| one.ns).min().unwrap_or(0);
    row("time in all, best", &|measured| millis(best(measured)));
    let one = columns.first().map_or(0, |(_, measured)| of(measured, &|one| one.ns)).max(1);
    row("ratio of medians", &|measured| {
        let hundredths = of(measured, &|one| one.ns).saturating_mul(100) / one;
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    });
}

fn millis(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
}
