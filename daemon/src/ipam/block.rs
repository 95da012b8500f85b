//! One block: which of its addresses are taken.
//!
//! What was free the longest is given out first. So there are two kinds of free addresses: those
//! that nobody has had in this run, found in a bitmap by a pointer that goes round, and after them
//! those that were given back, in the order in which they became free. A block has at most 4096
//! addresses, so a search reads at most 64 words.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;

use super::address;
use crate::node::view::BlockState;

/// What is never given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unused {
    /// Without overlap.
    pub(super) reserved: Vec<IpNet>,
    /// The first and the last address of each block.
    pub(super) ends: bool,
}

impl Unused {
    /// Whether that address of a block is.
    pub(super) fn has(&self, block: &IpNet, address: IpAddr) -> bool {
        let ends = self.ends && (address == block.network() || address == block.broadcast());
        ends || self.reserved.iter().any(|range| range.contains(&address))
    }

    /// How many addresses of a block are, where no reserved range covers all of it.
    pub(super) fn count(&self, block: &IpNet) -> u128 {
        let inside = self.reserved.iter().filter(|range| block.contains(*range));
        let reserved: u128 = inside.map(address::count).sum();
        let free = |end: &IpAddr| !self.reserved.iter().any(|range| range.contains(end));
        let ends = BTreeSet::from([block.network(), block.broadcast()]);
        let ends = ends.into_iter().filter(|end| self.ends && free(end));
        reserved + u128::try_from(ends.count()).expect("at most two")
    }
}

/// Addresses are named by their offset in the block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) cidr: IpNet,
    pub(super) state: BlockState,
    /// Its record is known to be on disk.
    pub(super) persisted: bool,
    /// Order in which blocks were claimed: the oldest is filled first.
    pub(super) order: u64,
    pub(super) claimed_at: SystemTime,
    /// Since when it holds neither a workload nor a cooling address, and how often that was seen.
    pub(super) empty_since: Option<Instant>,
    pub(super) observations: u32,
    /// Somebody else announces it, too.
    pub(super) contested: bool,
    pub(super) used: u32,
    pub(super) cooling: u32,
    pub(super) reserved: u32,
    size: u32,
    /// Used, cooling or reserved.
    taken: Box<[u64]>,
    /// Used, though the configuration reserves them by now: reserved again once released.
    used_reserved: BTreeSet<u32>,
    next: u32,
    /// Given back in this run, the longest free first. Those that are taken again are not in it.
    given_back: VecDeque<u32>,
    /// The same as bits.
    is_given_back: Box<[u64]>,
}

impl Block {
    /// `cidr` has at most 4096 addresses. What is in `unused` is never free.
    pub(super) fn new(cidr: IpNet, order: u64, claimed_at: SystemTime, unused: &Unused) -> Self {
        let size = u32::try_from(address::count(&cidr)).expect("blocks are small");
        let words = usize::try_from(size.div_ceil(64)).expect("blocks are small");
        let mut block = Block {
            cidr,
            state: BlockState::Claimed,
            persisted: false,
            order,
            claimed_at,
            empty_since: None,
            observations: 0,
            contested: false,
            used: 0,
            cooling: 0,
            reserved: 0,
            size,
            taken: vec![0; words].into_boxed_slice(),
            used_reserved: BTreeSet::new(),
            next: 0,
            given_back: VecDeque::new(),
            is_given_back: vec![0; words].into_boxed_slice(),
        };
        let base = block.base();
        if unused.ends {
            for end in [0, size - 1] {
                block.reserved += u32::from(block.take(end));
            }
        }
        for range in &unused.reserved {
            let (first, last) = address::bounds(range);
            let end = base + u128::from(size) - 1;
            if first > end || last < base {
                continue;
            }
            for value in first.max(base)..=last.min(end) {
                if block.take(offset(value - base)) {
                    block.reserved += 1;
                }
            }
        }
        block
    }

    pub(super) fn base(&self) -> u128 {
        address::bounds(&self.cidr).0
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    pub(super) fn free(&self) -> u32 {
        self.size - self.used - self.cooling - self.reserved
    }

    /// Holds neither a workload nor a cooling address.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0 && self.cooling == 0
    }

    pub(super) fn is_taken(&self, offset: u32) -> bool {
        let (word, bit) = position(offset);
        self.taken[word] & bit != 0
    }

    /// What it was before; its addresses but for the unused ones are yet to be taken.
    pub(super) fn continue_from(&mut self, from: &Block) {
        self.state = from.state;
        self.persisted = from.persisted;
        self.contested = from.contested;
        self.empty_since = from.empty_since;
        self.observations = from.observations;
        self.next = from.next;
        for offset in &from.given_back {
            let (word, bit) = position(*offset);
            if self.taken[word] & bit == 0 {
                self.is_given_back[word] |= bit;
                self.given_back.push_back(*offset);
            }
        }
    }

    /// The address that was free the longest.
    pub(super) fn find(&self) -> Option<u32> {
        if self.free() == 0 {
            return None;
        }
        self.find_fresh()
            .or_else(|| self.given_back.front().copied())
    }

    /// The next free address that nobody has had in this run.
    fn find_fresh(&self) -> Option<u32> {
        let words = self.taken.len();
        let (start, bit) = position(self.next % self.size);
        // From the pointer to the end of its word, the other words, and the start of that word.
        for step in 0..=words {
            let word = (start + step) % words;
            let mut taken = self.taken[word] | self.is_given_back[word];
            if step == 0 {
                taken |= bit - 1;
            }
            let bit = taken.trailing_ones();
            let found = u32::try_from(word).expect("blocks are small") * 64 + bit;
            if bit < 64 && found < self.size {
                return Some(found);
            }
        }
        None
    }

    /// Counts an address that is free, or reserved since it was given out, as used.
    pub(super) fn occupy(&mut self, offset: u32) {
        if !self.take(offset) {
            self.reserved -= 1;
            self.used_reserved.insert(offset);
        }
        self.used += 1;
    }

    /// Marks an address as taken. False: it was taken already.
    pub(super) fn take(&mut self, offset: u32) -> bool {
        let (word, bit) = position(offset);
        if self.taken[word] & bit != 0 {
            return false;
        }
        self.taken[word] |= bit;
        if self.is_given_back[word] & bit != 0 {
            self.is_given_back[word] &= !bit;
            match self.given_back.front() {
                Some(first) if *first == offset => drop(self.given_back.pop_front()),
                _ => self.given_back.retain(|other| *other != offset),
            }
        }
        true
    }

    /// The next search starts behind `offset`.
    pub(super) fn advance(&mut self, offset: u32) {
        self.next = (offset + 1) % self.size;
    }

    /// An address that is neither used nor cooling any more.
    pub(super) fn clear(&mut self, offset: u32) {
        if self.used_reserved.remove(&offset) {
            self.reserved += 1;
            return;
        }
        let (word, bit) = position(offset);
        self.taken[word] &= !bit;
        self.is_given_back[word] |= bit;
        self.given_back.push_back(offset);
    }
}

fn position(offset: u32) -> (usize, u64) {
    let word = usize::try_from(offset / 64).expect("blocks are small");
    (word, 1 << (offset % 64))
}

fn offset(value: u128) -> u32 {
    u32::try_from(value).expect("blocks are small")
}
