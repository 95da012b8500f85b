//! Attribute sets and next hops, each stored once and counted.
//!
//! Paths refer to attribute sets by a 32-bit id. A next hop is watched from the first path that
//! would be forwarded to it until the last is gone.

use std::{collections::VecDeque, hash::BuildHasher, net::IpAddr, sync::Arc};

use hashbrown::{HashMap, HashTable};
use smallvec::SmallVec;

use super::{
    arena::{Arena, NONE},
    types::{NextHopState, NextHopWatch},
};
use crate::attributes::{Attributes, NextHop, Via, well_known};

type Hasher = foldhash::fast::RandomState;

/// Attribute set ids start at 1; 0 stands for "none" in a path.
pub(super) const NO_ATTRIBUTES: u32 = 0;

#[derive(Debug)]
pub(super) struct AttributeSet {
    pub(super) attributes: Arc<Attributes>,
    /// Holders of the id, of any kind.
    references: u32,
    /// Paths that would be forwarded by it; the next hop is held while there are any.
    uses: u32,
    pub(super) next_hop: u32,
    hash: u64,
    // What the decision process compares, read from the attributes once.
    pub(super) as_path_length: u32,
    /// The leftmost number of the AS path; `None`: the route is of our own AS, or begins with a set.
    pub(super) neighbour: Option<u32>,
    /// LLGR_STALE is among the communities (RFC 9494).
    pub(super) long_lived_stale: bool,
}

#[derive(Debug)]
pub(super) struct AttributeSets {
    sets: Arena<AttributeSet>,
    index: HashTable<u32>,
    hasher: Hasher,
    /// The set looked up last: neighbours in a table often share theirs.
    last: Option<(Arc<Attributes>, u32)>,
}

impl AttributeSets {
    pub(super) fn new() -> Self {
        let mut sets = Arena::new();
        // Takes id 0, which means "none".
        let unused = Attributes::originated(NextHop::from(IpAddr::from([0, 0, 0, 0])));
        sets.insert(AttributeSet {
            attributes: Arc::new(unused),
            references: 1,
            uses: 0,
            next_hop: NONE,
            hash: 0,
            as_path_length: 0,
            neighbour: None,
            long_lived_stale: false,
        });
        Self {
            sets,
            index: HashTable::new(),
            hasher: Hasher::default(),
            last: None,
        }
    }

    /// The id of the set, with a reference for the caller.
    pub(super) fn intern(&mut self, attributes: &Arc<Attributes>) -> u32 {
        if let Some((last, id)) = &self.last
            && Arc::ptr_eq(last, attributes)
        {
            let id = *id;
            self.sets[id].references += 1;
            return id;
        }
        let hash = self.hasher.hash_one(&**attributes);
        let sets = &self.sets;
        let known = self.index.find(hash, |id| {
            let set = &sets[*id];
            set.hash == hash && *set.attributes == **attributes
        });
        let id = match known {
            Some(id) => {
                let id = *id;
                self.sets[id].references += 1;
                id
            }
            None => {
                let id = self.sets.insert(AttributeSet {
                    attributes: attributes.clone(),
                    references: 1,
                    uses: 0,
                    next_hop: NONE,
                    hash,
                    as_path_length: u32::try_from(attributes.as_path.path_length())
                        .unwrap_or(u32::MAX),
                    neighbour: attributes.as_path.neighbor().map(|asn| asn.0),
                    long_lived_stale: attributes.has_community(well_known::LLGR_STALE),
                });
                let sets = &self.sets;
                self.index.insert_unique(hash, id, |id| sets[*id].hash);
                id
            }
        };
        self.last = Some((attributes.clone(), id));
        id
    }

    pub(super) fn retain(&mut self, id: u32) {
        if id != NO_ATTRIBUTES {
            self.sets[id].references += 1;
        }
    }

    pub(super) fn release(&mut self, id: u32) {
        if id == NO_ATTRIBUTES {
            return;
        }
        let set = &mut self.sets[id];
        set.references -= 1;
        if set.references > 0 {
            return;
        }
        debug_assert_eq!(set.uses, 0, "a path in use holds a reference");
        let hash = set.hash;
        let entry = self.index.find_entry(hash, |other| *other == id);
        entry.expect("every set in use is indexed").remove();
        if self.last.as_ref().is_some_and(|(_, last)| *last == id) {
            self.last = None;
        }
        // The slot keeps its value until it is reused: give the memory back now.
        self.sets[id].attributes = self.sets[NO_ATTRIBUTES].attributes.clone();
        self.sets.remove(id);
    }

    /// Sets in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn get(&self, id: u32) -> &AttributeSet {
        &self.sets[id]
    }

    /// A path is now forwarded by this set.
    pub(super) fn start_use(&mut self, id: u32, next_hops: &mut NextHops) {
        let set = &mut self.sets[id];
        set.uses += 1;
        if set.uses == 1 {
            set.next_hop = next_hops.acquire(set.attributes.next_hop);
        }
        next_hops.entries[set.next_hop].paths += 1;
    }

    pub(super) fn end_use(&mut self, id: u32, next_hops: &mut NextHops) {
        let set = &mut self.sets[id];
        set.uses -= 1;
        next_hops.entries[set.next_hop].paths -= 1;
        if set.uses == 0 {
            next_hops.release(set.next_hop);
            set.next_hop = NONE;
        }
    }
}

/// Forwarding sets start at 1; 0 stands for "no next hop".
pub(super) const NO_NEXT_HOPS: u32 = 0;

#[derive(Debug)]
struct NextHopEntry {
    next_hop: NextHop,
    state: NextHopState,
    /// Attribute sets in use.
    references: u32,
    /// Paths that use one of those.
    paths: u32,
}

#[derive(Debug, Default)]
struct WatchedAddress {
    state: NextHopState,
    /// One for each pair of global and link-local address that leads to it.
    entries: SmallVec<[u32; 1]>,
    /// What the outside was told to do.
    told: bool,
    queued: bool,
}

#[derive(Debug)]
struct ForwardingSet {
    next_hops: Arc<[NextHop]>,
    references: u32,
}

/// Next hops, their state, and the sets of them that prefixes forward to.
#[derive(Debug)]
pub(super) struct NextHops {
    entries: Arena<NextHopEntry>,
    by_next_hop: HashMap<NextHop, u32, Hasher>,
    addresses: HashMap<Via, WatchedAddress, Hasher>,
    watches: VecDeque<Via>,
    /// Whose state changed since `take_changed`.
    changed: Vec<u32>,
    sets: Arena<ForwardingSet>,
    by_set: HashMap<Arc<[NextHop]>, u32, Hasher>,
}

impl NextHops {
    pub(super) fn new() -> Self {
        let empty: Arc<[NextHop]> = Arc::new([]);
        let mut sets = Arena::new();
        sets.insert(ForwardingSet {
            next_hops: empty.clone(),
            references: 1,
        });
        let mut by_set = HashMap::default();
        by_set.insert(empty, NO_NEXT_HOPS);
        Self {
            entries: Arena::new(),
            by_next_hop: HashMap::default(),
            addresses: HashMap::default(),
            watches: VecDeque::new(),
            changed: Vec::new(),
            sets,
            by_set,
        }
    }

    fn acquire(&mut self, next_hop: NextHop) -> u32 {
        if let Some(id) = self.by_next_hop.get(&next_hop) {
            self.entries[*id].references += 1;
            return *id;
        }
        if next_hop.is_discard() {
            // Nothing to watch: dropping always works.
            let id = self.entries.insert(NextHopEntry {
                next_hop,
                state: NextHopState::Reachable { metric: 0 },
                references: 1,
                paths: 0,
            });
            self.by_next_hop.insert(next_hop, id);
            return id;
        }
        let address = self.addresses.entry(next_hop.via()).or_default();
        let state = address.state;
        let id = self.entries.insert(NextHopEntry {
            next_hop,
            state,
            references: 1,
            paths: 0,
        });
        address.entries.push(id);
        if !address.told && !address.queued {
            address.queued = true;
            self.watches.push_back(next_hop.via());
        }
        self.by_next_hop.insert(next_hop, id);
        id
    }

    fn release(&mut self, id: u32) {
        let entry = &mut self.entries[id];
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        let next_hop = entry.next_hop;
        self.by_next_hop.remove(&next_hop);
        self.entries.remove(id);
        if next_hop.is_discard() {
            return;
        }
        let address = self
            .addresses
            .get_mut(&next_hop.via())
            .expect("every entry has its address");
        address.entries.retain(|entry| *entry != id);
        if address.entries.is_empty() && !address.queued {
            address.queued = true;
            self.watches.push_back(next_hop.via());
        }
    }

    pub(super) fn poll_watch(&mut self) -> Option<NextHopWatch> {
        while let Some(address) = self.watches.pop_front() {
            let watched = self
                .addresses
                .get_mut(&address)
                .expect("queued while it is known");
            watched.queued = false;
            let wanted = !watched.entries.is_empty();
            let told = std::mem::replace(&mut watched.told, wanted);
            if !wanted {
                self.addresses.remove(&address);
            }
            match (told, wanted) {
                (false, true) => return Some(NextHopWatch::Watch(address)),
                (true, false) => {
                    self.forget_sets_with(address);
                    return Some(NextHopWatch::Unwatch(address));
                }
                _ => {}
            }
        }
        None
    }

    /// Who hears that a next hop is not watched any more may leave it out of sets of several. So
    /// every prefix that was reported with such a set is reported again, even if it has come to the
    /// same next hops until then: from now on, those make another set.
    fn forget_sets_with(&mut self, via: Via) {
        self.by_set.retain(|next_hops, _| {
            next_hops.len() < 2 || !next_hops.iter().any(|n| n.via() == via)
        });
    }

    /// Whether anything depends on the change.
    pub(super) fn set_state(&mut self, via: Via, state: NextHopState) -> bool {
        let Some(watched) = self.addresses.get_mut(&via) else {
            return false;
        };
        if watched.state == state {
            return false;
        }
        watched.state = state;
        for id in &watched.entries {
            self.entries[*id].state = state;
            if !self.changed.contains(id) {
                self.changed.push(*id);
            }
        }
        true
    }

    /// The metric; `None` when the next hop is unreachable.
    pub(super) fn metric(&self, id: u32) -> Option<u32> {
        match self.entries[id].state {
            NextHopState::Unreachable => None,
            NextHopState::Reachable { metric } => Some(metric),
        }
    }

    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Next hops whose state changed, with the number of paths that use them.
    pub(super) fn take_changed(&mut self) -> (Vec<u32>, u32) {
        let changed = std::mem::take(&mut self.changed);
        let paths = changed.iter().map(|id| self.entries[*id].paths).sum();
        (changed, paths)
    }

    pub(super) fn next_hop(&self, id: u32) -> NextHop {
        self.entries[id].next_hop
    }

    /// The id of a forwarding set (ascending, without duplicates), with a reference.
    pub(super) fn intern_set(&mut self, next_hops: &[NextHop]) -> u32 {
        if next_hops.is_empty() {
            return NO_NEXT_HOPS;
        }
        if let Some(id) = self.by_set.get(next_hops) {
            self.sets[*id].references += 1;
            return *id;
        }
        let next_hops: Arc<[NextHop]> = next_hops.into();
        let id = self.sets.insert(ForwardingSet {
            next_hops: next_hops.clone(),
            references: 1,
        });
        self.by_set.insert(next_hops, id);
        id
    }

    pub(super) fn release_set(&mut self, id: u32) {
        if id == NO_NEXT_HOPS {
            return;
        }
        let set = &mut self.sets[id];
        set.references -= 1;
        if set.references == 0 {
            if self.by_set.get(&set.next_hops) == Some(&id) {
                self.by_set.remove(&set.next_hops);
            }
            self.sets[id].next_hops = self.sets[NO_NEXT_HOPS].next_hops.clone();
            self.sets.remove(id);
        }
    }

    pub(super) fn set(&self, id: u32) -> &Arc<[NextHop]> {
        &self.sets[id].next_hops
    }
}
