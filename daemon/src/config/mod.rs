//! The configuration of the agent: typed, validated, and complete with every default.
//!
//! [`Config::load`] reads the TOML file. It either returns a configuration in which everything
//! holds that the rest of the agent relies on, or all the errors it found, each with file, line,
//! key, what is wrong and what is allowed. Unknown keys are errors. Keys that belong to the
//! format but to something this version cannot do are refused as "not supported yet": a key that
//! is accepted has an effect.
//!
//! What is deliberately absent: values that only the running node knows (its underlay address when
//! none is configured) stay `None` here and are resolved at run time.
//!
//! `deploy/config/agentd.toml` names every key beside its default.

mod bgp;
#[cfg(test)]
mod bgp_tests;
mod bridge;
#[cfg(test)]
mod bridge_tests;
mod document;
mod error;
mod etcd;
mod mesh;
mod neighbor;
mod originate;
mod paths;
mod policy;
#[cfg(test)]
mod policy_tests;
mod pool;
#[cfg(test)]
mod pool_tests;
mod restart;
#[cfg(test)]
mod samples;
mod sections;
mod selector;
#[cfg(test)]
mod tests;
mod tunnel;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ::bgp::{policy::Policy, rib::LocalRoute, speaker::config::RemoteAs, types::Family};
use dataplane::{
    desired::{Encapsulation, Scope},
    kernel::Resilient,
};
use ipnet::IpNet;

pub use bridge::{Bridge, Subnet, is_pool_of_bridge};
pub use error::{ConfigError, ConfigErrors};
pub use selector::Selector;

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    pub node: Node,
    pub api: Api,
    /// In the order of the file. Pools never overlap.
    pub pools: Vec<Pool>,
    /// In the order of the file. Their subnets overlap neither each other nor the pools.
    pub bridges: Vec<Bridge>,
    pub tunnel: Tunnel,
    pub ipam: Ipam,
    /// `None`: no `[bgp]` section, and no speaker runs.
    pub bgp: Option<Bgp>,
    /// `[[policy]]`, in the order of the file, also those no peer uses.
    pub policies: Vec<Arc<Policy>>,
    pub telemetry: Telemetry,
    pub log: Log,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Default: the host name.
    pub name: String,
    /// Underlay address. `None`: the source address of the route to the first IPv4 peer.
    pub address: Option<Ipv4Addr>,
    /// IPv6 underlay address. `None`: the source address of the route to the first IPv6 peer.
    pub address6: Option<Ipv6Addr>,
    /// Absolute.
    pub state_dir: PathBuf,
    /// What `node_selector` of pools looks at.
    pub labels: BTreeMap<String, String>,
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Absolute, short enough for a socket address. Made with mode 0660 and group `agentd`.
    pub socket: PathBuf,
}

/// `[[pool]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique; 1 to 63 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    /// Without host bits.
    pub cidr: IpNet,
    /// Prefix length of a block: 20 to 32 in IPv4 pools, 116 to 128 in IPv6 pools, and not
    /// shorter than the pool's own.
    pub block_size: u8,
    /// No new addresses or blocks from it; what is in use stays.
    pub disabled: bool,
    /// What its workloads send to addresses outside of all pools carries the node's address.
    pub nat_outgoing: bool,
    /// How its addresses on other nodes are reached.
    pub encapsulation: Encapsulation,
    pub encapsulation_scope: Scope,
    /// Never given out. Each lies inside the pool; sorted, without overlap.
    pub reserved: Vec<IpNet>,
    /// Nor are the first and the last address of each block.
    pub keep_ends_unused: bool,
    /// Most blocks of it that this node may hold. `None`: as many as it may claim.
    pub max_blocks: Option<u32>,
    /// Which nodes take addresses from it. `None`: all.
    pub node_selector: Option<Selector>,
    /// `node_selector` holds for the labels of this node.
    pub for_this_node: bool,
    /// Which workloads get addresses from it when they name no pool. `None`: all.
    pub workload_selector: Option<Selector>,
    /// What `ipam.claim` names inside this pool: whole blocks, not overlapping, in the order of
    /// the file.
    pub claim: Vec<IpNet>,
}

impl Pool {
    /// With every other key at its default, and no range to claim from.
    pub fn new(name: impl Into<String>, cidr: IpNet, block_size: u8) -> Self {
        Pool {
            name: name.into(),
            cidr,
            block_size,
            disabled: false,
            nat_outgoing: false,
            encapsulation: Encapsulation::None,
            encapsulation_scope: Scope::Always,
            reserved: Vec::new(),
            keep_ends_unused: false,
            max_blocks: None,
            node_selector: None,
            for_this_node: true,
            workload_selector: None,
            claim: Vec::new(),
        }
    }

    /// The part of a bridge's subnet that workloads get addresses from.
    fn of_bridge(name: String, cidr: IpNet, block_size: u8, reserved: Vec<IpNet>) -> Self {
        Pool {
            reserved,
            claim: vec![cidr],
            ..Pool::new(name, cidr, block_size)
        }
    }
}

/// `[tunnel]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// VXLAN network identifier: 1 to 16777215.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
    /// Taken from other nodes although no pool sends by it. Sorted, without "none".
    pub accept: Vec<Encapsulation>,
}

/// `[ipam]`. The claim ranges stand at the pools they lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// Time after its release in which an address is not given to another workload.
    pub cooldown: Duration,
    /// The next block of a pool is claimed when this share of a block's addresses, in percent,
    /// is not free: 1 to 100.
    pub claim_ahead: u8,
    /// An empty block is given back when it was empty for so long.
    pub release_empty_after: Duration,
    /// What a client does not name when it states all its workloads is released after so long,
    /// unless the client asks for another time.
    pub release_unnamed_after: Duration,
    /// Where it is agreed which node holds a block.
    pub store: Store,
    /// Always there when `store` says etcd.
    pub etcd: Option<Etcd>,
}

impl Default for Ipam {
    fn default() -> Self {
        sections::defaults::IPAM
    }
}

/// Where it is agreed which node holds a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// By the configuration: each node claims from ranges of its own.
    #[default]
    Local,
    /// By transactions of an etcd that the fleet shares.
    Etcd,
}

/// `[ipam.etcd]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// URLs, at least one.
    pub endpoints: Vec<String>,
    /// Starts with a slash and does not end with one.
    pub prefix: String,
    pub tls: Option<EtcdTls>,
    /// A user name, and the file with its password.
    pub login: Option<(String, PathBuf)>,
    /// How long a node that says nothing counts as alive.
    pub lease: Duration,
    /// When the blocks of a node that is not alive go to others without an operator. `None`: never.
    pub reclaim_after: Option<Duration>,
}

/// `tls` of `[ipam.etcd]`: PEM files, read at every connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signs the servers' certificates.
    pub ca: Option<PathBuf>,
    /// The node's own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// `[bgp]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bgp {
    /// 1 to 4294967295.
    pub asn: u32,
    /// `None`: `node.address`.
    pub router_id: Option<Ipv4Addr>,
    /// May be empty: then connections are only dialled.
    pub listen: Vec<SocketAddr>,
    /// Present: this node reflects routes between its clients (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// Whether learned routes go to the kernel; a route reflector or route server that forwards
    /// nothing does without.
    pub install_routes: bool,
    /// `None`: a flow may change its next hop when another one of its group comes or goes.
    pub resilient_hashing: Option<Resilient>,
    /// Prefixes announced beside the blocks, each once.
    pub originate: Vec<(IpNet, LocalRoute)>,
    /// In the order of the file; names and addresses are unique. Every value that `[bgp]` gives
    /// a default for is already filled in.
    pub peers: Vec<Peer>,
    /// `[[bgp.peer]]` with a range; names are unique among both.
    pub ranges: Vec<PeerRange>,
    /// Full mesh with the registered nodes: what each of these peers is, but for name and address.
    pub mesh: Option<Box<Peer>>,
}

/// Peers that are known by a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRange {
    /// Without host bits.
    pub range: IpNet,
    /// Most of them at once, 1 to 10,000.
    pub limit: u32,
    /// What holds for each. Its address is the first of the range.
    pub peer: Peer,
}

impl PeerRange {
    pub const DEFAULT_LIMIT: u32 = 100;
}

/// `[[bgp.peer]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Unique; 1 to 63 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    pub address: IpAddr,
    /// To connect to.
    pub port: u16,
    /// Exactly `bgp.asn`: an internal peer. Several numbers are all others.
    pub asn: RemoteAs,
    /// Source of outgoing connections; of the family of `address`.
    pub local_address: Option<IpAddr>,
    /// Never dials.
    pub passive: bool,
    /// Only internal peers, and only with `bgp.cluster_id`.
    pub route_reflector_client: bool,
    /// TCP MD5 (RFC 2385).
    pub password: Option<Password>,
    /// GTSM (RFC 5082): how many hops away the peer is at most, 1 to 254. Excludes `multihop`.
    pub ttl_security: Option<u8>,
    /// TTL of outgoing packets to an external peer that is not directly connected, 2 to 255.
    pub multihop: Option<u8>,
    /// To offer; at least one.
    pub families: Vec<Family>,
    /// Offer to take several paths for a prefix (RFC 7911).
    pub add_path_receive: bool,
    /// Send up to so many paths for a prefix (RFC 7911); 0: one, without an identifier.
    pub add_path_send: u16,
    /// Offer IPv6 next hops for IPv4 prefixes (RFC 8950). `None`: on sessions over IPv6.
    pub extended_next_hop: Option<bool>,
    /// The session ends when the peer sends more prefixes of one family (Cease, RFC 4486).
    /// `None`: no limit.
    pub max_prefixes: Option<u32>,
    /// A warning is logged when the peer sends more: a share of `max_prefixes`.
    pub max_prefixes_warning: Option<u32>,
    /// How long the session rests after `max_prefixes`. `None`: as after any error.
    pub max_prefixes_restart: Option<Duration>,
    /// Only external peers: the number by which they know this node instead of `bgp.asn`.
    pub local_as: Option<u32>,
    /// How often an own number may stand in a received path, 0 to 10.
    pub allow_own_as: u8,
    /// Only internal peers: our address as next hop also of routes of external peers.
    pub next_hop_self: bool,
    /// Only external peers: paths without leading numbers for private use.
    pub remove_private_as: bool,
    /// Routes with the community BLACKHOLE are honoured (RFC 7999).
    pub blackhole: bool,
    pub import: ImportPolicy,
    pub export: ExportPolicy,
    /// Zero: no keepalives and no hold timer; otherwise at least 3 s. Keepalive is a third of it.
    pub hold_time: Duration,
    /// First wait between attempts to connect; grows with each.
    pub connect_retry_time: Duration,
    /// How long the peer is not dialled after an error; doubles with every further error in a row.
    pub idle_hold_time: Duration,
    /// Up to this; not less than the first.
    pub idle_hold_time_max: Duration,
    /// RFC 9234: what this node is to the peer. `None`: roles are not used.
    pub role: Option<::bgp::rib::Role>,
    /// `None`: not offered.
    pub graceful_restart: Option<GracefulRestart>,
    /// RFC 9494, beside graceful restart. `None`: off.
    pub long_lived: Option<::bgp::speaker::config::LongLived>,
}

/// RFC 4724.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// How long peers keep this node's routes after the session is lost: 1 to 4095 s.
    pub restart_time: Duration,
    /// A peer that restarted without its forwarding state is treated as if it had kept it.
    pub assume_forwarding: bool,
}

/// What is taken from a peer: a built-in policy, or one of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImportPolicy {
    /// Only prefixes inside the pools; never a default route, never an own block.
    #[default]
    Pools,
    All,
    None,
    Named(Arc<Policy>),
}

/// What is sent to a peer: a built-in policy, or one of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExportPolicy {
    /// Own blocks; a reflector also those of its clients.
    #[default]
    Blocks,
    All,
    None,
    Named(Arc<Policy>),
}

/// A TCP MD5 key, 1 to 80 bytes. Its content never shows in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Where Prometheus metrics are served over HTTP. `None`: `"off"`.
    pub metrics_listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A level, or a list of `target=level` in the form tracing's `EnvFilter` reads.
    pub level: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// journald when started by systemd, text otherwise.
    #[default]
    Auto,
    Json,
    Text,
    Journald,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        Config::parse(&Config::read(path)?, path)
    }

    /// The content of the file.
    pub fn read(path: &Path) -> Result<String, ConfigErrors> {
        std::fs::read_to_string(path)
            .map_err(|error| ConfigErrors::of_file(path, format!("cannot be read: {error}")))
    }

    /// Checks `text` as the content of `file`. Relative paths of password files start at the
    /// directory of `file`; they are read here.
    pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
        sections::parse(text, file).0
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}

/// One line for a person: what `--check` says about a valid file.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claims: usize = self.pools.iter().map(|pool| pool.claim.len()).sum();
        write!(
            f,
            "{}: valid; node {}, {}, {}",
            self.file.display(),
            self.node.name,
            Count(self.pools.len(), "pool"),
            Count(claims, "claim range"),
        )?;
        match &self.bgp {
            None => f.write_str(", no BGP"),
            Some(bgp) => {
                write!(f, ", AS {}, {}", bgp.asn, Count(bgp.peers.len(), "peer"))?;
                match bgp.ranges.len() {
                    0 => Ok(()),
                    ranges => write!(f, ", {}", Count(ranges, "range of peers")),
                }
            }
        }
    }
}

/// `1 pool`, `2 pools`.
struct Count(usize, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1.split_once(" of ")) {
            (1, _) => write!(f, "1 {}", self.1),
            (count, Some((first, rest))) => write!(f, "{count} {first}s of {rest}"),
            (count, None) => write!(f, "{count} {}s", self.1),
        }
    }
}
