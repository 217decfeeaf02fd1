//! The memory pattern that `fill` writes and `verify` expects, and the checksum that `sum` computes.
//!
//! Both work on little-endian 64-bit words. Word `i` of a pattern depends on the seed and on `i` alone, so any part of
//! it can be computed without the rest.

/// Weyl increment of splitmix64.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Start value and multiplier of 64-bit FNV-1a.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Returns word `index` of the pattern of `seed`: output number `index` (from 0) of splitmix64 seeded with `seed`.
#[must_use]
#[inline]
pub fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64-bit FNV-1a that takes a whole 64-bit word a step, where the original takes a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// The checksum of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(FNV_OFFSET)
    }

    /// Adds one little-endian word.
    #[inline]
    pub fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(FNV_PRIME);
    }

    /// Adds `bytes`; a last word that is not full is filled up with zeros.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    /// Returns the value so far.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the checksum of a pattern `len_bytes` long (whole words only), without any memory that holds it.
#[must_use]
pub fn pattern_checksum(seed: u64, len_bytes: u64) -> u64 {
    let mut sum = Checksum::new();
    for index in 0..len_bytes / 8 {
        sum.add(word(seed, index));
    }
    sum.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_splitmix64() {
        // The first outputs of the reference generator for these seeds.
        assert_eq!(word(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(word(0, 1), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(word(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(word(1_234_567, 1), 3_203_168_211_198_807_973);
    }

    #[test]
    fn checksum_of_bytes_is_the_checksum_of_their_words() {
        let mut by_word = Checksum::new();
        by_word.add(0x0807_0605_0403_0201);
        by_word.add(0x09);
        let mut by_byte = Checksum::new();
        by_byte.add_bytes(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(by_word, by_byte);
        assert_ne!(by_word.value(), Checksum::new().value());
    }

    #[test]
    fn pattern_checksum_is_the_checksum_of_the_pattern() {
        let mut bytes = std::vec::Vec::new();
        for index in 0..512 {
            bytes.extend_from_slice(&word(7, index).to_le_bytes());
        }
        let mut sum = Checksum::new();
        sum.add_bytes(&bytes);
        assert_eq!(pattern_checksum(7, 4096), sum.value());
    }
}
