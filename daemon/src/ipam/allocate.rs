//! Giving a workload addresses, and taking them back; each can be undone while its records are not
//! durable.

use std::net::IpAddr;

use super::{Error, Held, Ipam, Now, Scope, cooling::Cooling};
use crate::{
    node::{WorkloadId, view::AssignedAddress},
    store::record::{BlockRecord, Record},
};

/// Addresses a workload got, or had already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub id: WorkloadId,
    pub generation: u64,
    /// IPv4 first when none was fixed; else in the order of the request.
    pub addresses: Vec<AssignedAddress>,
    /// False: the workload had them already, and nothing changed.
    pub created: bool,
    /// To be written together with the workload's own record.
    pub records: Vec<Record>,
    undo: Vec<Cooling>,
}

/// Addresses a workload gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub id: WorkloadId,
    pub generation: u64,
    pub addresses: Vec<AssignedAddress>,
    /// To be written together with the deletion of the workload's own record.
    pub records: Vec<Record>,
}

impl Ipam {
    /// Gives a workload addresses: the `fixed` ones; or one from `pool`; or one of each family,
    /// from the first enabled pool of that family in which this node has room.
    ///
    /// A workload that has addresses already keeps them, whatever is asked for: whether the
    /// request is the same is for the caller to decide. On an error nothing has changed, except
    /// that blocks may have been claimed.
    pub fn allocate(
        &mut self,
        now: Now,
        id: &WorkloadId,
        pool: Option<&str>,
        fixed: &[IpAddr],
    ) -> Result<Allocation, Error> {
        let scope = pool.map_or(Scope::Any, Scope::Pool);
        self.allocate_from(now, id, scope, fixed)
    }

    /// As [`allocate`](Self::allocate), from any scope.
    pub fn allocate_from(
        &mut self,
        now: Now,
        id: &WorkloadId,
        scope: Scope<'_>,
        fixed: &[IpAddr],
    ) -> Result<Allocation, Error> {
        self.expire(now);
        if let Some(held) = self.workloads.get(id) {
            return Ok(Allocation {
                id: id.clone(),
                generation: held.generation,
                addresses: held.addresses.clone(),
                created: false,
                records: Vec::new(),
                undo: Vec::new(),
            });
        }
        let mut chosen = Vec::with_capacity(2);
        if let Err(error) = self.choose(now, id, scope, fixed, &mut chosen) {
            for choice in chosen {
                self.unchoose(choice);
            }
            return Err(error);
        }
        self.generation += 1;
        let mut records = vec![Record::Generation(self.generation)];
        let mut addresses = Vec::with_capacity(chosen.len());
        let mut undo = Vec::new();
        for choice in chosen {
            let pool = &self.pools[choice.pool];
            let block = pool.block(choice.base).expect("it was chosen from it");
            if !block.persisted {
                records.push(Record::PutBlock(BlockRecord {
                    cidr: block.cidr,
                    pool: pool.name.clone(),
                    claimed_at: block.claimed_at,
                }));
            }
            addresses.push(AssignedAddress {
                address: choice.address,
                pool: pool.name.clone(),
                block: block.cidr,
            });
            self.holders.insert(choice.address, id.clone());
            if let Some(cooling) = choice.cooling {
                records.push(Record::DeleteCooling(choice.address));
                undo.push(cooling);
            }
            self.claim_ahead(now, choice.pool);
        }
        self.drain_stale_records(&mut records);
        let held = Held {
            generation: self.generation,
            addresses: addresses.clone(),
        };
        self.workloads.insert(id.clone(), held);
        Ok(Allocation {
            id: id.clone(),
            generation: self.generation,
            addresses,
            created: true,
            records,
            undo,
        })
    }

    /// Takes back an allocation whose records could not be written. Its addresses are free at
    /// once: nobody ever had them.
    pub fn rollback_allocation(&mut self, now: Now, allocation: &Allocation) {
        let holds = self.workloads.get(&allocation.id);
        if !allocation.created || holds.is_none_or(|held| held.generation != allocation.generation)
        {
            return;
        }
        self.workloads.remove(&allocation.id);
        for assigned in &allocation.addresses {
            self.holders.remove(&assigned.address);
            let (pool, base) = self.place(assigned.address).expect("workloads hold blocks");
            self.free(now, pool, base, assigned.address);
        }
        for cooling in &allocation.undo {
            self.begin_cooling(cooling.clone());
        }
    }

    /// Frees what a workload holds, for use after the cool-down. With a generation: only if the
    /// workload still has that one. `None`: there is nothing to release.
    pub fn release(
        &mut self,
        now: Now,
        id: &WorkloadId,
        generation: Option<u64>,
    ) -> Option<Release> {
        self.expire(now);
        let held = self.workloads.get(id)?;
        if generation.is_some_and(|generation| generation != held.generation) {
            return None;
        }
        let held = self.workloads.remove(id).expect("found just now");
        let mut records = Vec::with_capacity(held.addresses.len());
        for assigned in &held.addresses {
            let address = assigned.address;
            self.holders.remove(&address);
            let Some((pool, base)) = self.place(address) else {
                continue;
            };
            let cooling = Cooling {
                address,
                pool,
                base,
                holds: false,
                until: now.instant + self.cooldown,
                until_wall: now.wall + self.cooldown,
                id: id.clone(),
                generation: held.generation,
            };
            records.push(Record::PutCooling(cooling.record()));
            self.free(now, pool, base, address);
            self.begin_cooling(cooling);
        }
        self.drain_stale_records(&mut records);
        Some(Release {
            id: id.clone(),
            generation: held.generation,
            addresses: held.addresses,
            records,
        })
    }

    /// Takes back a release whose records could not be written: the workload holds its addresses
    /// again. False when that is impossible, because the cool-down is over and another workload
    /// has one of them, or the workload was added anew meanwhile.
    pub fn rollback_release(&mut self, release: &Release) -> bool {
        let free = |assigned: &AssignedAddress| !self.holders.contains_key(&assigned.address);
        if self.workloads.contains_key(&release.id) || !release.addresses.iter().all(free) {
            return false;
        }
        for assigned in &release.addresses {
            let address = assigned.address;
            let Some((pool, base)) = self.place(address) else {
                continue;
            };
            self.end_cooling(address);
            self.occupy(pool, base, address);
            self.holders.insert(address, release.id.clone());
        }
        let held = Held {
            generation: release.generation,
            addresses: release.addresses.clone(),
        };
        self.workloads.insert(release.id.clone(), held);
        true
    }
}
