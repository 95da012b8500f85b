//! Makes the kernel be as wanted, and keeps it so. No IO, no clock: the caller carries out what
//! [`Reconciler::poll_output`] yields and reports back.

pub mod view;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

pub use self::view::{Hop, KernelRoute, Lookup, NextHopView, ObjectStatus, Status};
use crate::{
    desired::{Event, Object, ObjectId, Source},
    kernel::{Change, Op, OpError, OpResult, Place, Query, Snapshot},
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
    /// While the underlay's MTU is unknown.
    pub fallback_mtu: u32,
    /// Full comparison with a dump of the host's namespace; jittered by up to a quarter.
    pub audit_interval: Duration,
    /// Links of removed workloads are collected for this long before they are deleted together.
    pub reap_delay: Duration,
    /// ... or until there are so many.
    pub reap_group: usize,
    /// Seed of all jitter and of the choice of interface indexes.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            underlay: Vec::new(),
            mtu_overhead: 0,
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
pub struct Reconciler {}

#[allow(unused_variables)]
impl Reconciler {
    pub fn new(config: Config, now: Instant) -> Self {
        Self {}
    }

    /// Wants an object; replaces what was wanted under its id.
    pub fn set(&mut self, now: Instant, object: Object) {}

    /// Does not want an object any more. Answered by [`Event::Removed`] (not for learned routes),
    /// also when there was no such object.
    pub fn remove(&mut self, now: Instant, id: ObjectId) {}

    /// All objects of that source are set: what the kernel has with its marks besides is stale.
    pub fn source_synced(&mut self, now: Instant, source: Source) {}

    /// Asks for [`Event::NextHop`] about an address: once soon, then at every change.
    pub fn watch_next_hop(&mut self, now: Instant, address: IpAddr) {}

    pub fn unwatch_next_hop(&mut self, now: Instant, address: IpAddr) {}

    /// The answer to an [`Output::Query`]. An interrupted dump (NLM_F_DUMP_INTR) is the error EINTR.
    pub fn handle_snapshot(
        &mut self,
        now: Instant,
        id: QueryId,
        answer: Result<Snapshot, OpError>,
    ) {
    }

    /// The answer to an [`Output::Apply`], one result for each operation.
    pub fn handle_results(&mut self, now: Instant, id: BatchId, results: Vec<OpResult>) {}

    /// A notification from the kernel. Those about own writes do no harm, but cost time.
    pub fn handle_change(&mut self, now: Instant, place: Place, change: Change) {}

    /// Notifications were lost (ENOBUFS): everything is read again.
    pub fn handle_overrun(&mut self, now: Instant) {}

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come; early or
    /// needless calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {}

    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub fn status(&self) -> Status {
        Status::default()
    }

    /// Own routes as last read from the kernel, in order of prefix, those after `after`; with
    /// `within`, only that prefix and what it covers.
    pub fn routes(
        &self,
        within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Vec<KernelRoute> {
        Vec::new()
    }

    /// State of a wanted object; `None` when it is not wanted.
    pub fn object(&self, id: &ObjectId) -> Option<ObjectStatus> {
        None
    }

    /// Which route of the main table covers an address, and where it leads.
    pub fn lookup(&self, address: IpAddr) -> Lookup {
        Lookup::default()
    }

    /// Next hops that are watched or used, in order of address.
    pub fn next_hops(&self) -> Vec<NextHopView> {
        Vec::new()
    }
}
