//! The grammar of an order: words apart by blanks, the first one its name, numbers decimal or hexadecimal.
//!
//! Knows no order by name; `program.rs` of the guest gives them their meaning.

use core::fmt;
use core::str::SplitAsciiWhitespace;

/// The words of one order, taken from the front.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    words: SplitAsciiWhitespace<'a>,
}

/// Why an order cannot be read. `what` is the argument's name in docs/test-guest.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// An argument is not there.
    Missing {
        /// Its name.
        what: &'static str,
    },
    /// An argument is there, but is no number in range.
    NotANumber {
        /// Its name.
        what: &'static str,
    },
    /// A PCI address is not of the form `bus:device.function`.
    NotABdf,
    /// There are words after the last argument.
    TooManyWords,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { what } => write!(f, "{what} is missing"),
            Self::NotANumber { what } => write!(f, "{what} is not a number in range"),
            Self::NotABdf => f.write_str("BDF is not like 00:01.0"),
            Self::TooManyWords => f.write_str("too many words"),
        }
    }
}

impl<'a> Words<'a> {
    /// Splits a line.
    #[must_use]
    pub fn new(line: &'a str) -> Self {
        Self { words: line.split_ascii_whitespace() }
    }

    /// Returns the next word.
    pub fn word(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        self.words.next().ok_or(Malformed::Missing { what })
    }

    /// Returns the next word, if there is one.
    pub fn optional_word(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    /// Returns the next word as a number.
    pub fn number(&mut self, what: &'static str) -> Result<u64, Malformed> {
        number(self.word(what)?).ok_or(Malformed::NotANumber { what })
    }

    /// Returns the next word as a number, or `None` at the end of the line.
    pub fn optional_number(&mut self, what: &'static str) -> Result<Option<u64>, Malformed> {
        self.words.next().map(|word| number(word).ok_or(Malformed::NotANumber { what })).transpose()
    }

    /// Returns the next word as a number of a narrower type.
    pub fn narrow<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, Malformed> {
        T::try_from(self.number(what)?).map_err(|_| Malformed::NotANumber { what })
    }

    /// Returns the next word as a PCI address.
    pub fn bdf(&mut self) -> Result<u32, Malformed> {
        bdf(self.word("BDF")?).ok_or(Malformed::NotABdf)
    }

    /// Checks that nothing is left.
    pub fn end(&mut self) -> Result<(), Malformed> {
        self.words.next().map_or(Ok(()), |_| Err(Malformed::TooManyWords))
    }
}

/// Reads a number: decimal, or hexadecimal after `0x`, with an optional `K`, `M` or `G` (powers of 1,024).
#[must_use]
pub fn number(word: &str) -> Option<u64> {
    let (digits, shift) = match word.as_bytes().last()? {
        b'K' => (&word[..word.len() - 1], 10),
        b'M' => (&word[..word.len() - 1], 20),
        b'G' => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |hex| (hex, 16));
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()?.checked_mul(1 << shift)
}

/// Reads a PCI address such as `00:1f.2` or `0001:00:1f.2`: segment, bus, device and function in hexadecimal. They are
/// bits 31-16, 15-8, 7-3 and 2-0 of the result.
#[must_use]
pub fn bdf(word: &str) -> Option<u32> {
    let (front, function) = word.split_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (segment, bus) = front.rsplit_once(':').unwrap_or(("0", front));
    let segment = u16::from_str_radix(segment, 16).ok()?;
    let bus = u8::from_str_radix(bus, 16).ok()?;
    let device = u8::from_str_radix(device, 16).ok().filter(|device| *device < 32)?;
    let function = u8::from_str_radix(function, 16).ok().filter(|function| *function < 8)?;
    Some(u32::from(segment) << 16 | u32::from(bus) << 8 | u32::from(device) << 3 | u32::from(function))
}

/// Reads an IPv4 address such as `10.0.0.2`.
#[must_use]
pub fn ipv4(word: &str) -> Option<[u8; 4]> {
    let mut address = [0; 4];
    let mut parts = word.split('.');
    for byte in &mut address {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("0"), Some(0));
        assert_eq!(number("0xffffffffffffffff"), Some(u64::MAX));
        assert_eq!(number("4K"), Some(4096));
        assert_eq!(number("0x10M"), Some(16 << 20));
        assert_eq!(number("3G"), Some(3 << 30));
        for bad in ["", "K", "0x", "-1", "+1", "1k", "18446744073709551616", "0x400000000G", "1 "] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn pci_addresses() {
        assert_eq!(bdf("00:00.0"), Some(0));
        assert_eq!(bdf("ff:1f.7"), Some(0xffff));
        assert_eq!(bdf("01:02.3"), Some(0x0113));
        assert_eq!(bdf("000a:01:02.3"), Some(0x000a_0113));
        for bad in ["", "0", "0:0", "00:20.0", "00:00.8", "100:00.0", "00:00.0.0", "0:00:00", "10000:00:00.0"]
        {
            assert_eq!(bdf(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn internet_addresses() {
        assert_eq!(ipv4("10.0.255.2"), Some([10, 0, 255, 2]));
        for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "a.b.c.d", "1..2.3"] {
            assert_eq!(ipv4(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn words_are_taken_in_order_and_counted() {
        let mut words = Words::new("  poke  0x1000 4\t17 ");
        assert_eq!(words.word("ORDER"), Ok("poke"));
        assert_eq!(words.number("ADDR"), Ok(0x1000));
        assert_eq!(words.narrow::<u8>("WIDTH"), Ok(4));
        assert_eq!(words.optional_number("VALUE"), Ok(Some(17)));
        assert_eq!(words.optional_number("VALUE"), Ok(None));
        assert_eq!(words.end(), Ok(()));
        assert_eq!(words.number("ADDR"), Err(Malformed::Missing { what: "ADDR" }));

        assert_eq!(Words::new("256").narrow::<u8>("N"), Err(Malformed::NotANumber { what: "N" }));
        assert_eq!(Words::new("x").optional_number("N"), Err(Malformed::NotANumber { what: "N" }));
        assert_eq!(Words::new("x").end(), Err(Malformed::TooManyWords));
    }
}
