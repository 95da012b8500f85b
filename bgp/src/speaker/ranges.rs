//! Neighbours of ranges: who is let in, and when one is forgotten.
//!
//! A connection from a range makes a peer, so what a stranger can make here is bounded: each range
//! has a limit, in which peers count that have not said yet who they are. At the limit the oldest
//! peer without a session makes room: one that holds no connection at any time, one that is still
//! in its handshake after [`HANDSHAKE`]. Sessions and routes that are kept over a restart are never
//! given up for somebody new.
//!
//! A peer is forgotten [`REMEMBERED`] after it held anything last. That long its errors count, so
//! one that fails and comes back at once is held in Idle for longer each time; and that long an
//! operator sees why it went.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    AdminError, Speaker,
    config::{ConfigError, PeerConfig, RangeConfig, check_count, check_password},
    connections::scope_of,
    peer::{Origin, Peer},
    status::{PeerState, RangeStatus, Refused},
};
use crate::{message::Notification, types::PeerId};

/// How long a peer that holds nothing is remembered.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How long a handshake is left alone while others wait for the place.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// How long a stranger may take to send its OPEN.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Range {
    pub(super) config: Arc<RangeConfig>,
    pub(super) peers: BTreeSet<PeerId>,
    pub(super) shutdown: bool,
    accepted: u64,
    refused: u64,
    last_refused: Option<Refused>,
}

impl Range {
    pub(super) fn new(config: RangeConfig) -> Self {
        Self {
            shutdown: config.peer.shutdown,
            config: Arc::new(config),
            peers: BTreeSet::new(),
            accepted: 0,
            refused: 0,
            last_refused: None,
        }
    }

    fn refuse(&mut self, now: Instant, address: IpAddr, why: &'static str) {
        self.refused += 1;
        self.last_refused = Some(Refused {
            address,
            at: now,
            why,
        });
    }
}

/// The configuration of a neighbour of a range.
pub(super) fn member(range: &RangeConfig, address: IpAddr, scope_id: u32) -> PeerConfig {
    let mut config = range.peer.clone();
    config.name = match scope_id {
        0 => format!("{}:{address}", range.peer.name),
        scope => format!("{}:{address}%{scope}", range.peer.name),
    };
    config.address = address;
    config.scope_id = scope_id;
    config.passive = true;
    config.timers.open_timeout = config.timers.open_timeout.min(OPEN_TIMEOUT);
    config
}

impl Speaker {
    /// A connection from an address that no peer has: the peer it becomes.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<PeerId> {
        let address = remote.ip();
        let name = self
            .ranges
            .values()
            .map(|range| &range.config)
            .filter(|config| config.range.contains(&address))
            .filter(|config| {
                config
                    .peer
                    .local_address
                    .is_none_or(|only| only == local.ip())
            })
            .max_by_key(|config| config.range.prefix_len())
            .map(|config| config.peer.name.clone())?;
        let range = self.ranges.get(&name)?;
        if range.shutdown {
            let why = "the range is shut down";
            self.ranges.get_mut(&name)?.refuse(now, address, why);
            return None;
        }
        if range.peers.len() >= range.config.limit {
            let Some(victim) = self.replaceable(now, &name) else {
                let why = "the limit of the range is reached";
                self.ranges.get_mut(&name)?.refuse(now, address, why);
                return None;
            };
            self.with_session(now, victim, |session, cx| session.abandon(cx));
            self.drop_peer(now, victim);
        }
        let range = self.ranges.get_mut(&name)?;
        let config = member(&range.config, address, scope_of(remote));
        if self.names.contains_key(&config.name) {
            range.refuse(now, address, "a configured peer has the name it would get");
            return None;
        }
        range.accepted += 1;
        let peer_id = self.insert_peer(now, config, Some(name.clone()));
        self.ranges.get_mut(&name)?.peers.insert(peer_id);
        Some(peer_id)
    }

    /// Who makes room for somebody new: the one that has been without a session for the longest.
    fn replaceable(&self, now: Instant, range: &str) -> Option<PeerId> {
        self.ranges
            .get(range)?
            .peers
            .iter()
            .filter_map(|id| Some((*id, self.peers.get(id)?)))
            .filter(|(_, peer)| {
                peer.session.is_idle()
                    || (peer.session.is_handshaking() && now >= peer.session.since() + HANDSHAKE)
            })
            .min_by_key(|(id, peer)| (!peer.session.is_idle(), peer.session.since(), *id))
            .map(|(id, _)| id)
    }

    /// Notes whether a peer of a range holds anything; it is forgotten a while after it did last.
    pub(super) fn note_idle(&mut self, now: Instant, peer_id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer_id)
            && let Some(origin) = &mut peer.origin
        {
            let idle = peer.session.is_idle();
            let earliest = peer.session.held_until().unwrap_or(now) + REMEMBERED;
            let known = origin.forget_at.filter(|at| *at > now);
            origin.forget_at = match (idle, peer.session.held_until(), known) {
                (false, _, _) => None,
                // Nothing but time has passed since.
                (true, None, Some(known)) => Some(known),
                (true, _, _) => Some(earliest),
            };
        }
    }

    /// Forgets a peer of a range whose time has come.
    pub(super) fn forget_if_due(&mut self, now: Instant, peer_id: PeerId) {
        let due = self
            .peers
            .get(&peer_id)
            .and_then(|peer| peer.origin.as_ref()?.forget_at)
            .is_some_and(|at| at <= now);
        if due {
            self.drop_peer(now, peer_id);
        }
    }

    /// Takes a peer out of all tables; its session has been closed before.
    pub(super) fn drop_peer(&mut self, now: Instant, peer_id: PeerId) -> Option<Peer> {
        let peer = self.peers.shift_remove(&peer_id)?;
        if let Some(deadline) = peer.scheduled {
            self.deadlines.remove(&(deadline, peer_id));
        }
        self.names.remove(&peer.config.name);
        self.addresses
            .remove(&(peer.config.address, peer.config.scope_id));
        self.connections.retain(|_, known| known.peer != peer_id);
        self.changed.remove(&peer_id);
        if let Some(Origin { range, .. }) = &peer.origin
            && let Some(range) = self.ranges.get_mut(range)
        {
            range.peers.remove(&peer_id);
        }
        if peer.reported {
            self.gone.push(peer.config.name.clone());
        }
        self.check_first_sync(now);
        Some(peer)
    }

    /// Takes neighbours from this range from now on.
    pub fn add_range(&mut self, now: Instant, range: RangeConfig) -> Result<(), ConfigError> {
        range.validate()?;
        let name = range.peer.name.clone();
        if self.names.contains_key(&name) || self.ranges.contains_key(&name) {
            return Err(ConfigError::DuplicateName(name));
        }
        self.check_range(&range)?;
        self.ranges.insert(name, Range::new(range));
        self.check_first_sync(now);
        Ok(())
    }

    /// Whether a new or changed range goes with the other ranges and the peers.
    pub(super) fn check_range(&self, range: &RangeConfig) -> Result<(), ConfigError> {
        let name = &range.peer.name;
        let others = || {
            self.ranges
                .values()
                .map(|other| &*other.config)
                .filter(|other| other.peer.name != *name)
        };
        if let Some(other) = others().find(|other| other.range == range.range) {
            return Err(ConfigError::DuplicateRange(name.clone(), other.range));
        }
        let configured = self.peers.values().filter(|peer| peer.origin.is_none());
        check_count(
            configured.clone().count(),
            others().chain(std::iter::once(range)),
        )?;
        check_password(&range.peer, range.range, others())?;
        for peer in configured {
            let prefix = IpNet::from(peer.config.address);
            check_password(&peer.config, prefix, std::iter::once(range))?;
        }
        others()
            .filter(|other| range.range.contains(&other.range))
            .try_for_each(|other| check_password(&other.peer, other.range, std::iter::once(range)))
    }

    pub(super) fn end_members(
        &mut self,
        now: Instant,
        members: &BTreeSet<PeerId>,
        notification: &Notification,
    ) {
        for peer_id in members {
            self.with_session(now, *peer_id, |session, cx| {
                session.stop(cx, notification.clone());
            });
            self.drop_peer(now, *peer_id);
        }
    }

    pub(super) fn range(&self, name: &str) -> Result<&Range, AdminError> {
        self.ranges
            .get(name)
            .ok_or_else(|| AdminError::UnknownPeer(name.to_owned()))
    }

    /// Every range, in the order of configuration.
    pub fn ranges(&self) -> Vec<RangeStatus> {
        let established = |id: &&PeerId| {
            self.peers
                .get(*id)
                .is_some_and(|peer| peer.session.peer_state() == PeerState::Established)
        };
        self.ranges
            .values()
            .map(|range| RangeStatus {
                name: range.config.peer.name.clone(),
                range: range.config.range,
                asn: range.config.peer.asn.clone(),
                limit: range.config.limit,
                peers: range.peers.len(),
                established: range.peers.iter().filter(established).count(),
                accepted: range.accepted,
                refused: range.refused,
                last_refused: range.last_refused.clone(),
                password: range.config.peer.password.is_some(),
                shutdown: range.shutdown,
            })
            .collect()
    }
}
