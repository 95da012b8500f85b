//! What waits for time to pass: failed objects, the audit, links to be deleted.

use std::time::{Duration, Instant};

use super::{Reconciler, Trouble, attach::key_of, lifecycle::Stage, plan::Round};
use crate::{
    desired::{Event, Failure, FailureKind, ObjectId},
    kernel::OpError,
};

impl Reconciler {
    pub(super) fn refresh_failed(&mut self) {
        let wait = self.back_off(self.refresh_failures);
        self.refresh_failures += 1;
        self.refresh_at = Some(self.now + wait);
    }

    /// 100 ms, then twice as long each time up to 30 s, less up to a quarter at random.
    fn back_off(&mut self, attempts: u32) -> Duration {
        let full = Duration::from_millis(100 << attempts.min(9)).min(Duration::from_secs(30));
        full.mul_f64(1.0 - self.rng.f64() / 4.0)
    }

    pub(super) fn fail(&mut self, id: ObjectId, kind: FailureKind, text: String) {
        let attempts = self.failures.get(&id).map_or(0, |trouble| trouble.attempts);
        let wait = self.back_off(attempts);
        let due = self.now + wait;
        let failure = Failure {
            kind,
            text,
            retry_in: Some(wait),
        };
        let news = self.failures.get(&id).is_none_or(|before| {
            before.failure.kind != failure.kind || before.failure.text != failure.text
        });
        if news {
            let (id, error) = (id.clone(), failure.clone());
            self.events.push_back(Event::Failed { id, error });
        }
        self.retries.insert((due, id.clone()));
        let trouble = Trouble {
            failure,
            attempts: attempts + 1,
            due,
        };
        if let Some(before) = self.failures.insert(id.clone(), trouble)
            && before.due != due
        {
            self.retries.remove(&(before.due, id));
        }
    }

    pub(super) fn object_failed(&mut self, id: u32, error: &OpError) {
        tracing::warn!(id, %error, "cannot write a nexthop object");
        let attempts = self.object_failures.entry(id).or_default();
        *attempts += 1;
        let attempts = *attempts - 1;
        let wait = self.back_off(attempts);
        self.object_retries.insert((self.now + wait, id));
    }

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come; early or
    /// needless calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some((due, _)) = self.retries.first() {
            if *due > now {
                break;
            }
            let Some((due, id)) = self.retries.pop_first() else {
                break;
            };
            if self
                .failures
                .get(&id)
                .is_none_or(|trouble| trouble.due != due)
            {
                continue;
            }
            match id {
                ObjectId::Workload(_) | ObjectId::Bridge(_) => {
                    let Some(id) = key_of(&id) else {
                        continue;
                    };
                    if matches!(
                        self.workloads.get(&id).map(|state| &state.stage),
                        Some(Stage::Backoff)
                    ) {
                        self.enter(&id);
                    }
                }
                ObjectId::Tunnels => {
                    for device in &mut self.tunnels.devices {
                        device.blocked = false;
                    }
                    self.tunnels.dirty = true;
                }
                ObjectId::Blackhole(prefix) | ObjectId::Route(prefix) => {
                    if self.removing.contains(&prefix) {
                        self.deletes.push(prefix);
                    } else {
                        self.queue(prefix);
                    }
                }
            }
        }
        while let Some((due, id)) = self.object_retries.first().copied() {
            if due > now {
                break;
            }
            self.object_retries.pop_first();
            if self.is_wanted_object(id) {
                self.next_hops.dirty.insert(id);
            } else if self.object_stands(id) {
                self.next_hops.retired.insert(id);
            } else {
                self.object_failures.remove(&id);
            }
        }
        self.expire_tunnels();
        if self.refresh_at.is_some_and(|at| now >= at) {
            self.refresh_at = None;
            self.refresh = true;
        }
        if now >= self.audit_at {
            let interval = self.config.audit_interval;
            self.audit_at = now + jitter(&mut self.rng, interval);
            self.refresh = true;
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let reap = match self.round {
            Round::None => self.reap.timeout(),
            _ => None,
        };
        [
            self.retries.first().map(|(due, _)| *due),
            self.object_retries.first().map(|(due, _)| *due),
            self.refresh_at,
            reap,
            self.tunnel_timeout(),
            Some(self.audit_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

pub(super) fn jitter(rng: &mut fastrand::Rng, interval: Duration) -> Duration {
    interval.mul_f64(0.75 + rng.f64() / 2.0)
}
