//! Routes into messages.

use agentd_proto::v1;
use bgp::{
    attributes::format_community,
    driver::wall_clock,
    rib::{Reason, Step},
    speaker::status::{Route, RouteTable},
};
use dataplane::{kernel::Target, reconcile::KernelRoute};

use super::render::timestamp;

pub fn route(table: RouteTable, route: &Route) -> v1::Route {
    let attributes = &route.attributes;
    let mut next_hops = vec![attributes.next_hop.address.to_string()];
    // A route of our own has no next hop until it is sent, and what is dropped has none at all.
    if route.peer.is_none() && attributes.next_hop.address.is_unspecified()
        || attributes.next_hop.is_discard()
    {
        next_hops.clear();
    }
    let communities = attributes
        .communities
        .iter()
        .map(|value| format_community(*value))
        .chain(
            attributes
                .large_communities
                .iter()
                .map(|[a, b, c]| format!("{a}:{b}:{c}")),
        )
        .chain(attributes.extended_communities.iter().map(|octets| {
            octets
                .iter()
                .fold("0x".to_owned(), |text, octet| format!("{text}{octet:02x}"))
        }))
        .collect();
    v1::Route {
        prefix: route.prefix.to_string(),
        table: match table {
            RouteTable::LocRib => v1::RouteTable::LocRib,
            RouteTable::AdjRibIn => v1::RouteTable::AdjRibIn,
            RouteTable::AdjRibOut => v1::RouteTable::AdjRibOut,
        }
        .into(),
        peer: route.peer.clone().unwrap_or_default(),
        next_hops,
        origin: attributes.origin.to_string(),
        as_path: attributes.as_path.to_string(),
        local_pref: attributes.local_pref,
        med: attributes.med,
        communities,
        originator_id: attributes
            .originator_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        cluster_list: attributes
            .cluster_list
            .iter()
            .map(ToString::to_string)
            .collect(),
        best: route.best,
        reason: reason(route),
        policy_rule: match (&route.reason, &route.discarded) {
            (Reason::Rejected(rule) | Reason::Exported(rule), _) | (_, Some(rule)) => rule.clone(),
            _ => String::new(),
        },
        decision_step: match &route.reason {
            Reason::Best(Some(step)) | Reason::Lost(step) => step_name(*step).to_owned(),
            _ => String::new(),
        },
        stale: route.stale,
        received_at: Some(timestamp(wall_clock(route.received_at))),
        kind: match route.discarded {
            Some(_) => "blackhole".to_owned(),
            None => String::new(),
        },
        interfaces: Vec::new(),
        protocol: 0,
        metric: 0,
        path_id: route.path_id,
        next_hop_link_local: attributes
            .next_hop
            .link_local
            .map(|address| address.to_string())
            .unwrap_or_default(),
    }
}

/// Why it is where it is, and whether packets are dropped for it.
pub fn reason(route: &Route) -> String {
    match &route.discarded {
        None => route.reason.to_string(),
        Some(rule) => format!("{}; blackhole (RFC 7999) by policy {rule}", route.reason),
    }
}

/// The step in one word.
fn step_name(step: Step) -> &'static str {
    match step {
        Step::Local => "local",
        Step::LongLivedStale => "long-lived-stale",
        Step::LocalPref => "local-pref",
        Step::AsPathLength => "as-path-length",
        Step::Origin => "origin",
        Step::Med => "med",
        Step::External => "external",
        Step::IgpMetric => "igp-metric",
        Step::RouterId => "router-id",
        Step::ClusterListLength => "cluster-list-length",
        Step::PeerAddress => "peer-address",
        Step::PathId => "path-id",
    }
}

pub fn kernel_route(route: &KernelRoute) -> v1::Route {
    v1::Route {
        prefix: route.prefix.to_string(),
        table: v1::RouteTable::Kernel.into(),
        next_hops: route
            .hops
            .iter()
            .filter_map(|hop| hop.gateway)
            .map(|gateway| gateway.to_string())
            .collect(),
        best: true,
        kind: kind(route).to_owned(),
        interfaces: route.hops.iter().map(interface).collect(),
        protocol: route.protocol.into(),
        metric: route.metric,
        ..Default::default()
    }
}

fn interface(hop: &dataplane::reconcile::Hop) -> String {
    match hop.interface.as_str() {
        "" => format!("if{}", hop.index),
        name => name.to_owned(),
    }
}

fn kind(route: &KernelRoute) -> &'static str {
    match &route.target {
        Target::Blackhole => "blackhole",
        Target::Reject => "reject",
        Target::Link { .. } => "link",
        Target::Gateways(_) | Target::NextHop { .. } => "gateway",
    }
}

/// One line, as `ip route` would show it.
pub fn kernel_route_text(route: &KernelRoute) -> String {
    let mut text = match &route.target {
        Target::Blackhole => format!("blackhole {}", route.prefix),
        Target::Reject => format!("unreachable {}", route.prefix),
        _ => route.prefix.to_string(),
    };
    for hop in &route.hops {
        if let Some(gateway) = hop.gateway {
            text.push_str(&format!(" via {gateway}"));
        }
        text.push_str(&format!(" dev {}", interface(hop)));
    }
    match route.protocol {
        dataplane::kernel::PROTOCOL_AGENTD => text.push_str(" proto agentd"),
        dataplane::kernel::PROTOCOL_AGENTD_BGP => text.push_str(" proto agentd-bgp"),
        2 => text.push_str(" proto kernel"),
        other => text.push_str(&format!(" proto {other}")),
    }
    text
}
