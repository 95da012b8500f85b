//! `agentctl node`: the nodes that share a store.

use agentd_proto::v1::{FleetNode, ListNodesRequest, RemoveNodeRequest};
use clap::Subcommand;

use super::{
    client::{Client, Error},
    output::Output,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every node that is registered in etcd, or has blocks there
    List,
    /// Take a node out that does not come back, and free its blocks
    ///
    /// Refused while the node is alive, and while BGP shows one of its blocks on this node.
    Remove {
        /// As `node list` shows it
        name: String,
    },
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<(), Error> {
    match command {
        Command::List => {
            let response = client.node().list_nodes(ListNodesRequest {}).await?;
            let response = response.into_inner();
            if out.is_json() {
                return out.json("ListNodesResponse", &response);
            }
            out.table(
                &[
                    "Name",
                    "State",
                    "Address",
                    "Address (IPv6)",
                    "AS",
                    "Blocks",
                    "Version",
                ],
                &[4, 5],
                response.nodes.iter().map(row),
            )
        }
        Command::Remove { name } => {
            let request = RemoveNodeRequest { name: name.clone() };
            let response = client.node().remove_node(request).await?.into_inner();
            if out.is_json() {
                return out.json("RemoveNodeResponse", &response);
            }
            match response.blocks.as_slice() {
                [] => out.line(format!("node {name} is removed; it had no blocks")),
                blocks => out.line(format!(
                    "node {name} is removed; free now: {}",
                    blocks.join(", ")
                )),
            }
        }
    }
}

fn row(node: &FleetNode) -> Vec<String> {
    let state = match (node.registered, node.alive) {
        (true, true) => "alive",
        (true, false) => "away",
        (false, _) => "removed",
    };
    vec![
        node.name.clone(),
        state.to_owned(),
        node.address.clone(),
        node.address6.clone(),
        node.asn.to_string(),
        node.blocks.to_string(),
        node.version.clone(),
    ]
}
