//! What the kernel's answers mean.

use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{
    Reconciler,
    lifecycle::{Reading, Stage, kind_of},
    plan::{Asked, Tag},
    table::{BLACKHOLE, Code, Hash, NONE, is_object},
    values::what,
};
use crate::{
    desired::Kind,
    kernel::{NextHop, OpError, OpResult, Snapshot},
};

impl Reconciler {
    pub(super) fn finish_apply(&mut self, tags: Vec<Tag>, results: Vec<OpResult>) {
        let missing = OpError {
            errno: libc::EIO,
            text: "no result was given".into(),
        };
        let mut results = results.into_iter();
        let mut written: Vec<Arc<str>> = Vec::new();
        let mut unrouted: Vec<(Arc<str>, Option<OpError>)> = Vec::new();
        let mut lost = Vec::new();
        self.next_hops.leaving.clear();
        for tag in tags {
            let result = results.next().unwrap_or_else(|| Err(missing.clone()));
            self.write_errors += u64::from(result.is_err());
            match tag {
                Tag::Create(id, link) => {
                    self.created(&id, *link, result);
                    written.push(id);
                }
                Tag::Workload(id) => {
                    self.workload_error(&id, result);
                    if written.last() != Some(&id) {
                        written.push(id);
                    }
                }
                Tag::WorkloadRoute(id, prefix, code) => {
                    if result.is_ok() {
                        self.table.set_seen(&prefix, code);
                        self.note_underlay_route(&prefix);
                    }
                    self.workload_error(&id, result);
                    written.push(id);
                }
                Tag::Unroute(id, prefix) => {
                    let result = ignore_gone(result);
                    if result.is_ok() {
                        self.table.set_seen(&prefix, NONE);
                        self.note_underlay_route(&prefix);
                    }
                    match unrouted.last_mut() {
                        Some((last, error)) if *last == id => {
                            *error = error.take().or(result.err());
                        }
                        _ => unrouted.push((id, result.err())),
                    }
                }
                Tag::Unlink(id, index) => self.unlinked(&id, index, result),
                Tag::Route(prefix, code) => self.route_written(prefix, code, result),
                Tag::Delete(prefix) => self.route_deleted(prefix, ignore_gone(result)),
                Tag::DeleteOdd(prefix, metric) => {
                    // An error shows again in the next audit.
                    drop(result);
                    self.table.odd.remove(&(prefix, metric));
                }
                Tag::NextHop(object) => self.object_written(*object, result),
                Tag::DeleteNextHop(id) => match ignore_gone(result) {
                    Ok(()) => {
                        self.object_failures.remove(&id);
                        lost.push(id);
                    }
                    Err(error) => {
                        self.object_failed(id, &error);
                        // Its routes were left to go with it.
                        let left = self.table.iter().filter(|(_, entry)| entry.seen == id);
                        self.deletes.extend(left.map(|(prefix, _)| prefix));
                        self.look_at_groups_with(id);
                    }
                },
                Tag::Tunnel(part) => self.tunnel_written(*part, result),
                Tag::Reap(indexes) => self.reaped(indexes, result),
                Tag::Global => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "cannot switch on forwarding");
                    }
                }
            }
        }
        if !lost.is_empty() {
            self.lose_objects(&lost, false);
        }
        for id in written {
            if matches!(self.workloads.get(&id).map(|s| &s.stage), Some(Stage::Busy)) {
                let removed = self.workloads.get(&id).is_some_and(|s| s.removal.is_some());
                let next = match removed {
                    true => Stage::Unroute,
                    false => Stage::Read { verify: true },
                };
                self.stage(&id, next);
            }
        }
        for (id, error) in unrouted {
            match error {
                None => self.unrouted(&id),
                Some(error) => {
                    let text = format!("cannot delete its routes: {}", error.text);
                    self.fail_workload(&id, kind_of(&error, false), text);
                }
            }
        }
    }

    fn workload_error(&mut self, id: &Arc<str>, result: OpResult) {
        if let (Err(error), Some(state)) = (result, self.workloads.get_mut(id))
            && state.last_error.is_none()
            && !matches!(error.errno, libc::EEXIST | libc::ECANCELED)
        {
            state.last_error = Some(error);
        }
    }

    fn created(&mut self, id: &Arc<str>, link: crate::kernel::Link, result: OpResult) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        let removed = state.removal.is_some();
        match result {
            Ok(()) => {
                self.note_link(link);
            }
            Err(error) if !removed && matches!(error.errno, libc::EEXIST | libc::EBUSY) => {
                state.create_tries += 1;
                self.next_index = 0;
                self.bind(id, 0, 0);
                self.stage(id, Stage::Read { verify: false });
            }
            Err(error) => {
                self.bind(id, 0, 0);
                if !removed {
                    self.fail_workload_by(id, "", &error);
                }
            }
        }
        if removed {
            self.stage(id, Stage::Unroute);
        }
    }

    fn unlinked(&mut self, id: &Arc<str>, index: u32, result: OpResult) {
        match result {
            Ok(()) => {
                self.forget_link(index);
                self.bind(id, 0, 0);
                let removed = self.workloads.get(id).is_some_and(|s| s.removal.is_some());
                if removed {
                    self.finish_removal(id);
                } else {
                    self.stage(id, Stage::Create);
                }
            }
            Err(error) => {
                let text = format!("cannot delete its link: {}", error.text);
                self.fail_workload(id, kind_of(&error, false), text);
            }
        }
    }

    fn route_written(&mut self, prefix: IpNet, code: Code, result: OpResult) {
        let now = result.is_ok().then_some(code);
        self.table.written(&prefix, now);
        match result {
            // Its object went meanwhile, and took the route along or did not.
            Ok(()) if is_object(code) && !self.object_stands(code) => {
                self.route_reads.insert(prefix);
            }
            Ok(()) => {
                if !self.puzzling.is_empty() {
                    self.puzzling.remove(&prefix);
                }
                if code == BLACKHOLE {
                    self.route_reads.insert(prefix);
                } else if self.wants_other(&prefix, code) {
                    // The wish changed meanwhile, maybe back to what stood before, which looked
                    // right. Nothing may be deleted before this is written.
                    self.queue(prefix);
                } else {
                    self.settle(prefix);
                }
            }
            // Something stands there that we do not know of. Once it was read, the next plan will.
            Err(error) if error.errno == libc::EEXIST && self.puzzling.insert(prefix) => {
                self.route_reads.insert(prefix);
            }
            Err(error) => {
                self.puzzling.remove(&prefix);
                if is_object(code) && !self.object_stands(code) {
                    self.next_hops.held.insert(code);
                    return;
                }
                let object = self.route_object(prefix);
                self.fail(object, kind_of(&error, false), error.text.to_string());
            }
        }
    }

    fn route_deleted(&mut self, prefix: IpNet, result: OpResult) {
        let now = result.is_ok().then_some(NONE);
        self.table.written(&prefix, now);
        match result {
            Ok(()) => {
                self.settle_gone(prefix);
                // It may be wanted again by now.
                self.queue(prefix);
            }
            Err(error) => {
                let object = self.route_object(prefix);
                self.fail(object, kind_of(&error, false), error.text.to_string());
            }
        }
    }

    fn object_written(&mut self, object: NextHop, result: OpResult) {
        let id = object.id;
        match result {
            Ok(()) => {
                self.object_failures.remove(&id);
                self.tunnels.dirty = true;
                let own = self.is_wanted_object(id);
                self.seen_next_hops.insert(id, object);
                if let Some(found) = self.spoilt_objects.remove(&id) {
                    let text = format!("nexthop object {id} ({found})");
                    self.tell_repair(None, &[what(Kind::NextHop, text)]);
                }
                if own {
                    self.release_held(id);
                } else {
                    self.next_hops.retired.insert(id);
                }
            }
            Err(error) => self.object_failed(id, &error),
        }
    }

    /// Workloads whose predecessors' links are gone now.
    pub(super) fn wake_awaiting(&mut self) {
        for id in std::mem::take(&mut self.awaiting) {
            let state = self.workloads.get(&id);
            if state.is_some_and(|state| matches!(state.stage, Stage::AwaitReap)) {
                self.stage(&id, Stage::Create);
            }
        }
    }

    pub(super) fn finish_query(
        &mut self,
        asked: Asked,
        answer: Result<Snapshot, OpError>,
        readings: &mut HashMap<Arc<str>, Reading, Hash>,
    ) {
        match asked {
            Asked::Link(id) => {
                readings.entry(id).or_default().host = Some(answer);
            }
            Asked::Inside(id) => {
                readings.entry(id).or_default().inside = Some(answer);
            }
            Asked::Tunnel(index) => match answer {
                Ok(snapshot) if snapshot.links.iter().any(|link| link.index == index) => {
                    self.tunnel_read(&snapshot.sysctls);
                }
                Ok(_) => self.tunnel_lost(index),
                Err(error) if matches!(error.errno, libc::ENODEV | libc::ENXIO) => {
                    self.tunnel_lost(index);
                }
                // What is wrong shows in the next audit.
                Err(error) => tracing::debug!(%error, "cannot read a tunnel device"),
            },
            Asked::Host => match answer {
                Ok(snapshot) => self.absorb_host(snapshot),
                Err(error) => {
                    tracing::warn!(%error, "cannot read the kernel's state");
                    self.overruns += 1;
                    self.refresh_failed();
                }
            },
            Asked::Globals => match answer {
                Ok(snapshot) => self.note_globals(&snapshot.sysctls, true),
                // What is wrong shows in the next audit.
                Err(error) => tracing::debug!(%error, "cannot read sysctls"),
            },
            Asked::Routes(prefixes) => match answer {
                Ok(snapshot) => self.absorb_routes(&prefixes, snapshot.routes),
                Err(error) => {
                    tracing::warn!(%error, "cannot read routes");
                    self.unread.extend(prefixes);
                    self.refresh_failed();
                }
            },
        }
    }
}

pub(super) fn ignore_gone(result: OpResult) -> OpResult {
    match result {
        Err(error) if matches!(error.errno, libc::ESRCH | libc::ENOENT | libc::ENODEV) => Ok(()),
        other => other,
    }
}
