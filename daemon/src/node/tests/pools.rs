//! Pools that change while the node runs.

use std::time::Duration;

use super::{
    super::{Error, Reply, WaitFor, WorkloadSpec, view::PoolOverride},
    world::{World, fixed, id, net, spec},
};
use crate::{config, ipam::Closed};

fn set(world: &mut World, pools: Vec<config::Pool>) -> Result<(), Error> {
    let result = world.set_pools(pools);
    world.settle();
    result
}

fn texts(world: &World) -> Vec<String> {
    world.originated.iter().map(ToString::to_string).collect()
}

fn error_of(world: &World, caller: super::super::Caller) -> Error {
    match world.answer(caller) {
        Some(Reply::Pool(Err(error))) => error.clone(),
        other => panic!("no error: {other:?}"),
    }
}

#[test]
fn a_pool_that_comes_has_a_block_at_once_and_one_that_goes_gives_its_blocks_back() {
    let mut world = World::new();
    let mut pools = world.pools.clone();
    pools.push(config::Pool {
        claim: vec![net("10.1.0.0/28")],
        ..config::Pool::new("more", net("10.1.0.0/24"), 30)
    });
    set(&mut world, pools.clone()).unwrap();
    assert_eq!(texts(&world), ["10.0.0.0/30", "10.1.0.0/30", "fd00::/126"]);
    world.check_quiet();
    let caller = world.add(
        "a",
        WorkloadSpec {
            pools: vec!["more".to_owned()],
            ..spec()
        },
        WaitFor::Programmed,
    );
    world.settle();
    assert_eq!(
        world.added(caller).workload.addresses[0].block,
        net("10.1.0.0/30")
    );

    // It is in use: nothing changes, and the message says by whom.
    pools.pop();
    let refused = set(&mut world, pools.clone()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "pool \"more\" cannot be removed or moved: 1 workload(s) have addresses of it: a (10.1.0.0); \
         `agentctl pool drain more` keeps new ones out until these are gone"
    );
    assert_eq!(texts(&world), ["10.0.0.0/30", "10.1.0.0/30", "fd00::/126"]);
    world.check_quiet();

    world.delete("a", None);
    world.settle();
    set(&mut world, pools).unwrap();
    assert_eq!(texts(&world).len(), 3, "an address still cools down");
    world.pass(Duration::from_secs(2));
    world.settle();
    assert_eq!(texts(&world), ["10.0.0.0/30", "fd00::/126"]);
    world.check_quiet();
    world.crash(usize::MAX);
    world.settle();
    world.check_quiet();
}

#[test]
fn a_pool_that_overlaps_a_bridge_of_the_running_node_is_refused() {
    let mut world = World::new();
    let mut pools = world.pools.clone();
    pools.push(config::Pool::new("wide", net("172.30.0.0/16"), 26));
    let refused = set(&mut world, pools).unwrap_err();
    assert!(matches!(
        refused,
        Error::Precondition {
            reason: "POOL_OVERLAPS_BRIDGE",
            ..
        }
    ));
    world.check_quiet();
}

#[test]
fn a_drained_pool_gives_nothing_out_and_its_blocks_back_and_stays_so_after_a_crash() {
    let mut world = World::new();
    world.add("a", fixed("10.0.0.1"), WaitFor::Programmed);
    world.settle();
    let caller = world.pool_state("four", Some(PoolOverride::Draining));
    assert!(world.answer(caller).is_none(), "not durable yet");
    world.settle();
    let Some(Reply::Pool(Ok(users))) = world.answer(caller) else {
        panic!("{:?}", world.answer(caller));
    };
    assert_eq!(users.pool.closed, Some(Closed::Draining));
    assert_eq!(users.workloads, [(id("a"), "10.0.0.1".parse().unwrap())]);
    let named = WorkloadSpec {
        pools: vec!["four".to_owned()],
        ..spec()
    };
    let refused = world.add("b", named.clone(), WaitFor::Programmed);
    assert!(matches!(
        world.add_error(refused),
        Error::PoolDisabled { text, .. } if text.contains("is being drained")
    ));

    world.crash(usize::MAX);
    world.settle();
    let refused = world.add("b", named.clone(), WaitFor::Programmed);
    assert!(matches!(
        world.add_error(refused),
        Error::PoolDisabled { .. }
    ));
    world.delete("a", None);
    world.settle();
    world.pass(Duration::from_secs(2));
    world.settle();
    assert_eq!(texts(&world), ["fd00::/126"], "also the last block");
    world.check_quiet();

    world.pool_state("four", None);
    world.settle();
    assert_eq!(texts(&world), ["10.0.0.0/30", "fd00::/126"]);
    let added = world.add("b", named, WaitFor::Programmed);
    world.settle();
    assert!(world.added(added).created);
    world.crash(usize::MAX);
    world.settle();
    world.check_quiet();
}

#[test]
fn the_state_of_a_pool_is_durable_or_not_changed() {
    let mut world = World::new();
    let caller = world.pool_state("four", Some(PoolOverride::Disabled));
    world.store_answers(true);
    assert!(matches!(error_of(&world, caller), Error::Store(_)));
    let added = world.add("a", spec(), WaitFor::Programmed);
    world.settle();
    assert_eq!(world.added(added).workload.addresses.len(), 2);

    let caller = world.pool_state("four", Some(PoolOverride::Disabled));
    world.settle();
    assert!(matches!(world.answer(caller), Some(Reply::Pool(Ok(_)))));
    // Repeated, it is answered at once.
    let again = world.pool_state("four", Some(PoolOverride::Disabled));
    assert!(matches!(world.answer(again), Some(Reply::Pool(Ok(_)))));
    let unknown = world.pool_state("nope", None);
    assert!(matches!(
        error_of(&world, unknown),
        Error::PoolNotFound { configured, .. } if configured == "four, six"
    ));
    world.check_quiet();
}

#[test]
fn a_pool_that_the_configuration_disables_cannot_be_enabled_by_a_command() {
    let mut world = World::new();
    let mut pools = world.pools.clone();
    pools[0].disabled = true;
    set(&mut world, pools.clone()).unwrap();
    let caller = world.pool_state("four", None);
    assert!(matches!(
        error_of(&world, caller),
        Error::Precondition {
            reason: "POOL_DISABLED",
            ..
        }
    ));
    // What an operator said of a pool goes with it.
    world.pool_state("six", Some(PoolOverride::Disabled));
    world.settle();
    let six = pools.pop().unwrap();
    set(&mut world, pools.clone()).unwrap();
    world.pass(Duration::from_secs(2));
    world.settle();
    pools.push(six);
    set(&mut world, pools).unwrap();
    assert!(world.disk.pools.is_empty());
    assert!(texts(&world).contains(&"fd00::/126".to_owned()));
    world.check_quiet();
}

#[test]
fn a_full_pool_says_whose_workloads_hold_it() {
    let mut world = World::new();
    let owned = |name: Option<&str>| WorkloadSpec {
        owner: name.map(|name| super::super::spec::Owner::new(name).unwrap()),
        pools: vec!["four".to_owned()],
        ..spec()
    };
    for number in 0..16 {
        let owner = match number {
            0..10 => Some("nomad"),
            10..14 => Some("slurm"),
            _ => None,
        };
        world.add(&format!("w{number}"), owned(owner), WaitFor::Programmed);
        world.settle();
    }
    let refused = world.add("more", owned(None), WaitFor::Programmed);
    assert_eq!(
        world.add_error(refused).to_string(),
        "pool \"four\" (10.0.0.0/24) has no free address on this node: 4 block(s) of 16 addresses, 16 \
         in use, 0 cooling down, 0 reserved; no further /30 block is left in its claim range \
         10.0.0.0/28; what would help: deleting workloads, or a further range of the pool in \
         ipam.claim; in use by nomad (10), slurm (4), no owner (2)"
    );
}
