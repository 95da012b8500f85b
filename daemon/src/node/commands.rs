//! Commands: add and delete.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use dataplane::linux::listeners::Listener;

use super::{
    Adder, Caller, Consumers, Drain, Error, Node, Output, Pending, Phase, Queued, WaitFor,
    Workload, WorkloadId, WorkloadSpec, attachment::Attachment, handle::Added, spec::Owner,
};
use crate::{
    ipam::{self, Now, Scope},
    store::record::{Record, WorkloadRecord},
};

/// Owners that the message about a full pool names.
const CONSUMERS: usize = 5;
/// How old their counts may be.
const CONSUMERS_AGE: Duration = Duration::from_secs(1);

impl Node {
    /// Idempotent by id: an equal add that is on its way, or done, is joined. `listening` are
    /// programs of the node on ports that are to be published; they count for a new workload only.
    pub fn handle_add(
        &mut self,
        now: Now,
        caller: Caller,
        id: WorkloadId,
        spec: Box<WorkloadSpec>,
        listening: Vec<Listener>,
        wait: WaitFor,
    ) {
        if let Some(owner) = &spec.owner {
            self.name(owner, &id);
        }
        if let Some(workload) = self.workloads.get_mut(&id) {
            match &workload.phase {
                Phase::Retracting { .. }
                | Phase::Erasing { .. }
                | Phase::Releasing { .. }
                | Phase::Removing => {
                    workload.queued.push(Queued {
                        caller,
                        spec,
                        listening,
                        wait,
                    });
                    return;
                }
                Phase::Recording { .. } | Phase::Programming { .. } | Phase::Standing => {}
            }
            if let Some(field) = workload.spec.difference(&spec) {
                let field = field.to_owned();
                self.reply_add(caller, Err(Error::OtherSpec { id, field }));
                return;
            }
            if let (Phase::Standing, Some(failure)) = (&workload.phase, &workload.failure) {
                let error = workload.error_of(failure);
                self.reply_add(caller, Err(error));
                return;
            }
            workload.adders.push(Adder {
                caller,
                wait,
                created: false,
            });
            self.awaited.insert(id.clone());
            self.check_complete(&id);
            return;
        }
        match self.start_add(now, caller, id.clone(), (*spec).clone(), &listening, wait) {
            Ok(()) => {}
            Err(Error::BlockPending { .. }) => {
                self.park(now, caller, id, spec, listening, wait);
            }
            Err(error) => self.reply_add(caller, Err(error)),
        }
        self.follow_blocks();
    }

    pub(super) fn start_add(
        &mut self,
        now: Now,
        caller: Caller,
        id: WorkloadId,
        spec: WorkloadSpec,
        listening: &[Listener],
        wait: WaitFor,
    ) -> Result<(), Error> {
        if self.drain != Drain::Off {
            return Err(Error::Drained);
        }
        self.check_attachment(&spec.attachment)?;
        self.check_ports(&spec.access)?;
        let scope = match (&spec.attachment, spec.pools.as_slice()) {
            (Attachment::Bridged { bridge, .. }, _) => Scope::Bridge(bridge),
            (Attachment::Routed(_) | Attachment::Tap(_), []) => {
                Scope::Labelled(spec.labels.as_map())
            }
            (Attachment::Routed(_) | Attachment::Tap(_), pools) => Scope::Pools(pools),
            (Attachment::Shared { .. } | Attachment::Host | Attachment::None(_), _) => {
                Scope::Nothing
            }
        };
        let allocation = self
            .ipam
            .allocate_from(now, &id, scope, spec.addresses.as_slice())
            .map_err(|error| self.address_error(now, error))?;
        // Which families it gets is known only now.
        if let Some(mtu) = spec.mtu
            && let Err(invalid) = mtu.check_family(allocation.addresses.iter().map(|a| &a.address))
        {
            self.ipam.rollback_allocation(now, &allocation);
            return Err(Error::invalid("mtu", invalid.0));
        }
        let addresses: Vec<_> = allocation.addresses.iter().map(|a| a.address).collect();
        let access = &spec.access;
        if let Err(error) = access
            .check_families(&addresses)
            .and_then(|()| access.check_listeners(&addresses, listening))
        {
            self.ipam.rollback_allocation(now, &allocation);
            return Err(error);
        }
        let spec = Arc::new(spec);
        let mut records = allocation.records.clone();
        let blocks = records
            .iter()
            .filter_map(|record| match record {
                Record::PutBlock(block) => Some(block.cidr),
                _ => None,
            })
            .collect();
        records.append(&mut self.leftover);
        records.push(Record::PutWorkload(WorkloadRecord {
            id: id.clone(),
            generation: allocation.generation,
            spec: spec.clone(),
            addresses: allocation.addresses.clone(),
            created_at: now.wall,
        }));
        let generation = allocation.generation;
        let workload = Workload {
            generation,
            spec,
            addresses: allocation.addresses.clone(),
            created_at: now.wall,
            phase: Phase::Recording { allocation },
            detail: None,
            failure: None,
            published: false,
            adders: vec![Adder {
                caller,
                wait,
                created: true,
            }],
            deleters: Vec::new(),
            queued: Vec::new(),
        };
        self.note_names(&id, &workload.spec);
        let object = workload.object(&id);
        self.workloads.insert(id.clone(), workload);
        self.awaited.insert(id.clone());
        if let Some(owner) = self.owner_of(&id).cloned() {
            self.name(&owner, &id);
        }
        let pending = Pending::Put {
            id,
            generation,
            blocks,
        };
        self.persist(pending, records);
        // The disk and the kernel work at the same time.
        self.outputs
            .extend(object.map(|object| Output::Set(vec![object])));
        Ok(())
    }

    /// Deleting what is gone, or has another generation, succeeds and does nothing.
    pub fn handle_delete(
        &mut self,
        now: Now,
        caller: Caller,
        id: WorkloadId,
        generation: Option<u64>,
    ) {
        self.unpark(&id);
        let Some(workload) = self.workloads.get_mut(&id) else {
            self.reply_delete(caller, Ok(false));
            return;
        };
        if generation.is_some_and(|generation| generation != workload.generation) {
            self.reply_delete(caller, Ok(false));
            return;
        }
        // Those inside would lose the ground under their feet.
        let sharers = self.sharers(&id);
        if !sharers.is_empty() {
            self.reply_delete(caller, Err(Error::HasSharers { id, by: sharers }));
            return;
        }
        let Some(workload) = self.workloads.get_mut(&id) else {
            return;
        };
        workload.deleters.push(caller);
        // What is on its way out needs no further push. Adds that wait for its end came before
        // this delete; it names them, too, unless it names the generation that is leaving.
        let queued = match generation {
            None => mem::take(&mut workload.queued),
            Some(_) => Vec::new(),
        };
        let standing = match &workload.phase {
            Phase::Recording { .. } => Some((None, true)),
            Phase::Programming { .. } | Phase::Standing => Some((Some(true), true)),
            _ => None,
        };
        if let Some((recorded, wanted)) = standing {
            let adders = mem::take(&mut workload.adders);
            let generation = workload.generation;
            workload.phase = Phase::Releasing { recorded, wanted };
            let mut records = vec![Record::DeleteWorkload(id.clone())];
            records.append(&mut self.leftover);
            // What a release will write is written now, but the addresses are held until the
            // kernel has let go of them, however short the cool-down is.
            if let Some(release) = self.ipam.release(now, &id, Some(generation)) {
                self.ipam.rollback_release(&release);
                records.extend(release.records);
            }
            self.awaited.remove(&id);
            for adder in adders {
                self.reply_add(adder.caller, Err(Error::Deleted(id.clone())));
            }
            let pending = Pending::Release {
                id: id.clone(),
                generation,
            };
            self.persist(pending, records);
            self.publish(&id);
        }
        for add in queued {
            self.reply_add(add.caller, Err(Error::Deleted(id.clone())));
        }
        self.follow_blocks();
    }

    /// Answers those whose wait is over.
    pub(super) fn answer_adders(&mut self, id: &WorkloadId) {
        let Some(workload) = self.workloads.get(id) else {
            return;
        };
        if workload.adders.is_empty() {
            return;
        }
        let view = self.workload_view(id, workload);
        let advertised = self.is_advertised(workload);
        let workload = self.workloads.get_mut(id).expect("found just now");
        let (done, waiting): (Vec<_>, Vec<_>) = mem::take(&mut workload.adders)
            .into_iter()
            .partition(|adder| adder.wait == WaitFor::Programmed || advertised);
        if waiting.is_empty() {
            self.awaited.remove(id);
        }
        workload.adders = waiting;
        for adder in done {
            let added = Added {
                workload: view.clone(),
                created: adder.created,
            };
            self.reply_add(adder.caller, Ok(added));
        }
    }
}

impl Node {
    /// The node's error for the allocator's.
    fn address_error(&mut self, now: Now, error: ipam::Error) -> Error {
        if let ipam::Error::Exhausted(exhausted) = error {
            return Error::PoolExhausted {
                consumers: self.consumers(now, &exhausted.pool),
                exhausted,
            };
        }
        address_error(error)
    }

    /// Whose workloads hold the addresses of a pool, the greatest first. Callers of a full pool try
    /// again and again, so it is counted once a second.
    fn consumers(&mut self, now: Now, pool: &str) -> Vec<(String, u64)> {
        if let Some(counted) = &self.consumers
            && counted.pool == pool
            && now.instant.saturating_duration_since(counted.at) < CONSUMERS_AGE
        {
            return counted.counts.clone();
        }
        let mut counts: BTreeMap<Option<&Owner>, u64> = BTreeMap::new();
        for workload in self.workloads.values() {
            let held = workload.addresses.iter().filter(|held| held.pool == pool);
            let held = u64::try_from(held.count()).unwrap_or(u64::MAX);
            if held > 0 {
                *counts.entry(workload.spec.owner.as_ref()).or_default() += held;
            }
        }
        let name = |owner: Option<&Owner>| match owner {
            Some(owner) => owner.to_string(),
            None => "no owner".to_owned(),
        };
        let mut consumers: Vec<(String, u64)> = counts
            .into_iter()
            .map(|(owner, count)| (name(owner), count))
            .collect();
        consumers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        consumers.truncate(CONSUMERS);
        self.consumers = Some(Consumers {
            at: now.instant,
            pool: pool.to_owned(),
            counts: consumers.clone(),
        });
        consumers
    }
}

/// The node's error for the allocator's.
fn address_error(error: ipam::Error) -> Error {
    let text = error.to_string();
    match error {
        ipam::Error::PoolUnknown { name, configured } => Error::PoolNotFound {
            name,
            configured: configured.join(", "),
        },
        ipam::Error::PoolClosed { name, .. } => Error::PoolDisabled { name, text },
        ipam::Error::PoolsOfOneFamily { .. } => Error::invalid("pools", text),
        ipam::Error::NoPool { .. } => Error::NoPool { text },
        ipam::Error::Exhausted(exhausted) => Error::PoolExhausted {
            exhausted,
            consumers: Vec::new(),
        },
        ipam::Error::BlockLimit { address, .. } => Error::AddressUnavailable { address, text },
        ipam::Error::AddressTaken { address, holder } => Error::AddressInUse {
            address,
            by: holder.to_string(),
        },
        ipam::Error::AddressCooling {
            address, free_in, ..
        } => Error::AddressCooling {
            address,
            text,
            retry: free_in,
        },
        ipam::Error::Waiting { pool, .. } => Error::BlockPending { pool, text },
        ipam::Error::BlockHeld { block, .. } => Error::AddressUnavailable {
            address: block.addr(),
            text,
        },
        ipam::Error::BlockReleasing { block, .. } => Error::BlockNotReady { block, text },
        ipam::Error::AddressReserved { address, .. }
        | ipam::Error::AddressOutsidePools { address, .. }
        | ipam::Error::AddressOutsidePool { address, .. }
        | ipam::Error::AddressOutsideClaim { address, .. }
        | ipam::Error::FamilyTwice { address } => Error::AddressUnavailable { address, text },
    }
}
