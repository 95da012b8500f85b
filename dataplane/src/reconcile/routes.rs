//! Routes and nexthop objects: which operation makes each be as wanted, and when it counts as done.

use std::{net::IpAddr, sync::Arc};

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::{
    Reconciler,
    lifecycle::Stage,
    plan::{Batch, ROUTES_PER_BATCH, Tag},
    table::{
        ALTERED, BLACKHOLE, Code, Entry, Hash, LINK, NONE, OTHER, QUEUED, SPOILT, WRITING,
        is_object, route_of,
    },
    values::{single, what},
};
use crate::{
    desired::{Detail, Event, FailureKind, Kind, ObjectId, Source},
    kernel::{NextHopKind, Op, PROTOCOL_AGENTD_BGP, Place, Route},
};

/// What should stand at a prefix.
enum Wanted {
    Nothing,
    /// The workload's own business.
    Workload(Arc<str>),
    Code(Code),
}

impl Reconciler {
    fn wanted(&self, prefix: &IpNet, learned: Code) -> Wanted {
        if let Some(id) = self.host_routes.get(prefix) {
            return Wanted::Workload(id.clone());
        }
        if self.blackholes.contains_key(prefix) {
            return Wanted::Code(BLACKHOLE);
        }
        match learned {
            NONE => Wanted::Nothing,
            id => Wanted::Code(id),
        }
    }

    /// Whether something else than this should stand at a prefix, or nothing.
    pub(super) fn wants_other(&self, prefix: &IpNet, code: Code) -> bool {
        match self.wanted(prefix, self.table.get(prefix).learned) {
            Wanted::Code(wanted) => wanted != code,
            Wanted::Nothing => true,
            Wanted::Workload(_) => false,
        }
    }

    pub(super) fn plan_objects(&mut self, batch: &mut Batch) {
        let mut gateways = Vec::new();
        let mut groups = Vec::new();
        let mut gone = self.plan_members_to_go(batch);
        for id in std::mem::take(&mut self.next_hops.dirty) {
            if self.object_matches(id) {
                self.object_failures.remove(&id);
                if self.object_stands(id) {
                    // Not by a write of ours: it was thought to be gone, and a dump has it.
                    self.release_held(id);
                }
                continue;
            }
            match self.wanted_kind(id) {
                Some(kind @ NextHopKind::Group(_)) => groups.push((id, kind)),
                Some(kind) => gateways.push((id, kind)),
                // Its routes may be about to get another one: make before break.
                None if self.is_wanted_object(id) && !self.adds.is_empty() => {
                    self.next_hops.dirty.insert(id);
                }
                None if self.is_wanted_object(id) => gone.push(id),
                None => {}
            }
        }
        for (id, kind) in gateways {
            self.push_object(id, kind, batch);
        }
        for (id, kind) in groups {
            // What is deleted in the same batch leaves its groups by itself.
            let left: Vec<(u32, u16)> = match self.seen_next_hops.get(&id).map(|o| &o.kind) {
                Some(NextHopKind::Group(seen)) => seen
                    .iter()
                    .filter(|(member, _)| !gone.contains(member))
                    .copied()
                    .collect(),
                _ => Vec::new(),
            };
            if NextHopKind::Group(left) != kind {
                self.push_object(id, kind, batch);
            }
        }
        gone.retain(|id| !self.next_hops.leaving.contains(id));
        for id in &gone {
            if self.would_empty_a_group(*id, &gone) {
                // Once the group has its other members.
                self.next_hops.dirty.insert(*id);
                continue;
            }
            let id = *id;
            let op = Op::DeleteNextHop { id };
            batch.rest.push((op, Tag::DeleteNextHop(id)));
        }
    }

    /// Deletes gateways that no set has any more and to which no route points: that takes them out
    /// of all their groups, in one operation and without a word about each route.
    fn plan_members_to_go(&mut self, batch: &mut Batch) -> Vec<u32> {
        if self.next_hops.retired.is_empty()
            || !self.adds.is_empty()
            || !self.is_synced(Source::Bgp)
            || self.something_waits()
        {
            return Vec::new();
        }
        let members: Vec<u32> = self
            .seen_next_hops
            .values()
            .filter(|object| self.next_hops.dirty.contains(&object.id))
            .filter_map(|object| match &object.kind {
                NextHopKind::Group(members) => Some(members.iter().map(|(member, _)| *member)),
                _ => None,
            })
            .flatten()
            .collect();
        let retired = self.next_hops.retired.iter().copied();
        let gone: Vec<u32> = retired
            .filter(|id| members.contains(id) && !self.is_wanted_object(*id))
            .collect();
        let gone: Vec<u32> = (gone.iter().copied())
            .filter(|id| !self.would_empty_a_group(*id, &gone))
            .collect();
        for id in &gone {
            let id = *id;
            self.next_hops.retired.remove(&id);
            self.next_hops.leaving.push(id);
            let op = Op::DeleteNextHop { id };
            batch.rest.push((op, Tag::DeleteNextHop(id)));
        }
        gone
    }

    /// Whether some routes point elsewhere than they should, and that cannot be changed now.
    fn something_waits(&self) -> bool {
        !(self.next_hops.held.is_empty()
            && self.failures.is_empty()
            && self.puzzling.is_empty()
            && self.route_reads.is_empty()
            && self.unread.is_empty())
    }

    /// Whether a group of which something else should be left loses its last members as seen.
    fn would_empty_a_group(&self, id: u32, gone: &[u32]) -> bool {
        self.seen_next_hops
            .values()
            .any(|object| match &object.kind {
                NextHopKind::Group(members) => {
                    members.iter().any(|(member, _)| *member == id)
                        && members.iter().all(|(member, _)| gone.contains(member))
                        && self.wanted_kind(object.id).is_some()
                }
                _ => false,
            })
    }

    /// Of these objects, those to which routes point, by themselves or by a group, that are to point
    /// elsewhere but cannot yet, because that fails at the moment: make before break. Also those with
    /// routes of an earlier run that may still be wanted, and the last members of a group that is
    /// wanted. All of them while it is not known where some routes point.
    fn objects_still_needed(&self, ids: &[u32]) -> Vec<u32> {
        if !(self.route_reads.is_empty() && self.unread.is_empty()) {
            return ids.to_vec();
        }
        if ids.is_empty() {
            return Vec::new();
        }
        let mut needed: Vec<u32> = (ids.iter().copied())
            .filter(|id| self.would_empty_a_group(*id, ids))
            .collect();
        let synced = self.is_synced(Source::Bgp);
        if synced && !self.something_waits() {
            return needed;
        }
        let unwanted: HashSet<IpNet, Hash> = match synced {
            true => HashSet::default(),
            false => self.deletes.iter().collect(),
        };
        // A group need not be among them: one of an earlier run is nobody's until the sweep.
        let mut leads_there: HashMap<u32, Vec<u32>, Hash> =
            ids.iter().map(|id| (*id, vec![*id])).collect();
        for object in self.seen_next_hops.values() {
            if let NextHopKind::Group(members) = &object.kind {
                let members = members.iter().map(|(member, _)| *member);
                let members: Vec<u32> = members.filter(|member| ids.contains(member)).collect();
                // A group without members is gone as well.
                if !members.is_empty() {
                    leads_there.entry(object.id).or_default().extend(members);
                }
            }
        }
        let used: HashSet<u32, Hash> = (self.table.iter())
            .filter(|(prefix, entry)| {
                leads_there.contains_key(&entry.seen)
                    && match entry.learned {
                        NONE => !synced && !unwanted.contains(prefix),
                        id => {
                            id != entry.seen && (!is_object(id) || self.wanted_kind(id).is_some())
                        }
                    }
            })
            .map(|(_, entry)| entry.seen)
            .collect();
        let through = used.iter().filter_map(|id| leads_there.get(id));
        needed.extend(through.flatten());
        needed
    }

    fn push_object(&self, id: u32, kind: NextHopKind, batch: &mut Batch) {
        let object = self.object_of(id, kind);
        let tag = Tag::NextHop(Box::new(object.clone()));
        batch.rest.push((Op::ReplaceNextHop(object), tag));
    }

    pub(super) fn plan_routes(&mut self, batch: &mut Batch) {
        let in_batch: Vec<u32> = batch
            .rest
            .iter()
            .filter_map(|(_, tag)| match tag {
                Tag::NextHop(object) => Some(object.id),
                _ => None,
            })
            .collect();
        self.plan_adds(&in_batch, batch);
        if !self.adds.is_empty() {
            return;
        }
        // Make before break: replacements are done before anything is deleted.
        if batch
            .rest
            .iter()
            .any(|(_, tag)| matches!(tag, Tag::Route(..)))
        {
            return;
        }
        self.plan_deletes(batch);
    }

    /// Routes that are to be added or replaced, as many as a batch has room for, but for those that
    /// are on their way already.
    pub(super) fn plan_adds(&mut self, in_batch: &[u32], batch: &mut Batch) {
        let mut later = Vec::new();
        while batch.rest.len() < ROUTES_PER_BATCH {
            let Some(prefix) = self.adds.pop() else {
                break;
            };
            let mut writing = false;
            let entry = self.table.update(&prefix, |entry| {
                writing = entry.flags & WRITING != 0;
                if !writing {
                    entry.flags = entry.flags & !QUEUED | WRITING;
                }
            });
            if writing {
                later.push(prefix);
            } else if !self.plan_route(prefix, entry, in_batch, batch) {
                self.table.update(&prefix, |entry| entry.flags &= !WRITING);
            }
        }
        self.adds.extend(later);
        if self.adds.is_empty() {
            self.adds.shrink_to(ROUTES_PER_BATCH);
        }
    }

    /// Returns whether the route takes part in the batch.
    fn plan_route(
        &mut self,
        prefix: IpNet,
        entry: Entry,
        in_batch: &[u32],
        batch: &mut Batch,
    ) -> bool {
        match self.wanted(&prefix, entry.learned) {
            Wanted::Workload(id) => {
                // One that is on its way, or that failed, looks at its routes by itself.
                let wrong = self.workloads.get(&id).is_some_and(|state| {
                    matches!(state.stage, Stage::Idle) && entry.seen != LINK | state.index
                });
                if wrong {
                    self.read_again(&id, entry.flags & SPOILT != 0);
                }
                self.table
                    .update(&prefix, |entry| entry.flags &= !(SPOILT | ALTERED));
            }
            Wanted::Nothing => {
                self.table
                    .update(&prefix, |entry| entry.flags &= !(SPOILT | ALTERED));
                if entry.seen != NONE && self.is_synced(self.source_of(&prefix, entry.seen)) {
                    self.deletes.push(prefix);
                }
            }
            Wanted::Code(code) if entry.seen == code => self.settle(prefix),
            Wanted::Code(code) => {
                if is_object(code) && !self.object_stands(code) && !in_batch.contains(&code) {
                    self.next_hops.held.insert(code);
                    return false;
                }
                match self.route_op(prefix, code) {
                    Some(op) => {
                        batch.rest.push((op, Tag::Route(prefix, code)));
                        return true;
                    }
                    None => self.conflict(prefix),
                }
            }
        }
        false
    }

    pub(super) fn route_object(&self, prefix: IpNet) -> ObjectId {
        if self.blackholes.contains_key(&prefix) || self.removing.contains(&prefix) {
            ObjectId::Blackhole(prefix)
        } else {
            ObjectId::Route(prefix)
        }
    }

    fn conflict(&mut self, prefix: IpNet) {
        let Some(foreign) = self.table.foreign_on_key(&prefix) else {
            return;
        };
        let text = format!(
            "route {prefix}: a route of protocol {} stands there",
            foreign.protocol
        );
        let object = self.route_object(prefix);
        self.fail(object, FailureKind::Conflict, text);
    }

    fn plan_deletes(&mut self, batch: &mut Batch) {
        let idle: Vec<u32> = self.next_hops.idle.iter().copied().collect();
        for id in idle {
            self.drop_set(id);
        }
        let mut retired: Vec<u32> = std::mem::take(&mut self.next_hops.retired)
            .into_iter()
            .filter(|id| self.object_stands(*id) && !self.is_wanted_object(*id))
            .collect();
        let needed = self.objects_still_needed(&retired);
        retired.retain(|id| !needed.contains(id));
        self.next_hops.retired.extend(needed);
        // Groups before their members: an emptied group would take its routes along silently.
        let is_group = |id: &u32| {
            matches!(
                self.seen_next_hops.get(id).map(|object| &object.kind),
                Some(NextHopKind::Group(_))
            )
        };
        retired.sort_by_key(|id| !is_group(id));
        self.next_hops.leaving.extend(&retired);
        for id in &retired {
            let op = Op::DeleteNextHop { id: *id };
            batch.rest.push((op, Tag::DeleteNextHop(*id)));
        }
        self.plan_single_deletes(&retired, batch);
        for ((prefix, metric), route) in &self.table.odd {
            let source = match route.protocol {
                PROTOCOL_AGENTD_BGP => Source::Bgp,
                _ => Source::Workload,
            };
            if self.is_synced(source) && batch.rest.len() < ROUTES_PER_BATCH {
                let op = Op::DeleteRoute {
                    place: Place::Host,
                    route: route.clone(),
                };
                let tag = Tag::DeleteOdd(*prefix, *metric);
                batch.rest.push((op, tag));
            }
        }
    }

    /// Whether objects are to be deleted next, maybe with many routes that are to go.
    pub(super) fn objects_may_go(&self) -> bool {
        !(self.next_hops.idle.is_empty() && self.next_hops.retired.is_empty())
    }

    /// Routes that nobody wants, but for those that go with one of these objects.
    pub(super) fn plan_single_deletes(&mut self, retired: &[u32], batch: &mut Batch) {
        let mut later = Vec::new();
        while batch.rest.len() < ROUTES_PER_BATCH
            && let Some(prefix) = self.deletes.pop_to_delete(&mut self.rng)
        {
            let entry = self.table.get(&prefix);
            let unwanted = matches!(self.wanted(&prefix, entry.learned), Wanted::Nothing);
            if entry.flags & WRITING != 0 {
                later.push(prefix);
            } else if !unwanted {
                self.queue(prefix);
            } else if entry.seen == NONE {
                self.settle_gone(prefix);
            } else if !retired.contains(&entry.seen)
                && let Some(route) = self.own_route(&prefix)
            {
                let place = Place::Host;
                let op = Op::DeleteRoute { place, route };
                batch.rest.push((op, Tag::Delete(prefix)));
                self.table.update(&prefix, |entry| entry.flags |= WRITING);
            }
        }
        self.deletes.extend(later);
        if self.deletes.is_empty() {
            self.deletes.shrink_to(ROUTES_PER_BATCH);
        }
    }

    /// The operation that makes a route be as wanted; `None` when it is so already or a foreign
    /// route is in the way.
    pub(super) fn route_op(&self, prefix: IpNet, code: Code) -> Option<Op> {
        let seen = self.table.get(&prefix).seen;
        let place = Place::Host;
        let route = route_of(prefix, code);
        if seen == code || self.table.foreign_on_key(&prefix).is_some() {
            None
        } else if seen != NONE {
            Some(Op::ReplaceRoute { place, route })
        } else {
            Some(Op::AddRoute { place, route })
        }
    }

    /// Puts a prefix into the queue of what may have to be written.
    pub(super) fn queue(&mut self, prefix: IpNet) {
        let mut fresh = false;
        self.table.update(&prefix, |entry| {
            fresh = entry.flags & QUEUED == 0;
            entry.flags |= QUEUED;
        });
        if fresh {
            self.adds.push(prefix);
        }
    }

    pub(super) fn source_of(&self, prefix: &IpNet, code: Code) -> Source {
        match code {
            BLACKHOLE => Source::Block,
            code if code & LINK != 0 => Source::Workload,
            OTHER => match self.table.other.get(prefix).map(|route| route.protocol) {
                Some(PROTOCOL_AGENTD_BGP) => Source::Bgp,
                _ => Source::Workload,
            },
            _ => Source::Bgp,
        }
    }

    /// A route stands as wanted.
    pub(super) fn settle(&mut self, prefix: IpNet) {
        let entry = self.table.get(&prefix);
        let object = self.route_object(prefix);
        let failed = !self.failures.is_empty() && self.failures.remove(&object).is_some();
        if entry.flags & SPOILT != 0 {
            self.table
                .update(&prefix, |entry| entry.flags &= !(SPOILT | ALTERED));
            let kind = match object {
                ObjectId::Blackhole(_) => Kind::Blackhole,
                ObjectId::Route(_) => Kind::LearnedRoute,
                _ => Kind::Route,
            };
            let found = match entry.flags & ALTERED {
                0 => "missing",
                _ => "led elsewhere",
            };
            let text = format!("route {prefix} ({found})");
            self.tell_repair(Some(object.clone()), &[what(kind, text)]);
        }
        let told = match self.blackholes.get_mut(&prefix) {
            Some(told) => std::mem::replace(told, true),
            None => !failed,
        };
        if !told || failed {
            let detail = Detail::default();
            self.events
                .push_back(Event::Programmed { id: object, detail });
        }
    }

    /// Nothing of ours stands at a prefix at which nothing is wanted.
    pub(super) fn settle_gone(&mut self, prefix: IpNet) {
        if self.removing.remove(&prefix) {
            let id = ObjectId::Blackhole(prefix);
            self.failures.remove(&id);
            self.events.push_back(Event::Removed { id });
        } else if !self.failures.is_empty() {
            self.failures.remove(&ObjectId::Route(prefix));
        }
    }

    pub(super) fn absorb_routes(&mut self, prefixes: &[IpNet], routes: Vec<Route>) {
        let mut by_prefix: HashMap<IpNet, Vec<Route>, Hash> = HashMap::default();
        for route in routes {
            by_prefix.entry(route.prefix).or_default().push(route);
        }
        for prefix in prefixes {
            let found = by_prefix.remove(prefix).unwrap_or_default();
            let before = self.table.get(prefix).seen;
            self.table.set_seen(prefix, NONE);
            if found.is_empty() && self.table.remove_foreign(prefix, |_| true) {
                self.note_underlay_route(prefix);
            }
            for route in found {
                self.see_route(route);
            }
            let entry = self.table.get(prefix);
            if entry.seen != before {
                self.spoil(*prefix, before);
            }
            self.queue(*prefix);
        }
    }

    pub(super) fn is_wanted(&self, prefix: &IpNet, code: Code) -> bool {
        match self.wanted(prefix, self.table.get(prefix).learned) {
            Wanted::Nothing => false,
            Wanted::Code(wanted) => wanted == code,
            Wanted::Workload(id) => self
                .workloads
                .get(&id)
                .is_some_and(|state| LINK | state.index == code),
        }
    }

    pub(super) fn is_address_of_ours(&self, address: IpAddr) -> bool {
        self.host_routes.contains_key(&single(address))
    }
}
