//! The task that owns the speaker.
//!
//! A turn takes what has arrived, for a bounded time, then does what is due, then carries out what
//! the speaker wants. Nothing here waits for a peer: connections have their own tasks, and what
//! they are told goes through channels that the protocol bounds.
//!
//! | from → to | kind | on full |
//! |---|---|---|
//! | connection → speaker | mpsc, a few batches for each connection | the connection stops reading |
//! | speaker → connection | one portion of UPDATEs, then a report | stays in the RIB, coalesced |
//! | handle → speaker | mpsc | the caller waits |
//! | speaker → updates | mpsc of portions | stays in the RIB, coalesced by prefix |

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    api::{Admin, Command, Neighbors, Update},
    connection::{self, Batch, Control},
    link, socket,
};
use crate::{
    rib::{LocalRoute, NextHopWatch},
    speaker::{AdminError, ConnectionEvent, Output, Speaker, config::PeerConfig},
    types::{Asn, ConnectionId},
};

/// Inputs that may wait for the speaker.
pub(super) const INPUT_QUEUE: usize = 256;
/// Portions of updates that may wait for the program.
pub(super) const UPDATE_QUEUE: usize = 2;
/// How long a turn may take inputs, and how long it may then make outputs.
const TURN: Duration = Duration::from_millis(4);
/// Timers are looked at when nothing waits to be processed, and at the latest after this: a
/// message that waits here must not count as one that did not come.
const TIMERS_AT_LEAST_EVERY: Duration = Duration::from_millis(500);
/// Peers in one portion.
const PEERS_PER_UPDATE: usize = 256;
/// Route changes in one portion.
const CHANGES_PER_UPDATE: usize = 1024;
/// How long sessions may take to end at shutdown.
const SHUTDOWN_TIME: Duration = Duration::from_millis(1500);
/// The wait after a failed accept, for example when the process is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What sockets tell the speaker.
#[derive(Debug)]
pub(super) enum Input {
    Accepted {
        stream: TcpStream,
        remote: SocketAddr,
    },
    Connected {
        connection: ConnectionId,
        local: SocketAddr,
    },
    Messages {
        connection: ConnectionId,
        batch: Batch,
    },
    /// Everything sent so far was taken by the kernel.
    Writable {
        connection: ConnectionId,
        octets: u64,
    },
    Closed {
        connection: ConnectionId,
        reason: String,
    },
}

/// See the head of the module.
#[derive(Debug)]
pub(super) struct SpeakerTask {
    pub(super) speaker: Speaker,
    local_asn: Asn,
    pub(super) listeners: Vec<Arc<TcpListener>>,
    connections: HashMap<ConnectionId, mpsc::UnboundedSender<Control>>,
    /// Every socket task, so that none outlives the speaker.
    tasks: JoinSet<()>,
    task_connections: HashMap<tokio::task::Id, ConnectionId>,
    inputs: mpsc::Receiver<Input>,
    /// For new connections.
    input_sender: mpsc::Sender<Input>,
    commands: mpsc::Receiver<Command>,
    updates: mpsc::Sender<Update>,
    timers_done_at: Instant,
}

/// Whether the turn goes on.
#[derive(Debug)]
enum Flow {
    Continue,
    Stop(tokio::sync::oneshot::Sender<()>),
    /// Every handle is gone.
    Abandoned,
}

impl SpeakerTask {
    pub(super) fn new(
        speaker: Speaker,
        local_asn: Asn,
        listeners: Vec<Arc<TcpListener>>,
        commands: mpsc::Receiver<Command>,
        updates: mpsc::Sender<Update>,
    ) -> Self {
        let (input_sender, inputs) = mpsc::channel(INPUT_QUEUE);
        Self {
            speaker,
            local_asn,
            listeners,
            connections: HashMap::new(),
            tasks: JoinSet::new(),
            task_connections: HashMap::new(),
            inputs,
            input_sender,
            commands,
            updates,
            timers_done_at: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        for listener in &self.listeners {
            self.tasks
                .spawn(accept(Arc::clone(listener), self.input_sender.clone()));
        }
        // Whether outputs are left of the last turn, and whether the program is behind.
        let mut more = self.make_outputs();
        let mut behind = self.publish();
        let updates = self.updates.clone();
        let stopped = loop {
            let timeout = self.speaker.poll_timeout();
            let mut flow = Flow::Continue;
            let mut drained = false;
            tokio::select! {
                input = self.inputs.recv() => {
                    // The sender kept here keeps the channel open.
                    if let Some(input) = input {
                        self.handle_input(input);
                    }
                }
                command = self.commands.recv() => flow = match command {
                    Some(command) => self.handle_command(command),
                    None => Flow::Abandoned,
                },
                () = room(&updates), if behind => {}
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = sleep_until(timeout) => drained = self.inputs.is_empty(),
                () = std::future::ready(()), if more => {}
            }
            let turn = Instant::now();
            while matches!(flow, Flow::Continue) && turn.elapsed() < TURN {
                if let Ok(input) = self.inputs.try_recv() {
                    self.handle_input(input);
                } else if let Ok(command) = self.commands.try_recv() {
                    flow = self.handle_command(command);
                } else {
                    drained = true;
                    break;
                }
            }
            let now = Instant::now();
            if drained || now >= self.timers_done_at + TIMERS_AT_LEAST_EVERY {
                self.timers_done_at = now;
                self.speaker.handle_timeout(now);
            }
            more = self.make_outputs();
            behind = self.publish();
            match flow {
                Flow::Continue => {}
                Flow::Stop(reply) => break Some(reply),
                Flow::Abandoned => break None,
            }
        };
        self.end(stopped).await;
    }

    /// Lets the closing connections write what they have, then drops everything.
    async fn end(mut self, stopped: Option<tokio::sync::oneshot::Sender<()>>) {
        if stopped.is_none() {
            self.speaker.shutdown(Instant::now(), "");
        }
        while self.make_outputs() {}
        self.connections.clear();
        // Listeners accept for as long as there is somebody to tell.
        self.inputs.close();
        let _ = tokio::time::timeout(SHUTDOWN_TIME, async {
            while !self.task_connections.is_empty() {
                match self.tasks.join_next_with_id().await {
                    Some(Ok((id, ()))) => drop(self.task_connections.remove(&id)),
                    Some(Err(error)) => drop(self.task_connections.remove(&error.id())),
                    None => break,
                }
            }
        })
        .await;
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    }

    fn handle_input(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Accepted { stream, remote } => self.accepted(now, stream, remote),
            Input::Connected { connection, local } => {
                let event = ConnectionEvent::Connected { local };
                self.speaker.handle_connection(now, connection, event);
            }
            Input::Messages { connection, batch } => {
                self.speaker.count_octets(connection, batch.octets, 0);
                for message in batch.messages {
                    self.speaker.handle_message(now, connection, message);
                }
            }
            Input::Writable { connection, octets } => {
                self.speaker.count_octets(connection, 0, octets);
                self.speaker.handle_writable(connection);
            }
            Input::Closed { connection, reason } => {
                self.connections.remove(&connection);
                let event = ConnectionEvent::Closed { reason };
                self.speaker.handle_connection(now, connection, event);
            }
        }
    }

    fn accepted(&mut self, now: Instant, stream: TcpStream, remote: SocketAddr) {
        let Ok(local) = stream.local_addr() else {
            // Already reset.
            return;
        };
        let Some((connection, peer)) = self.speaker.handle_accepted(now, local, remote) else {
            tracing::debug!(%remote, %local, "refused a connection");
            return;
        };
        if let Err(error) = socket::configure(&SockRef::from(&stream), self.local_asn, &peer) {
            let event = ConnectionEvent::Closed {
                reason: format!("cannot set socket options: {error}"),
            };
            return self.speaker.handle_connection(now, connection, event);
        }
        let inputs = self.input_sender.clone();
        self.spawn(connection, move |control| {
            connection::run(connection, stream, control, inputs)
        });
    }

    fn dial(&mut self, connection: ConnectionId, peer: Arc<PeerConfig>) {
        let inputs = self.input_sender.clone();
        let local_asn = self.local_asn;
        self.spawn(connection, move |mut control| async move {
            let dialed = tokio::select! {
                dialed = socket::dial(local_asn, &peer) => dialed,
                // Nothing is sent before the connection stands, so this is the end of it.
                _ = control.recv() => return,
            };
            let dialed = dialed.and_then(|stream| Ok((stream.local_addr()?, stream)));
            match dialed {
                Ok((local, stream)) => {
                    let connected = Input::Connected { connection, local };
                    if inputs.send(connected).await.is_ok() {
                        connection::run(connection, stream, control, inputs).await;
                    }
                }
                Err(error) => {
                    // Without the number that only programs care for.
                    let reason = error.to_string();
                    let text = reason.split(" (os error").next();
                    let reason = text.unwrap_or(&reason).to_owned();
                    let _ = inputs.send(Input::Closed { connection, reason }).await;
                }
            }
        });
    }

    fn spawn<F>(
        &mut self,
        connection: ConnectionId,
        task: impl FnOnce(mpsc::UnboundedReceiver<Control>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        // Unbounded, because the speaker must not wait here; see the head of `connection` for what
        // bounds it.
        let (sender, control) = mpsc::unbounded_channel();
        self.connections.insert(connection, sender);
        let id = self.tasks.spawn(task(control)).id();
        self.task_connections.insert(id, connection);
    }

    fn task_ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let (id, panicked) = match ended {
            Ok((id, ())) => (id, false),
            Err(error) => (error.id(), error.is_panic()),
        };
        let Some(connection) = self.task_connections.remove(&id) else {
            return;
        };
        if panicked {
            // One peer's connection is no reason to lose the others.
            tracing::error!(?connection, "a connection task has failed");
            self.connections.remove(&connection);
            let event = ConnectionEvent::Closed {
                reason: "internal error of this speaker".into(),
            };
            self.speaker
                .handle_connection(Instant::now(), connection, event);
        }
    }

    fn handle_command(&mut self, command: Command) -> Flow {
        let now = Instant::now();
        // A caller that no longer waits for the answer is no error.
        match command {
            Command::Originate(prefixes) => {
                for prefix in prefixes {
                    self.speaker.originate(now, prefix, LocalRoute::default());
                }
            }
            Command::OriginateRoutes(routes) => {
                for (prefix, route) in routes {
                    self.speaker.originate(now, prefix, route);
                }
            }
            Command::Withdraw(prefixes) => {
                for prefix in prefixes {
                    self.speaker.withdraw(prefix);
                }
            }
            Command::OriginationsSynced => self.speaker.originations_synced(now),
            Command::SetNextHops(states) => {
                for (address, state) in states {
                    self.speaker.set_next_hop(address, state);
                }
            }
            Command::Peers(reply) => drop(reply.send(self.speaker.peers())),
            Command::Routes(query, reply) => drop(reply.send(self.speaker.routes(&query))),
            Command::Received(address, limit, reply) => {
                drop(reply.send(self.speaker.received_covering(address, limit)));
            }
            Command::Advertised(peer, prefix, reply) => {
                drop(reply.send(self.speaker.advertised(&peer, prefix)));
            }
            Command::Originated(reply) => drop(reply.send(self.speaker.originated())),
            Command::Claims(reply) => drop(reply.send(self.speaker.claims())),
            Command::Ranges(reply) => drop(reply.send(self.speaker.ranges())),
            Command::AddPeer(peer, reply) => {
                drop(reply.send(self.add(now, Neighbors::Peer(*peer))));
            }
            Command::AddRange(range, reply) => {
                drop(reply.send(self.add(now, Neighbors::Range(*range))));
            }
            Command::Update(neighbors, reply) => drop(reply.send(self.update(now, *neighbors))),
            Command::RemovePeer(name, reply) => drop(reply.send(self.remove(now, &name))),
            Command::SetDrain(drain) => self.speaker.set_drain(drain),
            Command::SetNextHopSelf(own) => self.speaker.set_next_hop_self(own),
            Command::SetPolicies(name, import, export, reply) => {
                drop(reply.send(self.speaker.set_policies(&name, import, export)));
            }
            Command::Admin(name, admin, reply) => {
                let result = match admin {
                    Admin::ResetHard => self.speaker.reset_hard(now, &name),
                    Admin::ResetSoft(directions) => {
                        match self.speaker.reset_soft(now, &name, directions) {
                            Ok(false) => Err(AdminError::NoRefresh(name)),
                            result => result.map(drop),
                        }
                    }
                    Admin::Shutdown { text } => self.speaker.shutdown_peer(now, &name, &text),
                    Admin::Enable => self.speaker.enable_peer(now, &name),
                };
                drop(reply.send(result));
            }
            Command::Shutdown(text, reply) => {
                self.speaker.shutdown(now, &text);
                return Flow::Stop(reply);
            }
        }
        Flow::Continue
    }

    /// Carries out what the speaker wants, for a bounded time. True when there is more.
    fn make_outputs(&mut self) -> bool {
        let start = Instant::now();
        while let Some(output) = self.speaker.poll_output(start) {
            match output {
                Output::Dial { connection, peer } => self.dial(connection, peer),
                Output::Send { connection, octets } => {
                    self.tell(connection, Control::Send(octets));
                }
                Output::Negotiated {
                    connection,
                    negotiated,
                } => {
                    if let Some((local, remote)) = self.speaker.endpoints(connection)
                        && let Some(link) = link::find(local, remote)
                    {
                        self.speaker.set_link(connection, link);
                    }
                    self.tell(connection, Control::Negotiated(negotiated));
                }
                Output::Close { connection } => {
                    self.tell(connection, Control::Close);
                    self.connections.remove(&connection);
                }
            }
            if start.elapsed() >= TURN {
                return true;
            }
        }
        false
    }

    pub(super) fn tell(&self, connection: ConnectionId, control: Control) {
        // A connection that is gone has reported so, and the report is on its way.
        if let Some(sender) = self.connections.get(&connection) {
            let _ = sender.send(control);
        }
    }

    /// Hands the program what has changed, one portion at a time. True when it is behind.
    fn publish(&mut self) -> bool {
        loop {
            let permit = match self.updates.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return true,
                // Nobody wants to know; the RIB keeps one change for each prefix.
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            };
            match next_update(&mut self.speaker) {
                Some(update) => permit.send(update),
                None => return false,
            }
        }
    }
}

fn next_update(speaker: &mut Speaker) -> Option<Update> {
    let mut add = BTreeSet::new();
    let mut remove = BTreeSet::new();
    while let Some(watch) = speaker.poll_next_hop_watch() {
        match watch {
            NextHopWatch::Watch(address) => {
                remove.remove(&address);
                add.insert(address);
            }
            NextHopWatch::Unwatch(address) => {
                add.remove(&address);
                remove.insert(address);
            }
        }
    }
    if !add.is_empty() || !remove.is_empty() {
        return Some(Update::WatchNextHops {
            add: add.into_iter().collect(),
            remove: remove.into_iter().collect(),
        });
    }
    let mut peers = Vec::new();
    while peers.len() < PEERS_PER_UPDATE
        && let Some(peer) = speaker.poll_changed_peer()
    {
        peers.push(peer);
    }
    if !peers.is_empty() {
        return Some(Update::Peers(peers));
    }
    let mut gone = Vec::new();
    while let Some(name) = speaker.poll_gone_peer() {
        gone.push(name);
    }
    if !gone.is_empty() {
        return Some(Update::PeersGone(gone));
    }
    if let Some(claims) = speaker.poll_claims() {
        return Some(Update::Claims(claims));
    }
    let mut routes = Vec::new();
    while routes.len() < CHANGES_PER_UPDATE
        && let Some(change) = speaker.poll_route_change()
    {
        routes.push(change);
    }
    if !routes.is_empty() {
        return Some(Update::Routes(routes));
    }
    speaker.poll_first_sync().then_some(Update::FirstSync)
}

/// Ends when the program has taken a portion, or wants no more.
async fn room(updates: &mpsc::Sender<Update>) {
    drop(updates.reserve().await);
}

async fn accept(listener: Arc<TcpListener>, inputs: mpsc::Sender<Input>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let accepted = Input::Accepted { stream, remote };
                if inputs.send(accepted).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
