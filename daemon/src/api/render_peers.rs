//! Peers into messages.

use std::time::{Duration, Instant};

use agentd_proto::v1;
use bgp::{
    driver::wall_clock,
    message::{Capability, Disposition},
    speaker::status::{LastFault, LastNotification, PeerState, PeerStatus, RangeStatus},
    types::Family,
    wire::attribute_name,
};

use super::render::timestamp;
use crate::peers::Facts;

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

pub fn peer(status: &PeerStatus, facts: &Facts) -> v1::Peer {
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
                stale: family.stale,
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
            opens_received: status.counters.opens_received,
            opens_sent: status.counters.opens_sent,
            keepalives_received: status.counters.keepalives_received,
            keepalives_sent: status.counters.keepalives_sent,
            notifications_received: status.counters.notifications_received,
            notifications_sent: status.counters.notifications_sent,
            refreshes_received: status.counters.refreshes_received,
            refreshes_sent: status.counters.refreshes_sent,
            faults_ignored: status.counters.faults_ignored,
        }),
        last_notification_sent: status.last_notification_sent.as_ref().map(notification),
        last_notification_received: status.last_notification_received.as_ref().map(notification),
        next_connect_at: status.next_connect_at.map(moment),
        range: status.range.clone().unwrap_or_default(),
        last_fault: status.last_fault.as_ref().map(fault),
        timers: Some(v1::PeerTimers {
            hold_expires_at: status.timers.hold_expires_at.map(moment),
            keepalive_at: status.timers.keepalive_at.map(moment),
            send_hold_expires_at: status.timers.send_hold_expires_at.map(moment),
            next_connect_at: status.timers.next_connect_at.map(moment),
            held_until: status.timers.held_until.map(moment),
            stale_until: status.timers.stale_until.map(moment),
        }),
        configured_hold_time: Some(duration(status.configured_hold_time)),
        password: status.password,
        ttl_security: status.ttl_security.unwrap_or(0).into(),
        max_prefixes: status.max_prefixes.unwrap_or(0),
        import_policy: status.import.clone(),
        blackhole: status.blackhole,
        export_policy: status.export.clone(),
        shutdown: shutdown(facts, &status.name),
        source: match &status.range {
            Some(_) => v1::PeerSource::Range,
            None => source(facts, &status.name),
        }
        .into(),
    }
}

pub fn range(status: &RangeStatus, facts: &Facts) -> v1::PeerRange {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    v1::PeerRange {
        name: status.name.clone(),
        range: status.range.to_string(),
        asn: status.asn.to_string(),
        limit: count(status.limit),
        peers: count(status.peers),
        peers_established: count(status.established),
        accepted: status.accepted,
        refused: status.refused,
        last_refused: status.last_refused.as_ref().map(|refused| v1::LastRefused {
            address: refused.address.to_string(),
            reason: refused.why.to_owned(),
            at: Some(moment(refused.at)),
        }),
        password: status.password,
        shutdown: shutdown(facts, &status.name),
        source: source(facts, &status.name).into(),
    }
}

fn source(facts: &Facts, name: &str) -> v1::PeerSource {
    if facts.added.iter().any(|added| added == name) {
        v1::PeerSource::Api
    } else {
        v1::PeerSource::Configuration
    }
}

fn shutdown(facts: &Facts, name: &str) -> Option<v1::AdministrativeShutdown> {
    let shutdown = facts.shutdown.iter().find(|down| down.name == name)?;
    Some(v1::AdministrativeShutdown {
        text: shutdown.text.clone(),
        at: Some(timestamp(shutdown.at)),
    })
}

fn moment(at: Instant) -> prost_types::Timestamp {
    timestamp(wall_clock(at))
}

fn fault(last: &LastFault) -> v1::LastFault {
    let attribute = last.fault.attribute;
    v1::LastFault {
        disposition: match last.fault.disposition {
            Disposition::TreatAsWithdraw => "treat-as-withdraw",
            Disposition::AttributeDiscard => "attribute-discard",
            Disposition::Ignored => "ignored",
        }
        .to_owned(),
        attribute: attribute.into(),
        attribute_name: attribute_name(attribute).unwrap_or_default().to_owned(),
        text: last.fault.text.clone(),
        at: Some(moment(last.at)),
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
        Capability::LongLivedGracefulRestart(list) if list.is_empty() => {
            "long-lived-graceful-restart (aware)".to_owned()
        }
        Capability::LongLivedGracefulRestart(list) => format!(
            "long-lived-graceful-restart {}",
            join(
                list.iter()
                    .map(|(afi, safi, forwarding, seconds)| {
                        let preserved = if *forwarding { " (forwarding)" } else { "" };
                        format!("{} {seconds}s{preserved}", family(*afi, *safi))
                    })
                    .collect()
            )
        ),
        Capability::Fqdn { host, domain } => format!("fqdn {host}.{domain}"),
        Capability::Unknown { code, value } => format!("capability {code} ({} bytes)", value.len()),
    }
}
