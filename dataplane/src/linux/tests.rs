//! Parts of the driver without a kernel: bytes compared with those of `netlink-packet-route`, and what
//! comes from outside taken apart.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NetlinkBuffer, NetlinkMessage, Parseable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop,
        RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};
use proptest::prelude::*;

use super::{
    decode,
    encode::{Encoder, NLM_F_CREATE, NLM_F_REPLACE, attribute, kind},
    missing_capability,
    sysctl::{self, ByMessage},
};
use crate::kernel::{Address, Gateway, Neighbour, NextHop, NextHopKind, Route, Target};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn encoded(write: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut encoder = Encoder::default();
    write(&mut encoder);
    encoder.bytes().to_vec()
}

fn payload(bytes: &[u8]) -> &[u8] {
    NetlinkBuffer::new_checked(bytes).unwrap();
    &bytes[16..]
}

/// Attributes in any order.
fn check_route(route: &Route, header: RouteHeader, mut attributes: Vec<RouteAttribute>) {
    let bytes = encoded(|encoder| {
        encoder.route(kind::NEW_ROUTE, NLM_F_CREATE | NLM_F_REPLACE, 77, route);
    });
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    assert_eq!(message.header.sequence_number, 77);
    assert_eq!(usize::try_from(message.header.length).unwrap(), bytes.len());
    assert_eq!(
        message.header.flags,
        NLM_F_CREATE | NLM_F_REPLACE | super::encode::NLM_F_REQUEST
    );
    let mut ours = RouteMessage::parse_route(payload(&bytes));
    assert_eq!(ours.header, header);
    let key = |attribute: &RouteAttribute| format!("{attribute:?}");
    ours.attributes.sort_by_key(key);
    attributes.sort_by_key(key);
    assert_eq!(ours.attributes, attributes);
    let mut theirs = RouteMessage::default();
    theirs.header = header;
    theirs.attributes = attributes;
    assert_eq!(bytes.len(), 16 + theirs.buffer_len(), "no byte too many");
    assert_eq!(decode::route(payload(&bytes)).as_ref(), Some(route));
}

trait ParseRoute {
    fn parse_route(bytes: &[u8]) -> RouteMessage;
}

impl ParseRoute for RouteMessage {
    fn parse_route(bytes: &[u8]) -> RouteMessage {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&framed(kind::NEW_ROUTE, bytes))
            .unwrap()
            .payload
        {
            netlink_packet_core::NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(
                message,
            )) => message,
            other => panic!("{other:?}"),
        }
    }
}

fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
    encoded(|encoder| {
        encoder.begin(kind, 0, 1, payload);
        encoder.end();
    })
}

fn header(prefix: &IpNet, scope: RouteScope, kind: RouteType) -> RouteHeader {
    RouteHeader {
        address_family: match prefix {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: prefix.prefix_len(),
        table: 254,
        protocol: RouteProtocol::from(71),
        scope,
        kind,
        ..RouteHeader::default()
    }
}

fn destination(prefix: &IpNet) -> RouteAttribute {
    RouteAttribute::Destination(match prefix.network() {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    })
}

fn route(prefix: IpNet, metric: u32, target: Target) -> Route {
    Route {
        prefix,
        table: 254,
        metric,
        protocol: 71,
        target,
    }
}

fn via(text: &str, index: u32) -> Gateway {
    Gateway {
        address: Some(address(text)),
        index,
        onlink: false,
        weight: 1,
    }
}

#[test]
fn routes_are_encoded_as_netlink_packet_route_reads_them() {
    let prefix = net("10.1.2.0/24");
    check_route(
        &route(prefix, 5, Target::NextHop { id: 9 }),
        header(&prefix, RouteScope::Universe, RouteType::Unicast),
        vec![
            destination(&prefix),
            RouteAttribute::Priority(5),
            RouteAttribute::NhId(9),
        ],
    );
    let prefix = net("fd00:1::/122");
    check_route(
        &route(prefix, 1024, Target::Blackhole),
        header(&prefix, RouteScope::Universe, RouteType::BlackHole),
        vec![destination(&prefix), RouteAttribute::Priority(1024)],
    );
    let prefix = net("10.244.1.5/32");
    check_route(
        &route(prefix, 0, Target::Link { index: 7 }),
        header(&prefix, RouteScope::Link, RouteType::Unicast),
        vec![destination(&prefix), RouteAttribute::Oif(7)],
    );
    let prefix = net("0.0.0.0/0");
    let mut onlink = header(&prefix, RouteScope::Universe, RouteType::Unicast);
    onlink.flags = RouteFlags::from_bits_retain(4);
    let gateway = Gateway {
        onlink: true,
        ..via("169.254.1.1", 2)
    };
    check_route(
        &route(prefix, 0, Target::Gateways(vec![gateway])),
        onlink,
        vec![
            RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(169, 254, 1, 1))),
            RouteAttribute::Oif(2),
        ],
    );
    let through: Ipv6Addr = "fe80::1".parse().unwrap();
    check_route(
        &route(prefix, 0, Target::Gateways(vec![via("fe80::1", 2)])),
        header(&prefix, RouteScope::Universe, RouteType::Unicast),
        vec![
            RouteAttribute::Via(RouteVia::Inet6(through)),
            RouteAttribute::Oif(2),
        ],
    );
    let hop = |last: u8, weight: u8, index| {
        let mut hop = RouteNextHop::default();
        hop.hops = weight - 1;
        hop.interface_index = index;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(
            10, 0, 0, last,
        )))];
        hop
    };
    let prefix = net("10.9.0.0/16");
    let gateways = vec![
        via("10.0.0.1", 3),
        Gateway {
            weight: 4,
            ..via("10.0.0.2", 4)
        },
    ];
    check_route(
        &route(prefix, 0, Target::Gateways(gateways)),
        header(&prefix, RouteScope::Universe, RouteType::Unicast),
        vec![
            destination(&prefix),
            RouteAttribute::MultiPath(vec![hop(1, 1, 3), hop(2, 4, 4)]),
        ],
    );
}

#[test]
fn a_delete_names_the_key_and_the_protocol_only() {
    let bytes = encoded(|encoder| {
        encoder.route(
            kind::DELETE_ROUTE,
            0,
            1,
            &route(net("fd00::/64"), 0, Target::NextHop { id: 9 }),
        );
    });
    let message = RouteMessage::parse_route(payload(&bytes));
    assert_eq!(message.header.scope, RouteScope::NoWhere);
    assert_eq!(message.header.kind, RouteType::Unspec);
    assert_eq!(message.header.protocol, RouteProtocol::from(71));
    assert_eq!(
        message.attributes,
        [
            destination(&net("fd00::/64")),
            // 0 would mean: of any metric.
            RouteAttribute::Priority(1024)
        ]
    );
}

#[test]
fn a_table_beyond_one_byte_goes_into_an_attribute() {
    let mut wanted = route(net("10.0.0.0/8"), 0, Target::Link { index: 3 });
    wanted.table = 7_000;
    let bytes = encoded(|encoder| encoder.route(kind::NEW_ROUTE, 0, 1, &wanted));
    assert_eq!(decode::route(payload(&bytes)), Some(wanted));
}

#[test]
fn addresses_and_neighbours_are_encoded_as_netlink_packet_route_reads_them() {
    let wanted = Address {
        index: 5,
        net: net("fe80::1/64"),
        nodad: true,
    };
    let bytes = encoded(|encoder| {
        encoder.interface_address(kind::NEW_ADDRESS, 0, 1, &wanted);
    });
    let message = AddressMessage::parse(payload(&bytes)).unwrap();
    assert_eq!(message.header.index, 5);
    assert_eq!(message.header.prefix_len, 64);
    let local: IpAddr = address("fe80::1");
    assert_eq!(
        message.attributes,
        [
            AddressAttribute::Local(local),
            AddressAttribute::Address(local)
        ]
    );
    assert_eq!(decode::interface_address(payload(&bytes)), Some(wanted));

    let single = Address {
        net: net("fd00::5/128"),
        ..wanted
    };
    let bytes = encoded(|encoder| encoder.interface_address(kind::NEW_ADDRESS, 0, 1, &single));
    let message = AddressMessage::parse(payload(&bytes)).unwrap();
    // IFA_F_NODAD and IFA_F_NOPREFIXROUTE.
    let flags = AddressFlags::from_bits_retain(0x202);
    assert_eq!(
        message.attributes.last(),
        Some(&AddressAttribute::Flags(flags))
    );

    let wanted = Neighbour {
        index: 5,
        address: address("10.0.0.1"),
        mac: [1, 2, 3, 4, 5, 6],
        permanent: true,
    };
    let bytes = encoded(|encoder| encoder.neighbour(kind::NEW_NEIGHBOUR, 0, 1, &wanted));
    let message = NeighbourMessage::parse(payload(&bytes)).unwrap();
    assert_eq!(message.header.ifindex, 5);
    assert_eq!(message.header.state, NeighbourState::Permanent);
    assert_eq!(
        message.attributes,
        [
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 1))),
            NeighbourAttribute::LinkLayerAddress(vec![1, 2, 3, 4, 5, 6])
        ]
    );
    assert_eq!(decode::neighbour(payload(&bytes)), Some(wanted));
}

fn gateway_strategy(v6: bool) -> impl Strategy<Value = Gateway> {
    (any::<u128>(), 1..u32::MAX, any::<bool>(), 1_u16..=256).prop_map(
        move |(bits, index, onlink, weight)| Gateway {
            address: Some(if v6 {
                Ipv6Addr::from_bits(bits).into()
            } else {
                Ipv4Addr::from_bits(bits as u32).into()
            }),
            index,
            onlink,
            weight,
        },
    )
}

fn target_strategy() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Blackhole),
        (1..u32::MAX).prop_map(|index| Target::Link { index }),
        (1..u32::MAX).prop_map(|id| Target::NextHop { id }),
        prop::collection::vec(gateway_strategy(false), 2..5).prop_map(Target::Gateways),
        prop::collection::vec(gateway_strategy(true), 2..5).prop_map(Target::Gateways),
        gateway_strategy(false).prop_map(|gateway| {
            Target::Gateways(vec![Gateway {
                weight: 1,
                ..gateway
            }])
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn routes_are_decoded_as_they_were_encoded(
        bits: u128, v6: bool, length in 0_u8..=128, table in 1..u32::MAX, metric: u32,
        protocol: u8, target in target_strategy(),
    ) {
        let prefix = if v6 {
            IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap()
        } else {
            IpNet::new(Ipv4Addr::from_bits(bits as u32).into(), length / 4).unwrap()
        }
        .trunc();
        let wanted = Route { prefix, table, metric, protocol, target };
        let bytes = encoded(|encoder| encoder.route(kind::NEW_ROUTE, 0, 1, &wanted));
        prop_assert_eq!(decode::route(payload(&bytes)), Some(wanted));
    }

    #[test]
    fn nothing_the_kernel_could_send_makes_decoding_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        for message in decode::messages(&bytes) {
            let _ = decode::error(&message);
        }
        let _ = decode::route(&bytes);
        let _ = decode::link(&bytes);
        let _ = decode::next_hop(&bytes);
        let _ = decode::next_hop_id(&bytes);
        let _ = decode::neighbour(&bytes);
        let _ = decode::interface_address(&bytes);
        let _ = decode::netconf_index(&bytes);
        let _ = decode::nsid(&bytes);
    }

    #[test]
    fn nexthop_objects_are_decoded_as_they_were_encoded(
        id in 1..u32::MAX, protocol: u8, gateway in gateway_strategy(true),
        members in prop::collection::btree_map(1..u32::MAX, 1_u16..=256, 1..6),
        shape in 0..3,
    ) {
        let kind = match shape {
            0 => NextHopKind::Gateway(Gateway { weight: 1, ..gateway }),
            1 => NextHopKind::Group(members.into_iter().collect()),
            _ => NextHopKind::Blackhole,
        };
        let wanted = NextHop {
            id,
            protocol,
            kind,
            resilient: None,
        };
        let bytes = encoded(|encoder| encoder.next_hop(0, 1, &wanted));
        prop_assert_eq!(decode::next_hop(payload(&bytes)), Some(wanted));
    }
}

#[test]
fn the_last_of_many_messages_asks_for_the_acknowledgement() {
    let mut encoder = Encoder::default();
    for sequence in 1..=3 {
        encoder.delete_next_hop(sequence, 5);
    }
    encoder.acknowledge_last();
    let flags: Vec<(u32, u16)> = decode::messages(encoder.bytes())
        .map(|message| (message.sequence, message.flags))
        .collect();
    assert_eq!(flags, [(1, 1), (2, 1), (3, 5)]);
    assert_eq!(encoder.count(), 3);
}

#[test]
fn the_kernels_words_are_found_behind_a_refusal() {
    let text = b"Nexthop id does not exist\0";
    let mut body = (-22_i32).to_ne_bytes().to_vec();
    body.extend([0; 16]);
    body.extend(u16::try_from(4 + text.len()).unwrap().to_ne_bytes());
    body.extend(1_u16.to_ne_bytes());
    body.extend(text);
    let capped_with_text = 0x300;
    let message = |flags| decode::Message {
        kind: kind::ERROR,
        flags,
        sequence: 1,
        payload: &body,
    };
    assert_eq!(
        decode::error(&message(capped_with_text)),
        (22, Some("Nexthop id does not exist"))
    );
    assert_eq!(decode::error(&message(0)), (22, None));
}

#[test]
fn parameters_that_a_message_can_set_are_recognised() {
    let conf = |interface, number| Some(ByMessage::Conf { interface, number });
    for (path, expected) in [
        ("net/ipv4/conf/agt0/rp_filter", conf("agt0", 8)),
        ("net/ipv4/conf/eth0.100/proxy_arp", conf("eth0.100", 3)),
        (
            "net/ipv4/neigh/agt0/proxy_delay",
            Some(ByMessage::ProxyDelay { interface: "agt0" }),
        ),
        ("net/ipv4/conf/all/rp_filter", None),
        ("net/ipv4/conf/default/rp_filter", None),
        ("net/ipv4/conf/agt0/unknown", None),
        ("net/ipv6/conf/agt0/forwarding", None),
        ("net/ipv4/ip_forward", None),
    ] {
        assert_eq!(sysctl::by_message(path), expected, "{path}");
    }
}

#[test]
fn a_parameter_outside_of_proc_sys_is_refused() {
    for path in ["../../etc/passwd", "/etc/passwd", "net/../../x"] {
        let refused = sysctl::read(path).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{path}");
    }
}

#[test]
fn a_missing_capability_is_named() {
    let status = |effective: u64| format!("Name:\tx\nCapEff:\t{effective:016x}\n");
    let all = u64::MAX >> 23;
    assert_eq!(missing_capability(&status(all)), None);
    assert_eq!(
        missing_capability(&status(all & !(1 << 12))),
        Some("CAP_NET_ADMIN")
    );
    assert_eq!(
        missing_capability(&status(all & !(1 << 21))),
        Some("CAP_SYS_ADMIN")
    );
    assert_eq!(
        missing_capability(&status(all & !(1 << 11))),
        Some("CAP_NET_BROADCAST")
    );
    assert_eq!(missing_capability("nonsense"), Some("CAP_NET_ADMIN"));
}

#[test]
fn attribute_numbers_are_those_of_the_kernels_headers() {
    // Where libc knows them.
    assert_eq!(attribute::RTA_GATEWAY, libc::RTA_GATEWAY);
    assert_eq!(attribute::RTA_TABLE, libc::RTA_TABLE);
    assert_eq!(attribute::RTA_MULTIPATH, libc::RTA_MULTIPATH);
    assert_eq!(attribute::NDA_LLADDR, libc::NDA_LLADDR);
    assert_eq!(attribute::NUD_PERMANENT, libc::NUD_PERMANENT);
    assert_eq!(attribute::IFA_F_NODAD, libc::IFA_F_NODAD);
    assert_eq!(attribute::IFLA_AF_SPEC, libc::IFLA_AF_SPEC);
    assert_eq!(attribute::IFLA_GROUP, libc::IFLA_GROUP);
}
