//! Which address a request gets, and why it gets none.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Error, Exhausted, Ipam, Now, Scope, address, cooling::Cooling, offset_of, pool::Pool};
use crate::node::{WorkloadId, view::BlockState};

/// A free address of a pool, chosen and marked.
pub(super) struct Chosen {
    pub(super) pool: usize,
    pub(super) base: u128,
    pub(super) address: IpAddr,
    /// It was cooling down until now.
    pub(super) cooling: Option<Cooling>,
}

impl Ipam {
    /// Marks addresses as used and puts them into `chosen`, also those before an error.
    pub(super) fn choose(
        &mut self,
        now: Now,
        id: &WorkloadId,
        scope: Scope<'_>,
        fixed: &[IpAddr],
        chosen: &mut Vec<Chosen>,
    ) -> Result<(), Error> {
        let named = match scope {
            Scope::Pool(name) => vec![self.pool_named(name)?],
            Scope::Pools(names) => self.pools_named(names)?,
            Scope::Any | Scope::Labelled(_) | Scope::Bridge(_) => Vec::new(),
            Scope::Nothing => return Ok(()),
        };
        for address in fixed {
            if chosen
                .iter()
                .any(|other| other.address.is_ipv4() == address.is_ipv4())
            {
                return Err(Error::FamilyTwice { address: *address });
            }
            chosen.push(self.choose_fixed(now, id, scope, &named, *address)?);
        }
        if !fixed.is_empty() {
            return Ok(());
        }
        if !named.is_empty() {
            for pool in named {
                chosen.push(self.choose_from(now, pool)?);
            }
            return Ok(());
        }
        for is_ipv4 in [true, false] {
            let mut exhausted: Option<Box<Exhausted>> = None;
            let mut waiting: Option<Error> = None;
            for index in 0..self.pools.len() {
                let pool = &self.pools[index];
                if matches!(pool.cidr, IpNet::V4(_)) != is_ipv4
                    || !pool.is_open()
                    || !pool.is_in(scope)
                    || !pool.takes(scope)
                {
                    continue;
                }
                match self.choose_from(now, index) {
                    Ok(choice) => {
                        chosen.push(choice);
                        (exhausted, waiting) = (None, None);
                        break;
                    }
                    Err(Error::Exhausted(error)) => match &mut exhausted {
                        Some(first) => first.also.push(error.pool),
                        None => exhausted = Some(error),
                    },
                    // One that may have an address soon is worth waiting for, unless another has
                    // one now.
                    Err(error @ Error::Waiting { .. }) => {
                        waiting.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(waiting) = waiting {
                return Err(waiting);
            }
            if let Some(exhausted) = exhausted {
                return Err(Error::Exhausted(exhausted));
            }
        }
        if chosen.is_empty() {
            return Err(Error::NoPool {
                why: self.why_not(scope),
            });
        }
        Ok(())
    }

    /// Why each pool of the scope has nothing for it.
    fn why_not(&self, scope: Scope<'_>) -> Vec<String> {
        let inside = self
            .pools
            .iter()
            .filter(|pool| !pool.retired && pool.is_in(scope));
        let reason = |pool: &Pool| match (pool.closed(), &pool.workload_selector) {
            (Some(closed), _) => closed.to_string(),
            (None, Some(selector)) if !pool.takes(scope) => {
                format!("is for workloads with {selector}")
            }
            _ => "no range of it in ipam.claim".to_owned(),
        };
        inside
            .map(|pool| format!("pool \"{}\": {}", pool.name, reason(pool)))
            .collect()
    }

    pub(super) fn pool_named(&self, name: &str) -> Result<usize, Error> {
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
        self.open(index)
    }

    /// IPv4 first.
    fn pools_named(&self, names: &[String]) -> Result<Vec<usize>, Error> {
        let mut named: Vec<usize> = Vec::with_capacity(names.len());
        for name in names {
            let index = self.pool_named(name)?;
            let is_ipv4 = |index: usize| matches!(self.pools[index].cidr, IpNet::V4(_));
            if let Some(other) = named
                .iter()
                .find(|other| is_ipv4(**other) == is_ipv4(index))
            {
                return Err(Error::PoolsOfOneFamily {
                    pool: self.pools[*other].name.clone(),
                    other: name.clone(),
                });
            }
            named.push(index);
        }
        named.sort_by_key(|index| matches!(self.pools[*index].cidr, IpNet::V6(_)));
        Ok(named)
    }

    fn open(&self, index: usize) -> Result<usize, Error> {
        match self.pools[index].closed() {
            None => Ok(index),
            Some(why) => Err(Error::PoolClosed {
                name: self.pools[index].name.clone(),
                why,
            }),
        }
    }

    fn choose_from(&mut self, now: Now, index: usize) -> Result<Chosen, Error> {
        let base = match self.pools[index].oldest_with_free() {
            Some(base) => base,
            None => match self.claim_next(now, index) {
                Some(base) => base,
                None if self.may_come(index) => return Err(self.waiting(index, None)),
                None => return Err(self.exhausted(now, index)),
            },
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
        named: &[usize],
        address: IpAddr,
    ) -> Result<Chosen, Error> {
        let containing =
            |pool: &Pool| !pool.retired && pool.is_in(scope) && pool.cidr.contains(&address);
        let has = |index: &&usize| self.pools[**index].cidr.contains(&address);
        let index = match (named.iter().find(has), named.first()) {
            (Some(index), _) => *index,
            (None, Some(first)) => {
                let same = |index: &&usize| {
                    matches!(self.pools[**index].cidr, IpNet::V4(_)) == address.is_ipv4()
                };
                let Pool { name, cidr, .. } =
                    &self.pools[*named.iter().find(same).unwrap_or(first)];
                return Err(Error::AddressOutsidePool {
                    address,
                    pool: name.clone(),
                    cidr: *cidr,
                });
            }
            (None, None) => {
                let found = self.pools.iter().position(containing);
                let index = found.ok_or_else(|| Error::AddressOutsidePools {
                    address,
                    pools: self
                        .pools
                        .iter()
                        .filter(|pool| !pool.retired && pool.is_in(scope))
                        .map(|pool| format!("{} ({})", pool.name, pool.cidr))
                        .collect(),
                })?;
                self.open(index)?
            }
        };
        let pool = &self.pools[index];
        if pool.keeps_unused(address) {
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
            Some(block) if block.state == BlockState::Releasing => {
                return Err(Error::BlockReleasing {
                    address,
                    block: block.cidr,
                });
            }
            Some(block) => block.base(),
            None => {
                let block = pool.block_cidr_of(address);
                if let Some(most) = pool.max_blocks.filter(|_| pool.at_limit()) {
                    return Err(Error::BlockLimit {
                        address,
                        pool: pool.name.clone(),
                        block,
                        most,
                    });
                }
                if pool.remote.is_some() {
                    return Err(self.ask_for_exactly(index, block));
                }
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
        self.occupy(index, base, address);
        Ok(Chosen {
            pool: index,
            base,
            address,
            cooling,
        })
    }

    /// A block is on its way, as far as is known.
    fn may_come(&self, index: usize) -> bool {
        let pool = &self.pools[index];
        let remote = pool.remote.as_ref();
        remote.is_some_and(|remote| !remote.is_full()) && !pool.at_limit()
    }

    pub(super) fn unchoose(&mut self, choice: Chosen) {
        self.pools[choice.pool].change(choice.base, |block| {
            block.used -= 1;
            block.clear(offset_of(choice.base, choice.address));
        });
        if let Some(cooling) = choice.cooling {
            self.begin_cooling(cooling);
        }
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
        let leaving = pool
            .blocks()
            .filter(|block| block.state == BlockState::Releasing)
            .count();
        Error::Exhausted(Box::new(Exhausted {
            pool: pool.name.clone(),
            cidr: pool.cidr,
            block_size: pool.block_size,
            blocks: u64::try_from(pool.len()).expect("a count"),
            blocks_leaving: u64::try_from(leaving).expect("a count"),
            in_claim: pool.in_claim(),
            max_blocks: pool.max_blocks,
            claim: pool.claim(),
            addresses: pool.totals.addresses,
            used: pool.totals.used,
            cooling: pool.totals.cooling,
            reserved: pool.totals.reserved,
            remote: pool.remote.is_some(),
            next_free_in: next.map(|(until, _)| until.saturating_duration_since(now.instant)),
            also: Vec::new(),
        }))
    }
}
