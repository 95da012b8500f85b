//! Peers while the agent runs: what the API and a reload change, and what of it is kept.
//!
//! One task owns the running configuration as far as it can change, and is the only one that tells
//! the speaker about peers. The configuration file says which peers there are. Two things are kept
//! beside it, in the state directory, so that a crash does not undo what an operator was told is
//! done: peers that the API added, and which peers were shut down.
//!
//! | from → to | kind | on full |
//! |---|---|---|
//! | API, signal → this task | mpsc | the call gets RESOURCE_EXHAUSTED |
//! | node's task → this task, this task → API | watch of addresses | newest wins |
//! | node's task → watchers | broadcast of peers | the watcher is ended |

mod apply;
mod differences;
mod merge;
mod mesh;
mod nearest;
mod pools;
mod reload;
mod saved;
mod spec;
mod task;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use agentd_proto::v1::PeerSpec;
use bgp::{driver::Admin, speaker::status::PeerStatus};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use self::{
    nearest::nearest,
    reload::{Change, Effect, Report, log_reload},
    saved::{SavedError, Shutdown},
    task::Manager,
};
use crate::{api::Identity, config::ConfigErrors, fleet::Member, node::Error};

/// Commands that may wait.
const QUEUE: usize = 64;
/// Changes a watcher of peers may fall behind by.
pub const WATCH_QUEUE: usize = 1024;

type Reply<T> = oneshot::Sender<T>;

/// What the task is told.
#[derive(Debug)]
pub enum Command {
    Add(Box<PeerSpec>, Reply<Result<bool, Error>>),
    Remove(String, Reply<Result<bool, Error>>),
    Reset(String, Admin, Reply<Result<(), Error>>),
    Shutdown(String, String, Reply<Result<(), Error>>),
    Enable(String, Reply<Result<(), Error>>),
    Reload(Reply<Result<Report, ConfigErrors>>),
    /// The registry of nodes has changed.
    Mesh(Vec<Member>),
}

/// What is known of peers beyond what the speaker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names of peers and ranges that the API has added.
    pub added: Vec<String>,
    /// Peers and ranges that are shut down.
    pub shutdown: Vec<Shutdown>,
}

/// A change that watchers are told.
#[derive(Clone, Debug)]
pub enum PeerEvent {
    Changed(Box<PeerStatus>),
    Gone(String),
    /// The agent stops.
    End,
}

/// Talks to the task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeersHandle {
    commands: mpsc::Sender<Command>,
    facts: watch::Receiver<Arc<Facts>>,
    events: broadcast::Sender<PeerEvent>,
    addresses: Arc<watch::Sender<Vec<IpAddr>>>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
}

/// The other ends of a handle.
#[derive(Debug)]
pub struct Ends {
    commands: mpsc::Receiver<Command>,
    facts: watch::Sender<Arc<Facts>>,
    addresses: watch::Receiver<Vec<IpAddr>>,
    identity: watch::Sender<Option<Arc<Identity>>>,
}

impl PeersHandle {
    pub fn new() -> (Self, Ends) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (facts, known) = watch::channel(Arc::default());
        let (events, _) = broadcast::channel(WATCH_QUEUE);
        let (addresses, changes) = watch::channel(Vec::new());
        let (identity, changed) = watch::channel(None);
        let handle = Self {
            commands,
            facts: known,
            events,
            addresses: Arc::new(addresses),
            identity: changed,
        };
        let ends = Ends {
            commands: queue,
            facts,
            addresses: changes,
            identity,
        };
        (handle, ends)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .try_send(command(reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Error::Busy { limit: QUEUE },
                mpsc::error::TrySendError::Closed(_) => Error::Stopping,
            })?;
        answer.await.map_err(|_| Error::Stopping)
    }

    /// False when it was there already.
    pub async fn add(&self, spec: PeerSpec) -> Result<bool, Error> {
        self.ask(|reply| Command::Add(Box::new(spec), reply))
            .await?
    }

    /// False when it was gone already.
    pub async fn remove(&self, name: String) -> Result<bool, Error> {
        self.ask(|reply| Command::Remove(name, reply)).await?
    }

    pub async fn reset(&self, name: String, how: Admin) -> Result<(), Error> {
        self.ask(|reply| Command::Reset(name, how, reply)).await?
    }

    pub async fn shutdown(&self, name: String, text: String) -> Result<(), Error> {
        self.ask(|reply| Command::Shutdown(name, text, reply))
            .await?
    }

    pub async fn enable(&self, name: String) -> Result<(), Error> {
        self.ask(|reply| Command::Enable(name, reply)).await?
    }

    /// The errors of the file; then nothing has changed.
    pub async fn reload(&self) -> Result<Result<Report, ConfigErrors>, Error> {
        self.ask(Command::Reload).await
    }

    /// Who is in the mesh now.
    pub async fn mesh(&self, members: Vec<Member>) {
        // It fails only when the agent stops.
        let _ = self.commands.send(Command::Mesh(members)).await;
    }

    /// The node has these addresses now. The newest word counts.
    pub fn set_addresses(&self, all: Vec<IpAddr>) {
        self.addresses.send_replace(all);
    }

    /// Who this node is, if its addresses are others than at the start.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.borrow().clone()
    }

    pub fn facts(&self) -> Arc<Facts> {
        self.facts.borrow().clone()
    }

    /// Changes from now on.
    pub fn watch(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    /// Tells watchers.
    pub fn publish(&self, event: impl FnOnce() -> PeerEvent) {
        if self.events.receiver_count() > 0 {
            // It fails only when the last one has just gone.
            let _ = self.events.send(event());
        }
    }
}
