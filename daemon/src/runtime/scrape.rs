//! Gauges that are read when somebody scrapes the metrics.

use bgp::{speaker::status::PeerState, types::Family};

use crate::{
    api,
    telemetry::{
        metrics::{
            Metrics, PeerDirection, PeerLabel, PeerPrefixes, PoolLabel, ReasonLabel, ResultLabel,
            StateLabel,
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
        let api::Context { node, network, .. } = &self.0;
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
        for peer in network.peers().await {
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
            metrics.dataplane_repairs.set(gauge(status.repairs));
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
