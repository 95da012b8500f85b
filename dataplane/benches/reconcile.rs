//! Cost of planning alone: the kernel is one in memory that agrees to everything.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::{
    desired::{Attachment, Inside, LearnedRoute, Object, ObjectId, Workload},
    fake::{FakeKernel, netns, plain_link},
    reconcile::{Config, Output, Reconciler},
};
use ipnet::{IpNet, Ipv4Net};

const ROUTES: u32 = 100_000;

fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::new();
    kernel.host.links.insert(2, plain_link(2, "eth0"));
    kernel.add_host_address(2, "192.168.0.10/16".parse().unwrap());
    kernel
}

/// Lets everything succeed without keeping anything: what is measured is the reconciler.
fn drive(reconciler: &mut Reconciler, kernel: &mut FakeKernel, agree: bool) {
    let now = Instant::now();
    while let Some(output) = reconciler.poll_output() {
        match output {
            Output::Event(_) => {}
            Output::Apply { id, ops } if agree => {
                reconciler.handle_results(now, id, vec![Ok(()); ops.len()]);
            }
            Output::Apply { id, ops } => {
                let results = kernel.apply(&ops);
                reconciler.handle_results(now, id, results);
            }
            Output::Query { id, query } => {
                let answer = kernel.query(&query);
                reconciler.handle_snapshot(now, id, answer);
            }
        }
    }
}

fn route(number: u32) -> LearnedRoute {
    let address = Ipv4Addr::from(0x1400_0000 + number * 256);
    LearnedRoute {
        prefix: IpNet::V4(Ipv4Net::new_assert(address, 24)),
        next_hops: [IpAddr::V4(Ipv4Addr::new(192, 168, 1, (number % 16) as u8 + 1)).into()].into(),
    }
}

fn started() -> (Reconciler, FakeKernel) {
    let mut reconciler = Reconciler::new(Config::default(), Instant::now());
    let mut kernel = kernel();
    drive(&mut reconciler, &mut kernel, false);
    (reconciler, kernel)
}

fn with_routes() -> (Reconciler, FakeKernel) {
    let (mut reconciler, mut kernel) = started();
    let now = Instant::now();
    for number in 0..ROUTES {
        reconciler.set(now, Object::Route(route(number)));
    }
    drive(&mut reconciler, &mut kernel, true);
    assert_eq!(reconciler.status().learned_installed, ROUTES as usize);
    (reconciler, kernel)
}

fn workload(number: u64) -> Object {
    Object::Workload(Arc::new(Workload {
        id: format!("workload-{number}").into(),
        attachment: Attachment::Routed(Inside {
            netns: netns(number),
            interface: "eth0".to_owned(),
        }),
        addresses: vec![
            IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number as u32)),
            IpAddr::V6(Ipv6Addr::from((0xfd00 << 112) + u128::from(number))),
        ],
        mtu: None,
        access: Default::default(),
    }))
}

/// From wanted to programmed; the time of the reconciler alone.
fn add(reconciler: &mut Reconciler, kernel: &mut FakeKernel, object: Object) -> Duration {
    let mut spent = Duration::ZERO;
    let mut begun = Instant::now();
    reconciler.set(begun, object);
    while let Some(output) = reconciler.poll_output() {
        spent += begun.elapsed();
        match output {
            Output::Event(_) => begun = Instant::now(),
            Output::Apply { id, ops } => {
                let results = kernel.apply(&ops);
                begun = Instant::now();
                reconciler.handle_results(begun, id, results);
            }
            Output::Query { id, query } => {
                let answer = kernel.query(&query);
                begun = Instant::now();
                reconciler.handle_snapshot(begun, id, answer);
            }
        }
    }
    spent + begun.elapsed()
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes");
    group.sample_size(10);
    group.throughput(Throughput::Elements(u64::from(ROUTES)));
    group.bench_function("plan 100k", |bencher| {
        bencher.iter_batched_ref(
            started,
            |(reconciler, kernel)| {
                let now = Instant::now();
                for number in 0..ROUTES {
                    reconciler.set(now, Object::Route(route(number)));
                }
                drive(reconciler, kernel, true);
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("withdraw 100k", |bencher| {
        bencher.iter_batched_ref(
            with_routes,
            |(reconciler, kernel)| {
                let now = Instant::now();
                for number in 0..ROUTES {
                    let id = ObjectId::Route(route(number).prefix);
                    reconciler.remove(now, id);
                }
                drive(reconciler, kernel, true);
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();

    for present in [0, 1_000, 2_000] {
        let (mut reconciler, mut kernel) = with_routes();
        for number in 0..present {
            kernel.add_namespace(number);
            reconciler.set(Instant::now(), workload(number));
            drive(&mut reconciler, &mut kernel, false);
        }
        let mut number = 1_000_000;
        criterion.bench_function(&format!("add a workload beside {present}"), |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    number += 1;
                    kernel.add_namespace(number);
                    spent += add(&mut reconciler, &mut kernel, workload(number));
                    let id = ObjectId::Workload(format!("workload-{number}").into());
                    reconciler.remove(Instant::now(), id);
                    drive(&mut reconciler, &mut kernel, false);
                    reconciler.handle_timeout(Instant::now() + Duration::from_secs(1));
                    drive(&mut reconciler, &mut kernel, false);
                    kernel.delete_namespace(number);
                    kernel.changes.clear();
                }
                spent
            });
        });
    }
}

criterion_group!(all, benches);
criterion_main!(all);
