//! BGP and kernel values into messages.

use std::time::Duration;

use agentd_proto::v1;
use bgp::{
    driver::wall_clock,
    message::Capability,
    speaker::status::{LastNotification, PeerState, PeerStatus, Route, RouteTable},
    types::Family,
};
use dataplane::{kernel::Target, reconcile::KernelRoute};

use super::render::timestamp;

pub fn peer_state(state: PeerState) -> v1::PeerState {
    match state {
        PeerState::Idle => v1::PeerState::Idle,
        PeerState::Connect => v1::PeerState::Connect,
        PeerState::Active => v1::PeerState::Active,
        PeerState::OpenSent => v1::PeerState::OpenSent,
        PeerState::OpenConfirm => v1::PeerState::OpenConfirm,
        PeerState::Established => v1::PeerState::Established,
    }
}

pub fn peer(status: &PeerStatus) -> v1::Peer {
    let text = |value: Option<String>| value.unwrap_or_default();
    v1::Peer {
        name: status.name.clone(),
        address: status.address.to_string(),
        port: status.port.into(),
        asn: status.asn.map_or(0, |asn| asn.0),
        local_asn: status.local_asn.0,
        state: peer_state(status.state).into(),
        since: Some(timestamp(wall_clock(status.since))),
        reason: status.reason.clone(),
        passive: status.passive,
        route_reflector_client: status.route_reflector_client,
        remote_router_id: text(status.remote_router_id.map(|id| id.to_string())),
        local_address: text(status.local_address.map(|address| address.to_string())),
        hold_time: status.hold_time.map(duration),
        keepalive_interval: status.keepalive_interval.map(duration),
        capabilities_sent: status.capabilities_sent.iter().map(capability).collect(),
        capabilities_received: status
            .capabilities_received
            .iter()
            .map(capability)
            .collect(),
        families: status
            .families
            .iter()
            .map(|family| v1::PeerFamily {
                family: family.family.to_string(),
                negotiated: family.negotiated,
                received: family.received,
                accepted: family.accepted,
                advertised: family.advertised,
                end_of_rib_received: family.end_of_rib_received,
                end_of_rib_sent: family.end_of_rib_sent,
            })
            .collect(),
        counters: Some(v1::PeerCounters {
            messages_received: status.counters.messages_received,
            messages_sent: status.counters.messages_sent,
            updates_received: status.counters.updates_received,
            updates_sent: status.counters.updates_sent,
            treat_as_withdraw: status.counters.treat_as_withdraw,
            attributes_discarded: status.counters.attributes_discarded,
            established_count: status.counters.established_count,
            dropped_count: status.counters.dropped_count,
            bytes_received: status.counters.bytes_received,
            bytes_sent: status.counters.bytes_sent,
        }),
        last_notification_sent: status.last_notification_sent.as_ref().map(notification),
        last_notification_received: status.last_notification_received.as_ref().map(notification),
        next_connect_at: status.next_connect_at.map(|at| timestamp(wall_clock(at))),
    }
}

fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

fn notification(last: &LastNotification) -> v1::LastNotification {
    v1::LastNotification {
        code: last.notification.code.into(),
        subcode: last.notification.subcode.into(),
        text: last.notification.to_string(),
        data: last.notification.data.clone(),
        at: Some(timestamp(wall_clock(last.at))),
    }
}

/// As a network engineer would write it.
fn capability(capability: &Capability) -> String {
    let family = |afi: u16, safi: u8| match Family::from_afi_safi(afi, safi) {
        Some(family) => family.to_string(),
        None => format!("afi {afi} safi {safi}"),
    };
    let join = |parts: Vec<String>| parts.join(" ");
    match capability {
        Capability::MultiProtocol { afi, safi } => format!("multiprotocol {}", family(*afi, *safi)),
        Capability::RouteRefresh => "route-refresh".to_owned(),
        Capability::ExtendedNextHop(list) => format!(
            "extended-next-hop {}",
            join(
                list.iter()
                    .map(|(afi, safi, hop)| format!(
                        "{} via afi {hop}",
                        family(*afi, u8::try_from(*safi).unwrap_or(0))
                    ))
                    .collect()
            )
        ),
        Capability::ExtendedMessage => "extended-message".to_owned(),
        Capability::Role(role) => format!("role {role}"),
        Capability::GracefulRestart {
            restarting,
            notification,
            restart_time,
            families,
        } => {
            let mut parts = vec![format!("graceful-restart {restart_time}s")];
            if *restarting {
                parts.push("restarting".to_owned());
            }
            if *notification {
                parts.push("notification".to_owned());
            }
            parts.extend(families.iter().map(|(afi, safi, forwarding)| {
                let preserved = if *forwarding { " (forwarding)" } else { "" };
                format!("{}{preserved}", family(*afi, *safi))
            }));
            join(parts)
        }
        Capability::FourOctetAs(asn) => format!("four-octet-as {asn}"),
        Capability::AddPath(list) => format!(
            "add-path {}",
            join(
                list.iter()
                    .map(|(afi, safi, mode)| {
                        let mode = match mode {
                            1 => "receive",
                            2 => "send",
                            _ => "both",
                        };
                        format!("{} {mode}", family(*afi, *safi))
                    })
                    .collect()
            )
        ),
        Capability::EnhancedRouteRefresh => "enhanced-route-refresh".to_owned(),
        Capability::LongLivedGracefulRestart(list) => format!(
            "long-lived-graceful-restart {}",
            join(
                list.iter()
                    .map(|(afi, safi, _, seconds)| format!("{} {seconds}s", family(*afi, *safi)))
                    .collect()
            )
        ),
        Capability::Fqdn { host, domain } => format!("fqdn {host}.{domain}"),
        Capability::Unknown { code, value } => format!("capability {code} ({} bytes)", value.len()),
    }
}

/// RFC 1997 form, with the names of the IANA registry.
fn community(value: u32) -> String {
    match value {
        0xffff_0000 => "graceful-shutdown".to_owned(),
        0xffff_029a => "blackhole".to_owned(),
        0xffff_ff01 => "no-export".to_owned(),
        0xffff_ff02 => "no-advertise".to_owned(),
        0xffff_ff03 => "no-export-subconfed".to_owned(),
        value => format!("{}:{}", value >> 16, value & 0xffff),
    }
}

pub fn route(table: RouteTable, route: &Route) -> v1::Route {
    let attributes = &route.attributes;
    let mut next_hops = vec![attributes.next_hop.address.to_string()];
    // A route of our own has no next hop until it is sent.
    if route.peer.is_none() && attributes.next_hop.address.is_unspecified() {
        next_hops.clear();
    }
    let communities = attributes
        .communities
        .iter()
        .map(|value| community(*value))
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
        reason: route.reason.to_string(),
        received_at: Some(timestamp(wall_clock(route.received_at))),
        kind: String::new(),
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
