//! etcd goes, in part or as a whole, and comes back.

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::fleet::{Fleet, cut, join};
use integration::lab::{self, Lab, PATIENCE, ping, workload};
use tonic::Code;

/// Adds workloads until `count` blocks are full; a block has four addresses.
fn fill(agent: &Agent, name: &str, count: usize) -> Result<Vec<workload::Workload>> {
    (0..count)
        .map(|number| agent.workload(&format!("{name}{number}")))
        .collect()
}

/// No two agents have a block, and etcd says the same as they do.
fn check_blocks(fleet: &Fleet, agents: &[&Agent]) -> Result<()> {
    let mut all = Vec::new();
    for agent in agents {
        for block in agent.client().blocks()? {
            let first = block.cidr.split('/').next().unwrap_or_default().to_owned();
            let address: std::net::Ipv4Addr = first.parse()?;
            all.push(format!(
                "/agentd/v1/blocks/4/{:08x}/030",
                u32::from(address)
            ));
        }
    }
    all.sort();
    let unique = all.len();
    all.dedup();
    ensure!(unique == all.len(), "a block has two nodes: {all:?}");
    let keys = fleet.etcd.keys("/agentd/v1/blocks/")?;
    ensure!(
        keys == all,
        "etcd has {keys:?}, and the agents have {all:?}"
    );
    Ok(())
}

#[test]
fn one_member_is_lost_then_two_then_all_and_everything_goes_on_and_is_reconciled() {
    lab::run(|lab| {
        let fleet = Fleet::start(lab, 3, false)?;
        let agents = fleet.nodes(3)?;
        let [a, b, c] = agents.as_slice() else {
            anyhow::bail!("three agents");
        };
        let first = a.workload("first")?;
        let other = b.workload("other")?;
        ping::ping_all(&first.namespace, other.ipv4()?, 2)?;

        // One member: claims go on.
        fleet.etcd.kill_member(0)?;
        fill(a, "one", 8)?;
        check_blocks(&fleet, &[a, b, c])?;

        // Two: nothing is agreed on, and the blocks there are are filled.
        fleet.etcd.kill_member(1)?;
        fleet.wait_store(b, false)?;
        without_store(lab, b)?;
        for agent in [a, b, c] {
            agent.wait_peers(2)?;
        }

        // The last one as well, and a restart meanwhile: blocks, workloads and peers are there.
        fleet.etcd.kill_member(2)?;
        let blocks = b.client().blocks()?.len();
        b.kill()?;
        b.start()?;
        b.wait_peers(2)?;
        ensure!(b.client().blocks()?.len() == blocks);
        ping::ping_all(&first.namespace, other.ipv4()?, 2)?;

        // All are back: who waits for a block gets it.
        for member in 0..3 {
            fleet.etcd.start_member(member)?;
        }
        fleet.etcd.wait_healthy()?;
        fleet.wait_store(b, true)?;
        b.workload("after")?;
        lab.wait_for("etcd and agents agree", PATIENCE, || {
            check_blocks(&fleet, &[a, b, c])
        })
    });
}

/// Fills what the node has, and sees what is said then.
fn without_store(lab: &Lab, agent: &Agent) -> Result<()> {
    let mut added = 0;
    loop {
        let namespace = lab.namespace(&format!("w-{}-{added}", agent.name()))?;
        let request = workload::request(&format!("w-{added}"), &namespace);
        match agent.client().add(request) {
            Ok(_) => added += 1,
            Err(status) => {
                ensure!(status.code() == Code::Unavailable, "{status:?}");
                ensure!(
                    status.message().contains("none can be claimed: http://"),
                    "{status:?}"
                );
                break;
            }
        }
        ensure!(added < 20, "no end");
    }
    ensure!(added > 2, "only {added} had room");
    // A delete needs nobody, and what it frees is used again after the cool-down.
    ensure!(agent.client().delete("w-0")?);
    let namespace = lab.namespace(&format!("w-{}-again", agent.name()))?;
    agent.client().add(workload::request("again", &namespace))?;
    Ok(())
}

#[test]
fn a_node_that_is_cut_off_from_etcd_keeps_its_blocks_and_peers_and_catches_up_after_a_compaction() {
    lab::run(|lab| {
        let fleet = Fleet::start(lab, 1, false)?;
        let agents = fleet.nodes(2)?;
        let [a, b] = agents.as_slice() else {
            anyhow::bail!("two agents");
        };
        let inside = b.workload("inside")?;
        cut(b)?;
        fleet.wait_store(b, false)?;
        // Its lease is over; for the others it is away, and stays a peer.
        lab.wait_for("node-2 is away", PATIENCE, || {
            let nodes = a.agentctl(&["node", "list"])?;
            let line = nodes
                .lines()
                .find(|line| line.contains("node-2"))
                .context("no line")?;
            ensure!(line.contains("away"), "{nodes}");
            Ok::<_, anyhow::Error>(())
        })?;
        a.wait_peers(1)?;
        without_store(lab, b)?;
        // A third node comes that the second cannot hear of, and the news is not kept.
        let c = fleet.agent(3, fleet.config(3))?;
        c.start()?;
        lab.wait_for("node-1 has node-3", PATIENCE, || a.wait_peers(2))?;
        let outside = c.workload("outside")?;
        fleet.etcd.compact()?;
        join(b)?;
        fleet.wait_store(b, true)?;
        for agent in [a, b, &c] {
            agent.wait_peers(2)?;
        }
        ping::ping_all(&inside.namespace, outside.ipv4()?, 2)?;
        lab.wait_for("etcd and agents agree", PATIENCE, || {
            check_blocks(&fleet, &[a, b, &c])
        })
    });
}
