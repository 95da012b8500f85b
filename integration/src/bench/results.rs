//! Figures of the last run of each measurement, kept beside the pages: what the table and the chart
//! of `docs/benchmarks` are made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::median;

/// Row, and who was measured: the values of all repetitions.
pub type Figures = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

/// Where pages and figures go: `docs/benchmarks`, or with `BENCH_QUICK` a place where they do not
/// pass for results.
pub fn directory() -> PathBuf {
    if super::is_quick() {
        return std::env::temp_dir().join("agentd-bench-quick");
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks")
}

fn file() -> PathBuf {
    directory().join("results.json")
}

/// All figures so far; none before the first run.
pub fn load() -> Result<Figures> {
    let path = file();
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Figures::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Replaces the values of one row and one program, at once, so that a run that fails later keeps
/// what it has measured.
pub fn record(row: &str, who: &str, values: &[f64]) -> Result<()> {
    let mut figures = load()?;
    let values = values.iter().map(|value| rounded(*value)).collect();
    figures
        .entry(row.to_owned())
        .or_default()
        .insert(who.to_owned(), values);
    std::fs::create_dir_all(directory())?;
    let text = serde_json::to_string_pretty(&figures)?;
    std::fs::write(file(), text + "\n")?;
    Ok(())
}

/// Times, in milliseconds.
pub fn record_times(row: &str, who: &str, times: &[Duration]) -> Result<()> {
    let values: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    record(row, who, &values)
}

/// Memory in MiB.
pub fn record_kib(row: &str, who: &str, kib: &[u64]) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "far from 2^53")]
    let values: Vec<f64> = kib.iter().map(|kib| *kib as f64 / 1024.0).collect();
    record(row, who, &values)
}

/// Four digits are more than a measurement has.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The middle value.
pub fn middle(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let nanoseconds: Vec<Duration> = values
        .iter()
        .map(|value| Duration::from_secs_f64(value.clamp(0.0, 1e9)))
        .collect();
    Some(median(&nanoseconds).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_four_digits_and_the_middle_one_counts() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} and {b}");
        near(rounded(123_456.0), 123_500.0);
        near(rounded(0.012_344_9), 0.012_34);
        near(middle(&[3.0, 1.0, 2.0]).expect("values"), 2.0);
        assert_eq!(middle(&[]), None);
    }
}
