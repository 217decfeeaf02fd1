//! What the address manager costs by itself, on a back end that only writes its calls down.
//!
//! `restore`: staging the wiring of 24 devices with 320 queues, comparing and committing it, in
//! sizes 1, 10 and 100. `restore, irqfds`: the same with an irqfd for each of 350 interrupts.
//! `move a BAR`: the smallest change of a guest that runs. `dispatch`: a vCPU's way to a handler.

#![allow(missing_docs, reason = "criterion's macros write a public function")]

use std::{hint::black_box, sync::Arc};

use address_manager::{AddressManager, Arm, CommitReport, IoSpace};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cumulet_benches::{
    cpu_time::cpu_time,
    guest::{Guest, Shape},
    recording::RecordingVm,
};

const SLOTS_MAX: u32 = 32764;

fn shape(scale: u32, irqfds: bool) -> Shape {
    Shape { scale, irqfds, arm: Arm::Now }
}

fn manager() -> (Arc<AddressManager>, Arc<RecordingVm>) {
    let vm = Arc::new(RecordingVm::default());
    (AddressManager::new(vm.clone(), SLOTS_MAX, Guest::windows()), vm)
}

fn restore(guest: &Guest, manager: &AddressManager) -> CommitReport {
    let tx = manager.begin();
    guest.stage(&tx).expect("all of it fits");
    tx.commit().expect("the back end fails at nothing")
}

fn restoring(criterion: &mut Criterion) {
    for (name, irqfds, scales) in
        [("restore", false, [1, 10, 100].as_slice()), ("restore, irqfds", true, [1, 10].as_slice())]
    {
        let mut group = criterion.benchmark_group(name);
        for scale in scales {
            let guest = Guest::new(shape(*scale, irqfds));
            group.throughput(Throughput::Elements(u64::from(*scale)));
            group.bench_with_input(BenchmarkId::from_parameter(scale), &guest, |bencher, guest| {
                // The old manager is dropped outside of the measurement: a VM that is gone is no cost
                // of a restore.
                bencher.iter_batched(
                    manager,
                    |(manager, vm)| (restore(guest, &manager), manager, vm),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

fn moving(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("move a BAR");
    for scale in [1, 10, 100] {
        let guest = Guest::new(shape(scale, false));
        let (manager, vm) = manager();
        restore(&guest, &manager);
        let mut here = guest.devices[0].clone().wired;
        let mut there = here.clone();
        let offset = 1 << 39;
        there.handlers.iter_mut().for_each(|range| range.base += offset);
        there.doorbells.iter_mut().for_each(|doorbell| doorbell.spec.address += offset);
        group.bench_function(BenchmarkId::from_parameter(scale), |bencher| {
            bencher.iter(|| {
                let tx = manager.begin();
                tx.replace(&here, there.clone()).expect("it fits");
                std::mem::swap(&mut here, &mut there);
                let report = tx.commit().expect("the back end fails at nothing");
                vm.take();
                report
            });
        });
    }
    group.finish();
}

fn dispatching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dispatch");
    for scale in [1, 100] {
        let guest = Guest::new(shape(scale, false));
        let (manager, _vm) = manager();
        restore(&guest, &manager);
        let bars: Vec<u64> = manager.live().handlers().map(|range| range.base).collect();
        let mut vcpu = manager.dispatcher();
        let mut data = [0; 4];
        group.bench_function(BenchmarkId::new("same range", scale), |bencher| {
            bencher.iter(|| vcpu.read(IoSpace::Mmio, black_box(bars[0]), &mut data));
        });
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("another range", scale), |bencher| {
            bencher.iter(|| {
                turn = (turn + 17) % bars.len();
                vcpu.read(IoSpace::Mmio, black_box(bars[turn]), &mut data)
            });
        });
    }
    let (manager, _vm) = manager();
    let mut view = manager.memory().reader();
    group.bench_function("memory view", |bencher| bencher.iter(|| Arc::as_ptr(view.get())));
    group.finish();
}

/// Says where the time of a restore goes, as a table in Markdown: the quickest of many. The last two
/// columns are processor time, which other work on the machine does not add to.
#[expect(clippy::print_stdout, reason = "a benchmark prints")]
fn print_phases(_criterion: &mut Criterion) {
    println!("| size | staging | difference | calls | in all | processor | processor / size |");
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    for (scale, tries) in [(1, 2000), (10, 400), (100, 60)] {
        let guest = Guest::new(shape(scale, false));
        let mut best: Option<(u64, u64, CommitReport)> = None;
        for _ in 0..tries {
            let (manager, _vm) = manager();
            let since = cpu_time();
            let report = restore(&guest, &manager);
            let cpu_ns = u64::try_from((cpu_time() - since).as_nanos()).unwrap_or(u64::MAX);
            let all_ns = report.staging_ns + report.total_ns;
            best = Some(match best {
                Some((cpu, all, kept)) if all <= all_ns => (cpu.min(cpu_ns), all, kept),
                Some((cpu, ..)) => (cpu.min(cpu_ns), all_ns, report),
                None => (cpu_ns, all_ns, report),
            });
        }
        let Some((cpu_ns, all_ns, report)) = best else { continue };
        let calls = report.operations.kinds().iter().map(|(_, kind)| kind.ns).sum();
        let times = [report.staging_ns, report.diff_ns, calls, all_ns, cpu_ns, cpu_ns / u64::from(scale)];
        println!("| {scale} | {} us |", times.map(|ns| (ns / 1000).to_string()).join(" us | "));
    }
}

criterion_group!(benches, restoring, moving, dispatching, print_phases);
criterion_main!(benches);
