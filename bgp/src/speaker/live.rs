//! Changed configuration of a neighbour while the speaker runs: what can change under a session
//! does, and only what cannot ends it, with Cease 6/6 (RFC 4486 §4).

use std::{sync::Arc, time::Instant};

use super::{
    AdminError, Speaker,
    config::{ConfigError, PeerConfig, RangeConfig, check_password},
    peer,
    ranges::member,
    sync::FirstSync,
};
use crate::{
    message::Notification,
    types::{Family, PeerId},
};

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Applied {
    /// It was so before.
    Unchanged,
    /// In force, and the session stays.
    Live,
    /// Parts are agreed on in the OPEN: in force from the next session on.
    NextSession,
    /// In force; the session had to end.
    Reset,
}

/// What a change from one configuration to another needs. Of a key that is not named here nobody
/// has said that it can change under a session, so it cannot.
fn needs(old: &PeerConfig, new: &PeerConfig) -> Applied {
    if old == new {
        return Applied::Unchanged;
    }
    let mut same = old.clone();
    same.port = new.port;
    same.passive = new.passive;
    same.max_prefixes = new.max_prefixes;
    same.warn_prefixes = new.warn_prefixes;
    same.max_prefixes_restart = new.max_prefixes_restart;
    same.import = Arc::clone(&new.import);
    same.export = Arc::clone(&new.export);
    same.shutdown = new.shutdown;
    same.assume_forwarding = new.assume_forwarding;
    let hold_time = same.timers.hold_time;
    same.timers = new.timers;
    same.timers.hold_time = hold_time;
    // The key of both ends is exchanged under the connection; whether there is one cannot be.
    if same.password.is_some() && new.password.is_some() {
        same.password.clone_from(&new.password);
    }
    if same == *new {
        return Applied::Live;
    }
    same.timers.hold_time = new.timers.hold_time;
    if same.graceful_restart.is_some() && new.graceful_restart.is_some() {
        same.graceful_restart = new.graceful_restart;
    }
    if same.long_lived.is_some() && new.long_lived.is_some() {
        same.long_lived = new.long_lived;
    }
    if same == *new {
        Applied::NextSession
    } else {
        Applied::Reset
    }
}

impl Speaker {
    /// Replaces the configuration of the neighbour of that name, which is one by itself and not of
    /// a range. Whether somebody has shut it down stays as it is.
    pub fn update_peer(&mut self, now: Instant, new: PeerConfig) -> Result<Applied, AdminError> {
        new.validate()?;
        let peer_id = self.find(&new.name)?;
        let old = match self.peers.get(&peer_id) {
            Some(peer) if peer.origin.is_none() => Arc::clone(&peer.config),
            _ => return Err(AdminError::OfRange(new.name)),
        };
        let key = (new.address, new.scope_id);
        if self
            .addresses
            .get(&key)
            .is_some_and(|other| *other != peer_id && !self.came_from_range(*other))
        {
            return Err(ConfigError::DuplicateAddress(new.name, new.address).into());
        }
        check_password(&new, new.address.into(), self.range_configs())?;
        if key != (old.address, old.scope_id) {
            self.give_way(now, key);
        }
        Ok(self.apply(now, peer_id, new))
    }

    /// Replaces the configuration of the range of that name, and with it that of its neighbours.
    /// Those that are no longer inside are let go.
    pub fn update_range(&mut self, now: Instant, new: RangeConfig) -> Result<Applied, AdminError> {
        new.validate()?;
        self.range(&new.peer.name)?;
        self.check_range(&new)?;
        let Some(range) = self.ranges.get_mut(&new.peer.name) else {
            return Ok(Applied::Unchanged);
        };
        let unchanged = *range.config == new;
        range.config = Arc::new(new.clone());
        let members = range.peers.clone();
        if unchanged {
            return Ok(Applied::Unchanged);
        }
        let mut applied = Applied::Live;
        for peer_id in members {
            let Some(peer) = self.peers.get(&peer_id) else {
                continue;
            };
            let (address, scope_id) = (peer.config.address, peer.config.scope_id);
            if !new.range.contains(&address) {
                self.with_session(now, peer_id, |session, cx| {
                    session.stop(cx, Notification::peer_deconfigured());
                });
                self.drop_peer(now, peer_id);
                applied = Applied::Reset;
                continue;
            }
            let one = self.apply(now, peer_id, member(&new, address, scope_id));
            applied = applied.max(one);
        }
        Ok(applied)
    }

    /// Whether the neighbour of that name came from a range.
    pub fn is_of_range(&self, name: &str) -> bool {
        self.names
            .get(name)
            .is_some_and(|id| self.came_from_range(*id))
    }

    fn came_from_range(&self, peer_id: PeerId) -> bool {
        self.peers
            .get(&peer_id)
            .is_some_and(|peer| peer.origin.is_some())
    }

    pub(super) fn range_configs(&self) -> impl Iterator<Item = &RangeConfig> {
        self.ranges.values().map(|range| &*range.config)
    }

    /// A neighbour that is configured by itself comes before any range: one that came from a range
    /// with its address makes way.
    pub(super) fn give_way(&mut self, now: Instant, address: (std::net::IpAddr, u32)) {
        if let Some(other) = self.addresses.get(&address).copied()
            && self.came_from_range(other)
        {
            self.with_session(now, other, |session, cx| {
                session.stop(cx, Notification::other_configuration_change());
            });
            self.drop_peer(now, other);
        }
    }

    fn apply(&mut self, now: Instant, peer_id: PeerId, new: PeerConfig) -> Applied {
        let Some(peer) = self.peers.get_mut(&peer_id) else {
            return Applied::Unchanged;
        };
        let old = Arc::clone(&peer.config);
        let needs = needs(&old, &new);
        if needs == Applied::Unchanged {
            return needs;
        }
        let settings = peer::settings(
            &self.config,
            &new,
            matches!(self.first_sync, FirstSync::Waiting { .. }),
            peer.origin.is_some(),
        );
        peer.config = Arc::new(new);
        let new = Arc::clone(&peer.config);
        if (old.address, old.scope_id) != (new.address, new.scope_id) {
            self.addresses.remove(&(old.address, old.scope_id));
            self.addresses.insert((new.address, new.scope_id), peer_id);
        }
        if needs == Applied::Reset {
            self.with_session(now, peer_id, |session, cx| {
                let stopped = session.is_stopped();
                if !stopped {
                    session.stop(cx, Notification::other_configuration_change());
                }
                session.reconfigure(cx, settings);
                if !stopped {
                    session.start(cx);
                }
            });
            return needs;
        }
        self.with_session(now, peer_id, |session, cx| {
            session.reconfigure(cx, settings)
        });
        self.rib.set_import(peer_id, Arc::clone(&new.import));
        self.rib.set_export(peer_id, Arc::clone(&new.export));
        self.rib
            .set_limits(peer_id, [new.max_prefixes; 2], [new.warn_prefixes; 2]);
        self.check_limits(now, peer_id);
        needs
    }

    /// A limit may have been lowered below what the peer has sent already.
    fn check_limits(&mut self, now: Instant, peer_id: PeerId) {
        let Some(limit) = self
            .peers
            .get(&peer_id)
            .and_then(|peer| peer.config.max_prefixes)
        else {
            return;
        };
        let over = Family::ALL
            .into_iter()
            .find(|family| self.rib.counts(peer_id, *family).received > limit);
        if let Some(family) = over {
            self.too_many_prefixes(now, peer_id, family, limit);
        }
    }
}
