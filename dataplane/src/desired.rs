//! What the agent wants the node to look like, and what it is told about it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

/// Where desired objects come from. Adds and changes apply at once; what the kernel has with our
/// marks and nobody wants is deleted only once the source of that kind of object is in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Blackhole routes of own blocks.
    Block,
    /// Links, addresses, neighbours and host routes of workloads, and bridges.
    Workload,
    /// Learned routes and their nexthop objects.
    Bgp,
    /// Tunnel devices.
    Tunnel,
}

/// An object somebody wants. Setting an object whose id is already wanted replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `blackhole PREFIX proto agentd`. Not wanted for blocks of one address.
    Blackhole(IpNet),
    Workload(Arc<Workload>),
    /// To be set before the workloads on it.
    Bridge(Arc<Bridge>),
    Route(LearnedRoute),
    Tunnels(Box<Tunnels>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    Blackhole(IpNet),
    Workload(Arc<str>),
    /// By name.
    Bridge(Arc<str>),
    Route(IpNet),
    /// There is one such object.
    Tunnels,
}

impl Object {
    pub fn id(&self) -> ObjectId {
        match self {
            Object::Blackhole(prefix) => ObjectId::Blackhole(*prefix),
            Object::Workload(workload) => ObjectId::Workload(workload.id.clone()),
            Object::Bridge(bridge) => ObjectId::Bridge(bridge.name.clone()),
            Object::Route(route) => ObjectId::Route(route.prefix),
            Object::Tunnels(_) => ObjectId::Tunnels,
        }
    }
}

impl ObjectId {
    pub fn source(&self) -> Source {
        match self {
            ObjectId::Blackhole(_) => Source::Block,
            ObjectId::Workload(_) | ObjectId::Bridge(_) => Source::Workload,
            ObjectId::Route(_) => Source::Bgp,
            ObjectId::Tunnels => Source::Tunnel,
        }
    }
}

/// What is connected, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub id: Arc<str>,
    pub attachment: Attachment,
    /// At most one of each family; none with [`Attachment::Loopback`].
    pub addresses: Vec<IpAddr>,
    /// Bytes; `None` follows the underlay, or the bridge.
    pub mtu: Option<u32>,
    pub access: Access,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A veth pair, of which one end stands in the workload's namespace; host routes lead there.
    Routed(Inside),
    /// A tap device in the host's namespace, for a virtual machine; host routes lead there.
    Tap(Tap),
    /// A veth pair, of which one end stands in the workload's namespace and the other is a port of
    /// a [`Bridge`].
    Bridged { inside: Inside, bridge: Arc<str> },
    /// Nothing but `lo` in a namespace of its own, which is set up.
    Loopback(Netns),
}

/// An interface in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    pub netns: Netns,
    pub interface: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// `None`: derived from the id, as that of a veth.
    pub name: Option<String>,
    /// Who may open it besides those with CAP_NET_ADMIN.
    pub owner: Option<u32>,
    pub group: Option<u32>,
    /// IFF_MULTI_QUEUE.
    pub multi_queue: bool,
    /// Of the guest: then its neighbour entries on the host are permanent.
    pub mac: Option<[u8; 6]>,
}

/// A bridge of the host's namespace that workloads join. The host's addresses on it are their
/// gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Of the device, too.
    pub name: Arc<str>,
    /// With the prefix length of the subnet, such as 172.30.0.1/24; at most one of each family.
    pub gateways: Vec<IpNet>,
    /// Bytes; `None` follows the underlay.
    pub mtu: Option<u32>,
}

impl Workload {
    /// The namespace it stands in, besides the host's.
    pub fn netns(&self) -> Option<&Netns> {
        match &self.attachment {
            Attachment::Routed(inside) | Attachment::Bridged { inside, .. } => Some(&inside.netns),
            Attachment::Loopback(netns) => Some(netns),
            Attachment::Tap(_) => None,
        }
    }

    /// Its interface there.
    pub fn interface(&self) -> Option<&str> {
        match &self.attachment {
            Attachment::Routed(inside) | Attachment::Bridged { inside, .. } => {
                Some(&inside.interface)
            }
            Attachment::Tap(_) | Attachment::Loopback(_) => None,
        }
    }
}

/// What a workload may do besides using its own addresses, and how it is reached besides by them.
/// For most it is empty, and then no filter element is written for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub ports: Vec<PublishedPort>,
    /// Source addresses beside its own that it may send from.
    pub allowed: Vec<IpNet>,
}

/// A port of the node that leads to a workload: to its address of the same family, or of both when
/// no host address is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort {
    pub protocol: Protocol,
    /// `None`: every address of the node.
    pub host_address: Option<IpAddr>,
    /// Not 0.
    pub host_port: u16,
    /// Not 0.
    pub container_port: u16,
}

/// Protocols with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As assigned by IANA.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// What the node's filter table is made of besides the workloads' [`Access`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterSettings {
    /// Where workloads are: what goes there is not masqueraded. All pools; the subnets of bridges
    /// come by themselves.
    pub inside: Vec<IpNet>,
    /// Sources that are masqueraded towards everything else: pools.
    pub masquerade: Vec<IpNet>,
    /// Subnets of bridges, to which no other node has a route: masqueraded towards everything but
    /// workloads of this node.
    pub bridged: Vec<IpNet>,
}

/// A network namespace, by path and by identity: a path such as `/proc/PID/ns/net` may name another
/// namespace later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Netns {
    pub path: PathBuf,
    /// Device and inode of the namespace file.
    pub device: u64,
    pub inode: u64,
}

/// A route that BGP chose. Next hops are BGP next hops: the reconciler resolves them to gateways
/// and interfaces by the node's own addresses and routes, and follows their changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedRoute {
    pub prefix: IpNet,
    /// More than one: equal-cost multipath. Sorted, without duplicates. None: packets are dropped,
    /// `blackhole PREFIX proto agentd-bgp`.
    /// Routes by the hundred thousand share a few lists.
    pub next_hops: Arc<[Via]>,
}

/// A BGP next hop: an address of either family, whatever the family of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via {
    pub address: IpAddr,
    /// Index of the interface on which a link-local address is meant, else 0. A link-local address
    /// without one cannot be resolved.
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

/// How packets get to the workloads of other nodes, by pool, and what is needed for that.
///
/// The endpoint of a tunnel is the BGP next hop of the route. A change applies at once: a learned
/// route keeps its nexthop object, which is replaced, so that no packet meets a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// This node's own endpoints in the underlay.
    pub local: Option<Ipv4Addr>,
    pub local6: Option<Ipv6Addr>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
    /// Devices for these exist even when no pool uses them: packets that come through them are taken.
    pub accept: Vec<Encapsulation>,
    /// A route that lies in none of these is direct. They do not overlap.
    pub pools: Vec<PoolTunnel>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTunnel {
    pub cidr: IpNet,
    pub encapsulation: Encapsulation,
    pub scope: Scope,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encapsulation {
    #[default]
    None,
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
    /// RFC 7348.
    Vxlan,
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Encapsulation::None => "none",
            Encapsulation::Ipip => "ipip",
            Encapsulation::Vxlan => "vxlan",
        })
    }
}

/// Which next hops are reached through the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    #[default]
    Always,
    /// Only those that are not inside a subnet of one of this node's interfaces.
    CrossSubnet,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Scope::Always => "always",
            Scope::CrossSubnet => "cross-subnet",
        })
    }
}

/// What the reconciler reports. Each is sent when it becomes so, and again when it changes.
///
/// Learned routes come by the hundred thousand, so they are not reported one by one when all is
/// well: for [`ObjectId::Route`] there is no `Programmed` (but after a `Failed`) and no `Removed`,
/// and unresolvable next hops are told by `NextHop` alone. `Status` counts them, and
/// `Reconciler::object` tells the state of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first dump was read and compared: what is ours in the kernel is known.
    Started,
    /// The object stands in the kernel as wanted; this was read back, not assumed.
    Programmed { id: ObjectId, detail: Detail },
    /// The object cannot be made now. Retried with back-off and whenever something relevant
    /// changes, until it is removed.
    Failed { id: ObjectId, error: Failure },
    /// What was asked to be removed is gone: for a workload, its routes are away and its link is
    /// to be reaped.
    Removed { id: ObjectId },
    /// Somebody changed or deleted something of ours, and it was put back.
    Repaired { id: ObjectId, what: String },
    /// The same of something that belongs to no single object: a kernel nexthop object, a sysctl of
    /// the whole node.
    SharedRepaired { what: String },
    /// Nothing in the kernel with our marks is unknown any more to that source: stale objects of an
    /// earlier run are deleted.
    Swept { source: Source, deleted: usize },
    /// A watched next hop became (un)reachable, or its metric changed.
    NextHop { via: Via, state: NextHopState },
    /// MTU that workloads without one of their own get, when it becomes known or changes.
    Mtu(u32),
    /// Addresses of the node on links that are not ours, in order; without loopback and link-local
    /// ones. When they become known or change.
    NodeAddresses(Vec<IpAddr>),
    /// The nftables table stands as wanted, for the first time or after a failure.
    FilterProgrammed,
    /// Somebody changed or deleted something of the nftables table, and it was put back.
    FilterRepaired { what: String },
    /// The nftables table cannot be brought to what is wanted now. Retried with back-off.
    FilterFailed(Failure),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Workloads only.
    pub host_interface: String,
    pub host_ifindex: u32,
    pub mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHopState {
    Unreachable,
    /// Metric of the kernel route that leads there; 0 when directly connected.
    Reachable {
        metric: u32,
    },
}

/// What sort of thing of ours somebody changed, for counts of repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Of a workload: veth, tap device, or its end inside.
    Link,
    Bridge,
    Tunnel,
    Address,
    Neighbour,
    /// Of a tunnel device.
    Forwarding,
    /// To or inside a workload.
    Route,
    Blackhole,
    LearnedRoute,
    NextHop,
    Sysctl,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Link,
        Kind::Bridge,
        Kind::Tunnel,
        Kind::Address,
        Kind::Neighbour,
        Kind::Forwarding,
        Kind::Route,
        Kind::Blackhole,
        Kind::LearnedRoute,
        Kind::NextHop,
        Kind::Sysctl,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Link => "link",
            Kind::Bridge => "bridge",
            Kind::Tunnel => "tunnel",
            Kind::Address => "address",
            Kind::Neighbour => "neighbour",
            Kind::Forwarding => "fdb",
            Kind::Route => "route",
            Kind::Blackhole => "blackhole",
            Kind::LearnedRoute => "learned-route",
            Kind::NextHop => "nexthop",
            Kind::Sysctl => "sysctl",
        }
    }
}

/// Why an object is not in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// For a person: what was tried, on what, and what the kernel said.
    pub text: String,
    /// When it is tried again by itself.
    pub retry_in: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The namespace does not exist any more, or the path names another one.
    NamespaceGone,
    /// The interface name is taken inside the namespace.
    InterfaceInUse,
    /// A foreign object stands on our key; it is never touched.
    Conflict,
    /// No next hop can be resolved.
    Unresolved,
    /// We may not: CAP_NET_ADMIN or CAP_SYS_ADMIN is missing.
    Permission,
    /// The kernel refused for another reason.
    Kernel,
}
