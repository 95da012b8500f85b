//! `agentctl peer` and `agentctl reload`.

use std::net::IpAddr;

use agentd_proto::v1::{
    self, AddPeerRequest, EnablePeerRequest, ListPeersRequest, PeerRange, PeerSpec, ReloadRequest,
    RemovePeerRequest, ResetPeerRequest, ShutdownPeerRequest, WatchPeersRequest,
    reload_change::Effect, reset_peer_request::Mode, watch_peers_response::Kind,
};
use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::{
    client::{Client, Error},
    output::Output,
    peer_show::{self, state},
    time,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the BGP peers, and the ranges they may come from
    List,
    /// Show all that is known of one peer or range
    Show {
        /// Name in the configuration
        name: String,
    },
    /// Show each change of a peer as it happens
    Watch,
    /// Add a peer or range; it is kept until it is removed
    Add(Box<Add>),
    /// Remove a peer or range that was added
    Remove { name: String },
    /// End the session and start it again, or exchange all routes again
    Reset(Reset),
    /// End the session and keep it down, over restarts too, until it is enabled
    Shutdown {
        name: String,
        /// Told to the peer and shown in its log (RFC 9003); at most 255 bytes
        #[arg(long, value_name = "TEXT", default_value = "")]
        message: String,
    },
    /// Let the session of a peer that was shut down, or is held after an error, start
    Enable { name: String },
}

#[derive(Debug, Args)]
pub struct Add {
    /// Unique among peers and ranges
    name: String,
    /// Where it is reached
    #[arg(long, value_name = "IP", required_unless_present = "range")]
    address: Option<IpAddr>,
    /// Or from where peers connect
    #[arg(long, value_name = "PREFIX", conflicts_with = "address")]
    range: Option<IpNet>,
    /// Its autonomous system; several times where it may be one of several. Default: any but ours
    #[arg(long = "asn", value_name = "AS")]
    asns: Vec<u32>,
    /// Of a range: most peers at once
    #[arg(long, value_name = "COUNT", conflicts_with = "address")]
    limit: Option<u32>,
    /// To connect to
    #[arg(long)]
    port: Option<u16>,
    #[arg(long, value_name = "IP")]
    local_address: Option<IpAddr>,
    /// Wait for the peer to connect
    #[arg(long)]
    passive: bool,
    /// A route reflector client
    #[arg(long)]
    client: bool,
    /// File on the node with the TCP MD5 key
    #[arg(long, value_name = "PATH")]
    password_file: Option<String>,
    /// GTSM: the most hops away
    #[arg(long, value_name = "HOPS")]
    ttl_security: Option<u8>,
    #[arg(long, value_name = "HOPS")]
    multihop: Option<u8>,
    /// ipv4-unicast or ipv6-unicast; default: both
    #[arg(long = "family", value_name = "FAMILY")]
    families: Vec<String>,
    #[arg(long, value_name = "COUNT")]
    max_prefixes: Option<u32>,
    /// Honour BLACKHOLE (65535:666): drop what is sent to such prefixes (RFC 7999)
    #[arg(long)]
    blackhole: bool,
    /// Import policy
    #[arg(long, value_name = "POLICY")]
    import: Option<String>,
    /// Export policy
    #[arg(long, value_name = "POLICY")]
    export: Option<String>,
    /// In seconds
    #[arg(long, value_name = "SECONDS")]
    hold_time: Option<u16>,
}

#[derive(Debug, Args)]
pub struct Reset {
    /// A peer; or a range, for all of its peers
    name: String,
    /// Keep the session: ask for the peer's routes again, and send ours again
    #[arg(long, conflicts_with_all = ["soft_in", "soft_out"])]
    soft: bool,
    /// Keep the session: ask for the peer's routes again
    #[arg(long)]
    soft_in: bool,
    /// Keep the session: send our routes again
    #[arg(long)]
    soft_out: bool,
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<(), Error> {
    let mut routing = client.routing();
    match command {
        Command::List => list(client, out).await,
        Command::Show { name } => peer_show::run(name, client, out).await,
        Command::Watch => watch(client, out).await,
        Command::Add(add) => {
            let name = add.name.clone();
            let request = AddPeerRequest {
                peer: Some(spec(*add)),
            };
            let response = routing.add_peer(request).await?.into_inner();
            let text = if response.created {
                "added"
            } else {
                "was there already"
            };
            done(out, "AddPeerResponse", &response, &name, text)
        }
        Command::Remove { name } => {
            let request = RemovePeerRequest { name: name.clone() };
            let response = routing.remove_peer(request).await?.into_inner();
            let text = if response.removed {
                "removed"
            } else {
                "was gone already"
            };
            done(out, "RemovePeerResponse", &response, &name, text)
        }
        Command::Reset(reset) => {
            let (mode, text) = match (reset.soft, reset.soft_in, reset.soft_out) {
                (false, false, false) => (Mode::Hard, "reset; its session starts again"),
                (false, true, false) => (Mode::SoftIn, "asked for its routes"),
                (false, false, true) => (Mode::SoftOut, "is sent all routes again"),
                _ => (
                    Mode::Soft,
                    "asked for its routes, and is sent all routes again",
                ),
            };
            let request = ResetPeerRequest {
                name: reset.name.clone(),
                mode: mode.into(),
            };
            let response = routing.reset_peer(request).await?.into_inner();
            done(out, "ResetPeerResponse", &response, &reset.name, text)
        }
        Command::Shutdown { name, message } => {
            let request = ShutdownPeerRequest {
                name: name.clone(),
                text: message,
            };
            let response = routing.shutdown_peer(request).await?.into_inner();
            let text = format!("shut down; agentctl peer enable {name} takes it back");
            done(out, "ShutdownPeerResponse", &response, &name, &text)
        }
        Command::Enable { name } => {
            let request = EnablePeerRequest { name: name.clone() };
            let response = routing.enable_peer(request).await?.into_inner();
            done(out, "EnablePeerResponse", &response, &name, "enabled")
        }
    }
}

fn done<M: prost::Message>(
    out: &mut Output,
    message: &str,
    response: &M,
    name: &str,
    text: &str,
) -> Result<(), Error> {
    if out.is_json() {
        out.json(message, response)
    } else {
        out.line(format!("peer {name}: {text}"))
    }
}

fn spec(add: Add) -> PeerSpec {
    let text = |value: Option<IpAddr>| value.map(|value| value.to_string()).unwrap_or_default();
    PeerSpec {
        name: add.name,
        address: text(add.address),
        range: add.range.map(|range| range.to_string()).unwrap_or_default(),
        limit: add.limit.unwrap_or(0),
        asns: add.asns,
        port: add.port.unwrap_or(0).into(),
        local_address: text(add.local_address),
        passive: add.passive,
        route_reflector_client: add.client,
        blackhole: add.blackhole,
        password_file: add.password_file.unwrap_or_default(),
        ttl_security: add.ttl_security.unwrap_or(0).into(),
        multihop: add.multihop.unwrap_or(0).into(),
        families: add.families,
        max_prefixes: add.max_prefixes.unwrap_or(0),
        import: add.import.unwrap_or_default(),
        export: add.export.unwrap_or_default(),
        hold_time: add.hold_time.map(|seconds| prost_types::Duration {
            seconds: seconds.into(),
            nanos: 0,
        }),
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
            let sum = |count: fn(&v1::PeerFamily) -> u64| {
                peer.families.iter().map(count).sum::<u64>().to_string()
            };
            vec![
                peer.name.clone(),
                peer.address.clone(),
                if peer.asn == 0 {
                    String::new()
                } else {
                    peer.asn.to_string()
                },
                state(peer.state()).to_owned(),
                time::age(peer.since.as_ref()),
                sum(|family| family.received),
                sum(|family| family.accepted),
                sum(|family| family.advertised),
                peer_show::reason(peer),
            ]
        }),
    )?;
    if response.ranges.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.table(
        &[
            "RANGE", "PREFIX", "AS", "LIMIT", "PEERS", "UP", "ACCEPTED", "REFUSED", "STATE",
        ],
        &[3, 4, 5, 6, 7],
        response.ranges.iter().map(|range| {
            vec![
                range.name.clone(),
                range.range.clone(),
                range.asn.clone(),
                range.limit.to_string(),
                range.peers.to_string(),
                range.peers_established.to_string(),
                range.accepted.to_string(),
                range.refused.to_string(),
                range_state(range),
            ]
        }),
    )
}

fn range_state(range: &PeerRange) -> String {
    match &range.shutdown {
        Some(shutdown) => peer_show::shut_down(shutdown),
        None => "open".to_owned(),
    }
}

async fn watch(client: &Client, out: &mut Output) -> Result<(), Error> {
    let mut stream = client
        .routing()
        .watch_peers(WatchPeersRequest {})
        .await?
        .into_inner();
    while let Some(event) = stream.message().await? {
        if out.is_json() {
            out.json_line("WatchPeersResponse", &event)?;
            continue;
        }
        match (event.kind(), &event.peer) {
            (Kind::Peer, Some(peer)) => {
                let reason = peer_show::reason(peer);
                let reason = if reason.is_empty() {
                    reason
                } else {
                    format!(": {reason}")
                };
                out.line(super::output::printable(&format!(
                    "{} {} {}{reason}",
                    peer.name,
                    peer.address,
                    state(peer.state()),
                )))?;
            }
            (Kind::Gone, _) => out.line(format!("{} is gone", event.name))?,
            _ => {}
        }
    }
    Ok(())
}

/// `agentctl reload`
pub async fn reload(client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client.node().reload(ReloadRequest {}).await?.into_inner();
    if out.is_json() {
        return out.json("ReloadResponse", &response);
    }
    if response.changes.is_empty() && response.needs_restart.is_empty() {
        return out.line("nothing has changed");
    }
    if !response.changes.is_empty() {
        out.table(
            &["CHANGE", "EFFECT", "WHAT"],
            &[],
            response.changes.iter().map(|change| {
                vec![
                    change.subject.clone(),
                    effect(change.effect()).to_owned(),
                    change.text.clone(),
                ]
            }),
        )?;
    }
    if !response.needs_restart.is_empty() {
        out.line(format!(
            "a restart is needed for: {}",
            response.needs_restart.join(", ")
        ))?;
    }
    Ok(())
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Unspecified => "unknown",
        Effect::Live => "in force",
        Effect::NextSession => "from the next session",
        Effect::Reset => "in force, session started anew",
        Effect::Added => "added",
        Effect::Removed => "removed",
        Effect::Failed => "FAILED",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: Command,
    }

    fn parsed(words: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("peer").chain(words.split(' '));
        Program::try_parse_from(words).map(|program| program.command)
    }

    #[test]
    fn a_peer_is_added_with_an_address_or_a_range() {
        let one = parsed("add tor --address 10.0.0.1 --asn 64513 --hold-time 30");
        let Ok(Command::Add(add)) = one else {
            panic!("{one:?}");
        };
        let spec = spec(*add);
        assert_eq!(
            (spec.name.as_str(), spec.address.as_str()),
            ("tor", "10.0.0.1")
        );
        assert_eq!(spec.asns, [64513]);
        assert_eq!(spec.hold_time.map(|time| time.seconds), Some(30));
        for words in [
            "add leaves --range 10.0.0.0/24 --limit 5",
            "add leaves --range fd00::/64 --asn 1 --asn 2",
            "reset tor --soft",
            "reset tor --soft-in --soft-out",
            "shutdown tor --message text",
        ] {
            assert!(parsed(words).is_ok(), "{words}");
        }
        for words in [
            "add tor",
            "add tor --address 10.0.0.1 --range 10.0.0.0/24",
            "add tor --address 10.0.0.1 --limit 5",
            "add --address 10.0.0.1",
            "reset",
            "reset tor --soft --soft-in",
        ] {
            assert!(parsed(words).is_err(), "{words}");
        }
    }
}
