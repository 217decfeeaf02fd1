//! The rules, each with its reason, an example that it catches and one that it lets pass.
//!
//! The examples are checked by a test, so no rule can be one that finds nothing.

use super::source::{self, File, Token, closing, has_extension, tokens};

/// A rule about the text of one file.
#[derive(Debug)]
pub struct Rule {
    /// What is demanded, in a few words.
    pub name: &'static str,
    /// Why.
    pub why: &'static str,
    /// The files that it is about.
    pub about: fn(&File) -> bool,
    /// What it looks for there.
    pub finds: Finds,
    /// Files, as path and text, that break the rule once each.
    pub catches: &'static [(&'static str, &'static str)],
    /// Files that come close and do not break it.
    pub passes: &'static [(&'static str, &'static str)],
}

/// How a rule finds what it forbids.
#[derive(Clone, Copy, Debug)]
pub enum Finds {
    /// Code that contains one of these: words and marks as they follow each other, whatever the spacing. A
    /// word that ends in `*` stands for every word that begins so. Code for tests counts too.
    Code(&'static [&'static str]),
    /// The same, but code for tests may do it.
    ProductCode(&'static [&'static str]),
    /// What a function says.
    Other(fn(&File) -> Vec<Finding>),
}

/// A place that breaks a rule.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Counted from 1.
    pub line: usize,
    /// What is there.
    pub what: String,
}

/// A file longer than this has more than one thought in it.
const MAX_LINES: usize = 1200;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "common", "helper", "helpers", "misc"];

pub const RULES: &[Rule] = &[
    Rule {
        name: "only hypervisor names a KVM or MSHV type",
        why: "everything above it works on either, and on the fake",
        about: |file| !file.is_in("hypervisor"),
        finds: Finds::Code(&[
            "kvm_bindings",
            "kvm_ioctls",
            "mshv_bindings",
            "mshv_ioctls",
            "hypervisor :: kvm",
            "hypervisor :: mshv",
        ]),
        catches: &[
            ("vmm/src/a.rs", "//! A.\nuse kvm_ioctls::VcpuFd;"),
            ("vmm/src/a.rs", "//! A.\nuse hypervisor::kvm::KvmVm;"),
        ],
        passes: &[
            ("hypervisor/src/kvm.rs", "//! A.\nuse kvm_ioctls::VcpuFd;"),
            ("vmm/src/a.rs", "//! A.\n// kvm_ioctls does this\nlet kvm_is_there = \"kvm_bindings\";"),
        ],
    },
    Rule {
        name: "only address-manager changes the kernel's wiring",
        why: "nothing but a commit reconfigures a guest",
        // A benchmark of the address manager records what it asks for.
        about: |file| !["hypervisor", "address-manager", "benches"].iter().any(|place| file.is_in(place)),
        finds: Finds::Code(&[
            "WiringOps",
            "MemorySlot",
            "Irqfd",
            ". set_slot (",
            ". set_routes (",
            ". add_irqfd (",
            ". remove_irqfd (",
        ]),
        catches: &[
            ("vmm/src/a.rs", "//! A.\nvm.wiring()\n    .set_routes(&[])?;"),
            ("devices/src/a.rs", "//! A.\nuse hypervisor::{MsiMessage, WiringOps};"),
        ],
        passes: &[
            ("address-manager/src/apply.rs", "//! A.\nops.set_routes(&routes)?;"),
            ("benches/src/recording.rs", "//! A.\nuse hypervisor::WiringOps;"),
            ("vmm/src/a.rs", "//! A.\nlet set_slot = 1; transaction.add_doorbell(doorbell)?;"),
        ],
    },
    Rule {
        name: "a device sees handles, not the hypervisor or the configuration",
        why: "it can then be built and tested without a VM, and does not know whether it is restored",
        about: is_device,
        finds: Finds::ProductCode(&["Vm", "Hypervisor", "Vcpu", "VmConfig"]),
        catches: &[
            ("devices/src/serial.rs", "//! A.\nuse hypervisor::{MsiMessage, Vm};"),
            ("virtio-devices/src/net/mod.rs", "//! A.\nfn new(vcpu: &dyn hypervisor::Vcpu) {}"),
            ("devices/src/rtc.rs", "//! A.\nfn new(config: &VmConfig) {}"),
        ],
        passes: &[
            ("devices/src/serial.rs", "//! A.\n// The Vm tells us\nuse hypervisor::MsiMessage;"),
            ("devices/src/serial.rs", "//! A.\n#[cfg(test)]\nmod tests { use hypervisor::Vm; }"),
            ("vmm/src/machine.rs", "//! A.\nuse hypervisor::Vm;"),
        ],
    },
    Rule {
        name: "a device gets opened files, not paths",
        why: "attach opens; a sandboxed device could not, and a restored one must not look again",
        about: is_device,
        finds: Finds::Other(paths),
        catches: &[
            ("virtio-devices/src/block/mod.rs", "//! A.\nlet file = File::open(name)?;"),
            ("virtio-devices/src/pmem.rs", "//! A.\nuse std::{fs, path::PathBuf};"),
            ("devices/src/a.rs", "//! A.\nlet o = std::fs::OpenOptions::new();"),
        ],
        passes: &[
            ("devices/src/a.rs", "//! A.\nlet name = aml::Path::new(\"_CRS\"); fn new(file: File) {}"),
            ("virtio-devices/src/a.rs", "//! A.\n#[test]\nfn t() { File::open(path()); }\nfn f() {}"),
            ("vmm/src/machine/attach/disk.rs", "//! A.\nlet file = File::open(path)?;"),
        ],
    },
    Rule {
        name: "arch and vmm::layout are functions of their arguments",
        why: "a layout is an ABI: the same configuration gives the same one, on every host and every day",
        about: |file| file.is_in("arch/src") || file.is_in("vmm/src/layout"),
        finds: Finds::ProductCode(&[
            "File :: open",
            "File :: create",
            "OpenOptions",
            "Instant",
            "SystemTime",
            "parking_lot",
            "std :: sync",
            "std :: env",
            "std :: thread",
            "std :: net",
        ]),
        catches: &[
            ("arch/src/x86_64/boot.rs", "//! A.\nlet file = File::open(kernel)?;"),
            ("vmm/src/layout/mod.rs", "//! A.\nlet now = Instant::now();"),
        ],
        passes: &[
            ("arch/src/x86_64/boot.rs", "//! A.\nfn load(kernel: &mut (impl Read + Seek)) {}"),
            ("arch/src/x86_64/acpi.rs", "//! A.\nuse acpi_tables::aml::Mutex;"),
        ],
    },
    Rule {
        name: "the API sends requests and never holds the machine",
        why: "one thread owns the machine",
        about: |file| file.is_in("vmm/src/api"),
        finds: Finds::ProductCode(&["Machine"]),
        catches: &[("vmm/src/api/mod.rs", "//! A.\nuse crate::machine::Machine;")],
        passes: &[("vmm/src/api/mod.rs", "//! A.\nuse crate::control::Request; // for the Machine")],
    },
    Rule {
        name: "every unsafe block says why it is sound",
        why: "it is the only proof that there is",
        about: File::is_rust,
        finds: Finds::Other(undocumented_unsafe),
        catches: &[
            ("vmm/src/a.rs", "//! A.\nfn f() {\n    unsafe { g() }\n}"),
            (
                "vmm/src/a.rs",
                "//! A.\n// SAFETY: g is sound.\nfn f() {}\nfn h() {\n    let x = unsafe { g() };\n}",
            ),
            ("vmm/src/a.rs", "//! A.\nunsafe impl Send for A {}"),
        ],
        passes: &[
            (
                "vmm/src/a.rs",
                "//! A.\nfn f() {\n    // SAFETY: g is sound:\n    // always.\n    unsafe { g() }\n}",
            ),
            (
                "vmm/src/a.rs",
                "//! A.\n// SAFETY: g is sound.\n#[rustfmt::skip]\nlet x: u64 =\n    unsafe { g() };",
            ),
            (
                "vmm/src/a.rs",
                "//! A.\n#![expect(unsafe_code, reason = \"unsafe {}\")]\nunsafe extern \"C\" {}",
            ),
        ],
    },
    Rule {
        name: "no unsafe in configuration, layout, API, saved state and wire types",
        why: "they read what others wrote; a mistake there must not be able to touch memory",
        about: |file| {
            ["vmm/src/config", "vmm/src/layout", "vmm/src/api", "api_client", "vm-migration/src/snapshot"]
                .iter()
                .any(|folder| file.is_in(folder))
                || file.path.ends_with("/state.rs")
        },
        finds: Finds::ProductCode(&["unsafe"]),
        catches: &[
            ("vmm/src/config/mod.rs", "//! A.\n// SAFETY: yes.\nunsafe { f() }"),
            ("devices/src/pci/state.rs", "//! A.\nunsafe impl Send for A {}"),
        ],
        passes: &[
            ("vmm/src/config/mod.rs", "//! A.\n#![forbid(unsafe_code)]"),
            ("devices/src/pci/msix.rs", "//! A.\n// SAFETY: yes.\nunsafe { f() }"),
        ],
    },
    Rule {
        name: "nothing is left to be written",
        why: "a piece that is not done is not there",
        about: File::is_rust,
        finds: Finds::Code(&["todo !", "unimplemented !", "dbg !"]),
        catches: &[
            ("vmm/src/a.rs", "//! A.\nfn f() { todo!() }"),
            ("tests/boot.rs", "//! A.\nfn f() { unimplemented!(\"later\") }"),
        ],
        passes: &[("vmm/src/a.rs", "//! A.\n// todo!() is not allowed\nlet todo = \"todo!()\";")],
    },
    Rule {
        name: "no test is ignored",
        why: "a test that cannot run here says so in the line that is counted: SKIPPED: and the reason",
        about: File::is_rust,
        finds: Finds::Code(&["# [ ignore"]),
        catches: &[("vmm/src/a.rs", "//! A.\n#[test]\n#[ignore = \"slow\"]\nfn t() {}")],
        passes: &[("vmm/src/a.rs", "//! A.\nfn ignore() {}")],
    },
    Rule {
        name: "no hash map or hash set",
        why: "a hash must not decide any order: saved state, layouts and logs are the same in every run",
        about: File::is_rust,
        finds: Finds::Code(&["HashMap", "HashSet"]),
        catches: &[("vmm/src/a.rs", "//! A.\nuse std::collections::{BTreeMap, HashMap};")],
        passes: &[("vmm/src/a.rs", "//! A.\n/// Not a HashMap.\nuse std::collections::BTreeMap;")],
    },
    Rule {
        name: "a module is named after what is in it",
        why: "a module of leftovers grows for ever",
        about: File::is_rust,
        finds: Finds::Other(empty_names),
        catches: &[
            ("vmm/src/util.rs", "//! A."),
            ("devices/src/common/mod.rs", "//! A."),
            ("vmm/src/a.rs", "//! A.\nmod helpers { }"),
        ],
        passes: &[("vmm/src/utility_power.rs", "//! A.\nlet util = common();")],
    },
    Rule {
        name: "every module says what it is",
        why: "the code is meant to be read whole",
        // The tests of a module that are kept in a file of their own are announced by its name.
        about: |file| file.is_rust() && !file.path.ends_with("/tests.rs"),
        finds: Finds::Other(no_opening_words),
        catches: &[("vmm/src/a.rs", "use std::fmt;\n//! A."), ("vmm/src/b.rs", "")],
        passes: &[("vmm/src/a.rs", "//! A.\nuse std::fmt;")],
    },
    Rule {
        name: "a file has one thought",
        why: "beyond 1200 lines there is more than one",
        about: |file| file.is_rust() || has_extension(&file.path, "py"),
        finds: Finds::Other(too_long),
        catches: &[],
        passes: &[],
    },
    Rule {
        name: "no path of the machine that a file was written on",
        why: "the repository works wherever it is cloned",
        about: |file| file.path != "tests/tidy/rules.rs",
        finds: Finds::Other(machine_paths),
        catches: &[
            ("README.md", "run /work/main/target/release/cumulet"),
            ("docs/a.md", "see /root/.cargo/bin"),
            ("vmm/src/a.rs", concat!("//! A.\nlet path = \"", env!("CARGO_MANIFEST_DIR"), "/tidy\";")),
        ],
        passes: &[("docs/a.md", "see docs/work/a.md and https://example.org/work/b, cwd /workspace")],
    },
    Rule {
        name: "outside the configuration, only attach/mod.rs matches over all kinds of devices",
        why: "a new kind is a wire struct, a configuration, an attach file and one match arm",
        about: |file| {
            let knows_all = file.is_in("vmm/src/config") || file.path == "vmm/src/machine/attach/mod.rs";
            file.is_in("vmm/src") && !knows_all
        },
        finds: Finds::Other(matches_over_devices),
        catches: &[(
            "vmm/src/machine/hotplug.rs",
            "//! A.\nmatch device {\n DeviceConfig::Disk(d) => a(d),\n DeviceConfig::Net { mac, .. } => b(),\n \
             DeviceConfig::Rng(_) | DeviceConfig::Console(_) => c(),\n}",
        )],
        passes: &[
            ("vmm/src/machine/hotplug.rs", "//! A.\nif let DeviceConfig::Disk(disk) = device { a(disk) }"),
            (
                "vmm/src/layout/mod.rs",
                "//! A.\nlet all = [DeviceConfig::Disk(d), DeviceConfig::Net(n), DeviceConfig::Rng(r), \
                 DeviceConfig::Console(c)];",
            ),
        ],
    },
];

impl Rule {
    /// Every place in `file` that breaks the rule.
    pub fn check(&self, file: &File) -> Vec<Finding> {
        if !(self.about)(file) {
            return vec![];
        }
        match self.finds {
            Finds::Code(patterns) => search(&file.tokens.iter().collect::<Vec<_>>(), patterns),
            Finds::ProductCode(patterns) => search(&file.product_tokens(), patterns),
            Finds::Other(find) => find(file),
        }
    }
}

fn is_device(file: &File) -> bool {
    file.is_in("devices/src") || file.is_in("virtio-devices/src")
}

fn search(code: &[&Token], patterns: &[&str]) -> Vec<Finding> {
    patterns.iter().flat_map(|pattern| occurrences(code, pattern)).collect()
}

fn occurrences(code: &[&Token], pattern: &str) -> Vec<Finding> {
    let words: Vec<String> = pattern.split_whitespace().flat_map(pattern_words).collect();
    let matches = |token: &&Token, word: &String| match word.strip_suffix('*') {
        Some(prefix) => token.text.starts_with(prefix),
        None => token.text == *word,
    };
    code.windows(words.len())
        .filter(|window| window.iter().zip(&words).all(|(token, word)| matches(token, word)))
        .map(|window| Finding { line: window[0].line, what: format!("`{}`", pattern.replace(' ', "")) })
        .collect()
}

/// A word with its star is one; everything else is cut as code is.
fn pattern_words(part: &str) -> Vec<String> {
    if part.ends_with('*') {
        vec![part.to_owned()]
    } else {
        tokens(part).into_iter().map(|token| token.text).collect()
    }
}

fn paths(file: &File) -> Vec<Finding> {
    let code = file.product_tokens();
    let mut found = search(&code, &["File :: open", "File :: create", "OpenOptions", "PathBuf"]);
    // An ACPI name is a path of another kind, as long as it is written as one.
    let of_acpi = |at: usize| at >= 3 && code[at - 3].text == "aml";
    let paths = code.iter().enumerate().filter(|(at, token)| token.text == "Path" && !of_acpi(*at));
    found.extend(paths.map(|(_, token)| Finding { line: token.line, what: "`Path`".to_owned() }));
    found
}

fn undocumented_unsafe(file: &File) -> Vec<Finding> {
    let opens =
        |window: &&[Token]| window[0].text == "unsafe" && (window[1].text == "{" || window[1].text == "impl");
    file.tokens
        .windows(2)
        .filter(opens)
        .filter(|window| !is_documented(file, window[0].line))
        .map(|window| Finding { line: window[0].line, what: "`unsafe` without a SAFETY comment".to_owned() })
        .collect()
}

/// Whether a SAFETY comment stands above the statement that the line belongs to, or in the line itself.
fn is_documented(file: &File, line: usize) -> bool {
    let lines: Vec<&str> = file.text.lines().collect();
    let comment = |line: usize| file.comments.iter().find(|comment| comment.line == line);
    let says_why = |line: usize| comment(line).is_some_and(|comment| comment.text.contains("SAFETY:"));
    if says_why(line) {
        return true;
    }
    for above in (1..line).rev() {
        if says_why(above) {
            return true;
        }
        let text = lines[above - 1].trim();
        let is_comment = text.starts_with("//");
        let ends_statement = text.is_empty() || text.ends_with([';', '{', '}', ',']);
        if !is_comment && ends_statement {
            return false;
        }
    }
    false
}

fn empty_names(file: &File) -> Vec<Finding> {
    let is_empty = |name: &str| EMPTY_NAMES.contains(&name);
    let parts = file.path.trim_end_matches(".rs").split('/').filter(|part| is_empty(part));
    let by_file = parts.map(|part| Finding { line: 1, what: format!("a module named `{part}`") });
    let modules = file.tokens.windows(2).filter(|pair| pair[0].text == "mod" && is_empty(&pair[1].text));
    let inline = modules
        .map(|pair| Finding { line: pair[0].line, what: format!("a module named `{}`", pair[1].text) });
    by_file.chain(inline).collect()
}

fn no_opening_words(file: &File) -> Vec<Finding> {
    if file.text.starts_with("//!") {
        return vec![];
    }
    vec![Finding { line: 1, what: "the file does not begin with `//!`".to_owned() }]
}

fn too_long(file: &File) -> Vec<Finding> {
    let lines = file.text.lines().count();
    if lines <= MAX_LINES {
        return vec![];
    }
    vec![Finding { line: lines, what: format!("{lines} lines") }]
}

fn machine_paths(file: &File) -> Vec<Finding> {
    let begins_path =
        |before: Option<char>| before.is_none_or(|c| !c.is_alphanumeric() && !"/._-".contains(c));
    let checkout = env!("CARGO_MANIFEST_DIR").trim_end_matches("tests");
    // A checkout in the root folder has no path that would say anything.
    let folders = ["/work/", "/root/", checkout].into_iter().filter(|folder| folder.len() > 1);
    let mut found = vec![];
    for folder in folders {
        for (line, text) in (1..).zip(file.text.lines()) {
            let hits =
                text.match_indices(folder).filter(|(at, _)| begins_path(text[..*at].chars().next_back()));
            found.extend(hits.map(|_| Finding { line, what: format!("a path in {folder}") }));
        }
    }
    found
}

/// Match arms that name a variant of `DeviceConfig`: many different ones in a file are taken for a match over
/// all kinds.
fn matches_over_devices(file: &File) -> Vec<Finding> {
    const MANY: usize = 4;
    let code: Vec<Token> = file.product_tokens().into_iter().cloned().collect();
    let mut kinds: Vec<&Token> = (0..code.len()).filter_map(|at| device_arm(&code, at)).collect();
    kinds.sort_by(|a, b| a.text.cmp(&b.text));
    kinds.dedup_by(|a, b| a.text == b.text);
    match kinds.iter().map(|kind| kind.line).min() {
        Some(line) if kinds.len() >= MANY => {
            vec![Finding { line, what: format!("a match with {} kinds of devices", kinds.len()) }]
        }
        _ => vec![],
    }
}

/// The variant in the pattern `DeviceConfig::Variant`, with or without fields, if one begins at `at` and an arm
/// (`=>`) or an alternative (`|`) follows.
fn device_arm(code: &[Token], at: usize) -> Option<&Token> {
    let is = |index: usize, text: &str| code.get(index).is_some_and(|token| token.text == text);
    if !is(at, "DeviceConfig") || !is(at + 1, ":") || !is(at + 2, ":") {
        return None;
    }
    let has_fields = is(at + 4, "(") || is(at + 4, "{");
    let end = if has_fields { closing(code, at + 4) } else { at + 4 };
    let arm = is(end, "=") && is(end + 1, ">");
    let alternative = is(end, "|") && is(end + 1, "DeviceConfig");
    if arm || alternative { code.get(at + 3) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(rule: &Rule, path: &str, text: &str) -> Vec<Finding> {
        rule.check(&File::new(path, text))
    }

    #[test]
    fn every_rule_catches_its_examples() {
        for rule in RULES {
            for (path, text) in rule.catches {
                assert!(
                    !findings(rule, path, text).is_empty(),
                    "{}: nothing found in {path}: {text}",
                    rule.name
                );
            }
        }
    }

    #[test]
    fn every_rule_lets_its_counter_examples_pass() {
        for rule in RULES {
            for (path, text) in rule.passes {
                let found = findings(rule, path, text);
                assert!(found.is_empty(), "{}: {found:?} in {path}: {text}", rule.name);
            }
        }
    }

    #[test]
    fn every_rule_but_the_one_on_length_has_examples() {
        for rule in RULES.iter().filter(|rule| rule.name != "a file has one thought") {
            assert!(!rule.catches.is_empty() && !rule.passes.is_empty(), "{}", rule.name);
        }
    }

    #[test]
    fn a_file_may_have_the_allowed_length_and_not_a_line_more() {
        assert!(too_long(&File::new("a.rs", &"\n".repeat(MAX_LINES))).is_empty());
        assert_eq!(too_long(&File::new("a.rs", &"\n".repeat(MAX_LINES + 1))).len(), 1);
    }

    #[test]
    fn a_module_that_is_declared_for_tests_is_test_code() {
        let mut files = [
            File::new(
                "devices/src/lib.rs",
                "//! A.\n#[cfg(any(test, feature = \"testing\"))]\npub mod fake;\nmod real;",
            ),
            File::new("devices/src/fake.rs", "//! A.\nuse hypervisor::Vm;"),
            File::new("devices/src/fake/deep.rs", "//! A."),
            File::new("devices/src/real.rs", "//! A.\nuse hypervisor::Vm;"),
        ];
        source::mark_test_modules(&mut files);
        assert_eq!(files.map(|file| file.test_only), [false, true, true, false]);
    }

    #[test]
    fn strings_characters_and_lifetimes_are_told_apart() {
        let code = r##"let a = 'x'; let b = '\''; fn f<'a>(s: &'a str) { r#"un"safe"#; b"\"dbg"; '"' }"##;
        let words: Vec<String> = tokens(code).into_iter().map(|token| token.text).collect();
        assert!(words.contains(&"'a".to_owned()) && words.contains(&"str".to_owned()), "{words:?}");
        assert!(!words.iter().any(|word| word.contains("safe") || word.contains("dbg")), "{words:?}");
        assert_eq!(words.last().map(String::as_str), Some("}"));
    }

    #[test]
    fn nested_comments_end_where_they_end() {
        let file = File::new("a.rs", "/* a /* b */ unsafe { } */ fn f() {}\n/* c\nSAFETY: d */ g");
        let words: Vec<&str> = file.tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(words, ["fn", "f", "(", ")", "{", "}", "g"]);
        assert_eq!(file.comments.last().map(|comment| comment.line), Some(3));
    }

    #[test]
    fn code_behind_a_test_module_is_product_code_again() {
        let file = File::new("a.rs", "#[cfg(test)]\nmod tests { fn a() {} }\n#[cfg(not(test))]\nfn b() {}");
        let words: Vec<&str> = file.product_tokens().into_iter().map(|token| token.text.as_str()).collect();
        assert!(!words.contains(&"a") && words.contains(&"b"), "{words:?}");
    }
}
