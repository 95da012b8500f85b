//! What people and the API see of the reconciler: copies, never references into its state.

use std::{net::IpAddr, time::Instant};

use ipnet::IpNet;

use crate::{
    desired::{Detail, Failure, NextHopState},
    kernel::Target,
};

/// Counters and the overall state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The first dump was read.
    pub started: bool,
    /// Objects wanted.
    pub objects: usize,
    pub workloads: usize,
    pub blackholes: usize,
    /// Learned routes wanted.
    pub learned_routes: usize,
    /// Learned routes that stand in the kernel as wanted.
    pub learned_installed: usize,
    /// Kernel nexthop objects of ours.
    pub next_hop_objects: usize,
    /// Objects that wait to be written or read back.
    pub pending: usize,
    /// Objects that cannot be made now: retried with back-off.
    pub failing: usize,
    /// Operations sent to the kernel since the start.
    pub writes: u64,
    /// Operations that the kernel refused.
    pub write_errors: u64,
    /// Times something of ours was found changed by others and put back.
    pub repairs: u64,
    /// Stale objects of earlier runs that were deleted.
    pub swept: u64,
    /// Links whose routes are gone and that wait to be deleted.
    pub links_to_reap: usize,
    /// Times the kernel dropped notifications, or a dump had to be repeated.
    pub overruns: u64,
    /// Foreign objects that stand where ours should, for a person.
    pub conflicts: Vec<String>,
    /// When the last full comparison ended.
    pub last_audit: Option<Instant>,
    /// MTU of workloads that have none of their own.
    pub mtu: u32,
}

/// A route of the host's main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    pub prefix: IpNet,
    pub protocol: u8,
    pub metric: u32,
    pub target: Target,
    /// Where packets go, with nexthop objects resolved: (interface name, interface index, gateway).
    /// Empty for blackholes.
    pub hops: Vec<Hop>,
    /// It is ours: it carries one of our route protocols.
    pub own: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Empty when the link is unknown.
    pub interface: String,
    pub index: u32,
    /// `None`: directly connected.
    pub gateway: Option<IpAddr>,
    pub weight: u16,
}

/// State of one wanted object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectStatus {
    /// To be written or read back.
    Pending,
    Programmed(Detail),
    Failed(Failure),
    /// Its routes are being taken away.
    Removing,
}

/// What the host's main table says about an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Longest match, ours or foreign; with several of one length, the lowest metric.
    pub route: Option<KernelRoute>,
    /// It is an address of this node itself.
    pub local: bool,
    /// MAC of the permanent neighbour entry, where the route leads to a workload's link.
    pub neighbour: Option<[u8; 6]>,
    /// The workload whose address it is, if it is one of this node.
    pub workload: Option<std::sync::Arc<str>>,
}

/// A BGP next hop as the kernel's routes resolve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopView {
    pub address: IpAddr,
    pub state: NextHopState,
    /// Resolved: through which gateway (itself when on-link) and interface.
    pub hop: Option<Hop>,
    /// Id of the kernel nexthop object, when one stands.
    pub id: Option<u32>,
    /// Sets of next hops of learned routes that contain it.
    pub users: usize,
}
