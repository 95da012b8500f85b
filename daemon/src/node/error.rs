//! Why a command was refused or failed. `api::error` maps each to its gRPC status; nothing else
//! does.

use std::{net::IpAddr, time::Duration};

use dataplane::linux::listeners::Listener;
use ipnet::IpNet;

use super::spec::WorkloadId;
use crate::ipam::Exhausted;

use crate::fleet::{admin::RemoveError, ops::Failure};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field of the request is malformed. The path is the proto's, such as `addresses[1]`.
    #[error("{field} {text}")]
    Invalid { field: String, text: String },
    #[error(
        "workload {id} exists with another specification: {field} differs; delete it first, or \
         repeat the call as it was"
    )]
    OtherSpec { id: WorkloadId, field: String },
    #[error("address {address} is in use by workload {by}")]
    AddressInUse { address: IpAddr, by: String },
    #[error("port {port} is held by workload {by}")]
    PortInUse { port: String, by: String },
    /// By a program of the node.
    #[error(
        "port {port} cannot be published: a program of the node listens there already \
         ({listener}; `ss -anp sport = :{}` shows which). Publish another port, or the port of an \
         address of the node at which nobody listens",
        listener.port
    )]
    PortListened { port: String, listener: Listener },
    /// Somebody else had it a moment ago.
    #[error("{text}")]
    AddressCooling {
        address: IpAddr,
        text: String,
        retry: Duration,
    },
    #[error("{text}")]
    AddressUnavailable { address: IpAddr, text: String },
    #[error("there is no pool \"{name}\"; configured are: {configured}")]
    PoolNotFound { name: String, configured: String },
    /// The text says why.
    #[error("{text}")]
    PoolDisabled { name: String, text: String },
    /// The text says why for each pool.
    #[error("{text}")]
    NoPool { text: String },
    /// Says which pool, how full, and what would help.
    #[error("{exhausted}{}", held_by(consumers))]
    PoolExhausted {
        exhausted: Box<Exhausted>,
        /// Who holds the addresses that are in use: owners and how many, the greatest first.
        consumers: Vec<(String, u64)>,
    },
    /// No room, and the fleet's store has not given a block in time. The text says what holds it.
    #[error("{text}")]
    BlockPending { pool: String, text: String },
    #[error("there is no node {0} in the fleet's store, and no block of it")]
    NodeNotFound(String),
    /// The fleet's store does not answer.
    #[error("etcd does not answer: {0}")]
    FleetStore(String),
    #[error("there is no network namespace at {name}: {text}")]
    NamespaceNotFound { name: String, text: String },
    #[error(
        "the network namespace {name} is attached already, by workload {by}; a second workload can \
         join it with attachment SHARED"
    )]
    NamespaceAttached { name: String, by: WorkloadId },
    #[error("tap.name {name:?} is in use by {by}")]
    TapInUse { name: String, by: String },
    #[error("there is no bridge {name:?}; configured are: {configured}")]
    BridgeNotFound { name: String, configured: String },
    #[error("the network namespace of workload {with} cannot be shared: {why}")]
    NotShareable { with: WorkloadId, why: String },
    #[error(
        "the network namespace of workload {id} is shared by {}; delete them first",
        list(by)
    )]
    HasSharers { id: WorkloadId, by: Vec<WorkloadId> },
    #[error("there is no workload {0}")]
    WorkloadNotFound(WorkloadId),
    /// What the configuration's reader says of a field of the request.
    #[error("{field}: {text}")]
    InvalidPeer { field: String, text: String },
    /// The text says which there are.
    #[error("there is no BGP peer {name:?}; {text}")]
    PeerNotFound { name: String, text: String },
    #[error("peer {name:?} exists: {text}")]
    PeerExists { name: String, text: String },
    #[error("this node speaks no BGP: its configuration has no [bgp]")]
    NoSpeaker,
    /// Something else must be done first; the text says what.
    #[error("{text}")]
    Precondition { reason: &'static str, text: String },
    /// Every error of the configuration file, one line each.
    #[error("the configuration file is not right, and nothing has changed:\n{text}")]
    Configuration { text: String },
    #[error("interface {interface} is in use inside the namespace: {text}")]
    InterfaceInUse { interface: String, text: String },
    /// A foreign object stands where ours should; it is never touched.
    #[error("something that is not agentd's is in the way: {0}")]
    Conflict(String),
    #[error("agentd lacks a capability (CAP_NET_ADMIN, CAP_SYS_ADMIN): {0}")]
    Permission(String),
    #[error("the kernel refused: {0}")]
    Kernel(String),
    /// The text names the block.
    #[error("{text}")]
    BlockNotReady { block: IpNet, text: String },
    #[error("this node holds no block {0}; `agentctl block list` lists those it holds")]
    BlockNotFound(IpNet),
    #[error("the state could not be stored: {0}")]
    Store(String),
    #[error("workload {0} was deleted while it was being added")]
    Deleted(WorkloadId),
    #[error("{limit} calls are in flight already; try again")]
    Busy { limit: usize },
    #[error("the watcher fell behind by more than {limit} changes; start again")]
    WatcherBehind { limit: usize },
    #[error("workload {0} is programmed, but no peer has its block yet; the workload stays")]
    NotAdvertised(WorkloadId),
    #[error("another stream of the same owner has begun")]
    SyncReplaced,
    #[error("workload {id} is that of {owner}")]
    OtherOwner { id: WorkloadId, owner: String },
    #[error("this node is drained and takes no new workloads; `agentctl undrain` ends that")]
    Drained,
    #[error("agentd is stopping")]
    Stopping,
    #[error("{part} cannot be asked now: {text}")]
    Unavailable { part: &'static str, text: String },
}

/// `; in use by nomad (50), nobody in particular (3)`
fn held_by(consumers: &[(String, u64)]) -> String {
    if consumers.is_empty() {
        return String::new();
    }
    let consumers: Vec<String> = consumers
        .iter()
        .map(|(owner, count)| format!("{owner} ({count})"))
        .collect();
    format!("; in use by {}", consumers.join(", "))
}

fn list(ids: &[WorkloadId]) -> String {
    let names: Vec<&str> = ids.iter().map(WorkloadId::as_str).collect();
    names.join(", ")
}

impl Error {
    pub fn invalid(field: impl Into<String>, text: impl Into<String>) -> Self {
        Error::Invalid {
            field: field.into(),
            text: text.into(),
        }
    }

    /// With the name that was probably meant, and those that there are.
    pub fn peer_not_found<'n>(name: &str, known: impl Iterator<Item = &'n str> + Clone) -> Self {
        const SHOWN: usize = 20;
        let text = match crate::peers::nearest(name, known.clone()) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => {
                let some: Vec<&str> = known.clone().take(SHOWN).collect();
                match (some.is_empty(), known.count().saturating_sub(SHOWN)) {
                    (true, _) => "there are none".to_owned(),
                    (false, 0) => format!("there are: {}", some.join(", ")),
                    (false, more) => format!("there are: {} and {more} more", some.join(", ")),
                }
            }
        };
        Error::PeerNotFound {
            name: name.to_owned(),
            text,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::FleetStore(failure.0)
    }
}

impl From<RemoveError> for Error {
    fn from(error: RemoveError) -> Self {
        let reason = match &error {
            RemoveError::Store(failure) => return failure.clone().into(),
            RemoveError::Unknown(name) => return Error::NodeNotFound(name.clone()),
            RemoveError::Itself(_) => "NODE_IS_THIS_ONE",
            RemoveError::Alive(_) => "NODE_ALIVE",
            RemoveError::Shown { .. } => "BLOCK_IN_BGP",
            RemoveError::CameBack(_) => "NODE_CAME_BACK",
        };
        Error::Precondition {
            reason,
            text: error.to_string(),
        }
    }
}
