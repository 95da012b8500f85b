//! `agentctl peer show`.

use agentd_proto::v1::{
    AdministrativeShutdown, GetPeerRequest, LastFault, LastNotification, Peer, PeerRange,
    PeerSource, PeerState, PeerTimers,
};

use super::{
    client::{Client, Error},
    output::Output,
    time,
};

pub(super) async fn run(name: String, client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client
        .routing()
        .get_peer(GetPeerRequest { name })
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("GetPeerResponse", &response);
    }
    match (response.peer, response.range) {
        (None, Some(range)) => show_range(&range, out),
        (peer, _) => show_peer(&peer.unwrap_or_default(), out),
    }
}

fn show_range(range: &PeerRange, out: &mut Output) -> Result<(), Error> {
    out.fields(&[
        ("Range", range.name.clone()),
        ("Prefix", range.range.clone()),
        ("AS number", range.asn.clone()),
        ("From", source(range.source()).to_owned()),
        (
            "State",
            range
                .shutdown
                .as_ref()
                .map_or_else(|| "open".to_owned(), shut_down),
        ),
        (
            "Peers",
            format!(
                "{} of at most {}, {} Established",
                range.peers, range.limit, range.peers_established
            ),
        ),
        (
            "Connections",
            format!("{} taken, {} refused", range.accepted, range.refused),
        ),
        (
            "Last refused",
            range
                .last_refused
                .as_ref()
                .map_or_else(String::new, |last| {
                    format!(
                        "{}: {}, {}",
                        last.address,
                        last.reason,
                        time::moment(last.at.as_ref())
                    )
                }),
        ),
        ("Password", password(range.password)),
    ])
}

fn show_peer(peer: &Peer, out: &mut Output) -> Result<(), Error> {
    let counters = peer.counters.unwrap_or_default();
    let timers = peer.timers.unwrap_or_default();
    out.fields(&[
        ("Peer", peer.name.clone()),
        ("Address", format!("{} port {}", peer.address, peer.port)),
        ("AS number", kind(peer)),
        (
            "From",
            match peer.source() {
                PeerSource::Range => format!("the range {}", peer.range),
                other => source(other).to_owned(),
            },
        ),
        ("State", state(peer.state()).to_owned()),
        ("Since", time::moment(peer.since.as_ref())),
        ("Reason", reason(peer)),
        ("Timers", running(&timers)),
        (
            "Mode",
            if peer.passive { "passive" } else { "active" }.into(),
        ),
        (
            "Reflection",
            if peer.route_reflector_client {
                "client".into()
            } else {
                String::new()
            },
        ),
        ("Local address", peer.local_address.clone()),
        ("Router ID", peer.remote_router_id.clone()),
        ("Hold time", hold_time(peer)),
        (
            "Keepalive",
            time::interval(peer.keepalive_interval.as_ref()),
        ),
        ("Password", password(peer.password)),
        (
            "TTL security",
            match peer.ttl_security {
                0 => String::new(),
                1 => "at most 1 hop away".to_owned(),
                hops => format!("at most {hops} hops away"),
            },
        ),
        (
            "Policies",
            format!(
                "import {}, export {}{}",
                peer.import_policy,
                peer.export_policy,
                if peer.blackhole {
                    "; BLACKHOLE is honoured"
                } else {
                    ""
                }
            ),
        ),
        (
            "Prefix limit",
            match peer.max_prefixes {
                0 => String::new(),
                limit => limit.to_string(),
            },
        ),
        ("Capabilities sent", peer.capabilities_sent.join("\n")),
        (
            "Capabilities received",
            peer.capabilities_received.join("\n"),
        ),
        (
            "Octets",
            format!(
                "{} received, {} sent",
                counters.bytes_received, counters.bytes_sent
            ),
        ),
        (
            "Sessions",
            format!(
                "{} established, {} dropped",
                counters.established_count, counters.dropped_count
            ),
        ),
        (
            "Faults (RFC 7606)",
            format!(
                "{} UPDATEs treated as withdraw, {} attributes discarded, {} passed over",
                counters.treat_as_withdraw, counters.attributes_discarded, counters.faults_ignored
            ),
        ),
        ("Last fault", fault(peer.last_fault.as_ref())),
        (
            "Last NOTIFICATION sent",
            notification(peer.last_notification_sent.as_ref()),
        ),
        (
            "Last NOTIFICATION received",
            notification(peer.last_notification_received.as_ref()),
        ),
    ])?;
    out.line("")?;
    let all = (counters.messages_received, counters.messages_sent);
    out.table(
        &["MESSAGES", "RECEIVED", "SENT"],
        &[1, 2],
        [
            ("OPEN", (counters.opens_received, counters.opens_sent)),
            ("UPDATE", (counters.updates_received, counters.updates_sent)),
            (
                "KEEPALIVE",
                (counters.keepalives_received, counters.keepalives_sent),
            ),
            (
                "NOTIFICATION",
                (counters.notifications_received, counters.notifications_sent),
            ),
            (
                "ROUTE-REFRESH",
                (counters.refreshes_received, counters.refreshes_sent),
            ),
            ("all", all),
        ]
        .into_iter()
        .map(|(kind, (received, sent))| {
            vec![kind.to_owned(), received.to_string(), sent.to_string()]
        }),
    )?;
    out.line("")?;
    out.table(
        &[
            "FAMILY",
            "NEGOTIATED",
            "RECEIVED",
            "ACCEPTED",
            "SENT",
            "STALE",
            "EOR RECEIVED",
            "EOR SENT",
        ],
        &[2, 3, 4, 5],
        peer.families.iter().map(|family| {
            vec![
                family.family.clone(),
                yes(family.negotiated),
                family.received.to_string(),
                family.accepted.to_string(),
                family.advertised.to_string(),
                family.stale.to_string(),
                yes(family.end_of_rib_received),
                yes(family.end_of_rib_sent),
            ]
        }),
    )
}

/// Why it is not Established, with what the operator said when it was shut down.
pub(super) fn reason(peer: &Peer) -> String {
    match &peer.shutdown {
        Some(shutdown) => shut_down(shutdown),
        None => peer.reason.clone(),
    }
}

pub(super) fn shut_down(shutdown: &AdministrativeShutdown) -> String {
    let text = if shutdown.text.is_empty() {
        String::new()
    } else {
        format!(": {}", shutdown.text)
    };
    format!(
        "administratively shut down {} ago{text}",
        time::age(shutdown.at.as_ref())
    )
}

fn source(source: PeerSource) -> &'static str {
    match source {
        PeerSource::Unspecified => "",
        PeerSource::Configuration => "the configuration file",
        PeerSource::Api => "the API",
        PeerSource::Range => "a range",
    }
}

fn password(password: bool) -> String {
    if password { "TCP MD5" } else { "none" }.to_owned()
}

fn hold_time(peer: &Peer) -> String {
    let ours = time::interval(peer.configured_hold_time.as_ref());
    match &peer.hold_time {
        Some(agreed) => format!("{} (ours {ours})", time::interval(Some(agreed))),
        None => format!("ours {ours}"),
    }
}

/// Those that run, in the order of a session's life.
fn running(timers: &PeerTimers) -> String {
    let parts: Vec<String> = [
        ("held", &timers.held_until),
        ("next attempt", &timers.next_connect_at),
        ("hold expires", &timers.hold_expires_at),
        ("keepalive", &timers.keepalive_at),
        ("send hold expires", &timers.send_hold_expires_at),
        ("stale routes go", &timers.stale_until),
    ]
    .into_iter()
    .filter_map(|(name, at)| {
        let at = at.as_ref()?;
        let left = time::age(Some(at));
        Some(match left.strip_prefix("in ") {
            Some(left) if name == "held" => format!("held for another {left}"),
            Some(left) => format!("{name} in {left}"),
            None => format!("{name} now"),
        })
    })
    .collect();
    parts.join(", ")
}

fn fault(fault: Option<&LastFault>) -> String {
    fault.map_or_else(String::new, |fault| {
        let attribute = match (fault.attribute, fault.attribute_name.as_str()) {
            (0, _) => String::new(),
            (code, "") => format!(" of attribute {code}"),
            (code, name) => format!(" of {name} ({code})"),
        };
        format!(
            "{}{attribute}: {}, {}",
            fault.disposition,
            fault.text,
            time::moment(fault.at.as_ref())
        )
    })
}

fn kind(peer: &Peer) -> String {
    if peer.asn == 0 {
        format!("not known yet (ours is {})", peer.local_asn)
    } else if peer.asn == peer.local_asn {
        format!("{} (internal)", peer.asn)
    } else {
        format!("{} (external; ours is {})", peer.asn, peer.local_asn)
    }
}

fn notification(notification: Option<&LastNotification>) -> String {
    notification.map_or_else(String::new, |notification| {
        let mut text = format!(
            "{}/{} {}, {}",
            notification.code,
            notification.subcode,
            notification.text,
            time::moment(notification.at.as_ref())
        );
        if !notification.data.is_empty() {
            text.push_str("\ndata ");
            for byte in notification.data.iter().take(64) {
                text.push_str(&format!("{byte:02x}"));
            }
        }
        text
    })
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// As RFC 4271 §8.2.2 writes them.
pub(super) fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Unspecified => "unknown",
        PeerState::Idle => "Idle",
        PeerState::Connect => "Connect",
        PeerState::Active => "Active",
        PeerState::OpenSent => "OpenSent",
        PeerState::OpenConfirm => "OpenConfirm",
        PeerState::Established => "Established",
    }
}
