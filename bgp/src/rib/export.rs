//! What a peer is told of a route: who may get it, and with which attributes.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;

use super::{
    shared::Shared,
    types::{Drain, NotAdvertised, PeerKind, PeerRib, Role},
};
use crate::{
    attributes::{Attributes, NextHop, SegmentKind, well_known},
    message::Negotiated,
    policy::{self, Policy, Set, Source},
    types::{Asn, Family},
};

/// Everything that what is sent depends on, apart from the route: peers with equal parameters are
/// one update group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportParameters {
    pub(super) kind: PeerKind,
    pub(super) client: bool,
    pub(super) next_hop_self: Option<NextHop>,
    pub(super) always_next_hop_self: bool,
    pub(super) third_party_subnet: Option<IpNet>,
    pub(super) role: Option<Role>,
    /// Our number towards an external peer.
    pub(super) local_as: Asn,
    pub(super) remove_private_as: bool,
    pub(super) drain: Drain,
    pub(super) policy: Arc<Policy>,
    pub(super) negotiated: Arc<Negotiated>,
    /// How many paths of a prefix are sent at most, each with an identifier (RFC 7911). `None`: the
    /// best one, without.
    pub(super) paths: Option<NonZeroU16>,
}

impl ExportParameters {
    pub(super) fn new(shared: &Shared, session: &PeerRib, family: Family) -> Self {
        Self {
            kind: session.kind,
            client: shared.is_client(session),
            next_hop_self: session.next_hop_self[family.index()],
            always_next_hop_self: session.always_next_hop_self,
            third_party_subnet: session.third_party_subnet,
            role: session.role.filter(|_| session.kind == PeerKind::External),
            local_as: session.local_as.unwrap_or(shared.config.asn),
            remove_private_as: session.remove_private_as && session.kind == PeerKind::External,
            drain: shared.drain,
            policy: session.export.clone(),
            negotiated: session.negotiated.clone(),
            paths: session.negotiated.add_path_send[family.index()]
                .then(|| NonZeroU16::new(session.add_path_send).unwrap_or(NonZeroU16::MIN)),
        }
    }
}

/// Where the route that is exported comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) source: Source,
    /// Router id of the peer it was learned from.
    pub(super) router_id: std::net::Ipv4Addr,
}

/// The rules that depend on the source and on communities only; `None` when none forbids it.
pub(super) fn withheld(
    shared: &Shared,
    to: &ExportParameters,
    source: Source,
    attributes: &Attributes,
) -> Option<NotAdvertised> {
    if to.drain == Drain::Left {
        return Some(NotAdvertised::Drained);
    }
    // RFC 4456 §6: between internal peers only by reflection, to or from a client.
    let internal = to.kind == PeerKind::Internal;
    let reflects = to.client && shared.config.cluster_id.is_some();
    if source == Source::Internal && internal && !reflects {
        return Some(NotAdvertised::NotReflected);
    }
    let forbidden = attributes
        .communities
        .iter()
        .find(|community| match **community {
            well_known::NO_ADVERTISE => true,
            // There are no confederations here: both stop at the border of the AS.
            well_known::NO_EXPORT | well_known::NO_EXPORT_SUBCONFED => !internal,
            _ => false,
        });
    if let Some(community) = forbidden {
        return Some(NotAdvertised::Community(*community));
    }
    // RFC 9494 §4.3, and §4.6 for internal peers: see `attributes`.
    if !internal && is_hidden_stale(to, attributes) {
        return Some(NotAdvertised::LongLivedStale);
    }
    // RFC 9234 §5, egress
    let upwards = matches!(
        to.role,
        Some(Role::Customer | Role::Peer | Role::RouteServerClient)
    );
    (attributes.only_to_customer.is_some() && upwards).then_some(NotAdvertised::OnlyToCustomer)
}

/// The attributes as they are sent; `None` when there is no next hop to send.
pub(super) fn attributes(
    shared: &Shared,
    to: &ExportParameters,
    family: Family,
    origin: Origin,
    from: &Attributes,
    sets: &[Set],
) -> Option<Attributes> {
    let next_hop = next_hop(to, family, origin.source, from.next_hop)?;
    let mut out = from.clone();
    out.next_hop = next_hop;
    match to.kind {
        PeerKind::External => {
            // RFC 4271 §5.1.4: a MED from a neighbouring AS goes no further.
            if origin.source != Source::Local {
                out.med = None;
            }
            out.originator_id = None;
            out.cluster_list.clear();
            remove_non_transitive_communities(&mut out);
            if to.remove_private_as {
                out.as_path.remove_leading_private();
            }
        }
        PeerKind::Internal => {
            // RFC 4271 §5.1.5
            out.local_pref
                .get_or_insert(shared.config.default_local_pref);
            // RFC 4456 §8: reflected.
            if let (Source::Internal | Source::Client, Some(cluster_id)) =
                (origin.source, shared.config.cluster_id)
            {
                out.originator_id.get_or_insert(origin.router_id);
                out.cluster_list.insert(0, cluster_id);
            }
        }
    }
    policy::apply(sets, &mut out, to.local_as);
    if to.drain == Drain::Leaving {
        // RFC 8326 §4.2
        out.add_community(well_known::GRACEFUL_SHUTDOWN);
        out.local_pref = Some(0);
    }
    if from.has_community(well_known::LLGR_STALE) {
        // RFC 9494 §4.3: whatever policy made of it.
        out.add_community(well_known::LLGR_STALE);
        if is_hidden_stale(to, from) {
            // RFC 9494 §4.6
            out.add_community(well_known::NO_EXPORT);
            out.local_pref = Some(0);
        }
    }
    if to.kind == PeerKind::External {
        out.local_pref = None;
        // RFC 5065 §4.1: what is inside of a confederation is nobody's business outside of it.
        out.as_path
            .0
            .retain(|segment| matches!(segment.kind, SegmentKind::Sequence | SegmentKind::Set));
        // RFC 4271 §5.1.2 b
        out.as_path.prepend(to.local_as, 1);
    }
    mark_for_customers(to, to.local_as, &mut out);
    Some(out)
}

/// The type code of the attribute whose communities are 20 octets long (RFC 5701).
const IPV6_EXTENDED_COMMUNITIES: u8 = 25;

/// RFC 4360 §6, RFC 5701 §2: extended communities that are not transitive end at the border of the
/// AS. Those of a policy come later: it may well address the neighbour.
fn remove_non_transitive_communities(out: &mut Attributes) {
    const NON_TRANSITIVE: u8 = 0x40;
    out.extended_communities
        .retain(|[kind, ..]| kind & NON_TRANSITIVE == 0);
    out.unknown.retain_mut(|attribute| {
        if attribute.code != IPV6_EXTENDED_COMMUNITIES {
            return true;
        }
        let is_kept = |community: &&[u8]| community[0] & NON_TRANSITIVE == 0;
        if attribute.value.chunks_exact(20).any(|c| !is_kept(&c)) {
            let kept: Vec<&[u8]> = attribute.value.chunks_exact(20).filter(is_kept).collect();
            attribute.value = kept.concat().into();
        }
        !attribute.value.is_empty()
    });
}

/// A long-lived stale route towards a peer that has not said that it knows such routes.
fn is_hidden_stale(to: &ExportParameters, attributes: &Attributes) -> bool {
    attributes.has_community(well_known::LLGR_STALE) && !to.negotiated.long_lived_received
}

/// RFC 9234 §5, egress.
fn mark_for_customers(to: &ExportParameters, asn: Asn, out: &mut Attributes) {
    if matches!(
        to.role,
        Some(Role::Provider | Role::Peer | Role::RouteServer)
    ) {
        out.only_to_customer.get_or_insert(asn);
    }
}

/// RFC 4271 §5.1.3, RFC 2545 §3.
fn next_hop(
    to: &ExportParameters,
    family: Family,
    source: Source,
    received: NextHop,
) -> Option<NextHop> {
    let can_carry = |next_hop: &NextHop| match (family, next_hop.address) {
        (Family::Ipv4Unicast, IpAddr::V4(_)) | (Family::Ipv6Unicast, IpAddr::V6(_)) => true,
        (Family::Ipv4Unicast, IpAddr::V6(_)) => to.negotiated.extended_next_hop,
        (Family::Ipv6Unicast, IpAddr::V4(_)) => false,
    };
    let ours = to.next_hop_self.filter(can_carry);
    // A link-local address means something on the subnet it came from only.
    let passed_on = NextHop {
        address: received.address,
        link_local: None,
        interface: 0,
    };
    let is_link_local =
        matches!(received.address, IpAddr::V6(address) if address.is_unicast_link_local());
    let unchanged = match (to.kind, source) {
        (_, Source::Local) => false,
        // What is dropped here comes here from inside of the AS, too.
        _ if received.is_discard() => false,
        (PeerKind::External, _) => to
            .third_party_subnet
            .is_some_and(|subnet| subnet.contains(&received.address)),
        (PeerKind::Internal, Source::External) => !to.always_next_hop_self,
        // RFC 4456 §10: a reflector does not touch the next hop.
        (PeerKind::Internal, Source::Internal | Source::Client) => true,
    };
    if unchanged && !is_link_local && can_carry(&passed_on) {
        Some(passed_on)
    } else {
        ours
    }
}
