//! The full mesh: every registered node with our AS number is a peer.
//!
//! The members come from the fleet's registry; what each peer is comes from `[bgp]`. A node that is
//! away stays a peer: only a removal from the registry ends it. What the configuration or the API
//! says of a peer goes first: a member with the name or the address of such a one is left out.

use std::{collections::BTreeMap, net::IpAddr};

use super::{apply::Entry, task::Manager};
use crate::{
    config::{Bgp, Peer},
    fleet::Member,
    runtime::setup,
};

/// Who is in the mesh, and who this node is in it.
#[derive(Debug, Default)]
pub(super) struct Mesh {
    /// This node.
    pub(super) name: String,
    pub(super) addresses: [Option<IpAddr>; 2],
    pub(super) members: Vec<Member>,
    /// What the speaker was told, by name.
    pub(super) running: BTreeMap<String, Peer>,
}

impl Mesh {
    /// The peers that there should be beside those of the configuration.
    pub(super) fn wanted(&self, bgp: &Bgp) -> BTreeMap<String, Peer> {
        let Some(template) = &bgp.mesh else {
            return BTreeMap::new();
        };
        let others = self
            .members
            .iter()
            .filter(|member| member.name != self.name && member.record.asn == Some(bgp.asn));
        others
            .filter_map(|member| {
                let theirs = [member.record.address, member.record.address6];
                let (own, address) = self
                    .addresses
                    .into_iter()
                    .zip(theirs)
                    .find_map(|(own, address)| Some((own?, address?)))?;
                let taken = Entry::all(bgp).any(|entry| entry.name() == member.name)
                    || bgp.peers.iter().any(|peer| peer.address == address);
                let peer = Peer {
                    name: member.name.clone(),
                    address,
                    local_address: Some(own),
                    ..(**template).clone()
                };
                (!taken).then(|| (member.name.clone(), peer))
            })
            .collect()
    }
}

impl Manager {
    /// What the mesh was when it was last seen: for the start, before any store was asked.
    pub fn remember_mesh(
        &mut self,
        name: &str,
        addresses: [Option<IpAddr>; 2],
        members: Vec<Member>,
    ) {
        self.mesh = Mesh {
            name: name.to_owned(),
            addresses,
            members,
            running: BTreeMap::new(),
        };
        if let Some(bgp) = &self.running.bgp {
            self.mesh.running = self.mesh.wanted(bgp);
        }
    }

    /// The peers of the mesh, for the configuration that the speaker starts with.
    pub fn mesh_peers(&self) -> impl Iterator<Item = &Peer> {
        self.mesh.running.values()
    }

    /// What is taken from peers has changed.
    pub(super) async fn update_mesh(&mut self) {
        let Some(speaker) = &self.speaker else {
            return;
        };
        for peer in self.mesh.running.values() {
            let updated = match setup::peer(peer, &self.import_pools) {
                Ok(config) => speaker
                    .update_peer(config)
                    .await
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = updated {
                tracing::warn!(peer = peer.name, error, "keeps what it took until now");
            }
        }
    }

    /// Tells the speaker who has come and who has gone, as it is with this configuration.
    pub(super) async fn follow_mesh(&mut self, bgp: Option<Bgp>) {
        let (Some(speaker), Some(bgp)) = (self.speaker.clone(), bgp) else {
            return;
        };
        let wanted = self.mesh.wanted(&bgp);
        let running = std::mem::take(&mut self.mesh.running);
        for (name, peer) in running {
            if wanted.get(&name) == Some(&peer) {
                self.mesh.running.insert(name, peer);
                continue;
            }
            // It fails only when the speaker has stopped.
            let _ = speaker.remove_peer(&name).await;
            if !wanted.contains_key(&name) {
                tracing::info!(peer = name, "left the mesh");
            }
        }
        for (name, peer) in wanted {
            if self.mesh.running.contains_key(&name) {
                continue;
            }
            let added = match setup::peer(&peer, &self.import_pools) {
                Ok(config) => speaker
                    .add_peer(config)
                    .await
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match added {
                Ok(()) => {
                    tracing::info!(peer = name, address = %peer.address, "joined the mesh");
                    self.mesh.running.insert(name, peer);
                }
                Err(error) => tracing::warn!(peer = name, error, "cannot be a peer of the mesh"),
            }
        }
    }
}
