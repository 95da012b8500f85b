//! What is kept on disk, as values of the agent. `codec` gives each its bytes.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use ipnet::IpNet;

use crate::node::{
    WorkloadId, WorkloadSpec,
    view::{AssignedAddress, PoolOverride},
};

/// One change of the stored state. Changes submitted together become durable together or not at
/// all, and are applied in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Replaces the record of the same id.
    PutWorkload(WorkloadRecord),
    /// Whatever its generation. Deleting what is not there is no error.
    DeleteWorkload(WorkloadId),
    /// Replaces the record of the same prefix.
    PutBlock(BlockRecord),
    DeleteBlock(IpNet),
    /// Replaces the record of the same address.
    PutCooling(CoolingRecord),
    DeleteCooling(IpAddr),
    /// The highest generation given out. A lower one than is stored changes nothing: the counter
    /// never goes backwards.
    Generation(u64),
    /// The node is out of the network, or will be at this time; kept with a resolution of a
    /// millisecond. `None`: it is not.
    Drained(Option<SystemTime>),
    /// What an operator said of the pool of that name. `None`: nothing any more.
    PoolOverride(String, Option<PoolOverride>),
}

/// A workload and the addresses it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadRecord {
    pub id: WorkloadId,
    pub generation: u64,
    pub spec: Arc<WorkloadSpec>,
    pub addresses: Vec<AssignedAddress>,
    /// Kept with a resolution of a millisecond.
    pub created_at: SystemTime,
}

/// A block this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    pub cidr: IpNet,
    pub pool: String,
    /// Kept with a resolution of a millisecond.
    pub claimed_at: SystemTime,
}

/// An address that was released and is not to be reused for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoolingRecord {
    pub address: IpAddr,
    /// When it is free again. A wall-clock time, so that it survives a restart of the machine;
    /// kept with a resolution of a millisecond.
    pub until: SystemTime,
    /// Who had it last.
    pub id: WorkloadId,
    pub generation: u64,
}

/// What the store held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Ordered by id.
    pub workloads: Vec<WorkloadRecord>,
    /// In address order, IPv4 first.
    pub blocks: Vec<BlockRecord>,
    pub cooling: Vec<CoolingRecord>,
    /// The highest generation ever given out; 0 at first.
    pub generation: u64,
    /// See [`Record::Drained`].
    pub drained: Option<SystemTime>,
    /// By name of the pool.
    pub pools: Vec<(String, PoolOverride)>,
}
