//! The types through which a program uses the driver: a [`Handle`] for commands and questions, and
//! [`Updates`] for what changes.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::{
    attributes::Via,
    policy::Policy,
    rib::{Drain, LocalRoute, NextHopState, NotAdvertised, RouteChange},
    speaker::{
        AdminError, Applied, SoftReset,
        config::{ConfigError, PeerConfig, RangeConfig},
        status::{ForeignClaim, PeerStatus, RangeStatus, Route, RoutePage, RouteQuery},
    },
};

/// Commands that may wait for the speaker task; senders wait when it is full.
pub(super) const COMMAND_QUEUE: usize = 256;
/// Prefixes or next hops in one command, so that the speaker never works on one for long.
const PREFIXES_PER_COMMAND: usize = 4096;

/// Why a driver did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot set the TCP MD5 password for peer {peer:?} on the listening socket: {source}")]
    Password {
        peer: String,
        #[source]
        source: io::Error,
    },
}

/// What the program is told, in the order it happens.
#[derive(Debug)]
pub enum Update {
    /// The Loc-RIB changed; coalesced by prefix, the newest state of each.
    Routes(Vec<RouteChange>),
    /// Addresses whose reachability matters from now on, and no longer. Answer with
    /// [`Handle::set_next_hops`]; an address counts as unreachable until then.
    WatchNextHops { add: Vec<Via>, remove: Vec<Via> },
    /// These peers changed their state. [`Handle::peers`] tells more.
    Peers(Vec<PeerStatus>),
    /// Names of peers that were told of and are there no longer.
    PeersGone(Vec<String>),
    /// All claims of others to what this speaker originates; they are others than before.
    Claims(Vec<ForeignClaim>),
    /// Once: every peer has sent its whole table, or the deadline has passed. What was not
    /// announced by now is gone.
    FirstSync,
}

/// Talks to the speaker task. Cheap to clone. After the speaker has ended commands do nothing and
/// questions are answered with nothing.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) listening: Arc<[SocketAddr]>,
}

/// What a [`Handle`] asks.
#[derive(Debug)]
pub(super) enum Command {
    Originate(Vec<IpNet>),
    OriginateRoutes(Vec<(IpNet, LocalRoute)>),
    Withdraw(Vec<IpNet>),
    OriginationsSynced,
    SetNextHops(Vec<(Via, NextHopState)>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Ranges(oneshot::Sender<Vec<RangeStatus>>),
    Routes(RouteQuery, oneshot::Sender<RoutePage>),
    Received(IpAddr, usize, oneshot::Sender<Vec<Route>>),
    Advertised(
        String,
        IpNet,
        oneshot::Sender<Result<String, NotAdvertised>>,
    ),
    Originated(oneshot::Sender<Vec<IpNet>>),
    Claims(oneshot::Sender<Vec<ForeignClaim>>),
    AddPeer(Box<PeerConfig>, oneshot::Sender<Result<(), AdminError>>),
    AddRange(Box<RangeConfig>, oneshot::Sender<Result<(), AdminError>>),
    Update(Box<Neighbors>, oneshot::Sender<Result<Applied, AdminError>>),
    RemovePeer(String, oneshot::Sender<Result<(), AdminError>>),
    SetDrain(Drain),
    SetNextHopSelf([Option<IpAddr>; 2]),
    SetPolicies(
        String,
        Arc<Policy>,
        Arc<Policy>,
        oneshot::Sender<Result<(), AdminError>>,
    ),
    Admin(String, Admin, oneshot::Sender<Result<(), AdminError>>),
    Shutdown(String, oneshot::Sender<()>),
}

/// One neighbour, or those of a range.
#[derive(Clone, Debug)]
pub(super) enum Neighbors {
    Peer(PeerConfig),
    Range(RangeConfig),
}

/// What may be done to one peer, or to all of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Close the session and start again (Cease 6/4).
    ResetHard,
    /// Ask the peer for its routes again (RFC 2918), and send ours again. An error when the peer
    /// cannot be asked.
    ResetSoft(SoftReset),
    /// Close the session with Cease 6/2 and this text (RFC 9003), and stay in Idle.
    Shutdown { text: String },
    /// Leave the administrative Idle.
    Enable,
}

impl Handle {
    /// Where connections are accepted; with the port that the kernel chose where 0 was asked for.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Adds prefixes to what this speaker originates. Idempotent.
    pub async fn originate(&self, prefixes: Vec<IpNet>) {
        for some in prefixes.chunks(PREFIXES_PER_COMMAND) {
            self.send(Command::Originate(some.to_vec())).await;
        }
    }

    /// As [`originate`](Self::originate), with attributes; changes those of prefixes that are
    /// originated already.
    pub async fn originate_routes(&self, routes: Vec<(IpNet, LocalRoute)>) {
        for some in routes.chunks(PREFIXES_PER_COMMAND) {
            self.send(Command::OriginateRoutes(some.to_vec())).await;
        }
    }

    /// Takes prefixes away from what this speaker originates. Idempotent.
    pub async fn withdraw(&self, prefixes: Vec<IpNet>) {
        for some in prefixes.chunks(PREFIXES_PER_COMMAND) {
            self.send(Command::Withdraw(some.to_vec())).await;
        }
    }

    /// The originations that an earlier run left are complete. Nothing is announced to any peer
    /// before this, so that peers which kept routes of an earlier run see no gap (RFC 4724 §4.1).
    pub async fn originations_synced(&self) {
        self.send(Command::OriginationsSynced).await;
    }

    /// Tells about addresses that [`Update::WatchNextHops`] asked for.
    pub async fn set_next_hops(&self, states: Vec<(Via, NextHopState)>) {
        for some in states.chunks(PREFIXES_PER_COMMAND) {
            self.send(Command::SetNextHops(some.to_vec())).await;
        }
    }

    /// Every configured peer, in the order of configuration.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        self.ask(Command::Peers).await.unwrap_or_default()
    }

    /// Every range that neighbours may come from, in the order of configuration.
    pub async fn ranges(&self) -> Vec<RangeStatus> {
        self.ask(Command::Ranges).await.unwrap_or_default()
    }

    /// One page of a table; an unknown peer has no routes.
    pub async fn routes(&self, query: RouteQuery) -> RoutePage {
        self.ask(|reply| Command::Routes(query, reply))
            .await
            .unwrap_or_default()
    }

    /// What peers sent of the prefixes that cover the address, with what became of it; the longest
    /// first, and at most so many prefixes.
    pub async fn received_covering(&self, address: IpAddr, limit: usize) -> Vec<Route> {
        self.ask(|reply| Command::Received(address, limit, reply))
            .await
            .unwrap_or_default()
    }

    /// The policy and rule that let a prefix out to a peer, or why the peer does not get it.
    pub async fn advertised(&self, peer: &str, prefix: IpNet) -> Result<String, NotAdvertised> {
        self.ask(|reply| Command::Advertised(peer.to_owned(), prefix, reply))
            .await
            .unwrap_or(Err(NotAdvertised::NotEstablished))
    }

    /// What this speaker originates and owns; not what it announces on behalf of others.
    pub async fn originated(&self) -> Vec<IpNet> {
        self.ask(Command::Originated).await.unwrap_or_default()
    }

    /// Who else announces what this speaker originates, or parts of it.
    pub async fn claims(&self) -> Vec<ForeignClaim> {
        self.ask(Command::Claims).await.unwrap_or_default()
    }

    /// Takes this speaker out of the network, or back in. Sessions stay.
    pub async fn set_drain(&self, drain: Drain) {
        self.send(Command::SetDrain(drain)).await;
    }

    /// This node has other addresses, by family: the next hops of the family that a session is not
    /// over. Sessions stay.
    pub async fn set_next_hop_self(&self, own: [Option<IpAddr>; 2]) {
        self.send(Command::SetNextHopSelf(own)).await;
    }

    /// Adds a neighbour and starts its session.
    pub async fn add_peer(&self, peer: PeerConfig) -> Result<(), AdminError> {
        self.ask(|reply| Command::AddPeer(Box::new(peer), reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Takes neighbours from this range from now on.
    pub async fn add_range(&self, range: RangeConfig) -> Result<(), AdminError> {
        self.ask(|reply| Command::AddRange(Box::new(range), reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Gives the neighbour of that name another configuration. Its session stays where it can.
    pub async fn update_peer(&self, peer: PeerConfig) -> Result<Applied, AdminError> {
        self.ask(|reply| Command::Update(Box::new(Neighbors::Peer(peer)), reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Gives the range of that name another configuration, and its neighbours with it.
    pub async fn update_range(&self, range: RangeConfig) -> Result<Applied, AdminError> {
        self.ask(|reply| Command::Update(Box::new(Neighbors::Range(range)), reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Closes the session with Cease 6/3 and forgets the neighbour, or a range with all it has.
    pub async fn remove_peer(&self, name: &str) -> Result<(), AdminError> {
        self.ask(|reply| Command::RemovePeer(name.to_owned(), reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Changes the policies of one neighbour: everything it sent and is sent is decided anew, and
    /// its session stays.
    pub async fn set_policies(
        &self,
        name: &str,
        import: Arc<Policy>,
        export: Arc<Policy>,
    ) -> Result<(), AdminError> {
        self.ask(|reply| Command::SetPolicies(name.to_owned(), import, export, reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Resets, shuts down or enables one neighbour.
    pub async fn admin(&self, name: &str, admin: Admin) -> Result<(), AdminError> {
        self.ask(|reply| Command::Admin(name.to_owned(), admin, reply))
            .await
            .unwrap_or(Err(AdminError::Stopped))
    }

    /// Ends the speaker: sessions with graceful restart are just closed, so that the peers keep our
    /// routes for the restart time; the others get Cease 6/2 with the text. Returns when
    /// everything is sent or a second has passed.
    pub async fn shutdown(self, text: &str) {
        self.ask(|reply| Command::Shutdown(text.to_owned(), reply))
            .await;
    }

    async fn send(&self, command: Command) {
        // It only fails when the speaker has ended, and then there is nothing left to command.
        let _ = self.commands.send(command).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What changes. Not reading it costs no memory that grows: changes wait, coalesced, in the RIB.
#[derive(Debug)]
pub struct Updates {
    pub(super) updates: mpsc::Receiver<Update>,
}

impl Updates {
    /// The next change; `None` when the speaker has ended.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

/// The wall-clock time of an instant in a status, for showing it to a person.
pub fn wall_clock(instant: Instant) -> SystemTime {
    let now = Instant::now();
    let wall = SystemTime::now();
    if instant <= now {
        wall.checked_sub(now.duration_since(instant))
            .unwrap_or(wall)
    } else {
        wall.checked_add(instant.duration_since(now))
            .unwrap_or(wall)
    }
}
