//! RFC 4271 §6.8: which of two connections survives.

use super::*;

/// Which connection has had its OPEN first.
#[derive(Clone, Copy, Debug)]
enum First {
    Outgoing,
    Incoming,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Winner {
    Outgoing,
    Incoming,
}

fn check(local: (u32, [u8; 4]), remote: (u32, [u8; 4]), first: First, expected: Winner) {
    let mut config = settings();
    config.local_asn = Asn(local.0);
    config.router_id = local.1.into();
    config.remote_asn = Asn(remote.0).into();
    let open = Open {
        asn: Asn(remote.0),
        router_id: remote.1.into(),
        ..remote_open()
    };
    let mut bench = Bench::started(config);
    let outgoing = bench.connect();
    let incoming = bench.accept().unwrap();
    bench.take();
    let order = match first {
        First::Outgoing => [outgoing, incoming],
        First::Incoming => [incoming, outgoing],
    };
    for connection in order {
        bench.open(connection, open.clone());
    }
    let (winner, loser) = match expected {
        Winner::Outgoing => (outgoing, incoming),
        Winner::Incoming => (incoming, outgoing),
    };
    let actions = bench.take();
    assert_eq!(
        closed(&actions),
        [loser],
        "{local:?} {remote:?} {first:?}: the wrong connection was closed"
    );
    assert_eq!(notifications(&actions), ["6/7"]);
    bench.message(winner, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(notifications(&bench.take()), [] as [&str; 0]);
}

#[test]
fn the_connection_of_the_greater_identifier_survives_whichever_open_came_first() {
    let low = [10, 0, 0, 1];
    let high = [10, 0, 0, 2];
    for first in [First::Outgoing, First::Incoming] {
        check((64512, low), (64513, high), first, Winner::Incoming);
        check((64512, high), (64513, low), first, Winner::Outgoing);
        // Unsigned comparison of the four octets, most significant first.
        check(
            (64512, [200, 0, 0, 1]),
            (64513, [100, 0, 0, 2]),
            first,
            Winner::Outgoing,
        );
        // RFC 6286 §2.3: equal identifiers, the greater AS number decides.
        check((64512, low), (64513, low), first, Winner::Incoming);
        check((64513, low), (64512, low), first, Winner::Outgoing);
        // The same AS.
        check((64512, low), (64512, high), first, Winner::Incoming);
        check((64512, high), (64512, low), first, Winner::Outgoing);
    }
}

#[test]
fn the_first_established_connection_closes_the_other_whoever_dominates() {
    let mut bench = Bench::started(settings());
    let outgoing = bench.connect();
    let incoming = bench.accept().unwrap();
    bench.open(outgoing, remote_open());
    bench.take();
    // The peer dominates, but its own connection has not even had an OPEN.
    bench.message(outgoing, Message::Keepalive);
    let actions = bench.take();
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(closed(&actions), [incoming]);
    assert_eq!(notifications(&actions), ["6/7"]);
}

#[test]
fn an_open_on_an_accepted_connection_ends_the_dial() {
    let mut bench = Bench::started(settings());
    let dialed = bench.dialed();
    let incoming = bench.accept().unwrap();
    bench.open(incoming, remote_open());
    assert_eq!(closed(&bench.take()), [dialed]);
    bench.message(incoming, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
}

#[test]
fn a_newer_accepted_connection_replaces_one_without_open() {
    let mut bench = Bench::started(settings());
    let older = bench.accept().unwrap();
    bench.take();
    let newer = bench.accept().unwrap();
    let actions = bench.take();
    assert_eq!(closed(&actions), [older]);
    assert_eq!(notifications(&actions), ["6/7"]);
    bench.open(newer, remote_open());
    let third = bench.accept().unwrap();
    bench.message(newer, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    bench.take();
    bench.run_for(Duration::from_secs(1));
    let actions = bench.take();
    assert_eq!(
        closed(&actions),
        [third],
        "one in OpenConfirm is not replaced"
    );
    assert_eq!(notifications(&actions), ["6/7"]);
}

/// Two connections that the peer has opened: with the smaller identifier here the newer one stays,
/// with the greater one the older.
#[test]
fn of_two_accepted_connections_the_identifiers_choose() {
    for (router_id, newer_stays) in [([10, 0, 0, 9], true), ([10, 0, 0, 0], false)] {
        let mut config = settings();
        config.passive = true;
        let open = Open {
            router_id: router_id.into(),
            ..remote_open()
        };
        let mut bench = Bench::started(config);
        let older = bench.accept().unwrap();
        bench.open(older, open.clone());
        let newer = bench.accept().unwrap();
        bench.take();
        bench.open(newer, open);
        bench.run_for(Duration::from_secs(1));
        let (winner, loser) = if newer_stays {
            (newer, older)
        } else {
            (older, newer)
        };
        let actions = bench.take();
        assert_eq!(closed(&actions), [loser], "{router_id:?}");
        assert_eq!(notifications(&actions), ["6/7"]);
        bench.message(winner, Message::Keepalive);
        assert_eq!(bench.session.peer_state(), PeerState::Established);
    }
}

#[test]
fn a_peer_that_connects_again_before_its_close_is_seen_is_served() {
    let (mut bench, old) = Bench::established(settings(), remote_open());
    let new = bench.accept().unwrap();
    bench.open(new, remote_open());
    assert_eq!(bench.take(), [], "the old one may have ended already");
    bench.with(|session, cx| session.closed(cx, old, "eof".into()));
    bench.message(new, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(notifications(&bench.take()), [] as [&str; 0]);
}

#[test]
fn an_error_on_one_connection_leaves_the_other_alone() {
    let mut bench = Bench::started(settings());
    let outgoing = bench.connect();
    let incoming = bench.accept().unwrap();
    bench.take();
    bench.message(outgoing, Message::Keepalive);
    let actions = bench.take();
    assert_eq!(closed(&actions), [outgoing]);
    assert_eq!(notifications(&actions), ["5/1"]);
    bench.open(incoming, remote_open());
    bench.message(incoming, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
}

#[test]
fn a_second_connection_of_an_established_peer_is_closed() {
    let (mut bench, connection) = Bench::established(settings(), remote_open());
    bench.now += Duration::from_secs(5);
    let second = bench.accept().unwrap();
    bench.run_for(Duration::from_secs(1));
    let actions = bench.take();
    assert_eq!(closed(&actions), [second]);
    assert_eq!(notifications(&actions), ["6/7"]);
    assert_eq!(
        bench.message(connection, refresh()),
        Received::RouteRefresh(RouteRefresh {
            afi: 1,
            safi: 1,
            subtype: 0
        })
    );
}
