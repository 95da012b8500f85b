//! Path attributes as the RIB holds them: decoded, validated, comparable and shareable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::Asn;

/// The attributes of a path, next hop included. One value is shared (`Arc`) by all prefixes that
/// carry it. MP_REACH_NLRI and MP_UNREACH_NLRI are not attributes in this sense.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    pub origin: Origin,
    /// Already merged with AS4_PATH (RFC 6793 §4.2.3).
    pub as_path: AsPath,
    pub next_hop: NextHop,
    pub med: Option<u32>,
    /// Present on paths from internal peers; the default is applied by the RIB, not here.
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<Aggregator>,
    /// RFC 1997, in the order received.
    pub communities: Vec<u32>,
    /// RFC 4360, raw.
    pub extended_communities: Vec<[u8; 8]>,
    /// RFC 8092: global administrator and two local parts.
    pub large_communities: Vec<[u32; 3]>,
    /// RFC 4456.
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: Vec<Ipv4Addr>,
    /// RFC 9234.
    pub only_to_customer: Option<Asn>,
    /// Optional transitive attributes we do not know, kept byte for byte, in ascending code order.
    pub unknown: Vec<UnknownAttribute>,
}

impl Attributes {
    /// What a route of our own starts from: IGP, empty path, nothing else.
    pub fn originated(next_hop: NextHop) -> Self {
        Self {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            only_to_customer: None,
            unknown: Vec::new(),
        }
    }
}

/// RFC 4271 §5.1.1; the order is the one of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Igp = 0,
    Egp = 1,
    Incomplete = 2,
}

/// Where to send packets for the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The address of NEXT_HOP, or the global address of MP_REACH_NLRI. It is a link-local one only
    /// when nothing else was sent.
    pub address: IpAddr,
    /// The second address of a 32-octet IPv6 next hop (RFC 2545 §3).
    pub link_local: Option<Ipv6Addr>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            link_local: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    pub asn: Asn,
    pub address: Ipv4Addr,
}

/// An AS path: segments in order, leftmost (nearest) first. Empty for routes of our own AS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath(pub Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub kind: SegmentKind,
    /// 1 to 255 numbers.
    pub asns: Vec<Asn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentKind {
    Set = 1,
    Sequence = 2,
    /// RFC 5065.
    ConfedSequence = 3,
    ConfedSet = 4,
}

/// An optional transitive attribute that is not interpreted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnknownAttribute {
    /// As received. Partial is set when it is sent on (RFC 4271 §9).
    pub flags: u8,
    pub code: u8,
    pub value: Box<[u8]>,
}
