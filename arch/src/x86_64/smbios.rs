//! SMBIOS (System Management BIOS 3.6): who made the machine and what it is called.
//!
//! A 64-bit entry point and the table behind it, at a fixed place below 1 MiB where guests search
//! and where OVMF's Cloud Hypervisor build looks. Types: 0 (BIOS, of which there is none, but which
//! every reader expects), 1 (system), 3 (chassis), 11 (OEM strings, where cloud-init and systemd find
//! what the host hands to the guest), 32 (boot status), 127 (end).

use thiserror::Error;

use super::layout::{SMBIOS_SIZE, SMBIOS_START};

/// Where the table starts; the entry point is in front of it.
const TABLE_START: u64 = SMBIOS_START + 32;
const ENTRY_POINT_SIZE: u8 = 24;

const MANUFACTURER: &str = "Cumulet";
const PRODUCT: &str = "cumulet";

/// Longest string. A structure has at most 64 KiB in common readers, and so has the whole table here.
const MAX_STRING: usize = 32 * 1024;

/// Unknown, safe and the like, in the enumerations of types 3 and 32.
const CHASSIS_OTHER: u8 = 1;
const STATE_SAFE: u8 = 3;
const SECURITY_NONE: u8 = 3;

/// What the guest is told. Empty means the default, or for the optional ones: not specified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosConfig {
    /// Manufacturer of the system.
    pub manufacturer: Option<String>,
    /// Product name of the system.
    pub product: Option<String>,
    /// Version of the system.
    pub version: Option<String>,
    /// Serial number of the system.
    pub serial: Option<String>,
    /// UUID of the system.
    pub uuid: Option<[u8; 16]>,
    /// Stock keeping unit.
    pub sku: Option<String>,
    /// Product family.
    pub family: Option<String>,
    /// Asset tag of the chassis.
    pub asset_tag: Option<String>,
    /// OEM strings.
    pub oem_strings: Vec<String>,
}

/// Why no table can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SmbiosError {
    /// A string that a reader would cut off or misread.
    #[error("SMBIOS {field}: a NUL character at position {position}")]
    Nul {
        /// Which string.
        field: &'static str,
        /// Where.
        position: usize,
    },

    /// A string that is too long.
    #[error("SMBIOS {field}: {len} bytes, at most {MAX_STRING}")]
    Long {
        /// Which string.
        field: &'static str,
        /// Its length.
        len: usize,
    },

    /// All strings together are too long.
    #[error("SMBIOS table of {size:#x} bytes: at most {max:#x}", max = SMBIOS_SIZE - (TABLE_START - SMBIOS_START))]
    Large {
        /// Size of the table.
        size: u64,
    },

    /// A UUID that is none.
    #[error(
        "UUID {text:?}: expected 32 hexadecimal digits, with hyphens as in 00112233-4455-6677-8899-aabbccddeeff"
    )]
    Uuid {
        /// What was given.
        text: String,
    },
}

/// Reads a UUID in its usual form, or without hyphens.
///
/// # Errors
/// It is not a UUID.
pub fn parse_uuid(text: &str) -> Result<[u8; 16], SmbiosError> {
    let refused = || SmbiosError::Uuid { text: text.chars().take(64).collect() };
    let hyphens: Vec<usize> = text.match_indices('-').map(|(position, _)| position).collect();
    if !hyphens.is_empty() && hyphens != [8, 13, 18, 23] {
        return Err(refused());
    }
    let digits: Vec<u8> = text
        .chars()
        .filter(|character| *character != '-')
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .ok_or_else(refused)?;
    let mut uuid = [0; 16];
    if digits.len() != 32 {
        return Err(refused());
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    }
    Ok(uuid)
}

/// The entry point and the table, as one piece and its address.
///
/// # Errors
/// A string cannot be represented, or all together are too long.
pub fn build(config: &SmbiosConfig) -> Result<(u64, Vec<u8>), SmbiosError> {
    let mut table = Table::default();
    table.bios()?;
    table.system(config)?;
    table.chassis(config)?;
    let oem_strings: Vec<&String> = config.oem_strings.iter().filter(|text| !text.is_empty()).collect();
    for texts in oem_strings.chunks(usize::from(u8::MAX)) {
        table.oem_strings(texts)?;
    }
    table.boot_status()?;
    table.end()?;

    let size = table.bytes.len() as u64;
    let max = SMBIOS_SIZE - (TABLE_START - SMBIOS_START);
    let size =
        u32::try_from(size).ok().filter(|size| u64::from(*size) <= max).ok_or(SmbiosError::Large { size })?;
    let mut bytes = entry_point(size);
    bytes.resize(32, 0);
    bytes.extend(table.bytes);
    Ok((SMBIOS_START, bytes))
}

/// The 64-bit entry point (section 5.2.2).
fn entry_point(table_size: u32) -> Vec<u8> {
    let (major, minor, document_revision, revision) = (3, 6, 0, 1);
    let mut bytes = b"_SM3_\0".to_vec();
    bytes.extend_from_slice(&[ENTRY_POINT_SIZE, major, minor, document_revision, revision, 0]);
    bytes.extend_from_slice(&table_size.to_le_bytes());
    bytes.extend_from_slice(&TABLE_START.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    bytes
}

/// The structures made so far.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    structures: u16,
}

/// The strings of one structure, numbered from 1; 0 is a string that is not given.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    count: u8,
}

impl Strings {
    fn add(&mut self, field: &'static str, text: &str) -> Result<u8, SmbiosError> {
        if text.is_empty() {
            return Ok(0);
        }
        if text.len() > MAX_STRING {
            return Err(SmbiosError::Long { field, len: text.len() });
        }
        if let Some(position) = text.find('\0') {
            return Err(SmbiosError::Nul { field, position });
        }
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.count += 1;
        Ok(self.count)
    }

    fn optional(&mut self, field: &'static str, text: Option<&String>) -> Result<u8, SmbiosError> {
        self.add(field, text.map_or("", String::as_str))
    }
}

impl Table {
    /// Appends a structure: its header, its fields, its strings (section 6.1).
    fn push(&mut self, kind: u8, fields: &[u8], strings: Strings) {
        let len = u8::try_from(4 + fields.len()).expect("structures of this module are short");
        self.bytes.extend_from_slice(&[kind, len]);
        self.bytes.extend_from_slice(&self.structures.to_le_bytes());
        self.bytes.extend_from_slice(fields);
        let no_strings = strings.bytes.is_empty();
        self.bytes.extend(strings.bytes);
        self.bytes.extend_from_slice(if no_strings { &[0, 0] } else { &[0] });
        self.structures = self.structures.saturating_add(1);
    }

    /// Type 0. The characteristics say: virtual machine, ACPI, UEFI neither claimed nor denied.
    fn bios(&mut self) -> Result<(), SmbiosError> {
        let mut strings = Strings::default();
        let vendor = strings.add("BIOS vendor", MANUFACTURER)?;
        let version = strings.add("BIOS version", env!("CARGO_PKG_VERSION"))?;
        let (segment, date, rom_size) = (0u16, 0, 0);
        let mut fields = vec![vendor, version];
        fields.extend_from_slice(&segment.to_le_bytes());
        fields.extend_from_slice(&[date, rom_size]);
        let not_supported: u64 = 1 << 3;
        fields.extend_from_slice(&not_supported.to_le_bytes());
        let (acpi, virtual_machine) = (1 << 0, 1 << 4);
        fields.extend_from_slice(&[acpi, virtual_machine]);
        fields.extend_from_slice(&[0, 0, 0xff, 0xff, 0, 0]); // releases not given; extended ROM size
        self.push(0, &fields, strings);
        Ok(())
    }

    fn system(&mut self, config: &SmbiosConfig) -> Result<(), SmbiosError> {
        let mut strings = Strings::default();
        let or = |text: &Option<String>, default: &str| text.clone().unwrap_or_else(|| default.to_owned());
        let manufacturer = strings.add("manufacturer", &or(&config.manufacturer, MANUFACTURER))?;
        let product = strings.add("product name", &or(&config.product, PRODUCT))?;
        let version = strings.optional("version", config.version.as_ref())?;
        let serial = strings.optional("serial number", config.serial.as_ref())?;
        let mut fields = vec![manufacturer, product, version, serial];
        fields.extend(config.uuid.map_or([0; 16], wire_order));
        const WAKE_UP_POWER_SWITCH: u8 = 6;
        fields.push(WAKE_UP_POWER_SWITCH);
        fields.push(strings.optional("SKU number", config.sku.as_ref())?);
        fields.push(strings.optional("family", config.family.as_ref())?);
        self.push(1, &fields, strings);
        Ok(())
    }

    fn chassis(&mut self, config: &SmbiosConfig) -> Result<(), SmbiosError> {
        let mut strings = Strings::default();
        let manufacturer = strings.add("chassis manufacturer", MANUFACTURER)?;
        let asset_tag = strings.optional("asset tag", config.asset_tag.as_ref())?;
        let mut fields = vec![manufacturer, CHASSIS_OTHER, 0, 0, asset_tag];
        fields.extend_from_slice(&[STATE_SAFE, STATE_SAFE, STATE_SAFE, SECURITY_NONE]);
        fields.extend_from_slice(&[0; 4]); // OEM defined
        fields.extend_from_slice(&[0, 0, 0, 0]); // height, power cords, contained elements
        fields.push(0); // SKU
        self.push(3, &fields, strings);
        Ok(())
    }

    fn oem_strings(&mut self, texts: &[&String]) -> Result<(), SmbiosError> {
        let mut strings = Strings::default();
        let mut count = 0;
        for text in texts {
            count = strings.add("OEM string", text)?;
        }
        self.push(11, &[count], strings);
        Ok(())
    }

    fn boot_status(&mut self) -> Result<(), SmbiosError> {
        let (reserved, no_errors) = ([0; 6], 0);
        let fields: Vec<u8> = reserved.into_iter().chain([no_errors]).collect();
        self.push(32, &fields, Strings::default());
        Ok(())
    }

    fn end(&mut self) -> Result<(), SmbiosError> {
        self.push(127, &[], Strings::default());
        Ok(())
    }
}

/// The first three fields of a UUID are little-endian here (section 7.2.1).
fn wire_order(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let mut wire = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    wire[8..].copy_from_slice(&rest);
    wire
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A structure as a reader sees it.
    #[derive(Debug, PartialEq)]
    struct Read {
        kind: u8,
        fields: Vec<u8>,
        strings: Vec<String>,
    }

    fn read(bytes: &[u8]) -> Vec<Read> {
        assert_eq!(&bytes[..5], b"_SM3_");
        assert_eq!(bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let size = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let start = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) - SMBIOS_START;
        let mut rest = &bytes[usize::try_from(start).unwrap()..];
        assert_eq!(rest.len(), usize::try_from(size).unwrap());
        let mut found = Vec::new();
        while !rest.is_empty() {
            let (kind, len) = (rest[0], usize::from(rest[1]));
            let handle = u16::from_le_bytes([rest[2], rest[3]]);
            assert_eq!(usize::from(handle), found.len());
            let fields = rest[4..len].to_vec();
            let end = len + rest[len..].windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[len..end]
                .split(|byte| *byte == 0)
                .filter(|text| !text.is_empty())
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
                .collect();
            found.push(Read { kind, fields, strings });
            rest = &rest[end + 2..];
        }
        found
    }

    #[test]
    fn structures_are_read_back() {
        let text = |text: &str| Some(text.to_owned());
        let config = SmbiosConfig {
            manufacturer: text("Acme"),
            serial: text("1234"),
            uuid: Some(parse_uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap()),
            family: text("rack"),
            asset_tag: text("tag 7"),
            oem_strings: vec!["io.systemd.credential:a=b".into(), String::new(), "x".into()],
            ..Default::default()
        };
        let (address, bytes) = build(&config).unwrap();
        assert_eq!(address, 0xf_0000);
        let all = read(&bytes);
        assert_eq!(all.iter().map(|s| s.kind).collect::<Vec<_>>(), [0, 1, 3, 11, 32, 127]);
        let system = &all[1];
        assert_eq!(system.strings, ["Acme", "cumulet", "1234", "rack"]);
        assert_eq!(system.fields[..4], [1, 2, 0, 3]);
        assert_eq!(
            system.fields[4..20],
            [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]
        );
        assert_eq!(system.fields[20..], [6, 0, 4]);
        assert_eq!((all[2].fields[4], &all[2].strings[1]), (2, &"tag 7".to_owned()));
        assert_eq!(
            (all[3].fields[0], &all[3].strings[..]),
            (2, &["io.systemd.credential:a=b".to_owned(), "x".into()][..])
        );
        assert_eq!(all[0].fields.len() + 4, 0x1a);
        assert_eq!(all[2].fields.len() + 4, 0x16);
    }

    #[test]
    fn many_oem_strings_take_several_structures() {
        let oem_strings: Vec<String> = (0..300).map(|n| format!("string {n}")).collect();
        let (_, bytes) =
            build(&SmbiosConfig { oem_strings: oem_strings.clone(), ..Default::default() }).unwrap();
        let all = read(&bytes);
        let found: Vec<&Read> = all.iter().filter(|s| s.kind == 11).collect();
        assert_eq!(found.iter().map(|s| s.fields[0]).collect::<Vec<_>>(), [255, 45]);
        assert!(found.iter().flat_map(|s| &s.strings).eq(&oem_strings));
    }

    #[test]
    fn bad_strings_are_named() {
        let message = |config: SmbiosConfig| build(&config).unwrap_err().to_string();
        assert_eq!(
            message(SmbiosConfig { serial: Some("a\0b".into()), ..Default::default() }),
            "SMBIOS serial number: a NUL character at position 1"
        );
        assert_eq!(
            message(SmbiosConfig { oem_strings: vec!["x".repeat(40_000)], ..Default::default() }),
            "SMBIOS OEM string: 40000 bytes, at most 32768"
        );
        assert!(
            message(SmbiosConfig { oem_strings: vec!["x".repeat(32_768); 2], ..Default::default() })
                .starts_with("SMBIOS table of 0x1")
        );
        for text in [
            "",
            "00112233445566778899aabbccddeef",
            "0011-2233445566778899aabbccddeeff00",
            "é".repeat(16).as_str(),
        ] {
            assert!(parse_uuid(text).is_err(), "{text}");
        }
        assert_eq!(parse_uuid("00112233445566778899AABBCCDDEEFF").unwrap()[15], 0xff);
    }

    proptest! {
        #[test]
        fn anything_is_read_back_or_refused(
            texts in prop::collection::vec("[ -~]{0,40}", 7),
            oem in prop::collection::vec(".{0,40}", 0..6),
            uuid in ".{0,40}",
        ) {
            let _ = parse_uuid(&uuid);
            let text = |index: usize| texts.get(index).cloned();
            let config = SmbiosConfig {
                manufacturer: text(0),
                product: text(1),
                version: text(2),
                serial: text(3),
                sku: text(4),
                family: text(5),
                asset_tag: text(6),
                oem_strings: oem.clone(),
                ..Default::default()
            };
            if let Ok((_, bytes)) = build(&config) {
                let all = read(&bytes);
                let given: Vec<&String> = texts[..6].iter().filter(|text| !text.is_empty()).collect();
                prop_assert_eq!(all[1].strings.iter().collect::<Vec<_>>(), given);
                let oem: Vec<&String> = oem.iter().filter(|text| !text.is_empty()).collect();
                let found: Vec<&String> = all.iter().filter(|s| s.kind == 11).flat_map(|s| &s.strings).collect();
                prop_assert_eq!(found, oem);
            }
        }
    }
}
