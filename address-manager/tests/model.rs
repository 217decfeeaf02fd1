//! Random operations on the address manager and on a naive model, with every step of every commit
//! failing in turn. See `address_manager::testing`.

use address_manager::testing::{Played, play};
use proptest::{collection::vec, num::u8, prelude::*};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_manager_does_what_the_naive_model_does(script in vec(u8::ANY, 0..600)) {
        play(&script);
    }
}

/// Scripts that never got anywhere would test nothing.
#[test]
fn scripts_reach_every_kind_of_operation() {
    let mut all: Vec<Played> = Vec::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..400 {
        let mut script = Vec::new();
        for _ in 0..75 {
            // xorshift64: any string will do, as long as it is always the same.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            script.extend_from_slice(&state.to_le_bytes());
        }
        all.push(play(&script));
    }
    let sum = |of: fn(&Played) -> u64| all.iter().map(of).sum::<u64>();
    assert!(sum(|played| played.accepted) > 2000);
    assert!(sum(|played| played.refused) > 1000);
    assert!(sum(|played| played.totals.commits) > 400);
    assert!(sum(|played| played.totals.failed) > 2000);
    for kind in 0..10 {
        let name = Played::default().totals.operations.kinds()[kind].0;
        let count: u64 = all.iter().map(|played| played.totals.operations.kinds()[kind].1.count).sum();
        assert!(count >= 20, "{name}: {count}");
    }
}
