//! Who is told what: the table of sources and targets, next hops, attributes, communities, roles.

use super::*;
use crate::attributes::well_known;

const PREFIX: &str = "10.0.0.0/24";

/// What `target` (peer 90) holds of a prefix from `source` (peer 10), or of one of our own.
fn sent(
    config: RibConfig,
    source: Option<(PeerRib, Attributes)>,
    target: PeerRib,
    prefix: &str,
) -> Option<Attributes> {
    let mut fixture = Fixture::new(config);
    fixture
        .metrics
        .insert(ip("fe80::1"), NextHopState::Reachable { metric: 0 });
    let mut receiver = Receiver::new(90, &target.negotiated);
    fixture.rib.peer_up(PeerId(90), target);
    match source {
        Some((session, attributes)) => {
            fixture.rib.peer_up(PeerId(10), session);
            fixture.update(10, announce(&attributes, &[net(prefix)]));
        }
        None => fixture
            .rib
            .originate(fixture.now, net(prefix), LocalRoute::default()),
    }
    receiver.drain(&mut fixture.rib);
    receiver
        .held
        .get(&net(prefix))
        .map(|attributes| Attributes::clone(attributes))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Local,
    External,
    Internal,
    Client,
}

fn peer(kind: Kind, n: u8) -> PeerRib {
    match kind {
        Kind::External => session(PeerKind::External, n),
        Kind::Internal => session(PeerKind::Internal, n),
        Kind::Client => client(n),
        Kind::Local => unreachable!("not a peer"),
    }
}

fn source(kind: Kind) -> Option<(PeerRib, Attributes)> {
    let path: &[u32] = if kind == Kind::External {
        &[65010, 65100]
    } else {
        &[65100]
    };
    (kind != Kind::Local).then(|| (peer(kind, 10), attributes(path, "192.0.2.10")))
}

#[test]
fn every_source_reaches_exactly_the_targets_the_rules_allow() {
    use Kind::{Client, External, Internal, Local};
    // RFC 4271 §9.2, RFC 4456 §6
    for (from, to, reflector, plain) in [
        (Local, External, true, true),
        (Local, Internal, true, true),
        (Local, Client, true, true),
        (External, External, true, true),
        (External, Internal, true, true),
        (External, Client, true, true),
        (Internal, External, true, true),
        (Internal, Internal, false, false),
        (Internal, Client, true, false),
        (Client, External, true, true),
        (Client, Internal, true, false),
        (Client, Client, true, false),
    ] {
        let got = sent(config(), source(from), peer(to, 90), PREFIX);
        assert_eq!(
            got.is_some(),
            reflector,
            "{from:?} to {to:?} by a reflector"
        );
        let no_cluster = RibConfig {
            cluster_id: None,
            ..config()
        };
        let got = sent(no_cluster, source(from), peer(to, 90), PREFIX);
        assert_eq!(
            got.is_some(),
            plain,
            "{from:?} to {to:?} without cluster id"
        );
    }
}

#[test]
fn the_built_in_export_policy_lets_out_own_blocks_and_those_of_clients() {
    use Kind::{Client, External, Internal, Local};
    for (from, expected) in [
        (Local, true),
        (Client, true),
        (Internal, false),
        (External, false),
    ] {
        for to in [External, Client] {
            let export = Arc::new(Policy::export_blocks());
            let target = PeerRib {
                export,
                ..peer(to, 90)
            };
            let got = sent(config(), source(from), target, PREFIX);
            assert_eq!(got.is_some(), expected, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn an_external_peer_gets_our_as_our_address_and_nothing_internal() {
    // RFC 4271 §5.1.2 b, §5.1.3, §5.1.4, §5.1.5
    let mut from = attributes(&[65010, 65100], "192.0.2.10");
    from.med = Some(7);
    from.communities = vec![1, 2];
    from.large_communities = vec![[1, 2, 3]];
    from.atomic_aggregate = true;
    let external = session(PeerKind::External, 10);
    let got = sent(
        config(),
        Some((external, from.clone())),
        session(PeerKind::External, 90),
        PREFIX,
    );
    let mut expected = from;
    expected.as_path = path(&[64512, 65010, 65100]);
    expected.next_hop = ip("192.0.2.1").into();
    expected.med = None;
    assert_eq!(got, Some(expected));
    let mut internal = attributes(&[65100], "192.0.2.10");
    internal.local_pref = Some(300);
    internal.originator_id = Some(Ipv4Addr::new(1, 1, 1, 1));
    internal.cluster_list = vec![Ipv4Addr::new(2, 2, 2, 2)];
    let got = sent(
        config(),
        Some((client(10), internal)),
        session(PeerKind::External, 90),
        PREFIX,
    );
    assert_eq!(got, Some(attributes(&[64512, 65100], "192.0.2.1")));
}

#[test]
fn an_internal_peer_gets_local_pref_and_the_next_hop_unchanged() {
    let mut from = attributes(&[65010], "192.0.2.10");
    from.med = Some(7);
    let external = session(PeerKind::External, 10);
    let target = session(PeerKind::Internal, 90);
    let got = sent(
        config(),
        Some((external.clone(), from.clone())),
        target.clone(),
        PREFIX,
    );
    let expected = Attributes {
        local_pref: Some(100),
        ..from.clone()
    };
    assert_eq!(got, Some(expected.clone()));
    let target = PeerRib {
        always_next_hop_self: true,
        ..target
    };
    let got = sent(config(), Some((external, from)), target, PREFIX);
    assert_eq!(
        got,
        Some(Attributes {
            next_hop: ip("192.0.2.1").into(),
            ..expected
        })
    );
}

#[test]
fn a_reflected_route_names_its_originator_and_our_cluster_and_keeps_its_next_hop() {
    // RFC 4456 §8, §10
    let mut from = attributes(&[65100], "192.0.2.77");
    from.local_pref = Some(150);
    let target = PeerRib {
        always_next_hop_self: true,
        ..session(PeerKind::Internal, 90)
    };
    let got = sent(
        config(),
        Some((client(10), from.clone())),
        target.clone(),
        PREFIX,
    );
    let mut expected = from.clone();
    expected.originator_id = Some(Ipv4Addr::new(192, 0, 2, 10));
    expected.cluster_list = vec![CLUSTER];
    assert_eq!(got, Some(expected));
    from.originator_id = Some(Ipv4Addr::new(1, 1, 1, 1));
    from.cluster_list = vec![Ipv4Addr::new(2, 2, 2, 2)];
    let got = sent(config(), Some((client(10), from)), target, PREFIX).expect("reflected");
    assert_eq!(got.originator_id, Some(Ipv4Addr::new(1, 1, 1, 1)));
    assert_eq!(got.cluster_list, [CLUSTER, Ipv4Addr::new(2, 2, 2, 2)]);
}

#[test]
fn our_own_route_carries_the_address_of_the_session() {
    let got = sent(config(), None, session(PeerKind::External, 90), PREFIX);
    assert_eq!(got, Some(attributes(&[64512], "192.0.2.1")));
    let got = sent(config(), None, session(PeerKind::Internal, 90), PREFIX);
    let expected = Attributes {
        local_pref: Some(100),
        ..attributes(&[], "192.0.2.1")
    };
    assert_eq!(got, Some(expected));
    // RFC 2545 §3: global and link-local.
    let mut target = session(PeerKind::External, 90);
    let both = NextHop {
        address: ip("2001:db8::1"),
        link_local: Some("fe80::1".parse().unwrap()),
        interface: 0,
    };
    target.next_hop_self[1] = Some(both);
    let got = sent(config(), None, target, "2001:db8:1::/64").expect("sent");
    assert_eq!(got.next_hop, both);
}

#[test]
fn a_third_party_next_hop_is_passed_on_within_the_shared_subnet_only() {
    // RFC 4271 §5.1.3
    let target = PeerRib {
        third_party_subnet: Some(net("192.0.2.0/24")),
        ..session(PeerKind::External, 90)
    };
    for (next_hop, expected) in [
        ("192.0.2.10", Some("192.0.2.10")),
        ("198.51.100.1", Some("192.0.2.1")),
        // Never the peer's own address.
        ("192.0.2.90", None),
    ] {
        let from = attributes(&[65010], next_hop);
        let external = session(PeerKind::External, 10);
        let got = sent(config(), Some((external, from)), target.clone(), PREFIX);
        let got = got.map(|attributes| attributes.next_hop.address);
        assert_eq!(got, expected.map(ip), "{next_hop}");
    }
}

#[test]
fn what_has_no_next_hop_for_the_session_is_not_sent() {
    let mut target = session(PeerKind::External, 90);
    target.next_hop_self[1] = None;
    assert_eq!(
        sent(config(), None, target.clone(), "2001:db8:1::/64"),
        None
    );
    assert!(sent(config(), None, target, PREFIX).is_some());
    // A link-local next hop means nothing beyond its subnet.
    let from = attributes(&[65010], "fe80::1");
    let external = session(PeerKind::External, 10);
    let target = session(PeerKind::Internal, 90);
    let got = sent(config(), Some((external, from)), target, "2001:db8:1::/64").expect("sent");
    assert_eq!(got.next_hop, ip("2001:db8:ffff::1").into());
}

#[test]
fn ipv4_goes_over_ipv6_next_hops_only_where_the_peer_can_read_them() {
    // RFC 8950
    let from = attributes(&[65100], "2001:db8::77");
    let source = Some((client(10), from.clone()));
    let mut target = client(90);
    let got = sent(config(), source.clone(), target.clone(), PREFIX).expect("sent");
    assert_eq!(got.next_hop.address, ip("192.0.2.1"));
    target.negotiated = Arc::new(Negotiated {
        extended_next_hop: true,
        ..negotiated(true)
    });
    let got = sent(config(), source, target, PREFIX).expect("sent");
    assert_eq!(got.next_hop.address, ip("2001:db8::77"));
}

#[test]
fn well_known_communities_stop_routes_where_they_say() {
    // RFC 1997
    let external = || session(PeerKind::External, 90);
    let internal = || session(PeerKind::Internal, 90);
    for (community, to_external, to_internal) in [
        (well_known::NO_EXPORT, false, true),
        (well_known::NO_EXPORT_SUBCONFED, false, true),
        (well_known::NO_ADVERTISE, false, false),
        (well_known::GRACEFUL_SHUTDOWN, true, true),
    ] {
        let mut from = attributes(&[65010], "192.0.2.10");
        from.communities = vec![5, community];
        let source = Some((session(PeerKind::External, 10), from));
        let got = sent(config(), source.clone(), external(), PREFIX);
        assert_eq!(got.is_some(), to_external, "{community:x}");
        let got = sent(config(), source, internal(), PREFIX);
        assert_eq!(got.is_some(), to_internal, "{community:x}");
    }
}

#[test]
fn only_to_customer_is_added_downwards_and_stops_upwards() {
    // RFC 9234 §5, egress
    for (role, marked, expected) in [
        (Role::Provider, None, Some(Some(OUR_AS))),
        (Role::Peer, None, Some(Some(OUR_AS))),
        (Role::RouteServer, Some(Asn(7)), Some(Some(Asn(7)))),
        (Role::Customer, None, Some(None)),
        (Role::Customer, Some(Asn(7)), None),
        (Role::Peer, Some(Asn(7)), None),
        (Role::RouteServerClient, Some(Asn(7)), None),
    ] {
        let mut from = attributes(&[65100], "192.0.2.10");
        from.only_to_customer = marked;
        let target = PeerRib {
            role: Some(role),
            ..session(PeerKind::External, 90)
        };
        let got = sent(config(), Some((client(10), from)), target, PREFIX);
        let got = got.map(|attributes| attributes.only_to_customer);
        assert_eq!(got, expected, "{role:?} {marked:?}");
    }
}

#[test]
fn attributes_that_fill_a_message_are_not_sent_and_nothing_breaks() {
    let mut from = attributes(&[65010], "192.0.2.10");
    from.communities = (0..1015).collect();
    let source = Some((session(PeerKind::External, 10), from));
    assert_eq!(
        sent(config(), source, session(PeerKind::External, 90), PREFIX),
        None
    );
}

#[test]
fn an_export_policy_alters_what_is_sent_and_nothing_else() {
    use crate::policy::{Action, Match, PrefixList, PrefixRange, Rule, Set};
    let rule = Rule {
        name: "prefer".into(),
        matches: vec![Match::Prefix(PrefixList(vec![PrefixRange::exact(net(
            PREFIX,
        ))]))],
        action: Action::Accept(vec![
            Set::Med(Some(42)),
            Set::AddCommunity(9),
            Set::Prepend(OUR_AS, 2),
            Set::LocalPref(7),
        ]),
    };
    let export = Arc::new(Policy::new("out", vec![rule]));
    let target = PeerRib {
        export,
        ..session(PeerKind::External, 90)
    };
    let mut expected = attributes(&[64512, 64512, 64512], "192.0.2.1");
    expected.med = Some(42);
    expected.communities = vec![9];
    assert_eq!(sent(config(), None, target.clone(), PREFIX), Some(expected));
    assert_eq!(sent(config(), None, target, "10.0.1.0/24"), None);
}

#[test]
fn a_peer_that_knows_us_by_another_number_sees_only_that() {
    use crate::policy::{Action, Rule, Set};
    let rule = Rule {
        name: "longer".into(),
        matches: vec![],
        action: Action::Accept(vec![Set::PrependOwn(2)]),
    };
    let target = PeerRib {
        local_as: Some(Asn(64600)),
        role: Some(Role::Provider),
        export: Arc::new(Policy::new("out", vec![rule])),
        ..session(PeerKind::External, 90)
    };
    let mut expected = attributes(&[64600, 64600, 64600], "192.0.2.1");
    expected.only_to_customer = Some(Asn(64600));
    assert_eq!(sent(config(), None, target, PREFIX), Some(expected));
}

#[test]
fn numbers_for_private_use_are_removed_up_to_the_first_other_one() {
    // RFC 6996 §4
    for (received, expected) in [
        (&[64513, 4_200_000_000, 65534][..], &[64512][..]),
        (&[64513, 65535, 64514], &[64512, 65535, 64514]),
        (&[7, 64513], &[64512, 7, 64513]),
        (&[], &[64512]),
    ] {
        let source = || Some((client(10), attributes(received, "192.0.2.10")));
        for (remove, kind, path) in [
            (true, PeerKind::External, expected.to_vec()),
            (false, PeerKind::External, [&[64512], received].concat()),
            (true, PeerKind::Internal, received.to_vec()),
        ] {
            let target = PeerRib {
                remove_private_as: remove,
                ..session(kind, 90)
            };
            let got = sent(config(), source(), target, PREFIX).unwrap();
            let expected = AsPath::sequence(path.into_iter().map(Asn));
            assert_eq!(got.as_path, expected, "{received:?} {remove} {kind:?}");
        }
    }
}

#[test]
fn extended_communities_that_are_not_transitive_stay_inside_the_as() {
    // RFC 4360 §6, RFC 5701 §2
    let (session, mut from) = source(Kind::Internal).unwrap();
    let (keeps, stays) = (
        [0x00, 2, 0xfd, 0xe9, 0, 0, 0, 1],
        [0x43, 0, 0, 0, 0, 0, 0, 1],
    );
    from.extended_communities = vec![stays, keeps, stays];
    let long = |kind: u8| {
        let mut community = vec![0; 20];
        community[0] = kind;
        community
    };
    from.unknown = vec![crate::attributes::UnknownAttribute {
        flags: 0xc0,
        code: 25,
        value: [long(0), long(0x40)].concat().into(),
    }];
    let outside = sent(
        config(),
        Some((session.clone(), from.clone())),
        peer(Kind::External, 90),
        PREFIX,
    )
    .unwrap();
    assert_eq!(outside.extended_communities, [keeps]);
    assert_eq!(*outside.unknown[0].value, *long(0));
    let inside = sent(
        config(),
        Some((session.clone(), from.clone())),
        peer(Kind::Client, 90),
        PREFIX,
    )
    .unwrap();
    assert_eq!(inside.extended_communities, [stays, keeps, stays]);
    assert_eq!(inside.unknown[0].value.len(), 40);
    // Nothing left: no attribute.
    from.unknown[0].value = long(0x40).into();
    let outside = sent(
        config(),
        Some((session, from)),
        peer(Kind::External, 90),
        PREFIX,
    );
    assert!(outside.unwrap().unknown.is_empty());
}

#[test]
fn prefixes_that_hold_no_unicast_addresses_are_ignored() {
    // RFC 4271 §6.3
    for (prefix, usable) in [
        ("0.0.0.0/0", true),
        ("0.0.0.0/1", true),
        ("0.0.0.0/8", false),
        ("0.1.2.0/24", false),
        ("1.0.0.0/8", true),
        ("126.0.0.0/7", true),
        ("127.0.0.0/8", false),
        ("127.0.0.1/32", false),
        ("169.254.1.0/24", false),
        ("169.253.0.0/16", true),
        ("223.255.255.0/24", true),
        ("224.0.0.0/4", false),
        ("239.1.2.3/32", false),
        ("240.0.0.0/4", false),
        ("255.255.255.255/32", false),
        ("192.0.0.0/2", true),
    ] {
        let got = sent(
            config(),
            source(Kind::External),
            peer(Kind::Internal, 90),
            prefix,
        );
        assert_eq!(got.is_some(), usable, "{prefix}");
    }
}
