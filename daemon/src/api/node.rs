//! `NodeService`.

use agentd_proto::v1::{self, node_service_server::NodeService};
use bgp::{driver::wall_clock, speaker::status::PeerState};
use tonic::{Request, Response, Status};

use super::{Context, render};
use crate::{node::Error, peers::Effect};

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

    async fn reload(
        &self,
        _request: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadResponse>, Status> {
        let report = self.0.peers.reload().await?;
        crate::peers::log_reload(&report);
        let report = report.map_err(|errors| Error::Configuration {
            text: errors.to_string(),
        })?;
        Ok(Response::new(v1::ReloadResponse {
            changes: report
                .changes
                .into_iter()
                .map(|change| v1::ReloadChange {
                    subject: change.subject,
                    effect: effect(change.effect).into(),
                    text: change.text,
                })
                .collect(),
            needs_restart: report.needs_restart,
        }))
    }
}

fn effect(effect: Effect) -> v1::reload_change::Effect {
    match effect {
        Effect::Live => v1::reload_change::Effect::Live,
        Effect::NextSession => v1::reload_change::Effect::NextSession,
        Effect::Reset => v1::reload_change::Effect::Reset,
        Effect::Added => v1::reload_change::Effect::Added,
        Effect::Removed => v1::reload_change::Effect::Removed,
        Effect::Failed => v1::reload_change::Effect::Failed,
    }
}
