//! Every command there is: the one list that the parser, the help and the completions come from.

use std::path::PathBuf;

use clap::{Arg, ArgAction, Command, builder::PossibleValuesParser, value_parser};

use crate::options::{
    device, disk,
    grammar::{Keys, entries},
    net, passthrough, restore,
};

use super::{local::merge, migration, report};

/// A command.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) takes: Takes,
    pub(super) about: &'static str,
    /// Its arguments in an example.
    pub(super) example: &'static str,
    /// What else can be said.
    pub(super) options: &'static [Extra],
    /// Commands beneath it, which take its place.
    pub(super) commands: &'static [Row],
}

/// An option that a command need not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extra {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) takes: Value,
}

/// What an option takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Nothing,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A text, shown as this.
    Text(&'static str),
    /// The name of a hypervisor.
    Hypervisor,
    /// The shape of a report, behind an equals sign, or none.
    Report,
}

/// What a command takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    Nothing,
    /// One text of keys and values.
    Keys(Keys),
    /// One word, shown as this.
    Word(&'static str),
    /// A file, `-` if not given.
    File,
    /// Options, each a value: its name, what it is, and whether it is needed.
    Options(&'static [(&'static str, &'static str, bool)]),
}

const fn row(name: &'static str, takes: Takes, about: &'static str, example: &'static str) -> Row {
    Row { name, takes, about, example, options: &[], commands: &[] }
}

const fn with(row: Row, options: &'static [Extra], commands: &'static [Row]) -> Row {
    Row { options, commands, ..row }
}

const fn extra(name: &'static str, takes: Value, about: &'static str) -> Extra {
    Extra { name, about, takes }
}

/// All of them, by name.
pub(super) const ROWS: &[Row] = &[
    row(
        "add-device",
        Takes::Keys(passthrough::DEVICE_KEYS),
        "Add a device of the host, by VFIO",
        "path=/sys/bus/pci/devices/0000:01:00.0",
    ),
    row("add-disk", Takes::Keys(disk::KEYS), "Add a disk", "path=/images/data.raw,id=data"),
    row(
        "add-fs",
        Takes::Keys(device::FS_KEYS),
        "Add a shared file system",
        "tag=home,socket=/run/virtiofsd.sock",
    ),
    row(
        "add-generic-vhost-user",
        Takes::Keys(passthrough::GENERIC_KEYS),
        "Add a device of any type on a vhost-user back end",
        "device_type=26,socket=/run/backend.sock,queue_sizes=[128]",
    ),
    row("add-net", Takes::Keys(net::KEYS), "Add a network device", "tap=tap0,mac=2e:00:00:00:00:01"),
    row("add-pmem", Takes::Keys(device::PMEM_KEYS), "Add persistent memory", "file=/images/pmem"),
    row(
        "add-user-device",
        Takes::Keys(passthrough::USER_DEVICE_KEYS),
        "Add a device in another process, by vfio-user",
        "socket=/run/device.sock",
    ),
    row("add-vdpa", Takes::Keys(device::VDPA_KEYS), "Add a vDPA device", "path=/dev/vhost-vdpa-0"),
    row("add-vsock", Takes::Keys(device::VSOCK_KEYS), "Add the socket device", "cid=3,socket=/run/vsock"),
    row("boot", Takes::Nothing, "Boot the VM that was created", ""),
    row("cancel-job", Takes::Word("JOB"), "Ask for a job to be given up, by its number", "3"),
    row("coredump", Takes::Word("URL"), "Dump the guest's memory", "file:///var/crash/vm.core"),
    row("counters", Takes::Nothing, "Tell what the devices have counted", ""),
    row("create", Takes::File, "Create a VM from a configuration, of a file or of standard input", "vm.json"),
    row("delete", Takes::Nothing, "Delete the VM", ""),
    row("info", Takes::Nothing, "Tell what is known of the VM", ""),
    row("jobs", Takes::Nothing, "List long work and how far it is", ""),
    row("metrics", Takes::Nothing, "Tell the metrics, as Prometheus reads them", ""),
    row("nmi", Takes::Nothing, "Deliver a non-maskable interrupt", ""),
    row("pause", Takes::Nothing, "Bring the VM to a standstill", ""),
    row("ping", Takes::Nothing, "Ask whether the VMM is there", ""),
    row("power-button", Takes::Nothing, "Press the power button", ""),
    row("reboot", Takes::Nothing, "Reboot the VM", ""),
    row(
        "receive-migration",
        Takes::Keys(migration::RECEIVE_KEYS),
        "Wait for a VM that moves here",
        "receiver_url=tcp:0.0.0.0:4444",
    ),
    row("remove-device", Takes::Word("ID"), "Remove a device", "data"),
    row(
        "resize",
        Takes::Options(&[
            ("cpus", "Number of vCPUs", false),
            ("memory", "Size of memory; K, M or G", false),
            ("balloon", "Size of the balloon; K, M or G", false),
        ]),
        "Change processors, memory or balloon",
        "--cpus 4 --memory 8G",
    ),
    row(
        "resize-disk",
        Takes::Options(&[("disk", "The disk's id", true), ("size", "Its size; K, M or G", true)]),
        "Change the size of a disk",
        "--disk data --size 20G",
    ),
    row(
        "resize-zone",
        Takes::Options(&[("id", "The zone's id", true), ("size", "Its size; K, M or G", true)]),
        "Change the size of a memory zone",
        "--id mem0 --size 8G",
    ),
    with(
        row(
            "restore",
            Takes::Keys(restore::KEYS),
            "Restore a VM from a snapshot",
            "source_url=file:///var/snapshots/a,resume=on --report",
        ),
        &[extra(REPORT, Value::Report, "Tell how it went: table (if no form is given), json, or svg:FILE")],
        &[],
    ),
    row("resume", Takes::Nothing, "Let the paused VM run", ""),
    row(
        "send-migration",
        Takes::Keys(migration::SEND_KEYS),
        "Begin to move the VM to another host",
        "destination_url=tcp:other:4444",
    ),
    row("shutdown", Takes::Nothing, "Take the VM down; its configuration stays", ""),
    row("shutdown-vmm", Takes::Nothing, "End the VMM", ""),
    with(
        row(
            "snapshot",
            Takes::Word("URL"),
            "Take a snapshot of the paused VM, or work on directories of snapshots",
            "file:///var/snapshots/b --parent file:///var/snapshots/a",
        ),
        &[
            extra(
                "parent",
                Value::Text("URL"),
                "An earlier snapshot of the VM: what differs from it is saved",
            ),
            extra(
                "track-changes",
                Value::Text("on|off"),
                "Whether writes to memory are tracked from then on: on or off",
            ),
        ],
        ON_SNAPSHOTS,
    ),
];

/// Says that JSON is told, where it can be said behind the command too.
pub(super) const JSON: &str = "json";

const AS_JSON: Extra = extra(JSON, Value::Nothing, "Tell it as one line of JSON");

/// Asks for the report of a restore.
pub(super) const REPORT: &str = "report";

/// What can be done with the directory of a snapshot, without a server.
const ON_SNAPSHOTS: &[Row] = &[
    with(
        row("inspect", Takes::Word("DIRECTORY"), "Tell what a snapshot is", "/var/snapshots/a"),
        &[AS_JSON],
        &[],
    ),
    with(
        row(
            "verify",
            Takes::Word("DIRECTORY"),
            "Check all of a snapshot against its checksums",
            "/var/snapshots/a",
        ),
        &[AS_JSON],
        &[],
    ),
    with(
        row(
            "can-restore",
            Takes::Word("DIRECTORY"),
            "Tell whether this host can restore a snapshot, and if not, why",
            "/var/snapshots/a --verify full",
        ),
        &[
            extra(
                "memory-restore-mode",
                Value::OneOf(&["copy", "cow", "ondemand"]),
                "How memory shall come back",
            ),
            extra("verify", Value::OneOf(&["off", "state", "full"]), "What is checked; state if not given"),
            extra(
                "overrides",
                Value::Text("FILE"),
                "Resources of this host by device id, as in the REST API, in a file; - is standard input",
            ),
            extra("hypervisor", Value::Hypervisor, "Hypervisor; the first that is there if not given"),
            AS_JSON,
        ],
        &[],
    ),
];

/// The argument of a command that takes one.
pub(super) const ARGUMENT: &str = "argument";

/// The command line of a program of this name.
pub(super) fn command(name: &'static str) -> Command {
    Command::new(name)
        .about("Sends one request to a VMM")
        .after_help(format!("Example: {name} --api-socket /run/vm.sock info"))
        .disable_version_flag(true)
        .arg_required_else_help(true)
        .subcommand_required(false)
        .arg(
            Arg::new("api-socket")
                .long("api-socket")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Socket at which the VMM serves its API"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Tell everything as one line of JSON on standard output, errors too"),
        )
        .arg(
            Arg::new("completions")
                .long("completions")
                .value_name("SHELL")
                .value_parser(value_parser!(clap_complete::Shell))
                .help("Print the completions for a shell"),
        )
        .arg(
            Arg::new("version")
                .short('V')
                .long("version")
                .action(ArgAction::SetTrue)
                .help("Print the version"),
        )
        .subcommands(ROWS.iter().map(|row| subcommand(&format!("{name} --api-socket /run/vm.sock"), row)))
}

/// The command of a row; `before` is what stands before its name in an example.
fn subcommand(before: &str, row: &'static Row) -> Command {
    let example = format!("Example: {before} {} {}", row.name, row.example);
    let mut command = Command::new(row.name).about(row.about).after_help(example.trim_end().to_owned());
    if !row.commands.is_empty() {
        // They are no requests: no server is asked.
        let program = before.split(' ').next().unwrap_or_default();
        let beneath = format!("{program} {}", row.name);
        command = command
            .subcommands(row.commands.iter().map(|row| subcommand(&beneath, row)))
            .subcommand(merge::command(&beneath))
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true);
    }
    command = command.args(row.options.iter().map(option));
    match row.takes {
        Takes::Nothing => command,
        Takes::Keys(keys) => command.arg(
            Arg::new(ARGUMENT)
                .value_name("KEYS")
                .required(true)
                .help(format!("key=value,key=value: {}", listed(keys))),
        ),
        Takes::Word(shown) => command.arg(Arg::new(ARGUMENT).value_name(shown).required(true)),
        Takes::File => command.arg(
            Arg::new(ARGUMENT)
                .value_name("FILE")
                .default_value("-")
                .help("A file of JSON; - is standard input"),
        ),
        Takes::Options(options) => command.args(options.iter().map(|(name, about, needed)| {
            Arg::new(*name).long(*name).value_name("VALUE").required(*needed).help(*about)
        })),
    }
}

fn option(extra: &'static Extra) -> Arg {
    let arg = Arg::new(extra.name).long(extra.name).help(extra.about);
    match extra.takes {
        Value::Nothing => arg.action(ArgAction::SetTrue),
        Value::OneOf(words) => {
            arg.value_name("WORD").value_parser(PossibleValuesParser::new(words.iter().copied()))
        }
        Value::Text(shown) => arg.value_name(shown),
        Value::Report => arg
            .value_name("FORM")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("table")
            .value_parser(|word: &str| word.parse::<report::Shape>()),
        Value::Hypervisor => arg.value_name("NAME").value_parser(value_parser!(hypervisor::HypervisorKind)),
    }
}

fn listed(keys: Keys) -> String {
    let keys = entries(keys).filter(|(key, _)| !key.starts_with('_'));
    let listed: Vec<String> = keys
        .map(|(key, value)| value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}")))
        .collect();
    listed.join(", ")
}
