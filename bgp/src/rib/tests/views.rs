//! Tables as people see them.

use super::*;

#[test]
fn pages_follow_each_other_in_prefix_order_and_hold_all_paths_of_a_prefix() {
    let sessions = [
        session(PeerKind::External, 11),
        session(PeerKind::External, 12),
    ];
    let mut fixture = Fixture::with_peers(config(), sessions);
    let prefixes = [
        "10.0.0.0/24",
        "10.0.0.0/16",
        "9.0.0.0/8",
        "2001:db8::/64",
        "2001:db8::/32",
    ]
    .map(net);
    for n in [11, 12] {
        let next_hop = format!("192.0.2.{n}");
        fixture.update(n, announce(&attributes(&[65000 + n], &next_hop), &prefixes));
    }
    let mut sorted = prefixes;
    sorted.sort();
    for limit in 1..7 {
        let mut query = RouteQuery {
            table: Table::LocRib,
            prefix: None,
            after: None,
            limit,
        };
        let mut seen = Vec::new();
        let mut pages = 0;
        loop {
            let page = fixture.rib.routes(&query);
            assert!(page.routes.len() <= 2 * limit);
            seen.extend(page.routes.iter().map(|row| (row.prefix, row.peer)));
            pages += 1;
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        let expected: Vec<_> = sorted
            .iter()
            .flat_map(|prefix| [11, 12].map(|n| (*prefix, Some(PeerId(n)))))
            .collect();
        assert_eq!(seen, expected, "pages of {limit}");
        assert_eq!(pages, 5usize.div_ceil(limit));
    }
}

#[test]
fn a_prefix_filter_shows_the_prefix_and_what_lies_inside() {
    let mut fixture = Fixture::with_peers(config(), [session(PeerKind::External, 11)]);
    let prefixes = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.2.0.0/16",
        "2001:db8::/32",
    ];
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &prefixes.map(net)),
    );
    let inside = |prefix: &str| {
        let query = RouteQuery {
            table: Table::AdjRibIn(Some(PeerId(11))),
            prefix: Some(net(prefix)),
            after: None,
            limit: 10,
        };
        let page = fixture.rib.routes(&query);
        assert_eq!(page.next, None);
        page.routes
            .iter()
            .map(|row| row.prefix.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(inside("10.1.0.0/16"), ["10.1.0.0/16", "10.1.2.0/24"]);
    assert_eq!(inside("::/0"), ["2001:db8::/32"]);
    assert!(inside("11.0.0.0/8").is_empty());
}

#[test]
fn the_longest_usable_prefix_covers_an_address() {
    let mut fixture = Fixture::with_peers(config(), [session(PeerKind::External, 11)]);
    fixture
        .metrics
        .insert(ip("192.0.2.99"), NextHopState::Unreachable);
    let usable = [net("0.0.0.0/0"), net("10.1.0.0/16")];
    fixture.update(11, announce(&attributes(&[65011], "192.0.2.11"), &usable));
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.99"), &[net("10.1.2.0/24")]),
    );
    assert_eq!(
        fixture.rib.covering(ip("10.1.2.3")),
        Some(net("10.1.0.0/16"))
    );
    assert_eq!(fixture.rib.covering(ip("10.2.0.1")), Some(net("0.0.0.0/0")));
    assert_eq!(fixture.rib.covering(ip("2001:db8::1")), None);
}

#[test]
fn what_was_sent_names_its_source_and_the_rule_that_let_it_out() {
    let target = PeerRib {
        export: Arc::new(Policy::export_blocks()),
        ..session(PeerKind::External, 90)
    };
    let mut fixture = Fixture::with_peers(config(), [client(21), target]);
    fixture.update(
        21,
        announce(&attributes(&[], "192.0.2.21"), &[net("10.0.0.0/26")]),
    );
    fixture
        .rib
        .originate(fixture.now, net("10.0.1.0/26"), LocalRoute::default());
    Receiver::new(90, &negotiated(false)).drain(&mut fixture.rib);
    let rows = fixture.rows(Table::AdjRibOut(PeerId(90)));
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.prefix, row.peer, row.reason.to_string()))
        .collect();
    let expected = [
        (
            net("10.0.0.0/26"),
            Some(PeerId(21)),
            "accepted by policy blocks/from-client".into(),
        ),
        (
            net("10.0.1.0/26"),
            None,
            "accepted by policy blocks/originated".into(),
        ),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn a_path_remembers_when_it_came() {
    let mut fixture = Fixture::with_peers(config(), [session(PeerKind::External, 11)]);
    let later = fixture.now + std::time::Duration::from_secs(5000);
    let update = announce(&attributes(&[65011], "192.0.2.11"), &[net("10.0.0.0/26")]);
    fixture.rib.update(later, PeerId(11), &update).unwrap();
    let received = fixture.rows(Table::AdjRibIn(None))[0].received;
    assert_eq!(received, later);
}

/// What `advertised` says about 10.0.0.0/24, from `source` (or originated) to peer 90.
#[track_caller]
fn check_advertised(
    source: Option<(PeerRib, Attributes)>,
    target: PeerRib,
    expected: Result<&str, NotAdvertised>,
) {
    let prefix = net("10.0.0.0/24");
    let mut fixture = Fixture::new(config());
    let mut receiver = Receiver::new(90, &target.negotiated);
    fixture.rib.peer_up(PeerId(90), target);
    match source {
        Some((session, attributes)) => {
            let id = match session.remote_address {
                IpAddr::V4(address) => u32::from(address.octets()[3]),
                IpAddr::V6(_) => unreachable!("IPv4 in tests"),
            };
            if id != 90 {
                fixture.rib.peer_up(PeerId(id), session);
            }
            fixture.update(id, announce(&attributes, &[prefix]));
        }
        None => fixture
            .rib
            .originate(fixture.now, prefix, LocalRoute::default()),
    }
    receiver.drain(&mut fixture.rib);
    let said = fixture.rib.advertised(PeerId(90), prefix);
    assert_eq!(said, expected.map(str::to_owned));
    let held = receiver.held.contains_key(&prefix);
    assert_eq!(held, said.is_ok(), "what was sent");
}

#[test]
fn the_reason_is_named_for_which_a_peer_does_not_get_a_prefix() {
    let external = |n| session(PeerKind::External, n);
    let internal = |n| session(PeerKind::Internal, n);
    let plain = || attributes(&[65100], "192.0.2.10");
    let tagged = |community| Attributes {
        communities: vec![community],
        ..plain()
    };
    check_advertised(None, external(90), Ok("all"));
    let blocks = PeerRib {
        export: Arc::new(Policy::export_blocks()),
        ..external(90)
    };
    check_advertised(None, blocks.clone(), Ok("blocks/originated"));
    let rejected = NotAdvertised::Rejected("blocks/not-originated-here".into());
    check_advertised(Some((external(10), plain())), blocks, Err(rejected));
    for (from, to, why) in [
        (external(90), external(90), NotAdvertised::LearnedFromIt),
        (internal(10), internal(90), NotAdvertised::NotReflected),
    ] {
        check_advertised(Some((from, plain())), to, Err(why));
    }
    let to_itself = attributes(&[65100], "192.0.2.90");
    let next_hop_is_it = NotAdvertised::NextHopIsIt;
    check_advertised(
        Some((client(10), to_itself)),
        internal(90),
        Err(next_hop_is_it),
    );
    for community in [
        crate::attributes::well_known::NO_EXPORT,
        crate::attributes::well_known::NO_ADVERTISE,
    ] {
        let why = NotAdvertised::Community(community);
        check_advertised(
            Some((external(10), tagged(community))),
            external(90),
            Err(why),
        );
    }
    let customer = PeerRib {
        role: Some(Role::Customer),
        ..external(90)
    };
    let mut marked = plain();
    marked.only_to_customer = Some(Asn(7));
    let why = NotAdvertised::OnlyToCustomer;
    check_advertised(Some((client(10), marked)), customer, Err(why));
    let homeless = PeerRib {
        next_hop_self: [None; 2],
        ..external(90)
    };
    check_advertised(None, homeless, Err(NotAdvertised::NoNextHop));
    let mut long = plain();
    long.communities = (0..1015).collect();
    let why = NotAdvertised::TooLong;
    check_advertised(Some((external(10), long)), external(90), Err(why));
    let mut v6_only = negotiated(false);
    v6_only.families = [false, true];
    let v6_only = PeerRib {
        negotiated: Arc::new(v6_only),
        ..external(90)
    };
    check_advertised(None, v6_only, Err(NotAdvertised::Family));

    let mut fixture = Fixture::with_peers(config(), [external(90)]);
    let ask = |fixture: &Fixture, n| fixture.rib.advertised(PeerId(n), net("10.0.0.0/24"));
    assert_eq!(ask(&fixture, 90), Err(NotAdvertised::NoRoute));
    fixture.rib.peer_down(PeerId(90), [false; 2]);
    assert_eq!(ask(&fixture, 90), Err(NotAdvertised::NotEstablished));
}
