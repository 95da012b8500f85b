//! Restarts that go wrong: many at once, one after the other, and without an end (RFC 4724,
//! RFC 9494); and leaving the network on purpose (RFC 8326).

use std::time::Duration;

use bgp::{
    attributes::well_known,
    rib::{Drain, RouteQuery, RouteView, Table},
    speaker::{
        config::{LongLived, PeerConfig},
        status::PeerState,
    },
    types::Family,
};
use ipnet::IpNet;

use super::{
    prefix,
    scenarios::{config, peer, reflector, run_for, status},
    world::{NodeId, World, address},
};

const V4: Family = Family::Ipv4Unicast;

/// Node 0 with external sessions to the others, and one route of each.
fn star(leaves: usize, change: impl Fn(&mut PeerConfig)) -> World {
    let asn = |node: NodeId| 64512 + u32::try_from(node).expect("a few nodes");
    let mut hub = config(asn(0), 0);
    let mut configs = Vec::new();
    for node in 1..=leaves {
        let mut towards = peer(node, asn(node));
        change(&mut towards);
        hub.peers.push(towards);
        let mut leaf = config(asn(node), node);
        let mut towards = peer(0, asn(0));
        change(&mut towards);
        leaf.peers.push(towards);
        configs.push(leaf);
    }
    configs.insert(0, hub);
    let mut world = World::new(9, configs);
    for node in 0..=leaves {
        world.originate(node, prefix(node, 0, V4));
    }
    run_for(&mut world, 20);
    assert!(world.all_established());
    world
}

fn has(world: &World, node: NodeId, prefix: IpNet) -> bool {
    world.nodes[node].forwarding.contains_key(&prefix)
}

fn route_of(node: NodeId) -> IpNet {
    prefix(node, 0, V4)
}

/// The paths of a node for a prefix.
fn paths(world: &World, node: NodeId, prefix: IpNet) -> Vec<RouteView> {
    let query = RouteQuery {
        table: Table::LocRib,
        prefix: Some(prefix),
        after: None,
        limit: 10,
    };
    world.nodes[node].speaker.rib().routes(&query).routes
}

#[test]
fn many_nodes_that_are_killed_and_start_at_once_lose_nothing_at_the_others() {
    const LEAVES: usize = 40;
    let mut world = reflector(LEAVES);
    assert_eq!(world.nodes[0].forwarding.len(), LEAVES);
    for node in 1..=LEAVES {
        // As a process, or with the power.
        world.kill(node, node % 4 == 0);
    }
    run_for(&mut world, 5);
    for node in 1..=LEAVES {
        world.start(node, true);
    }
    for _ in 0..300 {
        let end = world.now + Duration::from_millis(100);
        world.run_until(end);
        assert_eq!(world.nodes[0].forwarding.len(), LEAVES);
    }
    assert!(world.all_established());
    for (id, node) in world.nodes.iter().enumerate().skip(1) {
        assert_eq!(node.forwarding.len(), LEAVES - 1, "node {id}");
        assert!(node.first_sync, "node {id}");
    }
}

#[test]
fn a_whole_cluster_that_starts_at_once_does_not_wait_for_itself() {
    const LEAVES: usize = 12;
    let mut world = reflector(LEAVES);
    for node in 0..=LEAVES {
        world.kill(node, true);
    }
    run_for(&mut world, 5);
    for node in 0..=LEAVES {
        world.start(node, true);
    }
    run_for(&mut world, 40);
    assert!(world.all_established());
    for (id, node) in world.nodes.iter().enumerate() {
        assert!(node.first_sync, "node {id}");
        let expected = LEAVES - usize::from(id > 0);
        assert_eq!(node.forwarding.len(), expected, "node {id}");
    }
}

#[test]
fn a_peer_that_never_comes_back_holds_up_neither_own_routes_nor_others() {
    let mut world = star(2, |_| {});
    world.kill(2, true);
    world.kill(0, false);
    run_for(&mut world, 3);
    world.start(0, true);
    run_for(&mut world, 3);
    // Own routes and the marker go out at once, and what there is to learn is learned.
    let seen = status(&world, 1, 0);
    assert!(
        seen.families
            .iter()
            .all(|family| family.end_of_rib_received)
    );
    assert!(has(&world, 1, route_of(0)) && has(&world, 0, route_of(1)));
    // Only the sweep of what an earlier run has left waits, and not for ever.
    assert!(!world.nodes[0].first_sync);
    run_for(&mut world, 118);
    assert!(world.nodes[0].first_sync);
}

#[test]
fn a_node_that_dies_before_each_end_of_its_table_does_not_keep_old_routes_alive() {
    let mut world = star(1, |_| {});
    let (old, new) = (route_of(1), prefix(1, 1, V4));
    world.kill(1, false);
    world.withdraw(1, old);
    world.originate(1, new);
    run_for(&mut world, 5);
    world.start_unfinished(1, true);
    run_for(&mut world, 20);
    assert_eq!(status(&world, 0, 1).state, PeerState::Established);
    assert!(has(&world, 0, old), "it waits for the marker");
    world.kill(1, false);
    run_for(&mut world, 1);
    assert!(!has(&world, 0, old), "it was not renewed");
    for _ in 0..20 {
        world.start_unfinished(1, true);
        run_for(&mut world, 40);
        world.kill(1, false);
        run_for(&mut world, 5);
        assert!(has(&world, 0, new));
    }
    run_for(&mut world, 120);
    assert!(world.nodes[0].forwarding.is_empty());
}

#[test]
fn peers_without_graceful_restart_lose_and_gain_at_once() {
    let mut world = star(2, |peer| peer.graceful_restart = None);
    world.kill(1, false);
    run_for(&mut world, 1);
    assert!(!has(&world, 0, route_of(1)) && !has(&world, 2, route_of(1)));
    world.start(1, true);
    run_for(&mut world, 40);
    assert!(has(&world, 0, route_of(1)) && has(&world, 2, route_of(1)));
    // Nobody announces an end: its time is up soon all the same.
    assert!(world.nodes[1].first_sync);
}

#[test]
fn a_clean_stop_says_nothing_to_peers_that_keep_the_routes_and_a_word_to_the_others() {
    let mut world = star(2, |_| {});
    world.command(0, |speaker, now| speaker.shutdown(now, "stopping"));
    run_for(&mut world, 2);
    for node in 1..=2 {
        assert!(has(&world, node, route_of(0)), "node {node}");
        let said = status(&world, node, 0).last_notification_received;
        assert_eq!(said, None, "node {node}");
    }
    world.kill(0, false);
    world.start(0, true);
    run_for(&mut world, 10);
    assert!(has(&world, 1, route_of(0)) && world.all_established());

    let mut world = star(1, |peer| peer.graceful_restart = None);
    world.command(0, |speaker, now| speaker.shutdown(now, "stopping"));
    run_for(&mut world, 2);
    assert!(!has(&world, 1, route_of(0)));
    let said = status(&world, 1, 0).last_notification_received;
    let said = said.expect("a word").notification;
    assert_eq!((said.code, said.subcode), (6, 2));
}

#[test]
fn a_drained_node_is_the_last_resort_and_then_gone_and_comes_back() {
    let mut world = star(1, |_| {});
    for (drain, expected) in [
        (Drain::Leaving, vec![true]),
        (Drain::Left, vec![]),
        (Drain::Off, vec![false]),
    ] {
        world.command(0, |speaker, _| speaker.set_drain(drain));
        run_for(&mut world, 1);
        let leaving: Vec<_> = paths(&world, 1, route_of(0))
            .iter()
            .map(|path| {
                let marked = path.attributes.has_community(well_known::GRACEFUL_SHUTDOWN);
                assert_eq!(path.attributes.local_pref == Some(0), marked);
                marked
            })
            .collect();
        assert_eq!(leaving, expected, "{drain:?}");
        assert!(has(&world, 0, route_of(1)), "what is learned stays");
        assert_eq!(status(&world, 0, 1).counters.dropped_count, 0);
    }
}

#[test]
fn a_peer_that_is_away_for_an_hour_serves_as_a_last_resort_where_that_is_agreed() {
    let mut world = star(2, |peer| {
        peer.long_lived = Some(LongLived {
            stale_time: Duration::from_secs(86_400),
            max_stale_time: Duration::from_secs(7200),
        });
    });
    let route = route_of(1);
    let marked = |world: &World, node: NodeId| {
        let found = paths(world, node, route);
        let mark = |path: &RouteView| path.attributes.has_community(well_known::LLGR_STALE);
        assert!(!found.is_empty());
        found.iter().all(mark)
    };
    world.kill(1, true);
    run_for(&mut world, 3600);
    assert!(has(&world, 0, route) && has(&world, 2, route));
    assert!(marked(&world, 0) && marked(&world, 2));
    // Another way, however bad, is better.
    world.originate(2, route);
    run_for(&mut world, 2);
    let via = world.nodes[0].forwarding[&route][0].address;
    assert_eq!(via, address(2));
    world.withdraw(2, route);
    run_for(&mut world, 2);
    assert!(has(&world, 0, route));
    // Back within the time: nothing is marked any more.
    world.start(1, true);
    run_for(&mut world, 60);
    assert!(world.all_established());
    assert!(!marked(&world, 0) && !marked(&world, 2));
    // And for good.
    world.kill(1, true);
    run_for(&mut world, 7200 + 200);
    assert!(!has(&world, 0, route) && !has(&world, 2, route));
}
