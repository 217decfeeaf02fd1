//! Results and flags of the arithmetic and logic instructions (Intel SDM volume 1, appendix A).

use super::registers::mask;

/// Carry.
pub const CF: u64 = 1 << 0;
/// Even parity of the lowest byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Signed overflow.
pub const OF: u64 = 1 << 11;
/// The flags that every operation here sets or clears.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// An operation of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sum.
    Add,
    /// Difference; also what `cmp` computes.
    Sub,
    /// Bitwise and; also what `test` computes.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

/// The result, cut to `size` bytes, and the status flags. AF is undefined after the bitwise
/// operations; it is cleared, as processors do.
pub fn compute(operation: Operation, left: u64, right: u64, size: usize) -> (u64, u64) {
    let all = mask(size);
    let top = all ^ (all >> 1);
    let (left, right) = (left & all, right & all);
    let (result, carry, auxiliary, overflow) = match operation {
        Operation::Add => {
            let sum = left.wrapping_add(right) & all;
            (sum, sum < left, left ^ right ^ sum, (left ^ sum) & (right ^ sum))
        }
        Operation::Sub => {
            let difference = left.wrapping_sub(right) & all;
            (difference, left < right, left ^ right ^ difference, (left ^ right) & (left ^ difference))
        }
        Operation::And => (left & right, false, 0, 0),
        Operation::Or => (left | right, false, 0, 0),
        Operation::Xor => (left ^ right, false, 0, 0),
    };
    let mut flags = 0;
    for (set, flag) in [
        (carry, CF),
        ((result & 0xff).count_ones().is_multiple_of(2), PF),
        (auxiliary & 0x10 != 0, AF),
        (result == 0, ZF),
        (result & top != 0, SF),
        (overflow & top != 0, OF),
    ] {
        if set {
            flags |= flag;
        }
    }
    (result, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_results() {
        assert_eq!(compute(Operation::Add, 0xff, 1, 1), (0, CF | PF | AF | ZF));
        assert_eq!(compute(Operation::Add, 0x7f, 1, 1), (0x80, AF | SF | OF));
        assert_eq!(compute(Operation::Sub, 0, 1, 4), (0xffff_ffff, CF | PF | AF | SF));
        assert_eq!(compute(Operation::Sub, 0x8000, 1, 2), (0x7fff, PF | AF | OF));
        assert_eq!(compute(Operation::And, 0xf0, 0x10f, 8), (0, ZF | PF));
        assert_eq!(compute(Operation::Or, 1 << 63, 1, 8), (1 << 63 | 1, SF));
        assert_eq!(compute(Operation::Xor, 3, 3, 4), (0, ZF | PF));
    }
}
