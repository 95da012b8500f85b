//! Drain: the node takes itself out of the network for good (RFC 8326), and back in.
//!
//! ```text
//!   Off ─ drain, durable ─► Leaving ─ timeout ─► Left
//!    ▲    last resort of        │     nothing      │
//!    │    everybody             ▼     announced    ▼
//!    └──────────────────── undrain, durable ◄──────┘
//! ```
//!
//! What is stored is the time at which everything is withdrawn, so that a restart in between goes
//! on where it was. Blocks, workloads and their kernel state stay as they are: the speaker alone
//! announces less. A clean stop is another thing: it announces nothing new and keeps forwarding.

use std::time::{Duration, Instant, SystemTime};

use bgp::rib::Drain as Announce;

use super::{Caller, Error, Node, Output, Pending, Reply};
use crate::{ipam::Now, store::record::Record};

/// The longest time between the first announcement and the withdrawal.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// Whether the node is in the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    #[default]
    Off,
    /// Everything is withdrawn at this time.
    Leaving {
        at: Instant,
        wall: SystemTime,
    },
    Left,
}

impl Drain {
    /// As the store has it. A clock that was set back does not make it longer than it can be.
    pub fn recovered(now: Now, stored: Option<SystemTime>) -> Self {
        let Some(wall) = stored else {
            return Self::Off;
        };
        match wall.duration_since(now.wall) {
            Ok(rest) if !rest.is_zero() => Self::Leaving {
                at: now.instant + rest.min(MAX_TIMEOUT),
                wall,
            },
            _ => Self::Left,
        }
    }

    /// What the speaker does.
    pub fn announce(self) -> Announce {
        match self {
            Self::Off => Announce::Off,
            Self::Leaving { .. } => Announce::Leaving,
            Self::Left => Announce::Left,
        }
    }
}

impl Node {
    /// Durable when answered. A node that has left stays so.
    pub fn handle_drain(&mut self, now: Now, caller: Caller, timeout: Duration) {
        if self.drain == Drain::Left {
            return self.reply_drain(caller, Ok(Drain::Left));
        }
        let timeout = timeout.min(MAX_TIMEOUT);
        let drain = if timeout.is_zero() {
            Drain::Left
        } else {
            Drain::Leaving {
                at: now.instant + timeout,
                wall: now.wall + timeout,
            }
        };
        let stored = Record::Drained(Some(now.wall + timeout));
        self.persist(Pending::Drain(caller, drain), vec![stored]);
    }

    /// Durable when answered.
    pub fn handle_undrain(&mut self, caller: Caller) {
        self.persist(
            Pending::Drain(caller, Drain::Off),
            vec![Record::Drained(None)],
        );
    }

    pub(super) fn drain_done(&mut self, caller: Caller, drain: Drain, result: Result<(), String>) {
        let result = match result {
            Ok(()) => {
                self.set_drain(drain);
                Ok(self.drain)
            }
            Err(text) => Err(Error::Store(text)),
        };
        self.reply_drain(caller, result);
    }

    pub(super) fn drain_timeout(&mut self, now: Now) {
        if matches!(self.drain, Drain::Leaving { at, .. } if at <= now.instant) {
            self.set_drain(Drain::Left);
        }
    }

    pub(super) fn drain_deadline(&self) -> Option<Instant> {
        match self.drain {
            Drain::Leaving { at, .. } => Some(at),
            Drain::Off | Drain::Left => None,
        }
    }

    pub(super) fn set_drain(&mut self, drain: Drain) {
        let before = std::mem::replace(&mut self.drain, drain);
        if before.announce() != drain.announce() {
            self.outputs.push_back(Output::Drain(drain.announce()));
        }
    }

    fn reply_drain(&mut self, caller: Caller, result: Result<Drain, Error>) {
        self.outputs.push_back(Output::Reply {
            caller,
            reply: Reply::Drain(result),
        });
    }
}
