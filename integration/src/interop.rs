//! What was tried with which other BGP speaker, and the table that says so.
//!
//! Each test of `tests/interop` leaves one small file in the directory that the variable
//! [`DIRECTORY_VARIABLE`] names: capability, daemon, its version, and what came out. The table in
//! the documentation is made of these files and of nothing else, so it says what a run said.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::router::Kind;

/// The variable that names the directory of the results; without it none are written.
pub const DIRECTORY_VARIABLE: &str = "AGENTD_INTEROP_RESULTS";

/// Every capability: its name in the tests, and what the table says. The rows of the table.
pub const CAPABILITIES: &[(&str, &str)] = &[
    (
        "sessions",
        "IPv4 and IPv6 sessions, routes both ways, withdrawals",
    ),
    (
        "one_session",
        "both families over one IPv4 session (RFC 4760)",
    ),
    ("four_octet_as", "AS numbers of four octets (RFC 6793)"),
    (
        "communities",
        "communities and large communities both ways (RFC 1997, RFC 8092)",
    ),
    ("md5", "TCP MD5, IPv4 and IPv6 (RFC 2385)"),
    ("gtsm", "TTL security (RFC 5082)"),
    (
        "simultaneous_open",
        "both sides dial at once, again and again: one session (RFC 4271 §6.8)",
    ),
    (
        "storm",
        "a session that is reset again and again comes back",
    ),
    (
        "silence",
        "the peer falls silent: hold timer (RFC 4271 §6.5)",
    ),
    (
        "bad_as",
        "an OPEN that is refused, and its NOTIFICATION (RFC 4271 §6.2)",
    ),
    (
        "refresh_asked",
        "the peer asks for our routes again (RFC 2918)",
    ),
    (
        "refresh_sent",
        "we ask the peer for its routes again (RFC 2918)",
    ),
    (
        "shutdown_in",
        "the peer's shutdown text is shown here (RFC 9003)",
    ),
    (
        "shutdown_out",
        "our shutdown text is shown there (RFC 9003)",
    ),
    (
        "max_prefix_in",
        "the peer sends too much: Cease 6/1 reaches it (RFC 4486)",
    ),
    (
        "max_prefix_out",
        "the peer finds that we send too much: its Cease 6/1 is shown here",
    ),
    (
        "restart_peer",
        "graceful restart: the peer is killed and comes back, its routes stay (RFC 4724)",
    ),
    (
        "restart_agent",
        "graceful restart: agentd is killed and comes back, its routes stay (RFC 4724)",
    ),
    (
        "reflector",
        "agentd reflects between two of them (RFC 4456)",
    ),
    (
        "reflector_client",
        "agentd is a client of a reflector (RFC 4456)",
    ),
    (
        "add_path_in",
        "ADD-PATH: several paths from the peer (RFC 7911)",
    ),
    (
        "add_path_out",
        "ADD-PATH: several paths to the peer (RFC 7911)",
    ),
    (
        "extended_messages",
        "messages of more than 4,096 octets (RFC 8654)",
    ),
    (
        "roles",
        "roles: those that fit, and those that do not (RFC 9234)",
    ),
    ("large_in", "100,000 prefixes from the peer, in the kernel"),
    ("large_out", "100,000 prefixes to the peer"),
];

/// What came out of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// The peer cannot do it; the reason, for the notes below the table.
    NotSupported(&'static str),
}

/// Removes what an earlier run said of this case, so that a failing one says nothing.
pub fn forget(capability: &str, kind: Kind) -> Result<()> {
    if let Some(file) = file(capability, kind)?
        && file.exists()
    {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// Writes down what came out.
pub fn record(capability: &str, kind: Kind, outcome: Outcome) -> Result<()> {
    let Some(file) = file(capability, kind)? else {
        return Ok(());
    };
    let text = match outcome {
        Outcome::Passed => "pass\n".to_owned(),
        Outcome::NotSupported(reason) => format!("no {reason}\n"),
    };
    std::fs::create_dir_all(file.parent().context("no directory")?)?;
    std::fs::write(&file, format!("{}\n{text}", kind.version()?))
        .with_context(|| file.display().to_string())
}

fn file(capability: &str, kind: Kind) -> Result<Option<PathBuf>> {
    ensure!(
        CAPABILITIES.iter().any(|(name, _)| *name == capability),
        "{capability} is not in the list of capabilities"
    );
    let directory = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from);
    Ok(directory.map(|directory| directory.join(format!("{capability}.{kind}"))))
}

/// The page of the documentation, out of the results in this directory.
///
/// # Errors
///
/// When a result is missing, or two runs with different versions are mixed.
pub fn page(directory: &Path) -> Result<String> {
    let mut versions = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    let mut rows = String::new();
    let mut missing = Vec::new();
    for (capability, title) in CAPABILITIES {
        let _ = write!(rows, "| {title} |");
        for kind in Kind::ALL {
            let path = directory.join(format!("{capability}.{kind}"));
            let Ok(text) = std::fs::read_to_string(&path) else {
                missing.push(format!("{capability} with {kind}"));
                continue;
            };
            let (version, outcome) = text
                .trim_end()
                .split_once('\n')
                .context("a result of one line")?;
            match versions.iter().find(|(other, _)| *other == kind) {
                None => versions.push((kind, version.to_owned())),
                Some((_, other)) => ensure!(other == version, "{kind} {version} and {other}"),
            }
            let cell = match outcome.split_once(' ') {
                None if outcome == "pass" => "pass".to_owned(),
                Some(("no", reason)) => {
                    let note = notes.iter().position(|note| note == reason);
                    let number = note.unwrap_or_else(|| {
                        notes.push(reason.to_owned());
                        notes.len() - 1
                    });
                    format!("no [{}]", number + 1)
                }
                _ => bail!("{}: {outcome:?}", path.display()),
            };
            let _ = write!(rows, " {cell} |");
        }
        rows.push('\n');
    }
    ensure!(
        missing.is_empty(),
        "these cases have failed or did not run: {}",
        missing.join(", ")
    );
    let mut page = String::from(
        "# Interoperability\n\n\
         What agentd was tried with, in network namespaces and with real traffic of the real programs as\n\
         Debian 12 ships them. `./dev test` runs all of it and fails when this page differs from what the\n\
         run said; `./dev interop` writes it. The cases are in `integration/tests/interop`.\n\n\
         \"pass\" means that the test passed with that daemon; \"no\", that it was not tried, mostly as the\n\
         daemon cannot do it: the reasons stand below the table.\n\n| |",
    );
    for (kind, version) in &versions {
        let _ = write!(page, " {kind} {version} |");
    }
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(versions.len()));
    page.push('\n');
    page.push_str(&rows);
    page.push('\n');
    for (index, note) in notes.iter().enumerate() {
        let _ = writeln!(page, "{}. {note}", index + 1);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(directory: &Path) {
        for (capability, _) in CAPABILITIES {
            for kind in Kind::ALL {
                let text = match (*capability, kind) {
                    ("md5" | "gtsm", Kind::Frr) => "1.2\nno it has none\n",
                    _ => "1.2\npass\n",
                };
                std::fs::write(directory.join(format!("{capability}.{kind}")), text).expect("file");
            }
        }
    }

    #[test]
    fn the_page_has_a_row_for_each_capability_and_numbers_equal_reasons_once() {
        let directory = tempfile::tempdir().expect("directory");
        results(directory.path());
        let page = page(directory.path()).expect("complete");
        assert_eq!(page.matches("no [1]").count(), 2, "{page}");
        assert_eq!(page.matches("it has none").count(), 1, "{page}");
        let rows = page.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(rows, CAPABILITIES.len() + 1, "{page}");
        assert!(page.contains("| FRR 1.2 |"), "{page}");
    }

    #[test]
    fn a_missing_result_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().expect("directory");
        results(directory.path());
        std::fs::remove_file(directory.path().join("md5.BIRD")).expect("file");
        let error = page(directory.path()).expect_err("incomplete").to_string();
        assert!(error.ends_with(": md5 with BIRD"), "{error}");
    }
}
