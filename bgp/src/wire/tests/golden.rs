//! Bytes laid out by hand from the RFCs, in both directions.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::*;
use crate::{
    attributes::{
        Aggregator, AsPath, Attributes, NextHop, Origin, Segment, SegmentKind, UnknownAttribute,
    },
    message::{Nlri, NlriList},
    types::{Asn, Family},
};

fn v4(prefixes: &[&str]) -> NlriList {
    NlriList::Ipv4(
        prefixes
            .iter()
            .map(|prefix| Nlri::from(prefix.parse::<Ipv4Net>().unwrap()))
            .collect(),
    )
}

fn v6(prefixes: &[&str]) -> NlriList {
    NlriList::Ipv6(
        prefixes
            .iter()
            .map(|prefix| Nlri::from(prefix.parse::<Ipv6Net>().unwrap()))
            .collect(),
    )
}

fn encode(negotiated: &Negotiated, attributes: &Attributes, nlri: &NlriList) -> Vec<u8> {
    let mut out = Vec::new();
    let encoded = EncodedAttributes::new(attributes, negotiated, nlri.family());
    match nlri {
        NlriList::Ipv4(list) => encode_announce(&mut out, negotiated, &encoded, list),
        NlriList::Ipv6(list) => encode_announce(&mut out, negotiated, &encoded, list),
    }
    .unwrap();
    out.split_off(HEADER_LEN)
}

/// The body must decode to exactly these attributes and prefixes, and they must encode to it.
fn check(negotiated: &Negotiated, body: &str, attributes: &Attributes, nlri: &NlriList) {
    let body = hex(body);
    let update = decode_update(negotiated, &body).unwrap();
    assert_eq!(update.faults, []);
    assert_eq!(update.announced.len(), 1);
    assert_eq!(*update.announced[0].attributes, *attributes);
    assert_eq!(update.announced[0].nlri, *nlri);
    let mut sent = attributes.clone();
    for attribute in &mut sent.unknown {
        attribute.flags |= 0x20;
    }
    assert_eq!(encode(negotiated, &sent, nlri), body);
}

fn basic() -> Attributes {
    Attributes {
        as_path: AsPath::sequence([Asn(65001), Asn(65010)]),
        ..Attributes::originated(NextHop::from(IpAddr::from([10, 0, 0, 1])))
    }
}

#[test]
fn an_ipv4_route_of_an_external_peer() {
    check(
        &external(),
        "0000 0018
         40 01 01 00
         40 02 0a 02 02 0000fde9 0000fdf2
         40 03 04 0a000001
         18 0af401 1a 0af40240 00 20 c0000201",
        &basic(),
        &v4(&[
            "10.244.1.0/24",
            "10.244.2.64/26",
            "0.0.0.0/0",
            "192.0.2.1/32",
        ]),
    );
}

#[test]
fn an_ipv6_route_with_a_link_local_next_hop() {
    let attributes = Attributes {
        next_hop: NextHop {
            address: "fd00::105".parse().unwrap(),
            link_local: Some("fe80::1".parse().unwrap()),
            interface: 0,
        },
        ..basic()
    };
    check(
        &external(),
        "0000 0051
         90 0e 003c 0002 01 20
            fd000000000000000000000000000105 fe800000000000000000000000000001 00
            7a fd001024000000000000000000000040 00 20 20010db8
         40 01 01 00
         40 02 0a 02 02 0000fde9 0000fdf2",
        &attributes,
        &v6(&["fd00:1024::40/122", "::/0", "2001:db8::/32"]),
    );
}

// RFC 8950 §3
#[test]
fn an_ipv4_route_with_an_ipv6_next_hop() {
    let negotiated = Negotiated {
        extended_next_hop: true,
        ..external()
    };
    let attributes = Attributes {
        next_hop: NextHop::from("fe80::1".parse::<IpAddr>().unwrap()),
        ..basic()
    };
    check(
        &negotiated,
        "0000 002e
         90 0e 0019 0001 01 10 fe800000000000000000000000000001 00 18 0af401
         40 01 01 00
         40 02 0a 02 02 0000fde9 0000fdf2",
        &attributes,
        &v4(&["10.244.1.0/24"]),
    );
}

#[test]
fn every_attribute_of_an_internal_peer() {
    let attributes = Attributes {
        origin: Origin::Incomplete,
        as_path: AsPath(vec![
            Segment {
                kind: SegmentKind::Sequence,
                asns: vec![Asn(70_000)],
            },
            Segment {
                kind: SegmentKind::Set,
                asns: vec![Asn(1), Asn(2)],
            },
        ]),
        med: Some(100),
        local_pref: Some(200),
        atomic_aggregate: true,
        aggregator: Some(Aggregator {
            asn: Asn(70_000),
            address: Ipv4Addr::new(192, 0, 2, 9),
        }),
        communities: vec![0xffff_ff01, 0xfc00_0064],
        extended_communities: vec![hex("0002fc0000000064").try_into().unwrap()],
        large_communities: vec![[64512, 1, 2]],
        originator_id: Some(Ipv4Addr::new(10, 0, 0, 9)),
        cluster_list: vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(2, 2, 2, 2)],
        only_to_customer: Some(Asn(65001)),
        unknown: vec![
            UnknownAttribute {
                flags: 0xe0,
                code: 31,
                value: [1, 2, 3].into(),
            },
            UnknownAttribute {
                flags: 0xe0,
                code: 200,
                value: [].into(),
            },
        ],
        ..basic()
    };
    check(
        &internal(),
        "0000 0081
         40 01 01 02
         40 02 10 02 01 00011170 01 02 00000001 00000002
         40 03 04 0a000001
         80 04 04 00000064
         40 05 04 000000c8
         40 06 00
         c0 07 08 00011170 c0000209
         c0 08 08 ffffff01 fc000064
         80 09 04 0a000009
         80 0a 08 01010101 02020202
         c0 10 08 0002fc0000000064
         e0 1f 03 010203
         c0 20 0c 0000fc00 00000001 00000002
         c0 23 04 0000fde9
         e0 c8 00
         08 0a",
        &attributes,
        &v4(&["10.0.0.0/8"]),
    );
    // Towards an external peer, what is internal stays inside.
    let outside = encode(&external(), &attributes, &v4(&["10.0.0.0/8"]));
    let update = decode_update(&external(), &outside).unwrap();
    assert_eq!(update.faults, []);
    assert_eq!(
        *update.announced[0].attributes,
        Attributes {
            local_pref: None,
            originator_id: None,
            cluster_list: vec![],
            ..attributes
        }
    );
}

// RFC 6793 §4.2.2
#[test]
fn towards_a_two_octet_speaker_large_numbers_go_along_in_as4_attributes() {
    let negotiated = Negotiated {
        four_octet_as: false,
        ..external()
    };
    let attributes = Attributes {
        as_path: AsPath::sequence([Asn(65001), Asn(70_000)]),
        aggregator: Some(Aggregator {
            asn: Asn(70_000),
            address: Ipv4Addr::new(192, 0, 2, 9),
        }),
        ..basic()
    };
    check(
        &negotiated,
        "0000 0035
         40 01 01 00
         40 02 06 02 02 fde9 5ba0
         40 03 04 0a000001
         c0 07 06 5ba0 c0000209
         c0 11 0a 02 02 0000fde9 00011170
         c0 12 08 00011170 c0000209
         08 0a",
        &attributes,
        &v4(&["10.0.0.0/8"]),
    );
    // Numbers that fit need no second path.
    let body = encode(&negotiated, &basic(), &v4(&["10.0.0.0/8"]));
    assert_eq!(
        body,
        hex("0000 0014 40010100 400206 0202fde9fdf2 4003040a000001 080a")
    );
}

// RFC 6793 §4.2.3
#[test]
fn as4_path_is_merged_from_its_end() {
    let two = Negotiated {
        four_octet_as: false,
        ..external()
    };
    for (path, as4_path, merged) in [
        // One old speaker in front of what AS4_PATH tells.
        (
            "02 03 0001 5ba0 5ba0",
            "02 02 00011170 00011171",
            "1 70000 70001",
        ),
        // Longer than the path: it was not made from it.
        ("02 01 5ba0", "02 02 00011170 00011171", "23456"),
        // A set counts as one.
        (
            "01 02 0001 0002 02 01 5ba0",
            "02 01 00011170",
            "{1 2} 70000",
        ),
        // Confederation segments in it are thrown away.
        ("02 01 5ba0", "03 01 00000005 02 01 00011170", "70000"),
        // The cut goes through a segment.
        ("02 03 0001 0002 5ba0", "02 01 00011170", "1 2 70000"),
    ] {
        let (path, as4_path) = (hex(path), hex(as4_path));
        let mut attributes = hex("40010100 4003040a000001 4002");
        attributes.push(u8::try_from(path.len()).unwrap());
        attributes.extend(path);
        attributes.extend([0xc0, 17, u8::try_from(as4_path.len()).unwrap()]);
        attributes.extend(as4_path);
        let update = decode_update(&two, &update_body(&[], &attributes, &[8, 10])).unwrap();
        assert_eq!(update.faults, []);
        assert_eq!(update.announced[0].attributes.as_path.to_string(), merged);
    }
}

// RFC 6793 §4.2.3
#[test]
fn an_aggregator_that_knows_no_large_numbers_makes_as4_attributes_stale() {
    let two = Negotiated {
        four_octet_as: false,
        ..external()
    };
    let attributes = hex("40010100 4002 04 02015ba0 4003040a000001
         c00706 fde9 c0000209 c011 06 0201 00011170 c01208 00011170 c0000209");
    let update = decode_update(&two, &update_body(&[], &attributes, &[8, 10])).unwrap();
    let attributes = &update.announced[0].attributes;
    assert_eq!(attributes.as_path.to_string(), "23456");
    assert_eq!(attributes.aggregator.unwrap().asn, Asn(65001));
}

// RFC 4724 §2
#[test]
fn end_of_rib_markers() {
    for (family, body) in [
        (Family::Ipv4Unicast, "0000 0000"),
        (Family::Ipv6Unicast, "0000 0006 800f03 0002 01"),
    ] {
        let mut bytes = Vec::new();
        encode_end_of_rib(&mut bytes, family);
        assert_eq!(bytes[HEADER_LEN..], hex(body));
        let update = decode_update(&external(), &hex(body)).unwrap();
        assert_eq!(update.end_of_rib, Some(family));
        assert!(update.withdrawn.is_empty() && update.announced.is_empty());
    }
    // The new form for IPv4 too, but nothing that has more in it.
    let update = decode_update(&external(), &hex("0000 0006 800f03 0001 01")).unwrap();
    assert_eq!(update.end_of_rib, Some(Family::Ipv4Unicast));
    let update = decode_update(&external(), &hex("0002 080a 0006 800f03 0002 01")).unwrap();
    assert_eq!(update.end_of_rib, None);
    let only_v4 = Negotiated {
        families: [true, false],
        ..external()
    };
    let update = decode_update(&only_v4, &hex("0000 0006 800f03 0002 01")).unwrap();
    assert_eq!((update.end_of_rib, update.faults.len()), (None, 1));
}

#[test]
fn withdrawals_of_both_families() {
    let body = hex("0004 18 0af401 000b 900f 0007 0002 01 18 fd0010");
    let update = decode_update(&external(), &body).unwrap();
    assert_eq!(
        update.withdrawn.as_slice(),
        [v4(&["10.244.1.0/24"]), v6(&["fd00:1000::/24"])]
    );
    let mut bytes = Vec::new();
    let prefixes = [Nlri::from("fd00:1000::/24".parse::<Ipv6Net>().unwrap())];
    assert_eq!(encode_withdraw(&mut bytes, &external(), &prefixes), 1);
    assert_eq!(
        bytes[HEADER_LEN..],
        hex("0000 000b 900f 0007 0002 01 18 fd0010")
    );
    bytes.clear();
    let prefixes = [Nlri::from("10.244.1.0/24".parse::<Ipv4Net>().unwrap())];
    assert_eq!(encode_withdraw(&mut bytes, &external(), &prefixes), 1);
    assert_eq!(bytes[HEADER_LEN..], hex("0004 18 0af401 0000"));
}

#[test]
fn host_bits_are_cleared() {
    let update = decode_update(&external(), &hex("0004 14 0af4ff 0000")).unwrap();
    assert_eq!(update.withdrawn.as_slice(), [v4(&["10.244.240.0/20"])]);
    let update = decode_update(&external(), &hex("0000 000b 800f08 0002 01 19 fd0010ff")).unwrap();
    assert_eq!(update.withdrawn.as_slice(), [v6(&["fd00:1080::/25"])]);
}

// RFC 7911 §3
#[test]
fn path_identifiers_are_there_when_negotiated() {
    let negotiated = Negotiated {
        add_path_receive: [true, false],
        add_path_send: [true, false],
        ..external()
    };
    let update = decode_update(&negotiated, &hex("0008 00000007 18 0af401 0000")).unwrap();
    let list = [Nlri {
        path_id: 7,
        prefix: "10.244.1.0/24".parse().unwrap(),
    }];
    assert_eq!(update.withdrawn.as_slice(), [NlriList::Ipv4(list.to_vec())]);
    let mut bytes = Vec::new();
    encode_withdraw(&mut bytes, &negotiated, &list);
    assert_eq!(bytes[HEADER_LEN..], hex("0008 00000007 18 0af401 0000"));
    // Without the identifier the same octets are something else, and a short tail is refused.
    for body in ["0004 18 0af401 0000", "000a 00000007 18 0af401 0000 0000"] {
        assert!(decode_update(&negotiated, &hex(body)).is_err(), "{body}");
    }
}

#[test]
fn peers_without_a_global_address_are_reached_by_their_link_local_one() {
    let reach = |next_hop: &str| {
        let mut attributes = hex("40010100 400200");
        let mut value = hex("0002 01 20");
        value.extend(hex(next_hop));
        value.extend([0, 8, 0xfd]);
        attributes.extend([0x80, 14, u8::try_from(value.len()).unwrap()]);
        attributes.extend(value);
        let update = decode_update(&external(), &update_body(&[], &attributes, &[])).unwrap();
        update.announced[0].attributes.next_hop
    };
    let zero = "0".repeat(32);
    let link_local = format!("fe80{}1", "0".repeat(27));
    let expected = NextHop::from("fe80::1".parse::<IpAddr>().unwrap());
    assert_eq!(reach(&format!("{zero}{link_local}")), expected);
    assert_eq!(reach(&format!("{link_local}{link_local}")), expected);
    // A second address that is not a link-local one is passed over.
    let global = format!("fd00{}5", "0".repeat(27));
    let expected = NextHop::from("fd00::5".parse::<IpAddr>().unwrap());
    assert_eq!(reach(&format!("{global}{zero}")), expected);
}

#[test]
fn messages_with_equal_attributes_share_them() {
    let mut decoder = Decoder::new();
    decoder.set_negotiated(external());
    let mut decode = |body: &[u8]| match decoder.decode(&message(2, body)).unwrap() {
        Message::Update(update) => update,
        other => panic!("{other:?}"),
    };
    let one = |nlri: &NlriList| encode(&external(), &basic(), nlri);
    let first = decode(&one(&v4(&["10.0.0.0/8"])));
    let second = decode(&one(&v4(&["11.0.0.0/8"])));
    assert!(std::sync::Arc::ptr_eq(
        &first.announced[0].attributes,
        &second.announced[0].attributes
    ));
    assert_eq!(second.announced[0].nlri, v4(&["11.0.0.0/8"]));
    let attributes = Attributes {
        next_hop: NextHop::from("fd00::1".parse::<IpAddr>().unwrap()),
        ..basic()
    };
    let six = |attributes: &Attributes, nlri: &NlriList| encode(&external(), attributes, nlri);
    let first = decode(&six(&attributes, &v6(&["2001:db8::/32"])));
    let second = decode(&six(&attributes, &v6(&["2001:db9::/32"])));
    assert!(std::sync::Arc::ptr_eq(
        &first.announced[0].attributes,
        &second.announced[0].attributes
    ));
    assert_eq!(second.announced[0].nlri, v6(&["2001:db9::/32"]));
    let other = Attributes {
        next_hop: NextHop::from("fd00::2".parse::<IpAddr>().unwrap()),
        ..attributes.clone()
    };
    let third = decode(&six(&other, &v6(&["2001:db9::/32"])));
    assert_eq!(*third.announced[0].attributes, other);
}
