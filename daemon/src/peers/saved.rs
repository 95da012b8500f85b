//! What outlives a restart: peers added by the API, and which peers are shut down.
//!
//! One small file, `peers.json` in the state directory, replaced as a whole: written under another
//! name, synced, renamed, and the directory synced. A file that cannot be read stops the start:
//! without it a peer that somebody has shut down would come up.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::store::beside::write_json;

const FILE: &str = "peers.json";
const VERSION: u32 = 1;

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be read: {reason}; it says which peers are shut down and which the API has \
             added, so agentd does not start without it; repair or remove it", path.display())]
    Content { path: PathBuf, reason: String },
}

/// A peer or range that is shut down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    pub name: String,
    pub text: String,
    /// To the second.
    pub at: SystemTime,
}

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    version: u32,
    /// By name.
    pub(super) shutdown: BTreeMap<String, SavedShutdown>,
    /// In the order of their coming.
    pub(super) added: Vec<Added>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedShutdown {
    pub(super) text: String,
    /// Seconds since 1970.
    pub(super) at: u64,
}

/// A peer or range that the API has added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Added {
    pub(super) name: String,
    /// As a section `[[bgp.peer]]` of the configuration.
    pub(super) section: String,
}

impl Saved {
    /// An empty one when there is no file.
    pub(super) fn load(directory: &Path) -> Result<Self, SavedError> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SavedError::Io { path, source }),
        };
        let content = |reason: String| SavedError::Content {
            path: path.clone(),
            reason,
        };
        let saved: Self =
            serde_json::from_str(&text).map_err(|error| content(error.to_string()))?;
        if saved.version != VERSION {
            return Err(content(format!(
                "it is of version {}, and this agentd knows version {VERSION}",
                saved.version
            )));
        }
        Ok(saved)
    }

    /// Durable when it returns.
    pub(super) fn store(&mut self, directory: &Path) -> Result<(), SavedError> {
        self.version = VERSION;
        write_json(directory, FILE, self).map_err(|source| SavedError::Io {
            path: directory.join(FILE),
            source,
        })
    }

    pub(super) fn shut_down(&mut self, name: &str, text: &str) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let entry = SavedShutdown {
            text: text.to_owned(),
            at: since.map_or(0, |since| since.as_secs()),
        };
        self.shutdown.insert(name.to_owned(), entry);
    }

    pub(super) fn is_shut_down(&self, name: &str) -> bool {
        self.shutdown.contains_key(name)
    }

    pub(super) fn facts(&self) -> super::Facts {
        super::Facts {
            added: self.added.iter().map(|added| added.name.clone()).collect(),
            shutdown: self
                .shutdown
                .iter()
                .map(|(name, shutdown)| Shutdown {
                    name: name.clone(),
                    text: shutdown.text.clone(),
                    at: UNIX_EPOCH + Duration::from_secs(shutdown.at),
                })
                .collect(),
        }
    }
}
