//! `agentctl peer`.

use agentd_proto::v1::{GetPeerRequest, LastNotification, ListPeersRequest, Peer, PeerState};
use clap::Subcommand;

use super::{
    client::{Client, Error},
    output::Output,
    time,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the BGP peers
    List,
    /// Show all that is known of one peer
    Show {
        /// Name in the configuration
        name: String,
    },
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<(), Error> {
    match command {
        Command::List => list(client, out).await,
        Command::Show { name } => show(name, client, out).await,
    }
}

async fn list(client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client
        .routing()
        .list_peers(ListPeersRequest {})
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("ListPeersResponse", &response);
    }
    out.table(
        &[
            "PEER", "ADDRESS", "AS", "STATE", "FOR", "RECEIVED", "ACCEPTED", "SENT", "REASON",
        ],
        &[5, 6, 7],
        response.peers.iter().map(|peer| {
            let sum = |count: fn(&agentd_proto::v1::PeerFamily) -> u64| {
                peer.families.iter().map(count).sum::<u64>().to_string()
            };
            vec![
                peer.name.clone(),
                peer.address.clone(),
                peer.asn.to_string(),
                state(peer.state()).to_owned(),
                time::age(peer.since.as_ref()),
                sum(|family| family.received),
                sum(|family| family.accepted),
                sum(|family| family.advertised),
                peer.reason.clone(),
            ]
        }),
    )
}

async fn show(name: String, client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client
        .routing()
        .get_peer(GetPeerRequest { name })
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("GetPeerResponse", &response);
    }
    let peer = response.peer.unwrap_or_default();
    let counters = peer.counters.unwrap_or_default();
    out.fields(&[
        ("Peer", peer.name.clone()),
        ("Address", format!("{} port {}", peer.address, peer.port)),
        ("AS number", kind(&peer)),
        ("State", state(peer.state()).to_owned()),
        ("Since", time::moment(peer.since.as_ref())),
        ("Reason", peer.reason.clone()),
        ("Next attempt", time::moment(peer.next_connect_at.as_ref())),
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
        ("Hold time", time::interval(peer.hold_time.as_ref())),
        (
            "Keepalive",
            time::interval(peer.keepalive_interval.as_ref()),
        ),
        ("Capabilities sent", peer.capabilities_sent.join("\n")),
        (
            "Capabilities received",
            peer.capabilities_received.join("\n"),
        ),
        (
            "Messages",
            format!(
                "{} received ({} UPDATEs, {} bytes), {} sent ({} UPDATEs, {} bytes)",
                counters.messages_received,
                counters.updates_received,
                counters.bytes_received,
                counters.messages_sent,
                counters.updates_sent,
                counters.bytes_sent
            ),
        ),
        (
            "Faults (RFC 7606)",
            format!(
                "{} UPDATEs treated as withdraw, {} attributes discarded",
                counters.treat_as_withdraw, counters.attributes_discarded
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
            "Last NOTIFICATION sent",
            notification(peer.last_notification_sent.as_ref()),
        ),
        (
            "Last NOTIFICATION received",
            notification(peer.last_notification_received.as_ref()),
        ),
    ])?;
    out.line("")?;
    out.table(
        &[
            "FAMILY",
            "NEGOTIATED",
            "RECEIVED",
            "ACCEPTED",
            "SENT",
            "EOR RECEIVED",
            "EOR SENT",
        ],
        &[2, 3, 4],
        peer.families.iter().map(|family| {
            vec![
                family.family.clone(),
                yes(family.negotiated),
                family.received.to_string(),
                family.accepted.to_string(),
                family.advertised.to_string(),
                yes(family.end_of_rib_received),
                yes(family.end_of_rib_sent),
            ]
        }),
    )
}

fn kind(peer: &Peer) -> String {
    if peer.asn == peer.local_asn {
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
fn state(state: PeerState) -> &'static str {
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
