//! Adds that found no room while a block is being claimed with the fleet.
//!
//! They wait for it, in the order in which they came, and for a few seconds at most: longer than a
//! claim takes when the store is well, and not so long that a caller takes it for hanging.

use std::time::{Duration, Instant};

use dataplane::linux::listeners::Listener;
use ipnet::IpNet;

use super::{Caller, Error, Node, WaitFor, WorkloadId, WorkloadSpec};
use crate::ipam::{Now, Refusal};

/// How long an add waits for a block.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two tries: an address may become free meanwhile, without any block.
const AGAIN: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) caller: Caller,
    id: WorkloadId,
    spec: Box<WorkloadSpec>,
    listening: Vec<Listener>,
    wait: WaitFor,
    until: Instant,
    again: Instant,
}

impl Node {
    /// Blocks that are to be held in the fleet's store, each with its pool.
    pub fn remote_blocks(&self) -> Vec<(String, IpNet)> {
        self.ipam.remote_blocks()
    }

    /// A block was claimed with the fleet for this pool.
    pub fn handle_acquired(&mut self, now: Now, pool: &str, cidr: IpNet) {
        self.ipam.acquired(now, pool, cidr);
        self.follow_blocks();
        self.retry_parked(now);
    }

    /// A block could not be claimed with the fleet.
    pub fn handle_acquire_failed(
        &mut self,
        now: Now,
        pool: &str,
        block: Option<IpNet>,
        why: Refusal,
    ) {
        // Whether the store can be reached may change by the moment: those wait on.
        let settled = !matches!(why, Refusal::Unreachable(_));
        self.ipam.acquire_failed(pool, block, why);
        if settled {
            self.retry_parked(now);
        }
    }

    pub(super) fn park(
        &mut self,
        now: Now,
        caller: Caller,
        id: WorkloadId,
        spec: Box<WorkloadSpec>,
        listening: Vec<Listener>,
        wait: WaitFor,
    ) {
        self.parked.push(Parked {
            caller,
            id,
            spec,
            listening,
            wait,
            until: now.instant + PATIENCE,
            again: now.instant + AGAIN,
        });
    }

    /// A delete names those that wait, too.
    pub(super) fn unpark(&mut self, id: &WorkloadId) {
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|parked| parked.id == *id);
        self.parked = stay;
        for parked in gone {
            self.reply_add(parked.caller, Err(Error::Deleted(id.clone())));
        }
    }

    pub(super) fn parked_deadline(&self) -> Option<Instant> {
        let times = self.parked.iter();
        times.map(|parked| parked.until.min(parked.again)).min()
    }

    pub(super) fn parked_timeout(&mut self, now: Now) {
        if self.parked_deadline().is_some_and(|at| at <= now.instant) {
            self.retry_parked(now);
        }
    }

    /// Tries all once more. Who still finds no room waits on, or is told why not.
    fn retry_parked(&mut self, now: Now) {
        for parked in std::mem::take(&mut self.parked) {
            let Parked {
                caller,
                id,
                spec,
                listening,
                wait,
                until,
                ..
            } = parked;
            if self.workloads.contains_key(&id) {
                self.handle_add(now, caller, id, spec, listening, wait);
                continue;
            }
            match self.start_add(now, caller, id.clone(), (*spec).clone(), &listening, wait) {
                Ok(()) => {}
                Err(Error::BlockPending { .. }) if now.instant < until => {
                    self.parked.push(Parked {
                        caller,
                        id,
                        spec,
                        listening,
                        wait,
                        until,
                        again: now.instant + AGAIN,
                    });
                }
                Err(error) => self.reply_add(caller, Err(error)),
            }
        }
        self.follow_blocks();
    }
}
