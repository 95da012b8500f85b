//! What a running session is told and asked beside its events: changed settings, whether it still
//! holds anything, its timers, and what is new about it for a log.

use std::time::Instant;

use super::{Action, Context, Idle, Outgoing, Session, Settings, State, Writer};
use crate::speaker::status::{PeerNews, PeerState, PeerTimers};

impl Session {
    /// Takes new settings. What is agreed on in an OPEN counts from the next one on; the caller
    /// resets the session when that cannot wait. Deadlines that run already keep their time.
    pub(crate) fn reconfigure(&mut self, cx: &mut Context<'_>, settings: Settings) {
        self.settings = settings;
        let passive = self.settings.passive;
        if let State::Trying(trying) = &mut self.state {
            match trying.outgoing {
                Outgoing::Waiting { .. } if passive => trying.outgoing = Outgoing::Passive,
                Outgoing::Dialing { connection, .. } if passive => {
                    cx.actions.push(Action::Close(connection));
                    trying.outgoing = Outgoing::Passive;
                }
                Outgoing::Passive if !passive => {
                    trying.outgoing = Outgoing::Waiting { retry_at: cx.now };
                }
                _ => {}
            }
        }
    }

    /// No connection, and no route kept of an earlier one. A session that somebody has stopped is
    /// not idle: that it stays stopped is what it is there for.
    pub(crate) fn is_idle(&self) -> bool {
        let unconnected = match &self.state {
            State::Idle(Idle::Stopped) | State::Established(_) => false,
            State::Idle(Idle::Held { .. }) => true,
            State::Trying(trying) => {
                trying.incoming.is_none()
                    && matches!(
                        trying.outgoing,
                        Outgoing::Passive | Outgoing::Waiting { .. }
                    )
            }
        };
        unconnected && self.parked.is_none() && self.stale == [None; 2]
    }

    /// Connected, but not Established.
    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(&self.state, State::Trying(trying) if trying.pendings().next().is_some())
            && self.stale == [None; 2]
    }

    /// Until when no connection is dialled, and from a neighbour of a range none taken either.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        match self.state {
            State::Idle(Idle::Held { until }) => Some(until),
            _ => None,
        }
    }

    /// The deadlines that run.
    pub(crate) fn timers(&self) -> PeerTimers {
        let mut timers = PeerTimers {
            held_until: self.held_until(),
            next_connect_at: self.next_connect_at(),
            stale_until: self.stale_deadline(),
            ..PeerTimers::default()
        };
        if let State::Established(established) = &self.state {
            (timers.hold_expires_at, timers.keepalive_at) = established.liveness.deadlines();
            timers.send_hold_expires_at = match established.writer {
                Writer::Clear => None,
                Writer::Busy { give_up_at } => Some(give_up_at),
            };
        }
        timers
    }

    /// Notes what a change of the shown state means for a log: a peer that is away for a day is one
    /// line and not one for every attempt.
    pub(super) fn note_news(&mut self, before: PeerState, after: PeerState) {
        if before == PeerState::Established {
            self.news.lost = Some(self.reason());
            self.told = Some(self.cause.clone());
        } else if after == PeerState::Established {
            self.news.established = true;
            self.told = None;
            return;
        }
        // While a connection is under way there is no new reason yet.
        let waits = matches!(after, PeerState::Idle | PeerState::Active);
        if waits && self.told.as_ref() != Some(&self.cause) {
            self.news.reason = true;
            self.told = Some(self.cause.clone());
        }
    }

    /// What is new since this was last asked.
    pub(crate) fn take_news(&mut self) -> PeerNews {
        std::mem::take(&mut self.news)
    }
}
