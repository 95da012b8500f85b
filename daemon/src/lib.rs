//! The agent: node core, address management, store, API and telemetry.

pub mod ctl;
