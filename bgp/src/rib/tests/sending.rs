//! How it is sent: once, packed, coalesced, withdrawals first, End-of-RIB, refresh, slow members.

use super::*;
use crate::rib::shared::Limits;

/// 10.0.0.0/26 and those after it.
fn blocks(count: u32) -> Vec<IpNet> {
    (0..count)
        .map(|index| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + (index << 6));
            IpNet::new(address.into(), 26).unwrap()
        })
        .collect()
}

fn external(n: u8) -> PeerRib {
    session(PeerKind::External, n)
}

/// A source (11) and receivers (81 and up), all external, all in step.
fn with_receivers(count: u8) -> (Fixture, Vec<Receiver>) {
    let numbers = (0..count).map(|index| 81 + index);
    let sessions = std::iter::once(11).chain(numbers.clone()).map(external);
    let mut fixture = Fixture::with_peers(config(), sessions);
    let mut receivers: Vec<_> = numbers
        .map(|n| Receiver::new(u32::from(n), &negotiated(false)))
        .collect();
    for receiver in &mut receivers {
        receiver.drain(&mut fixture.rib);
        assert_eq!(receiver.end_of_rib, [1, 1]);
    }
    while fixture.rib.poll_dirty_peer().is_some() {}
    (fixture, receivers)
}

#[test]
fn prefixes_with_the_same_attributes_share_messages() {
    let (mut fixture, mut receivers) = with_receivers(1);
    for (index, prefixes) in blocks(1200).chunks(10).enumerate() {
        let second = 65100 + u32::try_from(index % 2).unwrap();
        fixture.update(
            11,
            announce(&attributes(&[65011, second], "192.0.2.11"), prefixes),
        );
    }
    receivers[0].drain(&mut fixture.rib);
    assert_eq!(receivers[0].held.len(), 1200);
    assert_eq!(
        receivers[0].updates, 2,
        "two attribute sets of 600 prefixes each"
    );
    fixture.update(11, withdraw(&blocks(700)));
    receivers[0].drain(&mut fixture.rib);
    assert_eq!((receivers[0].updates, receivers[0].held.len()), (1, 500));
}

#[test]
fn what_changes_and_changes_back_before_it_is_pulled_is_not_sent() {
    let (mut fixture, mut receivers) = with_receivers(1);
    let prefix = blocks(1);
    let first = attributes(&[65011, 65100], "192.0.2.11");
    fixture.update(11, announce(&first, &prefix));
    fixture.update(11, withdraw(&prefix));
    receivers[0].drain(&mut fixture.rib);
    assert_eq!(receivers[0].updates, 0, "announced and withdrawn");
    fixture.update(11, announce(&first, &prefix));
    receivers[0].drain(&mut fixture.rib);
    assert_eq!(receivers[0].updates, 1);
    fixture.update(11, withdraw(&prefix));
    fixture.update(11, announce(&first, &prefix));
    receivers[0].drain(&mut fixture.rib);
    assert_eq!(receivers[0].updates, 0, "withdrawn and announced again");
    // A difference that is not sent on is no reason to send.
    fixture.update(
        11,
        announce(
            &Attributes {
                med: Some(5),
                ..first
            },
            &prefix,
        ),
    );
    receivers[0].drain(&mut fixture.rib);
    assert_eq!(receivers[0].updates, 0, "MED goes no further");
}

#[test]
fn withdrawals_go_before_announcements() {
    let (mut fixture, _) = with_receivers(1);
    let all = blocks(2);
    let from = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&from, &all[..1]));
    fixture.rib.pull(PeerId(81), &mut Vec::new(), 10_000);
    fixture.update(11, announce(&from, &all[1..]));
    fixture.update(11, withdraw(&all[..1]));
    let mut bytes = Vec::new();
    fixture.rib.pull(PeerId(81), &mut bytes, 10_000);
    let first = frame(&bytes, 4096).unwrap().unwrap();
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated(false));
    let Message::Update(update) = decoder.decode(&bytes[..first]).unwrap() else {
        panic!("an UPDATE was sent")
    };
    assert_eq!(paths_of(&update.withdrawn[0]), [(all[0], 0)]);
}

#[test]
fn every_receiver_gets_the_same_octets_and_the_source_gets_nothing() {
    let (mut fixture, mut receivers) = with_receivers(20);
    let mut source = Receiver::new(11, &negotiated(false));
    source.drain(&mut fixture.rib);
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &blocks(3000)),
    );
    let dirty: BTreeSet<_> = std::iter::from_fn(|| fixture.rib.poll_dirty_peer()).collect();
    assert_eq!(dirty.len(), 21);
    let mut first: Option<Vec<u8>> = None;
    for receiver in &receivers {
        let mut bytes = Vec::new();
        while fixture.rib.pull(receiver.peer, &mut bytes, 5000).more {}
        assert!(!bytes.is_empty());
        assert!(first.get_or_insert(bytes.clone()) == &bytes);
    }
    source.drain(&mut fixture.rib);
    assert_eq!(source.updates, 0);
    let counts = fixture.rib.counts(PeerId(11), Family::Ipv4Unicast);
    assert_eq!(counts.advertised, 0);
    receivers[0].drain(&mut fixture.rib);
    assert_eq!(
        receivers[0].updates, 0,
        "the first part of the test took it"
    );
}

#[test]
fn a_route_that_moves_to_a_member_is_withdrawn_from_it_and_kept_by_the_others() {
    let (mut fixture, mut receivers) = with_receivers(2);
    let prefix = blocks(1);
    fixture.update(
        11,
        announce(&attributes(&[65011, 65100], "192.0.2.11"), &prefix),
    );
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.drain(&mut fixture.rib));
    assert_eq!(receivers[0].held.len(), 1);
    // 81 has a better one now.
    fixture.update(81, announce(&attributes(&[65081], "192.0.2.81"), &prefix));
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.drain(&mut fixture.rib));
    assert_eq!(
        (receivers[0].held.len(), receivers[0].withdrawn.len()),
        (0, 1)
    );
    let held = receivers[1].held.get(&prefix[0]).unwrap();
    assert_eq!(held.as_path, path(&[64512, 65081]));
    // And loses it.
    fixture.update(81, withdraw(&prefix));
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.drain(&mut fixture.rib));
    assert!(receivers.iter().all(|receiver| receiver.held.len() == 1));
}

#[test]
fn end_of_rib_follows_the_initial_table_once_for_each_negotiated_family() {
    // RFC 4724 §3
    let mut fixture = Fixture::with_peers(config(), [external(11)]);
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &blocks(5000)),
    );
    let mut only_v4 = external(81);
    let flavour = Negotiated {
        families: [true, false],
        ..negotiated(false)
    };
    only_v4.negotiated = Arc::new(flavour.clone());
    fixture.rib.peer_up(PeerId(81), only_v4);
    let mut receiver = Receiver::new(81, &flavour);
    while receiver.pull(&mut fixture.rib, 1000).more {
        let complete = receiver.held.len() == 5000;
        assert!(
            complete || receiver.end_of_rib == [0, 0],
            "not before the table is complete"
        );
    }
    assert_eq!(receiver.end_of_rib, [1, 0]);
    fixture.update(11, withdraw(&blocks(10)));
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.end_of_rib, [1, 0]);
    assert!(
        fixture
            .rib
            .counts(PeerId(81), Family::Ipv4Unicast)
            .end_of_rib_sent
    );
    assert!(
        !fixture
            .rib
            .counts(PeerId(81), Family::Ipv6Unicast)
            .end_of_rib_sent
    );
}

#[test]
fn end_of_rib_waits_until_what_we_originate_is_complete() {
    let config = RibConfig {
        hold_end_of_rib: true,
        ..config()
    };
    let mut fixture = Fixture::with_peers(config, [external(81)]);
    let mut receiver = Receiver::new(81, &negotiated(false));
    fixture
        .rib
        .originate(fixture.now, net("10.0.0.0/26"), LocalRoute::default());
    receiver.drain(&mut fixture.rib);
    assert_eq!((receiver.held.len(), receiver.end_of_rib), (1, [0, 0]));
    assert!(!fixture.rib.has_pending(PeerId(81)));
    while fixture.rib.poll_dirty_peer().is_some() {}
    fixture
        .rib
        .originate(fixture.now, net("10.0.0.64/26"), LocalRoute::default());
    fixture.rib.release_end_of_rib();
    assert_eq!(fixture.rib.poll_dirty_peer(), Some(PeerId(81)));
    receiver.drain(&mut fixture.rib);
    assert_eq!((receiver.held.len(), receiver.end_of_rib), (2, [1, 1]));
}

#[test]
fn a_refresh_sends_everything_again_between_its_markers() {
    // RFC 2918, RFC 7313 §4
    for enhanced in [false, true] {
        let (mut fixture, _) = with_receivers(1);
        fixture.rib.peer_down(PeerId(81), [false; 2]);
        let flavour = Negotiated {
            enhanced_route_refresh: enhanced,
            ..negotiated(false)
        };
        let mut session = external(81);
        session.negotiated = Arc::new(flavour.clone());
        fixture.rib.peer_up(PeerId(81), session);
        let mut receiver = Receiver::new(81, &flavour);
        fixture.update(
            11,
            announce(&attributes(&[65011], "192.0.2.11"), &blocks(100)),
        );
        receiver.drain(&mut fixture.rib);
        receiver.forgiving = true;
        fixture.rib.refresh(PeerId(81), Family::Ipv4Unicast);
        assert!(fixture.rib.has_pending(PeerId(81)));
        receiver.drain(&mut fixture.rib);
        assert_eq!(receiver.announced.len(), 100);
        assert_eq!(receiver.end_of_rib, [1, 1]);
        let markers: &[u8] = if enhanced { &[1, 2] } else { &[] };
        assert_eq!(receiver.refresh_markers, markers);
    }
}

#[test]
fn a_change_of_export_policy_withdraws_what_is_no_longer_meant_for_the_peer() {
    let (mut fixture, mut receivers) = with_receivers(2);
    fixture
        .rib
        .originate(fixture.now, net("10.9.0.0/26"), LocalRoute::default());
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &blocks(10)),
    );
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.drain(&mut fixture.rib));
    receivers[0].forgiving = true;
    fixture
        .rib
        .set_export(PeerId(81), Arc::new(Policy::export_blocks()));
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.drain(&mut fixture.rib));
    assert_eq!(receivers[0].prefixes(), ["10.9.0.0/26"]);
    assert_eq!(receivers[1].held.len(), 11);
    assert_eq!(receivers[0].end_of_rib, [1, 1]);
}

#[test]
fn a_slow_member_falls_out_of_step_and_catches_up_with_the_last_state_only() {
    let (mut fixture, mut receivers) = with_receivers(2);
    fixture.rib.shared.limits = Limits {
        batches_bytes: 10_000,
        ..Limits::default()
    };
    let prefixes = blocks(500);
    for round in 0..40 {
        let from = attributes(&[65011, 65100 + round], "192.0.2.11");
        fixture.update(11, announce(&from, &prefixes));
        receivers[0].drain(&mut fixture.rib);
        assert_eq!(receivers[0].announced.len(), 500);
    }
    receivers[1].drain(&mut fixture.rib);
    assert_eq!(receivers[1].announced.len(), 500, "coalesced by prefix");
    assert_eq!(receivers[1].held, receivers[0].held);
    fixture.update(11, withdraw(&prefixes));
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.drain(&mut fixture.rib));
    assert!(receivers.iter().all(|receiver| receiver.held.is_empty()));
}

#[test]
fn a_peer_is_reported_once_until_it_is_looked_at_and_not_after_it_is_down() {
    let (mut fixture, _) = with_receivers(2);
    let from = attributes(&[65011], "192.0.2.11");
    fixture.update(11, announce(&from, &blocks(1)));
    fixture.update(11, announce(&from, &blocks(2)));
    fixture.rib.peer_down(PeerId(82), [false; 2]);
    let dirty: Vec<_> = std::iter::from_fn(|| fixture.rib.poll_dirty_peer()).collect();
    assert_eq!(dirty, [PeerId(11), PeerId(81)]);
    assert!(fixture.rib.has_pending(PeerId(81)));
    assert!(!fixture.rib.has_pending(PeerId(82)));
}

#[test]
fn a_budget_is_kept_within_one_step() {
    let (mut fixture, mut receivers) = with_receivers(1);
    fixture.update(
        11,
        announce(&attributes(&[65011], "192.0.2.11"), &blocks(50_000)),
    );
    let mut bytes = Vec::new();
    let pulled = fixture.rib.pull(PeerId(81), &mut bytes, 1);
    assert!(
        pulled.more && bytes.len() <= 40_000,
        "{} octets",
        bytes.len()
    );
    receivers[0].forgiving = true;
    receivers[0].drain(&mut fixture.rib);
    assert!(!receivers[0].held.is_empty());
}
