//! What the node shows of itself: copies, taken inside the node's task, for replies and watchers.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use dataplane::desired::Source;
use ipnet::IpNet;

use super::{Drain, WorkloadId, WorkloadSpec, claims::DuplicateClaim};
pub use crate::ipam::Closed;
use crate::{ipam::Notice, store::Recovered};

/// How far a workload has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadState {
    /// Recorded, or about to be; the kernel state is not confirmed yet.
    Pending,
    /// Read back from the kernel.
    Programmed,
    /// Besides, its blocks are advertised to at least one peer.
    Advertised,
    Deleting,
    /// The kernel refuses it; it is tried again until it is deleted.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedAddress {
    pub address: IpAddr,
    pub pool: String,
    pub block: IpNet,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadView {
    pub id: WorkloadId,
    pub generation: u64,
    pub state: WorkloadState,
    /// Why it is failed or still pending, for a person; else empty.
    pub reason: String,
    /// Of a workload in a namespace that is not its own, those of that namespace: then pool and
    /// block mean nothing where the pool is empty.
    pub addresses: Vec<AssignedAddress>,
    /// The workload's gateway for each address, if it has one.
    pub gateways: Vec<Option<IpAddr>>,
    pub spec: Arc<WorkloadSpec>,
    /// Empty and 0 until programmed.
    pub host_interface: String,
    pub host_ifindex: u32,
    pub mtu: u32,
    pub created_at: SystemTime,
    /// Its owner has stated its whole set without it; it is released then.
    pub release_at: Option<SystemTime>,
}

/// A change of the set of workloads. Cursors grow by one with every event of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    pub cursor: u64,
    pub change: WatchChange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchChange {
    Upsert(WorkloadView),
    Delete { id: WorkloadId, generation: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Claimed; its blackhole is not confirmed yet.
    Claimed,
    /// The blackhole stands and the block is originated.
    Active,
    /// Withdrawn, about to be given back.
    Releasing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockView {
    pub cidr: IpNet,
    pub pool: String,
    pub state: BlockState,
    pub size: u64,
    pub used: u64,
    pub cooling: u64,
    pub reserved: u64,
    pub free: u64,
    /// Peers that have it, as last seen.
    pub advertised_to: u32,
    pub claimed_at: SystemTime,
    /// Why it is not active, for a person; else empty.
    pub reason: String,
}

/// What an operator says of a pool beside the configuration. It stays across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolOverride {
    /// Nothing new is taken from it.
    Disabled,
    /// Besides, its blocks are given back as soon as they are empty.
    Draining,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    pub name: String,
    pub cidr: IpNet,
    pub block_size: u8,
    pub disabled: bool,
    pub nat_outgoing: bool,
    pub claim: Vec<IpNet>,
    pub blocks_claimable: u64,
    pub blocks_held: u64,
    pub addresses_held: u64,
    pub addresses_used: u64,
    pub addresses_cooling: u64,
    pub addresses_reserved: u64,
    /// In blocks that are not being given back.
    pub addresses_free: u64,
    /// Why nothing new comes from it.
    pub closed: Option<Closed>,
    pub reserved: Vec<IpNet>,
    pub keep_ends_unused: bool,
    pub max_blocks: Option<u32>,
    /// As configured; empty: all.
    pub node_selector: String,
    pub workload_selector: String,
}

/// A pool and who has addresses of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsers {
    pub pool: PoolView,
    /// In order of id.
    pub workloads: Vec<(WorkloadId, IpAddr)>,
}

/// Counts and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    pub ready: bool,
    /// What it still waits for, for a person.
    pub waiting_for: Vec<String>,
    pub workloads: u64,
    pub workloads_failed: u64,
    /// Adds and deletes whose callers wait.
    pub in_flight: u64,
    pub blocks: u64,
    pub blocks_active: u64,
    pub drain: Drain,
    pub recovery: Recovery,
    pub duplicate_claims: Vec<DuplicateClaim>,
}

/// How the store and the kernel were brought together at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Read from the store.
    pub workloads: u64,
    pub blocks: u64,
    pub cooling: u64,
    /// What of it did not fit, and what was done, for a person.
    pub notices: Vec<String>,
    /// Objects with our marks that no record wants, removed from the kernel; `None`: not yet.
    pub removed_blackholes: Option<u64>,
    pub removed_workload_objects: Option<u64>,
    pub removed_learned_routes: Option<u64>,
}

impl Recovery {
    pub(super) fn of(recovered: &Recovered, notices: &[Notice]) -> Self {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        Self {
            workloads: count(recovered.workloads.len()),
            blocks: count(recovered.blocks.len()),
            cooling: count(recovered.cooling.len()),
            notices: notices.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    /// The dataplane has removed what is stale of that source.
    pub(super) fn swept(&mut self, source: Source, deleted: usize) {
        let removed = match source {
            Source::Block => &mut self.removed_blackholes,
            Source::Workload => &mut self.removed_workload_objects,
            Source::Bgp => &mut self.removed_learned_routes,
            Source::Tunnel => return,
        };
        let deleted = u64::try_from(deleted).unwrap_or(u64::MAX);
        *removed = Some(removed.unwrap_or(0).saturating_add(deleted));
    }
}

/// What the node knows about an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressView {
    pub pool: Option<PoolView>,
    /// The block of this node that holds it.
    pub block: Option<BlockView>,
    pub workload: Option<WorkloadView>,
    /// Inside the pool: the block it would be in, whoever owns that.
    pub would_be_block: Option<IpNet>,
    /// Set aside by the configuration.
    pub reserved: bool,
    /// Not in use, and for so long not given out again.
    pub cooling: Option<std::time::Duration>,
}
