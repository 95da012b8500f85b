//! Paths kept of a session that ended: long-lived stale ones (RFC 9494), and those of a refresh
//! under way (RFC 7313).

use super::*;
use crate::attributes::well_known::{LLGR_STALE, NO_EXPORT, NO_LLGR};

/// A session on which both sides know RFC 9494.
fn knowing(mut session: PeerRib) -> PeerRib {
    session.negotiated = Arc::new(Negotiated {
        long_lived_sent: true,
        long_lived_received: true,
        ..Negotiated::clone(&session.negotiated)
    });
    session
}

fn external(n: u8) -> PeerRib {
    session(PeerKind::External, n)
}

const ROUTE: &str = "10.0.0.0/24";

/// Peer 11 is gone for good, its route long-lived stale.
fn stale(peers: impl IntoIterator<Item = PeerRib>) -> Fixture {
    let sessions = std::iter::once(knowing(external(11))).chain(peers);
    let mut fixture = Fixture::with_peers(config(), sessions);
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &[net(ROUTE)]),
    );
    fixture.rib.peer_down(PeerId(11), [true; 2]);
    fixture.rib.mark_long_lived(PeerId(11), Family::Ipv4Unicast);
    fixture.settle();
    fixture
}

fn communities(fixture: &Fixture, peer: u32) -> Vec<u32> {
    let rows = fixture.rows(Table::LocRib);
    let row = rows.iter().find(|row| row.peer == Some(PeerId(peer)));
    row.expect("a row").attributes.communities.clone()
}

fn received_by(fixture: &mut Fixture, peer: u32, session: &PeerRib) -> Receiver {
    let mut receiver = Receiver::new(peer, &session.negotiated);
    receiver.drain(&mut fixture.rib);
    receiver
}

#[test]
fn a_long_lived_stale_route_serves_until_there_is_any_other_and_says_why() {
    // RFC 9494 §4.2, §4.3
    let mut fixture = stale([knowing(external(12))]);
    assert_eq!(fixture.next_hops(ROUTE), ["192.0.2.11"]);
    assert_eq!(communities(&fixture, 11), [LLGR_STALE]);
    // Worse in every other way.
    let mut other = attributes(&[65012, 65100, 65101], "192.0.2.12");
    other.origin = crate::attributes::Origin::Incomplete;
    fixture.update(12, announce(&other, &[net(ROUTE)]));
    assert_eq!(fixture.next_hops(ROUTE), ["192.0.2.12"]);
    let why = |peer| fixture.reason(Table::LocRib, ROUTE, peer);
    assert_eq!(why(12), Reason::Best(Some(Step::LongLivedStale)));
    assert_eq!(why(11), Reason::Lost(Step::LongLivedStale));
    assert_eq!(why(11).to_string(), "not best: long-lived stale");
}

#[test]
fn between_long_lived_stale_routes_the_usual_steps_decide() {
    // RFC 9494 §4.4; the other one came marked.
    let mut fixture = stale([knowing(external(12))]);
    let mut other = attributes(&[65012, 65100], "192.0.2.12");
    other.communities = vec![LLGR_STALE];
    fixture.update(12, announce(&other, &[net(ROUTE)]));
    assert_eq!(fixture.next_hops(ROUTE), ["192.0.2.11"]);
    assert_eq!(
        fixture.reason(Table::LocRib, ROUTE, 12),
        Reason::Lost(Step::AsPathLength)
    );
}

#[test]
fn a_mark_from_a_peer_to_whom_nothing_was_announced_does_not_count() {
    let mut fixture = Fixture::with_peers(config(), [external(11), external(12)]);
    let mut marked = attributes(&[65011], "192.0.2.11");
    marked.communities = vec![LLGR_STALE];
    fixture.update(11, announce(&marked, &[net(ROUTE)]));
    let longer = attributes(&[65012, 65100], "192.0.2.12");
    fixture.update(12, announce(&longer, &[net(ROUTE)]));
    assert_eq!(fixture.next_hops(ROUTE), ["192.0.2.11"]);
}

#[test]
fn a_route_that_must_not_be_kept_goes_whoever_said_so() {
    // RFC 9494 §4.2
    use crate::policy::{Action, Rule, Set};
    let by_policy = Policy::new(
        "short",
        vec![Rule {
            name: "lived".into(),
            matches: vec![],
            action: Action::Accept(vec![Set::AddCommunity(NO_LLGR)]),
        }],
    );
    for (sent, policy) in [(vec![NO_LLGR], Policy::all()), (vec![], by_policy)] {
        let mut session = knowing(external(11));
        session.import = Arc::new(policy);
        let mut fixture = Fixture::with_peers(config(), [session]);
        let mut attributes = attributes(&[65011], "192.0.2.11");
        attributes.communities = sent;
        fixture.update(11, announce(&attributes, &[net(ROUTE)]));
        fixture.rib.peer_down(PeerId(11), [true; 2]);
        fixture.settle();
        assert_eq!(
            fixture.forwarding.len(),
            1,
            "the restart time is another thing"
        );
        fixture.rib.mark_long_lived(PeerId(11), Family::Ipv4Unicast);
        fixture.settle();
        assert!(fixture.forwarding.is_empty());
        assert!(fixture.rows(Table::AdjRibIn(None)).is_empty());
    }
}

#[test]
fn only_peers_that_know_get_it_but_inside_the_as_the_others_get_it_as_a_last_resort() {
    // RFC 9494 §4.3, §4.6
    let peers = [
        knowing(external(81)),
        external(82),
        knowing(client(83)),
        client(84),
    ];
    let mut fixture = stale(peers.clone());
    let mut got = |n: u32, session: &PeerRib| {
        let receiver = received_by(&mut fixture, n, session);
        let route = receiver.held.get(&net(ROUTE)).cloned();
        route.map(|route| (route.communities.clone(), route.local_pref))
    };
    assert_eq!(got(81, &peers[0]), Some((vec![LLGR_STALE], None)));
    assert_eq!(got(82, &peers[1]), None);
    assert_eq!(got(83, &peers[2]), Some((vec![LLGR_STALE], Some(100))));
    assert_eq!(
        got(84, &peers[3]),
        Some((vec![LLGR_STALE, NO_EXPORT], Some(0)))
    );
    assert_eq!(
        fixture.rib.advertised(PeerId(82), net(ROUTE)),
        Err(NotAdvertised::LongLivedStale)
    );
}

#[test]
fn a_peer_that_does_not_know_has_the_route_withdrawn_when_it_becomes_long_lived_stale() {
    let mut fixture = Fixture::with_peers(config(), [knowing(external(11)), external(82)]);
    let from = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&from, &[net(ROUTE)]));
    let mut receiver = received_by(&mut fixture, 82, &external(82));
    fixture.rib.peer_down(PeerId(11), [true; 2]);
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.held.len(), 1);
    fixture.rib.mark_long_lived(PeerId(11), Family::Ipv4Unicast);
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.withdrawn, [net(ROUTE)]);
    // The peer is back with the route.
    fixture.rib.peer_up(PeerId(11), knowing(external(11)));
    receiver.drain(&mut fixture.rib);
    assert!(receiver.held.is_empty(), "not yet");
    fixture.update(11, announce(&from, &[net(ROUTE)]));
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.announced, [net(ROUTE)]);
    assert_eq!(communities(&fixture, 11), [] as [u32; 0]);
    fixture.update(11, end_of_rib(Family::Ipv4Unicast));
    assert_eq!(fixture.next_hops(ROUTE), ["192.0.2.11"]);
}

#[test]
fn the_mark_outlives_a_change_of_policy_and_the_return_of_the_peer() {
    let mut fixture = stale([]);
    fixture.rib.set_import(PeerId(11), Arc::new(Policy::none()));
    fixture.settle();
    assert!(fixture.forwarding.is_empty());
    fixture.rib.set_import(PeerId(11), Arc::new(Policy::all()));
    fixture.settle();
    assert_eq!(communities(&fixture, 11), [LLGR_STALE]);
    fixture.rib.peer_up(PeerId(11), knowing(external(11)));
    fixture.settle();
    assert_eq!(communities(&fixture, 11), [LLGR_STALE]);
    fixture.rib.sweep_stale(PeerId(11), Family::Ipv4Unicast);
    fixture.settle();
    assert!(fixture.forwarding.is_empty());
}

#[test]
fn a_refresh_ends_with_its_own_mark_and_not_with_end_of_rib() {
    // RFC 7313 §4
    let mut fixture = Fixture::with_peers(config(), [external(11)]);
    let (again, gone) = (net("10.0.0.0/24"), net("10.0.1.0/24"));
    let attributes = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&attributes, &[again, gone]));
    fixture.rib.mark_stale(PeerId(11), Family::Ipv4Unicast);
    fixture.update(11, announce(&attributes, &[again]));
    fixture.update(11, end_of_rib(Family::Ipv4Unicast));
    assert_eq!(fixture.forwarding.len(), 2);
    fixture.rib.sweep_stale(PeerId(11), Family::Ipv4Unicast);
    fixture.settle();
    assert_eq!(fixture.forwarding.keys().collect::<Vec<_>>(), [&again]);
}

#[test]
fn a_refresh_asked_for_before_end_of_rib_begins_after_it() {
    // RFC 7313 §4
    let config = RibConfig {
        hold_end_of_rib: true,
        ..config()
    };
    let flavour = Negotiated {
        enhanced_route_refresh: true,
        ..negotiated(false)
    };
    let mut target = external(81);
    target.negotiated = Arc::new(flavour.clone());
    let mut fixture = Fixture::with_peers(config, [external(11), target]);
    let from = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&from, &[net(ROUTE)]));
    let mut receiver = Receiver::new(81, &flavour);
    receiver.drain(&mut fixture.rib);
    fixture.rib.refresh(PeerId(81), Family::Ipv4Unicast);
    receiver.drain(&mut fixture.rib);
    assert!(receiver.refresh_markers.is_empty());
    fixture.rib.release_end_of_rib();
    receiver.forgiving = true;
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.refresh_markers, [1, 2]);
    assert_eq!(receiver.announced, [net(ROUTE)]);
    assert_eq!(receiver.end_of_rib, [1, 1]);
}

#[test]
fn a_change_of_export_amid_a_refresh_does_not_leave_it_without_an_end() {
    let flavour = Negotiated {
        enhanced_route_refresh: true,
        ..negotiated(false)
    };
    let mut target = external(81);
    target.negotiated = Arc::new(flavour.clone());
    let mut fixture = Fixture::with_peers(config(), [external(11), target]);
    let from = attributes(&[65011], "192.0.2.11");
    let many: Vec<IpNet> = (0..60_000u32)
        .map(|n| {
            let address = Ipv4Addr::from(0x0a00_0000 + n * 256);
            IpNet::new(address.into(), 24).unwrap()
        })
        .collect();
    fixture.update(11, announce(&from, &many));
    let mut receiver = Receiver::new(81, &flavour);
    receiver.drain(&mut fixture.rib);
    receiver.forgiving = true;
    fixture.rib.refresh(PeerId(81), Family::Ipv4Unicast);
    assert!(receiver.pull(&mut fixture.rib, 1).more);
    assert_eq!(receiver.refresh_markers, [1]);
    let blocks = Arc::new(Policy::export_blocks());
    fixture.rib.set_export(PeerId(81), blocks);
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.refresh_markers, [1, 1, 2]);
    assert!(receiver.held.is_empty());
}

#[test]
fn a_speaker_that_leaves_is_the_last_resort_first_and_then_announces_nothing() {
    // RFC 8326 §4.2
    use crate::attributes::well_known::GRACEFUL_SHUTDOWN;
    let peers = [external(81), client(83)];
    let mut fixture = Fixture::with_peers(config(), peers.clone());
    fixture
        .rib
        .originate(fixture.now, net(ROUTE), LocalRoute::default());
    let mut receivers = [(81, &peers[0]), (83, &peers[1])]
        .map(|(n, session)| received_by(&mut fixture, n, session));
    let route = |receiver: &Receiver| {
        let held = receiver.held.get(&net(ROUTE));
        held.map(|route| (route.communities.clone(), route.local_pref))
    };
    let plain = [Some((vec![], None)), Some((vec![], Some(100)))];
    let last = [
        Some((vec![GRACEFUL_SHUTDOWN], None)),
        Some((vec![GRACEFUL_SHUTDOWN], Some(0))),
    ];
    for (drain, expected) in [
        (Drain::Off, &plain),
        (Drain::Leaving, &last),
        (Drain::Left, &[None, None]),
        (Drain::Off, &plain),
        (Drain::Left, &[None, None]),
        (Drain::Leaving, &last),
    ] {
        fixture.rib.set_drain(drain);
        for (receiver, expected) in receivers.iter_mut().zip(expected) {
            receiver.forgiving = true;
            receiver.drain(&mut fixture.rib);
            assert_eq!(route(receiver), *expected, "{drain:?}");
            assert_eq!(receiver.end_of_rib, [1, 1]);
        }
    }
    fixture.rib.set_drain(Drain::Left);
    assert_eq!(
        fixture.rib.advertised(PeerId(81), net(ROUTE)),
        Err(NotAdvertised::Drained)
    );
    // Who comes later gets nothing either, but the marker.
    fixture.rib.peer_up(PeerId(82), external(82));
    let late = received_by(&mut fixture, 82, &external(82));
    assert!(late.held.is_empty());
    assert_eq!(late.end_of_rib, [1, 1]);
}
