//! What people and the API see of tunnels.

use std::net::IpAddr;

use super::{
    Reconciler,
    resolve::is_usable,
    tunnel::{Device, HopKey, Way, endpoint, is_own_tunnel},
    view::TunnelView,
};
use crate::desired::{ObjectId, PoolTunnel, Via};

impl Reconciler {
    pub(super) fn pool_tunnels(&self) -> Vec<PoolTunnel> {
        let wanted = self.tunnels.wanted.as_ref();
        wanted.map_or_else(Vec::new, |wanted| wanted.pools.clone())
    }

    pub(super) fn tunnel_views(&self) -> Vec<TunnelView> {
        let failure = self.failures.get(&ObjectId::Tunnels);
        let views = Device::ALL.into_iter().filter_map(|device| {
            let wanted = self.device_wanted(device);
            let link = self
                .link_named(device.name())
                .filter(|link| is_own_tunnel(link, wanted.as_ref()));
            if wanted.is_none() && link.is_none() {
                return None;
            }
            let blocked = self.tunnels.is_blocked(device);
            let failure = failure.filter(|_| blocked);
            Some(TunnelView {
                device: device.name(),
                encapsulation: device.encapsulation(),
                stands: link.is_some_and(is_usable),
                wanted: wanted.is_some(),
                endpoints: self.endpoints(device).len(),
                failure: failure.map(|trouble| trouble.failure.text.clone()),
            })
        });
        views.collect()
    }

    /// Other ends of a device: next hops in use that are reached through it.
    fn endpoints(&self, device: Device) -> std::collections::BTreeSet<IpAddr> {
        let hops = self.next_hops.hops.iter();
        hops.filter(|(key, hop)| hop.is_used() && self.way(**key) == Way::Through(device))
            .map(|(key, _)| endpoint(key.via.address))
            .collect()
    }

    /// Why a next hop that can be reached is not reached through its tunnel.
    pub(super) fn tunnel_text(&self, key: HopKey) -> Option<String> {
        let Via { address, .. } = key.via;
        let device = match self.way(key) {
            Way::Direct => return None,
            Way::Impossible => {
                return Some(format!(
                    "no tunnel of this pool's kind leads to {}",
                    key.via
                ));
            }
            Way::Through(device) => device,
        };
        self.resolve(endpoint(address).into())?;
        let why = match self.failures.get(&ObjectId::Tunnels) {
            Some(trouble) => format!(": {}", trouble.failure.text),
            None if self.device_wanted(device).is_none() => {
                ": this node has no address of that family".to_owned()
            }
            None => String::new(),
        };
        let name = device.name();
        Some(format!(
            "{name}, the tunnel to {address}, is not ready{why}"
        ))
    }

    /// The other end of the tunnel to which a gateway on a device leads, as the kernel has it.
    pub(super) fn endpoint_behind(&self, index: u32, gateway: Option<IpAddr>) -> Option<IpAddr> {
        let link = self.links.get(&index)?;
        match Device::named(&link.name)? {
            Device::Ipip => gateway,
            Device::Vxlan | Device::Vxlan6 => {
                let mac = self.tunnels.neighbours.get(&(index, gateway?))?;
                let entry = self.tunnels.fdb.get(&(index, *mac))?;
                Some(entry.remote)
            }
        }
    }
}
