//! The start: when the tables of all peers have arrived, and until when End-of-RIB is held back
//! (RFC 4724 §4.1).

use std::time::{Duration, Instant};

use super::{Speaker, peer::Peer};

/// A peer that does not know End-of-RIB is taken to have sent its table after so long.
const TABLE_WITHOUT_MARKER: Duration = Duration::from_secs(10);
/// How long the program may take to say whether the next hops of the first tables are reachable.
const RESOLVING_TIME: Duration = Duration::from_secs(10);

/// Whether the tables of all peers have arrived once.
#[derive(Debug)]
pub(super) enum FirstSync {
    Waiting {
        deadline: Instant,
        /// When the tables were looked at last.
        checked_at: Instant,
    },
    /// All tables are here; the program may still be looking for next hops.
    Resolving {
        give_up_at: Instant,
    },
    /// To be reported.
    Reached,
    Done,
}

/// Whether peers may be sent End-of-RIB.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EndOfRib {
    /// What we originate is not complete.
    Held,
    /// A restarted reflector: what it passed on before is not complete.
    WaitingForPeers,
    Released,
}

impl Speaker {
    /// When there is something to do about the start, apart from sessions.
    pub(super) fn first_sync_timeout(&self) -> Option<Instant> {
        match self.first_sync {
            FirstSync::Waiting {
                deadline,
                checked_at,
            } => Some(
                self.peers
                    .values()
                    .filter_map(|peer| peer.session.initial_table_received())
                    .filter(|table| !table.complete && !table.sends_end_of_rib)
                    .map(|table| table.since + TABLE_WITHOUT_MARKER)
                    // What was due before has not been enough.
                    .filter(|at| *at > checked_at)
                    .fold(deadline, Instant::min),
            ),
            FirstSync::Resolving { give_up_at } => Some(give_up_at),
            FirstSync::Reached | FirstSync::Done => None,
        }
    }

    /// True once: every peer has sent its table, or the deadline has passed, and all next hops of
    /// these tables were answered. Take all route changes before asking.
    pub fn poll_first_sync(&mut self) -> bool {
        let reached = match self.first_sync {
            FirstSync::Resolving { .. } => self.unanswered.is_empty(),
            FirstSync::Reached => true,
            FirstSync::Waiting { .. } | FirstSync::Done => false,
        };
        if reached {
            self.first_sync = FirstSync::Done;
        }
        reached
    }

    pub(super) fn check_first_sync(&mut self, now: Instant) {
        let waiting = matches!(self.first_sync, FirstSync::Waiting { .. });
        if !waiting && self.end_of_rib != EndOfRib::WaitingForPeers {
            return;
        }
        if let FirstSync::Waiting { checked_at, .. } = &mut self.first_sync {
            *checked_at = now;
        }
        let has_table = |peer: &Peer| {
            peer.session.initial_table_received().map(|table| {
                let complete = table.complete
                    || (!table.sends_end_of_rib && now >= table.since + TABLE_WITHOUT_MARKER);
                (complete, table.restarting)
            })
        };
        // Who may come from a range, nobody knows.
        let mut complete = !self.ranges.values().any(|range| !range.shutdown);
        let mut complete_or_restarting = complete;
        for peer in self.peers.values() {
            if peer.origin.is_none() && !peer.session.is_stopped() {
                let (table, restarting) = has_table(peer).unwrap_or_default();
                complete &= table;
                complete_or_restarting &= table || restarting;
            }
        }
        let past = match self.first_sync {
            FirstSync::Waiting { deadline, .. } => now >= deadline,
            FirstSync::Resolving { .. } | FirstSync::Reached | FirstSync::Done => true,
        };
        if self.end_of_rib == EndOfRib::WaitingForPeers && (past || complete_or_restarting) {
            self.release_end_of_rib();
        }
        if waiting && (complete || past) {
            self.first_sync = FirstSync::Resolving {
                give_up_at: now + RESOLVING_TIME,
            };
            // RFC 4724 §4.1: from here on a lost session is not part of the restart.
            for peer in self.peers.values_mut() {
                peer.session.set_restarting(None);
            }
        }
    }
}
