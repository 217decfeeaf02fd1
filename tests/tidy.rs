//! The layer rules, as an ordinary test.
//!
//! What the design and the house style say about who may call whom, and how the code is written, is checked
//! here on the text of the repository: `tidy/rules.rs` is the table of rules about files, `tidy/layers.rs`
//! says which crate may depend on which.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;

#[test]
fn every_file_keeps_the_rules() {
    let files = tree::files();
    assert!(files.iter().any(|file| file.path == "tests/tidy.rs"), "the repository's files were not listed");
    let mut report = String::new();
    for rule in rules::RULES {
        let findings: Vec<String> = files
            .iter()
            .flat_map(|file| rule.check(file).into_iter().map(move |found| (file, found)))
            .map(|(file, found)| format!("  {}:{}: {}\n", file.path, found.line, found.what))
            .collect();
        if !findings.is_empty() {
            report.push_str(&format!("{} ({}):\n{}", rule.name, rule.why, findings.concat()));
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn dependencies_point_down() {
    let packages = tree::packages();
    assert!(packages.len() > 10, "the workspace's packages were not listed: {packages:?}");
    assert_eq!(layers::violations(&packages), [""; 0]);
}
