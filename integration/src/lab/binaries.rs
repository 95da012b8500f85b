//! Where the programs under test are.
//!
//! Cargo tells a test the paths of its own package's programs only, so these are looked for: in
//! the directory named by `AGENTD_BIN_DIR`, else beside the running program or above it
//! (`target/PROFILE/deps/test-…` has them two levels up).

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The variable that names the directory of `agentd` and `agentctl`.
pub const DIRECTORY_VARIABLE: &str = "AGENTD_BIN_DIR";

/// The path of one of the project's programs.
///
/// # Errors
///
/// When it was not built; the text says how to build it.
pub fn find(name: &str) -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = match std::env::var_os(DIRECTORY_VARIABLE) {
        Some(directory) => vec![directory.into()],
        None => std::env::current_exe()?
            .ancestors()
            .skip(1)
            .take(2)
            .map(PathBuf::from)
            .collect(),
    };
    for directory in &candidates {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "no program {name} in {candidates:?}: build it with `cargo build -p agentd`, or name its \
         directory in {DIRECTORY_VARIABLE}"
    )
}
