//! From the first octet of the first UPDATE to the last route in the kernel, for agentd and other
//! daemons, beside the limit of raw netlink, in turn in the same run; and the loss of one of two
//! routers.
//!
//! `BENCH_ROWS=100k,1m` (of 10k, 100k, 100k-v6, 1m, ecmp) measures only those.

use anyhow::Result;
use integration::bench::aims::{AGENTD, BIRD, LIMIT};
use integration::bench::fib::Prefixes;
use integration::bench::report::{Page, milliseconds};
use integration::bench::results::{record, record_kib, record_times};
use integration::bench::rival::Rival;
use integration::bench::routes::{self, Times};
use integration::bench::{ecmp, median, repetitions, scaled};
use integration::lab::Lab;

/// Name, family, routes, repetitions, and whether FRR takes part. A million takes BIRD half a minute.
const CASES: [(&str, bool, u32, usize, bool); 4] = [
    ("10k", false, 10_000, 5, true),
    ("100k", false, 100_000, 5, true),
    ("100k-v6", true, 100_000, 5, false),
    ("1m", false, 1_000_000, 3, false),
];
const ECMP: [(&str, u32); 3] = [("1k", 1000), ("10k", 10_000), ("100k", 100_000)];

fn is_asked(name: &str) -> bool {
    std::env::var("BENCH_ROWS").map_or(true, |rows| rows.split(',').any(|row| row == name))
}

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut page = Page::new(
        "From BGP to the kernel",
        "One external session sends routes through one next hop, all with the same attributes. \
         Milliseconds from just before the first octet of the first UPDATE (or the end of the \
         connection) until the kernel holds all (or none) of the routes; medians. \"Limit\" is the \
         same routes written by raw netlink in batches of 64 KiB, without any BGP. Memory is the \
         peak above what was resident before the first route. All take turns. OpenBGPD for Linux \
         and GoBGP without FRR's zebra write no routes to the kernel.",
    );
    for (name, v6, count, usual, with_frr) in CASES {
        if is_asked(name) {
            case(
                &lab,
                &mut page,
                name,
                v6,
                scaled(count),
                repetitions(usual),
                with_frr,
            )?;
        }
    }
    if is_asked("ecmp") {
        loss(&lab, &mut page)?;
    }
    page.write("routes")
}

fn case(
    lab: &Lab,
    page: &mut Page,
    name: &str,
    v6: bool,
    count: u32,
    rounds: usize,
    with_frr: bool,
) -> Result<()> {
    let prefixes = Prefixes { v6, count };
    // Added, removed; with plain routes, with a nexthop object.
    let mut limits = [const { (Vec::new(), Vec::new()) }; 2];
    let mut daemons = [
        (AGENTD, Times::default()),
        (BIRD, Times::default()),
        ("FRR", Times::default()),
    ];
    for _ in 0..rounds {
        for (nexthop, list) in [false, true].into_iter().zip(&mut limits) {
            let limit = routes::limit(lab, prefixes, nexthop, 1)?;
            list.0.push(limit.add);
            list.1.push(limit.remove);
        }
        for (who, times) in &mut daemons {
            match *who {
                AGENTD => times.merge(routes::agent(lab, prefixes, 1)?),
                BIRD => times.merge(routes::bird(lab, prefixes, 1)?),
                _ if with_frr => times.merge(routes::rival(lab, Rival::Frr, prefixes)?),
                _ => {}
            }
        }
        eprintln!(
            "{name}: {:?}",
            daemons.each_ref().map(|(_, times)| median(&times.add))
        );
    }
    let mut rows = Vec::new();
    let titles = ["limit, plain routes", "limit, nexthop object"];
    for ((title, who), (add, remove)) in titles.iter().zip(["plain routes", LIMIT]).zip(&limits) {
        record_times(&format!("fib-{name}"), who, add)?;
        record_times(&format!("withdrawn-{name}"), who, remove)?;
        record_times(&format!("lost-{name}"), who, remove)?;
        let (add, remove) = (milliseconds(median(add)), milliseconds(median(remove)));
        rows.push(vec![
            (*title).to_owned(),
            add,
            remove.clone(),
            remove,
            String::new(),
        ]);
    }
    for (who, times) in daemons.iter().filter(|(_, times)| !times.add.is_empty()) {
        record_times(&format!("fib-{name}"), who, &times.add)?;
        record_times(&format!("withdrawn-{name}"), who, &times.withdraw)?;
        record_times(&format!("lost-{name}"), who, &times.lost)?;
        record_kib(&format!("memory-{name}"), who, &times.above_kib)?;
        let mut above = times.above_kib.clone();
        above.sort_unstable();
        let above = above.get(above.len() / 2).copied().unwrap_or_default();
        rows.push(vec![
            (*who).to_owned(),
            milliseconds(median(&times.add)),
            milliseconds(median(&times.withdraw)),
            milliseconds(median(&times.lost)),
            format!("{:.1}", f64::from(u32::try_from(above)?) / 1024.0),
        ]);
    }
    let family = if v6 { "IPv6 /122" } else { "IPv4 /26" };
    page.table(
        &format!("{count} routes, {family}, {rounds} repetitions"),
        &[
            "",
            "in, ms",
            "withdrawn, ms",
            "session lost, ms",
            "memory above idle, MiB",
        ],
        &rows,
    );
    Ok(())
}

/// One of two routers lost.
fn loss(lab: &Lab, page: &mut Page) -> Result<()> {
    let mut rows = Vec::new();
    for (name, count) in ECMP {
        let prefixes = Prefixes {
            v6: false,
            count: scaled(count),
        };
        let (mut own, mut operations, mut bird) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..repetitions(5) {
            let loss = ecmp::agent(lab, prefixes)?;
            own.push(loss.healed);
            let count = u32::try_from(loss.operations.unwrap_or_default())?;
            operations.push(f64::from(count));
            bird.push(ecmp::bird(lab, prefixes)?.healed);
        }
        record_times(&format!("ecmp-{name}"), AGENTD, &own)?;
        record_times(&format!("ecmp-{name}"), BIRD, &bird)?;
        record(&format!("ecmp-operations-{name}"), AGENTD, &operations)?;
        let most = operations.iter().copied().fold(0.0, f64::max);
        rows.push(vec![
            name.to_owned(),
            format!("{most}"),
            milliseconds(median(&own)),
            milliseconds(median(&bird)),
        ]);
    }
    page.table(
        "Routes over two routers, of which one's session ends",
        &[
            "routes",
            "kernel operations of agentd, at most",
            "agentd: no route leads there, ms",
            "BIRD, ms",
        ],
        &rows,
    );
    Ok(())
}
