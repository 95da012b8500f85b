//! agentd's gRPC API: messages, clients and servers generated from `agent/v1/*.proto`.
//!
//! Nothing here is written by hand; the documentation of every call, field and error stands in
//! the `.proto` files.

/// Package `agent.v1`.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("agent.v1");
}

/// The encoded `FileDescriptorSet` of this API, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
