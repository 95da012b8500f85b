//! Drain and its end.

use std::time::Duration;

use bgp::rib::Drain as Announce;

use super::{
    super::{Drain, Error, Reply, WaitFor},
    world::{World, spec},
};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn drained_node_is_a_last_resort_first_and_silent_after_the_timeout() {
    let mut world = World::new();
    let before = world.originated.clone();
    let caller = world.take_out(MINUTE);
    assert!(world.answer(caller).is_none());
    assert_eq!(
        world.announces,
        Announce::Off,
        "nothing before it is durable"
    );
    world.settle();
    assert!(matches!(
        world.answer(caller),
        Some(Reply::Drain(Ok(Drain::Leaving { .. })))
    ));
    assert_eq!(world.announces, Announce::Leaving);
    world.pass(MINUTE - Duration::from_millis(1));
    assert_eq!(world.announces, Announce::Leaving);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.announces, Announce::Left);
    world.take_back_in();
    world.settle();
    assert_eq!(world.announces, Announce::Off);
    assert_eq!(world.originated, before, "blocks stay blocks");
    world.pass(MINUTE);
    assert_eq!(world.announces, Announce::Off);
    world.check_quiet();
}

#[test]
fn drained_node_keeps_its_workloads_and_takes_no_new_ones() {
    let mut world = World::new();
    world.add("old", spec(), WaitFor::Programmed);
    world.settle();
    world.take_out(Duration::ZERO);
    world.settle();
    assert_eq!(world.announces, Announce::Left);
    let new = world.add("new", spec(), WaitFor::Programmed);
    assert_eq!(world.add_error(new), &Error::Drained);
    let again = world.add("old", spec(), WaitFor::Programmed);
    world.settle();
    assert!(!world.added(again).created);
    world.delete("old", None);
    world.settle();
    world.take_back_in();
    world.settle();
    let new = world.add("new", spec(), WaitFor::Programmed);
    world.settle();
    assert!(world.added(new).created);
    world.check_quiet();
}

#[test]
fn drain_survives_a_crash_with_the_time_that_is_left() {
    let mut world = World::new();
    world.take_out(MINUTE);
    world.settle();
    world.pass(MINUTE / 2);
    world.crash(0);
    world.settle();
    assert_eq!(world.announces, Announce::Leaving);
    world.pass(MINUTE / 2);
    assert_eq!(world.announces, Announce::Left);
    world.crash(0);
    world.settle();
    assert_eq!(world.announces, Announce::Left);
    world.take_back_in();
    world.settle();
    world.crash(0);
    world.settle();
    assert_eq!(world.announces, Announce::Off);
}

#[test]
fn drain_that_is_not_durable_did_not_happen() {
    let mut world = World::new();
    let caller = world.take_out(MINUTE);
    world.store_answers(true);
    assert!(matches!(
        world.answer(caller),
        Some(Reply::Drain(Err(Error::Store(_))))
    ));
    assert_eq!(world.announces, Announce::Off);
    let new = world.add("new", spec(), WaitFor::Programmed);
    world.settle();
    assert!(world.added(new).created);
}

#[test]
fn drain_again_has_the_newer_timeout_and_one_that_is_over_stays_so() {
    let mut world = World::new();
    world.take_out(10 * MINUTE);
    world.settle();
    world.take_out(MINUTE);
    world.settle();
    world.pass(MINUTE);
    assert_eq!(world.announces, Announce::Left);
    let caller = world.take_out(MINUTE);
    world.settle();
    assert_eq!(world.answer(caller), Some(&Reply::Drain(Ok(Drain::Left))));
    assert_eq!(world.announces, Announce::Left);
}
