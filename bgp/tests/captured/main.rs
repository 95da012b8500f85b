//! What real speakers sent, octet by octet, and what it means.
//!
//! Each file holds the messages of one session, one a line in hexadecimal, followed by lines that
//! start with `>` and say how it must be decoded. With `BGP_CAPTURED_WRITE=1` these are written
//! anew, to be read by a person.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use bgp::{
    attributes::Attributes,
    message::{Capability, Message, Negotiated, NlriList, Open},
    types::{Asn, Family},
    wire::{
        Decoder, EncodedAttributes, encode_announce, encode_open, format_extended_community, frame,
        negotiate,
    },
};

/// The OPEN that the speakers were sent.
fn our_open() -> Open {
    Open {
        asn: Asn(65000),
        hold_time: Duration::from_secs(90),
        router_id: [10, 98, 0, 1].into(),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::MultiProtocol { afi: 2, safi: 1 },
            Capability::RouteRefresh,
            Capability::FourOctetAs(Asn(65000)),
            Capability::EnhancedRouteRefresh,
        ],
    }
}

fn prefixes(list: &NlriList) -> String {
    let texts: Vec<String> = match list {
        NlriList::Ipv4(list) => list.iter().map(|nlri| nlri.prefix.to_string()).collect(),
        NlriList::Ipv6(list) => list.iter().map(|nlri| nlri.prefix.to_string()).collect(),
    };
    texts.join(" ")
}

fn attributes(out: &mut String, attributes: &Attributes) {
    let a = attributes;
    writeln!(out, ">   origin {:?}, path {}", a.origin, a.as_path).unwrap();
    writeln!(out, ">   next hop {}", a.next_hop).unwrap();
    for (name, value) in [("MED", a.med), ("LOCAL_PREF", a.local_pref)] {
        if let Some(value) = value {
            writeln!(out, ">   {name} {value}").unwrap();
        }
    }
    if a.atomic_aggregate {
        out.push_str(">   ATOMIC_AGGREGATE\n");
    }
    if let Some(aggregator) = &a.aggregator {
        writeln!(
            out,
            ">   aggregator {} {}",
            aggregator.asn, aggregator.address
        )
        .unwrap();
    }
    for community in &a.communities {
        writeln!(
            out,
            ">   community {}:{}",
            community >> 16,
            community & 0xffff
        )
        .unwrap();
    }
    for community in &a.extended_communities {
        writeln!(out, ">   {}", format_extended_community(*community)).unwrap();
    }
    for [a, b, c] in &a.large_communities {
        writeln!(out, ">   large community {a}:{b}:{c}").unwrap();
    }
    for unknown in &a.unknown {
        writeln!(
            out,
            ">   attribute {} flags {:02x} value {:02x?}",
            unknown.code, unknown.flags, unknown.value
        )
        .unwrap();
    }
}

fn meaning(decoder: &mut Decoder, octets: &[u8], session: &mut Negotiated) -> String {
    let length = frame(octets, decoder.max_message_size()).expect("a good header");
    assert_eq!(length, Some(octets.len()));
    let mut out = String::new();
    match decoder.decode(octets).expect("a good message") {
        Message::Open(open) => {
            writeln!(
                out,
                "> OPEN of AS {}, id {}, hold time {:?}",
                open.asn, open.router_id, open.hold_time
            )
            .unwrap();
            for capability in &open.capabilities {
                writeln!(out, ">   {capability:?}").unwrap();
            }
            *session = negotiate(&our_open(), &open);
            decoder.set_negotiated(session.clone());
            // What we would say in its place is understood the same way.
            let mut again = Vec::new();
            encode_open(&mut again, &open);
            assert_eq!(
                Decoder::new().decode(&again),
                Ok(Message::Open(open.clone()))
            );
        }
        Message::Update(update) => {
            for fault in &update.faults {
                writeln!(out, "> {:?}: {}", fault.disposition, fault.text).unwrap();
            }
            if let Some(family) = update.end_of_rib {
                writeln!(out, "> End-of-RIB of {family}").unwrap();
            }
            for list in &update.withdrawn {
                writeln!(out, "> withdraws {}", prefixes(list)).unwrap();
            }
            for announced in &update.announced {
                writeln!(out, "> announces {}", prefixes(&announced.nlri)).unwrap();
                attributes(&mut out, &announced.attributes);
                check_again(session, &announced.attributes, &announced.nlri);
            }
        }
        other => writeln!(out, "> {other:?}").unwrap(),
    }
    out
}

/// Said by us it means the same.
fn check_again(session: &Negotiated, attributes: &Attributes, nlri: &NlriList) {
    let encoded = EncodedAttributes::new(attributes, session, nlri.family());
    let mut out = Vec::new();
    let taken = match nlri {
        NlriList::Ipv4(list) => encode_announce(&mut out, session, &encoded, list),
        NlriList::Ipv6(list) => encode_announce(&mut out, session, &encoded, list),
    };
    assert_eq!(taken, Ok(nlri.len()));
    let mut decoder = Decoder::new();
    decoder.set_negotiated(session.clone());
    let Ok(Message::Update(update)) = decoder.decode(&out) else {
        panic!("our own UPDATE was refused");
    };
    let mut got = Attributes::clone(&update.announced[0].attributes);
    for unknown in &mut got.unknown {
        // Partial is set by who passes it on.
        unknown.flags &= !0x20;
    }
    let mut expected = attributes.clone();
    for unknown in &mut expected.unknown {
        unknown.flags &= !0x20;
    }
    assert_eq!((&got, &update.announced[0].nlri), (&expected, nlri));
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/captured")
        .join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).unwrap();
    let mut decoder = Decoder::new();
    let mut session = Negotiated::default();
    let mut expected = String::new();
    let mut messages = 0;
    for line in text.lines().filter(|line| !line.starts_with('>')) {
        writeln!(expected, "{line}").unwrap();
        if line.starts_with('#') {
            continue;
        }
        let octets: Vec<u8> = line
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        expected.push_str(&meaning(&mut decoder, &octets, &mut session));
        messages += 1;
    }
    assert!(messages > 4, "{name}: only {messages} messages");
    assert!(
        Family::ALL
            .iter()
            .all(|family| session.families[family.index()])
    );
    if std::env::var_os("BGP_CAPTURED_WRITE").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    assert_eq!(text, expected, "{name}: see the head of this file");
}

#[test]
fn bird() {
    check("bird");
}

#[test]
fn frr() {
    check("frr");
}

#[test]
fn gobgp() {
    check("gobgp");
}

#[test]
fn openbgpd() {
    check("openbgpd");
}

#[test]
fn exabgp() {
    check("exabgp");
}
