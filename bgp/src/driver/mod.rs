//! The tokio shell around the speaker: sockets, listeners, TCP MD5, timers.

// The speaker task reads it all once it is here.
#[allow(dead_code)]
mod api;

use tokio::{sync::mpsc, task::JoinHandle};

pub use api::{Admin, Handle, SpawnError, Update, Updates, wall_clock};

use crate::speaker::config::SpeakerConfig;

/// Starts a speaker on the current tokio runtime. Listening sockets are open when this returns; the
/// task ends after [`Handle::shutdown`] or when every handle is dropped.
pub fn spawn(config: SpeakerConfig) -> Result<(Handle, Updates, JoinHandle<()>), SpawnError> {
    config.validate()?;
    let (commands, mut inbox) = mpsc::channel(api::COMMAND_QUEUE);
    let (outbox, updates) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        let _outbox = outbox;
        while inbox.recv().await.is_some() {}
    });
    Ok((Handle { commands }, Updates { updates }, task))
}
