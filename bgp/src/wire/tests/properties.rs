//! Whatever we can say reads back the same.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    attributes::{
        Aggregator, AsPath, Attributes, NextHop, Origin, Partial, Segment, SegmentKind,
        UnknownAttribute,
    },
    message::{Capability, Nlri, NlriList, Open, RouteRefresh},
    types::{Asn, Family},
};

fn asn() -> impl Strategy<Value = Asn> {
    prop_oneof![1..=65_535u32, 65_536..=u32::MAX].prop_map(Asn)
}

fn as_path() -> impl Strategy<Value = AsPath> {
    let kind = prop_oneof![
        3 => Just(SegmentKind::Sequence),
        1 => Just(SegmentKind::Set),
    ];
    let segment = (kind, vec(asn(), 1..6)).prop_map(|(kind, asns)| Segment { kind, asns });
    vec(segment, 0..4).prop_map(AsPath)
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        Just(Origin::Igp),
        Just(Origin::Egp),
        Just(Origin::Incomplete)
    ]
}

fn host() -> impl Strategy<Value = Ipv4Addr> {
    (1..224u8, any::<[u8; 3]>())
        .prop_filter("no loopback", |(first, _)| *first != 127)
        .prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d))
}

fn next_hop(family: Family) -> BoxedStrategy<NextHop> {
    match family {
        Family::Ipv4Unicast => host()
            .prop_map(|address| NextHop::from(IpAddr::V4(address)))
            .boxed(),
        Family::Ipv6Unicast => (any::<u64>(), option::of(any::<u64>()))
            .prop_map(|(low, link_local)| NextHop {
                address: IpAddr::V6(Ipv6Addr::from_bits(0xfd << 120 | u128::from(low))),
                link_local: link_local
                    .map(|low| Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(low))),
                interface: 0,
            })
            .boxed(),
    }
}

fn unknown() -> impl Strategy<Value = Vec<UnknownAttribute>> {
    let codes = prop_oneof![Just(20u8), Just(31), 36..=254u8];
    proptest::collection::btree_map(codes, vec(any::<u8>(), 0..300), 0..3).prop_map(|map| {
        map.into_iter()
            .map(|(code, value)| UnknownAttribute {
                flags: 0xe0 | if value.len() > 255 { 0x10 } else { 0 },
                code,
                value: value.into(),
            })
            .collect()
    })
}

/// Attributes that an internal peer may send.
fn attributes(family: Family) -> impl Strategy<Value = Attributes> {
    let aggregator = (asn(), any::<[u8; 4]>()).prop_map(|(asn, address)| Aggregator {
        asn,
        address: address.into(),
    });
    let numbers = (
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        any::<bool>(),
        option::of(aggregator),
        option::of(any::<u32>().prop_map(Ipv4Addr::from)),
        option::of(any::<u32>().prop_map(Asn)),
    );
    let lists = (
        vec(any::<u32>(), 0..80),
        vec(any::<[u8; 8]>(), 0..4),
        proptest::collection::btree_set(any::<[u32; 3]>(), 0..4),
        vec(any::<u32>().prop_map(Ipv4Addr::from), 0..4),
        unknown(),
    );
    (origin(), as_path(), next_hop(family), numbers, lists).prop_map(
        |(origin, as_path, next_hop, numbers, lists)| Attributes {
            origin,
            as_path,
            next_hop,
            med: numbers.0,
            local_pref: numbers.1,
            atomic_aggregate: numbers.2,
            aggregator: numbers.3,
            originator_id: numbers.4,
            only_to_customer: numbers.5,
            partial: {
                let mut partial = Partial::default();
                if numbers.2 && !lists.0.is_empty() {
                    partial.insert(8);
                }
                partial
            },
            communities: lists.0,
            extended_communities: lists.1,
            large_communities: lists.2.into_iter().collect(),
            cluster_list: lists.3,
            unknown: lists.4,
        },
    )
}

fn v4_list(add_path: bool) -> impl Strategy<Value = Vec<Nlri<Ipv4Net>>> {
    let one =
        (any::<u32>(), any::<u32>(), 0..=32u8).prop_map(move |(path_id, bits, length)| Nlri {
            path_id: if add_path { path_id } else { 0 },
            prefix: Ipv4Net::new(Ipv4Addr::from(bits), length).unwrap().trunc(),
        });
    vec(one, 1..1500)
}

fn v6_list(add_path: bool) -> impl Strategy<Value = Vec<Nlri<Ipv6Net>>> {
    let one =
        (any::<u32>(), any::<u128>(), 0..=128u8).prop_map(move |(path_id, bits, length)| Nlri {
            path_id: if add_path { path_id } else { 0 },
            prefix: Ipv6Net::new(Ipv6Addr::from(bits), length).unwrap().trunc(),
        });
    vec(one, 1..800)
}

fn negotiated() -> impl Strategy<Value = Negotiated> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(four_octet_as, add_path, extended)| {
        Negotiated {
            four_octet_as,
            internal: true,
            families: [true, true],
            add_path_receive: [add_path; 2],
            add_path_send: [add_path; 2],
            extended_next_hop: true,
            max_message_size: if extended {
                MAX_EXTENDED_MESSAGE
            } else {
                MAX_MESSAGE
            },
            ..Negotiated::default()
        }
    })
}

fn capability() -> impl Strategy<Value = Capability> {
    let family = || (any::<u16>(), any::<u8>(), any::<bool>());
    let name = || "[a-z0-9.-]{0,63}";
    prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| Capability::MultiProtocol { afi, safi }),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRouteRefresh),
        vec(any::<(u16, u16, u16)>(), 0..5).prop_map(Capability::ExtendedNextHop),
        any::<u8>().prop_map(Capability::Role),
        (
            any::<bool>(),
            any::<bool>(),
            0..4096u16,
            vec(family(), 0..5)
        )
            .prop_map(|(restarting, notification, restart_time, families)| {
                Capability::GracefulRestart {
                    restarting,
                    notification,
                    restart_time,
                    families,
                }
            }),
        vec((any::<u16>(), any::<u8>(), 1..=3u8), 0..5).prop_map(Capability::AddPath),
        vec(
            (any::<u16>(), any::<u8>(), any::<bool>(), 0..1u32 << 24),
            0..5
        )
        .prop_map(Capability::LongLivedGracefulRestart),
        (name(), name()).prop_map(|(host, domain)| Capability::Fqdn { host, domain }),
        (100..=255u8, vec(any::<u8>(), 0..=255))
            .prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}

/// Decodes messages that stand one after the other, as a connection does.
fn decode_all(negotiated: &Negotiated, mut bytes: &[u8]) -> Vec<Update> {
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated.clone());
    let mut updates = Vec::new();
    while !bytes.is_empty() {
        let length = frame(bytes, decoder.max_message_size())
            .unwrap()
            .expect("whole messages");
        match decoder.decode(&bytes[..length]).unwrap() {
            Message::Update(update) => updates.push(update),
            other => panic!("not an UPDATE: {other:?}"),
        }
        bytes = &bytes[length..];
    }
    updates
}

/// Packs all prefixes into as many messages as it takes.
fn announce<P: WirePrefix>(
    negotiated: &Negotiated,
    attributes: &Attributes,
    mut nlri: &[Nlri<P>],
) -> Vec<u8> {
    let encoded = EncodedAttributes::new(attributes, negotiated, P::FAMILY);
    let mut out = Vec::new();
    while !nlri.is_empty() {
        let taken = encode_announce(&mut out, negotiated, &encoded, nlri).unwrap();
        nlri = &nlri[taken..];
    }
    out
}

fn check_announced(
    negotiated: &Negotiated,
    bytes: &[u8],
    attributes: &Attributes,
) -> Vec<NlriList> {
    decode_all(negotiated, bytes)
        .into_iter()
        .map(|update| {
            assert_eq!(update.faults, []);
            assert!(update.withdrawn.is_empty());
            let [announced] = update.announced.as_slice() else {
                panic!("one list is sent, {} came", update.announced.len());
            };
            assert_eq!(*announced.attributes, *attributes);
            announced.nlri.clone()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn announced_ipv4_prefixes_read_back(
        (negotiated, nlri) in negotiated()
            .prop_flat_map(|n| (Just(n.clone()), v4_list(n.add_path_send[0]))),
        (attributes, six) in any::<bool>().prop_flat_map(|six| {
            let family = if six { Family::Ipv6Unicast } else { Family::Ipv4Unicast };
            (attributes(family), Just(six))
        }),
    ) {
        let _ = six;
        let bytes = announce(&negotiated, &attributes, &nlri);
        let lists = check_announced(&negotiated, &bytes, &attributes);
        let got: Vec<_> = lists.into_iter().flat_map(|list| match list {
            NlriList::Ipv4(list) => list,
            NlriList::Ipv6(_) => panic!("the other family"),
        }).collect();
        prop_assert_eq!(got, nlri);
    }

    #[test]
    fn announced_ipv6_prefixes_read_back(
        (negotiated, nlri) in negotiated()
            .prop_flat_map(|n| (Just(n.clone()), v6_list(n.add_path_send[1]))),
        attributes in attributes(Family::Ipv6Unicast),
    ) {
        let bytes = announce(&negotiated, &attributes, &nlri);
        let lists = check_announced(&negotiated, &bytes, &attributes);
        let got: Vec<_> = lists.into_iter().flat_map(|list| match list {
            NlriList::Ipv6(list) => list,
            NlriList::Ipv4(_) => panic!("the other family"),
        }).collect();
        prop_assert_eq!(got, nlri);
    }

    #[test]
    fn messages_are_packed_full(nlri in v4_list(false)) {
        let attributes = Attributes::originated(NextHop::from(IpAddr::from([10, 0, 0, 1])));
        let bytes = announce(&internal(), &attributes, &nlri);
        let updates = decode_all(&internal(), &bytes).len();
        let all: usize = nlri.iter().map(|n| 1 + usize::from(n.prefix.prefix_len()).div_ceil(8)).sum();
        let room = 4096 - 23 - EncodedAttributes::new(&attributes, &internal(), Family::Ipv4Unicast)
            .as_bytes().len();
        // A message is left only when the next prefix, of at most five octets, does not fit.
        prop_assert!(updates <= all.div_ceil(room - 4));
    }

    #[test]
    fn withdrawn_prefixes_read_back(
        (negotiated, four, six) in negotiated().prop_flat_map(|n| {
            let add_path = n.add_path_send[0];
            (Just(n), v4_list(add_path), v6_list(add_path))
        }),
    ) {
        let mut out = Vec::new();
        let (mut rest4, mut rest6) = (&four[..], &six[..]);
        while !rest4.is_empty() {
            rest4 = &rest4[encode_withdraw(&mut out, &negotiated, rest4)..];
        }
        while !rest6.is_empty() {
            rest6 = &rest6[encode_withdraw(&mut out, &negotiated, rest6)..];
        }
        let (mut got4, mut got6) = (Vec::new(), Vec::new());
        for update in decode_all(&negotiated, &out) {
            prop_assert!(update.announced.is_empty() && update.faults.is_empty());
            for list in update.withdrawn {
                match list {
                    NlriList::Ipv4(list) => got4.extend(list),
                    NlriList::Ipv6(list) => got6.extend(list),
                }
            }
        }
        prop_assert_eq!(got4, four);
        prop_assert_eq!(got6, six);
    }

    #[test]
    fn opens_read_back(
        asn in asn(),
        hold_time in prop_oneof![Just(0u64), 3..=65_535u64],
        router_id in 1..=u32::MAX,
        mut capabilities in vec(capability(), 0..20),
    ) {
        capabilities.push(Capability::FourOctetAs(asn));
        // What is sure to fit into one OPEN.
        capabilities.retain({
            let mut total = 0;
            move |capability| {
                total += match capability {
                    Capability::Unknown { value, .. } => value.len(),
                    _ => 160,
                };
                total < 3500 || matches!(capability, Capability::FourOctetAs(_))
            }
        });
        let open = Open {
            asn,
            hold_time: Duration::from_secs(hold_time),
            router_id: Ipv4Addr::from(router_id),
            capabilities,
        };
        let mut bytes = Vec::new();
        encode_open(&mut bytes, &open);
        prop_assert_eq!(Decoder::new().decode(&bytes), Ok(Message::Open(Box::new(open))));
    }

    #[test]
    fn notifications_read_back(
        code: u8, subcode: u8, data in vec(any::<u8>(), 0..600),
    ) {
        let notification = Notification { code, subcode, data };
        let _ = notification.describe();
        let mut bytes = Vec::new();
        encode_notification(&mut bytes, &notification);
        prop_assert_eq!(
            Decoder::new().decode(&bytes),
            Ok(Message::Notification(notification))
        );
    }

    #[test]
    fn route_refreshes_read_back(afi: u16, safi: u8, subtype: u8) {
        let refresh = RouteRefresh { afi, safi, subtype };
        let mut bytes = Vec::new();
        encode_route_refresh(&mut bytes, &refresh);
        prop_assert_eq!(Decoder::new().decode(&bytes), Ok(Message::RouteRefresh(refresh)));
    }

    #[test]
    fn extended_communities_have_a_text(community: [u8; 8]) {
        prop_assert!(!format_extended_community(community).is_empty());
    }
}

#[test]
fn attributes_that_leave_no_room_are_refused() {
    let mut attributes = Attributes::originated(NextHop::from(IpAddr::from([10, 0, 0, 1])));
    attributes.communities = vec![1; 1100];
    let prefix = [Nlri::from("10.0.0.0/8".parse::<Ipv4Net>().unwrap())];
    for (size, count, fits) in [
        (MAX_MESSAGE, 1012, true),
        (MAX_MESSAGE, 1014, false),
        (MAX_MESSAGE, 1100, false),
        (MAX_EXTENDED_MESSAGE, 1100, true),
        (MAX_EXTENDED_MESSAGE, 16_374, false),
        (MAX_EXTENDED_MESSAGE, 20_000, false),
    ] {
        let negotiated = Negotiated {
            max_message_size: size,
            ..internal()
        };
        attributes.communities = vec![1; count];
        let encoded = EncodedAttributes::new(&attributes, &negotiated, Family::Ipv4Unicast);
        let mut out = vec![9];
        let result = encode_announce(&mut out, &negotiated, &encoded, &prefix);
        assert_eq!(result.is_ok(), fits, "{count} communities in {size}");
        // Nothing half-done is left.
        assert_eq!(out.len() > 1, fits);
    }
}

// RFC 4271 §4.3: a segment holds at most 255 numbers.
#[test]
fn long_segments_are_split() {
    let attributes = Attributes {
        as_path: AsPath(vec![Segment {
            kind: SegmentKind::Sequence,
            asns: (1..=600).map(Asn).collect(),
        }]),
        ..Attributes::originated(NextHop::from(IpAddr::from([10, 0, 0, 1])))
    };
    let prefix = [Nlri::from("10.0.0.0/8".parse::<Ipv4Net>().unwrap())];
    let bytes = announce(&internal(), &attributes, &prefix);
    let updates = decode_all(&internal(), &bytes);
    let path = &updates[0].announced[0].attributes.as_path;
    assert_eq!(path.0.len(), 3);
    assert!(path.asns().eq(attributes.as_path.asns()));
}
