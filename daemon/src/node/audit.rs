//! What the node believes, in full, for [`check`](super::check) and for lists of addresses.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Drain, Node, Phase, WorkloadId,
    view::{BlockView, WorkloadView},
};
use crate::ipam::{self, Now};

/// A copy of the node's state at one moment.
#[derive(Clone, Debug, Default)]
pub struct NodeAudit {
    pub ipam: ipam::Audit,
    /// In order of id.
    pub workloads: Vec<AuditedWorkload>,
    /// In address order.
    pub blocks: Vec<BlockView>,
    /// Names of bridges.
    pub bridges: BTreeSet<String>,
    pub drain: Drain,
    /// Learned routes of an earlier run are gone.
    pub routes_synced: bool,
}

#[derive(Clone, Debug)]
pub struct AuditedWorkload {
    pub view: WorkloadView,
    /// Nothing of it is on its way.
    pub settled: bool,
    /// The kernel refuses it at present: why.
    pub failure: Option<String>,
}

/// An address that is in use or cools down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressUse {
    pub address: IpAddr,
    pub pool: String,
    pub block: ipnet::IpNet,
    pub workload: WorkloadId,
    pub generation: u64,
    /// Set while it cools down.
    pub free_at: Option<std::time::SystemTime>,
}

impl Node {
    pub fn audit(&mut self, now: Now) -> NodeAudit {
        let workloads = self.workloads.iter().map(|(id, workload)| {
            let standing = matches!(workload.phase, Phase::Standing);
            AuditedWorkload {
                view: self.workload_view(id, workload),
                settled: standing && (workload.detail.is_some() || workload.failure.is_some()),
                failure: workload.failure.as_ref().map(|why| why.text.clone()),
            }
        });
        NodeAudit {
            workloads: workloads.collect(),
            bridges: self
                .bridges
                .iter()
                .map(|bridge| bridge.name.clone())
                .collect(),
            drain: self.drain,
            routes_synced: self.routes_synced,
            ipam: self.ipam.audit(now),
            blocks: self.blocks(now),
        }
    }

    /// Every address that is in use or cools down, in address order.
    pub fn address_uses(&mut self, now: Now) -> Vec<AddressUse> {
        let audit = self.ipam.audit(now);
        let used = audit
            .workloads
            .into_iter()
            .flat_map(|(id, generation, list)| {
                list.into_iter().map(move |assigned| AddressUse {
                    address: assigned.address,
                    pool: assigned.pool,
                    block: assigned.block,
                    workload: id.clone(),
                    generation,
                    free_at: None,
                })
            });
        let cooling = audit.cooling.into_iter().map(|cooling| AddressUse {
            address: cooling.address,
            pool: cooling.pool,
            block: cooling.block,
            workload: cooling.id,
            generation: cooling.generation,
            free_at: Some(cooling.until),
        });
        let mut uses: Vec<AddressUse> = used.chain(cooling).collect();
        uses.sort_by_key(|usage| usage.address);
        uses
    }
}
