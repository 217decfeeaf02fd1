//! The command line: what can be said, and what it comes to.
//!
//! clap reads the flags; each option's `key=value` text is read by [`grammar`]; the result is a
//! `VmConfig` of `vmm`. Names, defaults and the grammar are an interface that clients depend on.

#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "the comments of options are help texts: brackets are lists"
)]

mod grammar;

use std::{collections::BTreeMap, path::PathBuf};

use arch::x86_64::{
    feature::{FeatureSet, UnknownFeature},
    topology::{Topology, TopologyError},
};
use clap::Parser;
use thiserror::Error;
use vmm::config::{
    ConsoleConfig, ConsoleTarget, CpusConfig, DeviceConfig, MemoryZoneConfig, Payload, PciPlace,
    PlatformConfig, VmConfig,
};

use self::grammar::{GrammarError, Pairs};

/// Cumulet: a virtual machine monitor that brings saved and migrating VMs back to life.
#[derive(Debug, Parser)]
#[command(name = "cumulet", disable_version_flag = true, arg_required_else_help = true)]
pub struct Options {
    /// Kernel to boot: an ELF file with a PVH entry, or a bzImage.
    #[arg(long, value_name = "PATH", help_heading = "Payload")]
    kernel: Option<PathBuf>,

    /// Firmware to boot.
    #[arg(long, value_name = "PATH", help_heading = "Payload", conflicts_with = "kernel")]
    firmware: Option<PathBuf>,

    /// Initial file system for the kernel.
    #[arg(long, value_name = "PATH", help_heading = "Payload")]
    initramfs: Option<PathBuf>,

    /// Command line for the kernel.
    #[arg(long, value_name = "TEXT", help_heading = "Payload")]
    cmdline: Option<String>,

    /// Processors: boot=1,max=BOOT,topology=THREADS:CORES:DIES:PACKAGES,affinity=[VCPU@[CPUS]],
    /// nested=on,max_phys_bits=46,features=[amx],hide=[FEATURE,...]
    #[arg(long, value_name = "KEYS", help_heading = "Machine")]
    cpus: Option<String>,

    /// Memory: size=512M,shared=off,hugepages=off,hugepage_size=SIZE,mergeable=off,prefault=off,
    /// reserve=off,thp=on
    #[arg(long, value_name = "KEYS", help_heading = "Machine")]
    memory: Option<String>,

    /// Serial port: off, null, tty, pty, file=PATH or socket=PATH
    #[arg(long, value_name = "TARGET", help_heading = "Machine", default_value = "null")]
    serial: String,

    /// Virtio console: off, null, tty, pty, file=PATH or socket=PATH
    #[arg(long, value_name = "TARGET", help_heading = "Machine", default_value = "off")]
    console: String,

    /// A port at which the guest ends the VM: what it writes becomes the exit code.
    #[arg(long, value_name = "0xPORT", help_heading = "Machine")]
    debug_exit: Option<String>,

    /// Hypervisor to use, kvm or mshv; the first that is there if not given.
    #[arg(long, value_name = "NAME", help_heading = "Program")]
    hypervisor: Option<hypervisor::HypervisorKind>,

    /// Print how the machine was wired, for each machine that is built.
    #[arg(long, help_heading = "Program")]
    report: bool,

    /// More of the log: once info, twice debug, three times everything.
    #[arg(short, action = clap::ArgAction::Count, help_heading = "Program")]
    verbose: u8,

    /// Print the version.
    #[arg(short = 'V', long, help_heading = "Program")]
    version: bool,
}

/// An option that says something that cannot be.
#[derive(Debug, Error)]
pub enum OptionError {
    /// It does not parse.
    #[error("--{option}")]
    Grammar {
        /// Which option.
        option: &'static str,
        /// What is wrong.
        #[source]
        source: GrammarError,
    },
    /// An unknown feature is to be hidden.
    #[error("--cpus hide")]
    Feature(#[from] UnknownFeature),
    /// A topology that cannot be.
    #[error("--cpus topology")]
    Topology(#[from] TopologyError),
    /// A value that is none of those there are.
    #[error("--{option} {value}: {expected} is expected")]
    Value {
        /// Which option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// Neither kernel nor firmware.
    #[error("nothing to boot: --kernel or --firmware is needed")]
    NoPayload,
}

impl Options {
    /// Whether only the version is asked for.
    pub fn version(&self) -> bool {
        self.version
    }

    /// How much is logged.
    pub fn log_level(&self) -> log::LevelFilter {
        match self.verbose {
            0 => log::LevelFilter::Warn,
            1 => log::LevelFilter::Info,
            2 => log::LevelFilter::Debug,
            _ => log::LevelFilter::Trace,
        }
    }

    /// Which hypervisor to use.
    pub fn hypervisor(&self) -> Option<hypervisor::HypervisorKind> {
        self.hypervisor
    }

    /// Whether the wiring of each machine is printed.
    pub fn report(&self) -> bool {
        self.report
    }

    /// The machine that is asked for.
    ///
    /// # Errors
    /// An option cannot be; the error names it and the key.
    pub fn config(&self) -> Result<VmConfig, OptionError> {
        Ok(VmConfig {
            cpus: cpus(self.cpus.as_deref().unwrap_or(""))?,
            memory: vec![memory(self.memory.as_deref().unwrap_or(""))?],
            payload: Some(self.payload()?),
            devices: self.devices()?,
            rate_limit_groups: Vec::new(),
            hotplug_method: vmm::config::HotplugMethod::default(),
            segment_weights: vec![vmm::config::SegmentWeights::default()],
            numa: Vec::new(),
            serial: console("serial", &self.serial)?,
            debug_exit: self.debug_exit.as_deref().map(port).transpose()?,
            pci_segments: 1,
            pvpanic: false,
            platform: PlatformConfig::default(),
        })
    }

    fn devices(&self) -> Result<Vec<DeviceConfig>, OptionError> {
        let mut devices = Vec::new();
        match console("console", &self.console)? {
            ConsoleTarget::Off => {}
            target => {
                let (id, place) = ("__console".into(), PciPlace::default());
                devices.push(DeviceConfig::Console(ConsoleConfig { id, place, target }));
            }
        }
        Ok(devices)
    }

    fn payload(&self) -> Result<Payload, OptionError> {
        match (&self.kernel, &self.firmware) {
            (Some(kernel), _) => Ok(Payload::Kernel {
                kernel: kernel.clone(),
                initramfs: self.initramfs.clone(),
                cmdline: self.cmdline.clone().unwrap_or_default(),
            }),
            (None, Some(firmware)) => Ok(Payload::Firmware { firmware: firmware.clone() }),
            (None, None) => Err(OptionError::NoPayload),
        }
    }
}

fn within(option: &'static str) -> impl Fn(GrammarError) -> OptionError {
    move |source| OptionError::Grammar { option, source }
}

fn cpus(text: &str) -> Result<CpusConfig, OptionError> {
    const KEYS: [&str; 8] =
        ["boot", "max", "topology", "affinity", "nested", "max_phys_bits", "features", "hide"];
    let wrong = within("cpus");
    let pairs = Pairs::parse(text, &KEYS).map_err(&wrong)?;
    let boot: u32 = pairs.value("boot").map_err(&wrong)?.unwrap_or(1);
    let max: u32 = pairs.value("max").map_err(&wrong)?.unwrap_or(boot);
    let topology = match pairs.get("topology") {
        None => Topology::flat(max.max(1))?,
        Some(text) => topology(text)?,
    };
    let features = pairs.words("features");
    if let Some(other) = features.iter().find(|feature| **feature != "amx") {
        let (value, expected) = ((*other).to_owned(), "amx");
        return Err(OptionError::Value { option: "cpus features", value, expected });
    }
    Ok(CpusConfig {
        boot,
        max,
        topology,
        hide: FeatureSet::parse(pairs.words("hide"))?,
        nested: pairs.toggle("nested", true).map_err(&wrong)?,
        amx: features.contains(&"amx"),
        max_phys_bits: pairs.value("max_phys_bits").map_err(&wrong)?.unwrap_or(46),
        affinity: affinity(pairs.get("affinity").unwrap_or(""))?.into_iter().collect(),
        core_scheduling: vmm::config::CoreScheduling::default(),
    })
}

fn topology(text: &str) -> Result<Topology, OptionError> {
    let bad = || OptionError::Value {
        option: "cpus topology",
        value: text.to_owned(),
        expected: "THREADS:CORES:DIES:PACKAGES",
    };
    let parts: Vec<u16> = text.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
    let [threads, cores, dies, packages] = parts[..] else { return Err(bad()) };
    Ok(Topology::new(threads, cores, dies, packages)?)
}

/// `[0@[1,2],1@[3-5]]`: host CPUs of each vCPU.
fn affinity(text: &str) -> Result<BTreeMap<u32, Vec<usize>>, OptionError> {
    let bad = || OptionError::Value {
        option: "cpus affinity",
        value: text.to_owned(),
        expected: "[VCPU@[CPU,FIRST-LAST,...],...]",
    };
    let mut map = BTreeMap::new();
    if text.is_empty() {
        return Ok(map);
    }
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or_else(bad)?;
    for entry in grammar::split_list(inner) {
        let (vcpu, cpus) = entry.split_once('@').ok_or_else(bad)?;
        let cpus = grammar::integers(cpus).map_err(|_| bad())?;
        map.insert(vcpu.trim().parse().map_err(|_| bad())?, cpus);
    }
    Ok(map)
}

fn memory(text: &str) -> Result<MemoryZoneConfig, OptionError> {
    const KEYS: [&str; 8] =
        ["size", "shared", "hugepages", "hugepage_size", "mergeable", "prefault", "reserve", "thp"];
    const DEFAULT_HUGE_PAGE: u64 = 2 << 20;
    let wrong = within("memory");
    let pairs = Pairs::parse(text, &KEYS).map_err(&wrong)?;
    let hugepages = pairs.toggle("hugepages", false).map_err(&wrong)?;
    let page = pairs.size("hugepage_size").map_err(&wrong)?;
    if page.is_some() && !hugepages {
        return Err(OptionError::Value {
            option: "memory",
            value: text.to_owned(),
            expected: "hugepages=on with hugepage_size",
        });
    }
    Ok(MemoryZoneConfig {
        id: "mem0".into(),
        size: pairs.size("size").map_err(&wrong)?.unwrap_or(512 << 20),
        file: None,
        shared: pairs.toggle("shared", false).map_err(&wrong)?,
        hugepage_size: hugepages.then(|| page.unwrap_or(DEFAULT_HUGE_PAGE)),
        host_numa_node: None,
        prefault: pairs.toggle("prefault", false).map_err(&wrong)?,
        reserve: pairs.toggle("reserve", false).map_err(&wrong)?,
        mergeable: pairs.toggle("mergeable", false).map_err(&wrong)?,
        thp: pairs.toggle("thp", true).map_err(&wrong)?,
        hotplug_size: 0,
    })
}

fn console(option: &'static str, text: &str) -> Result<ConsoleTarget, OptionError> {
    match text.split_once('=') {
        None => match text {
            "off" => Ok(ConsoleTarget::Off),
            "null" => Ok(ConsoleTarget::Null),
            "tty" => Ok(ConsoleTarget::Tty),
            "pty" => Ok(ConsoleTarget::Pty),
            _ => Err(text),
        },
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleTarget::File(path.into())),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleTarget::Socket(path.into())),
        Some(_) => Err(text),
    }
    .map_err(|text| OptionError::Value {
        option,
        value: text.to_owned(),
        expected: "off, null, tty, pty, file=PATH or socket=PATH",
    })
}

fn port(text: &str) -> Result<u16, OptionError> {
    let digits = text.strip_prefix("0x");
    let port = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    port.ok_or_else(|| OptionError::Value {
        option: "debug-exit",
        value: text.to_owned(),
        expected: "a port number like 0x501",
    })
}
