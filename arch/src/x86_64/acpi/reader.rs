//! A small reader of ACPI tables, written from the specification, for the tests: what is built is
//! read back by other code than built it.

use super::PlacedTables;

/// Guest memory as the tables fill it.
pub struct Memory<'a>(&'a PlacedTables);

/// A table behind the root pointer.
pub struct Table<'a> {
    pub signature: String,
    pub bytes: &'a [u8],
}

pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

pub fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

impl<'a> Memory<'a> {
    pub fn new(tables: &'a PlacedTables) -> Self {
        Self(tables)
    }

    /// All that is known of memory from `address` on.
    pub fn at(&self, address: u64) -> &'a [u8] {
        let holds =
            |(start, bytes): &&(u64, Vec<u8>)| (*start..*start + bytes.len() as u64).contains(&address);
        let (start, bytes) =
            self.0.pieces.iter().find(holds).unwrap_or_else(|| panic!("nothing at {address:#x}"));
        &bytes[usize::try_from(address - start).unwrap()..]
    }

    fn table(&self, address: u64) -> Table<'a> {
        let bytes = self.at(address);
        let len = usize::try_from(u32_at(bytes, 4)).unwrap();
        let bytes = &bytes[..len];
        let signature = String::from_utf8(bytes[..4].to_vec()).unwrap();
        assert_eq!(sum(bytes), 0, "checksum of {signature}");
        assert_eq!(address % 64, 0, "alignment of {signature}");
        Table { signature, bytes }
    }

    /// The root pointer, the table it leads to, all tables that one lists, and the DSDT.
    pub fn tables(&self) -> Vec<Table<'a>> {
        let rsdp = self.at(self.0.rsdp);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36]), rsdp[15]), (0, 0, 2));
        let xsdt = self.table(u64_at(rsdp, 24));
        assert_eq!(xsdt.signature, "XSDT");
        let mut tables: Vec<Table<'_>> =
            xsdt.bytes[36..].chunks_exact(8).map(|entry| self.table(u64_at(entry, 0))).collect();
        let fadt = tables.iter().find(|table| table.signature == "FACP").unwrap();
        let dsdt = self.table(u64_at(fadt.bytes, 140));
        assert_eq!(dsdt.signature, "DSDT");
        tables.push(dsdt);
        tables
    }

    pub fn find(&self, signature: &str) -> &'a [u8] {
        let tables = self.tables();
        let found = tables.iter().find(|table| table.signature == signature);
        found.unwrap_or_else(|| panic!("no {signature}")).bytes
    }
}

/// The structures of a table from `offset` on: type, length, content.
pub fn structures(table: &[u8], offset: usize) -> Vec<&[u8]> {
    let mut rest = &table[offset..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (structure, next) = rest.split_at(usize::from(rest[1]));
        found.push(structure);
        rest = next;
    }
    found
}
