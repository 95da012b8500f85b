//! Where packets to an address leave the node: resolution of BGP next hops, and the MTU of the
//! underlay.
//!
//! A BGP next hop is looked up like a packet to it would be, in the host's main table, but never
//! through learned routes (protocol 71): what resolves them must not be themselves. Any other route
//! will do, the default route included, as BIRD does it. Routes of the kernel name their gateway and
//! interface, so there is nothing to recurse into. A candidate whose interface is down or without
//! carrier is passed over for the next one (higher metric, then shorter prefix).
//!
//! A link-local next hop is on the link that its interface names; without one it is not resolved.

use std::net::IpAddr;

use super::{
    Hop, KernelRoute, Lookup, Reconciler,
    table::{LINK, NONE, is_own, route_of},
    values::single,
};
use crate::{
    desired::{NextHopState, Via},
    kernel::{Gateway, Link, NextHopKind, Route, Target},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) gateway: Gateway,
    pub(super) metric: u32,
}

pub(super) fn state_of(resolved: Option<Resolved>) -> NextHopState {
    match resolved {
        None => NextHopState::Unreachable,
        Some(Resolved { metric, .. }) => NextHopState::Reachable { metric },
    }
}

pub(super) fn is_usable(link: &Link) -> bool {
    link.up && link.running
}

impl Reconciler {
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.links_with(address).next().is_some()
    }

    /// A link-local address is ours on one link and may be somebody else's on another.
    fn is_local_on(&self, address: IpAddr, interface: u32) -> bool {
        match interface {
            0 => self.is_local(address),
            index => self
                .addresses
                .of(index)
                .iter()
                .any(|own| own.net.addr() == address),
        }
    }

    pub(super) fn resolve(&self, via: Via) -> Option<Resolved> {
        let Via { address, interface } = via;
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if address.is_unspecified() || self.is_local_on(address, interface) {
            return None;
        }
        if link_local {
            // The same address may stand on every link.
            return self.usable(address, None, interface, 0, false);
        }
        for prefix in self.table.covering(address) {
            let seen = self.table.get(&prefix).seen;
            if seen & LINK != 0
                && let Some(found) = self.usable(address, None, seen & !LINK, 0, false)
            {
                return Some(found);
            }
            for route in self.table.foreign(&prefix) {
                match self.through(address, route) {
                    Through::Gateway(found) => return Some(found),
                    Through::Nowhere => return None,
                    Through::Down => {}
                }
            }
        }
        None
    }

    fn through(&self, address: IpAddr, route: &Route) -> Through {
        let found = match &route.target {
            Target::Blackhole | Target::Reject => return Through::Nowhere,
            Target::Link { index } => self.usable(address, None, *index, 0, false),
            Target::Gateways(gateways) => gateways.iter().find_map(|hop| {
                self.usable(address, hop.address, hop.index, route.metric, hop.onlink)
            }),
            Target::NextHop { id } => self.through_object(address, *id, route.metric),
        };
        found.map_or(Through::Down, Through::Gateway)
    }

    fn through_object(&self, address: IpAddr, id: u32, metric: u32) -> Option<Resolved> {
        match &self.seen_next_hops.get(&id)?.kind {
            NextHopKind::Blackhole => None,
            NextHopKind::Gateway(hop) => {
                self.usable(address, hop.address, hop.index, metric, hop.onlink)
            }
            NextHopKind::Group(members) => members.iter().find_map(|(member, _)| {
                match &self.seen_next_hops.get(member)?.kind {
                    NextHopKind::Gateway(hop) => {
                        self.usable(address, hop.address, hop.index, metric, hop.onlink)
                    }
                    _ => None,
                }
            }),
        }
    }

    fn usable(
        &self,
        address: IpAddr,
        gateway: Option<IpAddr>,
        index: u32,
        metric: u32,
        onlink: bool,
    ) -> Option<Resolved> {
        let link = self.links.get(&index)?;
        is_usable(link).then(|| Resolved {
            gateway: Gateway {
                address: Some(gateway.unwrap_or(address)),
                index,
                onlink,
                weight: 1,
            },
            metric: if gateway.is_none() { 0 } else { metric },
        })
    }

    /// MTU of the interface that carries traffic to other nodes, if it is known.
    pub(super) fn underlay_mtu(&self) -> Option<u32> {
        // The node may have another address than at the start.
        let told = self.tunnels.wanted.iter();
        let told = told.flat_map(|tunnels| {
            let v4 = tunnels.local.map(IpAddr::V4);
            v4.into_iter().chain(tunnels.local6.map(IpAddr::V6))
        });
        let underlay = told.chain(self.config.underlay.iter().copied());
        let by_address = underlay.into_iter().find_map(|wanted| {
            self.addresses
                .links_with(wanted)
                .find(|index| self.others.contains(index) && self.tunnel_of(*index).is_none())
        });
        let index = by_address.or_else(|| {
            let defaults = [
                ipnet::IpNet::V4(ipnet::Ipv4Net::default()),
                ipnet::IpNet::V6(ipnet::Ipv6Net::default()),
            ];
            defaults
                .iter()
                .flat_map(|prefix| self.table.foreign(prefix))
                .find_map(|route| match &route.target {
                    Target::Link { index } => Some(*index),
                    Target::Gateways(gateways) => gateways.first().map(|hop| hop.index),
                    _ => None,
                })
        })?;
        self.links.get(&index).map(|link| link.mtu)
    }

    pub(super) fn hops_of(&self, target: &Target) -> Vec<Hop> {
        let hop = |address: Option<IpAddr>, index: u32, weight: u16| Hop {
            interface: self
                .links
                .get(&index)
                .map(|link| link.name.clone())
                .unwrap_or_default(),
            index,
            gateway: address,
            weight,
            endpoint: self.endpoint_behind(index, address),
        };
        match target {
            Target::Blackhole | Target::Reject => Vec::new(),
            Target::Link { index } => vec![hop(None, *index, 1)],
            Target::Gateways(gateways) => gateways
                .iter()
                .map(|one| hop(one.address, one.index, one.weight))
                .collect(),
            Target::NextHop { id } => {
                let of = |id: &u32, weight: u16| match self.seen_next_hops.get(id).map(|n| &n.kind)
                {
                    Some(NextHopKind::Gateway(one)) => Some(hop(one.address, one.index, weight)),
                    _ => None,
                };
                match self.seen_next_hops.get(id).map(|object| &object.kind) {
                    Some(NextHopKind::Group(members)) => members
                        .iter()
                        .filter_map(|(member, weight)| of(member, *weight))
                        .collect(),
                    _ => of(id, 1).into_iter().collect(),
                }
            }
        }
    }

    pub(super) fn view_of(&self, route: Route) -> KernelRoute {
        KernelRoute {
            prefix: route.prefix,
            protocol: route.protocol,
            metric: route.metric,
            hops: self.hops_of(&route.target),
            own: is_own(route.protocol),
            target: route.target,
        }
    }

    /// Own route of a prefix, as last seen.
    pub(super) fn own_route(&self, prefix: &ipnet::IpNet) -> Option<Route> {
        match self.table.get(prefix).seen {
            NONE => None,
            super::table::OTHER => self.table.other.get(prefix).cloned(),
            code => Some(route_of(*prefix, code)),
        }
    }

    /// Which route of the main table covers an address, and where it leads.
    pub fn lookup(&self, address: IpAddr) -> Lookup {
        let route = self.table.covering(address).find_map(|prefix| {
            let own = self.own_route(&prefix);
            let foreign = self.table.foreign(&prefix).first().cloned();
            match (own, foreign) {
                (Some(own), Some(foreign)) if foreign.metric < own.metric => Some(foreign),
                (Some(own), _) => Some(own),
                (None, foreign) => foreign,
            }
        });
        let workload = self.host_routes.get(&single(address)).cloned();
        let neighbour = workload
            .as_ref()
            .and_then(|id| self.workloads.get(id))
            .filter(|state| state.is_programmed())
            .and_then(|state| {
                let wanted = self.want(state).host_neighbours();
                wanted.iter().find(|one| one.address == address).copied()
            })
            .map(|neighbour| neighbour.mac);
        Lookup {
            route: route.map(|route| self.view_of(route)),
            local: self.is_local(address),
            neighbour,
            workload,
        }
    }
}

enum Through {
    Gateway(Resolved),
    Down,
    Nowhere,
}
