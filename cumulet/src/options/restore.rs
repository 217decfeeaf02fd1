//! `--restore`.

use std::{
    num::{NonZeroU32, NonZeroU64},
    os::fd::OwnedFd,
    sync::Arc,
};

use api_client::wire::{
    BackgroundFill, GenerationId, MemoryRestoreMode, RestoreClock, RestoreConfig, RestoreTsc, RestoreVerify,
    RestoredNetConfig, RestoredVfioConfig, ZoneUpdate,
};

use super::{
    descriptor,
    grammar::{GrammarError, Keys, Pairs},
    overrides, values,
};

/// Its keys.
pub const KEYS: Keys = &[&[
    "source_url=file://DIRECTORY",
    "prefault=off",
    "memory_restore_mode=copy|cow|ondemand",
    "verify=off|state|full",
    "background_fill=none|workingset|all@BYTES_PER_SECOND",
    "record_working_set=MS",
    "generation_id=new|keep",
    "clock=wall|frozen|advance",
    "tsc=saved|host",
    "net_fds=[ID@[FD,...],...]",
    "vfio_fds=[ID@FD,...]",
    "iommufd_fd=FD",
    "resume=off",
    "zone_updates=[ZONE@NODE,...]",
    "overrides=[[id=ID,KEY=VALUE,...],...]",
    "dry_run=off",
]];

const MODES: [(&str, MemoryRestoreMode); 3] = [
    ("copy", MemoryRestoreMode::Copy),
    ("cow", MemoryRestoreMode::Cow),
    ("ondemand", MemoryRestoreMode::OnDemand),
];

const CHECKS: [(&str, RestoreVerify); 3] =
    [("off", RestoreVerify::Off), ("state", RestoreVerify::State), ("full", RestoreVerify::Full)];

const GENERATIONS: [(&str, GenerationId); 2] = [("new", GenerationId::New), ("keep", GenerationId::Keep)];

const CLOCKS: [(&str, RestoreClock); 3] =
    [("wall", RestoreClock::Wall), ("frozen", RestoreClock::Frozen), ("advance", RestoreClock::Advance)];

const TSC: [(&str, RestoreTsc); 2] = [("saved", RestoreTsc::Saved), ("host", RestoreTsc::Host)];

/// A restore, as a request over the API would be: what is asked for, and the descriptors that come along.
#[derive(Clone, Debug)]
pub struct Restore {
    /// What is asked for.
    pub config: RestoreConfig,
    /// All taps in the order of `net_fds`, then one for each of `vfio_fds`, then the iommufd.
    pub descriptors: Vec<Arc<OwnedFd>>,
}

/// Reads it. Descriptors that were handed over are duplicated.
///
/// # Errors
/// A key or value that is none, no source, or a descriptor that is not open.
pub fn parse(text: &str) -> Result<Restore, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    let source_url = pairs.required("source_url")?;
    if source_url.strip_prefix("file://").is_none_or(str::is_empty) {
        return Err(GrammarError::value("source_url", format!("{source_url:?} is not file://DIRECTORY")));
    }
    let mut descriptors = Vec::new();
    let mut nets = Vec::new();
    for (id, fds) in pairs.tuples("net_fds")?.unwrap_or_default() {
        nets.push(RestoredNetConfig { id, num_fds: fds.len() });
        for fd in fds {
            let fd =
                i32::try_from(fd).map_err(|_| GrammarError::value("net_fds", format!("there is no {fd}")))?;
            descriptors.push(descriptor::inherited("net_fds", fd)?);
        }
    }
    let vfio_fds = vfio_descriptors(&pairs, &mut descriptors)?;
    let (background_fill, fill_bytes_per_second) = match pairs.read("background_fill", fill)? {
        Some((fill, rate)) => (Some(fill), rate),
        None => (None, None),
    };
    let config = RestoreConfig {
        source_url,
        prefault: pairs.toggle("prefault")?.unwrap_or(false),
        memory_restore_mode: pairs.word("memory_restore_mode", &MODES)?,
        verify: pairs.word("verify", &CHECKS)?,
        background_fill,
        fill_bytes_per_second,
        record_working_set_ms: pairs.read("record_working_set", |text| {
            NonZeroU32::new(values::number(text)?).ok_or_else(|| "0 milliseconds are none".to_owned())
        })?,
        commit: None,
        generation_id: pairs.word("generation_id", &GENERATIONS)?,
        clock: pairs.word("clock", &CLOCKS)?,
        tsc: pairs.word("tsc", &TSC)?,
        net_fds: (!nets.is_empty()).then_some(nets),
        vfio_fds,
        resume: pairs.toggle("resume")?.unwrap_or(false),
        zone_updates: zone_updates(&pairs)?,
        overrides: pairs.raw("overrides").map(overrides::parse).transpose()?.unwrap_or_default(),
        dry_run: pairs.toggle("dry_run")?.unwrap_or(false),
    };
    Ok(Restore { config, descriptors })
}

/// What is brought in, and how many bytes a second at most.
fn fill(text: &str) -> Result<(BackgroundFill, Option<NonZeroU64>), String> {
    match text.split_once('@') {
        None if text.eq_ignore_ascii_case("none") => Ok((BackgroundFill::None, None)),
        None if text.eq_ignore_ascii_case("workingset") => Ok((BackgroundFill::WorkingSet, None)),
        Some((all, rate)) if all.eq_ignore_ascii_case("all") => match NonZeroU64::new(values::size(rate)?) {
            Some(rate) => Ok((BackgroundFill::All, Some(rate))),
            None => Err("all: 0 bytes a second are none".to_owned()),
        },
        _ => Err(format!("{text:?} is not none, workingset or all@BYTES_PER_SECOND")),
    }
}

/// VFIO devices that are handed over, for a restore and for a migration that is received: their descriptors, and the
/// iommufd behind them, are added to `descriptors`.
///
/// # Errors
/// A descriptor is not open, or one of the two keys is there without the other.
pub(crate) fn vfio_descriptors(
    pairs: &Pairs,
    descriptors: &mut Vec<Arc<OwnedFd>>,
) -> Result<Option<Vec<RestoredVfioConfig>>, GrammarError> {
    let mut devices = Vec::new();
    for (id, fd) in pairs.single_tuples("vfio_fds")?.unwrap_or_default() {
        devices.push(RestoredVfioConfig { id });
        descriptors.push(descriptor::inherited("vfio_fds", fd)?);
    }
    let iommufd = pairs.number("iommufd_fd")?;
    if iommufd.is_some() == devices.is_empty() {
        return Err(GrammarError::Whole("vfio_fds and iommufd_fd need each other".into()));
    }
    if let Some(fd) = iommufd {
        descriptors.push(descriptor::inherited("iommufd_fd", fd)?);
    }
    Ok((!devices.is_empty()).then_some(devices))
}

/// Memory zones that come from another node of this host.
///
/// # Errors
/// The value is no list of zones and nodes.
pub(crate) fn zone_updates(pairs: &Pairs) -> Result<Vec<ZoneUpdate>, GrammarError> {
    let moved = pairs.single_tuples("zone_updates")?.unwrap_or_default();
    Ok(moved.into_iter().map(|(id, host_numa_node)| ZoneUpdate { id, host_numa_node }).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use api_client::wire::RestoreOverride;

    use super::*;

    #[test]
    fn every_key_arrives() {
        let files: Vec<File> = (0..5).map(|_| File::open("/dev/null").unwrap()).collect();
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|at: usize| files[at].as_raw_fd());
        let restore = parse(&format!(
            "source_url=file:///snapshot,prefault=on,memory_restore_mode=ondemand,verify=full,background_fill=All@64M,record_working_set=250,generation_id=keep,clock=advance,tsc=host,net_fds=[n0@[{a},{b}],n1@{c}],\
             vfio_fds=[v0@{d}],iommufd_fd={e},resume=on,zone_updates=[z0@1],overrides=[[id=d0,path=/d],[id=n1,tap=t]],dry_run=on"
        ))
        .unwrap();
        let expected = RestoreConfig {
            source_url: "file:///snapshot".into(),
            prefault: true,
            memory_restore_mode: Some(MemoryRestoreMode::OnDemand),
            verify: Some(RestoreVerify::Full),
            background_fill: Some(BackgroundFill::All),
            fill_bytes_per_second: NonZeroU64::new(64 << 20),
            record_working_set_ms: NonZeroU32::new(250),
            commit: None,
            generation_id: Some(GenerationId::Keep),
            clock: Some(RestoreClock::Advance),
            tsc: Some(RestoreTsc::Host),
            net_fds: Some(vec![
                RestoredNetConfig { id: "n0".into(), num_fds: 2 },
                RestoredNetConfig { id: "n1".into(), num_fds: 1 },
            ]),
            vfio_fds: Some(vec![RestoredVfioConfig { id: "v0".into() }]),
            resume: true,
            zone_updates: vec![ZoneUpdate { id: "z0".into(), host_numa_node: 1 }],
            overrides: vec![
                RestoreOverride { id: "d0".into(), path: Some("/d".into()), ..RestoreOverride::default() },
                RestoreOverride { id: "n1".into(), tap: Some("t".into()), ..RestoreOverride::default() },
            ],
            dry_run: true,
        };
        assert_eq!(restore.config, expected);
        assert_eq!(restore.descriptors.len(), 5);
    }

    #[test]
    fn the_source_is_enough() {
        let restore = parse("source_url=file:///snapshot").unwrap();
        let expected = RestoreConfig { source_url: "file:///snapshot".into(), ..RestoreConfig::default() };
        assert_eq!(restore.config, expected);
        assert!(restore.descriptors.is_empty());
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        for (text, said) in [
            ("", "source_url: is missing, and has no default"),
            ("source_url=/snapshot", r#"source_url: "/snapshot" is not file://DIRECTORY"#),
            ("source_url=file://", r#"source_url: "file://" is not file://DIRECTORY"#),
            (
                "source_url=file:///s,memory_restore_mode=lazy",
                r#"memory_restore_mode: "lazy" is not one of copy, cow, ondemand"#,
            ),
            (
                "source_url=file:///s,background_fill=all",
                r#"background_fill: "all" is not none, workingset or all@BYTES_PER_SECOND"#,
            ),
            ("source_url=file:///s,background_fill=all@0", "background_fill: all: 0 bytes a second are none"),
            (
                "source_url=file:///s,background_fill=all@1T",
                r#"background_fill: "1T" is not a decimal number with an optional K, M or G"#,
            ),
            ("source_url=file:///s,record_working_set=0", "record_working_set: 0 milliseconds are none"),
            ("source_url=file:///s,net_fds=[n@1]", "net_fds: 1 is one of the standard descriptors"),
            ("source_url=file:///s,iommufd_fd=3", "vfio_fds and iommufd_fd need each other"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said, "{text}");
        }
    }
}
