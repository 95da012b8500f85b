//! The routes of one family: every path of every prefix, the best first.
//!
//! Adj-RIB-In and Loc-RIB are one table. A prefix has a record of fixed size and a chain of paths;
//! a path keeps the attributes as received and those after import policy (none when rejected), and
//! what decided that. After each change the chain is ordered by the decision process again.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{
    arena::{Arena, NONE},
    decision::{Candidate, rank, select},
    interned::{NO_ATTRIBUTES, NO_NEXT_HOPS},
    prefix::{Prefix, V4, V6},
    shared::{LOCAL, Shared},
    types::{Ineligible, PeerKind},
};

/// The record is in use.
const LIVE: u8 = 1;
/// The first path of the chain is the best path.
const BEST: u8 = 2;
/// Waits in the queue of forwarding changes.
pub(super) const FORWARDING_DIRTY: u8 = 4;

#[derive(Clone, Debug)]
pub(super) struct Route<K> {
    pub(super) key: K,
    /// The first path, or `NONE`.
    head: u32,
    /// The forwarding set that was reported.
    pub(super) forwarding: u32,
    /// Holders outside this table (advertised, pending, batched): the record stays.
    pins: u32,
    /// Paths equal to the best up to the IGP metric.
    equal: u8,
    pub(super) flags: u8,
}

const _: () = assert!(size_of::<Route<V4>>() == 20);
const _: () = assert!(size_of::<Route<V6>>() == 32);

impl<K> Route<K> {
    pub(super) fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }
}

/// What import decided on a path, in 15 bits; the sixteenth says "stale".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict(u16);

const STALE: u16 = 0x8000;
const NO_RULE: u16 = 0x7fff;
const INELIGIBLE: u16 = 0x7f00;

impl Verdict {
    /// The rule of the policy that decided; `None`: no rule matched.
    pub(super) fn rule(index: Option<usize>) -> Self {
        let index = index.and_then(|index| u16::try_from(index).ok());
        Self(index.filter(|index| *index < INELIGIBLE).unwrap_or(NO_RULE))
    }

    pub(super) fn ineligible(why: Ineligible) -> Self {
        Self(INELIGIBLE | why as u16)
    }

    pub(super) fn raw(self) -> u16 {
        self.0
    }

    /// `Ok`: the policy rule; `Err`: why the path was refused before policy.
    pub(super) fn explain(self) -> Result<Option<usize>, Ineligible> {
        const REASONS: [Ineligible; 10] = [
            Ineligible::NextHopUnreachable,
            Ineligible::NextHopIsOurs,
            Ineligible::NotUnicast,
            Ineligible::AsLoop,
            Ineligible::FirstAsMismatch,
            Ineligible::OriginatorIsUs,
            Ineligible::ClusterLoop,
            Ineligible::RouteLeak,
            Ineligible::BlackholeOfOurs,
            Ineligible::InsideOurs,
        ];
        if self.0 == NO_RULE {
            return Ok(None);
        }
        if self.0 < INELIGIBLE {
            return Ok(Some(usize::from(self.0)));
        }
        let reason = REASONS.get(usize::from(self.0 - INELIGIBLE));
        Err(*reason.expect("only made from these reasons"))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) slot: u16,
    verdict: u16,
    pub(super) path_id: u32,
    /// Attributes as received.
    pub(super) received: u32,
    /// After import policy; 0 when rejected.
    pub(super) effective: u32,
    pub(super) stamp: u32,
    next: u32,
}

impl Path {
    pub(super) fn is_stale(&self) -> bool {
        self.verdict & STALE != 0
    }

    pub(super) fn verdict(&self) -> Verdict {
        Verdict(self.verdict & !STALE)
    }
}

/// A path as it arrives; the ids come with a reference each.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewPath {
    pub(super) slot: u16,
    pub(super) path_id: u32,
    pub(super) received: u32,
    pub(super) effective: u32,
    pub(super) verdict: Verdict,
    pub(super) stamp: u32,
}

/// The best path of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Best {
    pub(super) slot: u16,
    pub(super) path_id: u32,
    pub(super) effective: u32,
}

/// What the decision process changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Another best path, or other attributes: may have to be advertised.
    pub(super) best: bool,
    /// The set of next hops may be another one.
    pub(super) forwarding: bool,
    /// Some path is another, or the order is: matters to peers that are sent several.
    pub(super) paths: bool,
}

#[derive(Debug)]
pub(super) struct Table<K> {
    index: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    pub(super) routes: Arena<Route<K>>,
    paths: Arena<Path>,
    /// Records by length of prefix.
    lengths: Vec<u32>,
}

impl<K: Prefix> Table<K> {
    pub(super) fn new() -> Self {
        Self {
            index: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            routes: Arena::new(),
            paths: Arena::new(),
            lengths: vec![0; usize::from(K::MAX_LENGTH) + 1],
        }
    }

    /// Records in use.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Records of prefixes of this length.
    pub(super) fn count_of_length(&self, length: u8) -> u32 {
        self.lengths.get(usize::from(length)).copied().unwrap_or(0)
    }

    pub(super) fn find(&self, key: K) -> Option<u32> {
        let routes = &self.routes;
        let found = self
            .index
            .find(self.hasher.hash_one(key), |id| routes[*id].key == key);
        found.copied()
    }

    pub(super) fn find_or_insert(&mut self, key: K) -> u32 {
        let hash = self.hasher.hash_one(key);
        let routes = &self.routes;
        if let Some(id) = self.index.find(hash, |id| routes[*id].key == key) {
            return *id;
        }
        let id = self.routes.insert(Route {
            key,
            head: NONE,
            forwarding: NO_NEXT_HOPS,
            pins: 0,
            equal: 0,
            flags: LIVE,
        });
        let (routes, hasher) = (&self.routes, &self.hasher);
        self.index
            .insert_unique(hash, id, |id| hasher.hash_one(routes[*id].key));
        self.lengths[usize::from(key.length())] += 1;
        id
    }

    pub(super) fn pin(&mut self, id: u32) {
        debug_assert!(
            self.routes[id].is_live(),
            "a record is pinned while it is there"
        );
        self.routes[id].pins += 1;
    }

    pub(super) fn unpin(&mut self, id: u32) {
        let route = &mut self.routes[id];
        route.pins -= 1;
        if route.pins == 0 {
            self.reap(id);
        }
    }

    /// Removes the record when nothing needs it any more.
    pub(super) fn reap(&mut self, id: u32) {
        let route = &self.routes[id];
        let needed = route.head != NONE
            || route.pins > 0
            || route.forwarding != NO_NEXT_HOPS
            || route.flags & FORWARDING_DIRTY != 0
            || !route.is_live();
        if needed {
            return;
        }
        let key = route.key;
        let found = self
            .index
            .find_entry(self.hasher.hash_one(key), |other| *other == id);
        found.expect("every live record is indexed").remove();
        self.lengths[usize::from(key.length())] -= 1;
        self.routes[id].flags = 0;
        self.routes.remove(id);
    }

    pub(super) fn best(&self, id: u32) -> Option<Best> {
        let route = &self.routes[id];
        if route.flags & BEST == 0 {
            return None;
        }
        let path = &self.paths[route.head];
        Some(Best {
            slot: path.slot,
            path_id: path.path_id,
            effective: path.effective,
        })
    }

    /// The paths of a prefix, the best first.
    pub(super) fn paths(&self, id: u32) -> impl Iterator<Item = &Path> {
        let mut next = self.routes[id].head;
        std::iter::from_fn(move || {
            if next == NONE {
                return None;
            }
            let path = &self.paths[next];
            next = path.next;
            Some(path)
        })
    }

    /// The paths that are equal to the best, itself included.
    pub(super) fn equal_paths(&self, id: u32) -> impl Iterator<Item = &Path> {
        self.paths(id).take(usize::from(self.routes[id].equal))
    }

    /// Puts a path into its chain, or replaces the one with the same peer and path id; then
    /// decides.
    pub(super) fn set_path(&mut self, shared: &mut Shared, id: u32, new: NewPath) -> Outcome {
        let before = self.best(id);
        let mut node = self.routes[id].head;
        while node != NONE {
            let path = &self.paths[node];
            if path.slot == new.slot && path.path_id == new.path_id {
                break;
            }
            node = path.next;
        }
        if new.effective != NO_ATTRIBUTES && new.slot != LOCAL {
            shared
                .attributes
                .start_use(new.effective, &mut shared.next_hops);
        }
        if node == NONE {
            let head = self.routes[id].head;
            self.routes[id].head = self.paths.insert(Path {
                slot: new.slot,
                verdict: new.verdict.raw(),
                path_id: new.path_id,
                received: new.received,
                effective: new.effective,
                stamp: new.stamp,
                next: head,
            });
            if new.slot != LOCAL {
                let counts = shared.counts(new.slot, K::FAMILY);
                counts.received += 1;
                counts.accepted += u32::from(new.effective != NO_ATTRIBUTES);
            }
        } else {
            let path = &mut self.paths[node];
            let (received, effective) = (path.received, path.effective);
            let stale = path.is_stale();
            path.verdict = new.verdict.raw();
            path.received = new.received;
            path.effective = new.effective;
            path.stamp = new.stamp;
            if new.slot != LOCAL {
                let counts = shared.counts(new.slot, K::FAMILY);
                counts.stale -= u32::from(stale);
                counts.accepted -= u32::from(effective != NO_ATTRIBUTES);
                counts.accepted += u32::from(new.effective != NO_ATTRIBUTES);
                if effective != NO_ATTRIBUTES {
                    shared.attributes.end_use(effective, &mut shared.next_hops);
                }
            }
            shared.attributes.release(received);
            shared.attributes.release(effective);
            if received == new.received && effective == new.effective {
                return Outcome::default();
            }
        }
        self.decide(shared, id, before)
    }

    /// Takes the paths for which `remove` holds out of the chain; then decides. Says how many.
    pub(super) fn remove_paths(
        &mut self,
        shared: &mut Shared,
        id: u32,
        mut remove: impl FnMut(&Path) -> bool,
    ) -> (u32, Outcome) {
        let before = self.best(id);
        let mut removed = 0;
        let mut previous = NONE;
        let mut node = self.routes[id].head;
        while node != NONE {
            let path = self.paths[node].clone();
            if remove(&path) {
                match previous {
                    NONE => self.routes[id].head = path.next,
                    _ => self.paths[previous].next = path.next,
                }
                self.paths.remove(node);
                removed += 1;
                if path.slot != LOCAL {
                    let counts = shared.counts(path.slot, K::FAMILY);
                    counts.received -= 1;
                    counts.accepted -= u32::from(path.effective != NO_ATTRIBUTES);
                    counts.stale -= u32::from(path.is_stale());
                    if path.effective != NO_ATTRIBUTES {
                        shared
                            .attributes
                            .end_use(path.effective, &mut shared.next_hops);
                    }
                }
                shared.attributes.release(path.received);
                shared.attributes.release(path.effective);
            } else {
                previous = node;
            }
            node = path.next;
        }
        if removed == 0 {
            return (0, Outcome::default());
        }
        (removed, self.decide(shared, id, before))
    }

    /// Marks the paths of a peer stale; says how many were not.
    pub(super) fn mark_stale(&mut self, shared: &mut Shared, id: u32, slot: u16) -> u32 {
        let mut marked = 0;
        let mut node = self.routes[id].head;
        while node != NONE {
            let path = &mut self.paths[node];
            if path.slot == slot && path.verdict & STALE == 0 {
                path.verdict |= STALE;
                marked += 1;
            }
            node = path.next;
        }
        if marked > 0 {
            shared.counts(slot, K::FAMILY).stale += marked;
        }
        marked
    }

    /// Gives the path another verdict, keeping what was received; then decides.
    pub(super) fn reassess(
        &mut self,
        shared: &mut Shared,
        id: u32,
        slot: u16,
        path_id: u32,
        effective: u32,
        verdict: Verdict,
    ) -> Outcome {
        let before = self.best(id);
        let mut node = self.routes[id].head;
        while node != NONE {
            let path = &mut self.paths[node];
            if path.slot == slot && path.path_id == path_id {
                let old = std::mem::replace(&mut path.effective, effective);
                path.verdict = verdict.raw() | path.verdict & STALE;
                let counts = shared.counts(slot, K::FAMILY);
                counts.accepted -= u32::from(old != NO_ATTRIBUTES);
                counts.accepted += u32::from(effective != NO_ATTRIBUTES);
                if effective != NO_ATTRIBUTES {
                    shared
                        .attributes
                        .start_use(effective, &mut shared.next_hops);
                }
                if old != NO_ATTRIBUTES {
                    shared.attributes.end_use(old, &mut shared.next_hops);
                    shared.attributes.release(old);
                }
                if old == effective {
                    return Outcome::default();
                }
                break;
            }
            node = path.next;
        }
        self.decide(shared, id, before)
    }

    /// Whether a path may be used: accepted, and its next hop reachable (RFC 4271 §9.1.2).
    pub(super) fn is_eligible(shared: &Shared, path: &Path) -> bool {
        path.slot == LOCAL
            || (path.effective != NO_ATTRIBUTES
                && shared
                    .next_hops
                    .metric(shared.attributes.get(path.effective).next_hop)
                    .is_some())
    }

    fn candidate(shared: &Shared, path: &Path, name: u32) -> Option<Candidate> {
        if path.effective == NO_ATTRIBUTES {
            return None;
        }
        let set = shared.attributes.get(path.effective);
        let attributes = &*set.attributes;
        let peer = shared.peer(path.slot);
        let metric = match peer {
            None => 0,
            Some(_) => shared.next_hops.metric(set.next_hop)?,
        };
        let router_id = attributes.originator_id.unwrap_or(match peer {
            Some(peer) => peer.session.remote_router_id,
            None => shared.config.router_id,
        });
        Some(Candidate {
            path: name,
            local: peer.is_none(),
            // RFC 9494 §4.3: for routes of those to whom we have announced that we know it.
            long_lived_stale: set.long_lived_stale
                && peer.is_some_and(|peer| peer.session.negotiated.long_lived_sent),
            local_pref: attributes
                .local_pref
                .unwrap_or(shared.config.default_local_pref),
            as_path_length: set.as_path_length,
            origin: attributes.origin as u8,
            // A route of our own AS: our own number stands for the neighbour.
            neighbour: set.neighbour.unwrap_or(shared.config.asn.0),
            med: attributes.med.unwrap_or(0),
            external: peer.is_some_and(|peer| peer.session.kind == PeerKind::External),
            metric,
            router_id: router_id.to_bits(),
            cluster_list_length: u32::try_from(attributes.cluster_list.len()).unwrap_or(u32::MAX),
            peer_address: peer.map_or([0, 0, 0, 0].into(), |peer| peer.session.remote_address),
            peer: peer.map_or(crate::types::PeerId(0), |peer| peer.id),
            path_id: path.path_id,
            lost: None,
        })
    }

    /// The eligible paths in the order of the decision process, each named by its place in the
    /// chain, and how many are equal.
    pub(super) fn ranking(&self, shared: &Shared, id: u32) -> (Vec<Candidate>, usize) {
        let named = (0u32..).zip(self.paths(id));
        let mut candidates: Vec<_> = named
            .filter_map(|(name, path)| Self::candidate(shared, path, name))
            .collect();
        let equal = select(&mut candidates);
        (candidates, equal)
    }

    /// Every eligible path, each the best of those after it.
    pub(super) fn ranked(&self, shared: &Shared, id: u32) -> SmallVec<[Best; 4]> {
        let named = (0u32..).zip(self.paths(id));
        let mut candidates: SmallVec<[Candidate; 4]> = named
            .filter_map(|(name, path)| Self::candidate(shared, path, name))
            .collect();
        rank(&mut candidates);
        let paths: SmallVec<[&Path; 4]> = self.paths(id).collect();
        candidates
            .iter()
            .map(|candidate| {
                let path = paths[candidate.path as usize];
                Best {
                    slot: path.slot,
                    path_id: path.path_id,
                    effective: path.effective,
                }
            })
            .collect()
    }

    /// Runs the decision process. `before` is what was best before the change.
    pub(super) fn decide(&mut self, shared: &Shared, id: u32, before: Option<Best>) -> Outcome {
        let route = &self.routes[id];
        let (head, equal_before) = (route.head, route.equal);
        let equal = if head == NONE {
            0
        } else if self.paths[head].next == NONE {
            u8::from(Self::is_eligible(shared, &self.paths[head]))
        } else {
            self.order(shared, id)
        };
        let route = &mut self.routes[id];
        route.equal = equal;
        if equal > 0 {
            route.flags |= BEST;
        } else {
            route.flags &= !BEST;
        }
        let best = before != self.best(id);
        Outcome {
            best,
            forwarding: best || equal_before > 1 || equal > 1,
            paths: true,
        }
    }

    /// Orders a chain of several paths; says how many are equal to the best.
    fn order(&mut self, shared: &Shared, id: u32) -> u8 {
        let mut candidates: SmallVec<[Candidate; 4]> = SmallVec::new();
        let mut others: SmallVec<[u32; 4]> = SmallVec::new();
        let mut node = self.routes[id].head;
        while node != NONE {
            let path = &self.paths[node];
            match Self::candidate(shared, path, node) {
                Some(candidate) => candidates.push(candidate),
                None => others.push(node),
            }
            node = path.next;
        }
        let equal = select(&mut candidates);
        let mut next = NONE;
        let ordered = candidates
            .iter()
            .map(|candidate| candidate.path)
            .chain(others);
        let ordered: SmallVec<[u32; 8]> = ordered.collect();
        for node in ordered.iter().rev() {
            self.paths[*node].next = next;
            next = *node;
        }
        self.routes[id].head = next;
        u8::try_from(equal).unwrap_or(u8::MAX)
    }
}
