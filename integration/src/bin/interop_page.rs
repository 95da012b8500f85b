//! Writes the page on interoperability out of the results of a test run, or checks it.
//!
//! `interop_page RESULTS PAGE [--check]`

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (results, file, check) = match arguments.as_slice() {
        [results, file] => (results, file, false),
        [results, file, check] if check == "--check" => (results, file, true),
        _ => anyhow::bail!("usage: interop_page RESULTS PAGE [--check]"),
    };
    let page = integration::interop::page(Path::new(results))?;
    if !check {
        std::fs::write(file, page).with_context(|| file.clone())?;
        return Ok(true);
    }
    let committed = std::fs::read_to_string(file).with_context(|| file.clone())?;
    for (number, line) in committed.lines().enumerate() {
        if page.lines().nth(number) != Some(line) {
            eprintln!(
                "error: {file} line {} is not what the tests said:",
                number + 1
            );
            eprintln!(
                "- {line}\n+ {}",
                page.lines().nth(number).unwrap_or_default()
            );
        }
    }
    if page != committed {
        eprintln!("error: {file} differs from what the tests said; ./dev interop writes it anew");
    }
    Ok(page == committed)
}
