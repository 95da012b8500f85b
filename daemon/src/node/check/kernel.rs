//! What is to be in the kernel, and what is there: links, routes, neighbours, blackholes, leaks.
//!
//! What is expected stands here a second time on purpose: see the module above.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use dataplane::{
    kernel::{
        ALIAS_PREFIX, BRIDGE_ALIAS_PREFIX, GATEWAY_V4, GATEWAY_V6, HOST_MAC, INTERFACE_PREFIX,
        Link, LinkKind, PROTOCOL_AGENTD, PROTOCOL_AGENTD_BGP, TUNNEL_PREFIX, Target,
    },
    reconcile::host_interface,
};
use ipnet::IpNet;

use super::{Kind, Report, Sources};
use crate::{
    ipam::AuditedBlock,
    node::{WorkloadId, attachment::Attachment, audit::AuditedWorkload, view::BlockState},
};

/// What has a link in the host's namespace.
fn has_link(attachment: &Attachment) -> bool {
    matches!(
        attachment,
        Attachment::Routed(_) | Attachment::Tap(_) | Attachment::Bridged { .. }
    )
}

/// The id that a link is marked with.
fn marked_with(link: &Link) -> Option<&str> {
    if link.name.starts_with(TUNNEL_PREFIX) {
        return None;
    }
    let id = link.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)?;
    (link.kind == LinkKind::Tap || host_interface(id) == link.name).then_some(id)
}

/// Workloads that are to stand, with their links.
fn standing<'s>(sources: &'s Sources, report: &mut Report) -> Vec<(&'s AuditedWorkload, &'s Link)> {
    let links: HashMap<&str, &Link> = sources
        .kernel
        .links
        .iter()
        .filter_map(|link| Some((marked_with(link)?, link)))
        .collect();
    let mut standing = Vec::new();
    for workload in sources.node.workloads.iter().filter(|w| w.settled) {
        let id = &workload.view.id;
        if let Some(why) = &workload.failure {
            report.add(Kind::Kernel, id, format!("the kernel refuses it: {why}"));
            continue;
        }
        if !has_link(&workload.view.spec.attachment) {
            continue;
        }
        match links.get(id.as_str()) {
            None => report.add(Kind::Kernel, id, "it has no link in the host's namespace"),
            Some(link) => {
                if !link.up {
                    report.add(Kind::Kernel, id, format!("its link {} is down", link.name));
                }
                standing.push((workload, *link));
            }
        }
    }
    standing
}

/// Links and host routes of workloads.
pub(super) fn host(sources: &Sources, report: &mut Report) {
    let routes: HashMap<IpNet, &Target> = sources
        .kernel
        .routes
        .iter()
        .filter(|route| route.protocol == PROTOCOL_AGENTD)
        .map(|route| (route.prefix, &route.target))
        .collect();
    let by_name: HashMap<&str, &Link> = sources
        .kernel
        .links
        .iter()
        .map(|link| (link.name.as_str(), link))
        .collect();
    for (workload, link) in standing(sources, report) {
        let id = &workload.view.id;
        match &workload.view.spec.attachment {
            Attachment::Bridged { bridge, .. } => {
                let master = by_name.get(bridge.as_str()).map(|bridge| bridge.index);
                if master.is_none() || link.master != master {
                    let text = format!("its link {} is no port of {bridge}", link.name);
                    report.add(Kind::Kernel, id, text);
                }
                continue;
            }
            Attachment::Tap(tap) if tap.mac.is_some() => {
                for assigned in &workload.view.addresses {
                    let found = sources.kernel.neighbours.iter().any(|neighbour| {
                        neighbour.index == link.index
                            && neighbour.address == assigned.address
                            && Some(neighbour.mac) == tap.mac.map(|mac| mac.bytes())
                    });
                    if !found {
                        let text = format!("{} has no neighbour entry", assigned.address);
                        report.add(Kind::Kernel, id, text);
                    }
                }
            }
            _ => {}
        }
        for assigned in &workload.view.addresses {
            let address = assigned.address;
            match routes.get(&IpNet::from(address)) {
                Some(Target::Link { index }) if *index == link.index => {}
                Some(other) => {
                    let text = format!("the route of {address} leads elsewhere: {other:?}");
                    report.add(Kind::Kernel, id, text);
                }
                None => {
                    let text = format!("there is no route to {address}");
                    report.add(Kind::Kernel, id, text);
                }
            }
        }
    }
}

/// What workloads see.
pub(super) fn inside(sources: &Sources, report: &mut Report) {
    let mut seen: BTreeMap<IpAddr, &WorkloadId> = BTreeMap::new();
    for workload in sources.node.workloads.iter().filter(|w| w.settled) {
        let view = &workload.view;
        let attachment = &view.spec.attachment;
        let (Attachment::Routed(inside) | Attachment::Bridged { inside, .. }) = attachment else {
            continue;
        };
        if workload.failure.is_some() {
            continue;
        }
        let snapshot = match sources.inside.get(&view.id) {
            // It came meanwhile.
            None => continue,
            Some(Err(why)) => {
                report.add(Kind::Kernel, &view.id, format!("its namespace: {why}"));
                continue;
            }
            Some(Ok(snapshot)) => snapshot,
        };
        let name = inside.interface.as_str();
        let Some(link) = snapshot.links.iter().find(|link| link.name == name) else {
            let text = format!("there is no interface {name} in its namespace");
            report.add(Kind::Kernel, &view.id, text);
            continue;
        };
        if !link.up {
            let text = format!("{name} in its namespace is down");
            report.add(Kind::Kernel, &view.id, text);
        }
        for assigned in &view.addresses {
            let address = assigned.address;
            let has = |entry: &dataplane::kernel::Address| {
                entry.index == link.index && entry.net.addr() == address
            };
            if !snapshot.addresses.iter().any(has) {
                let text = format!("{name} in its namespace has not {address}");
                report.add(Kind::Kernel, &view.id, text);
            }
            if let Some(other) = seen.insert(address, &view.id) {
                let text = format!("workloads {other} and {} both have it", view.id);
                report.add(Kind::AddressTwice, address, text);
            }
            if !attachment.is_routed() {
                continue;
            }
            let gateway = match address {
                IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
                IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
            };
            let answers = snapshot.neighbours.iter().any(|neighbour| {
                neighbour.index == link.index
                    && neighbour.address == gateway
                    && neighbour.mac == HOST_MAC
            });
            if !answers {
                let text = format!("its namespace has no neighbour entry of {gateway}");
                report.add(Kind::Kernel, &view.id, text);
            }
            let default = snapshot.routes.iter().any(|route| {
                route.prefix.prefix_len() == 0
                    && route.prefix.addr().is_ipv4() == address.is_ipv4()
                    && matches!(&route.target, Target::Gateways(list)
                        if list.iter().any(|hop| hop.address == Some(gateway)))
            });
            if !default {
                let text = format!("its namespace has no default route by {gateway}");
                report.add(Kind::Kernel, &view.id, text);
            }
        }
    }
}

/// A block of one address has none: its workload's route stands there.
fn wants_blackhole(block: &AuditedBlock) -> bool {
    !block.local && block.cidr.prefix_len() < block.cidr.max_prefix_len()
}

pub(super) fn blackholes(sources: &Sources, report: &mut Report) {
    let present: BTreeSet<IpNet> = sources
        .kernel
        .routes
        .iter()
        .filter(|route| route.protocol == PROTOCOL_AGENTD && route.target == Target::Blackhole)
        .map(|route| route.prefix)
        .collect();
    for block in &sources.node.ipam.blocks {
        let stands = block.state == BlockState::Active;
        if stands && wants_blackhole(block) && !present.contains(&block.cidr) {
            report.add(Kind::Kernel, block.cidr, "the block has no blackhole route");
        }
    }
}

/// What carries our marks and is of nobody.
pub(super) fn leaks(sources: &Sources, report: &mut Report) {
    let node = &sources.node;
    let workloads: BTreeMap<&str, &AuditedWorkload> = node
        .workloads
        .iter()
        .map(|workload| (workload.view.id.as_str(), workload))
        .collect();
    let recorded: BTreeSet<&str> = sources
        .records
        .workloads
        .iter()
        .map(|record| record.id.as_str())
        .collect();
    let mut links: HashMap<u32, &Link> = HashMap::new();
    for link in &sources.kernel.links {
        links.insert(link.index, link);
        let alias = link.alias.as_deref().unwrap_or_default();
        if let Some(name) = alias.strip_prefix(BRIDGE_ALIAS_PREFIX) {
            if !node.bridges.contains(name) {
                report.add(
                    Kind::Leak,
                    &link.name,
                    "a bridge that the configuration has not",
                );
            }
            continue;
        }
        if let Some(id) = marked_with(link) {
            let wanted = workloads
                .get(id)
                .is_some_and(|known| has_link(&known.view.spec.attachment));
            if !wanted && !recorded.contains(id) {
                let text = format!("a link of {id:?}, which is no workload");
                report.add(Kind::Leak, &link.name, text);
            }
        } else if link.alias.is_none()
            && link.kind == LinkKind::Veth
            && link.name.len() == INTERFACE_PREFIX.len() + 11
            && link.name.starts_with(INTERFACE_PREFIX)
            && link.mac.is_some_and(|mac| mac[..2] == HOST_MAC[..2])
        {
            report.add(Kind::Leak, &link.name, "a link that was not completed");
        }
    }
    let addresses: BTreeSet<IpNet> = node
        .workloads
        .iter()
        .flat_map(|workload| &workload.view.addresses)
        .chain(
            sources
                .records
                .workloads
                .iter()
                .flat_map(|record| &record.addresses),
        )
        .map(|assigned| IpNet::from(assigned.address))
        .collect();
    let blocks: BTreeSet<IpNet> = node
        .ipam
        .blocks
        .iter()
        .filter(|block| wants_blackhole(block))
        .map(|block| block.cidr)
        .collect();
    for route in &sources.kernel.routes {
        match (route.protocol, &route.target) {
            (PROTOCOL_AGENTD, Target::Blackhole) if !blocks.contains(&route.prefix) => {
                report.add(Kind::Leak, route.prefix, "a blackhole of no block");
            }
            (PROTOCOL_AGENTD, Target::Link { index }) => {
                let tunnel = links
                    .get(index)
                    .is_some_and(|link| link.name.starts_with(TUNNEL_PREFIX));
                if !tunnel && !addresses.contains(&route.prefix) {
                    report.add(
                        Kind::Leak,
                        route.prefix,
                        "a route to an address of no workload",
                    );
                }
            }
            (PROTOCOL_AGENTD_BGP, _) if node.routes_synced => {
                let own = blocks.iter().find(|block| block.contains(&route.prefix));
                if let Some(block) = own {
                    let text = format!("a learned route into the own block {block}");
                    report.add(Kind::Leak, route.prefix, text);
                }
            }
            _ => {}
        }
    }
}
