//! From the first octet of the first UPDATE to the last route in the kernel, for agentd and BIRD,
//! beside the limit of raw netlink in the same run.

use anyhow::Result;
use integration::bench::fib::Prefixes;
use integration::bench::report::{Page, milliseconds};
use integration::bench::{median, routes};
use integration::lab::Lab;

const REPETITIONS: usize = 3;

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
         same routes written by raw netlink in batches of 64 KiB, without any BGP.",
    );
    for (v6, count) in [(false, 10_000), (false, 100_000), (true, 100_000)] {
        let prefixes = Prefixes { v6, count };
        let mut rows = Vec::new();
        for (name, nexthop) in [
            ("limit, plain routes", false),
            ("limit, nexthop object", true),
        ] {
            let limit = routes::limit(&lab, prefixes, nexthop, REPETITIONS)?;
            rows.push(vec![
                name.to_owned(),
                milliseconds(limit.add),
                milliseconds(limit.remove),
                milliseconds(limit.remove),
                String::new(),
            ]);
        }
        for (name, times) in [
            ("agentd", routes::agent(&lab, prefixes, REPETITIONS)?),
            ("BIRD 2", routes::bird(&lab, prefixes, REPETITIONS)?),
        ] {
            rows.push(vec![
                name.to_owned(),
                milliseconds(median(&times.add)),
                milliseconds(median(&times.withdraw)),
                milliseconds(median(&times.lost)),
                (times.memory_kib / 1024).to_string(),
            ]);
        }
        let family = if v6 { "IPv6 /122" } else { "IPv4 /26" };
        page.table(
            &format!("{count} routes, {family}"),
            &[
                "",
                "in, ms",
                "withdrawn, ms",
                "session lost, ms",
                "peak memory, MiB",
            ],
            &rows,
        );
    }
    page.write("routes")
}
