//! Sections of every kind and version that was ever written, kept in tests/golden/sections: each is read for ever, and
//! what is written today looks like those of today's versions. Whoever adds a kind, or changes one, has to keep one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use devices::{
    Stateful,
    pci::ConfigPorts,
    platform::{Events, IoApic, PmTimer, Rtc, Serial},
};
use serde_json::{Value, json};
use virtio_devices::{
    block::Block, console::Console, net::Net, pmem::Pmem, transport::pci::VirtioPciState, vsock::Vsock,
};
use vm_migration::{LoadError, NoState, Section, State};

use super::{
    super::{
        flash::SavedFlash,
        state::{SavedClock, SavedIrqchip, SavedVcpu},
    },
    Bench, image, text,
};

/// What can be read and written of a kind.
struct Kind {
    name: &'static str,
    version: u32,
    /// Reads a section and writes it again.
    again: fn(&Section) -> Result<Section, LoadError>,
}

fn of<S: State>() -> Kind {
    let again = |section: &Section| {
        let state: S = section.load()?;
        Ok(Section::save(&section.id, &state).expect("what was read can be written"))
    };
    Kind { name: S::KIND, version: S::VERSION, again }
}

fn of_device<D: Stateful>() -> Kind {
    of::<D::State>()
}

fn kinds() -> Vec<Kind> {
    vec![
        of::<NoState>(),
        of::<SavedClock>(),
        of::<SavedFlash>(),
        of::<SavedIrqchip>(),
        of::<SavedVcpu>(),
        of::<VirtioPciState>(),
        of_device::<Block>(),
        of_device::<ConfigPorts>(),
        of_device::<Console>(),
        of_device::<Events>(),
        of_device::<IoApic>(),
        of_device::<Net>(),
        of_device::<Pmem>(),
        of_device::<PmTimer>(),
        of_device::<Rtc>(),
        of_device::<Serial>(),
        of_device::<Vsock>(),
    ]
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = read.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A section that is kept.
struct Kept {
    path: PathBuf,
    section: Section,
}

/// The sections that are kept, by kind and version. A file is called by its version, and by what is special about it.
fn kept() -> BTreeMap<(String, u32), Vec<Kept>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let kinds = entries(&repository().join("tests/golden/sections")).into_iter().filter(|path| path.is_dir());
    for path in kinds.flat_map(|kind| entries(&kind)) {
        let section: Section = serde_json::from_slice(&fs::read(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap().to_str().unwrap().to_owned();
        assert_eq!(part(path.parent().unwrap().file_name()), section.kind, "{}", path.display());
        let (name, version) = (part(path.file_stem()), section.version.to_string());
        assert_eq!(name.split('-').next(), Some(&*version), "{}", path.display());
        all.entry((section.kind.clone(), section.version)).or_default().push(Kept { path, section });
    }
    all
}

/// The kinds that a file of the program names.
fn named(file: &Path, names: &mut BTreeSet<String>) {
    const CONSTANT: &str = "const KIND: &'static str";
    let text = fs::read_to_string(file).unwrap();
    // Tests have kinds of their own.
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    for rest in text.split(CONSTANT).skip(1) {
        match rest.strip_prefix(" = \"").and_then(|rest| rest.split_once("\";")) {
            Some((name, _)) => {
                assert!(names.insert(name.to_owned()), "{}: {name} is there twice", file.display())
            }
            // The trait's own.
            None => assert!(rest.starts_with(";\n"), "{}: a kind that is no literal", file.display()),
        }
    }
    assert_eq!(text.matches("const KIND").count(), text.matches(CONSTANT).count(), "{}", file.display());
}

fn all_named(directory: &Path, names: &mut BTreeSet<String>) {
    for path in entries(directory) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            all_named(&path, names);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            named(&path, names);
        }
    }
}

#[test]
fn every_kind_of_the_program_is_known_here() {
    let mut names = BTreeSet::new();
    for path in entries(&repository()) {
        // Those of the workspace.
        if path.join("Cargo.toml").is_file() && path.join("src").is_dir() {
            all_named(&path.join("src"), &mut names);
        }
    }
    let known: BTreeSet<String> = kinds().iter().map(|kind| kind.name.to_owned()).collect();
    assert_eq!(names, known, "kinds() of this file lists what the program has");
}

#[test]
fn a_section_of_every_version_of_every_kind_is_kept() {
    let mut kept = kept();
    for Kind { name, version, .. } in kinds() {
        for version in 1..=version {
            assert!(
                kept.remove(&(name.to_owned(), version)).is_some(),
                "no section of kind {name} and version {version} is kept: put one into \
                 tests/golden/sections/{name}/{version}.json, as its README says"
            );
        }
    }
    assert!(kept.is_empty(), "of no kind or version that is known: {:?}", kept.keys());
}

#[test]
fn each_is_read_and_what_is_written_today_looks_the_same() {
    let kept = kept();
    for Kind { name, version: newest, again } in kinds() {
        for version in 1..=newest {
            for Kept { path, section } in kept.get(&(name.to_owned(), version)).into_iter().flatten() {
                let written = again(section).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
                assert_eq!((&*written.kind, written.version), (name, newest));
                let content = |section: &Section| section.content::<Value>().unwrap();
                let (now, then) = (content(&written), content(section));
                assert!(
                    version < newest || now == then,
                    "{}: the form of {name} has changed, and its version has not: {now}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn devices_take_them_and_give_them_back() {
    let disk = image(1 << 20);
    // Its IOAPIC is ours, as its processors have APIC ids that the kernel's cannot name.
    let topology = json!({ "threads_per_core": 1, "cores_per_die": 9, "dies_per_package": 9, "packages": 2 });
    let machine = Bench::new()
        .boot(json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 162, "topology": topology },
            "disks": [{ "path": text(disk.path()), "image_type": "Raw", "num_queues": 2 }],
            "console": { "mode": "Null" },
            "pvpanic": true,
            "debug_exit": 0x501,
        }))
        .unwrap();
    let mut taken = BTreeSet::new();
    for Kept { path, section } in kept().into_values().flatten() {
        let devices = machine.all_devices().filter(|named| {
            let (kind, _) = named.device.lock().state_kind();
            kind == section.kind && (kind != VirtioPciState::KIND || named.id == section.id)
        });
        for named in devices {
            let mut device = named.device.lock();
            let (kind, newest) = device.state_kind();
            let transaction = machine.manager().begin();
            device
                .load_section(&section, &transaction)
                .unwrap_or_else(|error| panic!("{} into {}: {error:?}", path.display(), named.id));
            drop(transaction);
            let content = |section: &Section| section.content::<Value>().unwrap();
            let now = device.save_section(&section.id).unwrap();
            if section.version == newest {
                assert_eq!(content(&now), content(&section), "{} in {}", path.display(), named.id);
            }
            taken.insert(kind);
        }
    }
    let expected = [
        "acpi-events",
        "acpi-pm-timer",
        "io-apic",
        "none",
        "pci-config-ports",
        "rtc-cmos",
        "serial-16550",
        "virtio-pci",
    ];
    assert_eq!(taken.into_iter().collect::<Vec<_>>(), expected);
}
