//! `IpamService`.

use agentd_proto::v1::{self, ipam_service_server::IpamService};
use tonic::{Request, Response, Status};

use super::{Context, parse, render};
use crate::node::Error;

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
