//! `--config`: a VM as JSON, in a file or on standard input.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use api_client::wire::{Objects, VmConfig};

use super::OptionError;

/// The greatest configuration that is read, in bytes: as great as a request over the API may be.
const MAX_SIZE: u64 = 4 << 20;

/// Reads a configuration. Members that it knows nothing of are named in the log.
///
/// # Errors
/// The file cannot be read, is too large, or is no configuration.
pub(super) fn read(path: &Path) -> Result<VmConfig, OptionError> {
    let text = text(path).map_err(|source| OptionError::File { path: path.to_owned(), source })?;
    if text.len() as u64 > MAX_SIZE {
        return Err(OptionError::Large { path: path.to_owned(), limit: MAX_SIZE });
    }
    let (config, unknown) =
        parse(&text).map_err(|source| OptionError::Json { path: path.to_owned(), source })?;
    for member in unknown {
        log::warn!("--config {}: unknown member {member} has no effect", path.display());
    }
    Ok(config)
}

/// One byte more than there may be, if there are more.
fn text(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(MAX_SIZE + 1).read_to_end(&mut text)?;
    } else {
        File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut text)?;
    }
    Ok(text)
}

/// The configuration, and the paths of the members that are none of its own.
fn parse(text: &[u8]) -> Result<(VmConfig, Vec<String>), serde_json::Error> {
    let mut unknown = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(text);
    let Objects(config) = serde_ignored::deserialize(&mut json, |path| unknown.push(path.to_string()))?;
    json.end()?;
    Ok((config, unknown))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_configuration_is_read_and_unknown_members_are_named() {
        let text = br#"{"cpus":{"boot_vcpus":2,"max_vcpus":4,"speed":1},"disks":[{"path":"/d","colour":{"a":1}}],"x":1}"#;
        let (config, unknown) = parse(text).unwrap();
        assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (2, 4));
        assert_eq!(unknown, ["cpus.speed", "disks.?.0.colour", "x"]);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in [
            "",
            "{",
            "true",
            "7",
            "[]",
            "[{}]",
            r#"{"cpus":[1,2]}"#,
            r#"{"disks":[["/d"]]}"#,
            "{} {}",
            r#"{"cpus":null}"#,
            r#"{"cpus":{"boot_vcpus":-1,"max_vcpus":1}}"#,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_found_missing_or_too_large() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.json");
        assert!(matches!(read(&path), Err(OptionError::File { .. })));
        fs::write(&path, "{}").unwrap();
        assert_eq!(read(&path).unwrap(), VmConfig::default());
        File::options().write(true).open(&path).unwrap().set_len(MAX_SIZE + 1).unwrap();
        assert!(matches!(read(&path), Err(OptionError::Large { .. })));
    }
}
