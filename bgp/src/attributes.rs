//! Path attributes as the RIB holds them: decoded, validated, comparable and shareable.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

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
    /// Which of the optional transitive attributes above came with the Partial bit.
    pub partial: Partial,
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
            partial: Partial::default(),
            unknown: Vec::new(),
        }
    }

    /// Whether a community is among them.
    pub fn has_community(&self, community: u32) -> bool {
        self.communities.contains(&community)
    }

    /// Adds a community unless it is there.
    pub fn add_community(&mut self, community: u32) {
        if !self.has_community(community) {
            self.communities.push(community);
        }
    }
}

/// A set of attributes, by type code: somebody on the way passed them on without knowing them, and
/// that stays said (RFC 4271 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Partial(u64);

impl Partial {
    /// Codes from 64 on are never known here, and not kept.
    pub fn insert(&mut self, code: u8) {
        self.0 |= 1u64.checked_shl(u32::from(code)).unwrap_or(0);
    }

    pub fn contains(self, code: u8) -> bool {
        self.0 & 1u64.checked_shl(u32::from(code)).unwrap_or(0) != 0
    }
}

/// Communities with a meaning of their own.
pub mod well_known {
    /// RFC 8326.
    pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
    /// RFC 9494.
    pub const LLGR_STALE: u32 = 0xffff_0006;
    /// RFC 9494.
    pub const NO_LLGR: u32 = 0xffff_0007;
    /// RFC 7999.
    pub const BLACKHOLE: u32 = 0xffff_029a;
    /// RFC 1997.
    pub const NO_EXPORT: u32 = 0xffff_ff01;
    /// RFC 1997.
    pub const NO_ADVERTISE: u32 = 0xffff_ff02;
    /// RFC 1997.
    pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
    /// RFC 3765.
    pub const NO_PEER: u32 = 0xffff_ff04;
}

/// A community as people write it: `64512:100`, or its registered name.
pub fn format_community(community: u32) -> String {
    match community {
        well_known::GRACEFUL_SHUTDOWN => "graceful-shutdown".into(),
        well_known::LLGR_STALE => "llgr-stale".into(),
        well_known::NO_LLGR => "no-llgr".into(),
        well_known::BLACKHOLE => "blackhole".into(),
        well_known::NO_EXPORT => "no-export".into(),
        well_known::NO_ADVERTISE => "no-advertise".into(),
        well_known::NO_EXPORT_SUBCONFED => "no-export-subconfed".into(),
        well_known::NO_PEER => "no-peer".into(),
        other => format!("{}:{}", other >> 16, other & 0xffff),
    }
}

/// Reads what [`format_community`] writes.
pub fn parse_community(text: &str) -> Option<u32> {
    let names = [
        well_known::GRACEFUL_SHUTDOWN,
        well_known::LLGR_STALE,
        well_known::NO_LLGR,
        well_known::BLACKHOLE,
        well_known::NO_EXPORT,
        well_known::NO_ADVERTISE,
        well_known::NO_EXPORT_SUBCONFED,
        well_known::NO_PEER,
    ];
    if let Some(named) = names
        .into_iter()
        .find(|name| format_community(*name) == text)
    {
        return Some(named);
    }
    let (high, low) = text.split_once(':')?;
    let (high, low) = (high.parse::<u16>().ok()?, low.parse::<u16>().ok()?);
    Some(u32::from(high) << 16 | u32::from(low))
}

/// Reads what [`format_large_community`] writes.
pub fn parse_large_community(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split(':').map(|part| part.parse().ok());
    let value = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(value)
}

/// A large community as people write it (RFC 8092 §4.1): `64512:1:2`.
pub fn format_large_community([global, first, second]: [u32; 3]) -> String {
    format!("{global}:{first}:{second}")
}

/// RFC 4271 §5.1.1; the order is the one of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Igp = 0,
    Egp = 1,
    Incomplete = 2,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        })
    }
}

/// Where to send packets for the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The address of NEXT_HOP, or the global address of MP_REACH_NLRI. It is a link-local one only
    /// when nothing else was sent.
    pub address: IpAddr,
    /// The second address of a 32-octet IPv6 next hop (RFC 2545 §3).
    pub link_local: Option<Ipv6Addr>,
    /// Index of the interface on which the link-local address is meant, 0 where it is not known. It
    /// is never on the wire: import sets it to the interface of the session.
    pub interface: u32,
}

impl NextHop {
    /// No next hop at all: packets are dropped. Import sets it in routes that are honoured as
    /// BLACKHOLE (RFC 7999); it is never on the wire.
    pub const DISCARD: Self = Self {
        address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        link_local: None,
        interface: u32::MAX,
    };

    pub fn is_discard(&self) -> bool {
        *self == Self::DISCARD
    }

    /// Where packets go: a link-local address where there is one and its interface is known
    /// (RFC 2545 §3: it is on the link that both share), else the address.
    pub fn via(&self) -> Via {
        match (self.link_local, self.address) {
            (Some(link_local), _) if self.interface != 0 => Via {
                address: IpAddr::V6(link_local),
                interface: self.interface,
            },
            (_, IpAddr::V6(address)) if address.is_unicast_link_local() => Via {
                address: self.address,
                interface: self.interface,
            },
            (_, address) => Via::from(address),
        }
    }
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            link_local: None,
            interface: 0,
        }
    }
}

/// One hop, to be named to as many addresses as it has: `2001:db8::1 (fe80::1%eth0)`, with the
/// number of the interface in place of its name.
impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_discard() {
            return f.write_str("discard");
        }
        let scope = |f: &mut fmt::Formatter<'_>| match self.interface {
            0 => Ok(()),
            interface => write!(f, "%{interface}"),
        };
        self.address.fmt(f)?;
        match (self.link_local, self.address) {
            (Some(link_local), _) => {
                write!(f, " ({link_local}")?;
                scope(f)?;
                f.write_str(")")
            }
            (None, IpAddr::V6(address)) if address.is_unicast_link_local() => scope(f),
            (None, _) => Ok(()),
        }
    }
}

/// An address that packets are sent to, as the kernel needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via {
    pub address: IpAddr,
    /// Index of the interface of a link-local address, else 0. Without one a link-local address
    /// leads nowhere.
    pub interface: u32,
}

impl From<IpAddr> for Via {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            interface: 0,
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interface {
            0 => self.address.fmt(f),
            interface => write!(f, "{}%{interface}", self.address),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    pub asn: Asn,
    pub address: Ipv4Addr,
}

impl fmt::Display for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.asn, self.address)
    }
}

/// An AS path: segments in order, leftmost (nearest) first. Empty for routes of our own AS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath(pub Vec<Segment>);

impl AsPath {
    /// One sequence, nearest first.
    pub fn sequence(asns: impl IntoIterator<Item = Asn>) -> Self {
        let mut asns = asns.into_iter().peekable();
        let mut segments = Vec::new();
        while asns.peek().is_some() {
            segments.push(Segment {
                kind: SegmentKind::Sequence,
                asns: asns.by_ref().take(255).collect(),
            });
        }
        Self(segments)
    }

    /// A path without a single number: a route of our own AS.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the decision process compares: a set counts as one (RFC 4271 §9.1.2.2 a),
    /// confederation segments as nothing (RFC 5065 §5.3).
    pub fn path_length(&self) -> usize {
        self.0
            .iter()
            .map(|segment| match segment.kind {
                SegmentKind::Sequence => segment.asns.len(),
                SegmentKind::Set => 1,
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
            })
            .sum()
    }

    /// Every number, sets and confederation segments included, as they stand on the wire.
    pub fn asns(&self) -> impl Iterator<Item = Asn> + '_ {
        self.0
            .iter()
            .flat_map(|segment| segment.asns.iter().copied())
    }

    /// Whether a number is anywhere in the path: the loop check (RFC 4271 §9.1.2).
    pub fn contains(&self, asn: Asn) -> bool {
        self.count(asn) > 0
    }

    /// How many times a number is in the path.
    pub fn count(&self, asn: Asn) -> usize {
        self.asns().filter(|other| *other == asn).count()
    }

    /// The AS that sent the route to us: the first number of a leading sequence.
    pub fn neighbor(&self) -> Option<Asn> {
        let segment = self.0.first()?;
        match segment.kind {
            SegmentKind::Sequence => segment.asns.first().copied(),
            _ => None,
        }
    }

    /// The AS that originated the route: the last number, when the path ends in a sequence
    /// (a trailing set leaves the origin open; RFC 6811 §2).
    pub fn origin(&self) -> Option<Asn> {
        let segment = self.0.last()?;
        match segment.kind {
            SegmentKind::Sequence => segment.asns.last().copied(),
            _ => None,
        }
    }

    /// Puts a number `times` times in front (RFC 4271 §5.1.2 b). A full segment gets a new one
    /// before it.
    pub fn prepend(&mut self, asn: Asn, times: usize) {
        for _ in 0..times {
            match self.0.first_mut() {
                Some(first) if first.kind == SegmentKind::Sequence && first.asns.len() < 255 => {
                    first.asns.insert(0, asn);
                }
                _ => self.0.insert(
                    0,
                    Segment {
                        kind: SegmentKind::Sequence,
                        asns: vec![asn],
                    },
                ),
            }
        }
    }

    /// Takes out the numbers for private use (RFC 6996) that stand before the first other one, so
    /// that no gap appears inside a path.
    pub fn remove_leading_private(&mut self) {
        while let Some(first) = self.0.first_mut() {
            let public = first.asns.iter().position(|asn| !asn.is_private());
            match first.kind {
                SegmentKind::Sequence => match public {
                    Some(index) => {
                        first.asns.drain(..index);
                        return;
                    }
                    None => {
                        self.0.remove(0);
                    }
                },
                // A set is one place in the path: all of it or nothing.
                _ if public.is_none() => {
                    self.0.remove(0);
                }
                _ => return,
            }
        }
    }

    /// The path with a number in front.
    pub fn prepended(&self, asn: Asn) -> Self {
        let mut path = self.clone();
        path.prepend(asn, 1);
        path
    }
}

/// As most speakers print it: `65001 65002 {1 2}`; confederation sequences in `()`, their sets in
/// `[]`.
impl fmt::Display for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            let (open, close) = match segment.kind {
                SegmentKind::Sequence => ("", ""),
                SegmentKind::Set => ("{", "}"),
                SegmentKind::ConfedSequence => ("(", ")"),
                SegmentKind::ConfedSet => ("[", "]"),
            };
            f.write_str(open)?;
            for (index, asn) in segment.asns.iter().enumerate() {
                if index > 0 {
                    f.write_str(" ")?;
                }
                write!(f, "{asn}")?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segments: &[(SegmentKind, &[u32])]) -> AsPath {
        AsPath(
            segments
                .iter()
                .map(|(kind, asns)| Segment {
                    kind: *kind,
                    asns: asns.iter().copied().map(Asn).collect(),
                })
                .collect(),
        )
    }

    // RFC 4271 §9.1.2.2 a, RFC 5065 §5.3
    #[test]
    fn a_set_counts_as_one_and_a_confederation_as_nothing() {
        let path = path(&[
            (SegmentKind::ConfedSequence, &[7, 8]),
            (SegmentKind::Sequence, &[1, 2, 3]),
            (SegmentKind::Set, &[4, 5]),
        ]);
        assert_eq!(path.path_length(), 4);
        assert_eq!(path.to_string(), "(7 8) 1 2 3 {4 5}");
        assert!(path.contains(Asn(5)) && path.contains(Asn(8)) && !path.contains(Asn(6)));
        assert_eq!((path.neighbor(), path.origin()), (None, None));
    }

    // RFC 4271 §5.1.2 b
    #[test]
    fn prepending_starts_a_segment_where_there_is_none_to_extend() {
        let mut empty = AsPath::default();
        empty.prepend(Asn(1), 2);
        assert_eq!(empty, path(&[(SegmentKind::Sequence, &[1, 1])]));

        let set = path(&[(SegmentKind::Set, &[4])]).prepended(Asn(1));
        assert_eq!(set.to_string(), "1 {4}");

        let full = AsPath::sequence((0..255).map(Asn)).prepended(Asn(9));
        assert_eq!(full.0.len(), 2);
        assert_eq!(full.neighbor(), Some(Asn(9)));
        assert_eq!(full.origin(), Some(Asn(254)));
        assert_eq!(full.path_length(), 256);
    }

    #[test]
    fn sequences_hold_at_most_255_numbers() {
        let lengths: Vec<_> = AsPath::sequence((1..=600).map(Asn))
            .0
            .iter()
            .map(|segment| segment.asns.len())
            .collect();
        assert_eq!(lengths, [255, 255, 90]);
        assert!(AsPath::sequence([]).is_empty());
    }

    #[test]
    fn communities_are_written_as_people_know_them() {
        assert_eq!(format_community(0xfc00_0064), "64512:100");
        assert_eq!(format_community(well_known::NO_EXPORT), "no-export");
        assert_eq!(format_community(well_known::BLACKHOLE), "blackhole");
        assert_eq!(format_large_community([64512, 1, 2]), "64512:1:2");
        for value in [
            0,
            0xfde8_0064,
            well_known::NO_EXPORT,
            well_known::LLGR_STALE,
            0xffff_1234,
        ] {
            assert_eq!(parse_community(&format_community(value)), Some(value));
        }
        assert_eq!(parse_large_community("64512:1:2"), Some([64512, 1, 2]));
        for wrong in [
            "",
            "1",
            "65536:1",
            "1:65536",
            "1:2:3:4",
            "no-export:1",
            "-1:2",
        ] {
            assert_eq!(parse_community(wrong), None, "{wrong}");
            assert_eq!(parse_large_community(wrong), None, "{wrong}");
        }
    }
}
