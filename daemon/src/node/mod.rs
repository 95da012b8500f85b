//! The node core: which workloads and blocks there are, and what each still waits for.
//!
//! [`Node`] does no IO and reads no clock. It takes commands, and what became of its outputs
//! (records persisted, objects programmed, blocks originated), and yields records to persist,
//! desired objects, originations, replies and watch events. One task owns it (`runtime`); many
//! adds and deletes are on their way through it at once, so that they share commits of the store
//! and batches of the kernel.
//!
//! # A workload
//!
//! ```text
//!            allocate      durable           read back, blocks active
//!   (none) ─────────► Recording ─────► Programming ─────► Standing ◄── recovered
//!                      │     │           │      │             │
//!                      │     │ delete    │      │ delete      │ delete
//!         not durable, │     └──────┐    │      └─────┐       │
//!           or refused │            │    │ refused    │       │
//!                      ▼            │    ▼            ▼       ▼
//!    (none) ◄─ Erasing ◄─ Retracting│ ◄──┘   └───► Releasing ─► Removing ─► (none)
//!       record deleted   gone from  └────────►  record deleted   gone from
//!                        the kernel                              the kernel
//! ```
//!
//! * The record is written while the kernel is programmed, and both are waited for. After a crash in
//!   between, the kernel has marked objects of a workload that nobody was told of: they are swept.
//! * An add is answered when its workload stands, or when nothing of it is left. A workload that
//!   stood once is kept whatever the kernel says; its failure is shown and tried again.
//! * A failed add frees its addresses without cool-down: the workload never spoke, and a caller
//!   that tries again every second must not use up the pool. A delete frees them with cool-down.
//! * A delete is durable before anything is taken from the kernel: when the store refuses,
//!   everything stays as it was. After a crash in between, what the kernel still has is stale and
//!   swept.
//! * An add that meets a workload on its way out waits until it is gone, and starts then.
//!
//! # A block
//!
//! ```text
//!   claim ─► record durable ─► blackhole read back ─► originated: active
//!   give back: withdrawn ─► blackhole removed ─► record deleted
//! ```
//!
//! A block of one address has no blackhole. The first workloads of a block wait until it is active.
//! A block of a bridge's subnet is active as soon as it is durable, and nobody else knows of it.

pub mod access;
pub mod attachment;
pub mod audit;
mod blocks;
pub mod check;
pub mod claims;
mod commands;
pub mod drain;
pub mod error;
pub mod handle;
mod names;
mod output;
mod parked;
mod pools;
mod recover;
mod routes;
mod show;
pub mod spec;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod view;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bgp::rib::RouteChange;
use dataplane::{
    desired::{Detail, Event, Failure, ObjectId, Source},
    linux::listeners::Listener,
};
use ipnet::IpNet;

pub use drain::Drain;
pub use error::Error;
pub use output::{Caller, Output, Reply, Token, WaitFor};
pub use spec::{WorkloadId, WorkloadSpec};

use crate::{
    config,
    ipam::{Allocation, Ipam, Now},
    store::record::Record,
};
use handle::Added;
use sync::Syncs;
use view::{AssignedAddress, PoolOverride, Recovery};

/// Until the store is asked again to delete a record.
const RETRY: Duration = Duration::from_secs(2);

/// Who waits for an add, and for what.
#[derive(Clone, Copy, Debug)]
struct Adder {
    caller: Caller,
    wait: WaitFor,
    /// Its call made the workload.
    created: bool,
}

/// An add that waits for the workload of the same id to be gone.
#[derive(Clone, Debug)]
struct Queued {
    caller: Caller,
    spec: Box<WorkloadSpec>,
    listening: Vec<Listener>,
    wait: WaitFor,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Its record is on its way to the store, and it is wanted in the kernel.
    Recording { allocation: Allocation },
    /// Durable, and wanted in the kernel. A failure undoes it.
    Programming { allocation: Allocation },
    /// It stood once, or comes from an earlier run. Kept until it is deleted.
    Standing,
    /// A failed add is being taken from the kernel.
    Retracting {
        allocation: Allocation,
        error: Error,
        /// Whether there is a record; `None`: that is on its way.
        recorded: Option<bool>,
        /// The kernel has let go of it.
        removed: bool,
    },
    /// The record of a failed add is being deleted.
    Erasing {
        allocation: Allocation,
        error: Error,
    },
    /// The deletion of its record is on its way to the store.
    Releasing {
        /// Whether there is a record; `None`: that is on its way, too.
        recorded: Option<bool>,
        /// It was handed to the dataplane.
        wanted: bool,
    },
    /// It is being taken from the kernel.
    Removing,
}

#[derive(Clone, Debug)]
struct Workload {
    generation: u64,
    spec: Arc<WorkloadSpec>,
    addresses: Vec<AssignedAddress>,
    created_at: SystemTime,
    phase: Phase,
    /// As last read back; `None` before.
    detail: Option<Detail>,
    /// The kernel refuses it at present.
    failure: Option<Failure>,
    /// Watchers know of it.
    published: bool,
    adders: Vec<Adder>,
    deleters: Vec<Caller>,
    queued: Vec<Queued>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The blackhole is wanted.
    Blackhole,
    /// The speaker was told.
    Originating,
    Active,
    Withdrawing,
    /// The blackhole is being removed.
    Removing,
    /// The deletion of its record is on its way.
    Deleting,
}

#[derive(Clone, Debug)]
struct Block {
    stage: Stage,
    /// Peers that have it, as last seen.
    advertised_to: u32,
    /// Why its blackhole does not stand, for a person.
    reason: String,
    /// Of a bridge: known to this node only, without a blackhole.
    local: bool,
}

/// What a token stands for.
#[derive(Clone, Debug)]
enum Pending {
    /// The record of a workload, and of blocks it needs.
    Put {
        id: WorkloadId,
        generation: u64,
        blocks: Vec<IpNet>,
    },
    Release {
        id: WorkloadId,
        generation: u64,
    },
    Erase {
        id: WorkloadId,
        generation: u64,
    },
    Claim(IpNet),
    DropBlock(IpNet),
    /// The deletion of the record of a block that is not held.
    Orphan(IpNet),
    /// Who asked, and what holds then.
    Drain(Caller, Drain),
    /// Who asked, which pool, and what holds for it then.
    Pool(Caller, String, Option<PoolOverride>),
    /// Deletions of records that nobody needs any more.
    Cleanup(Vec<Record>),
}

/// Whose workloads hold the addresses of a pool, as counted last.
#[derive(Clone, Debug)]
struct Consumers {
    at: Instant,
    pool: String,
    counts: Vec<(String, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    ipam: Ipam,
    workloads: BTreeMap<WorkloadId, Workload>,
    blocks: BTreeMap<IpNet, Block>,
    pending: HashMap<Token, Pending>,
    next_token: u64,
    names: names::Names,
    /// Those of the configuration.
    bridges: Vec<config::Bridge>,
    /// The node's own, which workloads in its namespace have.
    own_addresses: Vec<IpAddr>,
    /// Workloads that somebody waits for.
    awaited: BTreeSet<WorkloadId>,
    /// Deletions of records that the store refused.
    retries: Vec<(Instant, Pending)>,
    /// Recovered workloads of which the kernel has not said anything yet.
    unconfirmed: BTreeSet<WorkloadId>,
    /// Blocks of the start that are not originated yet.
    unoriginated: BTreeSet<IpNet>,
    originations_synced: bool,
    /// The kernel was read, and stale objects of these kinds are gone.
    started: bool,
    swept_blocks: bool,
    swept_workloads: bool,
    ready: bool,
    /// Learned routes go to the kernel.
    install_routes: bool,
    /// All of them are known.
    routes_synced: bool,
    claims: claims::Claims,
    /// What the start found and put right.
    recovery: Recovery,
    /// Learned routes of own blocks that are being given back.
    held_back: BTreeMap<IpNet, RouteChange>,
    /// Who waits for a block to be given back.
    releasers: BTreeMap<IpNet, Vec<Caller>>,
    drain: Drain,
    consumers: Option<Consumers>,
    release_unnamed_after: Duration,
    syncs: Syncs,
    /// Adds that wait for a block to be claimed with the fleet, in their order.
    parked: Vec<parked::Parked>,
    cursor: u64,
    /// Deletions of records that nobody needs any more; they go along with the next change.
    leftover: Vec<Record>,
    outputs: VecDeque<Output>,
}

impl Node {
    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Node::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.retries.iter().map(|(at, _)| *at).min();
        let release = self.syncs.deadline();
        [
            retry,
            self.claims.poll_timeout(),
            self.ipam.poll_timeout(),
            self.drain_deadline(),
            release,
            self.parked_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn handle_timeout(&mut self, now: Now) {
        self.claims_timeout(now);
        self.drain_timeout(now);
        self.sync_timeout(now);
        self.parked_timeout(now);
        self.ipam.handle_timeout(now);
        self.follow_blocks();
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.retries)
            .into_iter()
            .partition(|(at, _)| *at <= now.instant);
        self.retries = later;
        for (_, pending) in due {
            self.retry(now, pending);
        }
    }

    /// What became of an [`Output::Persist`]. The error is for a person.
    pub fn handle_persisted(&mut self, now: Now, token: Token, result: Result<(), String>) {
        let Some(pending) = self.pending.remove(&token) else {
            return;
        };
        match pending {
            Pending::Put {
                id,
                generation,
                blocks,
            } => {
                if result.is_ok() {
                    for cidr in blocks {
                        self.ipam.block_persisted(cidr);
                    }
                }
                self.put_done(now, &id, generation, result);
            }
            Pending::Release { id, generation } => self.release_done(now, &id, generation, result),
            Pending::Erase { id, generation } => self.erase_done(now, &id, generation, result),
            Pending::Claim(cidr) => match result {
                Ok(()) if self.holds(now, cidr) => self.ipam.block_persisted(cidr),
                // Two claims of it were on their way; the first failed, and it was given up.
                Ok(()) => self.drop_orphan(cidr),
                Err(_) => {
                    self.ipam.block_claim_failed(now, cidr);
                    self.block_settled(cidr);
                }
            },
            Pending::DropBlock(cidr) => self.drop_block_done(now, cidr, result),
            Pending::Drain(caller, drain) => self.drain_done(caller, drain, result),
            Pending::Pool(caller, name, to) => self.pool_done(now, caller, &name, to, result),
            Pending::Cleanup(_) => {
                if result.is_err() {
                    self.retries.push((now.instant + RETRY, pending));
                }
            }
            Pending::Orphan(_) => {
                if result.is_err() {
                    self.retries.push((now.instant + RETRY, pending));
                }
            }
        }
        self.follow_blocks();
    }

    /// What the dataplane reports.
    pub fn handle_dataplane(&mut self, now: Now, event: Event) {
        match event {
            Event::Started => self.started = true,
            Event::Swept { source, deleted } => {
                self.recovery.swept(source, deleted);
                match source {
                    Source::Block => self.swept_blocks = true,
                    Source::Workload => self.swept_workloads = true,
                    Source::Bgp | Source::Tunnel => {}
                }
            }
            Event::Programmed { id, detail } => match id {
                ObjectId::Workload(id) => self.workload_programmed(&id, detail),
                ObjectId::Blackhole(cidr) => self.blackhole_programmed(cidr),
                ObjectId::Route(_) | ObjectId::Bridge(_) | ObjectId::Tunnels => {}
            },
            Event::Failed { id, error } => match id {
                ObjectId::Workload(id) => self.workload_failed(&id, error),
                ObjectId::Blackhole(cidr) => self.blackhole_failed(cidr, error),
                ObjectId::Route(_) | ObjectId::Bridge(_) | ObjectId::Tunnels => {}
            },
            Event::Removed { id } => match id {
                ObjectId::Workload(id) => self.workload_removed(now, &id),
                ObjectId::Blackhole(cidr) => self.blackhole_removed(cidr),
                ObjectId::Route(_) | ObjectId::Bridge(_) | ObjectId::Tunnels => {}
            },
            Event::Repaired { .. }
            | Event::NextHop { .. }
            | Event::Mtu(_)
            | Event::NodeAddresses(_)
            | Event::FilterProgrammed
            | Event::SharedRepaired { .. }
            | Event::FilterRepaired { .. }
            | Event::FilterFailed(_) => {}
        }
        self.follow_blocks();
        self.check_ready();
    }

    /// The speaker originates the block.
    pub fn handle_originated(&mut self, now: Now, cidr: IpNet) {
        self.originated(now, cidr);
        self.follow_blocks();
        self.check_ready();
    }

    /// A caller is gone: its command goes on, its answer is not wanted any more.
    pub fn forget(&mut self, caller: Caller) {
        self.parked.retain(|parked| parked.caller != caller);
        let awaited: Vec<WorkloadId> = self.awaited.iter().cloned().collect();
        for id in awaited {
            let Some(workload) = self.workloads.get_mut(&id) else {
                continue;
            };
            workload.adders.retain(|adder| adder.caller != caller);
            if workload.adders.is_empty() && matches!(workload.phase, Phase::Standing) {
                self.awaited.remove(&id);
            }
        }
    }

    fn token(&mut self, pending: Pending) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.pending.insert(token, pending);
        token
    }

    fn persist(&mut self, pending: Pending, records: Vec<Record>) {
        let token = self.token(pending);
        self.outputs.push_back(Output::Persist { token, records });
    }

    fn reply_add(&mut self, caller: Caller, result: Result<Added, Error>) {
        self.outputs.push_back(Output::Reply {
            caller,
            reply: Reply::Added(result),
        });
    }

    fn reply_delete(&mut self, caller: Caller, result: Result<bool, Error>) {
        self.outputs.push_back(Output::Reply {
            caller,
            reply: Reply::Deleted(result),
        });
    }
}
