//! 5,000 workloads on one node, and 100,000 routes while nothing happens.

use std::time::Duration;

use anyhow::Result;
use integration::bench::fib::Prefixes;
use integration::bench::report::{Page, milliseconds, ratio};
use integration::bench::results::{record, record_times};
use integration::bench::scale::PART;
use integration::bench::{is_quick, median, percentile, routes, scale};
use integration::lab::Lab;

const WORKLOADS: usize = 5000;
const DELETED: usize = 1000;
const MORE: usize = 200;

fn row(what: String, times: &[Duration], more: [String; 2]) -> Vec<String> {
    let at = |share| milliseconds(percentile(times, share));
    let mut row = vec![what, at(0.5), at(0.99), at(1.0)];
    row.extend(more);
    row
}

/// The last part as a multiple of the first.
fn growth(times: &[Duration]) -> String {
    let median = |part: Option<&[Duration]>| percentile(part.unwrap_or_default(), 0.5);
    ratio(
        median(times.rchunks(PART).next()),
        median(times.chunks(PART).next()),
    )
}

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    // `WORKLOADS=1000 ./dev bench --bench scale` is for a first look.
    let workloads = match std::env::var("WORKLOADS") {
        Ok(count) => count.parse()?,
        Err(_) if is_quick() => WORKLOADS / 50,
        Err(_) => WORKLOADS,
    };
    let figures = scale::run(&lab, workloads, DELETED.min(workloads / 2), MORE)?;
    let part = figures.adds.len().min(PART);
    record_times("add-first", "agentd", &[median(&figures.adds[..part])])?;
    let last = &figures.adds[figures.adds.len() - part..];
    record_times("add-last", "agentd", &[median(last)])?;
    let deleted = u32::try_from(DELETED.min(workloads / 2))?;
    let rate = |time: Duration| f64::from(deleted) / time.as_secs_f64();
    record("delete-rate", "agentd", &[rate(figures.deletes_alone)])?;
    let mut page = Page::new(
        "Many workloads",
        "Workloads are added, and deleted by 32 clients as fast as they can; then one client adds \
         workloads one by one; then the agent is killed and started again; then 32 clients delete a \
         part of them as fast as they can while one goes on adding. Processor time \
         is the agent's for one add, with what the kernel does on its behalf. \"Limit\" is the p50 of \
         the same kernel state written by raw netlink, as many before.",
    );
    let parts = figures.adds.chunks(PART).zip(figures.limit.chunks(PART));
    let mut rows: Vec<_> = parts
        .zip(&figures.processor)
        .enumerate()
        .map(|(part, ((times, limit), processor))| {
            let from = part * PART;
            let each = *processor / u32::try_from(times.len()).unwrap_or(1);
            let more = [milliseconds(each), milliseconds(percentile(limit, 0.5))];
            row(
                format!("{} to {}", from + 1, from + times.len()),
                times,
                more,
            )
        })
        .collect();
    rows.push(row(
        format!("{MORE} more, while others are deleted"),
        &figures.adds_amid_deletes,
        Default::default(),
    ));
    let deletes = |which: &str, time| {
        vec![
            format!("{deleted} deletes {which}"),
            format!("{} ms, {:.0} a second", milliseconds(time), rate(time)),
        ]
    };
    let columns = [
        "workloads",
        "p50 ms",
        "p99 ms",
        "max ms",
        "processor ms",
        "limit ms",
    ];
    page.table("Add", &columns, &rows);
    page.table(
        &format!("With {workloads} workloads"),
        &["", ""],
        &[
            vec![
                format!("p50 of the last {PART} adds, to that of the first"),
                growth(&figures.adds),
            ],
            vec!["the same of the limit".into(), growth(&figures.limit)],
            vec![
                "kill -9, start, ready and nothing pending".into(),
                format!("{} ms", milliseconds(figures.restart)),
            ],
            deletes("of so many with no others there", figures.deletes_alone),
            deletes("of these, while one client adds", figures.deletes),
            vec![
                "resident memory".into(),
                format!("{} MiB", figures.resident_kib / 1024),
            ],
        ],
    );
    page.write("scale")?;
    // Five minutes, until the audit has looked once.
    if std::env::var_os("BENCH_LONG").is_some() {
        at_rest(&lab)?;
    }
    Ok(())
}

fn at_rest(lab: &Lab) -> Result<()> {
    let mut page = Page::new(
        "100,000 routes at rest",
        "Routes from one external peer are in the kernel, and nothing happens. The agent is watched \
         until it has audited the kernel once.",
    );
    let count = 100_000;
    let idle = routes::idle(lab, Prefixes { v6: false, count }, Duration::from_secs(400))?;
    let share = 100.0 * idle.processor.as_secs_f64() / idle.watched.as_secs_f64();
    page.table(
        "What it costs",
        &["", ""],
        &[
            vec![
                format!("processor time in {:.0} s", idle.watched.as_secs_f64()),
                format!("{} ms ({share:.2} %)", milliseconds(idle.processor)),
            ],
            vec![
                "resident memory".into(),
                format!("{} MiB", idle.resident_kib / 1024),
            ],
        ],
    );
    page.write("idle")
}
