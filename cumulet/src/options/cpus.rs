//! `--cpus`.

use api_client::wire::{CoreScheduling, CpuAffinity, CpuFeatures, CpuProfile, CpuTopology, CpusConfig};

use super::{
    grammar::{GrammarError, Keys, Pairs},
    values::{Tuple, number},
};

/// Its keys.
pub const KEYS: Keys = &[&[
    "boot=1",
    "max=BOOT",
    "topology=THREADS:CORES:DIES:PACKAGES",
    "kvm_hyperv=off",
    "max_phys_bits=46",
    "affinity=[VCPU@[CPU,...],...]",
    "features=[amx]",
    "nested=on",
    "core_scheduling=vm",
    "profile=Host",
    "hide=[FEATURE,...]",
]];

const CORE_SCHEDULING: [(&str, CoreScheduling); 3] =
    [("vm", CoreScheduling::Vm), ("vcpu", CoreScheduling::Vcpu), ("off", CoreScheduling::Off)];

/// Reads it.
///
/// # Errors
/// A key or value that is none.
pub fn parse(text: &str) -> Result<CpusConfig, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    let default = CpusConfig::default();
    let boot_vcpus = pairs.number("boot")?.unwrap_or(default.boot_vcpus);
    Ok(CpusConfig {
        boot_vcpus,
        max_vcpus: pairs.number("max")?.unwrap_or(boot_vcpus),
        topology: pairs.read("topology", topology)?,
        kvm_hyperv: pairs.toggle("kvm_hyperv")?.unwrap_or(default.kvm_hyperv),
        max_phys_bits: pairs.number("max_phys_bits")?.unwrap_or(default.max_phys_bits),
        affinity: affinity(&pairs)?,
        features: features(&pairs)?,
        nested: pairs.toggle("nested")?.unwrap_or(default.nested),
        core_scheduling: pairs.word("core_scheduling", &CORE_SCHEDULING)?.unwrap_or_default(),
        profile: pairs.exact_word("profile", &[("Host", CpuProfile::Host)])?.unwrap_or_default(),
        hide: pairs.strings("hide")?.unwrap_or_default(),
    })
}

fn topology(text: &str) -> Result<CpuTopology, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [threads, cores, dies, packages] = parts[..] else {
        return Err(format!("{text:?} is not THREADS:CORES:DIES:PACKAGES"));
    };
    Ok(CpuTopology {
        threads_per_core: number(threads)?,
        cores_per_die: number(cores)?,
        dies_per_package: number(dies)?,
        packages: number(packages)?,
    })
}

/// Where vCPUs run: the key `affinity`.
///
/// # Errors
/// It is no list of vCPUs and host CPUs.
pub(super) fn affinity(pairs: &Pairs) -> Result<Option<Vec<CpuAffinity>>, GrammarError> {
    let tuples = pairs.tuples("affinity")?;
    tuples.map(|tuples| tuples.into_iter().map(pinned).collect()).transpose()
}

fn pinned((vcpu, host_cpus): Tuple) -> Result<CpuAffinity, GrammarError> {
    let wrong = |what| GrammarError::value("affinity", what);
    let host_cpus = host_cpus
        .into_iter()
        .map(|cpu| usize::try_from(cpu).map_err(|_| wrong(format!("there is no CPU {cpu}"))));
    Ok(CpuAffinity { vcpu: number(&vcpu).map_err(wrong)?, host_cpus: host_cpus.collect::<Result<_, _>>()? })
}

fn features(pairs: &Pairs) -> Result<CpuFeatures, GrammarError> {
    let mut features = CpuFeatures::default();
    for feature in pairs.strings("features")?.unwrap_or_default() {
        match feature.as_str() {
            "amx" => features.amx = true,
            _ => return Err(GrammarError::value("features", format!("{feature:?} is not amx"))),
        }
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_arrives() {
        let text = "boot=2,max=8,topology=2:2:1:2,kvm_hyperv=on,max_phys_bits=40,affinity=[0@[1,3-4],1@2],\
                    features=[amx],nested=off,core_scheduling=VCPU,profile=Host,hide=[cx16,xsave]";
        let expected = CpusConfig {
            boot_vcpus: 2,
            max_vcpus: 8,
            topology: Some(CpuTopology {
                threads_per_core: 2,
                cores_per_die: 2,
                dies_per_package: 1,
                packages: 2,
            }),
            kvm_hyperv: true,
            max_phys_bits: 40,
            affinity: Some(vec![
                CpuAffinity { vcpu: 0, host_cpus: vec![1, 3, 4] },
                CpuAffinity { vcpu: 1, host_cpus: vec![2] },
            ]),
            features: CpuFeatures { amx: true },
            nested: false,
            core_scheduling: CoreScheduling::Vcpu,
            profile: CpuProfile::Host,
            hide: vec!["cx16".into(), "xsave".into()],
        };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        assert_eq!(parse(""), Ok(CpusConfig::default()));
        assert_eq!(parse("boot=3").map(|cpus| cpus.max_vcpus), Ok(3), "max is boot");
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        for (text, said) in [
            ("boot=two", r#"boot: "two" is not a decimal number"#),
            ("topology=1:2:3", r#"topology: "1:2:3" is not THREADS:CORES:DIES:PACKAGES"#),
            ("features=[mmx]", r#"features: "mmx" is not amx"#),
            ("profile=host", r#"profile: "host" is not one of Host"#),
            ("affinity=[a@1]", r#"affinity: "a" is not a decimal number"#),
            ("max_phys_bits=256", "max_phys_bits: 256 has more than 8 bits"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said, "{text}");
        }
    }
}
