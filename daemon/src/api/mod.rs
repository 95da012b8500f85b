//! The gRPC API: services over the node's task, the speaker and the dataplane, with health and
//! reflection.
//!
//! Handlers hold no state of their own. They parse a request into domain types, ask the part that
//! knows, and render the answer.

pub mod access;
mod attachment;
mod authority;
mod check;
pub mod error;
mod explain;
pub(crate) mod fleet;
mod ipam;
pub mod namespace;
pub mod network;
mod node;
pub mod parse;
mod peers;
pub mod render;
mod render_peers;
pub mod render_routing;
mod routing;
pub mod socket;
mod sync;
#[cfg(test)]
mod tests;
mod workload;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use agentd_proto::v1::{
    ipam_service_server::IpamServiceServer, node_service_server::NodeServiceServer,
    routing_service_server::RoutingServiceServer, workload_service_server::WorkloadServiceServer,
};
use tokio::net::UnixListener;
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::Server;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};

use self::network::Network;
use crate::{node::handle::NodeHandle, peers::PeersHandle, telemetry::metrics::Metrics};

/// Largest request taken, in bytes. An add with 64 labels of full length has about 20 KiB.
const MAX_REQUEST: usize = 256 * 1024;

/// Services whose health is reported, besides "" for the whole agent.
pub const SERVICES: [&str; 4] = [
    "agent.v1.WorkloadService",
    "agent.v1.IpamService",
    "agent.v1.RoutingService",
    "agent.v1.NodeService",
];

/// Who this agent is; fixed at start.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: String,
    pub started_at: SystemTime,
    pub address: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub asn: Option<u32>,
    pub router_id: Option<Ipv4Addr>,
}

/// What the services work with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub node: NodeHandle,
    pub network: Arc<dyn Network>,
    pub peers: PeersHandle,
    pub identity: Arc<Identity>,
    pub metrics: Arc<Metrics>,
    /// `None`: ownership of blocks is a matter of the configuration.
    pub fleet: Option<crate::fleet::Handle>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Reports readiness to `grpc.health.v1`.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// The services that read answer from the start; those that change or show the state of the
    /// node serve once it is ready.
    pub async fn set(&self, ready: bool) {
        let status = |serving| {
            if serving {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            }
        };
        self.0.set_service_status("", status(ready)).await;
        for service in SERVICES {
            let serving = ready || service == "agent.v1.NodeService";
            self.0.set_service_status(service, status(serving)).await;
        }
    }

    /// Nothing serves any more.
    pub async fn stopping(&self) {
        for service in SERVICES.into_iter().chain([""]) {
            self.0
                .set_service_status(service, ServingStatus::NotServing)
                .await;
        }
    }
}

/// Serves the API on the listener until `stop` resolves; calls on their way then may finish.
/// Returns the health reporter and the server's future.
pub async fn server(
    listener: UnixListener,
    context: Context,
    stop: impl Future<Output = ()> + Send + 'static,
) -> (
    Health,
    impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
) {
    let (reporter, health_service) = health_reporter();
    let health = Health(reporter);
    health.set(false).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(agentd_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_service(health_service)
        .add_service(
            reflection()
                .build_v1()
                .expect("the descriptor set was made by the build of this crate"),
        )
        .add_service(
            reflection()
                .build_v1alpha()
                .expect("the descriptor set was made by the build of this crate"),
        )
        .add_service(
            WorkloadServiceServer::new(workload::Workloads(context.clone()))
                .max_decoding_message_size(MAX_REQUEST)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(
            IpamServiceServer::new(ipam::Ipam(context.clone()))
                .max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            RoutingServiceServer::new(routing::Routing(context.clone()))
                .max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            NodeServiceServer::new(node::Node(context)).max_decoding_message_size(MAX_REQUEST),
        );
    let incoming =
        UnixListenerStream::new(listener).map(|stream| stream.map(authority::Tolerant::new));
    (health, router.serve_with_incoming_shutdown(incoming, stop))
}
