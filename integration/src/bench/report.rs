//! Tables of figures: on the terminal as they come, and as a page of `docs/benchmarks`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A page with an introduction and tables.
#[derive(Debug)]
pub struct Page {
    text: String,
}

impl Page {
    pub fn new(title: &str, introduction: &str) -> Self {
        let mut text = format!("# {title}\n\n{introduction}\n\n{}\n", machine());
        text.push_str("\nWritten by `./dev bench`.\n");
        Self { text }
    }

    /// Adds a table and prints it.
    pub fn table(&mut self, title: &str, columns: &[&str], rows: &[Vec<String>]) {
        let mut text = format!("\n## {title}\n\n| {} |\n", columns.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(columns.len()));
        for row in rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        println!("{text}");
        self.text.push_str(&text);
    }

    /// Writes `docs/benchmarks/NAME.md`.
    pub fn write(&self, name: &str) -> Result<()> {
        let path = super::results::directory().join(format!("{name}.md"));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, &self.text).with_context(|| path.display().to_string())?;
        println!("written: {}", path.display());
        Ok(())
    }
}

/// Milliseconds with a sensible number of digits.
pub fn milliseconds(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1e3;
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// One time as a share of another: `0.46 ×`.
pub fn ratio(own: Duration, other: Duration) -> String {
    let other = other.as_secs_f64().max(1e-9);
    format!("{:.2} ×", own.as_secs_f64() / other)
}

/// How many in a second.
pub fn rate(count: usize, duration: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let value = count as f64 / duration.as_secs_f64();
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1e3)
    } else {
        format!("{value:.0}")
    }
}

/// What it was measured on.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
        .unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Machine: {cores} cores of {cpu}, Linux {}.",
        read("/proc/sys/kernel/osrelease").trim()
    )
}
