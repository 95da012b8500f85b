//! One pool: the blocks this node holds of it, and the ones it may still claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;

use super::{
    Scope, address,
    block::{Block, Unused},
    error::Closed,
    remote::Remote,
};
use crate::{
    config,
    node::view::{BlockState, PoolOverride},
};

#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) cidr: IpNet,
    pub(super) block_size: u8,
    pub(super) disabled: bool,
    /// What an operator said beside the configuration.
    pub(super) overridden: Option<PoolOverride>,
    /// Only shown.
    pub(super) nat_outgoing: bool,
    /// Not in the configuration any more: exists only for what workloads still use.
    pub(super) retired: bool,
    /// A block that is not its own covers all of it, until that block is gone.
    pub(super) covered: bool,
    pub(super) unused: Unused,
    pub(super) max_blocks: Option<u32>,
    pub(super) node_selector: Option<config::Selector>,
    pub(super) for_this_node: bool,
    pub(super) workload_selector: Option<config::Selector>,
    claim: Vec<ClaimRange>,
    /// Blocks are agreed on with other nodes.
    pub(super) remote: Option<Remote>,
    /// By first address.
    blocks: BTreeMap<u128, Block>,
    /// Blocks with a free address that are not being given back, oldest first: `(order, base)`.
    with_free: BTreeSet<(u64, u128)>,
    next_order: u64,
    /// What others announce inside the claim ranges: blocks, or parts of them.
    foreign: BTreeSet<IpNet>,
    /// Given up because others announce them; until when they are not claimed again.
    pub(super) yielded: Vec<(Instant, IpNet)>,
    pub(super) totals: Totals,
}

/// Sums over the blocks of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) addresses: u64,
    pub(super) used: u64,
    pub(super) cooling: u64,
    pub(super) reserved: u64,
    /// In blocks that are not being given back.
    pub(super) free: u64,
}

#[derive(Clone, Debug)]
struct ClaimRange {
    cidr: IpNet,
    /// Every block of the range below this address is held or has nothing to give.
    hint: u128,
}

impl Pool {
    pub(super) fn new(config: &config::Pool) -> Self {
        let claim = config.claim.iter().map(|cidr| ClaimRange {
            cidr: *cidr,
            hint: address::bounds(cidr).0,
        });
        Pool {
            name: config.name.clone(),
            cidr: config.cidr,
            block_size: config.block_size,
            disabled: config.disabled,
            overridden: None,
            nat_outgoing: config.nat_outgoing,
            retired: false,
            covered: false,
            unused: Unused {
                reserved: config.reserved.clone(),
                ends: config.keep_ends_unused,
            },
            max_blocks: config.max_blocks,
            node_selector: config.node_selector.clone(),
            for_this_node: config.for_this_node,
            workload_selector: config.workload_selector.clone(),
            claim: claim.collect(),
            remote: None,
            blocks: BTreeMap::new(),
            with_free: BTreeSet::new(),
            next_order: 0,
            foreign: BTreeSet::new(),
            yielded: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Its blocks are agreed on where the configuration says.
    pub(super) fn stored(mut self, store: config::Store) -> Self {
        if store == config::Store::Etcd && !self.is_local() {
            self.remote = Some(Remote::default());
            self.claim.clear();
        }
        self
    }

    /// Part of a bridge's subnet: known to this node only.
    pub(super) fn is_local(&self) -> bool {
        config::Bridge::of_pool(&self.name).is_some()
    }

    pub(super) fn is_in(&self, scope: Scope<'_>) -> bool {
        let bridge = config::Bridge::of_pool(&self.name);
        match scope {
            Scope::Any | Scope::Labelled(_) => bridge.is_none(),
            Scope::Pool(name) => bridge.is_none() && self.name == name,
            Scope::Pools(names) => bridge.is_none() && names.contains(&self.name),
            Scope::Bridge(name) => bridge == Some(name),
            Scope::Nothing => false,
        }
    }

    /// Whether a workload that names no pool may get an address of it, as far as labels go.
    pub(super) fn takes(&self, scope: Scope<'_>) -> bool {
        match (&self.workload_selector, scope) {
            (None, _) => true,
            (Some(selector), Scope::Labelled(labels)) => selector.matches(labels),
            (Some(selector), _) => selector.matches(&BTreeMap::new()),
        }
    }

    /// Why nothing new comes from it; `None`: it does.
    pub(super) fn closed(&self) -> Option<Closed> {
        if self.retired {
            return Some(Closed::Removed);
        }
        if self.disabled {
            return Some(Closed::Disabled);
        }
        match self.overridden {
            Some(PoolOverride::Disabled) => return Some(Closed::DisabledByOperator),
            Some(PoolOverride::Draining) => return Some(Closed::Draining),
            None => {}
        }
        if !self.for_this_node {
            let selector = self.node_selector.as_ref();
            return Some(Closed::OtherNodes {
                selector: selector.map(ToString::to_string).unwrap_or_default(),
            });
        }
        self.covered.then_some(Closed::Covered)
    }

    /// Its blocks go as soon as they are empty.
    pub(super) fn is_leaving(&self) -> bool {
        self.retired || self.overridden == Some(PoolOverride::Draining)
    }

    /// This node holds as many blocks of it as it may.
    pub(super) fn at_limit(&self) -> bool {
        let held = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        self.max_blocks.is_some_and(|most| held >= most)
    }

    /// It holds more, since the limit was lowered.
    pub(super) fn is_over_limit(&self) -> bool {
        let staying = u32::try_from(self.staying()).unwrap_or(u32::MAX);
        self.max_blocks.is_some_and(|most| staying > most)
    }

    /// A pool that the configuration does not have any more.
    pub(super) fn retired(name: &str, cidr: IpNet) -> Self {
        Pool {
            retired: true,
            disabled: true,
            ..Pool::new(&config::Pool::new(name, cidr, cidr.prefix_len()))
        }
    }

    pub(super) fn claim(&self) -> Vec<IpNet> {
        self.claim.iter().map(|range| range.cidr).collect()
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many blocks are not being given back.
    pub(super) fn staying(&self) -> usize {
        let leaving = |block: &&Block| block.state == BlockState::Releasing;
        self.blocks.len() - self.blocks().filter(leaving).count()
    }

    /// The first address of every block.
    pub(super) fn bases(&self) -> Vec<u128> {
        self.blocks.keys().copied().collect()
    }

    pub(super) fn block(&self, base: u128) -> Option<&Block> {
        self.blocks.get(&base)
    }

    /// The held block that has this address.
    pub(super) fn block_of(&self, address: IpAddr) -> Option<&Block> {
        let number = address::to_number(address);
        let (_, block) = self.blocks.range(..=number).next_back()?;
        block.cidr.contains(&address).then_some(block)
    }

    /// The block this address is or would be in.
    pub(super) fn block_cidr_of(&self, address: IpAddr) -> IpNet {
        match self.block_of(address) {
            Some(block) => block.cidr,
            None => self.block_at(address::to_number(address)),
        }
    }

    fn block_at(&self, number: u128) -> IpNet {
        address::prefix(number, self.block_size, &self.cidr).trunc()
    }

    /// The oldest block with a free address.
    pub(super) fn oldest_with_free(&self) -> Option<u128> {
        self.with_free.first().map(|(_, base)| *base)
    }

    /// Changes a block, and keeps the sums and the order of blocks true.
    pub(super) fn change<T>(&mut self, base: u128, change: impl FnOnce(&mut Block) -> T) -> T {
        let block = self
            .blocks
            .get_mut(&base)
            .expect("blocks are named by those who hold them");
        self.totals.remove(block);
        let result = change(block);
        self.totals.add(block);
        let entry = (block.order, base);
        if block.free() > 0 && block.state != BlockState::Releasing && !block.contested {
            self.with_free.insert(entry);
        } else {
            self.with_free.remove(&entry);
        }
        result
    }

    /// Holds a block from now on. `None`: it overlaps one that is held.
    pub(super) fn insert(&mut self, cidr: IpNet, claimed_at: SystemTime) -> Option<u128> {
        if self.overlaps_held(&cidr) {
            return None;
        }
        let block = Block::new(cidr, self.next_order, claimed_at, &self.unused);
        self.next_order += 1;
        let base = block.base();
        self.totals.add(&block);
        self.blocks.insert(base, block);
        self.change(base, |_| ());
        Some(base)
    }

    /// Holds it no longer. Nobody may use any address of it.
    pub(super) fn remove(&mut self, base: u128) {
        let Some(block) = self.blocks.remove(&base) else {
            return;
        };
        self.totals.remove(&block);
        self.with_free.remove(&(block.order, base));
        for range in &mut self.claim {
            if range.cidr.contains(&block.cidr) {
                range.hint = range.hint.min(base);
            }
        }
    }

    /// What others announce inside the claim ranges.
    pub(super) fn foreign(&self) -> &BTreeSet<IpNet> {
        &self.foreign
    }

    /// Others announce this block, or a part of it, or did so a moment ago.
    fn is_foreign(&self, block: &IpNet) -> bool {
        let first = self.foreign.range(block..).next();
        first.is_some_and(|prefix| block.contains(prefix))
            || self.yielded.iter().any(|(_, known)| known == block)
    }

    /// A prefix is announced by somebody else, or no longer. What is larger than a block says
    /// nothing about who holds the blocks in it.
    pub(super) fn note_foreign(&mut self, prefix: IpNet, announced: bool) {
        let inside = self.claim.iter().any(|range| range.cidr.contains(&prefix));
        if !inside || prefix.prefix_len() < self.block_size {
            return;
        }
        if announced {
            self.foreign.insert(prefix);
        } else if self.foreign.remove(&prefix) {
            self.look_again(&prefix);
        }
    }

    pub(super) fn forget_yielded(&mut self, now: Instant) {
        let (over, left) = std::mem::take(&mut self.yielded)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.yielded = left;
        for (_, cidr) in over {
            self.look_again(&cidr);
        }
    }

    /// What was unclaimable may be claimable by now.
    fn look_again(&mut self, prefix: &IpNet) {
        let base = address::bounds(&self.block_at(address::bounds(prefix).0)).0;
        for range in &mut self.claim {
            if range.cidr.contains(prefix) {
                range.hint = range.hint.min(base.max(address::bounds(&range.cidr).0));
            }
        }
    }

    fn overlaps_held(&self, cidr: &IpNet) -> bool {
        let (first, last) = address::bounds(cidr);
        let below = self.blocks.range(..=last).next_back();
        below.is_some_and(|(_, block)| address::bounds(&block.cidr).1 >= first)
    }

    /// Whether this node may claim that block, but for the limit.
    pub(super) fn may_claim(&self, cidr: &IpNet) -> bool {
        let inside = match self.remote {
            Some(_) => self.cidr.contains(cidr),
            None => self.claim.iter().any(|range| range.cidr.contains(cidr)),
        };
        self.closed().is_none() && inside
    }

    /// Whether an address can come from here at all: a block is held, or may be claimed.
    pub(super) fn is_open(&self) -> bool {
        let nothing = self.remote.is_none() && self.claim.is_empty() && self.blocks.is_empty();
        self.closed().is_none() && !nothing
    }

    /// The next block to claim. Costs what lies between the last one and it: each block that is
    /// held or has nothing to give is looked at once.
    pub(super) fn next_claimable(&mut self) -> Option<IpNet> {
        if self.at_limit() || self.closed().is_some() {
            return None;
        }
        for index in 0..self.claim.len() {
            let range = &self.claim[index];
            let (_, last) = address::bounds(&range.cidr);
            let mut at = range.hint;
            while at <= last {
                let candidate = self.block_at(at);
                let skip = self.skip(&candidate);
                let Some(next) = skip else {
                    self.claim[index].hint = at;
                    return Some(candidate);
                };
                // The end of the address space: nothing follows.
                let Some(next) = next.checked_add(1) else {
                    break;
                };
                at = next;
            }
            self.claim[index].hint = at.min(last.saturating_add(1));
        }
        None
    }

    /// The last address of what makes this block unclaimable; `None` when it can be claimed.
    fn skip(&self, candidate: &IpNet) -> Option<u128> {
        let (first, last) = address::bounds(candidate);
        let below = self.blocks.range(..=last).next_back();
        if let Some((_, held)) = below {
            let (_, held_last) = address::bounds(&held.cidr);
            if held_last >= first {
                return Some(held_last.max(last));
            }
        }
        if self.is_foreign(candidate) {
            return Some(last);
        }
        // One reserved prefix may cover more blocks than could ever be counted: jump over it.
        let reserved = &self.unused.reserved;
        if let Some(reserved) = reserved.iter().find(|range| range.contains(candidate)) {
            return Some(address::bounds(reserved).1);
        }
        (self.unused.count(candidate) >= address::count(candidate)).then_some(last)
    }

    /// How many blocks this node may hold.
    pub(super) fn claimable(&self) -> u128 {
        let most = self.max_blocks.map_or(u128::MAX, u128::from);
        self.in_claim().min(most)
    }

    /// How many blocks the claim ranges have.
    pub(super) fn in_claim(&self) -> u128 {
        let whole = self.remote.as_ref().map(|_| self.cidr);
        let ranges = self.claim.iter().map(|range| range.cidr).chain(whole);
        let blocks = ranges.map(|range| {
            let bits = self.block_size.saturating_sub(range.prefix_len());
            1u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX)
        });
        blocks.fold(0, u128::saturating_add)
    }

    /// It is never given out, as the configuration has it.
    pub(super) fn keeps_unused(&self, address: IpAddr) -> bool {
        self.unused.has(&self.block_cidr_of(address), address)
    }

    /// For others that take over its blocks, oldest first.
    pub(super) fn into_blocks(self) -> Vec<Block> {
        let mut blocks: Vec<Block> = self.blocks.into_values().collect();
        blocks.sort_unstable_by_key(|block| block.order);
        blocks
    }

    /// Takes over a block of the pool it belonged to before; all its addresses are free or unused
    /// for now. `None`: it overlaps one that is held.
    pub(super) fn adopt(&mut self, from: &Block) -> Option<u128> {
        let base = self.insert(from.cidr, from.claimed_at)?;
        self.change(base, |block| block.continue_from(from));
        Some(base)
    }

    /// Addresses of a block as the configuration has it.
    pub(super) fn addresses_per_block(&self) -> u64 {
        1 << (self.cidr.max_prefix_len() - self.block_size)
    }
}

impl Totals {
    fn add(&mut self, block: &Block) {
        self.addresses += u64::from(block.size());
        self.used += u64::from(block.used);
        self.cooling += u64::from(block.cooling);
        self.reserved += u64::from(block.reserved);
        self.free += Totals::free_of(block);
    }

    fn remove(&mut self, block: &Block) {
        self.addresses -= u64::from(block.size());
        self.used -= u64::from(block.used);
        self.cooling -= u64::from(block.cooling);
        self.reserved -= u64::from(block.reserved);
        self.free -= Totals::free_of(block);
    }

    fn free_of(block: &Block) -> u64 {
        match block.state {
            BlockState::Releasing => 0,
            _ if block.contested => 0,
            BlockState::Claimed | BlockState::Active => u64::from(block.free()),
        }
    }
}
