//! `IpamService`.

use std::net::IpAddr;

use agentd_proto::v1::{self, ipam_service_server::IpamService};
use tonic::{Request, Response, Status};

use super::{Context, parse, render};
use crate::node::{Error, view::PoolOverride};

/// Workloads that an answer names.
const WORKLOADS_NAMED: usize = 1000;

/// Most addresses of one page.
const ADDRESSES: usize = 1000;

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

    async fn list_addresses(
        &self,
        request: Request<v1::ListAddressesRequest>,
    ) -> Result<Response<v1::ListAddressesResponse>, Status> {
        let request = request.into_inner();
        let pool = parse::pool(&request.pool)?;
        let block = parse::prefix("block", &request.block)?;
        let after: Option<IpAddr> = match request.after.as_str() {
            "" => None,
            text => Some(parse::address("after", text)?),
        };
        let limit = match usize::try_from(request.limit).unwrap_or(ADDRESSES) {
            0 => ADDRESSES,
            limit => limit.min(ADDRESSES),
        };
        let uses = self.0.node.address_uses().await?;
        let mut wanted = uses.iter().filter(|usage| {
            pool.as_ref().is_none_or(|pool| usage.pool == *pool)
                && block.is_none_or(|block| usage.block == block)
                && after.is_none_or(|after| usage.address > after)
        });
        let page: Vec<_> = wanted.by_ref().take(limit).collect();
        let more = wanted.next().is_some();
        let last = page.last().filter(|_| more);
        Ok(Response::new(v1::ListAddressesResponse {
            next: last
                .map(|usage| usage.address.to_string())
                .unwrap_or_default(),
            addresses: page.into_iter().map(render::address_use).collect(),
        }))
    }

    async fn release_block(
        &self,
        request: Request<v1::ReleaseBlockRequest>,
    ) -> Result<Response<v1::ReleaseBlockResponse>, Status> {
        let cidr = parse::prefix("cidr", &request.into_inner().cidr)?
            .ok_or_else(|| Error::invalid("cidr", "is empty; it names the block"))?;
        self.0.node.release_block(cidr).await?;
        Ok(Response::new(v1::ReleaseBlockResponse {}))
    }

    async fn check(
        &self,
        _request: Request<v1::CheckRequest>,
    ) -> Result<Response<v1::CheckResponse>, Status> {
        let (report, looks) = super::check::check(&self.0).await?;
        Ok(Response::new(v1::CheckResponse {
            workloads: report.workloads,
            addresses: report.addresses,
            blocks: report.blocks,
            problems: report.problems.iter().map(render::problem).collect(),
            looks,
        }))
    }
}
