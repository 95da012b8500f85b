//! How connections and sessions end, and what follows: the other connection, Idle for a while, or
//! another try; and whether routes are kept (RFC 4724, RFC 8538).

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{
    Action, Cause, Context, Idle, Outgoing, Packet, Pending, Session, State, Trying, machine::dial,
    timers::Rate,
};
use crate::{message::Notification, types::ConnectionId, wire::notify};

/// So many short sessions in a row are taken as a peer that fails.
const SHORT_SESSIONS: u32 = 3;

/// How one connection ended.
#[derive(Debug)]
pub(super) enum Failure {
    /// We found an error and say so.
    Error(Notification),
    /// RFC 9687; there is no way to say so.
    SendHold,
    /// The other connection was chosen (RFC 4271 §6.8).
    Collision,
    Notified(Notification),
    Lost(String),
}

impl Session {
    /// One connection ends; what becomes of the session depends on the others.
    pub(super) fn end(&mut self, cx: &mut Context<'_>, connection: ConnectionId, failure: Failure) {
        self.end_one(cx, connection, failure);
        self.unpark(cx);
    }

    fn end_one(&mut self, cx: &mut Context<'_>, connection: ConnectionId, failure: Failure) {
        if let State::Established(established) = &mut self.state {
            if established.connection == connection {
                return self.end_established(cx, failure);
            }
            if let Some(contender) = established
                .contender
                .take_if(|contender| contender.connection == connection)
            {
                self.close_pending(cx, &contender, &failure);
            }
            return;
        }
        let State::Trying(trying) = &mut self.state else {
            return;
        };
        let was_incoming;
        let pending = if let Some(pending) = trying
            .incoming
            .take_if(|pending| pending.connection == connection)
        {
            was_incoming = true;
            pending
        } else if matches!(&trying.outgoing, Outgoing::Pending(p) if p.connection == connection) {
            was_incoming = false;
            match mem::replace(&mut trying.outgoing, Outgoing::Passive) {
                Outgoing::Pending(pending) => pending,
                _ => return,
            }
        } else {
            return;
        };
        let other_lives = trying.pendings().next().is_some();
        self.close_pending(cx, &pending, &failure);
        let is_error = match failure {
            Failure::Collision => false,
            Failure::Error(notification) => {
                self.cause = Cause::Sent(notification);
                true
            }
            Failure::SendHold => {
                self.cause = Cause::SendHold;
                true
            }
            Failure::Notified(notification) => {
                let is_cease = notification.code == notify::code::CEASE;
                self.cause = Cause::Received(notification);
                !is_cease
            }
            Failure::Lost(reason) => {
                self.cause = Cause::Lost(reason);
                false
            }
        };
        if is_error && !other_lives {
            if let State::Trying(Trying {
                outgoing: Outgoing::Dialing { connection, .. },
                ..
            }) = self.state
            {
                cx.actions.push(Action::Close(connection));
            }
            self.hold(cx);
        } else if !was_incoming {
            let wait = self.dials.fail(
                &mut self.rng,
                self.settings.timers.connect_retry,
                self.settings.timers.connect_retry_max,
            );
            if let State::Trying(trying) = &mut self.state {
                trying.outgoing = Outgoing::Waiting {
                    retry_at: cx.now + wait,
                };
            }
        }
    }

    pub(super) fn close_pending(
        &mut self,
        cx: &mut Context<'_>,
        pending: &Pending,
        failure: &Failure,
    ) {
        match failure {
            Failure::Error(notification) => self.say_goodbye(cx, pending, notification.clone()),
            Failure::Collision => {
                self.say_goodbye(cx, pending, Notification::connection_collision());
            }
            Failure::SendHold | Failure::Notified(_) | Failure::Lost(_) => {}
        }
        cx.actions.push(Action::Close(pending.connection));
    }

    pub(super) fn end_established(&mut self, cx: &mut Context<'_>, failure: Failure) {
        let State::Established(established) = &mut self.state else {
            return;
        };
        let connection = established.connection;
        let contender = established.contender.take();
        let notifications_keep = self.keeps_over_notification();
        let (keep, is_error) = match failure {
            Failure::Lost(reason) => {
                self.cause = Cause::Lost(reason);
                (true, false)
            }
            Failure::SendHold => {
                self.cause = Cause::SendHold;
                (true, true)
            }
            Failure::Collision => (false, false),
            Failure::Error(notification) => {
                self.send(cx, connection, Packet::Notification(notification.clone()));
                let is_limit = notification.code == notify::code::CEASE;
                self.cause = Cause::Sent(notification);
                // RFC 8538 §4
                (notifications_keep && !is_limit, true)
            }
            Failure::Notified(notification) => {
                let is_cease = notification.code == notify::code::CEASE;
                let is_hard = is_cease && notification.subcode == notify::cease::HARD_RESET;
                self.cause = Cause::Received(notification);
                (notifications_keep && !is_hard, !is_cease)
            }
        };
        cx.actions.push(Action::Close(connection));
        let lasted = self.left_established(cx, keep);
        if is_error || (!lasted && self.errors.failures() >= SHORT_SESSIONS) {
            self.hold(cx);
        } else {
            if !lasted {
                self.errors.count();
            }
            self.wait(cx);
        }
        // It may well be the peer's way back.
        if let Some(contender) = contender {
            if let State::Idle(Idle::Held { until }) = self.state {
                self.leave_hold(until);
            }
            if let State::Trying(trying) = &mut self.state {
                trying.incoming = Some(contender);
            }
        }
    }

    /// Bookkeeping of the end of a session; the caller sets the next state. True when the session
    /// has lasted long enough to count as one that works.
    pub(super) fn left_established(&mut self, cx: &mut Context<'_>, keep: bool) -> bool {
        let State::Established(established) = &self.state else {
            return false;
        };
        let lasted = cx.now >= established.since + self.settings.timers.error_hold * 10;
        if lasted {
            self.errors.reset();
            self.returns = Rate::default();
        }
        self.counters.dropped_count += 1;
        self.keep_or_drop(cx, keep);
        lasted
    }

    /// Closes all connections and forgets kept routes. The state is Idle afterwards.
    pub(super) fn close_all(&mut self, cx: &mut Context<'_>, notification: Option<Notification>) {
        self.sweep_stale(cx);
        self.drop_parked(cx);
        if let State::Established(established) = &self.state {
            let connection = established.connection;
            let contender = established.contender.as_ref().map(|c| c.connection);
            if let Some(notification) = &notification {
                let notification = if self.keeps_over_notification() {
                    Notification::hard_reset(notification)
                } else {
                    notification.clone()
                };
                self.send(cx, connection, Packet::Notification(notification));
            }
            cx.actions.push(Action::Close(connection));
            if let Some(contender) = contender {
                cx.actions.push(Action::Close(contender));
            }
            self.left_established(cx, false);
        }
        match mem::replace(&mut self.state, State::Idle(Idle::Stopped)) {
            State::Trying(Trying { outgoing, incoming }) => {
                let outgoing = match outgoing {
                    Outgoing::Pending(pending) => Some(pending),
                    Outgoing::Dialing { connection, .. } => {
                        cx.actions.push(Action::Close(connection));
                        None
                    }
                    Outgoing::Passive | Outgoing::Waiting { .. } => None,
                };
                for pending in outgoing.into_iter().chain(incoming) {
                    if let Some(notification) = &notification {
                        self.say_goodbye(cx, &pending, notification.clone());
                    }
                    cx.actions.push(Action::Close(pending.connection));
                }
            }
            State::Idle(_) | State::Established(_) => {}
        }
    }

    /// Idle after an error (RFC 4271 §8.1.1, DampPeerOscillations).
    pub(super) fn hold(&mut self, cx: &mut Context<'_>) {
        let timers = &self.settings.timers;
        if timers.error_hold.is_zero() {
            return self.wait(cx);
        }
        let wait = self
            .errors
            .fail(&mut self.rng, timers.error_hold, timers.error_hold_max);
        self.returns.count(cx.now);
        self.rests_until = None;
        self.state = State::Idle(Idle::Held {
            until: cx.now + wait,
        });
    }

    /// The neighbour has come by itself; it is not dialled before the hold is over.
    pub(super) fn leave_hold(&mut self, until: Instant) {
        self.state = State::Trying(Trying {
            outgoing: self.waiting_outgoing(until, Duration::ZERO),
            incoming: None,
        });
    }

    /// After an error: Idle for this long instead of what the errors so far make of it, also for a
    /// neighbour that comes by itself.
    pub(crate) fn rest(&mut self, cx: &mut Context<'_>, rest: Duration) {
        let until = cx.now + rest;
        match self.state {
            State::Idle(Idle::Stopped) | State::Established(_) => return,
            State::Idle(Idle::Held { .. }) => {}
            // A second connection took the place of the first.
            State::Trying(_) => self.close_all(cx, None),
        }
        self.state = State::Idle(Idle::Held { until });
        self.rests_until = Some(until);
    }

    /// Active: takes connections, and dials after a while.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) {
        let wait = self.dials.fail(
            &mut self.rng,
            self.settings.timers.connect_retry,
            self.settings.timers.connect_retry_max,
        );
        let outgoing = self.waiting_outgoing(cx.now, wait);
        self.state = State::Trying(Trying {
            outgoing,
            incoming: None,
        });
    }

    pub(super) fn waiting_outgoing(&self, now: Instant, wait: Duration) -> Outgoing {
        if self.settings.passive {
            Outgoing::Passive
        } else {
            Outgoing::Waiting {
                retry_at: now + wait,
            }
        }
    }

    pub(super) fn dial_failed(&mut self, cx: &mut Context<'_>) {
        let wait = self.dials.fail(
            &mut self.rng,
            self.settings.timers.connect_retry,
            self.settings.timers.connect_retry_max,
        );
        if let State::Trying(trying) = &mut self.state {
            trying.outgoing = Outgoing::Waiting {
                retry_at: cx.now + wait,
            };
        }
    }

    pub(super) fn try_now(&mut self, cx: &mut Context<'_>) {
        let outgoing = if self.settings.passive {
            Outgoing::Passive
        } else {
            dial(cx)
        };
        self.state = State::Trying(Trying {
            outgoing,
            incoming: None,
        });
    }
}
