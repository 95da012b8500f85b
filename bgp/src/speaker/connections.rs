//! Connections: who may connect, what became of dials, and what comes in over them.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    sync::Arc,
    time::Instant,
};

use super::{Connection, ConnectionEvent, Speaker, config::PeerConfig, link::Link};
use crate::{
    message::{Message, Notification, RouteRefresh},
    session::Received,
    types::{ConnectionId, Family, PeerId},
};

impl Speaker {
    /// Somebody has connected. `None` refuses: no such peer, or its session takes none now.
    pub fn handle_accepted(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<(ConnectionId, Arc<PeerConfig>)> {
        let known = self
            .addresses
            .get(&(remote.ip(), scope_of(remote)))
            .or_else(|| self.addresses.get(&(remote.ip(), 0)));
        let peer_id = match known {
            Some(peer_id) => *peer_id,
            None => self.admit(now, local, remote)?,
        };
        let config = Arc::clone(&self.peers.get(&peer_id)?.config);
        if config
            .local_address
            .is_some_and(|address| address != local.ip())
        {
            return None;
        }
        let connection = self.connection_ids.next();
        self.connections.insert(
            connection,
            Connection {
                peer: peer_id,
                local: Some(local),
                link: None,
            },
        );
        let accepted =
            self.with_session(now, peer_id, |session, cx| session.accepted(cx, connection));
        if accepted != Some(true) {
            self.connections.remove(&connection);
            return None;
        }
        Some((connection, config))
    }

    /// A dial ended, or a connection is gone.
    pub fn handle_connection(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        event: ConnectionEvent,
    ) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let peer = known.peer;
        match event {
            ConnectionEvent::Connected { local } => {
                known.local = Some(local);
                self.with_session(now, peer, |session, cx| session.connected(cx, connection));
            }
            ConnectionEvent::Closed { reason } => {
                self.with_session(now, peer, |session, cx| {
                    session.closed(cx, connection, reason);
                });
                self.connections.remove(&connection);
            }
        }
    }

    /// Our address on a connection and that of the peer, for [`set_link`](Self::set_link).
    pub fn endpoints(&self, connection: ConnectionId) -> Option<(SocketAddr, SocketAddr)> {
        let known = self.connections.get(&connection)?;
        let peer = &self.peers.get(&known.peer)?.config;
        let remote = match peer.address {
            IpAddr::V4(address) => SocketAddr::from((address, peer.port)),
            IpAddr::V6(address) => SocketAddrV6::new(address, peer.port, 0, peer.scope_id).into(),
        };
        Some((known.local?, remote))
    }

    /// Both ends of the connection are on this link. To be said, if at all, between
    /// [`Output::Negotiated`](super::Output::Negotiated) and the message after the OPEN.
    pub fn set_link(&mut self, connection: ConnectionId, link: Link) {
        if let Some(known) = self.connections.get_mut(&connection) {
            known.link = Some(link);
        }
    }

    /// A decoded message, or what is wrong with the octets received.
    pub fn handle_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Result<Message, Notification>,
    ) {
        let Some(peer_id) = self.connections.get(&connection).map(|known| known.peer) else {
            return;
        };
        let received = self.with_session(now, peer_id, |session, cx| {
            session.message(cx, connection, message)
        });
        match received {
            None | Some(Received::Nothing) => {}
            Some(Received::RouteRefresh(RouteRefresh { afi, safi, .. })) => {
                if let Some(family) = Family::from_afi_safi(afi, safi) {
                    self.rib.refresh(peer_id, family);
                }
            }
            Some(Received::Update(update)) => {
                if let Some(peer) = self.peers.get_mut(&peer_id) {
                    peer.count_faults(now, &update.faults);
                }
                if let Err(limit) = self.rib.update(now, peer_id, &update) {
                    self.too_many_prefixes(now, peer_id, limit.family, limit.limit);
                }
                if update.end_of_rib.is_some() {
                    self.check_first_sync(now);
                }
            }
        }
    }

    /// RFC 4486 §4
    pub(super) fn too_many_prefixes(
        &mut self,
        now: Instant,
        peer_id: PeerId,
        family: Family,
        limit: u32,
    ) {
        let error = Notification::maximum_prefixes(family, limit);
        let rest = self
            .peers
            .get(&peer_id)
            .and_then(|peer| peer.config.max_prefixes_restart);
        self.with_session(now, peer_id, |session, cx| {
            session.fail(cx, error);
            if let Some(rest) = rest {
                session.rest(cx, rest);
            }
        });
    }

    /// Everything sent on the connection so far was taken by the transport.
    pub fn handle_writable(&mut self, connection: ConnectionId) {
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let peer_id = known.peer;
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.session.writable(connection);
            self.queue_pull(peer_id);
        }
    }

    /// Octets that went over a connection since the last report; for the counters.
    pub fn count_octets(&mut self, connection: ConnectionId, received: u64, sent: u64) {
        if let Some(known) = self.connections.get(&connection)
            && let Some(peer) = self.peers.get_mut(&known.peer)
        {
            peer.session.counters.bytes_received += received;
            peer.session.counters.bytes_sent += sent;
        }
    }
}

/// Only link-local addresses need the interface to be told apart.
pub(super) fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}
