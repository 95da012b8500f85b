//! Records on disk, what the agent knows of them, and the allocator, against each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Kind, Report, Sources, count};
use crate::{ipam::AuditedBlock, node::WorkloadId};

/// Records and the agent's own memory.
pub(super) fn records(sources: &Sources, report: &mut Report) {
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
pub(super) fn addresses(sources: &Sources, report: &mut Report) {
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
pub(super) fn allocator(sources: &Sources, report: &mut Report) {
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
