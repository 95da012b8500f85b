//! The start: the node as the store held it, and what restores it in the kernel and in BGP.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use dataplane::desired::{Detail, Source};

use super::{Drain, Node, Output, Pending, Phase, Workload, names, sync::Syncs, view::Recovery};
use crate::{
    config,
    ipam::{Ipam, Notice, Now},
    store::record::Recovered,
};

impl Node {
    /// Continues from what the store held. The first outputs restore it in the kernel and in BGP.
    pub fn recover(
        now: Now,
        pools: &[config::Pool],
        bridges: &[config::Bridge],
        settings: &config::Ipam,
        recovered: Recovered,
    ) -> (Self, Vec<Notice>) {
        let of_bridges = bridges.iter().flat_map(config::Bridge::pools);
        let all: Vec<config::Pool> = pools.iter().cloned().chain(of_bridges).collect();
        let (ipam, notices) = Ipam::recover(now, &all, settings, &recovered);
        let mut node = Node {
            ipam,
            workloads: BTreeMap::new(),
            blocks: BTreeMap::new(),
            pending: HashMap::new(),
            next_token: 0,
            names: names::Names::default(),
            bridges: bridges.to_vec(),
            own_addresses: Vec::new(),
            awaited: BTreeSet::new(),
            retries: Vec::new(),
            unconfirmed: BTreeSet::new(),
            unoriginated: BTreeSet::new(),
            originations_synced: false,
            started: false,
            swept_blocks: false,
            swept_workloads: false,
            ready: false,
            install_routes: true,
            routes_synced: false,
            held_back: BTreeMap::new(),
            releasers: BTreeMap::new(),
            claims: Default::default(),
            recovery: Recovery::of(&recovered, &notices),
            drain: Drain::Off,
            consumers: None,
            release_unnamed_after: settings.release_unnamed_after,
            syncs: Syncs::default(),
            parked: Vec::new(),
            cursor: 0,
            leftover: Vec::new(),
            outputs: VecDeque::new(),
        };
        node.set_drain(Drain::recovered(now, recovered.drained));
        node.follow_blocks();
        node.unoriginated = node
            .blocks
            .iter()
            .filter(|(_, block)| !block.local)
            .map(|(cidr, _)| *cidr)
            .chain(node.pending.values().filter_map(|pending| match pending {
                Pending::Claim(cidr) => Some(*cidr),
                _ => None,
            }))
            .collect();
        node.outputs.push_back(Output::Synced(Source::Block));
        let mut objects = Vec::with_capacity(recovered.workloads.len() + bridges.len());
        objects.extend(bridges.iter().map(config::Bridge::object));
        for record in recovered.workloads {
            // Two records may have named one address: what the allocator kept is true.
            let addresses = match node.ipam.held(&record.id) {
                Some((_, addresses)) => addresses.to_vec(),
                None => continue,
            };
            let mut workload = Workload {
                generation: record.generation,
                spec: record.spec,
                addresses,
                created_at: record.created_at,
                phase: Phase::Standing,
                detail: None,
                failure: None,
                published: true,
                adders: Vec::new(),
                deleters: Vec::new(),
                queued: Vec::new(),
            };
            node.note_names(&record.id, &workload.spec);
            match workload.object(&record.id) {
                Some(object) => {
                    objects.push(object);
                    node.unconfirmed.insert(record.id.clone());
                }
                None => workload.detail = Some(Detail::default()),
            }
            node.workloads.insert(record.id, workload);
        }
        if !objects.is_empty() {
            node.outputs.push_back(Output::Set(objects));
        }
        node.outputs.push_back(Output::Synced(Source::Workload));
        node.check_originations();
        (node, notices)
    }
}
