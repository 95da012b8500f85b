use super::*;
use crate::speaker::{
    Applied, SoftReset,
    config::Password,
    status::{RouteQuery, RouteTable},
};

fn peer() -> PeerConfig {
    let mut peer = PeerConfig::new("one", "10.0.0.1".parse().unwrap(), REMOTE);
    peer.passive = true;
    peer.import = Arc::new(Policy::all());
    peer
}

fn established() -> (Bench, ConnectionId) {
    let mut bench = Bench::new(|config| config.peers.push(peer()));
    let connection = bench.establish("10.0.0.1", open(REMOTE));
    bench.announce(connection, &["198.51.100.0/24", "203.0.113.0/24"]);
    (bench, connection)
}

fn change(bench: &mut Bench, change: impl FnOnce(&mut PeerConfig)) -> Applied {
    let mut config = (*bench.speaker.peer_config("one").unwrap()).clone();
    change(&mut config);
    let applied = bench.speaker.update_peer(bench.now, config).unwrap();
    bench.settle();
    applied
}

#[test]
fn what_can_change_under_a_session_leaves_it_alone() {
    let (mut bench, connection) = established();
    assert_eq!(change(&mut bench, |_| {}), Applied::Unchanged);
    let live: [fn(&mut PeerConfig); 7] = [
        |peer| peer.max_prefixes = Some(100),
        |peer| peer.import = Arc::new(Policy::none()),
        |peer| peer.export = Arc::new(Policy::none()),
        |peer| peer.timers.connect_retry = Duration::from_secs(7),
        |peer| peer.port = 1790,
        |peer| peer.passive = false,
        |peer| peer.assume_forwarding = true,
    ];
    for (index, edit) in live.into_iter().enumerate() {
        assert_eq!(change(&mut bench, edit), Applied::Live, "change {index}");
    }
    let hold: fn(&mut PeerConfig) = |peer| peer.timers.hold_time = Duration::from_secs(30);
    assert_eq!(change(&mut bench, hold), Applied::NextSession);
    let status = bench.peer("one").unwrap();
    assert_eq!(status.state, PeerState::Established);
    assert_eq!(
        status.hold_time,
        Some(Duration::from_secs(9)),
        "as agreed on"
    );
    assert_eq!(status.configured_hold_time, Duration::from_secs(30));
    assert_eq!(
        status.families[0].accepted, 0,
        "the new policy takes nothing"
    );
    assert_eq!(status.families[0].advertised, 0);
    assert_eq!((status.max_prefixes, status.port), (Some(100), 1790));
    assert!(!bench.closed.contains(&connection));
    assert_eq!(bench.notifications, []);
}

#[test]
fn a_key_is_exchanged_under_the_session_but_not_put_on_or_taken_off() {
    let mut with_key = peer();
    with_key.password = Some(Password::new("old").unwrap());
    let mut bench = Bench::new(|config| config.peers.push(with_key));
    bench.establish("10.0.0.1", open(REMOTE));
    let other = |peer: &mut PeerConfig| peer.password = Some(Password::new("new").unwrap());
    assert_eq!(change(&mut bench, other), Applied::Live);
    assert_eq!(
        change(&mut bench, |peer| peer.password = None),
        Applied::Reset
    );
}

#[test]
fn what_cannot_change_under_a_session_ends_it_with_its_reason_and_it_comes_back() {
    let edits: [fn(&mut PeerConfig); 5] = [
        |peer| peer.asn = Asn(65000).into(),
        |peer| peer.families = vec![Family::Ipv4Unicast],
        |peer| peer.ttl_security = Some(1),
        |peer| peer.graceful_restart = None,
        |peer| peer.address = "10.0.0.2".parse().unwrap(),
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let (mut bench, connection) = established();
        let address = if index == 4 { "10.0.0.2" } else { "10.0.0.1" };
        let asn = if index == 0 { Asn(65000) } else { REMOTE };
        assert_eq!(change(&mut bench, edit), Applied::Reset, "change {index}");
        // RFC 4486 §4
        let cease = Notification::other_configuration_change();
        assert_eq!(bench.notifications, [(connection, cease)]);
        assert_eq!(
            bench
                .speaker
                .rib
                .counts(PeerId(0), Family::Ipv4Unicast)
                .received,
            0
        );
        bench.establish(address, open(asn));
        assert_eq!(
            bench.state("one"),
            Some(PeerState::Established),
            "change {index}"
        );
        if index == 4 {
            assert_eq!(
                bench.connect("10.0.0.1"),
                None,
                "nobody has the old address"
            );
        }
    }
}

#[test]
fn a_lower_limit_ends_a_session_that_exceeds_it() {
    let (mut bench, connection) = established();
    assert_eq!(
        change(&mut bench, |peer| peer.max_prefixes = Some(1)),
        Applied::Live
    );
    let cease = Notification::maximum_prefixes(Family::Ipv4Unicast, 1);
    assert_eq!(bench.notifications, [(connection, cease)]);
}

#[test]
fn a_peer_that_is_shut_down_stays_so_whatever_changes() {
    let (mut bench, _) = established();
    bench
        .speaker
        .shutdown_peer(bench.now, "one", "later")
        .unwrap();
    assert_eq!(
        change(&mut bench, |peer| peer.asn = Asn(65000).into()),
        Applied::Reset
    );
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.state("one"), Some(PeerState::Idle));
    assert_eq!(bench.connect("10.0.0.1"), None);
}

#[test]
fn a_refused_change_changes_nothing() {
    let (mut bench, connection) = established();
    let mut other = peer();
    other.name = "two".into();
    other.address = "10.0.0.2".parse().unwrap();
    bench.speaker.add_peer(bench.now, other).unwrap();
    for edit in [
        (|peer: &mut PeerConfig| peer.address = "10.0.0.2".parse().unwrap()) as fn(&mut _),
        |peer| peer.families.clear(),
    ] {
        let mut config = peer();
        edit(&mut config);
        bench.speaker.update_peer(bench.now, config).unwrap_err();
        bench.settle();
        assert_eq!(*bench.speaker.peer_config("one").unwrap(), peer());
        assert!(!bench.closed.contains(&connection));
    }
}

#[test]
fn a_range_changes_with_its_peers_and_lets_those_go_that_are_outside() {
    let mut bench = Bench::new(|config| config.ranges.push(range("leaves", "10.0.0.0/24", 10)));
    let inside = bench.establish("10.0.0.1", open(REMOTE));
    let outside = bench.establish("10.0.0.200", open(REMOTE));
    let mut new = range("leaves", "10.0.0.0/25", 1);
    new.peer.max_prefixes = Some(5);
    assert_eq!(
        bench.speaker.update_range(bench.now, new.clone()),
        Ok(Applied::Reset)
    );
    bench.settle();
    assert_eq!(
        bench.notifications,
        [(outside, Notification::peer_deconfigured())]
    );
    assert!(!bench.closed.contains(&inside));
    assert_eq!(bench.peer("leaves:10.0.0.1").unwrap().max_prefixes, Some(5));
    assert_eq!(bench.connect("10.0.0.2"), None, "the new limit counts");
    assert_eq!(
        bench.speaker.update_range(bench.now, new),
        Ok(Applied::Unchanged)
    );
}

#[test]
fn each_loss_and_each_new_reason_is_told_once() {
    let (mut bench, connection) = established();
    let news = |bench: &mut Bench| {
        let mut all = Vec::new();
        while let Some(peer) = bench.speaker.poll_changed_peer() {
            all.push(peer.news);
        }
        all
    };
    let first = news(&mut bench);
    assert!(first[0].established && first[0].lost.is_none(), "{first:?}");
    bench.lose(connection);
    let lost = news(&mut bench);
    let text = lost[0].lost.clone().unwrap();
    assert_eq!(text, "connection lost: closed by the peer");
    assert!(!lost[0].reason, "it has just been told");
    for _ in 0..3 {
        let connection = bench.connect("10.0.0.1").unwrap();
        bench.say(connection, Message::Open(Box::new(open(Asn(65000)))));
        bench.pass(Duration::from_secs(5));
    }
    let reasons: Vec<_> = news(&mut bench)
        .into_iter()
        .filter(|news| news.reason)
        .collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let reason = bench.peer("one").unwrap().reason;
    assert!(reason.contains("peer AS"), "{reason}");
}

#[test]
fn messages_are_counted_by_type_and_the_last_fault_is_kept() {
    use crate::message::{Disposition, Fault};
    let (mut bench, connection) = established();
    bench.say(connection, Message::Keepalive);
    let fault = |disposition, attribute, text: &str| Fault {
        disposition,
        attribute,
        text: text.into(),
    };
    let update = Update {
        faults: vec![
            fault(Disposition::Ignored, 14, "not negotiated"),
            fault(Disposition::TreatAsWithdraw, 3, "next hop 0.0.0.0"),
            fault(Disposition::AttributeDiscard, 7, "length 5"),
        ],
        ..Update::default()
    };
    bench.say(connection, Message::Update(update));
    let reset = bench
        .speaker
        .reset_soft(bench.now, "one", SoftReset::BOTH)
        .unwrap();
    assert!(reset, "it announced route refresh");
    bench.settle();
    let peer = bench.peer("one").unwrap();
    let counters = peer.counters;
    assert_eq!((counters.opens_received, counters.opens_sent), (1, 1));
    assert_eq!(counters.keepalives_received, 2);
    assert_eq!(counters.updates_received, 2);
    assert_eq!(counters.refreshes_sent, 1);
    assert_eq!(counters.messages_received, 5);
    assert_eq!(counters.faults_ignored, 1);
    assert_eq!(
        (counters.treat_as_withdraw, counters.attributes_discarded),
        (1, 1)
    );
    let last = peer.last_fault.unwrap().fault;
    assert_eq!(
        (last.attribute, last.text.as_str()),
        (3, "next hop 0.0.0.0")
    );
    assert!(peer.timers.hold_expires_at.is_some() && peer.timers.keepalive_at.is_some());
}

#[test]
fn a_peer_that_knows_no_refresh_says_so() {
    let mut bench = Bench::new(|config| config.peers.push(peer()));
    let mut plain = open(REMOTE);
    plain.capabilities.remove(1);
    bench.establish("10.0.0.1", plain);
    let reset = |bench: &mut Bench, directions| {
        bench
            .speaker
            .reset_soft(bench.now, "one", directions)
            .unwrap()
    };
    assert!(!reset(&mut bench, SoftReset::BOTH));
    let send = SoftReset {
        receive: false,
        send: true,
    };
    assert!(reset(&mut bench, send));
}

#[test]
fn what_covers_an_address_is_told_with_the_rule_that_refused_it() {
    let (mut bench, connection) = established();
    let pools = Policy::import_pools(&["198.51.100.0/24".parse().unwrap()]);
    change(&mut bench, |peer| peer.import = Arc::new(pools));
    bench.announce(connection, &["203.0.113.128/25", "0.0.0.0/0"]);
    let told: Vec<_> = bench
        .speaker
        .received_covering("203.0.113.200".parse().unwrap(), 8)
        .into_iter()
        .map(|route| (route.prefix.to_string(), route.reason.to_string()))
        .collect();
    let refused = |prefix: &str, rule: &str| {
        (
            prefix.to_owned(),
            format!("rejected by policy pools/{rule}"),
        )
    };
    assert_eq!(
        told,
        [
            refused("203.0.113.128/25", "outside-pools"),
            refused("203.0.113.0/24", "outside-pools"),
            refused("0.0.0.0/0", "default-route"),
        ]
    );
    let first = bench
        .speaker
        .received_covering("203.0.113.1".parse().unwrap(), 1);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].prefix.to_string(), "203.0.113.0/24");
}

#[test]
fn another_address_of_the_node_is_told_to_those_who_were_told_the_one_before() {
    let mut far = PeerConfig::new("far", "2001:db8::9".parse().unwrap(), REMOTE);
    far.passive = true;
    far.export = Arc::new(Policy::all());
    let mut bench = Bench::new(|config| {
        config.peers.push(far);
        config.next_hop_self[0] = Some("203.0.113.1".parse().unwrap());
    });
    let connection = bench.establish("2001:db8::9", open(REMOTE));
    let told = |bench: &Bench| -> Vec<IpAddr> {
        let page = bench.speaker.routes(&RouteQuery {
            table: RouteTable::AdjRibOut,
            peer: Some("far".into()),
            prefix: None,
            after: None,
            limit: 10,
        });
        let routes = page.routes.iter();
        routes
            .map(|route| route.attributes.next_hop.address)
            .collect()
    };
    assert_eq!(told(&bench), [IpAddr::from([203, 0, 113, 1])]);
    let new = [Some(IpAddr::from([203, 0, 113, 2])), None];
    for sent in [true, false] {
        bench.speaker.set_next_hop_self(new);
        let mut updates = 0;
        while let Some(output) = bench.speaker.poll_output(bench.now) {
            if let Output::Send { octets, .. } = output {
                updates += octets
                    .windows(4)
                    .filter(|four| *four == [203, 0, 113, 2])
                    .count();
                bench.speaker.handle_writable(connection);
            }
        }
        // The same once more is nothing new.
        assert_eq!(updates, usize::from(sent));
        assert_eq!(told(&bench), [IpAddr::from([203, 0, 113, 2])]);
    }
    assert_eq!(bench.state("far"), Some(PeerState::Established));
    assert!(bench.closed.is_empty());
}
