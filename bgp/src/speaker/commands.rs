//! What the program says to the speaker, and what it may look at.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;

use super::{
    AdminError, SoftReset, Speaker,
    config::{ConfigError, PeerConfig, RangeConfig, check_count, check_password},
    peer::Peer,
    status::{ForeignClaim, PeerStatus, Route, RoutePage, RouteQuery, RouteTable},
    sync::EndOfRib,
};
use crate::{
    attributes::Via,
    message::Notification,
    policy::Policy,
    rib::{self, Claim, Drain, LocalRoute, NextHopState, NotAdvertised, Rib, RouteView},
    types::{ConnectionId, Family, PeerId},
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
        if self.names.contains_key(&peer.name) || self.ranges.contains_key(&peer.name) {
            return Err(ConfigError::DuplicateName(peer.name));
        }
        let address = (peer.address, peer.scope_id);
        self.give_way(now, address);
        if self.addresses.contains_key(&address) {
            return Err(ConfigError::DuplicateAddress(peer.name, peer.address));
        }
        check_password(&peer, peer.address.into(), self.range_configs())?;
        check_count(self.peers.len() + 1, self.range_configs())?;
        Ok(self.insert_peer(now, peer, None))
    }

    /// Closes the session with Cease 6/3 and forgets the neighbour. Returns its configuration. One
    /// that came from a range may come again.
    pub fn remove_peer(&mut self, now: Instant, name: &str) -> Result<Arc<PeerConfig>, AdminError> {
        let peer_id = self.find(name)?;
        self.with_session(now, peer_id, |session, cx| {
            session.stop(cx, Notification::peer_deconfigured());
        });
        self.drop_peer(now, peer_id)
            .map(|peer| peer.config)
            .ok_or_else(|| AdminError::UnknownPeer(name.to_owned()))
    }

    /// Takes nobody from a range any more, and closes the sessions it has with Cease 6/3. Returns
    /// its configuration.
    pub fn remove_range(
        &mut self,
        now: Instant,
        name: &str,
    ) -> Result<Arc<RangeConfig>, AdminError> {
        let range = self
            .ranges
            .shift_remove(name)
            .ok_or_else(|| AdminError::UnknownPeer(name.to_owned()))?;
        self.end_members(now, &range.peers, &Notification::peer_deconfigured());
        self.check_first_sync(now);
        Ok(range.config)
    }

    /// What is known of the configuration of a neighbour.
    pub fn peer_config(&self, name: &str) -> Option<Arc<PeerConfig>> {
        let peer = self.peers.get(self.names.get(name)?)?;
        Some(Arc::clone(&peer.config))
    }

    /// What is known of the configuration of a range.
    pub fn range_config(&self, name: &str) -> Option<Arc<RangeConfig>> {
        Some(Arc::clone(&self.ranges.get(name)?.config))
    }

    /// The connections of a neighbour, or of all neighbours of a range, each with the address of
    /// its neighbour.
    pub fn connections_of(&self, name: &str) -> Vec<(ConnectionId, Arc<PeerConfig>)> {
        let peers = self.targets(name).unwrap_or_default();
        self.connections
            .iter()
            .filter(|(_, known)| peers.contains(&known.peer))
            .filter_map(|(id, known)| Some((*id, Arc::clone(&self.peers.get(&known.peer)?.config))))
            .collect()
    }

    /// A neighbour, or all neighbours of a range.
    fn targets(&self, name: &str) -> Result<Vec<PeerId>, AdminError> {
        match self.ranges.get(name) {
            Some(range) => Ok(range.peers.iter().copied().collect()),
            None => Ok(vec![self.find(name)?]),
        }
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

    /// Closes the session with Cease 6/4 and starts it again; of a range all sessions.
    pub fn reset_hard(&mut self, now: Instant, name: &str) -> Result<(), AdminError> {
        for peer_id in self.targets(name)? {
            self.with_session(now, peer_id, |session, cx| {
                session.reset(cx, Notification::administrative_reset(""));
            });
        }
        Ok(())
    }

    /// Asks the peer for its routes again (RFC 2918), and sends it ours again, as `directions`
    /// say. False when it, or of a range one of them, could not be asked: it has no session, or
    /// does not know how.
    pub fn reset_soft(
        &mut self,
        now: Instant,
        name: &str,
        directions: SoftReset,
    ) -> Result<bool, AdminError> {
        let mut all = true;
        for peer_id in self.targets(name)? {
            if directions.receive {
                all &= self
                    .with_session(now, peer_id, |session, cx| session.request_routes(cx))
                    .unwrap_or(false);
            }
            if directions.send {
                for family in Family::ALL {
                    self.rib.refresh(peer_id, family);
                }
            }
        }
        Ok(all)
    }

    /// Closes the session with Cease 6/2 and this text (RFC 9003) until it is enabled. Of a range
    /// all sessions, and nobody else is taken.
    pub fn shutdown_peer(
        &mut self,
        now: Instant,
        name: &str,
        text: &str,
    ) -> Result<(), AdminError> {
        let notification = Notification::administrative_shutdown(text);
        if let Some(range) = self.ranges.get_mut(name) {
            range.shutdown = true;
            let members = std::mem::take(&mut range.peers);
            self.end_members(now, &members, &notification);
        } else {
            let peer_id = self.find(name)?;
            self.with_session(now, peer_id, |session, cx| session.stop(cx, notification));
        }
        self.check_first_sync(now);
        Ok(())
    }

    /// Starts the session of a peer that is in Idle, also one that is held after an error; opens a
    /// range that was shut down.
    pub fn enable_peer(&mut self, now: Instant, name: &str) -> Result<(), AdminError> {
        if let Some(range) = self.ranges.get_mut(name) {
            range.shutdown = false;
        }
        for peer_id in self.targets(name)? {
            self.with_session(now, peer_id, |session, cx| session.start(cx));
        }
        Ok(())
    }

    /// Takes this speaker out of the network, or back in. Sessions stay.
    pub fn set_drain(&mut self, drain: Drain) {
        self.config.drain = drain;
        self.rib.set_drain(drain);
    }

    /// This node has other addresses: the next hops of the family that a session is not over. Sessions
    /// stay; who was told another address is told the new one.
    pub fn set_next_hop_self(&mut self, own: [Option<IpAddr>; 2]) {
        self.config.next_hop_self = own;
        for (id, peer) in &self.peers {
            let known = self.connections.values().find(|known| known.peer == *id);
            let Some(known) = known else { continue };
            if let Some(own) = peer.next_hop_self(&self.config, known.local, known.link) {
                self.rib.set_next_hop_self(*id, own);
            }
        }
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
        RoutePage {
            routes: page
                .routes
                .into_iter()
                .map(|view| self.route(view))
                .collect(),
            next: page.next,
        }
    }

    /// What peers sent of the prefixes that cover the address, with what became of it; the longest
    /// first, and at most so many prefixes.
    pub fn received_covering(&self, address: IpAddr, limit: usize) -> Vec<Route> {
        let views = self.rib.received_covering(address, limit);
        views.into_iter().map(|view| self.route(view)).collect()
    }

    fn name(&self, peer: PeerId) -> String {
        self.peers
            .get(&peer)
            .map_or_else(String::new, |peer| peer.config.name.clone())
    }

    /// What this speaker originates and owns.
    pub fn originated(&self) -> Vec<IpNet> {
        self.rib.originated()
    }

    /// Who else announces what this speaker originates, or parts of it.
    pub fn claims(&self) -> Vec<ForeignClaim> {
        let claims = self.rib.claims();
        claims.into_iter().map(|claim| self.claim(claim)).collect()
    }

    /// The claims, when there are others than at the last time.
    pub fn poll_claims(&mut self) -> Option<Vec<ForeignClaim>> {
        let claims = self.rib.poll_claims()?;
        let claims: Vec<_> = claims.into_iter().map(|claim| self.claim(claim)).collect();
        if self.told_claims == claims {
            return None;
        }
        self.told_claims.clone_from(&claims);
        Some(claims)
    }

    fn claim(&self, claim: Claim) -> ForeignClaim {
        ForeignClaim {
            block: claim.block,
            prefix: claim.prefix,
            peer: self.name(claim.peer),
            originator: claim.originator,
            origin_as: claim.origin_as,
        }
    }

    fn route(&self, view: RouteView) -> Route {
        Route {
            prefix: view.prefix,
            path_id: view.path_id,
            peer: view.peer.map(|peer| self.name(peer)),
            attributes: view.attributes,
            best: view.best,
            stale: view.stale,
            reason: view.reason,
            received_at: view.received,
            discarded: view.discarded,
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
