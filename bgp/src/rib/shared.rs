//! What both families share: configuration, peers, attribute sets and next hops.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::{
    interned::{AttributeSets, NextHops},
    path_ids::PathIds,
    types::{Drain, PeerCounts, PeerKind, PeerRib, RibConfig},
};
use crate::{
    policy::Source,
    types::{Family, PeerId},
};

/// The slot of routes originated here.
pub(super) const LOCAL: u16 = 0;

/// Paths carry the time of their arrival in ticks since the start: 32 bits last 8 years.
const TICKS_PER_SECOND: u32 = 16;

/// How much is done at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Prefixes evaluated or encoded between two looks at the budget.
    pub(super) step: usize,
    /// Size at which a part of a batch is closed; budgets are exceeded by no more than this.
    pub(super) segment_bytes: usize,
    /// Batches kept for members that lag behind; beyond, those fall out of step.
    pub(super) batches_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            step: 16 * 1024,
            segment_bytes: 32 * 1024,
            batches_bytes: 4 * 1024 * 1024,
        }
    }
}

/// A peer that is up, or whose stale paths are still there.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) up: bool,
    pub(super) session: PeerRib,
    pub(super) counts: [PeerCounts; 2],
    /// Waits in `dirty_peers`.
    pub(super) notified: bool,
    /// The log has been warned of the number of prefixes, for each family.
    pub(super) warned: [bool; 2],
    /// It sends everything again; what is stale waits for the end of that (RFC 7313).
    pub(super) refreshing: [bool; 2],
    /// Its stale paths are long-lived stale (RFC 9494).
    pub(super) long_lived: [bool; 2],
    /// The update group it is a member of, for each family.
    pub(super) group: [Option<u32>; 2],
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: RibConfig,
    started: Instant,
    pub(super) attributes: AttributeSets,
    pub(super) next_hops: NextHops,
    pub(super) path_ids: PathIds,
    /// By slot; slot 0 stands for routes originated here. A slot is reused when its peer is down
    /// and has no path left.
    pub(super) peers: Vec<Option<Peer>>,
    slots: HashMap<PeerId, u16, foldhash::fast::RandomState>,
    pub(super) dirty_peers: VecDeque<PeerId>,
    pub(super) end_of_rib_held: bool,
    pub(super) drain: Drain,
    pub(super) limits: Limits,
}

impl Shared {
    pub(super) fn new(config: RibConfig, now: Instant) -> Self {
        Self {
            end_of_rib_held: config.hold_end_of_rib,
            config,
            started: now,
            attributes: AttributeSets::new(),
            next_hops: NextHops::new(),
            path_ids: PathIds::default(),
            peers: vec![None],
            slots: HashMap::default(),
            dirty_peers: VecDeque::new(),
            drain: Drain::Off,
            limits: Limits::default(),
        }
    }

    pub(super) fn slot(&self, id: PeerId) -> Option<u16> {
        self.slots.get(&id).copied()
    }

    pub(super) fn peer(&self, slot: u16) -> Option<&Peer> {
        self.peers.get(usize::from(slot))?.as_ref()
    }

    pub(super) fn peer_mut(&mut self, slot: u16) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(slot))?.as_mut()
    }

    /// The counters of a learned path's peer; paths exist only while their peer has a slot.
    pub(super) fn counts(&mut self, slot: u16, family: Family) -> &mut PeerCounts {
        let peer = self.peer_mut(slot).expect("a path's peer has a slot");
        &mut peer.counts[family.index()]
    }

    /// Once the peer has sent more prefixes than its warning threshold.
    pub(super) fn warn_of_prefixes(&mut self, slot: u16, family: Family) {
        let index = family.index();
        let Some(peer) = self.peer_mut(slot) else {
            return;
        };
        if let Some(threshold) = peer.session.warn_prefixes[index]
            && peer.counts[index].received > threshold
            && !peer.warned[index]
        {
            peer.warned[index] = true;
            tracing::warn!(
                peer = %peer.session.remote_address,
                %family,
                threshold,
                limit = peer.session.max_prefixes[index],
                "the number of received prefixes is near its limit"
            );
        }
    }

    /// The slot of a peer that comes up, new or kept for its stale paths.
    pub(super) fn bring_up(&mut self, id: PeerId, session: PeerRib) -> u16 {
        if let Some(slot) = self.slot(id) {
            let peer = self
                .peer_mut(slot)
                .expect("the slot of a known peer is taken");
            peer.up = true;
            peer.session = session;
            peer.warned = [false; 2];
            for counts in &mut peer.counts {
                counts.end_of_rib_received = false;
                counts.end_of_rib_sent = false;
            }
            return slot;
        }
        let peer = Peer {
            id,
            up: true,
            session,
            counts: Default::default(),
            notified: false,
            warned: [false; 2],
            refreshing: [false; 2],
            long_lived: [false; 2],
            group: [None; 2],
        };
        let free = self
            .peers
            .iter()
            .skip(1)
            .position(Option::is_none)
            .map(|index| index + 1);
        let index = free.unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() - 1
        });
        let slot = u16::try_from(index).expect("fewer than 65,536 peers");
        self.peers[index] = Some(peer);
        self.slots.insert(id, slot);
        slot
    }

    /// Forgets a peer that is down and has no paths.
    pub(super) fn forget_if_gone(&mut self, slot: u16) {
        let Some(peer) = self.peer(slot) else { return };
        if !peer.up && peer.counts.iter().all(|counts| counts.received == 0) {
            let id = peer.id;
            self.slots.remove(&id);
            self.peers[usize::from(slot)] = None;
        }
    }

    pub(super) fn source(&self, slot: u16) -> Source {
        match self.peer(slot) {
            None => Source::Local,
            Some(peer) => match peer.session.kind {
                PeerKind::External => Source::External,
                PeerKind::Internal if self.is_client(&peer.session) => Source::Client,
                PeerKind::Internal => Source::Internal,
            },
        }
    }

    pub(super) fn is_client(&self, session: &PeerRib) -> bool {
        self.config.cluster_id.is_some() && session.rr_client && session.kind == PeerKind::Internal
    }

    /// Puts the peer into the queue of those that have something to send.
    pub(super) fn notify(&mut self, slot: u16) {
        if let Some(peer) = self
            .peers
            .get_mut(usize::from(slot))
            .and_then(Option::as_mut)
            && peer.up
            && !peer.notified
        {
            peer.notified = true;
            self.dirty_peers.push_back(peer.id);
        }
    }

    pub(super) fn stamp(&self, now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        u32::try_from(elapsed * u128::from(TICKS_PER_SECOND) / 1000).unwrap_or(u32::MAX)
    }

    pub(super) fn instant(&self, stamp: u32) -> Instant {
        self.started + Duration::from_secs(u64::from(stamp)) / TICKS_PER_SECOND
    }
}
