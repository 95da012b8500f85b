//! A veth pair between the host and a namespace, over which the host routes.
//!
//! The workload's gateways are the same everywhere and belong to no subnet: 169.254.1.1, and the
//! link-local address of the host's end. Permanent neighbours stand in for their answers to ARP and
//! neighbour discovery, so nothing depends on proxy ARP, which does not answer where the host has no
//! route that covers the asked address.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    super::{
        table::{MAIN, own_metric},
        values::{gateway, single, workload_mac},
    },
    Spec, Want,
};
use crate::{
    desired::{Access, Inside, PublishedPort},
    kernel::{
        Address, CreateVeth, GATEWAY_V6, Gateway, HOST_MAC, Neighbour, Op, PROTOCOL_AGENTD, Route,
        Target,
    },
};

impl<'a> Want<'a> {
    pub(super) fn create_routed(&self, inside: &Inside, master: Option<u32>) -> Op {
        Op::CreateVeth(Box::new(CreateVeth {
            name: self.host_name(),
            index: self.index,
            alias: self.alias(),
            mac: self.mac(),
            mtu: self.mtu,
            peer_netns: inside.netns.clone(),
            peer_name: inside.interface.clone(),
            peer_index: self.peer_index,
            peer_mac: workload_mac(&self.id()),
            master,
            deaf: master.is_none() && self.host_addresses().is_empty(),
        }))
    }

    /// No address at all, but for nodes without an IPv6 address: their own packets to the workload
    /// need a source. Nobody asks for the gateway's, of which the workload has a permanent neighbour,
    /// and each address that many links share costs the more the more links there are.
    pub(super) fn routed_addresses(&self) -> Vec<Address> {
        let needed = self.link_local && self.addresses().iter().any(IpAddr::is_ipv6);
        match needed {
            true => vec![self.link_local(128)],
            false => Vec::new(),
        }
    }

    /// Link-local address of the host's end. With a shorter prefix come a route to it and its anycast
    /// address, of which the kernel keeps lists over all links.
    pub(super) fn link_local(&self, prefix_length: u8) -> Address {
        Address {
            index: self.index,
            net: IpNet::V6(Ipv6Net::new_assert(GATEWAY_V6, prefix_length)),
            nodad: true,
        }
    }

    /// Answers to the node's own connections from 127.0.0.1 come back over this interface. What a
    /// workload itself sends there is dropped by the filter table.
    pub(super) fn route_localnet(&self) -> &'static str {
        let reached = |port: &PublishedPort| match port.host_address {
            None => true,
            Some(address) => address.is_loopback(),
        };
        let published = self.access().is_some_and(|access| {
            access.ports.iter().any(reached) && self.addresses().iter().any(IpAddr::is_ipv4)
        });
        if published { "1" } else { "0" }
    }

    /// Strict, but for those who may send from addresses that no route leads to them by: there the
    /// filter table alone decides. Loose mode would not do: on an interface without an IPv4 address
    /// the kernel drops whatever no route leads back by (`no_addr` in `__fib_validate_source`).
    pub(super) fn reverse_path(&self) -> &'static str {
        let more = self
            .access()
            .is_some_and(|access| access.allowed.iter().any(|prefix| prefix.addr().is_ipv4()));
        if more { "0" } else { "1" }
    }

    fn access(&self) -> Option<&'a Access> {
        match self.spec {
            Spec::Workload(workload) => Some(&workload.access),
            Spec::Bridge(_) => None,
        }
    }

    pub(super) fn routed_sysctls(&self) -> Vec<(String, &'static str)> {
        let interface = self.host_name();
        [
            // One message writes those that follow each other.
            ("ipv4/conf", "proxy_arp", "1"),
            ("ipv4/conf", "forwarding", "1"),
            ("ipv4/conf", "route_localnet", self.route_localnet()),
            ("ipv4/conf", "rp_filter", self.reverse_path()),
            ("ipv4/neigh", "proxy_delay", "0"),
            ("ipv6/conf", "disable_ipv6", "0"),
            ("ipv6/conf", "accept_dad", "0"),
            ("ipv6/conf", "accept_ra", "0"),
            ("ipv6/conf", "forwarding", "1"),
            ("ipv6/conf", "proxy_ndp", "1"),
        ]
        .into_iter()
        .map(|(group, key, value)| (format!("net/{group}/{interface}/{key}"), value))
        .collect()
    }

    /// The gateway answers for everything, and its address is at no link that would answer ARP
    /// for it.
    pub(super) fn gateway_neighbours(&self) -> Vec<Neighbour> {
        let neighbour = |address: &IpAddr| Neighbour {
            index: self.peer_index,
            address: gateway(*address),
            mac: HOST_MAC,
            permanent: true,
        };
        self.addresses().iter().map(neighbour).collect()
    }

    pub(super) fn routed_routes(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        let index = self.peer_index;
        for &address in self.addresses() {
            let gateway = gateway(address);
            if gateway.is_ipv4() {
                routes.push(self.inside_route(single(gateway), Target::Link { index }));
            }
            routes.push(self.default_via(gateway));
        }
        routes
    }

    /// The workload's default route of that family.
    pub(super) fn default_via(&self, gateway: IpAddr) -> Route {
        let default = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        let target = Target::Gateways(vec![Gateway {
            address: Some(gateway),
            index: self.peer_index,
            onlink: false,
            weight: 1,
        }]);
        self.inside_route(default, target)
    }

    fn inside_route(&self, prefix: IpNet, target: Target) -> Route {
        Route {
            prefix,
            table: MAIN,
            metric: own_metric(&prefix),
            protocol: PROTOCOL_AGENTD,
            target,
        }
    }
}
