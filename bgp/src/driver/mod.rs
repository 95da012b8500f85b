//! The tokio shell around the speaker: sockets, listeners, TCP MD5, timers.
//!
//! One task owns the speaker; each connection has a task that reads, decodes and writes. The
//! program talks to it through a [`Handle`] and hears of changes through [`Updates`].

mod api;
mod connection;
mod link;
mod neighbors;
mod socket;
mod speaker_task;

use std::{sync::Arc, time::Instant};

use tokio::{sync::mpsc, task::JoinHandle};

pub use api::{Admin, Handle, SpawnError, Update, Updates, wall_clock};

use self::{
    neighbors::Key,
    speaker_task::{SpeakerTask, UPDATE_QUEUE},
};
use crate::speaker::{Speaker, config::SpeakerConfig};

/// Starts a speaker on the current tokio runtime. Listening sockets are open when this returns; the
/// task ends after [`Handle::shutdown`] or when every handle is dropped.
pub fn spawn(config: SpeakerConfig) -> Result<(Handle, Updates, JoinHandle<()>), SpawnError> {
    config.validate()?;
    let listeners = config
        .listen
        .iter()
        .map(|address| {
            socket::listen(*address)
                .map(Arc::new)
                .map_err(|source| SpawnError::Listen {
                    address: *address,
                    source,
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let peers = config.peers.iter().map(Key::of_peer);
    for key in peers.chain(config.ranges.iter().map(Key::of_range)) {
        key.set(&listeners).map_err(|source| SpawnError::Password {
            peer: key.name.to_owned(),
            source,
        })?;
    }
    let listening = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect();
    let local_asn = config.asn;
    let speaker = Speaker::new(Instant::now(), config)?;
    let (commands, inbox) = mpsc::channel(api::COMMAND_QUEUE);
    let (outbox, updates) = mpsc::channel(UPDATE_QUEUE);
    let task = SpeakerTask::new(speaker, local_asn, listeners, inbox, outbox);
    let task = tokio::spawn(task.run());
    let handle = Handle {
        commands,
        listening,
    };
    Ok((handle, Updates { updates }, task))
}
