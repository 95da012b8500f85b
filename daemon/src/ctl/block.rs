//! `agentctl block` and `agentctl pool`.

use std::time::{Duration, Instant};

use agentd_proto::v1::{
    BlockState, ListBlocksRequest, ListPoolsRequest, Pool, PoolState, ReleaseBlockRequest,
    SetPoolStateRequest,
};
use clap::Subcommand;
use tonic::Status;

use super::{
    client::{Client, Error},
    output::{Output, printable},
    time,
};

/// Workloads that a line names.
const WORKLOADS_SHOWN: usize = 10;

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// List the blocks this node holds
    List {
        /// Only those of this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
    },
    /// Give an empty block back: withdraw it, and forget it
    Release {
        #[arg(value_name = "CIDR")]
        cidr: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List the pools of the configuration
    List,
    /// Show all that is known of one pool
    Show { name: String },
    /// Take addresses from the pool again, as the configuration has it
    Enable { name: String },
    /// Take no new addresses from the pool on this node; workloads keep theirs
    Disable { name: String },
    /// Besides, give its blocks back as soon as they are empty
    Drain {
        name: String,
        /// Wait until its last block is given back, for so many seconds at most
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
    },
}

pub async fn run_block(
    command: BlockCommand,
    client: &Client,
    out: &mut Output,
) -> Result<(), Error> {
    let pool = match command {
        BlockCommand::List { pool } => pool,
        BlockCommand::Release { cidr } => {
            let request = ReleaseBlockRequest { cidr: cidr.clone() };
            let response = client.ipam().release_block(request).await?.into_inner();
            return match out.is_json() {
                true => out.json("ReleaseBlockResponse", &response),
                false => out.line(format!("block {cidr} is released")),
            };
        }
    };
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
    match command {
        PoolCommand::List => list_pools(client, out).await,
        PoolCommand::Show { name } => show_pool(&name, client, out).await,
        PoolCommand::Enable { name } => {
            set_state(name, PoolState::Enabled, None, client, out).await
        }
        PoolCommand::Disable { name } => {
            set_state(name, PoolState::Disabled, None, client, out).await
        }
        PoolCommand::Drain { name, wait } => {
            set_state(name, PoolState::Draining, wait, client, out).await
        }
    }
}

fn state(pool: &Pool) -> String {
    match pool.state() {
        // An older agent.
        PoolState::Unspecified if pool.disabled => "disabled",
        PoolState::Unspecified | PoolState::Enabled => "enabled",
        PoolState::Disabled => "disabled",
        PoolState::Draining => "draining",
        PoolState::OtherNodes => "other nodes",
        PoolState::Removed => "removed",
    }
    .to_owned()
}

fn tunnel(pool: &Pool) -> String {
    match pool.encapsulation_scope.as_str() {
        "cross-subnet" if pool.encapsulation != "none" => {
            format!("{} cross-subnet", pool.encapsulation)
        }
        _ => pool.encapsulation.clone(),
    }
}

async fn show_pool(name: &str, client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client
        .ipam()
        .list_pools(ListPoolsRequest {})
        .await?
        .into_inner();
    let names: Vec<&str> = response
        .pools
        .iter()
        .map(|pool| pool.name.as_str())
        .collect();
    let Some(pool) = response.pools.iter().find(|pool| pool.name == name) else {
        let text = format!(
            "there is no pool {name:?}; configured are: {}",
            names.join(", ")
        );
        return Err(Status::not_found(text).into());
    };
    if out.is_json() {
        return out.json("Pool", pool);
    }
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    out.fields(&[
        ("Pool", pool.name.clone()),
        ("Prefix", pool.cidr.clone()),
        ("State", state(pool)),
        ("Reason", pool.state_reason.clone()),
        ("Block", format!("/{}", pool.block_size)),
        ("Claim", pool.claim.join("\n")),
        (
            "Blocks",
            format!("{} of {}", pool.blocks_held, pool.blocks_claimable),
        ),
        (
            "Most blocks",
            match pool.max_blocks {
                0 => String::new(),
                most => most.to_string(),
            },
        ),
        (
            "Addresses held",
            format!(
                "{}: {} in use, {} cooling down, {} kept unused, {} free",
                pool.addresses_held,
                pool.addresses_used,
                pool.addresses_cooling,
                pool.addresses_reserved,
                pool.addresses_free
            ),
        ),
        ("Reserved", pool.reserved.join("\n")),
        ("Ends unused", yes(pool.keep_ends_unused)),
        ("For nodes with", pool.node_selector.clone()),
        ("For workloads with", pool.workload_selector.clone()),
        ("Masqueraded", yes(pool.nat_outgoing)),
        ("Tunnel", tunnel(pool)),
    ])
}

async fn set_state(
    name: String,
    to: PoolState,
    wait: Option<u64>,
    client: &Client,
    out: &mut Output,
) -> Result<(), Error> {
    let deadline = wait.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let request = SetPoolStateRequest {
            name: name.clone(),
            state: to.into(),
        };
        // It tells how far it has come, and changes nothing when it is repeated.
        let response = client.ipam().set_pool_state(request).await?.into_inner();
        let pool = response.pool.clone().unwrap_or_default();
        match deadline {
            Some(at) if pool.blocks_held > 0 && Instant::now() < at => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            _ => {}
        }
        if out.is_json() {
            return out.json("SetPoolStateResponse", &response);
        }
        let rest = match (response.workload_count, pool.blocks_held) {
            (0, 0) => "this node holds nothing of it".to_owned(),
            (0, blocks) => format!("this node holds {blocks} block(s) of it, and no workload"),
            (count, _) => {
                let shown: Vec<&str> = response
                    .workloads
                    .iter()
                    .take(WORKLOADS_SHOWN)
                    .map(String::as_str)
                    .collect();
                let more = if shown.len() < usize::try_from(count).unwrap_or(usize::MAX) {
                    ", …"
                } else {
                    ""
                };
                format!(
                    "{count} workload(s) have addresses of it: {}{more}",
                    shown.join(", ")
                )
            }
        };
        out.line(format!(
            "pool {} is {}; {rest}",
            printable(&name),
            state(&pool)
        ))?;
        return match deadline {
            Some(_) if pool.blocks_held > 0 => {
                let text = format!("pool {name} still has {} block(s)", pool.blocks_held);
                Err(Status::deadline_exceeded(text).into())
            }
            _ => Ok(()),
        };
    }
}

async fn list_pools(client: &Client, out: &mut Output) -> Result<(), Error> {
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
                state(pool),
                tunnel(pool),
                pool.claim.join(","),
                format!("{}/{}", pool.blocks_held, pool.blocks_claimable),
                pool.addresses_used.to_string(),
                pool.addresses_held.to_string(),
            ]
        }),
    )
}
