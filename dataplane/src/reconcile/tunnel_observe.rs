//! What the kernel tells about tunnel devices, their neighbours and forwarding entries, and when those
//! go that nobody wants.

use std::{collections::BTreeSet, time::Instant};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{Reconciler, table::Hash, tunnel::Device};
use crate::{
    desired::ObjectId,
    kernel::{Change, FdbEntry, Link, Neighbour, TUNNEL_PREFIX},
};

impl Reconciler {
    pub(super) fn tunnel_of(&self, index: u32) -> Option<Device> {
        Device::named(&self.links.get(&index)?.name)
    }

    /// Something about tunnels may differ from what is wanted.
    pub(super) fn look_at_tunnels(&mut self, disturbed: bool) {
        self.tunnels.dirty = true;
        self.tunnels.disturbed |= disturbed;
        self.resolve_dirty = true;
    }

    /// A link was deleted, and with it what was on it.
    pub(super) fn forget_tunnel(&mut self, index: u32, name: &str) {
        if !name.starts_with(TUNNEL_PREFIX) {
            return;
        }
        self.tunnels.fdb.retain(|(of, _), _| *of != index);
        self.tunnels.neighbours.retain(|(of, _), _| *of != index);
        let part = format!("/{name}/");
        self.tunnels.sysctls.retain(|path, _| !path.contains(&part));
        if let Some(device) = Device::named(name) {
            self.tunnels.device(device).blocked = false;
        }
        self.look_at_tunnels(false);
    }

    /// The kernel forgets the neighbours of a link that goes down.
    pub(super) fn tunnel_link_changed(&mut self, before: Option<&Link>, link: &Link) {
        let ours = |link: &Link| link.name.starts_with(TUNNEL_PREFIX);
        if !ours(link) && !before.is_some_and(ours) {
            return;
        }
        if !link.up {
            let index = link.index;
            self.tunnels.neighbours.retain(|(of, _), _| *of != index);
        }
        // What we wrote ourselves is known.
        let values = |link: &Link| {
            let alias = link.alias.clone();
            (link.name.clone(), link.up, link.mtu, link.mac, alias)
        };
        self.look_at_tunnels(before.is_some_and(|before| values(before) != values(link)));
    }

    pub(super) fn tunnel_changed(&mut self, change: &Change) {
        let (index, changed) = match change {
            Change::Fdb(entry) => {
                let key = (entry.index, entry.mac);
                (
                    entry.index,
                    self.tunnel_of(entry.index).is_some()
                        && self.tunnels.fdb.insert(key, *entry) != Some(*entry),
                )
            }
            Change::FdbDeleted(entry) => {
                let key = (entry.index, entry.mac);
                (entry.index, self.tunnels.fdb.remove(&key).is_some())
            }
            // What is not permanent any more is as good as gone.
            Change::Neighbour(neighbour) if !neighbour.permanent => {
                let key = (neighbour.index, neighbour.address);
                (
                    neighbour.index,
                    self.tunnels.neighbours.remove(&key).is_some(),
                )
            }
            Change::Neighbour(neighbour) => {
                let key = (neighbour.index, neighbour.address);
                (
                    neighbour.index,
                    self.tunnel_of(neighbour.index).is_some()
                        && self.tunnels.neighbours.insert(key, neighbour.mac)
                            != Some(neighbour.mac),
                )
            }
            Change::NeighbourDeleted(neighbour) => {
                let key = (neighbour.index, neighbour.address);
                (
                    neighbour.index,
                    self.tunnels.neighbours.remove(&key).is_some(),
                )
            }
            Change::Netconf { index } => {
                if let Some(device) = self.tunnel_of(*index) {
                    self.tunnels.device(device).read = true;
                }
                return;
            }
            _ => return,
        };
        if changed && self.tunnel_of(index).is_some() {
            self.look_at_tunnels(true);
        }
    }

    /// Takes over what a dump of the host says.
    pub(super) fn absorb_tunnels(
        &mut self,
        fdb: &[FdbEntry],
        neighbours: &[Neighbour],
        sysctls: &[(String, Option<String>)],
    ) {
        let ours: BTreeSet<u32> = self
            .links
            .values()
            .filter(|link| Device::named(&link.name).is_some())
            .map(|link| link.index)
            .collect();
        let entries = fdb.iter().filter(|entry| ours.contains(&entry.index));
        let fdb: HashMap<_, _, Hash> = entries
            .map(|entry| ((entry.index, entry.mac), *entry))
            .collect();
        let permanent = neighbours
            .iter()
            .filter(|neighbour| neighbour.permanent && ours.contains(&neighbour.index));
        let neighbours: HashMap<_, _, Hash> = permanent
            .map(|neighbour| ((neighbour.index, neighbour.address), neighbour.mac))
            .collect();
        let known = fdb == self.tunnels.fdb && neighbours == self.tunnels.neighbours;
        self.tunnels.disturbed |= self.started && !known;
        self.tunnels.fdb = fdb;
        self.tunnels.neighbours = neighbours;
        self.note_tunnel_sysctls(sysctls);
        self.tunnels.dirty = true;
    }

    pub(super) fn note_tunnel_sysctls(&mut self, sysctls: &[(String, Option<String>)]) {
        for (path, value) in sysctls {
            let stands = path
                .split('/')
                .nth(3)
                .is_some_and(|name| self.names.contains_key(name));
            if path.contains(TUNNEL_PREFIX) && stands {
                let value = value.as_ref().map(|value| value.trim().to_owned());
                self.tunnels.sysctls.insert(path.clone(), value);
            }
        }
    }

    /// A device was read because somebody wrote one of its sysctls: perhaps ourselves.
    pub(super) fn tunnel_read(&mut self, sysctls: &[(String, Option<String>)]) {
        let before = self.tunnels.sysctls.clone();
        self.note_tunnel_sysctls(sysctls);
        if self.tunnels.sysctls != before {
            self.look_at_tunnels(true);
        }
    }

    /// A device is gone, of which the kernel has not told yet.
    pub(super) fn tunnel_lost(&mut self, index: u32) {
        if self.tunnel_of(index).is_some() {
            self.forget_link(index);
            self.look_at_tunnels(true);
        }
    }

    /// When the first device is to go of those that stand and are not wanted.
    pub(super) fn tunnel_timeout(&self) -> Option<Instant> {
        let since = self.tunnels.devices.iter();
        let since = since.filter_map(|state| state.unwanted_since).min()?;
        Some(since + self.config.tunnel_linger)
    }

    pub(super) fn expire_tunnels(&mut self) {
        let (now, linger) = (self.now, self.config.tunnel_linger);
        for state in &mut self.tunnels.devices {
            if state
                .unwanted_since
                .is_some_and(|since| now >= since + linger)
            {
                state.unwanted_since = None;
                state.expired = true;
                self.tunnels.dirty = true;
            }
        }
    }

    /// Sysctls to read with the host. At the start it is not known yet which devices are wanted.
    pub(super) fn tunnel_sysctls() -> impl Iterator<Item = String> {
        Device::ALL
            .into_iter()
            .flat_map(|device| device.sysctls().into_iter().map(|(path, _)| path))
    }

    /// What was found changed stands again.
    pub(super) fn tell_tunnel_repairs(&mut self) {
        if self.tunnels.repairing.is_empty() {
            return;
        }
        let what = std::mem::take(&mut self.tunnels.repairing);
        self.tell_repair(Some(ObjectId::Tunnels), &what);
    }

    pub(super) fn has_tunnel_address(&self, index: u32, wanted: &IpNet) -> bool {
        let of_link = self.addresses.of(index);
        of_link.iter().any(|seen| seen.net == *wanted)
    }
}
