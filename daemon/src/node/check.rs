//! Whether everybody tells the same story: records on disk, the allocator, the kernel, BGP.
//!
//! Pure: what each says was read before, by whoever asks. Nothing is taken from one source to
//! judge itself. What is expected of the kernel follows from the records, and is written down here
//! a second time on purpose: the code that programs the kernel would find its own mistakes right.
//!
//! The sources are read one after the other while the agent goes on, so a single comparison may see
//! what is on its way. Whoever asks compares more than once, and believes what every look has seen
//! ([`Report::confirm`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use bgp::speaker::status::ForeignClaim;
use dataplane::{
    desired::Netns,
    kernel::{
        ALIAS_PREFIX, BRIDGE_ALIAS_PREFIX, GATEWAY_V4, GATEWAY_V6, HOST_MAC, INTERFACE_PREFIX,
        Link, LinkKind, PROTOCOL_AGENTD, PROTOCOL_AGENTD_BGP, Snapshot, TUNNEL_PREFIX, Target,
    },
    reconcile::host_interface,
};
use ipnet::IpNet;

use super::{
    WorkloadId,
    attachment::Attachment,
    audit::{AuditedWorkload, NodeAudit},
    view::BlockState,
};
use crate::{config, ipam::AuditedBlock, store::Recovered};

/// What each source says.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub node: NodeAudit,
    /// Read from the database.
    pub records: Recovered,
    /// The host's namespace, read from the kernel.
    pub kernel: Snapshot,
    /// The namespace of each workload that has one; or why it cannot be read.
    pub inside: BTreeMap<WorkloadId, Result<Snapshot, String>>,
    /// `None`: no speaker runs.
    pub bgp: Option<BgpSays>,
}

/// What the speaker says.
#[derive(Clone, Debug, Default)]
pub struct BgpSays {
    pub originated: Vec<IpNet>,
    pub claims: Vec<ForeignClaim>,
    /// Blocks that an Established peer is to have and has not: peer, block, why.
    pub missing: Vec<(String, IpNet, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Record,
    AddressTwice,
    Block,
    Count,
    Kernel,
    Leak,
    Bgp,
    DuplicateClaim,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub kind: Kind,
    pub subject: String,
    /// For a person.
    pub text: String,
}

/// What was compared, and what is not as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub workloads: u64,
    pub addresses: u64,
    pub blocks: u64,
    pub problems: BTreeSet<Problem>,
}

impl Report {
    /// Keeps what an earlier look has seen, too.
    pub fn confirm(&mut self, earlier: &Report) {
        self.problems
            .retain(|problem| earlier.problems.contains(problem));
    }

    fn add(&mut self, kind: Kind, subject: impl ToString, text: impl Into<String>) {
        self.problems.insert(Problem {
            kind,
            subject: subject.to_string(),
            text: text.into(),
        });
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Compares everything with everything.
pub fn check(sources: &Sources) -> Report {
    let recorded = sources.records.workloads.iter();
    let mut report = Report {
        workloads: count(sources.records.workloads.len()),
        addresses: count(recorded.map(|record| record.addresses.len()).sum()),
        blocks: count(sources.records.blocks.len()),
        problems: BTreeSet::new(),
    };
    records(sources, &mut report);
    addresses(sources, &mut report);
    allocator(sources, &mut report);
    host(sources, &mut report);
    inside(sources, &mut report);
    blackholes(sources, &mut report);
    leaks(sources, &mut report);
    announced(sources, &mut report);
    report
}

/// Records and the agent's own memory.
fn records(sources: &Sources, report: &mut Report) {
    let records: BTreeMap<_, _> = sources
        .records
        .workloads
        .iter()
        .map(|record| (&record.id, record))
        .collect();
    let known: BTreeMap<_, _> = sources
        .node
        .workloads
        .iter()
        .map(|workload| (&workload.view.id, workload))
        .collect();
    for (id, record) in &records {
        let Some(workload) = known.get(id) else {
            report.add(
                Kind::Record,
                id,
                "it has a record, and the agent does not know it",
            );
            continue;
        };
        let view = &workload.view;
        if !workload.settled {
            continue;
        }
        if view.generation != record.generation {
            let text = format!(
                "its record has generation {}, the agent has {}",
                record.generation, view.generation
            );
            report.add(Kind::Record, id, text);
        }
        let own = view.spec.attachment.desired().is_some();
        if own && view.addresses != record.addresses {
            report.add(
                Kind::Record,
                id,
                "its record names other addresses than the agent",
            );
        }
        if record.generation > sources.records.generation {
            let text = format!(
                "its generation {} is higher than the counter on disk, {}: it could be used again",
                record.generation, sources.records.generation
            );
            report.add(Kind::Record, id, text);
        }
    }
    for (id, workload) in known {
        if workload.settled && !records.contains_key(id) {
            report.add(Kind::Record, id, "it stands, and has no record");
        }
    }
    let blocks: BTreeSet<_> = sources.records.blocks.iter().map(|b| b.cidr).collect();
    for block in &sources.node.ipam.blocks {
        if block.persisted && !blocks.contains(&block.cidr) {
            report.add(
                Kind::Record,
                block.cidr,
                "the block is held, and has no record",
            );
        }
    }
    let held: BTreeSet<_> = sources.node.ipam.blocks.iter().map(|b| b.cidr).collect();
    for cidr in blocks.difference(&held) {
        report.add(
            Kind::Record,
            cidr,
            "the block has a record, and is not held",
        );
    }
}

/// Each address once, in exactly one block.
fn addresses(sources: &Sources, report: &mut Report) {
    let records = &sources.records;
    let mut owners: BTreeMap<IpAddr, &WorkloadId> = BTreeMap::new();
    let blocks: BTreeSet<IpNet> = records.blocks.iter().map(|block| block.cidr).collect();
    for record in &records.workloads {
        for assigned in &record.addresses {
            let address = assigned.address;
            if let Some(other) = owners.insert(address, &record.id) {
                let text = format!("workloads {other} and {} are recorded with it", record.id);
                report.add(Kind::AddressTwice, address, text);
            }
            if !blocks.contains(&assigned.block) || !assigned.block.contains(&address) {
                let text = format!(
                    "workload {} is recorded with it in {}, which is no recorded block of it",
                    record.id, assigned.block
                );
                report.add(Kind::Block, address, text);
            }
        }
    }
    let cooling_records: BTreeMap<IpAddr, _> = records
        .cooling
        .iter()
        .map(|record| (record.address, record))
        .collect();
    for cooling in &sources.node.ipam.cooling {
        let address = cooling.address;
        if let Some(owner) = owners.get(&address) {
            let text = format!("workload {owner} is recorded with it, and it cools down");
            report.add(Kind::AddressTwice, address, text);
        }
        let recorded = cooling_records.get(&address).is_some_and(|record| {
            record.id == cooling.id && record.generation == cooling.generation
        });
        if !recorded {
            report.add(
                Kind::Record,
                address,
                "it cools down, and has no record of that",
            );
        }
    }
    let mut sorted: Vec<IpNet> = blocks.into_iter().collect();
    sorted.sort();
    for (index, block) in sorted.iter().enumerate() {
        if let Some(next) = sorted.get(index + 1)
            && block.contains(next)
        {
            report.add(
                Kind::Block,
                next,
                format!("it lies inside {block}, and both are held"),
            );
        }
    }
}

/// Bits, counts and owners of the allocator against the records.
fn allocator(sources: &Sources, report: &mut Report) {
    let ipam = &sources.node.ipam;
    let holders: HashMap<IpAddr, &WorkloadId> =
        ipam.holders.iter().map(|(at, id)| (*at, id)).collect();
    let unsettled: BTreeSet<&WorkloadId> = sources
        .node
        .workloads
        .iter()
        .filter(|workload| !workload.settled)
        .map(|workload| &workload.view.id)
        .collect();
    let mut used: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
    for record in &sources.records.workloads {
        for assigned in &record.addresses {
            used.entry(assigned.block)
                .or_default()
                .insert(assigned.address);
            if holders.get(&assigned.address) != Some(&&record.id) {
                let text = format!(
                    "workload {} is recorded with it, and the allocator gives it to {}",
                    record.id,
                    holders
                        .get(&assigned.address)
                        .map_or("nobody", |id| id.as_str())
                );
                report.add(Kind::Count, assigned.address, text);
            }
        }
    }
    // What is on its way is in use already, or still.
    for (address, id) in ipam.holders.iter().filter(|(_, id)| unsettled.contains(id)) {
        let held = ipam.workloads.iter().find(|(known, ..)| known == id);
        let assigned = held.and_then(|(_, _, list)| list.iter().find(|a| a.address == *address));
        if let Some(assigned) = assigned {
            used.entry(assigned.block).or_default().insert(*address);
        }
    }
    let all: BTreeSet<IpAddr> = used.values().flatten().copied().collect();
    for (address, id) in &ipam.holders {
        if !all.contains(address) {
            let text = format!("the allocator gives it to {id}, and no record does: it is leaked");
            report.add(Kind::Count, address, text);
        }
    }
    let mut cooling: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
    for entry in ipam.cooling.iter().filter(|entry| entry.holds) {
        cooling
            .entry(entry.block)
            .or_default()
            .insert(entry.address);
    }
    let none = BTreeSet::new();
    for block in &ipam.blocks {
        let used = used.get(&block.cidr).unwrap_or(&none);
        let cooling = cooling.get(&block.cidr).unwrap_or(&none);
        counts(block, used, cooling, report);
    }
}

fn counts(
    block: &AuditedBlock,
    used: &BTreeSet<IpAddr>,
    cooling: &BTreeSet<IpAddr>,
    report: &mut Report,
) {
    for (what, counted, found) in [
        ("in use", block.used, used.len()),
        ("cooling", block.cooling, cooling.len()),
    ] {
        if u64::from(counted) != count(found) {
            let text = format!("{counted} addresses are counted as {what}, and {found} are");
            report.add(Kind::Count, block.cidr, text);
        }
    }
    let taken: BTreeSet<IpAddr> = block.taken.iter().copied().collect();
    for address in used.iter().chain(cooling).filter(|a| !taken.contains(a)) {
        let text = format!(
            "it is in use or cooling, and free in the bitmap of {}",
            block.cidr
        );
        report.add(Kind::Count, address, text);
    }
    let sum = u64::from(block.used) + u64::from(block.cooling) + u64::from(block.reserved);
    if count(taken.len()) != sum {
        let text = format!(
            "{} bits are set, and the counts sum up to {sum}",
            taken.len()
        );
        report.add(Kind::Count, block.cidr, text);
    }
}

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
fn host(sources: &Sources, report: &mut Report) {
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
fn inside(sources: &Sources, report: &mut Report) {
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

fn blackholes(sources: &Sources, report: &mut Report) {
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
fn leaks(sources: &Sources, report: &mut Report) {
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

/// Blocks and what BGP says of them.
fn announced(sources: &Sources, report: &mut Report) {
    let Some(bgp) = &sources.bgp else {
        return;
    };
    let originated: BTreeSet<IpNet> = bgp.originated.iter().copied().collect();
    let mut blocks = BTreeSet::new();
    for block in sources.node.ipam.blocks.iter().filter(|block| !block.local) {
        blocks.insert(block.cidr);
        if block.state == BlockState::Active && !originated.contains(&block.cidr) {
            report.add(Kind::Bgp, block.cidr, "the block is not originated");
        }
    }
    for prefix in originated.difference(&blocks) {
        report.add(
            Kind::Bgp,
            prefix,
            "it is originated, and is no block of this node",
        );
    }
    for (peer, block, why) in &bgp.missing {
        let text = format!("peer {peer} has not got the block: {why}");
        report.add(Kind::Bgp, block, text);
    }
    for claim in &bgp.claims {
        let by = match (claim.originator, claim.origin_as) {
            (Some(originator), _) => format!("the speaker with router id {originator}"),
            (None, Some(asn)) => format!("AS {}", asn.0),
            (None, None) => "another speaker".to_owned(),
        };
        let text = format!(
            "{by} announces {}, as peer {} says",
            claim.prefix, claim.peer
        );
        report.add(Kind::DuplicateClaim, claim.block, text);
    }
}

/// The namespace of a workload to look into, when it has one.
pub fn namespace(workload: &AuditedWorkload) -> Option<&Netns> {
    match &workload.view.spec.attachment {
        Attachment::Routed(inside) | Attachment::Bridged { inside, .. }
            if workload.settled && workload.failure.is_none() =>
        {
            Some(&inside.namespace.netns)
        }
        _ => None,
    }
}

/// Whether a pool is of a bridge, which BGP does not know.
pub fn is_of_bridge(pool: &str) -> bool {
    config::Bridge::of_pool(pool).is_some()
}
