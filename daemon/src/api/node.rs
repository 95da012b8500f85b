//! `NodeService`.

use agentd_proto::v1::{self, node_service_server::NodeService};
use bgp::{driver::wall_clock, speaker::status::PeerState};
use tonic::{Request, Response, Status};

use super::{Context, render};

#[derive(Clone, Debug)]
pub(super) struct Node(pub(super) Context);

#[tonic::async_trait]
impl NodeService for Node {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let node = self.0.node.status().await?;
        let peers = self.0.network.peers().await;
        let dataplane = self.0.network.dataplane().await?;
        let identity = &self.0.identity;
        let text = |value: Option<String>| value.unwrap_or_default();
        let established = peers
            .iter()
            .filter(|peer| peer.state == PeerState::Established)
            .count();
        Ok(Response::new(v1::GetStatusResponse {
            name: identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(render::timestamp(identity.started_at)),
            ready: node.ready,
            waiting_for: node.waiting_for,
            address: text(identity.address.map(|address| address.to_string())),
            address6: text(identity.address6.map(|address| address.to_string())),
            asn: identity.asn.unwrap_or_default(),
            router_id: text(identity.router_id.map(|id| id.to_string())),
            workloads: node.workloads,
            workloads_failed: node.workloads_failed,
            blocks: node.blocks,
            peers: render::count(peers.len()),
            peers_established: render::count(established),
            routes_learned: render::count(dataplane.learned_routes),
            routes_installed: render::count(dataplane.learned_installed),
            dataplane: Some(v1::Dataplane {
                objects: render::count(dataplane.objects),
                pending: render::count(dataplane.pending),
                failing: render::count(dataplane.failing),
                writes: dataplane.writes,
                repairs: dataplane.repairs,
                conflicts: dataplane.conflicts,
                last_audit_at: dataplane
                    .last_audit
                    .map(|at| render::timestamp(wall_clock(at))),
            }),
        }))
    }
}
