//! The work that must stay cheap does not get dearer unnoticed: instructions are counted by
//! callgrind, which counts the same on every machine and under any load.
//!
//! The expected counts stand in `docs/benchmarks/instructions.txt`; they are of the build that tests
//! use. `AGENTD_INSTRUCTIONS=write` writes those of this build there, after a change that is meant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// More than hash seeds and compilers of one year make of the same source.
const TOLERANCE: f64 = 1.15;
const WORK: [&str; 7] = [
    "measured_decode_one",
    "measured_decode_many",
    "measured_encode",
    "measured_export",
    "measured_best_path",
    "measured_allocate",
    "measured_plan",
];

fn expected_file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks/instructions.txt")
}

/// Runs all of the work once; instructions by function.
fn count() -> Result<BTreeMap<String, u64>> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("out");
    let mut command = Command::new("valgrind");
    command
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()));
    for name in WORK {
        command.arg(format!("--zero-before={name}"));
        command.arg(format!("--dump-after={name}"));
    }
    let output = command
        .arg(env!("CARGO_BIN_EXE_measured_work"))
        .output()
        .context("valgrind (./dev setup installs it)")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut counts = BTreeMap::new();
    for entry in std::fs::read_dir(directory.path())? {
        let text = std::fs::read_to_string(entry?.path())?;
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("desc: Trigger: --dump-after="));
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        if let (Some(name), Some(total)) = (name, total) {
            counts.insert(name.trim().to_owned(), total.trim().parse()?);
        }
    }
    ensure!(counts.len() == WORK.len(), "only {counts:?}");
    Ok(counts)
}

#[test]
fn measured_work_takes_no_more_instructions_than_it_did() -> Result<()> {
    let counts = count()?;
    let path = expected_file();
    if std::env::var("AGENTD_INSTRUCTIONS").is_ok_and(|value| value == "write") {
        let mut text = String::from(
            "# Instructions of measured_work, debug build; see integration/tests/instructions.rs\n",
        );
        for name in WORK {
            let _ = writeln!(text, "{name} {}", counts.get(name).context(name)?);
        }
        std::fs::write(path, text)?;
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut dearer = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, expected) = line.split_once(' ').context("NAME COUNT")?;
        let expected: f64 = expected.parse()?;
        let count = *counts.get(name).context("work that is not measured")?;
        #[expect(clippy::cast_precision_loss, reason = "far from 2^53")]
        let ratio = count as f64 / expected;
        println!("{name}: {count}, {ratio:.3} of what was expected");
        if ratio > TOLERANCE {
            dearer.push(format!("{name} takes {ratio:.2} times as many"));
        }
    }
    ensure!(dearer.is_empty(), "{dearer:#?}");
    Ok(())
}
