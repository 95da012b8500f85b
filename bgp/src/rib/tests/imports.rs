//! What is taken from peers, what competes, and what is used for forwarding.

use super::*;
use crate::attributes::well_known;

fn external(n: u8) -> PeerRib {
    session(PeerKind::External, n)
}

fn check_import(session: PeerRib, attributes: &Attributes, expected: Option<Ineligible>) {
    let peer = match session.remote_address {
        IpAddr::V4(address) => u32::from(address.octets()[3]),
        IpAddr::V6(_) => unreachable!("IPv4 in tests"),
    };
    let mut fixture = Fixture::with_peers(config(), [session]);
    fixture.update(peer, announce(attributes, &[net("10.0.0.0/24")]));
    let reason = fixture.reason(Table::AdjRibIn(None), "10.0.0.0/24", peer);
    let expected = expected.map_or(Reason::Best(None), Reason::Ineligible);
    assert_eq!(reason, expected, "{attributes:?}");
    assert_eq!(fixture.forwarding.is_empty(), reason != Reason::Best(None));
}

#[test]
fn loops_leaks_and_useless_next_hops_are_refused_with_the_reason() {
    let ours = OUR_AS.0;
    let plain = attributes(&[65011, 65100], "192.0.2.11");
    check_import(external(11), &plain, None);
    // RFC 4271 §9.1.2
    let looped = attributes(&[65011, ours], "192.0.2.11");
    check_import(external(11), &looped, Some(Ineligible::AsLoop));
    check_import(
        PeerRib {
            allow_own_as: 1,
            ..external(11)
        },
        &looped,
        None,
    );
    let twice = attributes(&[65011, ours, 65012, ours], "192.0.2.11");
    check_import(
        PeerRib {
            allow_own_as: 1,
            ..external(11)
        },
        &twice,
        Some(Ineligible::AsLoop),
    );
    check_import(
        session(PeerKind::Internal, 31),
        &looped,
        Some(Ineligible::AsLoop),
    );
    // Both numbers that are ours.
    let renamed = PeerRib {
        local_as: Some(Asn(64600)),
        ..external(11)
    };
    let known_as = attributes(&[65011, 64600], "192.0.2.11");
    check_import(external(11), &known_as, None);
    check_import(renamed.clone(), &known_as, Some(Ineligible::AsLoop));
    check_import(renamed, &looped, Some(Ineligible::AsLoop));
    // RFC 4271 §6.3
    let strict = PeerRib {
        enforce_first_as: true,
        ..external(11)
    };
    check_import(strict.clone(), &plain, None);
    let foreign = attributes(&[65012, 65100], "192.0.2.11");
    check_import(external(11), &foreign, None);
    check_import(strict, &foreign, Some(Ineligible::FirstAsMismatch));
    // RFC 4271 §5.1.3
    let to_us = attributes(&[65011], "192.0.2.1");
    check_import(external(11), &to_us, Some(Ineligible::NextHopIsOurs));
    // RFC 4456 §8
    let mut reflected = attributes(&[65100], "192.0.2.41");
    reflected.originator_id = Some(OUR_ID);
    check_import(
        session(PeerKind::Internal, 31),
        &reflected,
        Some(Ineligible::OriginatorIsUs),
    );
    check_import(external(31), &reflected, None);
    reflected.originator_id = None;
    reflected.cluster_list = vec![Ipv4Addr::new(1, 2, 3, 4), CLUSTER];
    check_import(client(31), &reflected, Some(Ineligible::ClusterLoop));
    check_import(external(31), &reflected, None);
}

#[test]
fn only_to_customer_marks_leaks_by_role() {
    // RFC 9234 §5, ingress
    let mut marked = attributes(&[65011], "192.0.2.11");
    for (otc, role, refused) in [
        (65011, Role::Provider, true),
        (65011, Role::RouteServer, true),
        (65011, Role::Peer, false),
        (65999, Role::Peer, true),
        (65999, Role::Customer, false),
        (65999, Role::RouteServerClient, false),
    ] {
        marked.only_to_customer = Some(Asn(otc));
        let expected = refused.then_some(Ineligible::RouteLeak);
        check_import(
            PeerRib {
                role: Some(role),
                ..external(11)
            },
            &marked,
            expected,
        );
    }
}

#[test]
fn a_route_from_a_provider_is_marked_on_arrival() {
    let provider = PeerRib {
        role: Some(Role::Customer),
        ..external(11)
    };
    let mut fixture = Fixture::with_peers(config(), [provider]);
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &[net("10.0.0.0/24")]),
    );
    let received = &fixture.rows(Table::AdjRibIn(None))[0];
    let used = &fixture.rows(Table::LocRib)[0];
    assert_eq!(received.attributes.only_to_customer, None);
    assert_eq!(used.attributes.only_to_customer, Some(Asn(65011)));
}

#[test]
fn a_route_about_to_go_away_is_the_last_choice() {
    // RFC 8326
    let mut fixture = Fixture::with_peers(config(), [external(11), external(12)]);
    let mut leaving = attributes(&[65011], "192.0.2.11");
    leaving.communities = vec![well_known::GRACEFUL_SHUTDOWN];
    let staying = attributes(&[65012, 65100, 65101], "192.0.2.12");
    for (n, attributes) in [(11, &leaving), (12, &staying)] {
        fixture.update(n, announce(attributes, &[net("10.0.0.0/24")]));
    }
    assert_eq!(fixture.next_hops("10.0.0.0/24"), ["192.0.2.12"]);
    let reason = fixture.reason(Table::LocRib, "10.0.0.0/24", 11);
    assert_eq!(reason, Reason::Lost(Step::LocalPref));
}

#[test]
fn pools_take_what_lies_inside_and_nothing_of_our_own() {
    let pools = Arc::new(Policy::import_pools(&[net("10.1.0.0/16")]));
    let session = PeerRib {
        import: pools,
        ..external(11)
    };
    let mut fixture = Fixture::with_peers(config(), [session]);
    let own = net("10.1.9.0/26");
    fixture
        .rib
        .originate(fixture.now, own, LocalRoute::default());
    let prefixes = [
        "0.0.0.0/0",
        "10.1.0.0/16",
        "10.1.9.0/24",
        "10.1.9.0/26",
        "10.1.9.32/32",
        "10.2.0.0/16",
    ];
    let attributes = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&attributes, &prefixes.map(net)));
    let reasons: Vec<_> = fixture
        .rows(Table::AdjRibIn(None))
        .iter()
        .map(|row| (row.prefix.to_string(), row.reason.to_string()))
        .collect();
    let expected = [
        ("0.0.0.0/0", "rejected by policy pools/default-route"),
        ("10.1.0.0/16", "best: the only one"),
        ("10.1.9.0/24", "best: the only one"),
        ("10.1.9.0/26", "rejected by policy pools/own-block"),
        ("10.1.9.32/32", "rejected by policy pools/own-block"),
        ("10.2.0.0/16", "rejected by policy pools/outside-pools"),
    ];
    assert_eq!(
        reasons,
        expected.map(|(prefix, reason)| (prefix.into(), reason.into()))
    );
    // The block goes: what was inside it is no longer ours.
    fixture.rib.withdraw_originated(own);
    fixture.settle();
    assert_eq!(fixture.next_hops("10.1.9.32/32"), ["192.0.2.11"]);
    // And comes back.
    fixture
        .rib
        .originate(fixture.now, own, LocalRoute::default());
    fixture.settle();
    assert!(fixture.next_hops("10.1.9.32/32").is_empty());
}

#[test]
fn a_large_originated_prefix_is_judged_by_one_walk_and_gives_the_same() {
    let pools = Arc::new(Policy::import_pools(&[net("10.0.0.0/8")]));
    let session = PeerRib {
        import: pools,
        ..external(11)
    };
    let mut fixture = Fixture::with_peers(config(), [session]);
    let prefixes = ["10.1.2.3/32", "10.200.0.0/24", "10.1.0.0/16"];
    let attributes = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&attributes, &prefixes.map(net)));
    fixture
        .rib
        .originate(fixture.now, net("10.0.0.0/9"), LocalRoute::default());
    fixture.settle();
    let left: Vec<_> = fixture.forwarding.keys().map(IpNet::to_string).collect();
    assert_eq!(left, ["10.200.0.0/24"]);
}

#[test]
fn a_prefix_announced_for_others_leaves_what_lies_inside_alone() {
    let session = PeerRib {
        import: Arc::new(Policy::import_pools(&[net("10.0.0.0/8")])),
        ..external(11)
    };
    let mut fixture = Fixture::with_peers(config(), [session]);
    let for_others = LocalRoute {
        owns_inside: false,
        ..LocalRoute::default()
    };
    let aggregate = net("10.0.0.0/9");
    let inside = "10.1.0.0/16";
    let check = |fixture: &mut Fixture, expected: Reason| {
        fixture.settle();
        let table = Table::AdjRibIn(None);
        assert_eq!(fixture.reason(table, inside, 11), expected);
    };
    let attributes = attributes(&[65011], "192.0.2.11");
    fixture
        .rib
        .originate(fixture.now, aggregate, for_others.clone());
    fixture.update(11, announce(&attributes, &[net(inside)]));
    check(&mut fixture, Reason::Best(None));
    // It becomes ours, no longer is, becomes it again, and goes.
    let own = Reason::Rejected("pools/own-block".into());
    let ours = LocalRoute::default();
    fixture.rib.originate(fixture.now, aggregate, ours.clone());
    check(&mut fixture, own.clone());
    fixture.rib.originate(fixture.now, aggregate, for_others);
    check(&mut fixture, Reason::Best(None));
    fixture.rib.originate(fixture.now, aggregate, ours);
    check(&mut fixture, own);
    fixture.rib.withdraw_originated(aggregate);
    check(&mut fixture, Reason::Best(None));
}

#[test]
fn our_own_route_wins_and_takes_the_learned_one_out_of_forwarding() {
    let mut fixture = Fixture::with_peers(config(), [session(PeerKind::Internal, 31)]);
    let mut attributes = attributes(&[], "192.0.2.31");
    attributes.local_pref = Some(u32::MAX);
    fixture.update(31, announce(&attributes, &[net("10.0.0.0/24")]));
    assert_eq!(fixture.next_hops("10.0.0.0/24"), ["192.0.2.31"]);
    fixture
        .rib
        .originate(fixture.now, net("10.0.0.0/24"), LocalRoute::default());
    fixture.settle();
    assert!(fixture.forwarding.is_empty());
    let reason = fixture.reason(Table::LocRib, "10.0.0.0/24", 31);
    assert_eq!(reason, Reason::Lost(Step::Local));
}

#[test]
fn a_next_hop_decides_over_eligibility_and_is_watched_while_used() {
    let mut fixture = Fixture::with_peers(config(), [external(11), external(12)]);
    fixture
        .metrics
        .insert(ip("192.0.2.11"), NextHopState::Unreachable);
    let prefix = [net("10.0.0.0/24")];
    fixture.update(11, announce(&attributes(&[65011], "192.0.2.11"), &prefix));
    fixture.update(
        12,
        announce(&attributes(&[65012, 65100], "192.0.2.12"), &prefix),
    );
    assert_eq!(fixture.next_hops("10.0.0.0/24"), ["192.0.2.12"]);
    let why = fixture.reason(Table::AdjRibIn(None), "10.0.0.0/24", 11);
    assert_eq!(why, Reason::Ineligible(Ineligible::NextHopUnreachable));
    fixture.set_next_hop("192.0.2.11", NextHopState::Reachable { metric: 0 });
    assert_eq!(fixture.next_hops("10.0.0.0/24"), ["192.0.2.11"]);
    fixture.set_next_hop("192.0.2.11", NextHopState::Unreachable);
    assert_eq!(fixture.next_hops("10.0.0.0/24"), ["192.0.2.12"]);
    fixture.update(11, withdraw(&prefix));
    fixture.update(12, withdraw(&prefix));
    assert!(fixture.watched.is_empty());
    assert!(fixture.forwarding.is_empty());
}

#[test]
fn the_nearer_next_hop_wins_and_equal_ones_share() {
    let config = RibConfig {
        multipath: 2,
        ..config()
    };
    let mut fixture = Fixture::with_peers(config, [external(11), external(12), external(13)]);
    for n in 11..=13u32 {
        let attributes = attributes(&[65000 + n], &format!("192.0.2.{n}"));
        fixture.update(n, announce(&attributes, &[net("10.0.0.0/24")]));
    }
    // Three are equal, two may be used: those with the lowest router ids.
    assert_eq!(
        fixture.next_hops("10.0.0.0/24"),
        ["192.0.2.11", "192.0.2.12"]
    );
    let reason = |fixture: &Fixture, n| fixture.reason(Table::LocRib, "10.0.0.0/24", n);
    assert_eq!(reason(&fixture, 11), Reason::Best(Some(Step::RouterId)));
    assert_eq!(reason(&fixture, 12), Reason::Multipath);
    assert_eq!(reason(&fixture, 13), Reason::Lost(Step::RouterId));
    fixture.set_next_hop("192.0.2.11", NextHopState::Reachable { metric: 1 });
    assert_eq!(
        fixture.next_hops("10.0.0.0/24"),
        ["192.0.2.12", "192.0.2.13"]
    );
    assert_eq!(reason(&fixture, 11), Reason::Lost(Step::IgpMetric));
}

#[test]
fn a_set_is_reported_again_when_one_of_its_next_hops_was_no_longer_watched_in_between() {
    let config = RibConfig {
        multipath: 2,
        ..config()
    };
    let prefix = net("10.0.0.0/24");
    let mut fixture = Fixture::with_peers(config, [external(11), external(12)]);
    let send = |fixture: &mut Fixture, n: u32| {
        let attributes = attributes(&[65000 + n], &format!("192.0.2.{n}"));
        let update = announce(&attributes, &[prefix]);
        fixture.rib.update(fixture.now, PeerId(n), &update).unwrap();
    };
    send(&mut fixture, 11);
    send(&mut fixture, 12);
    fixture.settle();
    assert_eq!(fixture.next_hops("10.0.0.0/24").len(), 2);
    fixture.rib.peer_down(PeerId(12), [false; 2]);
    let via = Via::from(ip("192.0.2.12"));
    let unwatched = fixture.rib.poll_next_hop_watch();
    assert_eq!(unwatched, Some(NextHopWatch::Unwatch(via)));
    fixture.watched.remove(&via.address);
    fixture.ahead.insert(prefix);
    // Back before the change was taken.
    fixture.rib.peer_up(PeerId(12), external(12));
    send(&mut fixture, 12);
    fixture.settle();
    assert_eq!(fixture.next_hops("10.0.0.0/24").len(), 2);
}

#[test]
fn one_prefix_too_many_is_an_error_and_replacing_is_not() {
    let limited = PeerRib {
        max_prefixes: [Some(2), None],
        ..external(11)
    };
    let mut fixture = Fixture::with_peers(config(), [limited]);
    let attributes = attributes(&[65011], "192.0.2.11");
    let prefixes = [net("10.0.0.0/24"), net("10.0.1.0/24")];
    fixture.update(11, announce(&attributes, &prefixes));
    fixture.update(11, announce(&attributes, &prefixes));
    let third = announce(&attributes, &[net("10.0.2.0/24")]);
    let error = fixture
        .rib
        .update(fixture.now, PeerId(11), &third)
        .unwrap_err();
    assert_eq!(
        error,
        PrefixLimit {
            family: Family::Ipv4Unicast,
            limit: 2
        }
    );
    assert_eq!(
        error.to_string(),
        "more than 2 ipv4-unicast prefixes received"
    );
    assert_eq!(
        fixture.rib.prefix_count(Family::Ipv4Unicast),
        2,
        "nothing is left of the third"
    );
}

#[test]
fn stale_paths_serve_until_they_are_swept_or_end_of_rib_comes() {
    // RFC 4724 §4.2
    let mut fixture = Fixture::with_peers(config(), [external(11)]);
    let (kept, lost) = (net("10.0.0.0/24"), net("10.0.1.0/24"));
    let attributes = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&attributes, &[kept, lost]));
    fixture.rib.peer_down(PeerId(11), [true; 2]);
    fixture.settle();
    assert_eq!(fixture.forwarding.len(), 2);
    assert!(fixture.rows(Table::LocRib).iter().all(|row| row.stale));
    fixture.rib.peer_up(PeerId(11), external(11));
    fixture.update(11, announce(&attributes, &[kept]));
    assert_eq!(fixture.rib.counts(PeerId(11), Family::Ipv4Unicast).stale, 1);
    assert_eq!(fixture.forwarding.len(), 2);
    // Lost again before End-of-RIB: the session sweeps what was stale; the rest becomes stale.
    fixture.rib.sweep_stale(PeerId(11), Family::Ipv4Unicast);
    fixture.rib.peer_down(PeerId(11), [true; 2]);
    fixture.settle();
    assert_eq!(fixture.forwarding.keys().collect::<Vec<_>>(), [&kept]);
    fixture.rib.peer_up(PeerId(11), external(11));
    fixture.update(11, end_of_rib(Family::Ipv6Unicast));
    assert_eq!(
        fixture.forwarding.len(),
        1,
        "the other family's marker says nothing"
    );
    fixture.update(11, end_of_rib(Family::Ipv4Unicast));
    assert!(fixture.forwarding.is_empty());
    let counts = fixture.rib.counts(PeerId(11), Family::Ipv4Unicast);
    assert_eq!((counts.received, counts.end_of_rib_received), (0, true));
}

#[test]
fn a_change_of_import_policy_needs_no_new_update() {
    let mut fixture = Fixture::with_peers(config(), [external(11)]);
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &[net("10.0.0.0/24")]),
    );
    fixture.rib.set_import(PeerId(11), Arc::new(Policy::none()));
    fixture.settle();
    assert!(fixture.forwarding.is_empty());
    let reason = fixture.reason(Table::AdjRibIn(None), "10.0.0.0/24", 11);
    assert_eq!(reason, Reason::Rejected("none".into()));
    fixture.rib.set_import(PeerId(11), Arc::new(Policy::all()));
    fixture.settle();
    assert_eq!(fixture.forwarding.len(), 1);
}

#[test]
fn paths_with_different_path_ids_stand_side_by_side() {
    // RFC 7911
    let config = RibConfig {
        multipath: 4,
        ..config()
    };
    let mut fixture = Fixture::with_peers(config, [external(11)]);
    let prefix = [net("10.0.0.0/24")];
    fixture.update(
        11,
        announce_path(&attributes(&[65011], "192.0.2.51"), &prefix, 1),
    );
    fixture.update(
        11,
        announce_path(&attributes(&[65011], "192.0.2.52"), &prefix, 2),
    );
    assert_eq!(
        fixture.next_hops("10.0.0.0/24"),
        ["192.0.2.51", "192.0.2.52"]
    );
    let withdrawn = nlri_list(&prefix, 1).into();
    fixture.update(
        11,
        Update {
            withdrawn,
            ..Update::default()
        },
    );
    assert_eq!(fixture.next_hops("10.0.0.0/24"), ["192.0.2.52"]);
}

/// Counts warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_peer_that_comes_near_its_limit_is_warned_of_once_in_each_session() {
    let warnings = Warnings::default();
    let count = || warnings.0.load(std::sync::atomic::Ordering::Relaxed);
    tracing::subscriber::with_default(warnings.clone(), || {
        let limited = PeerRib {
            max_prefixes: [Some(4); 2],
            warn_prefixes: [Some(2); 2],
            ..external(11)
        };
        let mut fixture = Fixture::with_peers(config(), [limited.clone()]);
        let attributes = attributes(&[65011], "192.0.2.11");
        let mut expected = 0;
        for _ in 0..2 {
            for (index, warned) in [0, 0, 1, 0].into_iter().enumerate() {
                let prefix = net(&format!("10.0.{index}.0/24"));
                fixture.update(11, announce(&attributes, &[prefix]));
                expected += warned;
                assert_eq!(count(), expected, "prefix {index}");
            }
            fixture.rib.peer_down(PeerId(11), [false; 2]);
            fixture.settle();
            fixture.rib.peer_up(PeerId(11), limited.clone());
        }
    });
}

#[test]
fn what_lies_inside_of_our_own_is_never_used_nor_passed_on_whatever_policy_says() {
    // It may have come before the prefix was ours, or after.
    for first in [true, false] {
        let mut fixture = Fixture::with_peers(config(), [external(11), external(12)]);
        let mut observer = Receiver::new(12, &negotiated(false));
        let block = net("10.1.9.0/26");
        let inside = "10.1.9.32/32";
        let attributes = attributes(&[65011], "192.0.2.11");
        let prefixes = [net(inside), block, net("10.1.9.0/24")];
        if first {
            fixture.update(11, announce(&attributes, &prefixes));
            assert_eq!(fixture.next_hops(inside), ["192.0.2.11"]);
            observer.drain(&mut fixture.rib);
            assert_eq!(observer.held.len(), 3);
        }
        fixture
            .rib
            .originate(fixture.now, block, LocalRoute::default());
        fixture.settle();
        if !first {
            fixture.update(11, announce(&attributes, &prefixes));
        }
        let used: Vec<_> = fixture.forwarding.keys().map(IpNet::to_string).collect();
        assert_eq!(used, ["10.1.9.0/24"], "first: {first}");
        let reason = fixture.reason(Table::AdjRibIn(None), inside, 11);
        assert_eq!(reason, Reason::Ineligible(Ineligible::InsideOurs));
        // What others say of the block itself stands by, and loses.
        let reason = fixture.reason(Table::LocRib, "10.1.9.0/26", 11);
        assert_eq!(reason, Reason::Lost(Step::Local));
        observer.drain(&mut fixture.rib);
        assert_eq!(observer.prefixes(), ["10.1.9.0/24", "10.1.9.0/26"]);
        fixture.rib.withdraw_originated(block);
        fixture.settle();
        assert_eq!(fixture.next_hops(inside), ["192.0.2.11"]);
    }
}
