//! Blocks that somebody else announces, too; and blocks that are given back on demand.

use std::{sync::Arc, time::Duration};

use bgp::{attributes::NextHop, rib::RouteChange};

use super::world::{World, fixed, id, net, spec};
use crate::node::{Error, Reply, WaitFor, claims::ClaimEvent};

const FIRST: &str = "10.0.0.0/30";
const SECOND: &str = "10.0.0.4/30";
const LOWER: [u8; 4] = [192, 0, 2, 1];
const HIGHER: [u8; 4] = [192, 0, 2, 9];

fn world() -> World {
    let mut world = World::new();
    world.node.set_bgp_identity([192, 0, 2, 5].into(), 64512);
    world
}

fn holds(world: &World, block: &str) -> bool {
    world.disk.blocks.contains_key(&net(block))
}

#[test]
fn an_unused_block_that_another_node_announces_is_given_up_and_another_one_claimed() {
    let mut world = world();
    assert!(holds(&world, FIRST));
    world.claims(&[(FIRST, LOWER)]);
    world.settle();
    assert!(!holds(&world, FIRST) && holds(&world, SECOND));
    assert!(world.originated.contains(&net(SECOND)));
    assert!(matches!(world.claim_events[0], ClaimEvent::Yielded(block) if block == net(FIRST)));
    assert!(matches!(&world.claim_events[1], ClaimEvent::Began(known) if known.yields));
    // It is not originated any more, so the speaker tells of no claim; its route comes later.
    world.claims(&[]);
    assert!(matches!(world.claim_events[2], ClaimEvent::Ended(block) if block == net(FIRST)));
    world.check_quiet();
    let caller = world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    let added = world.added(caller).workload.addresses[0].address;
    assert!(net(SECOND).contains(&added), "{added}");
}

#[test]
fn a_block_in_use_is_kept_preferred_and_not_filled_and_given_up_once_it_is_empty() {
    let mut world = world();
    world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    world.claims(&[(FIRST, LOWER)]);
    world.settle();
    assert!(holds(&world, FIRST) && world.preferred.contains(&net(FIRST)));
    assert_eq!(world.node.duplicate_claims().len(), 1);
    assert!(!world.node.duplicate_claims()[0].yields);
    let caller = world.add("b", spec(), WaitFor::Programmed);
    world.settle();
    let added = world.added(caller).workload.addresses[0].address;
    assert!(
        !net(FIRST).contains(&added),
        "{added} may be in use elsewhere"
    );
    world.check_quiet();
    world.delete("a", None);
    world.settle();
    world.pass(Duration::from_secs(6));
    world.settle();
    assert!(!holds(&world, FIRST), "the cool-down of 2 s is over, too");
    world.check_quiet();
}

#[test]
fn of_two_nodes_that_do_not_use_a_block_only_one_gives_it_up_at_once() {
    let mut world = world();
    world.claims(&[(FIRST, HIGHER)]);
    world.settle();
    assert!(holds(&world, FIRST), "it is the other one's turn");
    world.claims(&[]);
    world.pass(Duration::from_secs(7));
    world.settle();
    assert!(holds(&world, FIRST));
    // The other one keeps it: it is in use there.
    world.claims(&[(FIRST, HIGHER)]);
    world.pass(Duration::from_secs(3));
    world.settle();
    assert!(holds(&world, FIRST));
    world.pass(Duration::from_secs(6));
    world.settle();
    assert!(!holds(&world, FIRST) && holds(&world, SECOND));
    world.check_quiet();
}

#[test]
fn a_block_that_another_node_is_seen_to_announce_is_not_claimed_until_it_is_withdrawn() {
    let mut world = world();
    let change = |prefix: &str, there: bool| RouteChange {
        prefix: net(prefix),
        next_hops: match there {
            true => Arc::from([NextHop::from(std::net::IpAddr::from([192, 0, 2, 9]))]),
            false => Arc::from([]),
        },
    };
    // A part of the second block; and what covers everything says nothing.
    let seen = vec![change("10.0.0.6/32", true), change("10.0.0.0/24", true)];
    world.node.handle_routes(seen);
    for name in ["a", "b", "c", "d"] {
        world.add(name, spec(), WaitFor::Programmed);
    }
    world.settle();
    assert!(!holds(&world, SECOND) && holds(&world, "10.0.0.8/30"));
    let gone = vec![change("10.0.0.6/32", false)];
    world.node.handle_routes(gone);
    for name in ["e", "f", "g", "h"] {
        world.add(name, spec(), WaitFor::Programmed);
    }
    world.settle();
    assert!(holds(&world, SECOND));
    world.check_quiet();
}

#[test]
fn the_route_of_who_keeps_the_block_is_used_as_soon_as_the_own_block_is_gone() {
    let mut world = world();
    world.claims(&[(FIRST, LOWER)]);
    world.speaker_answers();
    // The speaker has withdrawn the block; its record is still there.
    let learned = RouteChange {
        prefix: net(FIRST),
        next_hops: Arc::from([NextHop::from(std::net::IpAddr::from([192, 0, 2, 1]))]),
    };
    world.node.handle_routes(vec![learned]);
    let route = dataplane::desired::ObjectId::Route(net(FIRST));
    assert!(!world.wants(&route), "its blackhole may stand");
    world.settle();
    assert!(!holds(&world, FIRST) && world.wants(&route));
}

#[test]
fn an_operator_gives_back_an_empty_block_and_no_other() {
    let mut world = world();
    world.add("a", fixed("10.0.0.1"), WaitFor::Programmed);
    world.add("b", fixed("10.0.0.9"), WaitFor::Programmed);
    world.settle();
    let refused = world.release(FIRST);
    let Some(Reply::BlockReleased(Err(Error::Precondition { reason, text }))) =
        world.answer(refused)
    else {
        panic!("{:?}", world.answer(refused));
    };
    assert_eq!(*reason, "BLOCK_IN_USE");
    assert!(text.contains("1 workloads: a"), "{text}");
    let unknown = world.release("10.0.0.12/30");
    assert!(matches!(
        world.answer(unknown),
        Some(Reply::BlockReleased(Err(Error::BlockNotFound(_))))
    ));
    world.delete("b", None);
    world.settle();
    let cooling = world.release("10.0.0.8/30");
    let Some(Reply::BlockReleased(Err(Error::Precondition { reason, .. }))) = world.answer(cooling)
    else {
        panic!("{:?}", world.answer(cooling));
    };
    assert_eq!(*reason, "BLOCK_COOLING");
    world.pass(Duration::from_secs(3));
    let released = world.release("10.0.0.8/30");
    assert!(world.answer(released).is_none(), "answered when it is done");
    let twice = world.release("10.0.0.8/30");
    world.settle();
    for caller in [released, twice] {
        assert_eq!(world.answer(caller), Some(&Reply::BlockReleased(Ok(()))));
    }
    assert!(!holds(&world, "10.0.0.8/30"));
    assert!(world.node.workload(&id("a")).is_some());
    world.check_quiet();
}

#[test]
fn a_release_that_the_store_refuses_is_told_and_goes_on() {
    let mut world = world();
    let caller = world.release(FIRST);
    world.speaker_answers();
    while world.kernel_waits() > 0 {
        world.kernel_answers(0, None);
    }
    world.store_answers(true);
    assert!(matches!(
        world.answer(caller),
        Some(Reply::BlockReleased(Err(Error::Store(_))))
    ));
    world.pass(Duration::from_secs(3));
    world.settle();
    assert!(!holds(&world, FIRST));
    world.check_quiet();
}
