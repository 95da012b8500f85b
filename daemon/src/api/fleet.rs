//! Nodes of the fleet's store, for `NodeService`.

use std::{net::IpAddr, sync::Arc};

use agentd_proto::v1;
use bgp::speaker::status::{RouteQuery, RouteTable};
use ipnet::IpNet;

use super::{Context, network::Network, render};
use crate::{fleet, node::Error};

fn handle(context: &Context) -> Result<&fleet::Handle, Error> {
    context.fleet.as_ref().ok_or(Error::Precondition {
        reason: "NO_FLEET_STORE",
        text: "this node agrees with no other on blocks: ipam.store is \"local\"".to_owned(),
    })
}

pub(super) async fn list(context: &Context) -> Result<v1::ListNodesResponse, Error> {
    let nodes = handle(context)?.nodes().await?;
    Ok(v1::ListNodesResponse {
        nodes: nodes.into_iter().map(node).collect(),
    })
}

fn node(entry: fleet::admin::Entry) -> v1::FleetNode {
    let text =
        |address: Option<IpAddr>| address.map_or_else(String::new, |address| address.to_string());
    let mut node = v1::FleetNode {
        name: entry.name,
        registered: entry.record.is_some(),
        alive: entry.alive,
        blocks: entry.blocks,
        ..v1::FleetNode::default()
    };
    if let Some(record) = entry.record {
        node.address = text(record.address);
        node.address6 = text(record.address6);
        node.asn = record.asn.unwrap_or_default();
        node.labels = record.labels.into_iter().collect();
        node.version = record.version;
    }
    node
}

pub(super) async fn remove(context: &Context, name: &str) -> Result<v1::RemoveNodeResponse, Error> {
    if name.is_empty() {
        return Err(Error::invalid("name", "is required"));
    }
    let network = &context.network;
    let removed = handle(context)?.remove_node(name, |block| shows(network.clone(), block));
    let blocks = removed.await?;
    tracing::info!(
        node = name,
        blocks = blocks.len(),
        "node removed by the API"
    );
    Ok(v1::RemoveNodeResponse {
        blocks: blocks.iter().map(ToString::to_string).collect(),
    })
}

/// BGP has a route for the block or inside it, from whomever, accepted or not.
pub(crate) async fn shows(network: Arc<dyn Network>, block: IpNet) -> bool {
    for table in [RouteTable::LocRib, RouteTable::AdjRibIn] {
        let query = RouteQuery {
            table,
            peer: None,
            prefix: Some(block),
            after: None,
            limit: 1,
        };
        if !network.routes(query).await.routes.is_empty() {
            return true;
        }
    }
    false
}

pub(super) fn status(view: &fleet::task::View) -> v1::FleetStore {
    let status = &view.status;
    let failure = match &status.state {
        fleet::State::Up => String::new(),
        fleet::State::Connecting => "it has not answered yet".to_owned(),
        fleet::State::Down { text, .. } => text.clone(),
    };
    v1::FleetStore {
        kind: "etcd".to_owned(),
        up: status.state == fleet::State::Up,
        failure,
        down_since: status.down_since().map(render::timestamp),
        registered: status.registered,
        refused: status.refused.clone().unwrap_or_default(),
        blocks: render::count(status.held),
        claiming: render::count(status.claiming),
        returning: render::count(status.returning),
        lost: status
            .lost
            .iter()
            .map(|(block, by)| format!("{block} held by {by}"))
            .collect(),
        claims: status.claims,
        retries: status.retries,
        nodes: render::count(status.nodes),
        nodes_alive: render::count(status.nodes_alive),
    }
}
