//! What the chores need on the machine, and how to get it.
//!
//! Only Debian's packages and crates.io are used. What is there is left alone, so a second run costs a few
//! look-ups in `PATH`.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{process::Invocation, workspace::Workspace};

/// A program that a chore starts, and where it comes from.
#[derive(Debug)]
pub struct Tool {
    /// The file to look for in `PATH` and the system's folders; or a whole path.
    program: &'static str,
    source: Source,
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A package of Debian.
    Debian(&'static str),
    /// A crate on crates.io that holds the program.
    Crate(&'static str),
    /// A component of the Rust toolchain.
    Component(&'static str),
}

const fn debian(program: &'static str, package: &'static str) -> Tool {
    Tool { program, source: Source::Debian(package) }
}

/// To format and lint.
pub const TOOLCHAIN: &[Tool] = &[
    Tool { program: "cargo-fmt", source: Source::Component("rustfmt") },
    Tool { program: "cargo-clippy", source: Source::Component("clippy") },
];

/// To check licences, sources and advisories.
pub const DENY: &[Tool] = &[Tool { program: "cargo-deny", source: Source::Crate("cargo-deny") }];

/// To run the tests: the runner, and the programs that tests start.
pub const TESTS: &[Tool] = &[
    Tool { program: "cargo-nextest", source: Source::Crate("cargo-nextest") },
    debian("git", "git"),
    debian("iasl", "acpica-tools"),
    debian("ip", "iproute2"),
    debian("qemu-img", "qemu-utils"),
    debian("qemu-system-x86_64", "qemu-system-x86"),
    debian("strace", "strace"),
];

/// To install schemathesis, and run it.
pub const OPENAPI: &[Tool] =
    &[debian("python3", "python3"), debian("/usr/share/doc/python3-venv/copyright", "python3-venv")];

/// To build fuzz targets: libFuzzer's runtime is C++.
pub const FUZZ: &[Tool] = &[debian("g++", "g++")];

/// To build and start the lab.
pub const LAB: &[Tool] = &[
    debian("depmod", "kmod"),
    debian("ip", "iproute2"),
    debian("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    debian("mcopy", "mtools"),
    debian("mkfs.erofs", "erofs-utils"),
    debian("mkfs.ext4", "e2fsprogs"),
    debian("mkfs.vfat", "dosfstools"),
    debian("mmdebstrap", "mmdebstrap"),
    debian("python3", "python3"),
    debian("qemu-system-x86_64", "qemu-system-x86"),
    debian("sgdisk", "gdisk"),
    debian("strace", "strace"),
    debian("xz", "xz-utils"),
    debian("zstd", "zstd"),
];

/// `cargo xtask setup`.
pub fn everything() -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
    for tools in [TOOLCHAIN, DENY, TESTS, OPENAPI, FUZZ, LAB] {
        ensure(&workspace, tools)?;
    }
    println!("everything that the chores need is installed");
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing of `tools`.
///
/// # Errors
/// Something is missing and cannot be installed, or is still not found afterwards.
pub fn ensure(workspace: &Workspace, tools: &[Tool]) -> Result<(), String> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = Vec::new();
    for tool in &missing {
        match tool.source {
            Source::Debian(package) => packages.push(package),
            Source::Crate(name) => install_crate(workspace, name)?,
            Source::Component(name) => install_component(workspace, name)?,
        }
    }
    if !packages.is_empty() {
        packages.sort_unstable();
        packages.dedup();
        install_packages(workspace, &packages)?;
    }
    match missing.iter().find(|tool| find(tool.program).is_none()) {
        None => Ok(()),
        Some(tool) => {
            Err(format!("{} was installed ({:?}) and is still not found", tool.program, tool.source))
        }
    }
}

/// The full path of `program`, as the programs that we start would find it.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps system tools outside an ordinary user's PATH.
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let cargo = cargo_bin();
    env::split_paths(&path)
        .chain(cargo)
        .chain(system)
        // A whole path stays what it is.
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    home.map(|home| home.join("bin"))
}

fn install_crate(workspace: &Workspace, name: &str) -> Result<(), String> {
    println!("installing {name} from crates.io (compiled here: some minutes)");
    carry_out(&workspace.cargo().words("install --locked").arg(name))
}

fn install_component(workspace: &Workspace, name: &str) -> Result<(), String> {
    println!("adding {name} to the Rust toolchain");
    carry_out(&workspace.program("rustup").words("component add").arg(name))
}

fn install_packages(workspace: &Workspace, packages: &[&str]) -> Result<(), String> {
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        return Err(format!("missing on this machine, and there is no apt-get to install them: {list}"));
    }
    println!("installing Debian packages: {list}");
    let apt = as_root(workspace)?.words("apt-get -q -y");
    let install = apt.clone().words("install --no-install-recommends").words(&list);
    // The machine's package lists may be absent or old; they are only fetched when they are.
    if install.run().success {
        return Ok(());
    }
    carry_out(&apt.words("update"))?;
    carry_out(&install)
}

/// Starts a program as root, by `sudo` if need be, with nothing that could ask a question.
fn as_root(workspace: &Workspace) -> Result<Invocation, String> {
    let quiet = "DEBIAN_FRONTEND=noninteractive";
    if workspace.program("id").arg("-u").run().output.trim() == "0" {
        return Ok(workspace.program("env").arg(quiet));
    }
    match find("sudo") {
        Some(_) => Ok(workspace.program("sudo").words("-n env").arg(quiet)),
        None => Err("Debian packages are missing, and installing them takes root or sudo".to_owned()),
    }
}

fn carry_out(invocation: &Invocation) -> Result<(), String> {
    let finished = invocation.run();
    if finished.success { Ok(()) } else { Err(finished.in_full()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_name_and_an_unknown_one_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let workspace = Workspace::find().expect("tests run under cargo");
        let shell = Tool { program: "sh", source: Source::Crate("no-such-crate") };
        ensure(&workspace, &[shell]).expect("nothing is missing, so nothing is installed");
    }
}
