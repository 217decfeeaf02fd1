//! The part of ELF that a boot loader needs: load segments and notes of a 64-bit x86 file
//! (System V ABI, "Object Files"; AMD64 supplement).
//!
//! Only headers and notes are read. Contents stay in the file, for the caller to copy once.

use super::{
    BootError,
    image::{self, Fields, MAX_READ, ReadAt},
};

const HEADER_SIZE: u64 = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;

/// More program headers than any kernel has; a bound on what is read.
const MAX_PROGRAM_HEADERS: u16 = 512;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A part of the file that is to be in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Number of its program header.
    pub index: usize,
    /// Physical address.
    pub address: u64,
    /// Where its content starts in the file.
    pub file_offset: u64,
    /// Bytes in the file; at most `memory_size`. The rest of the memory is zero.
    pub file_size: u64,
    /// Bytes in memory; not zero.
    pub memory_size: u64,
}

/// One note (ELF "Note Section").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who defined the type, without the NUL.
    pub owner: Vec<u8>,
    /// Type, as its owner numbers it.
    pub kind: u32,
    /// Content.
    pub content: Vec<u8>,
}

/// What was read from an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// Segments to load, in file order. Contents lie inside the file; addresses are unchecked.
    pub segments: Vec<Segment>,
    /// All notes of all note segments.
    pub notes: Vec<Note>,
}

/// Whether the image begins with the ELF magic.
///
/// # Errors
/// The image cannot be read.
pub fn is_elf(image: &dyn ReadAt) -> Result<bool, BootError> {
    Ok(image.size() >= 4 && image::read(image, 0, 4)? == *b"\x7fELF")
}

/// Reads and checks the headers.
///
/// The machine may be x86-64 or i386: OVMF's Cloud Hypervisor build is a 64-bit ELF file that says
/// i386, since it is entered in 32-bit mode.
///
/// # Errors
/// The file is truncated, of another class, byte order or machine, or a header has an impossible
/// value.
pub fn parse(image: &dyn ReadAt) -> Result<Elf, BootError> {
    let header = read_part(image, "the ELF header", 0, HEADER_SIZE)?;
    let header = Fields(&header);
    let table = check_header(&header)?;
    let count = table.count;

    let table_size = u64::from(count) * u64::from(PROGRAM_HEADER_SIZE);
    let table = read_part(image, "the program header table", table.offset, table_size)?;
    let mut elf = Elf { segments: Vec::new(), notes: Vec::new() };
    for (index, header) in table.chunks_exact(usize::from(PROGRAM_HEADER_SIZE)).enumerate() {
        let header = Fields(header);
        match header.u32(0) {
            Some(PT_LOAD) => elf.segments.extend(load_segment(image, index, &header)?),
            Some(PT_NOTE) => elf.notes.extend(note_segment(image, index, &header)?),
            _ => {}
        }
    }
    Ok(elf)
}

struct Table {
    offset: u64,
    count: u16,
}

fn check_header(header: &Fields<'_>) -> Result<Table, BootError> {
    let field = |what, value: Option<u64>, expected, accept: fn(u64) -> bool| {
        let value = value.unwrap_or_default();
        if accept(value) { Ok(value) } else { Err(BootError::Field { what, value, expected }) }
    };
    let byte = |offset| header.u8(offset).map(u64::from);
    let half = |offset| header.u16(offset).map(u64::from);
    field("ELF class", byte(4), "2 (64-bit)", |class| class == 2)?;
    field("ELF byte order", byte(5), "1 (little-endian)", |order| order == 1)?;
    field("ELF file type", half(16), "2 (executable) or 3 (position-independent)", |kind| {
        kind == 2 || kind == 3
    })?;
    field("ELF machine", half(18), "0x3e (x86-64) or 3 (i386)", |machine| machine == 62 || machine == 3)?;
    field("ELF program header size", half(54), "0x38", |size| size == u64::from(PROGRAM_HEADER_SIZE))?;
    field("ELF program header count", half(56), "1 to 512", |count| {
        (1..=u64::from(MAX_PROGRAM_HEADERS)).contains(&count)
    })?;
    Ok(Table { offset: header.u64(32).unwrap_or_default(), count: header.u16(56).unwrap_or_default() })
}

fn load_segment(image: &dyn ReadAt, index: usize, header: &Fields<'_>) -> Result<Option<Segment>, BootError> {
    let segment = Segment {
        index,
        file_offset: header.u64(8).unwrap_or_default(),
        address: header.u64(24).unwrap_or_default(),
        file_size: header.u64(32).unwrap_or_default(),
        memory_size: header.u64(40).unwrap_or_default(),
    };
    if segment.file_size > segment.memory_size {
        return Err(BootError::SegmentSizes {
            index,
            file_size: segment.file_size,
            memory_size: segment.memory_size,
        });
    }
    if segment.memory_size == 0 {
        return Ok(None);
    }
    if segment.file_size > 0 {
        check_inside(image, format_args!("segment {index}"), segment.file_offset, segment.file_size)?;
    }
    Ok(Some(segment))
}

fn note_segment(image: &dyn ReadAt, index: usize, header: &Fields<'_>) -> Result<Vec<Note>, BootError> {
    let offset = header.u64(8).unwrap_or_default();
    let size = header.u64(32).unwrap_or_default();
    if size > MAX_READ {
        return Err(BootError::Field {
            what: "size of an ELF note segment",
            value: size,
            expected: "at most 0x100000",
        });
    }
    let bytes = read_part(image, format_args!("note segment {index}"), offset, size)?;
    // Property notes are aligned to 8, everything else to 4, whatever a file writes here.
    let alignment = if header.u64(48) == Some(8) { 8 } else { 4 };
    Ok(notes(&bytes, alignment))
}

/// The notes up to the first that is cut off. What follows a damaged note cannot be found; a kernel
/// whose PVH note is behind one is reported as having none.
fn notes(bytes: &[u8], alignment: usize) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut rest = bytes;
    while let Some((note, next)) = split_note(rest, alignment) {
        notes.push(note);
        rest = next;
    }
    notes
}

fn split_note(bytes: &[u8], alignment: usize) -> Option<(Note, &[u8])> {
    let fields = Fields(bytes);
    let owner_len = usize::try_from(fields.u32(0)?).ok()?;
    let content_len = usize::try_from(fields.u32(4)?).ok()?;
    let kind = fields.u32(8)?;
    let owner = bytes.get(12..12usize.checked_add(owner_len)?)?;
    let content_start = 12usize.checked_add(owner_len)?.checked_next_multiple_of(alignment)?;
    let content_end = content_start.checked_add(content_len)?;
    let content = bytes.get(content_start..content_end)?;
    let next = content_end.checked_next_multiple_of(alignment)?;
    let owner = owner.strip_suffix(b"\0").unwrap_or(owner);
    Some((
        Note { owner: owner.to_vec(), kind, content: content.to_vec() },
        bytes.get(next..).unwrap_or_default(),
    ))
}

fn read_part(
    image: &dyn ReadAt,
    what: impl std::fmt::Display,
    offset: u64,
    size: u64,
) -> Result<Vec<u8>, BootError> {
    check_inside(image, what, offset, size)?;
    image::read(image, offset, size)
}

fn check_inside(
    image: &dyn ReadAt,
    what: impl std::fmt::Display,
    offset: u64,
    size: u64,
) -> Result<(), BootError> {
    let end = offset.saturating_add(size);
    if offset.checked_add(size).is_none() || end > image.size() {
        return Err(BootError::Truncated { what: what.to_string(), end, size: image.size() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_split_and_stop_at_damage() {
        let mut bytes = Vec::new();
        for (owner, kind, content) in [(&b"Linux\0"[..], 1u32, &b"abc"[..]), (b"Xen\0", 18, &[1, 2, 3, 4])] {
            bytes.extend(u32::try_from(owner.len()).unwrap().to_le_bytes());
            bytes.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            for part in [owner, content] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        let found = notes(&bytes, 4);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Note { owner: b"Linux".to_vec(), kind: 1, content: b"abc".to_vec() });
        assert_eq!(found[1], Note { owner: b"Xen".to_vec(), kind: 18, content: vec![1, 2, 3, 4] });

        bytes.truncate(bytes.len() - 1);
        assert_eq!(notes(&bytes, 4).len(), 1);
        let huge = [0xff; 64];
        assert!(notes(&huge, 4).is_empty());
        assert!(notes(&huge, 8).is_empty());
    }
}
