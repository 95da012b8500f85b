//! What is written about tunnels, in which order, and what the answers mean.
//!
//! Devices come before what is on them; neighbours and entries before the nexthop objects that need
//! them (those are planned when these stand), and go after the objects are gone.

use std::collections::BTreeSet;

use super::{
    Reconciler,
    lifecycle::kind_of,
    plan::{Batch, Tag},
    results::ignore_gone,
    tunnel::{Device, WantDevice, is_own_tunnel},
    values::{What, link_changes, mac_text, what},
};
use crate::{
    desired::{FailureKind, Kind, ObjectId, Source},
    kernel::{
        Address, CreateTunnel, FdbEntry, Link, LinkChange, LinkKind, Neighbour, Op, OpError,
        OpResult, Place, TUNNEL_ALIAS, Tunnel,
    },
};

/// What an operation about tunnels was for.
#[derive(Debug)]
pub(super) enum Part {
    Create(Device, Box<Link>),
    Delete(u32),
    Link(Device, LinkChange),
    Address(Device, Address),
    Sysctl(Device, String, &'static str),
    Fdb(Device, FdbEntry),
    DeleteFdb(Device, FdbEntry),
    Neighbour(Device, Neighbour),
    DeleteNeighbour(Device, Neighbour),
}

impl Part {
    fn device(&self) -> Option<Device> {
        match self {
            Part::Create(device, _)
            | Part::Link(device, _)
            | Part::Address(device, _)
            | Part::Sysctl(device, ..)
            | Part::Fdb(device, _)
            | Part::DeleteFdb(device, _)
            | Part::Neighbour(device, _)
            | Part::DeleteNeighbour(device, _) => Some(*device),
            Part::Delete(_) => None,
        }
    }
}

/// Operations of a plan, and in which words to tell of them.
#[derive(Default)]
struct Plan {
    ops: Vec<(Op, Part)>,
    what: Vec<What>,
}

impl Plan {
    fn push(&mut self, text: impl Into<String>, op: Op, part: Part) {
        let kind = match part {
            Part::Create(..) | Part::Delete(_) | Part::Link(..) => Kind::Tunnel,
            Part::Address(..) => Kind::Address,
            Part::Sysctl(..) => Kind::Sysctl,
            Part::Fdb(..) | Part::DeleteFdb(..) => Kind::Forwarding,
            Part::Neighbour(..) | Part::DeleteNeighbour(..) => Kind::Neighbour,
        };
        self.what.push(what(kind, text));
        self.ops.push((op, part));
    }
}

impl Reconciler {
    pub(super) fn plan_tunnels(&mut self, batch: &mut Batch) {
        if self.tunnels.wanted.is_none() || !std::mem::take(&mut self.tunnels.dirty) {
            return;
        }
        let disturbed = std::mem::take(&mut self.tunnels.disturbed);
        let mut plan = Plan::default();
        for device in Device::ALL {
            self.plan_device(device, &mut plan);
        }
        self.plan_renamed(&mut plan);
        if disturbed {
            self.tunnels.repairing.append(&mut plan.what);
        }
        if plan.ops.is_empty() && self.tunnels.devices.iter().all(|state| !state.blocked) {
            self.failures.remove(&ObjectId::Tunnels);
        }
        for (op, part) in plan.ops {
            let list = match part {
                Part::Create(..) => &mut batch.create,
                _ => &mut batch.host,
            };
            list.push((op, Tag::Tunnel(Box::new(part))));
        }
    }

    fn plan_device(&mut self, device: Device, plan: &mut Plan) {
        let wanted = self.device_wanted(device);
        let link = self.link_named(device.name()).cloned();
        let own = link
            .as_ref()
            .is_some_and(|link| is_own_tunnel(link, wanted.as_ref()));
        let Some(wanted) = wanted else {
            self.tunnels.device(device).blocked = false;
            if let Some(link) = link.filter(|_| own) {
                self.plan_unwanted(device, &link, plan);
            }
            return;
        };
        let state = self.tunnels.device(device);
        state.unwanted_since = None;
        state.expired = false;
        if state.blocked {
            return;
        }
        match link {
            None => self.plan_new_device(device, &wanted, plan),
            Some(link) if !own => {
                let text = format!("an interface named {} exists, without our mark", link.name);
                self.block(device, FailureKind::Conflict, text);
            }
            Some(link) if link.tunnel != Some(wanted.tunnel) => {
                let what = format!("{} (other parameters)", link.name);
                let op = Op::DeleteLinks(vec![link.index]);
                plan.push(what, op, Part::Delete(link.index));
            }
            Some(link) => {
                self.plan_parts(device, &wanted, &link, plan);
                if device != Device::Ipip {
                    self.plan_entries(device, link.index, plan);
                }
            }
        }
    }

    fn plan_new_device(&mut self, device: Device, wanted: &WantDevice, plan: &mut Plan) {
        let (index, _) = self.choose_indexes();
        let kind = match wanted.tunnel {
            Tunnel::Ipip { .. } => "ipip",
            Tunnel::Vxlan { .. } => "vxlan",
        };
        let link = Link {
            index,
            name: device.name().to_owned(),
            kind: LinkKind::Other(kind.to_owned()),
            alias: Some(TUNNEL_ALIAS.to_owned()),
            mac: wanted.mac,
            mtu: wanted.mtu,
            up: true,
            running: true,
            peer_index: None,
            master: None,
            tunnel: Some(wanted.tunnel),
        };
        let op = Op::CreateTunnel(Box::new(CreateTunnel {
            name: link.name.clone(),
            index,
            alias: TUNNEL_ALIAS.to_owned(),
            mac: wanted.mac,
            mtu: wanted.mtu,
            tunnel: wanted.tunnel,
        }));
        let part = Part::Create(device, Box::new(link.clone()));
        plan.push(format!("{} (missing)", device.name()), op, part);
        for (path, _) in device.sysctls() {
            self.tunnels.sysctls.remove(&path);
        }
        self.plan_parts(device, wanted, &link, plan);
        if device != Device::Ipip {
            self.plan_entries(device, index, plan);
        }
    }

    fn plan_parts(&self, device: Device, wanted: &WantDevice, link: &Link, plan: &mut Plan) {
        let index = link.index;
        let alias = link.alias.as_deref() != Some(TUNNEL_ALIAS);
        let change = LinkChange {
            index,
            up: (!link.up).then_some(true),
            mtu: (link.mtu != wanted.mtu).then_some(wanted.mtu),
            mac: wanted.mac.filter(|mac| link.mac != Some(*mac)),
            alias: alias.then(|| TUNNEL_ALIAS.to_owned()),
            ..LinkChange::default()
        };
        let unchanged = LinkChange {
            index,
            ..LinkChange::default()
        };
        let place = || Place::Host;
        if change != unchanged {
            let op = Op::SetLink {
                place: place(),
                link: change.clone(),
            };
            let text = format!("{} ({})", device.name(), link_changes(&change, link));
            plan.push(text, op, Part::Link(device, change));
        }
        for (path, value) in device.sysctls() {
            let right = match self.tunnels.sysctls.get(&path) {
                // No such file: a kernel without that family.
                Some(None) => true,
                Some(Some(seen)) => seen == value,
                None => false,
            };
            if !right {
                let op = Op::WriteSysctl {
                    place: place(),
                    path: path.clone(),
                    value: value.to_owned(),
                };
                let seen = self.tunnels.sysctls.get(&path).cloned().flatten();
                let seen = seen.map_or_else(|| "unknown".to_owned(), |seen| format!("was {seen}"));
                let what = format!("sysctl {path} ({seen})");
                plan.push(what, op, Part::Sysctl(device, path, value));
            }
        }
        if !self.has_tunnel_address(index, &wanted.address) {
            let address = Address {
                index,
                net: wanted.address,
                nodad: wanted.address.addr().is_ipv6(),
            };
            let op = Op::AddAddress {
                place: place(),
                address,
            };
            let what = format!("address {} of {} (missing)", address.net, device.name());
            plan.push(what, op, Part::Address(device, address));
        }
    }

    fn plan_entries(&self, device: Device, index: u32, plan: &mut Plan) {
        let name = device.name();
        let (entries, neighbours) = self.wanted_entries(device, index);
        let place = || Place::Host;
        for &(mac, remote) in &entries {
            let entry = FdbEntry { index, mac, remote };
            if self.tunnels.fdb.get(&(index, mac)) != Some(&entry) {
                let seen = match self.tunnels.fdb.get(&(index, mac)) {
                    Some(seen) => format!("led to {}", seen.remote),
                    None => "missing".to_owned(),
                };
                let what = format!("entry for {remote} of {name} ({seen})");
                plan.push(what, Op::ReplaceFdb(entry), Part::Fdb(device, entry));
            }
        }
        let neighbour = |address, mac| Neighbour {
            index,
            address,
            mac,
            permanent: true,
        };
        for &(address, mac) in &neighbours {
            if self.tunnels.neighbours.get(&(index, address)) != Some(&mac) {
                let neighbour = neighbour(address, mac);
                let op = Op::ReplaceNeighbour {
                    place: place(),
                    neighbour,
                };
                let seen = match self.tunnels.neighbours.get(&(index, address)) {
                    Some(seen) => format!("was {}", mac_text(*seen)),
                    None => "missing".to_owned(),
                };
                let what = format!("neighbour {address} of {name} ({seen})");
                plan.push(what, op, Part::Neighbour(device, neighbour));
            }
        }
        // Routes of an earlier run may need the others, until every peer has sent its table.
        if !self.is_synced(Source::Bgp) {
            return;
        }
        let in_use = self.gateways_in_use(index);
        let mut kept: BTreeSet<[u8; 6]> = entries.iter().map(|(mac, _)| *mac).collect();
        for (&(of, address), &mac) in &self.tunnels.neighbours {
            if of != index {
                continue;
            }
            if neighbours.contains(&(address, mac)) || in_use.contains(&address) {
                kept.insert(mac);
            } else if !neighbours.iter().any(|(wanted, _)| *wanted == address) {
                let neighbour = neighbour(address, mac);
                let op = Op::DeleteNeighbour {
                    place: place(),
                    neighbour,
                };
                let what = format!("stale neighbour {address} of {name}");
                plan.push(what, op, Part::DeleteNeighbour(device, neighbour));
            }
        }
        for (&(of, mac), entry) in &self.tunnels.fdb {
            if of == index && !kept.contains(&mac) {
                let what = format!("stale entry for {} of {name}", entry.remote);
                plan.push(what, Op::DeleteFdb(*entry), Part::DeleteFdb(device, *entry));
            }
        }
    }

    /// Nodes that have not changed over yet still send through it: it goes later.
    fn plan_unwanted(&mut self, device: Device, link: &Link, plan: &mut Plan) {
        let now = self.now;
        let in_use = !self.gateways_in_use(link.index).is_empty();
        let state = self.tunnels.device(device);
        if in_use || !state.expired {
            state.expired = false;
            state.unwanted_since.get_or_insert(now);
        } else {
            state.expired = false;
            let op = Op::DeleteLinks(vec![link.index]);
            plan.push(device.name(), op, Part::Delete(link.index));
        }
    }

    /// Devices with our mark whose name somebody changed.
    fn plan_renamed(&self, plan: &mut Plan) {
        let others = self.others.iter();
        for link in others.filter_map(|index| self.links.get(index)) {
            if link.alias.as_deref() == Some(TUNNEL_ALIAS)
                && link.tunnel.is_some()
                && Device::named(&link.name).is_none()
            {
                let what = format!("{}, which was renamed", link.name);
                let op = Op::DeleteLinks(vec![link.index]);
                plan.push(what, op, Part::Delete(link.index));
            }
        }
    }

    fn block(&mut self, device: Device, kind: FailureKind, text: String) {
        self.tunnels.device(device).blocked = true;
        self.fail(ObjectId::Tunnels, kind, text);
    }

    pub(super) fn tunnel_written(&mut self, part: Part, result: OpResult) {
        let result = match part {
            Part::Delete(_) | Part::DeleteFdb(..) | Part::DeleteNeighbour(..) => {
                ignore_gone(result)
            }
            _ => result,
        };
        let result = match (&part, result) {
            (Part::Sysctl(_, path, _), Err(error)) if error.errno == libc::ENOENT => {
                self.tunnels.sysctls.insert(path.clone(), None);
                return;
            }
            (_, result) => result,
        };
        self.tunnels.dirty = true;
        self.resolve_dirty = true;
        if let Err(error) = result {
            self.tunnel_refused(&part, &error);
            return;
        }
        match part {
            Part::Create(_, link) => {
                self.note_link(*link);
            }
            Part::Delete(index) => self.forget_link(index),
            Part::Link(_, change) => {
                if let Some(link) = self.links.get_mut(&change.index) {
                    link.up = change.up.unwrap_or(link.up);
                    link.running = link.up;
                    link.mtu = change.mtu.unwrap_or(link.mtu);
                    link.mac = change.mac.or(link.mac);
                    link.alias = change.alias.or_else(|| link.alias.take());
                }
            }
            Part::Address(_, address) => self.addresses.put(address),
            Part::Sysctl(_, path, value) => {
                let value = Some(value.to_owned());
                self.tunnels.sysctls.insert(path, value);
            }
            Part::Fdb(_, entry) => {
                self.tunnels.fdb.insert((entry.index, entry.mac), entry);
            }
            Part::DeleteFdb(_, entry) => {
                self.tunnels.fdb.remove(&(entry.index, entry.mac));
            }
            Part::Neighbour(_, neighbour) => {
                let key = (neighbour.index, neighbour.address);
                self.tunnels.neighbours.insert(key, neighbour.mac);
            }
            Part::DeleteNeighbour(_, neighbour) => {
                let key = (neighbour.index, neighbour.address);
                self.tunnels.neighbours.remove(&key);
            }
        }
        self.tell_tunnel_repairs();
    }

    fn tunnel_refused(&mut self, part: &Part, error: &OpError) {
        // Its device could not be made, of which was told already.
        if error.errno == libc::ECANCELED {
            return;
        }
        let device = part.device().unwrap_or(Device::Vxlan);
        match part {
            Part::Create(..) if error.errno == libc::EOPNOTSUPP => {
                let kind = if device == Device::Ipip {
                    "ipip"
                } else {
                    "vxlan"
                };
                let text = format!("{}: the kernel has no module {kind}", error.text);
                self.block(device, FailureKind::Kernel, text);
            }
            Part::Create(..) if error.errno == libc::EEXIST => {
                let text = format!("{}: another device is in the way", error.text);
                self.block(device, FailureKind::Conflict, text);
            }
            // What was on it went before it: that was told first.
            _ if matches!(error.errno, libc::ENODEV | libc::ENXIO) => {
                self.tunnels.device(device).read = true;
                self.tunnels.disturbed = true;
            }
            _ => self.block(device, kind_of(error, false), error.text.to_string()),
        }
    }
}
