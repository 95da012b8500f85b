//! `docs/benchmarks/README.md` and the chart, from the stored figures.

use std::fmt::Write as _;

use anyhow::Result;
use integration::bench::aims::{BIRD, LIMIT, OTHERS, ROWS};
use integration::bench::results::{self, middle};
use integration::bench::{chart, report};

fn number(value: f64) -> String {
    match value {
        v if v <= 0.0 => "0".into(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn main() -> Result<()> {
    let mut figures = results::load()?;
    // Rows that are made of others.
    for who in ["agentd", LIMIT, BIRD] {
        let value = |id: &str| figures.get(id).and_then(|row| middle(row.get(who)?));
        if let (Some(few), Some(many)) = (value("fib-10k"), value("fib-1m")) {
            let growth = figures.entry("growth-route".into()).or_default();
            growth.insert(who.into(), vec![many / few / 100.0]);
        }
    }
    let value = |id: &str| figures.get(id).and_then(|row| middle(row.get("agentd")?));
    if let (Some(first), Some(last)) = (value("add-first"), value("add-last")) {
        let growth = figures.entry("growth-add".into()).or_default();
        growth.insert("agentd".into(), vec![last / first]);
    }

    let mut text = format!(
        "# Benchmarks\n\nagentd beside the kernel's limit and beside others, all in one run of \
         `./dev bench`: medians, programs taking turns. Each figure's measurement is described in \
         the page that it comes from: [routes](routes.md), [passing](passing.md), \
         [attach](attach.md), [scale](scale.md), [rest](rest.md), [repair](repair.md). \
         `./dev bench --bench routes` measures one of them again; \
         `BENCH_REPETITIONS=N` repeats more or less often than five times, and `BENCH_QUICK=1` \
         shows within minutes whether all of it runs. The stored figures are in \
         [results.json](results.json).\n\n{}\n\n![Chart](chart.svg)\n\n\
         | work | | agentd | limit | BIRD | others | ratio (aim) | |\n|---|---|---|---|---|---|---|---|\n",
        report::machine()
    );
    let (mut met, mut missed, mut open) = (0, 0, 0);
    for row in &ROWS {
        let cell = |who| row.value(&figures, who).map(number).unwrap_or_default();
        let others: Vec<String> = OTHERS
            .iter()
            .filter_map(|who| Some(format!("{who} {}", number(row.value(&figures, who)?))))
            .collect();
        let (own, aims, verdict) = match row.verdict(&figures) {
            None => {
                open += 1;
                (String::new(), "not measured".to_owned(), "")
            }
            Some(verdict) => {
                let texts: Vec<_> = verdict.aims.iter().map(|(text, _)| text.as_str()).collect();
                let outcomes: Vec<_> = verdict.aims.iter().filter_map(|(_, met)| *met).collect();
                let word = if outcomes.is_empty() {
                    ""
                } else if outcomes.contains(&false) {
                    missed += 1;
                    "**missed**"
                } else {
                    met += 1;
                    "met"
                };
                (number(verdict.own), texts.join(", "), word)
            }
        };
        let _ = writeln!(
            text,
            "| {} | {} | {own} | {} | {} | {} | {aims} | {verdict} |",
            row.title,
            row.unit,
            cell(LIMIT),
            cell(BIRD),
            others.join(", "),
        );
    }
    let _ = writeln!(
        text,
        "\n{met} rows meet their aim, {missed} miss it, {open} are not measured. Empty cells: that \
         program does not do this work (OpenBGPD for Linux and GoBGP write no routes to the kernel), \
         or was not asked to because it takes too long."
    );
    let directory = results::directory();
    std::fs::create_dir_all(&directory)?;
    let notes = directory.join("notes.md");
    if let Ok(notes) = std::fs::read_to_string(notes) {
        text.push('\n');
        text.push_str(&notes);
    }
    std::fs::write(directory.join("README.md"), text)?;
    std::fs::write(directory.join("chart.svg"), chart::draw(&figures))?;
    println!("written: {}", directory.join("README.md").display());
    Ok(())
}
