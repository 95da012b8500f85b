//! The node core against fakes that answer in every order, and that crash.

#![allow(clippy::unwrap_used)]

mod attachments;
mod check;
mod claims;
mod drain;
mod interleavings;
mod pools;
mod sync;
mod world;

use std::time::Duration;

use dataplane::desired::{FailureKind, ObjectId};
use proptest::prelude::*;

use super::{Error, Reply, WaitFor, view::WorkloadState};
use world::{World, fixed, id, net, spec};

const REFUSALS: [FailureKind; 5] = [
    FailureKind::NamespaceGone,
    FailureKind::InterfaceInUse,
    FailureKind::Conflict,
    FailureKind::Permission,
    FailureKind::Kernel,
];

#[test]
fn fresh_node_claims_programs_and_originates_one_block_of_each_pool() {
    let mut world = World::new();
    world.check_quiet();
    let blocks: Vec<_> = world.originated.iter().copied().collect();
    assert_eq!(blocks, [net("10.0.0.0/30"), net("fd00::/126")]);
}

#[test]
fn add_is_answered_after_disk_and_kernel_and_not_before() {
    let mut world = World::new();
    let caller = world.add("a", spec(), WaitFor::Programmed);
    assert!(world.answer(caller).is_none());
    assert!(world.wanted("a").is_some(), "both at the same time");
    world.store_answers(false);
    assert!(world.answer(caller).is_none(), "the kernel is at work");
    world.settle();
    let added = world.added(caller);
    assert!(added.created);
    assert_eq!(added.workload.state, WorkloadState::Programmed);
    assert_eq!(added.workload.addresses.len(), 2);
    world.check_quiet();
}

#[test]
fn a_kernel_that_is_faster_than_the_disk_is_not_told_before_it() {
    let mut world = World::new();
    let caller = world.add("a", spec(), WaitFor::Programmed);
    world.kernel_answers(0, None);
    assert!(world.answer(caller).is_none(), "the disk is at work");
    assert!(!world.watched.contains_key(&id("a")), "nor are watchers");
    // What the kernel has of an add that nobody was told of is swept after a crash.
    world.crash(0);
    world.settle();
    assert!(world.node.workloads().is_empty());
    world.check_quiet();
}

#[test]
fn a_disk_that_is_full_while_the_kernel_is_done_leaves_nothing() {
    for kernel_first in [true, false] {
        let mut world = World::new();
        let before = world.disk.clone();
        let caller = world.add("a", spec(), WaitFor::Programmed);
        if kernel_first {
            world.kernel_answers(0, None);
        }
        world.store_answers(true);
        world.settle();
        assert!(matches!(world.add_error(caller), Error::Store(_)));
        assert!(world.wanted("a").is_none());
        assert_eq!(world.disk.workloads.len(), before.workloads.len());
        world.check_quiet();
    }
}

#[test]
fn equal_add_in_flight_is_answered_with_the_first() {
    let mut world = World::new();
    let first = world.add("a", spec(), WaitFor::Programmed);
    let second = world.add("a", spec(), WaitFor::Programmed);
    world.store_answers(false);
    let third = world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    let fourth = world.add("a", spec(), WaitFor::Programmed);
    assert!(world.added(first).created);
    for caller in [second, third, fourth] {
        assert!(!world.added(caller).created);
        assert_eq!(world.added(caller).workload, world.added(first).workload);
    }
    world.check_quiet();
}

#[test]
fn other_spec_is_refused_and_names_the_field() {
    let mut world = World::new();
    world.add("a", spec(), WaitFor::Programmed);
    let other = world.add("a", fixed("10.0.0.2"), WaitFor::Programmed);
    assert!(
        matches!(world.add_error(other), Error::OtherSpec { field, .. } if field == "addresses"),
        "{:?}",
        world.add_error(other)
    );
    world.settle();
    world.check_quiet();
}

#[test]
fn fixed_address_that_is_taken_is_refused() {
    let mut world = World::new();
    let first = world.add("a", fixed("10.0.0.2"), WaitFor::Programmed);
    let second = world.add("b", fixed("10.0.0.2"), WaitFor::Programmed);
    assert!(matches!(world.add_error(second), Error::AddressInUse { by, .. } if by == "a"));
    world.settle();
    world.added(first);
    world.check_quiet();
}

#[test]
fn mtu_too_small_for_an_address_that_the_node_chose_is_refused() {
    let mut world = World::new();
    let small = super::WorkloadSpec {
        mtu: Some(super::spec::Mtu::new(1000).unwrap()),
        ..spec()
    };
    let caller = world.add("a", small, WaitFor::Programmed);
    assert!(matches!(world.add_error(caller), Error::Invalid { field, .. } if field == "mtu"));
    world.settle();
    world.check_quiet();
}

#[test]
fn refusal_by_the_kernel_leaves_nothing() {
    for kind in REFUSALS {
        let mut world = World::new();
        let before = world.disk.clone();
        let caller = world.add("a", spec(), WaitFor::Programmed);
        let joined = world.add("a", spec(), WaitFor::Advertised);
        world.store_answers(false);
        world.kernel_answers(0, Some(kind));
        assert!(
            world.answer(caller).is_none(),
            "answered when all is undone"
        );
        world.settle();
        let error = world.add_error(caller).clone();
        assert_eq!(world.add_error(joined), &error);
        match kind {
            FailureKind::NamespaceGone => {
                assert!(matches!(error, Error::NamespaceNotFound { .. }));
            }
            FailureKind::InterfaceInUse => assert!(matches!(error, Error::InterfaceInUse { .. })),
            FailureKind::Conflict => assert!(matches!(error, Error::Conflict(_))),
            FailureKind::Permission => assert!(matches!(error, Error::Permission(_))),
            _ => assert!(matches!(error, Error::Kernel(_))),
        }
        assert_eq!(world.disk.workloads, before.workloads);
        world.check_quiet();
        // Its addresses are free at once.
        let again = world.add("b", fixed("10.0.0.0"), WaitFor::Programmed);
        world.settle();
        world.added(again);
    }
}

#[test]
fn store_that_refuses_an_add_leaves_nothing() {
    let mut world = World::new();
    let caller = world.add("a", spec(), WaitFor::Programmed);
    world.store_answers(true);
    assert!(
        world.answer(caller).is_none(),
        "the kernel has to let go of it"
    );
    world.settle();
    assert!(matches!(world.add_error(caller), Error::Store(_)));
    world.check_quiet();
}

#[test]
fn record_of_a_failed_add_is_deleted_as_soon_as_the_store_works_again() {
    let mut world = World::new();
    let caller = world.add("a", spec(), WaitFor::Programmed);
    world.store_answers(false);
    world.kernel_answers(0, Some(FailureKind::InterfaceInUse));
    world.kernel_answers(0, None);
    world.store_answers(true);
    assert!(matches!(
        world.add_error(caller),
        Error::InterfaceInUse { .. }
    ));
    assert!(world.disk.workloads.contains_key(&id("a")));
    let again = world.add("a", spec(), WaitFor::Programmed);
    world.pass(Duration::from_secs(3));
    world.settle();
    assert!(world.added(again).created);
    world.check_quiet();
}

#[test]
fn failure_of_a_standing_workload_is_shown_and_kept() {
    let mut world = World::new();
    world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    world.kernel_breaks("a", FailureKind::NamespaceGone);
    let view = world.node.workload(&id("a")).unwrap();
    assert_eq!(view.state, WorkloadState::Failed);
    assert_eq!(view.reason, "NamespaceGone");
    assert_eq!(world.node.status().workloads_failed, 1);
    let repeated = world.add("a", spec(), WaitFor::Programmed);
    assert!(matches!(
        world.add_error(repeated),
        Error::NamespaceNotFound { .. }
    ));
    world.settle();
    world.check_quiet();
}

#[test]
fn delete_is_durable_before_the_kernel_is_touched() {
    let mut world = World::new();
    let added = world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    world.added(added);
    let caller = world.delete("a", None);
    assert!(world.wanted("a").is_some());
    world.store_answers(false);
    assert!(world.wanted("a").is_none());
    assert!(world.answer(caller).is_none());
    world.settle();
    assert_eq!(world.answer(caller), Some(&Reply::Deleted(Ok(true))));
    world.check_quiet();
    let again = world.delete("a", None);
    assert_eq!(world.answer(again), Some(&Reply::Deleted(Ok(false))));
    // The address cools down for others.
    let other = world.add("b", fixed("10.0.0.0"), WaitFor::Programmed);
    assert!(matches!(
        world.add_error(other),
        Error::AddressCooling { .. }
    ));
}

#[test]
fn store_that_refuses_a_delete_leaves_the_workload_as_it_was() {
    let mut world = World::new();
    world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    let before = world.node.workload(&id("a"));
    let caller = world.delete("a", None);
    world.store_answers(true);
    assert!(matches!(
        world.answer(caller),
        Some(Reply::Deleted(Err(Error::Store(_))))
    ));
    assert_eq!(world.node.workload(&id("a")), before);
    assert_eq!(world.kernel_waits(), 0);
    world.check_quiet();
}

#[test]
fn delete_during_an_add_ends_the_add_and_succeeds() {
    for steps in 0..2 {
        let mut world = World::new();
        let add = world.add("a", spec(), WaitFor::Programmed);
        for _ in 0..steps {
            world.store_answers(false);
        }
        let delete = world.delete("a", None);
        assert!(matches!(world.add_error(add), Error::Deleted(_)));
        world.settle();
        assert_eq!(world.answer(delete), Some(&Reply::Deleted(Ok(true))));
        world.check_quiet();
        assert!(world.node.workloads().is_empty());
    }
}

#[test]
fn delete_of_an_earlier_generation_does_nothing() {
    let mut world = World::new();
    let first = world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    let generation = world.added(first).workload.generation;
    world.delete("a", Some(generation));
    let second = world.add("a", spec(), WaitFor::Programmed);
    let late = world.delete("a", Some(generation));
    world.settle();
    assert!(world.added(second).created);
    assert!(world.added(second).workload.generation > generation);
    assert_eq!(world.answer(late), Some(&Reply::Deleted(Ok(true))));
    let late = world.delete("a", Some(generation));
    assert_eq!(world.answer(late), Some(&Reply::Deleted(Ok(false))));
    world.check_quiet();
    assert_eq!(world.node.workloads().len(), 1);
}

#[test]
fn wait_for_advertised_ends_when_a_peer_has_every_block() {
    let mut world = World::new();
    let caller = world.add("a", spec(), WaitFor::Advertised);
    world.settle();
    assert!(world.answer(caller).is_none());
    assert!(world.node.awaits_advertisement());
    world.advertise(1);
    assert_eq!(
        world.added(caller).workload.state,
        WorkloadState::Advertised
    );
    world.advertise(0);
    let view = world.node.workload(&id("a")).unwrap();
    assert_eq!(view.state, WorkloadState::Programmed);
    world.check_quiet();
}

#[test]
fn add_into_a_new_block_waits_for_its_blackhole_and_fails_with_it() {
    let mut world = World::new();
    // Not the block of the start: it is claimed by this add.
    let add = world.add("a", fixed("10.0.0.9"), WaitFor::Programmed);
    while world.store_waits() > 0 {
        world.store_answers(false);
    }
    let block = ObjectId::Blackhole(net("10.0.0.8/30"));
    // The workload stands, its block does not.
    while !world.kernel.contains_key(&ObjectId::Workload("a".into())) {
        world.kernel_answers(world.kernel_waits() - 1, None);
        if world.kernel.contains_key(&block) {
            world.kernel.remove(&block);
            return;
        }
    }
    assert!(world.answer(add).is_none());
    while world.answer(add).is_none() && world.kernel_waits() > 0 {
        world.kernel_answers(0, Some(FailureKind::Conflict));
        world.store_answers(false);
    }
    world.settle();
    assert!(matches!(
        world.add_error(add),
        Error::BlockNotReady { block, .. } if *block == net("10.0.0.8/30")
    ));
    world.check_quiet();
}

#[test]
fn empty_block_is_withdrawn_then_loses_its_blackhole_then_its_record() {
    let mut world = World::new();
    world.add("a", fixed("10.0.0.9"), WaitFor::Programmed);
    world.settle();
    assert!(world.originated.contains(&net("10.0.0.8/30")));
    world.delete("a", None);
    world.settle();
    for _ in 0..20 {
        world.pass(Duration::from_secs(10));
        world.settle();
    }
    assert!(!world.originated.contains(&net("10.0.0.8/30")));
    world.check_quiet();
    assert!(world.originated.contains(&net("10.0.0.0/30")), "one stays");
}

#[test]
fn claim_that_succeeds_after_the_block_was_given_up_leaves_no_record() {
    let mut world = World::new();
    world.add("a", fixed("10.0.0.9"), WaitFor::Programmed);
    world.store_answers(true);
    while world.kernel_waits() > 0 {
        world.kernel_answers(0, None);
    }
    world.store_answers(true);
    // Given up, to be claimed again later; before that an add claims it, so two are on their way.
    world.add("b", fixed("10.0.0.9"), WaitFor::Programmed);
    world.pass(Duration::from_secs(6));
    assert_eq!(world.store_waits(), 3);
    world.store_answers(true);
    world.store_answers(true);
    world.store_answers(false);
    assert!(world.disk.blocks.contains_key(&net("10.0.0.8/30")));
    world.settle();
    world.check_quiet();
}

#[test]
fn a_node_that_installs_no_routes_sets_none() {
    let mut world = World::new();
    world.node.leave_routes_out();
    world.node.handle_routes(vec![bgp::rib::RouteChange {
        prefix: net("10.0.0.8/30"),
        next_hops: vec!["192.0.2.1".parse::<std::net::IpAddr>().unwrap().into()].into(),
    }]);
    assert!(world.node.poll_output().is_none());
}

#[test]
fn own_blocks_are_never_learned() {
    use bgp::rib::RouteChange;
    let mut world = World::new();
    let hop: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    let change = |prefix: &str, hops: &[std::net::IpAddr]| RouteChange {
        prefix: net(prefix),
        next_hops: hops.iter().map(|hop| (*hop).into()).collect(),
    };
    world.node.handle_routes(vec![
        change("10.0.0.0/30", &[hop]),
        change("10.0.0.1/32", &[hop]),
        change("10.0.0.0/29", &[hop]),
        change("10.0.0.4/30", &[hop]),
        change("10.0.1.0/30", &[]),
    ]);
    let mut set = Vec::new();
    let mut removed = Vec::new();
    while let Some(output) = world.node.poll_output() {
        match output {
            super::Output::Set(objects) => set.extend(objects.iter().map(|o| o.id())),
            super::Output::Remove(ids) => removed.extend(ids),
            other => panic!("{other:?}"),
        }
    }
    let route = |prefix| ObjectId::Route(net(prefix));
    assert_eq!(set, [route("10.0.0.0/29"), route("10.0.0.4/30")]);
    assert_eq!(
        removed,
        [
            route("10.0.0.0/30"),
            route("10.0.0.1/32"),
            route("10.0.1.0/30")
        ]
    );
}

#[test]
fn recovered_workloads_and_blocks_are_wanted_before_their_sources_are_synced() {
    let mut world = World::new();
    world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    world.crash(0);
    assert!(!world.node.is_ready());
    assert!(world.wanted("a").is_some());
    assert!(!world.originations_synced);
    world.settle();
    assert!(world.originations_synced);
    world.check_quiet();
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, u8, bool),
    Delete(u8, bool),
    Store(bool),
    Kernel(usize, Option<FailureKind>),
    Speaker,
    Advertise(u32),
    Pass(u64),
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5u8, 0..3u8, any::<bool>()).prop_map(|(id, spec, wait)| Step::Add(id, spec, wait)),
        4 => (0..5u8, any::<bool>()).prop_map(|(id, late)| Step::Delete(id, late)),
        8 => prop::bool::weighted(0.15).prop_map(Step::Store),
        10 => (0..64usize, prop::option::weighted(0.2, prop::sample::select(&REFUSALS[..])))
            .prop_map(|(choice, fails)| Step::Kernel(choice, fails)),
        4 => Just(Step::Speaker),
        1 => (0..2u32).prop_map(Step::Advertise),
        2 => (0..30u64).prop_map(Step::Pass),
        1 => (0..4usize).prop_map(Step::Crash),
    ]
}

fn run(steps: Vec<Step>) {
    let mut world = World::new();
    for step in steps {
        match step {
            Step::Add(name, kind, advertised) => {
                let spec = match kind {
                    0 => spec(),
                    1 => fixed("10.0.0.9"),
                    _ => super::WorkloadSpec {
                        pools: vec!["six".to_owned()],
                        ..spec()
                    },
                };
                let wait = if advertised {
                    WaitFor::Advertised
                } else {
                    WaitFor::Programmed
                };
                world.add(&format!("w{name}"), spec, wait);
            }
            Step::Delete(name, late) => {
                let name = format!("w{name}");
                let generation = world.node.workload(&id(&name)).map(|view| view.generation);
                world.delete(&name, generation.filter(|_| late));
            }
            Step::Store(fails) => world.store_answers(fails),
            Step::Kernel(choice, fails) => world.kernel_answers(choice, fails),
            Step::Speaker => world.speaker_answers(),
            Step::Advertise(peers) => world.advertise(peers),
            Step::Pass(seconds) => world.pass(Duration::from_secs(seconds)),
            Step::Crash(written) => world.crash(written),
        }
    }
    // From here on everything works, and what is left comes to an end.
    for _ in 0..4 {
        world.settle();
        world.pass(Duration::from_secs(6));
    }
    world.settle();
    world.advertise(1);
    world.settle();
    world.check_quiet();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_answers_failures_and_crashes_ends_in_one_story(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        run(steps);
    }
}
