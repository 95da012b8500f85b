//! What the node shows: views, watch events, readiness.

use std::{net::IpAddr, sync::Arc};

use dataplane::kernel::{GATEWAY_V4, GATEWAY_V6};
use ipnet::IpNet;

use super::{
    Node, Output, Phase, Stage, Workload, WorkloadId,
    attachment::Attachment,
    view::{
        AddressView, AssignedAddress, BlockView, NodeStatus, PoolView, WatchChange, WatchEvent,
        WorkloadState, WorkloadView,
    },
};
use crate::ipam::Now;

impl Node {
    pub fn workload(&self, id: &WorkloadId) -> Option<WorkloadView> {
        let workload = self.workloads.get(id)?;
        Some(self.workload_view(id, workload))
    }

    /// In order of id.
    pub fn workloads(&self) -> Vec<WorkloadView> {
        self.workloads
            .iter()
            .map(|(id, workload)| self.workload_view(id, workload))
            .collect()
    }

    /// Those that watchers know of, in order of id.
    pub fn published(&self) -> Vec<WorkloadView> {
        self.workloads
            .iter()
            .filter(|(_, workload)| workload.published)
            .map(|(id, workload)| self.workload_view(id, workload))
            .collect()
    }

    /// Of the last watch event.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    pub fn pools(&mut self, now: Now) -> Vec<PoolView> {
        self.ipam.pools(now)
    }

    /// In address order.
    pub fn blocks(&mut self, now: Now) -> Vec<BlockView> {
        let mut views = self.ipam.blocks(now, None);
        for view in &mut views {
            self.complete(view);
        }
        views
    }

    pub fn address(&mut self, now: Now, address: IpAddr) -> AddressView {
        let lookup = self.ipam.lookup(now, address);
        let mut block = lookup.block;
        if let Some(view) = &mut block {
            self.complete(view);
        }
        AddressView {
            pool: lookup.pool,
            block,
            workload: lookup.holder.and_then(|id| self.workload(&id)),
            would_be_block: lookup.would_be_block,
            reserved: lookup.reserved,
            cooling: lookup.cooling,
        }
    }

    pub fn status(&self) -> NodeStatus {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let failed = self
            .workloads
            .values()
            .filter(|workload| workload.failure.is_some())
            .count();
        let active = self
            .blocks
            .values()
            .filter(|block| block.stage == Stage::Active)
            .count();
        NodeStatus {
            ready: self.ready,
            waiting_for: if self.ready {
                Vec::new()
            } else {
                self.waiting_for()
            },
            workloads: count(self.workloads.len()),
            workloads_failed: count(failed),
            in_flight: count(self.awaited.len()),
            blocks: count(self.ipam.block_count()),
            blocks_active: count(active),
            drain: self.drain,
            recovery: self.recovery.clone(),
            duplicate_claims: self.duplicate_claims().to_vec(),
        }
    }

    /// Store recovered, kernel in sync and own blocks originated. Once true, it stays so.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn check_ready(&mut self) {
        self.ready = self.ready || self.waiting_for().is_empty();
    }

    fn waiting_for(&self) -> Vec<String> {
        let mut list = Vec::new();
        if !self.started {
            list.push("the kernel's state to be read".to_owned());
        }
        if !self.unconfirmed.is_empty() {
            list.push(format!(
                "{} workload(s) to be confirmed by the kernel",
                self.unconfirmed.len()
            ));
        }
        if !(self.swept_blocks && self.swept_workloads) {
            list.push("stale kernel objects of an earlier run to be removed".to_owned());
        }
        if !self.unoriginated.is_empty() {
            let blocks: Vec<String> = self.unoriginated.iter().map(ToString::to_string).collect();
            list.push(format!("block(s) to be originated: {}", blocks.join(", ")));
        }
        list
    }

    fn complete(&self, view: &mut BlockView) {
        if let Some(block) = self.blocks.get(&view.cidr) {
            view.advertised_to = block.advertised_to;
            view.reason.clone_from(&block.reason);
        }
    }

    pub(super) fn workload_view(&self, id: &WorkloadId, workload: &Workload) -> WorkloadView {
        let mut view = self.own_view(id, workload);
        match &workload.spec.attachment {
            Attachment::Shared { with } => match self.workloads.get(with) {
                Some(owner) => {
                    let owner = self.workload_view(with, owner);
                    if matches!(workload.phase, Phase::Standing) {
                        view.state = owner.state;
                        if !owner.reason.is_empty() {
                            view.reason = format!("workload {with}: {}", owner.reason);
                        }
                    }
                    view.addresses = owner.addresses;
                    view.gateways = owner.gateways;
                    view.host_interface = owner.host_interface;
                    view.host_ifindex = owner.host_ifindex;
                    view.mtu = owner.mtu;
                }
                None => {
                    view.state = WorkloadState::Failed;
                    view.reason = format!("there is no workload {with}");
                }
            },
            Attachment::Host => {
                let own = self.own_addresses.iter().map(|address| AssignedAddress {
                    address: *address,
                    pool: String::new(),
                    block: IpNet::from(*address),
                });
                view.addresses = own.collect();
                view.gateways = vec![None; view.addresses.len()];
            }
            _ => {}
        }
        view
    }

    fn gateway(&self, attachment: &Attachment, address: IpAddr) -> Option<IpAddr> {
        match attachment {
            Attachment::Routed(_) | Attachment::Tap(_) => Some(match address {
                IpAddr::V4(_) => GATEWAY_V4.into(),
                IpAddr::V6(_) => GATEWAY_V6.into(),
            }),
            Attachment::Bridged { bridge, .. } => {
                let known = self.bridges.iter().find(|known| known.name == *bridge)?;
                known.gateway(address.is_ipv4())
            }
            _ => None,
        }
    }

    fn own_view(&self, id: &WorkloadId, workload: &Workload) -> WorkloadView {
        let (state, reason) = match &workload.phase {
            Phase::Recording { .. } => (WorkloadState::Pending, "its record is being written"),
            Phase::Programming { .. } if workload.detail.is_some() => {
                (WorkloadState::Pending, "its block is not active yet")
            }
            Phase::Programming { .. } => (WorkloadState::Pending, "the kernel is being programmed"),
            Phase::Standing => match (&workload.failure, &workload.detail) {
                (Some(failure), _) => (WorkloadState::Failed, failure.text.as_str()),
                (None, None) => (WorkloadState::Pending, "the kernel is being read"),
                (None, Some(_)) if self.is_advertised(workload) => (WorkloadState::Advertised, ""),
                (None, Some(_)) => (WorkloadState::Programmed, ""),
            },
            Phase::Retracting { .. } | Phase::Erasing { .. } => {
                (WorkloadState::Deleting, "the add failed and is taken back")
            }
            Phase::Releasing { .. } | Phase::Removing => (WorkloadState::Deleting, ""),
        };
        let detail = workload.detail.clone().unwrap_or_default();
        WorkloadView {
            id: id.clone(),
            generation: workload.generation,
            state,
            reason: reason.to_owned(),
            addresses: workload.addresses.clone(),
            gateways: workload
                .addresses
                .iter()
                .map(|assigned| self.gateway(&workload.spec.attachment, assigned.address))
                .collect(),
            spec: workload.spec.clone(),
            host_interface: detail.host_interface,
            host_ifindex: detail.host_ifindex,
            mtu: detail.mtu,
            created_at: workload.created_at,
            release_at: self.syncs.release_at(id),
        }
    }

    /// Tells watchers what the workload is like now.
    pub(super) fn publish(&mut self, id: &WorkloadId) {
        let Some(workload) = self.workloads.get_mut(id) else {
            return;
        };
        // What is not durable yet may never have been.
        let durable = !matches!(
            workload.phase,
            Phase::Recording { .. }
                | Phase::Retracting {
                    recorded: None | Some(false),
                    ..
                }
                | Phase::Releasing {
                    recorded: None | Some(false),
                    ..
                }
        );
        if !(workload.published || durable) {
            return;
        }
        workload.published = true;
        let workload = &self.workloads[id];
        let view = self.workload_view(id, workload);
        self.publish_change(WatchChange::Upsert(view));
        // They show what this one has.
        for sharer in self.sharers(id) {
            self.publish(&sharer);
        }
    }

    pub(super) fn publish_deletion(&mut self, id: &WorkloadId, generation: u64) {
        self.publish_change(WatchChange::Delete {
            id: id.clone(),
            generation,
        });
    }

    fn publish_change(&mut self, change: WatchChange) {
        self.cursor += 1;
        let event = WatchEvent {
            cursor: self.cursor,
            change,
        };
        self.outputs.push_back(Output::Publish(Arc::new(event)));
    }
}
