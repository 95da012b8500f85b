//! From what the store held to a working state. Nothing that is recorded is lost: what does not
//! fit the configuration any more is kept for its users, and reported.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

use super::{Held, Ipam, Now, cooling::Cooling, pool::Pool};
use crate::{
    config,
    node::{WorkloadId, view::AssignedAddress},
    store::record::{BlockRecord, Recovered},
};

/// Something an operator should know about the recovered state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The configuration has no pool for this block. It stays while workloads use it.
    BlockWithoutPool { block: IpNet, pool: String },
    /// Two records of blocks overlap; the second is ignored.
    BlockOverlap { block: IpNet },
    /// An address of a workload lies in no recorded block; its block is claimed again.
    BlockMissing { address: IpAddr, block: IpNet },
    /// Two records name the same address. The first keeps it.
    AddressTwice {
        address: IpAddr,
        holder: WorkloadId,
        other: WorkloadId,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::BlockWithoutPool { block, pool } => write!(
                f,
                "block {block} of pool \"{pool}\" lies in no configured pool; it stays until its \
                 last workload is gone"
            ),
            Notice::BlockOverlap { block } => {
                write!(
                    f,
                    "block {block} overlaps another recorded block; it is ignored"
                )
            }
            Notice::BlockMissing { address, block } => write!(
                f,
                "workload address {address} lies in no recorded block; {block} is claimed again"
            ),
            Notice::AddressTwice {
                address,
                holder,
                other,
            } => write!(
                f,
                "{address} is recorded for workload {other} too; workload {holder} keeps it"
            ),
        }
    }
}

impl Ipam {
    /// Continues from what the store held. Claims a block for every enabled pool that has none.
    pub fn recover(
        now: Now,
        pools: &[config::Pool],
        settings: &config::Ipam,
        recovered: &Recovered,
    ) -> (Self, Vec<Notice>) {
        let mut ipam = Ipam {
            cooldown: settings.cooldown,
            store: settings.store,
            claim_ahead: settings.claim_ahead,
            release_empty_after: settings.release_empty_after,
            pools: pools
                .iter()
                .map(|pool| Pool::new(pool).stored(settings.store))
                .collect(),
            overrides: recovered.pools.iter().cloned().collect(),
            workloads: HashMap::new(),
            holders: HashMap::new(),
            cooling: HashMap::new(),
            cooling_order: BTreeSet::new(),
            stale_records: Vec::new(),
            generation: recovered.generation,
            actions: VecDeque::new(),
            retries: Vec::new(),
            observe_at: None,
        };
        let mut notices = Vec::new();
        for pool in &mut ipam.pools {
            pool.overridden = ipam.overrides.get(&pool.name).copied();
        }
        let prefixes: Vec<IpNet> = recovered.blocks.iter().map(|block| block.cidr).collect();
        ipam.cover(&prefixes);
        let mut blocks: Vec<&BlockRecord> = recovered.blocks.iter().collect();
        blocks.sort_by_key(|block| (block.claimed_at, block.cidr));
        for record in blocks {
            ipam.recover_block(record, &mut notices);
        }
        for workload in &recovered.workloads {
            let mut addresses = Vec::with_capacity(workload.addresses.len());
            for assigned in &workload.addresses {
                if ipam.recover_address(now, &workload.id, assigned, &mut notices) {
                    addresses.push(assigned.clone());
                }
            }
            ipam.generation = ipam.generation.max(workload.generation);
            let held = Held {
                generation: workload.generation,
                addresses,
            };
            ipam.workloads.insert(workload.id.clone(), held);
        }
        ipam.recover_cooling(now, recovered);
        for index in 0..ipam.pools.len() {
            ipam.claim_ahead(now, index);
        }
        if ipam.pools.iter().any(Pool::is_leaving) {
            ipam.look_at(now.instant);
        }
        ipam.watch_empty_blocks(now);
        (ipam, notices)
    }

    /// The pool that holds all of this block.
    pub(super) fn pool_of(&self, block: &IpNet) -> Option<usize> {
        self.pools.iter().position(|pool| pool.cidr.contains(block))
    }

    fn recover_block(&mut self, record: &BlockRecord, notices: &mut Vec<Notice>) {
        let BlockRecord {
            cidr,
            pool,
            claimed_at,
        } = record;
        let index = self.pool_of(cidr).unwrap_or_else(|| {
            notices.push(Notice::BlockWithoutPool {
                block: *cidr,
                pool: pool.clone(),
            });
            self.pools.push(Pool::retired(pool, *cidr));
            self.pools.len() - 1
        });
        let pool = &mut self.pools[index];
        match pool.insert(*cidr, *claimed_at) {
            Some(base) => {
                pool.change(base, |block| block.persisted = true);
                self.use_block(index, base, *cidr);
            }
            None => notices.push(Notice::BlockOverlap { block: *cidr }),
        }
    }

    /// False: another workload has the address.
    fn recover_address(
        &mut self,
        now: Now,
        id: &WorkloadId,
        assigned: &AssignedAddress,
        notices: &mut Vec<Notice>,
    ) -> bool {
        let address = assigned.address;
        if let Some(holder) = self.holders.get(&address) {
            notices.push(Notice::AddressTwice {
                address,
                holder: holder.clone(),
                other: id.clone(),
            });
            return false;
        }
        let (index, base) = self.place(address).unwrap_or_else(|| {
            let place = self.adopt_block(now, assigned);
            let block = self.pools[place.0]
                .block(place.1)
                .expect("just inserted")
                .cidr;
            notices.push(Notice::BlockMissing { address, block });
            place
        });
        self.occupy(index, base, address);
        self.pools[index].change(base, |block| block.advance(super::offset_of(base, address)));
        self.holders.insert(address, id.clone());
        true
    }

    /// Holds a block for an address that is in use without one.
    fn adopt_block(&mut self, now: Now, assigned: &AssignedAddress) -> (usize, u128) {
        let address = assigned.address;
        let host = IpNet::from(address);
        if let Some(index) = self.pool_of(&host) {
            let block = self.pools[index].block_cidr_of(address);
            for cidr in [block, host] {
                if let Some(base) = self.claim_block(now, index, cidr) {
                    return (index, base);
                }
            }
        }
        self.pools.push(Pool::retired(&assigned.pool, host));
        let index = self.pools.len() - 1;
        let base = self
            .claim_block(now, index, host)
            .expect("the pool is empty");
        (index, base)
    }

    fn recover_cooling(&mut self, now: Now, recovered: &Recovered) {
        for record in &recovered.cooling {
            let address = record.address;
            let place = self.place(address);
            let place = place.filter(|_| !self.holders.contains_key(&address));
            // A clock that was set back must not keep addresses away for long.
            let left = record
                .until
                .duration_since(now.wall)
                .unwrap_or(Duration::ZERO);
            let left = left.min(self.cooldown);
            match place {
                Some((pool, base)) if !left.is_zero() => {
                    self.pools[pool].change(base, |block| {
                        block.advance(super::offset_of(base, address));
                    });
                    self.begin_cooling(Cooling {
                        address,
                        pool,
                        base,
                        holds: false,
                        until: now.instant + left,
                        until_wall: now.wall + left,
                        id: record.id.clone(),
                        generation: record.generation,
                    });
                }
                _ => self.stale_records.push(address),
            }
        }
    }
}
