//! `NodeService`.

use std::{collections::BTreeMap, time::Duration};

use agentd_proto::v1::{self, node_service_server::NodeService};
use bgp::{driver::wall_clock, speaker::status::PeerState};
use dataplane::desired::Kind;
use tonic::{Request, Response, Status};

use super::{Context, fleet, render};
use crate::{
    node::{Drain, Error, drain::MAX_TIMEOUT},
    peers::Effect,
};

/// When the caller does not say.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

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
        let filter = self.0.network.filter().await?;
        let identity = self.0.peers.identity();
        let identity = identity.as_ref().unwrap_or(&self.0.identity);
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
            drain_state: drain_state(node.drain).into(),
            withdrawn_at: withdrawn_at(node.drain),
            duplicate_claims: node
                .duplicate_claims
                .iter()
                .map(render::duplicate_claim)
                .collect(),
            recovery: Some(render::recovery(&node.recovery)),
            fleet_store: self
                .0
                .fleet
                .as_ref()
                .map(|store| fleet::status(&store.view())),
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
                tunnels: dataplane.tunnels.iter().map(render::tunnel).collect(),
                repaired: repaired(&dataplane.mended, filter.counts.repairs),
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

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let timeout = match request.into_inner().timeout {
            None => DRAIN_TIMEOUT,
            Some(timeout) => Duration::try_from(timeout)
                .ok()
                .filter(|timeout| *timeout <= MAX_TIMEOUT)
                .ok_or_else(|| Error::invalid("timeout", "is not between 0 and 1 h"))?,
        };
        let drain = self.0.node.drain(timeout).await?;
        Ok(Response::new(v1::DrainResponse {
            state: drain_state(drain).into(),
            withdrawn_at: withdrawn_at(drain),
        }))
    }

    async fn list_nodes(
        &self,
        _request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(fleet::list(&self.0).await?))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let name = request.into_inner().name;
        Ok(Response::new(fleet::remove(&self.0, &name).await?))
    }

    async fn undrain(
        &self,
        _request: Request<v1::UndrainRequest>,
    ) -> Result<Response<v1::UndrainResponse>, Status> {
        self.0.node.undrain().await?;
        Ok(Response::new(v1::UndrainResponse {}))
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

/// By kind; that of the filter table has a count of its own.
fn repaired(mended: &[(Kind, u64)], tables: u64) -> BTreeMap<String, u64> {
    let kinds = mended.iter().map(|(kind, count)| (kind.name(), *count));
    kinds
        .chain([("nftables", tables)])
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| (kind.to_owned(), count))
        .collect()
}

fn drain_state(drain: Drain) -> v1::DrainState {
    match drain {
        Drain::Off => v1::DrainState::None,
        Drain::Leaving { .. } => v1::DrainState::Leaving,
        Drain::Left => v1::DrainState::Drained,
    }
}

fn withdrawn_at(drain: Drain) -> Option<prost_types::Timestamp> {
    match drain {
        Drain::Leaving { wall, .. } => Some(render::timestamp(wall)),
        Drain::Off | Drain::Left => None,
    }
}
