//! The bridge to `zettabgp`, and the only module that names it.
//!
//! Only single attribute values come here, and only after `validate` checked flags, length and
//! shape: given less, this release of `zettabgp` panics, loops or allocates without end. Of what it
//! offers we take what it does right: typed decoding and encoding of ORIGIN, NEXT_HOP,
//! MULTI_EXIT_DISC, LOCAL_PREF, ORIGINATOR_ID, CLUSTER_LIST, communities of all three kinds,
//! ROUTE-REFRESH, and the text of extended communities. Its AS_PATH, AGGREGATOR, ATOMIC_AGGREGATE,
//! whole-message and capability code is not used. Lists go through it item by item, because its
//! list types are sorted sets and would lose the order received.
//!
//! A value that it refuses all the same yields `None`, which the caller treats as malformed.

use std::net::{IpAddr, Ipv4Addr};

use zettabgp::{
    BgpMessage, BgpSessionParams, BgpTransportMode,
    message::{
        attributes::{
            BgpAttr,
            clusterlist::BgpClusterList,
            community::{BgpCommunity, BgpLargeCommunity},
            extcommunity::BgpExtCommunity,
            localpref::BgpLocalpref,
            med::BgpMED,
            nexthop::BgpNextHop,
            origin::{BgpAttrOrigin, BgpOrigin},
            originatorid::BgpOriginatorID,
        },
        routerefresh::BgpRouterefreshMessage,
    },
};

use crate::{attributes::Origin, message::RouteRefresh};

/// Router identifiers and cluster identifiers are four octets whatever carries the session, which
/// in `zettabgp` is the IPv4 mode. Guessing of path identifiers is off.
static PARAMETERS: BgpSessionParams = BgpSessionParams {
    as_num: 0,
    hold_time: 0,
    peer_mode: BgpTransportMode::IPv4,
    has_as32bit: true,
    router_id: Ipv4Addr::UNSPECIFIED,
    caps: Vec::new(),
    fuzzy_pathid: false,
};

pub(super) fn origin(value: &[u8]) -> Option<Origin> {
    Some(match BgpOrigin::decode_from(value).ok()?.value {
        BgpAttrOrigin::Igp => Origin::Igp,
        BgpAttrOrigin::Egp => Origin::Egp,
        BgpAttrOrigin::Incomplete => Origin::Incomplete,
    })
}

pub(super) fn next_hop(value: &[u8]) -> Option<Ipv4Addr> {
    v4(BgpNextHop::decode_from(&PARAMETERS, value).ok()?.value)
}

pub(super) fn med(value: &[u8]) -> Option<u32> {
    Some(BgpMED::decode_from(value).ok()?.value)
}

pub(super) fn local_pref(value: &[u8]) -> Option<u32> {
    Some(BgpLocalpref::decode_from(value).ok()?.value)
}

/// `value` is exactly four octets.
pub(super) fn originator_id(value: &[u8]) -> Option<Ipv4Addr> {
    v4(BgpOriginatorID::decode_from(&PARAMETERS, value).ok()?.value)
}

/// `value` is a multiple of four octets.
pub(super) fn cluster_list(value: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let list = BgpClusterList::decode_from(&PARAMETERS, value).ok()?;
    list.value.into_iter().map(v4).collect()
}

pub(super) fn communities(value: &[u8]) -> Option<Vec<u32>> {
    value
        .chunks_exact(4)
        .map(|item| Some(BgpCommunity::decode_from(item).ok()?.value))
        .collect()
}

pub(super) fn extended_communities(value: &[u8]) -> Option<Vec<[u8; 8]>> {
    value
        .chunks_exact(8)
        .map(|item| {
            let mut raw = [0; 8];
            let community = BgpExtCommunity::decode_from(item).ok()?;
            community.encode_to(&mut raw).ok()?;
            Some(raw)
        })
        .collect()
}

pub(super) fn large_communities(value: &[u8]) -> Option<Vec<[u32; 3]>> {
    value
        .chunks_exact(12)
        .map(|item| {
            let community = BgpLargeCommunity::decode_from(item).ok()?;
            Some([community.ga, community.ldp1, community.ldp2])
        })
        .collect()
}

pub(super) fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    let value = match origin {
        Origin::Igp => BgpAttrOrigin::Igp,
        Origin::Egp => BgpAttrOrigin::Egp,
        Origin::Incomplete => BgpAttrOrigin::Incomplete,
    };
    put(out, &BgpOrigin::new(value), 1);
}

pub(super) fn put_next_hop(out: &mut Vec<u8>, address: Ipv4Addr) {
    put(out, &BgpNextHop::new(IpAddr::V4(address)), 4);
}

pub(super) fn put_med(out: &mut Vec<u8>, med: u32) {
    put(out, &BgpMED::new(med), 4);
}

pub(super) fn put_local_pref(out: &mut Vec<u8>, local_pref: u32) {
    put(out, &BgpLocalpref::new(local_pref), 4);
}

pub(super) fn put_originator_id(out: &mut Vec<u8>, id: Ipv4Addr) {
    put(out, &BgpOriginatorID::new(IpAddr::V4(id)), 4);
}

/// The value of EXTENDED_COMMUNITIES.
pub(super) fn put_extended_communities(out: &mut Vec<u8>, communities: &[[u8; 8]]) {
    for community in communities {
        let mut slot = [0; 8];
        BgpExtCommunity::from(u64::from_be_bytes(*community))
            .encode_to(&mut slot)
            .expect("eight octets are what one takes");
        out.extend_from_slice(&slot);
    }
}

/// The value of LARGE_COMMUNITIES.
pub(super) fn put_large_communities(out: &mut Vec<u8>, communities: &[[u32; 3]]) {
    for &[ga, ldp1, ldp2] in communities {
        let mut slot = [0; 12];
        BgpLargeCommunity { ga, ldp1, ldp2 }
            .encode_to(&mut slot)
            .expect("twelve octets are what one takes");
        out.extend_from_slice(&slot);
    }
}

/// Appends a short attribute: flags and code as `zettabgp` knows them, a one-octet length, a value.
fn put(out: &mut Vec<u8>, attribute: &impl BgpAttr, length: u8) {
    let head = attribute.attr();
    out.extend_from_slice(&[head.flags, head.typecode, length]);
    let start = out.len();
    out.resize(start + usize::from(length), 0);
    attribute
        .encode_to(&PARAMETERS, &mut out[start..])
        .expect("the buffer is as long as the value");
}

/// `body` is exactly four octets.
pub(super) fn route_refresh(body: &[u8]) -> Option<RouteRefresh> {
    let mut message = BgpRouterefreshMessage::new();
    message.decode_from(&PARAMETERS, body).ok()?;
    Some(RouteRefresh {
        afi: message.afi,
        safi: message.safi,
        subtype: message.subtype,
    })
}

pub(super) fn put_route_refresh(out: &mut Vec<u8>, refresh: &RouteRefresh) {
    let message = BgpRouterefreshMessage {
        afi: refresh.afi,
        safi: refresh.safi,
        subtype: refresh.subtype,
    };
    let mut body = [0; 4];
    message
        .encode_to(&PARAMETERS, &mut body)
        .expect("four octets are what it takes");
    out.extend_from_slice(&body);
}

/// An extended community as text: `ext-target:64512:100`, `ext-opaque:0x03:0x0c:0x0:0x8`, ….
pub fn format_extended_community(community: [u8; 8]) -> String {
    BgpExtCommunity::from(u64::from_be_bytes(community)).to_string()
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
