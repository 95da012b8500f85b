//! What a store would have on disk after some records, for tests of those who write them.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use ipnet::IpNet;

use super::record::{BlockRecord, CoolingRecord, Record, Recovered, WorkloadRecord};
use crate::node::{WorkloadId, view::PoolOverride};

/// What the fake store has on disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) workloads: BTreeMap<WorkloadId, WorkloadRecord>,
    pub(crate) blocks: BTreeMap<IpNet, BlockRecord>,
    pub(crate) cooling: BTreeMap<IpAddr, CoolingRecord>,
    pub(crate) generation: u64,
    pub(crate) drained: Option<SystemTime>,
    pub(crate) pools: BTreeMap<String, PoolOverride>,
}

impl Disk {
    pub(crate) fn apply(&mut self, records: &[Record]) {
        for record in records.iter().cloned() {
            match record {
                Record::PutWorkload(record) => {
                    self.workloads.insert(record.id.clone(), record);
                }
                Record::DeleteWorkload(id) => {
                    self.workloads.remove(&id);
                }
                Record::PutBlock(record) => {
                    self.blocks.insert(record.cidr, record);
                }
                Record::DeleteBlock(cidr) => {
                    self.blocks.remove(&cidr);
                }
                Record::PutCooling(record) => {
                    self.cooling.insert(record.address, record);
                }
                Record::DeleteCooling(address) => {
                    self.cooling.remove(&address);
                }
                Record::Generation(generation) => {
                    self.generation = self.generation.max(generation);
                }
                Record::Drained(at) => self.drained = at,
                Record::PoolOverride(name, Some(to)) => {
                    self.pools.insert(name, to);
                }
                Record::PoolOverride(name, None) => {
                    self.pools.remove(&name);
                }
            }
        }
    }

    pub(crate) fn recovered(&self) -> Recovered {
        Recovered {
            workloads: self.workloads.values().cloned().collect(),
            blocks: self.blocks.values().cloned().collect(),
            cooling: self.cooling.values().cloned().collect(),
            generation: self.generation,
            drained: self.drained,
            pools: self.pools.clone().into_iter().collect(),
        }
    }
}
