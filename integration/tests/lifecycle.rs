//! Blocks that come and go, a kill in the middle of adds, and namespaces that vanish.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentd_proto::v1;
use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::Peer;
use integration::lab::netns::Netns;
use integration::lab::ping::ping_all;
use integration::lab::two_nodes::{self, TwoNodes, node_address};
use integration::lab::workload::{Workload, request};
use integration::lab::{self, Lab, PATIENCE, binaries, single};

/// Prefixes of node-a that BIRD has.
fn advertised(reflector: &Bird) -> Result<Vec<String>> {
    let mut prefixes = reflector.prefixes()?;
    prefixes.retain(|prefix| prefix.starts_with("10.244."));
    Ok(prefixes)
}

#[test]
fn blocks_are_claimed_ahead_of_need_advertised_and_given_back_but_the_last() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        let config = nodes.a.config_mut();
        config.pools.truncate(1);
        config.pools[0].block_size = 29;
        config.claim.truncate(1);
        config.cooldown = "1s".into();
        config.ipam = "release_empty_after = \"1s\"".into();
        nodes.a.start()?;
        nodes.reflector.wait_established("node_a")?;
        lab.wait_until("the first block at BIRD", PATIENCE, || {
            advertised(&nodes.reflector).is_ok_and(|p| p == ["10.244.1.0/29"])
        })?;

        let mut workloads = Vec::new();
        for number in 0..6 {
            workloads.push(nodes.a.workload(&format!("w{number}"))?);
        }
        // Three quarters of the block are in use, and two addresses are free.
        lab.wait_until("the second block at BIRD, ahead of need", PATIENCE, || {
            advertised(&nodes.reflector).is_ok_and(|p| p == ["10.244.1.0/29", "10.244.1.8/29"])
        })?;
        for number in 6..10 {
            workloads.push(nodes.a.workload(&format!("w{number}"))?);
        }
        let mut addresses: Vec<_> = workloads.iter().flat_map(Workload::addresses).collect();
        addresses.sort();
        addresses.dedup();
        ensure!(addresses.len() == 10, "{addresses:?}");

        for workload in &workloads {
            nodes.a.client().delete(&workload.id)?;
        }
        lab.wait_until("one block is left", PATIENCE, || {
            advertised(&nodes.reflector).is_ok_and(|prefixes| prefixes.len() == 1)
        })?;
        lab.wait_for("the kernel has one blackhole", PATIENCE, || {
            let routes = nodes.a.namespace().show("ip route show type blackhole")?;
            ensure!(routes.lines().count() == 1, "{routes}");
            Ok(())
        })?;
        // It stays usable, and the last block is never given back.
        let again = nodes.a.workload("again")?;
        ping_all(&again.namespace, node_address(1).0.parse()?, 2)?;
        ensure!(
            nodes
                .a
                .client()
                .blocks()?
                .iter()
                .any(|block| block.used == 1)
        );
        Ok(())
    });
}

#[test]
fn an_add_that_waits_for_advertised_returns_when_the_peer_has_the_block() {
    lab::run(|lab| {
        let nodes = TwoNodes::prepare(lab)?;
        // The process runs, and its session is not up yet.
        nodes.a.start()?;
        let namespace = lab.namespace("w")?;
        let mut add = request("w", &namespace);
        add.wait_for = v1::WorkloadState::Advertised.into();
        let workload = nodes.a.client().add(add)?.workload.context("workload")?;
        ensure!(
            workload.state() == v1::WorkloadState::Advertised,
            "{workload:?}"
        );
        let known = nodes.reflector.prefixes()?;
        for address in &workload.addresses {
            // Sent is not yet read: BIRD needs a moment.
            lab.wait_until("BIRD has the block", Duration::from_secs(1), || {
                nodes
                    .reflector
                    .prefixes()
                    .is_ok_and(|known| known.contains(&address.block))
            })
            .with_context(|| format!("{known:?}"))?;
        }
        Ok(())
    });
}

/// What the kernel has of each workload of a node: one link, and the routes of its addresses.
fn kernel_matches_records(agent: &Agent) -> Result<()> {
    let namespace = agent.namespace();
    let links = namespace.show("ip -brief link")?;
    let routes = namespace.show("ip route")? + &namespace.show("ip -6 route")?;
    let workloads = agent.client().workloads()?;
    let links: Vec<_> = links
        .lines()
        .filter_map(|line| line.split(['@', ' ']).next())
        .filter(|name| name.starts_with("agt"))
        .collect();
    ensure!(
        links.len() == workloads.len(),
        "{} workloads, links {links:?}",
        workloads.len()
    );
    let mut expected_routes = 0;
    for workload in &workloads {
        ensure!(
            links.contains(&workload.host_interface.as_str()),
            "no link of {workload:?}"
        );
        for address in &workload.addresses {
            expected_routes += 1;
            let start = format!("{} dev {}", address.address, workload.host_interface);
            ensure!(
                routes.lines().any(|line| line.starts_with(&start)),
                "no route {start}"
            );
        }
    }
    let host_routes = routes
        .lines()
        .filter(|line| line.contains(" dev agt") && !line.starts_with("fe80:"))
        .count();
    ensure!(
        host_routes == expected_routes,
        "{host_routes} host routes for {expected_routes} addresses:\n{routes}"
    );
    let used: u32 = agent
        .client()
        .blocks()?
        .iter()
        .map(|block| block.used)
        .sum();
    ensure!(
        used as usize == expected_routes,
        "{used} addresses of blocks are in use, {expected_routes} have a workload"
    );
    Ok(())
}

#[test]
fn kill_9_amid_adds_and_deletes_loses_nothing_acknowledged_and_leaves_nothing_else() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        agent.start()?;
        let namespaces: Vec<Netns> = (0..48)
            .map(|number| lab.namespace(&format!("w{number}")))
            .collect::<Result<_>>()?;
        let id = |namespace: &Netns| namespace.name().to_owned();
        let first = &namespaces[..16];
        for namespace in first {
            agent.client().add(request(&id(namespace), namespace))?;
        }

        // Adds of the others and deletes of the first half, until the kill makes them fail.
        let acknowledged = Mutex::new(BTreeMap::new());
        let deleted = Mutex::new(Vec::new());
        let (next_add, next_delete) = (AtomicUsize::new(16), AtomicUsize::new(0));
        std::thread::scope(|scope| -> Result<()> {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(namespace) =
                        namespaces.get(next_add.fetch_add(1, Ordering::Relaxed))
                    {
                        let Ok(answer) = agent.client().add(request(&id(namespace), namespace))
                        else {
                            return;
                        };
                        let addresses = answer.workload.unwrap_or_default().addresses;
                        let mut list = acknowledged.lock().expect("no holder panics");
                        list.insert(id(namespace), addresses);
                    }
                });
            }
            scope.spawn(|| {
                while let Some(namespace) =
                    first[..8].get(next_delete.fetch_add(1, Ordering::Relaxed))
                {
                    if agent.client().delete(&id(namespace)).is_err() {
                        return;
                    }
                    let mut list = deleted.lock().expect("no holder panics");
                    list.push(id(namespace));
                }
            });
            lab.wait_until("some adds are acknowledged", PATIENCE, || {
                acknowledged.lock().expect("no holder panics").len() >= 8
            })?;
            agent.kill()
        })?;

        agent.start()?;
        lab.wait_for("the kernel is as recorded", PATIENCE, || {
            kernel_matches_records(&agent)
        })?;
        let now: BTreeMap<String, _> = agent
            .client()
            .workloads()?
            .into_iter()
            .map(|workload| (workload.id, workload.addresses))
            .collect();
        let acknowledged = acknowledged.into_inner().expect("no holder panics");
        for (id, addresses) in &acknowledged {
            ensure!(
                now.get(id) == Some(addresses),
                "{id} was acknowledged: {now:?}"
            );
        }
        for namespace in &first[8..] {
            ensure!(
                now.contains_key(namespace.name()),
                "{} is lost",
                namespace.name()
            );
        }
        for id in deleted.into_inner().expect("no holder panics") {
            ensure!(!now.contains_key(&id), "{id} was deleted");
        }
        let node = node_address(1).0.parse()?;
        for namespace in &namespaces {
            if now.contains_key(namespace.name()) {
                ping_all(namespace, node, 1)?;
            } else {
                ensure!(
                    namespace.show("ip link show eth0").is_err(),
                    "{} has a link and no record",
                    namespace.name()
                );
            }
        }
        // Every id can be used as if nothing had happened.
        for namespace in &namespaces {
            agent.client().add(request(&id(namespace), namespace))?;
        }
        for namespace in &namespaces {
            ensure!(agent.client().delete(&id(namespace))?);
        }
        lab.wait_for("all is released", PATIENCE, || {
            kernel_matches_records(&agent)
        })?;
        ensure!(agent.client().workloads()?.is_empty());
        Ok(())
    });
}

#[test]
fn a_namespace_that_vanishes_harms_no_other_workload_and_its_id_can_be_used_again() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        agent.start()?;
        let stays = agent.workload("stays")?;
        let goes = agent.workload("goes")?;
        lab.delete_namespace(&goes.namespace)?;
        let (id, answer) = (goes.id.clone(), goes.answer.clone());
        // The namespace lives as long as somebody holds its descriptor.
        drop(goes);
        lab.wait_for("the loss is told", PATIENCE, || {
            let workload = agent.client().get(&id)?;
            ensure!(
                workload.state() == v1::WorkloadState::Failed && !workload.reason.is_empty(),
                "{workload:?}"
            );
            Ok(())
        })?;
        ping_all(&stays.namespace, node_address(1).0.parse()?, 2)?;
        // With agentd away and back it is the same.
        agent.kill()?;
        agent.start()?;
        ping_all(&stays.namespace, node_address(1).0.parse()?, 2)?;

        ensure!(agent.client().delete(&id)?);
        let again = agent.workload("goes-again")?;
        ping_all(&again.namespace, node_address(1).0.parse()?, 2)?;
        ensure!(
            again.answer.addresses != answer.addresses,
            "an address was reused within its cool-down"
        );
        let namespace = lab.namespace("other")?;
        agent.client().add(request(&id, &namespace))?;
        ping_all(&namespace, node_address(1).0.parse()?, 2)
    });
}

#[test]
fn agentctl_does_what_it_documents_with_its_exit_statuses() {
    lab::run(|lab: &Lab| {
        let mut config = single::config();
        // A peer that nobody answers for.
        config
            .peers
            .push(Peer::new("silent", "192.168.26.77", two_nodes::ASN));
        let agent = single::prepare(lab, config)?;
        agent.agentctl_expecting(&["status"], 3, "agentd.sock")?;
        agent.start()?;
        let namespace = lab.namespace("w")?;
        let path = namespace.path();
        let path = path.to_string_lossy();

        agent.agentctl_expecting(&["workload", "add", "w", "--netns", &path], 0, "10.244.1.")?;
        agent.agentctl_expecting(&["workload", "add", "w", "--netns", &path], 0, "10.244.1.")?;
        agent.agentctl_expecting(&["workload", "list"], 0, "10.244.1.")?;
        agent.agentctl_expecting(&["workload", "show", "w"], 0, "10.244.1.")?;
        agent.agentctl_expecting(&["workload", "show", "nobody"], 1, "nobody")?;
        agent.agentctl_expecting(
            &["workload", "add", "x", "--netns", "/nowhere"],
            1,
            "/nowhere",
        )?;
        agent.agentctl_expecting(&["workload", "add"], 2, "Usage")?;
        agent.agentctl_expecting(&["peer", "list"], 0, "silent")?;
        agent.agentctl_expecting(&["peer", "show", "silent"], 0, "192.168.26.77")?;
        agent.agentctl_expecting(&["peer", "show", "nobody"], 1, "nobody")?;
        agent.agentctl_expecting(&["block", "list"], 0, "10.244.1.0/26")?;
        agent.agentctl_expecting(&["pool", "list"], 0, "default6")?;
        agent.agentctl_expecting(&["route", "list", "--table", "kernel"], 0, "10.244.1.0/26")?;

        for command in [
            ["status"].as_slice(),
            &["workload", "list"],
            &["block", "list"],
            &["peer", "list"],
            &["route", "list"],
        ] {
            let arguments = [command, &["-o", "json"]].concat();
            let text = agent.agentctl_expecting(&arguments, 0, "")?;
            let value: serde_json::Value =
                serde_json::from_str(&text).with_context(|| format!("{arguments:?}: {text}"))?;
            ensure!(value.is_object() || value.is_array(), "{text}");
        }

        agent.agentctl_expecting(&["workload", "delete", "w"], 0, "w")?;
        agent.agentctl_expecting(&["workload", "delete", "w"], 0, "w")?;
        let version = Command::new(binaries::find("agentctl")?)
            .arg("--version")
            .output()?;
        ensure!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
        Ok(())
    });
}
