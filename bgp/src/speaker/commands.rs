//! What the program says to the speaker, and what it may look at.

use std::{sync::Arc, time::Instant};

use ipnet::IpNet;

use super::{
    AdminError, Speaker,
    config::{ConfigError, PeerConfig},
    peer::Peer,
    status::{PeerStatus, Route, RoutePage, RouteQuery, RouteTable},
    sync::EndOfRib,
};
use crate::{
    attributes::Via,
    message::Notification,
    policy::Policy,
    rib::{self, LocalRoute, NextHopState, NotAdvertised, Rib},
    types::{Family, PeerId},
};

impl Speaker {
    /// Originates a prefix, or changes how it is originated.
    pub fn originate(&mut self, now: Instant, prefix: IpNet, route: LocalRoute) {
        self.rib.originate(now, prefix, route);
    }

    /// Stops originating a prefix.
    pub fn withdraw(&mut self, prefix: IpNet) {
        self.rib.withdraw_originated(prefix);
    }

    /// What is originated is complete: peers are sent their End-of-RIB from now on. A restarted
    /// route reflector first waits for the tables of its peers, because they keep what it passed on
    /// only until its marker (RFC 4724 §4.1); a leaf passes on nothing and waits for nobody.
    pub fn originations_synced(&mut self, now: Instant) {
        if self.end_of_rib == EndOfRib::Held {
            self.end_of_rib = EndOfRib::WaitingForPeers;
            if self.config.restarting.is_none() || self.config.cluster_id.is_none() {
                self.release_end_of_rib();
            }
            self.check_first_sync(now);
        }
    }

    pub(super) fn release_end_of_rib(&mut self) {
        self.end_of_rib = EndOfRib::Released;
        self.rib.release_end_of_rib();
    }

    /// What is known of a next hop that was asked for.
    pub fn set_next_hop(&mut self, via: impl Into<Via>, state: NextHopState) {
        let via = via.into();
        self.unanswered.remove(&via);
        self.rib.set_next_hop(via, state);
    }

    /// Adds a neighbour and starts its session.
    pub fn add_peer(&mut self, now: Instant, peer: PeerConfig) -> Result<PeerId, ConfigError> {
        peer.validate()?;
        if self.names.contains_key(&peer.name) {
            return Err(ConfigError::DuplicateName(peer.name));
        }
        if self.addresses.contains_key(&(peer.address, peer.scope_id)) {
            return Err(ConfigError::DuplicateAddress(peer.name, peer.address));
        }
        Ok(self.insert_peer(now, peer))
    }

    /// Closes the session with Cease 6/3 and forgets the neighbour. Returns its configuration.
    pub fn remove_peer(&mut self, now: Instant, name: &str) -> Result<Arc<PeerConfig>, AdminError> {
        let peer_id = self.find(name)?;
        self.with_session(now, peer_id, |session, cx| {
            session.stop(cx, Notification::peer_deconfigured());
        });
        let peer = self
            .peers
            .shift_remove(&peer_id)
            .ok_or_else(|| AdminError::UnknownPeer(name.to_owned()))?;
        if let Some(deadline) = peer.scheduled {
            self.deadlines.remove(&(deadline, peer_id));
        }
        self.names.remove(name);
        self.addresses
            .remove(&(peer.config.address, peer.config.scope_id));
        self.connections.retain(|_, known| known.peer != peer_id);
        self.changed.remove(&peer_id);
        self.check_first_sync(now);
        Ok(peer.config)
    }

    /// Decides anew, with these policies, on everything the peer sent and is sent. The session
    /// stays, and nothing needs to be asked for again: what the peer sent is kept as it came.
    pub fn set_policies(
        &mut self,
        name: &str,
        import: Arc<Policy>,
        export: Arc<Policy>,
    ) -> Result<(), AdminError> {
        let peer_id = self.find(name)?;
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            let config = Arc::make_mut(&mut peer.config);
            config.import = Arc::clone(&import);
            config.export = Arc::clone(&export);
        }
        self.rib.set_import(peer_id, import);
        self.rib.set_export(peer_id, export);
        Ok(())
    }

    /// Closes the session with Cease 6/4 and starts it again.
    pub fn reset_hard(&mut self, now: Instant, name: &str) -> Result<(), AdminError> {
        let peer_id = self.find(name)?;
        self.with_session(now, peer_id, |session, cx| {
            session.reset(cx, Notification::administrative_reset(""));
        });
        Ok(())
    }

    /// Asks the peer for its routes again, and sends it ours again (RFC 2918).
    pub fn reset_soft(&mut self, now: Instant, name: &str) -> Result<(), AdminError> {
        let peer_id = self.find(name)?;
        self.with_session(now, peer_id, |session, cx| session.request_routes(cx));
        for family in Family::ALL {
            self.rib.refresh(peer_id, family);
        }
        Ok(())
    }

    /// Closes the session with Cease 6/2 and this text (RFC 9003) until it is enabled.
    pub fn shutdown_peer(
        &mut self,
        now: Instant,
        name: &str,
        text: &str,
    ) -> Result<(), AdminError> {
        let peer_id = self.find(name)?;
        self.with_session(now, peer_id, |session, cx| {
            session.stop(cx, Notification::administrative_shutdown(text));
        });
        self.check_first_sync(now);
        Ok(())
    }

    /// Starts the session of a peer that is in Idle, also one that is held after an error.
    pub fn enable_peer(&mut self, now: Instant, name: &str) -> Result<(), AdminError> {
        let peer_id = self.find(name)?;
        self.with_session(now, peer_id, |session, cx| session.start(cx));
        Ok(())
    }

    /// Ends all sessions. A peer that would keep our routes over a restart is just left
    /// (RFC 4724 §4); the others get Cease 6/2 with the text.
    pub fn shutdown(&mut self, now: Instant, text: &str) {
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer_id in peers {
            self.with_session(now, peer_id, |session, cx| {
                if session.peer_keeps_routes() {
                    session.abandon(cx);
                } else {
                    session.stop(cx, Notification::administrative_shutdown(text));
                }
            });
        }
    }
}

/// Views.
impl Speaker {
    /// Every configured peer, in the order of configuration.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.peers
            .iter()
            .map(|(id, peer)| self.status_of(*id, peer))
            .collect()
    }

    /// One peer; `None` when it was removed.
    pub fn peer(&self, peer_id: PeerId) -> Option<PeerStatus> {
        let peer = self.peers.get(&peer_id)?;
        Some(self.status_of(peer_id, peer))
    }

    /// One page of a table; an unknown peer has no routes.
    pub fn routes(&self, query: &RouteQuery) -> RoutePage {
        let peer = match &query.peer {
            None => None,
            Some(name) => match self.names.get(name) {
                None => return RoutePage::default(),
                known => known.copied(),
            },
        };
        let table = match (query.table, peer) {
            (RouteTable::LocRib, _) => rib::Table::LocRib,
            (RouteTable::AdjRibIn, peer) => rib::Table::AdjRibIn(peer),
            (RouteTable::AdjRibOut, Some(peer)) => rib::Table::AdjRibOut(peer),
            (RouteTable::AdjRibOut, None) => return RoutePage::default(),
        };
        let page = self.rib.routes(&rib::RouteQuery {
            table,
            prefix: query.prefix,
            after: query.after,
            limit: query.limit,
        });
        let name = |peer: PeerId| {
            self.peers
                .get(&peer)
                .map_or_else(String::new, |peer| peer.config.name.clone())
        };
        RoutePage {
            routes: page
                .routes
                .into_iter()
                .map(|view| Route {
                    prefix: view.prefix,
                    path_id: view.path_id,
                    peer: view.peer.map(name),
                    attributes: view.attributes,
                    best: view.best,
                    stale: view.stale,
                    reason: view.reason,
                    received_at: view.received,
                })
                .collect(),
            next: page.next,
        }
    }

    /// The policy and rule that let a prefix out to a peer, or why the peer does not get it. An
    /// unknown peer has no session.
    pub fn advertised(&self, peer: &str, prefix: IpNet) -> Result<String, NotAdvertised> {
        match self.names.get(peer) {
            Some(peer) => self.rib.advertised(*peer, prefix),
            None => Err(NotAdvertised::NotEstablished),
        }
    }

    /// The tables, for reading.
    pub fn rib(&self) -> &Rib {
        &self.rib
    }

    fn status_of(&self, id: PeerId, peer: &Peer) -> PeerStatus {
        let local = self
            .connections
            .values()
            .filter(|known| known.peer == id)
            .find_map(|known| known.local);
        peer.status(id, local, &self.rib)
    }
}
