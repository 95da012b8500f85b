//! A veth pair of which the host's end is a port of a bridge.
//!
//! The workload has its address with the length of the bridge's subnet, and talks to others on the
//! bridge directly; the gateway is the host's address on the bridge. The port itself has no address.

use ipnet::IpNet;

use super::Want;
use crate::kernel::{Address, Route};

impl Want<'_> {
    /// The gateway of a family, with the length of the subnet.
    fn gateway_of(&self, is_ipv4: bool) -> Option<IpNet> {
        let gateways = &self.bridge?.gateways;
        gateways
            .iter()
            .find(|net| net.addr().is_ipv4() == is_ipv4)
            .copied()
    }

    pub(super) fn bridged_addresses(&self) -> Vec<Address> {
        let addresses = self.addresses().iter();
        addresses
            .filter_map(|address| {
                let length = self.gateway_of(address.is_ipv4())?.prefix_len();
                Some(Address {
                    index: self.peer_index,
                    net: IpNet::new(*address, length).ok()?,
                    nodad: address.is_ipv6(),
                })
            })
            .collect()
    }

    pub(super) fn bridged_routes(&self) -> Vec<Route> {
        let addresses = self.addresses().iter();
        addresses
            .filter_map(|address| self.gateway_of(address.is_ipv4()))
            .map(|gateway| self.default_via(gateway.addr()))
            .collect()
    }
}
