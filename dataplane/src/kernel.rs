//! What the kernel has, and the operations that change it: the language between the reconciler and
//! a kernel (the Linux one, or a fake one in tests).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::desired::Netns;

/// Route protocol of workloads, blackholes and tunnels, and IFA_PROTO of addresses of the host.
pub const PROTOCOL_AGENTD: u8 = 70;
/// Route protocol, and nexthop protocol, of learned routes.
pub const PROTOCOL_AGENTD_BGP: u8 = 71;
/// Host interface names start with this.
pub const INTERFACE_PREFIX: &str = "agt";
/// Interface aliases start with this; the workload id follows.
pub const ALIAS_PREFIX: &str = "agentd:";
/// Names of tunnel devices start with this.
pub const TUNNEL_PREFIX: &str = "agentd.";
/// Interface alias of tunnel devices.
pub const TUNNEL_ALIAS: &str = "agentd:tunnel";
/// Aliases of bridges: this and the name.
pub const BRIDGE_ALIAS_PREFIX: &str = "agentd-bridge:";
/// MAC address of every host veth and tap device, but of ports of bridges.
pub const HOST_MAC: [u8; 6] = [0xee; 6];
/// IPv4 gateway of every workload.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);
/// IPv6 gateway of every workload: the link-local address that belongs to `HOST_MAC`.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Interface indexes of our making: high, so that they never meet those of others, which count up
/// from 1.
pub const INDEX_RANGE: std::ops::Range<u32> = 0x2000_0000..0x7fff_0000;

/// A network namespace in which state is read and changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The one agentd runs in.
    Host,
    /// A workload's.
    Netns(Netns),
}

/// One change. Operations of a batch are carried out in order; each has its own result, and one that
/// fails does not stop those after it. Interface indexes are chosen by the reconciler, so that a
/// batch can create a link and use it without waiting in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// RTM_NEWLINK of kind veth in the host's namespace, with the peer made in place in the
    /// workload's. Both ends are set up; on the host's end IPv6 address generation is off, so that
    /// its link-local address is the one added later, without duplicate address detection. Fails
    /// with EEXIST or EBUSY when a name or index is taken, at either end, and then nothing is left.
    CreateVeth(Box<CreateVeth>),
    /// RTM_NEWLINK of a tunnel device in the host's namespace, which is marked with its alias and set
    /// up; it makes no IPv6 address by itself. Fails with EEXIST or EBUSY when the name, the index or
    /// the parameters are taken, with EOPNOTSUPP when the kernel does not know that kind, and then
    /// nothing is left.
    CreateTunnel(Box<CreateTunnel>),
    /// A persistent tap device in the host's namespace, set up as the host's end of a veth is.
    /// Fails with EEXIST or EBUSY when its name or index is taken, and then nothing is left. A
    /// device that is not complete never outlives the agent.
    CreateTap(Box<CreateTap>),
    /// A bridge in the host's namespace, up, without automatic link-local address. Fails with
    /// EEXIST when its name or index is taken.
    CreateBridge(Box<CreateBridge>),
    /// RTM_SETLINK: only what is `Some` is changed.
    SetLink {
        place: Place,
        link: LinkChange,
    },
    /// Deletes links of the host's namespace, as many as possible in one kernel operation. Links
    /// that are gone already do not count as failed.
    DeleteLinks(Vec<u32>),
    AddAddress {
        place: Place,
        address: Address,
    },
    DeleteAddress {
        place: Place,
        address: Address,
    },
    /// NLM_F_CREATE | NLM_F_EXCL: fails with EEXIST when a route with this prefix, table and metric
    /// stands already, whoever made it. Used wherever nothing is known to stand, so that a foreign
    /// route is never replaced.
    AddRoute {
        place: Place,
        route: Route,
    },
    /// NLM_F_CREATE | NLM_F_REPLACE. Used only over a route of our own.
    ReplaceRoute {
        place: Place,
        route: Route,
    },
    /// Deletes by prefix, table, metric and protocol.
    DeleteRoute {
        place: Place,
        route: Route,
    },
    /// Host's namespace only.
    ReplaceNextHop(NextHop),
    /// Removes its routes as well.
    DeleteNextHop {
        id: u32,
    },
    /// Permanent entry.
    ReplaceNeighbour {
        place: Place,
        neighbour: Neighbour,
    },
    DeleteNeighbour {
        place: Place,
        neighbour: Neighbour,
    },
    /// Permanent entry of a VXLAN device's forwarding database, host's namespace only.
    ReplaceFdb(FdbEntry),
    DeleteFdb(FdbEntry),
    /// Relative to /proc/sys, with `/` between parts, such as `net/ipv4/conf/agt0/proxy_arp`.
    WriteSysctl {
        place: Place,
        path: String,
        value: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVeth {
    pub name: String,
    pub index: u32,
    pub alias: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub peer_netns: Netns,
    pub peer_name: String,
    pub peer_index: u32,
    pub peer_mac: [u8; 6],
    /// Index of the bridge that the host's end is a port of.
    pub master: Option<u32>,
    /// The host's end hears no IPv6 multicast: the kernel's own route to ff00::/8 at that link is
    /// taken away once the link is up, as far as that is possible. Without such routes a link costs
    /// the same however many there are.
    pub deaf: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTap {
    pub name: String,
    pub index: u32,
    pub alias: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub multi_queue: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateBridge {
    pub name: String,
    pub index: u32,
    pub alias: String,
    pub mac: [u8; 6],
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTunnel {
    pub name: String,
    pub index: u32,
    pub alias: String,
    /// Only of kinds that have one.
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub tunnel: Tunnel,
}

/// Kind and parameters of a tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// IPv4 in IPv4; the other end is the gateway of the route.
    Ipip { local: Ipv4Addr },
    Vxlan {
        /// 1 to 16777215.
        vni: u32,
        /// UDP.
        port: u16,
        /// Unspecified: the kernel chooses.
        local: IpAddr,
        learning: bool,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    pub index: u32,
    pub up: Option<bool>,
    pub mtu: Option<u32>,
    pub mac: Option<[u8; 6]>,
    pub alias: Option<String>,
    /// 0: of no other.
    pub master: Option<u32>,
    /// Older kernels refuse that while the link is up.
    pub name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    pub alias: Option<String>,
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    /// IFF_UP.
    pub up: bool,
    /// IFF_LOWER_UP, or an operational state that carries packets.
    pub running: bool,
    /// Index of the other end in its namespace (veth), or of the lower device.
    pub peer_index: Option<u32>,
    pub master: Option<u32>,
    /// Of IPIP and VXLAN devices without a remote end of their own.
    pub tunnel: Option<Tunnel>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LinkKind {
    Loopback,
    Veth,
    /// A tun device of either mode.
    Tap,
    Bridge,
    Other(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub index: u32,
    /// With host bits: 192.168.1.10/24.
    pub net: IpNet,
    /// IFA_F_NODAD, for IPv6.
    pub nodad: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub prefix: IpNet,
    /// 254 is main.
    pub table: u32,
    /// 0 means the kernel's default (IPv6: 1024); dumps report what the kernel holds.
    pub metric: u32,
    pub protocol: u8,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Blackhole,
    /// `unreachable`, `prohibit`, `throw`: seen, never made.
    Reject,
    /// `dev IF scope link`.
    Link {
        index: u32,
    },
    /// One or more gateways. Only foreign routes and workload namespaces use this form.
    Gateways(Vec<Gateway>),
    /// RTA_NH_ID.
    NextHop {
        id: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gateway {
    /// `None`: the interface alone.
    pub address: Option<IpAddr>,
    pub index: u32,
    pub onlink: bool,
    /// 1 to 256.
    pub weight: u16,
}

/// A kernel nexthop object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Not 0.
    pub id: u32,
    pub protocol: u8,
    pub kind: NextHopKind,
    /// Groups only: flows keep their member when others come and go. A group stays of its type, and
    /// keeps its number of buckets, as long as it stands.
    pub resilient: Option<Resilient>,
}

/// Parameters of a resilient group. The kernel counts time in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resilient {
    /// 1 to 65535; not less than the members.
    pub buckets: u16,
    /// A bucket without traffic for so long may go to another member.
    pub idle_timer: Duration,
    /// Buckets are moved, idle or not, when the group was unbalanced for so long. 0: never.
    pub unbalanced_timer: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NextHopKind {
    Gateway(Gateway),
    Blackhole,
    /// Ids of its members with their weights, in ascending id order.
    Group(Vec<(u32, u16)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    pub index: u32,
    pub address: IpAddr,
    pub mac: [u8; 6],
    /// NUD_PERMANENT.
    pub permanent: bool,
}

/// Where a VXLAN device sends frames to a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdbEntry {
    pub index: u32,
    pub mac: [u8; 6],
    /// Address of the remote device.
    pub remote: IpAddr,
}

/// The state of a place at one moment, as far as it can be of interest: in the host's namespace,
/// all links, addresses, nexthop objects, permanent neighbours of our links, and the routes of the
/// main table; in a workload's, the same of all its links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    /// Those of them that carry our mark. [`Op::AddAddress`] sets it in the host's namespace; kernels
    /// before Linux 5.18 do not keep it.
    pub marked_addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub next_hops: Vec<NextHop>,
    pub neighbours: Vec<Neighbour>,
    /// Permanent entries of our VXLAN devices.
    pub fdb: Vec<FdbEntry>,
    /// Those that were asked for, by path; `None` where there is no such file.
    pub sysctls: Vec<(String, Option<String>)>,
}

/// Something changed, not by this agent's own batches (the driver filters those out).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Link(Link),
    LinkDeleted {
        index: u32,
    },
    Address(Address),
    AddressDeleted(Address),
    Route(Route),
    RouteDeleted(Route),
    NextHop(NextHop),
    NextHopDeleted {
        id: u32,
    },
    Neighbour(Neighbour),
    NeighbourDeleted(Neighbour),
    Fdb(FdbEntry),
    FdbDeleted(FdbEntry),
    /// RTM_NEWNETCONF: a sysctl of that interface changed.
    Netconf {
        index: u32,
    },
    /// Somebody wrote a file below /proc/sys/net. In which namespace is not known: it may be another
    /// parameter of that name.
    Sysctl {
        /// Below /proc/sys.
        path: String,
        /// What it has since; `None`: it could not be read.
        value: Option<String>,
    },
}

/// What the kernel answered to one [`Op`].
pub type OpResult = Result<(), OpError>;

/// `Clone` is cheap: results are kept for the reports about them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} (errno {errno})")]
pub struct OpError {
    /// Positive errno value, such as 17 for EEXIST. ESTALE (116) when the namespace's path names
    /// another namespace than it did, ENOENT (2) when it names none.
    pub errno: i32,
    /// The operation and what the kernel said (with NLMSGERR_ATTR_MSG when it gave one).
    pub text: Arc<str>,
}

/// What the reconciler wants to see. Answered with a [`Snapshot`] that holds only what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Everything of interest in that place, and these sysctls (see [`Snapshot`]).
    Place { place: Place, sysctls: Vec<String> },
    /// One link by index, its addresses and permanent neighbours, and these sysctls. Costs the same
    /// however many links the place has.
    Link {
        place: Place,
        index: u32,
        /// Permanent neighbours of that link to look up.
        neighbours: Vec<IpAddr>,
        sysctls: Vec<String>,
    },
    /// The links of a workload's namespace, with their addresses and the routes of the main table,
    /// these permanent neighbours by interface index, and these sysctls. Costs the same however many
    /// workloads there are, which [`Query::Place`] does not: the kernel keeps the neighbours of all
    /// namespaces in one table.
    Inside {
        netns: Netns,
        neighbours: Vec<(u32, IpAddr)>,
        sysctls: Vec<String>,
    },
    /// Routes of the host's main table for exactly these prefixes. Costs the same however many
    /// routes there are.
    Routes(Vec<IpNet>),
}
