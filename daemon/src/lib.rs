//! The agent: node core, address management, store, API and telemetry, and the operator's tool.

pub mod api;
pub mod config;
pub mod ctl;
pub mod fleet;
pub mod heap;
pub mod ipam;
pub mod node;
pub mod peers;
pub mod runtime;
pub mod store;
pub mod telemetry;
pub mod tunnels;
