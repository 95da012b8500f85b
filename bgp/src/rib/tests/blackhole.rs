//! BLACKHOLE (RFC 7999): what is honoured, what becomes of it, and what it must not do.

use super::*;
use crate::{
    attributes::well_known,
    policy::{Match, PrefixList, PrefixRange, Rule},
};

const ORDINARY: u32 = 11;
const OBSERVER: u32 = 12;
const INTERNAL: u32 = 21;

fn marked(next_hop: &str) -> Attributes {
    let mut attributes = attributes(&[65011], next_hop);
    attributes.communities = vec![well_known::BLACKHOLE];
    attributes
}

fn honouring(policy: Policy) -> PeerRib {
    PeerRib {
        import: Arc::new(policy.honouring_blackhole()),
        ..session(PeerKind::External, 11)
    }
}

fn fixture(sender: PeerRib) -> Fixture {
    let sessions = [
        sender,
        session(PeerKind::External, 12),
        session(PeerKind::Internal, 21),
    ];
    Fixture::with_peers(config(), sessions)
}

/// Up to /24 from the neighbour's own 198.51.100.0/22, but not one /24 of it.
fn neighbours() -> Policy {
    let range = PrefixRange::between(net("198.51.100.0/22"), 22, 24).unwrap();
    let except = PrefixRange::or_longer(net("198.51.103.0/24"));
    Policy::new(
        "tor",
        vec![
            Rule::reject("not-this", vec![Match::Prefix(PrefixList(vec![except]))]),
            Rule::reject("default", vec![Match::DefaultRoute]),
            Rule::accept("theirs", vec![Match::Prefix(PrefixList(vec![range]))]),
        ],
    )
}

const DROPPED: &str = "::";

#[test]
fn an_honoured_blackhole_is_dropped_here_and_stays_in_the_as() {
    // RFC 7999 §3.2, §3.3
    let mut fixture = fixture(honouring(Policy::all()));
    let mut external = Receiver::new(OBSERVER, &negotiated(false));
    let mut internal = Receiver::new(INTERNAL, &negotiated(true));
    let prefixes = [net("203.0.113.7/32"), net("2001:db8:9::7/128")];
    fixture.update(ORDINARY, announce(&marked("192.0.2.11"), &prefixes[..1]));
    fixture.update(ORDINARY, announce(&marked("2001:db8::11"), &prefixes[1..]));
    for prefix in ["203.0.113.7/32", "2001:db8:9::7/128"] {
        assert_eq!(fixture.next_hops(prefix), [DROPPED]);
    }
    assert!(fixture.watched.is_empty(), "dropping needs no next hop");
    external.drain(&mut fixture.rib);
    internal.drain(&mut fixture.rib);
    assert!(external.prefixes().is_empty(), "{:?}", external.prefixes());
    let held = &internal.held[&prefixes[0]];
    assert_eq!(
        held.next_hop.address,
        ip("192.0.2.1"),
        "what is dropped comes here"
    );
    assert!(held.has_community(well_known::BLACKHOLE));
    assert!(held.has_community(well_known::NO_EXPORT));

    let rows = fixture.rows(Table::LocRib);
    assert!(
        rows.iter()
            .all(|row| row.discarded.as_deref() == Some("all"))
    );
    let why = fixture.rib.advertised(PeerId(OBSERVER), prefixes[0]);
    assert_eq!(why, Err(NotAdvertised::Community(well_known::NO_EXPORT)));

    fixture.update(ORDINARY, withdraw(&prefixes));
    assert!(fixture.forwarding.is_empty());
    internal.drain(&mut fixture.rib);
    assert!(internal.prefixes().is_empty());
}

#[test]
fn a_peer_that_asks_for_less_than_the_as_gets_it() {
    let mut fixture = fixture(honouring(Policy::all()));
    let mut internal = Receiver::new(INTERNAL, &negotiated(true));
    let mut attributes = marked("192.0.2.11");
    attributes.communities.push(well_known::NO_ADVERTISE);
    fixture.update(ORDINARY, announce(&attributes, &[net("203.0.113.7/32")]));
    assert_eq!(fixture.next_hops("203.0.113.7/32"), [DROPPED]);
    internal.drain(&mut fixture.rib);
    assert!(internal.prefixes().is_empty());
}

#[test]
fn the_community_means_nothing_unless_asked_for() {
    let mut fixture = fixture(session(PeerKind::External, 11));
    let mut external = Receiver::new(OBSERVER, &negotiated(false));
    fixture.update(
        ORDINARY,
        announce(&marked("192.0.2.11"), &[net("203.0.113.7/32")]),
    );
    assert_eq!(fixture.next_hops("203.0.113.7/32"), ["192.0.2.11"]);
    external.drain(&mut fixture.rib);
    let sent = &external.held[&net("203.0.113.7/32")];
    assert_eq!(sent.communities, [well_known::BLACKHOLE]);
    // And to a peer of whom it is asked for, routes without it mean what they always do.
    fixture
        .rib
        .set_import(PeerId(ORDINARY), honouring(Policy::all()).import);
    fixture.settle();
    assert_eq!(fixture.next_hops("203.0.113.7/32"), [DROPPED]);
    let plain = attributes(&[65011], "192.0.2.11");
    fixture.update(ORDINARY, announce(&plain, &[net("203.0.113.7/32")]));
    assert_eq!(fixture.next_hops("203.0.113.7/32"), ["192.0.2.11"]);
    external.forgiving = true;
    external.drain(&mut fixture.rib);
    assert_eq!(external.prefixes(), ["203.0.113.7/32"]);
}

#[test]
fn what_the_neighbour_may_advertise_it_may_have_dropped_in_parts() {
    // RFC 7999 §3.3: covered by an equal or shorter prefix that it is authorised to advertise.
    let mut fixture = fixture(honouring(neighbours()));
    let expected = [
        ("198.51.101.7/32", true),
        ("198.51.101.0/24", true),
        ("198.51.100.0/22", true),
        // Less than what it has, beside it, and what it may not announce even by name.
        ("198.51.96.0/21", false),
        ("203.0.113.7/32", false),
        ("0.0.0.0/0", false),
    ];
    for (prefix, taken) in expected {
        fixture.update(ORDINARY, announce(&marked("192.0.2.11"), &[net(prefix)]));
        let wanted: &[&str] = if taken { &[DROPPED] } else { &[] };
        assert_eq!(fixture.next_hops(prefix), wanted, "{prefix}");
    }
    let row = |prefix: &str| {
        let rows = fixture.rows(Table::AdjRibIn(None));
        rows.into_iter()
            .find(|row| row.prefix == net(prefix))
            .unwrap()
    };
    assert_eq!(
        row("198.51.101.7/32").discarded.as_deref(),
        Some("tor/theirs")
    );
    let refused = Reason::Rejected("tor/no rule matched".into());
    assert_eq!(row("203.0.113.7/32").reason, refused);
    // Without the community a /32 is too long.
    let plain = attributes(&[65011], "192.0.2.11");
    fixture.update(ORDINARY, announce(&plain, &[net("198.51.101.7/32")]));
    assert!(fixture.next_hops("198.51.101.7/32").is_empty());
}

#[test]
fn a_rule_that_rejects_the_prefix_by_name_is_not_gone_around() {
    let mut fixture = fixture(honouring(neighbours()));
    let prefix = "198.51.103.7/32";
    fixture.update(ORDINARY, announce(&marked("192.0.2.11"), &[net(prefix)]));
    assert!(fixture.next_hops(prefix).is_empty());
    let reason = fixture.reason(Table::AdjRibIn(None), prefix, ORDINARY);
    assert_eq!(reason, Reason::Rejected("tor/not-this".into()));
}

#[test]
fn what_is_originated_here_is_never_dropped_for_others() {
    let mut fixture = fixture(honouring(Policy::all()));
    let block = net("10.244.1.0/26");
    let inside = "10.244.1.5/32";
    // Before the block is there it is anybody's, and from then on ours.
    fixture.update(
        ORDINARY,
        announce(&marked("192.0.2.11"), &[net(inside), block]),
    );
    assert_eq!(fixture.next_hops(inside), [DROPPED]);
    fixture
        .rib
        .originate(fixture.now, block, LocalRoute::default());
    fixture.settle();
    assert!(fixture.forwarding.is_empty(), "{:?}", fixture.forwarding);
    let reason = fixture.reason(Table::AdjRibIn(None), inside, ORDINARY);
    assert_eq!(reason, Reason::Ineligible(Ineligible::BlackholeOfOurs));
    fixture.rib.withdraw_originated(block);
    fixture.settle();
    assert_eq!(fixture.next_hops(inside), [DROPPED]);
}

#[test]
fn the_best_path_alone_says_whether_a_prefix_is_dropped() {
    // Equal up to the IGP metric: the lower router id decides.
    let multipath = RibConfig {
        multipath: 4,
        ..config()
    };
    for (dropper, expected) in [(11, DROPPED), (12, "192.0.2.11")] {
        let sessions = [11, 12].map(|n| {
            let policy = Policy::all();
            let policy = match n == dropper {
                true => policy.honouring_blackhole(),
                false => policy,
            };
            PeerRib {
                import: Arc::new(policy),
                ..session(PeerKind::External, n)
            }
        });
        let mut fixture = Fixture::with_peers(multipath.clone(), sessions);
        for n in [11, 12] {
            let mut attributes = attributes(&[65100], &format!("192.0.2.{n}"));
            attributes.communities = vec![well_known::BLACKHOLE];
            fixture.update(n, announce(&attributes, &[net("203.0.113.7/32")]));
        }
        assert_eq!(fixture.next_hops("203.0.113.7/32"), [expected]);
    }
}

#[test]
fn no_next_hop_is_kept_for_what_was_dropped() {
    let mut fixture = fixture(honouring(Policy::all()));
    for round in 0..3 {
        for n in 0..50 {
            let prefix = net(&format!("203.0.113.{n}/32"));
            fixture.update(ORDINARY, announce(&marked("192.0.2.11"), &[prefix]));
        }
        fixture.rib.peer_down(PeerId(ORDINARY), [false; 2]);
        fixture.settle();
        assert!(
            fixture.forwarding.is_empty() && fixture.watched.is_empty(),
            "round {round}"
        );
        fixture
            .rib
            .peer_up(PeerId(ORDINARY), honouring(Policy::all()));
    }
}
