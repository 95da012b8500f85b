//! What this node wants of the fleet's store, and what it knows of it: a state machine without IO.
//!
//! ```text
//!   registered ─► own claims listed (again every minute) ─► claims and returns
//!        ▲               │ held here, not there: claimed again
//!        │               │ held there, not here: given back
//!        └── the registration is gone, or was made anew
//!   besides: a lease that says "alive", and the registry, listed and then watched
//! ```
//!
//! # Two nodes never hold one block
//!
//! * A block is used only after the answer to its claim was seen, or after the claim was read back
//!   with the very name (nonce) that this run gave it; and a claim succeeds only where nobody holds
//!   the block, a part of it or what contains it.
//! * A block is given back only after it is durably gone from this node, or was never used by it.
//! * A request whose answer was lost may still be carried out, later. A late claim makes a block
//!   that this node holds and does not know: the next listing gives it back. A late return names the
//!   revision at which the block was claimed, so it cannot hit a later claim of the same block. A
//!   late claim of a node that an operator has removed fails, because it names the registration.
//!
//! Nothing hangs on the lease but the word "alive".

mod claims;
mod own;
mod registration;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use ipnet::IpNet;

pub use super::status::{State, Status};
use super::{
    claim::{self, Found, Outcome, Search},
    keys::{Keys, NodeRecord, Owner, parse_block},
    ops::{Answer, Change, Compare, Failure, KeyValue, Op, Request, Txn, TxnAnswer, WatchEvent},
    registry::Registry,
};
use crate::ipam::{Refusal, Wanted};

/// Between two tries after a failure: doubles from the first to the second.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the own claims.
const LIST: Duration = Duration::from_secs(60);
/// Between two tries to find room in a full pool.
const FULL: Duration = Duration::from_secs(15);
/// Fruitless claims out of one window of a search before it goes on.
const SAME_WINDOW: u32 = 4;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    pub keys: Keys,
    pub node: String,
    pub record: NodeRecord,
    pub lease: Duration,
    /// Whether the other nodes are followed.
    pub follow: bool,
    pub reclaim_after: Option<Duration>,
    pub seed: u64,
}

/// Names a request. Never used again within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask the store; answer with [`Core::handle_answer`].
    Send { id: Id, request: Request },
    /// Watch the registry from this revision on, in place of any earlier watch; tell what comes
    /// with [`Core::handle_watch`].
    Watch {
        id: Id,
        from: Key,
        to: Key,
        revision: i64,
    },
    /// The block is this node's.
    Acquired { pool: String, block: IpNet },
    AcquireFailed {
        pool: String,
        block: Option<IpNet>,
        why: Refusal,
    },
    /// A block that this node uses is held by another one.
    Lost { block: IpNet, by: String },
    /// The registry has changed.
    Nodes,
    /// The node has not been alive for as long as the configuration says.
    Reclaim(String),
}

type Key = super::ops::Key;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    Register,
    Rewrite { created: i64 },
    Grant,
    Live(i64),
    KeepAlive(i64),
    List,
    Registry,
    Claim(usize),
    Return(IpNet),
    Reclaim(IpNet),
}

#[derive(Clone, Debug)]
enum Phase {
    /// To be tried at this time.
    At(Instant),
    Claiming {
        candidates: Vec<IpNet>,
        nonce: String,
        searched: bool,
    },
    /// The answer was lost: read what became of it, at this time.
    Unsure {
        at: Instant,
        candidates: Vec<IpNet>,
        nonce: String,
    },
    Reading {
        candidates: Vec<IpNet>,
        nonce: String,
    },
    Searching,
}

#[derive(Clone, Debug)]
struct Claim {
    wanted: Wanted,
    round: u32,
    search: Option<Search>,
    fruitless: u32,
    phase: Phase,
}

#[derive(Clone, Debug)]
struct Held {
    pool: String,
    /// At which it was claimed; `None`: not seen in the store yet.
    revision: Option<i64>,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    random: fastrand::Rng,
    /// Revision at which the registration was made; `None`: there is none.
    registered: Option<i64>,
    register_at: Option<Instant>,
    lease: Option<i64>,
    lease_at: Instant,
    list_at: Option<Instant>,
    registry_at: Option<Instant>,
    watch: Option<Id>,
    pub(super) registry: Registry,
    claims: BTreeMap<usize, Claim>,
    next_claim: usize,
    /// Blocks that this node uses.
    held: BTreeMap<IpNet, Held>,
    /// Blocks to give back, with the revision of their claim where it is known.
    leaving: BTreeMap<IpNet, (Option<i64>, Instant)>,
    /// Held here and not there: to be claimed at this time.
    missing: BTreeMap<IpNet, Instant>,
    lost: BTreeMap<IpNet, String>,
    jobs: HashMap<Id, Job>,
    next_id: u64,
    failures: u32,
    /// Not before, while the store fails.
    rest_until: Option<Instant>,
    /// What a restart would have to know: blocks claimed since the last listing.
    listed: bool,
    pub(super) status: Status,
    outputs: VecDeque<Output>,
}

impl Core {
    /// `held`: the blocks that this node has, with their pools.
    pub fn new(now: Instant, settings: Settings, held: Vec<(String, IpNet)>) -> Self {
        let follow = settings.follow || settings.reclaim_after.is_some();
        let held = held.into_iter().map(|(pool, block)| {
            let revision = None;
            (block, Held { pool, revision })
        });
        Core {
            random: fastrand::Rng::with_seed(settings.seed),
            registry: Registry::new(settings.reclaim_after, settings.seed),
            registered: None,
            register_at: Some(now),
            lease: None,
            lease_at: now,
            list_at: Some(now),
            registry_at: follow.then_some(now),
            watch: None,
            claims: BTreeMap::new(),
            next_claim: 0,
            held: held.collect(),
            leaving: BTreeMap::new(),
            missing: BTreeMap::new(),
            lost: BTreeMap::new(),
            jobs: HashMap::new(),
            next_id: 0,
            failures: 0,
            rest_until: None,
            listed: false,
            status: Status::default(),
            outputs: VecDeque::new(),
            settings,
        }
    }

    /// Blocks that this node uses.
    pub fn held(&self) -> impl Iterator<Item = IpNet> {
        self.held.keys().copied()
    }

    pub fn status(&self) -> Status {
        let mut status = self.status.clone();
        status.registered = self.registered.is_some();
        status.held = self.held.len();
        status.claiming = self.claims.len();
        status.returning = self.leaving.len();
        status.lost = self.lost.clone().into_iter().collect();
        (status.nodes, status.nodes_alive) = self.registry.counts();
        status
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let claims = self.claims.values().filter_map(|claim| match &claim.phase {
            Phase::At(at) | Phase::Unsure { at, .. } => Some(*at),
            _ => None,
        });
        let ready = self.registered.is_some();
        let returns = self.leaving.values().map(|(_, at)| *at);
        let missing = self.missing.values().copied();
        let blocked = claims
            .chain(returns)
            .chain(missing)
            .filter(|_| ready && self.listed);
        let single = [
            self.register_at.filter(|_| !ready),
            Some(self.lease_at).filter(|_| ready),
            self.list_at.filter(|_| ready),
            self.registry_at,
        ];
        let next = single
            .into_iter()
            .flatten()
            .chain(blocked.collect::<Vec<_>>())
            .min();
        let next = match (next, self.rest_until) {
            // One request at a time tries whether the store is back.
            (_, Some(_)) if !self.jobs.is_empty() => None,
            (Some(next), Some(rest)) => Some(next.max(rest)),
            (next, _) => next,
        };
        [next, self.registry.timeout()].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let me = self.settings.node.clone();
        for name in self.registry.due(now) {
            if name != me {
                self.outputs.push_back(Output::Reclaim(name));
            }
        }
        if self.registry.expire(now) {
            self.outputs.push_back(Output::Nodes);
        }
        self.proceed(now);
    }

    fn is_busy(&self, job: &Job) -> bool {
        self.jobs.values().any(|other| other == job)
    }

    fn send(&mut self, job: Job, request: Request) {
        let id = Id(self.next_id);
        self.next_id += 1;
        self.jobs.insert(id, job);
        self.status.requests += 1;
        self.outputs.push_back(Output::Send { id, request });
    }

    /// Whether another request may be sent.
    fn may_send(&self, now: Instant) -> bool {
        match self.rest_until {
            None => true,
            Some(until) => until <= now && self.jobs.is_empty(),
        }
    }

    /// Sends what is due.
    fn proceed(&mut self, now: Instant) {
        if self.may_send(now)
            && self.registered.is_none()
            && is_due(self.register_at, now)
            && !self.is_busy(&Job::Register)
        {
            self.register_at = None;
            self.register();
        }
        if self.may_send(now) && is_due(self.registry_at, now) {
            self.registry_at = None;
            let (from, to) = self.settings.keys.registry();
            let list = Op::List {
                from,
                to,
                limit: 0,
                keys_only: false,
            };
            self.send(Job::Registry, read(vec![list]));
        }
        let Some(registered) = self.registered else {
            return;
        };
        if self.may_send(now) && self.lease_at <= now {
            let job = self.lease.map_or(Job::Grant, Job::KeepAlive);
            let waits = self
                .jobs
                .values()
                .any(|job| matches!(job, Job::Grant | Job::Live(_) | Job::KeepAlive(_)));
            if !waits {
                self.lease_at = now + self.settings.lease / 3;
                let request = match self.lease {
                    Some(lease) => Request::KeepAlive(lease),
                    None => {
                        Request::Grant(i64::try_from(self.settings.lease.as_secs()).unwrap_or(15))
                    }
                };
                self.send(job, request);
            }
        }
        if self.may_send(now) && is_due(self.list_at, now) && !self.is_busy(&Job::List) {
            self.list_at = Some(now + LIST);
            let keys = &self.settings.keys;
            let (from, to) = keys.all_owned_by(&self.settings.node);
            let list = Op::List {
                from,
                to,
                limit: 0,
                keys_only: false,
            };
            let node = Op::Get(keys.node(&self.settings.node));
            self.send(Job::List, read(vec![list, node]));
        }
        // Not before it is known what there is: a claim that is there already needs no other.
        if !self.listed {
            return;
        }
        self.proceed_returns(now);
        self.proceed_missing(now, registered);
        self.proceed_claims(now, registered);
    }

    /// What the store said, or why it said nothing.
    pub fn handle_answer(&mut self, now: Instant, id: Id, result: Result<Answer, Failure>) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        match result {
            Ok(answer) => {
                self.failures = 0;
                self.rest_until = None;
                self.status.came_up(now);
                self.answered(now, job, answer);
            }
            Err(failure) => self.failed(now, job, &failure),
        }
        self.proceed(now);
    }

    fn failed(&mut self, now: Instant, job: Job, failure: &Failure) {
        self.failures = self.failures.saturating_add(1);
        self.status.failures += 1;
        let longest = RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY_MAX);
        let wait = longest.mul_f64(0.5 + self.random.f64() / 2.0);
        let again = now + wait;
        self.rest_until = Some(again);
        self.status.went_down(now, &failure.0);
        match job {
            Job::Register | Job::Rewrite { .. } => self.register_at = Some(again),
            // Whether a lease was granted is not known; it ends by itself.
            Job::Grant | Job::Live(_) | Job::KeepAlive(_) => self.lease_at = again,
            Job::List => self.list_at = Some(again),
            Job::Registry => self.registry_at = Some(again),
            Job::Return(block) => {
                if let Some((_, at)) = self.leaving.get_mut(&block) {
                    *at = again;
                }
            }
            Job::Reclaim(block) => {
                self.missing.entry(block).and_modify(|at| *at = again);
            }
            Job::Claim(number) => {
                if let Some(claim) = self.claims.get_mut(&number) {
                    claim.phase = match claim.phase.clone() {
                        Phase::Claiming {
                            candidates, nonce, ..
                        }
                        | Phase::Reading { candidates, nonce } => Phase::Unsure {
                            at: again,
                            candidates,
                            nonce,
                        },
                        _ => Phase::At(again),
                    };
                }
            }
        }
        self.tell_waiting(&failure.0);
    }

    fn answered(&mut self, now: Instant, job: Job, answer: Answer) {
        match (job, answer) {
            (Job::Register, Answer::Txn(answer)) => self.registered(now, &answer),
            (Job::Rewrite { created }, Answer::Txn(answer)) => {
                if answer.succeeded {
                    self.now_registered(now, created);
                } else {
                    self.register_at = Some(now);
                }
            }
            (Job::Grant, Answer::Lease(lease)) => {
                let Some(registered) = self.registered else {
                    return;
                };
                let keys = &self.settings.keys;
                let name = &self.settings.node;
                let txn = Txn {
                    when: vec![Compare::Created(keys.node(name), registered)],
                    then: vec![Op::Put {
                        key: keys.live(name),
                        value: self.settings.record.identity.clone(),
                        lease: Some(lease),
                    }],
                    otherwise: Vec::new(),
                };
                self.send(Job::Live(lease), Request::Txn(txn));
            }
            (Job::Live(lease), Answer::Txn(answer)) => {
                if answer.succeeded {
                    self.lease = Some(lease);
                } else {
                    self.unregistered(now);
                }
            }
            (Job::KeepAlive(_), Answer::LeaseGone) => {
                self.lease = None;
                self.lease_at = now;
            }
            (Job::List, Answer::Txn(answer)) => self.listed(now, &answer),
            (Job::Registry, Answer::Txn(answer)) => {
                let (from, to) = self.settings.keys.registry();
                if self
                    .registry
                    .listed(now, &self.settings.keys, answer.keys(0))
                {
                    self.outputs.push_back(Output::Nodes);
                }
                let id = Id(self.next_id);
                self.next_id += 1;
                self.watch = Some(id);
                self.outputs.push_back(Output::Watch {
                    id,
                    from,
                    to,
                    revision: answer.revision + 1,
                });
            }
            (Job::Return(block), Answer::Txn(answer)) => self.returned(now, block, &answer),
            (Job::Reclaim(block), Answer::Txn(answer)) => self.claimed_again(now, block, &answer),
            (Job::Claim(number), Answer::Txn(answer)) => self.claim_answered(now, number, &answer),
            // A lease kept; anything else would be an answer to something that was not asked.
            _ => {}
        }
    }

    /// What the watch of the registry said.
    pub fn handle_watch(&mut self, now: Instant, id: Id, event: WatchEvent) {
        if self.watch != Some(id) {
            return;
        }
        match event {
            WatchEvent::Changes(changes) => {
                let me = self.settings.keys.node(&self.settings.node);
                if changes
                    .iter()
                    .any(|change| matches!(change, Change::Delete(key) if *key == me))
                {
                    self.unregistered(now);
                }
                if self.registry.changed(now, &self.settings.keys, changes) {
                    self.outputs.push_back(Output::Nodes);
                }
            }
            WatchEvent::Compacted => {
                self.status.compactions += 1;
                self.watch = None;
                self.registry.is_blind();
                self.registry_at = Some(now);
            }
            WatchEvent::Ended(_) => {
                self.watch = None;
                self.registry.is_blind();
                self.registry_at = Some(now + RETRY.mul_f64(1.0 + self.random.f64()));
            }
        }
        self.proceed(now);
    }

    /// The pool of a block that this node uses.
    pub fn pool_of(&self, block: &IpNet) -> Option<&str> {
        self.held.get(block).map(|held| held.pool.as_str())
    }
}

fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

fn read(then: Vec<Op>) -> Request {
    Request::Txn(Txn {
        when: Vec::new(),
        then,
        otherwise: Vec::new(),
    })
}

fn owner_of(key: &KeyValue) -> Option<Owner> {
    serde_json::from_str(&key.value).ok()
}
