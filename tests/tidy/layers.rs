//! Who may depend on whom.
//!
//! ```text
//! cumulet > vmm > virtio-devices > devices > arch > vm-migration > address-manager > hypervisor
//! api_client: a leaf, for cumulet, vmm, and whoever stands outside
//! tests, benches, xtask: outside; nobody depends on them
//! ```

/// The house, from the top down. A crate may depend on those that stand below it.
const HOUSE: [&str; 8] =
    ["cumulet", "vmm", "virtio-devices", "devices", "arch", "vm-migration", "address-manager", "hypervisor"];

/// Crates beside the house, with everything of ours that each may depend on.
const BESIDE: &[(&str, &[&str])] = &[
    ("api_client", &[]),
    // End-to-end tests speak to the monitor as any client does, and to the guest by its orders.
    ("cumulet-tests", &["api_client", "test-guest"]),
    ("test-guest", &[]),
    (
        "cumulet-benches",
        &[
            "address-manager",
            "api_client",
            "arch",
            "devices",
            "hypervisor",
            "virtio-devices",
            "vm-migration",
            "vmm",
        ],
    ),
    ("xtask", &[]),
];

/// Who may use the wire types of the API and its client.
const CLIENTS: [&str; 4] = ["cumulet", "vmm", "cumulet-tests", "cumulet-benches"];

/// Foreign crates that one crate of ours, and no other, may name.
const RESERVED: &[(&str, &str)] = &[
    ("kvm-bindings", "hypervisor"),
    ("kvm-ioctls", "hypervisor"),
    ("mshv-bindings", "hypervisor"),
    ("mshv-ioctls", "hypervisor"),
    ("io-uring", "virtio-devices"),
    ("clap", "cumulet"),
];

/// Crates of ours that may depend on nothing foreign but what is listed.
const FRUGAL: &[(&str, &[&str])] = &[("xtask", &["serde", "serde_json"])];

/// A crate of the workspace.
#[derive(Clone, Debug)]
pub struct Package {
    pub name: String,
    /// Of every kind: ordinary, for tests, for build scripts.
    pub dependencies: Vec<Dependency>,
}

/// What a crate depends on.
#[derive(Clone, Debug)]
pub struct Dependency {
    pub name: String,
    /// A crate of this repository.
    pub ours: bool,
}

/// Every dependency that is not allowed, as a sentence.
pub fn violations(packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .flat_map(|package| package.dependencies.iter().filter_map(|on| judge(package, on)))
        .collect()
}

fn judge(package: &Package, on: &Dependency) -> Option<String> {
    let from = package.name.as_str();
    let to = on.name.as_str();
    let allowed = if on.ours { may_use(from, to) } else { may_use_foreign(from, to) };
    if allowed { None } else { Some(format!("{from} may not depend on {to}")) }
}

fn may_use(from: &str, to: &str) -> bool {
    // A crate's tests use it with its feature `testing`.
    if from == to {
        return true;
    }
    let floor = |name: &str| HOUSE.iter().position(|crate_name| *crate_name == name);
    if let Some((_, allowed)) = BESIDE.iter().find(|(name, _)| *name == from) {
        return allowed.contains(&to);
    }
    match (floor(from), floor(to)) {
        (Some(from), Some(to)) => from < to,
        _ => to == "api_client" && CLIENTS.contains(&from),
    }
}

fn may_use_foreign(from: &str, to: &str) -> bool {
    let reserved = RESERVED.iter().all(|(name, owner)| *name != to || *owner == from);
    let frugal = FRUGAL.iter().all(|(name, allowed)| *name != from || allowed.contains(&to));
    reserved && frugal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(from: &str, to: &str, ours: bool) -> usize {
        let dependencies = vec![Dependency { name: to.to_owned(), ours }];
        violations(&[Package { name: from.to_owned(), dependencies }]).len()
    }

    #[test]
    fn down_is_allowed_and_up_is_not() {
        for (high, above) in HOUSE.iter().enumerate() {
            for below in &HOUSE[high + 1..] {
                assert_eq!(found(above, below, true), 0, "{above} on {below}");
                assert_eq!(found(below, above, true), 1, "{below} on {above}");
            }
        }
    }

    #[test]
    fn the_wire_types_are_a_leaf_for_few() {
        assert_eq!(found("vmm", "api_client", true), 0);
        assert_eq!(found("devices", "api_client", true), 1);
        assert_eq!(found("api_client", "hypervisor", true), 1);
    }

    #[test]
    fn nobody_depends_on_what_stands_outside() {
        assert_eq!(found("cumulet", "xtask", true), 1);
        assert_eq!(found("vmm", "cumulet-tests", true), 1);
        assert_eq!(found("cumulet-tests", "vmm", true), 1);
    }

    #[test]
    fn a_crate_that_the_house_does_not_know_has_no_place_in_it() {
        assert_eq!(found("brand-new", "hypervisor", true), 1);
        assert_eq!(found("vmm", "brand-new", true), 1);
        assert_eq!(found("vmm", "vmm", true), 0);
    }

    #[test]
    fn reserved_crates_have_one_user() {
        assert_eq!(found("hypervisor", "kvm-ioctls", false), 0);
        assert_eq!(found("vmm", "kvm-ioctls", false), 1);
        assert_eq!(found("xtask", "serde", false), 0);
        assert_eq!(found("xtask", "clap", false), 1);
        assert_eq!(found("xtask", "libc", false), 1);
    }
}
