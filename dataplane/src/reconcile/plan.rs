//! Rounds: what is written and read next, in which order, and what the results mean.
//!
//! At most one round is under way: either one batch of operations, or some queries. So what a query
//! reads is never older than a write, and nothing is planned on what a batch is about to change.
//!
//! Order inside a batch: links, their host side, their inside, routes to them; then nexthop objects
//! (gateways before groups), routes that use them; and only when nothing is left to add, what is to be
//! deleted (nexthop objects, which take their routes along, then single routes).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{
    BatchId, Output, QueryId, Reconciler,
    lifecycle::{Reading, Stage, State, kind_of},
    table::{BLACKHOLE, Code, Hash, LINK, NONE, OTHER, QUEUED, SPOILT, route_of},
    values::{GLOBAL_SYSCTLS, host_interface, is_link_of, single},
};
use crate::{
    desired::{Detail, Event, FailureKind, ObjectId, Source},
    kernel::{
        NextHop, NextHopKind, Op, OpError, OpResult, PROTOCOL_AGENTD_BGP, Place, Query, Route,
        Snapshot,
    },
};

/// Workloads that one round writes or reads.
const WORKLOADS_PER_ROUND: usize = 32;
/// Route operations in one batch.
const ROUTES_PER_BATCH: usize = 4096;
/// Routes that one query looks up.
const ROUTES_PER_QUERY: usize = 1024;
/// Interface indexes of our making: high, so that they never meet those of others, which count up
/// from 1.
const INDEX_RANGE: std::ops::Range<u32> = 0x2000_0000..0x7fff_0000;

#[derive(Debug, Default)]
pub(super) enum Round {
    #[default]
    None,
    Apply {
        id: BatchId,
        tags: Vec<Tag>,
    },
    Query {
        waiting: BTreeMap<u64, Asked>,
        readings: HashMap<Arc<str>, Reading, Hash>,
    },
}

/// What an operation of a batch was for.
#[derive(Debug)]
pub(super) enum Tag {
    Create(Arc<str>, Box<crate::kernel::Link>),
    Workload(Arc<str>),
    WorkloadRoute(Arc<str>, IpNet, Code),
    Unroute(Arc<str>, IpNet),
    Unlink(Arc<str>, u32),
    Route(IpNet, Code),
    Delete(IpNet),
    DeleteOdd(IpNet, u32),
    NextHop(Box<NextHop>),
    DeleteNextHop(u32),
    Reap(Vec<u32>),
    Global,
}

#[derive(Debug)]
pub(super) enum Asked {
    Host,
    Link(Arc<str>),
    Inside(Arc<str>),
    Routes(Vec<IpNet>),
}

#[derive(Default)]
struct Batch {
    create: Vec<(Op, Tag)>,
    host: Vec<(Op, Tag)>,
    inside: Vec<(Op, Tag)>,
    rest: Vec<(Op, Tag)>,
}

impl Batch {
    fn len(&self) -> usize {
        self.create.len() + self.host.len() + self.inside.len() + self.rest.len()
    }
}

/// What should stand at a prefix.
enum Wanted {
    Nothing,
    /// The workload's own business.
    Workload(Arc<str>),
    Code(Code),
}

impl Reconciler {
    /// Starts the next round if none is under way and there is something to do.
    pub(super) fn start_round(&mut self) {
        if !matches!(self.round, Round::None) {
            return;
        }
        if self.refresh {
            self.refresh = false;
            self.ask_host();
            return;
        }
        if !self.started {
            return;
        }
        // In turn, so that neither starves: what was written is read before more is written.
        let read_first = std::mem::replace(&mut self.read_next, false);
        let began = (read_first && self.start_reads())
            || self.start_apply()
            || (!read_first && self.start_reads());
        if !began {
            self.report_sweeps();
        }
    }

    fn ask(&mut self, waiting: &mut BTreeMap<u64, Asked>, asked: Asked, query: Query) {
        self.last_id += 1;
        waiting.insert(self.last_id, asked);
        let id = QueryId(self.last_id);
        self.outbox.push_back(Output::Query { id, query });
    }

    fn ask_host(&mut self) {
        let sysctls = GLOBAL_SYSCTLS
            .iter()
            .map(|(path, _)| (*path).to_owned())
            .collect();
        let query = Query::Place {
            place: Place::Host,
            sysctls,
        };
        let mut waiting = BTreeMap::new();
        self.ask(&mut waiting, Asked::Host, query);
        self.round = Round::Query {
            waiting,
            readings: HashMap::default(),
        };
    }

    fn start_reads(&mut self) -> bool {
        let mut waiting = BTreeMap::new();
        let mut readings = HashMap::default();
        while readings.len() < WORKLOADS_PER_ROUND {
            let Some(id) = self.to_read.pop_front() else {
                break;
            };
            let Some(state) = self.workloads.get(&id) else {
                continue;
            };
            let Stage::Read { verify } = state.stage else {
                continue;
            };
            if verify {
                let prefixes = state.spec.addresses.iter().map(|a| single(*a));
                self.route_reads.extend(prefixes);
            }
            let bound = state.index != 0;
            let [link, inside] = self.want(state).queries(&state.inside_name);
            if bound {
                self.ask(&mut waiting, Asked::Link(id.clone()), link);
            }
            self.ask(&mut waiting, Asked::Inside(id.clone()), inside);
            if let Some(state) = self.workloads.get_mut(&id) {
                state.stage = Stage::Busy;
                state.again = false;
            }
            readings.insert(id, Reading::default());
        }
        if !self.route_reads.is_empty() {
            let count = self.route_reads.len().min(ROUTES_PER_QUERY);
            let prefixes: Vec<IpNet> = self.route_reads.drain(..count).collect();
            let query = Query::Routes(prefixes.clone());
            self.ask(&mut waiting, Asked::Routes(prefixes), query);
        }
        if waiting.is_empty() {
            return false;
        }
        self.round = Round::Query { waiting, readings };
        true
    }

    fn start_apply(&mut self) -> bool {
        let mut batch = Batch::default();
        // Links wait until nothing else is to be written, but not for ever.
        let overdue = self
            .reap_since
            .is_some_and(|since| self.now >= since + 4 * self.config.reap_delay);
        if overdue || self.reap.len() >= self.config.reap_group {
            self.plan_reap(&mut batch);
        }
        if batch.len() != 0 {
            return self.send(batch);
        }
        for op in std::mem::take(&mut self.global_writes) {
            batch.host.push((op, Tag::Global));
        }
        let mut taken = 0;
        // Removals cost a route or two each; it is links and what is on them that take time.
        while taken < WORKLOADS_PER_ROUND && batch.rest.len() < ROUTES_PER_BATCH {
            let Some(id) = self.to_write.pop_front() else {
                break;
            };
            let before = batch.create.len() + batch.host.len() + batch.inside.len();
            self.plan_workload(&id, &mut batch);
            let after = batch.create.len() + batch.host.len() + batch.inside.len();
            taken += usize::from(after != before);
        }
        self.plan_objects(&mut batch);
        self.plan_routes(&mut batch);
        if batch.len() == 0 {
            self.plan_reap(&mut batch);
        }
        batch.len() != 0 && self.send(batch)
    }

    fn send(&mut self, batch: Batch) -> bool {
        let count = batch.len();
        let mut ops = Vec::with_capacity(count);
        let mut tags = Vec::with_capacity(count);
        for part in [batch.create, batch.host, batch.inside, batch.rest] {
            for (op, tag) in part {
                ops.push(op);
                tags.push(tag);
            }
        }
        self.writes += count as u64;
        self.last_id += 1;
        let id = BatchId(self.last_id);
        self.round = Round::Apply { id, tags };
        self.outbox.push_back(Output::Apply { id, ops });
        self.read_next = true;
        true
    }

    fn plan_workload(&mut self, id: &Arc<str>, batch: &mut Batch) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        match std::mem::replace(&mut state.stage, Stage::Busy) {
            Stage::Create => self.plan_create(id, batch),
            Stage::Write(difference) => {
                let host = difference.host.into_iter();
                let inside = difference.inside.into_iter();
                let tag = || Tag::Workload(id.clone());
                batch.host.extend(host.map(|op| (op, tag())));
                batch.inside.extend(inside.map(|op| (op, tag())));
                if !self.plan_workload_routes(id, batch) {
                    self.stage(id, Stage::Read { verify: true });
                }
            }
            Stage::Unroute => self.plan_unroute(id, batch),
            Stage::Unlink => {
                let index = state.index;
                let op = Op::DeleteLinks(vec![index]);
                batch.rest.push((op, Tag::Unlink(id.clone(), index)));
            }
            other => state.stage = other,
        }
    }

    fn plan_create(&mut self, id: &Arc<str>, batch: &mut Batch) {
        let standing = self.link_named(&host_interface(id)).cloned();
        if let Some(link) = standing {
            if !is_link_of(&link, id) {
                let text = format!("an interface named {} exists, without our mark", link.name);
                self.fail_workload(id, FailureKind::Conflict, text);
            } else if self.reap.contains(&link.index) {
                self.reap_now = true;
                self.stage(id, Stage::AwaitReap);
            } else {
                self.bind(id, link.index, link.peer_index.unwrap_or(0));
                self.stage(id, Stage::Read { verify: false });
            }
            return;
        }
        let (index, peer) = self.choose_indexes();
        self.bind(id, index, peer);
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        state.inside_name.clone_from(&state.spec.interface);
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let want = self.want(state);
        let (made, _) = want.created();
        let Some(link) = made.links.into_iter().next() else {
            return;
        };
        let tag = Tag::Create(id.clone(), Box::new(link));
        batch.create.push((want.create(), tag));
    }

    fn choose_indexes(&mut self) -> (u32, u32) {
        loop {
            let range = INDEX_RANGE;
            if !range.contains(&self.next_index) {
                self.next_index = self.rng.u32(range) & !1;
            }
            let index = self.next_index;
            self.next_index += 2;
            if !self.links.contains_key(&index) && !self.by_index.contains_key(&index) {
                return (index, index + 1);
            }
        }
    }

    /// Returns whether the workload takes part in the batch.
    fn plan_workload_routes(&mut self, id: &Arc<str>, batch: &mut Batch) -> bool {
        let Some(state) = self.workloads.get(id) else {
            return false;
        };
        let code = LINK | state.index;
        for address in &state.spec.addresses {
            let prefix = single(*address);
            if self.host_routes.get(&prefix) != Some(id) {
                continue;
            }
            if let Some(op) = self.route_op(prefix, code) {
                let tag = Tag::WorkloadRoute(id.clone(), prefix, code);
                batch.rest.push((op, tag));
            }
        }
        let is = |tag: &Tag| match tag {
            Tag::Workload(of) | Tag::WorkloadRoute(of, ..) => of == id,
            _ => false,
        };
        let parts = [&batch.host, &batch.inside, &batch.rest];
        parts
            .iter()
            .any(|part| part.iter().rev().any(|(_, tag)| is(tag)))
    }

    fn plan_unroute(&mut self, id: &Arc<str>, batch: &mut Batch) {
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let before = batch.rest.len();
        for address in &state.spec.addresses {
            let prefix = single(*address);
            if self.host_routes.get(&prefix).is_some_and(|of| of != id) {
                continue;
            }
            if let Some(route) = self.own_route(&prefix) {
                let place = Place::Host;
                let op = Op::DeleteRoute { place, route };
                batch.rest.push((op, Tag::Unroute(id.clone(), prefix)));
            }
        }
        if batch.rest.len() == before {
            self.unrouted(id);
        }
    }

    /// The operation that makes a route be as wanted; `None` when it is so already or a foreign
    /// route is in the way.
    fn route_op(&self, prefix: IpNet, code: Code) -> Option<Op> {
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

    fn plan_objects(&mut self, batch: &mut Batch) {
        let mut gateways = Vec::new();
        let mut groups = Vec::new();
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.next_hops.dirty) {
            if self.object_matches(id) {
                continue;
            }
            match self.wanted_kind(id) {
                Some(kind @ NextHopKind::Group(_)) => groups.push((id, kind)),
                Some(kind) => gateways.push((id, kind)),
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
        for id in gone {
            let op = Op::DeleteNextHop { id };
            batch.rest.push((op, Tag::DeleteNextHop(id)));
        }
    }

    fn push_object(&self, id: u32, kind: NextHopKind, batch: &mut Batch) {
        let object = self.object_of(id, kind);
        let tag = Tag::NextHop(Box::new(object.clone()));
        batch.rest.push((Op::ReplaceNextHop(object), tag));
    }

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

    fn plan_routes(&mut self, batch: &mut Batch) {
        let in_batch: Vec<u32> = batch
            .rest
            .iter()
            .filter_map(|(_, tag)| match tag {
                Tag::NextHop(object) => Some(object.id),
                _ => None,
            })
            .collect();
        while batch.rest.len() < ROUTES_PER_BATCH {
            let Some(prefix) = self.adds.pop_front() else {
                break;
            };
            self.plan_route(prefix, &in_batch, batch);
        }
        if !self.adds.is_empty() {
            return;
        }
        if self.adds.capacity() > 4 * ROUTES_PER_BATCH {
            self.adds.shrink_to(ROUTES_PER_BATCH);
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

    fn plan_route(&mut self, prefix: IpNet, in_batch: &[u32], batch: &mut Batch) {
        let entry = self.table.update(&prefix, |entry| entry.flags &= !QUEUED);
        match self.wanted(&prefix, entry.learned) {
            Wanted::Workload(id) => {
                // One that is on its way, or that failed, looks at its routes by itself.
                let wrong = self.workloads.get(&id).is_some_and(|state| {
                    matches!(state.stage, Stage::Idle) && entry.seen != LINK | state.index
                });
                if wrong {
                    self.read_again(&id, entry.flags & SPOILT != 0);
                }
                self.table.update(&prefix, |entry| entry.flags &= !SPOILT);
            }
            Wanted::Nothing => {
                self.table.update(&prefix, |entry| entry.flags &= !SPOILT);
                if entry.seen != NONE && self.is_synced(self.source_of(&prefix, entry.seen)) {
                    self.deletes.push(prefix);
                }
            }
            Wanted::Code(code) if entry.seen == code => self.settle(prefix),
            Wanted::Code(code) => {
                if code != BLACKHOLE && !self.object_stands(code) && !in_batch.contains(&code) {
                    self.next_hops.held.insert(code);
                    return;
                }
                match self.route_op(prefix, code) {
                    Some(op) => batch.rest.push((op, Tag::Route(prefix, code))),
                    None => self.conflict(prefix),
                }
            }
        }
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
        // Groups before their members: an emptied group would take its routes along silently.
        let is_group = |id: &u32| {
            matches!(
                self.seen_next_hops.get(id).map(|object| &object.kind),
                Some(NextHopKind::Group(_))
            )
        };
        retired.sort_by_key(|id| !is_group(id));
        for id in &retired {
            let op = Op::DeleteNextHop { id: *id };
            batch.rest.push((op, Tag::DeleteNextHop(*id)));
        }
        while batch.rest.len() < ROUTES_PER_BATCH && !self.deletes.is_empty() {
            // Shuffled: the kernel deletes in order of address three times slower.
            let at = self.rng.usize(..self.deletes.len());
            let prefix = self.deletes.swap_remove(at);
            let entry = self.table.get(&prefix);
            let unwanted = matches!(self.wanted(&prefix, entry.learned), Wanted::Nothing);
            if !unwanted {
                self.queue(prefix);
            } else if entry.seen == NONE {
                self.settle_gone(prefix);
            } else if !retired.contains(&entry.seen)
                && let Some(route) = self.own_route(&prefix)
            {
                let place = Place::Host;
                let op = Op::DeleteRoute { place, route };
                batch.rest.push((op, Tag::Delete(prefix)));
            }
        }
        if self.deletes.is_empty() && self.deletes.capacity() > 4 * ROUTES_PER_BATCH {
            self.deletes = Vec::new();
        }
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

    fn plan_reap(&mut self, batch: &mut Batch) {
        let due = self.reap_since.is_some_and(|since| self.now >= since);
        if self.reap.is_empty()
            || !(due || self.reap_now || self.reap.len() >= self.config.reap_group)
        {
            return;
        }
        self.reap_now = false;
        self.reap_since = None;
        let count = self.reap.len().min(self.config.reap_group);
        let indexes: Vec<u32> = self.reap.iter().take(count).copied().collect();
        let op = Op::DeleteLinks(indexes.clone());
        batch.rest.push((op, Tag::Reap(indexes)));
    }

    /// Puts a prefix into the queue of what may have to be written.
    pub(super) fn queue(&mut self, prefix: IpNet) {
        let mut fresh = false;
        self.table.update(&prefix, |entry| {
            fresh = entry.flags & QUEUED == 0;
            entry.flags |= QUEUED;
        });
        if fresh {
            self.adds.push_back(prefix);
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
            self.table.update(&prefix, |entry| entry.flags &= !SPOILT);
            self.repairs += 1;
            self.events.push_back(Event::Repaired {
                id: object.clone(),
                what: format!("route {prefix}"),
            });
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

    pub(super) fn finish_apply(&mut self, tags: Vec<Tag>, results: Vec<OpResult>) {
        let missing = OpError {
            errno: libc::EIO,
            text: "no result was given".into(),
        };
        let mut results = results.into_iter();
        let mut written: Vec<Arc<str>> = Vec::new();
        let mut unrouted: Vec<(Arc<str>, Option<OpError>)> = Vec::new();
        let mut lost = Vec::new();
        for tag in tags {
            let result = results.next().unwrap_or_else(|| Err(missing.clone()));
            self.write_errors += u64::from(result.is_err());
            match tag {
                Tag::Create(id, link) => self.created(&id, *link, result),
                Tag::Workload(id) => {
                    self.workload_error(&id, result);
                    if written.last() != Some(&id) {
                        written.push(id);
                    }
                }
                Tag::WorkloadRoute(id, prefix, code) => {
                    if result.is_ok() {
                        self.table.set_seen(&prefix, code);
                        self.note_underlay_route(&prefix);
                    }
                    self.workload_error(&id, result);
                    written.push(id);
                }
                Tag::Unroute(id, prefix) => {
                    let result = ignore_gone(result);
                    if result.is_ok() {
                        self.table.set_seen(&prefix, NONE);
                        self.note_underlay_route(&prefix);
                    }
                    match unrouted.last_mut() {
                        Some((last, error)) if *last == id => {
                            *error = error.take().or(result.err());
                        }
                        _ => unrouted.push((id, result.err())),
                    }
                }
                Tag::Unlink(id, index) => self.unlinked(&id, index, result),
                Tag::Route(prefix, code) => self.route_written(prefix, code, result),
                Tag::Delete(prefix) => self.route_deleted(prefix, ignore_gone(result)),
                Tag::DeleteOdd(prefix, metric) => {
                    // An error shows again in the next audit.
                    drop(result);
                    self.table.odd.remove(&(prefix, metric));
                }
                Tag::NextHop(object) => self.object_written(*object, result),
                Tag::DeleteNextHop(id) => match ignore_gone(result) {
                    Ok(()) => lost.push(id),
                    Err(error) => {
                        self.object_failed(id, &error);
                        // Its routes were left to go with it.
                        let left = self.table.iter().filter(|(_, entry)| entry.seen == id);
                        self.deletes.extend(left.map(|(prefix, _)| prefix));
                    }
                },
                Tag::Reap(indexes) => self.reaped(indexes, result),
                Tag::Global => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "cannot switch on forwarding");
                    }
                }
            }
        }
        if !lost.is_empty() {
            self.lose_objects(&lost, false);
        }
        for id in written {
            if matches!(self.workloads.get(&id).map(|s| &s.stage), Some(Stage::Busy)) {
                let removed = self.workloads.get(&id).is_some_and(|s| s.removal.is_some());
                let next = match removed {
                    true => Stage::Unroute,
                    false => Stage::Read { verify: true },
                };
                self.stage(&id, next);
            }
        }
        for (id, error) in unrouted {
            match error {
                None => self.unrouted(&id),
                Some(error) => {
                    let text = format!("cannot delete its routes: {}", error.text);
                    self.fail_workload(&id, kind_of(&error, false), text);
                }
            }
        }
    }

    fn workload_error(&mut self, id: &Arc<str>, result: OpResult) {
        if let (Err(error), Some(state)) = (result, self.workloads.get_mut(id))
            && state.last_error.is_none()
            && error.errno != libc::EEXIST
        {
            state.last_error = Some(error);
        }
    }

    fn created(&mut self, id: &Arc<str>, link: crate::kernel::Link, result: OpResult) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        let removed = state.removal.is_some();
        match result {
            Ok(()) => {
                self.note_link(link);
                let Some(state) = self.workloads.get(id) else {
                    return;
                };
                let want = self.want(state);
                let (host, inside) = want.created();
                let difference = want.difference(&host, &inside);
                self.stage(id, Stage::Write(Box::new(difference)));
            }
            Err(error) if !removed && matches!(error.errno, libc::EEXIST | libc::EBUSY) => {
                state.create_tries += 1;
                self.next_index = 0;
                self.bind(id, 0, 0);
                self.stage(id, Stage::Read { verify: false });
            }
            Err(error) => {
                self.bind(id, 0, 0);
                if !removed {
                    self.fail_workload_by(id, "", &error);
                }
            }
        }
        if removed {
            self.stage(id, Stage::Unroute);
        }
    }

    fn unlinked(&mut self, id: &Arc<str>, index: u32, result: OpResult) {
        match result {
            Ok(()) => {
                self.forget_link(index);
                self.bind(id, 0, 0);
                let removed = self
                    .workloads
                    .get(id)
                    .is_some_and(|s: &State| s.removal.is_some());
                if removed {
                    self.finish_removal(id);
                } else {
                    self.stage(id, Stage::Create);
                }
            }
            Err(error) => {
                let text = format!("cannot delete its link: {}", error.text);
                self.fail_workload(id, kind_of(&error, false), text);
            }
        }
    }

    fn route_written(&mut self, prefix: IpNet, code: Code, result: OpResult) {
        match result {
            Ok(()) => {
                self.table.set_seen(&prefix, code);
                if !self.puzzling.is_empty() {
                    self.puzzling.remove(&prefix);
                }
                if code == BLACKHOLE {
                    self.route_reads.insert(prefix);
                } else {
                    self.settle(prefix);
                }
            }
            // Something stands there that we do not know of. Once it was read, the next plan will.
            Err(error) if error.errno == libc::EEXIST && self.puzzling.insert(prefix) => {
                self.route_reads.insert(prefix);
            }
            Err(error) => {
                self.puzzling.remove(&prefix);
                if code != BLACKHOLE && !self.object_stands(code) {
                    self.next_hops.held.insert(code);
                    return;
                }
                let object = self.route_object(prefix);
                self.fail(object, kind_of(&error, false), error.text.to_string());
            }
        }
    }

    fn route_deleted(&mut self, prefix: IpNet, result: OpResult) {
        match result {
            Ok(()) => {
                self.table.set_seen(&prefix, NONE);
                self.settle_gone(prefix);
                // It may be wanted again by now.
                self.queue(prefix);
            }
            Err(error) => {
                let object = self.route_object(prefix);
                self.fail(object, kind_of(&error, false), error.text.to_string());
            }
        }
    }

    fn object_written(&mut self, object: NextHop, result: OpResult) {
        let id = object.id;
        match result {
            Ok(()) => {
                self.object_failures.remove(&id);
                let own = self.is_wanted_object(id);
                self.seen_next_hops.insert(id, object);
                if self.spoilt_objects.remove(&id) {
                    self.repairs += 1;
                }
                if own {
                    self.release_held(id);
                } else {
                    self.next_hops.retired.insert(id);
                }
            }
            Err(error) => self.object_failed(id, &error),
        }
    }

    fn reaped(&mut self, indexes: Vec<u32>, result: OpResult) {
        if let Err(error) = result {
            tracing::warn!(%error, "cannot delete links");
            self.reap_since = Some(self.now + std::time::Duration::from_secs(1));
            return;
        }
        for index in indexes {
            self.reap.swap_remove(&index);
            self.forget_link(index);
        }
        if !self.reap.is_empty() && self.reap_since.is_none() {
            self.reap_since = Some(self.now);
        }
        self.wake_awaiting();
    }

    /// Workloads whose predecessors' links are gone now.
    pub(super) fn wake_awaiting(&mut self) {
        let waiting: Vec<Arc<str>> = self
            .workloads
            .iter()
            .filter(|(_, state)| matches!(state.stage, Stage::AwaitReap))
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            self.stage(&id, Stage::Create);
        }
    }

    pub(super) fn finish_query(
        &mut self,
        asked: Asked,
        answer: Result<Snapshot, OpError>,
        readings: &mut HashMap<Arc<str>, Reading, Hash>,
    ) {
        match asked {
            Asked::Link(id) => {
                readings.entry(id).or_default().host = Some(answer);
            }
            Asked::Inside(id) => {
                readings.entry(id).or_default().inside = Some(answer);
            }
            Asked::Host => match answer {
                Ok(snapshot) => self.absorb_host(snapshot),
                Err(error) => {
                    tracing::warn!(%error, "cannot read the kernel's state");
                    self.overruns += 1;
                    self.refresh_failed();
                }
            },
            Asked::Routes(prefixes) => match answer {
                Ok(snapshot) => self.absorb_routes(&prefixes, snapshot.routes),
                Err(error) => {
                    tracing::warn!(%error, "cannot read routes");
                    self.unread.extend(prefixes);
                    self.refresh_failed();
                }
            },
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
            if before != NONE && entry.seen != before && self.is_wanted(prefix, before) {
                self.table.update(prefix, |entry| entry.flags |= SPOILT);
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

fn ignore_gone(result: OpResult) -> OpResult {
    match result {
        Err(error) if matches!(error.errno, libc::ESRCH | libc::ENOENT | libc::ENODEV) => Ok(()),
        other => other,
    }
}
