//! `Explain`: everything that is known about one address, in the order a packet would meet it.
//!
//! [`gather`] asks the node, the speaker and the dataplane; [`explain`] turns the answers into
//! steps and a conclusion, and does no IO.

use std::net::IpAddr;

use agentd_proto::v1::{self, ExplainStep, explain_step::Status};
use bgp::speaker::status::{PeerState, Route, RouteQuery, RouteTable};
use dataplane::{
    desired::{Encapsulation, PoolTunnel},
    kernel::{PROTOCOL_AGENTD, PROTOCOL_AGENTD_BGP, Target},
    reconcile::{KernelRoute, Lookup},
};
use ipnet::IpNet;

use super::{
    Context,
    render_routing::{kernel_route_text, reason},
};
use crate::{
    config::is_pool_of_bridge,
    node::{
        Error,
        attachment::Attachment,
        view::{AddressView, BlockState, WorkloadState},
    },
};

/// What the parts of the agent say about an address.
#[derive(Clone, Debug)]
pub struct Facts {
    pub address: IpAddr,
    pub node: String,
    pub view: AddressView,
    pub lookup: Lookup,
    /// How pools are reached, and through which devices.
    pub dataplane: dataplane::reconcile::Status,
    /// Loc-RIB paths of the longest prefix found that covers the address; best first.
    pub paths: Vec<Route>,
    /// Established peers; for those that do not have the own block, why.
    pub advertised: Vec<(String, Option<String>)>,
    /// Peers that sent the prefix of `paths`, each with whether and why it was taken.
    pub received: Vec<Route>,
    pub peers: usize,
    /// Chains of others that drop forwarded packets unless a rule says otherwise.
    pub forward_drops: Vec<String>,
    /// There may be more of them where they cannot be seen.
    pub legacy_filter: bool,
}

pub async fn gather(context: &Context, address: IpAddr) -> Result<Facts, Error> {
    let network = &context.network;
    let view = context.node.address(address).await?;
    let lookup = network.lookup(address).await?;
    let dataplane = network.dataplane().await?;
    let peers = network.peers().await;
    // The speaker lists by prefix: the candidates are what the kernel uses, and the block that
    // the address would be in.
    let mut candidates: Vec<IpNet> = lookup
        .route
        .as_ref()
        .filter(|route| route.protocol == PROTOCOL_AGENTD_BGP)
        .map(|route| route.prefix)
        .into_iter()
        .chain(view.would_be_block)
        .collect();
    candidates.sort_by_key(|prefix| std::cmp::Reverse(prefix.prefix_len()));
    candidates.dedup();
    let exact = |table, peer: Option<String>, prefix: IpNet| async move {
        let page = network
            .routes(RouteQuery {
                table,
                peer,
                prefix: Some(prefix),
                after: None,
                limit: 1,
            })
            .await;
        let mut routes = page.routes;
        routes.retain(|route| route.prefix == prefix);
        routes
    };
    let mut paths = Vec::new();
    let mut received = Vec::new();
    for candidate in candidates {
        paths = exact(RouteTable::LocRib, None, candidate).await;
        received = exact(RouteTable::AdjRibIn, None, candidate).await;
        if !paths.is_empty() || !received.is_empty() {
            break;
        }
    }
    // What is more specific than what is used, or all there is when nothing is: it was refused, and
    // its rule says why.
    let used = paths.first().map(|path| path.prefix.prefix_len());
    let known: Vec<IpNet> = received.iter().map(|route| route.prefix).collect();
    let others = network.received_covering(address).await;
    received.extend(others.into_iter().filter(|route| {
        !known.contains(&route.prefix) && used.is_none_or(|used| route.prefix.prefix_len() > used)
    }));
    let mut advertised = Vec::new();
    if let Some(block) = &view.block {
        for peer in &peers {
            if peer.state == PeerState::Established {
                let routes =
                    exact(RouteTable::AdjRibOut, Some(peer.name.clone()), block.cidr).await;
                let why = if routes.is_empty() {
                    let why = network.why_not_advertised(&peer.name, block.cidr).await;
                    Some(why.unwrap_or_else(|| "about to be sent".to_owned()))
                } else {
                    None
                };
                advertised.push((peer.name.clone(), why));
            }
        }
    }
    Ok(Facts {
        address,
        node: context.identity.name.clone(),
        view,
        lookup,
        dataplane,
        paths,
        advertised,
        received,
        peers: peers.len(),
        forward_drops: network.forward_drops(address).await,
        legacy_filter: network.has_legacy_filter(address).await,
    })
}

/// Collects steps.
struct Steps(Vec<ExplainStep>);

impl Steps {
    fn push(&mut self, subject: &str, status: Status, text: impl Into<String>) {
        self.0.push(ExplainStep {
            subject: subject.to_owned(),
            status: status.into(),
            text: text.into(),
        });
    }
}

pub fn explain(facts: &Facts) -> v1::ExplainResponse {
    let mut steps = Steps(Vec::new());
    pool(facts, &mut steps);
    block(facts, &mut steps);
    let (reachable, summary) = if facts.lookup.local {
        steps.push(
            "owner",
            Status::Ok,
            format!("an address of this node, {}, itself", facts.node),
        );
        (true, format!("{} is this node itself.", facts.address))
    } else if facts.view.block.is_some() {
        own(facts, &mut steps)
    } else {
        foreign(facts, &mut steps)
    };
    for chain in facts.forward_drops.iter().filter(|_| !facts.lookup.local) {
        let text = format!(
            "{chain} of another program drops what none of its rules accepts: \
             see \"Beside other tables\" in docs/design/filter.md"
        );
        steps.push("firewall", Status::Warning, text);
    }
    if facts.legacy_filter && !facts.lookup.local {
        let tool = match facts.address {
            IpAddr::V4(_) => "iptables-legacy",
            IpAddr::V6(_) => "ip6tables-legacy",
        };
        let text = format!(
            "ip_tables (legacy) filters on this node, too; its rules are not seen here: \
             `{tool} -S FORWARD` shows whether they drop"
        );
        steps.push("firewall", Status::Info, text);
    }
    v1::ExplainResponse {
        address: facts.address.to_string(),
        steps: steps.0,
        reachable,
        summary,
    }
}

fn pool(facts: &Facts, steps: &mut Steps) {
    match &facts.view.pool {
        Some(pool) => {
            let disabled = if pool.disabled { ", disabled" } else { "" };
            let tunnel = match pool_tunnel(facts) {
                Some(tunnel) if tunnel.encapsulation != Encapsulation::None => {
                    format!(", {} {}", tunnel.encapsulation, tunnel.scope)
                }
                _ => String::new(),
            };
            steps.push(
                "pool",
                Status::Ok,
                format!("in pool {} ({}{disabled}{tunnel})", pool.name, pool.cidr),
            );
        }
        None => steps.push(
            "pool",
            Status::Info,
            "in no pool of this node's configuration",
        ),
    }
    if facts.view.reserved {
        steps.push(
            "pool",
            Status::Warning,
            "reserved by the configuration: no workload gets it",
        );
    }
}

/// How the pool of the address is reached on other nodes.
fn pool_tunnel(facts: &Facts) -> Option<PoolTunnel> {
    let mut pools = facts.dataplane.pools.iter();
    pools
        .find(|pool| pool.cidr.contains(&facts.address))
        .copied()
}

/// Through which tunnel, to which node.
fn tunnels(facts: &Facts, steps: &mut Steps) {
    let hops = facts.lookup.route.iter().flat_map(|route| &route.hops);
    let mut any = false;
    for hop in hops {
        if let Some(endpoint) = hop.endpoint {
            any = true;
            let text = format!("{}, to {endpoint}", hop.interface);
            steps.push("tunnel", Status::Ok, text);
        }
    }
    let Some(tunnel) = pool_tunnel(facts).filter(|_| !any) else {
        return;
    };
    let devices = facts.dataplane.tunnels.iter();
    for device in devices.filter(|device| device.encapsulation == tunnel.encapsulation) {
        if let Some(failure) = &device.failure {
            let text = format!("{}: {failure}", device.device);
            steps.push("tunnel", Status::Problem, text);
        }
    }
}

fn block(facts: &Facts, steps: &mut Steps) {
    let Some(block) = &facts.view.block else {
        if let Some(block) = facts.view.would_be_block {
            steps.push(
                "block",
                Status::Info,
                format!("would be in block {block}, which this node does not hold"),
            );
        }
        return;
    };
    let (status, state) = match block.state {
        BlockState::Active => (Status::Ok, "active"),
        BlockState::Claimed => (Status::Warning, "claimed, not active yet"),
        BlockState::Releasing => (Status::Warning, "being given back"),
    };
    let reason = if block.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", block.reason)
    };
    steps.push(
        "block",
        status,
        format!(
            "in block {} of this node, {state}{reason}; {} of {} addresses in use",
            block.cidr, block.used, block.size
        ),
    );
}

/// An address of a block of this node.
fn own(facts: &Facts, steps: &mut Steps) -> (bool, String) {
    let address = facts.address;
    steps.push("owner", Status::Ok, format!("this node, {}", facts.node));
    let Some(workload) = &facts.view.workload else {
        let text = match facts.view.cooling {
            Some(left) => format!(
                "no workload has it; it cools down for another {} s",
                left.as_secs()
            ),
            None => "no workload has it".to_owned(),
        };
        steps.push("workload", Status::Problem, text);
        kernel(facts, steps);
        advertised(facts, steps);
        return (
            false,
            format!("{address} belongs to this node, but no workload has it."),
        );
    };
    let problem = match workload.state {
        WorkloadState::Programmed | WorkloadState::Advertised => None,
        WorkloadState::Pending => Some("pending: not confirmed by the kernel yet"),
        WorkloadState::Deleting => Some("being deleted"),
        WorkloadState::Failed => Some("failed"),
    };
    let because = if workload.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", workload.reason)
    };
    match problem {
        None => steps.push(
            "workload",
            Status::Ok,
            format!(
                "workload {}, {}, host interface {}",
                workload.id,
                attached(&workload.spec.attachment),
                workload.host_interface
            ),
        ),
        Some(problem) => steps.push(
            "workload",
            Status::Problem,
            format!("workload {} is {problem}{because}", workload.id),
        ),
    }
    let routed = kernel(facts, steps);
    match (facts.lookup.neighbour, routed) {
        (Some(mac), _) => {
            let mac: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
            steps.push(
                "neighbour",
                Status::Ok,
                format!("permanent, {}", mac.join(":")),
            );
        }
        (None, true) => steps.push(
            "neighbour",
            Status::Info,
            "no permanent entry; resolved when needed",
        ),
        (None, false) => {}
    }
    advertised(facts, steps);
    let holders = facts
        .advertised
        .iter()
        .filter(|(_, why)| why.is_none())
        .count();
    let summary = match (problem, routed) {
        (Some(problem), _) => format!(
            "{address} belongs to workload {} of this node, which is {problem}{because}.",
            workload.id
        ),
        (None, false) => format!(
            "{address} belongs to workload {} of this node, but the kernel has no route to it.",
            workload.id
        ),
        (None, true) if bridge(facts).is_some() => format!(
            "{address} is workload {} on this node, behind bridge {}.",
            workload.id,
            bridge(facts).unwrap_or_default()
        ),
        (None, true) => format!(
            "{address} is workload {} on this node; its block is advertised to {holders} of {} peers.",
            workload.id, facts.peers
        ),
    };
    (problem.is_none() && routed, summary)
}

/// An address that is no business of this node, but may be of another.
fn foreign(facts: &Facts, steps: &mut Steps) -> (bool, String) {
    let address = facts.address;
    let best = facts.paths.iter().find(|route| route.best);
    match best {
        Some(route) => {
            let attributes = &route.attributes;
            steps.push(
                "owner",
                Status::Ok,
                match &route.discarded {
                    None => format!(
                        "another node: {} with next hop {}",
                        route.prefix, attributes.next_hop.address
                    ),
                    Some(_) => format!("another node, which has {} dropped", route.prefix),
                },
            );
            let path = attributes.as_path.to_string();
            steps.push(
                "bgp",
                Status::Ok,
                format!(
                    "{} learned from {}, AS path {}; {}",
                    route.prefix,
                    route.peer.as_deref().unwrap_or("this node"),
                    if path.is_empty() { "empty" } else { &path },
                    reason(route)
                ),
            );
        }
        None => steps.push("bgp", Status::Info, "no route in the Loc-RIB covers it"),
    }
    for route in &facts.received {
        if !route.best {
            steps.push(
                "bgp",
                if best.is_some() {
                    Status::Info
                } else {
                    Status::Problem
                },
                format!(
                    "{} {}received from {}: {}",
                    route.prefix,
                    if best.is_some() { "also " } else { "" },
                    route.peer.as_deref().unwrap_or("this node"),
                    reason(route)
                ),
            );
        }
    }
    let routed = kernel(facts, steps);
    tunnels(facts, steps);
    let via = |route: &KernelRoute| {
        route
            .hops
            .iter()
            .filter_map(|hop| hop.endpoint.or(hop.gateway))
            .map(|gateway| gateway.to_string())
            .collect::<Vec<_>>()
            .join(" and ")
    };
    let summary = match (&facts.lookup.route, best, routed) {
        (Some(route), Some(best), true) if route.protocol == PROTOCOL_AGENTD_BGP => format!(
            "{address} is reached by {} via {}, learned from {}.",
            route.prefix,
            via(route),
            best.peer.as_deref().unwrap_or("this node")
        ),
        (Some(route), _, true) => format!(
            "{address} is reached by {}, a route that is not agentd's.",
            kernel_route_text(route)
        ),
        (Some(route), Some(best), false)
            if best.discarded.is_some() && route.protocol == PROTOCOL_AGENTD_BGP =>
        {
            format!(
                "{address} is dropped on this node: {} wants {} to be a blackhole (RFC 7999).",
                best.peer.as_deref().unwrap_or("this node"),
                best.prefix
            )
        }
        (_, Some(best), false) => format!(
            "{address} is covered by {} in BGP, but the kernel has no usable route to it.",
            best.prefix
        ),
        _ if !facts.received.is_empty() => {
            format!("{address} is covered by what a peer sent, but none of it was accepted.")
        }
        _ => format!(
            "Nothing leads to {address}: no block of this node, no BGP route, no kernel route."
        ),
    };
    (routed, summary)
}

/// Whether the kernel forwards packets to the address.
fn kernel(facts: &Facts, steps: &mut Steps) -> bool {
    let Some(route) = &facts.lookup.route else {
        steps.push("kernel route", Status::Problem, "no route covers it");
        return false;
    };
    let text = kernel_route_text(route);
    match &route.target {
        Target::Blackhole | Target::Reject => {
            let honoured = route.protocol == PROTOCOL_AGENTD_BGP
                && facts.paths.iter().any(|path| path.discarded.is_some());
            let expected = honoured || facts.view.workload.is_none() && facts.view.block.is_some();
            steps.push(
                "kernel route",
                if expected {
                    Status::Info
                } else {
                    Status::Problem
                },
                format!("{text}: packets are dropped"),
            );
            false
        }
        _ => {
            // The host route of a workload is one of ours; anything else only happens to cover it.
            // To workloads on a bridge leads the route of its subnet, which the kernel makes.
            let of_bridge = bridge(facts).is_some_and(|bridge| {
                let mut words = text.split(' ');
                words.any(|word| word == "dev") && words.next() == Some(bridge)
            });
            if facts.view.workload.is_some() && route.protocol != PROTOCOL_AGENTD && !of_bridge {
                steps.push(
                    "kernel route",
                    Status::Problem,
                    format!("{text}: not the workload's route"),
                );
                return false;
            }
            steps.push("kernel route", Status::Ok, text);
            true
        }
    }
}

fn advertised(facts: &Facts, steps: &mut Steps) {
    let Some(block) = &facts.view.block else {
        return;
    };
    let pool = facts.view.pool.as_ref();
    if pool.is_some_and(|pool| is_pool_of_bridge(&pool.name)) {
        let text = "never: the subnet of a bridge is known to its node only";
        steps.push("advertised", Status::Info, text);
        return;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for (name, why) in &facts.advertised {
        match why {
            None => with.push(name.clone()),
            Some(why) => without.push(format!("{name} ({why})")),
        }
    }
    let (with, without) = (with.join(", "), without.join(", "));
    if with.is_empty() {
        let why = if facts.peers == 0 {
            "no peer is configured".to_owned()
        } else if without.is_empty() {
            format!("none of {} peers is Established", facts.peers)
        } else {
            format!("not sent to {without}")
        };
        steps.push(
            "advertised",
            Status::Warning,
            format!("{} is advertised to nobody: {why}", block.cidr),
        );
    } else {
        let rest = if without.is_empty() {
            String::new()
        } else {
            format!("; not to {without}")
        };
        steps.push(
            "advertised",
            Status::Ok,
            format!("{} is advertised to {with}{rest}", block.cidr),
        );
    }
}

/// The bridge that the workload is on.
fn bridge(facts: &Facts) -> Option<&str> {
    match &facts.view.workload.as_ref()?.spec.attachment {
        Attachment::Bridged { bridge, .. } => Some(bridge),
        _ => None,
    }
}

/// Where the workload's end is.
fn attached(attachment: &Attachment) -> String {
    match (attachment, attachment.namespace(), attachment.interface()) {
        (Attachment::Bridged { bridge, .. }, Some(namespace), Some(interface)) => format!(
            "{} in {} on bridge {bridge}",
            interface.as_str(),
            namespace.name
        ),
        (_, Some(namespace), Some(interface)) => {
            format!("{} in {}", interface.as_str(), namespace.name)
        }
        (Attachment::Tap(_), ..) => "a virtual machine".to_owned(),
        _ => attachment.kind().to_owned(),
    }
}
