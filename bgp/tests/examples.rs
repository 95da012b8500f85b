//! The example that needs no network does what it tells.

use std::time::Duration;

#[allow(dead_code)]
#[path = "../examples/simulate.rs"]
mod simulate;

#[test]
fn a_cut_link_of_a_ring_is_noticed_within_the_hold_time_and_used_again_when_mended() {
    let [up, noticed, back] = simulate::story();
    assert!(up < Duration::from_secs(10), "{up:?}");
    assert!(noticed <= Duration::from_secs(10), "{noticed:?}");
    assert!(back < Duration::from_secs(60), "{back:?}");
}
