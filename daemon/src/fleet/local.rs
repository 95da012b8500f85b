//! What a node keeps of the fleet in its state directory, beside the database: its identity, the
//! store that its blocks are agreed on in, and the nodes it has seen last. With these a node that
//! starts while the store is away has its blocks and its peers.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{keys::NodeRecord, registry::Member};
use crate::{config, store::beside::write_json};

const FILE: &str = "fleet.json";
const VERSION: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Local {
    version: u32,
    /// Of this installation: made once, with the state directory.
    pub identity: String,
    /// Where the blocks of the state are agreed on.
    pub store: Kept,
    /// The registry as it was last seen.
    #[serde(default)]
    pub nodes: Vec<Known>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    Local,
    Etcd,
}

impl From<config::Store> for Kept {
    fn from(store: config::Store) -> Self {
        match store {
            config::Store::Local => Kept::Local,
            config::Store::Etcd => Kept::Etcd,
        }
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kept::Local => "local",
            Kept::Etcd => "etcd",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub name: String,
    pub record: NodeRecord,
}

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not what agentd has written: {reason}; it is left alone", path.display())]
    Content { path: PathBuf, reason: String },
}

impl Local {
    /// `None`: there is none. The directory must be locked.
    pub fn load(directory: &Path) -> Result<Option<Self>, LocalError> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LocalError::Io { path, source }),
        };
        let local: Self = serde_json::from_str(&text).map_err(|error| LocalError::Content {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if local.version != VERSION {
            let reason = format!(
                "it is of version {}, and this agentd knows version {VERSION}",
                local.version
            );
            return Err(LocalError::Content { path, reason });
        }
        Ok(Some(local))
    }

    /// With an identity that nobody else has.
    pub fn new(store: Kept) -> Self {
        let mut random = [0u8; 16];
        let read = File::open("/dev/urandom")
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut random));
        let number = match read {
            Ok(()) => u128::from_ne_bytes(random),
            Err(_) => fastrand::u128(..),
        };
        Local {
            version: VERSION,
            identity: format!("{number:032x}"),
            store,
            nodes: Vec::new(),
        }
    }

    /// Durable when it returns.
    pub fn save(&self, directory: &Path) -> Result<(), LocalError> {
        write_json(directory, FILE, self).map_err(|source| LocalError::Io {
            path: directory.join(FILE),
            source,
        })
    }

    /// What of the registry is kept: not who is alive.
    pub fn remember(&mut self, members: &[Member]) -> bool {
        let nodes: Vec<Known> = members
            .iter()
            .map(|member| Known {
                name: member.name.clone(),
                record: member.record.clone(),
            })
            .collect();
        let changed = nodes != self.nodes;
        self.nodes = nodes;
        changed
    }

    pub fn members(&self) -> Vec<Member> {
        self.nodes
            .iter()
            .map(|known| Member {
                name: known.name.clone(),
                record: known.record.clone(),
                alive: false,
            })
            .collect()
    }
}
