//! What all tables share: the header with its checksum, and the two tables that lead to the others.

use acpi_tables::{Aml, AmlSink, rsdp::Rsdp, sdt::Sdt};

const OEM_ID: [u8; 6] = *b"CUMULT";
const OEM_TABLE_ID: [u8; 8] = *b"CUMULET ";
const OEM_REVISION: u32 = 1;

/// Tables start at multiples of this, as guests expect of aligned fields.
pub(super) const ALIGNMENT: u64 = 64;

const HEADER_SIZE: usize = 36;

/// A table: the header and this body (ACPI 6.5, 5.2.6).
pub(super) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(*signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Room that a table of `len` bytes takes.
pub(super) fn aligned(len: usize) -> u64 {
    (len as u64).next_multiple_of(ALIGNMENT)
}

/// Size of an XSDT that lists so many tables.
pub(super) fn xsdt_size(tables: usize) -> usize {
    HEADER_SIZE + tables * 8
}

/// The table that lists the others (ACPI 6.5, 5.2.8).
pub(super) fn xsdt(addresses: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
    table(b"XSDT", 1, &body)
}

/// The root pointer (ACPI 6.5, 5.2.5.3).
pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes_of(&Rsdp::new(OEM_ID, xsdt))
}

/// A header for the builders of `acpi_tables` that take one.
pub(super) fn identity() -> ([u8; 6], [u8; 8], u32) {
    (OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// The bytes of an object or table.
pub(super) fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// AML that is made already, as a child of another object.
#[derive(Clone, Debug, Default)]
pub(super) struct Raw(pub Vec<u8>);

impl Raw {
    /// Appends an object.
    pub fn push(&mut self, aml: &dyn Aml) {
        aml.to_aml_bytes(&mut self.0);
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
