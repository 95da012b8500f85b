//! Which workload has which address, and which blocks this node holds for that.
//!
//! [`Ipam`] is pure: it takes the time as an argument and does no IO. What must be durable comes
//! out as [`Record`]s, what must be done with blocks as [`Action`]s. Every operation costs the same
//! whatever the number of workloads, up to logarithms.
//!
//! # Addresses
//!
//! ```text
//!             allocate                    release                cool-down over
//!    free ────────────────► used ─────────────────────► cooling ────────────────► free
//!      ▲                     │ ▲                          │  │
//!      └─────────────────────┘ └──────────────────────────┘  │ allocate, fixed, by the
//!         rollback_allocation      rollback_release           └─ workload that had it: used
//! ```
//!
//! Allocation fills the oldest block that has a free address, and goes round inside it, so an
//! address comes up again as late as possible; after a release it is not given out at all for the
//! cool-down. The one exception: a workload that asks for the very address it had last gets it at
//! once, because then it is the right owner of packets that are still on their way. Reserved
//! addresses are never given out. A request for both families gets both or neither.
//!
//! Allocation is idempotent by workload id. Every allocation has a generation, which grows and is
//! never used again; a release may name it, so that a late one cannot free what a later workload
//! of the same id holds.
//!
//! # Blocks
//!
//! ```text
//!   Action::Claim ──► record written ──► Action::Program ──► blackhole, then originated
//!                     block_persisted                        block_active
//!                       │ block_claim_failed: asked again later, or dropped while unused
//!   Action::Release ─► withdrawn ─► blackhole removed ─► record deleted ─► block_released
//! ```
//!
//! The next block of a pool is claimed before it is needed: when the free addresses of the pool
//! fall to a quarter of a block (`claim_ahead`), and one for each enabled pool at the start. An
//! address may be given out from a block that is claimed but not yet durable: then the records of
//! the allocation contain the block, so that no workload is ever durable without its block.
//!
//! A block that holds neither workloads nor cooling addresses is given back when that was observed
//! at least twice and for the grace period, the pool keeps one, and what remains has room: no
//! claim would follow at once.

mod address;
mod block;
mod blocks;
mod error;
mod pool;
mod recover;
mod view;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;

pub use error::{Error, Exhausted};
pub use recover::Notice;
pub use view::Lookup;

use crate::{
    config,
    node::{WorkloadId, view::AssignedAddress},
    store::record::{BlockRecord, CoolingRecord, Record},
};
use pool::Pool;

/// Both clocks, read at the same moment: the monotonic one decides, the other is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

impl Now {
    /// Reads the clocks. For the shell around the cores.
    pub fn read() -> Self {
        Now {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

/// What has to be done with a block. See the diagram of the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this record, then call [`Ipam::block_persisted`] or [`Ipam::block_claim_failed`].
    Claim(BlockRecord),
    /// The block is durable: set its blackhole, then originate it, then call
    /// [`Ipam::block_active`].
    Program(IpNet),
    /// The block is durable, and nobody else is to know of it: it belongs to a bridge.
    Local(IpNet),
    /// Withdraw the block, then remove its blackhole, then delete its record, then call
    /// [`Ipam::block_released`]. No address of it is given out meanwhile.
    Release(IpNet),
}

/// Where addresses may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Any pool that is not a bridge's.
    Any,
    /// That pool, which is not a bridge's.
    Pool(&'a str),
    /// The subnets of that bridge.
    Bridge(&'a str),
    /// No addresses: the workload only gets its generation.
    Nothing,
}

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

/// Addresses and blocks of this node.
#[derive(Clone, Debug)]
pub struct Ipam {
    cooldown: Duration,
    /// Percent of a block.
    claim_ahead: u8,
    release_empty_after: Duration,
    /// Those of the configuration in its order, then retired ones.
    pools: Vec<Pool>,
    workloads: HashMap<WorkloadId, Held>,
    /// Who has an address.
    holders: HashMap<IpAddr, WorkloadId>,
    cooling: HashMap<IpAddr, Cooling>,
    /// The same, in the order in which they become free.
    cooling_order: BTreeSet<(Instant, IpAddr)>,
    /// Cool-down is over, but their records still exist. Deleted along with later changes: a
    /// record too many is harmless, a transaction of its own is not free.
    stale_records: Vec<IpAddr>,
    generation: u64,
    actions: VecDeque<Action>,
    /// Claims to try again: when, in which pool, and which block.
    retries: Vec<(Instant, usize, u128)>,
    /// When to look for empty blocks.
    observe_at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Held {
    generation: u64,
    addresses: Vec<AssignedAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cooling {
    address: IpAddr,
    pool: usize,
    base: u128,
    until: Instant,
    until_wall: SystemTime,
    id: WorkloadId,
    generation: u64,
}

/// A free address of a pool, chosen and marked.
struct Chosen {
    pool: usize,
    base: u128,
    address: IpAddr,
    /// It was cooling down until now.
    cooling: Option<Cooling>,
}

/// Stale cooling records deleted along with one change.
const STALE_RECORDS_PER_CHANGE: usize = 32;

impl Ipam {
    /// Without any history. [`Ipam::recover`] takes one.
    pub fn new(now: Now, pools: &[config::Pool], settings: &config::Ipam) -> Self {
        let (ipam, _) = Ipam::recover(now, pools, settings, &Default::default());
        ipam
    }

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
            if self.end_cooling(address).is_some() {
                self.clear(pool, base, address);
            }
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

    /// What a workload holds: its generation and addresses.
    pub fn held(&self, id: &WorkloadId) -> Option<(u64, &[AssignedAddress])> {
        let held = self.workloads.get(id)?;
        Some((held.generation, &held.addresses))
    }

    fn pool_named(&self, name: &str) -> Result<usize, Error> {
        let found = self
            .pools
            .iter()
            .position(|pool| pool.name == name && !pool.retired && !pool.is_local());
        let Some(index) = found else {
            let configured = self
                .pools
                .iter()
                .filter(|pool| !pool.retired && !pool.is_local());
            return Err(Error::PoolUnknown {
                name: name.to_owned(),
                configured: configured.map(|pool| pool.name.clone()).collect(),
            });
        };
        self.enabled(index)
    }

    fn enabled(&self, index: usize) -> Result<usize, Error> {
        let Pool { name, disabled, .. } = &self.pools[index];
        if *disabled {
            return Err(Error::PoolDisabled { name: name.clone() });
        }
        Ok(index)
    }

    /// Marks addresses as used and puts them into `chosen`, also those before an error.
    fn choose(
        &mut self,
        now: Now,
        id: &WorkloadId,
        scope: Scope<'_>,
        fixed: &[IpAddr],
        chosen: &mut Vec<Chosen>,
    ) -> Result<(), Error> {
        let pool = match scope {
            Scope::Pool(name) => Some(self.pool_named(name)?),
            Scope::Any | Scope::Bridge(_) => None,
            Scope::Nothing => return Ok(()),
        };
        for address in fixed {
            if chosen
                .iter()
                .any(|other| other.address.is_ipv4() == address.is_ipv4())
            {
                return Err(Error::FamilyTwice { address: *address });
            }
            chosen.push(self.choose_fixed(now, id, scope, pool, *address)?);
        }
        if !fixed.is_empty() {
            return Ok(());
        }
        if let Some(pool) = pool {
            chosen.push(self.choose_from(now, pool)?);
            return Ok(());
        }
        for is_ipv4 in [true, false] {
            let mut first_error = None;
            for index in 0..self.pools.len() {
                let pool = &self.pools[index];
                if matches!(pool.cidr, IpNet::V4(_)) != is_ipv4
                    || !pool.is_open()
                    || !pool.is_in(scope)
                {
                    continue;
                }
                match self.choose_from(now, index) {
                    Ok(choice) => {
                        chosen.push(choice);
                        first_error = None;
                        break;
                    }
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
            if let Some(error) = first_error {
                return Err(error);
            }
        }
        if chosen.is_empty() {
            return Err(Error::NoPool);
        }
        Ok(())
    }

    fn choose_from(&mut self, now: Now, index: usize) -> Result<Chosen, Error> {
        let base = match self.pools[index].oldest_with_free() {
            Some(base) => base,
            None => self
                .claim_next(now, index)
                .ok_or_else(|| self.exhausted(now, index))?,
        };
        let pool = &mut self.pools[index];
        let offset = pool.change(base, |block| {
            let offset = block.find().expect("it has a free address");
            block.advance(offset);
            offset
        });
        let address = address::from_number(base + u128::from(offset), &pool.cidr);
        self.occupy(index, base, address);
        Ok(Chosen {
            pool: index,
            base,
            address,
            cooling: None,
        })
    }

    fn choose_fixed(
        &mut self,
        now: Now,
        id: &WorkloadId,
        scope: Scope<'_>,
        wanted: Option<usize>,
        address: IpAddr,
    ) -> Result<Chosen, Error> {
        let containing =
            |pool: &Pool| !pool.retired && pool.is_in(scope) && pool.cidr.contains(&address);
        let index = match wanted {
            Some(index) => {
                let Pool { name, cidr, .. } = &self.pools[index];
                if !cidr.contains(&address) {
                    return Err(Error::AddressOutsidePool {
                        address,
                        pool: name.clone(),
                        cidr: *cidr,
                    });
                }
                index
            }
            None => {
                let found = self.pools.iter().position(containing);
                let index = found.ok_or_else(|| Error::AddressOutsidePools {
                    address,
                    pools: self
                        .pools
                        .iter()
                        .filter(|pool| pool.is_in(scope))
                        .map(|pool| format!("{} ({})", pool.name, pool.cidr))
                        .collect(),
                })?;
                self.enabled(index)?
            }
        };
        let pool = &self.pools[index];
        if pool.reserved.iter().any(|range| range.contains(&address)) {
            return Err(Error::AddressReserved {
                address,
                pool: pool.name.clone(),
            });
        }
        if let Some(holder) = self.holders.get(&address) {
            return Err(Error::AddressTaken {
                address,
                holder: holder.clone(),
            });
        }
        let base = match pool.block_of(address) {
            Some(block) if block.state == crate::node::view::BlockState::Releasing => {
                return Err(Error::BlockReleasing {
                    address,
                    block: block.cidr,
                });
            }
            Some(block) => block.base(),
            None => {
                let block = pool.block_cidr_of(address);
                let claimed = pool
                    .may_claim(&block)
                    .then(|| self.claim_block(now, index, block))
                    .flatten();
                let pool = &self.pools[index];
                claimed.ok_or_else(|| Error::AddressOutsideClaim {
                    address,
                    pool: pool.name.clone(),
                    block,
                    claim: pool.claim(),
                })?
            }
        };
        if let Some(cooling) = self.cooling.get(&address)
            && cooling.id != *id
        {
            return Err(Error::AddressCooling {
                address,
                last: cooling.id.clone(),
                free_in: cooling.until.saturating_duration_since(now.instant),
            });
        }
        let cooling = self.end_cooling(address);
        if cooling.is_some() {
            self.clear(index, base, address);
        }
        self.occupy(index, base, address);
        Ok(Chosen {
            pool: index,
            base,
            address,
            cooling,
        })
    }

    fn unchoose(&mut self, choice: Chosen) {
        self.pools[choice.pool].change(choice.base, |block| {
            block.used -= 1;
            block.clear(offset_of(choice.base, choice.address));
        });
        if let Some(cooling) = choice.cooling {
            self.begin_cooling(cooling);
        }
    }

    /// Free → used.
    fn occupy(&mut self, pool: usize, base: u128, address: IpAddr) {
        self.pools[pool].change(base, |block| {
            block.occupy(offset_of(base, address));
            block.empty_since = None;
            block.observations = 0;
        });
    }

    /// Used → free.
    fn free(&mut self, now: Now, pool: usize, base: u128, address: IpAddr) {
        self.pools[pool].change(base, |block| {
            block.used -= 1;
            block.clear(offset_of(base, address));
        });
        self.watch_empty_blocks(now);
    }

    /// The bit of an address that is no longer cooling.
    fn clear(&mut self, pool: usize, base: u128, address: IpAddr) {
        self.pools[pool].change(base, |block| block.clear(offset_of(base, address)));
    }

    /// Free → cooling. An address that the configuration reserves by now just stays reserved.
    fn begin_cooling(&mut self, cooling: Cooling) {
        let address = cooling.address;
        let was_free = self.pools[cooling.pool].change(cooling.base, |block| {
            let was_free = block.take(offset_of(cooling.base, address));
            block.cooling += u32::from(was_free);
            was_free
        });
        if !was_free {
            return;
        }
        self.cooling_order.insert((cooling.until, address));
        self.cooling.insert(address, cooling);
    }

    /// Forgets that an address is cooling down, but for its bit.
    fn end_cooling(&mut self, address: IpAddr) -> Option<Cooling> {
        let cooling = self.cooling.remove(&address)?;
        self.cooling_order.remove(&(cooling.until, address));
        self.pools[cooling.pool].change(cooling.base, |block| block.cooling -= 1);
        Some(cooling)
    }

    /// Ends the cool-downs that are over.
    fn expire(&mut self, now: Now) {
        while let Some((until, address)) = self.cooling_order.first().copied() {
            if until > now.instant {
                break;
            }
            let cooling = self
                .end_cooling(address)
                .expect("both name the same addresses");
            self.clear(cooling.pool, cooling.base, address);
            self.stale_records.push(address);
        }
    }

    fn drain_stale_records(&mut self, records: &mut Vec<Record>) {
        let count = self.stale_records.len().min(STALE_RECORDS_PER_CHANGE);
        let start = self.stale_records.len() - count;
        for address in self.stale_records.drain(start..) {
            // One that cools down again has a record that must stay.
            if !self.cooling.contains_key(&address) {
                records.push(Record::DeleteCooling(address));
            }
        }
    }

    /// Pool and block of an address this node holds.
    fn place(&self, address: IpAddr) -> Option<(usize, u128)> {
        self.pools.iter().enumerate().find_map(|(index, pool)| {
            if !pool.cidr.contains(&address) {
                return None;
            }
            Some((index, pool.block_of(address)?.base()))
        })
    }

    fn exhausted(&self, now: Now, index: usize) -> Error {
        let pool = &self.pools[index];
        let next = match pool.totals.cooling {
            0 => None,
            _ => self
                .cooling_order
                .iter()
                .find(|(_, address)| pool.cidr.contains(address)),
        };
        Error::Exhausted(Box::new(Exhausted {
            pool: pool.name.clone(),
            blocks: u64::try_from(pool.len()).expect("a count"),
            blocks_claimable: pool.claimable(),
            addresses: pool.totals.addresses,
            used: pool.totals.used,
            cooling: pool.totals.cooling,
            reserved: pool.totals.reserved,
            next_free_in: next.map(|(until, _)| until.saturating_duration_since(now.instant)),
        }))
    }
}

impl Cooling {
    fn record(&self) -> CoolingRecord {
        CoolingRecord {
            address: self.address,
            until: self.until_wall,
            id: self.id.clone(),
            generation: self.generation,
        }
    }
}

fn offset_of(base: u128, address: IpAddr) -> u32 {
    u32::try_from(address::to_number(address) - base).expect("it lies in the block")
}
