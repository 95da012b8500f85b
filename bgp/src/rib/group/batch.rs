//! Changes encoded once, for all members in step.

use smallvec::SmallVec;

use super::{
    super::prefix::Prefix,
    Group,
    sender::{Item, Sender},
};
use crate::{
    rib::{
        outputs::{NOT_SENT, Outputs},
        shared::Shared,
        table::Table,
    },
    types::PeerId,
};

/// The output before and the one after.
pub(super) type Pair = (u32, u32);

/// A path of a prefix went from one output to another; holds a reference to both and a pin. Where
/// both are something, they have the same identifier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) route: u32,
    pub(super) old: u32,
    pub(super) new: u32,
}

impl Change {
    /// The identifier of the path that it is about.
    pub(super) fn path_id(&self, outputs: &Outputs) -> u32 {
        outputs.path_id(if self.new == NOT_SENT {
            self.old
        } else {
            self.new
        })
    }
}

/// Whole messages.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) bytes: Vec<u8>,
    pub(super) updates: u32,
    /// Members that this is not for.
    pub(super) except: SmallVec<[PeerId; 2]>,
    /// Changes of the batch up to here are told by this segment and those before.
    pub(super) changes_end: usize,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) segments: Vec<Segment>,
    pub(super) size: usize,
}

impl<K: Prefix> Group<K> {
    /// Makes a batch of the changes.
    pub(super) fn seal(&mut self, table: &mut Table<K>, shared: &mut Shared, changes: Vec<Change>) {
        let limits = shared.limits;
        // Members that must not see some of it, each combination once.
        let mut excepts: Vec<SmallVec<[PeerId; 2]>> = vec![SmallVec::new()];
        let mut last = (NOT_SENT, NOT_SENT, 0);
        let mut items: Vec<(u32, u32, Change)> = Vec::with_capacity(changes.len());
        let mut nothing = Vec::new();
        for change in changes {
            let (old, new) = (self.outputs.sent(change.old), self.outputs.sent(change.new));
            if old == new {
                nothing.push(change);
                continue;
            }
            if (change.old, change.new) != (last.0, last.1) {
                let mut except = self.outputs.hidden(change.old).clone();
                except.extend_from_slice(self.outputs.hidden(change.new));
                except.sort_unstable();
                except.dedup();
                let known = excepts.iter().position(|known| *known == except);
                let number = known.unwrap_or_else(|| {
                    excepts.push(except);
                    excepts.len() - 1
                });
                last = (change.old, change.new, number);
            }
            // Withdrawals first; `NONE + 1` is 0.
            let number = u32::try_from(last.2).expect("fewer combinations than prefixes");
            items.push((new.wrapping_add(1), number, change));
        }
        for change in nothing {
            self.release_change(table, shared, change);
        }
        if items.is_empty() {
            return;
        }
        items.sort_unstable_by_key(|(sent, except, change)| {
            (*sent != 0, *except, *sent, change.route)
        });
        let mut batch = Batch {
            changes: Vec::new(),
            segments: Vec::new(),
            size: 0,
        };
        let sender = Sender {
            table,
            outputs: &self.outputs,
            parameters: &self.parameters,
        };
        let mut start = 0;
        for run in items.chunk_by(|a, b| (a.0 != 0, a.1) == (b.0 != 0, b.1)) {
            let except = &excepts[run[0].1 as usize];
            let withdraws = run[0].0 == 0;
            let announce: Vec<Item> = run
                .iter()
                .map(|(sent, _, change)| Item {
                    sent: sent.wrapping_sub(1),
                    route: change.route,
                    path_id: change.path_id(&self.outputs),
                })
                .collect();
            let mut done = 0;
            while done < run.len() {
                let mut bytes = Vec::new();
                let mut updates = 0;
                let taken = if withdraws {
                    sender.withdraw(
                        &announce[done..],
                        &mut bytes,
                        limits.segment_bytes,
                        &mut updates,
                    )
                } else {
                    sender.announce(
                        &announce[done..],
                        &mut bytes,
                        limits.segment_bytes,
                        &mut updates,
                    )
                };
                done += taken;
                bytes.shrink_to_fit();
                batch.size += bytes.len() + taken * size_of::<Change>();
                let changes_end = start + done;
                batch.segments.push(Segment {
                    bytes,
                    updates,
                    except: except.clone(),
                    changes_end,
                });
            }
            start += run.len();
        }
        batch.changes = items.into_iter().map(|(_, _, change)| change).collect();
        self.batches_size += batch.size;
        self.batches.push_back(batch);
        // Never so many batches that a slow member holds up memory.
        while self.batches_size > limits.batches_bytes && self.batches.len() > 1 {
            for index in 0..self.members.len() {
                if self.members[index]
                    .position
                    .is_some_and(|(batch, _)| batch == self.first_batch)
                {
                    self.detach(table, index);
                }
            }
            self.trim(table, shared);
        }
    }
}
