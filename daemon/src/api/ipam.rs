//! `IpamService`.

use agentd_proto::v1::{self, ipam_service_server::IpamService};
use tonic::{Request, Response, Status};

use super::{Context, parse, render};
use crate::node::{Error, view::PoolOverride};

/// Workloads that an answer names.
const WORKLOADS_NAMED: usize = 1000;

#[derive(Clone, Debug)]
pub(super) struct Ipam(pub(super) Context);

#[tonic::async_trait]
impl IpamService for Ipam {
    async fn list_pools(
        &self,
        _request: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        let pools = self.0.node.pools().await?;
        let tunnels = self.0.network.dataplane().await?.pools;
        Ok(Response::new(v1::ListPoolsResponse {
            pools: pools
                .iter()
                .map(|pool| render::pool(pool, &tunnels))
                .collect(),
        }))
    }

    async fn set_pool_state(
        &self,
        request: Request<v1::SetPoolStateRequest>,
    ) -> Result<Response<v1::SetPoolStateResponse>, Status> {
        let v1::SetPoolStateRequest { name, state } = request.into_inner();
        let Some(name) = parse::pool(&name)? else {
            return Err(Error::invalid("name", "is required").into());
        };
        let to = match v1::PoolState::try_from(state) {
            Ok(v1::PoolState::Enabled) => None,
            Ok(v1::PoolState::Disabled) => Some(PoolOverride::Disabled),
            Ok(v1::PoolState::Draining) => Some(PoolOverride::Draining),
            _ => {
                let text = "is none of ENABLED (1), DISABLED (2) and DRAINING (3)";
                return Err(Error::invalid("state", text).into());
            }
        };
        let users = self.0.node.set_pool_state(name, to).await?;
        tracing::info!(pool = users.pool.name, state = ?to, "the state of a pool was set");
        let tunnels = self.0.network.dataplane().await?.pools;
        let mut ids: Vec<String> = users
            .workloads
            .iter()
            .map(|(id, _)| id.to_string())
            .collect();
        ids.dedup();
        let workload_count = render::count(ids.len());
        ids.truncate(WORKLOADS_NAMED);
        Ok(Response::new(v1::SetPoolStateResponse {
            pool: Some(render::pool(&users.pool, &tunnels)),
            workloads: ids,
            workload_count,
        }))
    }

    async fn list_blocks(
        &self,
        request: Request<v1::ListBlocksRequest>,
    ) -> Result<Response<v1::ListBlocksResponse>, Status> {
        let wanted = parse::pool(&request.into_inner().pool)?;
        if let Some(name) = &wanted {
            let pools = self.0.node.pools().await?;
            if !pools.iter().any(|pool| pool.name == *name) {
                return Err(Error::PoolNotFound {
                    name: name.clone(),
                    configured: pools
                        .iter()
                        .map(|pool| pool.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                }
                .into());
            }
        }
        let blocks = self.0.node.blocks().await?;
        Ok(Response::new(v1::ListBlocksResponse {
            blocks: blocks
                .iter()
                .filter(|block| wanted.as_ref().is_none_or(|name| block.pool == *name))
                .map(render::block)
                .collect(),
        }))
    }
}
