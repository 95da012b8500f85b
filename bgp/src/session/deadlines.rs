//! What is due when: the timers of the session and of its connections (RFC 4271 §8.2.2, RFC 9687).

use std::time::Instant;

use super::{
    Action, Cause, Context, Idle, Outgoing, Packet, Pending, Session, Stage, State, Writer,
    ending::Failure, machine::dial,
};
use crate::{message::Notification, types::ConnectionId};

impl Session {
    /// Does what is due. Calling it early or often is harmless.
    pub(crate) fn timeout(&mut self, cx: &mut Context<'_>) {
        let established = matches!(self.state, State::Established(_));
        self.stale_timeout(cx, established);
        if self
            .parked
            .as_ref()
            .is_some_and(|parked| parked.until <= cx.now)
        {
            self.decide_parked(cx);
        }
        match &mut self.state {
            State::Idle(Idle::Stopped) => {}
            State::Idle(Idle::Held { until }) => {
                if *until <= cx.now {
                    self.try_now(cx);
                }
            }
            State::Trying(trying) => match trying.outgoing {
                Outgoing::Waiting { retry_at } if retry_at <= cx.now => {
                    trying.outgoing = dial(cx);
                }
                Outgoing::Dialing {
                    connection,
                    give_up_at,
                } if give_up_at <= cx.now => {
                    cx.actions.push(Action::Close(connection));
                    self.cause = Cause::DialTimeout;
                    self.dial_failed(cx);
                }
                _ => {}
            },
            State::Established(_) => {}
        }
        let mut connections = [None; 2];
        match &self.state {
            State::Idle(_) => {}
            State::Trying(trying) => {
                for (slot, pending) in connections.iter_mut().zip(trying.pendings()) {
                    *slot = Some(pending.connection);
                }
            }
            State::Established(established) => {
                connections = [
                    Some(established.connection),
                    established.contender.as_ref().map(|c| c.connection),
                ];
            }
        }
        for connection in connections.into_iter().flatten() {
            self.connection_timeout(cx, connection);
        }
    }

    fn connection_timeout(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let now = cx.now;
        if let State::Established(established) = &mut self.state
            && established.connection == connection
        {
            if matches!(established.writer, Writer::Busy { give_up_at } if give_up_at <= now) {
                self.end(cx, connection, Failure::SendHold);
            } else if established.liveness.expired(now) {
                let error = Notification::hold_timer_expired();
                self.end(cx, connection, Failure::Error(error));
            } else if established.liveness.keepalive_due(now) {
                established.liveness.sent(now, &mut self.rng);
                self.send(cx, connection, Packet::Keepalive);
            }
            return;
        }
        let Some(pending) = self.pending_mut(connection) else {
            return;
        };
        match &mut pending.stage {
            Stage::Delayed { open_at } if *open_at <= now => {
                let stage = self.send_open(cx, connection);
                if let Some(pending) = self.pending_mut(connection) {
                    pending.stage = stage;
                }
            }
            Stage::OpenSent { expires_at, .. } if *expires_at <= now => {
                let error = Notification::hold_timer_expired();
                self.end(cx, connection, Failure::Error(error));
            }
            Stage::OpenConfirm(confirm) => {
                if confirm.liveness.expired(now) {
                    let error = Notification::hold_timer_expired();
                    self.end(cx, connection, Failure::Error(error));
                } else if confirm.liveness.keepalive_due(now) {
                    // The generator is borrowed with the session, so take the next wait first.
                    let mut liveness = confirm.liveness.clone();
                    liveness.sent(now, &mut self.rng);
                    if let Some(Pending {
                        stage: Stage::OpenConfirm(confirm),
                        ..
                    }) = self.pending_mut(connection)
                    {
                        confirm.liveness = liveness;
                    }
                    self.send(cx, connection, Packet::Keepalive);
                }
            }
            _ => {}
        }
    }

    /// The earliest time at which [`timeout`](Self::timeout) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let state = match &self.state {
            State::Idle(Idle::Stopped) => None,
            State::Idle(Idle::Held { until }) => Some(*until),
            State::Trying(trying) => {
                let outgoing = match &trying.outgoing {
                    Outgoing::Waiting { retry_at } => Some(*retry_at),
                    Outgoing::Dialing { give_up_at, .. } => Some(*give_up_at),
                    Outgoing::Passive | Outgoing::Pending(_) => None,
                };
                trying
                    .pendings()
                    .filter_map(Pending::deadline)
                    .chain(outgoing)
                    .min()
            }
            State::Established(established) => {
                let writer = match established.writer {
                    Writer::Clear => None,
                    Writer::Busy { give_up_at } => Some(give_up_at),
                };
                [
                    writer,
                    established.liveness.deadline(),
                    established.contender.as_ref().and_then(Pending::deadline),
                ]
                .into_iter()
                .flatten()
                .min()
            }
        };
        let stale = self.stale_deadline();
        let parked = self.parked.as_ref().map(|parked| parked.until);
        state.into_iter().chain(stale).chain(parked).min()
    }
}

impl Pending {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Delayed { open_at } => Some(*open_at),
            Stage::OpenSent { expires_at, .. } => Some(*expires_at),
            Stage::OpenConfirm(confirm) => confirm.liveness.deadline(),
        }
    }
}
