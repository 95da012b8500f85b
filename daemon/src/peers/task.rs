//! The task that owns the running configuration of peers.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use agentd_proto::v1::PeerSpec;
use bgp::{
    driver::{Admin, Handle},
    policy::Policy,
    speaker::{AdminError, config::SpeakerConfig},
};
use ipnet::IpNet;

use super::{
    Command, Ends, Report,
    apply::{Applier, Entry},
    differences,
    merge::{field, has, merge},
    mesh::Mesh,
    saved::{Added, Saved, SavedError},
    spec,
};
use crate::{
    config::{Config, ConfigErrors},
    node::{Error, handle::NodeHandle},
    tunnels::{self, Live},
};

/// RFC 9003 §2: octets of a shutdown text.
const SHUTDOWN_TEXT: usize = 255;

/// See the head of the module.
#[derive(Debug)]
pub struct Manager {
    /// The file with what the API has added, as it is in force.
    pub(super) running: Config,
    /// The file as it was read last.
    text: String,
    saved: Saved,
    pub(super) speaker: Option<Handle>,
    /// To whom a reload tells how pools are reached.
    pub tunnels: Option<Live>,
    /// To whom it tells which pools there are.
    pub node: Option<NodeHandle>,
    pub(super) import_pools: Arc<Policy>,
    pub(super) mesh: Mesh,
}

impl Manager {
    /// Reads what is kept in the state directory, which must be locked, and adds to the
    /// configuration what the API had added.
    pub fn recover(config: &mut Config, text: String) -> Result<Self, SavedError> {
        let saved = Saved::load(&config.node.state_dir)?;
        match merge(&text, &config.file, &saved.added) {
            Ok(merged) => {
                for (name, reason) in merged.left_out {
                    tracing::error!(peer = name, reason, "a peer that the API added is left out");
                }
                *config = merged.config;
            }
            // It was right a moment ago; a password file may have gone since.
            Err(errors) => tracing::error!(%errors, "peers that the API added are left out"),
        }
        let pools: Vec<IpNet> = config.pools.iter().map(|pool| pool.cidr).collect();
        Ok(Self {
            running: config.clone(),
            text,
            saved,
            speaker: None,
            tunnels: None,
            node: None,
            import_pools: Arc::new(Policy::import_pools(&pools)),
            mesh: Mesh::default(),
        })
    }

    /// Marks what is shut down in the configuration that the speaker starts with.
    pub fn mark_shutdowns(&self, config: &mut SpeakerConfig) {
        for peer in &mut config.peers {
            peer.shutdown = self.saved.is_shut_down(&peer.name);
        }
        for range in &mut config.ranges {
            range.peer.shutdown = self.saved.is_shut_down(&range.peer.name);
        }
    }

    /// Carries out commands until every handle is gone.
    pub async fn run(mut self, speaker: Option<Handle>, mut ends: Ends) {
        self.speaker = speaker;
        loop {
            ends.facts.send_replace(Arc::new(self.saved.facts()));
            let command = tokio::select! {
                command = ends.commands.recv() => command,
                Ok(()) = ends.addresses.changed() => {
                    let all = ends.addresses.borrow_and_update().clone();
                    if self.follow_addresses(&all).await {
                        let identity = self.tunnels.as_ref().map(|live| live.identity.clone());
                        ends.identity.send_replace(identity);
                    }
                    continue;
                }
            };
            let Some(command) = command else { return };
            // Whoever asked and went away needs no answer; and facts come before answers.
            let facts = |saved: &Saved| {
                ends.facts.send_replace(Arc::new(saved.facts()));
            };
            match command {
                Command::Add(spec, reply) => {
                    let result = self.add(&spec).await;
                    facts(&self.saved);
                    let _ = reply.send(result);
                }
                Command::Remove(name, reply) => {
                    let result = self.remove(&name).await;
                    facts(&self.saved);
                    let _ = reply.send(result);
                }
                Command::Reset(name, how, reply) => {
                    let _ = reply.send(self.reset(&name, how).await);
                }
                Command::Shutdown(name, text, reply) => {
                    let result = self.shut_down(&name, text).await;
                    facts(&self.saved);
                    let _ = reply.send(result);
                }
                Command::Enable(name, reply) => {
                    let result = self.enable(&name).await;
                    facts(&self.saved);
                    let _ = reply.send(result);
                }
                Command::Mesh(members) => {
                    self.mesh.members = members;
                    self.follow_mesh(self.running.bgp.clone()).await;
                }
                Command::Reload(reply) => {
                    let result = self.reload().await;
                    facts(&self.saved);
                    let _ = reply.send(result);
                }
            }
        }
    }

    /// Where the node's own address follows from those that it has: whether it is another one now.
    async fn follow_addresses(&mut self, all: &[IpAddr]) -> bool {
        let Some(live) = &mut self.tunnels else {
            return false;
        };
        if !live.readdress(&self.running, all).await {
            return false;
        }
        let (address, address6) = (live.identity.address, live.identity.address6);
        tracing::warn!(?address, ?address6, "this node has another address now");
        self.tell_next_hops().await;
        true
    }

    /// Our next hops over sessions of the other family.
    async fn tell_next_hops(&self) {
        if let (Some(speaker), Some(live)) = (&self.speaker, &self.tunnels) {
            let v4 = live.identity.address.map(IpAddr::V4);
            let v6 = tunnels::next_hop6(&live.identity, &self.running.pools);
            speaker.set_next_hop_self([v4, v6]).await;
        }
    }

    /// What "pools" means as an import policy from now on.
    pub(super) fn set_import_pools(&mut self, pools: &[IpNet]) {
        let policy = Policy::import_pools(pools);
        if *self.import_pools != policy {
            self.import_pools = Arc::new(policy);
        }
    }

    fn directory(&self) -> PathBuf {
        self.running.node.state_dir.clone()
    }

    fn speaker(&self) -> Result<Handle, Error> {
        self.speaker.clone().ok_or(Error::NoSpeaker)
    }

    /// Writes what is kept; on an error it is what it was.
    fn store(&mut self, saved: Saved) -> Result<(), Error> {
        let mut saved = saved;
        saved
            .store(&self.directory())
            .map_err(|error| Error::Store(error.to_string()))?;
        self.saved = saved;
        Ok(())
    }

    async fn add(&mut self, spec: &PeerSpec) -> Result<bool, Error> {
        let speaker = self.speaker()?;
        let section = spec::section(spec)?;
        if let Some(added) = self.saved.added.iter().find(|one| one.name == spec.name) {
            let active = has(&self.running, &spec.name);
            if added.section == section && active {
                return Ok(false);
            }
            if added.section != section {
                return Err(Error::PeerExists {
                    name: spec.name.clone(),
                    text: "it was added with other values; remove it first".to_owned(),
                });
            }
        } else if has(&self.running, &spec.name) {
            return Err(Error::PeerExists {
                name: spec.name.clone(),
                text: "it is in the configuration file".to_owned(),
            });
        }
        let entry = self.check(&section, &spec.name)?;
        let mut saved = self.saved.clone();
        saved.added.retain(|one| one.name != spec.name);
        saved.added.push(Added {
            name: spec.name.clone(),
            section,
        });
        let before = self.saved.clone();
        self.store(saved)?;
        let applier = Applier {
            speaker: &speaker,
            import_pools: &self.import_pools,
            reimport: false,
            saved: &self.saved,
        };
        if let Err(error) = applier.add(&entry).await {
            self.store(before)?;
            return Err(refused(error));
        }
        if let Some(bgp) = &mut self.running.bgp {
            match entry {
                Entry::Peer(peer) => bgp.peers.push(peer),
                Entry::Range(range) => bgp.ranges.push(range),
            }
        }
        tracing::info!(peer = spec.name, "peer added by the API");
        Ok(true)
    }

    /// Reads the section as one more of the running configuration.
    fn check(&self, section: &str, name: &str) -> Result<Entry, Error> {
        let mut text = self.text.clone();
        for added in &self.saved.added {
            if added.name != name && has(&self.running, &added.name) {
                text.push('\n');
                text.push_str(&added.section);
            }
        }
        let lines = text.matches('\n').count();
        text.push('\n');
        text.push_str(section);
        let config = Config::parse(&text, &self.running.file).map_err(|errors| {
            let own = errors
                .iter()
                .find(|error| error.line.is_some_and(|line| line > lines));
            match own.or(errors.iter().next()) {
                Some(error) if own.is_some() => {
                    let key = field(&error.key).unwrap_or("");
                    let key = if key == "asn" { "asns" } else { key };
                    Error::InvalidPeer {
                        field: if key.is_empty() {
                            "peer".to_owned()
                        } else {
                            format!("peer.{key}")
                        },
                        text: error.reason.clone(),
                    }
                }
                Some(error) => Error::Precondition {
                    reason: "CONFIGURATION_INVALID",
                    text: format!("the configuration cannot be read as it is now: {error}"),
                },
                None => Error::invalid("peer", "is not right"),
            }
        })?;
        config
            .bgp
            .iter()
            .flat_map(Entry::all)
            .find(|entry| entry.name() == name)
            .ok_or_else(|| Error::invalid("peer.name", "is required"))
    }

    async fn remove(&mut self, name: &str) -> Result<bool, Error> {
        let speaker = self.speaker()?;
        if !self.saved.added.iter().any(|added| added.name == name) {
            if has(&self.running, name) {
                return Err(Error::Precondition {
                    reason: "PEER_IN_CONFIGURATION",
                    text: format!(
                        "peer {name:?} stands in {}; take it out there and reload, or shut it down",
                        self.running.file.display()
                    ),
                });
            }
            if self.mesh.running.contains_key(name) {
                return Err(Error::Precondition {
                    reason: "PEER_IN_MESH",
                    text: format!(
                        "peer {name:?} is a registered node of the mesh; when it is gone for good, \
                         run: agentctl node remove {name}"
                    ),
                });
            }
            // One that came from a range can be let go; else it is gone already.
            return match speaker.remove_peer(name).await {
                Ok(()) => Ok(true),
                Err(AdminError::UnknownPeer(_)) => Ok(false),
                Err(error) => Err(refused(error)),
            };
        }
        let mut saved = self.saved.clone();
        saved.added.retain(|added| added.name != name);
        let from_file = Config::parse(&self.text, &self.running.file);
        let stays = from_file.is_ok_and(|config| has(&config, name));
        if !stays {
            saved.shutdown.remove(name);
        }
        self.store(saved)?;
        if stays {
            // The one of the file is another, and goes on.
            return Ok(true);
        }
        if let Some(bgp) = &mut self.running.bgp {
            bgp.peers.retain(|peer| peer.name != name);
            bgp.ranges.retain(|range| range.peer.name != name);
        }
        match speaker.remove_peer(name).await {
            // It was left out of the configuration.
            Ok(()) | Err(AdminError::UnknownPeer(_)) => {}
            Err(error) => return Err(refused(error)),
        }
        tracing::info!(peer = name, "peer removed by the API");
        Ok(true)
    }

    async fn reset(&self, name: &str, how: Admin) -> Result<(), Error> {
        let speaker = self.speaker()?;
        match speaker.admin(name, how.clone()).await {
            Ok(()) => {
                tracing::info!(peer = name, ?how, "reset by the API");
                Ok(())
            }
            Err(error) => Err(self.explained(error).await),
        }
    }

    async fn shut_down(&mut self, name: &str, text: String) -> Result<(), Error> {
        let speaker = self.speaker()?;
        if text.len() > SHUTDOWN_TEXT {
            return Err(Error::invalid(
                "text",
                format!("has {} bytes; at most {SHUTDOWN_TEXT} are told", text.len()),
            ));
        }
        // Of a peer that came from a range nobody knows after a restart, so only the speaker does.
        if has(&self.running, name) {
            let mut saved = self.saved.clone();
            saved.shut_down(name, &text);
            self.store(saved)?;
        }
        let how = Admin::Shutdown { text: text.clone() };
        match speaker.admin(name, how).await {
            Ok(()) => {
                tracing::info!(peer = name, text, "shut down by the API");
                Ok(())
            }
            Err(error) => Err(self.explained(error).await),
        }
    }

    async fn enable(&mut self, name: &str) -> Result<(), Error> {
        let speaker = self.speaker()?;
        if self.saved.is_shut_down(name) {
            let mut saved = self.saved.clone();
            saved.shutdown.remove(name);
            self.store(saved)?;
        }
        match speaker.admin(name, Admin::Enable).await {
            Ok(()) => {
                tracing::info!(peer = name, "enabled by the API");
                Ok(())
            }
            Err(error) => Err(self.explained(error).await),
        }
    }

    /// An unknown name with those that there are.
    async fn explained(&self, error: AdminError) -> Error {
        let (AdminError::UnknownPeer(name), Some(speaker)) = (&error, &self.speaker) else {
            return refused(error);
        };
        let peers = speaker.peers().await;
        let ranges = speaker.ranges().await;
        let names = peers.iter().map(|peer| peer.name.as_str());
        Error::peer_not_found(name, names.chain(ranges.iter().map(|range| &*range.name)))
    }

    async fn reload(&mut self) -> Result<Report, ConfigErrors> {
        let file = self.running.file.clone();
        let text = Config::read(&file)?;
        let merged = merge(&text, &file, &self.saved.added)?;
        let new = merged.config;
        for (name, reason) in &merged.left_out {
            // One that runs does not end because its password file has gone.
            if has(&self.running, name) && !has(&new, name) {
                return Err(ConfigErrors::of_file(
                    &file,
                    format!("peer \"{name}\", added by the API: {reason}"),
                ));
            }
            tracing::warn!(peer = name, reason, "a peer that the API added is left out");
        }
        // An address that a configured peer takes over must be free.
        let mut bgp = new.bgp.clone();
        if let (Some(bgp), Some(running)) = (&mut bgp, &self.running.bgp) {
            bgp.mesh.clone_from(&running.mesh);
        }
        self.follow_mesh(bgp).await;
        let mut report = Report::default();
        let pools_before = self.import_pools.clone();
        report.changes = self.change_pools(&new).await?;
        let reimport = pools_before != self.import_pools;
        if reimport {
            self.update_mesh().await;
        }
        if let (Some(speaker), Some(running), Some(wanted)) =
            (&self.speaker, &mut self.running.bgp, &new.bgp)
        {
            let applier = Applier {
                speaker,
                import_pools: &self.import_pools,
                reimport,
                saved: &self.saved,
            };
            report.changes.extend(applier.peers(running, wanted).await);
            let more = applier.originations(running, wanted).await;
            report.changes.extend(more);
            self.running.policies.clone_from(&new.policies);
        }
        if let Some(tunnels) = &self.tunnels {
            let changes = tunnels.reload(&mut self.running, &new).await;
            report.changes.extend(changes);
        }
        self.tell_next_hops().await;
        report.needs_restart = differences::needs_restart(&self.running, &new);
        self.text = text;
        self.forget_shutdowns();
        Ok(report)
    }

    /// A peer that is gone and comes back one day is not shut down.
    fn forget_shutdowns(&mut self) {
        let mut saved = self.saved.clone();
        saved.shutdown.retain(|name, _| has(&self.running, name));
        if saved != self.saved
            && let Err(error) = self.store(saved)
        {
            tracing::error!(%error, "what is shut down could not be stored");
        }
    }

    pub fn import_pools(&self) -> &Arc<Policy> {
        &self.import_pools
    }

    /// Where the configuration comes from.
    pub fn file(&self) -> &Path {
        &self.running.file
    }
}

fn refused(error: AdminError) -> Error {
    match error {
        AdminError::UnknownPeer(name) => Error::peer_not_found(&name, std::iter::empty()),
        AdminError::NoRefresh(_) => Error::Precondition {
            reason: "NO_ROUTE_REFRESH",
            text: error.to_string(),
        },
        AdminError::Config(_) | AdminError::OfRange(_) => Error::Precondition {
            reason: "PEER_REFUSED",
            text: error.to_string(),
        },
        AdminError::Password { .. } => Error::Precondition {
            reason: "PASSWORD_REFUSED",
            text: error.to_string(),
        },
        AdminError::Stopped => Error::Stopping,
    }
}
