//! What BGP shows of blocks that others hold.
//!
//! A block of this node that somebody else announces, too, is contested. New workloads get no
//! addresses of it; while it holds neither workloads nor cooling addresses it is given back, and
//! another block is claimed. A block that others announce is not claimed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{Action, Ipam, Now};
use crate::node::view::BlockState;

/// For so long a block that was given up is not claimed again, whatever BGP shows: until the route
/// of the other one has taken the place of the own one, a moment passes.
const YIELDED: Duration = Duration::from_secs(60);

impl Ipam {
    /// These blocks are announced by others, too, and no other ones. Of them, those that are `due`
    /// are given up when they are unused; returns which.
    pub fn set_contested(
        &mut self,
        now: Now,
        contested: &BTreeSet<IpNet>,
        due: &BTreeSet<IpNet>,
    ) -> Vec<IpNet> {
        self.expire(now);
        let mut given_up = Vec::new();
        for index in 0..self.pools.len() {
            let pool = &mut self.pools[index];
            if pool.is_local() {
                continue;
            }
            let mut changed = false;
            for base in pool.bases() {
                let release = pool.change(base, |block| {
                    let is = contested.contains(&block.cidr);
                    changed |= block.contested != is;
                    block.contested = is;
                    let unused = block.is_empty() && block.state == BlockState::Active;
                    (unused && due.contains(&block.cidr)).then(|| {
                        block.state = BlockState::Releasing;
                        block.cidr
                    })
                });
                if let Some(cidr) = release {
                    pool.yielded.push((now.instant + YIELDED, cidr));
                    given_up.push(cidr);
                    self.actions.push_back(Action::Release(cidr));
                    changed = true;
                }
            }
            if changed && self.pools[index].is_open() {
                self.claim_ahead(now, index);
            }
        }
        given_up
    }

    /// A prefix is announced by somebody else, or no longer.
    pub fn note_foreign(&mut self, prefix: IpNet, announced: bool) {
        for pool in &mut self.pools {
            pool.note_foreign(prefix, announced);
        }
    }

    /// Blocks that were given up may be claimed again after a while.
    pub(super) fn forget_yielded(&mut self, now: Instant) {
        for pool in &mut self.pools {
            pool.forget_yielded(now);
        }
    }
}
