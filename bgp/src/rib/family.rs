//! The tables of one family and everything that keeps them in step with each other.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::{
    export::ExportParameters,
    group::{Departure, Group},
    ids::Ids,
    import::{Import, Within},
    interned::NO_ATTRIBUTES,
    prefix::Prefix,
    shared::{LOCAL, Shared},
    table::{FORWARDING_DIRTY, NewPath, Outcome, Table, Verdict},
    types::{LocalRoute, PrefixLimit, Pulled, RouteChange},
};
use crate::{
    attributes::{Attributes, NextHop, well_known},
    message::Nlri,
    types::{Family, PeerId},
};

/// Up to so many more-specific prefixes are looked up one by one when a prefix is originated.
const ENUMERATED: u64 = 1024;

#[derive(Debug)]
pub(super) struct FamilyRib<K> {
    pub(super) table: Table<K>,
    groups: Vec<Option<Group<K>>>,
    /// Prefixes whose forwarding may have changed.
    forwarding: Ids,
    originated: HashMap<K, LocalRoute, foldhash::fast::RandomState>,
    /// How many originated prefixes there are of each length, of those that own what lies inside.
    originated_lengths: Vec<u32>,
    /// Originations changed: paths inside these prefixes have to be assessed again.
    reassess_inside: Vec<K>,
    /// Originated prefixes, and such inside them, that a peer has announced.
    pub(super) claimed: BTreeSet<K>,
    /// Who announces them may have changed.
    pub(super) claims_changed: bool,
}

impl<K: Prefix> FamilyRib<K> {
    pub(super) fn new() -> Self {
        Self {
            table: Table::new(),
            groups: Vec::new(),
            forwarding: Ids::default(),
            originated: HashMap::default(),
            originated_lengths: vec![0; usize::from(K::MAX_LENGTH) + 1],
            reassess_inside: Vec::new(),
            claimed: BTreeSet::new(),
            claims_changed: false,
        }
    }

    /// Passes on what the decision process changed.
    fn changed(&mut self, shared: &mut Shared, route: u32, outcome: Outcome) {
        if outcome.forwarding {
            let flags = &mut self.table.routes[route].flags;
            if *flags & FORWARDING_DIRTY == 0 {
                *flags |= FORWARDING_DIRTY;
                self.forwarding.insert(route);
            }
        }
        if outcome.best || outcome.paths {
            for group in self.groups.iter_mut().flatten() {
                if outcome.best || group.parameters.paths.is_some() {
                    group.mark(&mut self.table, shared, route);
                }
            }
        }
        self.table.reap(route);
    }

    pub(super) fn announce(
        &mut self,
        shared: &mut Shared,
        slot: u16,
        stamp: u32,
        attributes: &Arc<Attributes>,
        nlri: &[Nlri<K::Net>],
    ) -> Result<(), PrefixLimit> {
        let received = shared.attributes.intern(attributes);
        let mut import = Import::new(shared, slot, received, false);
        let mut result = Ok(());
        for nlri in nlri {
            let key = K::new(nlri.prefix);
            result = self.announce_one(shared, slot, stamp, &mut import, key, nlri.path_id);
            if result.is_err() {
                break;
            }
        }
        import.finish(shared);
        shared.attributes.release(received);
        result
    }

    fn announce_one(
        &mut self,
        shared: &mut Shared,
        slot: u16,
        stamp: u32,
        import: &mut Import,
        key: K,
        path_id: u32,
    ) -> Result<(), PrefixLimit> {
        let route = self.table.find_or_insert(key);
        let peer = shared
            .peer(slot)
            .expect("updates come from peers that are up");
        if let Some(limit) = peer.session.max_prefixes[K::FAMILY.index()]
            && peer.counts[K::FAMILY.index()].received >= limit
            && !self
                .table
                .paths(route)
                .any(|path| path.slot == slot && path.path_id == path_id)
        {
            self.table.reap(route);
            return Err(PrefixLimit {
                family: K::FAMILY,
                limit,
            });
        }
        let within = Within::of(self.owner(key), key);
        if within != Within::No {
            self.claimed.insert(key);
            self.claims_changed = true;
        }
        let (effective, verdict) = import.decide(shared, &key.ip_net(), within);
        let received = import.received();
        shared.attributes.retain(received);
        let path = NewPath {
            slot,
            path_id,
            received,
            effective,
            verdict,
            stamp,
        };
        let outcome = self.table.set_path(shared, route, path);
        self.changed(shared, route, outcome);
        shared.warn_of_prefixes(slot, K::FAMILY);
        Ok(())
    }

    pub(super) fn withdraw(&mut self, shared: &mut Shared, slot: u16, nlri: &[Nlri<K::Net>]) {
        for nlri in nlri {
            let key = K::new(nlri.prefix);
            let Some(route) = self.table.find(key) else {
                continue;
            };
            self.claims_changed |= self.claimed.contains(&key);
            let (_, outcome) = self.table.remove_paths(shared, route, |path| {
                path.slot == slot && path.path_id == nlri.path_id
            });
            self.changed(shared, route, outcome);
        }
    }

    /// Removes the paths of a peer, all or those that are stale.
    pub(super) fn remove_peer(&mut self, shared: &mut Shared, slot: u16, only_stale: bool) {
        let counts = *shared.counts(slot, K::FAMILY);
        let mut left = if only_stale {
            counts.stale
        } else {
            counts.received
        };
        self.claims_changed |= left > 0 && !self.claimed.is_empty();
        for route in 0..self.table.routes.end() {
            if left == 0 {
                break;
            }
            if !self.table.routes[route].is_live() {
                continue;
            }
            let (removed, outcome) = self.table.remove_paths(shared, route, |path| {
                path.slot == slot && (path.is_stale() || !only_stale)
            });
            if removed > 0 {
                left = left.saturating_sub(removed);
                self.changed(shared, route, outcome);
            }
        }
    }

    pub(super) fn mark_stale(&mut self, shared: &mut Shared, slot: u16) {
        let counts = *shared.counts(slot, K::FAMILY);
        let mut left = counts.received - counts.stale;
        for route in 0..self.table.routes.end() {
            if left == 0 {
                break;
            }
            if self.table.routes[route].is_live() {
                left -= self.table.mark_stale(shared, route, slot);
            }
        }
    }

    /// Stale paths of the peer become long-lived stale; those that may not are removed.
    pub(super) fn mark_long_lived(&mut self, shared: &mut Shared, slot: u16) {
        let refuses = |shared: &Shared, id: u32| {
            let attributes = &shared.attributes.get(id).attributes;
            attributes.has_community(well_known::NO_LLGR)
        };
        for route in 0..self.table.routes.end() {
            if shared.counts(slot, K::FAMILY).stale == 0 {
                break;
            }
            if !self.table.routes[route].is_live() {
                continue;
            }
            let (mut stale, mut refused) = (false, SmallVec::<[u32; 2]>::new());
            for path in self.table.paths(route) {
                if path.slot != slot || !path.is_stale() {
                    continue;
                }
                stale = true;
                // RFC 9494 §4.2: as sent by the peer, or as policy has it.
                if refuses(shared, path.received) || refuses(shared, path.effective) {
                    refused.push(path.path_id);
                }
            }
            if !refused.is_empty() {
                let (_, outcome) = self.table.remove_paths(shared, route, |path| {
                    path.slot == slot && path.is_stale() && refused.contains(&path.path_id)
                });
                self.table.pin(route);
                self.changed(shared, route, outcome);
                self.reassess(shared, route, |other| other == slot);
                self.table.unpin(route);
            } else if stale {
                self.reassess(shared, route, |other| other == slot);
            }
        }
    }

    /// The prefix originated here that this one equals or lies inside.
    pub(super) fn owner(&self, key: K) -> Option<K> {
        if self.originated.is_empty() {
            return None;
        }
        (0..=key.length())
            .filter(|length| self.originated_lengths[usize::from(*length)] > 0)
            .map(|length| key.truncate(length))
            .find(|covering| {
                let known = self.originated.get(covering);
                known.is_some_and(|local| local.owns_inside)
            })
    }

    /// What is originated and owns what lies inside.
    pub(super) fn owned(&self) -> impl Iterator<Item = IpNet> + '_ {
        let owned = self
            .originated
            .iter()
            .filter(|(_, local)| local.owns_inside);
        owned.map(|(key, _)| key.ip_net())
    }

    pub(super) fn originate(&mut self, shared: &mut Shared, stamp: u32, key: K, local: LocalRoute) {
        if self.originated.get(&key) == Some(&local) {
            return;
        }
        let unspecified = match K::FAMILY {
            Family::Ipv4Unicast => IpAddr::from([0; 4]),
            Family::Ipv6Unicast => IpAddr::from([0; 16]),
        };
        let mut attributes = Attributes::originated(NextHop::from(unspecified));
        attributes.origin = local.origin;
        attributes.med = local.med;
        attributes.local_pref = local.local_pref;
        attributes.communities.clone_from(&local.communities);
        attributes
            .large_communities
            .clone_from(&local.large_communities);
        let owns = local.owns_inside;
        let before = self.originated.insert(key, local);
        let owned = before.is_some_and(|before| before.owns_inside);
        if owns != owned {
            self.count_owned(key, owns);
        }
        let received = shared.attributes.intern(&Arc::new(attributes));
        shared.attributes.retain(received);
        let route = self.table.find_or_insert(key);
        let path = NewPath {
            slot: LOCAL,
            path_id: 0,
            received,
            effective: received,
            verdict: Verdict::rule(None),
            stamp,
        };
        let outcome = self.table.set_path(shared, route, path);
        self.changed(shared, route, outcome);
    }

    /// What lies inside is ours from now on, or no longer.
    fn count_owned(&mut self, key: K, owned: bool) {
        let count = &mut self.originated_lengths[usize::from(key.length())];
        if owned {
            *count += 1;
        } else {
            *count -= 1;
        }
        self.reassess_inside.push(key);
    }

    pub(super) fn withdraw_originated(&mut self, shared: &mut Shared, key: K) {
        let Some(before) = self.originated.remove(&key) else {
            return;
        };
        if before.owns_inside {
            self.count_owned(key, false);
        }
        if let Some(route) = self.table.find(key) {
            let (_, outcome) = self
                .table
                .remove_paths(shared, route, |path| path.slot == LOCAL);
            self.changed(shared, route, outcome);
        }
    }

    /// Assesses paths again whose verdict depends on what is originated.
    pub(super) fn flush_originated(&mut self, shared: &mut Shared) {
        if self.reassess_inside.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.reassess_inside);
        // A few small blocks: look up what could lie inside. Otherwise one walk for all of them.
        let mut routes: SmallVec<[u32; 8]> = SmallVec::new();
        let mut looked_up = 0u64;
        for key in &changed {
            for length in key.length()..=K::MAX_LENGTH {
                if self.table.count_of_length(length) > 0 {
                    looked_up += 1u64
                        .checked_shl(u32::from(length - key.length()))
                        .unwrap_or(ENUMERATED);
                    looked_up = looked_up.max(1);
                }
            }
        }
        if looked_up <= ENUMERATED.max(self.table.len() as u64 / 4) {
            for key in &changed {
                for length in key.length()..=K::MAX_LENGTH {
                    if self.table.count_of_length(length) > 0 {
                        let inside = key.inside(length, u64::MAX);
                        routes.extend(inside.filter_map(|key| self.table.find(key)));
                    }
                }
            }
        } else {
            let lengths: Vec<bool> = (0..=K::MAX_LENGTH)
                .map(|length| changed.iter().any(|key| key.length() == length))
                .collect();
            let changed: hashbrown::HashSet<K, foldhash::fast::RandomState> =
                changed.into_iter().collect();
            for route in 0..self.table.routes.end() {
                let record = &self.table.routes[route];
                let key = record.key;
                let hit = record.is_live()
                    && (0..=key.length()).any(|length| {
                        lengths[usize::from(length)] && changed.contains(&key.truncate(length))
                    });
                if hit {
                    routes.push(route);
                }
            }
        }
        self.claims_changed = true;
        for route in routes {
            let key = self.table.routes[route].key;
            if self.owner(key).is_some() && self.table.paths(route).any(|path| path.slot != LOCAL) {
                self.claimed.insert(key);
            }
            self.reassess(shared, route, |_| true);
        }
    }

    /// Asks import again about the learned paths of a prefix.
    fn reassess(&mut self, shared: &mut Shared, route: u32, which: impl Fn(u16) -> bool) {
        let paths: SmallVec<[(u16, u32, u32, bool); 4]> = self
            .table
            .paths(route)
            .filter(|path| path.slot != LOCAL && which(path.slot))
            .map(|path| {
                let long_lived = path.is_stale()
                    && shared
                        .peer(path.slot)
                        .is_some_and(|peer| peer.long_lived[K::FAMILY.index()]);
                (path.slot, path.path_id, path.received, long_lived)
            })
            .collect();
        let key = self.table.routes[route].key;
        let within = Within::of(self.owner(key), key);
        for (slot, path_id, received, long_lived) in paths {
            let mut import = Import::new(shared, slot, received, long_lived);
            let (effective, verdict) = import.decide(shared, &key.ip_net(), within);
            import.finish(shared);
            let outcome = self
                .table
                .reassess(shared, route, slot, path_id, effective, verdict);
            self.changed(shared, route, outcome);
        }
    }

    /// Asks import again about everything a peer sent.
    pub(super) fn reassess_peer(&mut self, shared: &mut Shared, slot: u16) {
        if shared.counts(slot, K::FAMILY).received == 0 {
            return;
        }
        for route in 0..self.table.routes.end() {
            if self.table.routes[route].is_live() {
                self.reassess(shared, route, |other| other == slot);
            }
        }
    }

    /// Decides again where one of these next hops is used.
    pub(super) fn next_hops_changed(&mut self, shared: &mut Shared, changed: &[u32]) {
        for route in 0..self.table.routes.end() {
            if !self.table.routes[route].is_live() {
                continue;
            }
            let concerned = self.table.paths(route).any(|path| {
                path.slot != LOCAL
                    && path.effective != NO_ATTRIBUTES
                    && changed.contains(&shared.attributes.get(path.effective).next_hop)
            });
            if concerned {
                let before = self.table.best(route);
                let mut outcome = self.table.decide(shared, route, before);
                // The best path may be the same and its way another.
                outcome.forwarding = true;
                self.changed(shared, route, outcome);
            }
        }
    }

    pub(super) fn poll_change(&mut self, shared: &mut Shared) -> Option<RouteChange> {
        while let Some(route) = self.forwarding.pop() {
            self.table.routes[route].flags &= !FORWARDING_DIRTY;
            let mut next_hops: SmallVec<[NextHop; 4]> = SmallVec::new();
            for path in self.table.equal_paths(route) {
                if path.slot == LOCAL || next_hops.len() >= shared.config.multipath.max(1) {
                    break;
                }
                let set = shared.attributes.get(path.effective);
                let next_hop = shared.next_hops.next_hop(set.next_hop);
                if next_hop.is_discard() {
                    // All or nothing: a prefix is dropped when its best path says so.
                    if next_hops.is_empty() {
                        next_hops.push(next_hop);
                        break;
                    }
                    continue;
                }
                if !next_hops.contains(&next_hop) {
                    next_hops.push(next_hop);
                }
            }
            next_hops.sort_unstable();
            let new = shared.next_hops.intern_set(&next_hops);
            let record = &mut self.table.routes[route];
            let prefix = record.key.ip_net();
            let old = std::mem::replace(&mut record.forwarding, new);
            shared.next_hops.release_set(old);
            self.table.reap(route);
            if old != new {
                let next_hops = shared.next_hops.set(new).clone();
                return Some(RouteChange { prefix, next_hops });
            }
        }
        None
    }

    /// Makes the peer a member of the group that fits its session. `before`: what it
    /// takes along from another.
    pub(super) fn join(&mut self, shared: &mut Shared, slot: u16, before: Option<Departure>) {
        let peer = shared.peer(slot).expect("a peer that is up has a slot");
        let (id, address) = (peer.id, peer.session.remote_address);
        if !peer.session.negotiated.families[K::FAMILY.index()] {
            return;
        }
        let parameters = ExportParameters::new(shared, &peer.session, K::FAMILY);
        let known = self.groups.iter().position(|group| {
            group
                .as_ref()
                .is_some_and(|group| group.parameters == parameters)
        });
        let index = known.unwrap_or_else(|| {
            let mut group = Group::new(parameters);
            for route in 0..self.table.routes.end() {
                if self.table.routes[route].is_live() && self.table.best(route).is_some() {
                    group.mark(&mut self.table, shared, route);
                }
            }
            match self.groups.iter().position(Option::is_none) {
                Some(free) => {
                    self.groups[free] = Some(group);
                    free
                }
                None => {
                    self.groups.push(Some(group));
                    self.groups.len() - 1
                }
            }
        });
        if let Some(group) = &mut self.groups[index] {
            group.join(&mut self.table, id, address, slot, before.as_ref());
        }
        let group = u32::try_from(index).expect("fewer groups than peers");
        let peer = shared.peer_mut(slot).expect("a peer that is up has a slot");
        peer.group[K::FAMILY.index()] = Some(group);
        shared.notify(slot);
        for (route, _) in before.iter().flat_map(|before| &before.had) {
            self.table.unpin(*route);
        }
    }

    /// Takes the peer out of its group.
    pub(super) fn leave(&mut self, shared: &mut Shared, slot: u16) {
        let Some(peer) = shared.peer_mut(slot) else {
            return;
        };
        let id = peer.id;
        let Some(index) = peer.group[K::FAMILY.index()].take() else {
            return;
        };
        let place = &mut self.groups[index as usize];
        let Some(group) = place else {
            return;
        };
        group.leave(&mut self.table, shared, id);
        if group.is_empty()
            && let Some(group) = place.take()
        {
            group.dissolve(&mut self.table, shared);
        }
    }

    /// Puts the peer into the group that fits its session now.
    pub(super) fn regroup(&mut self, shared: &mut Shared, slot: u16) {
        let Some(peer) = shared.peer(slot) else {
            return;
        };
        let id = peer.id;
        let Some(index) = peer.group[K::FAMILY.index()] else {
            return;
        };
        let group = self.groups[index as usize].as_ref();
        let before = group.and_then(|group| group.departure(&mut self.table, id));
        self.leave(shared, slot);
        self.join(shared, slot, before);
    }

    pub(super) fn group(&self, shared: &Shared, slot: u16) -> Option<&Group<K>> {
        let index = shared.peer(slot)?.group[K::FAMILY.index()]?;
        self.groups.get(index as usize)?.as_ref()
    }

    pub(super) fn refresh(&mut self, shared: &mut Shared, slot: u16) {
        let Some(peer) = shared.peer(slot) else {
            return;
        };
        let id = peer.id;
        if let Some(index) = peer.group[K::FAMILY.index()]
            && let Some(Some(group)) = self.groups.get_mut(index as usize)
        {
            group.refresh(&mut self.table, shared, id);
        }
    }

    pub(super) fn pull(
        &mut self,
        shared: &mut Shared,
        slot: u16,
        out: &mut Vec<u8>,
        end: usize,
        pulled: &mut Pulled,
    ) {
        let Some(peer) = shared.peer(slot) else {
            return;
        };
        let id = peer.id;
        if let Some(index) = peer.group[K::FAMILY.index()]
            && let Some(Some(group)) = self.groups.get_mut(index as usize)
        {
            group.pull(&mut self.table, shared, id, out, end, pulled);
        }
    }

    pub(super) fn has_pending(&self, shared: &Shared, slot: u16, id: PeerId) -> bool {
        self.group(shared, slot)
            .is_some_and(|group| group.has_pending(id, shared.end_of_rib_held))
    }
}
