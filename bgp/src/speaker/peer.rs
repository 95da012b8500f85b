//! One neighbour inside the speaker: its configuration beside its session.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use super::{
    config::{PeerConfig, SpeakerConfig},
    link::{self, Link},
    status::{FamilyStatus, LastFault, PeerNews, PeerState, PeerStatus},
};
use crate::{
    attributes::NextHop,
    message::{Disposition, Fault, Negotiated},
    rib::{PeerKind, PeerRib, Rib},
    session::{Session, Settings, Up},
    types::{Asn, Family, PeerId},
};

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) config: Arc<PeerConfig>,
    pub(super) session: Session,
    /// Its entry in the set of deadlines.
    pub(super) scheduled: Option<Instant>,
    /// It is in the queue of peers to be sent UPDATEs.
    pub(super) queued: bool,
    /// `None`: it is configured by itself.
    pub(super) origin: Option<Origin>,
    /// The program has heard of it, so it must hear of its end.
    pub(super) reported: bool,
    last_fault: Option<LastFault>,
}

/// Of a peer that came from a range.
#[derive(Debug)]
pub(super) struct Origin {
    /// Name of the range.
    pub(super) range: String,
    /// Set while it holds nothing.
    pub(super) forget_at: Option<Instant>,
}

impl Peer {
    pub(super) fn new(config: PeerConfig, session: Session, origin: Option<Origin>) -> Self {
        Self {
            config: Arc::new(config),
            session,
            scheduled: None,
            queued: false,
            origin,
            reported: false,
            last_fault: None,
        }
    }

    pub(super) fn count_faults(&mut self, now: Instant, faults: &[Fault]) {
        let count = |disposition| {
            faults
                .iter()
                .filter(|fault| fault.disposition == disposition)
                .count() as u64
        };
        // One UPDATE is treated as withdrawn once, whatever is wrong with it.
        self.session.counters.treat_as_withdraw += count(Disposition::TreatAsWithdraw).min(1);
        self.session.counters.attributes_discarded += count(Disposition::AttributeDiscard);
        self.session.counters.faults_ignored += count(Disposition::Ignored);
        // The gravest, and of several the first.
        let worst = faults.iter().rev().max_by_key(|fault| fault.disposition);
        if let Some(fault) = worst {
            self.last_fault = Some(LastFault {
                fault: fault.clone(),
                at: now,
            });
        }
    }

    pub(super) fn status(&self, id: PeerId, local: Option<SocketAddr>, rib: &Rib) -> PeerStatus {
        let agreement = self.session.agreement();
        let (received, sent) = self.session.end_of_ribs();
        let families = Family::ALL
            .into_iter()
            .filter(|family| self.config.families.contains(family))
            .map(|family| {
                let counts = rib.counts(id, family);
                FamilyStatus {
                    family,
                    negotiated: agreement
                        .as_ref()
                        .is_some_and(|agreement| agreement.negotiated.families[family.index()]),
                    received: u64::from(counts.received),
                    accepted: u64::from(counts.accepted),
                    advertised: u64::from(counts.advertised),
                    stale: u64::from(counts.stale),
                    end_of_rib_received: received[family.index()],
                    end_of_rib_sent: sent[family.index()],
                }
            })
            .collect();
        PeerStatus {
            id,
            name: self.config.name.clone(),
            address: self.config.address,
            port: self.config.port,
            asn: agreement
                .as_ref()
                .map(|agreement| agreement.remote.asn)
                .or(self.config.asn.exact()),
            local_asn: self.session.settings().local_asn,
            range: self.origin.as_ref().map(|origin| origin.range.clone()),
            state: self.session.peer_state(),
            since: self.session.since(),
            reason: self.session.reason(),
            passive: self.config.passive,
            route_reflector_client: self.config.route_reflector_client,
            remote_router_id: agreement
                .as_ref()
                .map(|agreement| agreement.remote.router_id),
            local_address: local
                .map(|address| address.ip())
                .or(self.config.local_address),
            hold_time: agreement.as_ref().map(|agreement| agreement.hold_time),
            keepalive_interval: agreement
                .as_ref()
                .map(|agreement| agreement.keepalive_interval),
            capabilities_sent: agreement
                .as_ref()
                .map_or_else(Vec::new, |agreement| agreement.sent.to_vec()),
            capabilities_received: agreement
                .as_ref()
                .map_or_else(Vec::new, |agreement| agreement.remote.capabilities.clone()),
            families,
            counters: self.session.counters,
            last_notification_sent: self.session.last_sent().cloned(),
            last_notification_received: self.session.last_received().cloned(),
            last_fault: self.last_fault.clone(),
            next_connect_at: self.session.next_connect_at(),
            timers: self.session.timers(),
            configured_hold_time: self.config.timers.hold_time,
            password: self.config.password.is_some(),
            ttl_security: self.config.ttl_security,
            max_prefixes: self.config.max_prefixes,
            import: self.config.import.name().to_owned(),
            blackhole: self.config.import.honours_blackhole(),
            export: self.config.export.name().to_owned(),
            news: PeerNews::default(),
        }
    }
}

/// What a session must know of the configuration.
pub(super) fn settings(
    speaker: &SpeakerConfig,
    peer: &PeerConfig,
    restarting: bool,
    of_range: bool,
) -> Settings {
    Settings {
        local_asn: peer.local_as.unwrap_or(speaker.asn),
        router_id: speaker.router_id,
        remote_asn: peer.asn.clone(),
        families: peer.family_flags(),
        passive: peer.passive,
        refuse_while_held: of_range,
        timers: peer.timers,
        graceful_restart: peer.graceful_restart,
        assume_forwarding: peer.assume_forwarding,
        long_lived: peer.long_lived,
        add_path_receive: peer.add_path_receive,
        add_path_send: peer.add_path_send > 0,
        extended_next_hop: peer.offers_extended_next_hop(),
        role: peer.role,
        restarting: speaker
            .restarting
            .filter(|_| restarting)
            .map(|restarting| restarting.forwarding_preserved),
    }
}

fn kind(speaker: &SpeakerConfig, peer: &PeerConfig, remote: Asn) -> PeerKind {
    if remote == speaker.asn && peer.local_as.is_none() {
        PeerKind::Internal
    } else {
        PeerKind::External
    }
}

/// A peer that is on the link by configuration as well: neither side expects hops in between.
fn direct(peer: &PeerConfig, link: Option<Link>) -> Option<Link> {
    link.filter(|_| peer.multihop.is_none())
}

fn own_next_hops(
    speaker: &SpeakerConfig,
    peer: &PeerConfig,
    local: Option<SocketAddr>,
    link: Option<Link>,
    kind: PeerKind,
    negotiated: &Negotiated,
) -> [Option<NextHop>; 2] {
    link::next_hop_self(
        speaker.next_hop_self,
        local.map(|local| local.ip()),
        direct(peer, link),
        kind,
        negotiated.extended_next_hop,
    )
}

impl Peer {
    /// Our own addresses as next hops of its Established session; `None`: it has none.
    pub(super) fn next_hop_self(
        &self,
        speaker: &SpeakerConfig,
        local: Option<SocketAddr>,
        link: Option<Link>,
    ) -> Option<[Option<NextHop>; 2]> {
        if self.session.peer_state() != PeerState::Established {
            return None;
        }
        let agreement = self.session.agreement()?;
        let kind = kind(speaker, &self.config, agreement.remote.asn);
        let negotiated = agreement.negotiated;
        Some(own_next_hops(
            speaker,
            &self.config,
            local,
            link,
            kind,
            negotiated,
        ))
    }
}

/// What the RIB must know of an Established session.
pub(super) fn rib_session(
    speaker: &SpeakerConfig,
    peer: &PeerConfig,
    local: Option<SocketAddr>,
    link: Option<Link>,
    up: Up,
) -> PeerRib {
    let kind = kind(speaker, peer, up.remote.asn);
    PeerRib {
        next_hop_self: own_next_hops(speaker, peer, local, link, kind, &up.negotiated),
        interface: direct(peer, link).map_or(0, |link| link.interface),
        add_path_send: peer.add_path_send,
        rr_client: peer.route_reflector_client,
        always_next_hop_self: peer.next_hop_self,
        role: peer.role,
        import: Arc::clone(&peer.import),
        export: Arc::clone(&peer.export),
        max_prefixes: [peer.max_prefixes; 2],
        warn_prefixes: [peer.warn_prefixes; 2],
        local_as: peer.local_as,
        allow_own_as: peer.allow_own_as,
        remove_private_as: peer.remove_private_as,
        ..PeerRib::new(
            kind,
            up.remote.asn,
            up.remote.router_id,
            peer.address,
            // Overwritten above; it only has to be of some family.
            local.map_or(peer.address, |local| local.ip()),
            up.negotiated,
        )
    }
}
