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
//!
//! Members that are sent several paths of a prefix (RFC 7911) are in groups of their own, where the
//! word of a prefix names a set of outputs (`paths`). Changes and pending entries are about one path
//! of a prefix there, told apart by its identifier, which is 0 elsewhere.

mod batch;
mod catch_up;
mod evaluate;
mod paths;
mod sender;

use std::{collections::VecDeque, net::IpAddr};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    arena::Words,
    export::ExportParameters,
    ids::Ids,
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
use paths::PathSets;

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
    /// Out of step: path to what the member has (an output with a reference, or `UNKNOWN`).
    pending: HashMap<PathOf, u32, foldhash::fast::RandomState>,
    /// Outputs of the group that this member must not get.
    hidden: u32,
    end_of_rib_sent: bool,
}

/// A prefix, and the identifier of one path of it as sent.
pub(super) type PathOf = (u32, u32);

/// What a member takes along to another group.
#[derive(Debug)]
pub(super) struct Departure {
    /// What it has been sent, or may have been; each pinned by the owner of this value.
    pub(super) had: Vec<PathOf>,
    pub(super) end_of_rib_sent: bool,
    /// It was promised a refresh that has not come to its end.
    refresh: bool,
}

#[derive(Debug)]
pub(super) struct Group<K> {
    pub(super) parameters: ExportParameters,
    members: Vec<Member>,
    /// What the members are to have: the id of an output, or of a set of them where there are
    /// `paths`; and `DIRTY`. A word that is not 0 pins.
    words: Words,
    paths: Option<PathSets>,
    dirty: Ids,
    outputs: Outputs,
    batches: VecDeque<Batch>,
    /// Number of the first batch still kept.
    first_batch: u64,
    batches_size: usize,
    /// Outputs of all words.
    advertised: u32,
    family: std::marker::PhantomData<K>,
}

impl<K: Prefix> Group<K> {
    pub(super) fn new(parameters: ExportParameters) -> Self {
        Self {
            paths: parameters.paths.map(|_| PathSets::new()),
            parameters,
            members: Vec::new(),
            words: Words::default(),
            dirty: Ids::default(),
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
            .map(|route| {
                let word = self.words.get(route) & !DIRTY;
                let outputs = self.outputs_of(&word).iter();
                outputs
                    .filter(|output| !self.outputs.is_visible(**output, peer))
                    .count()
            })
            .sum::<usize>();
        let mut pending = HashMap::default();
        for path in before.iter().flat_map(|before| &before.had) {
            table.pin(path.0);
            pending.insert(*path, UNKNOWN);
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
        let mut had = std::collections::BTreeSet::new();
        for route in 0..table.routes.end() {
            for output in self.outputs_for(route, peer) {
                had.insert((route, self.outputs.path_id(output)));
            }
        }
        had.extend(member.pending.keys());
        for change in self.unseen(member) {
            had.insert((change.route, change.path_id(&self.outputs)));
        }
        let had: Vec<PathOf> = had.into_iter().collect();
        had.iter().for_each(|(route, _)| table.pin(*route));
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
        for ((route, _), had) in member.pending {
            catch_up::release(&mut self.outputs, table, shared, route, had);
        }
        self.trim(table, shared);
    }

    /// Gives back everything; for a group without members.
    pub(super) fn dissolve(mut self, table: &mut Table<K>, shared: &mut Shared) {
        self.trim(table, shared);
        for route in 0..table.routes.end() {
            let word = self.words.get(route);
            if word != 0 {
                self.release_word(shared, word & !DIRTY);
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
        self.dirty.insert(route);
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

    /// Prefixes in the Adj-RIB-Out of the member; paths, where it is sent several.
    pub(super) fn advertised(&self, peer: PeerId) -> u32 {
        let hidden = self
            .member(peer)
            .map_or(self.advertised, |index| self.members[index].hidden);
        self.advertised.saturating_sub(hidden)
    }

    /// The outputs of a prefix for a member: none or one, or several where it is sent several paths.
    pub(super) fn outputs_for(&self, route: u32, peer: PeerId) -> SmallVec<[u32; 4]> {
        let word = self.words.get(route) & !DIRTY;
        let outputs = self.outputs_of(&word).iter().copied();
        outputs
            .filter(|output| self.outputs.is_visible(*output, peer))
            .collect()
    }

    /// The outputs that a word stands for.
    fn outputs_of<'a>(&'a self, word: &'a u32) -> &'a [u32] {
        match &self.paths {
            _ if *word == NOT_SENT => &[],
            None => std::slice::from_ref(word),
            Some(sets) => sets.get(*word),
        }
    }

    fn release_word(&mut self, shared: &mut Shared, word: u32) {
        match &mut self.paths {
            None => self.outputs.release(shared, word),
            Some(sets) => sets.release(&mut self.outputs, shared, word),
        }
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
            catch_up::note(&mut self.outputs, member, change, |route| table.pin(route));
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
