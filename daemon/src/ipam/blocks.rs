//! Claiming blocks ahead of need, following them until they are originated, and giving empty
//! ones back.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{Action, Ipam, Now, block::Block, pool::Pool};
use crate::{config, node::view::BlockState, store::record::BlockRecord};

/// Until a claim whose record could not be written is tried again.
const CLAIM_RETRY: Duration = Duration::from_secs(5);
/// Longest time between two looks for empty blocks.
const OBSERVE_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How often a block must be seen empty before it is given back.
const OBSERVATIONS: u32 = 2;

impl Ipam {
    /// The next thing to do with a block.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Ipam::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.retries.iter().map(|(at, ..)| *at).min();
        [retry, self.observe_at].into_iter().flatten().min()
    }

    /// Tries failed claims again, and looks for blocks to give back.
    pub fn handle_timeout(&mut self, now: Now) {
        self.expire(now);
        self.forget_yielded(now.instant);
        let (due, later) = std::mem::take(&mut self.retries)
            .into_iter()
            .partition(|(at, ..)| *at <= now.instant);
        self.retries = later;
        for (_, pool, base) in due {
            self.retry_claim(now, pool, base);
        }
        if self.observe_at.is_some_and(|at| at <= now.instant) {
            self.observe_at = None;
            for pool in 0..self.pools.len() {
                self.observe(now, pool);
            }
        }
    }

    /// The record of a claimed block is on disk.
    pub fn block_persisted(&mut self, cidr: IpNet) {
        let Some((pool, base)) = self.block_place(cidr) else {
            return;
        };
        let claimed = self.pools[pool].change(base, |block| {
            block.persisted = true;
            block.state == BlockState::Claimed
        });
        if claimed {
            self.use_block(pool, base, cidr);
        }
    }

    /// What is to be done with a durable block.
    pub(super) fn use_block(&mut self, pool: usize, base: u128, cidr: IpNet) {
        if self.pools[pool].is_local() {
            self.pools[pool].change(base, |block| block.state = BlockState::Active);
            self.actions.push_back(Action::Local(cidr));
        } else {
            self.actions.push_back(Action::Program(cidr));
        }
    }

    /// The record of a claimed block could not be written. The block is dropped while nothing
    /// uses it; the claim is tried again later.
    pub fn block_claim_failed(&mut self, now: Now, cidr: IpNet) {
        let Some((index, base)) = self.block_place(cidr) else {
            return;
        };
        let pool = &mut self.pools[index];
        let block = pool.block(base).expect("found just now");
        if block.persisted {
            return;
        }
        // What the fleet has agreed to stays.
        if block.is_empty() && pool.remote.is_none() {
            pool.remove(base);
        }
        self.retries.push((now.instant + CLAIM_RETRY, index, base));
    }

    /// The blackhole of the block stands, and the block is originated.
    pub fn block_active(&mut self, now: Now, cidr: IpNet) {
        let Some((pool, base)) = self.block_place(cidr) else {
            return;
        };
        self.pools[pool].change(base, |block| {
            if block.state == BlockState::Claimed {
                block.state = BlockState::Active;
            }
        });
        if self.pools[pool].is_leaving() {
            self.look_at(now.instant);
        }
        self.watch_empty_blocks(now);
    }

    /// A block that was to be released is withdrawn, its blackhole and its record are gone. It may
    /// be claimed again from now on.
    pub fn block_released(&mut self, cidr: IpNet) {
        let Some((pool, base)) = self.block_place(cidr) else {
            return;
        };
        let pool = &mut self.pools[pool];
        if pool
            .block(base)
            .is_some_and(|block| block.state == BlockState::Releasing)
        {
            pool.remove(base);
            if self.store == config::Store::Etcd && !pool.is_local() {
                self.actions.push_back(Action::Return(cidr));
            }
            if pool.retired {
                self.uncover();
            }
        }
    }

    fn retry_claim(&mut self, now: Now, index: usize, base: u128) {
        let pool = &self.pools[index];
        match pool.block(base) {
            Some(block) if !block.persisted => {
                let record = BlockRecord {
                    cidr: block.cidr,
                    pool: pool.name.clone(),
                    claimed_at: block.claimed_at,
                };
                self.actions.push_back(Action::Claim(record));
            }
            _ => self.claim_ahead(now, index),
        }
    }

    /// Pool and first address of a held block.
    pub(super) fn block_place(&self, cidr: IpNet) -> Option<(usize, u128)> {
        let (index, base) = self.place(cidr.network())?;
        let block = self.pools[index].block(base)?;
        (block.cidr == cidr).then_some((index, base))
    }

    /// Claims blocks until the pool has room for what is to come, or nothing is left to claim.
    pub(super) fn claim_ahead(&mut self, now: Now, index: usize) {
        while !has_room(&self.pools[index], self.claim_ahead, 1, 0) {
            if self.claim_next(now, index).is_none() {
                break;
            }
        }
    }

    /// `None`: there is none, or the fleet is asked for it.
    pub(super) fn claim_next(&mut self, now: Now, index: usize) -> Option<u128> {
        if self.pools[index].remote.is_some() {
            self.ask_for(index, None);
            return None;
        }
        let cidr = self.pools[index].next_claimable()?;
        self.claim_block(now, index, cidr)
    }

    /// Holds that block from now on. `None`: it overlaps another one.
    pub(super) fn claim_block(&mut self, now: Now, index: usize, cidr: IpNet) -> Option<u128> {
        let pool = &mut self.pools[index];
        let base = pool.insert(cidr, now.wall)?;
        self.actions.push_back(Action::Claim(BlockRecord {
            cidr,
            pool: pool.name.clone(),
            claimed_at: now.wall,
        }));
        Some(base)
    }

    /// Looks for empty blocks after a while, unless that is planned already.
    pub(super) fn watch_empty_blocks(&mut self, now: Now) {
        if self.observe_at.is_none() {
            let interval = (self.release_empty_after / 2).min(OBSERVE_INTERVAL_MAX);
            self.observe_at = Some(now.instant + interval);
        }
    }

    /// Looks for empty blocks at that time, if not before.
    pub(super) fn look_at(&mut self, at: Instant) {
        self.observe_at = Some(self.observe_at.map_or(at, |planned| planned.min(at)));
    }

    fn observe(&mut self, now: Now, index: usize) {
        let pool = &mut self.pools[index];
        let leaving = pool.is_leaving();
        let mut candidates = Vec::new();
        let mut watch = false;
        for base in pool.bases() {
            let grace = self.release_empty_after;
            let seen = pool.change(base, |block| {
                if !block.is_empty() || block.state != BlockState::Active {
                    block.empty_since = None;
                    block.observations = 0;
                    return None;
                }
                block.observations = block.observations.saturating_add(1);
                let since = *block.empty_since.get_or_insert(now.instant);
                let long = now.instant.saturating_duration_since(since) >= grace;
                (leaving || long && block.observations >= OBSERVATIONS).then_some(block.order)
            });
            if let Some(order) = seen {
                candidates.push((order, base));
            }
            let block = pool.block(base).expect("it was changed just now");
            watch |= block.used == 0 && block.state == BlockState::Active;
        }
        // The youngest go first: the oldest are the ones that are filled.
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        for (_, base) in candidates {
            let pool = &mut self.pools[index];
            let block = pool.block(base).expect("seen just now");
            let cidr = block.cidr;
            let free = u64::from(block.free());
            // A block the node could not claim again serves no new workload: no reason to keep it.
            let keep = pool.may_claim(&cidr)
                && !pool.is_over_limit()
                && (pool.staying() <= 1 || !has_room(pool, self.claim_ahead, 2, free));
            if !keep {
                pool.change(base, |block| block.state = BlockState::Releasing);
                self.actions.push_back(Action::Release(cidr));
            }
        }
        let pool = &self.pools[index];
        if leaving {
            // Those that are used are looked at when their users go.
            let cooling = |(_, address): &&(Instant, IpAddr)| {
                self.cooling.get(address).is_some_and(|of| of.pool == index)
            };
            let next = self
                .cooling_order
                .iter()
                .find(cooling)
                .map(|(until, _)| *until);
            let unfinished = |block: &Block| block.is_empty() && block.state == BlockState::Claimed;
            if pool.blocks().any(unfinished) {
                self.look_at(now.instant + CLAIM_RETRY);
            }
            if let Some(next) = next {
                self.look_at(next);
            }
            return;
        }
        if watch && (pool.staying() > 1 || !pool.is_open()) {
            self.watch_empty_blocks(now);
        }
    }
}

/// Whether the pool, without `less` of its free addresses, has more free ones than `times` the
/// share of a block at which the next is claimed.
fn has_room(pool: &Pool, claim_ahead: u8, times: u64, less: u64) -> bool {
    let free = pool.totals.free.saturating_sub(less);
    let share = u64::from(100 - claim_ahead.min(100));
    free * 100 > pool.addresses_per_block() * share * times
}
