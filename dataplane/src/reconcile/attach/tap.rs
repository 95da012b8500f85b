//! A tap device for a virtual machine, over which the host routes.
//!
//! Nothing can be written inside the guest, so the host has to answer for the gateways by itself:
//! both of their addresses stand on the device. 169.254.1.1 is there with scope host, which makes
//! the kernel answer ARP for it, and never use it as the source of the host's own packets. Every
//! device may have it.
//!
//! Until somebody opens the device, and after a guest has stopped, it is up without carrier. Linux
//! keeps its routes then (they are `linkdown`) and drops the packets, which is right: the addresses
//! stay the guest's. So the carrier is nothing that would have to be repaired or reported.

use ipnet::{IpNet, Ipv4Net};

use super::Want;
use crate::{
    desired::Tap,
    kernel::{Address, CreateTap, GATEWAY_V4, Op},
};

impl Want<'_> {
    pub(super) fn create_tap(&self, tap: &Tap) -> Op {
        Op::CreateTap(Box::new(CreateTap {
            name: self.host_name(),
            index: self.index,
            alias: self.alias(),
            mac: self.mac(),
            mtu: self.mtu,
            owner: tap.owner,
            group: tap.group,
            multi_queue: tap.multi_queue,
        }))
    }

    pub(super) fn tap_addresses(&self) -> Vec<Address> {
        let gateway = Address {
            index: self.index,
            net: IpNet::V4(Ipv4Net::new_assert(GATEWAY_V4, 32)),
            nodad: false,
        };
        // Guests have link-local addresses of their own.
        vec![gateway, self.link_local(64)]
    }

    /// Those of a veth: guests that ask for other addresses of their subnet are answered, too.
    pub(super) fn tap_sysctls(&self) -> Vec<(String, &'static str)> {
        self.routed_sysctls()
    }
}
