//! The files and packages of the repository, as git and cargo list them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    layers::{Dependency, Package},
    source::{File, mark_test_modules},
};

/// The folder of the workspace.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("the tests are a folder of the workspace").to_owned()
}

/// Every text file that is tracked, or would be by `git add`.
pub fn files() -> Vec<File> {
    let root = root();
    let listed =
        output(Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]));
    let listed = String::from_utf8(listed).expect("names in the repository are UTF-8");
    let read = |path: &str| {
        // A file that was deleted and is not yet committed is still listed.
        let bytes = fs::read(root.join(path)).ok()?;
        String::from_utf8(bytes).ok().map(|text| File::new(path, &text))
    };
    let mut files: Vec<File> = listed.split_terminator('\0').filter_map(read).collect();
    mark_test_modules(&mut files);
    files
}

/// The packages of the workspace.
pub fn packages() -> Vec<Package> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let json =
        output(Command::new(cargo).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]));
    let metadata: serde_json::Value = serde_json::from_slice(&json).expect("cargo metadata prints JSON");
    let list = |value: &serde_json::Value, key: &str| -> Vec<serde_json::Value> {
        value[key].as_array().expect("cargo metadata has this list").clone()
    };
    let name = |value: &serde_json::Value| value["name"].as_str().expect("everything has a name").to_owned();
    let dependency =
        |value: &serde_json::Value| Dependency { name: name(value), ours: value["path"].is_string() };
    let package = |value: &serde_json::Value| Package {
        name: name(value),
        dependencies: list(value, "dependencies").iter().map(dependency).collect(),
    };
    list(&metadata, "packages").iter().map(package).collect()
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.current_dir(root()).output().expect("git and cargo are installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
