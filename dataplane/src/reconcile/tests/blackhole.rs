//! Learned routes for which packets are dropped (RFC 7999).

use super::*;

#[test]
fn a_learned_route_without_next_hops_is_a_blackhole() {
    // RFC 7999 §3.3: packets are dropped.
    let mut world = World::new(kernel());
    for prefix in ["10.1.0.7/32", "fd00:1:0:1::7/128"] {
        world.set(learned(prefix, &[]));
        let route = world.route(prefix).unwrap();
        assert_eq!((route.protocol, &route.target), (71, &Target::Blackhole));
    }
    assert!(world.kernel.host.next_hops.is_empty());
    assert_eq!(world.reconciler.status().learned_installed, 2);
    let id = ObjectId::Route(net("10.1.0.7/32"));
    let state = world.reconciler.object(&id);
    assert!(
        matches!(state, Some(ObjectStatus::Programmed(_))),
        "{state:?}"
    );

    // The same after a restart: it is known, and nothing is written.
    let mut world = world.restart();
    for prefix in ["10.1.0.7/32", "fd00:1:0:1::7/128"] {
        world.set(learned(prefix, &[]));
    }
    world.reconciler.source_synced(world.now, Source::Bgp);
    world.run();
    assert_eq!(world.kernel.writes, 0);

    // Somebody takes it away.
    let route = world.route("10.1.0.7/32").unwrap().clone();
    let place = Place::Host;
    world.edit(Op::DeleteRoute { place, route });
    assert_eq!(
        world.route("10.1.0.7/32").map(|route| &route.target),
        Some(&Target::Blackhole)
    );

    world.reconciler.remove(world.now, id);
    world.run();
    assert!(world.route("10.1.0.7/32").is_none());
}

#[test]
fn a_route_becomes_a_blackhole_and_a_way_again_in_place() {
    let mut world = World::new(kernel());
    world.reconciler.source_synced(world.now, Source::Bgp);
    world.set(learned("10.1.0.7/32", &["192.168.1.11"]));
    world.batches.clear();
    world.set(learned("10.1.0.7/32", &[]));
    let replaced = |world: &World| {
        let mut ops = world.batches.iter().flatten();
        ops.any(|op| matches!(op, Op::ReplaceRoute { .. }))
    };
    assert!(replaced(&world), "{:?}", world.batches);
    assert!(world.kernel.host.next_hops.is_empty(), "no longer needed");
    world.batches.clear();
    world.set(learned("10.1.0.7/32", &["192.168.1.11"]));
    assert!(replaced(&world), "{:?}", world.batches);
    assert!(matches!(
        world.route("10.1.0.7/32").unwrap().target,
        Target::NextHop { .. }
    ));
}

#[test]
fn a_blackhole_gives_way_to_a_workload_and_to_a_block() {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let mut world = World::new(kernel);
    world.set(learned("10.244.0.5/32", &[]));
    world.set(learned("10.244.0.0/26", &[]));
    world.set(Object::Blackhole(net("10.244.0.0/26")));
    world.set(workload("w1", 100, &["10.244.0.5"]));
    let target = |world: &World, prefix: &str| {
        let route = world.route(prefix).unwrap();
        (route.protocol, route.target.clone())
    };
    assert_eq!(target(&world, "10.244.0.0/26"), (70, Target::Blackhole));
    let (protocol, route) = target(&world, "10.244.0.5/32");
    assert!(protocol == 70 && route != Target::Blackhole, "{route:?}");
}
