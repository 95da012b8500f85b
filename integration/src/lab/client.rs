//! The agent's API for tests: blocking calls over its Unix socket.

use std::path::Path;

use agentd_proto::v1;
use agentd_proto::v1::ipam_service_client::IpamServiceClient;
use agentd_proto::v1::node_service_client::NodeServiceClient;
use agentd_proto::v1::routing_service_client::RoutingServiceClient;
use agentd_proto::v1::workload_service_client::WorkloadServiceClient;
use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A connection to one agent. It is made with the first call and again after a restart.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

/// A channel to a Unix socket, connected with the first call.
pub fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    // The address is not used, but an endpoint must have one.
    Ok(
        Endpoint::from_static("http://agentd.invalid").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        ),
    )
}

impl Client {
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("runtime")?;
        let channel = {
            let _inside = runtime.enter();
            channel(socket)?
        };
        Ok(Self { runtime, channel })
    }

    pub fn add(&self, request: v1::AddWorkloadRequest) -> Result<v1::AddWorkloadResponse, Status> {
        let mut client = WorkloadServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.add_workload(request))?;
        Ok(answer.into_inner())
    }

    /// Whether there was something to delete.
    pub fn delete(&self, id: &str) -> Result<bool, Status> {
        let mut client = WorkloadServiceClient::new(self.channel.clone());
        let request = v1::DeleteWorkloadRequest {
            id: id.to_owned(),
            generation: 0,
        };
        let answer = self.runtime.block_on(client.delete_workload(request))?;
        Ok(answer.into_inner().deleted)
    }

    pub fn get(&self, id: &str) -> Result<v1::Workload, Status> {
        let mut client = WorkloadServiceClient::new(self.channel.clone());
        let request = v1::GetWorkloadRequest { id: id.to_owned() };
        let answer = self.runtime.block_on(client.get_workload(request))?;
        answer
            .into_inner()
            .workload
            .ok_or_else(|| Status::internal("answer without a workload"))
    }

    pub fn workloads(&self) -> Result<Vec<v1::Workload>, Status> {
        let mut client = WorkloadServiceClient::new(self.channel.clone());
        let call = client.list_workloads(v1::ListWorkloadsRequest {});
        Ok(self.runtime.block_on(call)?.into_inner().workloads)
    }

    pub fn status(&self) -> Result<v1::GetStatusResponse, Status> {
        let mut client = NodeServiceClient::new(self.channel.clone());
        let call = client.get_status(v1::GetStatusRequest {});
        Ok(self.runtime.block_on(call)?.into_inner())
    }

    pub fn blocks(&self) -> Result<Vec<v1::Block>, Status> {
        let mut client = IpamServiceClient::new(self.channel.clone());
        let call = client.list_blocks(v1::ListBlocksRequest::default());
        Ok(self.runtime.block_on(call)?.into_inner().blocks)
    }

    pub fn peers(&self) -> Result<Vec<v1::Peer>, Status> {
        let mut client = RoutingServiceClient::new(self.channel.clone());
        let call = client.list_peers(v1::ListPeersRequest {});
        Ok(self.runtime.block_on(call)?.into_inner().peers)
    }

    pub fn routes(&self, request: v1::ListRoutesRequest) -> Result<Vec<v1::Route>, Status> {
        let mut client = RoutingServiceClient::new(self.channel.clone());
        self.runtime.block_on(async {
            let mut stream = client.list_routes(request).await?.into_inner();
            let mut routes = Vec::new();
            while let Some(page) = stream.message().await? {
                routes.extend(page.routes);
            }
            Ok(routes)
        })
    }

    pub fn explain(&self, address: &str) -> Result<v1::ExplainResponse, Status> {
        let mut client = RoutingServiceClient::new(self.channel.clone());
        let call = client.explain(v1::ExplainRequest {
            address: address.to_owned(),
        });
        Ok(self.runtime.block_on(call)?.into_inner())
    }
}
