//! The difference between what is wanted at both ends of a link and what was read of them.

use std::net::IpAddr;

use super::{
    super::values::{What, is_address, link_changes, mac_text, what},
    LOOPBACK, Want,
};
use crate::{
    desired::Kind,
    kernel::{
        Address, Change, GATEWAY_V6, Link, LinkChange, Neighbour, Op, Place, Route, Snapshot,
        Target,
    },
};

/// What has to be written, and in which words to tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Difference {
    pub(in super::super) host: Vec<Op>,
    pub(in super::super) inside: Vec<Op>,
    /// Foreign objects that stand in the way.
    pub(in super::super) conflict: Option<String>,
    pub(in super::super) what: Vec<What>,
}

impl Difference {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.host.is_empty() && self.inside.is_empty()
    }

    /// Whether IPv6 was found switched off, which is not expected of a new interface.
    pub(in super::super) fn switches_ipv6_on(&self) -> bool {
        self.host
            .iter()
            .chain(&self.inside)
            .any(|op| matches!(op, Op::WriteSysctl { path, .. } if path.ends_with("/disable_ipv6")))
    }
}

impl Want<'_> {
    /// The difference between this and what was read of both ends. The link must be in `host`.
    pub(in super::super) fn difference(&self, host: &Snapshot, inside: &Snapshot) -> Difference {
        let mut plan = Difference::default();
        self.host_difference(host, &mut plan);
        self.inside_difference(inside, &mut plan);
        plan
    }

    /// What has to be changed at the host's link, but for its name.
    pub(in super::super) fn host_link_difference(&self, seen: &Link) -> LinkChange {
        let mac = self.mac();
        let alias = self.alias();
        let master = match self.spec.bridge() {
            // Of a bridge that does not stand now: there is nothing to be compared with.
            Some(_) if self.master.is_none() => None,
            _ => Some(self.master.unwrap_or(0)),
        };
        LinkChange {
            index: self.index,
            up: (!seen.up).then_some(true),
            mtu: (seen.mtu != self.mtu).then_some(self.mtu),
            mac: (seen.mac != Some(mac)).then_some(mac),
            alias: (seen.alias.as_deref() != Some(&alias)).then_some(alias),
            master: master.filter(|master| *master != seen.master.unwrap_or(0)),
            name: None,
        }
    }

    /// Nothing has to be changed at the host's link.
    pub(in super::super) fn is_host_link_right(&self, seen: &Link) -> bool {
        let nothing = LinkChange {
            index: self.index,
            ..LinkChange::default()
        };
        self.host_link_difference(seen) == nothing
    }

    fn inside_link_difference(&self, seen: &Link) -> LinkChange {
        LinkChange {
            index: self.peer_index,
            up: (!seen.up).then_some(true),
            mtu: (seen.mtu != self.mtu).then_some(self.mtu),
            ..LinkChange::default()
        }
    }

    fn host_difference(&self, seen: &Snapshot, plan: &mut Difference) {
        if self.spec.host_name().is_none() {
            return;
        }
        if let Some(link) = seen.links.iter().find(|link| link.index == self.index) {
            let kind = self.spec.link_kind();
            let change = self.host_link_difference(link);
            set_link(Place::Host, change, (kind, "host link", link), plan);
        }
        write_sysctls(
            &Place::Host,
            self.host_sysctls(),
            seen,
            &mut plan.host,
            &mut plan.what,
        );
        let addresses = self.host_addresses();
        for address in self.stale_addresses(seen, &addresses) {
            let text = format!(
                "address {} of the host's end (no longer wanted)",
                address.net
            );
            plan.what.push(what(Kind::Address, text));
            plan.host.push(Op::DeleteAddress {
                place: Place::Host,
                address,
            });
        }
        for address in addresses {
            if !has_address(seen, &address) {
                let text = format!("address {} of the host's end (missing)", address.net);
                plan.what.push(what(Kind::Address, text));
                plan.host.push(Op::AddAddress {
                    place: Place::Host,
                    address,
                });
            }
        }
        for neighbour in self.host_neighbours() {
            if !seen.neighbours.contains(&neighbour) {
                let found = found(seen, &neighbour);
                let text = format!("neighbour {} ({found})", neighbour.address);
                plan.what.push(what(Kind::Neighbour, text));
                plan.host.push(Op::ReplaceNeighbour {
                    place: Place::Host,
                    neighbour,
                });
            }
        }
    }

    /// Those of our making that the link is not to have any more: a bridge has other gateways than
    /// it had. They go first: the kernel takes later addresses of a subnet away together with its
    /// first one. The gateway's link-local address stays where it was needed once: it does no harm.
    fn stale_addresses(&self, seen: &Snapshot, wanted: &[Address]) -> Vec<Address> {
        let of_link = seen
            .marked_addresses
            .iter()
            .filter(|seen| seen.index == self.index);
        of_link
            .filter(|seen| seen.net.addr() != IpAddr::V6(GATEWAY_V6))
            .filter(|seen| !wanted.iter().any(|wanted| is_address(seen.net, wanted.net)))
            .copied()
            .collect()
    }

    fn inside_difference(&self, seen: &Snapshot, plan: &mut Difference) {
        let Some(place) = self.inside() else {
            return;
        };
        let seen_link = |index: u32| seen.links.iter().find(|link| link.index == index);
        if !seen_link(LOOPBACK).is_some_and(|link| link.up) {
            plan.what.push(what(Kind::Link, "lo inside (down)"));
            plan.inside.push(Op::SetLink {
                place: place.clone(),
                link: LinkChange {
                    index: LOOPBACK,
                    up: Some(true),
                    ..LinkChange::default()
                },
            });
        }
        if let (Some(link), Some(name)) = (seen_link(self.peer_index), self.spec.interface()) {
            let other = seen.links.iter().find(|other| other.name == name);
            if let Some(other) = other.filter(|other| other.index != link.index) {
                plan.conflict = Some(format!(
                    "its interface was renamed to {}, and interface {} is named {name}",
                    link.name, other.index
                ));
            }
            let change = LinkChange {
                name: (link.name != name).then(|| name.to_owned()),
                ..self.inside_link_difference(link)
            };
            set_link(
                place.clone(),
                change,
                (Kind::Link, "link inside", link),
                plan,
            );
        }
        let sysctls = self.inside_sysctls();
        write_sysctls(&place, sysctls, seen, &mut plan.inside, &mut plan.what);
        for address in self.inside_addresses() {
            if !has_address(seen, &address) {
                let text = format!("address {} inside (missing)", address.net);
                plan.what.push(what(Kind::Address, text));
                plan.inside.push(Op::AddAddress {
                    place: place.clone(),
                    address,
                });
            }
        }
        for neighbour in self.inside_neighbours() {
            if !seen.neighbours.contains(&neighbour) {
                let found = found(seen, &neighbour);
                let text = format!("neighbour {} inside ({found})", neighbour.address);
                plan.what.push(what(Kind::Neighbour, text));
                plan.inside.push(Op::ReplaceNeighbour {
                    place: place.clone(),
                    neighbour,
                });
            }
        }
        self.inside_routes_difference(&place, seen, plan);
    }

    fn inside_routes_difference(&self, place: &Place, seen: &Snapshot, plan: &mut Difference) {
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
            let found = match on_key.is_empty() {
                true => "missing",
                false => "changed",
            };
            let text = format!("{text} ({found})");
            plan.what.push(what(Kind::Route, text));
            let place = place.clone();
            plan.inside.push(if on_key.is_empty() {
                Op::AddRoute { place, route }
            } else {
                Op::ReplaceRoute { place, route }
            });
        }
    }

    /// Whether one of the addresses inside is missing while there is another of its family.
    pub(in super::super) fn other_addresses_stand(&self, seen: &Snapshot) -> bool {
        let wanted = self.inside_addresses();
        let is_wanted = |seen: &Address| wanted.iter().any(|own| is_address(seen.net, own.net));
        let others: Vec<IpAddr> = (seen.addresses.iter())
            .filter(|seen| seen.index == self.peer_index && !is_wanted(seen))
            .map(|seen| seen.net.addr())
            .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .collect();
        (wanted.iter())
            .filter(|own| !has_address(seen, own))
            .any(|own| {
                let family = own.net.addr().is_ipv4();
                others.iter().any(|other| other.is_ipv4() == family)
            })
    }

    /// Whether an event from inside the namespace leaves everything as wanted, so that nothing has
    /// to be read: most are about things that are not ours.
    pub(in super::super) fn inside_change_is_harmless(&self, change: &Change) -> bool {
        match change {
            Change::Link(link) if link.index == LOOPBACK => link.up,
            Change::Link(link) => {
                link.index != self.peer_index
                    || link.up
                        && link.mtu == self.mtu
                        && self.spec.interface() == Some(link.name.as_str())
            }
            Change::LinkDeleted { index } => *index != self.peer_index,
            Change::Address(_)
            | Change::NextHop(_)
            | Change::NextHopDeleted { .. }
            | Change::Fdb(_)
            | Change::FdbDeleted(_) => true,
            Change::AddressDeleted(address) => {
                let wanted = self.inside_addresses();
                !wanted
                    .iter()
                    .any(|own| own.index == address.index && own.net == address.net)
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
                let wanted = self.inside_neighbours();
                wanted.contains(neighbour) || !has_neighbour(&wanted, neighbour)
            }
            Change::NeighbourDeleted(neighbour) => {
                !has_neighbour(&self.inside_neighbours(), neighbour)
            }
            Change::Netconf { index } => *index != self.peer_index,
            // Told as one of the host, whatever the namespace.
            Change::Sysctl { .. } => true,
        }
    }
}

/// Whether there is one of that address at that link.
fn has_neighbour(list: &[Neighbour], neighbour: &Neighbour) -> bool {
    list.iter()
        .any(|one| one.index == neighbour.index && one.address == neighbour.address)
}

/// What stands where that neighbour should.
fn found(seen: &Snapshot, wanted: &Neighbour) -> String {
    let there = (seen.neighbours.iter())
        .find(|one| one.index == wanted.index && one.address == wanted.address);
    match there {
        Some(there) if there.mac != wanted.mac => format!("was {}", mac_text(there.mac)),
        Some(_) => "not permanent".to_owned(),
        None => "missing".to_owned(),
    }
}

fn set_link(place: Place, change: LinkChange, of: (Kind, &str, &Link), plan: &mut Difference) {
    let (kind, whose, seen) = of;
    let changes = link_changes(&change, seen);
    if changes.is_empty() {
        return;
    }
    plan.what.push(what(kind, format!("{whose} ({changes})")));
    let ops = match place {
        Place::Host => &mut plan.host,
        Place::Netns(_) => &mut plan.inside,
    };
    ops.push(Op::SetLink {
        place,
        link: change,
    });
}

fn write_sysctls(
    place: &Place,
    wanted: Vec<(String, &'static str)>,
    seen: &Snapshot,
    ops: &mut Vec<Op>,
    list: &mut Vec<What>,
) {
    for (path, value) in wanted {
        let right = match seen.sysctls.iter().find(|(seen, _)| *seen == path) {
            // No such file: a kernel without that family.
            Some((_, None)) => true,
            Some((_, Some(seen))) => seen.trim() == value,
            None => false,
        };
        if !right {
            let found = seen.sysctls.iter().find(|(seen, _)| *seen == path);
            let found = found.and_then(|(_, value)| value.as_deref()).map(str::trim);
            let text = format!("sysctl {path} (was {})", found.unwrap_or("unknown"));
            list.push(what(Kind::Sysctl, text));
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
        .any(|seen| seen.index == wanted.index && is_address(seen.net, wanted.net))
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
