//! `[[bridge]]`: local bridges that workloads can join.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::desired;
use ipnet::IpNet;

use super::{
    Node, Pool,
    document::{Found, Section},
    pool::{PREFIX, host_bits, overlap, special},
    sections::defaults,
};

/// `[[bridge]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Unique; the name of the device, too.
    pub name: String,
    /// At most one of each family, at least one; IPv4 first.
    pub subnets: Vec<Subnet>,
    /// Of the device and of workloads without one of their own. `None` follows the underlay.
    pub mtu: Option<u32>,
    /// What leaves the subnets is masqueraded.
    pub nat_outgoing: bool,
}

/// A subnet of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Without host bits.
    pub cidr: IpNet,
    /// The host's address on the bridge; inside `cidr`.
    pub gateway: IpAddr,
    /// Never given to workloads, besides the gateway.
    pub reserved: Vec<IpNet>,
}

/// Pools of bridges are named with this, which no configured pool's name can contain.
const PREFIX_OF_POOLS: &str = "bridge:";

/// Whether a pool of that name is the subnet of a bridge, which this node alone knows.
pub fn is_pool_of_bridge(name: &str) -> bool {
    name.starts_with(PREFIX_OF_POOLS)
}

impl Bridge {
    /// The allocator's pools, one for each subnet: all of it is this node's to claim.
    pub fn pools(&self) -> impl Iterator<Item = Pool> + '_ {
        self.subnets.iter().map(|subnet| {
            let (family, block_size) = match subnet.cidr {
                IpNet::V4(_) => ("ipv4", defaults::BLOCK_SIZE_V4),
                IpNet::V6(_) => ("ipv6", defaults::BLOCK_SIZE_V6),
            };
            let mut reserved = subnet.reserved.clone();
            reserved.push(IpNet::from(subnet.gateway));
            reserved.extend(edges(subnet.cidr));
            Pool::of_bridge(
                format!("{PREFIX_OF_POOLS}{}:{family}", self.name),
                subnet.cidr,
                block_size.max(subnet.cidr.prefix_len()),
                reserved,
            )
        })
    }

    /// The bridge that a pool of this name belongs to.
    pub fn of_pool(name: &str) -> Option<&str> {
        let (bridge, _) = name.strip_prefix(PREFIX_OF_POOLS)?.rsplit_once(':')?;
        Some(bridge)
    }

    pub fn gateway(&self, is_ipv4: bool) -> Option<IpAddr> {
        let mut gateways = self.subnets.iter().map(|subnet| subnet.gateway);
        gateways.find(|gateway| gateway.is_ipv4() == is_ipv4)
    }

    /// As the dataplane wants it.
    pub fn object(&self) -> desired::Object {
        let with_length = |subnet: &Subnet| {
            IpNet::new(subnet.gateway, subnet.cidr.prefix_len()).expect("the length of a prefix")
        };
        desired::Object::Bridge(
            desired::Bridge {
                name: self.name.as_str().into(),
                gateways: self.subnets.iter().map(with_length).collect(),
                mtu: self.mtu,
            }
            .into(),
        )
    }
}

/// The addresses of a subnet that mean something else: the network and its broadcast address
/// (RFC 919 §7), or all its routers (RFC 4291 §2.6.1).
fn edges(cidr: IpNet) -> Vec<IpNet> {
    match cidr {
        IpNet::V4(_) => vec![IpNet::from(cidr.network()), IpNet::from(cidr.broadcast())],
        IpNet::V6(_) => vec![IpNet::from(cidr.network())],
    }
}

pub(super) fn read(sections: Vec<Section<'_, '_, '_>>, pools: &[Found<Pool>]) -> Vec<Bridge> {
    let mut bridges: Vec<Bridge> = Vec::new();
    for section in sections {
        bridges.extend(read_one(section, &bridges, pools));
    }
    bridges
}

fn read_one(
    mut section: Section<'_, '_, '_>,
    earlier: &[Bridge],
    pools: &[Found<Pool>],
) -> Option<Bridge> {
    let name = section.string("name");
    let name = section.required("name", name, "it is the name of the device, too");
    if let Some(Found { value, span }) = &name {
        let problem = name_problem(value).or_else(|| {
            let twice = earlier.iter().any(|bridge| bridge.name == *value);
            twice.then(|| format!("another bridge is named \"{value}\"; names are unique"))
        });
        if let Some(reason) = problem {
            section.error("name", Some(span.clone()), reason);
        }
    }
    let mut taken: Vec<(IpNet, String)> = pools
        .iter()
        .map(|pool| (pool.value.cidr, format!("pool \"{}\"", pool.value.name)))
        .collect();
    for bridge in earlier {
        let subnets = bridge.subnets.iter();
        taken.extend(subnets.map(|s| (s.cidr, format!("bridge \"{}\"", bridge.name))));
    }
    let reserved = section
        .list::<IpNet>("reserved", PREFIX)
        .unwrap_or_default();
    let keys = [("cidr", "gateway", true), ("cidr6", "gateway6", false)];
    let mut subnets = Vec::new();
    let mut complete = true;
    for (cidr, gateway, is_ipv4) in keys {
        match read_subnet(&mut section, cidr, gateway, is_ipv4, &taken) {
            Ok(subnet) => subnets.extend(subnet),
            Err(()) => complete = false,
        }
    }
    if subnets.is_empty() && complete {
        section.error(
            "cidr",
            None,
            "is missing; a bridge needs cidr, cidr6, or both",
        );
        complete = false;
    }
    for (index, Found { value, span }) in reserved.into_iter().enumerate() {
        if let Some(reason) = host_bits(value) {
            section.error_at("reserved", index, span, reason);
            continue;
        }
        match subnets.iter_mut().find(|s| s.cidr.contains(&value)) {
            Some(subnet) => subnet.reserved.push(value),
            None if complete => {
                let reason = format!("{value} does not lie inside a subnet of this bridge");
                section.error_at("reserved", index, span, reason);
            }
            None => {}
        }
    }
    let least = match subnets.iter().any(|subnet| subnet.gateway.is_ipv6()) {
        true => 1280,
        false => 68,
    };
    let mtu = section.integer("mtu", least..=65535);
    let nat_outgoing = section.boolean("nat_outgoing");
    section.finish();
    let name = name?.value.to_owned();
    complete.then_some(Bridge {
        name,
        subnets,
        mtu: mtu.map(|found| found.value),
        nat_outgoing: nat_outgoing.is_none_or(|found| found.value),
    })
}

/// Why this cannot be the name of a bridge.
fn name_problem(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 15 || !name.chars().all(allowed) {
        return Some(format!(
            "\"{name}\" is not a name of 1 to 15 characters of [A-Za-z0-9._-]"
        ));
    }
    if matches!(name, "." | ".." | "lo" | "all" | "default") {
        return Some(format!(
            "\"{name}\" has a meaning of its own for the kernel"
        ));
    }
    let chosen = ["agt", "agentd."];
    let prefix = chosen.iter().find(|prefix| name.starts_with(**prefix))?;
    Some(format!(
        "\"{name}\": names that start with \"{prefix}\" are chosen by agentd itself"
    ))
}

/// `Err`: something is wrong with it, and was reported.
fn read_subnet(
    section: &mut Section<'_, '_, '_>,
    cidr_key: &'static str,
    gateway_key: &'static str,
    is_ipv4: bool,
    taken: &[(IpNet, String)],
) -> Result<Option<Subnet>, ()> {
    let given = section.value(cidr_key).is_some();
    let cidr = section.parsed::<IpNet>(cidr_key, PREFIX);
    let gateway_given = section.value(gateway_key).is_some();
    let gateway = section.parsed::<IpAddr>(gateway_key, "an address");
    let Some(Found { value: cidr, span }) = cidr else {
        if gateway_given && !given {
            section.error(gateway_key, None, format!("needs {cidr_key} beside it"));
            return Err(());
        }
        return if given { Err(()) } else { Ok(None) };
    };
    let longest = if is_ipv4 { 30 } else { 126 };
    let problem = if matches!(cidr, IpNet::V4(_)) != is_ipv4 {
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        Some(format!("{cidr} is not of {family}"))
    } else if cidr.prefix_len() > longest {
        Some(format!("{cidr} has no room: at most /{longest} is allowed"))
    } else {
        host_bits(cidr).or_else(|| special(cidr)).or_else(|| {
            let (other, whose) = taken.iter().find(|(other, _)| overlap(*other, cidr))?;
            Some(format!("{cidr} overlaps {whose} ({other})"))
        })
    };
    if let Some(reason) = problem {
        section.error(cidr_key, Some(span), reason);
        return Err(());
    }
    let gateway = match gateway {
        Some(Found { value, span }) => {
            if !cidr.contains(&value) || edges(cidr).contains(&IpNet::from(value)) {
                let reason = format!("{value} is no address of a host in {cidr}");
                section.error(gateway_key, Some(span), reason);
                return Err(());
            }
            value
        }
        None if gateway_given => return Err(()),
        None => first_host(cidr),
    };
    Ok(Some(Subnet {
        cidr,
        gateway,
        reserved: Vec::new(),
    }))
}

fn first_host(cidr: IpNet) -> IpAddr {
    match cidr {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | 1).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | 1).into(),
    }
}

/// The node's own addresses must not be taken for those of workloads.
pub(super) fn check_node(root: &Section<'_, '_, '_>, node: &Node, bridges: &[Bridge]) {
    let addresses = [
        ("node.address", node.address.map(IpAddr::from)),
        ("node.address6", node.address6.map(IpAddr::from)),
    ];
    for (key, address) in addresses {
        let Some(address) = address else { continue };
        for bridge in bridges {
            if let Some(subnet) = bridge.subnets.iter().find(|s| s.cidr.contains(&address)) {
                let reason = format!(
                    "{address} lies inside the subnet {} of bridge \"{}\"",
                    subnet.cidr, bridge.name
                );
                root.error(key, None, reason);
            }
        }
    }
}
