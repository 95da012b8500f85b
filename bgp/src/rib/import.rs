//! What happens to a received path before it may compete: loop checks, roles, policy.
//!
//! The checks depend on attributes and peer only and are made once for all prefixes of an UPDATE
//! that share attributes; policy is asked for each prefix.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{
    interned::NO_ATTRIBUTES,
    shared::Shared,
    table::Verdict,
    types::{Ineligible, PeerKind, PeerRib, Role},
};
use crate::{
    attributes::{Attributes, NextHop, well_known},
    policy::{self, Policy, RouteFacts, Source},
    types::Asn,
};

/// How a received prefix lies to the prefixes that are originated here and owned with all that is
/// inside of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    No,
    /// It is one of them.
    Equal,
    /// It lies inside of one.
    Inside,
}

impl Within {
    /// `owner`: the widest of them that it equals or lies inside.
    pub(super) fn of<K: PartialEq>(owner: Option<K>, key: K) -> Self {
        match owner {
            None => Self::No,
            Some(owner) if owner == key => Self::Equal,
            Some(_) => Self::Inside,
        }
    }
}

/// The import of one attribute set from one peer.
#[derive(Debug)]
pub(super) struct Import {
    received: u32,
    /// Why every path with these attributes is refused.
    refused: Option<Ineligible>,
    /// The attributes that policy sees.
    base: u32,
    policy: Arc<Policy>,
    source: Source,
    /// Our number on the session.
    own: Asn,
    /// For paths that are long-lived stale.
    long_lived: bool,
    /// RFC 7999: packets are dropped.
    blackhole: bool,
    /// What rules with alterations made of the base, by rule; a reference is held to each.
    altered: SmallVec<[(usize, u32); 2]>,
}

impl Import {
    /// `received` must be referenced for as long as the import lasts.
    pub(super) fn new(shared: &mut Shared, slot: u16, received: u32, long_lived: bool) -> Self {
        let peer = shared
            .peer(slot)
            .expect("updates come from peers that are up");
        let session = &peer.session;
        let policy = session.import.clone();
        let own = session.local_as.unwrap_or(shared.config.asn);
        let source = shared.source(slot);
        let attributes = shared.attributes.get(received).attributes.clone();
        let refused = refuse(shared, session, &attributes);
        let base = match refused {
            Some(_) => {
                shared.attributes.retain(received);
                received
            }
            None => match normalise(session, &attributes) {
                Some(changed) => shared.attributes.intern(&Arc::new(changed)),
                None => {
                    shared.attributes.retain(received);
                    received
                }
            },
        };
        let blackhole =
            policy.honours_blackhole() && attributes.has_community(well_known::BLACKHOLE);
        Self {
            received,
            refused,
            base,
            blackhole,
            policy,
            source,
            own,
            long_lived,
            altered: SmallVec::new(),
        }
    }

    pub(super) fn received(&self) -> u32 {
        self.received
    }

    /// The attributes that count for this prefix, with a reference, and what decided.
    pub(super) fn decide(
        &mut self,
        shared: &mut Shared,
        prefix: &IpNet,
        within: Within,
    ) -> (u32, Verdict) {
        if let Some(why) = self.refused {
            return (NO_ATTRIBUTES, Verdict::ineligible(why));
        }
        if !may_be_unicast(prefix) {
            return (NO_ATTRIBUTES, Verdict::ineligible(Ineligible::NotUnicast));
        }
        let attributes = &shared.attributes.get(self.base).attributes;
        let facts = RouteFacts {
            prefix,
            attributes,
            source: self.source,
            within_originated: within != Within::No,
        };
        let decision = match self.blackhole {
            true if within != Within::No => {
                let verdict = Verdict::ineligible(Ineligible::BlackholeOfOurs);
                return (NO_ATTRIBUTES, verdict);
            }
            true => self.policy.decide_blackhole(facts),
            false => self.policy.decide(facts),
        };
        if within == Within::Inside && decision.accept.is_some() {
            // Whatever policy says: it would draw away traffic of ours, here and, passed on, elsewhere.
            return (NO_ATTRIBUTES, Verdict::ineligible(Ineligible::InsideOurs));
        }
        let verdict = Verdict::rule(decision.rule);
        let effective = match decision.accept {
            None => NO_ATTRIBUTES,
            Some([]) if !self.blackhole => self.base,
            Some(sets) => {
                let rule = decision.rule.expect("only rules accept");
                match self.altered.iter().find(|(known, _)| *known == rule) {
                    Some((_, altered)) => *altered,
                    None => {
                        let mut altered = Attributes::clone(attributes);
                        policy::apply(sets, &mut altered, self.own);
                        if self.blackhole {
                            discard(&mut altered);
                        }
                        let altered = shared.attributes.intern(&Arc::new(altered));
                        self.altered.push((rule, altered));
                        altered
                    }
                }
            }
        };
        if self.long_lived && effective != NO_ATTRIBUTES {
            // RFC 9494 §4.2
            let accepted = &shared.attributes.get(effective).attributes;
            let mut stale = Attributes::clone(accepted);
            stale.add_community(well_known::LLGR_STALE);
            return (shared.attributes.intern(&Arc::new(stale)), verdict);
        }
        shared.attributes.retain(effective);
        (effective, verdict)
    }

    pub(super) fn finish(self, shared: &mut Shared) {
        shared.attributes.release(self.base);
        for (_, altered) in self.altered {
            shared.attributes.release(altered);
        }
    }
}

/// RFC 7999 §3.2: what is dropped here is nobody's business beyond this AS.
fn discard(attributes: &mut Attributes) {
    attributes.next_hop = NextHop::DISCARD;
    if !attributes.has_community(well_known::NO_ADVERTISE) {
        attributes.add_community(well_known::NO_EXPORT);
    }
}

/// Checks that no policy can lift.
fn refuse(shared: &Shared, session: &PeerRib, attributes: &Attributes) -> Option<Ineligible> {
    // RFC 4271 §9.1.2: our own number in the path is a loop.
    let count = |asn| attributes.as_path.count(asn);
    let own = count(shared.config.asn).max(session.local_as.map_or(0, count));
    if own > usize::from(session.allow_own_as) {
        return Some(Ineligible::AsLoop);
    }
    match session.kind {
        PeerKind::External => {
            // RFC 4271 §6.3
            if session.enforce_first_as && attributes.as_path.neighbor() != Some(session.remote_asn)
            {
                return Some(Ineligible::FirstAsMismatch);
            }
            // RFC 9234 §5, ingress
            if let (Some(role), Some(otc)) = (session.role, attributes.only_to_customer) {
                match role {
                    Role::Provider | Role::RouteServer => return Some(Ineligible::RouteLeak),
                    Role::Peer if otc != session.remote_asn => {
                        return Some(Ineligible::RouteLeak);
                    }
                    _ => {}
                }
            }
        }
        PeerKind::Internal => {
            // RFC 4456 §8
            if attributes.originator_id == Some(shared.config.router_id) {
                return Some(Ineligible::OriginatorIsUs);
            }
            if let Some(cluster_id) = shared.config.cluster_id
                && attributes.cluster_list.contains(&cluster_id)
            {
                return Some(Ineligible::ClusterLoop);
            }
        }
    }
    // RFC 4271 §5.1.3
    let next_hop = attributes.next_hop;
    let ours = session.next_hop_self.iter().flatten().any(|own| {
        own.address == next_hop.address
            || own
                .link_local
                .is_some_and(|own| IpAddr::V6(own) == next_hop.address)
    });
    ours.then_some(Ineligible::NextHopIsOurs)
}

/// RFC 4271 §6.3: a prefix that is semantically wrong, such as one of multicast, is ignored. These
/// lie in 0/8 (the default route and its halves do not), loopback, multicast, class E, and what
/// IPv6 has in their place; link-local addresses are nobody's business beyond their link.
fn may_be_unicast(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => match net.addr().octets() {
            [0, ..] => net.prefix_len() < 8,
            [127, ..] => net.prefix_len() < 8,
            [169, 254, ..] => net.prefix_len() < 16,
            [224..=255, ..] => net.prefix_len() < 3,
            _ => true,
        },
        IpNet::V6(net) => {
            let address = net.addr();
            let length = net.prefix_len();
            !(address.is_multicast() && length >= 8
                || address.is_unicast_link_local() && length >= 10
                || address.is_loopback() && length == 128
                || address.is_unspecified() && length == 128)
        }
    }
}

/// What must not be believed from this kind of peer is taken out, what it implies put in. `None`
/// when nothing changes.
fn normalise(session: &PeerRib, attributes: &Attributes) -> Option<Attributes> {
    // RFC 2545 §3: a link-local address is one of the link that both speakers are on. Where a
    // global one stands beside it, that one is used on sessions between global addresses.
    let is_link_local = |address: IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let scoped = NextHop {
        interface: session.interface,
        ..attributes.next_hop
    };
    let wanted = is_link_local(scoped.address) || is_link_local(session.remote_address);
    if !wanted || scoped.via().interface == 0 {
        return normalise_external(session, attributes);
    }
    let mut changed = normalise_external(session, attributes).unwrap_or_else(|| attributes.clone());
    changed.next_hop = scoped;
    Some(changed)
}

fn normalise_external(session: &PeerRib, attributes: &Attributes) -> Option<Attributes> {
    if session.kind == PeerKind::Internal {
        return None;
    }
    // RFC 9234 §5, ingress
    let marks = matches!(
        session.role,
        Some(Role::Customer | Role::Peer | Role::RouteServerClient)
    );
    let add_otc = marks && attributes.only_to_customer.is_none();
    // RFC 4271 §5.1.5, RFC 4456 §8: internal attributes, ignored from outside.
    let foreign = attributes.local_pref.is_some()
        || attributes.originator_id.is_some()
        || !attributes.cluster_list.is_empty();
    // RFC 8326 §4.2: its sender is about to go; any other path is better.
    let leaving = attributes.has_community(well_known::GRACEFUL_SHUTDOWN);
    if !add_otc && !foreign && !leaving {
        return None;
    }
    let mut changed = attributes.clone();
    changed.local_pref = leaving.then_some(0);
    changed.originator_id = None;
    changed.cluster_list.clear();
    if add_otc {
        changed.only_to_customer = Some(session.remote_asn);
    }
    Some(changed)
}
