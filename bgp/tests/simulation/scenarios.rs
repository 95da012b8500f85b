//! Single stories in the simulated network.

use std::{sync::Arc, time::Duration};

use bgp::{
    policy::Policy,
    rib::LocalRoute,
    speaker::{
        config::{PeerConfig, SpeakerConfig},
        status::{PeerState, PeerStatus},
    },
    types::{Asn, Family},
};

use super::{
    prefix,
    world::{NodeId, World, address},
};

pub(super) fn config(asn: u32, node: NodeId) -> SpeakerConfig {
    let mut config = SpeakerConfig::new(Asn(asn), address(node));
    config.seed = node as u64 + 1;
    config
}

pub(super) fn peer(node: NodeId, asn: u32) -> PeerConfig {
    let mut peer = PeerConfig::new(format!("n{node}"), address(node).into(), Asn(asn));
    peer.import = Arc::new(Policy::all());
    peer.export = Arc::new(Policy::all());
    peer
}

pub(super) fn run_for(world: &mut World, seconds: u64) {
    let end = world.now + Duration::from_secs(seconds);
    world.run_until(end);
}

pub(super) fn status(world: &World, node: NodeId, other: NodeId) -> PeerStatus {
    let name = format!("n{other}");
    let peers = world.nodes[node].speaker.peers();
    let found = peers.into_iter().find(|peer| peer.name == name);
    found.expect("a peer of that name")
}

/// Node 0 reflects between the others.
pub(super) fn reflector(clients: usize) -> World {
    let mut hub = config(64512, 0);
    hub.cluster_id = Some(address(0));
    let mut configs = Vec::new();
    for node in 1..=clients {
        let mut client = peer(node, 64512);
        client.route_reflector_client = true;
        hub.peers.push(client);
        let mut leaf = config(64512, node);
        leaf.peers.push(peer(0, 64512));
        configs.push(leaf);
    }
    configs.insert(0, hub);
    let mut world = World::new(5, configs);
    for node in 1..=clients {
        world.originate(node, prefix(node, 0, Family::Ipv4Unicast));
    }
    run_for(&mut world, 20);
    world
}

#[test]
fn a_restarted_reflector_takes_nothing_away() {
    let mut world = reflector(4);
    assert!(
        world.nodes[1..]
            .iter()
            .all(|node| node.forwarding.len() == 3)
    );
    world.kill(0, false);
    run_for(&mut world, 10);
    world.start(0, true);
    for _ in 0..600 {
        let end = world.now + Duration::from_millis(50);
        world.run_until(end);
        for (id, node) in world.nodes.iter().enumerate().skip(1) {
            assert_eq!(node.forwarding.len(), 3, "node {id} lost a route");
        }
    }
    assert!(world.all_established());
    // And what went meanwhile does not stay.
    world.kill(0, false);
    let gone = prefix(1, 0, Family::Ipv4Unicast);
    world.withdraw(1, gone);
    run_for(&mut world, 10);
    world.start(0, true);
    run_for(&mut world, 30);
    assert_eq!(world.nodes[2].forwarding.len(), 2);
    assert!(!world.nodes[2].forwarding.contains_key(&gone));
}

#[test]
fn a_restarted_leaf_announces_and_marks_the_end_without_waiting_for_anybody() {
    let mut world = reflector(2);
    // The reflector is away, and with it every table there is to learn.
    world.kill(0, true);
    world.kill(1, true);
    run_for(&mut world, 5);
    world.start(1, true);
    world.start(0, true);
    run_for(&mut world, 20);
    let leaf = status(&world, 1, 0);
    assert_eq!(leaf.state, PeerState::Established);
    assert!(leaf.families.iter().all(|family| family.end_of_rib_sent));
    assert!(
        world.nodes[2]
            .forwarding
            .contains_key(&prefix(1, 0, Family::Ipv4Unicast))
    );
}

#[test]
fn a_peer_with_too_many_prefixes_is_closed_with_6_1_and_the_others_stay() {
    let mut hub = config(64512, 0);
    let mut limited = peer(1, 64513);
    limited.max_prefixes = Some(3);
    hub.peers = vec![limited, peer(2, 64514)];
    let mut one = config(64513, 1);
    one.peers = vec![peer(0, 64512)];
    let mut two = config(64514, 2);
    two.peers = vec![peer(0, 64512)];
    let mut world = World::new(6, vec![hub, one, two]);
    world.originate(2, prefix(2, 0, Family::Ipv4Unicast));
    for index in 0..3 {
        world.originate(1, prefix(1, index, Family::Ipv4Unicast));
    }
    run_for(&mut world, 10);
    assert_eq!(world.nodes[0].forwarding.len(), 4);
    world.originate(1, prefix(1, 3, Family::Ipv4Unicast));
    run_for(&mut world, 60);
    let limited = status(&world, 0, 1);
    let sent = limited.last_notification_sent.expect("a word").notification;
    assert_eq!((sent.code, sent.subcode), (6, 1));
    assert!(
        limited.counters.established_count < 12,
        "{} sessions in a minute",
        limited.counters.established_count
    );
    assert_eq!(status(&world, 0, 2).counters.dropped_count, 0);
    assert!(
        world.nodes[0]
            .forwarding
            .contains_key(&prefix(2, 0, Family::Ipv4Unicast))
    );
    world.withdraw(1, prefix(1, 3, Family::Ipv4Unicast));
    run_for(&mut world, 120);
    assert_eq!(world.nodes[0].forwarding.len(), 4);
}

#[test]
fn a_peer_with_too_many_prefixes_rests_for_the_configured_time() {
    let mut hub = config(64512, 0);
    let mut limited = peer(1, 64513);
    limited.max_prefixes = Some(1);
    limited.max_prefixes_restart = Some(Duration::from_secs(600));
    hub.peers = vec![limited];
    let mut one = config(64513, 1);
    one.peers = vec![peer(0, 64512)];
    let mut world = World::new(6, vec![hub, one]);
    world.originate(1, prefix(1, 0, Family::Ipv4Unicast));
    world.originate(1, prefix(1, 1, Family::Ipv4Unicast));
    run_for(&mut world, 10);
    world.withdraw(1, prefix(1, 1, Family::Ipv4Unicast));
    run_for(&mut world, 570);
    let limited = status(&world, 0, 1);
    assert_eq!(limited.state, PeerState::Idle);
    assert_eq!(limited.counters.established_count, 1);
    run_for(&mut world, 60);
    assert_eq!(status(&world, 0, 1).state, PeerState::Established);
}

#[test]
fn a_speaker_is_known_to_a_peer_by_another_number_and_originates_from_the_start() {
    let mut hub = config(64512, 0);
    let given = prefix(0, 7, Family::Ipv4Unicast);
    hub.originate = vec![(given, LocalRoute::default())];
    let mut renamed = peer(1, 64513);
    renamed.local_as = Some(Asn(64600));
    hub.peers = vec![renamed];
    let mut one = config(64513, 1);
    one.peers = vec![peer(0, 64600)];
    let mut world = World::new(6, vec![hub, one]);
    run_for(&mut world, 10);
    assert_eq!(status(&world, 1, 0).state, PeerState::Established);
    assert_eq!(status(&world, 0, 1).local_asn, Asn(64600));
    assert!(world.nodes[1].forwarding.contains_key(&given));
}

#[test]
fn policies_change_while_the_session_stays() {
    let mut hub = config(64512, 0);
    hub.peers = vec![peer(1, 64513)];
    let mut one = config(64513, 1);
    one.peers = vec![peer(0, 64512)];
    let mut world = World::new(6, vec![hub, one]);
    let (own, other) = (
        prefix(0, 0, Family::Ipv4Unicast),
        prefix(1, 0, Family::Ipv4Unicast),
    );
    world.originate(0, own);
    world.originate(1, other);
    run_for(&mut world, 10);
    let have = |world: &World| {
        (
            world.nodes[0].forwarding.contains_key(&other),
            world.nodes[1].forwarding.contains_key(&own),
        )
    };
    let mut change = |import: Policy, export: Policy, expected| {
        let (import, export) = (Arc::new(import), Arc::new(export));
        world.command(0, |speaker, _| {
            speaker.set_policies("n1", import, export).expect("known");
        });
        run_for(&mut world, 5);
        assert_eq!(have(&world), expected);
        assert_eq!(status(&world, 0, 1).counters.dropped_count, 0);
    };
    change(Policy::none(), Policy::all(), (false, true));
    change(Policy::all(), Policy::none(), (true, false));
    change(Policy::all(), Policy::export_blocks(), (true, true));
    change(Policy::none(), Policy::none(), (false, false));
    // The next session has them too.
    world.reset(0, 1);
    run_for(&mut world, 30);
    assert_eq!(status(&world, 0, 1).state, PeerState::Established);
    assert_eq!(have(&world), (false, false));
}

#[test]
fn a_peer_that_is_shut_down_stays_down_until_it_is_enabled() {
    let mut world = reflector(2);
    world.command(0, |speaker, now| {
        speaker
            .shutdown_peer(now, "n1", "maintenance")
            .expect("known");
    });
    run_for(&mut world, 300);
    assert_eq!(status(&world, 0, 1).state, PeerState::Idle);
    assert_ne!(status(&world, 1, 0).state, PeerState::Established);
    assert!(
        world.nodes[2].forwarding.is_empty(),
        "a shutdown is no restart"
    );
    assert!(
        status(&world, 1, 0).reason.contains("maintenance")
            || status(&world, 1, 0).last_notification_received.is_some()
    );
    world.command(0, |speaker, now| {
        speaker.enable_peer(now, "n1").expect("known");
    });
    run_for(&mut world, 60);
    assert!(world.all_established());
    assert_eq!(world.nodes[2].forwarding.len(), 1);
}

#[test]
fn a_silent_cut_is_noticed_within_the_hold_time_and_the_routes_go_or_stay_as_agreed() {
    for (restart, left) in [(None, 0), (Some(Duration::from_secs(60)), 1)] {
        let mut one = config(64512, 0);
        let mut two = config(64513, 1);
        one.peers = vec![peer(1, 64513)];
        two.peers = vec![peer(0, 64512)];
        one.peers[0].graceful_restart = restart;
        two.peers[0].graceful_restart = restart;
        let mut world = World::new(7, vec![one, two]);
        world.originate(0, prefix(0, 0, Family::Ipv4Unicast));
        run_for(&mut world, 20);
        assert_eq!(world.nodes[1].forwarding.len(), 1);
        world.cut(0, 1);
        run_for(&mut world, 10);
        assert_ne!(status(&world, 1, 0).state, PeerState::Established);
        assert_eq!(world.nodes[1].forwarding.len(), left);
        run_for(&mut world, 70);
        assert!(
            world.nodes[1].forwarding.is_empty(),
            "the restart time is over"
        );
        world.heal(0, 1);
        run_for(&mut world, 60);
        assert!(world.all_established());
        assert_eq!(world.nodes[1].forwarding.len(), 1);
    }
}

#[test]
fn the_first_sync_waits_for_answers_about_next_hops_but_not_for_ever() {
    let mut one = config(64512, 0);
    let mut two = config(64513, 1);
    one.peers = vec![peer(1, 64513)];
    two.peers = vec![peer(0, 64512)];
    let mut world = World::new(8, vec![one, two]);
    world.nodes[1].answers = false;
    world.originate(0, prefix(0, 0, Family::Ipv4Unicast));
    run_for(&mut world, 9);
    assert!(world.all_established());
    assert!(world.nodes[0].first_sync);
    assert!(!world.nodes[1].first_sync);
    run_for(&mut world, 9);
    assert!(world.nodes[1].first_sync);
}
