//! Nodes that do not come back.

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::fleet::Fleet;
use integration::lab::{self, PATIENCE};

fn state(agent: &Agent, name: &str) -> Result<String> {
    let nodes = agent.agentctl(&["node", "list"])?;
    let line = nodes.lines().find(|line| line.contains(name));
    line.map(str::to_owned)
        .with_context(|| format!("no {name} in {nodes}"))
}

#[test]
fn a_dead_node_is_removed_by_an_operator_and_not_while_it_lives_or_bgp_shows_its_blocks() {
    lab::run(|lab| {
        let fleet = Fleet::start(lab, 1, false)?;
        let agents = fleet.nodes(2)?;
        let [a, b] = agents.as_slice() else {
            anyhow::bail!("two agents");
        };
        b.workload("lost")?;
        ensure!(state(a, "node-2")?.contains("alive"));
        let refused = a.agentctl(&["node", "remove", "node-2"]);
        ensure!(format!("{refused:?}").contains("is alive"), "{refused:?}");
        let refused = a.agentctl(&["node", "remove", "node-1"]);
        ensure!(
            format!("{refused:?}").contains("is this node"),
            "{refused:?}"
        );
        let refused = a.agentctl(&["node", "remove", "nobody"]);
        ensure!(
            format!("{refused:?}").contains("no node nobody"),
            "{refused:?}"
        );

        b.kill()?;
        lab.wait_for("node-2 is away", PATIENCE, || {
            let line = state(a, "node-2")?;
            ensure!(line.contains("away"), "{line}");
            Ok::<_, anyhow::Error>(())
        })?;
        // Its lease is over, and it is still a peer with its blocks: those of graceful restart.
        let refused = a.agentctl(&["node", "remove", "node-2"]);
        ensure!(
            format!("{refused:?}").contains("BGP still shows"),
            "{refused:?}"
        );
        ensure!(!fleet.etcd.keys("/agentd/v1/owned/node-2/")?.is_empty());
        ensure!(a.client().peers()?.len() == 1);

        a.agentctl(&["peer", "shutdown", "node-2"])?;
        lab.wait_for("the node is removed", PATIENCE, || {
            a.agentctl(&["node", "remove", "node-2"]).map(drop)
        })?;
        ensure!(fleet.etcd.keys("/agentd/v1/owned/node-2/")?.is_empty());
        ensure!(fleet.etcd.keys("/agentd/v1/registry/nodes/")?.len() == 1);
        lab.wait_for("it is no peer any more", PATIENCE, || {
            let peers = a.client().peers()?;
            ensure!(peers.is_empty(), "{peers:?}");
            Ok::<_, anyhow::Error>(())
        })?;

        // It comes back all the same: what is still free is its own again.
        b.start()?;
        lab.wait_for("its blocks are claimed again", PATIENCE, || {
            ensure!(!fleet.etcd.keys("/agentd/v1/owned/node-2/")?.is_empty());
            Ok::<_, anyhow::Error>(())
        })?;
        a.wait_peers(1)
    });
}
