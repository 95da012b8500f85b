//! Domain values into messages.

use std::time::SystemTime;

use agentd_proto::v1;
use dataplane::{
    desired::{Encapsulation, PoolTunnel, Scope},
    reconcile::TunnelView,
};

use super::access;

use crate::node::{
    attachment::Attachment,
    audit::AddressUse,
    check,
    claims::DuplicateClaim,
    spec::{InterfaceName, NamespaceName},
    view::{
        BlockState, BlockView, Closed, PoolView, Recovery, WatchChange, WatchEvent, WorkloadState,
        WorkloadView,
    },
};

/// The time as a protobuf timestamp. Times before 1970 do not occur.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

pub fn workload(view: &WorkloadView) -> v1::Workload {
    let attachment = &view.spec.attachment;
    let (netns, pid) = match attachment.namespace().map(|namespace| &namespace.name) {
        Some(NamespaceName::Path(path)) => (path.display().to_string(), 0),
        Some(NamespaceName::Pid(pid)) => (String::new(), *pid),
        None => (String::new(), 0),
    };
    let tap = match attachment {
        Attachment::Tap(tap) => Some(tap),
        _ => None,
    };
    v1::Workload {
        id: view.id.to_string(),
        generation: view.generation,
        attachment: match attachment {
            Attachment::Routed(_) => v1::Attachment::Routed,
            Attachment::Tap(_) => v1::Attachment::Tap,
            Attachment::Bridged { .. } => v1::Attachment::Bridged,
            Attachment::Shared { .. } => v1::Attachment::Shared,
            Attachment::Host => v1::Attachment::Host,
            Attachment::None(_) => v1::Attachment::None,
        }
        .into(),
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
            .zip(view.gateways.iter().chain(std::iter::repeat(&None)))
            .map(|(assigned, gateway)| v1::WorkloadAddress {
                address: assigned.address.to_string(),
                gateway: text(*gateway),
                pool: assigned.pool.clone(),
                block: match assigned.pool.as_str() {
                    "" => String::new(),
                    _ => assigned.block.to_string(),
                },
            })
            .collect(),
        netns,
        pid,
        interface_name: text(attachment.interface().map(InterfaceName::as_str)),
        host_interface: view.host_interface.clone(),
        host_ifindex: view.host_ifindex,
        mtu: view.mtu,
        labels: view.spec.labels.as_map().clone(),
        created_at: Some(timestamp(view.created_at)),
        tap: tap.map(|tap| v1::TapOptions {
            name: text(tap.name.as_ref().map(InterfaceName::as_str)),
            owner_uid: tap.owner,
            owner_gid: tap.group,
            multi_queue: tap.multi_queue,
        }),
        mac: text(tap.and_then(|tap| tap.mac)),
        bridge: match attachment {
            Attachment::Bridged { bridge, .. } => bridge.clone(),
            _ => String::new(),
        },
        shared_with: match attachment {
            Attachment::Shared { with } => with.to_string(),
            _ => String::new(),
        },
        ports: view.spec.access.ports().iter().map(access::port).collect(),
        allowed_addresses: view
            .spec
            .access
            .allowed()
            .iter()
            .map(access::allowed)
            .collect(),
        owner: text(view.spec.owner.as_ref()),
        release_at: view.release_at.map(timestamp),
    }
}

/// Empty where there is none.
fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
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

/// `tunnels`: how pools are reached, as the dataplane has it.
pub fn pool(view: &PoolView, tunnels: &[PoolTunnel]) -> v1::Pool {
    let tunnel = tunnels.iter().find(|tunnel| tunnel.cidr == view.cidr);
    let encapsulation = tunnel.map_or_else(Encapsulation::default, |tunnel| tunnel.encapsulation);
    let scope = tunnel.map_or_else(Scope::default, |tunnel| tunnel.scope);
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
        encapsulation: encapsulation.to_string(),
        encapsulation_scope: scope.to_string(),
        state: match view.closed {
            None => v1::PoolState::Enabled,
            Some(Closed::Disabled | Closed::DisabledByOperator | Closed::Covered) => {
                v1::PoolState::Disabled
            }
            Some(Closed::Draining) => v1::PoolState::Draining,
            Some(Closed::OtherNodes { .. }) => v1::PoolState::OtherNodes,
            Some(Closed::Removed) => v1::PoolState::Removed,
        }
        .into(),
        state_reason: text(view.closed.as_ref()),
        reserved: view.reserved.iter().map(ToString::to_string).collect(),
        keep_ends_unused: view.keep_ends_unused,
        max_blocks: view.max_blocks.unwrap_or_default(),
        node_selector: view.node_selector.clone(),
        workload_selector: view.workload_selector.clone(),
        addresses_cooling: view.addresses_cooling,
        addresses_reserved: view.addresses_reserved,
        addresses_free: view.addresses_free,
    }
}

pub fn tunnel(view: &TunnelView) -> v1::Tunnel {
    v1::Tunnel {
        name: view.device.to_owned(),
        encapsulation: view.encapsulation.to_string(),
        stands: view.stands,
        endpoints: count(view.endpoints),
        unused: !view.wanted,
        failure: view.failure.clone().unwrap_or_default(),
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

pub fn address_use(usage: &AddressUse) -> v1::AddressUse {
    v1::AddressUse {
        address: usage.address.to_string(),
        pool: usage.pool.clone(),
        block: usage.block.to_string(),
        workload: usage.workload.to_string(),
        generation: usage.generation,
        free_at: usage.free_at.map(timestamp),
    }
}

pub fn problem(problem: &check::Problem) -> v1::Problem {
    use v1::problem::Kind;
    let kind = match problem.kind {
        check::Kind::Record => Kind::Record,
        check::Kind::AddressTwice => Kind::AddressTwice,
        check::Kind::Block => Kind::Block,
        check::Kind::Count => Kind::Count,
        check::Kind::Kernel => Kind::Kernel,
        check::Kind::Leak => Kind::Leak,
        check::Kind::Bgp => Kind::Bgp,
        check::Kind::DuplicateClaim => Kind::DuplicateClaim,
    };
    v1::Problem {
        kind: kind.into(),
        subject: problem.subject.clone(),
        text: problem.text.clone(),
    }
}

pub fn recovery(recovery: &Recovery) -> v1::Recovery {
    let removed = |count: Option<u64>| match count {
        Some(count) => i64::try_from(count).unwrap_or(i64::MAX),
        None => -1,
    };
    v1::Recovery {
        workloads: recovery.workloads,
        blocks: recovery.blocks,
        cooling: recovery.cooling,
        notices: recovery.notices.clone(),
        removed_blackholes: removed(recovery.removed_blackholes),
        removed_workload_objects: removed(recovery.removed_workload_objects),
        removed_learned_routes: removed(recovery.removed_learned_routes),
    }
}

pub fn duplicate_claim(duplicate: &DuplicateClaim) -> v1::DuplicateClaim {
    let claim = &duplicate.claim;
    v1::DuplicateClaim {
        block: claim.block.to_string(),
        prefix: claim.prefix.to_string(),
        peer: claim.peer.clone(),
        originator: text(claim.originator),
        origin_asn: claim.origin_as.map_or(0, |asn| asn.0),
        since: Some(timestamp(duplicate.since)),
        yields: duplicate.yields,
    }
}
