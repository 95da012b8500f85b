//! How long each kind of kernel object stays wrong after somebody deleted or altered it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use integration::bench::report::{Page, milliseconds};
use integration::bench::{percentile, repair, repetitions, spoilings};
use integration::lab::Lab;

const TIMES: usize = 100;

/// `BENCH_ROWS` names objects, as rows do in their first column.
fn is_asked(object: &str) -> bool {
    std::env::var("BENCH_ROWS").map_or(true, |rows| rows.split(',').any(|row| row == object))
}

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let scene = spoilings::scene(&lab)?;
    let mut page = Page::new(
        "Repair",
        "Somebody deletes or alters an object of the agent on an otherwise idle node. The time runs \
         from the first look of a witness that sees the object wrong to the first that sees \
         everything of its kind as before; the witness looks through raw netlink every tenth of a \
         millisecond. \"Unseen\": right again before the witness looked.",
    );
    let times_each = repetitions(TIMES);
    let mut rows = Vec::new();
    for spoiling in scene.spoilings.iter().filter(|one| is_asked(one.object)) {
        let mut times = Vec::new();
        let mut unseen = 0;
        for _ in 0..times_each {
            repair::settle(&lab, &scene)?;
            std::thread::sleep(Duration::from_millis(5));
            match repair::measure(spoiling)
                .with_context(|| format!("{}, {}", spoiling.object, spoiling.how))
            {
                Ok(Some(time)) => times.push(time),
                Ok(None) => unseen += 1,
                Err(error) => println!("{error:#}"),
            }
        }
        let row = vec![
            spoiling.object.to_owned(),
            spoiling.how.to_owned(),
            milliseconds(percentile(&times, 0.5)),
            milliseconds(percentile(&times, 0.99)),
            milliseconds(percentile(&times, 1.0)),
            format!("{} of {times_each}", times.len()),
            unseen.to_string(),
        ];
        println!("{}", row.join("  "));
        rows.push(row);
    }
    let columns = [
        "object", "what", "p50 ms", "p99 ms", "max ms", "seen", "unseen",
    ];
    page.table("Time until it is right again", &columns, &rows);
    page.write("repair")
}
