//! Several paths of a prefix to one peer (RFC 7911): which, under which identifiers, and what is
//! sent when one of them changes.

use super::*;

const PREFIX: &str = "10.1.0.0/24";

/// What the receiver holds of the prefix: identifiers with the next hops.
fn held(receiver: &Receiver) -> Vec<(u32, String)> {
    let paths = receiver.paths_of(net(PREFIX));
    paths
        .map(|(id, attributes)| (id, attributes.next_hop.address.to_string()))
        .collect()
}

fn from(peer: u32) -> Update {
    let next_hop = format!("192.0.2.{}", 100 + peer);
    announce(&attributes(&[65000 + peer], &next_hop), &[net(PREFIX)])
}

/// Three external peers and an internal one that takes `paths` of their paths.
fn reflector(paths: u16) -> (Fixture, Receiver) {
    let target = taking(paths, client(90));
    let receiver = Receiver::new(90, &target.negotiated);
    let sources = [1, 2, 3].map(|n| session(PeerKind::External, n));
    let fixture = Fixture::with_peers(config(), sources.into_iter().chain([target]));
    (fixture, receiver)
}

#[test]
fn the_best_paths_are_sent_and_the_next_one_takes_the_place_of_one_that_goes() {
    let (mut fixture, mut receiver) = reflector(2);
    for peer in 1..=3 {
        fixture.update(peer, from(peer));
    }
    receiver.drain(&mut fixture.rib);
    let hop = |n: u32| format!("192.0.2.{}", 100 + n);
    assert_eq!(held(&receiver), [(1, hop(1)), (2, hop(2))]);
    fixture.update(1, withdraw(&[net(PREFIX)]));
    receiver.drain(&mut fixture.rib);
    assert_eq!(held(&receiver), [(2, hop(2)), (3, hop(3))]);
    assert_eq!((receiver.withdrawn.len(), receiver.announced.len()), (1, 1));
    // It comes again, and is the path that it was before.
    fixture.update(1, from(1));
    receiver.drain(&mut fixture.rib);
    assert_eq!(held(&receiver), [(1, hop(1)), (2, hop(2))]);
}

#[test]
fn a_path_keeps_its_identifier_whatever_its_rank_and_its_attributes() {
    let (mut fixture, mut receiver) = reflector(u16::MAX);
    for peer in 1..=3 {
        fixture.update(peer, from(peer));
    }
    receiver.drain(&mut fixture.rib);
    let before = held(&receiver);
    // The first becomes the last: nobody needs to hear.
    fixture.set_next_hop("192.0.2.101", NextHopState::Reachable { metric: 9 });
    receiver.drain(&mut fixture.rib);
    assert_eq!((held(&receiver), receiver.updates), (before.clone(), 0));
    // Other attributes of one path: one announcement.
    let mut longer = attributes(&[65002, 65002], "192.0.2.102");
    longer.med = Some(7);
    fixture.update(2, announce(&longer, &[net(PREFIX)]));
    receiver.drain(&mut fixture.rib);
    assert_eq!(held(&receiver), before);
    assert_eq!((receiver.announced.len(), receiver.withdrawn.len()), (1, 0));
}

#[test]
fn the_same_path_has_one_identifier_for_all_prefixes_and_peers() {
    let (mut fixture, mut receiver) = reflector(u16::MAX);
    let other = taking(2, session(PeerKind::External, 91));
    let mut second = Receiver::new(91, &other.negotiated);
    fixture.rib.peer_up(PeerId(91), other);
    let prefixes: Vec<IpNet> = (0..50).map(|n| net(&format!("10.2.{n}.0/24"))).collect();
    for (peer, prefixes) in [
        (2, &prefixes[..30]),
        (3, &prefixes[10..]),
        (1, &prefixes[20..]),
    ] {
        let attributes = attributes(&[65000 + peer], "192.0.2.101");
        fixture.update(peer, announce(&attributes, prefixes));
    }
    for receiver in [&mut receiver, &mut second] {
        receiver.drain(&mut fixture.rib);
        let mut ids: BTreeMap<u32, Asn> = BTreeMap::new();
        for ((_, id), attributes) in &receiver.paths {
            let paths = &attributes.as_path.0[0].asns;
            let from = *paths.last().unwrap();
            assert_eq!(*ids.entry(*id).or_insert(from), from, "path {id}");
        }
        assert_eq!(ids.len(), 3);
    }
}

#[test]
fn paths_that_came_with_identifiers_are_told_apart_by_them() {
    let (mut fixture, mut receiver) = reflector(u16::MAX);
    let path = |id: u32, hop: &str| announce_path(&attributes(&[65001], hop), &[net(PREFIX)], id);
    fixture.update(1, path(7, "192.0.2.101"));
    fixture.update(1, path(9, "192.0.2.102"));
    receiver.drain(&mut fixture.rib);
    assert_eq!(receiver.paths.len(), 2);
    fixture.update(1, withdraw_path(&[net(PREFIX)], 7));
    receiver.drain(&mut fixture.rib);
    assert_eq!(held(&receiver), [(2, "192.0.2.102".into())]);
    // A session without ADD-PATH beside it has the best alone.
    let plain = session(PeerKind::External, 91);
    let mut second = Receiver::new(91, &plain.negotiated);
    fixture.rib.peer_up(PeerId(91), plain);
    fixture.update(1, path(7, "192.0.2.101"));
    second.drain(&mut fixture.rib);
    assert_eq!(
        second.paths.keys().map(|(_, id)| *id).collect::<Vec<_>>(),
        [0]
    );
}

#[test]
fn a_reflector_sends_a_client_the_paths_of_the_others_and_not_its_own() {
    // RFC 4456 §8, RFC 7911
    let clients = [21, 22, 23].map(|n| taking(u16::MAX, client(n)));
    let mut receivers: Vec<Receiver> = [21, 22, 23]
        .iter()
        .zip(&clients)
        .map(|(n, session)| Receiver::new(*n, &session.negotiated))
        .collect();
    let mut fixture = Fixture::with_peers(config(), clients);
    for n in [21u32, 22, 23] {
        let mut path = attributes(&[], &format!("192.0.2.{}", 100 + n));
        path.local_pref = Some(100);
        fixture.update(n, announce(&path, &[net(PREFIX)]));
    }
    for (receiver, own) in receivers.iter_mut().zip([21u8, 22, 23]) {
        receiver.drain(&mut fixture.rib);
        let from: Vec<Ipv4Addr> = receiver
            .paths
            .values()
            .map(|path| path.originator_id.unwrap())
            .collect();
        let others = [21, 22, 23].into_iter().filter(|n| *n != own);
        let others: Vec<_> = others.map(|n| Ipv4Addr::new(192, 0, 2, n)).collect();
        assert_eq!(from, others);
        assert_eq!(
            fixture
                .rib
                .counts(receiver.peer, Family::Ipv4Unicast)
                .advertised,
            2
        );
    }
    let rows = fixture.rows(Table::AdjRibOut(PeerId(21)));
    let shown: Vec<_> = rows.iter().map(|row| (row.path_id, row.peer)).collect();
    let sent: Vec<u32> = receivers[0].paths.keys().map(|(_, id)| *id).collect();
    assert_eq!(
        shown,
        [(sent[0], Some(PeerId(22))), (sent[1], Some(PeerId(23)))]
    );
}

#[test]
fn a_new_export_policy_takes_back_just_the_paths_that_it_does_not_let_out() {
    let (mut fixture, mut receiver) = reflector(u16::MAX);
    for peer in 1..=3 {
        fixture.update(peer, from(peer));
    }
    let block = LocalRoute::default();
    fixture.rib.originate(fixture.now, net(PREFIX), block);
    receiver.drain(&mut fixture.rib);
    let before = held(&receiver);
    assert_eq!(before.len(), 4);
    receiver.forgiving = true;
    let blocks = Arc::new(Policy::export_blocks());
    fixture.rib.set_export(PeerId(90), blocks);
    receiver.drain(&mut fixture.rib);
    assert_eq!(held(&receiver).len(), 1);
    assert_eq!(receiver.withdrawn.len(), 3);
    let all = Arc::new(Policy::all());
    fixture.rib.set_export(PeerId(90), all);
    receiver.drain(&mut fixture.rib);
    assert_eq!(held(&receiver), before);
}

#[test]
fn the_order_of_paths_is_that_of_the_decision_process_on_those_that_are_left() {
    // Two that lose at the first step are compared with each other when the winner is taken out,
    // by all the steps that follow.
    let (mut fixture, mut receiver) = reflector(2);
    let long = attributes(&[65001, 65100, 65101, 65102], "192.0.2.101");
    let middle = attributes(&[65002, 65100, 65101], "192.0.2.102");
    let short = attributes(&[65003, 65100], "192.0.2.103");
    for (peer, path) in [(1, long), (2, middle), (3, short)] {
        fixture.update(peer, announce(&path, &[net(PREFIX)]));
    }
    receiver.drain(&mut fixture.rib);
    let hops: BTreeSet<_> = held(&receiver).into_iter().map(|(_, hop)| hop).collect();
    assert_eq!(
        hops.into_iter().collect::<Vec<_>>(),
        ["192.0.2.102", "192.0.2.103"]
    );
}
