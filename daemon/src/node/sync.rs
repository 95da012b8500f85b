//! Clients that state all their workloads, so that what they have forgotten does not stay for ever.
//!
//! ```text
//!   begin(owner) ─► named, named, … ─► complete ─► what is the owner's and was not named is
//!                        │                         released after the grace period
//!                        │ broken off: nothing is released
//!                        ▼
//! ```
//!
//! * Only workloads of the stream's owner are concerned. Two orchestrators on a node, or an operator
//!   with `agentctl`, never release each other's.
//! * A workload is named by any message about it, also by one that is refused, and by every unary add
//!   of the same owner. Naming it takes it out of what is going to be released, at any time.
//! * One stream of an owner at a time: a later one ends the earlier, and forgets what that one would
//!   have had released. So only a whole set that is the last one said releases anything.
//! * Nothing of it is stored. A restart ends the streams; clients begin anew, and nothing is released
//!   before they have said all.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use super::{Caller, Error, Node, Output, Phase, RETRY, WorkloadId, spec::Owner};
use crate::ipam::Now;

/// Streams at once.
pub const SYNCS: usize = 64;
/// Releases begun in one round.
const RELEASES: usize = 256;

/// A stream of a client. Never used again within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncId(pub u64);

/// What a client is told between its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncEvent {
    /// Not named, and gone now.
    Released { id: WorkloadId, generation: u64 },
    /// Another stream of the same owner has begun: this one counts no more.
    Replaced,
}

/// The answer to the end of a whole set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncSummary {
    /// Workloads of the owner that were named.
    pub named: u64,
    /// Those that were not.
    pub unnamed: u64,
    pub grace: Duration,
}

#[derive(Clone, Debug)]
struct Stream {
    owner: Owner,
    grace: Duration,
    /// Existing workloads only.
    named: BTreeSet<WorkloadId>,
    complete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Unnamed {
    generation: u64,
    at: Instant,
    wall: SystemTime,
}

/// All streams, and what is going to be released.
#[derive(Clone, Debug, Default)]
pub(super) struct Syncs {
    streams: BTreeMap<SyncId, Stream>,
    unnamed: BTreeMap<WorkloadId, Unnamed>,
    /// The same, by time.
    due: BTreeSet<(Instant, WorkloadId)>,
    next: u64,
}

impl Syncs {
    pub(super) fn release_at(&self, id: &WorkloadId) -> Option<SystemTime> {
        self.unnamed.get(id).map(|unnamed| unnamed.wall)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn plan(&mut self, id: WorkloadId, unnamed: Unnamed) {
        self.keep(&id);
        self.due.insert((unnamed.at, id.clone()));
        self.unnamed.insert(id, unnamed);
    }

    /// It is not going to be released. False: it was not going to be.
    fn keep(&mut self, id: &WorkloadId) -> bool {
        let Some(unnamed) = self.unnamed.remove(id) else {
            return false;
        };
        self.due.remove(&(unnamed.at, id.clone()));
        true
    }

    fn of(&self, owner: &Owner) -> Option<SyncId> {
        let own = |(_, stream): &(&SyncId, &Stream)| stream.owner == *owner;
        self.streams.iter().find(own).map(|(id, _)| *id)
    }
}

impl Node {
    /// A client begins to state all its workloads. `grace`: `None` for that of the configuration.
    pub fn handle_sync_begin(
        &mut self,
        owner: Owner,
        grace: Option<Duration>,
    ) -> Result<SyncId, Error> {
        if let Some(earlier) = self.syncs.of(&owner) {
            self.syncs.streams.remove(&earlier);
            self.outputs.push_back(Output::Sync {
                id: earlier,
                event: SyncEvent::Replaced,
            });
        }
        if self.syncs.streams.len() >= SYNCS {
            return Err(Error::Busy { limit: SYNCS });
        }
        let unnamed: Vec<WorkloadId> = self.syncs.unnamed.keys().cloned().collect();
        for id in unnamed {
            if self.owner_of(&id) == Some(&owner) && self.syncs.keep(&id) {
                self.publish(&id);
            }
        }
        let id = SyncId(self.syncs.next);
        self.syncs.next += 1;
        let stream = Stream {
            owner,
            grace: grace.unwrap_or(self.release_unnamed_after),
            named: BTreeSet::new(),
            complete: false,
        };
        self.syncs.streams.insert(id, stream);
        Ok(id)
    }

    /// The client has spoken of this workload. Whether there is one that its owner has.
    pub fn handle_sync_name(&mut self, sync: SyncId, id: &WorkloadId) -> bool {
        let Some(owner) = self.syncs.streams.get(&sync).map(|stream| &stream.owner) else {
            return false;
        };
        if self.owner_of(id) != Some(owner) {
            return false;
        }
        self.name(&owner.clone(), id);
        true
    }

    /// The client has named all. What is its owner's and was not named is released after the grace
    /// period.
    pub fn handle_sync_complete(&mut self, now: Now, sync: SyncId) -> Result<SyncSummary, Error> {
        let Some(stream) = self.syncs.streams.get_mut(&sync) else {
            return Err(Error::SyncReplaced);
        };
        if stream.complete {
            return Err(Error::Precondition {
                reason: "SYNC_COMPLETE",
                text: "the whole set was stated already; begin a new stream to state it again"
                    .to_owned(),
            });
        }
        stream.complete = true;
        let named = std::mem::take(&mut stream.named);
        let (owner, grace) = (stream.owner.clone(), stream.grace);
        let forgotten: Vec<(WorkloadId, u64)> = self
            .workloads
            .iter()
            .filter(|(id, workload)| {
                workload.spec.owner.as_ref() == Some(&owner)
                    && workload.phase.stays()
                    && !named.contains(*id)
            })
            .map(|(id, workload)| (id.clone(), workload.generation))
            .collect();
        for (id, generation) in &forgotten {
            let unnamed = Unnamed {
                generation: *generation,
                at: now.instant + grace,
                wall: now.wall + grace,
            };
            self.syncs.plan(id.clone(), unnamed);
            self.publish(id);
        }
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        Ok(SyncSummary {
            named: count(named.len()),
            unnamed: count(forgotten.len()),
            grace,
        })
    }

    /// The stream is over, however it ended. What a whole set left out is released all the same.
    pub fn handle_sync_end(&mut self, sync: SyncId) {
        self.syncs.streams.remove(&sync);
    }

    /// Whose workload it is.
    pub fn owner_of(&self, id: &WorkloadId) -> Option<&Owner> {
        self.workloads.get(id)?.spec.owner.as_ref()
    }

    /// Why a client of that owner may not delete the workload.
    pub fn refuse_other(&self, owner: &Owner, id: &WorkloadId) -> Option<Error> {
        let workload = self.workloads.get(id)?;
        let other = workload.spec.owner.as_ref();
        (other != Some(owner)).then(|| Error::OtherOwner {
            id: id.clone(),
            owner: other.map_or_else(|| "nobody".to_owned(), ToString::to_string),
        })
    }

    /// Somebody has spoken of a workload in the name of its owner.
    pub(super) fn name(&mut self, owner: &Owner, id: &WorkloadId) {
        if self.owner_of(id) != Some(owner) {
            return;
        }
        for stream in self.syncs.streams.values_mut() {
            if stream.owner == *owner && !stream.complete {
                stream.named.insert(id.clone());
            }
        }
        if self.syncs.keep(id) {
            self.publish(id);
        }
    }

    /// Nothing is left of the workload.
    pub(super) fn sync_forget(&mut self, id: &WorkloadId, owner: Option<&Owner>, generation: u64) {
        for stream in self.syncs.streams.values_mut() {
            stream.named.remove(id);
        }
        if self.syncs.keep(id)
            && let Some(sync) = owner.and_then(|owner| self.syncs.of(owner))
        {
            let id = id.clone();
            self.outputs.push_back(Output::Sync {
                id: sync,
                event: SyncEvent::Released { id, generation },
            });
        }
    }

    /// Releases what was not named in time. What cannot be released now is tried again.
    pub(super) fn sync_timeout(&mut self, now: Now) {
        let due: Vec<WorkloadId> = self
            .syncs
            .due
            .iter()
            .take_while(|(at, _)| *at <= now.instant)
            .take(RELEASES)
            .map(|(_, id)| id.clone())
            .collect();
        for id in due {
            let Some(unnamed) = self.syncs.unnamed.get(&id).copied() else {
                continue;
            };
            let workload = self.workloads.get(&id);
            let Some(workload) = workload.filter(|one| one.generation == unnamed.generation) else {
                self.syncs.keep(&id);
                continue;
            };
            let release = workload.phase.stays();
            let again = Unnamed {
                at: now.instant + RETRY,
                ..unnamed
            };
            self.syncs.plan(id.clone(), again);
            if release && self.sharers(&id).is_empty() {
                self.handle_delete(now, Caller::NOBODY, id, Some(unnamed.generation));
            }
        }
    }
}

impl Phase {
    /// It is there, or about to be, and nobody takes it away.
    fn stays(&self) -> bool {
        matches!(
            self,
            Phase::Recording { .. } | Phase::Programming { .. } | Phase::Standing
        )
    }
}
