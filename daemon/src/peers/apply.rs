//! From one set of peers to another while the speaker runs.

use std::{collections::HashMap, sync::Arc};

use bgp::{
    driver::Handle,
    policy::Policy,
    rib::LocalRoute,
    speaker::{AdminError, Applied},
};
use ipnet::IpNet;

use super::{
    differences,
    reload::{Change, Effect},
    saved::Saved,
};
use crate::{
    config::{Bgp, ImportPolicy, Peer, PeerRange},
    runtime::setup,
};

/// One neighbour or range, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Peer(Peer),
    Range(PeerRange),
}

impl Entry {
    pub(super) fn all(bgp: &Bgp) -> impl Iterator<Item = Entry> {
        let peers = bgp.peers.iter().cloned().map(Entry::Peer);
        peers.chain(bgp.ranges.iter().cloned().map(Entry::Range))
    }

    pub(super) fn name(&self) -> &str {
        &self.peer().name
    }

    fn peer(&self) -> &Peer {
        match self {
            Entry::Peer(peer) => peer,
            Entry::Range(range) => &range.peer,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Entry::Peer(_) => "peer",
            Entry::Range(_) => "range",
        }
    }

    fn subject(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// Whether the one can become the other. With another address it is another neighbour.
    fn is_same(&self, other: &Entry) -> bool {
        match (self, other) {
            (Entry::Peer(one), Entry::Peer(other)) => one.address == other.address,
            (Entry::Range(_), Entry::Range(_)) => true,
            _ => false,
        }
    }

    fn differences(&self, other: &Entry) -> String {
        let mut text = differences::of_peers(self.peer(), other.peer());
        if let (Entry::Range(one), Entry::Range(other)) = (self, other) {
            let only_range = one.peer == other.peer;
            let mut own = Vec::new();
            if one.range != other.range {
                own.push("range");
            }
            if one.limit != other.limit {
                own.push("limit");
            }
            if only_range {
                text.clear();
            }
            if !own.is_empty() && !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(&own.join(", "));
        }
        text
    }
}

/// What tells the speaker.
pub(super) struct Applier<'a> {
    pub(super) speaker: &'a Handle,
    pub(super) import_pools: &'a Arc<Policy>,
    /// `import_pools` is another than before.
    pub(super) reimport: bool,
    pub(super) saved: &'a Saved,
}

impl Applier<'_> {
    pub(super) async fn add(&self, entry: &Entry) -> Result<(), AdminError> {
        match entry {
            Entry::Peer(peer) => {
                let mut config = setup::peer(peer, self.import_pools)?;
                config.shutdown = self.saved.is_shut_down(&peer.name);
                self.speaker.add_peer(config).await
            }
            Entry::Range(range) => {
                let mut config = setup::range(range, self.import_pools)?;
                config.peer.shutdown = self.saved.is_shut_down(&range.peer.name);
                self.speaker.add_range(config).await
            }
        }
    }

    async fn update(&self, entry: &Entry) -> Result<Applied, AdminError> {
        match entry {
            Entry::Peer(peer) => {
                let mut config = setup::peer(peer, self.import_pools)?;
                config.shutdown = self.saved.is_shut_down(&peer.name);
                self.speaker.update_peer(config).await
            }
            Entry::Range(range) => {
                let mut config = setup::range(range, self.import_pools)?;
                config.peer.shutdown = self.saved.is_shut_down(&range.peer.name);
                self.speaker.update_range(config).await
            }
        }
    }

    /// Makes `running` what `new` is. What fails stays as it was in `running`, and is in the
    /// changes.
    pub(super) async fn peers(&self, running: &mut Bgp, new: &Bgp) -> Vec<Change> {
        let mut before: HashMap<String, Entry> = Entry::all(running)
            .map(|entry| (entry.name().to_owned(), entry))
            .collect();
        let wanted: Vec<Entry> = Entry::all(new).collect();
        let mut changes = Vec::new();
        let mut now: HashMap<String, Entry> = HashMap::new();
        // What goes makes room for what comes.
        let mut replaced = Vec::new();
        for old in Entry::all(running) {
            let new = wanted.iter().find(|entry| entry.name() == old.name());
            if new.is_some_and(|new| old.is_same(new)) {
                continue;
            }
            // It fails only when the speaker has stopped.
            let _ = self.speaker.remove_peer(old.name()).await;
            before.remove(old.name());
            if new.is_some() {
                replaced.push(old);
            } else {
                changes.push(Change {
                    subject: old.subject(),
                    effect: Effect::Removed,
                    text: String::new(),
                });
            }
        }
        // A change can need another one first: an address that becomes free, a password that goes.
        let mut pending = wanted.clone();
        let mut reasons: HashMap<String, String> = HashMap::new();
        loop {
            let mut left = Vec::new();
            let count = pending.len();
            for entry in pending {
                let name = entry.name().to_owned();
                let old = before.get(&name);
                let unchanged = old == Some(&entry);
                if unchanged && !(self.reimport && entry.peer().import == ImportPolicy::Pools) {
                    now.insert(name, entry);
                    continue;
                }
                let result = match old {
                    Some(_) => self.update(&entry).await.map(|applied| match applied {
                        Applied::Unchanged | Applied::Live => Effect::Live,
                        Applied::NextSession => Effect::NextSession,
                        Applied::Reset => Effect::Reset,
                    }),
                    None => self.add(&entry).await.map(|()| Effect::Added),
                };
                match result {
                    // Only the pools are others, and they are reported themselves.
                    Ok(_) if unchanged => {
                        now.insert(name, entry);
                    }
                    Ok(effect) => {
                        let replaced = replaced.iter().find(|old| old.name() == name);
                        let text = old.or(replaced).map(|old| old.differences(&entry));
                        changes.push(Change {
                            subject: entry.subject(),
                            effect: match replaced {
                                Some(_) => Effect::Reset,
                                None => effect,
                            },
                            text: text.unwrap_or_default(),
                        });
                        now.insert(name, entry);
                    }
                    Err(error) => {
                        reasons.insert(name, error.to_string());
                        left.push(entry);
                    }
                }
            }
            if left.is_empty() || left.len() == count {
                pending = left;
                break;
            }
            pending = left;
        }
        for entry in pending {
            let name = entry.name();
            changes.push(Change {
                subject: entry.subject(),
                effect: Effect::Failed,
                text: reasons.remove(name).unwrap_or_default(),
            });
            if let Some(old) = before.get(name) {
                now.insert(name.to_owned(), old.clone());
            }
        }
        running.peers.clear();
        running.ranges.clear();
        for entry in wanted {
            match now.remove(entry.name()) {
                Some(Entry::Peer(peer)) => running.peers.push(peer),
                Some(Entry::Range(range)) => running.ranges.push(range),
                None => {}
            }
        }
        changes
    }

    /// Prefixes that the configuration announces beside the blocks.
    pub(super) async fn originations(&self, running: &mut Bgp, new: &Bgp) -> Vec<Change> {
        let is_in = |list: &[(IpNet, LocalRoute)], prefix: &IpNet| {
            list.iter().any(|(other, _)| other == prefix)
        };
        let mut changes = Vec::new();
        let mut change = |prefix: &IpNet, effect| {
            changes.push(Change {
                subject: format!("originate {prefix}"),
                effect,
                text: String::new(),
            });
        };
        let mut gone = Vec::new();
        for (prefix, _) in &running.originate {
            if !is_in(&new.originate, prefix) {
                gone.push(*prefix);
                change(prefix, Effect::Removed);
            }
        }
        let mut come = Vec::new();
        for one in &new.originate {
            if !running.originate.contains(one) {
                come.push(one.clone());
                let known = is_in(&running.originate, &one.0);
                change(&one.0, if known { Effect::Live } else { Effect::Added });
            }
        }
        self.speaker.originate_routes(come).await;
        self.speaker.withdraw(gone).await;
        running.originate.clone_from(&new.originate);
        changes
    }
}
