//! The node's task: the one owner of the node core. It carries inputs to it and its outputs to the
//! store, the dataplane, the speaker and the callers, and waits for nothing else.
//!
//! ```text
//!   requests ─┐                      ┌─► store
//!   completions (store) ─┐           ├─► outbox ─► task ─► dataplane
//!   events (dataplane) ──┼─► Node ───┼─► outbox ─► task ─► speaker
//!   updates (speaker) ───┤           ├─► replies
//!   acknowledgements ────┘           └─► watchers
//! ```
//!
//! Here: the loop, and what the node wants done. What callers ask is in `requests`, what the other
//! parts report in `reports`.

mod reports;
mod requests;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bgp::driver::Update;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    footprint::Footprint,
    outbox::{Outbox, ToDataplane, ToSpeaker},
};
use crate::{
    api::Health,
    fleet,
    ipam::Now,
    node::{
        Caller, Drain, Error, Node, Output, Reply, Token,
        handle::{Added, Request, Watcher},
        sync::{SyncEvent, SyncId},
        view::PoolUsers,
    },
    peers::{PeerEvent, PeersHandle},
    store::{Completions, Store},
    telemetry::{metrics::Metrics, notify},
};

/// Inputs taken in one round before outputs are handed on: they share batches and commits.
const ROUND: usize = 256;
/// How often callers that have gone are looked for, while there are callers.
const SWEEP: Duration = Duration::from_secs(1);
/// How long callers may finish when the agent stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What the speaker's carrier and the advertisement task tell the node.
#[derive(Debug)]
pub(super) enum Ack {
    Originated(Vec<IpNet>),
    Withdrawn(Vec<IpNet>),
    Advertised(Vec<(IpNet, u32)>),
}

enum Waiter {
    Add(oneshot::Sender<Result<Added, Error>>),
    Delete(oneshot::Sender<Result<bool, Error>>),
    Drain(oneshot::Sender<Result<Drain, Error>>),
    Pool(oneshot::Sender<Result<PoolUsers, Error>>),
    Release(oneshot::Sender<Result<(), Error>>),
}

impl Waiter {
    fn is_gone(&self) -> bool {
        match self {
            Waiter::Add(reply) => reply.is_closed(),
            Waiter::Delete(reply) => reply.is_closed(),
            Waiter::Drain(reply) => reply.is_closed(),
            Waiter::Pool(reply) => reply.is_closed(),
            Waiter::Release(reply) => reply.is_closed(),
        }
    }
}

/// From all addresses of the node to those that workloads in its namespace have.
pub(super) type OwnAddresses = dyn Fn(&[IpAddr]) -> Vec<IpAddr> + Send;

/// What the task reads.
pub(super) struct Inputs {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) completions: Completions,
    pub(super) events: dataplane::runtime::Events,
    /// `None`: no speaker runs.
    pub(super) updates: Option<bgp::driver::Updates>,
    pub(super) acks: mpsc::Receiver<Ack>,
    /// What the fleet's store says of blocks; silent without one.
    pub(super) fleet: mpsc::Receiver<fleet::Event>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) own_addresses: Box<OwnAddresses>,
}

/// Why the task ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    Stopped,
    /// A part that the node cannot do without has ended.
    Lost(&'static str),
}

pub(super) struct Task {
    pub(super) node: Node,
    pub(super) store: Store,
    pub(super) to_dataplane: Outbox<ToDataplane>,
    /// `None`: no speaker runs; what it would be told is done at once.
    pub(super) to_speaker: Option<Outbox<ToSpeaker>>,
    /// Blocks that are originated, for the task that asks which peers have them.
    pub(super) originated: watch::Sender<Vec<IpNet>>,
    pub(super) health: Health,
    pub(super) ready: Arc<AtomicBool>,
    pub(super) metrics: Arc<Metrics>,
    callers: HashMap<Caller, Waiter>,
    next_caller: u64,
    watchers: Vec<Watcher>,
    /// Clients that state all their workloads.
    syncs: HashMap<SyncId, mpsc::Sender<SyncEvent>>,
    /// For those that watch peers.
    peers: PeersHandle,
    /// `None`: blocks are not agreed on with other nodes.
    fleet: Option<fleet::Handle>,
    /// Names of the peers that are Established.
    established: HashSet<String>,
    footprint: Footprint,
}

impl Task {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        node: Node,
        store: Store,
        to_dataplane: Outbox<ToDataplane>,
        to_speaker: Option<Outbox<ToSpeaker>>,
        originated: watch::Sender<Vec<IpNet>>,
        health: Health,
        ready: Arc<AtomicBool>,
        metrics: Arc<Metrics>,
        peers: PeersHandle,
        fleet: Option<fleet::Handle>,
    ) -> Self {
        Self {
            node,
            store,
            to_dataplane,
            to_speaker,
            originated,
            health,
            ready,
            metrics,
            callers: HashMap::new(),
            next_caller: 0,
            watchers: Vec::new(),
            syncs: HashMap::new(),
            peers,
            fleet,
            established: HashSet::new(),
            footprint: Footprint::default(),
        }
    }

    pub(super) async fn run(mut self, mut inputs: Inputs) -> End {
        let mut watchdog = notify::watchdog_interval().map(tokio::time::interval);
        let mut stop_at: Option<Instant> = None;
        let mut swept = Instant::now();
        if inputs.updates.is_none() {
            self.node.handle_first_sync();
        }
        loop {
            self.deliver();
            if self.node.is_ready() && !self.ready.swap(true, Ordering::Relaxed) {
                self.health.set(true).await;
                self.metrics.ready.set(1);
                let status = self.node.status();
                tracing::info!(
                    workloads = status.workloads,
                    blocks = status.blocks,
                    "ready"
                );
                notify::ready(&self.status_line());
                self.footprint.handle_ready(Instant::now());
            }
            if let Some(at) = stop_at
                && (self.callers.is_empty() || at <= Instant::now())
            {
                return End::Stopped;
            }
            let room = self.to_dataplane.is_clear()
                && self.to_speaker.as_ref().is_none_or(Outbox::is_clear);
            let mut wake = self.node.poll_timeout();
            if !(self.callers.is_empty() && self.syncs.is_empty()) {
                wake = Some(wake.map_or(swept + SWEEP, |at| at.min(swept + SWEEP)));
            }
            wake = [wake, stop_at, self.footprint.poll_timeout()]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                completion = inputs.completions.next() => {
                    let Some(completion) = completion else { return End::Lost("store") };
                    let result = completion.result.map_err(|error| {
                        self.metrics.store_failures.inc();
                        tracing::error!(%error, "state not stored");
                        error.to_string()
                    });
                    self.node.handle_persisted(Now::read(), Token(completion.token), result);
                }
                events = inputs.events.next() => {
                    let Some(events) = events else { return End::Lost("dataplane") };
                    self.dataplane(events, &*inputs.own_addresses);
                }
                Some(event) = inputs.fleet.recv() => self.fleet(event),
                ack = inputs.acks.recv() => {
                    let Some(ack) = ack else { return End::Lost("speaker") };
                    self.acknowledged(ack);
                }
                update = next_update(&mut inputs.updates), if room => {
                    let Some(update) = update else { return End::Lost("speaker") };
                    self.update(update);
                }
                request = inputs.requests.recv(), if room => {
                    let Some(request) = request else { return End::Stopped };
                    self.request(request, stop_at.is_some());
                    for _ in 1..ROUND {
                        match inputs.requests.try_recv() {
                            Ok(request) => self.request(request, stop_at.is_some()),
                            Err(_) => break,
                        }
                    }
                }
                () = self.to_dataplane.flush() => {}
                () = flush(&mut self.to_speaker) => {}
                () = ping(&mut watchdog) => notify::watchdog(),
                () = sleep_until(wake) => {
                    let now = Now::read();
                    self.node.handle_timeout(now);
                    if swept + SWEEP <= now.instant {
                        swept = now.instant;
                        self.sweep();
                    }
                    if let Some(surplus) = self.footprint.handle_timeout(now.instant) {
                        tokio::task::spawn_blocking(move || surplus.release());
                    }
                }
                _ = inputs.stop.changed(), if stop_at.is_none() => {
                    stop_at = Some(Instant::now() + STOP_GRACE);
                    self.watchers.clear();
                    self.syncs.clear();
                    self.peers.publish(|| PeerEvent::End);
                }
            }
        }
    }

    /// Hands on what the node wants done.
    fn deliver(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Persist { token, records } => {
                    let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
                    self.metrics.store_records.inc_by(count);
                    if let Err(error) = self.store.submit(records, token.0) {
                        self.metrics.store_failures.inc();
                        self.node
                            .handle_persisted(Now::read(), token, Err(error.to_string()));
                    }
                }
                Output::Set(objects) => self.to_dataplane.put(ToDataplane::Set(objects)),
                Output::Remove(ids) => self.to_dataplane.put(ToDataplane::Remove(ids)),
                Output::Synced(source) => self.to_dataplane.put(ToDataplane::Synced(source)),
                Output::Originate(cidr) => match &mut self.to_speaker {
                    Some(outbox) => outbox.put(ToSpeaker::Originate(vec![cidr])),
                    None => self.node.handle_originated(Now::read(), cidr),
                },
                Output::Prefer(cidr) => {
                    if let Some(outbox) = &mut self.to_speaker {
                        outbox.put(ToSpeaker::Prefer(cidr));
                    }
                }
                Output::Withdraw(cidr) => match &mut self.to_speaker {
                    Some(outbox) => outbox.put(ToSpeaker::Withdraw(vec![cidr])),
                    None => self.node.handle_withdrawn(cidr),
                },
                Output::Drain(drain) => {
                    tracing::info!(?drain, "announcements change");
                    if let Some(outbox) = &mut self.to_speaker {
                        outbox.put(ToSpeaker::Drain(drain));
                    }
                }
                Output::Acquire(wanted) => {
                    if let Some(fleet) = &self.fleet {
                        fleet.acquire(wanted);
                    }
                }
                Output::Return(cidr) => {
                    if let Some(fleet) = &self.fleet {
                        fleet.give_back(cidr);
                    }
                }
                Output::OriginationsSynced => {
                    if let Some(outbox) = &mut self.to_speaker {
                        outbox.put(ToSpeaker::OriginationsSynced);
                    }
                }
                Output::Reply { caller, reply } => match (self.callers.remove(&caller), reply) {
                    // A caller that is gone needs no answer.
                    (Some(Waiter::Add(sender)), Reply::Added(result)) => {
                        let _ = sender.send(result);
                    }
                    (Some(Waiter::Delete(sender)), Reply::Deleted(result)) => {
                        let _ = sender.send(result);
                    }
                    (Some(Waiter::Drain(sender)), Reply::Drain(result)) => {
                        let _ = sender.send(result);
                    }
                    (Some(Waiter::Pool(sender)), Reply::Pool(result)) => {
                        let _ = sender.send(result.map(|users| *users));
                    }
                    (Some(Waiter::Release(sender)), Reply::BlockReleased(result)) => {
                        let _ = sender.send(result);
                    }
                    _ => {}
                },
                Output::Sync { id, event } => self.tell_sync(id, event),
                Output::Claim(event) => self.claim(&event),
                Output::Publish(event) => self.watchers.retain(|watcher| watcher.send(&event)),
            }
        }
        self.to_dataplane.push();
        if let Some(outbox) = &mut self.to_speaker {
            outbox.push();
        }
        self.metrics
            .operations_in_flight
            .set(i64::try_from(self.callers.len()).unwrap_or(i64::MAX));
        self.metrics
            .watchers
            .set(i64::try_from(self.watchers.len()).unwrap_or(i64::MAX));
    }

    /// Has the peers counted that have each block.
    fn ask_advertised(&self) {
        self.originated.send_replace(self.node.active_blocks());
    }

    /// Forgets callers and watchers that are gone.
    fn sweep(&mut self) {
        let gone: Vec<Caller> = self
            .callers
            .iter()
            .filter(|(_, waiter)| waiter.is_gone())
            .map(|(caller, _)| *caller)
            .collect();
        for caller in gone {
            self.callers.remove(&caller);
            self.node.forget(caller);
        }
        self.watchers.retain(|watcher| !watcher.is_closed());
        let node = &mut self.node;
        self.syncs.retain(|id, sender| {
            if sender.is_closed() {
                node.handle_sync_end(*id);
            }
            !sender.is_closed()
        });
        if self.node.awaits_advertisement() {
            self.ask_advertised();
        }
    }
}

async fn next_update(updates: &mut Option<bgp::driver::Updates>) -> Option<Update> {
    match updates {
        Some(updates) => updates.next().await,
        None => std::future::pending().await,
    }
}

async fn flush(outbox: &mut Option<Outbox<ToSpeaker>>) {
    match outbox {
        Some(outbox) => outbox.flush().await,
        None => std::future::pending().await,
    }
}

async fn ping(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
