//! From dirty prefixes to what the members are to have, and what is to be sent for it.

use smallvec::SmallVec;

use super::{DIRTY, Group, batch::Change, catch_up, paths::Paths};
use crate::rib::{outputs::NOT_SENT, prefix::Prefix, shared::Shared, table::Table};

impl<K: Prefix> Group<K> {
    /// Works out what the members are to have for the dirty prefixes (a bounded number of them),
    /// and what is to be sent for it.
    pub(super) fn evaluate(&mut self, table: &mut Table<K>, shared: &mut Shared) {
        let step = shared.limits.step;
        let mut changes: Vec<Change> = Vec::new();
        while changes.len() < step {
            let Some(route) = self.dirty.pop() else {
                break;
            };
            let new = self.wanted(table, shared, route);
            let word = self.words.slot(route);
            let old = std::mem::replace(word, new) & !DIRTY;
            if old == new {
                self.release_word(shared, new);
                if new == NOT_SENT {
                    table.unpin(route);
                }
                continue;
            }
            match &mut self.paths {
                None => {
                    // The reference of the word to the old one goes to the change.
                    self.outputs.retain(new);
                    table.pin(route);
                    changes.push(Change { route, old, new });
                }
                Some(sets) => {
                    for (old, new) in sets.difference(&self.outputs, old, new) {
                        self.outputs.retain(old);
                        self.outputs.retain(new);
                        table.pin(route);
                        changes.push(Change { route, old, new });
                    }
                    sets.release(&mut self.outputs, shared, old);
                }
            }
            // Not before the changes have their pins.
            if new == NOT_SENT {
                table.unpin(route);
            }
        }
        for change in &changes {
            if change.new == NOT_SENT {
                self.advertised -= 1;
            } else if change.old == NOT_SENT {
                self.advertised += 1;
            }
        }
        self.tell_members_apart(table, &changes);
        for member in &mut self.members {
            if member.position.is_none() {
                for change in &changes {
                    catch_up::note(&mut self.outputs, member, *change, |route| table.pin(route));
                }
            }
        }
        if self.members.iter().any(|member| member.position.is_some()) {
            self.seal(table, shared, changes);
        } else {
            for change in changes {
                self.release_change(table, shared, change);
            }
        }
    }

    /// The word that a prefix should have, with a reference.
    fn wanted(&mut self, table: &Table<K>, shared: &mut Shared, route: u32) -> u32 {
        let key = table.routes[route].key;
        let (Some(sets), Some(most)) = (&mut self.paths, self.parameters.paths) else {
            return match table.best(route) {
                None => NOT_SENT,
                Some(best) => self.outputs.output(shared, &self.parameters, key, best),
            };
        };
        let mut paths = Paths::new();
        for path in table.ranked(shared, route) {
            let output = self.outputs.output(shared, &self.parameters, key, path);
            if output != NOT_SENT {
                paths.push(output);
                if paths.len() >= usize::from(most.get()) {
                    break;
                }
            }
        }
        sets.intern(&mut self.outputs, shared, paths)
    }

    /// Keeps the count of hidden outputs, and takes those members out of step to whom a change
    /// looks different than to the others and is not nothing.
    fn tell_members_apart(&mut self, table: &mut Table<K>, changes: &[Change]) {
        let mut apart: SmallVec<[usize; 4]> = SmallVec::new();
        for change in changes {
            for peer in self.outputs.hidden(change.old) {
                let index = self.member(*peer).expect("outputs are hidden from members");
                if self.outputs.is_visible(change.new, *peer) {
                    apart.push(index);
                }
                self.members[index].hidden -= 1;
            }
            for peer in self.outputs.hidden(change.new) {
                let index = self.member(*peer).expect("outputs are hidden from members");
                if self.outputs.is_visible(change.old, *peer) {
                    apart.push(index);
                }
                self.members[index].hidden += 1;
            }
            apart.dedup();
        }
        apart.sort_unstable();
        apart.dedup();
        for index in apart {
            self.detach(table, index);
        }
    }
}
