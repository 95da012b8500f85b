//! How others talk to the node's task: a bounded queue of requests, each with its own reply.
//!
//! A caller that goes away changes nothing: its request is carried out all the same, and the answer
//! is dropped.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use dataplane::linux::listeners::Listener;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::{
    Drain, Error, WaitFor, WorkloadId, WorkloadSpec,
    audit::{AddressUse, NodeAudit},
    spec::Owner,
    sync::{SyncEvent, SyncId, SyncSummary},
    view::{
        AddressView, BlockView, NodeStatus, PoolOverride, PoolUsers, PoolView, WatchEvent,
        WorkloadView,
    },
};
use crate::{
    config,
    store::{PersistError, Recovered, SubmitError},
};

/// Requests that may wait for the node's task; more are refused with [`Error::Busy`].
pub const REQUEST_QUEUE: usize = 1024;
/// Adds and deletes that may be on their way at once; more are refused with [`Error::Busy`].
pub const IN_FLIGHT: usize = 4096;
/// Changes a watcher may fall behind by before it is ended.
pub const WATCH_QUEUE: usize = 1024;

/// The answer to an add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub workload: WorkloadView,
    /// False when the call repeated an earlier one.
    pub created: bool,
}

type Reply<T> = oneshot::Sender<T>;

/// Everything on disk, read by the store's thread.
pub type Records = Result<oneshot::Receiver<Result<Recovered, PersistError>>, SubmitError>;

/// What the node's task is asked.
#[derive(Debug)]
pub enum Request {
    Add {
        id: WorkloadId,
        spec: Box<WorkloadSpec>,
        /// Programs of the node on ports that it publishes.
        listening: Vec<Listener>,
        wait: WaitFor,
        reply: Reply<Result<Added, Error>>,
    },
    Delete {
        id: WorkloadId,
        /// `None`: whatever its generation is.
        generation: Option<u64>,
        reply: Reply<Result<bool, Error>>,
    },
    Get(WorkloadId, Reply<Option<WorkloadView>>),
    List(Reply<Vec<WorkloadView>>),
    Watch(Reply<Watch>),
    Pools(Reply<Vec<PoolView>>),
    Blocks(Reply<Vec<BlockView>>),
    Address(IpAddr, Reply<AddressView>),
    Status(Reply<NodeStatus>),
    ReleaseBlock(IpNet, Reply<Result<(), Error>>),
    AddressUses(Reply<Vec<AddressUse>>),
    Audit(Reply<(NodeAudit, Records)>),
    Drain(Duration, Reply<Result<Drain, Error>>),
    Undrain(Reply<Result<Drain, Error>>),
    /// Other pools and settings, as a whole or not at all.
    SetPools {
        pools: Vec<config::Pool>,
        settings: Box<config::Ipam>,
        reply: Reply<Result<(), Error>>,
    },
    PoolState {
        name: String,
        /// `None`: as the configuration has it.
        to: Option<PoolOverride>,
        reply: Reply<Result<PoolUsers, Error>>,
    },
    Sync(SyncRequest),
}

/// Of clients that state all their workloads.
#[derive(Debug)]
pub enum SyncRequest {
    Begin {
        owner: Owner,
        grace: Option<Duration>,
        reply: Reply<Result<(SyncId, mpsc::Receiver<SyncEvent>), Error>>,
    },
    /// Whether the owner has such a workload.
    Name(SyncId, WorkloadId, Reply<bool>),
    /// Of a workload of that owner.
    Delete {
        owner: Owner,
        id: WorkloadId,
        generation: Option<u64>,
        reply: Reply<Result<bool, Error>>,
    },
    Complete(SyncId, Reply<Result<SyncSummary, Error>>),
    End(SyncId),
}

/// A stream of a client, as the node's task knows it. Ends when it is dropped.
#[derive(Debug)]
pub struct Sync {
    id: SyncId,
    node: NodeHandle,
    /// Ends when the client is too slow, or the agent stops.
    pub events: mpsc::Receiver<SyncEvent>,
}

/// A command that the node's task has, in the order of the stream.
#[derive(Debug)]
pub struct SyncPending<T> {
    answer: oneshot::Receiver<Result<T, Error>>,
    since: Instant,
}

impl<T> SyncPending<T> {
    /// With the time it took.
    pub async fn answer(self) -> (Result<T, Error>, Duration) {
        let result = match self.answer.await {
            Ok(result) => result,
            Err(_) => Err(Error::Stopping),
        };
        (result, self.since.elapsed())
    }
}

impl Sync {
    /// The client has spoken of this workload. Whether there is one of its owner.
    pub async fn name(&self, id: WorkloadId) -> Result<bool, Error> {
        let (reply, answer) = oneshot::channel();
        let request = SyncRequest::Name(self.id, id, reply);
        self.node.put(Request::Sync(request)).await?;
        answer.await.map_err(|_| Error::Stopping)
    }

    pub async fn add(
        &self,
        id: WorkloadId,
        spec: WorkloadSpec,
        listening: Vec<Listener>,
    ) -> Result<SyncPending<Added>, Error> {
        let (reply, answer) = oneshot::channel();
        let since = Instant::now();
        let request = Request::Add {
            id,
            spec: Box::new(spec),
            listening,
            wait: WaitFor::Programmed,
            reply,
        };
        self.node.put(request).await?;
        Ok(SyncPending { answer, since })
    }

    pub async fn delete(
        &self,
        owner: Owner,
        id: WorkloadId,
        generation: Option<u64>,
    ) -> Result<SyncPending<bool>, Error> {
        let (reply, answer) = oneshot::channel();
        let since = Instant::now();
        let request = SyncRequest::Delete {
            owner,
            id,
            generation,
            reply,
        };
        self.node.put(Request::Sync(request)).await?;
        Ok(SyncPending { answer, since })
    }

    pub async fn complete(&self) -> Result<SyncSummary, Error> {
        let (reply, answer) = oneshot::channel();
        let request = SyncRequest::Complete(self.id, reply);
        self.node.put(Request::Sync(request)).await?;
        answer.await.map_err(|_| Error::Stopping)?
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        // When the queue is full, the node's task finds out by the closed channel.
        let end = Request::Sync(SyncRequest::End(self.id));
        let _ = self.node.requests.try_send(end);
    }
}

/// The set of workloads at one moment, and every change after it.
#[derive(Debug)]
pub struct Watch {
    pub snapshot: Vec<WorkloadView>,
    /// Of the last change that is in the snapshot.
    pub cursor: u64,
    pub changes: mpsc::Receiver<Arc<WatchEvent>>,
    /// Set before `changes` ends when it ends because the watcher was too slow.
    pub overflowed: Arc<AtomicBool>,
}

/// The node's end of a watch.
#[derive(Debug)]
pub struct Watcher {
    changes: mpsc::Sender<Arc<WatchEvent>>,
    overflowed: Arc<AtomicBool>,
}

impl Watcher {
    pub fn new(snapshot: Vec<WorkloadView>, cursor: u64) -> (Watcher, Watch) {
        let (sender, changes) = mpsc::channel(WATCH_QUEUE);
        let overflowed = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            changes: sender,
            overflowed: overflowed.clone(),
        };
        let watch = Watch {
            snapshot,
            cursor,
            changes,
            overflowed,
        };
        (watcher, watch)
    }

    /// False when the watcher is gone or was too slow, and is to be forgotten.
    pub fn send(&self, event: &Arc<WatchEvent>) -> bool {
        match self.changes.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.overflowed.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// The other end is gone.
    pub fn is_closed(&self) -> bool {
        self.changes.is_closed()
    }
}

/// Asks the node's task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    requests: mpsc::Sender<Request>,
}

impl NodeHandle {
    /// The handle, and the queue that the node's task reads.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        (Self { requests }, queue)
    }

    /// Waits for room: streams are held back, and not refused.
    async fn put(&self, request: Request) -> Result<(), Error> {
        let sent = self.requests.send(request).await;
        sent.map_err(|_| Error::Stopping)
    }

    /// Begins a stream in which a client states all its workloads.
    pub async fn sync(&self, owner: Owner, grace: Option<Duration>) -> Result<Sync, Error> {
        let (reply, answer) = oneshot::channel();
        let begin = SyncRequest::Begin {
            owner,
            grace,
            reply,
        };
        self.put(Request::Sync(begin)).await?;
        let (id, events) = answer.await.map_err(|_| Error::Stopping)??;
        Ok(Sync {
            id,
            node: self.clone(),
            events,
        })
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .try_send(request(reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Error::Busy {
                    limit: REQUEST_QUEUE,
                },
                mpsc::error::TrySendError::Closed(_) => Error::Stopping,
            })?;
        answer.await.map_err(|_| Error::Stopping)
    }

    pub async fn add(
        &self,
        id: WorkloadId,
        spec: WorkloadSpec,
        listening: Vec<Listener>,
        wait: WaitFor,
    ) -> Result<Added, Error> {
        self.ask(|reply| Request::Add {
            id,
            spec: Box::new(spec),
            listening,
            wait,
            reply,
        })
        .await?
    }

    /// Whether there was something to delete.
    pub async fn delete(&self, id: WorkloadId, generation: Option<u64>) -> Result<bool, Error> {
        self.ask(|reply| Request::Delete {
            id,
            generation,
            reply,
        })
        .await?
    }

    pub async fn get(&self, id: WorkloadId) -> Result<WorkloadView, Error> {
        self.ask(|reply| Request::Get(id.clone(), reply))
            .await?
            .ok_or(Error::WorkloadNotFound(id))
    }

    /// In order of id.
    pub async fn list(&self) -> Result<Vec<WorkloadView>, Error> {
        self.ask(Request::List).await
    }

    pub async fn watch(&self) -> Result<Watch, Error> {
        self.ask(Request::Watch).await
    }

    /// In the order of the configuration.
    pub async fn pools(&self) -> Result<Vec<PoolView>, Error> {
        self.ask(Request::Pools).await
    }

    /// Continues with other pools and settings, or refuses them as a whole.
    pub async fn set_pools(
        &self,
        pools: Vec<config::Pool>,
        settings: config::Ipam,
    ) -> Result<(), Error> {
        self.ask(|reply| Request::SetPools {
            pools,
            settings: Box::new(settings),
            reply,
        })
        .await?
    }

    /// Returns when it is durable. `None`: as the configuration has it.
    pub async fn set_pool_state(
        &self,
        name: String,
        to: Option<PoolOverride>,
    ) -> Result<PoolUsers, Error> {
        self.ask(|reply| Request::PoolState { name, to, reply })
            .await?
    }

    /// In address order.
    pub async fn blocks(&self) -> Result<Vec<BlockView>, Error> {
        self.ask(Request::Blocks).await
    }

    pub async fn address(&self, address: IpAddr) -> Result<AddressView, Error> {
        self.ask(|reply| Request::Address(address, reply)).await
    }

    pub async fn status(&self) -> Result<NodeStatus, Error> {
        self.ask(Request::Status).await
    }

    /// Gives an empty block back; returns when nothing is left of it.
    pub async fn release_block(&self, cidr: IpNet) -> Result<(), Error> {
        self.ask(|reply| Request::ReleaseBlock(cidr, reply)).await?
    }

    /// In address order.
    pub async fn address_uses(&self) -> Result<Vec<AddressUse>, Error> {
        self.ask(Request::AddressUses).await
    }

    /// What the node believes, and what is on disk.
    pub async fn audit(&self) -> Result<(NodeAudit, Recovered), Error> {
        let (audit, records) = self.ask(Request::Audit).await?;
        let unavailable = |text: String| Error::Unavailable {
            part: "store",
            text,
        };
        let records = records
            .map_err(|error| unavailable(error.to_string()))?
            .await
            .map_err(|_| Error::Stopping)?
            .map_err(|error| unavailable(error.to_string()))?;
        Ok((audit, records))
    }

    /// Returns when it is durable and the speaker is told; everything is withdrawn after the
    /// timeout.
    pub async fn drain(&self, timeout: Duration) -> Result<Drain, Error> {
        self.ask(|reply| Request::Drain(timeout, reply)).await?
    }

    pub async fn undrain(&self) -> Result<Drain, Error> {
        self.ask(Request::Undrain).await?
    }
}
