//! From the OPEN to Established: validation, collision, and the return of a restarted peer.

use std::{mem, sync::Arc};

use super::{
    Action, Cause, Confirm, Context, Established, Outgoing, Packet, Pending, Session, Stage, State,
    Trying, Up, Writer,
    ending::Failure,
    machine::Phase,
    open,
    timers::{Liveness, jitter},
};
use crate::{
    message::{Notification, Open},
    types::ConnectionId,
    wire,
};

impl Session {
    pub(super) fn handle_open(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        remote: Box<Open>,
    ) {
        // RFC 4271 §8.2.2: an OPEN that arrives while ours is delayed is answered with ours first.
        if self.phase(connection) == Some(Phase::Delayed) {
            let stage = self.send_open(cx, connection);
            if let Some(pending) = self.pending_mut(connection) {
                pending.stage = stage;
            }
        }
        if let Err(error) = open::validate(&self.settings, &remote) {
            return self.end(cx, connection, Failure::Error(error));
        }
        let Some(Pending {
            stage: Stage::OpenSent { sent, .. },
            ..
        }) = self.pending_mut(connection)
        else {
            return;
        };
        let sent = sent.clone();
        let negotiated = wire::negotiate(&sent, &remote);
        if negotiated.families == [false; 2] {
            let error = open::no_common_family(&sent);
            return self.end(cx, connection, Failure::Error(error));
        }
        if !self.resolve_collision(cx, connection, &remote) {
            return;
        }
        let hold_time = sent.hold_time.min(remote.hold_time);
        let liveness = Liveness::start(cx.now, &mut self.rng, hold_time);
        let negotiated = Arc::new(negotiated);
        if let Some(pending) = self.pending_mut(connection) {
            pending.stage = Stage::OpenConfirm(Box::new(Confirm {
                sent,
                remote,
                negotiated: Arc::clone(&negotiated),
                liveness,
            }));
        }
        cx.actions.push(Action::Negotiated(connection, negotiated));
        self.send(cx, connection, Packet::Keepalive);
    }

    /// RFC 4271 §6.8: two connections with the same neighbour, and this one has just had a valid
    /// OPEN. False when this one was closed.
    pub(super) fn resolve_collision(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        remote: &Open,
    ) -> bool {
        match &mut self.state {
            State::Idle(_) => false,
            State::Established(_) => {
                // The contender: the peer has restarted (RFC 4724 §5).
                self.replace_established(cx);
                true
            }
            State::Trying(trying) => {
                let is_incoming = trying
                    .incoming
                    .as_ref()
                    .is_some_and(|pending| pending.connection == connection);
                let other = trying
                    .pendings()
                    .find(|pending| pending.connection != connection)
                    .filter(|pending| matches!(pending.stage, Stage::OpenConfirm(_)))
                    .map(|pending| pending.connection);
                if let Some(other) = other {
                    // The connection that the speaker with the greater identifier opened stays;
                    // with equal identifiers the greater AS number decides (RFC 6286 §2.3).
                    let we_dominate = (self.settings.router_id, self.settings.local_asn)
                        > (remote.router_id, remote.asn);
                    let loser = if we_dominate == is_incoming {
                        connection
                    } else {
                        other
                    };
                    self.end(cx, loser, Failure::Collision);
                    return loser == other;
                }
                // The peer is there, so there is no need to dial it.
                if let Outgoing::Dialing {
                    connection: dialed, ..
                } = trying.outgoing
                    && is_incoming
                {
                    cx.actions.push(Action::Close(dialed));
                    trying.outgoing = Outgoing::Waiting {
                        retry_at: cx.now
                            + jitter(&mut self.rng, self.settings.timers.connect_retry_max),
                    };
                }
                true
            }
        }
    }

    /// RFC 4724 §5: the old connection goes without a NOTIFICATION, its routes are kept, and the
    /// contender takes its place.
    pub(super) fn replace_established(&mut self, cx: &mut Context<'_>) {
        let State::Established(established) = &mut self.state else {
            return;
        };
        let contender = established.contender.take();
        let old = established.connection;
        cx.actions.push(Action::Close(old));
        if !self.left_established(cx, true) {
            self.errors.count();
        }
        self.cause = Cause::Replaced;
        let outgoing = self.waiting_outgoing(cx.now, self.settings.timers.connect_retry_max);
        self.state = State::Trying(Trying {
            outgoing,
            incoming: contender,
        });
    }

    pub(super) fn establish(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let State::Trying(trying) = &mut self.state else {
            return;
        };
        let outgoing = mem::replace(&mut trying.outgoing, Outgoing::Passive);
        let incoming = trying.incoming.take();
        let (winner, loser) = match (outgoing, incoming) {
            (Outgoing::Pending(pending), other) if pending.connection == connection => {
                (pending, other)
            }
            (Outgoing::Pending(other), Some(pending)) => (pending, Some(other)),
            (Outgoing::Dialing { connection, .. }, Some(pending)) => {
                cx.actions.push(Action::Close(connection));
                (pending, None)
            }
            (_, Some(pending)) => (pending, None),
            (_, None) => return,
        };
        let Stage::OpenConfirm(confirm) = winner.stage else {
            return;
        };
        if let Some(loser) = loser {
            // RFC 4271 §6.8: the connection that is not Established goes.
            self.say_goodbye(cx, &loser, Notification::connection_collision());
            cx.actions.push(Action::Close(loser.connection));
        }
        let Confirm {
            sent,
            remote,
            negotiated,
            mut liveness,
        } = *confirm;
        liveness.heard(cx.now);
        let up = Up {
            connection,
            remote: (*remote).clone(),
            negotiated: Arc::clone(&negotiated),
        };
        cx.actions.push(Action::Up(Box::new(up)));
        let refreshes = self.resume_stale(cx, &remote, negotiated.families);
        self.state = State::Established(Box::new(Established {
            connection,
            sent,
            remote,
            negotiated,
            liveness,
            since: cx.now,
            writer: Writer::Clear,
            end_of_rib_received: [false; 2],
            end_of_rib_sent: [false; 2],
            assumed: refreshes.map(|until| until.is_some()),
            refreshes,
            contender: None,
        }));
        self.was_established = true;
        self.dials.reset();
        self.counters.established_count += 1;
    }
}
