//! The routing information base: Adj-RIB-In, Loc-RIB and Adj-RIB-Out of all peers (RFC 4271 §3.2,
//! §9), route reflection (RFC 4456), graceful restart of peers (RFC 4724, RFC 9494), refresh
//! (RFC 2918, RFC 7313).
//!
//! ```text
//!  update ─► import ─► table: paths by prefix, best first ─► forwarding changes (poll_change)
//!            checks,      ▲  decision process                 coalesced by prefix
//!            policy       │                 └──────────────► groups: what members are to have
//!                     next hops                               (pull) encoded once for each group
//! ```
//!
//! Pure: no time but the stamps it is given, no IO. Costs grow with what changes; exceptions, each
//! one walk over the table however much changed: a peer going down, next hops changing, a new
//! update group.
//!
//! Deliberately absent: confederations, aggregation.

mod advertised;
mod arena;
mod claims;
mod decision;
mod export;
mod family;
mod group;
mod ids;
mod import;
mod interned;
mod outputs;
mod path_ids;
mod prefix;
mod shared;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod view;

use std::{sync::Arc, time::Instant};

use ipnet::IpNet;

pub use decision::Step;
pub use types::*;

use crate::{
    attributes::{NextHop, Via},
    message::{NlriList, Update},
    policy::Policy,
    types::{Family, PeerId},
};
use family::FamilyRib;
use prefix::{Prefix, V4, V6};
use shared::Shared;

/// The tables of one speaker.
#[derive(Debug)]
pub struct Rib {
    shared: Shared,
    v4: FamilyRib<V4>,
    v6: FamilyRib<V6>,
}

impl Rib {
    pub fn new(config: RibConfig, now: Instant) -> Self {
        Self {
            shared: Shared::new(config, now),
            v4: FamilyRib::new(),
            v6: FamilyRib::new(),
        }
    }

    /// A session is Established. Paths kept from the session before stay as stale until they are
    /// replaced or swept. A peer that is up already is taken down first.
    pub fn peer_up(&mut self, peer: PeerId, session: PeerRib) {
        if self
            .shared
            .slot(peer)
            .and_then(|slot| self.shared.peer(slot))
            .is_some_and(|p| p.up)
        {
            self.peer_down(peer, [false; 2]);
        }
        let slot = self.shared.bring_up(peer, session);
        // Stale paths were judged by the session before.
        self.v4.reassess_peer(&mut self.shared, slot);
        self.v6.reassess_peer(&mut self.shared, slot);
        self.v4.join(&mut self.shared, slot, None);
        self.v6.join(&mut self.shared, slot, None);
    }

    /// The session is gone. In the families with `keep_stale` its paths stay, marked stale. What
    /// was stale before and may stay no longer is swept first, by the caller.
    pub fn peer_down(&mut self, peer: PeerId, keep_stale: [bool; 2]) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        self.v4.leave(&mut self.shared, slot);
        self.v6.leave(&mut self.shared, slot);
        if let Some(peer) = self.shared.peer_mut(slot) {
            peer.up = false;
            peer.refreshing = [false; 2];
        }
        let [keep_v4, keep_v6] = keep_stale;
        if !keep_v4 {
            self.v4.remove_peer(&mut self.shared, slot, false);
        }
        if !keep_v6 {
            self.v6.remove_peer(&mut self.shared, slot, false);
        }
        self.v4.mark_stale(&mut self.shared, slot);
        self.v6.mark_stale(&mut self.shared, slot);
        self.shared.forget_if_gone(slot);
    }

    /// The peer begins to send everything again: what it has sent is stale (RFC 7313 §4) until
    /// `sweep_stale`.
    pub fn mark_stale(&mut self, peer: PeerId, family: Family) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        if let Some(peer) = self.shared.peer_mut(slot) {
            peer.refreshing[family.index()] = true;
        }
        match family {
            Family::Ipv4Unicast => self.v4.mark_stale(&mut self.shared, slot),
            Family::Ipv6Unicast => self.v6.mark_stale(&mut self.shared, slot),
        }
    }

    /// What is stale is from now on the least preferred, carries LLGR_STALE, and goes if it carries
    /// NO_LLGR (RFC 9494 §4.2).
    pub fn mark_long_lived(&mut self, peer: PeerId, family: Family) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        if let Some(peer) = self.shared.peer_mut(slot) {
            peer.long_lived[family.index()] = true;
        }
        match family {
            Family::Ipv4Unicast => self.v4.mark_long_lived(&mut self.shared, slot),
            Family::Ipv6Unicast => self.v6.mark_long_lived(&mut self.shared, slot),
        }
        self.shared.forget_if_gone(slot);
    }

    /// Removes what is still stale.
    pub fn sweep_stale(&mut self, peer: PeerId, family: Family) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        if let Some(peer) = self.shared.peer_mut(slot) {
            peer.refreshing[family.index()] = false;
            peer.long_lived[family.index()] = false;
        }
        match family {
            Family::Ipv4Unicast => self.v4.remove_peer(&mut self.shared, slot, true),
            Family::Ipv6Unicast => self.v6.remove_peer(&mut self.shared, slot, true),
        }
        self.shared.forget_if_gone(slot);
    }

    /// Applies a received UPDATE: withdrawals, then announcements. An End-of-RIB marker is noted
    /// and sweeps stale paths, unless they belong to a refresh under way. After an error the rest of the UPDATE was not applied; the session
    /// has to go down. Updates of a peer that is not up are ignored.
    pub fn update(
        &mut self,
        now: Instant,
        peer: PeerId,
        update: &Update,
    ) -> Result<(), PrefixLimit> {
        let Some(slot) = self.shared.slot(peer) else {
            return Ok(());
        };
        if !self.shared.peer(slot).is_some_and(|peer| peer.up) {
            return Ok(());
        }
        let stamp = self.shared.stamp(now);
        for list in &update.withdrawn {
            match list {
                NlriList::Ipv4(nlri) => self.v4.withdraw(&mut self.shared, slot, nlri),
                NlriList::Ipv6(nlri) => self.v6.withdraw(&mut self.shared, slot, nlri),
            }
        }
        for announced in &update.announced {
            let attributes = &announced.attributes;
            match &announced.nlri {
                NlriList::Ipv4(nlri) => {
                    self.v4
                        .announce(&mut self.shared, slot, stamp, attributes, nlri)?;
                }
                NlriList::Ipv6(nlri) => {
                    self.v6
                        .announce(&mut self.shared, slot, stamp, attributes, nlri)?;
                }
            }
        }
        if let Some(family) = update.end_of_rib {
            let refreshing = self.shared.peer_mut(slot).is_some_and(|peer| {
                peer.counts[family.index()].end_of_rib_received = true;
                peer.refreshing[family.index()]
            });
            if !refreshing {
                self.sweep_stale(peer, family);
            }
        }
        Ok(())
    }

    /// The peer asked for everything again (RFC 2918, RFC 7313).
    pub fn refresh(&mut self, peer: PeerId, family: Family) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        match family {
            Family::Ipv4Unicast => self.v4.refresh(&mut self.shared, slot),
            Family::Ipv6Unicast => self.v6.refresh(&mut self.shared, slot),
        }
    }

    /// Decides anew on everything the peer sent.
    pub fn set_import(&mut self, peer: PeerId, import: Arc<Policy>) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        let Some(known) = self.shared.peer_mut(slot) else {
            return;
        };
        if known.session.import == import {
            return;
        }
        known.session.import = import;
        self.v4.reassess_peer(&mut self.shared, slot);
        self.v6.reassess_peer(&mut self.shared, slot);
    }

    /// Decides anew on everything the peer is sent: it gets all of it again, and withdrawals of
    /// what it is no longer to have.
    pub fn set_export(&mut self, peer: PeerId, export: Arc<Policy>) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        let Some(known) = self.shared.peer_mut(slot) else {
            return;
        };
        if known.session.export == export {
            return;
        }
        known.session.export = export;
        if !known.up {
            return;
        }
        self.v4.regroup(&mut self.shared, slot);
        self.v6.regroup(&mut self.shared, slot);
    }

    /// Our own addresses as next hops towards a peer, by family, are others now: it is told anew what
    /// has them.
    pub fn set_next_hop_self(&mut self, peer: PeerId, own: [Option<NextHop>; 2]) {
        let Some(slot) = self.shared.slot(peer) else {
            return;
        };
        let Some(known) = self.shared.peer_mut(slot) else {
            return;
        };
        let before = std::mem::replace(&mut known.session.next_hop_self, own);
        if !known.up {
            return;
        }
        if before[Family::Ipv4Unicast.index()] != own[Family::Ipv4Unicast.index()] {
            self.v4.regroup(&mut self.shared, slot);
        }
        if before[Family::Ipv6Unicast.index()] != own[Family::Ipv6Unicast.index()] {
            self.v6.regroup(&mut self.shared, slot);
        }
    }

    /// New limits for a peer; whether it exceeds them already is not looked at here.
    pub fn set_limits(&mut self, peer: PeerId, most: [Option<u32>; 2], warn: [Option<u32>; 2]) {
        if let Some(slot) = self.shared.slot(peer)
            && let Some(known) = self.shared.peer_mut(slot)
        {
            if known.session.warn_prefixes != warn {
                known.warned = [false; 2];
            }
            known.session.max_prefixes = most;
            known.session.warn_prefixes = warn;
        }
    }

    /// Takes this speaker out of the network, or back in.
    pub fn set_drain(&mut self, drain: Drain) {
        if std::mem::replace(&mut self.shared.drain, drain) == drain {
            return;
        }
        for index in 1..self.shared.peers.len() {
            let slot = u16::try_from(index).expect("fewer than 65,536 peers");
            if self.shared.peer(slot).is_some_and(|peer| peer.up) {
                self.v4.regroup(&mut self.shared, slot);
                self.v6.regroup(&mut self.shared, slot);
            }
        }
    }

    /// Originates a prefix, or changes what is originated.
    pub fn originate(&mut self, now: Instant, prefix: IpNet, route: LocalRoute) {
        let stamp = self.shared.stamp(now);
        if let Some(key) = V4::from_ip_net(&prefix) {
            self.v4.originate(&mut self.shared, stamp, key, route);
        } else if let Some(key) = V6::from_ip_net(&prefix) {
            self.v6.originate(&mut self.shared, stamp, key, route);
        }
    }

    pub fn withdraw_originated(&mut self, prefix: IpNet) {
        if let Some(key) = V4::from_ip_net(&prefix) {
            self.v4.withdraw_originated(&mut self.shared, key);
        } else if let Some(key) = V6::from_ip_net(&prefix) {
            self.v6.withdraw_originated(&mut self.shared, key);
        }
    }

    /// What is originated is complete: End-of-RIB may be sent.
    pub fn release_end_of_rib(&mut self) {
        if std::mem::take(&mut self.shared.end_of_rib_held) {
            for slot in 0..self.shared.peers.len() {
                self.shared
                    .notify(u16::try_from(slot).expect("fewer than 65,536 peers"));
            }
        }
    }

    /// What is known of a next hop; for those watched. Takes effect with the next `poll_change`,
    /// `poll_dirty_peer` or `pull`, so that many changes cost one walk over the table.
    pub fn set_next_hop(&mut self, via: impl Into<Via>, state: NextHopState) {
        self.shared.next_hops.set_state(via.into(), state);
    }

    /// What depends on next hops and on what is originated, worked out before anybody looks.
    fn flush(&mut self) {
        self.v4.flush_originated(&mut self.shared);
        self.v6.flush_originated(&mut self.shared);
        if self.shared.next_hops.has_changed() {
            let (changed, paths) = self.shared.next_hops.take_changed();
            if paths > 0 {
                self.v4.next_hops_changed(&mut self.shared, &changed);
                self.v6.next_hops_changed(&mut self.shared, &changed);
            }
        }
    }

    /// The next wish to hear, or no longer hear, about a next hop. The state of a next hop is
    /// forgotten with `Unwatch`.
    pub fn poll_next_hop_watch(&mut self) -> Option<NextHopWatch> {
        self.flush();
        self.shared.next_hops.poll_watch()
    }

    /// The next change of the forwarding table, coalesced by prefix.
    pub fn poll_change(&mut self) -> Option<RouteChange> {
        self.flush();
        let change = self.v4.poll_change(&mut self.shared);
        change.or_else(|| self.v6.poll_change(&mut self.shared))
    }

    /// A peer that got something to send since it was last returned here.
    pub fn poll_dirty_peer(&mut self) -> Option<PeerId> {
        self.flush();
        while let Some(id) = self.shared.dirty_peers.pop_front() {
            if let Some(slot) = self.shared.slot(id)
                && let Some(peer) = self.shared.peer_mut(slot)
            {
                peer.notified = false;
                if peer.up {
                    return Some(id);
                }
            }
        }
        None
    }

    /// Whether [`pull`](Self::pull) may have something to send.
    pub fn has_pending(&self, peer: PeerId) -> bool {
        let Some(slot) = self.shared.slot(peer) else {
            return false;
        };
        self.v4.has_pending(&self.shared, slot, peer)
            || self.v6.has_pending(&self.shared, slot, peer)
    }

    /// Appends whole UPDATE messages until about `budget_bytes` were appended or nothing is left:
    /// withdrawals first, announcements packed by attribute set, End-of-RIB once for each family
    /// after the initial table.
    pub fn pull(&mut self, peer: PeerId, out: &mut Vec<u8>, budget_bytes: usize) -> Pulled {
        self.flush();
        let mut pulled = Pulled::default();
        let Some(slot) = self.shared.slot(peer) else {
            return pulled;
        };
        let end = out.len().saturating_add(budget_bytes.max(1));
        self.v4.pull(&mut self.shared, slot, out, end, &mut pulled);
        if out.len() < end {
            self.v6.pull(&mut self.shared, slot, out, end, &mut pulled);
        } else {
            pulled.more |= self.v6.has_pending(&self.shared, slot, peer);
        }
        pulled
    }
}
