//! `[[pool]]` and the claim ranges of `[ipam]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::{
    Node, Pool, Selector,
    document::{Found, Section},
    sections::{defaults, is_name, name_rule},
    tunnel,
};

pub(super) const PREFIX: &str = "a prefix such as \"10.244.0.0/16\" or \"fd00:10:244::/48\"";

/// Pools, each with the place of its `cidr`. Those with errors are reported and left out. `labels`:
/// those of this node, if they could be read.
pub(super) fn read(
    sections: Vec<Section<'_, '_, '_>>,
    labels: Option<&BTreeMap<String, String>>,
) -> Vec<Found<Pool>> {
    let mut pools: Vec<Found<Pool>> = Vec::new();
    for section in sections {
        pools.extend(read_one(section, &pools, labels));
    }
    pools
}

fn read_one(
    mut section: Section<'_, '_, '_>,
    earlier: &[Found<Pool>],
    labels: Option<&BTreeMap<String, String>>,
) -> Option<Found<Pool>> {
    let name = section.string("name");
    let name = section.required("name", name, "every pool needs one");
    if let Some(Found { value, span }) = &name {
        if !is_name(value, 63) {
            let reason = format!("\"{value}\" is not {}", name_rule(63));
            section.error("name", Some(span.clone()), reason);
        }
        if earlier.iter().any(|pool| pool.value.name == *value) {
            let reason = format!("another pool is named \"{value}\"; names are unique");
            section.error("name", Some(span.clone()), reason);
        }
    }
    let cidr = section.parsed::<IpNet>("cidr", PREFIX);
    let cidr = section.required("cidr", cidr, "it is the prefix of the pool");
    if let Some(Found { value, span }) = &cidr {
        let problem = host_bits(*value).or_else(|| special(*value)).or_else(|| {
            let other = earlier
                .iter()
                .find(|pool| overlap(pool.value.cidr, *value))?;
            let Pool { name, cidr, .. } = &other.value;
            Some(format!("{value} overlaps pool \"{name}\" ({cidr})"))
        });
        if let Some(reason) = problem {
            section.error("cidr", Some(span.clone()), reason);
        }
    }
    let block_size = read_block_size(&mut section, cidr.as_ref());
    let disabled = section.boolean("disabled");
    let nat_outgoing = section.boolean("nat_outgoing");
    let (encapsulation, encapsulation_scope) =
        tunnel::read_pool(&mut section, cidr.as_ref().map(|cidr| cidr.value));
    let reserved = read_reserved(&mut section, cidr.as_ref().map(|cidr| cidr.value));
    let keep_ends_unused = read_ends(&mut section, cidr.as_ref(), block_size);
    let max_blocks = section.integer("max_blocks", 1..=1_000_000);
    let node_selector = read_selector(&mut section, "node_selector");
    let workload_selector = read_selector(&mut section, "workload_selector");
    section.finish();
    let cidr = cidr?;
    Some(Found {
        value: Pool {
            disabled: disabled.is_some_and(|found| found.value),
            nat_outgoing: nat_outgoing.is_some_and(|found| found.value),
            encapsulation,
            encapsulation_scope,
            reserved,
            keep_ends_unused,
            max_blocks: max_blocks.map(|found| found.value),
            for_this_node: match (&node_selector, labels) {
                (Some(selector), Some(labels)) => selector.matches(labels),
                _ => true,
            },
            node_selector,
            workload_selector,
            ..Pool::new(name?.value, cidr.value.trunc(), block_size?)
        },
        span: cidr.span,
    })
}

fn read_selector(section: &mut Section<'_, '_, '_>, name: &'static str) -> Option<Selector> {
    let Found { value, span } = section.string(name)?;
    match value.parse() {
        Ok(selector) => Some(selector),
        Err(reason) => {
            let reason = format!(
                "{reason}; write it as \"rack in (a, b), disk = ssd, !old\": terms that must all hold"
            );
            section.error(name, Some(span), reason);
            None
        }
    }
}

/// A block must have an address besides its ends.
fn read_ends(
    section: &mut Section<'_, '_, '_>,
    cidr: Option<&Found<IpNet>>,
    block_size: Option<u8>,
) -> bool {
    let Some(Found { value, span }) = section.boolean("keep_ends_unused") else {
        return false;
    };
    let (Some(cidr), Some(block_size), true) = (cidr, block_size, value) else {
        return value;
    };
    let most = cidr.value.max_prefix_len() - 2;
    if block_size > most {
        let reason = format!(
            "a /{block_size} block has no address besides its first and last; block_size must be \
             at most {most}"
        );
        section.error("keep_ends_unused", Some(span), reason);
    }
    true
}

/// A prefix, an address, or `FIRST-LAST`.
#[derive(Clone, Copy, Debug)]
enum Range {
    Prefix(IpNet),
    Addresses(IpAddr, IpAddr),
}

const RANGE: &str = "a prefix, an address or a range, such as \"10.244.0.0/28\", \"10.244.0.1\" or \
                     \"10.244.0.5-10.244.0.20\"";

impl FromStr for Range {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(drop);
        if let Some((first, last)) = text.split_once('-') {
            return Ok(Range::Addresses(address(first)?, address(last)?));
        }
        match text.parse() {
            Ok(prefix) => Ok(Range::Prefix(prefix)),
            Err(_) => Ok(Range::Prefix(address(text)?.into())),
        }
    }
}

/// What is never given out, as prefixes that do not overlap.
fn read_reserved(section: &mut Section<'_, '_, '_>, pool: Option<IpNet>) -> Vec<IpNet> {
    let mut reserved = Vec::new();
    let ranges = section.list::<Range>("reserved", RANGE);
    for (index, Found { value, span }) in ranges.into_iter().flatten().enumerate() {
        let (text, prefixes) = match value {
            Range::Prefix(prefix) => {
                if let Some(reason) = host_bits(prefix) {
                    section.error_at("reserved", index, span, reason);
                    continue;
                }
                (prefix.to_string(), vec![prefix])
            }
            Range::Addresses(first, last) => {
                let text = format!("{first}-{last}");
                let Some(prefixes) = prefixes(first, last) else {
                    let reason = format!("{text} is no range: write its first address first");
                    section.error_at("reserved", index, span, reason);
                    continue;
                };
                (text, prefixes)
            }
        };
        match pool {
            Some(pool) if !prefixes.iter().all(|prefix| pool.contains(prefix)) => {
                let reason = format!("{text} does not lie inside the pool, {pool}");
                section.error_at("reserved", index, span, reason);
            }
            _ => reserved.extend(prefixes),
        }
    }
    IpNet::aggregate(&reserved)
}

/// The fewest prefixes that make up these addresses. `None`: they are of two families, or the last
/// comes before the first.
fn prefixes(first: IpAddr, last: IpAddr) -> Option<Vec<IpNet>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            Some(Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            Some(Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect())
        }
        _ => None,
    }
}

fn read_block_size(section: &mut Section<'_, '_, '_>, cidr: Option<&Found<IpNet>>) -> Option<u8> {
    let found = section.integer("block_size", 0..=u32::MAX);
    let cidr = cidr?.value;
    let (family, low, high, default) = match cidr {
        IpNet::V4(_) => ("IPv4", 20, 32, defaults::BLOCK_SIZE_V4),
        IpNet::V6(_) => ("IPv6", 116, 128, defaults::BLOCK_SIZE_V6),
    };
    // A pool smaller than a default block is one block.
    let Some(Found { value, span }) = found else {
        return Some(default.max(cidr.prefix_len()));
    };
    match u8::try_from(value) {
        Ok(size) if (low..=high).contains(&size) => {
            if size < cidr.prefix_len() {
                let reason = format!("a /{size} block does not fit into the pool, {cidr}");
                section.error("block_size", Some(span), reason);
                return None;
            }
            Some(size)
        }
        _ => {
            let reason = format!("{value} is out of range; {family} pools take {low} to {high}");
            section.error("block_size", Some(span), reason);
            None
        }
    }
}

/// Reads `ipam.claim` and gives every range to the pool it lies in.
pub(super) fn read_claims(section: &mut Section<'_, '_, '_>, pools: &mut [Found<Pool>]) {
    let ranges = section.list::<IpNet>("claim", PREFIX).unwrap_or_default();
    let mut earlier: Vec<IpNet> = Vec::new();
    for (index, Found { value, span }) in ranges.into_iter().enumerate() {
        let problem = host_bits(value).or_else(|| {
            let other = earlier.iter().find(|other| overlap(**other, value))?;
            Some(format!(
                "{value} overlaps {other}, which is claimed already"
            ))
        });
        if let Some(reason) = problem {
            section.error_at("claim", index, span, reason);
            continue;
        }
        earlier.push(value);
        let pool = pools
            .iter_mut()
            .find(|pool| pool.value.cidr.contains(&value));
        let Some(pool) = pool else {
            let reason = format!("{value} does not lie inside any pool");
            section.error_at("claim", index, span, reason);
            continue;
        };
        let Pool {
            name, block_size, ..
        } = &pool.value;
        if value.prefix_len() > *block_size {
            let reason = format!(
                "{value} is smaller than a block of pool \"{name}\", which is a /{block_size}"
            );
            section.error_at("claim", index, span, reason);
            continue;
        }
        pool.value.claim.push(value);
    }
}

/// The node's own addresses must not be taken for those of workloads.
pub(super) fn check_node(root: &Section<'_, '_, '_>, node: &Node, pools: &[Found<Pool>]) {
    let addresses = [
        ("node.address", node.address.map(IpAddr::from)),
        ("node.address6", node.address6.map(IpAddr::from)),
    ];
    for (key, address) in addresses {
        let Some(address) = address else { continue };
        if let Some(pool) = pools.iter().find(|pool| pool.value.cidr.contains(&address)) {
            let Pool { name, cidr, .. } = &pool.value;
            let reason =
                format!("{address} lies inside pool \"{name}\" ({cidr}); pools are for workloads");
            root.error(key, Some(pool.span.clone()), reason);
        }
    }
}

pub(super) fn host_bits(prefix: IpNet) -> Option<String> {
    let whole = prefix.trunc();
    (whole != prefix).then(|| format!("{prefix} has host bits set; did you mean {whole}?"))
}

pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Ranges that are not routed between hosts, or mean something else.
pub(super) fn special(prefix: IpNet) -> Option<String> {
    let v4 = |a, b, c, d, length| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::new(a, b, c, d), length).expect("a constant"))
    };
    let v6 = |text: &str| IpNet::V6(text.parse::<Ipv6Net>().expect("a constant"));
    let ranges = [
        (v4(0, 0, 0, 0, 8), "\"this network\""),
        (v4(127, 0, 0, 0, 8), "loopback"),
        (
            v4(169, 254, 0, 0, 16),
            "link-local, and holds the gateway of workloads",
        ),
        (v4(224, 0, 0, 0, 3), "multicast and reserved"),
        (v6("::/16"), "unspecified, loopback and mapped addresses"),
        (v6("fe80::/10"), "link-local"),
        (v6("ff00::/8"), "multicast"),
    ];
    let (range, meaning) = ranges
        .into_iter()
        .find(|(range, _)| overlap(*range, prefix))?;
    Some(format!("{prefix} cannot be a pool: {range} is {meaning}"))
}
