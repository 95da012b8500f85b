//! What the speaker shows of itself: peers with their counters, and routes in pages.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{
    attributes::Attributes,
    message::{Capability, Fault, Message, Notification},
    rib::Reason,
    speaker::config::{BGP_PORT, RemoteAs},
    types::{Asn, Family, PeerId},
};

/// RFC 4271 §8.2.2: of the connection that has come furthest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

/// One neighbour, as it is now.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub id: PeerId,
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    /// As configured, or as its OPEN says; `None` while it may be one of several.
    pub asn: Option<Asn>,
    pub local_asn: Asn,
    /// The range from which it came; `None`: it is configured by itself.
    pub range: Option<String>,
    pub state: PeerState,
    /// When the state was entered.
    pub since: Instant,
    /// Why it is not Established, for a person; empty when it is.
    pub reason: String,
    pub passive: bool,
    pub route_reflector_client: bool,
    /// From the OPEN of the peer.
    pub remote_router_id: Option<Ipv4Addr>,
    pub local_address: Option<IpAddr>,
    /// Negotiated; zero means that no keepalives are sent.
    pub hold_time: Option<Duration>,
    pub keepalive_interval: Option<Duration>,
    /// As sent and received in the OPENs of this connection; empty before.
    pub capabilities_sent: Vec<Capability>,
    pub capabilities_received: Vec<Capability>,
    pub families: Vec<FamilyStatus>,
    pub counters: PeerCounters,
    pub last_notification_sent: Option<LastNotification>,
    pub last_notification_received: Option<LastNotification>,
    /// The last fault in an UPDATE that did not end the session (RFC 7606).
    pub last_fault: Option<LastFault>,
    /// When a connection is tried next; none is planned when unset.
    pub next_connect_at: Option<Instant>,
    pub timers: PeerTimers,
    /// Hold time offered in the next OPEN.
    pub configured_hold_time: Duration,
    /// Segments are signed (TCP MD5).
    pub password: bool,
    /// GTSM (RFC 5082): the most hops away.
    pub ttl_security: Option<u8>,
    pub max_prefixes: Option<u32>,
    /// Names of the policies in force.
    pub import: String,
    /// It honours BLACKHOLE (RFC 7999).
    pub blackhole: bool,
    pub export: String,
    /// New since the peer was last reported in [`Update::Peers`](crate::driver::Update); nothing
    /// in other answers.
    pub news: PeerNews,
}

impl PeerStatus {
    /// A peer in Idle of which nothing else is known.
    pub fn idle(id: PeerId, name: impl Into<String>, address: IpAddr, now: Instant) -> Self {
        Self {
            id,
            name: name.into(),
            address,
            port: BGP_PORT,
            asn: None,
            local_asn: Asn(0),
            range: None,
            state: PeerState::Idle,
            since: now,
            reason: String::new(),
            passive: false,
            route_reflector_client: false,
            remote_router_id: None,
            local_address: None,
            hold_time: None,
            keepalive_interval: None,
            capabilities_sent: Vec::new(),
            capabilities_received: Vec::new(),
            families: Vec::new(),
            counters: PeerCounters::default(),
            last_notification_sent: None,
            last_notification_received: None,
            last_fault: None,
            next_connect_at: None,
            timers: PeerTimers::default(),
            configured_hold_time: Duration::ZERO,
            password: false,
            ttl_security: None,
            max_prefixes: None,
            import: String::new(),
            blackhole: false,
            export: String::new(),
            news: PeerNews::default(),
        }
    }
}

/// What a log should tell of a peer, once each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNews {
    /// It has left Established, with the reason of that moment.
    pub lost: Option<String>,
    /// It has become Established.
    pub established: bool,
    /// There is another reason than before for which it is not Established.
    pub reason: bool,
}

/// Deadlines that run now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTimers {
    /// The session ends unless something is heard before.
    pub hold_expires_at: Option<Instant>,
    pub keepalive_at: Option<Instant>,
    /// The session ends unless the peer takes what was sent before (RFC 9687).
    pub send_hold_expires_at: Option<Instant>,
    pub next_connect_at: Option<Instant>,
    /// Idle until then, after an error.
    pub held_until: Option<Instant>,
    /// Routes of the session before are kept until then (RFC 4724).
    pub stale_until: Option<Instant>,
}

/// Neighbours that are known by a prefix.
#[derive(Clone, Debug)]
pub struct RangeStatus {
    pub name: String,
    pub range: IpNet,
    pub asn: RemoteAs,
    pub limit: usize,
    /// Neighbours of it that are remembered now, and of these Established.
    pub peers: usize,
    pub established: usize,
    /// Connections taken and refused since it was configured.
    pub accepted: u64,
    pub refused: u64,
    pub last_refused: Option<Refused>,
    pub password: bool,
    /// Somebody has shut it down: nobody is taken.
    pub shutdown: bool,
}

/// A connection that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub address: IpAddr,
    pub at: Instant,
    /// For a person.
    pub why: &'static str,
}

/// One enabled family of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyStatus {
    pub family: Family,
    pub negotiated: bool,
    /// Prefixes in the Adj-RIB-In, of these accepted by import, and in the Adj-RIB-Out.
    pub received: u64,
    pub accepted: u64,
    pub advertised: u64,
    /// Of those received: kept of the session before (RFC 4724).
    pub stale: u64,
    pub end_of_rib_received: bool,
    pub end_of_rib_sent: bool,
}

/// Since the peer was configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    pub messages_received: u64,
    pub messages_sent: u64,
    pub updates_received: u64,
    pub updates_sent: u64,
    pub opens_received: u64,
    pub opens_sent: u64,
    pub keepalives_received: u64,
    pub keepalives_sent: u64,
    pub notifications_received: u64,
    pub notifications_sent: u64,
    /// ROUTE-REFRESH (RFC 2918).
    pub refreshes_received: u64,
    pub refreshes_sent: u64,
    /// RFC 7606: UPDATEs whose routes were treated as withdrawn, attributes discarded, and what was
    /// passed over because its family was not negotiated or its type not known here.
    pub treat_as_withdraw: u64,
    pub attributes_discarded: u64,
    pub faults_ignored: u64,
    /// Times the session reached Established, and times it left it.
    pub established_count: u64,
    pub dropped_count: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

impl PeerCounters {
    /// By type; the sum is counted apart, because it also has what could not be decoded.
    pub(crate) fn count_received(&mut self, message: &Message) {
        let counter = match message {
            Message::Open(_) => &mut self.opens_received,
            Message::Update(_) => &mut self.updates_received,
            Message::Notification(_) => &mut self.notifications_received,
            Message::Keepalive => &mut self.keepalives_received,
            Message::RouteRefresh(_) => &mut self.refreshes_received,
        };
        *counter += 1;
    }
}

/// The last fault that the session survived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFault {
    pub fault: Fault,
    pub at: Instant,
}

/// The last NOTIFICATION in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastNotification {
    pub notification: Notification,
    pub at: Instant,
}

/// Somebody else announces what this speaker originates, or a part of it. What comes back from
/// this speaker itself is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignClaim {
    /// As originated here.
    pub block: IpNet,
    /// As announced: the same, or inside.
    pub prefix: IpNet,
    /// Name of the peer that sent it.
    pub peer: String,
    /// Router id of the speaker that originates it; of internal peers only.
    pub originator: Option<Ipv4Addr>,
    /// The last number of the AS path; `None`: our own AS, or a set.
    pub origin_as: Option<Asn>,
}

/// Which table a query reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteTable {
    LocRib,
    AdjRibIn,
    AdjRibOut,
}

/// One page of one table.
#[derive(Clone, Debug)]
pub struct RouteQuery {
    pub table: RouteTable,
    /// A peer's name. Required for Adj-RIB-Out; for Adj-RIB-In `None` means every peer.
    pub peer: Option<String>,
    /// When set: this prefix and what it covers.
    pub prefix: Option<IpNet>,
    /// Continue after this prefix (`RoutePage::next`).
    pub after: Option<IpNet>,
    /// Most prefixes of one page; all routes of a prefix are on one page.
    pub limit: usize,
}

/// In prefix order, IPv4 first.
#[derive(Clone, Debug, Default)]
pub struct RoutePage {
    pub routes: Vec<Route>,
    /// Set when there is more: the `after` of the next query.
    pub next: Option<IpNet>,
}

/// One path of one prefix.
#[derive(Clone, Debug)]
pub struct Route {
    pub prefix: IpNet,
    /// RFC 7911; 0 without ADD-PATH.
    pub path_id: u32,
    /// Name of the peer it was learned from; `None` when this speaker originates it.
    pub peer: Option<String>,
    /// As received (Adj-RIB-In), after import policy (Loc-RIB), or as sent (Adj-RIB-Out).
    pub attributes: Arc<Attributes>,
    /// One of the paths in use, or (Adj-RIB-Out) the one that was sent.
    pub best: bool,
    /// Kept of a session that ended (RFC 4724).
    pub stale: bool,
    /// Why it was rejected, or why it is or is not best. For a person: its `Display`.
    pub reason: Reason,
    pub received_at: Instant,
    /// Packets are dropped (RFC 7999) where it is used: policy and rule that admitted it.
    pub discarded: Option<String>,
}
