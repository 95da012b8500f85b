//! Time, and what the driver and the program take out: messages to send, and what has changed.

use std::time::Instant;

use super::{Output, Speaker, status::PeerStatus, sync::FirstSync};
use crate::rib::{NextHopWatch, RouteChange};

/// About how many octets of UPDATEs are made for a peer at once.
const PULL_BUDGET: usize = 64 * 1024;

impl Speaker {
    /// The earliest time at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.deadlines.first().map(|(deadline, _)| *deadline);
        sessions.into_iter().chain(self.first_sync_timeout()).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each due peer once, whatever its next deadline is.
        let due: Vec<_> = self
            .deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .copied()
            .collect();
        for entry in due {
            let (_, peer_id) = entry;
            if self.deadlines.remove(&entry)
                && let Some(peer) = self.peers.get_mut(&peer_id)
            {
                peer.scheduled = None;
            }
            self.forget_if_due(now, peer_id);
            self.with_session(now, peer_id, |session, cx| session.timeout(cx));
        }
        if matches!(self.first_sync, FirstSync::Resolving { give_up_at } if give_up_at <= now) {
            self.first_sync = FirstSync::Reached;
        }
        self.check_first_sync(now);
    }

    /// The next thing to do. UPDATEs are made here, for one peer at a time.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            while let Some(peer_id) = self.rib.poll_dirty_peer() {
                self.queue_pull(peer_id);
            }
            let peer_id = self.pullable.pop_front()?;
            let Some(peer) = self.peers.get_mut(&peer_id) else {
                continue;
            };
            peer.queued = false;
            let Some(connection) = peer.session.ready_for_updates() else {
                // The report that the connection takes more comes back here.
                continue;
            };
            let mut octets = Vec::new();
            let pulled = self.rib.pull(peer_id, &mut octets, PULL_BUDGET);
            if octets.is_empty() {
                continue;
            }
            peer.session
                .sent_updates(now, u64::from(pulled.updates), pulled.end_of_rib);
            self.reschedule(peer_id);
            return Some(Output::Send { connection, octets });
        }
    }

    /// The next change of the Loc-RIB, coalesced by prefix.
    pub fn poll_route_change(&mut self) -> Option<RouteChange> {
        self.rib.poll_change()
    }

    /// An address whose reachability matters from now on, or no longer.
    pub fn poll_next_hop_watch(&mut self) -> Option<NextHopWatch> {
        let watch = self.rib.poll_next_hop_watch()?;
        match watch {
            NextHopWatch::Watch(via) => self.unanswered.insert(via),
            NextHopWatch::Unwatch(via) => self.unanswered.remove(&via),
        };
        Some(watch)
    }

    /// A peer whose state has changed since it was last returned here, with what is new of it.
    pub fn poll_changed_peer(&mut self) -> Option<PeerStatus> {
        let peer_id = self.changed.pop_first()?;
        let peer = self.peers.get_mut(&peer_id)?;
        peer.reported = true;
        let news = peer.session.take_news();
        let mut status = self.peer(peer_id)?;
        status.news = news;
        Some(status)
    }

    /// The name of a peer that [`poll_changed_peer`](Self::poll_changed_peer) has told of, and that
    /// is there no longer.
    pub fn poll_gone_peer(&mut self) -> Option<String> {
        self.gone.pop()
    }
}
