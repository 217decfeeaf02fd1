//! CPU features by name: which bit each is, which others fall with it, and sets of them.
//!
//! Names are those of Linux's `/proc/cpuinfo`, since that is where users read them. They serve two
//! purposes: hiding features from a guest ([`cpuid`](super::cpuid)), and naming what a host lacks
//! ([`compat`](super::compat)).

mod table;

use std::{collections::BTreeSet, fmt, sync::LazyLock};

use hypervisor::x86_64::CpuidEntry;
use table::{DEPENDENTS, WORDS};
use thiserror::Error;

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// Its value in an entry.
    pub fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    /// Its place in an entry.
    pub fn of_mut(self, entry: &mut CpuidEntry) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

/// A register of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf; 0 where the leaf has none.
    pub subleaf: u32,
    /// Register.
    pub register: Register,
}

impl Word {
    /// Its value in a table, 0 when the leaf is not there.
    pub fn of(&self, table: &[CpuidEntry]) -> u32 {
        table
            .iter()
            .find(|entry| entry.leaf == self.leaf && entry.subleaf == self.subleaf)
            .map_or(0, |entry| self.register.of(entry))
    }
}

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name as in `/proc/cpuinfo`. Several bits may share one, where vendors report the same ability
    /// in different places.
    pub name: &'static str,
    /// The register.
    pub word: Word,
    /// The bit of the register.
    pub bit: u32,
}

/// The words of the table taken apart: a table of CPUID is held against it dozens of times in each start.
static FEATURES: LazyLock<Vec<Feature>> = LazyLock::new(|| {
    let features = WORDS.iter().flat_map(|(word, names)| {
        (0..).zip(names.split_whitespace()).flat_map(move |(bit, names)| {
            let names = names.split('|').filter(|name| *name != "-");
            names.map(move |name| Feature { name, word: *word, bit })
        })
    });
    features.collect()
});

/// All feature bits that have a name, register by register.
pub fn features() -> impl Iterator<Item = Feature> {
    FEATURES.iter().copied()
}

/// The registers that hold nothing but feature bits.
pub fn words() -> impl Iterator<Item = Word> {
    WORDS.iter().map(|(word, _)| *word)
}

/// The name of a bit, if it has one.
pub fn name(word: &Word, bit: u32) -> Option<&'static str> {
    features().find(|feature| feature.word == *word && feature.bit == bit).map(|feature| feature.name)
}

/// Whether a table has a feature, in any of the places where it may be reported.
pub fn has(table: &[CpuidEntry], name: &str) -> bool {
    features().any(|feature| feature.name == name && feature.word.of(table) & (1 << feature.bit) != 0)
}

/// The names of all features of a table, each once, in the order of the registers.
pub fn of(table: &[CpuidEntry]) -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    let there = features().filter(|feature| feature.word.of(table) & (1 << feature.bit) != 0);
    there.map(|feature| feature.name).filter(|name| seen.insert(*name)).collect()
}

/// A name that is no CPU feature.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown CPU feature {name:?}: did you mean {}?", .nearest.join(", "))]
pub struct UnknownFeature {
    /// The name given.
    pub name: String,
    /// Names that are like it, the likest first.
    pub nearest: Vec<&'static str>,
}

/// A set of features that is closed: with a feature, all that cannot be without it are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet(BTreeSet<&'static str>);

impl FeatureSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self(BTreeSet::new())
    }

    /// The set of these features and of all that depend on them.
    ///
    /// # Errors
    /// A name is unknown.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownFeature> {
        let mut set = Self::new();
        for name in names {
            set.insert(name)?;
        }
        Ok(set)
    }

    /// Adds a feature and all that depend on it.
    ///
    /// # Errors
    /// The name is unknown.
    pub fn insert(&mut self, name: &str) -> Result<(), UnknownFeature> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
        let feature = features().find(|feature| feature.name == name).ok_or_else(|| UnknownFeature {
            name: name.chars().take(64).collect(),
            nearest: nearest(name),
        })?;
        let mut pending = vec![feature.name];
        while let Some(name) = pending.pop() {
            if self.0.insert(name) {
                let needing = DEPENDENTS.iter().filter(|(needed, _)| *needed == name);
                pending.extend(needing.flat_map(|(_, dependents)| dependents.split_whitespace()));
            }
        }
        Ok(())
    }

    /// Whether a feature is in the set.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().copied()
    }

    /// Clears the bits of all features of the set.
    pub fn hide_from(&self, table: &mut [CpuidEntry]) {
        for feature in features().filter(|feature| self.contains(feature.name)) {
            for entry in table.iter_mut() {
                if entry.leaf == feature.word.leaf && entry.subleaf == feature.word.subleaf {
                    *feature.word.register.of_mut(entry) &= !(1 << feature.bit);
                }
            }
        }
    }
}

/// Names that people use for what `/proc/cpuinfo` calls something else.
const ALIASES: &[(&str, &str)] = &[("sse3", "pni"), ("sha", "sha_ni"), ("invtsc", "nonstop_tsc")];

/// At most four known names that are like `name`.
fn nearest(name: &str) -> Vec<&'static str> {
    let name = name.to_ascii_lowercase();
    // Beyond the length of any name only the bound on the work matters.
    let name: String = name.chars().take(32).collect();
    let mut names: Vec<&str> = features().map(|feature| feature.name).collect();
    names.sort_unstable();
    names.dedup();
    let mut scored: Vec<(usize, &str)> = names
        .into_iter()
        .map(|known| {
            let longer = !name.is_empty() && known.starts_with(&name);
            (if longer { 1 } else { distance(&name, known) }, known)
        })
        .collect();
    scored.sort_unstable();
    scored.into_iter().take(4).map(|(_, known)| known).collect()
}

/// Number of characters to insert, remove or replace to turn one name into the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, from) in from.chars().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&to) {
            let above = *cell;
            left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_in_a_register_and_requirements_are_known() {
        let mut seen = BTreeSet::new();
        for feature in features() {
            assert!(feature.bit < 32, "{}", feature.name);
            assert!(
                seen.insert((feature.name, feature.word)),
                "{} twice in {:?}",
                feature.name,
                feature.word
            );
        }
        for (needed, dependents) in DEPENDENTS {
            for name in dependents.split_whitespace().chain([*needed]) {
                assert!(features().any(|feature| feature.name == name), "{name}");
            }
        }
    }

    #[test]
    fn dependents_fall_with_what_they_need() {
        let set = FeatureSet::parse(["xsave"]).unwrap();
        for name in
            ["xsave", "osxsave", "xsaveopt", "avx", "avx2", "avx512f", "avx512_vnni", "amx_tile", "pku"]
        {
            assert!(set.contains(name), "{name}");
        }
        for name in ["fxsr", "sse2", "sse4_2", "aes", "cx16"] {
            assert!(!set.contains(name), "{name}");
        }
        let set = FeatureSet::parse(["cx16"]).unwrap();
        assert_eq!(set.names().collect::<Vec<_>>(), ["cx16"]);
        assert!(FeatureSet::parse(["sse3"]).unwrap().contains("sse4_1"));
    }

    #[test]
    fn unknown_names_are_answered_with_likely_ones() {
        let message = |name| FeatureSet::parse([name]).unwrap_err().to_string();
        assert!(message("avx512").starts_with("unknown CPU feature \"avx512\": did you mean avx512_"));
        assert!(message("cx17").contains("cx16"));
        assert!(message("AVX").contains("avx"));
        assert!(message("").contains("did you mean"));
        let long = "x".repeat(1 << 16);
        assert!(message(&long).len() < 200);
    }

    #[test]
    fn hiding_clears_every_place() {
        let mut table = [
            CpuidEntry { leaf: 1, edx: u32::MAX, ecx: u32::MAX, ..Default::default() },
            CpuidEntry { leaf: 0x8000_0001, edx: u32::MAX, ..Default::default() },
            CpuidEntry { leaf: 7, subleaf: 1, eax: u32::MAX, ..Default::default() },
        ];
        FeatureSet::parse(["mtrr", "cx16", "avx"]).unwrap().hide_from(&mut table);
        assert_eq!(table[0].edx, !(1 << 12));
        assert_eq!(table[1].edx, !(1 << 12));
        assert_eq!(table[0].ecx & (1 << 13 | 1 << 28 | 1 << 12), 0);
        assert_eq!(table[2].eax & (1 << 4 | 1 << 5), 0, "avx_vnni and avx512_bf16");
        assert!(!has(&table, "cx16") && has(&table, "sse4_2"));
    }

    #[test]
    fn well_known_bits_are_where_the_manuals_have_them() {
        for (name, leaf, subleaf, register, bit) in [
            ("cx16", 1, 0, Register::Ecx, 13),
            ("xsave", 1, 0, Register::Ecx, 26),
            ("hypervisor", 1, 0, Register::Ecx, 31),
            ("ht", 1, 0, Register::Edx, 28),
            ("avx2", 7, 0, Register::Ebx, 5),
            ("avx512f", 7, 0, Register::Ebx, 16),
            ("avx512vl", 7, 0, Register::Ebx, 31),
            ("pku", 7, 0, Register::Ecx, 3),
            ("la57", 7, 0, Register::Ecx, 16),
            ("arch_capabilities", 7, 0, Register::Edx, 29),
            ("amx_fp16", 7, 1, Register::Eax, 21),
            ("xsaves", 0xd, 1, Register::Eax, 3),
            ("lm", 0x8000_0001, 0, Register::Edx, 29),
            ("svm", 0x8000_0001, 0, Register::Ecx, 2),
            ("topoext", 0x8000_0001, 0, Register::Ecx, 22),
            ("nonstop_tsc", 0x8000_0007, 0, Register::Edx, 8),
            ("kvm_msi_ext_dest_id", 0x4000_0001, 0, Register::Eax, 15),
        ] {
            let word = Word { leaf, subleaf, register };
            assert!(features().any(|f| f.name == name && f.word == word && f.bit == bit), "{name}");
        }
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("avx2", "avx2"), 0);
    }
}
