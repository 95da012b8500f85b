//! What the kernel tells: dumps and notifications, and which objects they make us look at again.
//!
//! When a link goes down or is deleted, Linux drops its IPv4 routes and all nexthop objects through it
//! without a word about either, so a change of a link stands for the loss of those as well.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    Reconciler,
    resolve::is_usable,
    table::{ALTERED, Code, MAIN, MET, NONE, SPOILT, WRITING, is_own},
    values::{GLOBAL_SYSCTLS, is_address, is_own_link, what},
};
use crate::{
    desired::{Event, Kind, Source},
    kernel::{
        Address, Change, Link, LinkKind, NextHop, NextHopKind, Op, PROTOCOL_AGENTD_BGP, Place,
        Route, Snapshot, TUNNEL_PREFIX, Target,
    },
};

/// Audits in which every workload is read at least once ...
const AUDIT_PARTS: usize = 8;
/// ... and workloads that are read in each, if there are so many.
const AUDIT_LEAST: usize = 256;

impl Reconciler {
    pub(super) fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.get(self.names.get(name)?)
    }

    /// Notes a link without drawing conclusions.
    pub(super) fn note_link(&mut self, link: Link) -> Option<Link> {
        let index = link.index;
        let name = link.name.clone();
        let before = self.links.insert(index, link);
        if let Some(before) = &before
            && before.name != name
            && self.names.get(&before.name) == Some(&index)
        {
            self.names.remove(&before.name);
        }
        self.names.insert(name, index);
        let marks = |link: &Link| {
            (
                link.name.clone(),
                link.alias.clone(),
                link.mac,
                link.kind.clone(),
            )
        };
        let now = self.links.get(&index);
        let same = before.as_ref().map(marks) == now.map(marks);
        if !same && let Some(now) = now {
            // Bridges are few, and their addresses are the node's.
            let other = now.kind == LinkKind::Bridge || !is_own_link(now);
            let changed = match other {
                true => self.others.insert(index),
                false => self.others.remove(&index),
            };
            self.addresses_dirty |= changed;
            self.mtu_dirty |= changed;
        }
        before
    }

    pub(super) fn forget_link(&mut self, index: u32) {
        if let Some(link) = self.links.remove(&index) {
            if self.names.get(&link.name) == Some(&index) {
                self.names.remove(&link.name);
            }
            self.forget_tunnel(index, &link.name);
        }
        if self.others.remove(&index) {
            self.mtu_dirty = true;
            self.addresses_dirty = true;
            self.resolve_dirty = true;
        }
        self.addresses.forget(index);
        self.reap.forget(index);
        self.lose_link(index, true);
    }

    /// A link no longer carries packets; `down`: its IPv4 routes are gone as well.
    fn lose_link(&mut self, index: u32, down: bool) {
        // Next hops are rarely behind a workload's link, and those come and go all the time.
        self.resolve_dirty |= self.others.contains(&index) || self.leads_through(index);
        let objects: Vec<u32> = self
            .seen_next_hops
            .values()
            .filter(|object| match &object.kind {
                NextHopKind::Gateway(gateway) => gateway.index == index,
                _ => false,
            })
            .map(|object| object.id)
            .collect();
        self.lose_objects(&objects, false);
        if !down {
            return;
        }
        self.lose_routes_to(index);
        let foreign: Vec<IpNet> = self
            .table
            .all_foreign()
            .filter(|route| match &route.target {
                Target::Link { index: of } => *of == index,
                Target::Gateways(gateways) => gateways.iter().any(|hop| hop.index == index),
                _ => false,
            })
            .map(|route| route.prefix)
            .collect();
        self.route_reads.extend(foreign);
    }

    fn link_changed(&mut self, link: Link) {
        let index = link.index;
        let usable = is_usable(&link);
        let up = link.up;
        let mtu = link.mtu;
        let before = self.note_link(link.clone());
        self.tunnel_link_changed(before.as_ref(), &link);
        if before.as_ref().map(is_usable) != Some(usable) {
            self.resolve_dirty = true;
        }
        if before.as_ref().map(|link| link.mtu) != Some(mtu) && self.others.contains(&index) {
            self.mtu_dirty = true;
        }
        if let Some(before) = before
            && ((before.up && !up) || (is_usable(&before) && !usable))
        {
            self.lose_link(index, !up);
        }
        let bound = self.by_index.get(&index).cloned();
        if let Some(id) = bound {
            let right = self.workloads.get(&id).is_some_and(|state| {
                self.want(state).is_host_link_right(&link)
                    && self.by_host_name.get(&link.name) == Some(&id)
            });
            if !right {
                self.read_again(&id, true);
            }
        } else if let Some(id) = self.by_host_name.get(&link.name).cloned() {
            self.read_again(&id, false);
        } else {
            self.reap_if_stale(&link);
        }
    }

    fn reap_if_stale(&mut self, link: &Link) {
        if is_own_link(link)
            && self.is_synced(Source::Workload)
            && !self.by_index.contains_key(&link.index)
            && !self.by_host_name.contains_key(&link.name)
            && !self.reap.contains(link.index)
        {
            self.reap_later(link.index);
        }
    }

    fn link_deleted(&mut self, index: u32) {
        let name = self.links.get(&index).map(|link| link.name.clone());
        self.tunnels.disturbed |= self.tunnel_of(index).is_some();
        let awaited = self.reap.contains(index);
        self.forget_link(index);
        if awaited {
            self.wake_awaiting();
        }
        let bound = self.by_index.get(&index).cloned();
        let named = name.and_then(|name| self.by_host_name.get(&name).cloned());
        if let Some(id) = bound {
            self.read_again(&id, true);
        } else if let Some(id) = named {
            // A foreign link that stood in the way is gone.
            self.read_again(&id, false);
        }
    }

    pub(super) fn see_route(&mut self, route: Route) {
        if route.table != MAIN {
            return;
        }
        if is_own(route.protocol) {
            self.table.see(&route);
        } else {
            let prefix = route.prefix;
            self.table.add_foreign(route);
            self.note_underlay_route(&prefix);
        }
    }

    fn route_changed(&mut self, route: Route) {
        if route.table != MAIN {
            return;
        }
        let prefix = route.prefix;
        let before = self.note_overlap(&prefix);
        let own = is_own(route.protocol);
        self.see_route(route);
        if own {
            let after = self.table.get(&prefix).seen;
            if after != before {
                self.spoil(prefix, before);
                self.note_underlay_route(&prefix);
            }
            self.queue(prefix);
        } else if before != NONE && self.table.foreign_on_key(&prefix).is_some() {
            // It may have replaced ours, of which the kernel does not tell.
            self.route_reads.insert(prefix);
        } else if self.is_failing_route(&prefix) {
            self.queue(prefix);
        }
    }

    /// What stands at a prefix, by what is known. Of a change that meets a write of ours it is not
    /// known which of the two came last.
    fn note_overlap(&mut self, prefix: &IpNet) -> Code {
        let entry = self.table.get(prefix);
        if entry.flags & WRITING != 0 {
            self.route_reads.insert(*prefix);
        }
        entry.seen
    }

    fn route_gone(&mut self, route: &Route) {
        if route.table != MAIN {
            return;
        }
        let prefix = route.prefix;
        if !is_own(route.protocol) {
            let gone =
                |seen: &Route| seen.metric == route.metric && seen.protocol == route.protocol;
            if self.table.remove_foreign(&prefix, gone) {
                self.note_underlay_route(&prefix);
                // Ours may stand there now.
                if self.blackholes.contains_key(&prefix) || self.table.get(&prefix).learned != NONE
                {
                    self.queue(prefix);
                }
                if let Some(id) = self.host_routes.get(&prefix).cloned() {
                    self.read_again(&id, false);
                }
            }
            return;
        }
        if route.metric != super::table::own_metric(&prefix) {
            self.table.odd.remove(&(prefix, route.metric));
            return;
        }
        let before = self.note_overlap(&prefix);
        if before != NONE && before == super::table::code_of(route) {
            self.table.set_seen(&prefix, NONE);
            self.spoil(prefix, before);
            self.note_underlay_route(&prefix);
            self.queue(prefix);
        }
    }

    /// If what stood at a prefix was as wanted, then what follows is a repair.
    pub(super) fn spoil(&mut self, prefix: IpNet, before: u32) {
        if before != NONE && self.is_wanted(&prefix, before) {
            self.table.update(&prefix, |entry| {
                entry.flags = entry.flags & !ALTERED | SPOILT;
                if entry.seen != NONE {
                    entry.flags |= ALTERED;
                }
            });
        }
    }

    fn is_failing_route(&self, prefix: &IpNet) -> bool {
        !self.failures.is_empty() && self.failures.contains_key(&self.route_object(*prefix))
    }

    fn address_changed(&mut self, address: Address, gone: bool) {
        match gone {
            true => self.addresses.remove(&address),
            false => self.addresses.put(address),
        }
        let bound = self.by_index.get(&address.index).cloned();
        match bound {
            Some(id) => {
                let ours = self.workloads.get(&id).is_some_and(|state| {
                    let wanted = self.want(state).host_addresses();
                    wanted.iter().any(|own| is_address(address.net, own.net))
                });
                if ours && gone {
                    self.read_again(&id, true);
                }
            }
            // On the link of a workload that is on its way out.
            None if self.links.contains_key(&address.index)
                && !self.others.contains(&address.index) => {}
            None => {
                if self.tunnel_of(address.index).is_some() {
                    self.look_at_tunnels(gone);
                }
                self.resolve_dirty = true;
                self.mtu_dirty = true;
                self.addresses_dirty = true;
            }
        }
    }

    fn look_at_workloads(&mut self) {
        #[cfg(test)]
        self.walked.set(self.walked.get() + self.workloads.len());
        let all: Vec<Arc<str>> = self.workloads.keys().cloned().collect();
        for id in all {
            self.read_again(&id, false);
        }
    }

    /// Tells the addresses of the node itself, if they are others than before.
    pub(super) fn tell_addresses(&mut self) {
        if !std::mem::take(&mut self.addresses_dirty) {
            return;
        }
        let mut all: Vec<IpAddr> = Vec::new();
        for index in &self.others {
            let ours = self
                .links
                .get(index)
                .is_none_or(|link| is_own_link(link) || link.name.starts_with(TUNNEL_PREFIX));
            if !ours {
                let of_link = self.addresses.of(*index).iter();
                all.extend(of_link.map(|address| address.net.addr()));
            }
        }
        #[cfg(test)]
        self.walked.set(self.walked.get() + self.others.len());
        all.retain(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        });
        all.sort_unstable();
        all.dedup();
        let had_ipv6 = std::mem::replace(&mut self.has_ipv6, all.iter().any(IpAddr::is_ipv6));
        if had_ipv6 && !self.has_ipv6 && self.addresses_told.is_some() {
            // Links of workloads need an address now.
            self.look_at_workloads();
        }
        if self.addresses_told.as_ref() != Some(&all) {
            self.addresses_told = Some(all.clone());
            self.events.push_back(Event::NodeAddresses(all));
        }
    }

    fn object_changed(&mut self, object: NextHop) {
        let id = object.id;
        let own = object.protocol == PROTOCOL_AGENTD_BGP;
        self.seen_next_hops.insert(id, object);
        self.resolve_dirty = true;
        self.tunnels.dirty = true;
        if self.is_wanted_object(id) {
            if !self.object_matches(id) {
                self.spoilt_objects.insert(id, "changed");
            }
            self.next_hops.dirty.insert(id);
        } else if own && self.is_synced(Source::Bgp) {
            self.next_hops.retired.insert(id);
        }
    }

    pub(super) fn host_changed(&mut self, change: Change) {
        match change {
            Change::Link(link) => self.link_changed(link),
            Change::LinkDeleted { index } => self.link_deleted(index),
            Change::Address(address) => self.address_changed(address, false),
            Change::AddressDeleted(address) => self.address_changed(address, true),
            Change::Route(route) => self.route_changed(route),
            Change::RouteDeleted(route) => self.route_gone(&route),
            Change::NextHop(object) => self.object_changed(object),
            Change::NextHopDeleted { id } => {
                if self.is_wanted_object(id) && self.object_stands(id) {
                    self.spoilt_objects.insert(id, "missing");
                }
                self.resolve_dirty = true;
                self.lose_objects(&[id], true);
            }
            Change::Neighbour(neighbour) | Change::NeighbourDeleted(neighbour)
                if !self.by_index.contains_key(&neighbour.index) =>
            {
                self.tunnel_changed(&change);
            }
            Change::Neighbour(neighbour) => {
                let id = self.by_index.get(&neighbour.index).cloned();
                if let Some(id) = id
                    && let Some(state) = self.workloads.get(&id)
                    && self.is_address_of_ours(neighbour.address)
                    && self
                        .want(state)
                        .host_neighbours()
                        .iter()
                        .any(|wanted| wanted.address == neighbour.address && *wanted != neighbour)
                {
                    self.read_again(&id, true);
                }
            }
            Change::NeighbourDeleted(neighbour) => {
                if let Some(id) = self.by_index.get(&neighbour.index).cloned()
                    && self.is_address_of_ours(neighbour.address)
                {
                    self.read_again(&id, true);
                }
            }
            Change::Fdb(_) | Change::FdbDeleted(_) => self.tunnel_changed(&change),
            Change::Sysctl { path, value } => self.sysctl_written(&path, value.as_deref()),
            // Of all interfaces.
            Change::Netconf { index: 0 } => self.read_globals = true,
            Change::Netconf { index } => {
                if let Some(id) = self.by_index.get(&index).cloned() {
                    self.read_again(&id, true);
                } else {
                    self.tunnel_changed(&change);
                }
            }
        }
    }

    pub(super) fn inside_changed(&mut self, place: &Place, change: &Change) {
        let Place::Netns(netns) = place else {
            return;
        };
        let concerned: Vec<Arc<str>> = self
            .by_netns
            .get(&(netns.device, netns.inode))
            .into_iter()
            .flatten()
            .filter(|id| {
                self.workloads
                    .get(*id)
                    .is_some_and(|state| !self.want(state).inside_change_is_harmless(change))
            })
            .cloned()
            .collect();
        for id in concerned {
            self.read_again(&id, true);
        }
    }

    /// Takes over a dump of the host's namespace, and looks again at what is not as it was.
    pub(super) fn absorb_host(&mut self, snapshot: Snapshot) {
        let first = !self.started;
        self.links.clear();
        self.names.clear();
        self.others.clear();
        self.addresses.clear();
        for link in snapshot.links {
            self.note_link(link);
        }
        for address in &snapshot.addresses {
            self.addresses.put(*address);
        }
        self.absorb_objects(snapshot.next_hops, first);
        self.absorb_main_table(snapshot.routes, first);
        self.absorb_tunnels(&snapshot.fdb, &snapshot.neighbours, &snapshot.sysctls);
        self.resolve_dirty = true;
        self.mtu_dirty = true;
        self.addresses_dirty = true;
        self.last_audit = Some(self.now);
        if first {
            self.started = true;
            self.note_globals(&snapshot.sysctls, false);
            self.events.push_back(Event::Started);
            self.resolve_all();
            self.update_mtu();
            self.replay_early();
            return;
        }
        self.note_globals(&snapshot.sysctls, true);
        self.reap.retain(|index| self.links.contains_key(&index));
        self.wake_awaiting();
        self.audit_workloads(&snapshot.neighbours);
        let links: Vec<Link> = self.links.values().cloned().collect();
        for link in links {
            self.reap_if_stale(&link);
        }
    }

    /// Looks at sysctls that are everybody's.
    pub(super) fn note_globals(&mut self, sysctls: &[(String, Option<String>)], disturbed: bool) {
        for (path, value) in GLOBAL_SYSCTLS {
            let seen = sysctls.iter().find(|(seen, _)| seen == path);
            let seen = match seen {
                Some((_, Some(seen))) => seen.trim(),
                // No such file: a kernel without that family.
                Some((_, None)) => continue,
                None => "unknown",
            };
            if seen == value {
                continue;
            }
            if disturbed {
                let text = format!("sysctl {path} (was {seen})");
                self.tell_repair(None, &[what(Kind::Sysctl, text)]);
            }
            self.global_writes.push(Op::WriteSysctl {
                place: Place::Host,
                path: path.to_owned(),
                value: value.to_owned(),
            });
        }
    }

    fn absorb_objects(&mut self, objects: Vec<NextHop>, first: bool) {
        let lost: Vec<u32> = self
            .seen_next_hops
            .keys()
            .filter(|id| !objects.iter().any(|object| object.id == **id))
            .copied()
            .collect();
        self.lose_objects(&lost, false);
        for object in objects {
            if first {
                self.seen_next_hops.insert(object.id, object);
            } else if self.seen_next_hops.get(&object.id) != Some(&object) {
                self.object_changed(object);
            }
        }
    }

    fn absorb_main_table(&mut self, routes: Vec<Route>, first: bool) {
        self.table.clear_foreign();
        self.table.odd.clear();
        // Single reads and notifications leave it behind: it has to mean this dump.
        self.table.for_each(|_, entry| entry.flags &= !MET);
        let mut changed = Vec::new();
        for route in routes {
            if route.table != MAIN {
                continue;
            }
            if first || !is_own(route.protocol) {
                self.see_route(route);
                continue;
            }
            let prefix = route.prefix;
            let before = self.table.get(&prefix).seen;
            self.see_route(route);
            if self.table.get(&prefix).seen != before {
                self.spoil(prefix, before);
                changed.push(prefix);
            }
        }
        let mut vanished = Vec::new();
        self.table.for_each(|prefix, entry| {
            if entry.flags & MET == 0 && entry.seen != NONE {
                vanished.push((prefix, entry.seen));
                entry.seen = NONE;
            }
            entry.flags &= !MET;
        });
        for (prefix, before) in vanished {
            self.table.relink(&prefix, before, NONE);
            self.spoil(prefix, before);
            changed.push(prefix);
        }
        for prefix in changed {
            self.queue(prefix);
        }
        self.table.prune();
        let failing: Vec<IpNet> = self
            .failures
            .keys()
            .filter_map(|id| match id {
                crate::desired::ObjectId::Route(prefix)
                | crate::desired::ObjectId::Blackhole(prefix) => Some(*prefix),
                crate::desired::ObjectId::Workload(_)
                | crate::desired::ObjectId::Bridge(_)
                | crate::desired::ObjectId::Tunnels => None,
            })
            .collect();
        let unread = std::mem::take(&mut self.unread);
        for prefix in failing.into_iter().chain(unread) {
            self.queue(prefix);
        }
    }

    /// Workloads that are read whole with this audit, whatever the host's dump says: a part of them
    /// each time, because each costs some dumps of its namespace.
    fn audit_share(&mut self) -> Vec<Arc<str>> {
        if self.audit_queue.is_empty() {
            self.audit_queue = self.workloads.keys().cloned().collect();
        }
        let share = (self.workloads.len() / AUDIT_PARTS).max(AUDIT_LEAST);
        let share = share.min(self.audit_queue.len());
        self.audit_queue.split_off(self.audit_queue.len() - share)
    }

    /// Looks again at workloads of which the host's side is not as it should be.
    fn audit_workloads(&mut self, neighbours: &[crate::kernel::Neighbour]) {
        let neighbours: hashbrown::HashSet<_> = neighbours.iter().copied().collect();
        let mut wrong = Vec::new();
        for (id, state) in &self.workloads {
            let want = self.want(state);
            let stands = || {
                state.index != 0
                    && self
                        .links
                        .get(&state.index)
                        .is_some_and(|link| want.is_host_link_right(link))
            };
            let has = |address: &Address| {
                let of_link = self.addresses.of(state.index);
                of_link.iter().any(|seen| is_address(seen.net, address.net))
            };
            let right = state.spec.host_name().is_none()
                || stands()
                    && want.host_addresses().iter().all(has)
                    && want
                        .host_neighbours()
                        .iter()
                        .all(|neighbour| neighbours.contains(neighbour));
            if !right || self.read_inside {
                wrong.push(id.clone());
            }
        }
        if !std::mem::take(&mut self.read_inside) {
            wrong.append(&mut self.audit_share());
        }
        for id in wrong {
            self.read_again(&id, true);
        }
    }
}
