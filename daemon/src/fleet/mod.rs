//! The store that a fleet shares: who holds which block, and which nodes there are.
//!
//! [`core::Core`] decides, without IO; [`etcd`] asks etcd; [`task`] connects the two with the rest
//! of the agent; [`admin`] is what operators do with nodes; [`migrate`] moves a node's blocks from
//! one store to the other. `docs/design/fleet.md` says what is kept where, and why no two nodes can
//! hold one block.

pub mod admin;
pub mod claim;
pub mod core;
pub mod etcd;
pub mod keys;
pub mod local;
pub mod migrate;
pub mod ops;
mod registry;
pub mod status;
pub mod task;
#[cfg(test)]
mod tests;

pub use registry::Member;
pub use status::{State, Status};
pub use task::{Event, Handle};
