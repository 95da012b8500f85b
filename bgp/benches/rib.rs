//! The RIB under load: tables in, forwarding changes and messages out.
//!
//! `cargo bench -p bgp --bench rib`. Before the timed runs it prints what a table costs in memory,
//! counted by the allocator: octets for each prefix, all of them received from one peer, with
//! nothing else, and with one peer that all of them were sent to.
#![allow(clippy::disallowed_methods)]
#![allow(missing_docs)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bgp::{
    attributes::{AsPath, Attributes},
    message::{Announced, Negotiated, Nlri, NlriList, Update},
    policy::Policy,
    rib::{LocalRoute, NextHopState, NextHopWatch, PeerKind, PeerRib, Rib, RibConfig},
    types::{Asn, PeerId},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::Ipv4Net;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged; the counter does not touch memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size, Ordering::Relaxed);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SENDER: PeerId = PeerId(1);
/// Prefixes of one received UPDATE.
const PER_UPDATE: usize = 200;

fn session(n: u32) -> PeerRib {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
    let negotiated = Negotiated {
        four_octet_as: true,
        families: [true, false],
        ..Negotiated::default()
    };
    let mut session = PeerRib::new(
        PeerKind::External,
        Asn(65000 + n),
        address,
        address.into(),
        [10, 0, 255, 1].into(),
        Arc::new(negotiated),
    );
    session.import = Arc::new(Policy::all());
    session.export = Arc::new(Policy::all());
    session
}

/// Attribute sets that differ in the AS path.
fn attributes(peer: u32, variant: u32) -> Arc<Attributes> {
    let next_hop = Ipv4Addr::from_bits(0x0a00_0000 + peer);
    let mut attributes = Attributes::originated(IpAddr::V4(next_hop).into());
    let path = [65000 + peer, 64600 + variant % 300, 64000 + variant / 300];
    attributes.as_path = AsPath::sequence(path.map(Asn));
    Arc::new(attributes)
}

/// `count` prefixes in updates of `PER_UPDATE`, with so many attribute sets.
fn table(peer: u32, count: usize, sets: usize) -> Vec<Update> {
    let prefixes: Vec<_> = (0..count)
        .map(|index| {
            let bits = 0x1400_0000 + (u32::try_from(index).expect("a small table") << 6);
            let prefix = Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), 26);
            Nlri { path_id: 0, prefix }
        })
        .collect();
    prefixes
        .chunks(PER_UPDATE)
        .enumerate()
        .map(|(index, chunk)| Update {
            announced: [Announced {
                attributes: attributes(peer, u32::try_from(index % sets).expect("few sets")),
                nlri: NlriList::Ipv4(chunk.to_vec()),
            }]
            .into_iter()
            .collect(),
            ..Update::default()
        })
        .collect()
}

fn withdrawals(count: usize) -> Vec<Update> {
    let announced = table(1, count, 1);
    let lists = announced.into_iter().flat_map(|update| update.announced);
    lists
        .map(|announced| Update {
            withdrawn: [announced.nlri].into_iter().collect(),
            ..Update::default()
        })
        .collect()
}

fn rib(receivers: u32) -> (Rib, Instant) {
    let now = Instant::now();
    let mut rib = Rib::new(RibConfig::new(Asn(64512), [10, 0, 255, 1].into()), now);
    for n in 0..=receivers {
        rib.peer_up(PeerId(n + 1), session(n + 1));
    }
    // A prefix whose next hop is known already: what comes later resolves at once.
    let known = table(1, 1, 1);
    let known = Update {
        announced: known[0]
            .announced
            .iter()
            .map(|announced| Announced {
                attributes: announced.attributes.clone(),
                nlri: NlriList::Ipv4(vec![Nlri::from(Ipv4Net::new_assert(
                    [9, 9, 9, 0].into(),
                    24,
                ))]),
            })
            .collect(),
        ..Update::default()
    };
    rib.update(now, SENDER, &known).expect("no limit");
    resolve(&mut rib);
    drain(&mut rib);
    (rib, now)
}

fn resolve(rib: &mut Rib) {
    while let Some(watch) = rib.poll_next_hop_watch() {
        if let NextHopWatch::Watch(address) = watch {
            rib.set_next_hop(address, NextHopState::Reachable { metric: 0 });
        }
    }
}

fn feed(rib: &mut Rib, now: Instant, updates: &[Update]) {
    for update in updates {
        rib.update(now, SENDER, update).expect("no limit");
    }
}

fn forward(rib: &mut Rib) -> usize {
    std::iter::from_fn(|| rib.poll_change()).count()
}

/// Everything for everybody; says how many octets.
fn drain(rib: &mut Rib) -> usize {
    let mut out = Vec::with_capacity(128 * 1024);
    let mut total = 0;
    forward(rib);
    while let Some(peer) = rib.poll_dirty_peer() {
        while rib.has_pending(peer) {
            out.clear();
            rib.pull(peer, &mut out, 64 * 1024);
            total += out.len();
        }
    }
    total
}

fn loaded(receivers: u32, updates: &[Update]) -> (Rib, Instant) {
    let (mut rib, now) = rib(receivers);
    feed(&mut rib, now, updates);
    drain(&mut rib);
    (rib, now)
}

fn memory() {
    for (count, sets) in [(100_000, 1000), (1_000_000, 1000)] {
        let updates = table(1, count, sets);
        for receivers in [0, 1, 2] {
            let before = LIVE.load(Ordering::Relaxed);
            let (rib, _) = loaded(receivers, &updates);
            let used = LIVE.load(Ordering::Relaxed) - before;
            println!(
                "memory: {count} prefixes, sent to {receivers} peers: {:.1} octets each",
                used as f64 / count as f64
            );
            drop(rib);
        }
    }
}

/// Time this thread spent on a CPU (Linux): says more than the clock on a busy machine.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The mean of twenty runs: the kernel counts time on the CPU coarsely.
fn mean(name: &str, receivers: u32, updates: &[Update]) {
    let (mut all, mut fed) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..20 {
        let (mut rib, now) = rib(receivers);
        let start = on_cpu();
        feed(&mut rib, now, updates);
        fed += on_cpu() - start;
        black_box(drain(&mut rib));
        all += on_cpu() - start;
    }
    println!(
        "{name}: {:?} on the CPU, of this {:?} taking it in",
        all / 20,
        fed / 20
    );
}

/// Too slow to repeat: a full table from a peer that goes down.
fn once(count: usize) {
    let updates = table(1, count, 1000);
    let (mut rib, now) = rib(1);
    let start = on_cpu();
    feed(&mut rib, now, &updates);
    println!("{count} prefixes in: {:?}", on_cpu() - start);
    let start = on_cpu();
    println!(
        "{count} forwarding changes ({}): {:?}",
        forward(&mut rib),
        on_cpu() - start
    );
    let start = on_cpu();
    println!(
        "{count} prefixes out to one peer ({} octets): {:?}",
        drain(&mut rib),
        on_cpu() - start
    );
    let start = on_cpu();
    rib.peer_down(SENDER, [false; 2]);
    println!(
        "{count} prefixes removed by peer_down: {:?}",
        on_cpu() - start
    );
    let start = on_cpu();
    println!(
        "{count} forwarding changes ({}): {:?}",
        forward(&mut rib),
        on_cpu() - start
    );
    let start = on_cpu();
    println!(
        "{count} withdrawn from one peer ({} octets): {:?}",
        drain(&mut rib),
        on_cpu() - start
    );
}

fn bench(criterion: &mut Criterion) {
    // Not while a single benchmark is profiled.
    if !std::env::args().any(|argument| argument == "--profile-time") {
        memory();
        once(1_000_000);
        let name = "100k in, out to one peer";
        mean(name, 1, &table(1, 100_000, 1000));
        let name = "10k in, out to 100 peers";
        mean(name, 100, &table(1, 10_000, 100));
    }

    let updates = table(1, 100_000, 1000);
    let gone = withdrawals(100_000);
    let mut group = criterion.benchmark_group("rib");
    group.sample_size(20);

    group.throughput(Throughput::Elements(100_000));
    group.bench_function("100k in", |bencher| {
        bencher.iter_batched_ref(
            || rib(0),
            |(rib, now)| feed(rib, *now, &updates),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("100k in, forwarding changes out", |bencher| {
        bencher.iter_batched_ref(
            || rib(0),
            |(rib, now)| {
                feed(rib, *now, &updates);
                black_box(forward(rib))
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("100k in, out to one peer", |bencher| {
        bencher.iter_batched_ref(
            || rib(1),
            |(rib, now)| {
                feed(rib, *now, &updates);
                black_box(drain(rib))
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("100k out, the whole table to a new peer", |bencher| {
        bencher.iter_batched_ref(
            || loaded(0, &updates),
            |(rib, _)| {
                rib.peer_up(PeerId(2), session(2));
                black_box(drain(rib))
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("100k withdrawn, forwarding and one peer", |bencher| {
        bencher.iter_batched_ref(
            || loaded(1, &updates),
            |(rib, now)| {
                feed(rib, *now, &gone);
                black_box(drain(rib))
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("peer with 100k down, forwarding and one peer", |bencher| {
        bencher.iter_batched_ref(
            || loaded(1, &updates),
            |(rib, _)| {
                rib.peer_down(SENDER, [false; 2]);
                black_box(drain(rib))
            },
            BatchSize::PerIteration,
        );
    });
    let small = table(1, 10_000, 100);
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("10k in, out to 100 peers", |bencher| {
        bencher.iter_batched_ref(
            || rib(100),
            |(rib, now)| {
                feed(rib, *now, &small);
                black_box(drain(rib))
            },
            BatchSize::PerIteration,
        );
    });

    // One prefix of a full table changes its best path, back and forth.
    group.throughput(Throughput::Elements(1));
    group.sample_size(100);
    let (mut rib, now) = loaded(1, &updates);
    let flap: Vec<Update> = [1, 2]
        .map(|variant| Update {
            announced: [Announced {
                attributes: attributes(1, 500 + variant),
                nlri: NlriList::Ipv4(vec![Nlri::from(Ipv4Net::new_assert(
                    [20, 0, 0, 0].into(),
                    26,
                ))]),
            }]
            .into_iter()
            .collect(),
            ..Update::default()
        })
        .into();
    let mut turn = 0;
    group.bench_function("best path change", |bencher| {
        bencher.iter(|| {
            turn ^= 1;
            rib.update(now, SENDER, &flap[turn]).expect("no limit");
            black_box(rib.poll_change())
        });
    });
    let mut out = Vec::new();
    group.bench_function("best path change, one UPDATE out", |bencher| {
        bencher.iter(|| {
            turn ^= 1;
            rib.update(now, SENDER, &flap[turn]).expect("no limit");
            rib.poll_dirty_peer();
            out.clear();
            black_box(rib.pull(PeerId(2), &mut out, 4096))
        });
    });
    let mut number = 0u32;
    group.bench_function("originate and withdraw in a full table", |bencher| {
        bencher.iter(|| {
            number = (number + 1) % 1000;
            let prefix = Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0b00_0000 + (number << 8)), 26);
            rib.originate(now, prefix.into(), LocalRoute::default());
            rib.withdraw_originated(prefix.into());
            black_box(rib.poll_change())
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
