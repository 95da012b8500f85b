//! What is planned while a batch of routes is under way, and what has to wait.

use std::collections::{BTreeSet, VecDeque};

use super::*;

/// A world whose BGP is in sync and in which a route to this next hop stands, and with it the object.
fn with_next_hops(next_hops: &[&str]) -> World {
    let mut world = World::new(kernel());
    world.sync();
    for (number, next_hop) in next_hops.iter().enumerate() {
        world.set(learned(&format!("10.{}.0.0/24", 200 + number), &[next_hop]));
    }
    world.batches.clear();
    world
}

impl World {
    /// The next batch; nothing is carried out.
    fn batch(&mut self) -> Option<(BatchId, Vec<Op>)> {
        loop {
            match self.reconciler.poll_output() {
                Some(Output::Event(_)) => {}
                Some(Output::Apply { id, ops }) => return Some((id, ops)),
                Some(other) => panic!("{other:?}"),
                None => return None,
            }
        }
    }

    fn finish(&mut self, id: BatchId, ops: &[Op]) {
        let results = self.kernel.apply(ops);
        self.reconciler.handle_results(self.now, id, results);
    }
}

fn prefixes(ops: &[Op]) -> Vec<IpNet> {
    let prefix = |op: &Op| match op {
        Op::AddRoute { route, .. }
        | Op::ReplaceRoute { route, .. }
        | Op::DeleteRoute { route, .. } => route.prefix,
        other => panic!("{other:?}"),
    };
    ops.iter().map(prefix).collect()
}

#[test]
fn while_routes_are_written_the_next_batch_waits_already_and_no_more_than_one() {
    let mut world = with_next_hops(&["192.168.1.11"]);
    let count = 5 * plan::ROUTES_PER_BATCH;
    for number in 0..count {
        let prefix = format!("20.{}.{}.0/24", number / 256, number % 256);
        world
            .reconciler
            .set(world.now, learned(&prefix, &["192.168.1.11"]));
    }
    let mut under_way = VecDeque::new();
    let mut written = BTreeSet::new();
    for _ in 0..5 {
        while let Some(batch) = world.batch() {
            under_way.push_back(batch);
        }
        assert!(under_way.len() <= 2);
        assert!(under_way.len() == 2 || written.len() == count - plan::ROUTES_PER_BATCH);
        let (id, ops) = under_way.pop_front().unwrap();
        written.extend(prefixes(&ops));
        world.finish(id, &ops);
    }
    assert_eq!(written.len(), count);
    assert_eq!(world.batch(), None);
    assert_eq!(world.reconciler.status().learned_installed, count + 1);
}

#[test]
fn a_route_that_is_on_its_way_is_changed_once_it_has_arrived() {
    let mut world = with_next_hops(&["192.168.1.11", "192.168.1.12"]);
    let one = learned("10.1.0.0/24", &["192.168.1.11"]);
    let other = learned("10.1.0.0/24", &["192.168.1.12"]);
    world.reconciler.set(world.now, one);
    let (id, ops) = world.batch().unwrap();
    world.reconciler.set(world.now, other);
    assert_eq!(world.batch(), None);
    world.finish(id, &ops);
    let (id, ops) = world.batch().unwrap();
    assert!(
        matches!(ops.as_slice(), [Op::ReplaceRoute { .. }]),
        "{ops:?}"
    );
    // And back again while it is deleted.
    world.finish(id, &ops);
    let gone = ObjectId::Route(net("10.1.0.0/24"));
    world.reconciler.remove(world.now, gone);
    let (id, ops) = world.batch().unwrap();
    assert!(
        matches!(ops.as_slice(), [Op::DeleteRoute { .. }]),
        "{ops:?}"
    );
    let one = learned("10.1.0.0/24", &["192.168.1.11"]);
    world.reconciler.set(world.now, one);
    assert_eq!(world.batch(), None);
    world.finish(id, &ops);
    let (_, ops) = world.batch().unwrap();
    assert!(matches!(ops.as_slice(), [Op::AddRoute { .. }]), "{ops:?}");
}

#[test]
fn nothing_is_deleted_behind_routes_that_are_being_written() {
    let mut world = with_next_hops(&["192.168.1.11", "192.168.1.12"]);
    let now = world.now;
    let moved = learned("10.200.0.0/24", &["192.168.1.12"]);
    world.reconciler.set(now, moved);
    let gone = ObjectId::Route(net("10.201.0.0/24"));
    let (id, ops) = world.batch().unwrap();
    world.reconciler.remove(now, gone);
    assert_eq!(world.batch(), None);
    world.finish(id, &ops);
    assert!(world.batch().is_some());
}

#[test]
fn what_somebody_does_to_a_route_that_is_being_written_is_read() {
    let mut world = with_next_hops(&["192.168.1.11"]);
    let now = world.now;
    world
        .reconciler
        .set(now, learned("10.1.0.0/24", &["192.168.1.11"]));
    let (id, ops) = world.batch().unwrap();
    let results = world.kernel.apply(&ops);
    let route = world.route("10.1.0.0/24").unwrap().clone();
    let place = Place::Host;
    world
        .kernel
        .edit(&Op::DeleteRoute { place, route })
        .unwrap();
    let (place, change) = world.kernel.changes.pop_front().unwrap();
    // Heard before the answer to the batch.
    world.reconciler.handle_change(now, place, change);
    world.reconciler.handle_results(now, id, results);
    world.run();
    assert!(world.route("10.1.0.0/24").is_some());
    assert_eq!(world.reconciler.status().learned_installed, 2);
}

#[test]
fn routes_come_back_whose_nexthop_object_goes_while_they_are_written() {
    let mut world = with_next_hops(&["192.168.1.11"]);
    let now = world.now;
    world
        .reconciler
        .set(now, learned("10.1.0.0/24", &["192.168.1.11"]));
    let (id, ops) = world.batch().unwrap();
    let results = world.kernel.apply(&ops);
    let object = *world.kernel.host.next_hops.keys().next().unwrap();
    world
        .kernel
        .edit(&Op::DeleteNextHop { id: object })
        .unwrap();
    let (place, change) = world.kernel.changes.pop_front().unwrap();
    world.reconciler.handle_change(now, place, change);
    world.reconciler.handle_results(now, id, results);
    world.run();
    assert!(world.route("10.1.0.0/24").is_some());
    assert!(world.route("10.200.0.0/24").is_some());
}
