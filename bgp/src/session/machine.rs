//! Events of the session machine and what follows from each (RFC 4271 §8.2.2 and §6).

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Action, Cause, Confirm, Context, Established, Idle, Outgoing, Packet, Pending, Received,
    Session, Stage, Stale, State, Trying, Up, Writer,
    open::{self, graceful_restart, local_open},
    timers::{Liveness, jitter},
};
use crate::{
    message::{Message, Notification, Open},
    speaker::status::LastNotification,
    types::{ConnectionId, Family},
    wire::{self, notify},
};

/// How long a TCP handshake may take: three SYNs of Linux.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A second connection of a peer within this time of the first becoming Established belongs to a
/// simultaneous open, not to a restart.
const MIN_AGE_TO_REPLACE: Duration = Duration::from_secs(3);
/// So many short sessions in a row are taken as a peer that fails.
const SHORT_SESSIONS: u32 = 3;

/// How one connection ended.
#[derive(Debug)]
enum Failure {
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
    /// Leaves Idle, also one after an error (RFC 4271 §8.1.2, ManualStart).
    pub(crate) fn start(&mut self, cx: &mut Context<'_>) {
        if matches!(self.state, State::Idle(_)) {
            self.cause = Cause::Start;
            self.errors.reset();
            self.dials.reset();
            self.try_now(cx);
        }
    }

    /// Closes everything and stays in Idle (RFC 4271 §8.1.2, ManualStop). Routes are not kept:
    /// towards a peer that would keep ours over a NOTIFICATION it becomes a Hard Reset
    /// (RFC 8538 §3.1).
    pub(crate) fn stop(&mut self, cx: &mut Context<'_>, notification: Notification) {
        self.close_all(cx, Some(notification));
        self.cause = Cause::Shutdown;
    }

    /// Closes everything without a word, so that a peer which knows graceful restart keeps our
    /// routes (RFC 4724 §4).
    pub(crate) fn abandon(&mut self, cx: &mut Context<'_>) {
        self.close_all(cx, None);
        self.cause = Cause::Shutdown;
    }

    /// Closes the session and starts anew.
    pub(crate) fn reset(&mut self, cx: &mut Context<'_>, notification: Notification) {
        if matches!(self.state, State::Idle(Idle::Stopped)) {
            return;
        }
        self.close_all(cx, Some(notification));
        self.errors.reset();
        self.dials.reset();
        self.wait(cx);
    }

    /// The RIB or the speaker cannot go on with this session.
    pub(crate) fn fail(&mut self, cx: &mut Context<'_>, notification: Notification) {
        if let State::Established(established) = &self.state {
            let connection = established.connection;
            self.end(cx, connection, Failure::Error(notification));
        }
    }

    /// The peer has connected; false refuses it.
    pub(crate) fn accepted(&mut self, cx: &mut Context<'_>, connection: ConnectionId) -> bool {
        match &self.state {
            State::Idle(_) => return false,
            State::Trying(trying) => match &trying.incoming {
                Some(Pending {
                    stage: Stage::OpenConfirm(_),
                    ..
                }) => return false,
                // The newer one counts: the peer would not open it if it still had the older.
                Some(older) => {
                    let older = older.connection;
                    self.end(cx, older, Failure::Collision);
                }
                None => {}
            },
            State::Established(established) => {
                // RFC 4724 §5: a restarted peer comes with a new connection while the old one still
                // looks alive. RFC 4271 §6.8: otherwise the newer one goes.
                let may_have_restarted =
                    self.peer_keeps_routes() && cx.now >= established.since + MIN_AGE_TO_REPLACE;
                if !may_have_restarted {
                    self.send(
                        cx,
                        connection,
                        Packet::Notification(Notification::connection_collision()),
                    );
                    cx.actions.push(Action::Close(connection));
                    return true;
                }
                if let Some(older) = &established.contender {
                    let older = older.connection;
                    self.end(cx, older, Failure::Collision);
                }
            }
        }
        let pending = self.open_connection(cx, connection);
        match &mut self.state {
            State::Trying(trying) => trying.incoming = Some(pending),
            State::Established(established) => established.contender = Some(pending),
            State::Idle(_) => cx.actions.push(Action::Close(connection)),
        }
        true
    }

    /// A dial succeeded.
    pub(crate) fn connected(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        if !self.is_dialing(connection) {
            return;
        }
        let pending = self.open_connection(cx, connection);
        if let State::Trying(trying) = &mut self.state {
            trying.outgoing = Outgoing::Pending(pending);
        }
    }

    /// A dial failed, or a connection is gone.
    pub(crate) fn closed(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        reason: String,
    ) {
        if self.is_dialing(connection) {
            self.cause = Cause::DialFailed(reason);
            self.dial_failed(cx);
        } else {
            self.end(cx, connection, Failure::Lost(reason));
        }
    }

    /// A message, or what is wrong with the octets received.
    pub(crate) fn message(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        message: Result<Message, Notification>,
    ) -> Received {
        let Some(phase) = self.phase(connection) else {
            return Received::Nothing;
        };
        self.counters.messages_received += 1;
        let message = match message {
            Ok(message) => message,
            Err(notification) => {
                self.end(cx, connection, Failure::Error(notification));
                return Received::Nothing;
            }
        };
        match (phase, message) {
            (_, Message::Notification(notification)) => {
                self.last_received = Some(LastNotification {
                    notification: notification.clone(),
                    at: cx.now,
                });
                self.end(cx, connection, Failure::Notified(notification));
            }
            (Phase::Delayed | Phase::OpenSent, Message::Open(remote)) => {
                self.handle_open(cx, connection, remote);
            }
            (Phase::OpenConfirm, Message::Keepalive) => self.establish(cx, connection),
            (Phase::Established, message) => {
                return self.handle_established(cx, connection, message);
            }
            // RFC 6608 §4
            (phase, message) => {
                let kind = message_type(&message);
                let notification = match phase {
                    Phase::Delayed => Notification::new(notify::code::FINITE_STATE_MACHINE, 0, &[]),
                    Phase::OpenSent => {
                        Notification::unexpected_message(notify::UnexpectedIn::OpenSent, kind)
                    }
                    Phase::OpenConfirm => {
                        Notification::unexpected_message(notify::UnexpectedIn::OpenConfirm, kind)
                    }
                    Phase::Established => {
                        Notification::unexpected_message(notify::UnexpectedIn::Established, kind)
                    }
                };
                self.end(cx, connection, Failure::Error(notification));
            }
        }
        Received::Nothing
    }

    fn handle_established(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        message: Message,
    ) -> Received {
        let State::Established(established) = &mut self.state else {
            return Received::Nothing;
        };
        established.liveness.heard(cx.now);
        match message {
            Message::Update(update) => {
                self.counters.updates_received += 1;
                if let Some(family) = update.end_of_rib {
                    established.end_of_rib_received[family.index()] = true;
                    // The RIB has swept the stale routes with the marker.
                    if let Some(stale) = &mut established.resync {
                        stale.families[family.index()] = false;
                        if stale.families == [false; 2] {
                            established.resync = None;
                        }
                    }
                }
                Received::Update(update)
            }
            // RFC 2918 §4: ignored unless we advertised the capability, which we always do.
            Message::RouteRefresh(refresh) => Received::RouteRefresh(refresh),
            Message::Keepalive | Message::Notification(_) => Received::Nothing,
            Message::Open(_) => {
                let kind = 1;
                let error =
                    Notification::unexpected_message(notify::UnexpectedIn::Established, kind);
                self.end(cx, connection, Failure::Error(error));
                Received::Nothing
            }
        }
    }

    /// The peer has taken everything that was sent.
    pub(crate) fn writable(&mut self, connection: ConnectionId) {
        if let State::Established(established) = &mut self.state
            && established.connection == connection
        {
            established.writer = Writer::Clear;
        }
    }

    /// The speaker has sent UPDATEs.
    pub(crate) fn sent_updates(&mut self, now: Instant, updates: u64, end_of_rib: [bool; 2]) {
        self.counters.messages_sent += updates;
        self.counters.updates_sent += updates;
        let give_up_at = now + self.send_hold();
        if let State::Established(established) = &mut self.state {
            established.liveness.sent(now, &mut self.rng);
            established.writer = Writer::Busy { give_up_at };
            for family in Family::ALL {
                established.end_of_rib_sent[family.index()] |= end_of_rib[family.index()];
            }
        }
    }

    /// Asks the peer for its routes again (RFC 2918 §3); false when it does not know how.
    pub(crate) fn request_routes(&mut self, cx: &mut Context<'_>) -> bool {
        let State::Established(established) = &self.state else {
            return false;
        };
        if !established.negotiated.route_refresh {
            return false;
        }
        let connection = established.connection;
        let families = established.negotiated.families;
        for family in Family::ALL {
            if families[family.index()] {
                self.send(cx, connection, Packet::RouteRefresh(family));
            }
        }
        true
    }

    /// Does what is due. Calling it early or often is harmless.
    pub(crate) fn timeout(&mut self, cx: &mut Context<'_>) {
        if self.stale.is_some_and(|stale| stale.until <= cx.now) {
            self.sweep_stale(cx);
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
            State::Established(established) => {
                if let Some(stale) = established.resync
                    && stale.until <= cx.now
                {
                    established.resync = None;
                    sweep(cx, stale.families);
                }
            }
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
                    established.resync.map(|stale| stale.until),
                    established.contender.as_ref().and_then(Pending::deadline),
                ]
                .into_iter()
                .flatten()
                .min()
            }
        };
        let stale = self.stale.map(|stale| stale.until);
        state.into_iter().chain(stale).min()
    }

    // ---- OPEN, collision, Established --------------------------------------------------------

    fn handle_open(&mut self, cx: &mut Context<'_>, connection: ConnectionId, remote: Box<Open>) {
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
    fn resolve_collision(
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
    fn replace_established(&mut self, cx: &mut Context<'_>) {
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

    fn establish(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
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
        let resync = self.resume_stale(cx, &remote, negotiated.families);
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
            resync,
            contender: None,
        }));
        self.was_established = true;
        self.dials.reset();
        self.counters.established_count += 1;
    }

    /// The peer is back: which of its kept routes may still wait for its End-of-RIB
    /// (RFC 4724 §4.2).
    fn resume_stale(
        &mut self,
        cx: &mut Context<'_>,
        remote: &Open,
        negotiated: [bool; 2],
    ) -> Option<Stale> {
        let stale = self.stale.take()?;
        let forwarding = graceful_restart(remote).map_or([false; 2], |restart| restart.forwarding);
        let keep = both(stale.families, both(forwarding, negotiated));
        sweep(
            cx,
            [stale.families[0] && !keep[0], stale.families[1] && !keep[1]],
        );
        (keep != [false; 2]).then(|| Stale {
            families: keep,
            until: cx.now + self.settings.timers.stale_time,
        })
    }

    // ---- endings -----------------------------------------------------------------------------

    /// One connection ends; what becomes of the session depends on the other one.
    fn end(&mut self, cx: &mut Context<'_>, connection: ConnectionId, failure: Failure) {
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

    fn close_pending(&mut self, cx: &mut Context<'_>, pending: &Pending, failure: &Failure) {
        match failure {
            Failure::Error(notification) => self.say_goodbye(cx, pending, notification.clone()),
            Failure::Collision => {
                self.say_goodbye(cx, pending, Notification::connection_collision());
            }
            Failure::SendHold | Failure::Notified(_) | Failure::Lost(_) => {}
        }
        cx.actions.push(Action::Close(pending.connection));
    }

    fn end_established(&mut self, cx: &mut Context<'_>, failure: Failure) {
        let State::Established(established) = &mut self.state else {
            return;
        };
        let connection = established.connection;
        if let Some(contender) = established.contender.take() {
            // It may well be the peer's way back; it will come again.
            cx.actions.push(Action::Close(contender.connection));
        }
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
    }

    /// Bookkeeping of the end of a session; the caller sets the next state. True when the session
    /// has lasted long enough to count as one that works.
    fn left_established(&mut self, cx: &mut Context<'_>, keep: bool) -> bool {
        let State::Established(established) = &self.state else {
            return false;
        };
        let mut keep_stale = [false; 2];
        if keep
            && self.settings.graceful_restart.is_some()
            && let Some(restart) = graceful_restart(&established.remote)
            && !restart.restart_time.is_zero()
        {
            keep_stale = both(restart.families, established.negotiated.families);
            if keep_stale != [false; 2] {
                self.stale = Some(Stale {
                    families: keep_stale,
                    until: cx.now + restart.restart_time,
                });
            }
        }
        // RFC 4724 §4.2: what was stale before and not refreshed goes at the next restart.
        if let Some(resync) = established.resync {
            sweep(cx, resync.families);
        }
        let lasted = cx.now >= established.since + self.settings.timers.error_hold * 10;
        if lasted {
            self.errors.reset();
        }
        self.counters.dropped_count += 1;
        cx.actions.push(Action::Down { keep_stale });
        lasted
    }

    /// Closes all connections and forgets kept routes. The state is Idle afterwards.
    fn close_all(&mut self, cx: &mut Context<'_>, notification: Option<Notification>) {
        self.sweep_stale(cx);
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
    fn hold(&mut self, cx: &mut Context<'_>) {
        let timers = &self.settings.timers;
        if timers.error_hold.is_zero() {
            return self.wait(cx);
        }
        let wait = self
            .errors
            .fail(&mut self.rng, timers.error_hold, timers.error_hold_max);
        self.state = State::Idle(Idle::Held {
            until: cx.now + wait,
        });
    }

    /// Active: takes connections, and dials after a while.
    fn wait(&mut self, cx: &mut Context<'_>) {
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

    fn waiting_outgoing(&self, now: Instant, wait: Duration) -> Outgoing {
        if self.settings.passive {
            Outgoing::Passive
        } else {
            Outgoing::Waiting {
                retry_at: now + wait,
            }
        }
    }

    fn dial_failed(&mut self, cx: &mut Context<'_>) {
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

    fn try_now(&mut self, cx: &mut Context<'_>) {
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

    // ---- small parts -------------------------------------------------------------------------

    fn open_connection(&mut self, cx: &mut Context<'_>, connection: ConnectionId) -> Pending {
        let delay = self.settings.timers.open_delay;
        let stage = if delay.is_zero() {
            self.send_open(cx, connection)
        } else {
            Stage::Delayed {
                open_at: cx.now + delay,
            }
        };
        Pending { connection, stage }
    }

    fn send_open(&mut self, cx: &mut Context<'_>, connection: ConnectionId) -> Stage {
        // RFC 4724 §3: within one run of the process the forwarding state outlives any session.
        let forwarding = match self.settings.restarting {
            _ if self.was_established => [true; 2],
            Some(preserved) => preserved,
            None => [false; 2],
        };
        let sent = Box::new(local_open(&self.settings, forwarding));
        self.send(cx, connection, Packet::Open(sent.clone()));
        Stage::OpenSent {
            sent,
            expires_at: cx.now + self.settings.timers.open_timeout,
        }
    }

    /// A NOTIFICATION on a connection that has had our OPEN; one that has not is just closed.
    fn say_goodbye(&mut self, cx: &mut Context<'_>, pending: &Pending, notification: Notification) {
        if !matches!(pending.stage, Stage::Delayed { .. }) {
            self.send(cx, pending.connection, Packet::Notification(notification));
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, connection: ConnectionId, packet: Packet) {
        self.counters.messages_sent += 1;
        if let Packet::Notification(notification) = &packet {
            self.last_sent = Some(LastNotification {
                notification: notification.clone(),
                at: cx.now,
            });
        }
        let give_up_at = cx.now + self.send_hold();
        if let State::Established(established) = &mut self.state
            && established.connection == connection
            && established.writer == Writer::Clear
        {
            established.writer = Writer::Busy { give_up_at };
        }
        cx.actions.push(Action::Send(connection, packet));
    }

    /// RFC 9687 §4: the greater of 8 minutes and twice the hold time.
    fn send_hold(&self) -> Duration {
        let default = Duration::from_secs(480).max(self.settings.timers.hold_time * 2);
        self.settings.timers.send_hold.unwrap_or(default)
    }

    fn sweep_stale(&mut self, cx: &mut Context<'_>) {
        if let Some(stale) = self.stale.take() {
            sweep(cx, stale.families);
        }
    }

    /// Both sides keep routes over a NOTIFICATION (RFC 8538 §2).
    fn keeps_over_notification(&self) -> bool {
        match &self.state {
            State::Established(established) => {
                self.settings.graceful_restart.is_some()
                    && graceful_restart(&established.remote)
                        .is_some_and(|restart| restart.notification)
            }
            _ => false,
        }
    }

    fn is_dialing(&self, connection: ConnectionId) -> bool {
        matches!(
            &self.state,
            State::Trying(Trying { outgoing: Outgoing::Dialing { connection: dialed, .. }, .. })
                if *dialed == connection
        )
    }

    fn phase(&self, connection: ConnectionId) -> Option<Phase> {
        if let State::Established(established) = &self.state
            && established.connection == connection
        {
            return Some(Phase::Established);
        }
        let stage = match &self.state {
            State::Idle(_) => None,
            State::Trying(trying) => trying
                .pendings()
                .find(|pending| pending.connection == connection)
                .map(|pending| &pending.stage),
            State::Established(established) => established
                .contender
                .as_ref()
                .filter(|pending| pending.connection == connection)
                .map(|pending| &pending.stage),
        }?;
        Some(match stage {
            Stage::Delayed { .. } => Phase::Delayed,
            Stage::OpenSent { .. } => Phase::OpenSent,
            Stage::OpenConfirm(_) => Phase::OpenConfirm,
        })
    }

    fn pending_mut(&mut self, connection: ConnectionId) -> Option<&mut Pending> {
        let candidates = match &mut self.state {
            State::Idle(_) => [None, None],
            State::Trying(trying) => {
                let outgoing = match &mut trying.outgoing {
                    Outgoing::Pending(pending) => Some(pending),
                    _ => None,
                };
                [outgoing, trying.incoming.as_mut()]
            }
            State::Established(established) => [established.contender.as_mut(), None],
        };
        candidates
            .into_iter()
            .flatten()
            .find(|pending| pending.connection == connection)
    }
}

/// How far one connection is, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Delayed,
    OpenSent,
    OpenConfirm,
    Established,
}

impl Pending {
    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Delayed { open_at } => Some(*open_at),
            Stage::OpenSent { expires_at, .. } => Some(*expires_at),
            Stage::OpenConfirm(confirm) => confirm.liveness.deadline(),
        }
    }
}

fn dial(cx: &mut Context<'_>) -> Outgoing {
    let connection = cx.ids.next();
    cx.actions.push(Action::Dial(connection));
    Outgoing::Dialing {
        connection,
        give_up_at: cx.now + DIAL_TIMEOUT,
    }
}

/// By family: in both.
fn both(a: [bool; 2], b: [bool; 2]) -> [bool; 2] {
    [a[0] && b[0], a[1] && b[1]]
}

fn sweep(cx: &mut Context<'_>, families: [bool; 2]) {
    for family in Family::ALL {
        if families[family.index()] {
            cx.actions.push(Action::SweepStale(family));
        }
    }
}

/// RFC 4271 §4.1
fn message_type(message: &Message) -> u8 {
    match message {
        Message::Open(_) => 1,
        Message::Update(_) => 2,
        Message::Notification(_) => 3,
        Message::Keepalive => 4,
        Message::RouteRefresh(_) => 5,
    }
}
