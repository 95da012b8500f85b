//! What can be said of the store.

use std::time::{Instant, SystemTime};

use ipnet::IpNet;

/// Whether the store answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was not asked yet, or has not answered.
    #[default]
    Connecting,
    Up,
    Down {
        since: Instant,
        /// For a person: what was tried, and what came of it.
        text: String,
    },
}

/// Counters are since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    pub registered: bool,
    /// Why the store does not register this node, for a person.
    pub refused: Option<String>,
    /// Blocks that this node uses.
    pub held: usize,
    /// Claims under way.
    pub claiming: usize,
    /// Blocks that are being given back.
    pub returning: usize,
    /// Blocks that this node uses and another one holds.
    pub lost: Vec<(IpNet, String)>,
    /// Claims under this node's name that another installation has made.
    pub foreign: usize,
    /// Of the registry, when it is followed.
    pub nodes: usize,
    pub nodes_alive: usize,
    pub claims: u64,
    /// Claims whose candidates were all taken.
    pub retries: u64,
    pub returned: u64,
    pub requests: u64,
    pub failures: u64,
    /// Watches that began anew because what they had missed was not kept.
    pub compactions: u64,
}

impl Status {
    pub(super) fn came_up(&mut self, _now: Instant) {
        if self.state != State::Up {
            tracing::info!("the fleet's store answers");
            self.state = State::Up;
        }
    }

    pub(super) fn went_down(&mut self, now: Instant, why: &str) {
        match &mut self.state {
            State::Down { text, .. } if text == why => {}
            State::Down { text, .. } => {
                tracing::debug!(why, "the fleet's store does not answer");
                why.clone_into(text);
            }
            State::Connecting | State::Up => {
                tracing::warn!(
                    why,
                    "the fleet's store does not answer; what this node has goes on"
                );
                self.state = State::Down {
                    since: now,
                    text: why.to_owned(),
                };
            }
        }
    }

    /// Since when it does not answer, as others write it down.
    pub fn down_since(&self) -> Option<SystemTime> {
        match &self.state {
            State::Down { since, .. } => Some(SystemTime::now() - since.elapsed()),
            State::Connecting | State::Up => None,
        }
    }
}
