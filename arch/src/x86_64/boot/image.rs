//! Reading an image by position, without knowing whether it is a file or bytes in memory.

use std::io;

use super::BootError;

/// An image that can be read at any position. `vmm` implements it for an opened file.
pub trait ReadAt {
    /// Size in bytes, as it was when the image was opened.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The image ends before the buffer is full, or cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let source = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }
}

/// Most bytes that one header, table or note of an image may have.
pub(super) const MAX_READ: u64 = 1 << 20;

/// Reads `len` bytes that the caller has found to be inside the image and at most [`MAX_READ`].
pub(super) fn read(image: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
    assert!(len <= MAX_READ, "a header of {len} bytes is read unchecked");
    let failed = |source| BootError::Read { offset, len, source };
    let size = usize::try_from(len).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    let mut bytes = vec![0; size];
    image.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

/// Little-endian fields of a header that was read. A field outside it reads as `None`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    pub fn u8(&self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    pub fn u16(&self, offset: usize) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    pub fn u32(&self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    pub fn u64(&self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_inside_and_refuses_outside() {
        let image = vec![1u8, 2, 3, 4];
        let mut two = [0; 2];
        image.read_exact_at(&mut two, 2).unwrap();
        assert_eq!(two, [3, 4]);
        for offset in [3, 4, 5, u64::MAX - 1, u64::MAX] {
            assert!(image.read_exact_at(&mut two, offset).is_err());
        }
    }

    #[test]
    fn fields_outside_are_none() {
        let fields = Fields(&[1, 2, 3, 4, 5]);
        assert_eq!(fields.u16(1), Some(0x0302));
        assert_eq!(fields.u32(1), Some(0x0504_0302));
        assert_eq!(fields.u32(2), None);
        assert_eq!(fields.u64(0), None);
        assert_eq!(fields.u8(usize::MAX), None);
        assert_eq!(fields.u16(usize::MAX), None);
    }
}
