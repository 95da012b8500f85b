//! What becomes of a workload between its commands: transitions of [`Phase`].

use std::mem;

use dataplane::desired::{self, Detail, Failure, FailureKind, Object, ObjectId};

use super::{Error, Node, Output, Pending, Phase, RETRY, Workload, WorkloadId};
use crate::{ipam::Now, store::record::Record};

impl Workload {
    /// As the dataplane wants it; `None`: there is nothing to be done in the kernel.
    pub(super) fn object(&self, id: &WorkloadId) -> Option<Object> {
        let attachment = self.spec.attachment.desired()?;
        Some(Object::Workload(
            desired::Workload {
                id: id.shared(),
                attachment,
                addresses: self.addresses.iter().map(|a| a.address).collect(),
                mtu: self.spec.mtu.map(|mtu| mtu.get()),
                access: self.spec.access.desired(),
            }
            .into(),
        ))
    }

    /// The error for a caller.
    pub(super) fn error_of(&self, failure: &Failure) -> Error {
        let text = failure.text.clone();
        match failure.kind {
            FailureKind::NamespaceGone => Error::NamespaceNotFound {
                name: match self.spec.attachment.namespace() {
                    Some(namespace) => namespace.name.to_string(),
                    None => String::new(),
                },
                text,
            },
            FailureKind::InterfaceInUse => Error::InterfaceInUse {
                interface: match self.spec.attachment.interface() {
                    Some(interface) => interface.as_str().to_owned(),
                    None => String::new(),
                },
                text,
            },
            FailureKind::Conflict => Error::Conflict(text),
            FailureKind::Permission => Error::Permission(text),
            FailureKind::Kernel | FailureKind::Unresolved => Error::Kernel(text),
        }
    }
}

impl Node {
    /// The workload of that generation.
    fn generation(&mut self, id: &WorkloadId, generation: u64) -> Option<&mut Workload> {
        self.workloads
            .get_mut(id)
            .filter(|workload| workload.generation == generation)
    }

    /// The store has answered about the record of an add.
    pub(super) fn put_done(
        &mut self,
        now: Now,
        id: &WorkloadId,
        generation: u64,
        result: Result<(), String>,
    ) {
        let Some(workload) = self.generation(id, generation) else {
            return;
        };
        match &mut workload.phase {
            Phase::Recording { allocation } => {
                let allocation = allocation.clone();
                match result {
                    Ok(()) => {
                        workload.phase = Phase::Programming { allocation };
                        if workload.spec.attachment.desired().is_none() {
                            workload.detail = Some(Detail::default());
                        }
                        self.publish(id);
                        self.check_complete(id);
                    }
                    Err(text) if workload.spec.attachment.desired().is_none() => {
                        self.ipam.rollback_allocation(now, &allocation);
                        self.finish(now, id, Some(Error::Store(text)));
                    }
                    Err(text) => self.retract(id, Error::Store(text), Some(false)),
                }
            }
            Phase::Retracting { recorded, .. } => {
                *recorded = Some(result.is_ok());
                self.retracted(now, id);
            }
            // Deleted meanwhile.
            Phase::Releasing { recorded, .. } => *recorded = Some(result.is_ok()),
            _ => {}
        }
    }

    /// The store has answered about the deletion of a workload.
    pub(super) fn release_done(
        &mut self,
        now: Now,
        id: &WorkloadId,
        generation: u64,
        result: Result<(), String>,
    ) {
        let Some(workload) = self.generation(id, generation) else {
            return;
        };
        let Phase::Releasing { recorded, wanted } = workload.phase else {
            return;
        };
        let text = match result {
            Err(text) if recorded != Some(false) => text,
            // Durable; or there never was a record, so that nothing is left to delete. The kernel
            // is asked in any case: it may hold an object of an earlier run under this id.
            _ => {
                workload.phase = Phase::Removing;
                let object = ObjectId::Workload(id.shared());
                self.outputs.push_back(Output::Remove(vec![object]));
                return;
            }
        };
        workload.phase = Phase::Standing;
        let deleters = mem::take(&mut workload.deleters);
        let queued = mem::take(&mut workload.queued);
        match workload.object(id) {
            Some(object) if !wanted => self.outputs.push_back(Output::Set(vec![object])),
            Some(_) => {}
            None => workload.detail = Some(Detail::default()),
        }
        self.publish(id);
        for caller in deleters {
            self.reply_delete(caller, Err(Error::Store(text.clone())));
        }
        for add in queued {
            self.handle_add(
                now,
                add.caller,
                id.clone(),
                add.spec,
                add.listening,
                add.wait,
            );
        }
    }

    /// The store has answered about the record of a failed add.
    pub(super) fn erase_done(
        &mut self,
        now: Now,
        id: &WorkloadId,
        generation: u64,
        result: Result<(), String>,
    ) {
        let Some(workload) = self.generation(id, generation) else {
            return;
        };
        let Phase::Erasing { allocation, error } = &workload.phase else {
            return;
        };
        let error = error.clone();
        match result {
            Ok(()) => {
                let allocation = allocation.clone();
                self.ipam.rollback_allocation(now, &allocation);
                self.finish(now, id, Some(error));
            }
            Err(_) => {
                // The callers learn why the add failed; the record is deleted as soon as the
                // store works again, and the id stays taken until then.
                let adders = mem::take(&mut workload.adders);
                for adder in adders {
                    self.reply_add(adder.caller, Err(error.clone()));
                }
                self.awaited.remove(id);
                let pending = Pending::Erase {
                    id: id.clone(),
                    generation,
                };
                self.retries.push((now.instant + RETRY, pending));
            }
        }
    }

    /// Asks the store again.
    pub(super) fn retry(&mut self, now: Now, pending: Pending) {
        let records = match &pending {
            Pending::Erase { id, .. } => vec![Record::DeleteWorkload(id.clone())],
            Pending::DropBlock(cidr) => vec![Record::DeleteBlock(*cidr)],
            // It may be held again by now.
            Pending::Orphan(cidr) if self.holds(now, *cidr) => return,
            Pending::Orphan(cidr) => vec![Record::DeleteBlock(*cidr)],
            Pending::Cleanup(records) => records.clone(),
            Pending::Put { .. }
            | Pending::Release { .. }
            | Pending::Claim(_)
            | Pending::Drain(..)
            | Pending::Pool(..) => return,
        };
        self.persist(pending, records);
    }

    pub(super) fn workload_programmed(&mut self, id: &str, detail: Detail) {
        let Some((id, workload)) = self.workloads.get_key_value(id) else {
            return;
        };
        // A delete that the store refuses leaves the workload standing, so what the kernel says
        // in between counts.
        if !matches!(
            workload.phase,
            Phase::Recording { .. }
                | Phase::Programming { .. }
                | Phase::Standing
                | Phase::Releasing { .. }
        ) {
            return;
        }
        let id = id.clone();
        let workload = self.workloads.get_mut(&id).expect("found just now");
        let changed = workload.failure.is_some() || workload.detail.as_ref() != Some(&detail);
        workload.failure = None;
        workload.detail = Some(detail);
        self.unconfirmed.remove(&id);
        if matches!(workload.phase, Phase::Standing) && changed {
            self.publish(&id);
        }
        self.check_complete(&id);
    }

    pub(super) fn workload_failed(&mut self, id: &str, failure: Failure) {
        let Some((id, workload)) = self.workloads.get_key_value(id) else {
            return;
        };
        let id = id.clone();
        let error = workload.error_of(&failure);
        let workload = self.workloads.get_mut(&id).expect("found just now");
        match &workload.phase {
            Phase::Recording { .. } | Phase::Programming { .. }
                if failure.kind != FailureKind::Unresolved =>
            {
                self.fail_add(&id, error);
            }
            Phase::Standing => {
                self.unconfirmed.remove(&id);
                let changed = workload
                    .failure
                    .as_ref()
                    .is_none_or(|before| before.text != failure.text);
                workload.failure = Some(failure);
                let adders = mem::take(&mut workload.adders);
                self.awaited.remove(&id);
                for adder in adders {
                    self.reply_add(adder.caller, Err(error.clone()));
                }
                if changed {
                    self.publish(&id);
                }
            }
            Phase::Releasing { .. } => workload.failure = Some(failure),
            _ => {}
        }
    }

    /// Begins to take back an add that was not answered yet.
    pub(super) fn fail_add(&mut self, id: &WorkloadId, error: Error) {
        match self.workloads.get(id).map(|workload| &workload.phase) {
            Some(Phase::Recording { .. }) => self.retract(id, error, None),
            Some(Phase::Programming { .. }) => self.retract(id, error, Some(true)),
            _ => {}
        }
    }

    fn retract(&mut self, id: &WorkloadId, error: Error, recorded: Option<bool>) {
        let Some(workload) = self.workloads.get_mut(id) else {
            return;
        };
        let (Phase::Recording { allocation } | Phase::Programming { allocation }) = &workload.phase
        else {
            return;
        };
        workload.phase = Phase::Retracting {
            allocation: allocation.clone(),
            error,
            recorded,
            removed: false,
        };
        let object = ObjectId::Workload(id.shared());
        self.outputs.push_back(Output::Remove(vec![object]));
        self.publish(id);
    }

    /// The kernel or the store has answered about a failed add.
    fn retracted(&mut self, now: Now, id: &WorkloadId) {
        let Some(workload) = self.workloads.get_mut(id) else {
            return;
        };
        let Phase::Retracting {
            allocation,
            error,
            recorded: Some(recorded),
            removed: true,
        } = &workload.phase
        else {
            return;
        };
        let (allocation, error, recorded) = (allocation.clone(), error.clone(), *recorded);
        if !recorded {
            self.ipam.rollback_allocation(now, &allocation);
            self.finish(now, id, Some(error));
            return;
        }
        let generation = workload.generation;
        workload.phase = Phase::Erasing { allocation, error };
        let pending = Pending::Erase {
            id: id.clone(),
            generation,
        };
        self.persist(pending, vec![Record::DeleteWorkload(id.clone())]);
    }

    pub(super) fn workload_removed(&mut self, now: Now, id: &str) {
        let Some((id, _)) = self.workloads.get_key_value(id) else {
            return;
        };
        let id = id.clone();
        let workload = self.workloads.get_mut(&id).expect("found just now");
        match &mut workload.phase {
            Phase::Retracting { removed, .. } => {
                *removed = true;
                self.retracted(now, &id);
            }
            Phase::Removing => self.finish(now, &id, None),
            _ => {}
        }
    }

    /// Whether an awaited workload has come as far as its callers wait for.
    pub(super) fn check_complete(&mut self, id: &WorkloadId) {
        let Some(workload) = self.workloads.get(id) else {
            return;
        };
        if workload.detail.is_none() || !self.blocks_active(workload) {
            return;
        }
        match &workload.phase {
            Phase::Programming { .. } => {
                let workload = self.workloads.get_mut(id).expect("found just now");
                workload.phase = Phase::Standing;
                if workload.adders.is_empty() {
                    self.awaited.remove(id);
                }
                self.publish(id);
                self.answer_adders(id);
            }
            Phase::Standing => self.answer_adders(id),
            _ => {}
        }
    }

    /// Nothing of the workload is left: forgets it, answers everybody, and starts what waited.
    fn finish(&mut self, now: Now, id: &WorkloadId, error: Option<Error>) {
        let Some(workload) = self.workloads.remove(id) else {
            return;
        };
        self.forget_names(id, &workload.spec);
        self.sync_forget(id, workload.spec.owner.as_ref(), workload.generation);
        self.awaited.remove(id);
        self.unconfirmed.remove(id);
        if let Phase::Removing = workload.phase
            && let Some(release) = self.ipam.release(now, id, Some(workload.generation))
        {
            // The cool-down is on disk since the delete; what else comes along goes with the
            // next change.
            self.leftover.extend(
                release
                    .records
                    .into_iter()
                    .filter(|record| matches!(record, Record::DeleteCooling(_))),
            );
        }
        if workload.published {
            self.publish_deletion(id, workload.generation);
        }
        let error = error.unwrap_or_else(|| Error::Deleted(id.clone()));
        for adder in workload.adders {
            self.reply_add(adder.caller, Err(error.clone()));
        }
        for caller in workload.deleters {
            self.reply_delete(caller, Ok(true));
        }
        for add in workload.queued {
            self.handle_add(
                now,
                add.caller,
                id.clone(),
                add.spec,
                add.listening,
                add.wait,
            );
        }
    }
}
