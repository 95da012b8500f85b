//! The agent's durable state.

pub mod record;
