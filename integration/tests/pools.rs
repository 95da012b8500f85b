//! Pools: extremes of block sizes, and pools that come, change and go while the agents run.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::{AgentConfig, Pool};
use integration::lab::ping::ping_all;
use integration::lab::two_nodes::{TwoNodes, node_address};
use integration::lab::workload::{Workload, request};
use integration::lab::{self, Lab, PATIENCE, single};

/// Prefixes that BIRD has, of those that start so.
fn advertised(reflector: &Bird, start: &str) -> Result<Vec<String>> {
    let mut prefixes = reflector.prefixes()?;
    prefixes.retain(|prefix| prefix.starts_with(start));
    Ok(prefixes)
}

fn blackholes(agent: &Agent) -> Result<String> {
    let mut text = String::new();
    for family in ["-4", "-6"] {
        text += &agent
            .namespace()
            .output(["ip", family, "route", "show", "type", "blackhole"])?;
    }
    Ok(text)
}

/// A workload with addresses from these pools.
fn add(lab: &Lab, agent: &Agent, id: &str, pools: &[&str]) -> Result<Workload> {
    let namespace = lab.namespace(&format!("w-{id}"))?;
    let mut add = request(id, &namespace);
    add.pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
    let answer = agent.client().add(add)?.workload.context("a workload")?;
    Ok(Workload {
        id: id.to_owned(),
        namespace,
        answer,
    })
}

/// Writes the configuration that it has by now, and has the agent read it.
fn reload(agent: &Agent) -> Result<String> {
    agent.write_config()?;
    agent.agentctl(&["reload"])
}

fn refused(result: Result<String>) -> Result<String> {
    match result {
        Ok(said) => anyhow::bail!("not refused: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[test]
fn blocks_of_one_address_have_no_blackhole_and_the_largest_have_4096_addresses() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        for agent in [&mut nodes.a, &mut nodes.b] {
            let own = agent.name() == "node-a";
            let config = agent.config_mut();
            config.pools = vec![
                Pool::new("one", "10.244.0.0/16", 32),
                Pool::new("one6", "fd10:244::/64", 128),
                Pool::new("most", "10.200.0.0/16", 20),
                Pool::new("most6", "fd10:200::/64", 116),
            ];
            if own {
                config.claim.push("10.200.16.0/20".into());
                config.claim.push("fd10:200::1000/116".into());
            }
        }
        nodes.a.start()?;
        nodes.b.start()?;
        nodes.reflector.wait_established("node_a")?;
        let one = add(lab, &nodes.a, "one", &["one", "one6"])?;
        let two = add(lab, &nodes.a, "two", &["one", "one6"])?;
        let most = add(lab, &nodes.a, "most", &["most6", "most"])?;
        let far = add(lab, &nodes.b, "far", &["one", "one6"])?;
        ensure!(one.ipv4()?.to_string() == "10.244.1.0", "{:?}", one.answer);
        ensure!(most.answer.addresses[0].block == "10.200.16.0/20");
        ensure!(most.answer.addresses[1].block == "fd10:200::1000/116");
        let holes = blackholes(&nodes.a)?;
        ensure!(
            holes.lines().count() == 2
                && holes.contains("10.200.16.0/20")
                && holes.contains("fd10:200::1000/116"),
            "{holes}"
        );
        lab.wait_for("each address is advertised", PATIENCE, || {
            let prefixes = advertised(&nodes.reflector, "10.244.1.")?;
            // The next one is claimed ahead.
            ensure!(
                prefixes == ["10.244.1.0/32", "10.244.1.1/32", "10.244.1.2/32"],
                "{prefixes:?}"
            );
            Ok(())
        })?;
        for to in [&one, &two, &most] {
            for address in to.addresses() {
                lab.wait_for(&format!("{address} answers"), PATIENCE, || {
                    ping_all(&far.namespace, address, 2)
                })?;
            }
        }
        // A reader of the routes finds the workload where a blackhole would be.
        let route = nodes.a.namespace().show("ip route get 10.244.1.0")?;
        ensure!(route.contains("dev agt"), "{route}");
        Ok(())
    });
}

#[test]
fn pools_come_change_and_go_while_the_agents_run() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::start(lab)?;
        let old = nodes.a.workload("old")?;
        let pool = |extra: &str| Pool {
            extra: extra.into(),
            ..Pool::new("late", "10.99.0.0/16", 28)
        };

        // Both learn of it; one may claim.
        for agent in [&mut nodes.a, &mut nodes.b] {
            let own = agent.name() == "node-a";
            let config = agent.config_mut();
            config.pools.push(pool(""));
            config.cooldown = "1s".into();
            if own {
                config.claim.push("10.99.1.0/24".into());
            }
            let said = reload(agent)?;
            ensure!(said.contains("late") && !said.contains("restart"), "{said}");
        }
        let late = add(lab, &nodes.a, "late", &["late"])?;
        ensure!(late.answer.addresses[0].block == "10.99.1.0/28");
        ensure!(blackholes(&nodes.a)?.contains("10.99.1.0/28"));
        let far = nodes.b.workload("far")?;
        lab.wait_for("the import policy lets its block in", PATIENCE, || {
            ping_all(&far.namespace, late.ipv4()?, 2)
        })?;

        // Changed: nothing new, what is there stays.
        nodes.a.config_mut().pools[2] = pool(
            "disabled = true\nreserved = [\"10.99.1.1-10.99.1.5\"]\nkeep_ends_unused = true\n\
             max_blocks = 2",
        );
        let said = reload(&nodes.a)?;
        ensure!(
            said.contains("disabled, reserved, keep_ends_unused, max_blocks"),
            "{said}"
        );
        let shown = nodes.a.agentctl(&["pool", "show", "late"])?;
        ensure!(
            shown.contains("is disabled in the configuration") && shown.contains("10.99.1.2/31"),
            "{shown}"
        );
        let namespace = lab.namespace("w-more")?;
        let path = namespace.path().display().to_string();
        let more = [
            "workload",
            "add",
            "more",
            "--netns",
            path.as_str(),
            "--pool",
            "late",
        ];
        let why = refused(nodes.a.agentctl(&more))?;
        ensure!(why.contains("is disabled in the configuration"), "{why}");
        ping_all(&far.namespace, late.ipv4()?, 2)?;

        // Enabled: the first address that is not kept unused.
        nodes.a.config_mut().pools[2] = pool("reserved = [\"10.99.1.1-10.99.1.5\"]");
        reload(&nodes.a)?;
        nodes.a.agentctl(&more)?;
        ensure!(nodes.a.client().get("more")?.addresses[0].address == "10.99.1.6");

        // It is in use: the reload changes nothing, and says whose it is.
        nodes.a.config_mut().pools.truncate(2);
        nodes.a.config_mut().claim.truncate(2);
        let why = refused(reload(&nodes.a))?;
        ensure!(
            why.contains("cannot be removed") && why.contains("late (10.99.1.0), more (10.99.1.6)"),
            "{why}"
        );
        let listed = nodes.a.agentctl(&["pool", "list"])?;
        ensure!(listed.contains("late"), "{listed}");
        ping_all(&far.namespace, late.ipv4()?, 2)?;

        // Drained, also after a kill.
        let said = nodes.a.agentctl(&["pool", "drain", "late"])?;
        ensure!(
            said.contains("2 workload(s) have addresses of it: late, more"),
            "{said}"
        );
        nodes.a.kill()?;
        nodes.a.config_mut().pools.push(pool(""));
        nodes.a.config_mut().claim.push("10.99.1.0/24".into());
        nodes.a.start()?;
        let namespace = lab.namespace("w-no")?;
        let path = namespace.path().display().to_string();
        let why = refused(nodes.a.agentctl(&[
            "workload",
            "add",
            "no",
            "--netns",
            path.as_str(),
            "--pool",
            "late",
        ]))?;
        ensure!(why.contains("is being drained"), "{why}");
        for id in ["late", "more"] {
            nodes.a.client().delete(id)?;
        }
        let said = nodes
            .a
            .agentctl(&["pool", "drain", "late", "--wait", "20"])?;
        ensure!(said.contains("this node holds nothing of it"), "{said}");
        ensure!(!blackholes(&nodes.a)?.contains("10.99."));
        lab.wait_for("its blocks are withdrawn", PATIENCE, || {
            let prefixes = advertised(&nodes.reflector, "10.99.")?;
            ensure!(prefixes.is_empty(), "{prefixes:?}");
            Ok(())
        })?;

        // Now it can go.
        nodes.a.config_mut().pools.truncate(2);
        nodes.a.config_mut().claim.truncate(2);
        let said = reload(&nodes.a)?;
        ensure!(said.contains("removed"), "{said}");
        let listed = nodes.a.agentctl(&["pool", "list"])?;
        ensure!(!listed.contains("late"), "{listed}");
        ping_all(&far.namespace, old.ipv4()?, 2)?;
        ping_all(&far.namespace, old.ipv6()?, 2)
    });
}

fn selecting() -> AgentConfig {
    let pool = |name: &str, cidr: &str, extra: &str| Pool {
        extra: extra.into(),
        ..Pool::new(name, cidr, 30)
    };
    AgentConfig {
        pools: vec![
            pool("a", "10.1.0.0/24", "node_selector = \"rack = a\""),
            pool("b", "10.2.0.0/24", "node_selector = \"rack in (b, c)\""),
            pool(
                "storage",
                "10.3.0.0/24",
                "workload_selector = \"net = storage\"",
            ),
            pool(
                "plain",
                "10.4.0.0/24",
                "max_blocks = 1\nkeep_ends_unused = true",
            ),
        ],
        claim: vec![
            "10.1.0.0/29".into(),
            "10.2.0.0/29".into(),
            "10.3.0.0/29".into(),
            "10.4.0.0/29".into(),
        ],
        extra: "[node.labels]\nrack = \"b\"".into(),
        ..single::config()
    }
}

#[test]
fn pools_are_for_nodes_and_workloads_with_certain_labels() {
    lab::run(|lab| {
        let mut agent = single::prepare(lab, selecting())?;
        agent.start()?;
        let mut count = 0;
        let mut got = |agent: &Agent, labels: &[&str]| -> Result<String> {
            count += 1;
            let id = format!("w{count}");
            let namespace = lab.namespace(&format!("w-{id}"))?;
            let path = namespace.path().display().to_string();
            let mut command = vec!["workload", "add", &id, "--netns", &path];
            for label in labels {
                command.extend(["--label", label]);
            }
            agent.agentctl(&command)?;
            Ok(agent.client().get(&id)?.addresses[0].pool.clone())
        };
        ensure!(got(&agent, &[])? == "b");
        ensure!(
            got(&agent, &["net=storage"])? == "b",
            "in the order of the file"
        );
        let listed = agent.agentctl(&["pool", "list"])?;
        ensure!(listed.contains("other nodes"), "{listed}");
        agent.agentctl(&["pool", "disable", "b"])?;
        ensure!(got(&agent, &["net=storage"])? == "storage");
        ensure!(got(&agent, &[])? == "plain");
        ensure!(got(&agent, &[])? == "plain");

        // One block of four addresses, of which two are never given out.
        let why = refused(got(&agent, &[]))?;
        ensure!(
            why.contains("pool \"plain\" (10.4.0.0/24) has no free address")
                && why.contains("1 block(s) of 4 addresses, 2 in use, 0 cooling down, 2 reserved")
                && why.contains("1 blocks are the most it may hold (max_blocks)")
                && why.contains("what would help: deleting workloads, or a larger max_blocks"),
            "{why}"
        );
        // The label of the node changes live, and so does what it takes from.
        agent.config_mut().extra = "[node.labels]\nrack = \"a\"".into();
        let said = reload(&agent)?;
        ensure!(said.contains("labels of the node"), "{said}");
        ensure!(got(&agent, &[])? == "a");
        Ok(())
    });
}

#[test]
fn connections_of_a_released_address_are_forgotten() {
    lab::run(|lab| {
        let mut config = single::config();
        for pool in &mut config.pools {
            pool.extra = "nat_outgoing = true".into();
        }
        let agent = single::prepare(lab, config)?;
        agent.start()?;
        let workload = agent.workload("client")?;
        let address = workload.ipv4()?;
        let gateway = format!("{}:53", node_address(2).0);
        workload.namespace.enter(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"question", &gateway)?;
            Ok(())
        })??;
        let entry = format!("src={address} ");
        lab.wait_for("the connection is tracked", PATIENCE, || {
            let tracked = agent.namespace().show("conntrack -L")?;
            ensure!(tracked.contains(&entry), "{tracked}");
            Ok(())
        })?;
        agent.client().delete("client")?;
        // Long before the kernel would (30 s), and the address is given out again (130 s).
        lab.wait_for("the connection is forgotten", PATIENCE / 2, || {
            let tracked = agent.namespace().show("conntrack -L")?;
            ensure!(!tracked.contains(&entry), "{tracked}");
            Ok(())
        })
    });
}
