//! What the measuring programs share.
//!
//! * [`netlink`]: raw netlink in large batches: the kernel's limit beside every figure
//! * [`ruleset`]: the agent's nftables tables as raw netlink shows them
//! * [`attach`]: workloads through the API, and through raw netlink
//! * [`injector`]: a BGP speaker that sends pre-encoded routes, with an encoder of its own so that
//!   it is a witness and not a mirror of the library under test
//! * [`fib`]: when a kernel holds exactly the routes it should
//! * [`routes`]: the three together, for one daemon after the other
//! * [`receiver`]: a session's far end that knows which routes it holds
//! * [`rival`]: the daemons of a comparison, each started with the same task
//! * [`passing`]: routes from one neighbour to all others
//! * [`repair`]: how long the kernel is not as it should be after somebody spoilt it
//! * [`spoilings`]: every way to do that
//! * [`scale`]: many workloads
//! * [`ecmp`]: the loss of one of two routers
//! * [`cni`]: workloads through CNI plugins
//! * [`claims`]: blocks from an etcd that many agents share
//! * [`rest`]: a node while nothing happens, and after a crash
//! * [`results`]: figures of the last runs; [`aims`]: what they are to reach; [`chart`]: a picture
//! * [`report`]: tables on the terminal and in `docs/benchmarks`

pub mod aims;
pub mod attach;
pub mod chart;
pub mod claims;
pub mod cni;
pub mod ecmp;
pub mod fib;
pub mod injector;
pub mod netlink;
pub mod passing;
pub mod receiver;
pub mod repair;
pub mod report;
pub mod rest;
pub mod results;
pub mod rival;
pub mod routes;
pub mod ruleset;
pub mod scale;
pub mod spoilings;

use std::time::Duration;

/// With `BENCH_QUICK` everything runs with a hundredth of the routes and workloads, once, and is
/// written to a temporary directory: to see whether it works.
pub fn is_quick() -> bool {
    std::env::var_os("BENCH_QUICK").is_some()
}

/// So many, or a hundredth.
pub fn scaled(count: u32) -> u32 {
    if is_quick() {
        (count / 100).max(10)
    } else {
        count
    }
}

/// So many repetitions (`BENCH_REPETITIONS` says how many in place of five), or one.
pub fn repetitions(usual: usize) -> usize {
    if is_quick() {
        return 1;
    }
    let asked = std::env::var("BENCH_REPETITIONS");
    let asked = asked.ok().and_then(|text| text.parse().ok());
    asked.map_or(usual, |asked: usize| (usual * asked).div_ceil(5).max(1))
}

/// The value below which this share of the sorted `values` lies.
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a short list"
    )]
    let index = (share * last as f64 + 0.5) as usize;
    sorted.get(index.min(last)).copied().unwrap_or_default()
}

/// The middle one of an odd number of values.
pub fn median(values: &[Duration]) -> Duration {
    percentile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let values: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 0.0), Duration::from_millis(1));
        assert_eq!(percentile(&values, 0.5), Duration::from_millis(51));
        assert_eq!(percentile(&values, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&values, 1.0), Duration::from_millis(100));
        assert_eq!(median(&[]), Duration::ZERO);
    }
}
