//! A connection that waits for a moment before it gets our OPEN: a second one that a neighbour opens
//! while its first still stands, or one of a neighbour that comes back too fast after errors.
//!
//! A neighbour that closes and connects again at once can be heard here in the other order: the
//! new connection first, then the end of the old one. So a connection that collides with one that
//! is beyond its OPEN is not refused at once: it waits, without an OPEN of ours, for a moment. When
//! the older one ends meanwhile it takes its place; when the OPEN it brings decides the collision
//! in its favour, the older one goes; else it is closed with Cease 6/7 (RFC 4271 §6.8).
//!
//! A neighbour that errs and comes back in an endless storm is slowed down and never refused: its
//! connection has its place at once and gets our OPEN a few milliseconds later.

use std::time::{Duration, Instant};

use super::{Action, Context, Idle, Packet, Session, Stage, State, ending::Failure};
use crate::{
    message::{Message, Notification, Open},
    types::ConnectionId,
};

/// How long the end of the older connection may take to be noticed.
const PATIENCE: Duration = Duration::from_millis(250);
/// The same once the newer one has brought its OPEN.
const DECISION: Duration = Duration::from_millis(100);

/// See the head of the module.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) connection: ConnectionId,
    pub(super) until: Instant,
    /// It has come already.
    open: Option<Box<Open>>,
}

impl Session {
    /// Until the older connection has ended, or is known to stay.
    pub(super) fn park(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        self.park_for(cx, connection, PATIENCE);
    }

    /// At most one waits; the newer one counts.
    pub(super) fn park_for(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        wait: Duration,
    ) {
        self.refuse_parked(cx);
        self.parked = Some(Parked {
            connection,
            until: cx.now + wait,
            open: None,
        });
    }

    pub(super) fn is_parked(&self, connection: ConnectionId) -> bool {
        self.parked
            .as_ref()
            .is_some_and(|parked| parked.connection == connection)
    }

    /// No older connection is in the way.
    fn place_is_free(&self) -> bool {
        match &self.state {
            State::Idle(Idle::Held { .. }) => true,
            State::Trying(trying) => trying.incoming.is_none(),
            State::Idle(Idle::Stopped) | State::Established(_) => false,
        }
    }

    /// It has waited long enough: it takes the free place, or the older connection has not ended by
    /// itself.
    pub(super) fn decide_parked(&mut self, cx: &mut Context<'_>) {
        if self.place_is_free() {
            return self.unpark(cx);
        }
        let older = match &self.state {
            State::Trying(trying) => trying
                .incoming
                .as_ref()
                .filter(|older| matches!(older.stage, Stage::OpenConfirm(_)))
                .map(|older| older.connection),
            State::Idle(_) | State::Established(_) => None,
        };
        let here = (self.settings.router_id, self.settings.local_asn);
        let peer_dominates = self
            .parked
            .as_ref()
            .and_then(|parked| parked.open.as_ref())
            .is_some_and(|open| (open.router_id, open.asn) > here);
        // RFC 4271 §6.8: with the smaller identifier here, the existing connection goes.
        match older.filter(|_| peer_dominates) {
            Some(older) => self.end(cx, older, Failure::Collision),
            None => self.refuse_parked(cx),
        }
    }

    /// The older connection stays.
    pub(super) fn refuse_parked(&mut self, cx: &mut Context<'_>) {
        if let Some(parked) = self.parked.take() {
            let error = Notification::connection_collision();
            self.send(cx, parked.connection, Packet::Notification(error));
            cx.actions.push(Action::Close(parked.connection));
        }
    }

    /// Something came over it, or it is gone.
    pub(super) fn parked_message(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        message: Result<Message, Notification>,
    ) {
        if self.place_is_free() && !matches!(message, Ok(Message::Open(_))) {
            // Out of order in any case: it is answered as on a connection that need not wait.
            self.unpark(cx);
            self.message(cx, connection, message);
            return;
        }
        match message {
            Ok(Message::Open(open)) => {
                if let Some(parked) = &mut self.parked {
                    parked.open = Some(open);
                    parked.until = parked.until.min(cx.now + DECISION);
                }
            }
            Ok(Message::Notification(_)) => self.drop_parked(cx),
            Ok(_) => self.refuse_parked(cx),
            Err(notification) => {
                if let Some(parked) = self.parked.take() {
                    self.send(cx, parked.connection, Packet::Notification(notification));
                    cx.actions.push(Action::Close(parked.connection));
                }
            }
        }
    }

    pub(super) fn drop_parked(&mut self, cx: &mut Context<'_>) {
        if let Some(parked) = self.parked.take() {
            cx.actions.push(Action::Close(parked.connection));
        }
    }

    /// Called when a connection has ended: its place may be free now.
    pub(super) fn unpark(&mut self, cx: &mut Context<'_>) {
        if self.parked.is_none() {
            return;
        }
        if !self.place_is_free() {
            return;
        }
        let Some(parked) = self.parked.take() else {
            return;
        };
        if let State::Idle(Idle::Held { until }) = self.state {
            self.leave_hold(until);
        }
        let pending = self.open_connection(cx, parked.connection);
        if let State::Trying(trying) = &mut self.state {
            trying.incoming = Some(pending);
            if let Some(open) = parked.open {
                self.handle_open(cx, parked.connection, open);
            }
        }
    }
}
