//! Routes that the speaker has learned, on their way to the kernel; own blocks are not among them.

use std::sync::Arc;

use bgp::rib::RouteChange;
use dataplane::desired::{LearnedRoute, Object, ObjectId, Source, Via};

use super::{Node, Output};

impl Node {
    /// Learned routes stay out of the kernel; those of an earlier run are swept with the first
    /// sync.
    pub fn leave_routes_out(&mut self) {
        self.install_routes = false;
    }

    /// The best routes changed. Own blocks are never learned, whoever announces them.
    pub fn handle_routes(&mut self, changes: Vec<RouteChange>) {
        for change in &changes {
            self.ipam
                .note_foreign(change.prefix, !change.next_hops.is_empty());
        }
        if !self.install_routes {
            return;
        }
        let mut set = Vec::with_capacity(changes.len());
        let mut remove = Vec::new();
        let mut last = None;
        for change in changes {
            self.held_back.remove(&change.prefix);
            if change.next_hops.is_empty() {
                remove.push(ObjectId::Route(change.prefix));
                continue;
            }
            if self.is_own(&change.prefix) {
                // The block is on its way out: the route is wanted when it is gone.
                remove.push(ObjectId::Route(change.prefix));
                self.held_back.insert(change.prefix, change);
                continue;
            }
            // Those that follow each other mostly have the same next hops, in one list.
            let next_hops = match &last {
                Some((from, list)) if Arc::ptr_eq(from, &change.next_hops) => Arc::clone(list),
                _ => {
                    // RFC 7999: without next hops it is dropped.
                    let kept = change.next_hops.iter().filter(|hop| !hop.is_discard());
                    let mut list: Vec<_> = kept.map(via).collect();
                    list.sort_unstable();
                    list.dedup();
                    let list: Arc<[Via]> = list.into();
                    last = Some((Arc::clone(&change.next_hops), Arc::clone(&list)));
                    list
                }
            };
            set.push(Object::Route(LearnedRoute {
                prefix: change.prefix,
                next_hops,
            }));
        }
        // Make before break: what comes stands before what goes is taken away.
        if !set.is_empty() {
            self.outputs.push_back(Output::Set(set));
        }
        if !remove.is_empty() {
            self.outputs.push_back(Output::Remove(remove));
        }
    }

    /// Every peer has sent its whole table, or had time enough.
    pub fn handle_first_sync(&mut self) {
        self.routes_synced = true;
        self.outputs.push_back(Output::Synced(Source::Bgp));
    }
}

/// Where the speaker wants packets to go, as the dataplane is told.
fn via(next_hop: &bgp::attributes::NextHop) -> Via {
    let via = next_hop.via();
    Via {
        address: via.address,
        interface: via.interface,
    }
}
