//! `agentctl status`.

use agentd_proto::v1::{Dataplane, DuplicateClaim, FleetStore, GetStatusRequest, Recovery, Tunnel};

use super::{
    client::{Client, Error},
    output::Output,
    time,
};

pub async fn run(client: &Client, out: &mut Output) -> Result<(), Error> {
    let status = client
        .node()
        .get_status(GetStatusRequest {})
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("GetStatusResponse", &status);
    }
    let ready = if status.ready {
        "yes".to_owned()
    } else {
        let mut text = "no".to_owned();
        for reason in &status.waiting_for {
            text.push_str("\nwaits for ");
            text.push_str(reason);
        }
        text
    };
    let drain = super::drain::state(status.drain_state(), status.withdrawn_at.as_ref());
    let workloads = match status.workloads_failed {
        0 => status.workloads.to_string(),
        failed => format!("{} ({failed} failed)", status.workloads),
    };
    let dataplane = status.dataplane.unwrap_or_default();
    let mut kernel = format!(
        "{} objects, {} pending, {} failing",
        dataplane.objects, dataplane.pending, dataplane.failing
    );
    for conflict in &dataplane.conflicts {
        kernel.push_str("\nconflict: ");
        kernel.push_str(conflict);
    }
    let recovery = status.recovery.as_ref().map(recovered).unwrap_or_default();
    let tunnels: Vec<String> = dataplane.tunnels.iter().map(tunnel).collect();
    let warnings: Vec<String> = status.duplicate_claims.iter().map(warning).collect();
    out.fields(&[
        ("WARNING", warnings.join("\n")),
        ("Node", status.name),
        ("Version", status.version),
        ("Started", time::moment(status.started_at.as_ref())),
        ("Ready", ready),
        ("Drain", drain),
        ("Address", status.address),
        ("Address (IPv6)", status.address6),
        ("AS number", status.asn.to_string()),
        ("Router ID", status.router_id),
        ("Workloads", workloads),
        ("Blocks", status.blocks.to_string()),
        (
            "Peers",
            format!(
                "{} of {} established",
                status.peers_established, status.peers
            ),
        ),
        (
            "Learned routes",
            format!(
                "{} ({} in the kernel)",
                status.routes_learned, status.routes_installed
            ),
        ),
        (
            "Fleet store",
            status
                .fleet_store
                .as_ref()
                .map(fleet_store)
                .unwrap_or_default(),
        ),
        ("Tunnels", tunnels.join("\n")),
        ("Kernel", kernel),
        ("At the start", recovery),
        (
            "Kernel writes",
            format!("{} ({})", dataplane.writes, repairs(&dataplane)),
        ),
        ("Last audit", time::moment(dataplane.last_audit_at.as_ref())),
    ])
}

/// The store that nodes agree in.
fn fleet_store(store: &FleetStore) -> String {
    let mut text = match (store.up, store.registered) {
        (true, true) => format!("{}: up, node registered", store.kind),
        (true, false) => format!("{}: up, node not registered", store.kind),
        (false, _) => {
            let since = time::moment(store.down_since.as_ref());
            format!(
                "{}: does not answer since {since}: {}",
                store.kind, store.failure
            )
        }
    };
    if !store.refused.is_empty() {
        text.push_str("\nrefused: ");
        text.push_str(&store.refused);
    }
    if store.nodes > 0 {
        text.push_str(&format!(
            "\n{} nodes, {} alive",
            store.nodes, store.nodes_alive
        ));
    }
    text.push_str(&format!(
        "\n{} blocks, {} being claimed, {} being given back; {} claims, {} retries",
        store.blocks, store.claiming, store.returning, store.claims, store.retries
    ));
    for lost in &store.lost {
        text.push_str("\nlost: ");
        text.push_str(lost);
    }
    text
}

/// How often others were corrected, and in what.
fn repairs(dataplane: &Dataplane) -> String {
    let mut kinds: Vec<String> = dataplane
        .repaired
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    kinds.sort();
    match kinds.is_empty() {
        true => format!("{} repairs", dataplane.repairs),
        false => format!("{} repairs: {}", dataplane.repairs, kinds.join(", ")),
    }
}

fn tunnel(tunnel: &Tunnel) -> String {
    let state = match (tunnel.stands, tunnel.unused, tunnel.failure.as_str()) {
        (true, true, _) => "not used any more, goes in a while".to_owned(),
        (true, false, "") => format!("up, {} other nodes", tunnel.endpoints),
        (true, false, failure) => format!("up, not complete: {failure}"),
        (false, _, "") => "not up yet".to_owned(),
        (false, _, failure) => failure.to_owned(),
    };
    format!("{}: {state}", tunnel.name)
}

/// What the start has found and put right; empty when there was nothing.
fn recovered(recovery: &Recovery) -> String {
    let removed: Vec<String> = [
        (recovery.removed_blackholes, "blackhole routes"),
        (recovery.removed_workload_objects, "objects of workloads"),
        (recovery.removed_learned_routes, "learned routes"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    let mut lines = Vec::new();
    if !removed.is_empty() {
        lines.push(format!(
            "removed from the kernel, of nobody: {}",
            removed.join(", ")
        ));
    }
    lines.extend(recovery.notices.iter().cloned());
    lines.join("\n")
}

/// A block that two nodes hold.
fn warning(duplicate: &DuplicateClaim) -> String {
    let by = match (duplicate.originator.as_str(), duplicate.origin_asn) {
        ("", 0) => "another BGP speaker".to_owned(),
        ("", asn) => format!("AS {asn}"),
        (originator, _) => format!("the BGP speaker {originator}"),
    };
    let then = match duplicate.yields {
        true => "the block is unused here and is given up",
        false => "it is in use here and kept; new workloads get no addresses of it",
    };
    format!(
        "block {} is announced by {by}, too ({}, from peer {}): {then}",
        duplicate.block, duplicate.prefix, duplicate.peer
    )
}
