//! Pools that change while the node runs.
//!
//! The pools are made anew from the new configuration, and every held block, used address and
//! cool-down is put into the one it lies in. Nobody loses an address: a change that would leave a
//! workload without a pool is refused as a whole. A block that lies in no pool any more, and is used
//! by nobody, is given back as soon as its last cool-down is over.

use std::{mem, net::IpAddr};

use ipnet::IpNet;

use super::{Closed, Error, Ipam, Now, address, cooling::Cooling, pool::Pool};
use crate::{
    config,
    node::{WorkloadId, view::PoolOverride},
    store::record::Record,
};

/// A pool that cannot go, and who has addresses of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    pub pool: String,
    /// In order of id.
    pub workloads: Vec<(WorkloadId, IpAddr)>,
}

impl Ipam {
    /// Continues with other pools and settings. Returns what is to be written. On an error nothing
    /// has changed: these workloads have addresses that would lie in no pool.
    pub fn set_pools(
        &mut self,
        now: Now,
        pools: &[config::Pool],
        settings: &config::Ipam,
    ) -> Result<Vec<Record>, Vec<Stranded>> {
        self.expire(now);
        let stranded = self.stranded(pools);
        if !stranded.is_empty() {
            return Err(stranded);
        }
        self.cooldown = settings.cooldown;
        self.claim_ahead = settings.claim_ahead;
        self.release_empty_after = settings.release_empty_after;
        let mut records = Vec::new();
        self.overrides.retain(|name, _| {
            let stays = pools.iter().any(|pool| pool.name == *name);
            if !stays {
                // One of that name that comes back one day is another.
                records.push(Record::PoolOverride(name.clone(), None));
            }
            stays
        });
        let made = pools.iter().map(|pool| Pool::new(pool).stored(self.store));
        let old = mem::replace(&mut self.pools, made.collect());
        for pool in &mut self.pools {
            let before = old
                .iter()
                .find(|old| old.name == pool.name && old.cidr == pool.cidr);
            if let Some(before) = before {
                pool.remote.clone_from(&before.remote);
            }
            pool.overridden = self.overrides.get(&pool.name).copied();
        }
        self.move_in(old);
        for index in 0..self.pools.len() {
            self.claim_ahead(now, index);
        }
        self.look_at(now.instant);
        self.drain_stale_records(&mut records);
        Ok(records)
    }

    /// Puts what was held into the pools that there are now.
    fn move_in(&mut self, old: Vec<Pool>) {
        let retries = mem::take(&mut self.retries);
        let retries: Vec<_> = retries
            .into_iter()
            .map(|(at, pool, base)| (at, address::from_number(base, &old[pool].cidr), base))
            .collect();
        let mut blocks = Vec::new();
        for mut pool in old {
            for prefix in pool.foreign() {
                self.note_foreign(*prefix, true);
            }
            for (until, block) in std::mem::take(&mut pool.yielded) {
                if let Some(index) = self.pool_of(&block) {
                    self.pools[index].yielded.push((until, block));
                }
            }
            let name = pool.name.clone();
            let of_pool = pool.into_blocks().into_iter();
            blocks.extend(of_pool.map(|block| (name.clone(), block)));
        }
        let prefixes: Vec<IpNet> = blocks.iter().map(|(_, block)| block.cidr).collect();
        self.cover(&prefixes);
        for (name, block) in blocks {
            let index = self.pool_of(&block.cidr).unwrap_or_else(|| {
                self.pools.push(Pool::retired(&name, block.cidr));
                self.pools.len() - 1
            });
            let adopted = self.pools[index].adopt(&block);
            adopted.expect("held blocks do not overlap");
        }
        let used: Vec<IpAddr> = self.holders.keys().copied().collect();
        for address in used {
            let (index, base) = self.place(address).expect("its block was kept");
            self.occupy(index, base, address);
        }
        let mut cooling: Vec<Cooling> = mem::take(&mut self.cooling).into_values().collect();
        self.cooling_order.clear();
        cooling.sort_unstable_by_key(|cooling| (cooling.until, cooling.address));
        for mut cooling in cooling {
            let address = cooling.address;
            match self.place(address) {
                Some((pool, base)) => {
                    (cooling.pool, cooling.base) = (pool, base);
                    self.begin_cooling(cooling);
                }
                // Reserved, and its block was given back.
                None => self.stale_records.push(address),
            }
        }
        for (at, address, base) in retries {
            let pool = self
                .pools
                .iter()
                .position(|pool| pool.cidr.contains(&address));
            self.retries.extend(pool.map(|pool| (at, pool, base)));
        }
    }

    /// A pool must not give out addresses of a block that is held but not its own.
    pub(super) fn cover(&mut self, blocks: &[IpNet]) {
        for block in blocks {
            if self.pool_of(block).is_none() {
                for pool in &mut self.pools {
                    pool.covered |= block.contains(&pool.cidr);
                }
            }
        }
    }

    /// After a block without a pool has gone.
    pub(super) fn uncover(&mut self) {
        let retired = self.pools.iter().filter(|pool| pool.retired);
        let held: Vec<IpNet> = retired
            .flat_map(|pool| pool.blocks().map(|block| block.cidr))
            .collect();
        for pool in self.pools.iter_mut().filter(|pool| !pool.retired) {
            pool.covered = held.iter().any(|block| block.contains(&pool.cidr));
        }
    }

    /// Workloads whose block would lie in none of these pools. Those without a pool already do not
    /// count.
    fn stranded(&self, pools: &[config::Pool]) -> Vec<Stranded> {
        let mut stranded = Vec::new();
        for pool in self.pools.iter().filter(|pool| !pool.retired) {
            let homeless: Vec<IpNet> = pool
                .blocks()
                .filter(|block| block.used > 0)
                .map(|block| block.cidr)
                .filter(|block| !pools.iter().any(|pool| pool.cidr.contains(block)))
                .collect();
            if homeless.is_empty() {
                continue;
            }
            let inside = |address: &IpAddr| homeless.iter().any(|block| block.contains(address));
            stranded.push(Stranded {
                pool: pool.name.clone(),
                workloads: self.holding(inside),
            });
        }
        stranded
    }

    /// Who has addresses of a pool, in order of id.
    pub fn users(&self, pool: &str) -> Vec<(WorkloadId, IpAddr)> {
        let named = |of: &&Pool| of.name == pool;
        let Some(pool) = self.pools.iter().find(named) else {
            return Vec::new();
        };
        self.holding(|address| pool.cidr.contains(address))
    }

    fn holding(&self, wanted: impl Fn(&IpAddr) -> bool) -> Vec<(WorkloadId, IpAddr)> {
        let holders = self.holders.iter();
        let mut holding: Vec<(WorkloadId, IpAddr)> = holders
            .filter(|(address, _)| wanted(address))
            .map(|(address, id)| (id.clone(), *address))
            .collect();
        holding.sort_unstable();
        holding
    }

    /// What an operator said of the pool, if it is one that an operator can speak of.
    pub fn pool_override(&self, name: &str) -> Result<Option<PoolOverride>, Error> {
        match self.pool_named(name) {
            Ok(index) => Ok(self.pools[index].overridden),
            Err(Error::PoolClosed { .. }) => Ok(self.overrides.get(name).copied()),
            Err(error) => Err(error),
        }
    }

    /// The configuration itself disables the pool.
    pub fn is_disabled_by_configuration(&self, name: &str) -> bool {
        let named = |pool: &&Pool| pool.name == name && !pool.retired;
        let pool = self.pools.iter().find(named);
        pool.is_some_and(|pool| pool.closed() == Some(Closed::Disabled))
    }

    /// What an operator says of a pool holds from now on.
    pub fn override_pool(&mut self, now: Now, name: &str, to: Option<PoolOverride>) {
        match to {
            Some(to) => self.overrides.insert(name.to_owned(), to),
            None => self.overrides.remove(name),
        };
        for index in 0..self.pools.len() {
            if self.pools[index].name == name && !self.pools[index].retired {
                self.pools[index].overridden = to;
                self.claim_ahead(now, index);
            }
        }
        self.look_at(now.instant);
    }
}
