//! What the agent says about itself: log, metrics, service manager.

pub mod log;
pub mod metrics;
pub mod notify;
pub mod serve;
