//! What a workload or a bridge should look like, for each way of attaching one.
//!
//! | kind | module | in the host's namespace | in the workload's |
//! |---|---|---|---|
//! | routed | `routed` | veth, neighbours, host routes | veth, addresses, gateways |
//! | tap | `tap` | tap device, gateway addresses, neighbours, host routes | |
//! | bridged | `bridged` | veth as a port of a bridge | veth, addresses, gateways |
//! | loopback | | | `lo` |
//! | (a bridge) | `bridge` | bridge, gateway addresses | |
//!
//! Each module says what is wanted, as plain lists; `compare` finds the difference to what was read,
//! the same for all. Pure: the order of rounds, retries and reports is elsewhere.

mod bridge;
mod bridged;
mod compare;
mod routed;
mod tap;

use std::{net::IpAddr, sync::Arc};

pub(super) use self::compare::Difference;
use super::values::{
    BRIDGE_KEY, host_interface, is_link_of, names, port_mac, single, workload_mac,
};
use crate::{
    desired::{Attachment, Bridge, Inside, Kind, Netns, ObjectId, Workload},
    kernel::{Address, HOST_MAC, Link, LinkKind, Neighbour, Op, Place, Query, Route, Snapshot},
};

/// Index of `lo` in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Something with a link of ours, or a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    Workload(Arc<Workload>),
    Bridge(Arc<Bridge>),
}

impl Spec {
    /// Under which its state is kept: the id of a workload, or what no workload can be named.
    pub(super) fn key(&self) -> Arc<str> {
        match self {
            Spec::Workload(workload) => workload.id.clone(),
            Spec::Bridge(bridge) => bridge_key(&bridge.name),
        }
    }

    /// For counts of repairs.
    pub(super) fn link_kind(&self) -> Kind {
        match self {
            Spec::Workload(_) => Kind::Link,
            Spec::Bridge(_) => Kind::Bridge,
        }
    }

    pub(super) fn mtu(&self) -> Option<u32> {
        match self {
            Spec::Workload(workload) => workload.mtu,
            Spec::Bridge(bridge) => bridge.mtu,
        }
    }

    /// Equal but for what can be changed in place.
    pub(super) fn differs_in_place(&self, other: &Spec) -> bool {
        match (self, other) {
            (Spec::Workload(a), Spec::Workload(b)) => {
                let same = Workload {
                    mtu: a.mtu,
                    access: a.access.clone(),
                    ..(**b).clone()
                };
                same == **a
            }
            (Spec::Bridge(a), Spec::Bridge(b)) => a.gateways == b.gateways,
            _ => false,
        }
    }

    fn workload(&self) -> Option<&Workload> {
        match self {
            Spec::Workload(workload) => Some(workload),
            Spec::Bridge(_) => None,
        }
    }

    pub(super) fn netns(&self) -> Option<&Netns> {
        self.workload()?.netns()
    }

    /// Of the interface inside that namespace.
    pub(super) fn interface(&self) -> Option<&str> {
        self.workload()?.interface()
    }

    /// Addresses to which host routes lead.
    pub(super) fn routed(&self) -> &[IpAddr] {
        match self.workload() {
            Some(workload) => match workload.attachment {
                Attachment::Routed(_) | Attachment::Tap(_) => &workload.addresses,
                Attachment::Bridged { .. } | Attachment::Loopback(_) => &[],
            },
            None => &[],
        }
    }

    /// Key of the bridge it is on.
    pub(super) fn bridge(&self) -> Option<Arc<str>> {
        match &self.workload()?.attachment {
            Attachment::Bridged { bridge, .. } => Some(bridge_key(bridge)),
            _ => None,
        }
    }

    /// Name of its link in the host's namespace, if it has one.
    pub(super) fn host_name(&self) -> Option<String> {
        match self {
            Spec::Workload(workload) => workload.host_interface(),
            Spec::Bridge(bridge) => Some(bridge.name.to_string()),
        }
    }

    /// Whether a link carries the marks of this one.
    pub(super) fn is_link(&self, link: &Link) -> bool {
        let kind = match self {
            Spec::Workload(workload) => match workload.attachment {
                Attachment::Tap(_) => LinkKind::Tap,
                _ => LinkKind::Veth,
            },
            Spec::Bridge(_) => LinkKind::Bridge,
        };
        link.kind == kind && is_link_of(link, &self.key())
    }
}

impl Workload {
    /// Name of its link in the host's namespace; `None`: it has no link.
    pub fn host_interface(&self) -> Option<String> {
        match &self.attachment {
            Attachment::Routed(_) | Attachment::Bridged { .. } => Some(host_interface(&self.id)),
            Attachment::Tap(tap) => Some(match &tap.name {
                Some(name) => name.clone(),
                None => host_interface(&self.id),
            }),
            Attachment::Loopback(_) => None,
        }
    }
}

pub(super) fn bridge_key(name: &str) -> Arc<str> {
    format!("{BRIDGE_KEY}{name}").into()
}

/// What is reported about a key.
pub(super) fn object_id(key: &Arc<str>) -> ObjectId {
    match key.strip_prefix(BRIDGE_KEY) {
        Some(name) => ObjectId::Bridge(name.into()),
        None => ObjectId::Workload(key.clone()),
    }
}

/// Under which the state of a workload or a bridge is kept.
pub(super) fn key_of(id: &ObjectId) -> Option<Arc<str>> {
    match id {
        ObjectId::Workload(id) => Some(id.clone()),
        ObjectId::Bridge(name) => Some(bridge_key(name)),
        ObjectId::Blackhole(_) | ObjectId::Route(_) | ObjectId::Tunnels => None,
    }
}

/// A workload or bridge with everything that is chosen for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'a> {
    pub(super) spec: &'a Spec,
    pub(super) mtu: u32,
    pub(super) index: u32,
    pub(super) peer_index: u32,
    /// Of a bridged workload, as far as it is known.
    pub(super) bridge: Option<&'a Bridge>,
    /// Index of that bridge.
    pub(super) master: Option<u32>,
    /// The node has no IPv6 address of its own that workloads could answer to.
    pub(super) link_local: bool,
}

/// The ways to be attached, with what belongs to each.
#[derive(Clone, Copy, Debug)]
enum Way<'a> {
    Routed(&'a Inside),
    Tap(&'a crate::desired::Tap),
    Bridged(&'a Inside),
    Loopback,
    Bridge(&'a Bridge),
}

impl<'a> Want<'a> {
    fn kind(&self) -> Way<'a> {
        match self.spec {
            Spec::Workload(workload) => match &workload.attachment {
                Attachment::Routed(inside) => Way::Routed(inside),
                Attachment::Tap(tap) => Way::Tap(tap),
                Attachment::Bridged { inside, .. } => Way::Bridged(inside),
                Attachment::Loopback(_) => Way::Loopback,
            },
            Spec::Bridge(bridge) => Way::Bridge(bridge),
        }
    }

    fn id(&self) -> Arc<str> {
        self.spec.key()
    }

    fn addresses(&self) -> &'a [IpAddr] {
        match self.spec {
            Spec::Workload(workload) => &workload.addresses,
            Spec::Bridge(_) => &[],
        }
    }

    fn inside(&self) -> Option<Place> {
        self.spec.netns().cloned().map(Place::Netns)
    }

    fn host_name(&self) -> String {
        self.spec.host_name().unwrap_or_default()
    }

    fn mac(&self) -> [u8; 6] {
        match self.kind() {
            Way::Routed(_) | Way::Tap(_) | Way::Loopback => HOST_MAC,
            Way::Bridged(_) => port_mac(&self.id()),
            Way::Bridge(bridge) => super::values::bridge_mac(&bridge.name),
        }
    }

    fn alias(&self) -> String {
        super::values::alias(&self.id())
    }

    /// The operation that makes its link; `None`: it has none.
    pub(super) fn create(&self) -> Option<Op> {
        match self.kind() {
            Way::Routed(inside) => Some(self.create_routed(inside, None)),
            Way::Bridged(inside) => Some(self.create_routed(inside, self.master)),
            Way::Tap(tap) => Some(self.create_tap(tap)),
            Way::Bridge(_) => Some(self.create_bridge()),
            Way::Loopback => None,
        }
    }

    /// What [`create`](Self::create) makes: the state from which a new workload is configured,
    /// without reading it first.
    pub(super) fn created(&self) -> (Snapshot, Snapshot) {
        let of = |link: Link| Snapshot {
            sysctls: Self::inherited(&link.name),
            links: vec![link],
            ..Snapshot::default()
        };
        let host = Link {
            index: self.index,
            name: self.host_name(),
            kind: match self.kind() {
                Way::Routed(_) | Way::Bridged(_) | Way::Loopback => LinkKind::Veth,
                Way::Tap(_) => LinkKind::Tap,
                Way::Bridge(_) => LinkKind::Bridge,
            },
            alias: Some(self.alias()),
            mac: Some(self.mac()),
            mtu: self.mtu,
            up: true,
            running: matches!(self.kind(), Way::Routed(_) | Way::Bridged(_)),
            peer_index: Some(self.peer_index).filter(|peer| *peer != 0),
            master: self.master,
            tunnel: None,
        };
        let Some(interface) = self.spec.interface() else {
            return (of(host), Snapshot::default());
        };
        let peer = Link {
            index: self.peer_index,
            name: interface.to_owned(),
            alias: None,
            mac: Some(workload_mac(&self.id())),
            peer_index: Some(self.index),
            master: None,
            ..host.clone()
        };
        (of(host), of(peer))
    }

    /// What to read: its link on the host, and its namespace.
    pub(super) fn queries(&self) -> (Option<Query>, Option<Query>) {
        let link = (self.index != 0).then(|| Query::Link {
            place: Place::Host,
            index: self.index,
            neighbours: self.host_neighbours().iter().map(|n| n.address).collect(),
            sysctls: names(self.host_sysctls()),
        });
        let inside = self.spec.netns().map(|netns| Query::Inside {
            netns: netns.clone(),
            neighbours: self
                .inside_neighbours()
                .iter()
                .filter(|neighbour| neighbour.index != 0)
                .map(|neighbour| (neighbour.index, neighbour.address))
                .collect(),
            sysctls: names(self.inside_sysctls()),
        });
        (link, inside)
    }

    /// In the order in which they are to be written.
    pub(super) fn host_sysctls(&self) -> Vec<(String, &'static str)> {
        match self.kind() {
            Way::Routed(_) => self.routed_sysctls(),
            Way::Tap(_) => self.tap_sysctls(),
            Way::Bridge(_) => self.bridge_sysctls(),
            Way::Bridged(_) | Way::Loopback => Vec::new(),
        }
    }

    pub(super) fn host_addresses(&self) -> Vec<Address> {
        match self.kind() {
            Way::Routed(_) => self.routed_addresses(),
            Way::Tap(_) => self.tap_addresses(),
            Way::Bridge(bridge) => self.bridge_addresses(bridge),
            Way::Bridged(_) | Way::Loopback => Vec::new(),
        }
    }

    pub(super) fn host_neighbours(&self) -> Vec<Neighbour> {
        match self.kind() {
            Way::Routed(_) => self.neighbours_of(workload_mac(&self.id())),
            Way::Tap(tap) => tap
                .mac
                .map(|mac| self.neighbours_of(mac))
                .unwrap_or_default(),
            Way::Bridged(_) | Way::Loopback | Way::Bridge(_) => Vec::new(),
        }
    }

    /// Without them, the first packet to a workload would wait for its answer to ARP or ND.
    fn neighbours_of(&self, mac: [u8; 6]) -> Vec<Neighbour> {
        let neighbour = |address: &IpAddr| Neighbour {
            index: self.index,
            address: *address,
            mac,
            permanent: true,
        };
        self.addresses().iter().map(neighbour).collect()
    }

    /// IPv6 is switched on only for those who have an IPv6 address.
    ///
    /// Netlink cannot write them, and the way through /proc takes the longer the more namespaces
    /// there are. So what a new interface has anyway is only written where it is read otherwise, and
    /// the end of a routed workload needs no more: it makes no link-local address, so there is
    /// nothing to be detected twice, and it neither asks for router advertisements nor could have
    /// any but from the host.
    pub(super) fn inside_sysctls(&self) -> Vec<(String, &'static str)> {
        let Some(interface) = self.spec.interface() else {
            return Vec::new();
        };
        if !self.addresses().iter().any(IpAddr::is_ipv6) {
            return Vec::new();
        }
        let on_a_bridge = matches!(self.kind(), Way::Bridged(_));
        let more = [("accept_dad", "0"), ("accept_ra", "0")];
        std::iter::once(("disable_ipv6", "0"))
            .chain(more.into_iter().filter(|_| on_a_bridge))
            .map(|(key, value)| (format!("net/ipv6/conf/{interface}/{key}"), value))
            .collect()
    }

    /// What a new interface of the host's has by itself: forwarding as everywhere. Where that is not
    /// so, reading shows it.
    fn inherited(interface: &str) -> Vec<(String, Option<String>)> {
        [
            ("ipv4", "forwarding", "1"),
            ("ipv6", "forwarding", "1"),
            ("ipv6", "disable_ipv6", "0"),
        ]
        .into_iter()
        .map(|(family, key, value)| {
            let path = format!("net/{family}/conf/{interface}/{key}");
            (path, Some(value.to_owned()))
        })
        .collect()
    }

    fn inside_addresses(&self) -> Vec<Address> {
        match self.kind() {
            Way::Routed(_) => self
                .addresses()
                .iter()
                .map(|address| Address {
                    index: self.peer_index,
                    net: single(*address),
                    nodad: address.is_ipv6(),
                })
                .collect(),
            Way::Bridged(_) => self.bridged_addresses(),
            Way::Tap(_) | Way::Loopback | Way::Bridge(_) => Vec::new(),
        }
    }

    fn inside_neighbours(&self) -> Vec<Neighbour> {
        match self.kind() {
            Way::Routed(_) => self.gateway_neighbours(),
            _ => Vec::new(),
        }
    }

    fn inside_routes(&self) -> Vec<Route> {
        match self.kind() {
            Way::Routed(_) => self.routed_routes(),
            Way::Bridged(_) => self.bridged_routes(),
            Way::Tap(_) | Way::Loopback | Way::Bridge(_) => Vec::new(),
        }
    }
}
