//! `agentctl ipam`.

use std::{collections::BTreeMap, process::ExitCode};

use agentd_proto::v1::{
    AddressUse, CheckRequest, ListAddressesRequest, ListAddressesResponse, ListBlocksRequest,
    ListPoolsRequest, problem::Kind,
};
use clap::Subcommand;

use super::{
    client::{Client, Error},
    output::{Output, printable},
    time,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare records, allocator, kernel and BGP; exit status 1 when something is not as it must be
    Check,
    /// Show pools, their blocks, and who has each address
    Show {
        /// Only this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// Only this block
        #[arg(long, value_name = "CIDR")]
        block: Option<String>,
    },
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<ExitCode, Error> {
    match command {
        Command::Check => check(client, out).await,
        Command::Show { pool, block } => show(pool, block, client, out)
            .await
            .map(|()| ExitCode::SUCCESS),
    }
}

async fn check(client: &Client, out: &mut Output) -> Result<ExitCode, Error> {
    let response = client.ipam().check(CheckRequest {}).await?.into_inner();
    if out.is_json() {
        out.json("CheckResponse", &response)?;
    } else {
        let found = match response.problems.len() {
            0 => "no problem".to_owned(),
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        };
        out.line(format!(
            "{} workloads, {} addresses, {} blocks checked: {found}",
            response.workloads, response.addresses, response.blocks
        ))?;
        for problem in &response.problems {
            let kind = match problem.kind() {
                Kind::Unspecified => "unknown",
                Kind::Record => "record",
                Kind::AddressTwice => "address twice",
                Kind::Block => "block",
                Kind::Count => "count",
                Kind::Kernel => "kernel",
                Kind::Leak => "leak",
                Kind::Bgp => "bgp",
                Kind::DuplicateClaim => "duplicate claim",
            };
            let (subject, text) = (printable(&problem.subject), printable(&problem.text));
            out.line(format!("{kind}: {subject}: {text}"))?;
        }
    }
    Ok(match response.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn show(
    pool: Option<String>,
    block: Option<String>,
    client: &Client,
    out: &mut Output,
) -> Result<(), Error> {
    let mut request = ListAddressesRequest {
        pool: pool.clone().unwrap_or_default(),
        block: block.clone().unwrap_or_default(),
        ..Default::default()
    };
    let mut addresses: Vec<AddressUse> = Vec::new();
    loop {
        let page = client
            .ipam()
            .list_addresses(request.clone())
            .await?
            .into_inner();
        addresses.extend(page.addresses);
        if page.next.is_empty() {
            break;
        }
        request.after = page.next;
    }
    if out.is_json() {
        let whole = ListAddressesResponse {
            addresses,
            next: String::new(),
        };
        return out.json("ListAddressesResponse", &whole);
    }
    let pools = client
        .ipam()
        .list_pools(ListPoolsRequest {})
        .await?
        .into_inner();
    let blocks = client
        .ipam()
        .list_blocks(ListBlocksRequest::default())
        .await?
        .into_inner();
    let mut of_block: BTreeMap<&str, Vec<&AddressUse>> = BTreeMap::new();
    for usage in &addresses {
        of_block.entry(&usage.block).or_default().push(usage);
    }
    let cidrs: BTreeMap<&str, &str> = pools
        .pools
        .iter()
        .map(|pool| (pool.name.as_str(), pool.cidr.as_str()))
        .collect();
    let mut last = None;
    for held in &blocks.blocks {
        let other =
            |wanted: &Option<String>, is: &str| wanted.as_ref().is_some_and(|wanted| wanted != is);
        if other(&pool, &held.pool) || other(&block, &held.cidr) {
            continue;
        }
        if last != Some(&held.pool) {
            let cidr = cidrs
                .get(held.pool.as_str())
                .unwrap_or(&"not configured any more");
            out.line(format!("{} {cidr}", printable(&held.pool)))?;
            last = Some(&held.pool);
        }
        out.line(format!(
            "  {}  {} used, {} cooling, {} reserved, {} free",
            held.cidr, held.used, held.cooling, held.reserved, held.free
        ))?;
        for usage in of_block.get(held.cidr.as_str()).into_iter().flatten() {
            let workload = printable(&usage.workload);
            let state = match &usage.free_at {
                None => workload,
                Some(at) => format!(
                    "cools down until {}, was {workload}",
                    time::moment(Some(at))
                ),
            };
            out.line(format!("    {}  {state}", usage.address))?;
        }
    }
    Ok(())
}
