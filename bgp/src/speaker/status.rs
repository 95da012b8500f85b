//! What the speaker shows of itself: peers with their counters, and routes in pages.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{
    attributes::Attributes,
    message::{Capability, Notification},
    rib::Reason,
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
    pub asn: Asn,
    pub local_asn: Asn,
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
    /// When a connection is tried next; none is planned when unset.
    pub next_connect_at: Option<Instant>,
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
    /// RFC 7606.
    pub treat_as_withdraw: u64,
    pub attributes_discarded: u64,
    /// Times the session reached Established, and times it left it.
    pub established_count: u64,
    pub dropped_count: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

/// The last NOTIFICATION in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastNotification {
    pub notification: Notification,
    pub at: Instant,
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
}
