use super::*;
use crate::{
    desired::{NextHopState, Via},
    kernel::{Gateway, LinkChange, NextHopKind},
};

fn gateway_of(world: &World, prefix: &str) -> Option<IpAddr> {
    let Target::NextHop { id } = world.route(prefix)?.target else {
        panic!("not by a nexthop object");
    };
    match &world.kernel.host.next_hops[&id].kind {
        NextHopKind::Gateway(gateway) => gateway.address,
        other => panic!("{other:?}"),
    }
}

fn group_of(world: &World, prefix: &str) -> usize {
    let Some(Target::NextHop { id }) = world.route(prefix).map(|route| &route.target) else {
        panic!("not by a nexthop object");
    };
    match &world.kernel.host.next_hops[id].kind {
        NextHopKind::Group(members) => members.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn routes_of_one_next_hop_share_one_object() {
    let mut world = World::new(kernel());
    for number in 0..50 {
        let object = learned(&format!("10.1.{number}.0/24"), &["192.168.1.11"]);
        world.reconciler.set(world.now, object);
    }
    world.run();
    assert_eq!(world.kernel.host.next_hops.len(), 1);
    assert_eq!(gateway_of(&world, "10.1.7.0/24"), Some(ip("192.168.1.11")));
    assert_eq!(world.route("10.1.7.0/24").unwrap().protocol, 71);
    assert_eq!(world.reconciler.status().learned_installed, 50);
}

#[test]
fn a_next_hop_behind_a_router_is_reached_through_that_router() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["172.30.0.1"]));
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("192.168.1.1")));
}

#[test]
fn a_next_hop_that_moves_costs_one_operation() {
    let mut world = World::new(kernel());
    for number in 0..50 {
        let object = learned(&format!("10.1.{number}.0/24"), &["172.30.0.1"]);
        world.reconciler.set(world.now, object);
    }
    world.run();
    world.batches.clear();
    let place = Place::Host;
    let route = foreign_via("172.30.0.0/16", "192.168.1.2");
    world.edit(Op::AddRoute { place, route });
    assert_eq!(world.batches.iter().flatten().count(), 1);
    assert_eq!(gateway_of(&world, "10.1.7.0/24"), Some(ip("192.168.1.2")));
}

#[test]
fn loss_of_a_member_of_a_group_costs_one_operation() {
    let mut world = World::new(kernel());
    let place = Place::Host;
    let route = foreign_via("172.31.0.0/16", "192.168.1.2");
    world.edit(Op::AddRoute {
        place: place.clone(),
        route: route.clone(),
    });
    let default = foreign_via("0.0.0.0/0", "192.168.1.1");
    world.edit(Op::DeleteRoute {
        place: place.clone(),
        route: default,
    });
    for number in 0..50 {
        let hops = ["172.31.0.1", "192.168.1.11"];
        let object = learned(&format!("10.1.{number}.0/24"), &hops);
        world.reconciler.set(world.now, object);
    }
    world.run();
    assert_eq!(group_of(&world, "10.1.7.0/24"), 2);
    world.batches.clear();
    world.edit(Op::DeleteRoute {
        place: place.clone(),
        route: route.clone(),
    });
    assert_eq!(world.batches.iter().flatten().count(), 1);
    assert_eq!(group_of(&world, "10.1.7.0/24"), 1);
    world.edit(Op::AddRoute { place, route });
    assert_eq!(group_of(&world, "10.1.7.0/24"), 2);
}

#[test]
fn withdrawal_of_everything_from_a_next_hop_is_one_operation() {
    let mut world = World::new(kernel());
    for number in 0..50 {
        let object = learned(&format!("10.1.{number}.0/24"), &["192.168.1.11"]);
        world.reconciler.set(world.now, object);
    }
    world.run();
    world.batches.clear();
    for number in 0..50 {
        let id = ObjectId::Route(net(&format!("10.1.{number}.0/24")));
        world.reconciler.remove(world.now, id);
    }
    world.run();
    assert_eq!(world.batches.iter().flatten().count(), 1);
    assert!(world.route("10.1.7.0/24").is_none());
    let status = world.reconciler.status();
    assert_eq!((status.objects, status.pending), (0, 0));
}

#[test]
fn a_route_that_changes_its_next_hop_is_replaced_before_anything_is_deleted() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world.batches.clear();
    world.set(learned("10.1.0.0/24", &["192.168.1.12"]));
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("192.168.1.12")));
    assert_eq!(world.kernel.host.next_hops.len(), 1);
    let ops: Vec<&Op> = world.batches.iter().flatten().collect();
    assert!(matches!(
        ops.as_slice(),
        [
            Op::ReplaceNextHop(_),
            Op::ReplaceRoute { .. },
            Op::DeleteNextHop { .. }
        ]
    ));
}

/// The object that a write in flight is about to use must not be deleted under the route.
#[test]
fn a_wish_that_changes_back_while_it_is_written_breaks_nothing() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world
        .reconciler
        .set(world.now, learned("10.1.0.0/24", &["192.168.1.12"]));
    let Some(Output::Apply { id, ops }) = world.reconciler.poll_output() else {
        panic!("there is a route to be written");
    };
    let results = world.kernel.apply(&ops);
    world
        .reconciler
        .set(world.now, learned("10.1.0.0/24", &["192.168.1.11"]));
    world.batches.clear();
    world.reconciler.handle_results(world.now, id, results);
    world.run();
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("192.168.1.11")));
    // Add means that there was none.
    let mut ops = world.batches.iter().flatten();
    assert!(
        !ops.any(|op| matches!(op, Op::AddRoute { .. })),
        "{:?}",
        world.batches
    );
}

#[test]
fn routes_come_back_after_the_link_was_down() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world.set(learned("10.2.0.0/24", &["192.168.1.11", "192.168.1.12"]));
    world
        .reconciler
        .watch_next_hop(world.now, ip("192.168.1.11"));
    world.run();
    let via = ip("192.168.1.11").into();
    let reachable = NextHopState::Reachable { metric: 0 };
    let unreachable = NextHopState::Unreachable;
    assert_eq!(
        world.take_events().last(),
        Some(&Event::NextHop {
            via,
            state: reachable
        })
    );
    let set = |up| Op::SetLink {
        place: Place::Host,
        link: LinkChange {
            index: UNDERLAY,
            up: Some(up),
            ..LinkChange::default()
        },
    };
    world.edit(set(false));
    assert!(world.route("10.1.0.0/24").is_none());
    assert!(world.events.contains(&Event::NextHop {
        via,
        state: unreachable
    }));
    let id = ObjectId::Route(net("10.1.0.0/24"));
    assert!(matches!(
        world.reconciler.object(&id),
        Some(ObjectStatus::Failed(failure)) if failure.kind == FailureKind::Unresolved
    ));
    world.edit(set(true));
    world.edit(Op::AddRoute {
        place: Place::Host,
        route: Route {
            protocol: 2,
            ..foreign_link("192.168.1.0/24")
        },
    });
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("192.168.1.11")));
    assert_eq!(group_of(&world, "10.2.0.0/24"), 2);
    assert!(world.events.contains(&Event::NextHop {
        via,
        state: reachable
    }));
}

#[test]
fn loss_of_carrier_makes_next_hops_unreachable() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world.kernel.set_carrier(UNDERLAY, false);
    world.run();
    assert!(world.kernel.host.next_hops.is_empty());
    world.kernel.set_carrier(UNDERLAY, true);
    world.run();
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("192.168.1.11")));
}

#[test]
fn an_unresolvable_next_hop_is_told_and_taken_up_later() {
    let mut world = World::new(kernel());
    let via = ip("fd00:9::1").into();
    world.reconciler.watch_next_hop(world.now, via);
    world.set(learned("fd00:5::/64", &["fd00:9::1"]));
    let state = NextHopState::Unreachable;
    assert!(world.events.contains(&Event::NextHop { via, state }));
    assert!(world.route("fd00:5::/64").is_none());
    let mut route = foreign_via("fd00:9::/64", "fd00:1::2");
    route.metric = 77;
    let place = Place::Host;
    world.edit(Op::AddRoute { place, route });
    assert_eq!(gateway_of(&world, "fd00:5::/64"), Some(ip("fd00:1::2")));
    let state = NextHopState::Reachable { metric: 77 };
    assert!(world.events.contains(&Event::NextHop { via, state }));
}

#[test]
fn learned_routes_do_not_resolve_next_hops() {
    let mut world = World::new(kernel());
    world.set(learned("172.30.0.0/16", &["192.168.1.11"]));
    world.set(learned("10.1.0.0/24", &["172.30.0.1"]));
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("192.168.1.1")));
}

#[test]
fn deleted_objects_and_routes_are_put_back() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world.set(learned("10.2.0.0/24", &["192.168.1.11", "192.168.1.12"]));
    world.set(Object::Blackhole(net("10.9.0.0/26")));
    let before = world.kernel.host.clone();
    let place = || Place::Host;
    let ids: Vec<u32> = before.next_hops.keys().copied().collect();
    let mut edits: Vec<Op> = ids.iter().map(|id| Op::DeleteNextHop { id: *id }).collect();
    for prefix in ["10.1.0.0/24", "10.2.0.0/24", "10.9.0.0/26"] {
        let route = world.route(prefix).unwrap().clone();
        edits.push(Op::DeleteRoute {
            place: place(),
            route,
        });
    }
    for edit in edits {
        let repairs = world.reconciler.status().repairs;
        world.edit(edit.clone());
        assert_eq!(world.kernel.host, before, "{edit:?}");
        assert!(world.reconciler.status().repairs > repairs, "{edit:?}");
    }
}

#[test]
fn ipv4_prefixes_can_have_ipv6_gateways() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["fd00:1::11"]));
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("fd00:1::11")));
}

#[test]
fn views_page_in_order_and_look_up_by_longest_match() {
    let mut world = World::new(kernel());
    world.kernel.add_namespace(100);
    world.set(workload("a", 100, &["10.0.0.5"]));
    world.set(Object::Blackhole(net("10.0.0.0/26")));
    for number in 0..30 {
        world.set(learned(&format!("10.1.{number}.0/24"), &["192.168.1.11"]));
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = world.reconciler.routes(None, after, 7);
        let Some(last) = page.last() else { break };
        after = Some(last.prefix);
        seen.extend(page.into_iter().map(|route| route.prefix));
    }
    assert_eq!(seen.len(), 32);
    assert!(seen.is_sorted());
    let within = Some(net("10.0.0.0/16"));
    assert_eq!(world.reconciler.routes(within, None, 100).len(), 2);
    let look = |address: &str| world.reconciler.lookup(ip(address));
    let found = look("10.0.0.5");
    assert_eq!(found.workload.as_deref(), Some("a"));
    assert_eq!(found.neighbour, Some(workload_mac("a")));
    assert_eq!(found.route.unwrap().prefix, net("10.0.0.5/32"));
    assert_eq!(look("10.0.0.6").route.unwrap().target, Target::Blackhole);
    let hops = look("10.1.3.9").route.unwrap().hops;
    assert_eq!(hops[0].interface, "eth0");
    assert_eq!(hops[0].gateway, Some(ip("192.168.1.11")));
    assert_eq!(look("8.8.8.8").route.unwrap().prefix, net("0.0.0.0/0"));
    assert!(look("192.168.1.10").local);
}

/// The gateway and the interface of the one next hop of a route.
fn hop_of(world: &World, prefix: &str) -> Gateway {
    let Some(Target::NextHop { id }) = world.route(prefix).map(|route| &route.target) else {
        panic!("not by a nexthop object");
    };
    match &world.kernel.host.next_hops[id].kind {
        NextHopKind::Gateway(gateway) => *gateway,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ipv4_and_ipv6_prefixes_share_the_object_of_an_ipv6_next_hop() {
    // RFC 8950
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["fd00:1::11"]));
    world.set(learned("fd00:5::/64", &["fd00:1::11"]));
    assert_eq!(gateway_of(&world, "10.1.0.0/24"), Some(ip("fd00:1::11")));
    assert_eq!(gateway_of(&world, "fd00:5::/64"), Some(ip("fd00:1::11")));
    assert_eq!(world.kernel.host.next_hops.len(), 1);
}

#[test]
fn a_link_local_next_hop_needs_its_interface_and_follows_its_state() {
    const OTHER: u32 = 5;
    let mut kernel = kernel();
    kernel.host.links.insert(OTHER, plain_link(OTHER, "eth1"));
    // Our own address on one link is a neighbour's on another.
    kernel.add_host_address(UNDERLAY, net("fe80::1/64"));
    let mut world = World::new(kernel);
    let on = |interface| Via {
        address: ip("fe80::1"),
        interface,
    };
    let route = |prefix: &str, interface| {
        Object::Route(LearnedRoute {
            prefix: net(prefix),
            next_hops: [on(interface)].into(),
        })
    };
    world.reconciler.watch_next_hop(world.now, on(OTHER));
    world.set(route("10.1.0.0/24", OTHER));
    world.set(route("10.2.0.0/24", UNDERLAY));
    world.set(route("10.3.0.0/24", 0));
    let hop = hop_of(&world, "10.1.0.0/24");
    assert_eq!((hop.address, hop.index), (Some(ip("fe80::1")), OTHER));
    assert!(world.route("10.2.0.0/24").is_none(), "it is our own");
    assert!(world.route("10.3.0.0/24").is_none(), "on which link?");
    world.take_events();
    world.kernel.set_carrier(OTHER, false);
    world.run();
    assert!(world.events.contains(&Event::NextHop {
        via: on(OTHER),
        state: NextHopState::Unreachable
    }));
    assert!(world.kernel.host.next_hops.is_empty());
}

/// Operations since the last look.
fn ops(world: &mut World) -> Vec<Op> {
    world.batches.drain(..).flatten().collect()
}

fn lose_next_hop(world: &mut World, hop: &str) {
    world.reconciler.unwatch_next_hop(world.now, ip(hop));
}

fn two_peers(routes: u32) -> World {
    let mut world = World::new(kernel());
    world.sync();
    for hop in ["192.168.1.11", "192.168.1.12"] {
        world.reconciler.watch_next_hop(world.now, ip(hop));
    }
    tell(&mut world, routes, &["192.168.1.11", "192.168.1.12"]);
    world.batches.clear();
    world
}

fn tell(world: &mut World, routes: u32, hops: &[&str]) {
    for number in 0..routes {
        let prefix = format!("10.{}.{}.0/24", number / 256, number % 256);
        world.reconciler.set(world.now, learned(&prefix, hops));
    }
    world.run();
}

#[test]
fn loss_of_one_of_two_peers_costs_one_operation_for_all_their_routes() {
    let mut world = two_peers(2000);
    lose_next_hop(&mut world, "192.168.1.12");
    world.run();
    // Healed before any route was told.
    assert_eq!(group_of(&world, "10.0.7.0/24"), 1);
    assert!(
        matches!(ops(&mut world).as_slice(), [Op::DeleteNextHop { .. }]),
        "{:?}",
        world.batches
    );
    tell(&mut world, 2000, &["192.168.1.11"]);
    assert_eq!(ops(&mut world), []);
    assert_eq!(world.kernel.host.next_hops.len(), 2);
    let mut world = world.restart();
    tell(&mut world, 2000, &["192.168.1.11"]);
    world.sync();
    assert_eq!(ops(&mut world), [], "known by its content");
}

#[test]
fn a_next_hop_that_comes_back_is_taken_up_route_by_route() {
    let mut world = two_peers(50);
    lose_next_hop(&mut world, "192.168.1.12");
    tell(&mut world, 50, &["192.168.1.11"]);
    world
        .reconciler
        .watch_next_hop(world.now, ip("192.168.1.12"));
    world.run();
    world.batches.clear();
    world.set(learned("10.0.7.0/24", &["192.168.1.11", "192.168.1.12"]));
    assert_eq!(group_of(&world, "10.0.7.0/24"), 2);
    assert_eq!(group_of(&world, "10.0.8.0/24"), 1, "was not told");
    tell(&mut world, 50, &["192.168.1.11", "192.168.1.12"]);
    let status = world.reconciler.status();
    assert_eq!((status.learned_installed, status.pending), (50, 0));
    assert_eq!(world.kernel.host.next_hops.len(), 3, "the old group went");
    lose_next_hop(&mut world, "192.168.1.12");
    tell(&mut world, 50, &["192.168.1.11"]);
    assert_eq!(group_of(&world, "10.0.7.0/24"), 1);
}

#[test]
fn routes_of_both_objects_of_a_set_go_and_come_without_being_rewritten() {
    let mut world = two_peers(50);
    world.set(learned("10.9.0.0/24", &["192.168.1.11"]));
    lose_next_hop(&mut world, "192.168.1.12");
    tell(&mut world, 50, &["192.168.1.11"]);
    world.batches.clear();
    let mut world = world.restart();
    world.set(learned("10.9.0.0/24", &["192.168.1.11"]));
    tell(&mut world, 50, &["192.168.1.11"]);
    world.sync();
    assert_eq!(ops(&mut world), []);
    for number in 0..50 {
        let id = ObjectId::Route(net(&format!("10.0.{number}.0/24")));
        world.reconciler.remove(world.now, id);
    }
    world.run();
    assert_eq!(ops(&mut world).len(), 1, "the group takes its routes along");
    assert_eq!(gateway_of(&world, "10.9.0.0/24"), Some(ip("192.168.1.11")));
    world.remove(ObjectId::Route(net("10.9.0.0/24")));
    assert!(world.kernel.host.next_hops.is_empty());
}

#[test]
fn a_group_of_which_all_next_hops_are_lost_keeps_its_way_until_its_routes_are_told() {
    let mut world = two_peers(50);
    for hop in ["192.168.1.11", "192.168.1.12"] {
        lose_next_hop(&mut world, hop);
    }
    world.run();
    assert!(world.route("10.0.7.0/24").is_some());
    tell(&mut world, 50, &["192.168.1.13"]);
    assert_eq!(gateway_of(&world, "10.0.7.0/24"), Some(ip("192.168.1.13")));
    assert_eq!(world.kernel.host.next_hops.len(), 1);
    let ops = ops(&mut world);
    let last_route = ops
        .iter()
        .rposition(|op| matches!(op, Op::ReplaceRoute { .. }));
    let old = ops
        .iter()
        .rposition(|op| matches!(op, Op::DeleteNextHop { .. }));
    assert!(last_route < old, "make before break");
}

#[test]
fn the_backup_of_a_lost_next_hop_is_written_before_the_object_goes() {
    let mut world = two_peers(10);
    world.set(learned("10.9.0.0/24", &["192.168.1.12"]));
    world.batches.clear();
    lose_next_hop(&mut world, "192.168.1.12");
    world
        .reconciler
        .set(world.now, learned("10.9.0.0/24", &["192.168.1.13"]));
    world.run();
    assert_eq!(group_of(&world, "10.0.7.0/24"), 1);
    assert_eq!(gateway_of(&world, "10.9.0.0/24"), Some(ip("192.168.1.13")));
    let ops = ops(&mut world);
    let route = ops
        .iter()
        .position(|op| matches!(op, Op::ReplaceRoute { .. }));
    let gone = ops
        .iter()
        .position(|op| matches!(op, Op::DeleteNextHop { .. }));
    assert!(route.is_some() && route < gone, "{ops:?}");
}

#[test]
fn the_object_of_routes_of_an_earlier_run_stays_until_they_are_known_to_be_stale() {
    let mut world = World::new(kernel());
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world.set(learned("10.2.0.0/24", &["192.168.1.11"]));
    let mut world = world.restart();
    world.set(learned("10.1.0.0/24", &["192.168.1.11"]));
    world.remove(ObjectId::Route(net("10.1.0.0/24")));
    assert!(world.route("10.1.0.0/24").is_none());
    assert!(world.route("10.2.0.0/24").is_some());
    world.sync();
    assert!(world.route("10.2.0.0/24").is_none());
    assert!(world.kernel.host.next_hops.is_empty());
}

#[test]
fn the_last_member_of_a_group_of_an_earlier_run_stays_while_routes_lead_through_it() {
    let mut world = World::new(kernel());
    world.sync();
    world.set(learned("10.1.0.0/26", &["192.168.1.11", "192.168.1.12"]));
    let second = world.kernel.host.next_hops.values().find_map(|object| {
        let NextHopKind::Gateway(gateway) = &object.kind else {
            return None;
        };
        (gateway.address == Some(ip("192.168.1.12"))).then_some(object.id)
    });
    let id = second.unwrap();
    world.kernel.edit(&Op::DeleteNextHop { id }).unwrap();
    let mut world = world.restart();
    assert_eq!(group_of(&world, "10.1.0.0/26"), 1);
    let busy = Some(libc::EBUSY);
    // The new gateway, the new group, the route; then the route alone.
    world.kernel.faults.extend([None, None, busy]);
    world.set(learned("10.1.0.0/26", &["192.168.1.11", "192.168.1.13"]));
    world.kernel.faults.push_back(busy);
    world.set(learned("10.1.0.0/26", &["192.168.1.13"]));
    assert!(world.kernel.faults.is_empty());
    assert_eq!(group_of(&world, "10.1.0.0/26"), 1, "it still stands");
    world.pass(Duration::from_secs(2));
    assert_eq!(gateway_of(&world, "10.1.0.0/26"), Some(ip("192.168.1.13")));
    world.sync();
    assert_eq!(world.kernel.host.next_hops.len(), 1);
}

#[test]
fn a_resilient_group_shrinks_in_place() {
    let resilient = Some(crate::kernel::Resilient {
        buckets: 64,
        idle_timer: Duration::from_secs(60),
        unbalanced_timer: Duration::ZERO,
    });
    let mut world = World::new(kernel());
    world.reconciler = Reconciler::new(
        Config {
            resilient,
            ..config()
        },
        world.now,
    );
    world.run();
    world.sync();
    tell(&mut world, 50, &["192.168.1.11", "192.168.1.12"]);
    world.batches.clear();
    lose_next_hop(&mut world, "192.168.1.12");
    tell(&mut world, 50, &["192.168.1.11"]);
    assert_eq!(ops(&mut world).len(), 1);
    assert_eq!(group_of(&world, "10.0.7.0/24"), 1);
}
