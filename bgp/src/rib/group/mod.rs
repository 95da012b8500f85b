//! Adj-RIB-Out: update groups, and what each member still has to be sent.
//!
//! Peers with the same export parameters form a group. The group keeps one word for each prefix:
//! what its members are to have. When the best path of a prefix changes, the prefix becomes dirty;
//! nothing is computed before a member is ready to send. Then all dirty prefixes are evaluated
//! together, and what changed is encoded once, withdrawals first and announcements by attribute
//! set, into a batch of messages that all members in step send.
//!
//! ```text
//!   best path changed ─► dirty ─(a member pulls)─► evaluate ─► batch ─► members in step
//!                                                     └──────► pending of members out of step
//! ```
//!
//! A member is out of step while it gets the initial table or a refresh, when it is so slow that
//! batches would pile up, or when a change looks different to it than to the others (a route moved
//! to or from it: nobody is told of what he sent himself). It then has a set of pending prefixes,
//! each with what it has been sent, and gets messages of its own until the set is empty.

mod batch;
mod sender;

use std::{collections::VecDeque, net::IpAddr};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    arena::Words,
    export::ExportParameters,
    family::KEPT,
    outputs::{NOT_SENT, Outputs},
    prefix::Prefix,
    shared::Shared,
    table::Table,
    types::Pulled,
};
use crate::{
    message::RouteRefresh,
    types::PeerId,
    wire::{encode_end_of_rib, encode_route_refresh},
};

use batch::{Batch, Change};
use sender::Sender;

/// In the word of a prefix: it waits to be evaluated.
const DIRTY: u32 = 1 << 31;
/// In a pending set: the member may have anything, send it what holds now.
const UNKNOWN: u32 = u32::MAX;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    None,
    /// The begin marker has to be sent.
    Begin,
    Running,
    /// Not asked for by the peer: no markers.
    Unasked,
}

#[derive(Debug)]
struct Member {
    peer: PeerId,
    slot: u16,
    /// In step: the next segment to send, as number of the batch and index.
    position: Option<(u64, usize)>,
    /// Out of step: the next prefix of the initial table or of the refresh.
    dump: Option<u32>,
    /// The member has been sent things before the dump began.
    refresh: Refresh,
    /// A refresh with markers that waits for the End-of-RIB (RFC 7313 §4).
    refresh_waits: bool,
    /// Out of step: prefix to what the member has (an output with a reference, or `UNKNOWN`).
    pending: HashMap<u32, u32, foldhash::fast::RandomState>,
    /// Outputs of the group that this member must not get.
    hidden: u32,
    end_of_rib_sent: bool,
}

/// What a member takes along to another group.
#[derive(Debug)]
pub(super) struct Departure {
    /// What it has been sent, or may have been; each pinned by the owner of this value.
    pub(super) had: Vec<u32>,
    pub(super) end_of_rib_sent: bool,
    /// It was promised a refresh that has not come to its end.
    refresh: bool,
}

#[derive(Debug)]
pub(super) struct Group<K> {
    pub(super) parameters: ExportParameters,
    members: Vec<Member>,
    /// What the members are to have: an output id, and `DIRTY`. A word that is not 0 pins.
    words: Words,
    dirty: VecDeque<u32>,
    outputs: Outputs,
    batches: VecDeque<Batch>,
    /// Number of the first batch still kept.
    first_batch: u64,
    batches_size: usize,
    /// Words with an output.
    advertised: u32,
    family: std::marker::PhantomData<K>,
}

impl<K: Prefix> Group<K> {
    pub(super) fn new(parameters: ExportParameters) -> Self {
        Self {
            parameters,
            members: Vec::new(),
            words: Words::default(),
            dirty: VecDeque::new(),
            outputs: Outputs::new(),
            batches: VecDeque::new(),
            first_batch: 0,
            batches_size: 0,
            advertised: 0,
            family: std::marker::PhantomData,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn member(&self, peer: PeerId) -> Option<usize> {
        self.members.iter().position(|member| member.peer == peer)
    }

    /// Adds a member: one that has been sent nothing, or one that comes from another group.
    pub(super) fn join(
        &mut self,
        table: &mut Table<K>,
        peer: PeerId,
        address: IpAddr,
        slot: u16,
        before: Option<&Departure>,
    ) {
        self.outputs.join(peer, address);
        let hidden = (0..table.routes.end())
            .take(if self.advertised > 0 { usize::MAX } else { 0 })
            .map(|route| self.words.get(route) & !DIRTY)
            .filter(|output| *output != NOT_SENT && !self.outputs.is_visible(*output, peer))
            .count();
        let mut pending = HashMap::default();
        for route in before.iter().flat_map(|before| &before.had) {
            table.pin(*route);
            pending.insert(*route, UNKNOWN);
        }
        let refresh = match before {
            None => Refresh::None,
            Some(before) if before.refresh && before.end_of_rib_sent => Refresh::Begin,
            Some(_) => Refresh::Unasked,
        };
        self.members.push(Member {
            peer,
            slot,
            position: None,
            dump: Some(0),
            refresh,
            refresh_waits: before.is_some_and(|before| before.refresh && !before.end_of_rib_sent),
            pending,
            hidden: u32::try_from(hidden).unwrap_or(u32::MAX),
            end_of_rib_sent: before.is_some_and(|before| before.end_of_rib_sent),
        });
    }

    /// What the member would take along.
    pub(super) fn departure(&self, table: &mut Table<K>, peer: PeerId) -> Option<Departure> {
        let member = &self.members[self.member(peer)?];
        let had: Vec<u32> = (0..table.routes.end())
            .filter(|route| {
                self.outputs
                    .is_visible(self.words.get(*route) & !DIRTY, peer)
                    || member.pending.contains_key(route)
            })
            .chain(self.unseen(member).map(|change| change.route))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        had.iter().for_each(|route| table.pin(*route));
        Some(Departure {
            had,
            end_of_rib_sent: member.end_of_rib_sent,
            refresh: member.refresh_waits
                || matches!(member.refresh, Refresh::Begin | Refresh::Running),
        })
    }

    pub(super) fn leave(&mut self, table: &mut Table<K>, shared: &mut Shared, peer: PeerId) {
        let Some(index) = self.member(peer) else {
            return;
        };
        let member = self.members.swap_remove(index);
        self.outputs.leave(peer);
        for (route, had) in member.pending {
            release_pending(&mut self.outputs, table, shared, route, had);
        }
        self.trim(table, shared);
    }

    /// Gives back everything; for a group without members.
    pub(super) fn dissolve(mut self, table: &mut Table<K>, shared: &mut Shared) {
        self.trim(table, shared);
        for route in 0..table.routes.end() {
            let word = self.words.get(route);
            if word != 0 {
                self.outputs.release(shared, word & !DIRTY);
                table.unpin(route);
            }
        }
    }

    /// The best path of the prefix changed.
    pub(super) fn mark(&mut self, table: &mut Table<K>, shared: &mut Shared, route: u32) {
        let word = self.words.slot(route);
        if *word & DIRTY != 0 {
            return;
        }
        if *word == 0 {
            table.pin(route);
        }
        *word |= DIRTY;
        let first = self.dirty.is_empty();
        self.dirty.push_back(route);
        if first {
            for member in &self.members {
                shared.notify(member.slot);
            }
        }
    }

    pub(super) fn refresh(&mut self, table: &mut Table<K>, shared: &mut Shared, peer: PeerId) {
        if let Some(index) = self.member(peer) {
            // RFC 7313 §4: no marker before the End-of-RIB.
            let marks = self.parameters.negotiated.enhanced_route_refresh;
            if marks && !self.members[index].end_of_rib_sent {
                self.members[index].refresh_waits = true;
                return;
            }
            self.detach(table, index);
            let member = &mut self.members[index];
            member.dump = Some(0);
            member.refresh = Refresh::Begin;
            shared.notify(member.slot);
        }
    }

    pub(super) fn has_pending(&self, peer: PeerId, end_of_rib_held: bool) -> bool {
        let Some(index) = self.member(peer) else {
            return false;
        };
        let member = &self.members[index];
        let in_step = match member.position {
            None => false,
            Some((batch, _)) => batch == self.next_batch(),
        };
        !self.dirty.is_empty() || !in_step || (!member.end_of_rib_sent && !end_of_rib_held)
    }

    fn next_batch(&self) -> u64 {
        self.first_batch + self.batches.len() as u64
    }

    /// Prefixes in the Adj-RIB-Out of the member.
    pub(super) fn advertised(&self, peer: PeerId) -> u32 {
        let hidden = self
            .member(peer)
            .map_or(self.advertised, |index| self.members[index].hidden);
        self.advertised.saturating_sub(hidden)
    }

    /// The output of a prefix for a member.
    pub(super) fn output(&self, route: u32, peer: PeerId) -> Option<u32> {
        let output = self.words.get(route) & !DIRTY;
        self.outputs.is_visible(output, peer).then_some(output)
    }

    pub(super) fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    pub(super) fn end_of_rib_sent(&self, peer: PeerId) -> bool {
        self.member(peer)
            .is_some_and(|index| self.members[index].end_of_rib_sent)
    }

    /// See [`Rib::pull`](super::Rib::pull).
    pub(super) fn pull(
        &mut self,
        table: &mut Table<K>,
        shared: &mut Shared,
        peer: PeerId,
        out: &mut Vec<u8>,
        end: usize,
        pulled: &mut Pulled,
    ) {
        let Some(index) = self.member(peer) else {
            return;
        };
        let family = K::FAMILY;
        let (afi, safi) = family.afi_safi();
        let negotiated = self.parameters.negotiated.clone();
        loop {
            if out.len() >= end {
                pulled.more |= self.has_pending(peer, shared.end_of_rib_held);
                break;
            }
            let member = &mut self.members[index];
            if let Some((batch, segment)) = member.position {
                if batch < self.first_batch + self.batches.len() as u64 {
                    self.send_segment(index, batch, segment, out, pulled);
                    continue;
                }
                self.trim(table, shared);
                if !self.dirty.is_empty() {
                    self.evaluate(table, shared);
                    continue;
                }
            } else {
                if !self.dirty.is_empty() {
                    self.evaluate(table, shared);
                    continue;
                }
                if member.refresh == Refresh::Begin {
                    member.refresh = Refresh::Running;
                    if negotiated.enhanced_route_refresh {
                        // RFC 7313 §4
                        encode_route_refresh(
                            out,
                            &RouteRefresh {
                                afi,
                                safi,
                                subtype: 1,
                            },
                        );
                    }
                }
                if member.dump.is_some() {
                    self.send_dump(index, table, shared, out, pulled);
                    continue;
                }
                if !member.pending.is_empty() {
                    self.send_pending(index, table, shared, out, pulled);
                    continue;
                }
                let refresh = std::mem::replace(&mut member.refresh, Refresh::None);
                if refresh == Refresh::Running && negotiated.enhanced_route_refresh {
                    // RFC 7313 §4
                    encode_route_refresh(
                        out,
                        &RouteRefresh {
                            afi,
                            safi,
                            subtype: 2,
                        },
                    );
                }
                let next = self.first_batch + self.batches.len() as u64;
                member.position = Some((next, 0));
                continue;
            }
            let member = &mut self.members[index];
            if !member.end_of_rib_sent && !shared.end_of_rib_held {
                // RFC 4724 §3
                member.end_of_rib_sent = true;
                encode_end_of_rib(out, family);
                pulled.updates += 1;
                pulled.end_of_rib[family.index()] = true;
                if std::mem::take(&mut member.refresh_waits) {
                    self.refresh(table, shared, peer);
                    continue;
                }
            }
            break;
        }
    }

    /// Copies one segment of a batch.
    fn send_segment(
        &mut self,
        index: usize,
        batch: u64,
        segment: usize,
        out: &mut Vec<u8>,
        pulled: &mut Pulled,
    ) {
        let member = &mut self.members[index];
        let place = usize::try_from(batch - self.first_batch).expect("batches fit in memory");
        let segments = &self.batches[place].segments;
        match segments.get(segment) {
            Some(found) => {
                if !found.except.contains(&member.peer) {
                    out.extend_from_slice(&found.bytes);
                    pulled.updates += found.updates;
                }
                member.position = Some((batch, segment + 1));
            }
            None => member.position = Some((batch + 1, 0)),
        }
    }

    /// Sends the next part of the whole table.
    fn send_dump(
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
            let output = self.words.get(route) & !DIRTY;
            if self.outputs.is_visible(output, member.peer) {
                announce.push((self.outputs.sent(output), route));
                if let Some(had) = member.pending.remove(&route) {
                    release_pending(&mut self.outputs, table, shared, route, had);
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
    fn send_pending(
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
        let taken: Vec<(u32, u32)> = if member.pending.len() <= step {
            member.pending.drain().collect()
        } else {
            member.pending.extract_if(|_, _| true).take(step).collect()
        };
        let mut withdraw = Vec::new();
        let mut announce = Vec::new();
        for (route, had) in &taken {
            let output = self.words.get(*route) & !DIRTY;
            if self.outputs.is_visible(output, peer) {
                let sent = self.outputs.sent(output);
                if *had == UNKNOWN || self.outputs.sent(*had) != sent {
                    announce.push((sent, *route));
                }
            } else if *had != NOT_SENT {
                withdraw.push(*route);
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
        for (route, had) in taken {
            release_pending(&mut self.outputs, table, shared, route, had);
        }
        if self.members[index].pending.capacity() > 4 * step {
            self.members[index].pending.shrink_to_fit();
        }
    }

    /// Changes that a member in step has not been told yet.
    fn unseen<'a>(&'a self, member: &Member) -> impl Iterator<Item = &'a Change> + use<'a, K> {
        let (batch, segment) = member.position.unwrap_or((self.next_batch(), 0));
        let skip = usize::try_from(batch - self.first_batch).expect("batches fit in memory");
        let mut told = match (self.batches.get(skip), segment) {
            (Some(batch), 1..) => batch.segments[segment - 1].changes_end,
            _ => 0,
        };
        self.batches.iter().skip(skip).flat_map(move |batch| {
            let start = std::mem::take(&mut told);
            &batch.changes[start..]
        })
    }

    /// Takes a member out of step.
    fn detach(&mut self, table: &mut Table<K>, index: usize) {
        if self.members[index].position.is_none() {
            return;
        }
        let unseen: Vec<Change> = self.unseen(&self.members[index]).copied().collect();
        let member = &mut self.members[index];
        member.position = None;
        for change in unseen {
            note(&mut self.outputs, member, change, |route| table.pin(route));
        }
    }

    /// Works out what the members are to have for the dirty prefixes (a bounded number of them),
    /// and what is to be sent for it.
    fn evaluate(&mut self, table: &mut Table<K>, shared: &mut Shared) {
        let step = shared.limits.step;
        let mut changes: Vec<Change> = Vec::with_capacity(self.dirty.len().min(step));
        while changes.len() < step {
            let Some(route) = self.dirty.pop_front() else {
                break;
            };
            let new = match table.best(route) {
                None => NOT_SENT,
                Some(best) => {
                    let key = table.routes[route].key;
                    self.outputs.output(shared, &self.parameters, key, best)
                }
            };
            let word = self.words.slot(route);
            let old = std::mem::replace(word, new) & !DIRTY;
            if old == new {
                self.outputs.release(shared, new);
                if new == NOT_SENT {
                    table.unpin(route);
                }
                continue;
            }
            self.outputs.retain(new);
            table.pin(route);
            if new == NOT_SENT {
                table.unpin(route);
                self.advertised -= 1;
            } else if old == NOT_SENT {
                self.advertised += 1;
            }
            changes.push(Change { route, old, new });
        }
        if self.dirty.is_empty() {
            self.dirty.shrink_to(KEPT);
        }
        self.tell_members_apart(table, &changes);
        for member in &mut self.members {
            if member.position.is_none() {
                for change in &changes {
                    note(&mut self.outputs, member, *change, |route| table.pin(route));
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

    /// Drops batches that every member in step has sent.
    fn trim(&mut self, table: &mut Table<K>, shared: &mut Shared) {
        let positions = self.members.iter().filter_map(|member| member.position);
        let needed = positions
            .map(|(batch, _)| batch)
            .min()
            .unwrap_or(self.next_batch());
        while self.first_batch < needed {
            let batch = self
                .batches
                .pop_front()
                .expect("positions are not beyond the end");
            self.first_batch += 1;
            self.batches_size -= batch.size;
            for change in batch.changes {
                self.release_change(table, shared, change);
            }
        }
    }

    fn release_change(&mut self, table: &mut Table<K>, shared: &mut Shared, change: Change) {
        self.outputs.release(shared, change.old);
        self.outputs.release(shared, change.new);
        table.unpin(change.route);
    }
}

/// Adds a change to the pending set of a member out of step.
fn note(outputs: &mut Outputs, member: &mut Member, change: Change, pin: impl FnOnce(u32)) {
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
    if nothing || member.pending.contains_key(&change.route) {
        return;
    }
    if had != UNKNOWN {
        outputs.retain(had);
    }
    pin(change.route);
    member.pending.insert(change.route, had);
}

fn release_pending<K: Prefix>(
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
