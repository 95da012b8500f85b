//! The tokio task that owns the reconciler and the kernel, and the handle others drive it by.
//!
//! All decisions are the reconciler's. This task carries inputs to it (commands, results, changes,
//! time) and its outputs to the kernel and to the daemon.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::task::JoinHandle;

use crate::{
    desired::{Event, Object, ObjectId, Source},
    linux::OpenError,
    reconcile::{Config, KernelRoute, Lookup, NextHopView, ObjectStatus, Status},
};

/// The task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataplane has stopped")]
pub struct Stopped;

/// Drives the dataplane. Calls wait while the command queue is full.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// Wants these objects; one with the id of an earlier one replaces it.
    pub async fn set(&self, objects: Vec<Object>) -> Result<(), Stopped> {
        let _ = objects;
        Err(Stopped)
    }

    pub async fn remove(&self, ids: Vec<ObjectId>) -> Result<(), Stopped> {
        let _ = ids;
        Err(Stopped)
    }

    /// All that this source wants has been set: what else carries our marks may be deleted.
    pub async fn source_synced(&self, source: Source) -> Result<(), Stopped> {
        let _ = source;
        Err(Stopped)
    }

    /// Each added address is reported once at once, and then on every change.
    pub async fn watch_next_hops(
        &self,
        add: Vec<IpAddr>,
        remove: Vec<IpAddr>,
    ) -> Result<(), Stopped> {
        let _ = (add, remove);
        Err(Stopped)
    }

    pub async fn status(&self) -> Result<Status, Stopped> {
        Err(Stopped)
    }

    /// This agent's routes in the kernel, in order of prefix, those after `after`; with `within`,
    /// only that prefix and what it covers.
    pub async fn routes(
        &self,
        within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Result<Vec<KernelRoute>, Stopped> {
        let _ = (within, after, limit);
        Err(Stopped)
    }

    /// State of a wanted object; `None` when it is not wanted.
    pub async fn object(&self, id: ObjectId) -> Result<Option<ObjectStatus>, Stopped> {
        let _ = id;
        Err(Stopped)
    }

    /// Next hops that are watched or used, in order of address.
    pub async fn next_hops(&self) -> Result<Vec<NextHopView>, Stopped> {
        Err(Stopped)
    }

    /// What the kernel does with packets to this address.
    pub async fn lookup(&self, address: IpAddr) -> Result<Lookup, Stopped> {
        let _ = address;
        Err(Stopped)
    }

    /// Ends the task. What is in the kernel stays as it is.
    pub async fn shutdown(&self) {}
}

/// What the reconciler reports, in order.
#[derive(Debug)]
pub struct Events {}

impl Events {
    /// At least one event; `None` once the task has ended. May be dropped while waiting.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        None
    }
}

/// Starts the task; call it inside a tokio runtime.
pub fn spawn(config: Config) -> Result<(Handle, Events, JoinHandle<()>), OpenError> {
    let _ = config;
    Ok((Handle {}, Events {}, tokio::spawn(async {})))
}
