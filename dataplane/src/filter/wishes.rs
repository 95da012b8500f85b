//! What is wanted of the filter tables: settings, bridges, workloads. Each change marks the elements
//! that may differ from what stands.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    Filter, Leaving, Workload,
    elements::{self, Entry, Key},
    table::SetName,
};
use crate::desired::{Access, FilterSettings};

impl Filter {
    /// Without settings there is no table, and ports are not published.
    pub fn set_settings(&mut self, settings: FilterSettings) {
        self.settings = Some(settings);
        self.refresh_ranges();
    }

    /// All workloads and bridges that earlier runs left behind are set.
    pub fn synced(&mut self) {
        self.synced = true;
    }

    pub fn set_bridge(&mut self, name: Arc<str>, subnets: Vec<IpNet>) {
        self.want(SetName::Interfaces, elements::interface(&name), Vec::new());
        self.restructure(self.bridges.is_empty());
        self.bridges.insert(name, subnets);
        self.refresh_ranges();
    }

    pub fn remove_bridge(&mut self, name: &str) {
        if self.bridges.remove(name).is_some() {
            self.unwant(SetName::Interfaces, elements::interface(name));
            self.restructure(self.bridges.is_empty());
            self.refresh_ranges();
        }
    }

    /// Answered by [`Event::Standing`] when [`Self::is_pending`] says so afterwards.
    pub fn set_workload(
        &mut self,
        id: &Arc<str>,
        entry: Entry<'_>,
        addresses: &[IpAddr],
        access: &Access,
    ) {
        let new = elements::of_workload(entry, addresses, access);
        self.leaving.remove(id);
        let old = self.workloads.remove(id);
        let old_elements = old.as_ref().map_or(&[][..], |old| &old.elements);
        for (set, key) in old_elements {
            if !new.iter().any(|(s, k, _)| s == set && k == key) {
                self.disown(id, *set, key);
            }
        }
        let mut changes = false;
        let mut names = Vec::with_capacity(new.len());
        for (set, key, data) in new {
            names.push((set, key.clone()));
            let slot = (set, key);
            changes |= self.owners.get(&slot) != Some(id)
                || self.wanted[set.index()].get(&slot.1) != Some(&data);
            self.owners.insert(slot.clone(), id.clone());
            self.want(set, slot.1, data);
        }
        let stood = old.is_some_and(|old| old.standing);
        let workload = Workload {
            addresses: addresses.to_vec(),
            standing: names.is_empty() || (stood && !changes),
            elements: names,
            failed: false,
        };
        if !workload.standing {
            self.standing.insert(id.clone());
        }
        self.workloads.insert(id.clone(), workload);
    }

    /// Its elements go at once. [`Self::routes_removed`] is to follow.
    pub fn remove_workload(&mut self, id: &Arc<str>) {
        let Some(workload) = self.workloads.remove(id) else {
            return;
        };
        self.standing.swap_remove(id);
        for (set, key) in &workload.elements {
            self.disown(id, *set, key);
        }
        let plain = workload.elements.is_empty() || !self.is_active();
        if !plain {
            self.gone.push(id.clone());
        }
        self.leaving.insert(
            id.clone(),
            Leaving {
                addresses: workload.addresses,
                awaited: !plain,
                elements_gone: plain,
                routes_gone: false,
            },
        );
    }

    /// No packet reaches it any more: its connections can be forgotten for good. Whether
    /// [`Event::Gone`] is to be waited for.
    pub fn routes_removed(&mut self, id: &Arc<str>) -> bool {
        let Some(leaving) = self.leaving.get_mut(id) else {
            return false;
        };
        leaving.routes_gone = true;
        self.left.push(id.clone());
        leaving.awaited
    }

    /// The first bridge has come, or the last one is gone: the table for them, too.
    fn restructure(&mut self, needed: bool) {
        if needed {
            self.seen = None;
            self.must_read = true;
            self.restructured = true;
        }
    }

    fn want(&mut self, set: SetName, key: Key, data: Vec<u8>) {
        let wanted = &mut self.wanted[set.index()];
        if wanted.get(&key) != Some(&data) {
            wanted.insert(key.clone(), data);
            self.changed.insert((set, key));
        }
    }

    fn unwant(&mut self, set: SetName, key: Key) {
        if self.wanted[set.index()].remove(&key).is_some() {
            self.changed.insert((set, key));
        }
    }

    fn disown(&mut self, id: &Arc<str>, set: SetName, key: &Key) {
        let slot = (set, key.clone());
        if self.owners.get(&slot) == Some(id) {
            self.owners.remove(&slot);
            self.unwant(set, slot.1);
        }
    }

    /// Sets of ranges follow from settings and bridges alone.
    fn refresh_ranges(&mut self) {
        let settings = self.settings.clone().unwrap_or_default();
        let mut inside = settings.inside;
        inside.extend(self.bridges.values().flatten());
        for (v4, v6, prefixes) in [
            (SetName::Inside4, SetName::Inside6, inside),
            (
                SetName::Masquerade4,
                SetName::Masquerade6,
                settings.masquerade,
            ),
            (SetName::Bridged4, SetName::Bridged6, settings.bridged),
        ] {
            let (of4, of6): (Vec<_>, Vec<_>) = prefixes
                .into_iter()
                .partition(|prefix| matches!(prefix, IpNet::V4(_)));
            for (set, prefixes) in [(v4, of4), (v6, of6)] {
                let new = elements::ranges(prefixes);
                let old = std::mem::take(&mut self.wanted[set.index()]);
                for key in old.keys().filter(|key| !new.contains_key(key)) {
                    self.changed.insert((set, key.clone()));
                }
                for key in new.keys().filter(|key| !old.contains_key(key)) {
                    self.changed.insert((set, key.clone()));
                }
                self.wanted[set.index()] = new;
            }
        }
    }
}
