//! What goes with a nexthop object that is gone, and what its return sets going again.

use hashbrown::HashSet;

use super::{
    Reconciler,
    queue::Queue,
    table::{ALTERED, Code, Hash, LINK, NONE, SPOILT},
};
use crate::kernel::{NextHopKind, Target};

impl Reconciler {
    /// Objects are gone from the kernel, and with them their routes and their places in groups.
    /// `spoilt`: by somebody's doing, so that making them again is a repair.
    pub(super) fn lose_objects(&mut self, ids: &[u32], spoilt: bool) {
        let mut lost: HashSet<u32, Hash> = ids
            .iter()
            .copied()
            .filter(|id| self.seen_next_hops.remove(id).is_some())
            .collect();
        if lost.is_empty() {
            return;
        }
        self.tunnels.dirty = true;
        let mut emptied = Vec::new();
        for (id, object) in &mut self.seen_next_hops {
            if let NextHopKind::Group(members) = &mut object.kind {
                let before = members.len();
                members.retain(|(member, _)| !lost.contains(member));
                if members.len() != before {
                    self.next_hops.dirty.insert(*id);
                    if members.is_empty() {
                        emptied.push(*id);
                    }
                }
            }
        }
        for id in emptied {
            self.seen_next_hops.remove(&id);
            lost.insert(id);
        }
        for id in &lost {
            self.next_hops.retired.remove(id);
            if self.is_wanted_object(*id) {
                self.next_hops.dirty.insert(*id);
            } else {
                // It is gone, which is what failed.
                self.object_failures.remove(id);
            }
        }
        self.lose_routes_where(|code| lost.contains(&code), spoilt);
        // Foreign routes may have used them as well.
        let foreign: Vec<ipnet::IpNet> = self
            .table
            .all_foreign()
            .filter(|route| matches!(&route.target, Target::NextHop { id } if lost.contains(id)))
            .map(|route| route.prefix)
            .collect();
        self.route_reads.extend(foreign);
    }

    /// Own routes to nexthop objects of which the content fulfils a condition are gone.
    pub(super) fn lose_routes_where(&mut self, gone: impl Fn(Code) -> bool, spoilt: bool) {
        let mut again = Queue::default();
        let mut underlay = Vec::new();
        let (next_hops, blackholes, host_routes) =
            (&self.next_hops, &self.blackholes, &self.host_routes);
        #[cfg(test)]
        self.walked
            .set(self.walked.get() + self.table.iter().count());
        self.table.for_each(|prefix, entry| {
            if entry.seen != NONE && gone(entry.seen) {
                debug_assert_eq!(entry.seen & LINK, 0, "these go by their link");
                if spoilt && entry.learned == entry.seen {
                    entry.flags |= SPOILT;
                }
                entry.seen = NONE;
                if prefix.prefix_len() == 0 || next_hops.is_inside(&prefix) {
                    underlay.push(prefix);
                }
                if entry.learned != NONE
                    || blackholes.contains_key(&prefix)
                    || host_routes.contains_key(&prefix)
                {
                    again.push(prefix);
                } else {
                    // Withdrawn, mostly with all the others: nothing is left to be done.
                    entry.flags &= !(SPOILT | ALTERED);
                }
            }
        });
        for prefix in underlay {
            self.note_underlay_route(&prefix);
        }
        while let Some(prefix) = again.pop() {
            self.queue(prefix);
        }
        self.table.prune();
    }

    /// Own routes to a link are gone.
    pub(super) fn lose_routes_to(&mut self, index: u32) {
        for prefix in self.table.to_link(index).to_vec() {
            self.table.set_seen(&prefix, NONE);
            self.note_underlay_route(&prefix);
            self.queue(prefix);
        }
    }

    /// The object of a set stands again: its routes can be written.
    pub(super) fn release_held(&mut self, id: u32) {
        if !self.next_hops.held.remove(&id) {
            return;
        }
        let waiting: Vec<ipnet::IpNet> = self
            .table
            .iter()
            .filter(|(_, entry)| entry.learned == id && entry.seen != id)
            .map(|(prefix, _)| prefix)
            .collect();
        for prefix in waiting {
            self.queue(prefix);
        }
    }
}
