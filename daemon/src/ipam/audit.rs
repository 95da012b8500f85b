//! Everything the allocator believes, for those who compare it with what others say.

use std::{net::IpAddr, time::SystemTime};

use ipnet::IpNet;

use super::{Ipam, Now, address};
use crate::node::{
    WorkloadId,
    view::{AssignedAddress, BlockState},
};

/// A copy of the allocator's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// In address order.
    pub blocks: Vec<AuditedBlock>,
    /// In order of id.
    pub workloads: Vec<(WorkloadId, u64, Vec<AssignedAddress>)>,
    /// Who has an address, in address order.
    pub holders: Vec<(IpAddr, WorkloadId)>,
    /// In address order.
    pub cooling: Vec<CoolingAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedBlock {
    pub cidr: IpNet,
    pub pool: String,
    pub state: BlockState,
    /// Its record is known to be on disk.
    pub persisted: bool,
    /// Of a bridge: known to this node only.
    pub local: bool,
    /// Addresses of which the bit is set: in use, cooling or reserved.
    pub taken: Vec<IpAddr>,
    /// As counted.
    pub used: u32,
    pub cooling: u32,
    pub reserved: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoolingAddress {
    pub address: IpAddr,
    pub pool: String,
    pub block: IpNet,
    pub until: SystemTime,
    /// Who had it last.
    pub id: WorkloadId,
    pub generation: u64,
    /// It counts as cooling in its block; else it is reserved by now.
    pub holds: bool,
}

impl Ipam {
    pub fn audit(&mut self, now: Now) -> Audit {
        self.expire(now);
        let mut blocks: Vec<AuditedBlock> = Vec::new();
        for pool in &self.pools {
            blocks.extend(pool.blocks().map(|block| {
                let base = block.base();
                let taken = (0..block.size()).filter(|offset| block.is_taken(*offset));
                let address =
                    |offset: u32| address::from_number(base + u128::from(offset), &block.cidr);
                AuditedBlock {
                    cidr: block.cidr,
                    pool: pool.name.clone(),
                    state: block.state,
                    persisted: block.persisted,
                    local: pool.is_local(),
                    taken: taken.map(address).collect(),
                    used: block.used,
                    cooling: block.cooling,
                    reserved: block.reserved,
                }
            }));
        }
        blocks.sort_by_key(|block| block.cidr);
        let mut workloads: Vec<_> = self
            .workloads
            .iter()
            .map(|(id, held)| (id.clone(), held.generation, held.addresses.clone()))
            .collect();
        workloads.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut holders: Vec<_> = self
            .holders
            .iter()
            .map(|(address, id)| (*address, id.clone()))
            .collect();
        holders.sort();
        let mut cooling: Vec<CoolingAddress> = self
            .cooling
            .values()
            .map(|cooling| {
                let pool = &self.pools[cooling.pool];
                CoolingAddress {
                    address: cooling.address,
                    pool: pool.name.clone(),
                    block: pool.block_cidr_of(cooling.address),
                    until: cooling.until_wall,
                    id: cooling.id.clone(),
                    generation: cooling.generation,
                    holds: cooling.holds,
                }
            })
            .collect();
        cooling.sort_by_key(|cooling| cooling.address);
        Audit {
            blocks,
            workloads,
            holders,
            cooling,
        }
    }
}
