//! The node core: which workloads and blocks there are, and what each still waits for.

pub mod error;
pub mod spec;
pub mod view;

pub use error::Error;
pub use spec::{WorkloadId, WorkloadSpec};

/// How far an add is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The kernel state was read back.
    Programmed,
    /// Besides, a peer has the blocks.
    Advertised,
}
