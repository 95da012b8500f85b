//! Kernel nexthop objects for learned routes.
//!
//! Each BGP next hop in use has one object with the gateway that it resolves to; each set of several
//! has a group of those. Routes name the object of their set. So a next hop that moves to another
//! gateway, or is lost, costs one operation whatever the number of routes, and nothing but that
//! object has to know how it is resolved.
//!
//! What is a next hop to one pool need not lead the same way for another (see `tunnel`), so all this
//! goes by next hop and class.
//!
//! A next hop that BGP has no path with any more is left out of all groups at once, ahead of the word
//! about each route: the sets shrink in place, and routes that are then told the smaller set point to
//! it already. So one set can have several objects, and a route keeps the one that it points to.
//!
//! Ids are taken from a private range. After a restart the objects are known by their content: a route
//! keeps the object that it points to when that has the content that it would get.

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    NextHopView, Reconciler,
    resolve::{Resolved, state_of},
    table::{Code, Hash, NONE},
    tunnel::{Class, DIRECT, HopKey, endpoint},
};
use crate::{
    desired::{Event, NextHopState, Via},
    kernel::{NextHop, NextHopKind, PROTOCOL_AGENTD_BGP, Resilient, Target},
};

/// First id that we give to objects.
const FIRST_ID: u32 = 0x4100_0000;
/// Ids end below this.
const LAST_ID: u32 = 0x4200_0000;

pub(super) type Members = SmallVec<[Via; 1]>;

#[derive(Debug, Default)]
pub(super) struct NextHopEntry {
    watched: bool,
    /// How many sets contain it.
    users: u32,
    pub(super) resolved: Option<Resolved>,
    told: Option<NextHopState>,
    /// Of its object; 0 while it has no users.
    id: u32,
}

impl NextHopEntry {
    pub(super) fn is_used(&self) -> bool {
        self.users > 0
    }
}

#[derive(Debug)]
struct Set {
    class: Class,
    members: Members,
    /// Learned routes that have this set.
    routes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Owner {
    Single(HopKey),
    Group,
}

#[derive(Debug, Default)]
pub(super) struct NextHops {
    pub(super) hops: BTreeMap<HopKey, NextHopEntry>,
    /// By the id of their object.
    sets: HashMap<u32, Set, Hash>,
    /// Objects of a set, the one that new routes get first.
    set_ids: HashMap<(Class, Members), SmallVec<[u32; 1]>, Hash>,
    owners: HashMap<u32, Owner, Hash>,
    /// Objects that may differ from what is wanted.
    pub(super) dirty: BTreeSet<u32>,
    /// Sets without routes: dropped when nothing is left to write, so that a set that comes back at
    /// once is still there.
    pub(super) idle: BTreeSet<u32>,
    /// Objects that nobody wants any more.
    pub(super) retired: BTreeSet<u32>,
    /// Being deleted by the batch that is under way.
    pub(super) leaving: Vec<u32>,
    /// Sets of which routes wait for the object to exist.
    pub(super) held: HashSet<u32, Hash>,
    next_id: u32,
}

impl NextHops {
    /// Whether the prefix contains a next hop, so that its route may be the way there.
    pub(super) fn is_inside(&self, prefix: &IpNet) -> bool {
        let mut hops = self.hops.keys();
        hops.any(|key| prefix.contains(&endpoint(key.via.address)))
    }
}

impl Reconciler {
    /// Counts one more route with these next hops, and returns the id of their object. `hint` is
    /// what the route points to in the kernel now.
    pub(super) fn use_set(&mut self, class: Class, members: &[Via], hint: Code) -> u32 {
        let key: (Class, Members) = (class, members.into());
        let known = self.next_hops.set_ids.get(&key);
        let chosen = match known {
            Some(ids) if ids.contains(&hint) => Some(hint),
            Some(ids) => ids.first().copied(),
            None => None,
        };
        if let Some(id) = chosen
            && (id == hint || !self.is_as_good(hint, class, members))
        {
            if let Some(set) = self.next_hops.sets.get_mut(&id) {
                set.routes += 1;
            }
            self.next_hops.idle.remove(&id);
            return id;
        }
        let hints: SmallVec<[u32; 4]> = match self.seen_next_hops.get(&hint).map(|n| &n.kind) {
            Some(NextHopKind::Group(group)) => group.iter().map(|(id, _)| *id).collect(),
            _ => SmallVec::from_slice(&[hint]),
        };
        let ids: Vec<u32> = members
            .iter()
            .map(|&via| self.use_next_hop(HopKey { via, class }, &hints))
            .collect();
        let id = match ids.as_slice() {
            [one] if *one == hint || !self.is_as_good(hint, class, members) => *one,
            _ => {
                let kind = self.group_of(class, members);
                let id = self.claim(kind, &[hint]);
                self.next_hops.owners.insert(id, Owner::Group);
                id
            }
        };
        self.next_hops.dirty.insert(id);
        let set = Set {
            class,
            members: key.1.clone(),
            routes: 1,
        };
        self.next_hops.set_ids.entry(key).or_default().push(id);
        self.next_hops.sets.insert(id, set);
        id
    }

    /// Whether an object that no set has yet leads where this set does.
    fn is_as_good(&self, id: Code, class: Class, members: &[Via]) -> bool {
        let Some(seen) = self.seen_next_hops.get(&id) else {
            return false;
        };
        match (&seen.kind, members) {
            (NextHopKind::Gateway(_), &[via]) => {
                let hop = self.next_hops.hops.get(&HopKey { via, class });
                hop.is_some_and(|hop| hop.id == id)
            }
            (NextHopKind::Group(_), _) => {
                let kind = self.group_of(class, members);
                kind.is_some_and(|kind| self.can_be_claimed(id, &kind))
            }
            _ => false,
        }
    }

    pub(super) fn release_set(&mut self, id: u32) {
        if let Some(set) = self.next_hops.sets.get_mut(&id) {
            set.routes -= 1;
            if set.routes == 0 {
                self.next_hops.idle.insert(id);
            }
        }
    }

    /// Gives up a set without routes, and the objects that are no longer needed then.
    pub(super) fn drop_set(&mut self, id: u32) {
        self.next_hops.idle.remove(&id);
        self.next_hops.held.remove(&id);
        let Some(set) = self.next_hops.sets.remove(&id) else {
            return;
        };
        self.tunnels.dirty = true;
        if self.is_group(id) {
            self.next_hops.owners.remove(&id);
            self.next_hops.retired.insert(id);
            self.object_failures.remove(&id);
        }
        let key = (set.class, set.members);
        self.unname_set(&key, id);
        let (class, members) = key;
        for &via in &members {
            self.release_next_hop(HopKey { via, class });
        }
    }

    fn unname_set(&mut self, key: &(Class, Members), id: u32) {
        if let Some(ids) = self.next_hops.set_ids.get_mut(key) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.next_hops.set_ids.remove(key);
            }
        }
    }

    fn release_next_hop(&mut self, key: HopKey) {
        let Some(hop) = self.next_hops.hops.get_mut(&key) else {
            return;
        };
        hop.users -= 1;
        if hop.users == 0 {
            self.next_hops.owners.remove(&hop.id);
            self.next_hops.retired.insert(hop.id);
            self.object_failures.remove(&hop.id);
            hop.id = 0;
            if !hop.watched {
                self.next_hops.hops.remove(&key);
            }
        }
    }

    /// BGP has no path with this next hop any more: each route of a set with it will be told another
    /// one. What is left of a group is where its routes lead from now on; a set of nothing else
    /// keeps its object until its routes are told.
    fn leave_out(&mut self, via: Via) {
        let groups: Vec<u32> = self
            .next_hops
            .sets
            .iter()
            .filter(|(_, set)| set.members.len() > 1 && set.members.contains(&via))
            .map(|(id, _)| *id)
            .collect();
        for id in groups {
            let Some(set) = self.next_hops.sets.get_mut(&id) else {
                continue;
            };
            let class = set.class;
            let before = (class, set.members.clone());
            set.members.retain(|member| *member != via);
            let after = (class, set.members.clone());
            self.unname_set(&before, id);
            self.next_hops.set_ids.entry(after).or_default().push(id);
            self.release_next_hop(HopKey { via, class });
            self.next_hops.dirty.insert(id);
            self.tunnels.dirty = true;
        }
    }

    /// An object was to leave its groups by being deleted, and stays.
    pub(super) fn look_at_groups_with(&mut self, member: u32) {
        let groups = self.seen_next_hops.values().filter(|object| {
            matches!(&object.kind, NextHopKind::Group(members)
                if members.iter().any(|(id, _)| *id == member))
        });
        self.next_hops.dirty.extend(groups.map(|object| object.id));
    }

    fn is_group(&self, id: u32) -> bool {
        matches!(self.next_hops.owners.get(&id), Some(Owner::Group))
    }

    fn use_next_hop(&mut self, key: HopKey, hints: &[u32]) -> u32 {
        if !self.next_hops.hops.contains_key(&key) {
            let resolved = self.resolve_hop(key, None);
            let entry = NextHopEntry {
                resolved,
                ..NextHopEntry::default()
            };
            self.next_hops.hops.insert(key, entry);
        }
        let (id, kind) = match self.next_hops.hops.get_mut(&key) {
            Some(hop) => {
                hop.users += 1;
                let kind = hop.resolved.map(|r| NextHopKind::Gateway(r.gateway));
                (hop.id, kind)
            }
            None => (0, None),
        };
        if id != 0 {
            return id;
        }
        let id = self.claim(kind, hints);
        if let Some(hop) = self.next_hops.hops.get_mut(&key) {
            hop.id = id;
        }
        self.tunnels.dirty = true;
        self.next_hops.owners.insert(id, Owner::Single(key));
        self.next_hops.dirty.insert(id);
        id
    }

    /// An object of an earlier run with that content, or else a new id.
    fn claim(&mut self, kind: Option<NextHopKind>, hints: &[u32]) -> u32 {
        if let Some(kind) = kind {
            let fits = |id: &u32| self.can_be_claimed(*id, &kind);
            let found = hints
                .iter()
                .find(|id| fits(id))
                .or_else(|| self.seen_next_hops.keys().find(|id| fits(id)))
                .copied();
            if let Some(id) = found {
                self.next_hops.retired.remove(&id);
                return id;
            }
        }
        let next = &mut self.next_hops.next_id;
        loop {
            if !(FIRST_ID..LAST_ID).contains(next) {
                *next = FIRST_ID;
            }
            let id = *next;
            *next += 1;
            if !self.seen_next_hops.contains_key(&id) && !self.next_hops.owners.contains_key(&id) {
                return id;
            }
        }
    }

    fn can_be_claimed(&self, id: u32, kind: &NextHopKind) -> bool {
        !self.next_hops.owners.contains_key(&id)
            && !self.next_hops.leaving.contains(&id)
            && self.seen_next_hops.get(&id).is_some_and(|seen| {
                seen.protocol == PROTOCOL_AGENTD_BGP
                    && same_kind(&seen.kind, kind)
                    && seen.resilient == self.resilience(kind)
            })
    }

    fn group_of(&self, class: Class, members: &[Via]) -> Option<NextHopKind> {
        let mut ids: Vec<(u32, u16)> = members
            .iter()
            .filter_map(|&via| self.next_hops.hops.get(&HopKey { via, class }))
            .filter(|hop| hop.resolved.is_some())
            .map(|hop| (hop.id, 1))
            .collect();
        ids.sort_unstable();
        (!ids.is_empty()).then_some(NextHopKind::Group(ids))
    }

    /// Content that an object should have; `None`: it should not exist.
    pub(super) fn wanted_kind(&self, id: u32) -> Option<NextHopKind> {
        match self.next_hops.owners.get(&id)? {
            Owner::Single(key) => {
                let resolved = self.next_hops.hops.get(key)?.resolved?;
                Some(NextHopKind::Gateway(resolved.gateway))
            }
            Owner::Group => {
                let set = self.next_hops.sets.get(&id)?;
                self.group_of(set.class, &set.members)
            }
        }
    }

    pub(super) fn is_wanted_object(&self, id: u32) -> bool {
        self.next_hops.owners.contains_key(&id)
    }

    /// Whether the kernel has the object of a set, so that routes can point to it.
    pub(super) fn object_stands(&self, id: u32) -> bool {
        self.seen_next_hops
            .get(&id)
            .is_some_and(|object| object.protocol == PROTOCOL_AGENTD_BGP)
    }

    /// Resolves all watched and used next hops anew. There are few: it is their routes that are
    /// many, and those are not looked at.
    pub(super) fn resolve_all(&mut self) {
        if !std::mem::take(&mut self.resolve_dirty) {
            return;
        }
        let keys: Vec<HopKey> = self.next_hops.hops.keys().copied().collect();
        #[cfg(test)]
        self.walked.set(self.walked.get() + keys.len());
        for key in keys {
            let before = self.next_hops.hops.get(&key).and_then(|hop| hop.resolved);
            let resolved = self.resolve_hop(key, before);
            let Some(hop) = self.next_hops.hops.get_mut(&key) else {
                continue;
            };
            if hop.resolved != resolved {
                let moved = hop.resolved.map(|r| r.gateway) != resolved.map(|r| r.gateway);
                let came_or_went = hop.resolved.is_some() != resolved.is_some();
                hop.resolved = resolved;
                let id = hop.id;
                if id != 0 && moved {
                    self.next_hops.dirty.insert(id);
                }
                if id != 0 && came_or_went {
                    let sets = self.next_hops.sets.iter();
                    let groups: Vec<u32> = sets
                        .filter(|(id, set)| {
                            set.class == key.class
                                && set.members.contains(&key.via)
                                && self.is_group(**id)
                        })
                        .map(|(id, _)| *id)
                        .collect();
                    self.next_hops.dirty.extend(groups);
                }
            }
            self.tell_next_hop(key);
        }
    }

    fn tell_next_hop(&mut self, key: HopKey) {
        let via = key.via;
        if self.next_hops.hops.get(&key).is_none_or(|hop| !hop.watched) {
            return;
        }
        let state = state_of(self.resolve_watched(via));
        let Some(hop) = self.next_hops.hops.get_mut(&key) else {
            return;
        };
        if hop.watched && hop.told != Some(state) {
            hop.told = Some(state);
            self.events.push_back(Event::NextHop { via, state });
        }
    }

    pub(super) fn watch(&mut self, via: Via) {
        let class = DIRECT;
        let hop = self
            .next_hops
            .hops
            .entry(HopKey { via, class })
            .or_default();
        hop.watched = true;
        hop.told = None;
        self.resolve_dirty = true;
    }

    pub(super) fn unwatch(&mut self, via: Via) {
        let class = DIRECT;
        let key = HopKey { via, class };
        if let Some(hop) = self.next_hops.hops.get_mut(&key) {
            hop.watched = false;
            if hop.users == 0 {
                self.next_hops.hops.remove(&key);
            }
        }
        self.leave_out(via);
    }

    /// Some next hop is resolved through this link.
    pub(super) fn leads_through(&self, index: u32) -> bool {
        let mut resolved = self.next_hops.hops.values().filter_map(|hop| hop.resolved);
        resolved.any(|resolved| resolved.gateway.index == index)
    }

    /// A route to this prefix changed: does it matter to any next hop?
    pub(super) fn note_underlay_route(&mut self, prefix: &ipnet::IpNet) {
        if !self.resolve_dirty && self.next_hops.is_inside(prefix) {
            self.resolve_dirty = true;
        }
        if prefix.prefix_len() == 0 {
            self.mtu_dirty = true;
        }
    }

    pub(super) fn object_matches(&self, id: u32) -> bool {
        let seen = self.seen_next_hops.get(&id);
        match (self.wanted_kind(id), seen) {
            (None, None) => true,
            (Some(wanted), Some(seen)) => {
                seen.protocol == PROTOCOL_AGENTD_BGP
                    && same_kind(&seen.kind, &wanted)
                    && seen.resilient == self.resilience(&wanted)
            }
            _ => false,
        }
    }

    pub(super) fn object_of(&self, id: u32, kind: NextHopKind) -> NextHop {
        NextHop {
            id,
            protocol: PROTOCOL_AGENTD_BGP,
            resilient: self.resilience(&kind),
            kind,
        }
    }

    fn resilience(&self, kind: &NextHopKind) -> Option<Resilient> {
        match kind {
            NextHopKind::Group(_) => self.config.resilient,
            NextHopKind::Gateway(_) | NextHopKind::Blackhole => None,
        }
    }

    /// The pools have changed: routes whose pool is another one now get the objects of that.
    pub(super) fn reclassify(&mut self) {
        let moved: Vec<(IpNet, Code, Class)> = self
            .table
            .iter()
            .filter(|(_, entry)| entry.learned != NONE)
            .map(|(prefix, entry)| (prefix, entry.learned, self.class_of(&prefix)))
            .filter(|(_, id, class)| {
                let set = self.next_hops.sets.get(id);
                set.is_some_and(|set| set.class != *class)
            })
            .collect();
        for (prefix, before, class) in moved {
            let Some(members) = self.next_hops.sets.get(&before).map(|s| s.members.clone()) else {
                continue;
            };
            let seen = self.table.get(&prefix).seen;
            let id = self.use_set(class, &members, seen);
            self.release_set(before);
            self.table.update(&prefix, |entry| entry.learned = id);
            if seen != id {
                self.queue(prefix);
            }
        }
    }

    /// Why a set's routes are not in the kernel, if its next hops are the reason.
    pub(super) fn unresolved_text(&self, id: u32) -> Option<String> {
        if self.wanted_kind(id).is_some() {
            return None;
        }
        let members = &self.next_hops.sets.get(&id)?.members;
        let list: Vec<String> = members.iter().map(ToString::to_string).collect();
        let class = self.next_hops.sets.get(&id)?.class;
        for via in members {
            if let Some(text) = self.tunnel_text(HopKey { via: *via, class }) {
                return Some(text);
            }
        }
        Some(format!(
            "no route of this node leads to next hop {}",
            list.join(", ")
        ))
    }

    /// Next hops that are watched or used, in order of address.
    pub fn next_hops(&self) -> Vec<NextHopView> {
        self.next_hops
            .hops
            .iter()
            .map(|(key, hop)| NextHopView {
                address: key.via.address,
                state: state_of(hop.resolved),
                hop: hop.resolved.and_then(|resolved| {
                    let target = Target::Gateways(vec![resolved.gateway]);
                    self.hops_of(&target).into_iter().next()
                }),
                id: (hop.id != 0 && self.object_stands(hop.id)).then_some(hop.id),
                users: usize::try_from(hop.users).unwrap_or(usize::MAX),
            })
            .collect()
    }
}

/// Whether two contents are the same to us: the kernel reports flags of its own.
pub(super) fn same_kind(a: &NextHopKind, b: &NextHopKind) -> bool {
    match (a, b) {
        (NextHopKind::Gateway(a), NextHopKind::Gateway(b)) => {
            a.address == b.address && a.index == b.index
        }
        (NextHopKind::Group(a), NextHopKind::Group(b)) => a == b,
        (NextHopKind::Blackhole, NextHopKind::Blackhole) => true,
        _ => false,
    }
}
