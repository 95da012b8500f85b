//! What a speaker is told: itself and its neighbours. Plain values, checked once by
//! [`SpeakerConfig::validate`]; nothing here reads a file or a clock.

mod range;

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    policy::Policy,
    rib::{Drain, LocalRoute, Role},
    types::{Asn, Family},
};

pub use range::{RangeConfig, RemoteAs};
pub(crate) use range::{check_count, check_password};

/// The port of BGP (RFC 4271 §4).
pub const BGP_PORT: u16 = 179;

/// For [`PeerConfig::add_path_send`]: no limit.
pub const ADD_PATH_ALL: u16 = u16::MAX;

/// A speaker and the neighbours it starts with.
#[derive(Clone, Debug)]
pub struct SpeakerConfig {
    pub asn: Asn,
    pub router_id: Ipv4Addr,
    /// Present: this speaker reflects routes between its clients (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// Where to accept connections; empty: nowhere, only dial. An IPv6 wildcard accepts IPv6 only.
    pub listen: Vec<SocketAddr>,
    /// Our address as next hop in a family other than that of the session, by `Family::index`; a
    /// family without one carries no routes of our own over sessions of the other family.
    pub next_hop_self: [Option<IpAddr>; 2],
    /// How many equal paths a prefix may use at once; 1 turns ECMP off.
    pub multipath: usize,
    /// Set when this process takes over from an earlier run whose routes may still be in use.
    pub restarting: Option<Restarting>,
    /// `Update::FirstSync` comes at the latest this long after start.
    pub first_sync_timeout: Duration,
    /// Seeds all jitter; two speakers of one simulation get different ones.
    pub seed: u64,
    /// Whether this speaker is out of the network from the start.
    pub drain: Drain,
    /// Originated from the start, apart from what commands add; withdrawn by nobody.
    pub originate: Vec<(IpNet, LocalRoute)>,
    pub peers: Vec<PeerConfig>,
    /// Where neighbours that are not named may come from.
    pub ranges: Vec<RangeConfig>,
}

impl SpeakerConfig {
    /// A speaker without neighbours that listens nowhere.
    pub fn new(asn: Asn, router_id: Ipv4Addr) -> Self {
        Self {
            asn,
            router_id,
            cluster_id: None,
            listen: Vec::new(),
            next_hop_self: [None; 2],
            multipath: 16,
            restarting: None,
            first_sync_timeout: Duration::from_secs(120),
            seed: 0,
            drain: Drain::Off,
            originate: Vec::new(),
            peers: Vec::new(),
            ranges: Vec::new(),
        }
    }

    /// Everything that makes this config unusable.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.asn.0 == 0 {
            return Err(ConfigError::LocalAsn);
        }
        if self.router_id.is_unspecified() {
            return Err(ConfigError::RouterId);
        }
        let mut names = HashSet::new();
        let mut addresses = HashSet::new();
        for range in &self.ranges {
            if !names.insert(&range.peer.name) {
                return Err(ConfigError::DuplicateName(range.peer.name.clone()));
            }
        }
        for peer in &self.peers {
            peer.validate()?;
            if !names.insert(&peer.name) {
                return Err(ConfigError::DuplicateName(peer.name.clone()));
            }
            if !addresses.insert((peer.address, peer.scope_id)) {
                return Err(ConfigError::DuplicateAddress(
                    peer.name.clone(),
                    peer.address,
                ));
            }
        }
        self.validate_ranges()
    }
}

/// The own side of a graceful restart (RFC 4724 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarting {
    /// By `Family::index`: the kernel was found to still hold the routes of the earlier run. Only a
    /// dump of the kernel can prove that.
    pub forwarding_preserved: [bool; 2],
}

/// One neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Unique; what people call it.
    pub name: String,
    pub address: IpAddr,
    /// The interface index for a link-local address, else 0.
    pub scope_id: u32,
    /// Where to dial; incoming connections may come from any port.
    pub port: u16,
    pub asn: RemoteAs,
    /// Source address of outgoing connections, and the only one on which incoming ones are taken;
    /// by default what the kernel chooses.
    pub local_address: Option<IpAddr>,
    /// Never dial, only accept.
    pub passive: bool,
    /// An internal peer to which routes of other internal peers are reflected (RFC 4456).
    pub route_reflector_client: bool,
    /// TCP MD5 (RFC 2385).
    pub password: Option<Password>,
    /// GTSM (RFC 5082): the greatest number of hops the peer may be away; packets with a TTL below
    /// 256 less this are dropped by the kernel.
    pub ttl_security: Option<u8>,
    /// TTL of sent packets for an external peer that is not directly connected; by default 1 towards
    /// external peers and the system's default towards internal ones.
    pub multihop: Option<u8>,
    /// Offered families; at least one.
    pub families: Vec<Family>,
    /// Offer to take several paths for a prefix (RFC 7911).
    pub add_path_receive: bool,
    /// Send up to so many paths of a prefix, best first, to a peer that takes several (RFC 7911); 0
    /// offers none, [`ADD_PATH_ALL`] sends every path that may be sent.
    pub add_path_send: u16,
    /// Offer to carry IPv4 prefixes with IPv6 next hops (RFC 8950). `None`: on sessions over IPv6.
    pub extended_next_hop: Option<bool>,
    /// More prefixes than this in one family end the session with Cease 6/1.
    pub max_prefixes: Option<u32>,
    /// More than this are warned of in the log.
    pub warn_prefixes: Option<u32>,
    /// How long the session rests after it had too many prefixes; by default as after any error.
    pub max_prefixes_restart: Option<Duration>,
    /// By default nothing is taken, and what this speaker originates is sent (RFC 8212).
    pub import: Arc<Policy>,
    pub export: Arc<Policy>,
    /// Announce ourselves as next hop to internal peers for routes of external ones.
    pub next_hop_self: bool,
    /// What we are to this external peer (RFC 9234 §4.1); `None`: roles are not used.
    pub role: Option<Role>,
    /// The number under which this external peer knows us. It stands in the OPEN and in the path
    /// instead of ours, which the peer never sees.
    pub local_as: Option<Asn>,
    /// How often our own number may stand in a path that this peer sends.
    pub allow_own_as: u8,
    /// Send this external peer paths without leading numbers for private use (RFC 6996).
    pub remove_private_as: bool,
    pub timers: Timers,
    /// Advertise graceful restart (RFC 4724) with this restart time, at most 4,095 s.
    pub graceful_restart: Option<Duration>,
    /// When the peer comes back without the forwarding state it had, keep its routes for its restart
    /// time all the same: for a route reflector, through which nothing is forwarded. Not as
    /// RFC 4724 §4.2 wants it.
    pub assume_forwarding: bool,
    /// Long-lived graceful restart (RFC 9494); counts beside `graceful_restart`. `None`: off.
    pub long_lived: Option<LongLived>,
    /// Configured, but kept in Idle until enabled.
    pub shutdown: bool,
}

impl PeerConfig {
    /// A neighbour with every default.
    pub fn new(name: impl Into<String>, address: IpAddr, asn: impl Into<RemoteAs>) -> Self {
        Self {
            name: name.into(),
            address,
            scope_id: 0,
            port: BGP_PORT,
            asn: asn.into(),
            local_address: None,
            passive: false,
            route_reflector_client: false,
            password: None,
            ttl_security: None,
            multihop: None,
            families: Family::ALL.to_vec(),
            add_path_receive: false,
            add_path_send: 0,
            extended_next_hop: None,
            max_prefixes: None,
            warn_prefixes: None,
            max_prefixes_restart: None,
            local_as: None,
            allow_own_as: 0,
            remove_private_as: false,
            import: Arc::new(Policy::none()),
            export: Arc::new(Policy::export_blocks()),
            next_hop_self: false,
            role: None,
            timers: Timers::default(),
            graceful_restart: Some(Duration::from_secs(120)),
            assume_forwarding: false,
            long_lived: None,
            shutdown: false,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let fail = |reason: &'static str| {
            Err(ConfigError::Peer {
                name: self.name.clone(),
                reason,
            })
        };
        if self.name.is_empty() {
            return fail("the name is empty");
        }
        if !self.asn.is_valid() {
            return fail("AS 0 is reserved (RFC 7607)");
        }
        if self.local_as == Some(Asn(0)) {
            return fail("AS 0 is reserved (RFC 7607)");
        }
        if self.local_as.is_some() && self.local_as == self.asn.exact() {
            return fail("local_as is for external peers, and it is the peer's own number");
        }
        if self.families.is_empty() {
            return fail("no address family is enabled");
        }
        let hold = self.timers.hold_time;
        if !hold.is_zero() && hold < Duration::from_secs(3) {
            return fail("the hold time must be 0 or at least 3 s (RFC 4271 §4.2)");
        }
        if hold > Duration::from_secs(65_535) {
            return fail("the hold time must be at most 65535 s");
        }
        if let Some(local) = self.local_address
            && local.is_ipv4() != self.address.is_ipv4()
        {
            return fail("local_address and address are of different families");
        }
        if self.ttl_security.is_some() && self.multihop.is_some() {
            return fail("ttl_security and multihop exclude each other");
        }
        if self.ttl_security == Some(0) || self.multihop == Some(0) {
            return fail("a number of hops is at least 1");
        }
        if self
            .graceful_restart
            .is_some_and(|time| time > Duration::from_secs(4095))
        {
            return fail("the restart time must be at most 4095 s (RFC 4724 §3)");
        }
        if self
            .long_lived
            .is_some_and(|times| times.stale_time > LongLived::MAX_TIME)
        {
            return fail("the long-lived stale time must be at most 16777215 s (RFC 9494 §3.1)");
        }
        Ok(())
    }

    /// Whether IPv6 next hops of IPv4 prefixes are offered: by default where the session gives both
    /// sides IPv6 addresses that lead to each other.
    pub(crate) fn offers_extended_next_hop(&self) -> bool {
        self.extended_next_hop.unwrap_or(self.address.is_ipv6())
    }

    /// By `Family::index`.
    pub(crate) fn family_flags(&self) -> [bool; 2] {
        Family::ALL.map(|family| self.families.contains(&family))
    }
}

/// How long routes are kept when a neighbour does not come back within its restart time
/// (RFC 9494).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLived {
    /// What the neighbour is asked to keep ours for, at most 16,777,215 s. Zero: nothing is asked
    /// for and nothing is kept, but routes that others have kept are told apart and passed on.
    pub stale_time: Duration,
    /// The most that the neighbour may ask us to keep its routes for.
    pub max_stale_time: Duration,
}

impl LongLived {
    /// 24 bits of seconds (RFC 9494 §3.1).
    pub const MAX_TIME: Duration = Duration::from_secs(0x00ff_ffff);
}

/// How long things take. All but the hold time are local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Offered in the OPEN; the smaller of both sides counts. 0 turns keepalives off.
    pub hold_time: Duration,
    /// First wait between two dials; doubles with each failure up to `connect_retry_max`.
    pub connect_retry: Duration,
    pub connect_retry_max: Duration,
    /// First time in Idle after an error, doubling up to `error_hold_max` until a session has
    /// lasted. Nothing is dialled meanwhile; a peer that connects by itself is served, up to a rate
    /// that bounds a storm of reconnects. 0 turns the hold off.
    pub error_hold: Duration,
    pub error_hold_max: Duration,
    /// How long a fresh connection waits for the peer's OPEN before it sends its own
    /// (RFC 4271 §8.1.1, DelayOpen); 0 sends at once.
    pub open_delay: Duration,
    /// How long an OPEN may take to be answered (RFC 4271 §8.2.2, the "large value" of the hold
    /// timer in OpenSent).
    pub open_timeout: Duration,
    /// How long sent octets may stay unaccepted by the peer (RFC 9687); by default the greater of
    /// 8 minutes and twice the hold time.
    pub send_hold: Option<Duration>,
    /// How long routes of a restarted peer are kept after it is back, when its End-of-RIB does not
    /// come (RFC 4724 §4.2).
    pub stale_time: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            hold_time: Duration::from_secs(9),
            connect_retry: Duration::from_secs(1),
            connect_retry_max: Duration::from_secs(30),
            error_hold: Duration::from_secs(1),
            error_hold_max: Duration::from_secs(60),
            open_delay: Duration::ZERO,
            open_timeout: Duration::from_secs(240),
            send_hold: None,
            stale_time: Duration::from_secs(360),
        }
    }
}

/// A TCP MD5 key: 1 to 80 octets. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Box<[u8]>);

impl Password {
    /// The longest key Linux takes (TCP_MD5SIG_MAXKEYLEN).
    pub const MAX_LENGTH: usize = 80;

    /// An empty key is an error and never "no password".
    pub fn new(key: impl Into<Vec<u8>>) -> Result<Self, ConfigError> {
        let key = key.into();
        if key.is_empty() || key.len() > Self::MAX_LENGTH {
            return Err(ConfigError::PasswordLength(key.len()));
        }
        Ok(Self(key.into_boxed_slice()))
    }

    /// For the socket option.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Why a config cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the local AS number must not be 0 (RFC 7607)")]
    LocalAsn,
    #[error("the router id must not be 0.0.0.0 (RFC 6286)")]
    RouterId,
    #[error("two peers are named {0:?}")]
    DuplicateName(String),
    #[error("peer {0:?}: another peer has the address {1}")]
    DuplicateAddress(String, IpAddr),
    #[error("peer {0:?}: another range of peers is {1}")]
    DuplicateRange(String, IpNet),
    #[error("with the limits of all ranges there are more than {0} peers")]
    TooManyPeers(usize),
    #[error(
        "peer {name:?} has no password but lies inside the range of {range:?}, which has one: the \
         kernel would ask it for signatures too"
    )]
    PasswordOfRange { name: String, range: String },
    #[error("peer {name:?}: {reason}")]
    Peer { name: String, reason: &'static str },
    #[error("a TCP MD5 password has 1 to 80 octets, not {0}")]
    PasswordLength(usize),
}
