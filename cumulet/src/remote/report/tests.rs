//! A report in each shape. The one that is read here is what the server makes of its own.

use std::{num::NonZeroU64, path::PathBuf};

use api_client::wire::{self, ReportPhase};
use serde_json::json;
use vmm::{
    machine::attach::net::MadeTap,
    memory::{
        background::Fill,
        content::{MemoryMode, ZoneMode},
    },
    phases::Phase,
    snapshot::{FillReport, RestoreReport, Verify},
};

use super::*;

fn said() -> RestoreReport {
    let phase = |name, start_ns, ns| Phase { name, start_ns, ns };
    let commit = json!({
        "sequence": 1, "label": "restore", "routing_entries": 0, "dispatch_entries": 30, "doorbells_late": 97,
        "staging_ns": 900_000, "diff_ns": 5_000, "total_ns": 1_138_400,
        "slots_removed": { "count": 0, "ns": 0 }, "slots_added": { "count": 2, "ns": 12_345 },
        "slot_flags": { "count": 0, "ns": 0 }, "irqfds_removed": { "count": 0, "ns": 0 },
        "doorbells_removed": { "count": 0, "ns": 0 }, "routing_writes": { "count": 0, "ns": 0 },
        "irqfds_added": { "count": 0, "ns": 0 }, "doorbells_added": { "count": 0, "ns": 0 },
        "published": { "count": 1, "ns": 3_000 }, "listeners": { "count": 0, "ns": 0 },
        "commits": 1, "failed": 0,
    });
    let zone = |zone: &str, mode, why| ZoneMode { zone: zone.into(), mode, why, copied_bytes: 0 };
    RestoreReport {
        directory: PathBuf::from("/snapshots/<a> & \"b\""),
        memory: vec![
            zone("mem0", MemoryMode::Cow, None),
            zone("big", MemoryMode::Copy, Some("is backed by huge pages, and the snapshot's file is not")),
        ],
        memory_bytes: 262_144,
        verified: Verify::State,
        lazily_checked: true,
        fill: FillReport {
            fill: Fill::All { rate: NonZeroU64::new(1 << 20).unwrap() },
            read_ahead: vec![vmm::snapshot::ZoneFill {
                zone: "mem0".into(),
                before_bytes: 8192,
                background_bytes: 4096,
            }],
            working_set_ignored: Some("it is of another snapshot".into()),
            record_working_set_ms: Some(250),
        },
        new_generation: true,
        edited: vec!["disks.0.path".into()],
        overridden: vec!["__serial.mode".into()],
        made_taps: vec![MadeTap { id: "_net1".into(), tap: Some("tap7".into()) }],
        phases: vec![
            phase("read state", 0, 264_100),
            phase("memory", 264_100, 1_500),
            phase("prepare", 265_600, 700_000),
            phase("commit", 965_600, 1_167_000),
            phase("run processors", 2_132_600, 80_000),
            phase("run devices", 2_212_600, 2_400_000),
        ],
        total_ns: 2_212_600,
        running: true,
        commit: serde_json::from_value(commit.clone()).unwrap(),
        totals: serde_json::from_value(commit).unwrap(),
    }
}

fn read() -> wire::RestoreReport {
    // Whatever a newer server may add.
    let mut value = serde_json::to_value(wire::RestoreReport::from(said())).unwrap();
    value["colour"] = json!("red");
    serde_json::from_value(value).unwrap()
}

#[test]
fn the_table_says_what_the_server_prints() {
    let table = table::of(&read());
    let printed = said().to_string();
    for line in [
        "restored /snapshots/<a> & \"b\", running in 2.212 ms\n",
        "  phase                        from, ms      for, ms\n",
        "  commit                          0.965        1.167\n",
        "  run devices                     2.212        2.400\n",
        "  slots added                         2        0.012\n",
        "  kernel calls                        2\n",
        "  commits                             1        1.138\n",
        "  doorbells for later                97\n",
        "  memory zone big: copy (it is backed by huge pages, and the snapshot's file is not)\n",
        "  memory read first: 262144 bytes; checked: state, and memory as it comes in\n",
        "  read ahead of memory zone mem0: 8192 bytes, 4096 in the background\n",
        "  filled in the background: 1048576 bytes a second at most\n",
        "  nothing is read ahead: it is of another snapshot\n",
        "  the working set is recorded for 250 ms\n",
        "  generation id: new\n",
        "  edited since the snapshot: disks.0.path\n",
        "  overridden: __serial.mode\n",
        "  _net1: tap tap7 was not there and was made\n",
    ] {
        assert!(table.contains(line), "{line:?} is not in\n{table}");
    }
    assert!(!table.contains("irqfds"), "what was not done is not listed\n{table}");
    // The demonstration reads what the server prints: the numbers are the same.
    for Phase { name, start_ns, ns } in said().phases {
        let (from, time) = (milliseconds(start_ns), milliseconds(ns));
        let line = format!("  {name:<24} {:>12} from {from} ms\n", format!("{time} ms"));
        assert!(printed.contains(&line), "{line:?} is not in\n{printed}");
        assert!(table.contains(&format!("  {name:<24} {from:>12} {time:>12}\n")), "{table}");
    }
    assert!(printed.starts_with(&title(&read())) && printed.contains("2 kernel calls"), "{printed}");
}

#[test]
fn the_picture_is_whole_and_nothing_in_it_is_markup_that_was_text() {
    let picture = svg::of(&read());
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert_eq!(picture.matches("class=\"bar\"").count(), 6, "{picture}");
    assert!(picture.contains("/snapshots/&lt;a&gt; &amp; &quot;b&quot;, running in 2.212 ms"), "{picture}");
    for text in ["run devices", "2.400", "wiring: 1 commit, 2 kernel calls, 1.138 ms", "slots added", ">97<"]
    {
        assert!(picture.contains(text), "{text} is not in\n{picture}");
    }
    // Every element is closed, and every place is a number.
    assert_eq!(picture.matches("<text ").count(), picture.matches("</text>").count());
    assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
    assert!(!picture.contains("http://www.w3.org/2000/svg/") && picture.matches("http").count() == 1);
}

#[test]
fn times_that_cannot_be_make_a_picture_too() {
    for (start_ns, ns, total_ns) in [(0, 0, 0), (u64::MAX, u64::MAX, u64::MAX), (5, 0, u64::MAX / 2)] {
        let mut report = read();
        report.total_ns = total_ns;
        report.phases = vec![ReportPhase { name: "a\u{0}]]>\u{ffff}".into(), start_ns, ns }];
        let picture = svg::of(&report);
        assert!(picture.ends_with("</svg>\n") && picture.len() < 20_000, "{picture}");
        assert!(picture.contains("a\u{fffd}]]&gt;\u{fffd}"), "{picture}");
        assert!(table::of(&report).contains("commits"));
    }
    let mut report = read();
    report.phases.clear();
    report.memory.clear();
    assert!(svg::of(&report).ends_with("</svg>\n"));
}

#[test]
fn shapes_are_read() {
    assert_eq!("table".parse(), Ok(Shape::Table));
    assert_eq!("json".parse(), Ok(Shape::Json));
    assert_eq!("svg:a:b.svg".parse(), Ok(Shape::Svg("a:b.svg".into())));
    for wrong in ["", "svg", "svg:", "png:a", "table:a"] {
        assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
    }
}
