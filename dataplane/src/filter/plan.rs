//! From what stands to what is wanted: one transaction; and what others have changed, in words.

use super::{
    CHUNK, Filter,
    elements::Key,
    table::{self, CHAINS, Family, Kind, SetName},
    types::{Op, Snapshot},
};

/// A transaction, and what the table holds after it: `delta` on top of what it held, or of nothing.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    pub(super) delta: Vec<(SetName, Key, Option<Vec<u8>>)>,
    pub(super) anew: bool,
}

impl Filter {
    /// What differs from what was last known to stand.
    pub(super) fn describe(&self, snapshot: &Snapshot) -> Vec<String> {
        let gone: Vec<String> = Family::ALL
            .into_iter()
            .filter(|family| self.tables().has(*family) && !snapshot.tables.has(*family))
            .map(|family| format!("table {} {} was deleted", family.name(), table::TABLE))
            .collect();
        if !gone.is_empty() {
            return gone;
        }
        if !snapshot.wrong.is_empty() {
            return snapshot.wrong.clone();
        }
        let mut changes: Vec<String> = snapshot
            .wrong_rules
            .iter()
            .map(|chain| format!("rules of chain {chain} were changed"))
            .collect();
        let Some(seen) = &self.seen else {
            return changes;
        };
        for set in SetName::ALL {
            let (before, now) = (&seen[set.index()], &snapshot.sets[set.index()]);
            if before == now {
                continue;
            }
            let missing = before
                .iter()
                .filter(|(key, data)| now.get(*key) != Some(*data))
                .count();
            let unknown = now
                .iter()
                .filter(|(key, data)| before.get(*key) != Some(*data))
                .count();
            changes.push(format!(
                "set {}: {missing} elements were deleted, {unknown} added",
                set.name()
            ));
        }
        changes
    }

    /// The transaction that leads from what stands to what is wanted.
    pub(super) fn plan(&mut self) -> Plan {
        let mut ops = Vec::new();
        let mut delta = Vec::new();
        let Some(seen) = self.seen.as_deref().filter(|_| self.anew.is_none()) else {
            self.changed.clear();
            let standing = self.anew.take().unwrap_or_default();
            let wanted = self.tables();
            let all = Family::ALL.into_iter();
            let gone = all.clone().filter(|family| standing.has(*family));
            ops.extend(gone.map(Op::DeleteTable));
            let made = all.filter(|family| wanted.has(*family));
            ops.extend(made.map(Op::CreateTable));
            let sets = SetName::ALL.into_iter();
            let sets = sets.filter(|set| wanted.has(set.family()));
            let chains = CHAINS.iter().filter(|chain| wanted.has(chain.family));
            ops.extend(sets.clone().map(Op::CreateSet));
            ops.extend(chains.clone().map(|chain| Op::CreateChain(chain.name)));
            ops.extend(chains.map(|chain| Op::AddRules(chain.name)));
            for set in sets {
                add(&mut ops, set, self.wanted[set.index()].iter());
                delta.extend(
                    self.wanted[set.index()]
                        .iter()
                        .map(|(key, data)| (set, key.clone(), Some(data.clone()))),
                );
            }
            return Plan {
                ops,
                delta,
                anew: true,
            };
        };
        for chain in self.wrong_rules.drain(..) {
            ops.push(Op::FlushChain(chain));
            ops.push(Op::AddRules(chain));
        }
        let mut changed = std::mem::take(&mut self.changed).into_iter().peekable();
        while let Some((set, _)) = changed.peek() {
            let set = *set;
            let (wanted, there) = (&self.wanted[set.index()], &seen[set.index()]);
            let mut deletes = Vec::new();
            let mut adds = Vec::new();
            while let Some((_, key)) = changed.next_if(|(other, _)| *other == set) {
                match (wanted.get(&key), there.get(&key)) {
                    (new, old) if new == old => {}
                    (new, old) => {
                        if old.is_some() {
                            deletes.push(key.clone());
                        }
                        if let Some(data) = new {
                            adds.push((key.clone(), data.clone()));
                        }
                        delta.push((set, key, new.cloned()));
                    }
                }
            }
            // Ports of a bridge that is not there any more: there is no such set.
            let absent = !self.tables().has(set.family());
            if absent || (deletes.is_empty() && adds.is_empty()) {
                continue;
            }
            if set.shape().kind == Kind::Ranges {
                // The kernel checks single ends of ranges against each other as they come.
                ops.push(Op::FlushSet(set));
                add(&mut ops, set, wanted.iter());
                continue;
            }
            for chunk in deletes.chunks(CHUNK) {
                ops.push(Op::DeleteElements(set, chunk.to_vec()));
            }
            for chunk in adds.chunks(CHUNK) {
                ops.push(Op::AddElements(set, chunk.to_vec()));
            }
        }
        Plan {
            ops,
            delta,
            anew: false,
        }
    }
}

fn add<'a>(
    ops: &mut Vec<Op>,
    set: SetName,
    elements: impl Iterator<Item = (&'a Key, &'a Vec<u8>)>,
) {
    let all: Vec<(Key, Vec<u8>)> = elements
        .map(|(key, data)| (key.clone(), data.clone()))
        .collect();
    for chunk in all.chunks(CHUNK) {
        ops.push(Op::AddElements(set, chunk.to_vec()));
    }
}
