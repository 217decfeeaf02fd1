//! The steps that read the code and the dependencies without running a test.

use super::{Tally, Verdict};
use crate::{
    process::{Finished, Invocation},
    workspace::Workspace,
};

/// The crates whose code depends on which hypervisor is compiled in.
const FEATURED: [&str; 3] = ["hypervisor", "vmm", "cumulet"];

/// Every combination of the two hypervisor features.
const COMBINATIONS: [&[&str]; 4] = [&[], &["kvm"], &["mshv"], &["kvm", "mshv"]];

/// The text by which cargo-deny says that its database could not be had.
const NO_DATABASE: &str = "failed to fetch advisory database";

pub fn fmt(workspace: &Workspace, tally: &mut Tally) {
    tally.check("workspace", || verdict(&workspace.cargo().words("fmt --all --check")));
    tally.check("fuzz targets", || {
        verdict(&workspace.cargo().words("fmt --check --manifest-path fuzz/Cargo.toml"))
    });
}

pub fn clippy(workspace: &Workspace, tally: &mut Tally) {
    tally.check("workspace", || {
        verdict(&workspace.cargo().words(
            "clippy --workspace --keep-going --all-targets --features cumulet-tests/lab -- -D warnings",
        ))
    });
    for features in COMBINATIONS {
        let name = if features.is_empty() { "no hypervisor".to_owned() } else { features.join(" and ") };
        tally.check(&name, || verdict(&clippy_with(workspace, features)));
    }
}

pub fn docs(workspace: &Workspace, tally: &mut Tally) {
    let doc = workspace
        .cargo()
        .words("doc --workspace --all-features --keep-going --no-deps --document-private-items");
    tally.check("workspace", || verdict(&doc.env("RUSTDOCFLAGS", "-D warnings")));
}

pub fn deny(workspace: &Workspace, tally: &mut Tally) {
    let deny = |check: &str| workspace.cargo().words("deny --color never --locked check").words(check);
    tally.check("bans, licenses, sources", || verdict(&deny("bans licenses sources")));
    tally.check("bans, licenses, sources of the fuzz targets", || {
        let fuzz = "deny --color never --manifest-path fuzz/Cargo.toml --config deny.toml check";
        verdict(&workspace.cargo().words(fuzz).words("bans licenses sources"))
    });
    tally.check("advisories", || judge_advisories(&deny("advisories").run()));
}

fn clippy_with(workspace: &Workspace, features: &[&str]) -> Invocation {
    let packages = FEATURED.map(|package| format!("-p {package}")).join(" ");
    let features: Vec<String> = FEATURED
        .iter()
        .flat_map(|package| features.iter().map(move |feature| format!("{package}/{feature}")))
        .collect();
    let clippy = workspace.cargo().words("clippy --all-targets --no-default-features").words(&packages);
    clippy.arg(format!("--features={}", features.join(","))).words("-- -D warnings")
}

fn verdict(invocation: &Invocation) -> Verdict {
    let finished = invocation.run();
    if finished.success { Verdict::Passed } else { Verdict::Failed(finished.in_full()) }
}

/// The database of advisories lies on a host that many build machines do not reach. That, and only that,
/// is a skip.
fn judge_advisories(finished: &Finished) -> Verdict {
    if finished.success {
        return Verdict::Passed;
    }
    if !finished.output.contains(NO_DATABASE) {
        return Verdict::Failed(finished.in_full());
    }
    let cause = finished.output.lines().find(|line| line.starts_with("fatal: "));
    let cause = cause.unwrap_or("its host gave no answer").trim_start_matches("fatal: ");
    Verdict::Skipped(format!("the advisory database could not be fetched: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advisory_is_a_failure_and_a_missing_database_a_skip() {
        assert!(matches!(judge_advisories(&Finished::with(true, "advisories ok")), Verdict::Passed));
        let found = Finished::with(false, "error[vulnerability]: somewhere");
        assert!(matches!(judge_advisories(&found), Verdict::Failed(_)));
        let unreachable =
            Finished::with(false, "[ERROR] failed to fetch advisory database X\nfatal: no route\n");
        match judge_advisories(&unreachable) {
            Verdict::Skipped(reason) => assert!(reason.ends_with(": no route"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_combination_names_its_features_for_each_crate() {
        let workspace = Workspace::find().expect("tests run under cargo");
        let line = clippy_with(&workspace, &["mshv"]).to_string();
        assert!(line.contains("--features=hypervisor/mshv,vmm/mshv,cumulet/mshv"), "{line}");
        assert!(line.contains("--no-default-features"), "{line}");
    }
}
