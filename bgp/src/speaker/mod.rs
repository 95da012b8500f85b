//! The speaker: sessions, RIB and configuration as one machine without IO.

pub mod config;
pub mod status;

/// Why an administrative command was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("there is no BGP peer named {0:?}")]
    UnknownPeer(String),
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error("the BGP speaker has stopped")]
    Stopped,
}
