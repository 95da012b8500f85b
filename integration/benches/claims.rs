//! How fast a fleet claims blocks: a thousand agents at once, against one etcd.

use anyhow::Result;
use integration::bench::claims::{Agents, inside};
use integration::bench::report::Page;
use integration::lab::Lab;
use integration::lab::fleet::Fleet;

const AGENTS: usize = 1_000;

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let fleet = Fleet::start(&lab, 1, false)?;
    let endpoints = fleet.etcd.endpoints();
    let rows = inside(fleet.etcd.namespace(), move || {
        let mut agents = Agents::start(&endpoints, "node", AGENTS)?;
        let mut rows = Vec::new();
        for (what, pool, each) in [
            (
                "a pool with room, 10.0.0.0/12 (16,384 blocks)",
                "10.0.0.0/12",
                1,
            ),
            ("the same, once more", "10.0.0.0/12", 1),
            (
                "a pool that becomes full, 10.64.0.0/16 (1,024 blocks)",
                "10.64.0.0/16",
                1,
            ),
        ] {
            let outcome = agents.claim(pool.parse()?, 26, each)?;
            let claims = outcome.blocks.len();
            let row = vec![
                what.to_owned(),
                claims.to_string(),
                format!("{:.2}", outcome.took.as_secs_f64()),
                format!("{:.0}", claims as f64 / outcome.took.as_secs_f64()),
                format!("{:.3}", outcome.retries as f64 / claims as f64),
                format!("{:.2}", outcome.requests as f64 / claims as f64),
                outcome.failures.to_string(),
            ];
            println!("{}", row.join("  "));
            rows.push(row);
        }
        Ok(rows)
    })?;
    let mut page = Page::new(
        "Claims",
        "A thousand agents, as tasks of one process with the agent's own code, claim a block of one \
         pool at the same moment. One member of etcd 3.4 from Debian runs on the same machine. A \
         retry is a transaction that found all of its four candidates taken.",
    );
    let columns = [
        "pool",
        "claims",
        "seconds",
        "claims/s",
        "retries per claim",
        "requests per claim",
        "without an answer",
    ];
    page.table("1,000 agents at once", &columns, &rows);
    page.write("claims")
}
