//! The command line as a whole, and docs/cli.md against it.

use api_client::wire::{ConsoleConfig, ConsoleMode, PayloadConfig, RtcConfig, VmConfig};
use clap::error::ErrorKind;

use super::{
    Options, Seccomp,
    endpoint::Endpoint,
    grammar::entries,
    table::{self, Group, ROWS, Row, Takes},
};
use crate::program::Program;

const DOCUMENTATION: &str = include_str!("../../../docs/cli.md");

fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
    let words = std::iter::once("cumulet").chain(arguments.iter().copied());
    Options::parse(Program::Cumulet, words.map(Into::into))
}

fn refused(arguments: &[&str]) -> ErrorKind {
    let error = parse(arguments).expect_err("it is refused");
    assert_eq!(error.exit_code(), 2, "{arguments:?}: {error}");
    error.kind()
}

/// The VM that `--kernel /k` and these describe.
fn vm(arguments: &[&str]) -> VmConfig {
    let options = parse(&[&["--kernel", "/k"], arguments].concat()).unwrap();
    options.vm().unwrap().expect("there is a kernel")
}

fn describes_a_vm(row: &Row) -> bool {
    matches!(row.group, Group::Machine | Group::Devices | Group::Consoles)
}

/// An option with a value that it takes.
fn example(row: &Row) -> Vec<String> {
    let flag = format!("--{}", row.name);
    let value = match (row.name, &row.takes) {
        (_, Takes::Flag | Takes::OptionalKeys(_)) => return vec![flag],
        (_, Takes::Count) => return vec!["-v".to_owned()],
        ("seccomp", _) => "false",
        ("hypervisor", _) => "kvm",
        ("completions", _) => "bash",
        ("restore-commit", _) => "each",
        _ => "x=y",
    };
    vec![flag, value.to_owned()]
}

#[test]
fn clap_finds_no_fault_with_the_table() {
    for program in [Program::Cumulet, Program::Reference] {
        table::command(program.name()).debug_assert();
    }
}

#[test]
fn every_option_is_known_and_seen() {
    for row in ROWS {
        let mut arguments = example(row);
        if describes_a_vm(row) || matches!(row.group, Group::Program | Group::Output) {
            arguments.extend(["--kernel".to_owned(), "/k".to_owned()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let options = parse(&arguments).unwrap_or_else(|error| panic!("{}: {error}", row.name));
        assert!(options.given(row.name), "{}", row.name);
    }
}

#[test]
fn options_of_a_vm_need_something_to_boot() {
    for row in ROWS.iter().filter(|row| describes_a_vm(row)) {
        let arguments = example(row);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(refused(&arguments), ErrorKind::MissingRequiredArgument, "{}", row.name);
    }
}

#[test]
fn options_of_a_vm_are_refused_beside_a_configuration() {
    let payload = ROWS.iter().filter(|row| row.group == Group::Payload && row.name != "config");
    for row in ROWS.iter().filter(|row| describes_a_vm(row)).chain(payload) {
        let arguments = example(row);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let error = parse(&[&["--config", "/c"], &arguments[..]].concat()).expect_err(row.name);
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{}", row.name);
        assert!(error.to_string().contains(&format!("--{}", row.name)), "{error}");
    }
    assert!(parse(&["--config", "/c", "--api-socket", "/a", "--report", "-v"]).is_ok());
}

#[test]
fn usage_errors() {
    assert_eq!(refused(&[]), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    assert_eq!(refused(&["--kernel", "/k", "--colour"]), ErrorKind::UnknownArgument);
    assert_eq!(refused(&["--kernel", "/k", "--kernel", "/l"]), ErrorKind::ArgumentConflict);
    assert_eq!(
        refused(&["--kernel", "/k", "--cpus", "boot=1", "--cpus", "boot=2"]),
        ErrorKind::ArgumentConflict
    );
    assert_eq!(refused(&["--kernel", "/k", "--seccomp", "maybe"]), ErrorKind::InvalidValue);
    assert_eq!(refused(&["--kernel", "/k", "--hypervisor", "xen"]), ErrorKind::ValueValidation);
    // Whoever says anything at all, and names nothing to boot, has a process that waits.
    assert!(parse(&["-v"]).is_ok() && parse(&["--seccomp", "false"]).is_ok());
    assert_eq!(refused(&["/k"]), ErrorKind::UnknownArgument, "nothing is positional");
}

#[test]
fn nothing_said_is_the_reference_machine() {
    let kernel = PayloadConfig { kernel: Some("/k".into()), ..PayloadConfig::default() };
    assert_eq!(vm(&[]), VmConfig { payload: Some(kernel), ..VmConfig::default() });
}

#[test]
fn values_are_joined_or_apart_and_repeat_both_ways() {
    let paths = |arguments: &[&str]| -> Vec<String> {
        let disks = vm(arguments).disks.unwrap_or_default().into_iter();
        disks.filter_map(|disk| disk.path).map(|path| path.display().to_string()).collect()
    };
    assert_eq!(paths(&["--disk=path=/a"]), ["/a"]);
    assert_eq!(
        paths(&["--disk", "path=/a", "path=/b", "--pvpanic", "--disk", "path=/c"]),
        ["/a", "/b", "/c"]
    );
}

#[test]
fn every_option_of_a_vm_arrives() {
    let vm = vm(&[
        "--firmware",
        "/f",
        "--initramfs",
        "/i",
        "--cmdline",
        "--quiet a=b",
        "--cpus",
        "boot=3",
        "--memory",
        "size=0,mergeable=on",
        "--memory-zone",
        "id=z",
        "--numa",
        "guest_numa_id=1,cpus=0",
        "--platform",
        "num_pci_segments=2",
        "--pci-segment",
        "pci_segment=1",
        "--tpm",
        "socket=/t",
        "--pvpanic",
        "--watchdog",
        "--debug-exit",
        "0x501",
        "--disk",
        "path=/d",
        "--rate-limit-group",
        "id=g,bw_size=1,bw_refill_time=1",
        "--net",
        "tap=t",
        "--rng",
        "src=/r",
        "--balloon",
        "size=1M",
        "--fs",
        "tag=f,socket=/s",
        "--pmem",
        "file=/p",
        "--vsock",
        "cid=3,socket=/v",
        "--rtc",
        "--device",
        "path=/d",
        "--user-device",
        "socket=/u",
        "--vdpa",
        "path=/v",
        "--generic-vhost-user",
        "device_type=fs,socket=/g,queue_sizes=[8]",
        "--serial",
        "pty",
        "--console",
        "off",
        "--debug-console",
        "null",
        "--landlock",
        "--landlock-rules",
        "path=/,access=r",
    ]);
    let payload = vm.payload.unwrap();
    assert_eq!(payload.firmware, Some("/f".into()));
    assert_eq!(payload.initramfs, Some("/i".into()));
    assert_eq!(payload.cmdline.as_deref(), Some("--quiet a=b"));
    assert_eq!((vm.cpus.boot_vcpus, vm.cpus.max_vcpus), (3, 3));
    let zones = vm.memory.zones.unwrap();
    assert_eq!((zones[0].id.as_str(), zones[0].mergeable), ("z", true));
    assert_eq!(vm.numa.unwrap()[0].guest_numa_id, 1);
    assert_eq!(vm.platform.unwrap().num_pci_segments, 2);
    assert_eq!(vm.pci_segments.unwrap()[0].pci_segment, 1);
    assert_eq!(vm.tpm.unwrap().socket.as_os_str(), "/t");
    assert!(vm.pvpanic && vm.watchdog && vm.landlock_enable);
    assert_eq!(vm.debug_exit, Some(0x501));
    assert_eq!(vm.disks.unwrap()[0].path, Some("/d".into()));
    assert_eq!(vm.rate_limit_groups.unwrap()[0].id, "g");
    assert_eq!(vm.net.unwrap()[0].tap.as_deref(), Some("t"));
    assert_eq!(vm.rng.src.as_os_str(), "/r");
    assert_eq!(vm.balloon.unwrap().size, 1 << 20);
    assert_eq!(vm.fs.unwrap()[0].tag, "f");
    assert_eq!(vm.pmem.unwrap()[0].file.as_os_str(), "/p");
    assert_eq!(vm.vsock.unwrap().cid, 3);
    assert_eq!(vm.rtc, Some(RtcConfig::default()));
    assert_eq!(vm.devices.unwrap()[0].path, Some("/d".into()));
    assert_eq!(vm.user_devices.unwrap()[0].socket.as_os_str(), "/u");
    assert_eq!(vm.vdpa.unwrap()[0].path.as_os_str(), "/v");
    assert_eq!(vm.generic_vhost_user.unwrap()[0].device_type, 26);
    assert_eq!(vm.serial.mode, ConsoleMode::Pty);
    assert_eq!(vm.console, ConsoleConfig::new(ConsoleMode::Off));
    assert_eq!(vm.debug_console.mode, ConsoleMode::Null);
    assert_eq!(vm.landlock_rules.unwrap()[0].access, "r");
}

#[test]
fn every_option_of_the_program_arrives() {
    let options = parse(&[
        "--restore",
        "source_url=file:///s",
        "--api-socket",
        "/a",
        "--event-monitor",
        "fd=7",
        "--no-shutdown",
        "--strict-api",
        "--seccomp",
        "errno",
        "--hypervisor",
        "kvm",
        "--log-file",
        "/l",
        "--log-format",
        "{msg}",
        "-vv",
        "-v",
        "--report",
    ])
    .unwrap();
    assert_eq!(options.restore().unwrap().unwrap().config.source_url, "file:///s");
    assert_eq!(options.api_socket().unwrap(), Some(Endpoint::Path("/a".into())));
    assert_eq!(options.event_monitor().unwrap(), Some(Endpoint::Descriptor(7)));
    assert!(
        options.strict_api()
            && options.no_shutdown()
            && options.report()
            && !options.version()
            && !options.boots()
    );
    assert_eq!(options.seccomp(), Some(Seccomp::Errno));
    assert_eq!(options.hypervisor(), Some(hypervisor::HypervisorKind::Kvm));
    assert_eq!((options.log_file(), options.log_format()), (Some("/l".as_ref()), Some("{msg}")));
    assert_eq!(options.verbosity(), 3);
    assert!(options.vm().unwrap().is_none());
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let options = parse(&["--completions", shell]).unwrap();
        assert_eq!(options.completions().map(|shell| shell.to_string()).as_deref(), Some(shell));
    }
    assert!(parse(&["-V"]).unwrap().version());
    assert_eq!(parse(&["-V"]).unwrap().seccomp(), None);
}

#[test]
fn errors_name_option_and_key() {
    for (arguments, said) in [
        (&["--disk", "path=/d", "readonly=maybe"], r#"--disk: readonly: "maybe" is not on or off"#),
        (&["--memory", "sise=1G", "--pvpanic"], r#"--memory: unknown key "sise": one of size"#),
        (&["--debug-exit", "501", "--pvpanic"], r#"--debug-exit: "501" is not a port number like 0xe9"#),
    ] {
        let options = parse(&[&["--kernel", "/k"], &arguments[..]].concat()).unwrap();
        let error = options.vm().unwrap_err();
        let chain = vmm::error::chain(&error);
        assert!(chain.starts_with(said), "{chain}");
    }
}

/// The part of the documentation that is about an option.
fn section(row: &Row) -> &'static str {
    let heading = match row.short {
        Some('v') => "\n### `-v`".to_owned(),
        Some(short) => format!("\n### `-{short}`, `--{}`", row.name),
        None => format!("\n### `--{}`", row.name),
    };
    let (_, rest) = DOCUMENTATION
        .split_once(&format!("{heading}\n"))
        .unwrap_or_else(|| panic!("docs/cli.md has no heading {heading:?}"));
    rest.split("\n### ").next().unwrap_or(rest)
}

#[test]
fn the_documentation_names_every_option_and_key() {
    for row in ROWS {
        let section = section(row);
        for (key, value) in row.takes.keys().into_iter().flat_map(entries) {
            let row_of_table = section.lines().find(|line| line.contains(&format!("`{key}`")));
            let line = row_of_table.unwrap_or_else(|| panic!("docs/cli.md, --{}: no `{key}`", row.name));
            // A default is in lower case or digits; what a value looks like is in capitals or a choice.
            let default = value
                .filter(|value| !value.contains(|c: char| c.is_ascii_uppercase() || c == '|' || c == '['));
            if let Some(default) = default {
                assert!(
                    line.contains(&format!("`{default}`")),
                    "--{} {key}: default {default}: {line}",
                    row.name
                );
            }
        }
    }
    for token in crate::logger::tokens() {
        let plain = token.strip_prefix("local").unwrap_or(&token);
        assert!(DOCUMENTATION.contains(&format!("`{{{plain}}}`")), "docs/cli.md: no token {{{plain}}}");
    }
}

#[test]
fn the_documentation_names_no_option_that_there_is_not() {
    let known = |name: &str| ROWS.iter().any(|row| row.name == name) || name == "help";
    for line in DOCUMENTATION.lines().filter(|line| line.starts_with("### ")) {
        for name in line.split('`').filter_map(|part| part.strip_prefix("--")) {
            assert!(known(name), "{line}");
        }
    }
}
