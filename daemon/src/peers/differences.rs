//! Which keys of two configurations differ, by their names in the file.

use crate::config::{Bgp, Config, Ipam, Peer, Pool};

/// Names of the fields that differ.
macro_rules! differing {
    ($old:expr, $new:expr, $($field:ident),* $(,)?) => {{
        let mut names: Vec<&'static str> = Vec::new();
        $( if $old.$field != $new.$field { names.push(stringify!($field)); } )*
        names
    }};
}

/// Keys of a peer.
pub(super) fn of_peers(old: &Peer, new: &Peer) -> String {
    let mut names = differing!(
        old,
        new,
        address,
        port,
        asn,
        local_address,
        passive,
        route_reflector_client,
        ttl_security,
        multihop,
        families,
        extended_next_hop,
        max_prefixes,
        max_prefixes_warning,
        max_prefixes_restart,
        local_as,
        role,
        allow_own_as,
        next_hop_self,
        remove_private_as,
        blackhole,
        import,
        export,
        hold_time,
        connect_retry_time,
        idle_hold_time,
        idle_hold_time_max,
        graceful_restart,
    );
    if old.long_lived != new.long_lived {
        names.push("long_lived_graceful_restart");
    }
    if old.password != new.password {
        names.push("password");
    }
    if (old.add_path_receive, old.add_path_send) != (new.add_path_receive, new.add_path_send) {
        names.push("add_path");
    }
    if names.is_empty() {
        names.push("its configuration");
    }
    names.join(", ")
}

/// Keys of a pool, but for those of its tunnel.
pub(super) fn of_pools(old: &Pool, new: &Pool) -> Vec<&'static str> {
    let mut names = differing!(
        old,
        new,
        block_size,
        disabled,
        nat_outgoing,
        reserved,
        keep_ends_unused,
        max_blocks,
        node_selector,
        workload_selector,
        claim,
    );
    if names.is_empty() && old.for_this_node != new.for_this_node {
        names.push("labels of the node");
    }
    names
}

/// Keys of `[ipam]` that change while the agent runs.
pub(super) fn of_ipam(old: &Ipam, new: &Ipam) -> Vec<&'static str> {
    differing!(
        old,
        new,
        cooldown,
        claim_ahead,
        release_empty_after,
        release_unnamed_after,
    )
}

/// Sections and keys that take effect at a start only.
pub(super) fn needs_restart(running: &Config, new: &Config) -> Vec<String> {
    let mut names: Vec<String> = differing!(
        running, new, node, api, pools, tunnel, bridges, ipam, telemetry, log
    )
    .into_iter()
    .map(|name| match name {
        "pools" => "pool".to_owned(),
        "bridges" => "bridge".to_owned(),
        name => name.to_owned(),
    })
    .collect();
    match (&running.bgp, &new.bgp) {
        (Some(running), Some(new)) => names.extend(of_bgp(running, new)),
        (None, None) => {}
        _ => names.push("bgp".to_owned()),
    }
    names.sort();
    names
}

fn of_bgp(running: &Bgp, new: &Bgp) -> Vec<String> {
    let names = differing!(
        running,
        new,
        asn,
        router_id,
        cluster_id,
        listen,
        install_routes,
        resilient_hashing,
        mesh,
    );
    let mut alike = running.clone();
    alike.asn = new.asn;
    alike.router_id = new.router_id;
    alike.cluster_id = new.cluster_id;
    alike.listen.clone_from(&new.listen);
    alike.install_routes = new.install_routes;
    alike.resilient_hashing = new.resilient_hashing;
    alike.mesh.clone_from(&new.mesh);
    alike.peers.clone_from(&new.peers);
    alike.ranges.clone_from(&new.ranges);
    alike.originate.clone_from(&new.originate);
    let rest = (alike != *new).then(|| "bgp".to_owned());
    let names = names.into_iter().map(|name| format!("bgp.{name}"));
    names.chain(rest).collect()
}
