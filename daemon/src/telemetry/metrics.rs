//! Every metric of the agent. Names, units, labels and help texts are an interface: [`TABLE`] is
//! the one place that has them, and a test holds the exposition to it.
//!
//! Counters and histograms are written where the thing happens. Gauges about peers, routes and
//! kernel objects are read when somebody scrapes (see `runtime`), so that an idle agent does no
//! periodic work for them.

use std::{fmt, sync::Mutex, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// Name without the unit and the suffix that the format adds, kind, unit ("" when it has none),
/// labels, help.
pub type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

/// Every metric there is.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    ("agentd_build", "info", "", &["version"], "Version of the agent"),
    ("agentd_start_time", "gauge", "seconds", &[], "Start of the agent, as seconds since 1970"),
    ("agentd_ready", "gauge", "", &[], "1 when the store is recovered, the kernel in sync and own blocks are originated"),
    ("agentd_workloads", "gauge", "", &["state"], "Workloads by state: ok, failed"),
    ("agentd_operations", "counter", "", &["operation", "code"], "Finished adds and deletes by gRPC code"),
    ("agentd_operation_duration", "histogram", "seconds", &["operation"], "From the call's arrival at the node until its answer, successful calls"),
    ("agentd_operations_in_flight", "gauge", "", &[], "Adds and deletes whose callers wait"),
    ("agentd_blocks", "gauge", "", &["state"], "Blocks held by state: active, inactive"),
    ("agentd_pool_addresses_held", "gauge", "", &["pool"], "Addresses in the blocks held"),
    ("agentd_pool_addresses_used", "gauge", "", &["pool"], "Addresses that workloads use"),
    ("agentd_duplicate_claims", "gauge", "", &[], "Blocks of this node that another BGP speaker announces, too"),
    ("agentd_duplicate_claims_seen", "counter", "", &[], "Times another BGP speaker began to announce a block of this node"),
    ("agentd_blocks_yielded", "counter", "", &[], "Unused blocks given up because another BGP speaker announces them"),
    ("agentd_recovery_notices", "gauge", "", &[], "Stored records that did not fit together or the configuration at the start"),
    ("agentd_recovery_removed", "gauge", "", &["kind"], "Objects with the agent's marks that no record wants, removed from the kernel after the start, by kind: blackhole, workload, learned"),
    ("agentd_store_records", "counter", "", &[], "Records handed to the store"),
    ("agentd_store_failures", "counter", "", &[], "Submissions that the store could not make durable"),
    ("agentd_watchers", "gauge", "", &[], "Open WatchWorkloads streams"),
    ("agentd_bgp_peer_established", "gauge", "", &["peer"], "1 when the session is Established"),
    ("agentd_bgp_peer_prefixes", "gauge", "", &["peer", "family", "kind"], "Prefixes by kind: received, accepted, advertised"),
    ("agentd_bgp_peer_messages", "gauge", "", &["peer", "direction"], "BGP messages since the agent's start, by direction: received, sent"),
    ("agentd_bgp_peer_drops", "gauge", "", &["peer"], "Times the session left Established since the agent's start"),
    ("agentd_bgp_peer_messages_by_type", "gauge", "", &["peer", "direction", "type"], "BGP messages since the agent's start, by direction and type: open, update, keepalive, notification, route_refresh"),
    ("agentd_bgp_peer_faults", "gauge", "", &["peer", "disposition"], "Faults of received UPDATEs that did not end the session (RFC 7606), by what was done: treat_as_withdraw, attribute_discard, ignored"),
    ("agentd_bgp_range_peers", "gauge", "", &["range", "state"], "Peers that came from a range, by state: known, established"),
    ("agentd_bgp_range_limit", "gauge", "", &["range"], "Most peers of the range at once"),
    ("agentd_bgp_range_refused", "gauge", "", &["range"], "Connections refused since the range was configured"),
    ("agentd_bgp_route_changes", "counter", "", &[], "Changes of best routes passed on to the dataplane"),
    ("agentd_dataplane_objects", "gauge", "", &["state"], "Objects by state: wanted, pending, failing"),
    ("agentd_dataplane_writes", "gauge", "", &[], "Netlink messages written since the agent's start"),
    ("agentd_dataplane_repairs", "gauge", "", &["kind"], "Things of the agent's that were changed by others and put back, since its start, by kind"),
    ("agentd_filter_right", "gauge", "", &[], "1 when the nftables table stands as wanted"),
    ("agentd_filter_ports", "gauge", "", &[], "Published ports, counted once for each family"),
    ("agentd_filter_transactions", "gauge", "", &["result"], "Changes of the nftables table since the agent's start, by result: ok, failed"),
    ("agentd_filter_repairs", "gauge", "", &[], "Times the nftables table was changed by others and put back, since the agent's start"),
    ("agentd_filter_dropped_packets", "gauge", "", &["reason"], "Packets from workloads dropped since the table was made: source_address, router_advertisement, redirect, loopback_destination"),
    ("agentd_dataplane_conflicts", "gauge", "", &[], "Foreign objects that stand where the agent's should"),
    ("agentd_fleet_up", "gauge", "", &[], "1 when the fleet's store (etcd) has answered the last request and knows this node"),
    ("agentd_fleet_claims", "gauge", "", &[], "Blocks claimed since the agent's start"),
    ("agentd_fleet_retries", "gauge", "", &[], "Claims since the agent's start that found every candidate taken"),
    ("agentd_fleet_requests", "gauge", "", &[], "Requests to the fleet's store since the agent's start"),
    ("agentd_fleet_failures", "gauge", "", &[], "Requests to the fleet's store without an answer since the agent's start"),
    ("agentd_fleet_blocks", "gauge", "", &["state"], "Blocks by state: held, claiming, returning, lost (used here, held by another node)"),
    ("agentd_fleet_nodes", "gauge", "", &["state"], "Nodes of the registry, when it is followed, by state: alive, away"),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    pub state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RemovedKind {
    pub kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    pub result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OperationLabel {
    pub operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OperationCode {
    pub operation: &'static str,
    pub code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PoolLabel {
    pub pool: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerLabel {
    pub peer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerDirection {
    pub peer: String,
    pub direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerMessages {
    pub peer: String,
    pub direction: &'static str,
    pub r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerFaults {
    pub peer: String,
    pub disposition: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RangeLabel {
    pub range: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RangePeers {
    pub range: String,
    pub state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerPrefixes {
    pub peer: String,
    pub family: &'static str,
    pub kind: &'static str,
}

/// From 100 µs to about 26 s, each bucket twice the one before.
#[derive(Clone, Copy, Debug)]
pub struct DurationBuckets;

impl MetricConstructor<Histogram> for DurationBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.000_1, 2.0, 19))
    }
}

/// Handles to write to. Cloning a handle is cheap; all clones count into one series.
pub struct Metrics {
    pub ready: Gauge,
    pub workloads: Family<StateLabel, Gauge>,
    pub operations: Family<OperationCode, Counter>,
    pub operation_duration: Family<OperationLabel, Histogram, DurationBuckets>,
    pub operations_in_flight: Gauge,
    pub blocks: Family<StateLabel, Gauge>,
    pub pool_addresses_held: Family<PoolLabel, Gauge>,
    pub pool_addresses_used: Family<PoolLabel, Gauge>,
    pub duplicate_claims: Gauge,
    pub duplicate_claims_seen: Counter,
    pub blocks_yielded: Counter,
    pub recovery_notices: Gauge,
    pub recovery_removed: Family<RemovedKind, Gauge>,
    pub store_records: Counter,
    pub store_failures: Counter,
    pub watchers: Gauge,
    pub peer_established: Family<PeerLabel, Gauge>,
    pub peer_prefixes: Family<PeerPrefixes, Gauge>,
    pub peer_messages: Family<PeerDirection, Gauge>,
    pub peer_drops: Family<PeerLabel, Gauge>,
    pub peer_messages_by_type: Family<PeerMessages, Gauge>,
    pub peer_faults: Family<PeerFaults, Gauge>,
    pub range_peers: Family<RangePeers, Gauge>,
    pub range_limit: Family<RangeLabel, Gauge>,
    pub range_refused: Family<RangeLabel, Gauge>,
    pub route_changes: Counter,
    pub dataplane_objects: Family<StateLabel, Gauge>,
    pub dataplane_writes: Gauge,
    pub dataplane_repairs: Family<KindLabel, Gauge>,
    pub dataplane_conflicts: Gauge,
    pub fleet_up: Gauge,
    pub fleet_claims: Gauge,
    pub fleet_retries: Gauge,
    pub fleet_requests: Gauge,
    pub fleet_failures: Gauge,
    pub fleet_blocks: Family<StateLabel, Gauge>,
    pub fleet_nodes: Family<StateLabel, Gauge>,
    pub filter_right: Gauge,
    pub filter_ports: Gauge,
    pub filter_transactions: Family<ResultLabel, Gauge>,
    pub filter_repairs: Gauge,
    pub filter_dropped_packets: Family<ReasonLabel, Gauge>,
    /// Only taken to encode, by one scrape at a time; never across an await.
    registry: Mutex<Registry>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// `start_seconds`: when the agent started, in seconds since 1970.
    pub fn new(start_seconds: i64) -> Self {
        let mut registry = Registry::default();
        let start: Gauge = Gauge::default();
        start.set(start_seconds);
        register(
            &mut registry,
            "agentd_build",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        register(&mut registry, "agentd_start_time", start);
        // Registers a default value of the field's type under the name.
        macro_rules! metrics {
            ($($field:ident = $name:literal),* $(,)?) => {{
                $( let $field = Default::default();
                   register(&mut registry, $name, Clone::clone(&$field)); )*
                let operation_duration = Family::new_with_constructor(DurationBuckets);
                register(&mut registry, "agentd_operation_duration", operation_duration.clone());
                Self { $($field,)* operation_duration, registry: Mutex::new(registry) }
            }};
        }
        metrics!(
            ready = "agentd_ready",
            workloads = "agentd_workloads",
            operations = "agentd_operations",
            operations_in_flight = "agentd_operations_in_flight",
            blocks = "agentd_blocks",
            pool_addresses_held = "agentd_pool_addresses_held",
            pool_addresses_used = "agentd_pool_addresses_used",
            duplicate_claims = "agentd_duplicate_claims",
            duplicate_claims_seen = "agentd_duplicate_claims_seen",
            blocks_yielded = "agentd_blocks_yielded",
            recovery_notices = "agentd_recovery_notices",
            recovery_removed = "agentd_recovery_removed",
            store_records = "agentd_store_records",
            store_failures = "agentd_store_failures",
            watchers = "agentd_watchers",
            peer_established = "agentd_bgp_peer_established",
            peer_prefixes = "agentd_bgp_peer_prefixes",
            peer_messages = "agentd_bgp_peer_messages",
            peer_drops = "agentd_bgp_peer_drops",
            peer_messages_by_type = "agentd_bgp_peer_messages_by_type",
            peer_faults = "agentd_bgp_peer_faults",
            range_peers = "agentd_bgp_range_peers",
            range_limit = "agentd_bgp_range_limit",
            range_refused = "agentd_bgp_range_refused",
            route_changes = "agentd_bgp_route_changes",
            dataplane_objects = "agentd_dataplane_objects",
            dataplane_writes = "agentd_dataplane_writes",
            dataplane_repairs = "agentd_dataplane_repairs",
            dataplane_conflicts = "agentd_dataplane_conflicts",
            fleet_up = "agentd_fleet_up",
            fleet_claims = "agentd_fleet_claims",
            fleet_retries = "agentd_fleet_retries",
            fleet_requests = "agentd_fleet_requests",
            fleet_failures = "agentd_fleet_failures",
            fleet_blocks = "agentd_fleet_blocks",
            fleet_nodes = "agentd_fleet_nodes",
            filter_right = "agentd_filter_right",
            filter_ports = "agentd_filter_ports",
            filter_transactions = "agentd_filter_transactions",
            filter_repairs = "agentd_filter_repairs",
            filter_dropped_packets = "agentd_filter_dropped_packets",
        )
    }

    /// The exposition in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }

    /// Peers come and go; series of those that are gone must not stay.
    pub fn forget_peers(&self) {
        self.peer_established.clear();
        self.peer_prefixes.clear();
        self.peer_messages.clear();
        self.peer_messages_by_type.clear();
        self.peer_faults.clear();
        self.peer_drops.clear();
        self.range_peers.clear();
        self.range_limit.clear();
        self.range_refused.clear();
    }

    /// An add or a delete was answered after `took`.
    pub fn operation_finished(&self, operation: &'static str, code: &'static str, took: Duration) {
        self.operations
            .get_or_create(&OperationCode { operation, code })
            .inc();
        if code == "OK" {
            self.operation_duration
                .get_or_create(&OperationLabel { operation })
                .observe(took.as_secs_f64());
        }
    }
}

/// Registers under the row of that name.
fn register(
    registry: &mut Registry,
    name: &'static str,
    metric: impl prometheus_client::registry::Metric,
) {
    let (_, _, unit, _, help) = TABLE
        .iter()
        .find(|row| row.0 == name)
        .expect("every metric has a row in the table");
    match *unit {
        "seconds" => registry.register_with_unit(name, *help, Unit::Seconds, metric),
        _ => registry.register(name, *help, metric),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition_has_every_metric_of_the_table_and_no_other() {
        // A family without a series is not shown.
        let metrics = Metrics::new(1);
        let peer = || "p".to_owned();
        let state = StateLabel { state: "ok" };
        for family in [
            &metrics.workloads,
            &metrics.blocks,
            &metrics.dataplane_objects,
            &metrics.fleet_blocks,
            &metrics.fleet_nodes,
        ] {
            drop(family.get_or_create(&state));
        }
        for family in [&metrics.pool_addresses_held, &metrics.pool_addresses_used] {
            drop(family.get_or_create(&PoolLabel { pool: peer() }));
        }
        for family in [&metrics.peer_established, &metrics.peer_drops] {
            drop(family.get_or_create(&PeerLabel { peer: peer() }));
        }
        drop(metrics.peer_messages.get_or_create(&PeerDirection {
            peer: peer(),
            direction: "sent",
        }));
        drop(metrics.peer_prefixes.get_or_create(&PeerPrefixes {
            peer: peer(),
            family: "ipv4-unicast",
            kind: "received",
        }));
        let kind = KindLabel { kind: "route" };
        drop(metrics.dataplane_repairs.get_or_create(&kind));
        let removed = RemovedKind { kind: "blackhole" };
        drop(metrics.recovery_removed.get_or_create(&removed));
        let result = ResultLabel { result: "ok" };
        drop(metrics.filter_transactions.get_or_create(&result));
        let reason = ReasonLabel { reason: "redirect" };
        drop(metrics.filter_dropped_packets.get_or_create(&reason));
        drop(metrics.peer_messages_by_type.get_or_create(&PeerMessages {
            peer: peer(),
            direction: "sent",
            r#type: "open",
        }));
        drop(metrics.peer_faults.get_or_create(&PeerFaults {
            peer: peer(),
            disposition: "ignored",
        }));
        drop(metrics.range_peers.get_or_create(&RangePeers {
            range: peer(),
            state: "known",
        }));
        for family in [&metrics.range_limit, &metrics.range_refused] {
            drop(family.get_or_create(&RangeLabel { range: peer() }));
        }
        metrics.operation_finished("add", "OK", Duration::ZERO);
        let text = metrics.encode();
        let mut expected: Vec<String> = TABLE
            .iter()
            .map(|(name, kind, unit, _, _)| match *unit {
                "" => format!("{name} {kind}"),
                unit => format!("{name}_{unit} {kind}"),
            })
            .collect();
        let mut found: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(str::to_owned)
            .collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn finished_operations_are_counted_by_code_and_only_good_ones_timed() {
        let metrics = Metrics::new(1);
        metrics.operation_finished("add", "OK", Duration::from_millis(1));
        metrics.operation_finished("add", "NOT_FOUND", Duration::from_millis(1));
        let text = metrics.encode();
        assert!(
            text.contains(r#"agentd_operations_total{operation="add",code="OK"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"agentd_operations_total{operation="add",code="NOT_FOUND"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"agentd_operation_duration_seconds_count{operation="add"} 1"#),
            "{text}"
        );
    }
}
