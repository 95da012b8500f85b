//! Rounds: what is written and read next, in which order, and what the results mean.
//!
//! At most one round is under way: either one batch of operations, or some queries. So what a query
//! reads is never older than a write, and nothing is planned on what a batch is about to change.
//! Behind a batch of nothing but routes one more may wait, of other routes only, so that the kernel
//! has something to do while the answers to the first are dealt with and the next is planned.
//!
//! Order inside a batch: links, tunnels among them, their host side, their inside, routes to them;
//! then nexthop objects
//! (gateways before groups), routes that use them; and only when nothing is left to add, what is to be
//! deleted (nexthop objects, which take their routes along, then single routes).

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{
    BatchId, Output, QueryId, Reconciler,
    attach::{Difference, LOOPBACK},
    lifecycle::{Reading, Stage},
    table::{Code, Hash, LINK},
    tunnel::Device,
    tunnel_plan::Part,
    values::{GLOBAL_SYSCTLS, is_link_of, single},
};
use crate::{
    desired::FailureKind,
    kernel::{INDEX_RANGE, NextHop, Op, Place, Query},
};

/// Workloads that one round writes or reads.
const WORKLOADS_PER_ROUND: usize = 32;
/// Route operations in one batch.
pub(super) const ROUTES_PER_BATCH: usize = 2048;
/// Routes that one query looks up.
const ROUTES_PER_QUERY: usize = 1024;

#[derive(Debug, Default)]
pub(super) enum Round {
    #[default]
    None,
    Apply(Sent),
    Query {
        waiting: BTreeMap<u64, Asked>,
        readings: HashMap<Arc<str>, Reading, Hash>,
    },
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) id: BatchId,
    pub(super) tags: Vec<Tag>,
    content: Content,
}

/// What a batch consists of, as far as it decides what may wait behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Routes that are added or replaced.
    Routes,
    /// Single routes that are deleted.
    Deletes,
    Other,
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
    Tunnel(Box<Part>),
    Global,
}

#[derive(Debug)]
pub(super) enum Asked {
    Host,
    Link(Arc<str>),
    Inside(Arc<str>),
    Routes(Vec<IpNet>),
    /// Index of its device.
    Tunnel(u32),
    Globals,
}

#[derive(Default)]
pub(super) struct Batch {
    pub(super) create: Vec<(Op, Tag)>,
    pub(super) host: Vec<(Op, Tag)>,
    pub(super) inside: Vec<(Op, Tag)>,
    pub(super) rest: Vec<(Op, Tag)>,
}

impl Batch {
    fn len(&self) -> usize {
        self.create.len() + self.host.len() + self.inside.len() + self.rest.len()
    }

    fn content(&self) -> Content {
        if self.rest.len() != self.len() {
            return Content::Other;
        }
        let mut tags = self.rest.iter().map(|(_, tag)| tag);
        if tags.clone().all(|tag| matches!(tag, Tag::Route(..))) {
            Content::Routes
        } else if tags.all(|tag| matches!(tag, Tag::Delete(..))) {
            Content::Deletes
        } else {
            Content::Other
        }
    }
}

impl Reconciler {
    /// Starts the next round if none is under way and there is something to do.
    pub(super) fn start_round(&mut self) {
        match &self.round {
            Round::None => {}
            Round::Apply(Sent { content, .. }) => return self.start_ahead(*content),
            Round::Query { .. } => return,
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
            || (!read_first && self.start_reads())
            // What could not be read is to be written.
            || (!self.to_write.is_empty() && self.start_apply());
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
            .chain(Self::tunnel_sysctls())
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
        let mut unread = Vec::new();
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
                let prefixes = state.spec.routed().iter().map(|a| single(*a));
                self.route_reads.extend(prefixes);
            }
            let (link, inside) = self.want(state).queries();
            if link.is_none() && inside.is_none() {
                // Made in vain, as something is in the way: there is nothing to be learned.
                unread.push(id);
                continue;
            }
            if let Some(link) = link {
                self.ask(&mut waiting, Asked::Link(id.clone()), link);
            }
            if let Some(inside) = inside {
                self.ask(&mut waiting, Asked::Inside(id.clone()), inside);
            }
            if let Some(state) = self.workloads.get_mut(&id) {
                state.stage = Stage::Busy;
                state.again = false;
            }
            readings.insert(id, Reading::default());
        }
        for device in Device::ALL {
            let index = self.link_named(device.name()).map(|link| link.index);
            if std::mem::take(&mut self.tunnels.device(device).read)
                && let Some(index) = index
            {
                let query = Query::Link {
                    place: Place::Host,
                    index,
                    neighbours: Vec::new(),
                    sysctls: device.sysctls().into_iter().map(|(path, _)| path).collect(),
                };
                self.ask(&mut waiting, Asked::Tunnel(index), query);
            }
        }
        if std::mem::take(&mut self.read_globals) {
            let query = Query::Link {
                place: Place::Host,
                index: LOOPBACK,
                neighbours: Vec::new(),
                sysctls: GLOBAL_SYSCTLS.map(|(path, _)| path.to_owned()).into(),
            };
            self.ask(&mut waiting, Asked::Globals, query);
        }
        if !self.route_reads.is_empty() {
            let count = self.route_reads.len().min(ROUTES_PER_QUERY);
            let prefixes: Vec<IpNet> = self.route_reads.drain(..count).collect();
            let query = Query::Routes(prefixes.clone());
            self.ask(&mut waiting, Asked::Routes(prefixes), query);
        }
        for id in unread {
            self.evaluate(&id, Reading::default());
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
        if self.reap.is_overdue(self.now, &self.config) {
            self.plan_reap(&mut batch);
        }
        if batch.len() != 0 {
            return self.send(batch);
        }
        self.reap.note_turn();
        for op in std::mem::take(&mut self.global_writes) {
            batch.host.push((op, Tag::Global));
        }
        self.plan_tunnels(&mut batch);
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
        if batch.len() == 0 && !self.next_hops.dirty.is_empty() {
            // What had to wait for routes, of which none was to be written after all.
            self.plan_objects(&mut batch);
        }
        if batch.len() == 0 {
            self.plan_reap(&mut batch);
        }
        batch.len() != 0 && self.send(batch)
    }

    /// Plans what waits behind a batch. Whatever needs to know how that one ends has to wait until
    /// it has ended: changes of nexthop objects, which are deleted only when all routes have left them,
    /// and all that is to be read.
    fn start_ahead(&mut self, under_way: Content) {
        let waits = under_way == Content::Other
            || self.ahead.is_some()
            || self.refresh
            || self.read_globals
            || !self.to_read.is_empty()
            || !self.to_write.is_empty()
            || !self.global_writes.is_empty()
            || !self.route_reads.is_empty()
            || !self.next_hops.dirty.is_empty();
        if waits {
            return;
        }
        let mut batch = Batch::default();
        if under_way == Content::Routes {
            self.plan_adds(&[], &mut batch);
        } else if self.adds.is_empty() && !self.objects_may_go() {
            self.plan_single_deletes(&[], &mut batch);
        }
        if batch.len() != 0 {
            self.ahead = Some(self.hand_over(batch));
        }
    }

    fn send(&mut self, batch: Batch) -> bool {
        self.round = Round::Apply(self.hand_over(batch));
        self.read_next = true;
        true
    }

    fn hand_over(&mut self, batch: Batch) -> Sent {
        let content = batch.content();
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
        self.outbox.push_back(Output::Apply { id, ops });
        Sent { id, tags, content }
    }

    fn plan_workload(&mut self, id: &Arc<str>, batch: &mut Batch) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        match std::mem::replace(&mut state.stage, Stage::Busy) {
            Stage::Create => self.plan_create(id, batch),
            Stage::Write(difference) => {
                if !self.plan_difference(id, *difference, batch) {
                    self.stage(id, Stage::Read { verify: true });
                }
            }
            Stage::Unroute => {
                self.reap.note_active(self.now);
                self.plan_unroute(id, batch);
            }
            Stage::Unlink => {
                let index = state.index;
                let op = Op::DeleteLinks(vec![index]);
                batch.rest.push((op, Tag::Unlink(id.clone(), index)));
            }
            other => state.stage = other,
        }
    }

    /// Returns whether the workload takes part in the batch.
    fn plan_difference(
        &mut self,
        id: &Arc<str>,
        difference: Difference,
        batch: &mut Batch,
    ) -> bool {
        let host = difference.host.into_iter();
        let inside = difference.inside.into_iter();
        let tag = || Tag::Workload(id.clone());
        batch.host.extend(host.map(|op| (op, tag())));
        batch.inside.extend(inside.map(|op| (op, tag())));
        self.plan_workload_routes(id, batch)
    }

    fn plan_create(&mut self, id: &Arc<str>, batch: &mut Batch) {
        if !self.bridge_stands_for(id) {
            return;
        }
        let Some(spec) = self.workloads.get(id).map(|state| state.spec.clone()) else {
            return;
        };
        let standing = spec
            .host_name()
            .and_then(|name| self.link_named(&name))
            .cloned();
        if let Some(link) = standing {
            if !spec.is_link(&link) && is_link_of(&link, id) {
                // Left by an earlier run, and of another kind.
                self.unroute_link(link.index);
                self.reap_soon(link.index);
                self.stage(id, Stage::AwaitReap);
            } else if !spec.is_link(&link) {
                let text = format!("an interface named {} exists, without our mark", link.name);
                self.fail_workload(id, FailureKind::Conflict, text);
            } else if self.reap.contains(link.index) {
                self.reap_soon(link.index);
                self.stage(id, Stage::AwaitReap);
            } else {
                self.bind(id, link.index, link.peer_index.unwrap_or(0));
                if let Some(state) = self.workloads.get_mut(id) {
                    state.inherited = true;
                }
                self.stage(id, Stage::Read { verify: false });
            }
            return;
        }
        let (index, peer) = self.choose_indexes();
        self.reap.note_active(self.now);
        self.bind(id, index, peer);
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let want = self.want(state);
        let (host, inside) = want.created();
        let (Some(link), Some(create)) = (host.links.first().cloned(), want.create()) else {
            return;
        };
        // Made and set up in one batch: where the link cannot be made, the rest is not tried.
        let difference = want.difference(&host, &inside);
        let tag = Tag::Create(id.clone(), Box::new(link));
        batch.create.push((create, tag));
        self.plan_difference(id, difference, batch);
    }

    pub(super) fn choose_indexes(&mut self) -> (u32, u32) {
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
        for address in state.spec.routed() {
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
        for address in state.spec.routed() {
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
}
