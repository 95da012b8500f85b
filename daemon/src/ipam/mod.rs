//! Which workload has which address, and which blocks this node holds for that.
//!
//! [`Ipam`] is pure: it takes the time as an argument and does no IO. What must be durable comes
//! out as [`Record`]s, what must be done with blocks as [`Action`]s. Every operation costs the same
//! whatever the number of workloads, up to logarithms.
//!
//! # Addresses
//!
//! ```text
//!             allocate                    release                cool-down over
//!    free ────────────────► used ─────────────────────► cooling ────────────────► free
//!      ▲                     │ ▲                          │  │
//!      └─────────────────────┘ └──────────────────────────┘  │ allocate, fixed, by the
//!         rollback_allocation      rollback_release           └─ workload that had it: used
//! ```
//!
//! Allocation fills the oldest block that has a free address, and takes the one in it that was free
//! the longest, so an address comes up again as late as possible; after a release it is not given
//! out at all for the cool-down. The one exception: a workload that asks for the very address it had last gets it at
//! once, because then it is the right owner of packets that are still on their way. Reserved
//! addresses are never given out. A request for both families gets both or neither.
//!
//! Allocation is idempotent by workload id. Every allocation has a generation, which grows and is
//! never used again; a release may name it, so that a late one cannot free what a later workload
//! of the same id holds.
//!
//! # Blocks
//!
//! ```text
//!   Action::Claim ──► record written ──► Action::Program ──► blackhole, then originated
//!                     block_persisted                        block_active
//!                       │ block_claim_failed: asked again later, or dropped while unused
//!   Action::Release ─► withdrawn ─► blackhole removed ─► record deleted ─► block_released
//! ```
//!
//! The next block of a pool is claimed before it is needed: when the free addresses of the pool
//! fall to a quarter of a block (`claim_ahead`), and one for each enabled pool at the start. An
//! address may be given out from a block that is claimed but not yet durable: then the records of
//! the allocation contain the block, so that no workload is ever durable without its block.
//!
//! A block that holds neither workloads nor cooling addresses is given back when that was observed
//! at least twice and for the grace period, the pool keeps one, and what remains has room: no
//! claim would follow at once. Blocks of a pool that is drained or removed go as soon as they are
//! empty.

mod address;
mod allocate;
mod audit;
mod block;
mod blocks;
mod choose;
mod claims;
mod cooling;
mod error;
mod live;
mod pool;
mod recover;
mod release;
mod remote;
mod view;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;

pub use allocate::{Allocation, Release};
pub use audit::{Audit, AuditedBlock, CoolingAddress};
pub use error::{Closed, Error, Exhausted};
pub use live::Stranded;
pub use recover::Notice;
pub use remote::{Refusal, Wanted};
pub use view::Lookup;

use crate::{
    config,
    node::{
        WorkloadId,
        view::{AssignedAddress, PoolOverride},
    },
    store::record::BlockRecord,
};
use cooling::Cooling;
use pool::Pool;

/// Both clocks, read at the same moment: the monotonic one decides, the other is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

impl Now {
    /// Reads the clocks. For the shell around the cores.
    pub fn read() -> Self {
        Now {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

/// What has to be done with a block. See the diagram of the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this record, then call [`Ipam::block_persisted`] or [`Ipam::block_claim_failed`].
    Claim(BlockRecord),
    /// The block is durable: set its blackhole, then originate it, then call
    /// [`Ipam::block_active`].
    Program(IpNet),
    /// The block is durable, and nobody else is to know of it: it belongs to a bridge.
    Local(IpNet),
    /// Withdraw the block, then remove its blackhole, then delete its record, then call
    /// [`Ipam::block_released`]. No address of it is given out meanwhile.
    Release(IpNet),
    /// Claim a block with the fleet, then call [`Ipam::acquired`]; every failure is told by
    /// [`Ipam::acquire_failed`].
    Acquire(Wanted),
    /// The fleet may have the block: nothing of it is left on this node.
    Return(IpNet),
}

/// Where addresses may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Any pool that is not a bridge's and takes workloads without labels.
    Any,
    /// Any pool that is not a bridge's and takes workloads with these labels.
    Labelled(&'a BTreeMap<String, String>),
    /// That pool, which is not a bridge's.
    Pool(&'a str),
    /// Those pools, none of them a bridge's, each for its family.
    Pools(&'a [String]),
    /// The subnets of that bridge.
    Bridge(&'a str),
    /// No addresses: the workload only gets its generation.
    Nothing,
}

/// Addresses and blocks of this node.
#[derive(Clone, Debug)]
pub struct Ipam {
    cooldown: Duration,
    /// Does not change while the agent runs.
    store: config::Store,
    /// Percent of a block.
    claim_ahead: u8,
    release_empty_after: Duration,
    /// Those of the configuration in its order, then retired ones.
    pools: Vec<Pool>,
    /// What an operator said of pools, by name.
    overrides: BTreeMap<String, PoolOverride>,
    workloads: HashMap<WorkloadId, Held>,
    /// Who has an address.
    holders: HashMap<IpAddr, WorkloadId>,
    cooling: HashMap<IpAddr, Cooling>,
    /// The same, in the order in which they become free.
    cooling_order: BTreeSet<(Instant, IpAddr)>,
    /// Cool-down is over, but their records still exist. Deleted along with later changes: a
    /// record too many is harmless, a transaction of its own is not free.
    stale_records: Vec<IpAddr>,
    generation: u64,
    actions: VecDeque<Action>,
    /// Claims to try again: when, in which pool, and which block.
    retries: Vec<(Instant, usize, u128)>,
    /// When to look for empty blocks.
    observe_at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Held {
    generation: u64,
    addresses: Vec<AssignedAddress>,
}

impl Ipam {
    /// Without any history. [`Ipam::recover`] takes one.
    pub fn new(now: Now, pools: &[config::Pool], settings: &config::Ipam) -> Self {
        let (ipam, _) = Ipam::recover(now, pools, settings, &Default::default());
        ipam
    }

    /// What a workload holds: its generation and addresses.
    pub fn held(&self, id: &WorkloadId) -> Option<(u64, &[AssignedAddress])> {
        let held = self.workloads.get(id)?;
        Some((held.generation, &held.addresses))
    }

    /// Free → used.
    fn occupy(&mut self, pool: usize, base: u128, address: IpAddr) {
        self.pools[pool].change(base, |block| {
            block.occupy(offset_of(base, address));
            block.empty_since = None;
            block.observations = 0;
        });
    }

    /// Used → free.
    fn free(&mut self, now: Now, pool: usize, base: u128, address: IpAddr) {
        self.pools[pool].change(base, |block| {
            block.used -= 1;
            block.clear(offset_of(base, address));
        });
        if self.pools[pool].is_leaving() {
            self.look_at(now.instant);
        } else {
            self.watch_empty_blocks(now);
        }
    }

    /// Pool and block of an address this node holds.
    fn place(&self, address: IpAddr) -> Option<(usize, u128)> {
        self.pools.iter().enumerate().find_map(|(index, pool)| {
            if !pool.cidr.contains(&address) {
                return None;
            }
            Some((index, pool.block_of(address)?.base()))
        })
    }
}

fn offset_of(base: u128, address: IpAddr) -> u32 {
    u32::try_from(address::to_number(address) - base).expect("it lies in the block")
}
