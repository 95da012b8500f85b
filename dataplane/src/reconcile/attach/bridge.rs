//! A bridge of the host, with the gateway addresses of its subnets.
//!
//! Its MAC address is derived from its name: it stays the same whichever ports come and go, and a
//! device that was made but not marked yet is recognised by it.

use super::Want;
use crate::{
    desired::Bridge,
    kernel::{Address, CreateBridge, Op},
};

impl Want<'_> {
    pub(super) fn create_bridge(&self) -> Op {
        Op::CreateBridge(Box::new(CreateBridge {
            name: self.host_name(),
            index: self.index,
            alias: self.alias(),
            mac: self.mac(),
            mtu: self.mtu,
        }))
    }

    pub(super) fn bridge_addresses(&self, bridge: &Bridge) -> Vec<Address> {
        let address = |net: &ipnet::IpNet| Address {
            index: self.index,
            net: *net,
            nodad: net.addr().is_ipv6(),
        };
        bridge.gateways.iter().map(address).collect()
    }

    pub(super) fn bridge_sysctls(&self) -> Vec<(String, &'static str)> {
        let interface = self.host_name();
        [
            ("ipv4/conf", "forwarding", "1"),
            ("ipv4/conf", "route_localnet", "0"),
            ("ipv4/conf", "rp_filter", "1"),
            ("ipv6/conf", "disable_ipv6", "0"),
            ("ipv6/conf", "accept_dad", "0"),
            ("ipv6/conf", "accept_ra", "0"),
            ("ipv6/conf", "forwarding", "1"),
        ]
        .into_iter()
        .map(|(group, key, value)| (format!("net/{group}/{interface}/{key}"), value))
        .collect()
    }
}
