//! What the allocator shows of itself.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{Ipam, Now, block::Block, pool::Pool};
use crate::{
    config,
    node::{
        WorkloadId,
        view::{BlockView, PoolView},
    },
};

/// What is known about one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    pub pool: Option<PoolView>,
    /// The held block that has it.
    pub block: Option<BlockView>,
    /// Inside the pool: the block it is or would be in, whoever owns that.
    pub would_be_block: Option<IpNet>,
    pub reserved: bool,
    pub holder: Option<WorkloadId>,
    /// Not in use, and for so long not given out again.
    pub cooling: Option<Duration>,
}

impl Ipam {
    /// Configured pools in their order.
    pub fn pools(&mut self, now: Now) -> Vec<PoolView> {
        self.expire(now);
        let configured = self.pools.iter().filter(|pool| !pool.retired);
        configured.map(pool_view).collect()
    }

    /// Held blocks in address order, IPv4 first; of one pool, or of all. `advertised_to` and
    /// `reason` are for the node to fill in.
    pub fn blocks(&mut self, now: Now, pool: Option<&str>) -> Vec<BlockView> {
        self.expire(now);
        let wanted = self
            .pools
            .iter()
            .filter(|held| pool.is_none_or(|name| held.name == name));
        let mut blocks: Vec<BlockView> = wanted
            .flat_map(|pool| pool.blocks().map(|block| block_view(pool, block)))
            .collect();
        blocks.sort_by_key(|block| block.cidr);
        blocks
    }

    /// How many blocks are held.
    pub fn block_count(&self) -> usize {
        self.pools.iter().map(Pool::len).sum()
    }

    pub fn lookup(&mut self, now: Now, address: IpAddr) -> Lookup {
        self.expire(now);
        let place = self.place(address);
        let containing = |pool: &&Pool| !pool.retired && pool.cidr.contains(&address);
        let pool = self.pools.iter().find(containing);
        let cooling = self.cooling.get(&address);
        Lookup {
            pool: pool.map(pool_view),
            block: place.and_then(|(index, base)| {
                let pool = &self.pools[index];
                Some(block_view(pool, pool.block(base)?))
            }),
            would_be_block: pool.map(|pool| pool.block_cidr_of(address)),
            reserved: pool.is_some_and(|pool| pool.keeps_unused(address)),
            holder: self.holders.get(&address).cloned(),
            cooling: cooling.map(|cooling| cooling.until.saturating_duration_since(now.instant)),
        }
    }
}

fn text(selector: Option<&config::Selector>) -> String {
    selector.map(ToString::to_string).unwrap_or_default()
}

fn pool_view(pool: &Pool) -> PoolView {
    PoolView {
        name: pool.name.clone(),
        cidr: pool.cidr,
        block_size: pool.block_size,
        disabled: pool.closed().is_some(),
        nat_outgoing: pool.nat_outgoing,
        claim: pool.claim(),
        blocks_claimable: u64::try_from(pool.claimable()).unwrap_or(u64::MAX),
        blocks_held: u64::try_from(pool.len()).expect("a count"),
        addresses_held: pool.totals.addresses,
        addresses_used: pool.totals.used,
        addresses_cooling: pool.totals.cooling,
        addresses_reserved: pool.totals.reserved,
        addresses_free: pool.totals.free,
        closed: pool.closed(),
        reserved: pool.unused.reserved.clone(),
        keep_ends_unused: pool.unused.ends,
        max_blocks: pool.max_blocks,
        node_selector: text(pool.node_selector.as_ref()),
        workload_selector: text(pool.workload_selector.as_ref()),
    }
}

fn block_view(pool: &Pool, block: &Block) -> BlockView {
    BlockView {
        cidr: block.cidr,
        pool: pool.name.clone(),
        state: block.state,
        size: block.size().into(),
        used: block.used.into(),
        cooling: block.cooling.into(),
        reserved: block.reserved.into(),
        free: block.free().into(),
        advertised_to: 0,
        claimed_at: block.claimed_at,
        reason: String::new(),
    }
}
