//! Domain values into messages.

use std::time::SystemTime;

use agentd_proto::v1;
use dataplane::kernel::{GATEWAY_V4, GATEWAY_V6};

use crate::node::{
    spec::NamespaceName,
    view::{BlockState, BlockView, PoolView, WatchChange, WatchEvent, WorkloadState, WorkloadView},
};

/// The time as a protobuf timestamp. Times before 1970 do not occur.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

pub fn workload(view: &WorkloadView) -> v1::Workload {
    let (netns, pid) = match &view.spec.namespace {
        NamespaceName::Path(path) => (path.display().to_string(), 0),
        NamespaceName::Pid(pid) => (String::new(), *pid),
    };
    v1::Workload {
        id: view.id.to_string(),
        generation: view.generation,
        attachment: v1::Attachment::Routed.into(),
        state: match view.state {
            WorkloadState::Pending => v1::WorkloadState::Pending,
            WorkloadState::Programmed => v1::WorkloadState::Programmed,
            WorkloadState::Advertised => v1::WorkloadState::Advertised,
            WorkloadState::Deleting => v1::WorkloadState::Deleting,
            WorkloadState::Failed => v1::WorkloadState::Failed,
        }
        .into(),
        reason: view.reason.clone(),
        addresses: view
            .addresses
            .iter()
            .map(|assigned| v1::WorkloadAddress {
                address: assigned.address.to_string(),
                gateway: if assigned.address.is_ipv4() {
                    GATEWAY_V4.to_string()
                } else {
                    GATEWAY_V6.to_string()
                },
                pool: assigned.pool.clone(),
                block: assigned.block.to_string(),
            })
            .collect(),
        netns,
        pid,
        interface_name: view.spec.interface.as_str().to_owned(),
        host_interface: view.host_interface.clone(),
        host_ifindex: view.host_ifindex,
        mtu: view.mtu,
        labels: view.spec.labels.as_map().clone(),
        created_at: Some(timestamp(view.created_at)),
        ..Default::default()
    }
}

pub fn watch_event(event: &WatchEvent) -> v1::WatchWorkloadsResponse {
    use v1::watch_workloads_response::Kind;
    let (kind, workload) = match &event.change {
        WatchChange::Upsert(view) => (Kind::Upsert, workload(view)),
        WatchChange::Delete { id, generation } => (
            Kind::Delete,
            v1::Workload {
                id: id.to_string(),
                generation: *generation,
                ..Default::default()
            },
        ),
    };
    v1::WatchWorkloadsResponse {
        kind: kind.into(),
        workload: Some(workload),
        cursor: event.cursor,
    }
}

pub fn pool(view: &PoolView) -> v1::Pool {
    v1::Pool {
        name: view.name.clone(),
        cidr: view.cidr.to_string(),
        block_size: view.block_size.into(),
        disabled: view.disabled,
        nat_outgoing: view.nat_outgoing,
        claim: view.claim.iter().map(ToString::to_string).collect(),
        blocks_claimable: view.blocks_claimable,
        blocks_held: view.blocks_held,
        addresses_held: view.addresses_held,
        addresses_used: view.addresses_used,
    }
}

pub fn block(view: &BlockView) -> v1::Block {
    let count = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    v1::Block {
        cidr: view.cidr.to_string(),
        pool: view.pool.clone(),
        state: match view.state {
            BlockState::Claimed => v1::BlockState::Claimed,
            BlockState::Active => v1::BlockState::Active,
            BlockState::Releasing => v1::BlockState::Releasing,
        }
        .into(),
        size: count(view.size),
        used: count(view.used),
        cooling: count(view.cooling),
        reserved: count(view.reserved),
        free: count(view.free),
        advertised_to: view.advertised_to,
        claimed_at: Some(timestamp(view.claimed_at)),
    }
}

/// A length as the messages carry it.
pub fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
