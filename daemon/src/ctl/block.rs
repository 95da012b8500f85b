//! `agentctl block` and `agentctl pool`.

use agentd_proto::v1::{BlockState, ListBlocksRequest, ListPoolsRequest};
use clap::Subcommand;

use super::{
    client::{Client, Error},
    output::Output,
    time,
};

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// List the blocks this node holds
    List {
        /// Only those of this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List the pools of the configuration
    List,
}

pub async fn run_block(
    command: BlockCommand,
    client: &Client,
    out: &mut Output,
) -> Result<(), Error> {
    let BlockCommand::List { pool } = command;
    let request = ListBlocksRequest {
        pool: pool.unwrap_or_default(),
    };
    let response = client.ipam().list_blocks(request).await?.into_inner();
    if out.is_json() {
        return out.json("ListBlocksResponse", &response);
    }
    out.table(
        &[
            "BLOCK", "POOL", "STATE", "SIZE", "USED", "COOLING", "RESERVED", "FREE", "PEERS", "AGE",
        ],
        &[3, 4, 5, 6, 7, 8],
        response.blocks.iter().map(|block| {
            let state = match block.state() {
                BlockState::Unspecified => "unknown",
                BlockState::Claimed => "claimed",
                BlockState::Active => "active",
                BlockState::Releasing => "releasing",
            };
            vec![
                block.cidr.clone(),
                block.pool.clone(),
                state.to_owned(),
                block.size.to_string(),
                block.used.to_string(),
                block.cooling.to_string(),
                block.reserved.to_string(),
                block.free.to_string(),
                block.advertised_to.to_string(),
                time::age(block.claimed_at.as_ref()),
            ]
        }),
    )
}

pub async fn run_pool(
    command: PoolCommand,
    client: &Client,
    out: &mut Output,
) -> Result<(), Error> {
    let PoolCommand::List = command;
    let response = client
        .ipam()
        .list_pools(ListPoolsRequest {})
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("ListPoolsResponse", &response);
    }
    out.table(
        &[
            "POOL", "CIDR", "BLOCK", "STATE", "TUNNEL", "CLAIM", "BLOCKS", "USED", "HELD",
        ],
        &[2, 6, 7, 8],
        response.pools.iter().map(|pool| {
            vec![
                pool.name.clone(),
                pool.cidr.clone(),
                format!("/{}", pool.block_size),
                if pool.disabled { "disabled" } else { "enabled" }.to_owned(),
                match pool.encapsulation_scope.as_str() {
                    "cross-subnet" if pool.encapsulation != "none" => {
                        format!("{} cross-subnet", pool.encapsulation)
                    }
                    _ => pool.encapsulation.clone(),
                },
                pool.claim.join(","),
                format!("{}/{}", pool.blocks_held, pool.blocks_claimable),
                pool.addresses_used.to_string(),
                pool.addresses_held.to_string(),
            ]
        }),
    )
}
