//! Every option there is: the one list that the parser, the help, the completions and the test of docs/cli.md come from.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgGroup, Command, builder::ValueParser, value_parser};

use self::{
    Group::{Consoles, Devices, Machine, Output, Payload, Program},
    Takes::{Count, Flag, OptionalKeys, Several, Value},
};
use super::{
    console, cpus, device, disk, endpoint,
    grammar::{Keys, entries},
    memory, net, passthrough, platform, restore,
};

/// An option.
#[derive(Debug)]
pub struct Row {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// Its one-letter name.
    pub short: Option<char>,
    /// What it belongs to.
    pub group: Group,
    /// What it takes.
    pub takes: Takes,
    /// What it is, in a sentence.
    pub about: &'static str,
}

/// What options belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// What a VM boots: one of these is needed for those that describe a VM.
    Payload,
    /// Processors, memory and the like.
    Machine,
    /// Devices.
    Devices,
    /// Serial port and consoles.
    Consoles,
    /// Of the program, not of a VM.
    Program,
    /// What the program says.
    Output,
}

impl Group {
    /// The heading in the help.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Payload => "Payload (one is needed to boot)",
            Self::Machine => "Machine",
            Self::Devices => "Devices",
            Self::Consoles => "Consoles",
            Self::Program => "Program",
            Self::Output => "Output",
        }
    }

    /// Whether its options describe a VM.
    fn is_of_vm(self) -> bool {
        matches!(self, Self::Machine | Self::Devices | Self::Consoles)
    }
}

/// What an option takes.
#[derive(Debug)]
pub enum Takes {
    /// Nothing.
    Flag,
    /// Nothing; how often it is there counts.
    Count,
    /// One value, shown as this and read so.
    Value(&'static str, fn() -> ValueParser),
    /// One text of keys and values.
    Keys(Keys),
    /// The same, but it may stand alone.
    OptionalKeys(Keys),
    /// Several such texts.
    Several(Keys),
}

impl Takes {
    /// The keys, if it has any.
    pub fn keys(&self) -> Option<Keys> {
        match self {
            Self::Keys(keys) | Self::OptionalKeys(keys) | Self::Several(keys) => Some(keys),
            Self::Flag | Self::Count | Self::Value(..) => None,
        }
    }
}

const fn row(name: &'static str, group: Group, takes: Takes, about: &'static str) -> Row {
    Row { name, short: None, group, takes, about }
}

const fn short(short: char, row: Row) -> Row {
    Row { short: Some(short), ..row }
}

/// All of them, in the order of the help.
pub const ROWS: &[Row] = &[
    row("kernel", Payload, Value("PATH", path), "Kernel to boot: an ELF file with a PVH entry, or a bzImage"),
    row("firmware", Payload, Value("PATH", path), "Firmware to boot, instead of a kernel"),
    row(
        "config",
        Payload,
        Value("FILE", path),
        "The whole VM as JSON, as the API's vm.create takes it; - reads standard input. Excludes all other options of a VM",
    ),
    row("initramfs", Machine, Value("PATH", path), "Initial file system for the kernel"),
    row("cmdline", Machine, Value("TEXT", text), "Command line for the kernel"),
    row("cpus", Machine, Takes::Keys(cpus::KEYS), "Processors"),
    row("memory", Machine, Takes::Keys(memory::KEYS), "Memory"),
    row("memory-zone", Machine, Several(memory::ZONE_KEYS), "Zones of memory, with --memory size=0"),
    row("numa", Machine, Several(platform::NUMA_KEYS), "NUMA nodes"),
    row("platform", Machine, Takes::Keys(platform::KEYS), "What firmware tables say, PCI segments, IOMMU"),
    row(
        "pci-segment",
        Machine,
        Several(platform::SEGMENT_KEYS),
        "Shares of PCI segments in the device windows",
    ),
    row("tpm", Machine, Takes::Keys(device::TPM_KEYS), "TPM, served by another process"),
    row("pvpanic", Machine, Flag, "Let the guest report that it panicked"),
    row("watchdog", Machine, Flag, "Reset a guest that stops feeding the watchdog"),
    row(
        "debug-exit",
        Machine,
        Value("0xPORT", text),
        "Port at which the guest ends the VM: what it writes becomes the exit code",
    ),
    row("disk", Devices, Several(disk::KEYS), "Disks"),
    row("rate-limit-group", Devices, Several(disk::GROUP_KEYS), "Limits of throughput that disks share"),
    row("net", Devices, Several(net::KEYS), "Network devices"),
    row("rng", Devices, Takes::Keys(device::RNG_KEYS), "Entropy source"),
    row("balloon", Devices, Takes::Keys(device::BALLOON_KEYS), "Memory balloon"),
    row("fs", Devices, Several(device::FS_KEYS), "Shared file systems, by virtio-fs"),
    row("pmem", Devices, Several(device::PMEM_KEYS), "Persistent memory"),
    row("vsock", Devices, Takes::Keys(device::VSOCK_KEYS), "Virtio socket device"),
    row("rtc", Devices, OptionalKeys(device::RTC_KEYS), "Virtio clock"),
    row("device", Devices, Several(passthrough::DEVICE_KEYS), "Devices of the host, by VFIO"),
    row(
        "user-device",
        Devices,
        Several(passthrough::USER_DEVICE_KEYS),
        "Devices in other processes, by vfio-user",
    ),
    row("vdpa", Devices, Several(device::VDPA_KEYS), "vDPA devices"),
    row(
        "generic-vhost-user",
        Devices,
        Several(passthrough::GENERIC_KEYS),
        "Devices of any type, by vhost-user",
    ),
    row("serial", Consoles, Takes::Keys(console::SERIAL_KEYS), "Serial port; null if not given"),
    row("console", Consoles, Takes::Keys(console::CONSOLE_KEYS), "Virtio console; tty if not given"),
    row(
        "debug-console",
        Consoles,
        Takes::Keys(console::DEBUG_KEYS),
        "Port that prints what is written to it; off if not given",
    ),
    row("landlock", Machine, Flag, "Confine the process to the files that it needs"),
    row(
        "landlock-rules",
        Machine,
        Several(platform::LANDLOCK_KEYS),
        "Further paths for the confined process",
    ),
    row("restore", Program, Takes::Keys(restore::KEYS), "Bring a saved VM back"),
    row(
        "restore-commit",
        Program,
        Value("WHEN", restore_commit),
        "With --restore: reconfigure the guest's wiring once, or after each change, to see what that costs",
    ),
    row("api-socket", Program, Takes::Keys(endpoint::KEYS), "Serve the API there; a bare path will do"),
    row("strict-api", Program, Flag, "Refuse requests over the API that say something unknown"),
    row("event-monitor", Program, Takes::Keys(endpoint::KEYS), "Tell events there, as JSON"),
    row("no-shutdown", Program, Flag, "Keep the program when the guest powers off"),
    row(
        "seccomp",
        Program,
        Value("MODE", seccomp),
        "What happens at system calls that no thread should make",
    ),
    row(
        "hypervisor",
        Program,
        Value("NAME", hypervisor_kind),
        "Hypervisor, kvm or mshv; the first that is there if not given",
    ),
    row("log-file", Output, Value("PATH", path), "Where the log goes; standard error if not given"),
    row(
        "log-format",
        Output,
        Value("TEMPLATE", text),
        "What a line of the log looks like, with tokens in braces",
    ),
    short(
        'v',
        row("verbose", Output, Count, "More of the log: once info, twice debug, three times everything"),
    ),
    row("report", Output, Flag, "Print how the machine was wired, for each machine that is built"),
    row("completions", Output, Value("SHELL", shell), "Print the completions for a shell"),
    short('V', row("version", Output, Flag, "Print the version; with -v the features too")),
];

/// The name of the group of which one is needed for a VM.
const PAYLOAD: &str = "vm-payload";

const AFTER: &str = "Keys are given as key=value,key=value; those not given have the value shown. Sizes take K, M or \
G. A list is [a,b-c]; quotes protect commas and brackets. Options that take several values take them after one flag \
or after several.";

/// The command line of a program of this name.
pub fn command(name: &'static str) -> Command {
    let command = Command::new(name)
        .about("A virtual machine monitor that brings saved and migrating VMs back to life")
        .after_help(AFTER)
        .disable_version_flag(true)
        .arg_required_else_help(true)
        .args(ROWS.iter().map(arg));
    let payloads = ROWS.iter().filter(|row| row.group == Payload).map(|row| row.name);
    command.group(ArgGroup::new(PAYLOAD).args(payloads).multiple(true))
}

fn arg(row: &'static Row) -> Arg {
    let mut arg = Arg::new(row.name).help(row.about).help_heading(row.group.heading());
    // The reference knows no long form of -v.
    arg = match row.short {
        Some('v') => arg.short('v'),
        Some(short) => arg.short(short).long(row.name),
        None => arg.long(row.name),
    };
    // A means of comparison, and nothing that anybody needs.
    arg = arg.hide_short_help(row.name == "restore-commit");
    if let Some(keys) = row.takes.keys() {
        arg = arg.long_help(format!("{}:\n{}", row.about, listed(keys)));
    }
    if row.group.is_of_vm() {
        arg = arg.requires(PAYLOAD);
    }
    if row.name != "config" && (row.group.is_of_vm() || row.group == Payload) {
        arg = arg.conflicts_with("config");
    }
    match &row.takes {
        Flag => arg.action(ArgAction::SetTrue),
        Count => arg.action(ArgAction::Count),
        Value(shown, parser) => {
            arg.value_name(*shown).value_parser(parser()).allow_hyphen_values(row.name == "cmdline")
        }
        Takes::Keys(_) => arg.value_name("KEYS").value_parser(text()),
        OptionalKeys(_) => {
            arg.value_name("KEYS").value_parser(text()).num_args(0..=1).default_missing_value("")
        }
        Several(_) => arg.value_name("KEYS").value_parser(text()).num_args(1..).action(ArgAction::Append),
    }
}

fn listed(keys: Keys) -> String {
    let listed: Vec<String> = entries(keys)
        // What only tests use is for those who look it up.
        .filter(|(key, _)| !key.starts_with('_'))
        .map(|(key, value)| value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}")))
        .collect();
    listed.join(", ")
}

fn text() -> ValueParser {
    ValueParser::string()
}

fn path() -> ValueParser {
    value_parser!(PathBuf)
}

fn seccomp() -> ValueParser {
    ["true", "false", "log", "errno"].into()
}

fn restore_commit() -> ValueParser {
    ["once", "each"].into()
}

fn shell() -> ValueParser {
    ["bash", "zsh", "fish", "elvish"].into()
}

fn hypervisor_kind() -> ValueParser {
    value_parser!(hypervisor::HypervisorKind).into()
}
