//! Bringing the memory file to the disk piece by piece, so that it can be given up in between.
#![expect(unsafe_code, reason = "sync_file_range has no safe form")]

use std::{fs::File, io, ops::Range, os::fd::AsRawFd, path::Path};

use super::{ContentError, Tally};

/// Bytes that are waited for in one go.
const PIECE: u64 = 16 << 20;

/// Has the content of the memory file written to the disk, unless it is given up between two pieces. One piece is on its
/// way while another is waited for. Whether the disk keeps it, and the file's size and place, is left to
/// [`File::sync_all`], which has little to do then.
///
/// # Errors
/// It cannot be written, or somebody asked for it to be given up.
pub fn write_out(file: &File, path: &Path, tally: &dyn Tally) -> Result<(), ContentError> {
    const BEGIN: libc::c_uint = libc::SYNC_FILE_RANGE_WRITE;
    const WAIT: libc::c_uint =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let failed = |offset| {
        move |source| ContentError::File { operation: "sync", path: path.to_owned(), offset, source }
    };
    let size = file.metadata().map_err(failed(0))?.len();
    let mut begun = 0..0;
    while begun.start < size {
        if tally.is_cancelled() {
            return Err(ContentError::Cancelled);
        }
        let next = begun.end..begun.end.saturating_add(PIECE).min(size);
        for (piece, flags) in [(&next, BEGIN), (&begun, WAIT)] {
            if !begin_or_wait(file, piece, flags).map_err(failed(piece.start))? {
                return Ok(());
            }
        }
        begun = if next.is_empty() { size..size } else { next };
    }
    Ok(())
}

/// `false` if this kernel or file system has no such thing: then all of it is left to what follows.
fn begin_or_wait(file: &File, range: &Range<u64>, flags: libc::c_uint) -> io::Result<bool> {
    // A length of 0 is to the end of the file.
    if range.is_empty() {
        return Ok(true);
    }
    let (Ok(start), Ok(length)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return Ok(false);
    };
    // SAFETY: the descriptor is open, and no memory is involved.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::FileExt,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;

    /// Wants it given up when asked so many times before.
    struct Until(u64, AtomicU64);

    impl Tally for Until {
        fn add(&self, _bytes: u64) {}

        fn is_cancelled(&self) -> bool {
            self.1.fetch_add(1, Ordering::Relaxed) == self.0
        }
    }

    #[test]
    fn it_can_be_given_up_before_each_piece() {
        let file = tempfile::tempfile().unwrap();
        for (size, pieces) in [(0, 0), (1, 1), (PIECE, 1), (PIECE + 1, 2), (3 * PIECE, 3)] {
            file.set_len(size).unwrap();
            if size > 0 {
                file.write_all_at(&[7], size - 1).unwrap();
            }
            let done = |until| {
                let tally = Until(until, AtomicU64::new(0));
                let done = write_out(&file, Path::new("/memory"), &tally);
                (done, tally.1.into_inner())
            };
            let (whole, asked) = done(u64::MAX);
            whole.unwrap();
            // Where the file system has no such thing, that is seen at the first.
            assert!(asked == pieces.min(1) || asked == pieces + pieces.min(1), "{size} bytes: {asked}");
            for until in 0..asked {
                let (given_up, times) = done(until);
                assert!(matches!(given_up, Err(ContentError::Cancelled)), "{size} bytes: {given_up:?}");
                assert_eq!(times, until + 1, "{size} bytes");
            }
        }
    }
}
