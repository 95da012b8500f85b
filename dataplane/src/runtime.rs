//! The tokio task that owns the reconciler and the kernel, and the handle others drive it by.
//!
//! All decisions are the reconciler's. This task carries inputs to it (commands, results, changes,
//! time) and its outputs to the kernel and to the daemon.
//!
//! | channel | bound | on full |
//! |---|---|---|
//! | commands | [`COMMANDS`] | the caller waits |
//! | events | [`EVENTS`] lists, then [`EVENT_BACKLOG`] events | no commands are taken until the daemon reads |
//! | kernel's changes | the socket's buffer | the kernel drops them: everything is read again |
//! | writes to /proc/sys | fanotify's queue | likewise |
//!
//! The filter table has a core and a driver of its own ([`filtering`]), so that a slow transaction
//! there holds up no route. A workload is reported when both are done with it.

mod filtering;

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ipnet::IpNet;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    desired::{Event, FilterSettings, Object, ObjectId, Source, Via},
    filter::ForwardDrop,
    kernel::{OpError, OpResult, Query, Snapshot},
    linux::{ChangeEvent, Changes, Counts, Kernel, OpenError, Writes, nftables},
    reconcile::{
        BatchId, Config, KernelRoute, Lookup, NextHopView, ObjectStatus, Output, QueryId,
        Reconciler, Status,
    },
};

pub use self::filtering::FilterStatus;
use self::filtering::Filtering;

/// Commands that wait. Each can carry a thousand routes, so a deep queue would hold a whole table.
const COMMANDS: usize = 16;
/// Commands and changes taken before the reconciler's outputs are looked at: what comes together
/// is written together.
const TAKEN_TOGETHER: usize = 256;
/// Lists of events that wait.
const EVENTS: usize = 16;
/// Events beyond that, until commands are not taken any more.
const EVENT_BACKLOG: usize = 65_536;
/// When there is nothing to wait for.
const FAR: Duration = Duration::from_secs(3600);

/// The task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataplane has stopped")]
pub struct Stopped;

enum Command {
    Set(Vec<Object>),
    Remove(Vec<ObjectId>),
    SourceSynced(Source),
    WatchNextHops {
        add: Vec<Via>,
        remove: Vec<Via>,
    },
    SetFilter(FilterSettings),
    Counts(oneshot::Sender<Counts>),
    FilterStatus(oneshot::Sender<FilterStatus>),
    ForwardDrops(oneshot::Sender<Vec<ForwardDrop>>),
    /// Looks at the reconciler and sends away what it saw.
    View(Box<dyn FnOnce(&Reconciler) + Send>),
    Look(Query, oneshot::Sender<Result<Snapshot, OpError>>),
    Shutdown,
}

/// Drives the dataplane. Calls wait while the command queue is full.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Wants these objects; one with the id of an earlier one replaces it.
    pub async fn set(&self, objects: Vec<Object>) -> Result<(), Stopped> {
        self.send(Command::Set(objects)).await
    }

    pub async fn remove(&self, ids: Vec<ObjectId>) -> Result<(), Stopped> {
        self.send(Command::Remove(ids)).await
    }

    /// All that this source wants has been set: what else carries our marks may be deleted.
    pub async fn source_synced(&self, source: Source) -> Result<(), Stopped> {
        self.send(Command::SourceSynced(source)).await
    }

    /// What the filter table is made of. Until the first call there is no table, and ports are not
    /// published.
    pub async fn set_filter(&self, settings: FilterSettings) -> Result<(), Stopped> {
        self.send(Command::SetFilter(settings)).await
    }

    /// Counts of the filter table, read from the kernel where it counts.
    pub async fn filter_status(&self) -> Result<FilterStatus, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::FilterStatus(answer)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Chains of other programs that drop what the node forwards, unless a rule accepts it.
    pub async fn forward_drops(&self) -> Result<Vec<ForwardDrop>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::ForwardDrops(answer)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Each added address is reported once soon, and then on every change.
    pub async fn watch_next_hops(&self, add: Vec<Via>, remove: Vec<Via>) -> Result<(), Stopped> {
        self.send(Command::WatchNextHops { add, remove }).await
    }

    /// What was asked of the kernel so far, apart from the filter table.
    pub async fn counts(&self) -> Result<Counts, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Counts(answer)).await?;
        answered.await.map_err(|_| Stopped)
    }

    pub async fn status(&self) -> Result<Status, Stopped> {
        self.view(Reconciler::status).await
    }

    /// This agent's routes in the kernel, in order of prefix, those after `after`; with `within`,
    /// only that prefix and what it covers.
    pub async fn routes(
        &self,
        within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Result<Vec<KernelRoute>, Stopped> {
        self.view(move |reconciler| reconciler.routes(within, after, limit))
            .await
    }

    /// State of a wanted object; `None` when it is not wanted.
    pub async fn object(&self, id: ObjectId) -> Result<Option<ObjectStatus>, Stopped> {
        self.view(move |reconciler| reconciler.object(&id)).await
    }

    /// Next hops that are watched or used, in order of address.
    pub async fn next_hops(&self) -> Result<Vec<NextHopView>, Stopped> {
        self.view(Reconciler::next_hops).await
    }

    /// What the kernel does with packets to this address.
    pub async fn lookup(&self, address: IpAddr) -> Result<Lookup, Stopped> {
        self.view(move |reconciler| reconciler.lookup(address))
            .await
    }

    /// Reads the kernel itself, past everything that is known of it.
    pub async fn look(&self, query: Query) -> Result<Result<Snapshot, OpError>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Look(query, answer)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Ends the task. What is in the kernel stays as it is.
    pub async fn shutdown(&self) {
        // Stopped already is as good.
        let _ = self.send(Command::Shutdown).await;
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    async fn view<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reconciler) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let command = Command::View(Box::new(move |reconciler| {
            // The caller may have gone.
            let _ = answer.send(look(reconciler));
        }));
        self.send(command).await?;
        answered.await.map_err(|_| Stopped)
    }
}

/// What the reconciler reports, in order.
#[derive(Debug)]
pub struct Events {
    lists: mpsc::Receiver<Vec<Event>>,
}

impl Events {
    /// At least one event; `None` once the task has ended. May be dropped while waiting.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        self.lists.recv().await
    }
}

/// Starts the task; call it inside a tokio runtime. The network namespace is the calling thread's.
pub fn spawn(config: Config) -> Result<(Handle, Events, JoinHandle<()>), OpenError> {
    let (kernel, changes) = Kernel::open()?;
    let (filtering, filter_changes) = Filtering::open()?;
    let writes = Writes::open()
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "kernel parameters of which netlink does not tell are repaired by the audit only"
            );
        })
        .ok();
    let heard = Heard {
        changes,
        filter_changes,
        writes,
    };
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (sender, lists) = mpsc::channel(EVENTS);
    let task = Task {
        reconciler: Reconciler::new(config, Instant::now()),
        kernel,
        batches: VecDeque::new(),
        queries: FuturesUnordered::new(),
        filtering,
        events: Vec::new(),
    };
    let join = tokio::spawn(task.run(heard, receiver, sender));
    Ok((Handle { commands }, Events { lists }, join))
}

/// What tells of changes by others.
struct Heard {
    changes: Changes,
    filter_changes: nftables::Changes,
    /// `None`: not permitted here.
    writes: Option<Writes>,
}

type Answer = (QueryId, Result<Snapshot, OpError>);

struct Task {
    reconciler: Reconciler,
    kernel: Kernel,
    /// The batches on their way, in order.
    batches: VecDeque<BoxFuture<'static, (BatchId, Vec<OpResult>)>>,
    queries: FuturesUnordered<BoxFuture<'static, Answer>>,
    filtering: Filtering,
    /// Not yet taken by the daemon.
    events: Vec<Event>,
}

enum Next {
    GoOn,
    End,
}

impl Task {
    async fn run(
        mut self,
        heard: Heard,
        mut commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Vec<Event>>,
    ) {
        let mut taken = Vec::with_capacity(TAKEN_TOGETHER);
        let Heard {
            mut changes,
            mut filter_changes,
            mut writes,
        } = heard;
        let mut hearing = true;
        let mut hearing_filter = true;
        loop {
            self.carry_out();
            let timeout = [
                self.reconciler.poll_timeout(),
                self.filtering.poll_timeout(),
            ]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + FAR);
            tokio::select! {
                (id, results) = first_of(&mut self.batches) => {
                    self.batches.pop_front();
                    // Some effects of own writes are heard. What is read next has them: heard only
                    // then, they would have everything read once more.
                    let now = Instant::now();
                    for event in changes.ready() {
                        self.hear(now, event);
                    }
                    self.reconciler.handle_results(Instant::now(), id, results);
                }
                Some((id, answer)) = self.queries.next() => {
                    self.reconciler.handle_snapshot(Instant::now(), id, answer);
                }
                change = changes.next(), if hearing => {
                    hearing = change.is_some();
                    let now = Instant::now();
                    let mut next = change;
                    let mut left = TAKEN_TOGETHER;
                    while let Some(event) = next {
                        self.hear(now, event);
                        left -= 1;
                        // A change that is taken is handled: none is asked for beyond the number.
                        next = match left {
                            0 => None,
                            _ => changes.next().now_or_never().flatten(),
                        };
                    }
                }
                Some(done) = self.filtering.done() => {
                    self.filtering.handle_done(Instant::now(), done);
                }
                heard = filter_changes.next(), if hearing_filter => match heard {
                    Some(heard) => self.filtering.handle_change(heard),
                    None => hearing_filter = false,
                },
                written = next_write(&mut writes) => match written {
                    Some(event) => self.hear(Instant::now(), event),
                    None => writes = None,
                },
                count = commands.recv_many(&mut taken, TAKEN_TOGETHER),
                    if self.events.len() < EVENT_BACKLOG =>
                {
                    if count == 0 {
                        // No handle is left.
                        return;
                    }
                    let now = Instant::now();
                    for command in taken.drain(..) {
                        if let Next::End = self.obey(now, command) {
                            return;
                        }
                    }
                }
                permit = events.reserve(), if !self.events.is_empty() => match permit {
                    Ok(permit) => permit.send(std::mem::take(&mut self.events)),
                    // Nobody listens any more.
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(timeout.into()) => {
                    let now = Instant::now();
                    self.reconciler.handle_timeout(now);
                    self.filtering.handle_timeout(now);
                }
            }
        }
    }

    fn hear(&mut self, now: Instant, event: ChangeEvent) {
        match event {
            ChangeEvent::Change(place, change) => self.reconciler.handle_change(now, place, change),
            ChangeEvent::Overrun => self.reconciler.handle_overrun(now),
        }
    }

    fn obey(&mut self, now: Instant, command: Command) -> Next {
        match command {
            Command::Set(objects) => {
                for object in objects {
                    self.filtering.set(&object);
                    self.reconciler.set(now, object);
                }
            }
            Command::Remove(ids) => {
                for id in ids {
                    self.filtering.remove(&id);
                    self.reconciler.remove(now, id);
                }
            }
            Command::SourceSynced(source) => {
                if source == Source::Workload {
                    self.filtering.synced();
                }
                self.reconciler.source_synced(now, source);
            }
            Command::SetFilter(settings) => self.filtering.set_settings(settings),
            Command::Counts(answer) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.kernel.counts());
            }
            Command::FilterStatus(answer) => self.filtering.status(answer),
            Command::ForwardDrops(answer) => self.filtering.forward_drops(answer),
            Command::WatchNextHops { add, remove } => {
                for address in remove {
                    self.reconciler.unwatch_next_hop(now, address);
                }
                for address in add {
                    self.reconciler.watch_next_hop(now, address);
                }
            }
            Command::View(look) => look(&self.reconciler),
            Command::Look(query, reply) => {
                let answer = self.kernel.query(query);
                tokio::spawn(async move {
                    // The caller may have gone.
                    let _ = reply.send(answer.await);
                });
            }
            Command::Shutdown => return Next::End,
        }
        Next::GoOn
    }

    /// Hands the reconciler's outputs on. The kernel's threads begin at once.
    fn carry_out(&mut self) {
        while let Some(output) = self.reconciler.poll_output() {
            match output {
                Output::Apply { id, ops } => {
                    let results = self.kernel.apply(ops);
                    self.batches
                        .push_back(async move { (id, results.await) }.boxed());
                }
                Output::Query { id, query } => {
                    let answer = self.kernel.query(query);
                    self.queries.push(async move { (id, answer.await) }.boxed());
                }
                Output::Event(event) => self.events.extend(self.filtering.pass(event)),
            }
        }
        self.filtering.carry_out(&mut self.events);
    }
}

/// Waits for ever where they cannot be heard.
async fn next_write(writes: &mut Option<Writes>) -> Option<ChangeEvent> {
    match writes {
        Some(writes) => writes.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for ever where there is none.
async fn first_of<T>(list: &mut VecDeque<BoxFuture<'static, T>>) -> T {
    match list.front_mut() {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
