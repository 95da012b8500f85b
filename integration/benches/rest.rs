//! A node at rest, and how soon it is ready after it was killed.

use std::time::Duration;

use anyhow::Result;
use integration::bench::aims::AGENTD;
use integration::bench::fib::Prefixes;
use integration::bench::report::{Page, milliseconds};
use integration::bench::rest::{self, Loaded};
use integration::bench::results::{record_kib, record_times};
use integration::bench::rival::Rival;
use integration::bench::{is_quick, median, repetitions, scaled};
use integration::lab::Lab;

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut page = Page::new(
        "At rest and after a crash",
        "What the agent costs while nothing happens, and how long after `kill -9` it is ready again: \
         everything is read from the kernel, and nothing is to be written.",
    );
    let mut rows = Vec::new();
    for daemon in [
        Rival::Agentd,
        Rival::Bird,
        Rival::Frr,
        Rival::OpenBgpd,
        Rival::GoBgp,
    ] {
        let mut all = Vec::new();
        for _ in 0..repetitions(5).min(3) {
            all.push(rest::resident(&lab, daemon)?);
        }
        all.sort_unstable();
        record_kib("rss-idle", daemon.name(), &all)?;
        let middle = all.get(all.len() / 2).copied().unwrap_or_default();
        rows.push(vec![
            daemon.name().to_owned(),
            format!("{:.1}", f64::from(u32::try_from(middle)?) / 1024.0),
        ]);
    }
    page.table("Resident with 3 peers and 100 routes", &["", "MiB"], &rows);

    let workloads = usize::try_from(scaled(1000))?;
    let prefixes = Prefixes {
        v6: false,
        count: scaled(100_000),
    };
    let mut loaded = Loaded::new(&lab, workloads, prefixes)?;
    let watched = Duration::from_secs(if is_quick() { 3 } else { 60 });
    let idle = loaded.idle(watched)?;
    let resident = loaded.resident_kib()?;
    record_times("idle-cpu", AGENTD, &[idle])?;
    record_kib("rss-loaded", AGENTD, &[resident])?;
    let mut restarts = Vec::new();
    for _ in 0..repetitions(5) {
        restarts.push(loaded.restart()?);
    }
    record_times("restart", AGENTD, &restarts)?;
    loaded.end(&lab)?;
    page.table(
        &format!("With {workloads} workloads and {} routes", prefixes.count),
        &["", ""],
        &[
            vec![
                format!("processor time in {} s", watched.as_secs()),
                format!("{} ms", milliseconds(idle)),
            ],
            vec!["resident memory".into(), format!("{} MiB", resident / 1024)],
            vec![
                "kill -9, start, ready and nothing pending (median)".into(),
                format!("{} ms", milliseconds(median(&restarts))),
            ],
        ],
    );
    page.write("rest")
}
