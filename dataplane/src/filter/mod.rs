//! Keeps the table `inet agentd` as wanted. Does no IO, like the reconciler beside it.
//!
//! ```text
//!              settings, Synced
//!   (quiet) ───────────────────► read ─► right: idle ◄─── committed
//!                                 ▲ │                        ▲
//!         changed by others, lost │ │ differs                │
//!         events, refused commit  │ └──────► one transaction ┘
//!                                 idle ─ wishes changed ─► one transaction
//! ```
//!
//! * All of a change is one transaction of the kernel: packets meet the table before it or the one
//!   after it, never a part, and never none.
//! * What stands is known from reading, and from what was committed since. An add or delete of a
//!   workload writes its own elements, without reading anything.
//! * Structure (sets, chains, rules) is compared by the driver, which knows how the kernel writes it
//!   back; elements are compared here.
//! * Nothing is written before everything that earlier runs wanted is known: a restart with
//!   unchanged state reads and writes nothing.

pub mod elements;
mod plan;
pub mod table;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use ipnet::IpNet;

pub use self::types::{Counts, Event, JobId, Op, Output, Sets, Snapshot};
use self::{elements::Key, plan::Plan, table::SetName};
use crate::{
    desired::{Access, Failure, FailureKind, FilterSettings},
    kernel::{INTERFACE_PREFIX, OpError},
};

#[derive(Debug)]
struct Workload {
    addresses: Vec<IpAddr>,
    elements: Vec<(SetName, Key)>,
    standing: bool,
    /// Told as failed since it stood last.
    failed: bool,
}

/// A workload on its way out.
#[derive(Debug)]
struct Leaving {
    addresses: Vec<IpAddr>,
    /// Somebody waits for [`Event::Gone`].
    awaited: bool,
    elements_gone: bool,
    routes_gone: bool,
}

#[derive(Debug)]
enum Job {
    Idle,
    Reading(JobId),
    Committing(JobId, Commit),
}

#[derive(Debug)]
struct Commit {
    /// What the table holds afterwards is this on top of what it held, or of nothing.
    anew: bool,
    delta: Vec<(SetName, Key, Option<Vec<u8>>)>,
    standing: Vec<Arc<str>>,
    gone: Vec<Arc<str>>,
}

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// It is read again so long after it was read last.
const AUDIT: Duration = Duration::from_secs(300);
/// Elements in one step.
const CHUNK: usize = 256;

/// See the module. After every input call [`Filter::poll_output`] until it yields nothing.
#[derive(Debug)]
pub struct Filter {
    settings: Option<FilterSettings>,
    synced: bool,
    bridges: BTreeMap<Arc<str>, Vec<IpNet>>,
    workloads: HashMap<Arc<str>, Workload>,
    leaving: HashMap<Arc<str>, Leaving>,
    /// Who wants an element of a workload.
    owners: HashMap<(SetName, Key), Arc<str>>,
    wanted: Box<Sets>,

    /// `None`: not known, or not right in structure.
    seen: Option<Box<Sets>>,
    /// Elements that may differ.
    changed: BTreeSet<(SetName, Key)>,
    anew: Option<bool>,
    wrong_rules: Vec<&'static str>,
    must_read: bool,
    /// What others did, until it is repaired.
    foreign: Vec<String>,
    by: Option<String>,
    job: Job,
    standing: Vec<Arc<str>>,
    gone: Vec<Arc<str>>,
    /// On its way, and who waits for it.
    flushing: Option<(JobId, Vec<Arc<str>>)>,

    told: bool,
    attempts: u32,
    retry_at: Option<Instant>,
    audit_at: Option<Instant>,
    last_id: u64,
    counts: Counts,
    outbox: VecDeque<Output>,
}

impl Default for Filter {
    fn default() -> Self {
        Self::new()
    }
}

impl Filter {
    pub fn new() -> Self {
        Self {
            settings: None,
            synced: false,
            bridges: BTreeMap::new(),
            workloads: HashMap::new(),
            leaving: HashMap::new(),
            owners: HashMap::new(),
            wanted: Box::default(),
            seen: None,
            changed: BTreeSet::new(),
            anew: None,
            wrong_rules: Vec::new(),
            must_read: true,
            foreign: Vec::new(),
            by: None,
            job: Job::Idle,
            standing: Vec::new(),
            gone: Vec::new(),
            flushing: None,
            told: false,
            attempts: 0,
            retry_at: None,
            audit_at: None,
            last_id: 0,
            counts: Counts::default(),
            outbox: VecDeque::new(),
        }
    }

    /// Without settings there is no table, and ports are not published.
    pub fn set_settings(&mut self, settings: FilterSettings) {
        self.settings = Some(settings);
        self.refresh_ranges();
    }

    /// All workloads and bridges that earlier runs left behind are set.
    pub fn synced(&mut self) {
        self.synced = true;
    }

    pub fn set_bridge(&mut self, name: Arc<str>, subnets: Vec<IpNet>) {
        self.want(SetName::Interfaces, elements::interface(&name), Vec::new());
        self.bridges.insert(name, subnets);
        self.refresh_ranges();
    }

    pub fn remove_bridge(&mut self, name: &str) {
        if self.bridges.remove(name).is_some() {
            self.unwant(SetName::Interfaces, elements::interface(name));
            self.refresh_ranges();
        }
    }

    /// `host_interface` is where its packets come in; `known`: it is no name of the workload's own.
    /// Answered by [`Event::Standing`] when [`Self::is_pending`] says so afterwards.
    pub fn set_workload(
        &mut self,
        id: &Arc<str>,
        host_interface: &str,
        known: bool,
        addresses: &[IpAddr],
        access: &Access,
    ) {
        let mut new = elements::of_workload(host_interface, addresses, access);
        if !known && !host_interface.starts_with(INTERFACE_PREFIX) && !host_interface.is_empty() {
            let key = elements::interface(host_interface);
            new.push((SetName::Interfaces, key, Vec::new()));
        }
        self.leaving.remove(id);
        let old = self.workloads.remove(id);
        let old_elements = old.as_ref().map_or(&[][..], |old| &old.elements);
        for (set, key) in old_elements {
            if !new.iter().any(|(s, k, _)| s == set && k == key) {
                self.disown(id, *set, key);
            }
        }
        let mut changes = false;
        let mut names = Vec::with_capacity(new.len());
        for (set, key, data) in new {
            names.push((set, key.clone()));
            let slot = (set, key);
            changes |= self.owners.get(&slot) != Some(id)
                || self.wanted[set.index()].get(&slot.1) != Some(&data);
            self.owners.insert(slot.clone(), id.clone());
            self.want(set, slot.1, data);
        }
        let stood = old.is_some_and(|old| old.standing);
        let workload = Workload {
            addresses: addresses.to_vec(),
            standing: names.is_empty() || (stood && !changes),
            elements: names,
            failed: false,
        };
        if !workload.standing && !self.standing.contains(id) {
            self.standing.push(id.clone());
        }
        self.workloads.insert(id.clone(), workload);
    }

    /// Its elements go at once. [`Self::routes_removed`] is to follow.
    pub fn remove_workload(&mut self, id: &Arc<str>) {
        let Some(workload) = self.workloads.remove(id) else {
            return;
        };
        self.standing.retain(|waiting| waiting != id);
        for (set, key) in &workload.elements {
            self.disown(id, *set, key);
        }
        let plain = workload.elements.is_empty() || !self.is_active();
        if !plain {
            self.gone.push(id.clone());
        }
        self.leaving.insert(
            id.clone(),
            Leaving {
                addresses: workload.addresses,
                awaited: !plain,
                elements_gone: plain,
                routes_gone: false,
            },
        );
    }

    /// No packet reaches it any more: its connections can be forgotten for good. Whether
    /// [`Event::Gone`] is to be waited for.
    pub fn routes_removed(&mut self, id: &Arc<str>) -> bool {
        let Some(leaving) = self.leaving.get_mut(id) else {
            return false;
        };
        leaving.routes_gone = true;
        leaving.awaited
    }

    /// Whether elements of that workload do not stand yet.
    pub fn is_pending(&self, id: &str) -> bool {
        self.is_active()
            && self
                .workloads
                .get(id)
                .is_some_and(|workload| !workload.standing)
    }

    fn is_active(&self) -> bool {
        self.settings.is_some()
    }

    pub fn counts(&self) -> Counts {
        let ports = [
            SetName::Ports4,
            SetName::Ports6,
            SetName::AnyPorts4,
            SetName::AnyPorts6,
        ];
        Counts {
            elements: self.wanted.iter().map(BTreeMap::len).sum(),
            ports: ports.iter().map(|set| self.wanted[set.index()].len()).sum(),
            ..self.counts
        }
    }

    /// Whether the kernel has, as far as known, all that is wanted.
    pub fn is_right(&self) -> bool {
        self.told && !self.must_read && self.changed.is_empty() && self.attempts == 0
    }

    /// Somebody else changed the table, or events were lost. `by` names who, if it is known.
    pub fn handle_change(&mut self, by: Option<String>) {
        self.must_read = true;
        self.by = by.or(self.by.take());
    }

    pub fn handle_snapshot(
        &mut self,
        now: Instant,
        id: JobId,
        result: Result<Box<Snapshot>, OpError>,
    ) {
        if !matches!(self.job, Job::Reading(reading) if reading == id) {
            return;
        }
        self.job = Job::Idle;
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.must_read = true;
                self.trouble(now, &error);
                return;
            }
        };
        self.audit_at = Some(now + AUDIT);
        self.anew = None;
        self.wrong_rules.clear();
        if self.told && self.seen.is_some() {
            let changes = self.describe(&snapshot);
            self.foreign.extend(changes);
        }
        if !snapshot.table || !snapshot.wrong.is_empty() {
            self.anew = Some(snapshot.table);
            self.seen = None;
            return;
        }
        self.wrong_rules = snapshot.wrong_rules;
        for set in SetName::ALL {
            let (wanted, there) = (&self.wanted[set.index()], &snapshot.sets[set.index()]);
            if wanted == there {
                continue;
            }
            for (key, data) in wanted {
                if there.get(key) != Some(data) {
                    self.changed.insert((set, key.clone()));
                }
            }
            for key in there.keys() {
                if !wanted.contains_key(key) {
                    self.changed.insert((set, key.clone()));
                }
            }
        }
        self.seen = Some(Box::new(snapshot.sets));
    }

    pub fn handle_committed(&mut self, now: Instant, id: JobId, result: Result<(), OpError>) {
        match &self.job {
            Job::Committing(committing, _) if *committing == id => {}
            _ => return,
        }
        let Job::Committing(_, commit) = std::mem::replace(&mut self.job, Job::Idle) else {
            return;
        };
        self.counts.transactions += 1;
        match result {
            Ok(()) => {
                let sets = match (&mut self.seen, commit.anew) {
                    (Some(seen), false) => seen,
                    (seen, _) => seen.insert(Box::default()),
                };
                for (set, key, data) in commit.delta {
                    match data {
                        Some(data) => {
                            sets[set.index()].insert(key, data);
                        }
                        None => {
                            sets[set.index()].remove(&key);
                        }
                    }
                }
                self.attempts = 0;
                self.retry_at = None;
                self.tell(commit.standing, commit.gone);
            }
            Err(error) => {
                // What was written is unknown to nobody: nothing was. But the table is not what
                // it was thought to be.
                self.counts.failures += 1;
                self.must_read = true;
                self.standing.extend(commit.standing);
                self.gone.extend(commit.gone);
                self.trouble(now, &error);
            }
        }
    }

    /// Also when it failed: then entries time out by themselves.
    pub fn handle_flushed(&mut self, id: JobId) {
        let Some((_, awaited)) = self.flushing.take_if(|(flush, _)| *flush == id) else {
            return;
        };
        for id in awaited {
            self.outbox.push_back(Output::Event(Event::Gone(id)));
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at.into_iter().chain(self.audit_at).min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if self.audit_at.is_some_and(|at| at <= now) {
            self.audit_at = None;
            self.must_read = true;
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.step();
        self.outbox.pop_front()
    }

    fn next_id(&mut self) -> JobId {
        self.last_id += 1;
        JobId(self.last_id)
    }

    fn want(&mut self, set: SetName, key: Key, data: Vec<u8>) {
        let wanted = &mut self.wanted[set.index()];
        if wanted.get(&key) != Some(&data) {
            wanted.insert(key.clone(), data);
            self.changed.insert((set, key));
        }
    }

    fn unwant(&mut self, set: SetName, key: Key) {
        if self.wanted[set.index()].remove(&key).is_some() {
            self.changed.insert((set, key));
        }
    }

    fn disown(&mut self, id: &Arc<str>, set: SetName, key: &Key) {
        let slot = (set, key.clone());
        if self.owners.get(&slot) == Some(id) {
            self.owners.remove(&slot);
            self.unwant(set, slot.1);
        }
    }

    /// Sets of ranges follow from settings and bridges alone.
    fn refresh_ranges(&mut self) {
        let settings = self.settings.clone().unwrap_or_default();
        let mut inside = settings.inside;
        inside.extend(self.bridges.values().flatten());
        for (v4, v6, prefixes) in [
            (SetName::Inside4, SetName::Inside6, inside),
            (
                SetName::Masquerade4,
                SetName::Masquerade6,
                settings.masquerade,
            ),
            (SetName::Bridged4, SetName::Bridged6, settings.bridged),
        ] {
            let (of4, of6): (Vec<_>, Vec<_>) = prefixes
                .into_iter()
                .partition(|prefix| matches!(prefix, IpNet::V4(_)));
            for (set, prefixes) in [(v4, of4), (v6, of6)] {
                let new = elements::ranges(prefixes);
                let old = std::mem::take(&mut self.wanted[set.index()]);
                for key in old.keys().filter(|key| !new.contains_key(key)) {
                    self.changed.insert((set, key.clone()));
                }
                for key in new.keys().filter(|key| !old.contains_key(key)) {
                    self.changed.insert((set, key.clone()));
                }
                self.wanted[set.index()] = new;
            }
        }
    }

    fn trouble(&mut self, now: Instant, error: &OpError) {
        self.seen = None;
        self.attempts += 1;
        // The first time, the table may merely have been changed meanwhile: look again at once.
        if self.attempts == 1 {
            return;
        }
        let doublings = self.attempts.saturating_sub(2).min(10);
        let pause = (RETRY_FIRST * 2_u32.pow(doublings)).min(RETRY_LAST);
        self.retry_at = Some(now + pause);
        let failure = Failure {
            kind: match error.errno {
                1 | 13 => FailureKind::Permission,
                _ => FailureKind::Kernel,
            },
            text: error.to_string(),
            retry_in: Some(pause),
        };
        self.told = false;
        if self.attempts == 2 {
            let event = Event::Failed(failure.clone());
            self.outbox.push_back(Output::Event(event));
        }
        for id in &self.standing {
            if let Some(workload) = self.workloads.get_mut(id)
                && !workload.failed
            {
                workload.failed = true;
                let event = Event::StandingFailed(id.clone(), failure.clone());
                self.outbox.push_back(Output::Event(event));
            }
        }
    }

    /// The table is as wanted by these.
    fn tell(&mut self, standing: Vec<Arc<str>>, gone: Vec<Arc<str>>) {
        if !self.foreign.is_empty() {
            self.counts.repairs += 1;
            let mut what = std::mem::take(&mut self.foreign).join("; ");
            if let Some(by) = self.by.take() {
                what.push_str(&format!(" (by {by})"));
            }
            let event = Event::Repaired { what };
            self.outbox.push_back(Output::Event(event));
        }
        if !self.told {
            self.told = true;
            self.outbox.push_back(Output::Event(Event::Programmed));
        }
        for id in standing {
            // One that was set again meanwhile waits for the next commit.
            if self.standing.contains(&id) {
                continue;
            }
            if let Some(workload) = self.workloads.get_mut(&id) {
                workload.standing = true;
                workload.failed = false;
                self.outbox.push_back(Output::Event(Event::Standing(id)));
            }
        }
        for id in gone {
            if let Some(leaving) = self.leaving.get_mut(&id) {
                leaving.elements_gone = true;
            }
        }
    }

    /// Finds what is to be done next.
    fn step(&mut self) {
        self.flush();
        if !self.is_active() || !self.synced || self.retry_at.is_some() {
            return;
        }
        if !matches!(self.job, Job::Idle) {
            return;
        }
        if self.must_read {
            self.must_read = false;
            let id = self.next_id();
            self.job = Job::Reading(id);
            self.outbox.push_back(Output::Read(id));
            return;
        }
        let Plan { ops, delta, anew } = self.plan();
        let standing = std::mem::take(&mut self.standing);
        let gone = std::mem::take(&mut self.gone);
        if ops.is_empty() {
            self.attempts = 0;
            // A foreign change that changed nothing, or that somebody took back.
            self.foreign.clear();
            self.by = None;
            self.tell(standing, gone);
            self.flush();
            return;
        }
        let id = self.next_id();
        self.job = Job::Committing(
            id,
            Commit {
                anew,
                delta,
                standing,
                gone,
            },
        );
        self.outbox.push_back(Output::Commit(id, ops));
    }

    /// One at a time: it reads the whole table of connections, so what leaves meanwhile goes
    /// together.
    fn flush(&mut self) {
        if self.flushing.is_some() {
            return;
        }
        let mut addresses = Vec::new();
        let mut awaited = Vec::new();
        self.leaving.retain(|id, leaving| {
            let done = leaving.elements_gone && leaving.routes_gone;
            if done {
                addresses.append(&mut leaving.addresses);
                if leaving.awaited {
                    awaited.push(id.clone());
                }
            }
            !done
        });
        if addresses.is_empty() && awaited.is_empty() {
            return;
        }
        let id = self.next_id();
        self.flushing = Some((id, awaited));
        self.outbox.push_back(Output::Flush(id, addresses));
    }
}
