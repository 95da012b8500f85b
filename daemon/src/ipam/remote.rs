//! Pools whose blocks are agreed on with other nodes (`ipam.store = "etcd"`).
//!
//! The allocator does not choose a block of such a pool. It asks for one ([`Action::Acquire`]) and
//! is told what became of it; who asked on its behalf goes on trying until the pool has one or is
//! gone. A block that came is used like any other. One that is given back is first gone from
//! everywhere on this node, and only then from the fleet's store ([`Action::Return`]).

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Action, Error, Ipam, Now, pool::Pool};
use crate::{config, store::record::BlockRecord};

/// A block that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub pool: String,
    pub cidr: IpNet,
    pub block_size: u8,
    /// Blocks without any other address are of no use.
    pub reserved: Vec<IpNet>,
    /// Exactly this one. `None`: any.
    pub block: Option<IpNet>,
}

/// Why a block did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Every block of the pool is held by some node.
    Full,
    /// That very block is held by this node.
    HeldBy(String),
    /// The store cannot be asked, or does not let this node in: for a person.
    Unreachable(String),
}

/// What a pool has asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Remote {
    any: bool,
    exactly: BTreeSet<IpNet>,
    /// The last answer, if it was none that helps.
    refusal: Option<Refusal>,
    /// Particular blocks that others hold.
    held: Vec<(IpNet, String)>,
}

impl Remote {
    pub(super) fn is_full(&self) -> bool {
        self.refusal == Some(Refusal::Full)
    }
}

impl Ipam {
    /// A block was claimed for the pool.
    pub fn acquired(&mut self, now: Now, pool: &str, cidr: IpNet) {
        let found = self
            .pools
            .iter()
            .position(|held| held.name == pool && held.remote.is_some() && !held.retired);
        let fits = |index: &usize| self.pools[*index].cidr.contains(&cidr);
        let Some(index) = found.filter(fits) else {
            self.actions.push_back(Action::Return(cidr));
            return;
        };
        let held = &mut self.pools[index];
        let name = held.name.clone();
        if let Some(remote) = &mut held.remote {
            if !remote.exactly.remove(&cidr) {
                remote.any = false;
            }
            remote.refusal = None;
        }
        if held
            .block_of(cidr.addr())
            .is_some_and(|block| block.cidr == cidr)
        {
            return;
        }
        if held.insert(cidr, now.wall).is_none() {
            // It overlaps one that this node has.
            self.actions.push_back(Action::Return(cidr));
            return;
        }
        self.actions.push_back(Action::Claim(BlockRecord {
            cidr,
            pool: name,
            claimed_at: now.wall,
        }));
        self.claim_ahead(now, index);
        self.watch_empty_blocks(now);
    }

    /// A block did not come. Unless a particular one is held by somebody, it is still tried.
    pub fn acquire_failed(&mut self, pool: &str, block: Option<IpNet>, why: Refusal) {
        for held in self.pools.iter_mut().filter(|held| held.name == pool) {
            let Some(remote) = &mut held.remote else {
                continue;
            };
            match (why.clone(), block) {
                (Refusal::HeldBy(node), Some(block)) => {
                    remote.exactly.remove(&block);
                    remote.held.retain(|(other, _)| *other != block);
                    remote.held.push((block, node));
                }
                (why, _) => remote.refusal = Some(why),
            }
        }
    }

    /// Asks for a block, unless that is done already.
    pub(super) fn ask_for(&mut self, index: usize, block: Option<IpNet>) {
        let pool = &mut self.pools[index];
        if pool.closed().is_some() || pool.at_limit() {
            return;
        }
        let Some(remote) = &mut pool.remote else {
            return;
        };
        let is_new = match block {
            Some(block) => remote.exactly.insert(block),
            None => !std::mem::replace(&mut remote.any, true),
        };
        if is_new {
            let wanted = Wanted {
                pool: pool.name.clone(),
                cidr: pool.cidr,
                block_size: pool.block_size,
                reserved: pool.unused.reserved.clone(),
                block,
            };
            self.actions.push_back(Action::Acquire(wanted));
        }
    }

    /// A workload wants an address of a block that is not held: the block is asked for.
    pub(super) fn ask_for_exactly(&mut self, index: usize, block: IpNet) -> Error {
        let pool = &mut self.pools[index];
        let name = pool.name.clone();
        if let Some(remote) = &mut pool.remote
            && let Some(place) = remote.held.iter().position(|(other, _)| *other == block)
        {
            // Asked once more the next time: it may be free by then.
            let (_, node) = remote.held.swap_remove(place);
            return Error::BlockHeld {
                block,
                pool: name,
                node,
            };
        }
        self.ask_for(index, Some(block));
        self.waiting(index, Some(block))
    }

    /// Why there is no address now, and perhaps soon.
    pub(super) fn waiting(&self, index: usize, block: Option<IpNet>) -> Error {
        let pool = &self.pools[index];
        let refusal = pool
            .remote
            .as_ref()
            .and_then(|remote| remote.refusal.clone());
        Error::Waiting {
            pool: pool.name.clone(),
            block,
            why: match refusal {
                Some(Refusal::Unreachable(why)) => Some(why),
                _ => None,
            },
        }
    }

    /// Blocks that are to be held in the fleet's store: those of pools that are agreed on there.
    pub fn remote_blocks(&self) -> Vec<(String, IpNet)> {
        let is_shared = |pool: &&Pool| self.store == config::Store::Etcd && !pool.is_local();
        let shared = self.pools.iter().filter(is_shared);
        shared
            .flat_map(|pool| pool.blocks().map(|block| (pool.name.clone(), block.cidr)))
            .collect()
    }
}
