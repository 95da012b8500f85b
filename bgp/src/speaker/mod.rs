//! The speaker: sessions, RIB and configuration as one machine without IO.
//!
//! Whoever drives it owns the sockets and the clock. Events go in with the time
//! (`handle_*`), and after each the driver takes what is to be done out of [`Speaker::poll_output`]
//! until it is empty, and calls [`Speaker::handle_timeout`] at [`Speaker::poll_timeout`]. Changes
//! of the Loc-RIB wait, coalesced by prefix, until they are asked for.
//!
//! Rules for a driver:
//!
//! * A connection reads up to and including the OPEN, then waits for [`Output::Negotiated`] before
//!   it decodes anything further, because only then the parameters of the codec are known.
//! * After [`Output::Send`] it reports [`Speaker::handle_writable`] once everything sent so far was
//!   taken by the transport. UPDATEs are made only then, so a slow peer holds no memory.
//! * After [`Output::Close`] it writes what is left, closes, and says nothing more about it.

mod commands;
pub mod config;
mod peer;
pub mod status;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::IndexMap;

use self::{
    config::{ConfigError, PeerConfig, SpeakerConfig},
    peer::Peer,
};
use crate::{
    message::{Message, Negotiated, Notification, RouteRefresh},
    rib::{NextHopWatch, Rib, RibConfig, RouteChange},
    session::{Action, ConnectionIds, Context, Packet, Received, Session},
    types::{ConnectionId, Family, PeerId},
    wire,
};

/// About how many octets of UPDATEs are made for a peer at once.
const PULL_BUDGET: usize = 64 * 1024;
/// A peer that does not know End-of-RIB is taken to have sent its table after so long.
const TABLE_WITHOUT_MARKER: Duration = Duration::from_secs(10);

/// How long the program may take to say whether the next hops of the first tables are reachable.
const RESOLVING_TIME: Duration = Duration::from_secs(10);

/// Why an administrative command was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("there is no BGP peer named {0:?}")]
    UnknownPeer(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot set the TCP MD5 password for peer {peer:?} on a listening socket: {reason}")]
    Password { peer: String, reason: String },
    #[error("the BGP speaker has stopped")]
    Stopped,
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// A dial succeeded; with the address we have on it.
    Connected { local: SocketAddr },
    /// A dial failed, or the connection is gone; for a person.
    Closed { reason: String },
}

/// What the driver is to do, in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Open a connection to the peer, as its configuration says.
    Dial {
        connection: ConnectionId,
        peer: Arc<PeerConfig>,
    },
    /// Write these octets: whole messages.
    Send {
        connection: ConnectionId,
        octets: Vec<u8>,
    },
    /// The OPEN was accepted: go on reading, with these parameters.
    Negotiated {
        connection: ConnectionId,
        negotiated: Arc<Negotiated>,
    },
    /// Write what is left, then close. A dial under way is given up.
    Close { connection: ConnectionId },
}

/// See the head of the module.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    rib: Rib,
    peers: IndexMap<PeerId, Peer>,
    names: HashMap<String, PeerId>,
    addresses: HashMap<(IpAddr, u32), PeerId>,
    connections: HashMap<ConnectionId, Connection>,
    connection_ids: ConnectionIds,
    next_peer: u32,
    rng: fastrand::Rng,
    outputs: VecDeque<Output>,
    /// Scratch of `with_session`.
    actions: Vec<Action>,
    /// At most one entry for each peer, never later than its deadline.
    deadlines: BTreeSet<(Instant, PeerId)>,
    /// Peers that may have something to be sent; each at most once.
    pullable: VecDeque<PeerId>,
    changed: BTreeSet<PeerId>,
    first_sync: FirstSync,
    end_of_rib: EndOfRib,
    /// Watched next hops of which nothing was said yet.
    unanswered: HashSet<IpAddr>,
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    /// Unknown while it is being dialled.
    local: Option<SocketAddr>,
}

/// Whether the tables of all peers have arrived once.
#[derive(Debug)]
enum FirstSync {
    Waiting {
        deadline: Instant,
    },
    /// All tables are here; the program may still be looking for next hops.
    Resolving {
        give_up_at: Instant,
    },
    /// To be reported.
    Reached,
    Done,
}

/// Whether peers may be sent End-of-RIB.
#[derive(Debug, PartialEq, Eq)]
enum EndOfRib {
    /// What we originate is not complete.
    Held,
    /// A restarted reflector: what it passed on before is not complete.
    WaitingForPeers,
    Released,
}

impl Speaker {
    /// Starts the sessions of all peers that are not shut down.
    pub fn new(now: Instant, config: SpeakerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let rib = Rib::new(
            RibConfig {
                cluster_id: config.cluster_id,
                multipath: config.multipath,
                // Until `originations_synced`.
                hold_end_of_rib: true,
                ..RibConfig::new(config.asn, config.router_id)
            },
            now,
        );
        let mut speaker = Self {
            rib,
            peers: IndexMap::new(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            connections: HashMap::new(),
            connection_ids: ConnectionIds::default(),
            next_peer: 0,
            rng: fastrand::Rng::with_seed(config.seed),
            outputs: VecDeque::new(),
            actions: Vec::new(),
            deadlines: BTreeSet::new(),
            pullable: VecDeque::new(),
            changed: BTreeSet::new(),
            end_of_rib: EndOfRib::Held,
            unanswered: HashSet::new(),
            first_sync: FirstSync::Waiting {
                deadline: now + config.first_sync_timeout,
            },
            config,
        };
        for (prefix, route) in std::mem::take(&mut speaker.config.originate) {
            speaker.rib.originate(now, prefix, route);
        }
        for peer in std::mem::take(&mut speaker.config.peers) {
            speaker.insert_peer(now, peer);
        }
        speaker.check_first_sync(now);
        Ok(speaker)
    }

    // ---- connections -------------------------------------------------------------------------

    /// Somebody has connected. `None` refuses: no such peer, or its session takes none now.
    pub fn handle_accepted(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<(ConnectionId, Arc<PeerConfig>)> {
        let peer_id = *self
            .addresses
            .get(&(remote.ip(), scope_of(remote)))
            .or_else(|| self.addresses.get(&(remote.ip(), 0)))?;
        let config = Arc::clone(&self.peers.get(&peer_id)?.config);
        if config
            .local_address
            .is_some_and(|address| address != local.ip())
        {
            return None;
        }
        let connection = self.connection_ids.next();
        self.connections.insert(
            connection,
            Connection {
                peer: peer_id,
                local: Some(local),
            },
        );
        let accepted =
            self.with_session(now, peer_id, |session, cx| session.accepted(cx, connection));
        if accepted != Some(true) {
            self.connections.remove(&connection);
            return None;
        }
        Some((connection, config))
    }

    /// A dial ended, or a connection is gone.
    pub fn handle_connection(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        event: ConnectionEvent,
    ) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let peer = known.peer;
        match event {
            ConnectionEvent::Connected { local } => {
                known.local = Some(local);
                self.with_session(now, peer, |session, cx| session.connected(cx, connection));
            }
            ConnectionEvent::Closed { reason } => {
                self.with_session(now, peer, |session, cx| {
                    session.closed(cx, connection, reason);
                });
                self.connections.remove(&connection);
            }
        }
    }

    /// A decoded message, or what is wrong with the octets received.
    pub fn handle_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Result<Message, Notification>,
    ) {
        let Some(peer_id) = self.connections.get(&connection).map(|known| known.peer) else {
            return;
        };
        let received = self.with_session(now, peer_id, |session, cx| {
            session.message(cx, connection, message)
        });
        match received {
            None | Some(Received::Nothing) => {}
            Some(Received::RouteRefresh(RouteRefresh { afi, safi, subtype })) => {
                // RFC 7313 §5: the begin and end marks were not negotiated.
                if subtype == 0
                    && let Some(family) = Family::from_afi_safi(afi, safi)
                {
                    self.rib.refresh(peer_id, family);
                }
            }
            Some(Received::Update(update)) => {
                if let Some(peer) = self.peers.get_mut(&peer_id) {
                    peer.count_faults(&update.faults);
                }
                if let Err(limit) = self.rib.update(now, peer_id, &update) {
                    // RFC 4486 §4
                    let error = Notification::maximum_prefixes(limit.family, limit.limit);
                    let rest = self
                        .peers
                        .get(&peer_id)
                        .and_then(|peer| peer.config.max_prefixes_restart);
                    self.with_session(now, peer_id, |session, cx| {
                        session.fail(cx, error);
                        if let Some(rest) = rest {
                            session.rest(cx, rest);
                        }
                    });
                }
                if update.end_of_rib.is_some() {
                    self.check_first_sync(now);
                }
            }
        }
    }

    /// Everything sent on the connection so far was taken by the transport.
    pub fn handle_writable(&mut self, connection: ConnectionId) {
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let peer_id = known.peer;
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.session.writable(connection);
            self.queue_pull(peer_id);
        }
    }

    /// Octets that went over a connection since the last report; for the counters.
    pub fn count_octets(&mut self, connection: ConnectionId, received: u64, sent: u64) {
        if let Some(known) = self.connections.get(&connection)
            && let Some(peer) = self.peers.get_mut(&known.peer)
        {
            peer.session.counters.bytes_received += received;
            peer.session.counters.bytes_sent += sent;
        }
    }

    // ---- time and outputs --------------------------------------------------------------------

    /// The earliest time at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.deadlines.first().map(|(deadline, _)| *deadline);
        let first_sync = match self.first_sync {
            FirstSync::Waiting { deadline } => Some(
                self.peers
                    .values()
                    .filter_map(|peer| peer.session.initial_table_received())
                    .filter(|table| !table.complete && !table.sends_end_of_rib)
                    .map(|table| table.since + TABLE_WITHOUT_MARKER)
                    .fold(deadline, Instant::min),
            ),
            FirstSync::Resolving { give_up_at } => Some(give_up_at),
            FirstSync::Reached | FirstSync::Done => None,
        };
        sessions.into_iter().chain(first_sync).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each due peer once, whatever its next deadline is.
        let due: Vec<_> = self
            .deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .copied()
            .collect();
        for entry in due {
            let (_, peer_id) = entry;
            if self.deadlines.remove(&entry)
                && let Some(peer) = self.peers.get_mut(&peer_id)
            {
                peer.scheduled = None;
            }
            self.with_session(now, peer_id, |session, cx| session.timeout(cx));
        }
        if matches!(self.first_sync, FirstSync::Resolving { give_up_at } if give_up_at <= now) {
            self.first_sync = FirstSync::Reached;
        }
        self.check_first_sync(now);
    }

    /// The next thing to do. UPDATEs are made here, for one peer at a time.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            while let Some(peer_id) = self.rib.poll_dirty_peer() {
                self.queue_pull(peer_id);
            }
            let peer_id = self.pullable.pop_front()?;
            let Some(peer) = self.peers.get_mut(&peer_id) else {
                continue;
            };
            peer.queued = false;
            let Some(connection) = peer.session.ready_for_updates() else {
                // The report that the connection takes more comes back here.
                continue;
            };
            let mut octets = Vec::new();
            let pulled = self.rib.pull(peer_id, &mut octets, PULL_BUDGET);
            if octets.is_empty() {
                continue;
            }
            peer.session
                .sent_updates(now, u64::from(pulled.updates), pulled.end_of_rib);
            self.reschedule(peer_id);
            return Some(Output::Send { connection, octets });
        }
    }

    /// The next change of the Loc-RIB, coalesced by prefix.
    pub fn poll_route_change(&mut self) -> Option<RouteChange> {
        self.rib.poll_change()
    }

    /// An address whose reachability matters from now on, or no longer.
    pub fn poll_next_hop_watch(&mut self) -> Option<NextHopWatch> {
        let watch = self.rib.poll_next_hop_watch()?;
        match watch {
            NextHopWatch::Watch(address) => self.unanswered.insert(address),
            NextHopWatch::Unwatch(address) => self.unanswered.remove(&address),
        };
        Some(watch)
    }

    /// A peer whose state has changed since it was last returned here.
    pub fn poll_changed_peer(&mut self) -> Option<PeerId> {
        self.changed.pop_first()
    }

    /// True once: every peer has sent its table, or the deadline has passed, and all next hops of
    /// these tables were answered. Take all route changes before asking.
    pub fn poll_first_sync(&mut self) -> bool {
        let reached = match self.first_sync {
            FirstSync::Resolving { .. } => self.unanswered.is_empty(),
            FirstSync::Reached => true,
            FirstSync::Waiting { .. } | FirstSync::Done => false,
        };
        if reached {
            self.first_sync = FirstSync::Done;
        }
        reached
    }

    fn find(&self, name: &str) -> Result<PeerId, AdminError> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| AdminError::UnknownPeer(name.to_owned()))
    }

    fn insert_peer(&mut self, now: Instant, config: PeerConfig) -> PeerId {
        let peer_id = PeerId(self.next_peer);
        self.next_peer += 1;
        self.names.insert(config.name.clone(), peer_id);
        self.addresses
            .insert((config.address, config.scope_id), peer_id);
        let settings = peer::settings(
            &self.config,
            &config,
            matches!(self.first_sync, FirstSync::Waiting { .. }),
        );
        let start = !config.shutdown;
        let session = Session::new(now, settings, self.rng.u64(..));
        self.peers.insert(peer_id, Peer::new(config, session));
        if start {
            self.with_session(now, peer_id, |session, cx| session.start(cx));
        }
        peer_id
    }

    /// Runs one event of one session and does what follows.
    fn with_session<T>(
        &mut self,
        now: Instant,
        peer_id: PeerId,
        event: impl FnOnce(&mut Session, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let peer = self.peers.get_mut(&peer_id)?;
        let mut actions = std::mem::take(&mut self.actions);
        let mut cx = Context {
            now,
            ids: &mut self.connection_ids,
            actions: &mut actions,
        };
        let result = event(&mut peer.session, &mut cx);
        if peer.session.take_state_change(now) {
            self.changed.insert(peer_id);
        }
        for action in actions.drain(..) {
            self.act(peer_id, action);
        }
        self.actions = actions;
        self.reschedule(peer_id);
        Some(result)
    }

    fn act(&mut self, peer_id: PeerId, action: Action) {
        let Some(peer) = self.peers.get(&peer_id) else {
            return;
        };
        match action {
            Action::Dial(connection) => {
                self.connections.insert(
                    connection,
                    Connection {
                        peer: peer_id,
                        local: None,
                    },
                );
                self.outputs.push_back(Output::Dial {
                    connection,
                    peer: Arc::clone(&peer.config),
                });
            }
            Action::Close(connection) => {
                self.connections.remove(&connection);
                self.outputs.push_back(Output::Close { connection });
            }
            Action::Send(connection, packet) => {
                let mut octets = Vec::new();
                encode(&mut octets, &packet);
                self.outputs.push_back(Output::Send { connection, octets });
            }
            Action::Negotiated(connection, negotiated) => {
                self.outputs.push_back(Output::Negotiated {
                    connection,
                    negotiated,
                });
            }
            Action::Up(up) => {
                let local = self
                    .connections
                    .get(&up.connection)
                    .and_then(|known| known.local);
                let session = peer::rib_session(&self.config, &peer.config, local, *up);
                self.rib.peer_up(peer_id, session);
                self.queue_pull(peer_id);
            }
            Action::Down { keep_stale } => self.rib.peer_down(peer_id, keep_stale),
            Action::SweepStale(family) => self.rib.sweep_stale(peer_id, family),
        }
    }

    fn queue_pull(&mut self, peer_id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer_id)
            && !peer.queued
            && self.rib.has_pending(peer_id)
        {
            peer.queued = true;
            self.pullable.push_back(peer_id);
        }
    }

    /// An entry that is too early is harmless and cheap: it is corrected when it is reached. So
    /// only an earlier deadline changes the set, and a message that restarts the hold timer does
    /// not.
    fn reschedule(&mut self, peer_id: PeerId) {
        let Some(peer) = self.peers.get_mut(&peer_id) else {
            return;
        };
        let Some(deadline) = peer.session.deadline() else {
            return;
        };
        match peer.scheduled {
            Some(scheduled) if scheduled <= deadline => {}
            scheduled => {
                if let Some(scheduled) = scheduled {
                    self.deadlines.remove(&(scheduled, peer_id));
                }
                self.deadlines.insert((deadline, peer_id));
                peer.scheduled = Some(deadline);
            }
        }
    }

    fn check_first_sync(&mut self, now: Instant) {
        let has_table = |peer: &Peer| {
            peer.session.initial_table_received().map(|table| {
                let complete = table.complete
                    || (!table.sends_end_of_rib && now >= table.since + TABLE_WITHOUT_MARKER);
                (complete, table.restarting)
            })
        };
        let peers = || {
            self.peers
                .values()
                .filter(|peer| !peer.session.is_stopped())
                .map(has_table)
        };
        let past = match self.first_sync {
            FirstSync::Waiting { deadline } => now >= deadline,
            FirstSync::Resolving { .. } | FirstSync::Reached | FirstSync::Done => true,
        };
        if self.end_of_rib == EndOfRib::WaitingForPeers
            && (past
                || peers().all(|table| {
                    table.is_some_and(|(complete, restarting)| complete || restarting)
                }))
        {
            self.release_end_of_rib();
        }
        if !matches!(self.first_sync, FirstSync::Waiting { .. }) {
            return;
        }
        let all = self
            .peers
            .values()
            .filter(|peer| !peer.session.is_stopped())
            .map(has_table)
            .all(|table| table.is_some_and(|(complete, _)| complete));
        if all || past {
            self.first_sync = FirstSync::Resolving {
                give_up_at: now + RESOLVING_TIME,
            };
            // RFC 4724 §4.1: from here on a lost session is not part of the restart.
            for peer in self.peers.values_mut() {
                peer.session.set_restarting(None);
            }
        }
    }
}

/// Only link-local addresses need the interface to be told apart.
fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

fn encode(out: &mut Vec<u8>, packet: &Packet) {
    match packet {
        Packet::Open(open) => wire::encode_open(out, open),
        Packet::Keepalive => wire::encode_keepalive(out),
        Packet::Notification(notification) => wire::encode_notification(out, notification),
        Packet::RouteRefresh(family) => {
            let (afi, safi) = family.afi_safi();
            let refresh = RouteRefresh {
                afi,
                safi,
                subtype: 0,
            };
            wire::encode_route_refresh(out, &refresh);
        }
    }
}
