//! `docs/compliance.md` and the code say the same: what the page names exists, and what the code
//! cites is on the page. What `docs/design` names exists, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                sources(&path, found)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn page() -> Result<String> {
    std::fs::read_to_string(root().join("docs/compliance.md")).context("docs/compliance.md")
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Test functions by the file (or, for `mod.rs` and `main.rs`, the directory) they are in.
fn tests() -> Result<BTreeSet<String>> {
    let mut files = Vec::new();
    for part in ["bgp", "daemon", "dataplane", "integration"] {
        sources(&root().join(part), &mut files)?;
    }
    let mut tests = BTreeSet::new();
    for file in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let module = if matches!(stem.as_ref(), "mod" | "main") {
            let directory = file.parent().and_then(Path::file_name).unwrap_or_default();
            directory.to_string_lossy().into_owned()
        } else {
            stem.into_owned()
        };
        let text = std::fs::read_to_string(&file)?;
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) = line
                .strip_prefix("fn ")
                .or_else(|| line.strip_prefix("async fn "))
            {
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                if is_test {
                    tests.insert(format!("{module}::{name}"));
                }
                is_test = false;
            }
        }
    }
    Ok(tests)
}

/// Checks the files, relative to a directory or the root, and the tests that a page names; returns
/// how many there are of each.
fn check_names(page: &str, directory: &str) -> Result<(usize, usize)> {
    let tests = tests()?;
    let mut wrong = Vec::new();
    let (mut files, mut named) = (0, 0);
    for word in quoted(page) {
        if word.ends_with(".rs") {
            files += 1;
            if !root().join(directory).join(word).exists() && !root().join(word).exists() {
                wrong.push(format!("no file {word}"));
            }
        } else if word.contains("::") && !word.contains(['*', ' ']) {
            named += 1;
            if !tests.contains(word) {
                wrong.push(format!("no test {word}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok((files, named))
}

#[test]
fn every_file_and_test_on_the_page_exists() -> Result<()> {
    let (files, named) = check_names(&page()?, "bgp/src")?;
    ensure!(files > 100 && named > 100, "{files} files, {named} tests");
    Ok(())
}

#[test]
fn every_file_and_test_in_the_design_of_the_dataplane_exists() -> Result<()> {
    let page = std::fs::read_to_string(root().join("docs/design/dataplane.md"))?;
    let (files, named) = check_names(&page, "dataplane/src")?;
    ensure!(files > 20 && named > 2, "{files} files, {named} tests");
    Ok(())
}

/// `RFC 4271 §6.8` and the like, with an empty section where none is named.
fn citations(text: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for part in text.split("RFC ").skip(1) {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        let Ok(rfc) = digits.parse() else { continue };
        let rest = part.get(digits.len()..).unwrap_or_default();
        let section = rest.strip_prefix(" §").map_or(String::new(), |rest| {
            let section: String = rest
                .chars()
                .take_while(|c| c.is_ascii_digit() || *c == '.')
                .collect();
            section.trim_end_matches('.').to_owned()
        });
        found.push((rfc, section));
    }
    found
}

/// Sections that the page names for each RFC: those cited in text, and the cells of its tables.
fn sections(page: &str) -> BTreeMap<u32, BTreeSet<String>> {
    let mut all: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let mut of_heading = None;
    for line in page.lines() {
        let cited = citations(line);
        for (rfc, section) in &cited {
            all.entry(*rfc).or_default().insert(section.clone());
        }
        if line.starts_with("## ") {
            of_heading = cited.first().map(|(rfc, _)| *rfc);
        }
        if let Some(cells) = line.strip_prefix("| ") {
            let mut cells = cells.split(" |");
            let first = cells.next().unwrap_or_default();
            // Either the RFC has a column, or the heading names it.
            let (rfc, cell) = match citations(first).first() {
                Some((rfc, _)) => (Some(*rfc), cells.next().unwrap_or_default()),
                None => (of_heading, first),
            };
            if let Some(rfc) = rfc {
                let sections = cell.split(", ").map(|section| section.trim().to_owned());
                all.entry(rfc).or_default().extend(sections);
            }
        }
        // "RFC 6996 §4 and §5"
        if let Some((rfc, _)) = cited.first() {
            for part in line.split('§').skip(1) {
                let section: String = part
                    .chars()
                    .take_while(|c| c.is_ascii_digit() || *c == '.')
                    .collect();
                let section = section.trim_end_matches('.').to_owned();
                all.entry(*rfc).or_default().insert(section);
            }
        }
    }
    all
}

#[test]
fn every_rfc_and_section_that_bgp_cites_is_on_the_page() -> Result<()> {
    let page = sections(&page()?);
    let mut files = Vec::new();
    sources(&root().join("bgp/src"), &mut files)?;
    let mut missing = BTreeMap::new();
    let mut cited = 0;
    for file in files {
        for (rfc, section) in citations(&std::fs::read_to_string(&file)?) {
            cited += 1;
            let known = page.get(&rfc).is_some_and(|sections| {
                // A part of a section is said with the section, and the other way round.
                section.is_empty()
                    || sections.iter().any(|known| {
                        known == &section
                            || section.starts_with(&format!("{known}.")) && !known.is_empty()
                            || known.starts_with(&format!("{section}."))
                    })
            });
            if !known {
                missing.insert((rfc, section), file.display().to_string());
            }
        }
    }
    ensure!(cited > 200, "only {cited} citations found");
    ensure!(missing.is_empty(), "not on the page: {missing:#?}");
    Ok(())
}
