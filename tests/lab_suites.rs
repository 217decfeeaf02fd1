//! Stock Debian guests under Cumulet, on the complete KVM host of the lab.
//!
//! One test is one boot of the host. `tests/lab/suites` names the checks of each, and `tests/lab/payload/checks` says
//! what a check does. `cargo xtask test lab` runs the same suites and counts every check.

use cumulet_tests::lab::Suite;

#[test]
fn boot() {
    Suite::named("boot").run().assert_passed();
}

#[test]
fn distribution() {
    Suite::named("distribution").run().assert_passed();
}

#[test]
fn firmware() {
    Suite::named("firmware").run().assert_passed();
}

#[test]
fn own_tests() {
    Suite::named("own_tests").run().assert_passed();
}

#[test]
fn restore() {
    Suite::named("restore").run().assert_passed();
}

#[test]
fn generations() {
    Suite::named("generations").run().assert_passed();
}
