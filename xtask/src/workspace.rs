//! Where the project lies, and what this run was told.

use std::{env, path::PathBuf};

use crate::process::Invocation;

/// Tells the tests, and the programs they start, to do without `/dev/kvm`.
const WITHOUT_KVM: &str = "CUMULET_WITHOUT_KVM";

/// The checkout that this program was started in, and the options that all steps heed.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// Tests that need KVM are to skip themselves, and say so.
    pub without_kvm: bool,
    /// Echo what the started programs print while they run.
    pub verbose: bool,
}

impl Workspace {
    /// The workspace that holds this crate.
    pub fn find() -> Result<Self, String> {
        let own = env::var_os("CARGO_MANIFEST_DIR")
            .ok_or("CARGO_MANIFEST_DIR is not set: start this program as `cargo xtask`")?;
        let root = PathBuf::from(own)
            .parent()
            .ok_or("the folder of xtask has no parent, so there is no workspace around it")?
            .to_owned();
        Ok(Self { root, without_kvm: false, verbose: false })
    }

    /// A program started in the root of the workspace.
    pub fn program(&self, program: &str) -> Invocation {
        // The variable is set by our flag and by nothing else, so that a stray one in the
        // environment cannot turn tests into skips.
        let invocation = Invocation::new(program, &self.root).without_env(WITHOUT_KVM);
        let invocation = if self.without_kvm { invocation.env(WITHOUT_KVM, "1") } else { invocation };
        if self.verbose { invocation.echo() } else { invocation }
    }

    /// The cargo that started this program.
    pub fn cargo(&self) -> Invocation {
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        self.program(&cargo).env("CARGO_TERM_COLOR", "never")
    }
}
