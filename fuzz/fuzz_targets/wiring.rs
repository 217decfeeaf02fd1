//! Bytes as operations on the address manager: devices of several parts are added, moved and removed,
//! transactions committed or dropped.
//!
//! Whatever the bytes are, the address manager does what a naive model of it does: the live wiring,
//! what the back end holds, dispatch, guest memory, windows and listeners agree with lists that are
//! searched from end to end. Every commit is tried with each of its steps failing, which leaves all of
//! it as it was.

#![no_main]

use address_manager::testing::play;
use libfuzzer_sys::fuzz_target;

/// More would only repeat: a run is quadratic in what it commits.
const MAX_BYTES: usize = 1024;

fuzz_target!(|input: &[u8]| {
    play(&input[..input.len().min(MAX_BYTES)]);
});
