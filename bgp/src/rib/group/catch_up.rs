//! Members out of step: the whole table for one that is new or asked for it, and what is pending.

use smallvec::SmallVec;

use super::{
    DIRTY, Group, Member, PathOf, Refresh, UNKNOWN,
    batch::Change,
    sender::{Item, Sender},
};
use crate::rib::{
    arena::NONE,
    outputs::{NOT_SENT, Outputs},
    prefix::Prefix,
    shared::Shared,
    table::Table,
    types::Pulled,
};

impl<K: Prefix> Group<K> {
    /// Sends the next part of the whole table.
    pub(super) fn send_dump(
        &mut self,
        index: usize,
        table: &mut Table<K>,
        shared: &mut Shared,
        out: &mut Vec<u8>,
        pulled: &mut Pulled,
    ) {
        let member = &mut self.members[index];
        let from = member.dump.expect("called while a dump runs");
        let mut announce = Vec::new();
        let mut route = from;
        while route < table.routes.end() && announce.len() < shared.limits.step {
            let word = self.words.get(route) & !DIRTY;
            let outputs: SmallVec<[u32; 4]> = match &self.paths {
                None => SmallVec::from_buf_and_len([word, 0, 0, 0], usize::from(word != NOT_SENT)),
                Some(sets) => sets.get(word).into(),
            };
            for output in outputs {
                if !self.outputs.is_visible(output, member.peer) {
                    continue;
                }
                let path_id = self.outputs.path_id(output);
                announce.push(Item {
                    sent: self.outputs.sent(output),
                    route,
                    path_id,
                });
                if let Some(had) = member.pending.remove(&(route, path_id)) {
                    release(&mut self.outputs, table, shared, route, had);
                }
            }
            route += 1;
        }
        member.dump = (route < table.routes.end()).then_some(route);
        announce.sort_unstable();
        let sender = Sender {
            table,
            outputs: &self.outputs,
            parameters: &self.parameters,
        };
        sender.send(&[], &announce, out, pulled);
    }

    /// Sends a part of the pending prefixes of a member out of step.
    pub(super) fn send_pending(
        &mut self,
        index: usize,
        table: &mut Table<K>,
        shared: &mut Shared,
        out: &mut Vec<u8>,
        pulled: &mut Pulled,
    ) {
        let member = &mut self.members[index];
        let peer = member.peer;
        let step = shared.limits.step;
        let taken: Vec<(PathOf, u32)> = if member.pending.len() <= step {
            member.pending.drain().collect()
        } else {
            member.pending.extract_if(|_, _| true).take(step).collect()
        };
        let mut withdraw = Vec::new();
        let mut announce = Vec::new();
        for ((route, path_id), had) in &taken {
            let word = self.words.get(*route) & !DIRTY;
            let outputs = self.outputs_of(&word).iter();
            let output = outputs
                .copied()
                .find(|output| self.outputs.path_id(*output) == *path_id)
                .filter(|output| self.outputs.is_visible(*output, peer));
            let sent = output.map_or(NONE, |output| self.outputs.sent(output));
            let item = Item {
                sent,
                route: *route,
                path_id: *path_id,
            };
            if output.is_some() {
                if *had == UNKNOWN || self.outputs.sent(*had) != sent {
                    announce.push(item);
                }
            } else if *had != NOT_SENT {
                withdraw.push(item);
            }
        }
        withdraw.sort_unstable();
        announce.sort_unstable();
        let sender = Sender {
            table,
            outputs: &self.outputs,
            parameters: &self.parameters,
        };
        sender.send(&withdraw, &announce, out, pulled);
        for ((route, _), had) in taken {
            release(&mut self.outputs, table, shared, route, had);
        }
        if self.members[index].pending.capacity() > 4 * step {
            self.members[index].pending.shrink_to_fit();
        }
    }
}

/// Adds a change to the pending set of a member out of step.
pub(super) fn note(
    outputs: &mut Outputs,
    member: &mut Member,
    change: Change,
    pin: impl FnOnce(u32),
) {
    let mut had = if outputs.is_visible(change.old, member.peer) {
        change.old
    } else {
        NOT_SENT
    };
    if member.dump.is_some_and(|next| change.route >= next) {
        if member.refresh == Refresh::None {
            // What a first dump has not reached yet, the member does not have.
            return;
        }
        // A refresh may have cut a first dump short.
        had = UNKNOWN;
    }
    let nothing = had == NOT_SENT && !outputs.is_visible(change.new, member.peer);
    let path = (change.route, change.path_id(outputs));
    if nothing || member.pending.contains_key(&path) {
        return;
    }
    if had != UNKNOWN {
        outputs.retain(had);
    }
    pin(change.route);
    member.pending.insert(path, had);
}

pub(super) fn release<K: Prefix>(
    outputs: &mut Outputs,
    table: &mut Table<K>,
    shared: &mut Shared,
    route: u32,
    had: u32,
) {
    if had != UNKNOWN {
        outputs.release(shared, had);
    }
    table.unpin(route);
}
