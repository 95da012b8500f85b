//! The fleet's store, connected with the rest of the agent.

use std::{path::Path, sync::Arc};

use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::{
    api::{Identity, fleet::shows, network::Network},
    config::{self, Config},
    fleet::{
        self, Event, Handle, Member,
        core::Settings,
        etcd::Etcd,
        keys::{Keys, NodeRecord},
        local::{Kept, Local, LocalError},
        migrate::shared_blocks,
    },
    node::Node,
    peers::PeersHandle,
    store::Recovered,
};

/// Why the state of this node does not fit the configuration.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(
        "ipam.store is \"{configured}\", and the blocks of this node are kept in the store \
         {kept}; run: agentd --migrate-store --config {file}"
    )]
    OtherStore {
        configured: Kept,
        kept: Kept,
        file: String,
    },
}

/// What this node keeps of the fleet. `None`: it needs nothing.
pub(super) fn recover(config: &Config, recovered: &Recovered) -> Result<Option<Local>, FleetError> {
    let directory: &Path = &config.node.state_dir;
    let configured = Kept::from(config.ipam.store);
    let local = Local::load(directory)?;
    let kept = local.as_ref().map_or(Kept::Local, |local| local.store);
    if kept != configured && !shared_blocks(recovered).is_empty() {
        return Err(FleetError::OtherStore {
            configured,
            kept,
            file: config.file.display().to_string(),
        });
    }
    if local.is_none() && configured == Kept::Local {
        return Ok(None);
    }
    let mut local = local.unwrap_or_else(|| Local::new(configured));
    local.store = configured;
    local.save(directory)?;
    Ok((configured == Kept::Etcd).then_some(local))
}

/// Starts it. `node`: recovered, with the blocks it has.
pub(super) fn spawn(
    config: &Config,
    identity: &Identity,
    local: &Local,
    node: &Node,
) -> Option<(Handle, mpsc::Receiver<Event>)> {
    let etcd: &config::Etcd = config.ipam.etcd.as_ref()?;
    let record = NodeRecord {
        identity: local.identity.clone(),
        address: identity.address.map(Into::into),
        address6: identity.address6.map(Into::into),
        asn: identity.asn,
        labels: config.node.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let seed = fleet::claim::hash(&[identity.name.as_bytes(), local.identity.as_bytes()]);
    let settings = Settings {
        keys: Keys::new(&etcd.prefix),
        node: identity.name.clone(),
        record,
        lease: etcd.lease,
        follow: config.bgp.as_ref().is_some_and(|bgp| bgp.mesh.is_some()),
        reclaim_after: etcd.reclaim_after,
        seed: seed ^ u64::from(std::process::id()),
    };
    let client = Etcd::new(etcd.clone(), seed);
    Some(fleet::task::spawn(settings, client, node.remote_blocks()))
}

/// Carries what the store says: about blocks to the node's task, about nodes to the mesh.
pub(super) struct Carrier {
    pub(super) handle: Handle,
    pub(super) local: Local,
    pub(super) directory: std::path::PathBuf,
    pub(super) peers: PeersHandle,
    pub(super) network: Arc<dyn Network>,
    pub(super) to_node: mpsc::Sender<Event>,
}

impl Carrier {
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Nodes(members) => self.nodes(members).await,
                Event::Reclaim(name) => self.reclaim(name),
                Event::Acquired { .. } | Event::AcquireFailed { .. } | Event::Lost { .. } => {
                    if self.to_node.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn nodes(&mut self, members: Vec<Member>) {
        // Without it a restart while etcd is away would not know the peers.
        if self.local.remember(&members)
            && let Err(error) = self.local.save(&self.directory)
        {
            tracing::error!(%error, "the nodes of the mesh could not be written down");
        }
        self.peers.mesh(members).await;
    }

    fn reclaim(&self, name: String) {
        let (handle, network) = (self.handle.clone(), self.network.clone());
        tokio::spawn(async move {
            let shown = |block: IpNet| shows(network.clone(), block);
            match handle.remove_node(&name, shown).await {
                Ok(blocks) => {
                    let blocks = blocks.len();
                    tracing::warn!(node = name, blocks, "removed: it was away for too long");
                }
                Err(fleet::admin::RemoveError::Unknown(_)) => {}
                Err(error) => tracing::warn!(node = name, %error, "away for too long, and kept"),
            }
        });
    }
}
