//! What an allocation costs, and how many changes the store makes durable.
//!
//! `allocate` must not grow with the number of workloads. The figures of the store depend on the
//! disk: `TMPDIR` chooses it.

use std::{
    hint::black_box,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agentd::{
    config,
    ipam::{Action, Ipam, Now},
    node::{
        WorkloadId, WorkloadSpec,
        spec::{FixedAddresses, InterfaceName, Labels, NamespaceName},
        view::AssignedAddress,
    },
    store::{CoolingRecord, Record, Store, WorkloadRecord},
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn pool(name: &str, cidr: &str, block_size: u8) -> config::Pool {
    let cidr = cidr.parse().expect("a prefix");
    config::Pool {
        claim: vec![cidr],
        ..config::Pool::new(name, cidr, block_size)
    }
}

fn id(number: usize) -> WorkloadId {
    WorkloadId::new(&format!("workload-{number}")).expect("an id")
}

/// An allocator of two families in which that many workloads hold addresses.
fn filled(now: Now, workloads: usize) -> Ipam {
    let pools = [
        pool("four", "10.0.0.0/8", 26),
        pool("six", "fd00::/64", 122),
    ];
    let settings = config::Ipam::default();
    let mut ipam = Ipam::new(now, &pools, &settings);
    for number in 0..workloads {
        ipam.allocate(now, &id(number), None, &[])
            .expect("there is room");
        settle(&mut ipam, now);
    }
    ipam
}

/// Does what the allocator asks for.
fn settle(ipam: &mut Ipam, now: Now) {
    while let Some(action) = ipam.poll_action() {
        match action {
            Action::Acquire(_) | Action::Return(_) => {}
            Action::Claim(record) => ipam.block_persisted(record.cidr),
            Action::Program(cidr) => ipam.block_active(now, cidr),
            Action::Local(_) => {}
            Action::Release(cidr) => ipam.block_released(cidr),
        }
    }
}

/// Adds that are timed together.
const CHUNK: u64 = 64;

fn allocator(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ipam");
    for workloads in [0, 1_000, 10_000] {
        let mut now = Now::read();
        let mut ipam = filled(now, workloads);
        let new: Vec<WorkloadId> = (0..64).map(|number| id(1_000_000 + number)).collect();
        // Both families; the clock runs on, so that cool-downs end as they do in life.
        group.bench_function(
            BenchmarkId::new("allocate and release", workloads),
            |bencher| {
                bencher.iter(|| {
                    now.instant += Duration::from_secs(1);
                    now.wall += Duration::from_secs(1);
                    let allocation = ipam
                        .allocate(now, &new[0], None, &[])
                        .expect("there is room");
                    black_box(&allocation);
                    black_box(ipam.release(now, &new[0], None));
                    settle(&mut ipam, now);
                });
            },
        );
        group.bench_function(BenchmarkId::new("allocate", workloads), |bencher| {
            bencher.iter_custom(|count| {
                let mut spent = Duration::ZERO;
                for _ in 0..count.div_ceil(CHUNK) {
                    let start = Instant::now();
                    for id in &new {
                        black_box(ipam.allocate(now, id, None, &[])).expect("there is room");
                    }
                    spent += start.elapsed();
                    for id in &new {
                        ipam.release(now, id, None);
                    }
                    now.instant += Duration::from_secs(131);
                    now.wall += Duration::from_secs(131);
                    settle(&mut ipam, now);
                }
                spent.mul_f64(count as f64 / (count.div_ceil(CHUNK) * CHUNK) as f64)
            });
        });
    }
    group.finish();
}

/// The records of one add, as the node submits them.
fn add(number: u64) -> Vec<Record> {
    let octets = u32::try_from(number % 60_000).expect("small").to_be_bytes();
    let address = IpAddr::from([10, 1, octets[2], octets[3]]);
    let id = WorkloadId::new(&format!("workload-{}", number % 60_000)).expect("an id");
    let spec = WorkloadSpec {
        attachment: agentd::node::attachment::Attachment::Routed(
            agentd::node::attachment::Inside {
                namespace: agentd::node::attachment::Namespace {
                    name: NamespaceName::path("/run/netns/some-name").expect("a path"),
                    netns: dataplane::desired::Netns {
                        path: "/run/netns/some-name".into(),
                        device: 4,
                        inode: 4_026_532_000,
                    },
                },
                interface: InterfaceName::new("eth0").expect("a name"),
            },
        ),
        pools: Vec::new(),
        owner: None,
        addresses: FixedAddresses::default(),
        mtu: None,
        labels: Labels::default(),
        access: Default::default(),
    };
    vec![
        Record::Generation(number),
        Record::PutWorkload(WorkloadRecord {
            id,
            generation: number,
            spec: Arc::new(spec),
            addresses: vec![AssignedAddress {
                address,
                pool: "four".to_owned(),
                block: ipnet::IpNet::new(address, 26).expect("a length").trunc(),
            }],
            created_at: SystemTime::now(),
        }),
        Record::DeleteCooling(address),
    ]
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    group.sample_size(20);
    for callers in [1_u64, 8, 64] {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, mut completions, _) = Store::open(directory.path()).expect("a store");
        let mut token = 0;
        group.throughput(Throughput::Elements(1));
        // Each caller waits for its add before it makes the next.
        group.bench_function(
            BenchmarkId::new("adds, callers at once", callers),
            |bencher| {
                bencher.iter_custom(|count| {
                    let start = Instant::now();
                    let first = token;
                    let last = first + count;
                    let mut done = first;
                    while done < last {
                        while token < last && token - done < callers {
                            token += 1;
                            store.submit(add(token), token).expect("room in the queue");
                        }
                        let completion = completions.blocking_next().expect("the store runs");
                        completion.result.expect("room on the disk");
                        done += 1;
                    }
                    start.elapsed()
                });
            },
        );
        let statistics = store.statistics();
        println!(
            "store: {callers} callers: {} adds in {} commits",
            statistics.submissions, statistics.commits
        );
    }
    group.finish();
}

/// Cooling records are what a restart reads most of.
fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    group.sample_size(10);
    let directory = tempfile::tempdir().expect("a directory");
    let (store, mut completions, _) = Store::open(directory.path()).expect("a store");
    for number in 1..=1000 {
        let mut records = add(number);
        records.push(Record::PutCooling(CoolingRecord {
            address: IpAddr::from(u32::try_from(number).expect("small").to_be_bytes()),
            until: SystemTime::now(),
            id: id(1),
            generation: number,
        }));
        store.submit(records, number).expect("room in the queue");
    }
    for _ in 1..=1000 {
        completions
            .blocking_next()
            .expect("the store runs")
            .result
            .expect("room");
    }
    drop(store);
    group.bench_function("open with 1000 workloads", |bencher| {
        bencher.iter(|| Store::open(directory.path()).expect("a store"));
    });
    group.finish();
}

criterion_group!(benches, allocator, store, recovery);
criterion_main!(benches);
