//! What tests of several modules share.

/// Set in the process that has one test for itself.
const ALONE: &str = "CUMULET_TEST_ALONE";

/// Whether this process has a test for itself, so that what belongs to a process can be counted or limited. If not, the
/// test of that name, in the module of that path, is run in one that has, and must pass there.
pub(crate) fn is_alone(module: &str, test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, module) = module.split_once("::").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--test-threads", "1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}
