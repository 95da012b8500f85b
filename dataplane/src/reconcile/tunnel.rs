//! Tunnels to other nodes: which next hops are reached through one, and the devices, neighbours and
//! forwarding entries that this takes.
//!
//! ```text
//!   route ─► nexthop object ─► agentd.ipip    via NODE, onlink
//!                           ─► agentd.vxlan   via NODE, onlink ─► neighbour: MAC ─► entry: NODE
//!                           ─► agentd.vxlan6  via fe80::MAC    ─► neighbour: MAC ─► entry: NODE
//! ```
//!
//! NODE is the BGP next hop. The MAC address of each node's VXLAN device follows from its address, so
//! that nothing has to be told about it. IPv6 gateways are link-local, because the kernel does not
//! take an address for on-link that it has another route to.
//!
//! A pool is a class of next hops. Its routes point to nexthop objects of that class, so that another
//! mode changes as many objects as there are nodes, and no route. An object changes once the new way
//! stands, and until then leads the old way.
//!
//! Devices are known by name and alias; every permanent neighbour and entry on them is ours. One that
//! no pool uses any more stays for a while: nodes that have not changed over still send through it.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use hashbrown::HashMap;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{
    Reconciler,
    resolve::{Resolved, is_usable},
    table::Hash,
    values::What,
};
use crate::{
    desired::{self, Encapsulation, ObjectId, Scope, Via},
    filter::elements::link_local,
    kernel::{
        FdbEntry, Gateway, Link, Neighbour, NextHopKind, TUNNEL_ALIAS, TUNNEL_PREFIX, Tunnel,
    },
};

/// By MAC address, where frames go.
type Entries = BTreeSet<([u8; 6], IpAddr)>;
type Neighbours = BTreeSet<(IpAddr, [u8; 6])>;

/// A pool, as far as next hops are concerned.
pub(super) type Class = u16;
/// Of routes outside of all pools, and of watched next hops.
pub(super) const DIRECT: Class = 0;

/// A next hop as the routes of one class use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HopKey {
    pub(super) via: Via,
    pub(super) class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Device {
    Ipip,
    Vxlan,
    Vxlan6,
}

impl Device {
    pub(super) const ALL: [Device; 3] = [Device::Ipip, Device::Vxlan, Device::Vxlan6];

    pub(super) fn name(self) -> &'static str {
        match self {
            Device::Ipip => "agentd.ipip",
            Device::Vxlan => "agentd.vxlan",
            Device::Vxlan6 => "agentd.vxlan6",
        }
    }

    pub(super) fn named(name: &str) -> Option<Device> {
        Device::ALL.into_iter().find(|device| device.name() == name)
    }

    /// Bytes that the header takes from a packet of the underlay.
    pub(super) fn overhead(self) -> u32 {
        match self {
            Device::Ipip => 20,
            Device::Vxlan => 50,
            Device::Vxlan6 => 70,
        }
    }

    pub(super) fn encapsulation(self) -> Encapsulation {
        match self {
            Device::Ipip => Encapsulation::Ipip,
            Device::Vxlan | Device::Vxlan6 => Encapsulation::Vxlan,
        }
    }

    fn slot(self) -> usize {
        match self {
            Device::Ipip => 0,
            Device::Vxlan => 1,
            Device::Vxlan6 => 2,
        }
    }

    /// In the order in which they are to be written.
    pub(super) fn sysctls(self) -> Vec<(String, &'static str)> {
        let name = self.name();
        let v4 = [
            // Loose: while nodes change over, what comes through the tunnel is answered beside it,
            // or the other way round.
            ("rp_filter", "2"),
            ("forwarding", "1"),
        ];
        let v6 = [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("forwarding", "1"),
        ];
        let v4 = v4.map(|(key, value)| (format!("net/ipv4/conf/{name}/{key}"), value));
        let v6 = v6.map(|(key, value)| (format!("net/ipv6/conf/{name}/{key}"), value));
        let mut all = Vec::from(v4);
        if self != Device::Ipip {
            all.extend(v6);
        }
        all
    }
}

/// A device with everything that is chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WantDevice {
    pub(super) tunnel: Tunnel,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: u32,
    /// The node's own address: the source of what the node itself sends through the tunnel.
    pub(super) address: IpNet,
}

/// How a next hop is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Through(Device),
    /// There is no tunnel of that kind to such an address.
    Impossible,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool {
    cidr: IpNet,
    class: Class,
    encapsulation: Encapsulation,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeviceState {
    /// It is ours, stands, and nobody wants it.
    pub(super) unwanted_since: Option<Instant>,
    /// ... and that for long enough.
    pub(super) expired: bool,
    /// The kernel refused something; not tried again before the retry is due.
    pub(super) blocked: bool,
    /// It is to be read: somebody changed a sysctl.
    pub(super) read: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tunnels {
    /// `None`: not told yet, so nothing of it is touched.
    pub(super) wanted: Option<desired::Tunnels>,
    pools: Vec<Pool>,
    last_class: Class,
    pub(super) devices: [DeviceState; 3],
    /// Permanent entries and neighbours of our devices, and sysctls, as last seen.
    pub(super) fdb: HashMap<(u32, [u8; 6]), FdbEntry, Hash>,
    pub(super) neighbours: HashMap<(u32, IpAddr), [u8; 6], Hash>,
    pub(super) sysctls: HashMap<String, Option<String>, Hash>,
    /// Something may differ from what is wanted.
    pub(super) dirty: bool,
    /// Somebody else changed something: what is written next is a repair.
    pub(super) disturbed: bool,
    pub(super) repairing: Vec<What>,
}

impl Tunnels {
    pub(super) fn device(&mut self, device: Device) -> &mut DeviceState {
        &mut self.devices[device.slot()]
    }

    pub(super) fn is_blocked(&self, device: Device) -> bool {
        self.devices[device.slot()].blocked
    }
}

/// IPv4 addresses in IPv6 form (RFC 4291 §2.5.5.2) mean what is in them: so IPv6 prefixes are told
/// over an underlay that has IPv4 only.
pub(super) fn endpoint(next_hop: IpAddr) -> IpAddr {
    next_hop.to_canonical()
}

/// MAC address of the VXLAN device of the node with this underlay address. Those of IPv4 addresses
/// hold the address; others are a digest of it. Locally administered, unicast.
pub fn endpoint_mac(endpoint: IpAddr) -> [u8; 6] {
    match endpoint {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x0e, 0xa6, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            let digest = Sha256::digest(v6.octets());
            let mut mac = [0; 6];
            for (to, from) in mac.iter_mut().zip(digest.iter()) {
                *to = *from;
            }
            mac[0] = (mac[0] & 0xfc) | 0x02;
            mac
        }
    }
}

/// The gateway by which a next hop is known on a tunnel device.
fn gateway_on(device: Device, next_hop: IpAddr) -> IpAddr {
    match next_hop {
        IpAddr::V4(_) => next_hop,
        IpAddr::V6(_) => match device {
            Device::Ipip => next_hop,
            Device::Vxlan | Device::Vxlan6 => {
                IpAddr::V6(link_local(endpoint_mac(endpoint(next_hop))))
            }
        },
    }
}

/// Whether a link with the name of a device carries our marks. One that has none is one at which we
/// died between making it and naming it: then its MAC address is ours, or its local address.
pub(super) fn is_own_tunnel(link: &Link, wanted: Option<&WantDevice>) -> bool {
    match &link.alias {
        Some(alias) => alias == TUNNEL_ALIAS && link.tunnel.is_some(),
        None => wanted
            .is_some_and(|wanted| link.tunnel == Some(wanted.tunnel) && link.mac == wanted.mac),
    }
}

impl Reconciler {
    /// Takes over how pools are reached. What changes in that is carried out at once.
    pub(super) fn set_tunnels(&mut self, wanted: desired::Tunnels) {
        let before = std::mem::take(&mut self.tunnels.pools);
        for pool in &wanted.pools {
            let known = before.iter().find(|known| known.cidr == pool.cidr);
            let class = known.map_or_else(
                || {
                    self.tunnels.last_class += 1;
                    self.tunnels.last_class
                },
                |known| known.class,
            );
            self.tunnels.pools.push(Pool {
                cidr: pool.cidr,
                class,
                encapsulation: pool.encapsulation,
                scope: pool.scope,
            });
        }
        self.tunnels.wanted = Some(wanted);
        for device in &mut self.tunnels.devices {
            device.blocked = false;
        }
        self.failures.remove(&ObjectId::Tunnels);
        self.tunnels.dirty = true;
        self.resolve_dirty = true;
        self.follow_mtu();
        let same = before.len() == self.tunnels.pools.len()
            && before.iter().all(|old| {
                let mut pools = self.tunnels.pools.iter();
                pools.any(|new| new.cidr == old.cidr)
            });
        if !same {
            self.reclassify();
        }
    }

    pub(super) fn class_of(&self, prefix: &IpNet) -> Class {
        let mut pools = self.tunnels.pools.iter();
        pools
            .find(|pool| pool.cidr.contains(prefix))
            .map_or(DIRECT, |pool| pool.class)
    }

    /// MTU of what has these addresses, and none of its own: room for the widest header of its pools.
    pub(super) fn mtu_with(&self, addresses: &[IpAddr]) -> u32 {
        let addresses = addresses.iter();
        let overhead = addresses.map(|address| self.overhead(*address)).max();
        self.mtu.saturating_sub(overhead.unwrap_or(0)).max(1280)
    }

    fn overhead(&self, address: IpAddr) -> u32 {
        let Some(wanted) = &self.tunnels.wanted else {
            return 0;
        };
        let mut pools = self.tunnels.pools.iter();
        let Some(pool) = pools.find(|pool| pool.cidr.contains(&address)) else {
            return 0;
        };
        let v6 = match pool.cidr {
            IpNet::V4(_) => wanted.local.is_none(),
            IpNet::V6(_) => wanted.local6.is_some(),
        };
        match pool.encapsulation {
            Encapsulation::None => 0,
            Encapsulation::Ipip => Device::Ipip.overhead(),
            Encapsulation::Vxlan if v6 => Device::Vxlan6.overhead(),
            Encapsulation::Vxlan => Device::Vxlan.overhead(),
        }
    }

    pub(super) fn device_wanted(&self, device: Device) -> Option<WantDevice> {
        let wanted = self.tunnels.wanted.as_ref()?;
        let kind = device.encapsulation();
        let used = wanted.accept.contains(&kind)
            || wanted.pools.iter().any(|pool| pool.encapsulation == kind);
        let local = match device {
            Device::Ipip | Device::Vxlan => wanted.local.map(IpAddr::V4),
            Device::Vxlan6 => wanted.local6.map(IpAddr::V6),
        };
        let local = local.filter(|_| used)?;
        let tunnel = match (device, local) {
            (Device::Ipip, IpAddr::V4(local)) => Tunnel::Ipip { local },
            _ => Tunnel::Vxlan {
                vni: wanted.vni,
                port: wanted.port,
                local,
                learning: false,
            },
        };
        Some(WantDevice {
            tunnel,
            mac: (device != Device::Ipip).then(|| endpoint_mac(local)),
            mtu: self.mtu.saturating_sub(device.overhead()).max(1280),
            address: IpNet::from(local),
        })
    }

    /// How the routes of that class reach a next hop.
    pub(super) fn way(&self, key: HopKey) -> Way {
        let mut pools = self.tunnels.pools.iter();
        let Some(pool) = pools.find(|pool| pool.class == key.class) else {
            return Way::Direct;
        };
        let Via { address, interface } = key.via;
        let endpoint = endpoint(address);
        // A link-local next hop is a neighbour, and no place to which a tunnel could lead.
        let near = interface != 0 || (endpoint == address && self.is_connected(endpoint));
        if pool.encapsulation == Encapsulation::None || (pool.scope == Scope::CrossSubnet && near) {
            return Way::Direct;
        }
        match (pool.encapsulation, endpoint) {
            _ if interface != 0 => Way::Impossible,
            (Encapsulation::Ipip, IpAddr::V4(_)) if address.is_ipv4() => Way::Through(Device::Ipip),
            (Encapsulation::Vxlan, IpAddr::V4(_)) => Way::Through(Device::Vxlan),
            (Encapsulation::Vxlan, IpAddr::V6(_)) => Way::Through(Device::Vxlan6),
            _ => Way::Impossible,
        }
    }

    /// Inside a subnet of an interface that works.
    fn is_connected(&self, address: IpAddr) -> bool {
        self.others.iter().any(|index| {
            let usable = self
                .links
                .get(index)
                .is_some_and(|link| is_usable(link) && !link.name.starts_with(TUNNEL_PREFIX));
            usable
                && self.addresses.of(*index).iter().any(|own| {
                    own.net.prefix_len() < own.net.max_prefix_len() && own.net.contains(&address)
                })
        })
    }

    /// Where a next hop leads for the routes of its class. `before`: where it led until now, and goes
    /// on to lead until a tunnel stands.
    pub(super) fn resolve_hop(&self, key: HopKey, before: Option<Resolved>) -> Option<Resolved> {
        let device = match self.way(key) {
            Way::Direct => return self.resolve(key.via),
            Way::Impossible => return None,
            Way::Through(device) => device,
        };
        let address = key.via.address;
        let direct = self.resolve(endpoint(address).into())?;
        if let Some(gateway) = self.gateway_through(device, address) {
            let metric = direct.metric;
            return Some(Resolved { gateway, metric });
        }
        let before = before?;
        let link = self.links.get(&before.gateway.index)?;
        if !link.name.starts_with(TUNNEL_PREFIX) {
            return self.resolve(key.via);
        }
        is_usable(link).then_some(before)
    }

    /// Whether a watched next hop can be reached at all.
    pub(super) fn resolve_watched(&self, via: Via) -> Option<Resolved> {
        let address = via.address;
        let tunnelled = || {
            let mut pools = self.tunnels.pools.iter();
            endpoint(address) != address
                && pools.any(|pool| pool.encapsulation == Encapsulation::Vxlan)
        };
        self.resolve(via).or_else(|| {
            let resolved = tunnelled().then(|| self.resolve(endpoint(address).into()));
            resolved.flatten()
        })
    }

    /// The way through a device, if everything that it takes stands.
    fn gateway_through(&self, device: Device, next_hop: IpAddr) -> Option<Gateway> {
        let link = self.link_named(device.name())?;
        let wanted = self.device_wanted(device)?;
        if !is_usable(link) || link.tunnel != Some(wanted.tunnel) {
            return None;
        }
        let index = link.index;
        if let Some((entry, neighbour)) = self.entries_of(device, index, next_hop) {
            let stands = self.tunnels.fdb.get(&(index, entry.mac)) == Some(&entry)
                && self.tunnels.neighbours.get(&(index, neighbour.address)) == Some(&entry.mac);
            if !stands {
                return None;
            }
        }
        let address = gateway_on(device, next_hop);
        Some(Gateway {
            address: Some(address),
            index,
            onlink: address.is_ipv4(),
            weight: 1,
        })
    }

    /// What a VXLAN device has to know of another node.
    fn entries_of(
        &self,
        device: Device,
        index: u32,
        next_hop: IpAddr,
    ) -> Option<(FdbEntry, Neighbour)> {
        if device == Device::Ipip {
            return None;
        }
        let remote = endpoint(next_hop);
        let mac = endpoint_mac(remote);
        let entry = FdbEntry { index, mac, remote };
        let neighbour = Neighbour {
            index,
            address: gateway_on(device, next_hop),
            mac,
            permanent: true,
        };
        Some((entry, neighbour))
    }

    /// Entries and neighbours for all next hops in use that are reached through a device.
    pub(super) fn wanted_entries(&self, device: Device, index: u32) -> (Entries, Neighbours) {
        let mut entries = BTreeSet::new();
        let mut neighbours = BTreeSet::new();
        for (key, hop) in &self.next_hops.hops {
            if hop.is_used()
                && self.way(*key) == Way::Through(device)
                && let Some((entry, neighbour)) = self.entries_of(device, index, key.via.address)
            {
                entries.insert((entry.mac, entry.remote));
                neighbours.insert((neighbour.address, neighbour.mac));
            }
        }
        (entries, neighbours)
    }

    /// Gateways on a device to which nexthop objects of the kernel lead.
    pub(super) fn gateways_in_use(&self, index: u32) -> BTreeSet<IpAddr> {
        let objects = self.seen_next_hops.values();
        objects
            .filter_map(|object| match &object.kind {
                NextHopKind::Gateway(gateway) if gateway.index == index => gateway.address,
                _ => None,
            })
            .collect()
    }
}
