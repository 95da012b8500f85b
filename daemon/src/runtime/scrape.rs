//! Gauges that are read when somebody scrapes the metrics.

use bgp::{
    speaker::status::{PeerState, PeerStatus, RangeStatus},
    types::Family,
};

use crate::{
    api, fleet,
    telemetry::{
        metrics::{
            KindLabel, Metrics, PeerDirection, PeerFaults, PeerLabel, PeerMessages, PeerPrefixes,
            PoolLabel, RangeLabel, RangePeers, ReasonLabel, RemovedKind, ResultLabel, StateLabel,
        },
        serve,
    },
};

/// Reads what is only counted when somebody looks.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) api::Context);

#[tonic::async_trait]
impl serve::Refresh for Scrape {
    async fn refresh(&self, metrics: &Metrics) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let state = |state| StateLabel { state };
        let api::Context {
            node,
            network,
            fleet,
            ..
        } = &self.0;
        if let Some(fleet) = fleet {
            fleet_series(metrics, &fleet.view().status);
        }
        if let Ok(status) = node.status().await {
            let ok = status.workloads.saturating_sub(status.workloads_failed);
            let set = |label, value| {
                metrics
                    .workloads
                    .get_or_create(&state(label))
                    .set(gauge(value));
            };
            set("ok", ok);
            set("failed", status.workloads_failed);
            let inactive = status.blocks.saturating_sub(status.blocks_active);
            let set = |label, value| {
                metrics
                    .blocks
                    .get_or_create(&state(label))
                    .set(gauge(value));
            };
            set("active", status.blocks_active);
            set("inactive", inactive);
        }
        if let Ok(status) = node.status().await {
            let recovery = status.recovery;
            metrics
                .recovery_notices
                .set(i64::try_from(recovery.notices.len()).unwrap_or(i64::MAX));
            for (kind, removed) in [
                ("blackhole", recovery.removed_blackholes),
                ("workload", recovery.removed_workload_objects),
                ("learned", recovery.removed_learned_routes),
            ] {
                metrics
                    .recovery_removed
                    .get_or_create(&RemovedKind { kind })
                    .set(gauge(removed.unwrap_or(0)));
            }
        }
        for pool in node.pools().await.unwrap_or_default() {
            let label = PoolLabel { pool: pool.name };
            metrics
                .pool_addresses_held
                .get_or_create(&label)
                .set(gauge(pool.addresses_held));
            metrics
                .pool_addresses_used
                .get_or_create(&label)
                .set(gauge(pool.addresses_used));
        }
        let (peers, ranges) = (network.peers().await, network.ranges().await);
        metrics.forget_peers();
        ranges.iter().for_each(|range| range_series(metrics, range));
        for peer in peers {
            message_series(metrics, &peer);
            let label = PeerLabel {
                peer: peer.name.clone(),
            };
            metrics
                .peer_established
                .get_or_create(&label)
                .set(i64::from(peer.state == PeerState::Established));
            metrics
                .peer_drops
                .get_or_create(&label)
                .set(gauge(peer.counters.dropped_count));
            for (direction, count) in [
                ("received", peer.counters.messages_received),
                ("sent", peer.counters.messages_sent),
            ] {
                let label = PeerDirection {
                    peer: peer.name.clone(),
                    direction,
                };
                metrics
                    .peer_messages
                    .get_or_create(&label)
                    .set(gauge(count));
            }
            for status in peer.families {
                let family = match status.family {
                    Family::Ipv4Unicast => "ipv4-unicast",
                    Family::Ipv6Unicast => "ipv6-unicast",
                };
                for (kind, count) in [
                    ("received", status.received),
                    ("accepted", status.accepted),
                    ("advertised", status.advertised),
                ] {
                    let label = PeerPrefixes {
                        peer: peer.name.clone(),
                        family,
                        kind,
                    };
                    metrics
                        .peer_prefixes
                        .get_or_create(&label)
                        .set(gauge(count));
                }
            }
        }
        if let Ok(status) = network.dataplane().await {
            let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
            for (label, length) in [
                ("wanted", status.objects),
                ("pending", status.pending),
                ("failing", status.failing),
            ] {
                metrics
                    .dataplane_objects
                    .get_or_create(&state(label))
                    .set(count(length));
            }
            metrics.dataplane_writes.set(gauge(status.writes));
            for (kind, count) in status.mended {
                let label = KindLabel { kind: kind.name() };
                metrics
                    .dataplane_repairs
                    .get_or_create(&label)
                    .set(gauge(count));
            }
            metrics
                .dataplane_conflicts
                .set(count(status.conflicts.len()));
        }
        if let Ok(filter) = network.filter().await {
            let counts = filter.counts;
            metrics.filter_right.set(i64::from(filter.right));
            metrics
                .filter_ports
                .set(i64::try_from(counts.ports).unwrap_or(i64::MAX));
            let ok = counts.transactions.saturating_sub(counts.failures);
            for (result, value) in [("ok", ok), ("failed", counts.failures)] {
                metrics
                    .filter_transactions
                    .get_or_create(&ResultLabel { result })
                    .set(gauge(value));
            }
            metrics.filter_repairs.set(gauge(counts.repairs));
            for (reason, packets) in filter.dropped {
                metrics
                    .filter_dropped_packets
                    .get_or_create(&ReasonLabel { reason })
                    .set(gauge(packets));
            }
        }
    }
}

fn fleet_series(metrics: &Metrics, status: &fleet::Status) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let up = status.state == fleet::State::Up && status.registered;
    metrics.fleet_up.set(i64::from(up));
    metrics.fleet_claims.set(gauge(status.claims));
    metrics.fleet_retries.set(gauge(status.retries));
    metrics.fleet_requests.set(gauge(status.requests));
    metrics.fleet_failures.set(gauge(status.failures));
    for (state, blocks) in [
        ("held", status.held),
        ("claiming", status.claiming),
        ("returning", status.returning),
        ("lost", status.lost.len()),
    ] {
        metrics
            .fleet_blocks
            .get_or_create(&StateLabel { state })
            .set(count(blocks));
    }
    let away = status.nodes.saturating_sub(status.nodes_alive);
    for (state, nodes) in [("alive", status.nodes_alive), ("away", away)] {
        metrics
            .fleet_nodes
            .get_or_create(&StateLabel { state })
            .set(count(nodes));
    }
}

fn message_series(metrics: &Metrics, peer: &PeerStatus) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let counters = &peer.counters;
    for (kind, received, sent) in [
        ("open", counters.opens_received, counters.opens_sent),
        ("update", counters.updates_received, counters.updates_sent),
        (
            "keepalive",
            counters.keepalives_received,
            counters.keepalives_sent,
        ),
        (
            "notification",
            counters.notifications_received,
            counters.notifications_sent,
        ),
        (
            "route_refresh",
            counters.refreshes_received,
            counters.refreshes_sent,
        ),
    ] {
        for (direction, count) in [("received", received), ("sent", sent)] {
            let label = PeerMessages {
                peer: peer.name.clone(),
                direction,
                r#type: kind,
            };
            metrics
                .peer_messages_by_type
                .get_or_create(&label)
                .set(gauge(count));
        }
    }
    for (disposition, count) in [
        ("treat_as_withdraw", counters.treat_as_withdraw),
        ("attribute_discard", counters.attributes_discarded),
        ("ignored", counters.faults_ignored),
    ] {
        let label = PeerFaults {
            peer: peer.name.clone(),
            disposition,
        };
        metrics.peer_faults.get_or_create(&label).set(gauge(count));
    }
}

fn range_series(metrics: &Metrics, range: &RangeStatus) {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let label = RangeLabel {
        range: range.name.clone(),
    };
    metrics
        .range_limit
        .get_or_create(&label)
        .set(count(range.limit));
    let refused = i64::try_from(range.refused).unwrap_or(i64::MAX);
    metrics.range_refused.get_or_create(&label).set(refused);
    for (state, peers) in [("known", range.peers), ("established", range.established)] {
        let label = RangePeers {
            range: range.name.clone(),
            state,
        };
        metrics.range_peers.get_or_create(&label).set(count(peers));
    }
}
