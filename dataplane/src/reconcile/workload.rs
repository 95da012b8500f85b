//! What one workload should look like at both ends of its link, and the difference to what was read.
//! Pure: the order of rounds, retries and reports is elsewhere.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    table::{MAIN, own_metric},
    values::{alias, gateway, host_interface, host_sysctls, inside_sysctls, single, workload_mac},
};
use crate::{
    desired::Workload,
    kernel::{
        Address, CreateVeth, GATEWAY_V6, Gateway, HOST_MAC, Link, LinkChange, LinkKind, Neighbour,
        Op, PROTOCOL_AGENTD, Place, Query, Route, Snapshot, Target,
    },
};

/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// A workload with everything that is chosen for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'a> {
    pub(super) workload: &'a Workload,
    pub(super) mtu: u32,
    pub(super) index: u32,
    pub(super) peer_index: u32,
}

/// What has to be written, and in which words to tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) host: Vec<Op>,
    pub(super) inside: Vec<Op>,
    /// Foreign objects that stand in the way.
    pub(super) conflict: Option<String>,
    pub(super) what: Vec<String>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.host.is_empty() && self.inside.is_empty()
    }
}

impl Want<'_> {
    fn inside(&self) -> Place {
        Place::Netns(self.workload.netns.clone())
    }

    pub(super) fn create(&self) -> Op {
        Op::CreateVeth(Box::new(CreateVeth {
            name: host_interface(&self.workload.id),
            index: self.index,
            alias: alias(&self.workload.id),
            mac: HOST_MAC,
            mtu: self.mtu,
            peer_netns: self.workload.netns.clone(),
            peer_name: self.workload.interface.clone(),
            peer_index: self.peer_index,
            peer_mac: workload_mac(&self.workload.id),
        }))
    }

    /// What [`create`](Self::create) makes: the state from which a new workload is configured,
    /// without reading it first.
    pub(super) fn created(&self) -> (Snapshot, Snapshot) {
        let id = &self.workload.id;
        let host = Link {
            index: self.index,
            name: host_interface(id),
            kind: LinkKind::Veth,
            alias: Some(alias(id)),
            mac: Some(HOST_MAC),
            mtu: self.mtu,
            up: true,
            running: true,
            peer_index: Some(self.peer_index),
            master: None,
            tunnel: None,
        };
        let peer = Link {
            index: self.peer_index,
            name: self.workload.interface.clone(),
            alias: None,
            mac: Some(workload_mac(id)),
            peer_index: Some(self.index),
            ..host.clone()
        };
        let of = |link| Snapshot {
            links: vec![link],
            ..Snapshot::default()
        };
        (of(host), of(peer))
    }

    pub(super) fn queries(&self, inside_name: &str) -> [Query; 2] {
        [
            Query::Link {
                place: Place::Host,
                index: self.index,
                neighbours: self.workload.addresses.clone(),
                sysctls: names(host_sysctls(&host_interface(&self.workload.id))),
            },
            Query::Place {
                place: self.inside(),
                sysctls: names(inside_sysctls(self.workload, inside_name)),
            },
        ]
    }

    /// The difference between this and what was read of both ends. The link must be in `host`.
    pub(super) fn difference(&self, host: &Snapshot, inside: &Snapshot) -> Difference {
        let mut plan = Difference::default();
        self.host_difference(host, &mut plan);
        self.inside_difference(inside, &mut plan);
        plan
    }

    pub(super) fn host_link_difference(&self, seen: &Link) -> LinkChange {
        let mut change = LinkChange {
            index: self.index,
            ..LinkChange::default()
        };
        change.up = (!seen.up).then_some(true);
        change.mtu = (seen.mtu != self.mtu).then_some(self.mtu);
        change.mac = (seen.mac != Some(HOST_MAC)).then_some(HOST_MAC);
        let alias = alias(&self.workload.id);
        change.alias = (seen.alias.as_deref() != Some(&alias)).then_some(alias);
        change
    }

    /// Link-local address of the host's end.
    pub(super) fn host_address(&self) -> Address {
        Address {
            index: self.index,
            net: IpNet::V6(Ipv6Net::new_assert(GATEWAY_V6, 64)),
            nodad: true,
        }
    }

    /// Without them, the first packet to a workload would wait for its answer to ARP or ND.
    pub(super) fn host_neighbours(&self) -> impl Iterator<Item = Neighbour> + '_ {
        self.workload.addresses.iter().map(|address| Neighbour {
            index: self.index,
            address: *address,
            mac: workload_mac(&self.workload.id),
            permanent: true,
        })
    }

    fn host_difference(&self, seen: &Snapshot, plan: &mut Difference) {
        if let Some(link) = seen.links.iter().find(|link| link.index == self.index) {
            set_link(
                Place::Host,
                self.host_link_difference(link),
                "host link",
                &mut plan.host,
                &mut plan.what,
            );
        }
        let sysctls = host_sysctls(&host_interface(&self.workload.id));
        write_sysctls(&Place::Host, sysctls, seen, &mut plan.host, &mut plan.what);
        let address = self.host_address();
        if !has_address(seen, &address) {
            plan.what
                .push(format!("address {} of the host's end", address.net));
            plan.host.push(Op::AddAddress {
                place: Place::Host,
                address,
            });
        }
        for neighbour in self.host_neighbours() {
            if !seen.neighbours.contains(&neighbour) {
                plan.what.push(format!("neighbour {}", neighbour.address));
                plan.host.push(Op::ReplaceNeighbour {
                    place: Place::Host,
                    neighbour,
                });
            }
        }
    }

    fn inside_difference(&self, seen: &Snapshot, plan: &mut Difference) {
        let place = self.inside();
        if !seen
            .links
            .iter()
            .any(|link| link.index == LOOPBACK && link.up)
        {
            plan.what.push("lo inside".to_owned());
            plan.inside.push(Op::SetLink {
                place: place.clone(),
                link: LinkChange {
                    index: LOOPBACK,
                    up: Some(true),
                    ..LinkChange::default()
                },
            });
        }
        let mut name = self.workload.interface.as_str();
        if let Some(link) = seen.links.iter().find(|link| link.index == self.peer_index) {
            name = &link.name;
            let change = LinkChange {
                index: self.peer_index,
                up: (!link.up).then_some(true),
                mtu: (link.mtu != self.mtu).then_some(self.mtu),
                ..LinkChange::default()
            };
            let Difference { inside, what, .. } = plan;
            set_link(place.clone(), change, "link inside", inside, what);
        }
        let sysctls = inside_sysctls(self.workload, name);
        write_sysctls(&place, sysctls, seen, &mut plan.inside, &mut plan.what);
        for &address in &self.workload.addresses {
            let wanted = Address {
                index: self.peer_index,
                net: single(address),
                nodad: address.is_ipv6(),
            };
            if !has_address(seen, &wanted) {
                plan.what.push(format!("address {} inside", wanted.net));
                plan.inside.push(Op::AddAddress {
                    place: place.clone(),
                    address: wanted,
                });
            }
            // The gateway answers for everything, and its address is at no link that would
            // answer ARP for it.
            let neighbour = Neighbour {
                index: self.peer_index,
                address: gateway(address),
                mac: HOST_MAC,
                permanent: true,
            };
            if !seen.neighbours.contains(&neighbour) {
                plan.what
                    .push(format!("neighbour {} inside", neighbour.address));
                plan.inside.push(Op::ReplaceNeighbour {
                    place: place.clone(),
                    neighbour,
                });
            }
        }
        for route in self.inside_routes() {
            let on_key: Vec<&Route> = seen
                .routes
                .iter()
                .filter(|seen| {
                    seen.prefix == route.prefix
                        && seen.metric == route.metric
                        && seen.table == route.table
                })
                .collect();
            if on_key.iter().any(|seen| same_route(seen, &route)) {
                continue;
            }
            let text = format!("route {} inside", route.prefix);
            if let Some(foreign) = on_key.iter().find(|seen| seen.protocol != route.protocol) {
                plan.conflict = Some(format!(
                    "{text}: a route of protocol {} stands there",
                    foreign.protocol
                ));
                continue;
            }
            plan.what.push(text);
            let place = place.clone();
            plan.inside.push(if on_key.is_empty() {
                Op::AddRoute { place, route }
            } else {
                Op::ReplaceRoute { place, route }
            });
        }
    }

    fn inside_routes(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        let index = self.peer_index;
        for &address in &self.workload.addresses {
            let gateway = gateway(address);
            let (default, target) = match address {
                IpAddr::V4(_) => {
                    routes.push((single(gateway), Target::Link { index }));
                    (IpNet::V4(Ipv4Net::default()), gateway)
                }
                IpAddr::V6(_) => (IpNet::V6(Ipv6Net::default()), gateway),
            };
            routes.push((
                default,
                Target::Gateways(vec![Gateway {
                    address: Some(target),
                    index,
                    onlink: false,
                    weight: 1,
                }]),
            ));
        }
        routes
            .into_iter()
            .map(|(prefix, target)| Route {
                prefix,
                table: MAIN,
                metric: own_metric(&prefix),
                protocol: PROTOCOL_AGENTD,
                target,
            })
            .collect()
    }

    /// Whether an event from inside the namespace leaves everything as wanted, so that nothing has
    /// to be read: most are about things that are not ours.
    pub(super) fn inside_change_is_harmless(&self, change: &crate::kernel::Change) -> bool {
        use crate::kernel::Change;
        match change {
            Change::Link(link) => {
                !(link.index == self.peer_index || link.index == LOOPBACK)
                    || link.up && (link.index == LOOPBACK || link.mtu == self.mtu)
            }
            Change::LinkDeleted { index } => *index != self.peer_index,
            Change::Address(_)
            | Change::NextHop(_)
            | Change::NextHopDeleted { .. }
            | Change::Fdb(_)
            | Change::FdbDeleted(_) => true,
            Change::AddressDeleted(address) => {
                address.index != self.peer_index
                    || !self
                        .workload
                        .addresses
                        .iter()
                        .any(|own| single(*own) == address.net)
            }
            Change::Route(route) => self
                .inside_routes()
                .iter()
                .all(|own| own.prefix != route.prefix || same_route(own, route)),
            Change::RouteDeleted(route) => self
                .inside_routes()
                .iter()
                .all(|own| own.prefix != route.prefix),
            Change::Neighbour(neighbour) => {
                neighbour.index != self.peer_index
                    || neighbour.permanent && neighbour.mac == HOST_MAC
                    || !self.is_gateway(neighbour.address)
            }
            Change::NeighbourDeleted(neighbour) => {
                neighbour.index != self.peer_index || !self.is_gateway(neighbour.address)
            }
            Change::Netconf { index } => *index != self.peer_index,
        }
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        self.workload
            .addresses
            .iter()
            .any(|own| gateway(*own) == address)
    }
}

fn names(sysctls: Vec<(String, &'static str)>) -> Vec<String> {
    sysctls.into_iter().map(|(path, _)| path).collect()
}

fn set_link(
    place: Place,
    link: LinkChange,
    whose: &str,
    ops: &mut Vec<Op>,
    what: &mut Vec<String>,
) {
    let parts = [
        (link.up.is_some(), "down"),
        (link.mtu.is_some(), "MTU"),
        (link.mac.is_some(), "MAC address"),
        (link.alias.is_some(), "alias"),
    ];
    let changed: Vec<&str> = parts
        .iter()
        .filter(|(changed, _)| *changed)
        .map(|(_, name)| *name)
        .collect();
    if !changed.is_empty() {
        what.push(format!("{whose} ({})", changed.join(", ")));
        ops.push(Op::SetLink { place, link });
    }
}

fn write_sysctls(
    place: &Place,
    wanted: Vec<(String, &'static str)>,
    seen: &Snapshot,
    ops: &mut Vec<Op>,
    what: &mut Vec<String>,
) {
    for (path, value) in wanted {
        let right = match seen.sysctls.iter().find(|(seen, _)| *seen == path) {
            // No such file: a kernel without that family.
            Some((_, None)) => true,
            Some((_, Some(seen))) => seen.trim() == value,
            None => false,
        };
        if !right {
            what.push(format!("sysctl {path}"));
            ops.push(Op::WriteSysctl {
                place: place.clone(),
                path,
                value: value.to_owned(),
            });
        }
    }
}

fn has_address(seen: &Snapshot, wanted: &Address) -> bool {
    seen.addresses
        .iter()
        .any(|address| address.index == wanted.index && address.net == wanted.net)
}

fn same_route(a: &Route, b: &Route) -> bool {
    let simple = |target: &Target| match target {
        Target::Link { index } => Some((None, *index)),
        Target::Gateways(gateways) => match gateways.as_slice() {
            [one] => Some((one.address, one.index)),
            _ => None,
        },
        _ => None,
    };
    a.prefix == b.prefix
        && a.table == b.table
        && a.metric == b.metric
        && a.protocol == b.protocol
        && (a.target == b.target
            || simple(&a.target).is_some_and(|target| simple(&b.target) == Some(target)))
}
