//! What a peer can make the tables hold, whatever it sends and however little it reads.
//!
//! * One attribute set: at most 16 octets for each octet of the message that it came in. The worst
//!   is an AS path of segments with one number each.
//! * All attribute sets: two for each path in the tables (as received, and after policy), and for
//!   each prefix that a peer has not been told of the one that it was told last.
//! * A peer that does not read: one entry for each path of each prefix, and for its group batches
//!   of a limited size (`Limits::batches_bytes`).
//!
//! The number of paths of a peer is bounded by its `max_prefixes`.

use super::*;
use crate::rib::shared::Limits;

/// Octets on the heap of one attribute set.
fn heap(attributes: &Attributes) -> usize {
    let segments = &attributes.as_path.0;
    let path: usize = segments
        .iter()
        .map(|segment| size_of_val(segment) + 4 * segment.asns.capacity())
        .sum();
    let unknown: usize = attributes
        .unknown
        .iter()
        .map(|unknown| size_of_val(unknown) + unknown.value.len())
        .sum();
    size_of::<Attributes>()
        + path
        + unknown
        + 4 * attributes.communities.capacity()
        + 8 * attributes.extended_communities.capacity()
        + 12 * attributes.large_communities.capacity()
        + 4 * attributes.cluster_list.capacity()
}

/// An UPDATE with ORIGIN, NEXT_HOP, one prefix, and these attributes.
fn update(attributes: &[u8]) -> Vec<u8> {
    let mut list = vec![0x40, 1, 1, 0, 0x40, 3, 4, 192, 0, 2, 11];
    list.extend_from_slice(attributes);
    let mut message = vec![0xff; 16];
    let length = 19 + 4 + list.len() + 4;
    message.extend(u16::try_from(length).unwrap().to_be_bytes());
    message.extend([2, 0, 0]);
    message.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
    message.extend(list);
    message.extend([24, 10, 1, 0]);
    message
}

/// Flags, code and a length of two octets.
fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[flags | 0x10, code, high, low], value].concat()
}

#[test]
fn an_attribute_set_takes_at_most_sixteen_times_the_octets_of_its_message() {
    const ROOM: usize = 65_000;
    let path = attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xf3]);
    let with_path = |more: Vec<u8>| [path.clone(), more].concat();
    let unknown: Vec<u8> = (64..=250u8)
        .flat_map(|code| attribute(0xc0, code, &[]))
        .collect();
    let hostile = [
        attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xf3].repeat(ROOM / 6)),
        with_path(attribute(0xc0, 8, &[0xfd, 0xe8, 0, 1].repeat(ROOM / 4))),
        with_path(attribute(0xc0, 32, &[1; 12].repeat(ROOM / 12))),
        with_path(attribute(0xc0, 16, &[0; 8].repeat(ROOM / 8))),
        with_path(attribute(0xc0, 200, &vec![7; ROOM])),
        with_path(unknown),
    ];
    let mut decoder = Decoder::new();
    decoder.set_negotiated(Negotiated {
        max_message_size: 65_535,
        ..negotiated(false)
    });
    for attributes in hostile {
        let message = update(&attributes);
        let Message::Update(update) = decoder.decode(&message).unwrap() else {
            panic!("not an UPDATE");
        };
        assert!(update.faults.is_empty(), "{:?}", update.faults);
        let heap = heap(&update.announced[0].attributes);
        let most = 16 * message.len();
        assert!(heap <= most, "{heap} octets for {} received", message.len());
    }
}

#[test]
fn a_peer_that_never_reads_holds_one_old_state_of_each_prefix_whatever_happens() {
    const PREFIXES: u32 = 20;
    for several in [0, 2] {
        let target = taking(several, session(PeerKind::External, 90));
        let reader = taking(several, session(PeerKind::External, 91));
        let mut readers = Receiver::new(91, &reader.negotiated);
        let sources = [1, 2].map(|n| session(PeerKind::External, n));
        let sessions = sources.into_iter().chain([target, reader]);
        let mut fixture = Fixture::with_peers(config(), sessions);
        fixture.rib.shared.limits = Limits {
            batches_bytes: 1000,
            ..Limits::default()
        };
        let prefixes: Vec<IpNet> = (0..PREFIXES)
            .map(|n| net(&format!("10.1.{n}.0/24")))
            .collect();
        let mut most = 0;
        for round in 0..300u32 {
            for peer in [1, 2] {
                let path = attributes(&[65000 + peer, 100_000 + round], "192.0.2.101");
                let from = (round as usize * 3) % prefixes.len();
                fixture.update(peer, announce(&path, &prefixes[from..]));
            }
            readers.drain(&mut fixture.rib);
            // The other is in step at first, and lags behind from then on.
            if round == 0 {
                Receiver::new(90, &readers_view(several)).drain(&mut fixture.rib);
            }
            most = most.max(fixture.rib.shared.attributes.len());
        }
        // Two paths of each prefix, and for each what the peer was told last; beside these what
        // the last batches are about.
        let bound = 2 * 2 * PREFIXES as usize + 2 * PREFIXES as usize;
        assert!(most <= bound, "{most} attribute sets for {several} paths");
        let mut late = Receiver::new(90, &readers_view(several));
        late.forgiving = true;
        late.drain(&mut fixture.rib);
        assert!(late.announced.len() <= 2 * prefixes.len());
    }
}

/// What is negotiated with a peer that takes so many paths.
fn readers_view(several: u16) -> Negotiated {
    let session = taking(several, session(PeerKind::External, 90));
    Negotiated::clone(&session.negotiated)
}
