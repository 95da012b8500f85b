//! Events of the session machine and what follows from each (RFC 4271 §8.2.2 and §6).

use std::time::{Duration, Instant};

use super::{
    Action, Cause, Context, Idle, Outgoing, Packet, Pending, Received, Session, Stage, State,
    Trying, Writer,
    ending::Failure,
    open::{graceful_restart, local_open},
};
use crate::{
    message::{Message, Notification},
    speaker::status::LastNotification,
    types::{ConnectionId, Family},
    wire::notify,
};

/// How long a TCP handshake may take: three SYNs of Linux.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A second connection of a peer within this time of the first becoming Established belongs to a
/// simultaneous open, not to a restart.
const MIN_AGE_TO_REPLACE: Duration = Duration::from_secs(3);

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
            State::Idle(Idle::Stopped) => return false,
            State::Idle(Idle::Held { until }) => {
                let rests = self.rests_until.is_some_and(|until| cx.now < until);
                if rests || self.settings.refuse_while_held {
                    return false;
                }
                let wait = self.returns.wait(cx.now);
                if !wait.is_zero() {
                    self.park_for(cx, connection, wait);
                    return true;
                }
                let until = *until;
                self.leave_hold(until);
            }
            State::Trying(trying) => match &trying.incoming {
                Some(Pending {
                    stage: Stage::OpenConfirm(_),
                    ..
                }) => {
                    self.park(cx, connection);
                    return true;
                }
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
                    self.park(cx, connection);
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
        if self.is_parked(connection) {
            self.drop_parked(cx);
        } else if self.is_dialing(connection) {
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
        if self.is_parked(connection) {
            self.parked_message(cx, connection, message);
            return Received::Nothing;
        }
        let Some(phase) = self.phase(connection) else {
            return Received::Nothing;
        };
        self.counters.messages_received += 1;
        let message = match message {
            Ok(message) => {
                self.counters.count_received(&message);
                message
            }
            Err(notification) => {
                let error = unexpected_first(phase, notification);
                self.end(cx, connection, Failure::Error(error));
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
                let notification = unexpected(phase, kind);
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
                if let Some(family) = update.end_of_rib {
                    established.end_of_rib_received[family.index()] = true;
                    self.end_of_rib_received(family);
                }
                Received::Update(update)
            }
            // RFC 2918 §4: ignored unless we advertised the capability, which we always do.
            Message::RouteRefresh(refresh) if refresh.subtype == 0 => {
                Received::RouteRefresh(refresh)
            }
            Message::RouteRefresh(mark) => {
                self.refresh_mark(cx, mark);
                Received::Nothing
            }
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

    pub(super) fn open_connection(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
    ) -> Pending {
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

    pub(super) fn send_open(&mut self, cx: &mut Context<'_>, connection: ConnectionId) -> Stage {
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
    pub(super) fn say_goodbye(
        &mut self,
        cx: &mut Context<'_>,
        pending: &Pending,
        notification: Notification,
    ) {
        if !matches!(pending.stage, Stage::Delayed { .. }) {
            self.send(cx, pending.connection, Packet::Notification(notification));
        }
    }

    pub(super) fn send(&mut self, cx: &mut Context<'_>, connection: ConnectionId, packet: Packet) {
        self.counters.messages_sent += 1;
        match &packet {
            Packet::Open(_) => self.counters.opens_sent += 1,
            Packet::Keepalive => self.counters.keepalives_sent += 1,
            Packet::Notification(_) => self.counters.notifications_sent += 1,
            Packet::RouteRefresh(..) => self.counters.refreshes_sent += 1,
        }
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
    pub(super) fn send_hold(&self) -> Duration {
        let default = Duration::from_secs(480).max(self.settings.timers.hold_time * 2);
        self.settings.timers.send_hold.unwrap_or(default)
    }

    /// Both sides keep routes over a NOTIFICATION (RFC 8538 §2).
    pub(super) fn keeps_over_notification(&self) -> bool {
        match &self.state {
            State::Established(established) => {
                self.settings.graceful_restart.is_some()
                    && graceful_restart(&established.remote)
                        .is_some_and(|restart| restart.notification)
            }
            _ => false,
        }
    }

    pub(super) fn is_dialing(&self, connection: ConnectionId) -> bool {
        matches!(
            &self.state,
            State::Trying(Trying { outgoing: Outgoing::Dialing { connection: dialed, .. }, .. })
                if *dialed == connection
        )
    }

    pub(super) fn phase(&self, connection: ConnectionId) -> Option<Phase> {
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

    pub(super) fn pending_mut(&mut self, connection: ConnectionId) -> Option<&mut Pending> {
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
pub(super) enum Phase {
    Delayed,
    OpenSent,
    OpenConfirm,
    Established,
}

pub(super) fn dial(cx: &mut Context<'_>) -> Outgoing {
    let connection = cx.ids.next();
    cx.actions.push(Action::Dial(connection));
    Outgoing::Dialing {
        connection,
        give_up_at: cx.now + DIAL_TIMEOUT,
    }
}

/// RFC 6608 §4
fn unexpected(phase: Phase, kind: u8) -> Notification {
    let state = match phase {
        Phase::Delayed => return Notification::new(notify::code::FINITE_STATE_MACHINE, 0, &[]),
        Phase::OpenSent => notify::UnexpectedIn::OpenSent,
        Phase::OpenConfirm => notify::UnexpectedIn::OpenConfirm,
        Phase::Established => notify::UnexpectedIn::Established,
    };
    Notification::unexpected_message(state, kind)
}

/// A message that may not come in this state is an error of the state machine, whatever else is
/// wrong with it (RFC 4271 §8.2.2).
fn unexpected_first(phase: Phase, error: Notification) -> Notification {
    let kind = match (phase, error.code) {
        (Phase::Established, notify::code::OPEN_MESSAGE) => 1,
        (Phase::Established, _) => return error,
        (_, notify::code::UPDATE_MESSAGE) => 2,
        (_, notify::code::ROUTE_REFRESH) => 5,
        _ => return error,
    };
    unexpected(phase, kind)
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
