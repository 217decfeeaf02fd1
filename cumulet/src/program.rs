//! The name that the program is called by, and the way it speaks under it.
//!
//! Clients look for `cloud-hypervisor` and read what it prints: called by that name, by a link say, the program speaks
//! as they expect.

use std::{error::Error, ffi::OsStr, path::Path};

use api_client::wire::REFERENCE_VERSION;

/// Versions of the migration protocol that are spoken.
const MIGRATION_PROTOCOLS: &str = "0";

/// What this build can do, as a ping over the API tells it.
pub const FEATURES: &[&str] = &[
    "io_uring",
    #[cfg(feature = "kvm")]
    "kvm",
    #[cfg(feature = "mshv")]
    "mshv",
];

/// The name that the program is called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Its own.
    Cumulet,
    /// That which existing clients look for.
    Reference,
}

impl Program {
    /// From the first argument.
    pub fn called(argument: Option<&OsStr>) -> Self {
        let name = argument.and_then(|path| Path::new(path).file_name());
        if name == Some(OsStr::new(Self::Reference.name())) { Self::Reference } else { Self::Cumulet }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cumulet => "cumulet",
            Self::Reference => "cloud-hypervisor",
        }
    }

    /// What `--version` prints; with the features if more is asked for. Clients read the first line, and no later one
    /// may have a `/` in it.
    pub fn version(self, more: bool) -> String {
        let version = match self {
            Self::Cumulet => env!("CARGO_PKG_VERSION"),
            Self::Reference => REFERENCE_VERSION,
        };
        let mut lines =
            format!("{} v{version}\nMigration Protocol Versions: {MIGRATION_PROTOCOLS}\n", self.name());
        if more {
            lines += &format!("Enabled features: {FEATURES:?}\n");
        }
        lines
    }

    /// An error and its causes, as told at the end.
    pub fn complaint(self, error: &dyn Error) -> String {
        let messages = vmm::error::messages(error);
        match (self, &messages[..]) {
            (Self::Cumulet, _) => format!("{}: {}\n", self.name(), vmm::error::chain(error)),
            (Self::Reference, [only]) => {
                format!("Error: Cloud Hypervisor exited with the following error:\n  {only}\n")
            }
            (Self::Reference, messages) => {
                let mut lines =
                    "Error: Cloud Hypervisor exited with the following chain of errors:\n".to_owned();
                for (depth, message) in messages.iter().enumerate() {
                    lines += &format!("  {depth}: {message}\n");
                }
                lines
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt, io};

    use super::*;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("outer")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn the_name_is_the_last_part_of_the_path() {
        let called = |path: &str| Program::called(Some(OsStr::new(path)));
        assert_eq!(called("/usr/bin/cloud-hypervisor"), Program::Reference);
        assert_eq!(called("cloud-hypervisor"), Program::Reference);
        assert_eq!(called("/opt/cloud-hypervisor/cumulet"), Program::Cumulet);
        assert_eq!(Program::called(None), Program::Cumulet);
    }

    #[test]
    fn versions_are_as_clients_read_them() {
        let text = Program::Reference.version(true);
        let lines: Vec<&str> = text.lines().collect();
        let [first, protocols, features] = lines[..] else { panic!("{text}") };
        let number = first.strip_prefix("cloud-hypervisor v").unwrap();
        let major: u32 = number.split('.').next().unwrap().parse().unwrap();
        assert!(major >= 40, "{first}");
        assert!(!text.contains('/'), "{text}");
        assert_eq!(protocols, "Migration Protocol Versions: 0");
        assert!(features.starts_with(r#"Enabled features: ["io_uring""#), "{features}");
        assert!(Program::Cumulet.version(false).starts_with("cumulet v"));
        assert_eq!(Program::Cumulet.version(false).lines().count(), 2);
    }

    #[test]
    fn complaints_are_one_line_or_as_clients_read_them() {
        let chain = Outer(io::Error::other("inner"));
        let alone = io::Error::other("alone");
        assert_eq!(Program::Cumulet.complaint(&chain), "cumulet: outer: inner\n");
        assert_eq!(
            Program::Reference.complaint(&chain),
            "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: outer\n  1: inner\n"
        );
        assert_eq!(
            Program::Reference.complaint(&alone),
            "Error: Cloud Hypervisor exited with the following error:\n  alone\n"
        );
    }
}
