//! The speaker: sessions, RIB and configuration as one machine without IO.
//!
//! Whoever drives it owns the sockets and the clock. Events go in with the time
//! (`handle_*`), and after each the driver takes what is to be done out of [`Speaker::poll_output`]
//! until it is empty, and calls [`Speaker::handle_timeout`] at [`Speaker::poll_timeout`]. Changes
//! of the Loc-RIB wait, coalesced by prefix, until they are asked for.
//!
//! Rules for a driver:
//!
//! * A connection reads up to and including the OPEN, then waits for [`Output::Negotiated`] before
//!   it decodes anything further, because only then the parameters of the codec are known.
//! * After [`Output::Send`] it reports [`Speaker::handle_writable`] once everything sent so far was
//!   taken by the transport. UPDATEs are made only then, so a slow peer holds no memory.
//! * After [`Output::Close`] it writes what is left, closes, and says nothing more about it.

mod commands;
pub mod config;
mod connections;
mod events;
mod link;
mod live;
mod outputs;
mod peer;
mod ranges;
pub mod status;
mod sync;
#[cfg(test)]
mod tests;

pub use link::Link;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use indexmap::IndexMap;

use self::{
    config::{ConfigError, PeerConfig, SpeakerConfig},
    peer::{Origin, Peer},
    ranges::Range,
    sync::{EndOfRib, FirstSync},
};
pub use live::Applied;

use crate::{
    attributes::Via,
    message::Negotiated,
    rib::{Rib, RibConfig},
    session::{Action, ConnectionIds, Session},
    types::{ConnectionId, PeerId},
};

/// Why an administrative command was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("there is no BGP peer named {0:?}")]
    UnknownPeer(String),
    #[error("peer {0:?} came from a range; the range is what can be changed")]
    OfRange(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot set the TCP MD5 password for peer {peer:?} on a listening socket: {reason}")]
    Password { peer: String, reason: String },
    #[error(
        "peer {0:?} cannot be asked for its routes: it has no session, or did not announce route \
         refresh (RFC 2918)"
    )]
    NoRefresh(String),
    #[error("the BGP speaker has stopped")]
    Stopped,
}

/// In which directions routes are exchanged anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftReset {
    /// Ask the peer for its routes (RFC 2918).
    pub receive: bool,
    /// Send it ours.
    pub send: bool,
}

impl SoftReset {
    pub const BOTH: SoftReset = SoftReset {
        receive: true,
        send: true,
    };
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// A dial succeeded; with the address we have on it.
    Connected { local: SocketAddr },
    /// A dial failed, or the connection is gone; for a person.
    Closed { reason: String },
}

/// What the driver is to do, in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Open a connection to the peer, as its configuration says.
    Dial {
        connection: ConnectionId,
        peer: Arc<PeerConfig>,
    },
    /// Write these octets: whole messages.
    Send {
        connection: ConnectionId,
        octets: Vec<u8>,
    },
    /// The OPEN was accepted: go on reading, with these parameters.
    Negotiated {
        connection: ConnectionId,
        negotiated: Arc<Negotiated>,
    },
    /// Write what is left, then close. A dial under way is given up.
    Close { connection: ConnectionId },
}

/// See the head of the module.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    rib: Rib,
    peers: IndexMap<PeerId, Peer>,
    /// Where other neighbours may come from, by name.
    ranges: IndexMap<String, Range>,
    names: HashMap<String, PeerId>,
    addresses: HashMap<(IpAddr, u32), PeerId>,
    connections: HashMap<ConnectionId, Connection>,
    connection_ids: ConnectionIds,
    next_peer: u32,
    rng: fastrand::Rng,
    outputs: VecDeque<Output>,
    /// Scratch of `with_session`.
    actions: Vec<Action>,
    /// At most one entry for each peer, never later than its deadline.
    deadlines: BTreeSet<(Instant, PeerId)>,
    /// Peers that may have something to be sent; each at most once.
    pullable: VecDeque<PeerId>,
    changed: BTreeSet<PeerId>,
    /// Names of peers that were removed or forgotten, to be reported.
    gone: Vec<String>,
    first_sync: FirstSync,
    end_of_rib: EndOfRib,
    /// Watched next hops of which nothing was said yet.
    unanswered: HashSet<Via>,
    /// As last reported.
    told_claims: Vec<status::ForeignClaim>,
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    /// Unknown while it is being dialled.
    local: Option<SocketAddr>,
    /// The link that both ends are on, as far as the driver has said.
    link: Option<Link>,
}

impl Speaker {
    /// Starts the sessions of all peers that are not shut down.
    pub fn new(now: Instant, config: SpeakerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let rib = Rib::new(
            RibConfig {
                cluster_id: config.cluster_id,
                multipath: config.multipath,
                // Until `originations_synced`.
                hold_end_of_rib: true,
                ..RibConfig::new(config.asn, config.router_id)
            },
            now,
        );
        let mut speaker = Self {
            rib,
            peers: IndexMap::new(),
            ranges: IndexMap::new(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            connections: HashMap::new(),
            connection_ids: ConnectionIds::default(),
            next_peer: 0,
            rng: fastrand::Rng::with_seed(config.seed),
            outputs: VecDeque::new(),
            actions: Vec::new(),
            deadlines: BTreeSet::new(),
            pullable: VecDeque::new(),
            changed: BTreeSet::new(),
            gone: Vec::new(),
            end_of_rib: EndOfRib::Held,
            unanswered: HashSet::new(),
            told_claims: Vec::new(),
            first_sync: FirstSync::Waiting {
                deadline: now + config.first_sync_timeout,
                checked_at: now,
            },
            config,
        };
        speaker.rib.set_drain(speaker.config.drain);
        for (prefix, route) in std::mem::take(&mut speaker.config.originate) {
            speaker.rib.originate(now, prefix, route);
        }
        for peer in std::mem::take(&mut speaker.config.peers) {
            speaker.insert_peer(now, peer, None);
        }
        for range in std::mem::take(&mut speaker.config.ranges) {
            speaker
                .ranges
                .insert(range.peer.name.clone(), Range::new(range));
        }
        speaker.check_first_sync(now);
        Ok(speaker)
    }

    pub(super) fn find(&self, name: &str) -> Result<PeerId, AdminError> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| AdminError::UnknownPeer(name.to_owned()))
    }

    /// `range`: the one it came from.
    pub(super) fn insert_peer(
        &mut self,
        now: Instant,
        config: PeerConfig,
        range: Option<String>,
    ) -> PeerId {
        let peer_id = PeerId(self.next_peer);
        self.next_peer += 1;
        self.names.insert(config.name.clone(), peer_id);
        self.addresses
            .insert((config.address, config.scope_id), peer_id);
        let settings = peer::settings(
            &self.config,
            &config,
            matches!(self.first_sync, FirstSync::Waiting { .. }),
            range.is_some(),
        );
        let start = !config.shutdown;
        let session = Session::new(now, settings, self.rng.u64(..));
        let origin = range.map(|range| Origin {
            range,
            forget_at: None,
        });
        self.peers
            .insert(peer_id, Peer::new(config, session, origin));
        if start {
            self.with_session(now, peer_id, |session, cx| session.start(cx));
        }
        peer_id
    }
}
