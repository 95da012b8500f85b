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

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bgp::{
    driver::Update,
    speaker::status::{PeerState, PeerStatus},
};
use dataplane::desired::Event;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};

use super::outbox::{Outbox, ToDataplane, ToSpeaker};
use crate::{
    api::Health,
    fleet,
    ipam::Now,
    node::{
        Caller, Drain, Error, Node, Output, Reply, Token,
        claims::ClaimEvent,
        handle::{Added, IN_FLIGHT, Request, SyncRequest, WATCH_QUEUE, Watcher},
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
            wake = [wake, stop_at].into_iter().flatten().min();
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

    fn claim(&self, event: &ClaimEvent) {
        match event {
            ClaimEvent::Began(duplicate) => {
                let claim = &duplicate.claim;
                let (block, prefix) = (&claim.block, &claim.prefix);
                self.metrics.duplicate_claims_seen.inc();
                tracing::error!(
                    %block, %prefix, peer = claim.peer, originator = ?claim.originator,
                    origin_as = ?claim.origin_as.map(|asn| asn.0), unused = duplicate.yields,
                    "another BGP speaker announces a block of this node: two nodes hold it"
                );
            }
            ClaimEvent::Yielded(block) => {
                self.metrics.blocks_yielded.inc();
                tracing::warn!(%block, "the block is unused and given up: another one announces it");
            }
            ClaimEvent::Ended(block) => {
                tracing::info!(%block, "nobody else announces the block any more");
            }
        }
        let blocks: HashSet<IpNet> = self
            .node
            .duplicate_claims()
            .iter()
            .map(|known| known.claim.block)
            .collect();
        self.metrics
            .duplicate_claims
            .set(i64::try_from(blocks.len()).unwrap_or(i64::MAX));
    }

    fn caller(&mut self, waiter: Waiter) -> Caller {
        let caller = Caller(self.next_caller);
        self.next_caller += 1;
        self.callers.insert(caller, waiter);
        caller
    }

    fn request(&mut self, request: Request, stopping: bool) {
        // Whoever asked and went away needs no answer; sends to it fail, and that is all.
        let refused = if stopping {
            Some(Error::Stopping)
        } else if self.callers.len() >= IN_FLIGHT {
            Some(Error::Busy { limit: IN_FLIGHT })
        } else {
            None
        };
        let now = Now::read();
        match request {
            Request::Add {
                id,
                spec,
                wait,
                reply,
            } => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Add(reply));
                    self.node.handle_add(now, caller, id, spec, wait);
                }
            },
            Request::Delete {
                id,
                generation,
                reply,
            } => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Delete(reply));
                    self.node.handle_delete(now, caller, id, generation);
                }
            },
            Request::Drain(timeout, reply) => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Drain(reply));
                    self.node.handle_drain(now, caller, timeout);
                }
            },
            Request::Undrain(reply) => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Drain(reply));
                    self.node.handle_undrain(caller);
                }
            },
            Request::SetPools {
                pools,
                settings,
                reply,
            } => {
                let _ = reply.send(self.node.set_pools(now, &pools, &settings));
            }
            Request::PoolState { name, to, reply } => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Pool(reply));
                    self.node.handle_pool_state(now, caller, name, to);
                }
            },
            Request::Sync(request) => self.sync_request(request, refused),
            Request::Get(id, reply) => {
                let _ = reply.send(self.node.workload(&id));
            }
            Request::List(reply) => {
                let _ = reply.send(self.node.workloads());
            }
            Request::Watch(reply) => {
                // Events of earlier inputs of this round are not in its channel yet, but what
                // they tell is in the snapshot already.
                self.deliver();
                let (watcher, watch) = Watcher::new(self.node.published(), self.node.cursor());
                if reply.send(watch).is_ok() {
                    self.watchers.push(watcher);
                }
            }
            Request::Pools(reply) => {
                let _ = reply.send(self.node.pools(now));
            }
            Request::Blocks(reply) => {
                let _ = reply.send(self.node.blocks(now));
            }
            Request::Address(address, reply) => {
                let _ = reply.send(self.node.address(now, address));
            }
            Request::Status(reply) => {
                let _ = reply.send(self.node.status());
            }
            Request::ReleaseBlock(cidr, reply) => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Release(reply));
                    self.node.handle_release_block(now, caller, cidr);
                }
            },
            Request::AddressUses(reply) => {
                let _ = reply.send(self.node.address_uses(now));
            }
            Request::Audit(reply) => {
                // What it has handed to the store already is to be in what is read.
                self.deliver();
                let _ = reply.send((self.node.audit(now), self.store.read()));
            }
        }
    }

    fn sync_request(&mut self, request: SyncRequest, refused: Option<Error>) {
        let now = Now::read();
        match request {
            SyncRequest::Begin {
                owner,
                grace,
                reply,
            } => {
                let begun = match refused {
                    Some(error) => Err(error),
                    None => self.node.handle_sync_begin(owner, grace),
                };
                let begun = begun.map(|id| {
                    let (sender, events) = mpsc::channel(WATCH_QUEUE);
                    self.syncs.insert(id, sender);
                    (id, events)
                });
                let _ = reply.send(begun);
            }
            SyncRequest::Name(sync, id, reply) => {
                let _ = reply.send(self.node.handle_sync_name(sync, &id));
            }
            SyncRequest::Delete {
                owner,
                id,
                generation,
                reply,
            } => {
                let refused = refused.or_else(|| self.node.refuse_other(&owner, &id));
                match refused {
                    Some(error) => {
                        let _ = reply.send(Err(error));
                    }
                    None => {
                        let caller = self.caller(Waiter::Delete(reply));
                        self.node.handle_delete(now, caller, id, generation);
                    }
                }
            }
            SyncRequest::Complete(sync, reply) => {
                let _ = reply.send(self.node.handle_sync_complete(now, sync));
            }
            SyncRequest::End(sync) => {
                self.syncs.remove(&sync);
                self.node.handle_sync_end(sync);
            }
        }
    }

    /// A client that is gone or too slow is ended.
    fn tell_sync(&mut self, id: SyncId, event: SyncEvent) {
        let over = event == SyncEvent::Replaced;
        let told = self.syncs.get(&id).map(|sender| sender.try_send(event));
        if over || matches!(told, Some(Err(_))) {
            self.syncs.remove(&id);
            self.node.handle_sync_end(id);
        }
    }

    fn dataplane(&mut self, events: Vec<Event>, own_addresses: &OwnAddresses) {
        let now = Now::read();
        let mut next_hops = Vec::new();
        for event in events {
            match event {
                Event::NextHop { via, state } => {
                    next_hops.push((speaker_via(via), next_hop_state(state)));
                }
                Event::Repaired { id, what } => {
                    tracing::warn!(?id, %what, "changed by others, put back");
                }
                Event::NodeAddresses(all) => {
                    let own = own_addresses(&all);
                    tracing::info!(?own, "addresses of this node");
                    self.node.set_own_addresses(own);
                }
                Event::SharedRepaired { what } => {
                    tracing::warn!(%what, "changed by others, put back");
                }
                Event::FilterRepaired { what } => {
                    tracing::warn!(%what, "nftables changed by others, put back");
                }
                Event::FilterFailed(error) => {
                    tracing::error!(
                        kind = ?error.kind,
                        error = %error.text,
                        "the nftables table is not as it should be: ports, masquerading and source \
                         checks may be missing"
                    );
                }
                Event::FilterProgrammed => {
                    tracing::info!("the nftables table inet agentd stands");
                }
                Event::Failed { id, error } => {
                    tracing::warn!(?id, kind = ?error.kind, error = %error.text, "not in the kernel");
                    self.node.handle_dataplane(now, Event::Failed { id, error });
                }
                Event::Swept { source, deleted } => {
                    tracing::info!(?source, deleted, "stale kernel objects removed");
                    self.node
                        .handle_dataplane(now, Event::Swept { source, deleted });
                }
                event => self.node.handle_dataplane(now, event),
            }
        }
        if let Some(outbox) = &mut self.to_speaker
            && !next_hops.is_empty()
        {
            outbox.put(ToSpeaker::NextHops(next_hops));
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Routes(changes) => {
                let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
                self.metrics.route_changes.inc_by(count);
                self.node.handle_routes(changes);
            }
            Update::WatchNextHops { add, remove } => {
                let add = add.into_iter().map(dataplane_via).collect();
                let remove = remove.into_iter().map(dataplane_via).collect();
                self.to_dataplane
                    .put(ToDataplane::WatchNextHops { add, remove });
            }
            Update::Peers(peers) => {
                for peer in peers {
                    self.log_peer(&peer);
                    self.peers.publish(|| PeerEvent::Changed(Box::new(peer)));
                }
                if self.node.is_ready() {
                    notify::status(&self.status_line());
                }
                self.ask_advertised();
            }
            Update::PeersGone(names) => {
                for name in names {
                    self.established.remove(&name);
                    // Who has removed it has said so; of a range they come and go.
                    tracing::debug!(peer = name, "peer is gone");
                    self.peers.publish(|| PeerEvent::Gone(name));
                }
                self.ask_advertised();
            }
            Update::Claims(claims) => self.node.handle_claims(Now::read(), claims),
            Update::FirstSync => {
                tracing::info!("every peer has sent its table, or had time enough");
                self.node.handle_first_sync();
            }
        }
    }

    /// For `systemctl status`, as of the last change of a peer.
    fn status_line(&self) -> String {
        let status = self.node.status();
        format!(
            "{} workloads, {} blocks, {} BGP sessions established",
            status.workloads,
            status.blocks,
            self.established.len()
        )
    }

    /// Each session that comes or goes, and each new reason why one does not come.
    fn log_peer(&mut self, peer: &PeerStatus) {
        let (name, address) = (&peer.name, peer.address);
        if let Some(reason) = &peer.news.lost {
            tracing::warn!(peer = name, %address, reason, "session lost");
        }
        if peer.state == PeerState::Established {
            if self.established.insert(name.clone()) || peer.news.established {
                tracing::info!(peer = name, %address, "session established");
            }
            return;
        }
        self.established.remove(name);
        // Strangers that a range lets connect must not fill the log.
        let is_stranger = peer.range.is_some() && peer.counters.established_count == 0;
        if peer.news.reason && !is_stranger {
            tracing::info!(peer = name, %address, reason = peer.reason, "session not established");
        } else if peer.news.lost.is_none() {
            tracing::debug!(peer = name, %address, state = ?peer.state, reason = peer.reason, "session not established");
        }
    }

    fn acknowledged(&mut self, ack: Ack) {
        let now = Now::read();
        match ack {
            Ack::Originated(blocks) => {
                for cidr in blocks {
                    self.node.handle_originated(now, cidr);
                }
                self.ask_advertised();
            }
            Ack::Withdrawn(blocks) => {
                for cidr in blocks {
                    self.node.handle_withdrawn(cidr);
                }
            }
            Ack::Advertised(counts) => self.node.handle_advertised(counts),
        }
    }

    fn fleet(&mut self, event: fleet::Event) {
        let now = Now::read();
        match event {
            fleet::Event::Acquired { pool, block } => self.node.handle_acquired(now, &pool, block),
            fleet::Event::AcquireFailed { pool, block, why } => {
                self.node.handle_acquire_failed(now, &pool, block, why);
            }
            // Shown by the status; the rest is for others.
            fleet::Event::Lost { .. } | fleet::Event::Nodes(_) | fleet::Event::Reclaim(_) => {}
        }
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

fn speaker_via(via: dataplane::desired::Via) -> bgp::attributes::Via {
    bgp::attributes::Via {
        address: via.address,
        interface: via.interface,
    }
}

fn dataplane_via(via: bgp::attributes::Via) -> dataplane::desired::Via {
    dataplane::desired::Via {
        address: via.address,
        interface: via.interface,
    }
}

fn next_hop_state(state: dataplane::desired::NextHopState) -> bgp::rib::NextHopState {
    match state {
        dataplane::desired::NextHopState::Unreachable => bgp::rib::NextHopState::Unreachable,
        dataplane::desired::NextHopState::Reachable { metric } => {
            bgp::rib::NextHopState::Reachable { metric }
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
