//! The task that owns the core and asks etcd for it.
//!
//! | from → to | kind | on full |
//! |---|---|---|
//! | node's task → here | mpsc without bound: a message for each block that comes or goes | - |
//! | here → node's task | mpsc | this task waits |
//! | watch of etcd → here | mpsc | the watch waits |

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    admin,
    core::{Core, Id, Output, Settings},
    etcd::Etcd,
    keys::{Keys, Owner},
    ops::{Answer, Failure, WatchEvent},
    registry::Member,
    status::Status,
};
use crate::ipam::{Refusal, Wanted};

/// Events on their way to the node's task.
const EVENTS: usize = 64;
/// Messages of a watch that wait.
const WATCHED: usize = 64;

/// What this task is told.
#[derive(Debug)]
enum Command {
    Acquire(Wanted),
    Return(IpNet),
}

/// What this task tells the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Acquired {
        pool: String,
        block: IpNet,
    },
    AcquireFailed {
        pool: String,
        block: Option<IpNet>,
        why: Refusal,
    },
    /// A block that this node uses is another one's.
    Lost {
        block: IpNet,
        by: String,
    },
    Nodes(Vec<Member>),
    /// The node has been away for as long as the configuration says: its blocks may go to others.
    Reclaim(String),
}

/// What is known now.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub status: Status,
    /// Empty unless the registry is followed.
    pub members: Vec<Member>,
}

/// Talks to the task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    view: watch::Receiver<Arc<View>>,
    etcd: Etcd,
    keys: Keys,
    node: Arc<str>,
}

impl Handle {
    /// Claims a block, however long it takes; events tell.
    pub fn acquire(&self, wanted: Wanted) {
        // It fails only when the agent stops.
        let _ = self.commands.send(Command::Acquire(wanted));
    }

    /// Gives a block back of which nothing is left on this node, durably.
    pub fn give_back(&self, block: IpNet) {
        let _ = self.commands.send(Command::Return(block));
    }

    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Who holds the block, a part of it, or what contains it. Asks etcd.
    pub async fn owner(&self, block: IpNet) -> Result<Option<Owner>, Failure> {
        admin::owner(&self.etcd, &self.keys, block).await
    }

    /// Every node that is registered or has blocks. Asks etcd.
    pub async fn nodes(&self) -> Result<Vec<admin::Entry>, Failure> {
        admin::nodes(&self.etcd, &self.keys).await
    }

    /// Takes a node and its blocks out of the store. `is_shown`: BGP has a route for the block.
    pub async fn remove_node<F>(
        &self,
        name: &str,
        is_shown: impl Fn(IpNet) -> F,
    ) -> Result<Vec<IpNet>, admin::RemoveError>
    where
        F: Future<Output = bool>,
    {
        if *name == *self.node {
            return Err(admin::RemoveError::Itself(name.to_owned()));
        }
        admin::remove(&self.etcd, &self.keys, name, is_shown).await
    }
}

/// Starts the task. It ends when every handle is gone.
pub fn spawn(
    settings: Settings,
    etcd: Etcd,
    held: Vec<(String, IpNet)>,
) -> (Handle, mpsc::Receiver<Event>) {
    let (commands, queue) = mpsc::unbounded_channel();
    let (events, receiver) = mpsc::channel(EVENTS);
    let (view, seen) = watch::channel(Arc::default());
    let handle = Handle {
        commands,
        view: seen,
        etcd: etcd.clone(),
        keys: settings.keys.clone(),
        node: settings.node.as_str().into(),
    };
    let task = Task {
        core: Core::new(Instant::now(), settings, held),
        etcd,
        requests: JoinSet::new(),
        watch: None,
        events,
        view,
        stops: false,
    };
    tokio::spawn(task.run(queue));
    (handle, receiver)
}

struct Watch {
    id: Id,
    events: mpsc::Receiver<WatchEvent>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    core: Core,
    etcd: Etcd,
    requests: JoinSet<(Id, Result<Answer, Failure>)>,
    watch: Option<Watch>,
    events: mpsc::Sender<Event>,
    view: watch::Sender<Arc<View>>,
    /// Nobody reads the events any more.
    stops: bool,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        while !self.stops {
            self.deliver().await;
            let wake = self.core.poll_timeout();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Acquire(wanted)) => self.core.acquire(Instant::now(), wanted),
                    Some(Command::Return(block)) => self.core.give_back(Instant::now(), block),
                    None => return,
                },
                Some(done) = self.requests.join_next() => {
                    // A request that panicked is one without an answer, and cannot be named: the
                    // core would wait for it for ever, so this goes down with it.
                    let Ok((id, result)) = done else { return };
                    self.core.handle_answer(Instant::now(), id, result);
                }
                (id, event) = watched(&mut self.watch) => {
                    self.core.handle_watch(Instant::now(), id, event);
                }
                () = sleep_until(wake) => self.core.handle_timeout(Instant::now()),
            }
        }
    }

    async fn deliver(&mut self) {
        while let Some(output) = self.core.poll_output() {
            let event = match output {
                Output::Send { id, request } => {
                    let etcd = self.etcd.clone();
                    self.requests
                        .spawn(async move { (id, etcd.ask(request).await) });
                    continue;
                }
                Output::Watch {
                    id,
                    from,
                    to,
                    revision,
                } => {
                    let (sender, events) = mpsc::channel(WATCHED);
                    let etcd = self.etcd.clone();
                    let task =
                        tokio::spawn(async move { etcd.watch(from, to, revision, sender).await });
                    self.watch = Some(Watch {
                        id,
                        events,
                        task: task.abort_handle(),
                    });
                    continue;
                }
                Output::Acquired { pool, block } => {
                    tracing::info!(pool, %block, "block claimed");
                    Event::Acquired { pool, block }
                }
                Output::AcquireFailed { pool, block, why } => {
                    Event::AcquireFailed { pool, block, why }
                }
                Output::Lost { block, by } => {
                    tracing::error!(
                        %block,
                        by,
                        "a block that this node uses is held by another node; move the workloads \
                         of one of them"
                    );
                    Event::Lost { block, by }
                }
                Output::Nodes => Event::Nodes(self.core.registry.members()),
                Output::Reclaim(name) => Event::Reclaim(name),
            };
            if self.events.send(event).await.is_err() {
                self.stops = true;
            }
        }
        self.view.send_replace(Arc::new(View {
            status: self.core.status(),
            members: self.core.registry.members(),
        }));
    }
}

async fn watched(watch: &mut Option<Watch>) -> (Id, WatchEvent) {
    let Some(current) = watch else {
        return std::future::pending().await;
    };
    match current.events.recv().await {
        Some(event) => (current.id, event),
        None => {
            let id = current.id;
            *watch = None;
            (id, WatchEvent::Ended("the watch has ended".to_owned()))
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    // Without anything to do, a look around once in a while costs nothing.
    let at = at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
    tokio::time::sleep_until(at.into()).await;
}
