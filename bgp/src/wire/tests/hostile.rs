//! What a peer might send to hurt: inputs that break other decoders, and a great many mutations.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    attributes::{AsPath, Attributes, NextHop},
    message::{Capability, Nlri, Open},
    types::{Asn, Family},
};

pub(super) fn flavours() -> Vec<Negotiated> {
    let mut flavours = Vec::new();
    for internal in [false, true] {
        for four_octet_as in [false, true] {
            for add_path in [false, true] {
                flavours.push(Negotiated {
                    four_octet_as,
                    internal,
                    families: [true, true],
                    add_path_receive: [add_path; 2],
                    add_path_send: [add_path; 2],
                    extended_next_hop: internal,
                    max_message_size: if add_path {
                        MAX_EXTENDED_MESSAGE
                    } else {
                        MAX_MESSAGE
                    },
                    ..Negotiated::default()
                });
            }
        }
    }
    flavours
}

// These make zettabgp 0.6.0 loop and allocate, or panic.
#[test]
fn inputs_that_break_the_codec_library_are_harmless() {
    for body in [
        "0000 000a 400207 02010000fc00 40",
        "0000 0001 40",
        "0000 0003 800e00",
        "0000 0000 40",
        "0000 0004 c0080101",
        "0000 0004 c0200101",
        "0000 0004 40030101",
        "0000 0003 400100",
        "0000 0003 400500",
        "0000 0003 800900",
        "0000 0006 c01003 010203",
        "0000 0003 c00700",
        "0000 0003 800f00",
    ] {
        let mut body = hex(body);
        // With and without a prefix behind it.
        for _ in 0..2 {
            for negotiated in flavours() {
                let _ = decode_update(&negotiated, &body);
            }
            body.extend([8, 10]);
        }
    }
}

/// Good messages of every kind, to be bent.
pub(super) fn seeds(negotiated: &Negotiated) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut out = Vec::new();
    let mut open = Open {
        asn: Asn(65001),
        hold_time: Duration::from_secs(9),
        router_id: [10, 0, 0, 1].into(),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::MultiProtocol { afi: 2, safi: 1 },
            Capability::FourOctetAs(Asn(65001)),
            Capability::AddPath(vec![(1, 1, 3)]),
            Capability::GracefulRestart {
                restarting: true,
                notification: true,
                restart_time: 120,
                families: vec![(1, 1, true)],
            },
            Capability::ExtendedNextHop(vec![(1, 1, 2)]),
            Capability::Fqdn {
                host: "node".into(),
                domain: "example".into(),
            },
        ],
    };
    encode_open(&mut out, &open);
    seeds.push(std::mem::take(&mut out));
    for code in 0..5 {
        open.capabilities.push(Capability::Unknown {
            code: 200 + code,
            value: vec![code; 60],
        });
    }
    encode_open(&mut out, &open);
    seeds.push(std::mem::take(&mut out));

    let mut attributes = Attributes {
        as_path: AsPath::sequence([Asn(65001), Asn(70_000)]),
        med: Some(1),
        local_pref: Some(1),
        atomic_aggregate: true,
        aggregator: Some(crate::attributes::Aggregator {
            asn: Asn(70_000),
            address: [1, 1, 1, 1].into(),
        }),
        communities: vec![1, 2],
        extended_communities: vec![[3; 8]],
        large_communities: vec![[1, 2, 3]],
        originator_id: Some([1, 1, 1, 1].into()),
        cluster_list: vec![[1, 1, 1, 1].into()],
        only_to_customer: Some(Asn(1)),
        unknown: vec![crate::attributes::UnknownAttribute {
            flags: 0xc0,
            code: 99,
            value: [1, 2, 3].into(),
        }],
        ..Attributes::originated(NextHop::from(IpAddr::from([10, 0, 0, 1])))
    };
    let four: Vec<_> = ["10.0.0.0/8", "10.244.1.64/26", "192.0.2.1/32"]
        .map(|prefix| Nlri::from(prefix.parse::<ipnet::Ipv4Net>().unwrap()))
        .into();
    let six: Vec<_> = ["2001:db8::/32", "fd00::40/122"]
        .map(|prefix| Nlri::from(prefix.parse::<ipnet::Ipv6Net>().unwrap()))
        .into();
    let encoded = EncodedAttributes::new(&attributes, negotiated, Family::Ipv4Unicast);
    encode_announce(&mut out, negotiated, &encoded, &four).unwrap();
    seeds.push(std::mem::take(&mut out));
    encode_withdraw(&mut out, negotiated, &four);
    seeds.push(std::mem::take(&mut out));
    attributes.next_hop = NextHop::from("fd00::1".parse::<IpAddr>().unwrap());
    let encoded = EncodedAttributes::new(&attributes, negotiated, Family::Ipv6Unicast);
    encode_announce(&mut out, negotiated, &encoded, &six).unwrap();
    seeds.push(std::mem::take(&mut out));
    encode_withdraw(&mut out, negotiated, &six);
    seeds.push(std::mem::take(&mut out));
    encode_notification(&mut out, &Notification::administrative_shutdown("text"));
    seeds.push(std::mem::take(&mut out));
    seeds.push(message(5, &[0, 1, 0, 1]));
    seeds
}

/// Bends a message in one to three places, and mostly keeps its header good, because what a bad
/// header hides is not tested.
pub(super) fn mutate(random: &mut fastrand::Rng, seed: &[u8]) -> Vec<u8> {
    const TELLING: [u8; 12] = [0, 1, 2, 3, 4, 14, 15, 0x40, 0x80, 0xc0, 0x90, 0xff];
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..=3) {
        let at = random.usize(HEADER_LEN.min(bytes.len() - 1)..bytes.len());
        match random.u8(0..14) {
            // Most often gently: other shapes break the lengths and go no further.
            0 | 8.. => bytes[at] ^= 1 << random.u8(0..8),
            1 => bytes[at] = random.u8(..),
            2 => bytes[at] = TELLING[random.usize(..TELLING.len())],
            3 => bytes.insert(at, TELLING[random.usize(..TELLING.len())]),
            4 if bytes.len() > HEADER_LEN + 1 => {
                bytes.remove(at);
            }
            5 => {
                let end = random.usize(at..=bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.usize(HEADER_LEN.min(bytes.len())..=bytes.len());
                bytes.splice(to..to, piece);
            }
            6 => bytes.truncate(at.max(HEADER_LEN)),
            _ => bytes[at] = bytes[at].wrapping_add(random.u8(..3)).wrapping_sub(1),
        }
        if bytes.len() <= HEADER_LEN {
            bytes.push(0);
        }
    }
    if random.u8(..) > 8 {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        bytes[16..18].copy_from_slice(&length.to_be_bytes());
    } else {
        let at = random.usize(..HEADER_LEN);
        bytes[at] = random.u8(..);
    }
    bytes
}

/// What must hold of everything that was accepted.
fn check_sound(update: &Update, input: usize) {
    let prefixes: usize = update
        .withdrawn
        .iter()
        .chain(update.announced.iter().map(|announced| &announced.nlri))
        .map(|list| {
            assert!(!list.is_empty(), "an empty list is no list");
            list.len()
        })
        .sum();
    assert!(prefixes <= input, "a prefix takes at least one octet");
    assert!(update.faults.len() <= 16);
    for announced in &update.announced {
        for segment in &announced.attributes.as_path.0 {
            assert!(!segment.asns.is_empty() && !segment.asns.contains(&Asn(0)));
        }
    }
}

#[test]
fn two_hundred_thousand_mutated_messages_do_no_harm() {
    let mut random = fastrand::Rng::with_seed(0x0042_4750);
    let (mut accepted, mut refused, mut faulty) = (0, 0, 0);
    let flavours = flavours();
    for negotiated in &flavours {
        let seeds = seeds(negotiated);
        let mut decoder = Decoder::new();
        decoder.set_negotiated(negotiated.clone());
        for _ in 0..200_000 / flavours.len() {
            let seed = random.usize(..seeds.len());
            let bytes = mutate(&mut random, &seeds[seed]);
            match decoder.decode(&bytes) {
                Ok(Message::Update(update)) => {
                    check_sound(&update, bytes.len());
                    faulty += usize::from(!update.faults.is_empty());
                    accepted += 1;
                    // The cache must not change what is said.
                    let mut fresh = Decoder::new();
                    fresh.set_negotiated(negotiated.clone());
                    assert_eq!(fresh.decode(&bytes), Ok(Message::Update(update)));
                }
                Ok(Message::Notification(notification)) => {
                    let _ = notification.describe();
                    accepted += 1;
                }
                Ok(_) => accepted += 1,
                Err(notification) => {
                    assert!((1..=7).contains(&notification.code));
                    assert!(notification.data.len() <= notify::MAX_DATA);
                    let _ = notification.describe();
                    refused += 1;
                }
            }
        }
    }
    // The mutations reach all three ends, so none of them goes untested.
    assert!(
        accepted > 50_000 && refused > 50_000 && faulty > 8_000,
        "accepted {accepted}, refused {refused}, with faults {faulty}"
    );
}

/// The largest message with the most of everything, which must still be decoded at once.
#[test]
fn the_largest_messages_take_bounded_time() {
    let extended = Negotiated {
        max_message_size: MAX_EXTENDED_MESSAGE,
        families: [true, true],
        ..Negotiated::default()
    };
    let room = 65_535 - HEADER_LEN - 4;
    // Tens of thousands of duplicates, of segments, of default routes, of different attributes.
    let duplicates: Vec<u8> = [0xc0, 99, 0].repeat(room / 3);
    let mut segments = hex("5002 ffe0");
    segments.extend([2, 1, 0, 1].repeat(0xffe0 / 4));
    let unknown: Vec<u8> = (36..=255u8)
        .flat_map(|code| {
            let mut attribute = vec![0xc0, code, 255];
            attribute.resize(258, 1);
            attribute
        })
        .collect();
    let mut large = hex("d020 ffd8");
    large.resize(4 + 0xffd8, 0);
    let defaults = vec![0; room];
    let start = Instant::now();
    for body in [
        update_body(&[], &duplicates, &[]),
        update_body(&[], &segments, &[]),
        update_body(&[], &unknown, &[]),
        update_body(&[], &large, &[]),
        update_body(&[], &[], &defaults),
        update_body(&defaults, &[], &[]),
    ] {
        let _ = decode_update(&extended, &body);
    }
    // Well under a millisecond each when optimized; anything quadratic would take minutes. The bound
    // leaves room for a debug build on a busy machine.
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(10), "took {elapsed:?}");
}
