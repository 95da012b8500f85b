//! The per-neighbour state machine (RFC 4271 §8): one value owns both connections a neighbour can
//! have at once, the collision between them, every deadline, back-off and graceful restart.
//!
//! It does no IO and reads no clock: events come in with the time, [`Action`]s go out. Deadlines
//! are absolute; jitter comes from a seeded generator, so a run can be repeated exactly.
//!
//! ```text
//!             start / hold over                    KEEPALIVE in OpenConfirm
//!   ┌──────┐ ─────────────────► ┌──────────────┐ ─────────────────────────► ┌─────────────┐
//!   │ Idle │                    │    Trying    │                            │ Established │
//!   └──────┘ ◄───────────────── └──────────────┘ ◄───────────────────────── └─────────────┘
//!             error, stop         ▲ outgoing: waiting │ dialing │ pending    connection lost
//!                                 └ incoming: none │ pending
//!                                   pending: delayed ─► OpenSent ─► OpenConfirm
//! ```
//!
//! The states of RFC 4271 are those of each connection: Connect is "dialing", Active is "waiting".
//! An error of one connection leaves the other alone.
//!
//! Deliberate choices: a lost connection and a received Cease do not hold the session in Idle, so
//! that a restarted peer is taken back at once; protocol errors do, and so does a neighbour that
//! keeps failing, with doubling time. While held nothing is dialled; a neighbour that connects is
//! served all the same, and a storm of reconnects is slowed down, by milliseconds for each.

mod deadlines;
mod ending;
mod handshake;
mod live;
mod machine;
mod open;
mod parked;
mod stale;
mod timers;

#[cfg(test)]
mod tests;

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use self::{
    parked::Parked,
    stale::Stale,
    timers::{Backoff, Liveness, Rate},
};
use crate::{
    message::{Capability, Negotiated, Notification, Open, RouteRefresh, Update},
    rib::Role,
    speaker::{
        config::{LongLived, RemoteAs, Timers},
        status::{LastNotification, PeerCounters, PeerNews, PeerState},
    },
    types::{Asn, ConnectionId, Family},
};

/// What one session must know of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) local_asn: Asn,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) remote_asn: RemoteAs,
    pub(crate) families: [bool; 2],
    pub(crate) passive: bool,
    /// Take no connection while held after an error. Else a neighbour that comes by itself is
    /// served.
    pub(crate) refuse_while_held: bool,
    pub(crate) timers: Timers,
    /// Advertised restart time; `None` turns graceful restart off.
    pub(crate) graceful_restart: Option<Duration>,
    /// Routes outlive a return without the F bit, for the restart time.
    pub(crate) assume_forwarding: bool,
    /// RFC 9494; counts beside `graceful_restart`.
    pub(crate) long_lived: Option<LongLived>,
    /// Offer to take several paths for a prefix (RFC 7911).
    pub(crate) add_path_receive: bool,
    /// Offer to send several (RFC 7911).
    pub(crate) add_path_send: bool,
    /// Offer IPv6 next hops for IPv4 prefixes (RFC 8950).
    pub(crate) extended_next_hop: bool,
    /// Ours on an external session (RFC 9234).
    pub(crate) role: Option<Role>,
    /// We are the restarting speaker: set the R bit, and F for these families.
    pub(crate) restarting: Option<[bool; 2]>,
}

/// Hands out connection ids; one for the whole speaker.
#[derive(Debug, Default)]
pub(crate) struct ConnectionIds(u64);

impl ConnectionIds {
    pub(crate) fn next(&mut self) -> ConnectionId {
        self.0 += 1;
        ConnectionId(self.0)
    }
}

/// What every event comes with.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) ids: &'a mut ConnectionIds,
    pub(crate) actions: &'a mut Vec<Action>,
}

/// What the machine wants done, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Dial(ConnectionId),
    /// Write what was sent before, then close. Nothing more is said about this connection.
    Close(ConnectionId),
    Send(ConnectionId, Packet),
    /// The reader of this connection may go on, with these parameters.
    Negotiated(ConnectionId, Arc<Negotiated>),
    /// The session is Established.
    Up(Box<Up>),
    /// The session has left Established; routes of the marked families are kept as stale.
    Down {
        keep_stale: [bool; 2],
    },
    /// The peer begins to send the family again: what it has sent is stale.
    MarkStale(Family),
    /// Routes of the family that are still stale go.
    SweepStale(Family),
    /// Stale routes of the family become long-lived stale (RFC 9494 §4.2).
    LongLived(Family),
}

/// A message other than UPDATE.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Packet {
    Open(Box<Open>),
    Keepalive,
    Notification(Notification),
    RouteRefresh(Family),
}

/// The agreement an Established session starts with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Up {
    pub(crate) connection: ConnectionId,
    pub(crate) remote: Open,
    pub(crate) negotiated: Arc<Negotiated>,
}

/// What a message carries for the RIB.
#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    Nothing,
    Update(Update),
    RouteRefresh(RouteRefresh),
}

/// Why the session is not Established.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cause {
    Start,
    Shutdown,
    DialFailed(String),
    DialTimeout,
    Lost(String),
    Sent(Notification),
    Received(Notification),
    /// A restarted peer came with a new connection (RFC 4724 §5).
    Replaced,
    /// RFC 9687.
    SendHold,
}

/// See the head of the module.
#[derive(Debug)]
pub(crate) struct Session {
    settings: Settings,
    state: State,
    rng: fastrand::Rng,
    /// Failed dials in a row, and failed sessions in a row.
    dials: Backoff,
    errors: Backoff,
    /// How fast the neighbour may come back after errors.
    returns: Rate,
    /// Until then no connection is taken from a neighbour that is held after an error.
    rests_until: Option<Instant>,
    parked: Option<Parked>,
    /// Routes of earlier sessions that are still kept, by `Family::index`.
    stale: [Option<Stale>; 2],
    /// Our process has kept the forwarding state since a session was last Established.
    was_established: bool,
    cause: Cause,
    shown: PeerState,
    since: Instant,
    pub(crate) counters: PeerCounters,
    last_sent: Option<LastNotification>,
    last_received: Option<LastNotification>,
    /// Not yet told, and the cause that was told last.
    news: PeerNews,
    told: Option<Cause>,
}

#[derive(Debug)]
enum State {
    Idle(Idle),
    Trying(Trying),
    Established(Box<Established>),
}

#[derive(Debug)]
enum Idle {
    /// Until somebody starts it.
    Stopped,
    /// After an error; an automatic start follows (RFC 4271 §8.1.1, IdleHoldTimer).
    Held { until: Instant },
}

#[derive(Debug)]
struct Trying {
    outgoing: Outgoing,
    incoming: Option<Pending>,
}

#[derive(Debug)]
enum Outgoing {
    /// We never dial.
    Passive,
    Waiting {
        retry_at: Instant,
    },
    Dialing {
        connection: ConnectionId,
        give_up_at: Instant,
    },
    Pending(Pending),
}

/// A connection on the way to Established.
#[derive(Debug)]
struct Pending {
    connection: ConnectionId,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// RFC 4271 §8.1.1, DelayOpen.
    Delayed {
        open_at: Instant,
    },
    OpenSent {
        sent: Box<Open>,
        expires_at: Instant,
    },
    OpenConfirm(Box<Confirm>),
}

#[derive(Debug)]
struct Confirm {
    sent: Box<Open>,
    remote: Box<Open>,
    negotiated: Arc<Negotiated>,
    liveness: Liveness,
}

#[derive(Debug)]
struct Established {
    connection: ConnectionId,
    sent: Box<Open>,
    remote: Box<Open>,
    negotiated: Arc<Negotiated>,
    liveness: Liveness,
    since: Instant,
    writer: Writer,
    end_of_rib_received: [bool; 2],
    end_of_rib_sent: [bool; 2],
    /// What the peer is sending again must be complete by then (RFC 7313 §4).
    refreshes: [Option<Instant>; 2],
    /// Such a refresh began with the session, without a word of the peer.
    assumed: [bool; 2],
    /// A second connection of a peer that may have restarted (RFC 4724 §5).
    contender: Option<Pending>,
}

/// Whether the connection takes more octets.
#[derive(Debug, PartialEq, Eq)]
enum Writer {
    Clear,
    /// Something was sent that the peer has not taken; RFC 9687 bounds how long.
    Busy {
        give_up_at: Instant,
    },
}

impl Session {
    pub(crate) fn new(now: Instant, settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            state: State::Idle(Idle::Stopped),
            rng: fastrand::Rng::with_seed(seed),
            dials: Backoff::default(),
            errors: Backoff::default(),
            returns: Rate::default(),
            rests_until: None,
            parked: None,
            stale: [None; 2],
            was_established: false,
            cause: Cause::Start,
            shown: PeerState::Idle,
            since: now,
            counters: PeerCounters::default(),
            last_sent: None,
            last_received: None,
            news: PeerNews::default(),
            told: None,
        }
    }

    /// The state of the connection that has come furthest.
    pub(crate) fn peer_state(&self) -> PeerState {
        match &self.state {
            State::Idle(_) => PeerState::Idle,
            State::Established(_) => PeerState::Established,
            State::Trying(trying) => {
                let outgoing = match &trying.outgoing {
                    Outgoing::Passive | Outgoing::Waiting { .. } => PeerState::Active,
                    Outgoing::Dialing { .. } => PeerState::Connect,
                    Outgoing::Pending(pending) => pending.peer_state(),
                };
                let incoming = trying.incoming.as_ref().map(Pending::peer_state);
                incoming.map_or(outgoing, |incoming| incoming.max(outgoing))
            }
        }
    }

    /// When the shown state was entered.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Notes a change of the shown state; true once for each change.
    pub(crate) fn take_state_change(&mut self, now: Instant) -> bool {
        let state = self.peer_state();
        let changed = state != self.shown;
        if changed {
            let before = std::mem::replace(&mut self.shown, state);
            self.since = now;
            self.note_news(before, state);
        }
        changed
    }

    /// Somebody has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Idle(Idle::Stopped))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// For OPENs sent from now on.
    pub(crate) fn set_restarting(&mut self, restarting: Option<[bool; 2]>) {
        self.settings.restarting = restarting;
    }

    /// Why it is not Established, for a person.
    pub(crate) fn reason(&self) -> String {
        match (&self.state, &self.cause) {
            (State::Established(_), _) => String::new(),
            (State::Idle(Idle::Stopped), _) => "administratively shut down".into(),
            (_, Cause::Start) if self.settings.passive => "waiting for the peer to connect".into(),
            (_, Cause::Start) => "connecting".into(),
            (_, Cause::Shutdown) => "administratively shut down".into(),
            (_, Cause::DialFailed(text)) => format!("cannot connect: {text}"),
            (_, Cause::DialTimeout) => "cannot connect: no answer from the peer".into(),
            (_, Cause::Lost(text)) => format!("connection lost: {text}"),
            (_, Cause::Sent(notification)) => format!("sent {}", notification.describe()),
            (_, Cause::Received(notification)) => format!("received {}", notification.describe()),
            (_, Cause::Replaced) => "the peer restarted".into(),
            (_, Cause::SendHold) => "the peer took no data for the send hold time".into(),
        }
    }

    /// When a connection is tried next.
    pub(crate) fn next_connect_at(&self) -> Option<Instant> {
        match &self.state {
            State::Idle(Idle::Held { until }) if !self.settings.passive => Some(*until),
            State::Trying(Trying {
                outgoing: Outgoing::Waiting { retry_at },
                ..
            }) => Some(*retry_at),
            _ => None,
        }
    }

    pub(crate) fn last_sent(&self) -> Option<&LastNotification> {
        self.last_sent.as_ref()
    }

    pub(crate) fn last_received(&self) -> Option<&LastNotification> {
        self.last_received.as_ref()
    }

    /// The two OPENs of the furthest connection that has both, with the negotiated hold time and
    /// keepalive interval.
    pub(crate) fn agreement(&self) -> Option<Agreement<'_>> {
        match &self.state {
            State::Idle(_) => None,
            State::Established(established) => Some(Agreement {
                sent: &established.sent.capabilities,
                remote: &established.remote,
                negotiated: &established.negotiated,
                hold_time: established.liveness.hold_time(),
                keepalive_interval: established.liveness.interval(),
            }),
            State::Trying(trying) => trying.pendings().find_map(|pending| match &pending.stage {
                Stage::OpenConfirm(confirm) => Some(Agreement {
                    sent: &confirm.sent.capabilities,
                    remote: &confirm.remote,
                    negotiated: &confirm.negotiated,
                    hold_time: confirm.liveness.hold_time(),
                    keepalive_interval: confirm.liveness.interval(),
                }),
                _ => None,
            }),
        }
    }

    /// What an Established session has seen of End-of-RIB: received, sent.
    pub(crate) fn end_of_ribs(&self) -> ([bool; 2], [bool; 2]) {
        match &self.state {
            State::Established(established) => {
                (established.end_of_rib_received, established.end_of_rib_sent)
            }
            _ => ([false; 2], [false; 2]),
        }
    }

    /// Every family that was negotiated has had its End-of-RIB; `None` unless Established.
    pub(crate) fn initial_table_received(&self) -> Option<InitialTable> {
        let State::Established(established) = &self.state else {
            return None;
        };
        let complete = Family::ALL.iter().all(|family| {
            let index = family.index();
            !established.negotiated.families[index] || established.end_of_rib_received[index]
        });
        let restart = open::graceful_restart(&established.remote);
        Some(InitialTable {
            complete,
            sends_end_of_rib: restart.is_some(),
            restarting: restart.is_some_and(|restart| restart.restarting),
            since: established.since,
        })
    }

    /// The connection that may carry an UPDATE now.
    pub(crate) fn ready_for_updates(&self) -> Option<ConnectionId> {
        match &self.state {
            State::Established(established) if established.writer == Writer::Clear => {
                Some(established.connection)
            }
            _ => None,
        }
    }

    /// Peers that use graceful restart with us right now keep our routes when the connection just
    /// closes.
    pub(crate) fn peer_keeps_routes(&self) -> bool {
        match &self.state {
            State::Established(established) => {
                self.settings.graceful_restart.is_some()
                    && open::graceful_restart(&established.remote).is_some()
            }
            _ => false,
        }
    }
}

/// See [`Session::agreement`].
#[derive(Debug)]
pub(crate) struct Agreement<'a> {
    pub(crate) sent: &'a [Capability],
    pub(crate) remote: &'a Open,
    pub(crate) negotiated: &'a Negotiated,
    pub(crate) hold_time: Duration,
    pub(crate) keepalive_interval: Duration,
}

/// How far the first table of a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitialTable {
    pub(crate) complete: bool,
    /// The peer knows RFC 4724, so its marker can be waited for.
    pub(crate) sends_end_of_rib: bool,
    /// It has restarted too, so nobody may wait for it to be first (RFC 4724 §4.1).
    pub(crate) restarting: bool,
    pub(crate) since: Instant,
}

impl Pending {
    fn peer_state(&self) -> PeerState {
        match self.stage {
            // RFC 4271 §8.2.2: a connection that delays its OPEN is in Connect or Active.
            Stage::Delayed { .. } => PeerState::Connect,
            Stage::OpenSent { .. } => PeerState::OpenSent,
            Stage::OpenConfirm(_) => PeerState::OpenConfirm,
        }
    }
}

impl Trying {
    fn pendings(&self) -> impl Iterator<Item = &Pending> {
        let outgoing = match &self.outgoing {
            Outgoing::Pending(pending) => Some(pending),
            _ => None,
        };
        outgoing.into_iter().chain(self.incoming.as_ref())
    }
}
