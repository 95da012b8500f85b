//! What a prefix has in a group whose members are sent several paths (RFC 7911): sets of outputs,
//! each stored once and counted, as outputs themselves are.
//!
//! The word of a prefix names a set there, where it names an output elsewhere. Prefixes with the
//! same paths share a set, so that a second path costs a table nothing more for each prefix.
//! Everything that leaves the group (changes, what is pending) is about single outputs again, two
//! of which are one path when their identifiers are equal.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{
    super::{
        arena::Arena,
        outputs::{NOT_SENT, Outputs},
        shared::Shared,
    },
    batch::Pair,
};

/// Outputs in ascending order of their identifiers, no two with the same.
pub(super) type Paths = SmallVec<[u32; 4]>;

#[derive(Debug)]
struct PathSet {
    paths: Paths,
    references: u32,
    hash: u64,
}

/// Set ids start at 1; 0 stands for "nothing is sent", as for an output.
#[derive(Debug)]
pub(super) struct PathSets {
    sets: Arena<PathSet>,
    index: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
}

impl PathSets {
    pub(super) fn new() -> Self {
        let mut sets = Arena::new();
        sets.insert(PathSet {
            paths: Paths::new(),
            references: 1,
            hash: 0,
        });
        Self {
            sets,
            index: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    pub(super) fn get(&self, set: u32) -> &[u32] {
        &self.sets[set].paths
    }

    /// The id of a set, with a reference. Takes over the references to the outputs.
    pub(super) fn intern(
        &mut self,
        outputs: &mut Outputs,
        shared: &mut Shared,
        mut paths: Paths,
    ) -> u32 {
        if paths.is_empty() {
            return NOT_SENT;
        }
        paths.sort_unstable_by_key(|output| outputs.path_id(*output));
        let hash = self.hasher.hash_one(&paths);
        let sets = &self.sets;
        let known = self
            .index
            .find(hash, |id| sets[*id].paths == paths)
            .copied();
        if let Some(id) = known {
            self.sets[id].references += 1;
            for output in paths {
                outputs.release(shared, output);
            }
            return id;
        }
        let id = self.sets.insert(PathSet {
            paths,
            references: 1,
            hash,
        });
        let sets = &self.sets;
        self.index.insert_unique(hash, id, |id| sets[*id].hash);
        id
    }

    pub(super) fn release(&mut self, outputs: &mut Outputs, shared: &mut Shared, id: u32) {
        if id == NOT_SENT {
            return;
        }
        let set = &mut self.sets[id];
        set.references -= 1;
        if set.references > 0 {
            return;
        }
        let (hash, paths) = (set.hash, std::mem::take(&mut set.paths));
        let found = self.index.find_entry(hash, |other| *other == id);
        found.expect("every set in use is indexed").remove();
        self.sets.remove(id);
        for output in paths {
            outputs.release(shared, output);
        }
    }

    /// What makes one set out of the other: for each identifier that differs, the output before and
    /// the one after.
    pub(super) fn difference(&self, outputs: &Outputs, old: u32, new: u32) -> SmallVec<[Pair; 4]> {
        let mut before = self.get(old).iter().copied().peekable();
        let mut after = self.get(new).iter().copied().peekable();
        let mut pairs = SmallVec::new();
        loop {
            let ids = (
                before.peek().map(|output| outputs.path_id(*output)),
                after.peek().map(|output| outputs.path_id(*output)),
            );
            let (old, new) = match ids {
                (None, None) => return pairs,
                (Some(a), Some(b)) if a == b => (before.next(), after.next()),
                (Some(a), Some(b)) if a < b => (before.next(), None),
                (Some(_), None) => (before.next(), None),
                (_, Some(_)) => (None, after.next()),
            };
            let pair = (old.unwrap_or(NOT_SENT), new.unwrap_or(NOT_SENT));
            if pair.0 != pair.1 {
                pairs.push(pair);
            }
        }
    }
}
