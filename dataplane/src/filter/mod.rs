//! Keeps the table `inet agentd` as wanted, and, where there are bridges, `bridge agentd` beside it.
//! Does no IO, like the reconciler beside it.
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
mod wishes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use indexmap::IndexSet;
use ipnet::IpNet;

pub use self::{
    elements::Entry,
    types::{Counts, Event, ForwardDrop, JobId, Op, Output, Sets, Snapshot, Tables},
};
use self::{elements::Key, plan::Plan, table::SetName};
use crate::{
    desired::{Failure, FailureKind, FilterSettings},
    kernel::OpError,
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
    /// They are to be made anew; these stand.
    anew: Option<Tables>,
    /// Whether a table is wanted was decided anew: what is read next is nobody's doing.
    restructured: bool,
    wrong_rules: Vec<&'static str>,
    must_read: bool,
    /// What stands is known well enough to write before reading.
    write_first: bool,
    /// What others did, until it is repaired.
    foreign: Vec<String>,
    by: Option<String>,
    job: Job,
    standing: IndexSet<Arc<str>>,
    gone: Vec<Arc<str>>,
    /// Of those that leave, the ones that may have nothing left in the kernel.
    left: Vec<Arc<str>>,
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
            restructured: false,
            wrong_rules: Vec::new(),
            must_read: true,
            write_first: false,
            foreign: Vec::new(),
            by: None,
            job: Job::Idle,
            standing: IndexSet::new(),
            gone: Vec::new(),
            left: Vec::new(),
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

    /// Those that are wanted.
    fn tables(&self) -> Tables {
        Tables {
            inet: true,
            bridge: !self.bridges.is_empty(),
        }
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

    /// Somebody else changed the tables, or events were lost. `by` names who, if it is known.
    ///
    /// Of tables that were `deleted` it is known what stands: they are made anew at once, and read
    /// afterwards. When the program that deleted them ends, the kernel holds the lock of commits
    /// until all that was deleted is freed, some 20 ms; who comes before that does not wait.
    pub fn handle_change(&mut self, by: Option<String>, deleted: Tables) {
        let known = self.told && self.seen.is_some() && !self.must_read && !self.restructured;
        self.must_read = true;
        self.by = by.or(self.by.take());
        let wanted = self.tables();
        let standing = Tables {
            inet: wanted.inet && !deleted.inet,
            bridge: wanted.bridge && !deleted.bridge,
        };
        if known && standing != wanted && matches!(self.job, Job::Idle) {
            let changes = self.describe(&Snapshot {
                tables: standing,
                ..Snapshot::default()
            });
            self.foreign.extend(changes);
            self.anew = Some(standing);
            self.seen = None;
            self.write_first = true;
        }
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
        let restructured = std::mem::take(&mut self.restructured);
        if self.told && self.seen.is_some() && !restructured {
            let changes = self.describe(&snapshot);
            self.foreign.extend(changes);
        }
        if snapshot.tables != self.tables() || !snapshot.wrong.is_empty() {
            self.anew = Some(snapshot.tables);
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
                self.left.push(id);
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
        if self.must_read && !std::mem::take(&mut self.write_first) {
            self.must_read = false;
            let id = self.next_id();
            self.job = Job::Reading(id);
            self.outbox.push_back(Output::Read(id));
            return;
        }
        let Plan { ops, delta, anew } = self.plan();
        let standing: Vec<Arc<str>> = std::mem::take(&mut self.standing).into_iter().collect();
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
        for id in std::mem::take(&mut self.left) {
            let leaving = self.leaving.get(&id);
            // Set again meanwhile, or something of it stands yet.
            if !leaving.is_some_and(|leaving| leaving.elements_gone && leaving.routes_gone) {
                continue;
            }
            let Some(mut leaving) = self.leaving.remove(&id) else {
                continue;
            };
            addresses.append(&mut leaving.addresses);
            if leaving.awaited {
                awaited.push(id);
            }
        }
        if addresses.is_empty() && awaited.is_empty() {
            return;
        }
        let id = self.next_id();
        self.flushing = Some((id, awaited));
        self.outbox.push_back(Output::Flush(id, addresses));
    }
}
