//! Asks every source what there is, and has it compared.

use std::{collections::BTreeMap, time::Duration};

use bgp::{
    rib::NotAdvertised,
    speaker::status::{PeerState, RouteQuery, RouteTable},
};
use dataplane::kernel::{Place, Query};
use ipnet::IpNet;

use super::{Context, network::Network};
use crate::node::{
    Error,
    check::{self, BgpSays, Report, Sources},
    view::BlockState,
};

/// Looks after which what was seen each time is believed.
const LOOKS: u32 = 5;
/// Between two looks. Longer than it takes to delete links of workloads that are gone.
const PAUSE: Duration = Duration::from_millis(300);

/// The report, and how often it was looked.
pub(super) async fn check(context: &Context) -> Result<(Report, u32), Error> {
    let mut report = check::check(&look(context).await?);
    let mut looks = 1;
    while !report.problems.is_empty() && looks < LOOKS {
        tokio::time::sleep(PAUSE).await;
        let earlier = report;
        report = check::check(&look(context).await?);
        report.confirm(&earlier);
        looks += 1;
    }
    Ok((report, looks))
}

async fn look(context: &Context) -> Result<Sources, Error> {
    let network = &*context.network;
    let (node, records) = context.node.audit().await?;
    let unreadable = |error: dataplane::kernel::OpError| Error::Unavailable {
        part: "kernel",
        text: error.to_string(),
    };
    let host = Query::Place {
        place: Place::Host,
        sysctls: Vec::new(),
    };
    let kernel = network.look(host).await?.map_err(unreadable)?;
    let mut inside = BTreeMap::new();
    for workload in &node.workloads {
        let Some(netns) = check::namespace(workload) else {
            continue;
        };
        let query = Query::Place {
            place: Place::Netns(netns.clone()),
            sysctls: Vec::new(),
        };
        let answer = network.look(query).await?;
        let answer = answer.map_err(|error| error.to_string());
        inside.insert(workload.view.id.clone(), answer);
    }
    let active = node
        .ipam
        .blocks
        .iter()
        .filter(|block| block.state == BlockState::Active && !block.local);
    let blocks: Vec<IpNet> = active.map(|block| block.cidr).collect();
    let bgp = match network.originated().await {
        None => None,
        Some(originated) => Some(BgpSays {
            claims: network.claims().await,
            missing: missing(network, &blocks).await,
            originated,
        }),
    };
    Ok(Sources {
        node,
        records,
        kernel,
        inside,
        bgp,
    })
}

/// Blocks that Established peers are to have and have not. What the configuration keeps from a peer,
/// or the peer does not take, is not missing there.
async fn missing(network: &dyn Network, blocks: &[IpNet]) -> Vec<(String, IpNet, String)> {
    let mut missing = Vec::new();
    let peers = network.peers().await;
    let established = peers
        .iter()
        .filter(|peer| peer.state == PeerState::Established);
    for peer in established {
        for block in blocks {
            match network.advertised(&peer.name, *block).await {
                Err(
                    why @ (NotAdvertised::NoRoute
                    | NotAdvertised::LearnedFromIt
                    | NotAdvertised::NextHopIsIt
                    | NotAdvertised::LongLivedStale
                    | NotAdvertised::TooLong),
                ) => missing.push((peer.name.clone(), *block, why.to_string())),
                Err(_) => {}
                Ok(()) => {
                    let page = network
                        .routes(RouteQuery {
                            table: RouteTable::AdjRibOut,
                            peer: Some(peer.name.clone()),
                            prefix: Some(*block),
                            after: None,
                            limit: 1,
                        })
                        .await;
                    if !page.routes.iter().any(|route| route.prefix == *block) {
                        let why = "it was not sent yet".to_owned();
                        missing.push((peer.name.clone(), *block, why));
                    }
                }
            }
        }
    }
    missing
}
