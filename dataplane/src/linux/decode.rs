//! Decodes what the kernel sends.
//!
//! Links are decoded by `netlink-packet-route`. Routes come by the hundred thousand, nexthop objects
//! and RTM_NEWNETCONF are unknown to that crate, and addresses and neighbours need only a few fields:
//! these are read in place. Bytes come from the kernel, yet nothing here trusts lengths.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::encode::{AF_BRIDGE, AF_INET, AF_INET6, SCOPE_LINK, attribute, route_type};
use crate::kernel::{
    Address, FdbEntry, Gateway, Link, LinkKind, Neighbour, NextHop, NextHopKind, PROTOCOL_AGENTD,
    Resilient, Route, Target, Tunnel,
};

/// One netlink message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// The messages of one datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let payload = bytes.get(16..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Attributes: type without flags, and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// What NLMSG_ERROR says: errno (0 for an acknowledgement) and the kernel's text, if it gave one.
pub(super) fn error<'a>(message: &Message<'a>) -> (i32, Option<&'a str>) {
    let errno = i32_at(message.payload, 0).map_or(libc::EPROTO, i32::saturating_neg);
    if errno == 0 || message.flags & NLM_F_ACK_TLVS == 0 {
        return (errno, None);
    }
    // The offending request follows: its header alone, or all of it.
    let skip = if message.flags & NLM_F_CAPPED != 0 {
        Some(20)
    } else {
        u32_at(message.payload, 4)
            .and_then(|length| usize::try_from(length).ok())
            .map(|length| 4 + length.next_multiple_of(4))
    };
    let text = skip
        .and_then(|skip| message.payload.get(skip..))
        .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == 1))
        .and_then(|(_, text)| std::str::from_utf8(text).ok())
        .map(|text| text.trim_end_matches('\0'));
    (errno, text)
}

/// RTM_NEWLINK or RTM_DELLINK.
pub(super) fn link(payload: &[u8]) -> Option<Link> {
    let message = LinkMessage::parse(payload).ok()?;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        alias: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::LowerUp),
        peer_index: None,
        master: None,
        tunnel: tunnel(payload),
    };
    if message.header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(index) => link.peer_index = Some(index),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::OperState(State::Up) => link.running = true,
            LinkAttribute::LinkInfo(information) => {
                for item in information {
                    if let LinkInfo::Kind(kind) = item {
                        link.kind = match kind {
                            InfoKind::Veth => LinkKind::Veth,
                            InfoKind::Tun => LinkKind::Tap,
                            InfoKind::Bridge => LinkKind::Bridge,
                            other => LinkKind::Other(other.to_string()),
                        };
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// One of the numbers of an interface's configuration in RTM_NEWLINK (IFLA_AF_SPEC).
pub(super) fn configuration(payload: &[u8], family: u8, position: usize) -> Option<i32> {
    let find = |bytes, wanted| {
        attributes(bytes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let specification = find(payload.get(16..)?, attribute::IFLA_AF_SPEC)?;
    let of_family = find(specification, u16::from(family))?;
    let numbers = match family {
        AF_INET => attribute::IFLA_INET_CONF,
        _ => attribute::IFLA_INET6_CONF,
    };
    i32_at(find(of_family, numbers)?, position * 4)
}

/// Parameters of a tunnel device whose remote ends are not its own but those of routes and entries.
fn tunnel(payload: &[u8]) -> Option<Tunnel> {
    let (_, information) =
        attributes(payload.get(16..)?).find(|(kind, _)| *kind == attribute::IFLA_LINKINFO)?;
    let part = |wanted| attributes(information).find(|(kind, _)| *kind == wanted);
    let (_, name) = part(attribute::IFLA_INFO_KIND)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    if !matches!(name, b"ipip" | b"vxlan") {
        return None;
    }
    let (_, data) = part(attribute::IFLA_INFO_DATA)?;
    if name == b"ipip" {
        let mut local = Ipv4Addr::UNSPECIFIED;
        for (kind, value) in attributes(data) {
            match (kind, address(value)) {
                (attribute::IFLA_IPTUN_LOCAL, Some(IpAddr::V4(of))) => local = of,
                (attribute::IFLA_IPTUN_REMOTE, Some(of)) if !of.is_unspecified() => return None,
                _ => {}
            }
        }
        return Some(Tunnel::Ipip { local });
    }
    let (mut vni, mut port, mut learning) = (0, 0, false);
    let mut local = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    for (kind, value) in attributes(data) {
        match kind {
            attribute::IFLA_VXLAN_ID => vni = u32_at(value, 0)?,
            attribute::IFLA_VXLAN_PORT => port = u16_at(value, 0)?.to_be(),
            attribute::IFLA_VXLAN_LEARNING => learning = *value.first()? != 0,
            attribute::IFLA_VXLAN_LOCAL | attribute::IFLA_VXLAN_LOCAL6 => local = address(value)?,
            attribute::IFLA_VXLAN_GROUP | attribute::IFLA_VXLAN_GROUP6
                if address(value).is_some_and(|of| !of.is_unspecified()) =>
            {
                return None;
            }
            _ => {}
        }
    }
    Some(Tunnel::Vxlan {
        vni,
        port,
        local,
        learning,
    })
}

/// Whether RTM_NEWNEIGH or RTM_DELNEIGH is about a permanent entry.
pub(super) fn is_permanent(payload: &[u8]) -> bool {
    u16_at(payload, 8).is_some_and(|state| state & attribute::NUD_PERMANENT != 0)
}

/// RTM_NEWNEIGH or RTM_DELNEIGH about an entry of a forwarding database, by which a tunnel
/// device finds the other end.
pub(super) fn fdb(payload: &[u8]) -> Option<FdbEntry> {
    if *payload.first()? != AF_BRIDGE {
        return None;
    }
    let index = u32_at(payload, 4)?;
    let (mut remote, mut mac) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            attribute::NDA_DST => remote = address(value),
            attribute::NDA_LLADDR => mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
    }
    Some(FdbEntry {
        index,
        mac: mac?,
        remote: remote?,
    })
}

/// RTM_NEWADDR or RTM_DELADDR.
pub(super) fn interface_address(payload: &[u8]) -> Option<Address> {
    let length = *payload.get(1)?;
    let mut flags = u32::from(*payload.get(2)?);
    let index = u32_at(payload, 4)?;
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            attribute::IFA_LOCAL => local = address(value),
            attribute::IFA_ADDRESS => peer = address(value),
            attribute::IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(Address {
        index,
        // On a point-to-point link IFA_ADDRESS is the other end.
        net: IpNet::new(local.or(peer)?, length).ok()?,
        nodad: flags & attribute::IFA_F_NODAD != 0,
    })
}

/// Whether an RTM_NEWADDR shows our mark.
pub(super) fn is_marked_address(payload: &[u8]) -> bool {
    let attributes = payload.get(8..).into_iter().flat_map(attributes);
    let mut protocols = attributes.filter(|(kind, _)| *kind == attribute::IFA_PROTO);
    protocols.any(|(_, value)| value == [PROTOCOL_AGENTD])
}

/// RTM_NEWNEIGH or RTM_DELNEIGH; entries without a MAC address are left out.
pub(super) fn neighbour(payload: &[u8]) -> Option<Neighbour> {
    if !matches!(*payload.first()?, AF_INET | AF_INET6) {
        return None;
    }
    let index = u32_at(payload, 4)?;
    let state = u16_at(payload, 8)?;
    let (mut destination, mut mac) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            attribute::NDA_DST => destination = address(value),
            attribute::NDA_LLADDR => mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        index,
        address: destination?,
        // A deleted entry may come without: its key alone matters then.
        mac: mac.unwrap_or_default(),
        permanent: state & attribute::NUD_PERMANENT != 0,
    })
}

/// RTM_NEWROUTE or RTM_DELROUTE of a kind that forwards or rejects (not local, broadcast or
/// multicast ones).
pub(super) fn route(payload: &[u8]) -> Option<Route> {
    let family = *payload.first()?;
    let length = *payload.get(1)?;
    let mut table = u32::from(*payload.get(4)?);
    let protocol = *payload.get(5)?;
    let scope = *payload.get(6)?;
    let route_type = *payload.get(7)?;
    let flags = u32_at(payload, 8)?;
    let any: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut destination = any;
    let mut metric = 0;
    let (mut index, mut gateway, mut next_hop, mut multipath) = (None, None, None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            attribute::RTA_DST => destination = address(value)?,
            attribute::RTA_TABLE => table = u32_at(value, 0)?,
            attribute::RTA_PRIORITY => metric = u32_at(value, 0)?,
            attribute::RTA_OIF => index = Some(u32_at(value, 0)?),
            attribute::RTA_GATEWAY => gateway = address(value),
            attribute::RTA_VIA => gateway = value.get(2..).and_then(address),
            attribute::RTA_NH_ID => next_hop = Some(u32_at(value, 0)?),
            attribute::RTA_MULTIPATH => multipath = Some(value),
            _ => {}
        }
    }
    let target = match route_type {
        route_type::BLACKHOLE => Target::Blackhole,
        route_type::UNREACHABLE | route_type::PROHIBIT | route_type::THROW => Target::Reject,
        route_type::UNICAST => match (next_hop, multipath, gateway, index) {
            // With `nexthop_compat_mode` the kernel adds what the object means.
            (Some(id), ..) => Target::NextHop { id },
            (None, Some(hops), ..) => Target::Gateways(gateways(hops)),
            (None, None, Some(gateway), index) => Target::Gateways(vec![Gateway {
                address: Some(gateway),
                index: index.unwrap_or_default(),
                onlink: flags & u32::from(attribute::RTNH_F_ONLINK) != 0,
                weight: 1,
            }]),
            (None, None, None, Some(index)) if family == AF_INET6 || scope == SCOPE_LINK => {
                Target::Link { index }
            }
            (None, None, None, index) => Target::Gateways(vec![Gateway {
                address: None,
                index: index.unwrap_or_default(),
                onlink: false,
                weight: 1,
            }]),
        },
        _ => return None,
    };
    Some(Route {
        prefix: IpNet::new(destination, length).ok()?,
        table,
        metric,
        protocol,
        target,
    })
}

/// A list of `struct rtnexthop`.
fn gateways(mut bytes: &[u8]) -> Vec<Gateway> {
    let mut list = Vec::new();
    while let (Some(length), Some(&[flags, hops])) = (
        u16_at(bytes, 0).map(usize::from),
        bytes.get(2..4).and_then(|two| two.first_chunk::<2>()),
    ) {
        let (Some(index), Some(nested)) = (u32_at(bytes, 4), bytes.get(8..length)) else {
            break;
        };
        let address = attributes(nested).find_map(|(kind, value)| match kind {
            attribute::RTA_GATEWAY => address(value),
            attribute::RTA_VIA => value.get(2..).and_then(address),
            _ => None,
        });
        list.push(Gateway {
            address,
            index,
            onlink: flags & attribute::RTNH_F_ONLINK != 0,
            weight: u16::from(hops) + 1,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    list
}

/// RTM_NEWNEXTHOP. Objects of kinds that are not known here (such as those of the FDB) are left out.
pub(super) fn next_hop(payload: &[u8]) -> Option<NextHop> {
    let protocol = *payload.get(2)?;
    let flags = u32_at(payload, 4)?;
    let (mut id, mut index, mut gateway, mut group) = (0, 0, None, None);
    let mut blackhole = false;
    let (mut resilient_type, mut parameters) = (false, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            attribute::NHA_ID => id = u32_at(value, 0)?,
            attribute::NHA_OIF => index = u32_at(value, 0)?,
            attribute::NHA_GATEWAY => gateway = address(value),
            attribute::NHA_BLACKHOLE => blackhole = true,
            attribute::NHA_GROUP => group = Some(value),
            attribute::NHA_GROUP_TYPE => {
                resilient_type = u16_at(value, 0)? == attribute::NEXTHOP_GRP_TYPE_RES;
            }
            attribute::NHA_RES_GROUP => parameters = Some(value),
            _ => {}
        }
    }
    let kind = if let Some(members) = group {
        // struct nexthop_grp: id, weight - 1, high byte of the weight, reserved.
        let mut list: Vec<(u32, u16)> = members
            .chunks_exact(8)
            .filter_map(|member| Some((u32_at(member, 0)?, u16::from(*member.get(4)?) + 1)))
            .collect();
        list.sort_unstable();
        NextHopKind::Group(list)
    } else if blackhole {
        NextHopKind::Blackhole
    } else {
        NextHopKind::Gateway(Gateway {
            address: gateway,
            index,
            onlink: flags & u32::from(attribute::RTNH_F_ONLINK) != 0,
            weight: 1,
        })
    };
    Some(NextHop {
        id,
        protocol,
        kind,
        resilient: parameters.filter(|_| resilient_type).and_then(resilient),
    })
}

/// NHA_RES_GROUP.
fn resilient(bytes: &[u8]) -> Option<Resilient> {
    let ticks = |value: &[u8]| Some(Duration::from_millis(u64::from(u32_at(value, 0)?) * 10));
    let (mut buckets, mut idle_timer, mut unbalanced_timer) = (0, None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            attribute::NHA_RES_GROUP_BUCKETS => buckets = u16_at(value, 0)?,
            attribute::NHA_RES_GROUP_IDLE_TIMER => idle_timer = ticks(value),
            attribute::NHA_RES_GROUP_UNBALANCED_TIMER => unbalanced_timer = ticks(value),
            _ => {}
        }
    }
    Some(Resilient {
        buckets,
        idle_timer: idle_timer?,
        unbalanced_timer: unbalanced_timer?,
    })
}

/// NHA_ID of RTM_DELNEXTHOP.
pub(super) fn next_hop_id(payload: &[u8]) -> Option<u32> {
    attributes(payload.get(8..)?)
        .find(|(kind, _)| *kind == attribute::NHA_ID)
        .and_then(|(_, value)| u32_at(value, 0))
}

/// Interface index of RTM_NEWNETCONF; negative for "all" and "default".
pub(super) fn netconf_index(payload: &[u8]) -> Option<i32> {
    // struct netconfmsg is one byte, padded; NETCONFA_IFINDEX is 1.
    attributes(payload.get(4..)?)
        .find(|(kind, _)| *kind == 1)
        .and_then(|(_, value)| i32_at(value, 0))
}

/// Id of a namespace in RTM_NEWNSID and RTM_DELNSID; `None` when it has none.
pub(super) fn nsid(payload: &[u8]) -> Option<i32> {
    attributes(payload.get(4..)?)
        .find(|(kind, _)| *kind == attribute::NETNSA_NSID)
        .and_then(|(_, value)| i32_at(value, 0))
        .filter(|id| *id >= 0)
}
