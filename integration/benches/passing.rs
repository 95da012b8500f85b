//! Routes of one neighbour, passed on to one other and to many: agentd beside other daemons and
//! beside the same octets written straight.

use anyhow::Result;
use integration::bench::fib::Prefixes;
use integration::bench::passing::{self, Passed};
use integration::bench::report::{Page, milliseconds, ratio};
use integration::bench::results::{record_kib, record_times};
use integration::bench::rival::{Rival, Task};
use integration::bench::{median, repetitions, scaled};
use integration::lab::Lab;

struct Case {
    /// Of the rows in the results.
    row: &'static str,
    title: &'static str,
    count: u32,
    neighbours: u32,
    internal: bool,
    rivals: &'static [Rival],
    repetitions: usize,
}

const CASES: [Case; 4] = [
    Case {
        row: "pass-100k",
        title: "100,000 routes to one external neighbour",
        count: 100_000,
        neighbours: 2,
        internal: false,
        rivals: &[
            Rival::Agentd,
            Rival::Bird,
            Rival::Frr,
            Rival::OpenBgpd,
            Rival::GoBgp,
        ],
        repetitions: 5,
    },
    Case {
        row: "pass-1m",
        title: "1,000,000 routes to one external neighbour",
        count: 1_000_000,
        neighbours: 2,
        internal: false,
        rivals: &[Rival::Agentd, Rival::Bird],
        repetitions: 3,
    },
    Case {
        row: "peers-10k",
        title: "10,000 routes reflected to 99 of 100 clients",
        count: 10_000,
        neighbours: 100,
        internal: true,
        rivals: &[Rival::Agentd, Rival::Bird, Rival::Frr, Rival::OpenBgpd],
        repetitions: 5,
    },
    Case {
        row: "peers-100k",
        title: "100,000 routes reflected to 99 of 100 clients",
        count: 100_000,
        neighbours: 100,
        internal: true,
        rivals: &[Rival::Agentd, Rival::Bird],
        repetitions: 3,
    },
];

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut page = Page::new(
        "From neighbour to neighbours",
        "One neighbour sends IPv4 routes with the same attributes, the daemon passes them on; nothing \
         goes to the kernel. Milliseconds from just before the first octet of the first UPDATE (or the \
         end of the connection) until the last receiver holds all (or none) of the routes; medians, \
         and the share of BIRD's. \"Straight\" is the same octets written to the receivers without a \
         daemon. Memory is the peak above what was resident before the first route.",
    );
    for case in &CASES {
        let prefixes = Prefixes {
            v6: false,
            count: scaled(case.count),
        };
        let task = Task {
            neighbours: case.neighbours,
            internal: case.internal,
            install: false,
        };
        let rounds = repetitions(case.repetitions);
        let straight = passing::straight(&lab, prefixes, case.neighbours - 1, rounds)?;
        record_times(case.row, "limit", &[straight])?;
        let mut all: Vec<(Rival, Passed)> = Vec::new();
        for round in 0..rounds {
            for rival in case.rivals {
                // The slow ones are known to be slow after one look.
                let slow = !matches!(rival, Rival::Agentd | Rival::Bird);
                if slow && round > 0 {
                    continue;
                }
                let passed = passing::through(&lab, *rival, prefixes, task, 1)?;
                eprintln!(
                    "{}: {}: {} ms",
                    case.title,
                    rival.name(),
                    milliseconds(median(&passed.add))
                );
                match all.iter_mut().find(|(known, _)| known == rival) {
                    Some((_, sum)) => sum.merge(passed),
                    None => all.push((*rival, passed)),
                }
            }
        }
        for (rival, passed) in &all {
            record_times(case.row, rival.name(), &passed.add)?;
            let withdrawn = case.row.replacen('-', "-withdrawn-", 1);
            record_times(&withdrawn, rival.name(), &passed.withdraw)?;
            let above = passed.peak_kib.saturating_sub(passed.idle_kib);
            record_kib(&format!("{}-memory", case.row), rival.name(), &[above])?;
        }
        let bird = all.iter().find(|(rival, _)| *rival == Rival::Bird);
        let bird = bird.map(|(_, passed)| passed);
        let mut rows = vec![vec![
            "straight".to_owned(),
            milliseconds(straight),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]];
        for (rival, passed) in &all {
            let cell = |pick: fn(&Passed) -> &Vec<std::time::Duration>| {
                let own = median(pick(passed));
                let other = bird.map(|bird| median(pick(bird)));
                match other {
                    Some(other) if *rival != Rival::Bird => {
                        format!("{} ({})", milliseconds(own), ratio(own, other))
                    }
                    _ => milliseconds(own),
                }
            };
            rows.push(vec![
                rival.name().to_owned(),
                cell(|passed| &passed.add),
                cell(|passed| &passed.withdraw),
                cell(|passed| &passed.lost),
                (passed.idle_kib / 1024).to_string(),
                (passed.peak_kib.saturating_sub(passed.idle_kib) / 1024).to_string(),
            ]);
        }
        page.table(
            case.title,
            &[
                "",
                "passed on, ms",
                "withdrawn, ms",
                "session lost, ms",
                "idle, MiB",
                "above idle, MiB",
            ],
            &rows,
        );
    }
    page.write("passing")
}
