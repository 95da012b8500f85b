//! The one place that turns an error of the node into a gRPC status.
//!
//! Every status carries a `google.rpc.ErrorInfo` of domain `agentd` with a reason that programs can
//! match; a malformed field also carries a `google.rpc.BadRequest` that names it.

use std::{collections::HashMap, time::Duration};

use agentd_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{ipam::Exhausted, node::Error};

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "agentd";

struct Mapped {
    code: Code,
    reason: &'static str,
    metadata: Vec<(&'static str, String)>,
    retry: Option<Duration>,
}

fn mapped(error: &Error) -> Mapped {
    let plain = |code, reason| Mapped {
        code,
        reason,
        metadata: Vec::new(),
        retry: None,
    };
    let with = |code, reason, key, value: String| Mapped {
        code,
        reason,
        metadata: vec![(key, value)],
        retry: None,
    };
    match error {
        Error::Invalid { field, .. } | Error::InvalidPeer { field, .. } => with(
            Code::InvalidArgument,
            "FIELD_INVALID",
            "field",
            field.clone(),
        ),
        Error::OtherSpec { id, field } => Mapped {
            code: Code::AlreadyExists,
            reason: "WORKLOAD_EXISTS",
            metadata: vec![("workload", id.to_string()), ("field", field.clone())],
            retry: None,
        },
        Error::AddressInUse { address, by } => Mapped {
            code: Code::AlreadyExists,
            reason: "ADDRESS_IN_USE",
            metadata: vec![("address", address.to_string()), ("workload", by.clone())],
            retry: None,
        },
        Error::PortInUse { port, by } => Mapped {
            code: Code::AlreadyExists,
            reason: "PORT_IN_USE",
            metadata: vec![("port", port.clone()), ("workload", by.clone())],
            retry: None,
        },
        Error::PortListened { port, listener } => Mapped {
            code: Code::AlreadyExists,
            reason: "PORT_IN_USE",
            metadata: vec![
                ("port", port.clone()),
                ("listener", listener.address.to_string()),
                ("uid", listener.uid.to_string()),
                ("inode", listener.inode.to_string()),
            ],
            retry: None,
        },
        Error::AddressCooling { address, retry, .. } => Mapped {
            code: Code::AlreadyExists,
            reason: "ADDRESS_COOLING",
            metadata: vec![("address", address.to_string())],
            retry: Some(*retry),
        },
        Error::AddressUnavailable { address, .. } => with(
            Code::InvalidArgument,
            "ADDRESS_UNAVAILABLE",
            "address",
            address.to_string(),
        ),
        Error::PoolNotFound { name, .. } => {
            with(Code::NotFound, "POOL_NOT_FOUND", "pool", name.clone())
        }
        Error::PoolDisabled { name, .. } => with(
            Code::FailedPrecondition,
            "POOL_DISABLED",
            "pool",
            name.clone(),
        ),
        Error::NoPool { .. } => plain(Code::ResourceExhausted, "POOL_EXHAUSTED"),
        Error::PoolExhausted {
            exhausted,
            consumers,
        } => exhausted_pool(exhausted, consumers),
        Error::BlockPending { pool, .. } => Mapped {
            retry: Some(Duration::from_secs(1)),
            ..with(Code::Unavailable, "BLOCK_PENDING", "pool", pool.clone())
        },
        Error::FleetStore(_) => plain(Code::Unavailable, "FLEET_STORE_UNREACHABLE"),
        Error::NodeNotFound(name) => with(Code::NotFound, "NODE_NOT_FOUND", "node", name.clone()),
        Error::NamespaceNotFound { name, .. } => with(
            Code::NotFound,
            "NAMESPACE_NOT_FOUND",
            "namespace",
            name.clone(),
        ),
        Error::NamespaceAttached { by, .. } => with(
            Code::FailedPrecondition,
            "NAMESPACE_ATTACHED",
            "workload",
            by.to_string(),
        ),
        Error::TapInUse { name, .. } => with(
            Code::FailedPrecondition,
            "TAP_IN_USE",
            "interface",
            name.clone(),
        ),
        Error::BridgeNotFound { name, .. } => {
            with(Code::NotFound, "BRIDGE_NOT_FOUND", "bridge", name.clone())
        }
        Error::NotShareable { with: of, .. } => with(
            Code::FailedPrecondition,
            "NAMESPACE_NOT_SHAREABLE",
            "workload",
            of.to_string(),
        ),
        Error::HasSharers { by, .. } => with(
            Code::FailedPrecondition,
            "NAMESPACE_SHARED",
            "workloads",
            by.iter()
                .map(|id| id.as_str())
                .collect::<Vec<_>>()
                .join(","),
        ),
        Error::WorkloadNotFound(id) => with(
            Code::NotFound,
            "WORKLOAD_NOT_FOUND",
            "workload",
            id.to_string(),
        ),
        Error::PeerNotFound { name, .. } => {
            with(Code::NotFound, "PEER_NOT_FOUND", "peer", name.clone())
        }
        Error::PeerExists { name, .. } => {
            with(Code::AlreadyExists, "PEER_EXISTS", "peer", name.clone())
        }
        Error::NoSpeaker => plain(Code::FailedPrecondition, "NO_BGP"),
        Error::Precondition { reason, .. } => plain(Code::FailedPrecondition, reason),
        Error::Configuration { .. } => plain(Code::InvalidArgument, "CONFIGURATION_INVALID"),
        Error::InterfaceInUse { interface, .. } => with(
            Code::FailedPrecondition,
            "INTERFACE_IN_USE",
            "interface",
            interface.clone(),
        ),
        Error::Conflict(_) => plain(Code::FailedPrecondition, "FOREIGN_OBJECT"),
        Error::Permission(_) => plain(Code::FailedPrecondition, "CAPABILITY_MISSING"),
        Error::Kernel(_) => plain(Code::Unavailable, "KERNEL_REFUSED"),
        Error::BlockNotReady { block, .. } => with(
            Code::Unavailable,
            "BLOCK_NOT_READY",
            "block",
            block.to_string(),
        ),
        Error::BlockNotFound(block) => with(
            Code::NotFound,
            "BLOCK_NOT_FOUND",
            "block",
            block.to_string(),
        ),
        Error::Store(_) => plain(Code::Unavailable, "STORE_FAILED"),
        Error::Deleted(id) => with(
            Code::Aborted,
            "DELETED_DURING_ADD",
            "workload",
            id.to_string(),
        ),
        Error::Busy { .. } => Mapped {
            retry: Some(Duration::from_millis(100)),
            ..plain(Code::ResourceExhausted, "QUEUE_FULL")
        },
        Error::WatcherBehind { .. } => plain(Code::ResourceExhausted, "WATCHER_BEHIND"),
        Error::NotAdvertised(id) => with(
            Code::DeadlineExceeded,
            "NOT_ADVERTISED",
            "workload",
            id.to_string(),
        ),
        Error::SyncReplaced => plain(Code::Aborted, "SYNC_REPLACED"),
        Error::OtherOwner { owner, .. } => with(
            Code::FailedPrecondition,
            "OTHER_OWNER",
            "owner",
            owner.clone(),
        ),
        Error::Drained => plain(Code::FailedPrecondition, "NODE_DRAINED"),
        Error::Stopping => plain(Code::Unavailable, "STOPPING"),
        Error::Unavailable { part, .. } => with(
            Code::Unavailable,
            "PART_UNAVAILABLE",
            "part",
            (*part).to_owned(),
        ),
    }
}

/// Everything the text says, for programs.
fn exhausted_pool(exhausted: &Exhausted, consumers: &[(String, u64)]) -> Mapped {
    let list = |items: &[String]| items.join(",");
    let claim: Vec<String> = exhausted.claim.iter().map(ToString::to_string).collect();
    let consumers: Vec<String> = consumers
        .iter()
        .map(|(owner, count)| format!("{owner}={count}"))
        .collect();
    let mut metadata = vec![
        ("pool", exhausted.pool.clone()),
        ("cidr", exhausted.cidr.to_string()),
        ("blocks", exhausted.blocks.to_string()),
        ("blocks_releasing", exhausted.blocks_leaving.to_string()),
        ("claim", list(&claim)),
        ("addresses", exhausted.addresses.to_string()),
        ("used", exhausted.used.to_string()),
        ("cooling", exhausted.cooling.to_string()),
        ("reserved", exhausted.reserved.to_string()),
        ("consumers", list(&consumers)),
        ("also_exhausted", list(&exhausted.also)),
        ("help", exhausted.help().join("; ")),
    ];
    if let Some(most) = exhausted.max_blocks {
        metadata.push(("max_blocks", most.to_string()));
    }
    if let Some(next) = exhausted.next_free_in {
        let seconds = next.as_secs_f64().ceil();
        metadata.push(("next_free_seconds", seconds.to_string()));
    }
    Mapped {
        code: Code::ResourceExhausted,
        reason: "POOL_EXHAUSTED",
        metadata,
        retry: exhausted.next_free_in,
    }
}

/// The same as a message of a stream.
pub fn described(error: &Error) -> v1::SyncError {
    let Mapped {
        code,
        reason,
        metadata,
        ..
    } = mapped(error);
    let metadata = metadata.into_iter();
    v1::SyncError {
        code: code.into(),
        message: error.to_string(),
        reason: reason.to_owned(),
        metadata: metadata
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

/// The status of an error, with its details.
pub fn status(error: &Error) -> Status {
    let Mapped {
        code,
        reason,
        metadata,
        retry,
    } = mapped(error);
    let mut details = ErrorDetails::new();
    details.set_error_info(
        reason,
        DOMAIN,
        metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<HashMap<_, _>>(),
    );
    if let Error::Invalid { field, text } | Error::InvalidPeer { field, text } = error {
        details.add_bad_request_violation(field.clone(), text.clone());
    }
    if let Error::AddressUnavailable { text, .. } = error {
        details.add_bad_request_violation("addresses", text.clone());
    }
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, error.to_string(), details)
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        status(&error)
    }
}

/// The name of a code as gRPC writes it, for labels and logs.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
