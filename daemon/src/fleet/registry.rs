//! The nodes of the fleet, as the registry has them.
//!
//! A node is in it until an operator removes it, alive or not: its lease says only the latter. What
//! a watch says is gone is gone. What a fresh list does not have any more, after the watch was
//! interrupted, is kept for a while: a store that came back empty must not end every session of the
//! mesh before the nodes have registered again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    keys::{Keys, NodeRecord},
    ops::{Change, KeyValue},
};

/// How long a node that a list does not have stays.
const MISSING: Duration = Duration::from_secs(300);

/// A node as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub record: NodeRecord,
    pub alive: bool,
}

#[derive(Debug)]
pub(super) struct Registry {
    nodes: BTreeMap<String, NodeRecord>,
    alive: BTreeSet<String>,
    /// Not in the last list.
    missing: BTreeMap<String, Instant>,
    /// Since when a node is seen as not alive, without interruption.
    dead: BTreeMap<String, Instant>,
    reclaim_after: Option<Duration>,
    seed: u64,
    sees: bool,
}

impl Registry {
    pub(super) fn new(reclaim_after: Option<Duration>, seed: u64) -> Self {
        Registry {
            nodes: BTreeMap::new(),
            alive: BTreeSet::new(),
            missing: BTreeMap::new(),
            dead: BTreeMap::new(),
            reclaim_after,
            seed,
            sees: false,
        }
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.nodes.len(), self.alive.len())
    }

    pub(super) fn members(&self) -> Vec<Member> {
        self.nodes
            .iter()
            .map(|(name, record)| Member {
                name: name.clone(),
                record: record.clone(),
                alive: self.alive.contains(name),
            })
            .collect()
    }

    /// What happens is not seen for a while: nobody is known to be dead all the time.
    pub(super) fn is_blind(&mut self) {
        self.sees = false;
        self.dead.clear();
    }

    /// The whole registry. Whether anything has changed.
    pub(super) fn listed(&mut self, now: Instant, keys: &Keys, list: &[KeyValue]) -> bool {
        let before = (self.nodes.clone(), self.alive.clone());
        let mut seen = BTreeSet::new();
        self.alive.clear();
        for key in list {
            match keys.parse_registry(&key.key) {
                Some((true, name)) => {
                    self.alive.insert(name.to_owned());
                }
                Some((false, name)) => {
                    if let Ok(record) = serde_json::from_str(&key.value) {
                        self.nodes.insert(name.to_owned(), record);
                        self.missing.remove(name);
                        seen.insert(name.to_owned());
                    }
                }
                None => {}
            }
        }
        for name in self.nodes.keys() {
            if !seen.contains(name) {
                self.missing.entry(name.clone()).or_insert(now + MISSING);
            }
        }
        self.sees = true;
        self.note_dead(now);
        before != (self.nodes.clone(), self.alive.clone())
    }

    pub(super) fn changed(&mut self, now: Instant, keys: &Keys, changes: Vec<Change>) -> bool {
        let mut changed = false;
        for change in changes {
            let key = match &change {
                Change::Put(key) => &key.key,
                Change::Delete(key) => key,
            };
            let Some((is_live, name)) = keys.parse_registry(key) else {
                continue;
            };
            match (&change, is_live) {
                (Change::Put(_), true) => changed |= self.alive.insert(name.to_owned()),
                (Change::Delete(_), true) => changed |= self.alive.remove(name),
                (Change::Put(key), false) => {
                    if let Ok(record) = serde_json::from_str::<NodeRecord>(&key.value) {
                        self.missing.remove(name);
                        let old = self.nodes.insert(name.to_owned(), record.clone());
                        changed |= old.as_ref() != Some(&record);
                    }
                }
                (Change::Delete(_), false) => {
                    self.missing.remove(name);
                    changed |= self.nodes.remove(name).is_some();
                }
            }
        }
        self.note_dead(now);
        changed
    }

    fn note_dead(&mut self, now: Instant) {
        let Some(after) = self.reclaim_after else {
            return;
        };
        self.dead
            .retain(|name, _| self.nodes.contains_key(name) && !self.alive.contains(name));
        for name in self.nodes.keys() {
            if !self.alive.contains(name) && !self.dead.contains_key(name) {
                // Not all of the fleet at the same moment.
                let spread = after.mul_f64(0.1) * u32::try_from(self.seed % 100).unwrap_or(0) / 100;
                self.dead.insert(name.clone(), now + after + spread);
            }
        }
    }

    /// Nodes that have not been alive for long enough; each is named again after a minute.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        if !self.sees {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (name, at) in &mut self.dead {
            if *at <= now {
                *at = now + Duration::from_secs(60);
                due.push(name.clone());
            }
        }
        due
    }

    /// Forgets who was missing for too long. Whether there was one.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let gone: Vec<String> = self
            .missing
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.missing.remove(name);
            self.nodes.remove(name);
        }
        !gone.is_empty()
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        let dead = self.dead.values().filter(|_| self.sees);
        self.missing.values().chain(dead).min().copied()
    }
}
