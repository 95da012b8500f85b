//! The routing information base: Adj-RIB-In, Loc-RIB and Adj-RIB-Out of all peers.

mod decision;
mod types;

use std::{net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;

pub use decision::Step;
pub use types::*;

use crate::{
    attributes::{AsPath, Segment, SegmentKind},
    message::Update,
    policy::Policy,
    types::{Asn, Family, PeerId},
};

/// The tables of one speaker.
#[derive(Debug)]
pub struct Rib {
    _config: RibConfig,
    _started: Instant,
}

impl Rib {
    pub fn new(config: RibConfig, now: Instant) -> Self {
        Self {
            _config: config,
            _started: now,
        }
    }

    /// A session is Established. Paths kept from the session before stay as stale until they are
    /// replaced or swept.
    pub fn peer_up(&mut self, _peer: PeerId, _session: PeerRib) {}

    /// The session is gone. In the families with `keep_stale` its paths stay, marked stale
    /// (RFC 4724 §4.2).
    pub fn peer_down(&mut self, _peer: PeerId, _keep_stale: [bool; 2]) {}

    /// Marks everything of the peer stale, as at the begin of a refresh (RFC 7313 §4).
    pub fn mark_stale(&mut self, _peer: PeerId, _family: Family) {}

    /// Removes what is still stale.
    pub fn sweep_stale(&mut self, _peer: PeerId, _family: Family) {}

    /// Applies a received UPDATE. An End-of-RIB marker is noted and sweeps stale paths.
    pub fn update(
        &mut self,
        _now: Instant,
        _peer: PeerId,
        _update: &Update,
    ) -> Result<(), PrefixLimit> {
        Ok(())
    }

    /// The peer asked for everything again (RFC 2918).
    pub fn refresh(&mut self, _peer: PeerId, _family: Family) {}

    /// Decides anew on everything the peer sent.
    pub fn set_import(&mut self, _peer: PeerId, _import: Arc<Policy>) {}

    /// Decides anew on everything the peer is sent.
    pub fn set_export(&mut self, _peer: PeerId, _export: Arc<Policy>) {}

    /// Originates a prefix, or changes what is originated.
    pub fn originate(&mut self, _now: Instant, _prefix: IpNet, _route: LocalRoute) {}

    pub fn withdraw_originated(&mut self, _prefix: IpNet) {}

    /// What is originated is complete: End-of-RIB may be sent.
    pub fn release_end_of_rib(&mut self) {}

    /// What is known of a next hop; for those watched.
    pub fn set_next_hop(&mut self, _address: IpAddr, _state: NextHopState) {}

    pub fn poll_next_hop_watch(&mut self) -> Option<NextHopWatch> {
        None
    }

    /// The next change of the forwarding table, coalesced by prefix.
    pub fn poll_change(&mut self) -> Option<RouteChange> {
        None
    }

    /// A peer that got something to send since it was last returned here.
    pub fn poll_dirty_peer(&mut self) -> Option<PeerId> {
        None
    }

    /// Whether [`pull`](Self::pull) may have something to send.
    pub fn has_pending(&self, _peer: PeerId) -> bool {
        false
    }

    /// Appends whole UPDATE messages until about `budget_bytes` were appended or nothing is left:
    /// withdrawals first, announcements packed by attribute set, End-of-RIB once for each family
    /// after the initial table.
    pub fn pull(&mut self, _peer: PeerId, _out: &mut Vec<u8>, _budget_bytes: usize) -> Pulled {
        Pulled::default()
    }

    pub fn counts(&self, _peer: PeerId, _family: Family) -> PeerCounts {
        PeerCounts::default()
    }

    /// A page of a table.
    pub fn routes(&self, _query: &RouteQuery) -> RoutePage {
        RoutePage::default()
    }

    /// The longest prefix with a usable path that covers the address.
    pub fn covering(&self, _address: IpAddr) -> Option<IpNet> {
        None
    }
}

/// Length of an AS path as the decision process counts it: a set counts 1, confederation
/// segments nothing (RFC 4271 §9.1.2.2 a, RFC 5065 §5.3).
pub fn as_path_length(path: &AsPath) -> usize {
    path.0
        .iter()
        .map(|segment| match segment.kind {
            SegmentKind::Sequence => segment.asns.len(),
            SegmentKind::Set => 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        })
        .sum()
}

/// Prepends one number (RFC 4271 §5.1.2 b): into the leading sequence while it has room.
pub fn prepend(path: &mut AsPath, asn: Asn) {
    match path.0.first_mut() {
        Some(first) if first.kind == SegmentKind::Sequence && first.asns.len() < 255 => {
            first.asns.insert(0, asn);
        }
        _ => path.0.insert(
            0,
            Segment {
                kind: SegmentKind::Sequence,
                asns: vec![asn],
            },
        ),
    }
}
