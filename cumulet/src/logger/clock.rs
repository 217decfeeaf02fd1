//! The time of day, taken apart as calendars and time zones have it.
#![expect(unsafe_code, reason = "only the C library knows the time zone")]

use std::{
    mem::MaybeUninit,
    time::{SystemTime, UNIX_EPOCH},
};

/// A point in time, in both forms that the log can print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// In UTC.
    pub utc: Parts,
    /// In the time zone of the process.
    pub local: Parts,
}

/// Its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Year.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: i32,
    /// Day of the month, from 1.
    pub day: i32,
    /// Hour, 0 to 23.
    pub hour: i32,
    /// Minute.
    pub minute: i32,
    /// Second, 60 in a leap second.
    pub second: i32,
    /// Microseconds.
    pub micros: u32,
    /// Seconds ahead of UTC.
    pub offset_s: i64,
}

/// One of the C library's two ways to take a time apart.
type Break = unsafe extern "C" fn(*const libc::time_t, *mut libc::tm) -> *mut libc::tm;

impl Moment {
    /// Now.
    pub fn now() -> Self {
        // A clock before 1970 is not told apart from one at its beginning.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(libc::time_t::MAX);
        Self::at(seconds, since.subsec_micros())
    }

    /// Seconds since 1970, and microseconds.
    pub fn at(seconds: libc::time_t, micros: u32) -> Self {
        Self { utc: parts(seconds, micros, libc::gmtime_r), local: parts(seconds, micros, libc::localtime_r) }
    }
}

fn parts(seconds: libc::time_t, micros: u32, take_apart: Break) -> Parts {
    let mut broken = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to live values of the types that the two functions read and write.
    let filled = unsafe { take_apart(&raw const seconds, broken.as_mut_ptr()) };
    if filled.is_null() {
        // A year that has no number.
        return Parts::default();
    }
    // SAFETY: the function has filled it, and all zeroes would have been a value too.
    let broken = unsafe { broken.assume_init() };
    Parts {
        year: i64::from(broken.tm_year) + 1900,
        month: broken.tm_mon + 1,
        day: broken.tm_mday,
        hour: broken.tm_hour,
        minute: broken.tm_min,
        second: broken.tm_sec,
        micros,
        offset_s: broken.tm_gmtoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_second_is_taken_apart() {
        // The 29th of February 2000, 12:34:56 UTC.
        let utc = Moment::at(951_827_696, 7).utc;
        let expected =
            Parts { year: 2000, month: 2, day: 29, hour: 12, minute: 34, second: 56, micros: 7, offset_s: 0 };
        assert_eq!(utc, expected);
    }

    #[test]
    fn years_without_number_are_survived() {
        assert_eq!(Moment::at(libc::time_t::MAX, 0).utc, Parts::default());
        assert!(Moment::now().utc.year >= 1970);
    }
}
