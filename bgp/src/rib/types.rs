//! What goes into the RIB and what comes out of it, as plain values.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;

use crate::{
    attributes::{Attributes, NextHop, Origin, Via, format_community},
    message::Negotiated,
    policy::Policy,
    types::{Asn, Family, PeerId},
};

use super::decision::Step;

/// What holds for the whole speaker.
#[derive(Clone, Debug)]
pub struct RibConfig {
    pub asn: Asn,
    pub router_id: Ipv4Addr,
    /// Present: routes are reflected between clients, and between clients and others (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// Most next hops of one prefix; 1 switches multipath off, 0 counts as 1.
    pub multipath: usize,
    /// LOCAL_PREF of routes that came without one.
    pub default_local_pref: u32,
    /// Send no End-of-RIB before [`release_end_of_rib`](super::Rib::release_end_of_rib): what this
    /// speaker originates is not complete yet.
    pub hold_end_of_rib: bool,
}

impl RibConfig {
    /// One path for each prefix, no reflection, LOCAL_PREF 100.
    pub fn new(asn: Asn, router_id: Ipv4Addr) -> Self {
        Self {
            asn,
            router_id,
            cluster_id: None,
            multipath: 1,
            default_local_pref: 100,
            hold_end_of_rib: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// In our AS.
    Internal,
    External,
}

/// Our role on an external session (RFC 9234 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Provider,
    RouteServer,
    RouteServerClient,
    Customer,
    Peer,
}

/// One Established session, as the RIB needs to know it.
#[derive(Clone, Debug)]
pub struct PeerRib {
    pub kind: PeerKind,
    /// A route reflector client; counts on internal sessions when there is a cluster id.
    pub rr_client: bool,
    pub remote_asn: Asn,
    pub remote_router_id: Ipv4Addr,
    pub remote_address: IpAddr,
    /// Our own address as a next hop for this peer, for each family (index [`Family::index`]):
    /// the local address of the session, or what stands for it in the other family. A family
    /// without one can carry only routes whose next hop is passed on unchanged.
    pub next_hop_self: [Option<NextHop>; 2],
    /// Use our own address towards this internal peer also for routes of others.
    pub always_next_hop_self: bool,
    /// How many paths of a prefix it is sent at most where ADD-PATH was negotiated (RFC 7911);
    /// 0 counts as 1, `u16::MAX` is no limit.
    pub add_path_send: u16,
    /// Index of the interface that the session runs over, when the peer is on its link; else 0.
    /// Link-local next hops that the peer sends are meant on this link.
    pub interface: u32,
    /// The subnet shared with this external peer: next hops inside are passed on unchanged
    /// (RFC 4271 §5.1.3, third party). `None`: always our own address.
    pub third_party_subnet: Option<IpNet>,
    /// How often our own number may stand in a received AS path; normally 0.
    pub allow_own_as: u8,
    /// Refuse routes of an external peer whose path does not begin with its number
    /// (RFC 4271 §6.3).
    pub enforce_first_as: bool,
    /// RFC 9234; `None`: roles are not used.
    pub role: Option<Role>,
    pub import: Arc<Policy>,
    pub export: Arc<Policy>,
    pub negotiated: Arc<Negotiated>,
    /// Most prefixes taken from it, for each family, before policy.
    pub max_prefixes: [Option<u32>; 2],
    /// How many are worth a warning in the log, once for each session and family.
    pub warn_prefixes: [Option<u32>; 2],
    /// The number under which we are known to this external peer: in the path it is sent instead
    /// of our own, and a loop in what it sends, as ours is. `None`: our own.
    pub local_as: Option<Asn>,
    /// Take numbers for private use out of the path that this external peer is sent, up to the
    /// first one that is not (RFC 6996 §4).
    pub remove_private_as: bool,
}

impl PeerRib {
    /// A session with everything optional switched off.
    pub fn new(
        kind: PeerKind,
        remote_asn: Asn,
        remote_router_id: Ipv4Addr,
        remote_address: IpAddr,
        local_address: IpAddr,
        negotiated: Arc<Negotiated>,
    ) -> Self {
        let mut next_hop_self = [None; 2];
        next_hop_self[Family::of(local_address).index()] = Some(local_address.into());
        Self {
            kind,
            rr_client: false,
            remote_asn,
            remote_router_id,
            remote_address,
            next_hop_self,
            always_next_hop_self: false,
            add_path_send: 0,
            interface: 0,
            third_party_subnet: None,
            allow_own_as: 0,
            enforce_first_as: false,
            role: None,
            import: Arc::new(Policy::none()),
            export: Arc::new(Policy::none()),
            negotiated,
            max_prefixes: [None; 2],
            warn_prefixes: [None; 2],
            local_as: None,
            remove_private_as: false,
        }
    }
}

/// A route that this speaker originates. The next hop is our address on each session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    pub origin: Origin,
    pub med: Option<u32>,
    pub communities: Vec<u32>,
    pub large_communities: Vec<[u32; 3]>,
    /// What lies inside is ours too: `Match::WithinOriginated` holds for it, and no path of it that
    /// comes from a peer is used, whatever policy says. Not so for a prefix that is announced on
    /// behalf of others.
    pub owns_inside: bool,
    /// Towards internal peers; `None`: as every other route.
    pub local_pref: Option<u32>,
}

impl Default for LocalRoute {
    fn default() -> Self {
        Self {
            origin: Origin::Igp,
            med: None,
            communities: Vec::new(),
            large_communities: Vec::new(),
            owns_inside: true,
            local_pref: None,
        }
    }
}

/// Whether this speaker takes itself out of the network. Sessions stay, and so does what is
/// learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Drain {
    #[default]
    Off,
    /// What is announced is the last resort of everybody: GRACEFUL_SHUTDOWN (RFC 8326 §4.2), and
    /// LOCAL_PREF 0 inside the AS.
    Leaving,
    /// Nothing is announced.
    Left,
}

/// What is known of a next hop. Unreachable until told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NextHopState {
    #[default]
    Unreachable,
    /// With the metric of the route to it; 0 when directly connected.
    Reachable { metric: u32 },
}

/// Next hops the RIB wants to hear about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NextHopWatch {
    Watch(Via),
    /// No path has it any more. The change of each prefix that was reported with it and others
    /// follows.
    Unwatch(Via),
}

/// A peer sent more prefixes than it may: Cease, Maximum Number of Prefixes Reached
/// (RFC 4486 §4, code 6 subcode 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {limit} {family} prefixes received")]
pub struct PrefixLimit {
    pub family: Family,
    pub limit: u32,
}

/// The forwarding state of one prefix changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    pub prefix: IpNet,
    /// In ascending order, without duplicates, shared between prefixes with the same ones. Empty:
    /// no learned route is to be used (it was withdrawn, or we originate the prefix ourselves).
    /// [`NextHop::DISCARD`], which then stands alone: packets are to be dropped.
    pub next_hops: Arc<[NextHop]>,
}

/// What one call of [`pull`](super::Rib::pull) produced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// UPDATE messages appended.
    pub updates: u32,
    /// End-of-RIB markers among them, for each family.
    pub end_of_rib: [bool; 2],
    /// There is more to send.
    pub more: bool,
}

/// A peer announces what this speaker originates, or a part of it, and it does not come from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// As originated here.
    pub block: IpNet,
    /// As announced: the same, or inside.
    pub prefix: IpNet,
    pub peer: PeerId,
    pub path_id: u32,
    /// Router id of the speaker that originates it; of internal peers only.
    pub originator: Option<Ipv4Addr>,
    /// The last number of the AS path; `None`: our own AS, or a set.
    pub origin_as: Option<Asn>,
}

/// Which table to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Every eligible path, the best first.
    LocRib,
    /// What one peer sent, or all.
    AdjRibIn(Option<PeerId>),
    AdjRibOut(PeerId),
}

/// Which routes to list.
#[derive(Clone, Debug)]
pub struct RouteQuery {
    pub table: Table,
    /// This prefix and what lies inside.
    pub prefix: Option<IpNet>,
    /// Prefixes after this one, in the order of `IpNet`: the cursor of the page before.
    pub after: Option<IpNet>,
    /// Most prefixes of one page; 0 counts as 1. A page holds all paths of its prefixes.
    pub limit: usize,
}

/// A part of a table in ascending order of prefix, IPv4 before IPv6.
#[derive(Clone, Debug, Default)]
pub struct RoutePage {
    pub routes: Vec<RouteView>,
    /// The cursor of the next page; `None`: this was the last.
    pub next: Option<IpNet>,
}

/// One route as shown to people.
#[derive(Clone, Debug)]
pub struct RouteView {
    pub prefix: IpNet,
    /// Whom it was learned from; `None`: originated here.
    pub peer: Option<PeerId>,
    pub path_id: u32,
    /// As received (Adj-RIB-In), after import policy (Loc-RIB), or as sent (Adj-RIB-Out).
    pub attributes: Arc<Attributes>,
    /// Used for forwarding, or (Adj-RIB-Out) the one that was sent.
    pub best: bool,
    pub stale: bool,
    /// When the peer sent it.
    pub received: Instant,
    pub reason: Reason,
    /// Packets are dropped (RFC 7999) where it is used: policy and rule that admitted it.
    pub discarded: Option<String>,
}

/// Why a route is where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The best; the step that set it apart from the next best, if there was another.
    Best(Option<Step>),
    /// Equal to the best up to the IGP metric, and used beside it.
    Multipath,
    /// Lost against the best at this step.
    Lost(Step),
    Ineligible(Ineligible),
    /// Policy and rule.
    Rejected(String),
    /// Policy and rule that let it out.
    Exported(String),
}

/// Why a path takes no part in the decision process (RFC 4271 §9.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ineligible {
    NextHopUnreachable,
    /// The next hop is an address of our own.
    NextHopIsOurs,
    /// The prefix holds no address of a host (RFC 4271 §6.3).
    NotUnicast,
    /// Our AS stands in the path (RFC 4271 §9.1.2).
    AsLoop,
    FirstAsMismatch,
    /// RFC 4456 §8.
    OriginatorIsUs,
    ClusterLoop,
    /// RFC 9234 §5.
    RouteLeak,
    /// A BLACKHOLE that is to be honoured, of a prefix that is originated here or inside one
    /// (RFC 7999 §3.3: the neighbour is not authorised to advertise it).
    BlackholeOfOurs,
    /// It lies inside of a prefix that is originated here with all that is in it.
    InsideOurs,
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NextHopUnreachable => "next hop unreachable",
            Self::NextHopIsOurs => "next hop is an address of our own",
            Self::NotUnicast => "the prefix holds no unicast addresses",
            Self::AsLoop => "our AS is in the AS path",
            Self::FirstAsMismatch => "the AS path does not begin with the AS of the peer",
            Self::OriginatorIsUs => "ORIGINATOR_ID is our router id",
            Self::ClusterLoop => "our cluster id is in the CLUSTER_LIST",
            Self::RouteLeak => "route leak (ONLY_TO_CUSTOMER)",
            Self::BlackholeOfOurs => "BLACKHOLE of what is originated here",
            Self::InsideOurs => "it lies inside of what is originated here",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best(None) => f.write_str("best: the only one"),
            Self::Best(Some(step)) => write!(f, "best: {}", step.won()),
            Self::Multipath => f.write_str("multipath: equal up to the IGP metric"),
            Self::Lost(step) => write!(f, "not best: {}", step.lost()),
            Self::Ineligible(why) => write!(f, "not eligible: {why}"),
            Self::Rejected(rule) => write!(f, "rejected by policy {rule}"),
            Self::Exported(rule) => write!(f, "accepted by policy {rule}"),
        }
    }
}

/// Why a peer does not get a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdvertised {
    NotEstablished,
    /// The address family was not negotiated.
    Family,
    /// There is no path, or none that is eligible.
    NoRoute,
    /// The best path came from this peer.
    LearnedFromIt,
    /// The next hop is the peer itself (RFC 4271 §5.1.3).
    NextHopIsIt,
    /// Policy and rule.
    Rejected(String),
    /// It came from an internal peer, and this is one too (RFC 4456 §6).
    NotReflected,
    /// NO_EXPORT, NO_ADVERTISE or NO_EXPORT_SUBCONFED (RFC 1997).
    Community(u32),
    /// RFC 9234 §5.
    OnlyToCustomer,
    /// Kept of a session that ended long ago, and the peer does not know such routes
    /// (RFC 9494 §4.3).
    LongLivedStale,
    /// This speaker has taken itself out of the network.
    Drained,
    /// There is no address of our own that could stand as next hop.
    NoNextHop,
    /// The attributes leave no room for a prefix in a message.
    TooLong,
}

impl fmt::Display for NotAdvertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEstablished => f.write_str("the session is not Established"),
            Self::Family => f.write_str("the address family was not negotiated"),
            Self::NoRoute => f.write_str("there is no usable route"),
            Self::LearnedFromIt => f.write_str("the best route came from this peer"),
            Self::NextHopIsIt => f.write_str("the next hop is this peer"),
            Self::Rejected(rule) => write!(f, "rejected by policy {rule}"),
            Self::NotReflected => {
                f.write_str("it came from an internal peer and is not reflected to this one")
            }
            Self::Community(community) => {
                write!(f, "it has the community {}", format_community(*community))
            }
            Self::OnlyToCustomer => f.write_str("it may go to customers only (ONLY_TO_CUSTOMER)"),
            Self::LongLivedStale => f.write_str(
                "it is long-lived stale, and the peer has not announced that capability",
            ),
            Self::Drained => f.write_str("this node is drained"),
            Self::NoNextHop => f.write_str("no address of our own can be its next hop"),
            Self::TooLong => f.write_str("its attributes fill a message"),
        }
    }
}

/// Prefixes of one family at one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// In the Adj-RIB-In, and of these accepted by import policy and loop checks.
    pub received: u32,
    pub accepted: u32,
    /// In the Adj-RIB-Out; paths where several are sent.
    pub advertised: u32,
    pub stale: u32,
    pub end_of_rib_received: bool,
    pub end_of_rib_sent: bool,
}
