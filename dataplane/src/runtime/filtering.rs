//! The filter table's core with its driver, and the meeting of its reports with the reconciler's: a
//! workload is reported as programmed, or as removed, when both have done their part.

use std::{sync::Arc, time::Instant};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hashbrown::HashMap;
use tokio::sync::oneshot;

use crate::{
    desired::{Attachment, Event, FilterSettings, Object, ObjectId},
    filter::{
        self, Counts, Entry, Filter, ForwardDrop, JobId, Output, Snapshot, table::DROP_REASONS,
    },
    kernel::OpError,
    linux::{OpenError, nftables},
    reconcile::workload_mac,
};

/// State of the filter table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterStatus {
    /// It stands as wanted, as far as is known.
    pub right: bool,
    pub counts: Counts,
    /// Packets of workloads dropped since the table was made, by reason. Empty when there is none.
    pub dropped: Vec<(&'static str, u64)>,
}

pub(super) enum Done {
    Read(JobId, Result<Box<Snapshot>, OpError>),
    Committed(JobId, Result<(), OpError>),
    Flushed(JobId, Result<u64, OpError>),
    Told,
}

pub(super) struct Filtering {
    core: Filter,
    kernel: nftables::Filtering,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Of the reconciler: programmed, but the filter is not done yet.
    programmed: HashMap<Arc<str>, Event>,
    /// Removed, likewise.
    removed: HashMap<Arc<str>, Event>,
}

impl Filtering {
    pub(super) fn open() -> Result<(Self, nftables::Changes), OpenError> {
        let (kernel, changes) = nftables::Filtering::open()?;
        let filtering = Self {
            core: Filter::new(),
            kernel,
            jobs: FuturesUnordered::new(),
            programmed: HashMap::new(),
            removed: HashMap::new(),
        };
        Ok((filtering, changes))
    }

    pub(super) fn set_settings(&mut self, settings: FilterSettings) {
        self.core.set_settings(settings);
    }

    pub(super) fn synced(&mut self) {
        self.core.synced();
    }

    pub(super) fn set(&mut self, object: &Object) {
        match object {
            Object::Workload(workload) => {
                let interface = workload.host_interface().unwrap_or_default();
                let entry = match &workload.attachment {
                    Attachment::Bridged { bridge, .. } => Entry::Port {
                        bridge,
                        port: &interface,
                        mac: workload_mac(&workload.id),
                    },
                    _ => Entry::Own(&interface),
                };
                self.core
                    .set_workload(&workload.id, entry, &workload.addresses, &workload.access);
            }
            Object::Bridge(bridge) => self
                .core
                .set_bridge(bridge.name.clone(), bridge.gateways.clone()),
            Object::Blackhole(_) | Object::Route(_) | Object::Tunnels(_) => {}
        }
    }

    pub(super) fn remove(&mut self, id: &ObjectId) {
        match id {
            ObjectId::Workload(id) => {
                self.programmed.remove(id);
                self.core.remove_workload(id);
            }
            ObjectId::Bridge(name) => self.core.remove_bridge(name),
            ObjectId::Blackhole(_) | ObjectId::Route(_) | ObjectId::Tunnels => {}
        }
    }

    pub(super) fn handle_change(&mut self, heard: nftables::Heard) {
        self.core.handle_change(heard.by, heard.deleted);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.core.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
    }

    /// Answers once the kernel was asked for its counters.
    pub(super) fn status(&mut self, answer: oneshot::Sender<FilterStatus>) {
        let mut status = FilterStatus {
            right: self.core.is_right(),
            counts: self.core.counts(),
            dropped: Vec::new(),
        };
        let dropped = self.kernel.dropped();
        let job = async move {
            if let Ok(packets) = dropped.await {
                status.dropped = DROP_REASONS.into_iter().zip(packets).collect();
            }
            // Whoever asked may have gone.
            let _ = answer.send(status);
            Done::Told
        };
        self.jobs.push(job.boxed());
    }

    pub(super) fn forward_drops(&mut self, answer: oneshot::Sender<Vec<ForwardDrop>>) {
        let drops = self.kernel.forward_drops();
        let job = async move {
            // Whoever asked may have gone; what cannot be read is left out.
            let _ = answer.send(drops.await.unwrap_or_default());
            Done::Told
        };
        self.jobs.push(job.boxed());
    }

    /// The next thing that the kernel is done with; `None` while nothing is on its way.
    pub(super) async fn done(&mut self) -> Option<Done> {
        self.jobs.next().await
    }

    pub(super) fn handle_done(&mut self, now: Instant, done: Done) {
        match done {
            Done::Read(id, snapshot) => self.core.handle_snapshot(now, id, snapshot),
            Done::Committed(id, result) => self.core.handle_committed(now, id, result),
            Done::Flushed(id, result) => {
                if let Err(error) = result {
                    tracing::warn!(%error, "connections of removed workloads time out by themselves");
                }
                self.core.handle_flushed(id);
            }
            Done::Told => {}
        }
    }

    /// A report of the reconciler, unless it has to wait for the filter.
    pub(super) fn pass(&mut self, event: Event) -> Option<Event> {
        match &event {
            Event::Programmed {
                id: ObjectId::Workload(id),
                ..
            } if self.core.is_pending(id) => {
                self.programmed.insert(id.clone(), event);
                None
            }
            Event::Removed {
                id: ObjectId::Workload(id),
            } => {
                if self.core.routes_removed(id) {
                    self.removed.insert(id.clone(), event);
                    return None;
                }
                Some(event)
            }
            Event::Failed {
                id: ObjectId::Workload(id),
                ..
            } => {
                self.programmed.remove(id);
                Some(event)
            }
            _ => Some(event),
        }
    }

    /// Hands the core's outputs on. The driver's thread begins at once.
    pub(super) fn carry_out(&mut self, events: &mut Vec<Event>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Read(id) => {
                    let answer = self.kernel.read();
                    self.jobs
                        .push(async move { Done::Read(id, answer.await) }.boxed());
                }
                Output::Commit(id, ops) => {
                    let answer = self.kernel.commit(ops);
                    self.jobs
                        .push(async move { Done::Committed(id, answer.await) }.boxed());
                }
                Output::Flush(id, addresses) => {
                    let answer = self.kernel.forget(addresses);
                    self.jobs
                        .push(async move { Done::Flushed(id, answer.await) }.boxed());
                }
                Output::Event(event) => events.extend(self.report(event)),
            }
        }
    }

    fn report(&mut self, event: filter::Event) -> Option<Event> {
        match event {
            filter::Event::Programmed => Some(Event::FilterProgrammed),
            filter::Event::Repaired { what } => Some(Event::FilterRepaired { what }),
            filter::Event::Failed(failure) => Some(Event::FilterFailed(failure)),
            filter::Event::Standing(id) => self.programmed.remove(&id),
            // What is held back is told when the filter stands after all.
            filter::Event::StandingFailed(id, error) => Some(Event::Failed {
                id: ObjectId::Workload(id),
                error,
            }),
            filter::Event::Gone(id) => self.removed.remove(&id),
        }
    }
}
