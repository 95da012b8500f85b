//! Each step of the decision process, and the laws of the whole.

use proptest::prelude::*;

use super::*;
use crate::rib::decision::{Candidate, select};

fn candidate(path: u32) -> Candidate {
    Candidate {
        path,
        local: false,
        long_lived_stale: false,
        local_pref: 100,
        as_path_length: 2,
        origin: 0,
        neighbour: 65001,
        med: 10,
        external: true,
        metric: 5,
        router_id: 7,
        cluster_list_length: 1,
        peer_address: ip("192.0.2.7"),
        peer: PeerId(1),
        path_id: 3,
        lost: None,
    }
}

#[test]
fn each_step_decides_when_all_before_it_are_equal_and_is_named() {
    type Change = fn(&mut Candidate);
    let better: [(Step, Change); 12] = [
        (Step::Local, |c| c.local = true),
        (Step::LongLivedStale, |_| {}),
        (Step::LocalPref, |c| c.local_pref = 101),
        (Step::AsPathLength, |c| c.as_path_length = 1),
        // A lower ORIGIN is made by raising the other one, below.
        (Step::Origin, |_| {}),
        (Step::Med, |c| c.med = 9),
        (Step::External, |_| {}),
        (Step::IgpMetric, |c| c.metric = 4),
        (Step::RouterId, |c| c.router_id = 6),
        (Step::ClusterListLength, |c| c.cluster_list_length = 0),
        (Step::PeerAddress, |c| c.peer_address = ip("192.0.2.6")),
        (Step::PathId, |c| c.path_id = 2),
    ];
    for (index, (step, improve)) in better.iter().enumerate() {
        let mut winner = candidate(1);
        improve(&mut winner);
        let mut loser = candidate(2);
        match step {
            Step::LongLivedStale => loser.long_lived_stale = true,
            Step::Origin => loser.origin = 2,
            Step::External => loser.external = false,
            _ => {}
        }
        // The loser is better at every later step that a value can be lowered for.
        for (_, improve) in &better[index + 1..] {
            improve(&mut loser);
        }
        for mut candidates in [[winner.clone(), loser.clone()], [loser, winner]] {
            let equal = select(&mut candidates);
            assert_eq!(candidates[0].path, 1, "{step:?}");
            assert_eq!(candidates[1].lost, Some(*step));
            assert_eq!(
                equal,
                if *step > Step::IgpMetric { 2 } else { 1 },
                "{step:?}"
            );
        }
    }
}

#[test]
fn med_is_compared_only_within_one_neighbouring_as() {
    // RFC 4271 §9.1.2.2 c
    let mut low = candidate(1);
    low.med = 0;
    low.router_id = 9;
    let mut other = candidate(2);
    other.neighbour = 65002;
    other.med = 50;
    let mut candidates = [low, other];
    select(&mut candidates);
    assert_eq!(candidates[0].path, 2, "the router id decides");
    assert_eq!(candidates[1].lost, Some(Step::RouterId));
}

#[test]
fn a_path_beaten_by_med_does_not_come_back_when_its_conqueror_falls_later() {
    // The classic cycle: a beats b by MED, b beats c, c beats a by metric.
    let mut a = candidate(1);
    (a.med, a.metric, a.router_id) = (0, 30, 1);
    let mut b = candidate(2);
    (b.med, b.metric, b.router_id) = (1, 10, 2);
    let mut c = candidate(3);
    (c.neighbour, c.metric, c.router_id) = (65002, 20, 3);
    let all = [a, b, c];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut candidates = order.map(|index| all[index].clone());
        select(&mut candidates);
        let result = candidates.map(|candidate| (candidate.path, candidate.lost));
        let expected = [(3, None), (1, Some(Step::IgpMetric)), (2, Some(Step::Med))];
        assert_eq!(result, expected);
    }
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    (
        (0u32..2, 0u32..2, 0u8..2, 0u32..2, 0u32..3),
        (any::<bool>(), 0u32..2, 0u32..2, 0u32..2, 0u8..2, 0u32..3),
    )
        .prop_map(|((pref, length, origin, neighbour, med), rest)| {
            let (external, metric, router_id, clusters, address, path_id) = rest;
            Candidate {
                local_pref: pref,
                as_path_length: length,
                origin,
                neighbour,
                med,
                external,
                metric,
                router_id,
                cluster_list_length: clusters,
                peer_address: [192, 0, 2, address].into(),
                peer: PeerId(u32::from(address)),
                path_id,
                ..candidate(0)
            }
        })
}

/// Paths of one peer differ in the path id at least: number them.
fn distinct(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    for (index, candidate) in (0u32..).zip(&mut candidates) {
        candidate.path = index;
        candidate.path_id = candidate.path_id * 100 + index;
    }
    candidates
}

fn better(a: &Candidate, b: &Candidate) -> bool {
    let mut pair = [a.clone(), b.clone()];
    select(&mut pair);
    pair[0].path == a.path
}

proptest! {
    #[test]
    fn the_order_of_arrival_does_not_matter(
        candidates in proptest::collection::vec(any_candidate(), 1..8).prop_map(distinct),
        seed in any::<u64>(),
    ) {
        let mut shuffled = candidates.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        let mut ordered = candidates;
        prop_assert_eq!(select(&mut ordered), select(&mut shuffled));
        prop_assert_eq!(ordered, shuffled);
    }

    #[test]
    fn exactly_one_path_wins_and_every_other_knows_where_it_lost(
        candidates in proptest::collection::vec(any_candidate(), 1..8).prop_map(distinct),
    ) {
        let mut candidates = candidates;
        let equal = select(&mut candidates);
        prop_assert!(equal >= 1 && equal <= candidates.len());
        prop_assert_eq!(candidates[0].lost, None);
        for (index, candidate) in candidates.iter().enumerate().skip(1) {
            let lost = candidate.lost.expect("there is one winner");
            prop_assert_eq!(index < equal, lost > Step::IgpMetric);
        }
    }

    #[test]
    fn any_two_paths_are_ordered_one_way(a in any_candidate(), b in any_candidate()) {
        let pair = distinct(vec![a, b]);
        prop_assert_ne!(better(&pair[0], &pair[1]), better(&pair[1], &pair[0]));
    }

    #[test]
    fn the_order_is_transitive_among_paths_of_one_neighbouring_as(
        candidates in proptest::collection::vec(any_candidate(), 3).prop_map(distinct),
    ) {
        let mut candidates = candidates;
        candidates.iter_mut().for_each(|candidate| candidate.neighbour = 1);
        let [a, b, c] = &candidates[..] else { unreachable!("three were made") };
        if better(a, b) && better(b, c) {
            prop_assert!(better(a, c));
        }
    }

    #[test]
    fn a_path_that_is_not_best_may_go_without_changing_the_best_unless_it_counted_by_med(
        candidates in proptest::collection::vec(any_candidate(), 2..8).prop_map(distinct),
    ) {
        let mut candidates = candidates;
        candidates.iter_mut().for_each(|candidate| candidate.med = 0);
        select(&mut candidates);
        let best = candidates[0].path;
        candidates.pop();
        select(&mut candidates);
        prop_assert_eq!(candidates[0].path, best);
    }
}
