//! Neighbours that come, change and go, with their TCP MD5 keys on the listening sockets and on
//! running connections.

use std::{io, sync::Arc, time::Instant};

use ipnet::IpNet;
use tokio::net::TcpListener;

use super::{api::Neighbors, connection::Control, socket, speaker_task::SpeakerTask};
use crate::speaker::{
    AdminError, Applied,
    config::{Password, PeerConfig, RangeConfig},
};

/// From where a key is asked for, and which one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'k> {
    pub(super) name: &'k str,
    prefix: IpNet,
    scope_id: u32,
    password: Option<&'k Password>,
}

impl<'k> Key<'k> {
    pub(super) fn of_peer(peer: &'k PeerConfig) -> Self {
        Self {
            name: &peer.name,
            prefix: peer.address.into(),
            scope_id: peer.scope_id,
            password: peer.password.as_ref(),
        }
    }

    pub(super) fn of_range(range: &'k RangeConfig) -> Self {
        Self {
            name: &range.peer.name,
            prefix: range.range,
            scope_id: 0,
            password: range.peer.password.as_ref(),
        }
    }

    /// On all sockets to which the neighbour may connect.
    pub(super) fn set(&self, listeners: &[Arc<TcpListener>]) -> io::Result<()> {
        if self.password.is_none() {
            return Ok(());
        }
        for listener in listeners {
            if socket::listens_for(listener.local_addr()?, self.prefix) {
                socket::set_password(&**listener, self.prefix, self.scope_id, self.password)?;
            }
        }
        Ok(())
    }

    fn clear(&self, listeners: &[Arc<TcpListener>]) {
        if self.password.is_none() {
            return;
        }
        for listener in listeners {
            // It fails only when there was no key.
            let _ = socket::set_password(&**listener, self.prefix, self.scope_id, None);
        }
    }

    fn is_at(&self, other: &Key<'_>) -> bool {
        (self.prefix, self.scope_id) == (other.prefix, other.scope_id)
    }
}

impl Neighbors {
    fn key(&self) -> Key<'_> {
        match self {
            Neighbors::Peer(peer) => Key::of_peer(peer),
            Neighbors::Range(range) => Key::of_range(range),
        }
    }
}

impl SpeakerTask {
    pub(super) fn add(&mut self, now: Instant, neighbors: Neighbors) -> Result<(), AdminError> {
        match neighbors.clone() {
            Neighbors::Peer(peer) => self.speaker.add_peer(now, peer).map(drop)?,
            Neighbors::Range(range) => self.speaker.add_range(now, range)?,
        }
        let key = neighbors.key();
        key.set(&self.listeners).map_err(|error| {
            // Without its key the neighbour could connect unsigned.
            let _ = match &neighbors {
                Neighbors::Peer(peer) => self.speaker.remove_peer(now, &peer.name).map(drop),
                Neighbors::Range(range) => {
                    self.speaker.remove_range(now, &range.peer.name).map(drop)
                }
            };
            failed(&key, &error)
        })
    }

    pub(super) fn remove(&mut self, now: Instant, name: &str) -> Result<(), AdminError> {
        if let Ok(range) = self.speaker.remove_range(now, name) {
            Key::of_range(&range).clear(&self.listeners);
            return Ok(());
        }
        let is_of_range = self.speaker.is_of_range(name);
        let peer = self.speaker.remove_peer(now, name)?;
        if !is_of_range {
            Key::of_peer(&peer).clear(&self.listeners);
        }
        Ok(())
    }

    /// The new key stands before the change, so that nobody can come unsigned, and the old one
    /// comes back when the change is refused.
    pub(super) fn update(
        &mut self,
        now: Instant,
        neighbors: Neighbors,
    ) -> Result<Applied, AdminError> {
        let old = match &neighbors {
            Neighbors::Peer(peer) => {
                let old = self.speaker.peer_config(&peer.name);
                old.map(|peer| Neighbors::Peer((*peer).clone()))
            }
            Neighbors::Range(range) => {
                let old = self.speaker.range_config(&range.peer.name);
                old.map(|range| Neighbors::Range((*range).clone()))
            }
        };
        let new = neighbors.key();
        let Some(old) = old else {
            return Err(AdminError::UnknownPeer(new.name.to_owned()));
        };
        let old = old.key();
        let rekey = !new.is_at(&old) || new.password != old.password;
        if rekey && let Err(error) = new.set(&self.listeners) {
            self.restore(&old, &new);
            return Err(failed(&new, &error));
        }
        let applied = match neighbors.clone() {
            Neighbors::Peer(peer) => self.speaker.update_peer(now, peer),
            Neighbors::Range(range) => self.speaker.update_range(now, range),
        };
        match applied {
            Err(error) => {
                if rekey {
                    self.restore(&old, &new);
                }
                Err(error)
            }
            Ok(applied) => {
                if rekey && (!new.is_at(&old) || new.password.is_none()) {
                    old.clear(&self.listeners);
                }
                if let (true, Some(password)) = (rekey, new.password) {
                    for (connection, peer) in self.speaker.connections_of(new.name) {
                        let password = password.clone();
                        self.tell(connection, Control::Password { peer, password });
                    }
                }
                Ok(applied)
            }
        }
    }

    fn restore(&self, old: &Key<'_>, new: &Key<'_>) {
        new.clear(&self.listeners);
        if let Err(error) = old.set(&self.listeners) {
            tracing::error!(peer = old.name, %error, "the old TCP MD5 key could not be put back");
        }
    }
}

fn failed(key: &Key<'_>, error: &io::Error) -> AdminError {
    AdminError::Password {
        peer: key.name.to_owned(),
        reason: error.to_string(),
    }
}
