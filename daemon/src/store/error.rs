//! Why the state cannot be opened, or a change cannot be stored.

use std::{io, path::PathBuf};

/// The state directory cannot be used. The agent must not start: without its state it would give
/// out addresses that are in use.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("another agentd {} uses the state directory {}", holder(pid), directory.display())]
    InUse {
        directory: PathBuf,
        /// As the lock file says.
        pid: Option<u32>,
    },
    #[error(
        "{} is not a state file of agentd: {text}; it was left alone. Point node.state_dir \
         elsewhere, or move the file away",
        file.display()
    )]
    Foreign { file: PathBuf, text: String },
    #[error(
        "{} is damaged: {text}; it was left alone. Restore it from a backup; or move it away to \
         start without state, after stopping all workloads of this node",
        file.display()
    )]
    Corrupt { file: PathBuf, text: String },
    #[error(
        "{} has schema version {found}{}, and this agentd knows versions up to {known}; use the \
         agentd that wrote it, or a newer one",
        file.display(),
        written(writer)
    )]
    Schema {
        file: PathBuf,
        found: u64,
        known: u64,
        /// Version of the agent that wrote it, as it says.
        writer: Option<String>,
    },
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    match pid {
        Some(pid) => format!("(pid {pid})"),
        None => "(pid unknown)".to_owned(),
    }
}

fn written(writer: &Option<String>) -> String {
    match writer {
        Some(version) => format!(" (written by agentd {version})"),
        None => String::new(),
    }
}

/// A change could not be stored, and nothing of it was. Trying again later may help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersistError {
    #[error("no space left for {}; free some, then try again", file.display())]
    DiskFull { file: PathBuf },
    #[error("{} cannot be written: {text}", file.display())]
    Failed { file: PathBuf, text: String },
}
