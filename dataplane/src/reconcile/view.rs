//! What people and the API see of the reconciler: copies, never references into its state.

use std::{net::IpAddr, time::Instant};

use ipnet::IpNet;

use super::{Reconciler, attach::key_of, lifecycle::Stage, table::NONE};
use crate::{
    desired::{
        Detail, Encapsulation, Failure, FailureKind, Kind, NextHopState, ObjectId, PoolTunnel,
    },
    kernel::{PROTOCOL_AGENTD_BGP, Target},
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
    /// Things that were put back, by kind.
    pub mended: Vec<(Kind, u64)>,
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
    /// MTU of workloads that have none of their own, outside of encapsulated pools.
    pub mtu: u32,
    /// How pools are reached, in the order in which they were given.
    pub pools: Vec<PoolTunnel>,
    /// Tunnel devices that are wanted, or stand.
    pub tunnels: Vec<TunnelView>,
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelView {
    pub device: &'static str,
    pub encapsulation: Encapsulation,
    /// It is there and carries packets.
    pub stands: bool,
    /// `false`: no pool uses it any more; it goes in a while.
    pub wanted: bool,
    /// Next hops that are reached through it.
    pub endpoints: usize,
    /// Why it does not stand, or is not complete.
    pub failure: Option<String>,
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
    /// The interface is a tunnel of ours: the other end, in the underlay.
    pub endpoint: Option<IpAddr>,
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

impl Reconciler {
    pub fn status(&self) -> Status {
        let conflicts = self
            .failures
            .values()
            .filter(|trouble| trouble.failure.kind == FailureKind::Conflict)
            .map(|trouble| trouble.failure.text.clone())
            .collect();
        let moving = self
            .workloads
            .values()
            .filter(|state| !matches!(state.stage, Stage::Idle | Stage::Backoff))
            .count();
        Status {
            started: self.started,
            objects: self.workloads.len() + self.blackholes.len() + self.learned,
            workloads: self.workloads.len(),
            blackholes: self.blackholes.len(),
            learned_routes: self.learned,
            learned_installed: self
                .table
                .iter()
                .filter(|(_, entry)| entry.learned != NONE && entry.learned == entry.seen)
                .count(),
            next_hop_objects: self
                .seen_next_hops
                .values()
                .filter(|object| object.protocol == PROTOCOL_AGENTD_BGP)
                .count(),
            pending: moving + self.adds.len() + self.deletes.len() + self.early.len(),
            failing: self.failures.len() + self.object_failures.len(),
            writes: self.writes,
            write_errors: self.write_errors,
            repairs: self.repairs,
            mended: Kind::ALL.into_iter().zip(self.mended).collect(),
            swept: self.swept,
            links_to_reap: self.reap.len(),
            overruns: self.overruns,
            conflicts,
            last_audit: self.last_audit,
            mtu: self.mtu,
            pools: self.pool_tunnels(),
            tunnels: self.tunnel_views(),
        }
    }

    /// Own routes as last read from the kernel, in order of prefix, those after `after`; with
    /// `within`, only that prefix and what it covers.
    pub fn routes(
        &self,
        within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Vec<KernelRoute> {
        // The smallest `limit` prefixes, in one pass over the table.
        let mut page = std::collections::BinaryHeap::new();
        for (prefix, entry) in self.table.iter() {
            if entry.seen == NONE
                || within.is_some_and(|within| !within.contains(&prefix))
                || after.is_some_and(|after| prefix <= after)
            {
                continue;
            }
            if page.len() < limit {
                page.push(prefix);
            } else if page.peek().is_some_and(|last| prefix < *last) {
                page.pop();
                page.push(prefix);
            }
        }
        page.into_sorted_vec()
            .iter()
            .filter_map(|prefix| self.own_route(prefix))
            .map(|route| self.view_of(route))
            .collect()
    }

    /// State of a wanted object; `None` when it is not wanted.
    pub fn object(&self, id: &ObjectId) -> Option<ObjectStatus> {
        let failed = self
            .failures
            .get(id)
            .map(|trouble| ObjectStatus::Failed(trouble.failure.clone()));
        match id {
            ObjectId::Workload(_) | ObjectId::Bridge(_) => {
                let state = self.workloads.get(&key_of(id)?)?;
                if state.removal.is_some() {
                    return Some(ObjectStatus::Removing);
                }
                let standing = state.detail().cloned().map(ObjectStatus::Programmed);
                Some(failed.or(standing).unwrap_or(ObjectStatus::Pending))
            }
            ObjectId::Blackhole(prefix) => {
                let told = self.blackholes.get(prefix)?;
                let standing = told.then(|| ObjectStatus::Programmed(Detail::default()));
                Some(failed.or(standing).unwrap_or(ObjectStatus::Pending))
            }
            ObjectId::Tunnels => None,
            ObjectId::Route(prefix) => {
                let entry = self.table.get(prefix);
                if entry.learned == NONE {
                    return None;
                }
                if let Some(text) = self.unresolved_text(entry.learned) {
                    return Some(ObjectStatus::Failed(Failure {
                        kind: FailureKind::Unresolved,
                        text,
                        retry_in: None,
                    }));
                }
                let standing = (entry.learned == entry.seen)
                    .then(|| ObjectStatus::Programmed(Detail::default()));
                Some(failed.or(standing).unwrap_or(ObjectStatus::Pending))
            }
        }
    }
}
