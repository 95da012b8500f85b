//! The one place that turns an error of the node into a gRPC status.
//!
//! Every status carries a `google.rpc.ErrorInfo` of domain `agentd` with a reason that programs can
//! match; a malformed field also carries a `google.rpc.BadRequest` that names it.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::node::Error;

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
        Error::PoolDisabled { name } => with(
            Code::FailedPrecondition,
            "POOL_DISABLED",
            "pool",
            name.clone(),
        ),
        Error::PoolExhausted { pool, .. } => with(
            Code::ResourceExhausted,
            "POOL_EXHAUSTED",
            "pool",
            pool.clone(),
        ),
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
