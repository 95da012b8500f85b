//! Makes the kernel be as wanted, and keeps it so. No IO, no clock: the caller carries out what
//! [`Reconciler::poll_output`] yields and reports back.
//!
//! * `table`: the main routing table as seen. `observe`: dumps and notifications.
//! * `values`, `attach`: what a workload or a bridge should look like; `lifecycle`: its way there and
//!   away; `bridges`: what workloads on a bridge wait for.
//! * `nexthops`, `resolve`, `loss`: kernel nexthop objects, where they lead, and what goes with them.
//! * `tunnel`: tunnels to other nodes; `tunnel_observe`, `tunnel_plan`, `tunnel_view`: the parts of
//!   notifications, plan and results, and views about them.
//! * `written`: kernel parameters that somebody wrote.
//! * `plan`: what is written and read next; `routes`: the part about routes and nexthop objects;
//!   `results`: what the answers mean; `retry`: what waits for time to pass; `reap`: links to be
//!   deleted together.

mod addresses;
mod attach;
mod bridges;
mod lifecycle;
mod loss;
mod nexthops;
mod observe;
mod parted;
mod plan;
mod queue;
mod reap;
mod resolve;
mod results;
mod retry;
mod routes;
mod table;
#[cfg(test)]
mod tests;
mod tunnel;
mod tunnel_observe;
mod tunnel_plan;
mod tunnel_view;
mod values;
pub mod view;
mod written;

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};
use indexmap::IndexSet;
use ipnet::IpNet;

pub use self::tunnel::endpoint_mac;
pub use self::values::{host_interface, workload_mac};
use self::{
    addresses::Addresses,
    attach::{Spec, bridge_key},
    lifecycle::State,
    nexthops::NextHops,
    plan::{Round, Sent},
    queue::Queue,
    reap::Reaper,
    retry::jitter,
    table::{DISCARD, Hash, NONE, Table},
    tunnel::Tunnels,
    values::What,
};

pub use self::view::{Hop, KernelRoute, Lookup, NextHopView, ObjectStatus, Status, TunnelView};
use crate::{
    desired::{Event, Failure, Kind, Object, ObjectId, Source, Via},
    kernel::{
        Change, Link, NextHop, Op, OpError, OpResult, PROTOCOL_AGENTD_BGP, Place, Query, Resilient,
        Snapshot,
    },
};

/// Identifies an [`Output::Apply`] until its results are handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Identifies an [`Output::Query`] until its answer is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

#[derive(Clone, Debug)]
pub struct Config {
    /// The node's own addresses in the underlay: workloads without an MTU of their own get the MTU
    /// of the interface that has one of these; without any, that of the default route's interface.
    pub underlay: Vec<IpAddr>,
    /// Taken from the MTU of the underlay (room for a tunnel's header).
    pub mtu_overhead: u32,
    /// Groups of equal-cost next hops keep flows on their member when others come and go. Groups of
    /// another kind that an earlier run left are replaced.
    pub resilient: Option<Resilient>,
    /// How long a tunnel device stays that no pool uses any more.
    pub tunnel_linger: Duration,
    /// While the underlay's MTU is unknown.
    pub fallback_mtu: u32,
    /// Full comparison with a dump of the host's namespace; jittered by up to a quarter.
    pub audit_interval: Duration,
    /// Links of removed workloads are collected for this long before they are deleted together.
    pub reap_delay: Duration,
    /// ... or until there are so many. A part of that while workloads come and go.
    pub reap_group: usize,
    /// Seed of all jitter and of the choice of interface indexes.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            underlay: Vec::new(),
            mtu_overhead: 0,
            resilient: None,
            tunnel_linger: Duration::from_secs(600),
            fallback_mtu: 1500,
            audit_interval: Duration::from_secs(300),
            reap_delay: Duration::from_millis(50),
            reap_group: 256,
            seed: 0,
        }
    }
}

/// What the caller has to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Carry these out in order and hand the results to [`Reconciler::handle_results`]. At most one
    /// is outstanding, and never together with a query.
    Apply { id: BatchId, ops: Vec<Op> },
    /// Read this and hand the answer to [`Reconciler::handle_snapshot`]. Several can be outstanding;
    /// their order does not matter.
    Query { id: QueryId, query: Query },
    /// Tell the daemon.
    Event(Event),
}

/// The reconciler.
///
/// After every `handle_*`, `set`, `remove` and so on, call [`poll_output`](Self::poll_output) until
/// it yields nothing, then sleep until [`poll_timeout`](Self::poll_timeout) or an input. Subscribe
/// to the kernel's notifications before the first output is carried out.
#[derive(Debug)]
pub struct Reconciler {
    config: Config,
    rng: fastrand::Rng,
    /// As of the last input.
    now: Instant,

    // What the kernel has.
    started: bool,
    links: HashMap<u32, Link, Hash>,
    names: HashMap<String, u32, Hash>,
    /// Those that are no workload's. Of workloads there are thousands.
    others: BTreeSet<u32>,
    addresses: Addresses,
    table: Table,
    seen_next_hops: HashMap<u32, NextHop, Hash>,
    mtu: u32,
    last_mtu_told: Option<u32>,
    /// The node's own addresses, as last told; may have changed.
    addresses_told: Option<Vec<IpAddr>>,
    addresses_dirty: bool,
    /// One of them is an IPv6 address.
    has_ipv6: bool,

    // What is wanted. Learned routes are in the table.
    workloads: HashMap<Arc<str>, State, Hash>,
    /// Which workload has an address.
    host_routes: HashMap<IpNet, Arc<str>, Hash>,
    by_host_name: HashMap<String, Arc<str>, Hash>,
    by_index: HashMap<u32, Arc<str>, Hash>,
    by_netns: HashMap<(u64, u64), Vec<Arc<str>>, Hash>,
    /// Those that may wait until the link of a predecessor is deleted.
    awaiting: BTreeSet<Arc<str>>,
    /// And whether they were reported as programmed.
    blackholes: HashMap<IpNet, bool, Hash>,
    /// Blackholes of which the removal is still to be reported.
    removing: HashSet<IpNet, Hash>,
    next_hops: NextHops,
    tunnels: Tunnels,
    learned: usize,
    synced: [bool; 4],
    /// What was asked for before the first dump.
    early: Vec<Early>,

    // What is to be done.
    refresh: bool,
    /// The next dump of the host is to be followed by reading all namespaces.
    read_inside: bool,
    to_read: VecDeque<Arc<str>>,
    to_write: VecDeque<Arc<str>>,
    adds: Queue,
    deletes: Queue,
    route_reads: IndexSet<IpNet, Hash>,
    /// Routes that could not be read: looked at again after the next dump.
    unread: Vec<IpNet>,
    /// Routes of which the kernel says that they exist, and then does not show any.
    puzzling: HashSet<IpNet, Hash>,
    /// And how.
    spoilt_objects: HashMap<u32, &'static str, Hash>,
    /// Sysctls that are everybody's are to be read.
    read_globals: bool,
    /// Workloads that are still to be read by an audit.
    audit_queue: Vec<Arc<str>>,
    global_writes: Vec<Op>,
    reap: Reaper,
    resolve_dirty: bool,
    mtu_dirty: bool,
    sweeps: Vec<(Source, usize)>,
    round: Round,
    /// Carried out after the batch that is the round.
    ahead: Option<Sent>,
    read_next: bool,

    // What waits for time to pass.
    failures: HashMap<ObjectId, Trouble, Hash>,
    retries: BTreeSet<(Instant, ObjectId)>,
    object_failures: HashMap<u32, u32, Hash>,
    object_retries: BTreeSet<(Instant, u32)>,
    refresh_at: Option<Instant>,
    refresh_failures: u32,
    audit_at: Instant,

    events: VecDeque<Event>,
    outbox: VecDeque<Output>,
    last_id: u64,
    next_index: u32,

    writes: u64,
    write_errors: u64,
    repairs: u64,
    /// Things that were repaired, by [`Kind::ALL`].
    mended: [u64; Kind::ALL.len()],
    swept: u64,
    overruns: u64,
    last_audit: Option<Instant>,
    /// Things of all workloads that were looked at one by one.
    #[cfg(test)]
    walked: std::cell::Cell<usize>,
}

/// Why an object is not in the kernel, and when it is tried again.
#[derive(Debug)]
struct Trouble {
    failure: Failure,
    attempts: u32,
    due: Instant,
}

#[derive(Debug)]
enum Early {
    Set(Object),
    Remove(ObjectId),
    Synced(Source),
}

fn source_index(source: Source) -> usize {
    match source {
        Source::Block => 0,
        Source::Workload => 1,
        Source::Bgp => 2,
        Source::Tunnel => 3,
    }
}

impl Reconciler {
    pub fn new(config: Config, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let audit_at = now + jitter(&mut rng, config.audit_interval);
        let mtu = config.fallback_mtu;
        Self {
            config,
            rng,
            now,
            started: false,
            links: HashMap::default(),
            names: HashMap::default(),
            others: BTreeSet::new(),
            addresses: Addresses::default(),
            table: Table::new(),
            seen_next_hops: HashMap::default(),
            mtu,
            last_mtu_told: None,
            addresses_told: None,
            addresses_dirty: false,
            has_ipv6: false,
            workloads: HashMap::default(),
            host_routes: HashMap::default(),
            by_host_name: HashMap::default(),
            by_index: HashMap::default(),
            by_netns: HashMap::default(),
            awaiting: BTreeSet::new(),
            blackholes: HashMap::default(),
            removing: HashSet::default(),
            next_hops: NextHops::default(),
            tunnels: Tunnels::default(),
            learned: 0,
            synced: [false; 4],
            early: Vec::new(),
            refresh: true,
            read_inside: false,
            to_read: VecDeque::new(),
            to_write: VecDeque::new(),
            adds: Queue::default(),
            deletes: Queue::default(),
            route_reads: IndexSet::default(),
            unread: Vec::new(),
            puzzling: HashSet::default(),
            spoilt_objects: HashMap::default(),
            read_globals: false,
            audit_queue: Vec::new(),
            global_writes: Vec::new(),
            reap: Reaper::default(),
            resolve_dirty: false,
            mtu_dirty: false,
            sweeps: Vec::new(),
            round: Round::None,
            ahead: None,
            read_next: false,
            failures: HashMap::default(),
            retries: BTreeSet::new(),
            object_failures: HashMap::default(),
            object_retries: BTreeSet::new(),
            refresh_at: None,
            refresh_failures: 0,
            audit_at,
            events: VecDeque::new(),
            outbox: VecDeque::new(),
            last_id: 0,
            next_index: 0,
            writes: 0,
            write_errors: 0,
            repairs: 0,
            mended: [0; Kind::ALL.len()],
            swept: 0,
            overruns: 0,
            last_audit: None,
            #[cfg(test)]
            walked: std::cell::Cell::default(),
        }
    }

    /// Wants an object; replaces what was wanted under its id. An object that stands already is
    /// reported as programmed again (but for learned routes).
    pub fn set(&mut self, now: Instant, object: Object) {
        self.now = now;
        if !self.started {
            self.early.push(Early::Set(object));
            return;
        }
        match object {
            Object::Workload(workload) => self.set_workload(Spec::Workload(workload)),
            Object::Bridge(bridge) => self.set_workload(Spec::Bridge(bridge)),
            Object::Blackhole(prefix) => {
                let prefix = prefix.trunc();
                self.removing.remove(&prefix);
                self.blackholes.insert(prefix, false);
                self.queue(prefix);
            }
            Object::Route(route) => self.set_route(route.prefix.trunc(), &route.next_hops),
            Object::Tunnels(tunnels) => self.set_tunnels(*tunnels),
        }
    }

    fn set_route(&mut self, prefix: IpNet, next_hops: &[Via]) {
        self.resolve_all();
        let entry = self.table.get(&prefix);
        let id = match next_hops {
            [] => DISCARD,
            next_hops => self.use_set(self.class_of(&prefix), next_hops, entry.seen),
        };
        match entry.learned {
            NONE => self.learned += 1,
            before => self.release_set(before),
        }
        self.table.update(&prefix, |entry| entry.learned = id);
        if entry.seen != id {
            self.queue(prefix);
        }
    }

    fn remove_route(&mut self, prefix: IpNet) {
        let entry = self.table.get(&prefix);
        if entry.learned != NONE {
            self.learned -= 1;
            self.release_set(entry.learned);
            self.table.update(&prefix, |entry| entry.learned = NONE);
        }
        if !self.failures.is_empty() {
            self.failures.remove(&ObjectId::Route(prefix));
        }
        if entry.seen != NONE {
            self.deletes.push(prefix);
        }
    }

    /// Does not want an object any more. Answered by [`Event::Removed`] (not for learned routes),
    /// also when there was no such object.
    pub fn remove(&mut self, now: Instant, id: ObjectId) {
        self.now = now;
        if !self.started {
            self.early.push(Early::Remove(id));
            return;
        }
        match id {
            ObjectId::Workload(id) => self.remove_workload(&id),
            ObjectId::Bridge(name) => self.remove_workload(&bridge_key(&name)),
            ObjectId::Route(prefix) => self.remove_route(prefix.trunc()),
            ObjectId::Tunnels => {
                self.set_tunnels(crate::desired::Tunnels::default());
                self.events.push_back(Event::Removed { id });
            }
            ObjectId::Blackhole(prefix) => {
                let prefix = prefix.trunc();
                self.failures.remove(&ObjectId::Blackhole(prefix));
                self.blackholes.remove(&prefix);
                self.removing.insert(prefix);
                // Also when it is not seen: one may be under way.
                self.deletes.push(prefix);
            }
        }
    }

    /// All objects of that source are set: what the kernel has with its marks besides is stale.
    pub fn source_synced(&mut self, now: Instant, source: Source) {
        self.now = now;
        if !self.started {
            self.early.push(Early::Synced(source));
            return;
        }
        if std::mem::replace(&mut self.synced[source_index(source)], true) {
            return;
        }
        let stale: Vec<IpNet> = self
            .table
            .iter()
            .filter(|(prefix, entry)| {
                entry.seen != NONE
                    && self.source_of(prefix, entry.seen) == source
                    && entry.learned == NONE
                    && !self.blackholes.contains_key(prefix)
                    && !self.host_routes.contains_key(prefix)
            })
            .map(|(prefix, _)| prefix)
            .collect();
        let mut count = stale.len();
        self.deletes.extend(stale);
        match source {
            Source::Block | Source::Tunnel => {}
            Source::Workload => {
                let links: Vec<u32> = self
                    .links
                    .values()
                    .filter(|link| {
                        values::is_own_link(link)
                            && !self.by_host_name.contains_key(&link.name)
                            && !self.reap.contains(link.index)
                    })
                    .map(|link| link.index)
                    .collect();
                count += links.len();
                for index in links {
                    self.reap_later(index);
                }
            }
            Source::Bgp => {
                let objects: Vec<u32> = self
                    .seen_next_hops
                    .values()
                    .filter(|object| {
                        object.protocol == PROTOCOL_AGENTD_BGP && !self.is_wanted_object(object.id)
                    })
                    .map(|object| object.id)
                    .collect();
                count += objects.len();
                self.next_hops.retired.extend(objects);
            }
        }
        self.sweeps.push((source, count));
    }

    /// Counts and tells what somebody changed and was put back.
    fn tell_repair(&mut self, id: Option<ObjectId>, list: &[What]) {
        self.repairs += 1;
        for mended in list {
            let position = Kind::ALL.iter().position(|kind| *kind == mended.kind);
            if let Some(count) = position.and_then(|at| self.mended.get_mut(at)) {
                *count += 1;
            }
        }
        let what = values::in_words(list);
        self.events.push_back(match id {
            Some(id) => Event::Repaired { id, what },
            None => Event::SharedRepaired { what },
        });
    }

    fn is_synced(&self, source: Source) -> bool {
        self.synced[source_index(source)]
    }

    fn report_sweeps(&mut self) {
        if !self.reap.is_empty() && self.sweeps.iter().any(|(of, _)| *of == Source::Workload) {
            return;
        }
        for (source, deleted) in std::mem::take(&mut self.sweeps) {
            self.swept += deleted as u64;
            self.events.push_back(Event::Swept { source, deleted });
        }
    }

    fn replay_early(&mut self) {
        let now = self.now;
        for early in std::mem::take(&mut self.early) {
            match early {
                Early::Set(object) => self.set(now, object),
                Early::Remove(id) => self.remove(now, id),
                Early::Synced(source) => self.source_synced(now, source),
            }
        }
    }

    /// Asks for [`Event::NextHop`] about an address: once soon, then at every change.
    pub fn watch_next_hop(&mut self, now: Instant, via: impl Into<Via>) {
        self.now = now;
        self.watch(via.into());
    }

    pub fn unwatch_next_hop(&mut self, now: Instant, via: impl Into<Via>) {
        self.now = now;
        self.unwatch(via.into());
    }

    /// The answer to an [`Output::Query`]. An interrupted dump (NLM_F_DUMP_INTR) is the error EINTR.
    pub fn handle_snapshot(
        &mut self,
        now: Instant,
        id: QueryId,
        answer: Result<Snapshot, OpError>,
    ) {
        self.now = now;
        let Round::Query { waiting, .. } = &mut self.round else {
            return;
        };
        let Some(asked) = waiting.remove(&id.0) else {
            return;
        };
        let done = waiting.is_empty();
        let Round::Query {
            waiting,
            mut readings,
        } = std::mem::take(&mut self.round)
        else {
            return;
        };
        self.finish_query(asked, answer, &mut readings);
        if done {
            for (id, reading) in readings {
                self.evaluate(&id, reading);
            }
        } else {
            self.round = Round::Query { waiting, readings };
        }
    }

    /// The answer to an [`Output::Apply`], one result for each operation.
    pub fn handle_results(&mut self, now: Instant, id: BatchId, results: Vec<OpResult>) {
        self.now = now;
        match std::mem::take(&mut self.round) {
            Round::Apply(sent) if sent.id == id => {
                if let Some(next) = self.ahead.take() {
                    self.round = Round::Apply(next);
                    self.read_next = true;
                }
                self.finish_apply(sent.tags, results);
            }
            other => self.round = other,
        }
    }

    /// A notification from the kernel. Those about own writes do no harm, but cost time.
    pub fn handle_change(&mut self, now: Instant, place: Place, change: Change) {
        self.now = now;
        if !self.started {
            // The first dump comes later and has it.
            return;
        }
        match place {
            Place::Host => self.host_changed(change),
            Place::Netns(_) => self.inside_changed(&place, &change),
        }
    }

    /// Notifications were lost (ENOBUFS): everything is read again.
    pub fn handle_overrun(&mut self, now: Instant) {
        self.now = now;
        self.overruns += 1;
        self.refresh = true;
        self.read_inside = true;
    }

    fn update_mtu(&mut self) {
        if !std::mem::take(&mut self.mtu_dirty) {
            return;
        }
        let mtu = self.underlay_mtu().map_or(self.config.fallback_mtu, |mtu| {
            mtu.saturating_sub(self.config.mtu_overhead).max(1280)
        });
        let first = self.last_mtu_told.is_none();
        if self.mtu == mtu && !first {
            return;
        }
        self.mtu = mtu;
        self.last_mtu_told = Some(mtu);
        self.events.push_back(Event::Mtu(mtu));
        self.look_at_tunnels(false);
        self.follow_mtu();
    }

    /// Has workloads looked at that follow the underlay and do not have its MTU.
    fn follow_mtu(&mut self) {
        #[cfg(test)]
        self.walked.set(self.walked.get() + self.workloads.len());
        let following: Vec<Arc<str>> = self
            .workloads
            .iter()
            .filter(|(_, state)| {
                let mtu = self.mtu_of(&state.spec);
                state.detail().is_none_or(|detail| detail.mtu != mtu)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in following {
            self.read_again(&id, false);
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        if self.started {
            self.resolve_all();
            self.update_mtu();
            self.tell_addresses();
        }
        if self.outbox.is_empty() {
            self.start_round();
        }
        if let Some(event) = self.events.pop_front() {
            return Some(Output::Event(event));
        }
        self.outbox.pop_front()
    }
}
