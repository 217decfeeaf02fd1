//! What a restore takes from this host in place of what the snapshot names: the value of `overrides=` in `--restore`.

use api_client::wire::{ConsoleMode, RestoreOverride};

use super::{
    cpus,
    grammar::{GrammarError, Keys, Pairs, split},
    net,
    values::inside,
};

/// The keys of each.
pub const KEYS: Keys = &[&[
    "id=ID",
    "path=PATH",
    "tap=NAME",
    "mac=ADDRESS",
    "host_mac=ADDRESS",
    "mode=off|null|pty|tty|file|socket",
    "file=PATH",
    "socket=PATH",
    "cid=CID",
    "host_numa_node=NODE",
    "affinity=[VCPU@[CPU,...],...]",
]];

const MODES: [(&str, ConsoleMode); 6] = [
    ("off", ConsoleMode::Off),
    ("null", ConsoleMode::Null),
    ("pty", ConsoleMode::Pty),
    ("tty", ConsoleMode::Tty),
    ("file", ConsoleMode::File),
    ("socket", ConsoleMode::Socket),
];

/// Reads `[[KEYS],[KEYS],...]`.
///
/// # Errors
/// It is no such list, or an entry has a key or value that is none, or no id.
pub fn parse(text: &str) -> Result<Vec<RestoreOverride>, GrammarError> {
    let wrong = |what: &str| GrammarError::value("overrides", format!("{what:?} is not in brackets"));
    let inner = inside(text).ok_or_else(|| wrong(text))?.trim();
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    split(inner)?
        .into_iter()
        .map(|one| {
            let keys = inside(one.trim()).ok_or_else(|| wrong(one))?;
            entry(keys).map_err(|error| GrammarError::value("overrides", error.to_string()))
        })
        .collect()
}

fn entry(text: &str) -> Result<RestoreOverride, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    Ok(RestoreOverride {
        id: pairs.required("id")?,
        path: pairs.path("path"),
        tap: pairs.text("tap"),
        mac: pairs.read("mac", net::mac)?,
        host_mac: pairs.read("host_mac", net::mac)?,
        mode: pairs.word("mode", &MODES)?,
        file: pairs.path("file"),
        socket: pairs.path("socket"),
        cid: pairs.number("cid")?,
        host_numa_node: pairs.number("host_numa_node")?,
        affinity: cpus::affinity(&pairs)?,
    })
}

#[cfg(test)]
mod tests {
    use api_client::wire::{CpuAffinity, MacAddress};

    use super::*;

    #[test]
    fn every_key_arrives() {
        let text = r#"[[id=_disk0,path="/images/a,b.raw"], [id=_net1,tap=tap7,mac=12:34:56:78:9a:bc,host_mac=2e:00:00:00:00:01],
            [id=__serial,mode=socket,socket=/s],[id=__console,mode=File,file=/f],[id=mem0,host_numa_node=1,file=/m],
            [id=__cpus,affinity=[0@[1,3],1@2]],[id=_vsock3,socket=/v,cid=44]]"#;
        let expected = [
            RestoreOverride {
                id: "_disk0".into(),
                path: Some("/images/a,b.raw".into()),
                ..RestoreOverride::default()
            },
            RestoreOverride {
                id: "_net1".into(),
                tap: Some("tap7".into()),
                mac: Some(MacAddress([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc])),
                host_mac: Some(MacAddress([0x2e, 0, 0, 0, 0, 1])),
                ..RestoreOverride::default()
            },
            RestoreOverride {
                id: "__serial".into(),
                mode: Some(ConsoleMode::Socket),
                socket: Some("/s".into()),
                ..RestoreOverride::default()
            },
            RestoreOverride {
                id: "__console".into(),
                mode: Some(ConsoleMode::File),
                file: Some("/f".into()),
                ..RestoreOverride::default()
            },
            RestoreOverride {
                id: "mem0".into(),
                host_numa_node: Some(1),
                file: Some("/m".into()),
                ..RestoreOverride::default()
            },
            RestoreOverride {
                id: "__cpus".into(),
                affinity: Some(vec![
                    CpuAffinity { vcpu: 0, host_cpus: vec![1, 3] },
                    CpuAffinity { vcpu: 1, host_cpus: vec![2] },
                ]),
                ..RestoreOverride::default()
            },
            RestoreOverride {
                id: "_vsock3".into(),
                socket: Some("/v".into()),
                cid: Some(44),
                ..RestoreOverride::default()
            },
        ];
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("[]").unwrap(), []);
    }

    #[test]
    fn what_does_not_read_is_named() {
        for (text, said) in [
            ("id=a,path=/b", r#"overrides: "id=a,path=/b" is not in brackets"#),
            ("[id=a]", r#"overrides: "id=a" is not in brackets"#),
            ("[[path=/b]]", "overrides: id: is missing, and has no default"),
            (
                "[[id=a,mode=loud]]",
                r#"overrides: mode: "loud" is not one of off, null, pty, tty, file, socket"#,
            ),
            ("[[id=a,mac=1]]", r#"overrides: mac: "1" is not a MAC address like 12:34:56:78:9a:bc"#),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said, "{text}");
        }
        assert!(parse("[[id=a,size=1]]").unwrap_err().to_string().contains("size"));
    }
}
