//! External peers: real BIRDs as top-of-rack routers, TCP MD5, ECMP, and what import refuses.

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::{BirdConfig, BirdPeer, Peer};
use integration::lab::{self, Lab, PATIENCE, single};

const NODE: u32 = 64512;
const TOR: u32 = 64513;
/// Prefixes inside the pools that both routers announce.
const SHARED: [&str; 2] = ["10.244.100.0/26", "fd10:244::100:0/122"];

/// A top-of-rack router on its own link to the node, announcing what `routes` says.
fn router_config(number: u8, password: &str, routes: &str) -> BirdConfig {
    let session = |name: &str, address: String, family| BirdPeer {
        name: name.into(),
        address,
        asn: NODE,
        extra: format!("password \"{password}\";"),
        families: vec![family],
    };
    BirdConfig {
        router_id: format!("10.1.{number}.1"),
        address: format!("10.1.{number}.1"),
        address6: format!("fd00:1:{number}::1"),
        asn: TOR,
        peers: vec![
            session("node", format!("10.1.{number}.2"), "ipv4"),
            session("node6", format!("fd00:1:{number}::2"), "ipv6"),
        ],
        extra: format!(
            "protocol static {{ ipv4; route {} blackhole; {routes} }}\n\
             protocol static {{ ipv6; route {} blackhole; }}",
            SHARED[0], SHARED[1]
        ),
    }
}

/// Routes of the node of protocol `agentd-bgp`, one line each; ECMP lines joined.
fn learned(agent: &Agent) -> Result<String> {
    let mut text = String::new();
    for family in ["-4", "-6"] {
        text += &agent
            .namespace()
            .output(["ip", "-oneline", family, "route", "show", "protocol", "71"])?;
    }
    Ok(text)
}

/// Whether both shared prefixes are installed over exactly these links.
fn installed_over(agent: &Agent, links: &[&str]) -> Result<()> {
    let text = learned(agent)?;
    for prefix in SHARED {
        // IPv6 multipath without nexthop objects would be printed the same way.
        let line = text
            .lines()
            .find(|line| line.starts_with(prefix))
            .with_context(|| format!("no {prefix} in:\n{text}"))?;
        for link in ["eth1", "eth2"] {
            ensure!(
                line.contains(&format!("dev {link}")) == links.contains(&link),
                "not over {links:?}: {line}"
            );
        }
    }
    Ok(())
}

fn node(lab: &Lab, routers: &[lab::netns::Netns]) -> Result<Agent> {
    let namespace = single::node_namespace(lab)?;
    let mut config = single::config();
    for (router, number) in routers.iter().zip(1u8..) {
        let link = format!("eth{number}");
        lab.link((router, "eth0"), (&namespace, &link))?;
        lab.address(router, "eth0", &format!("10.1.{number}.1/24"))?;
        lab.address(router, "eth0", &format!("fd00:1:{number}::1/64"))?;
        lab.address(&namespace, &link, &format!("10.1.{number}.2/24"))?;
        lab.address(&namespace, &link, &format!("fd00:1:{number}::2/64"))?;
        let key = lab.write_file(&format!("tor{number}.key"), &format!("secret-{number}\n"))?;
        for (name, address) in [
            (format!("tor{number}"), format!("10.1.{number}.1")),
            (format!("tor{number}-v6"), format!("fd00:1:{number}::1")),
        ] {
            let mut peer = Peer::new(&name, &address, TOR);
            peer.extra = format!("password_file = {key:?}");
            config.peers.push(peer);
        }
    }
    Agent::new(lab, &namespace, config)
}

#[test]
fn external_peers_with_md5_give_ecmp_routes_and_only_those_of_the_pools() {
    lab::run(|lab| {
        let routers = [lab.namespace("tor1")?, lab.namespace("tor2")?];
        let agent = node(lab, &routers)?;
        // Besides the shared prefixes: a default route, one outside the pools, one of the node's
        // own blocks and a part of it.
        let unwanted = "route 0.0.0.0/0 blackhole; route 192.0.2.0/24 blackhole; \
                        route 10.244.1.0/26 blackhole; route 10.244.1.8/29 blackhole;";
        let one = Bird::start(
            lab,
            &routers[0],
            "tor1",
            &router_config(1, "secret-1", unwanted),
        )?;
        // The second has another key than the node, at first.
        let two = Bird::start(lab, &routers[1], "tor2", &router_config(2, "wrong", ""))?;
        agent.start()?;
        one.wait_established("node")?;

        lab.wait_for("routes of the first router", PATIENCE, || {
            installed_over(&agent, &["eth1"])
        })?;
        let text = learned(&agent)?;
        ensure!(text.lines().count() == SHARED.len(), "{text}");
        for prefix in ["default", "192.0.2", "10.244.1."] {
            ensure!(!text.contains(prefix), "{prefix} in {text}");
        }
        what_was_refused_is_told(&agent)?;
        lab.wait_for("the node's blocks at the first router", PATIENCE, || {
            let known =
                one.birdc("show route protocol node")? + &one.birdc("show route protocol node6")?;
            for block in agent.client().blocks()? {
                ensure!(
                    known.contains(&block.cidr),
                    "{} is not in {known}",
                    block.cidr
                );
            }
            ensure!(!known.contains("/32") && !known.contains("/128"), "{known}");
            Ok(())
        })?;
        lab.wait_for("segments with a wrong signature", PATIENCE, || {
            let failures = md5_failures(&routers[1])?;
            ensure!(failures > 2, "{failures}");
            Ok(())
        })?;
        ensure!(
            !two.is_established("node")?,
            "a session although the keys differ"
        );

        two.configure(&router_config(2, "secret-2", ""))?;
        two.wait_established("node")?;
        lab.wait_for("routes over both", PATIENCE, || {
            installed_over(&agent, &["eth1", "eth2"])
        })?;

        // One router dies: its next hop goes away, the other stays.
        one.process().kill();
        lab.wait_for("routes over the second only", PATIENCE, || {
            installed_over(&agent, &["eth2"])
        })?;
        // A withdrawal takes the routes away.
        let mut silent = router_config(2, "secret-2", "");
        silent.extra = String::new();
        two.configure(&silent)?;
        lab.wait_until("no learned routes", PATIENCE, || {
            learned(&agent).is_ok_and(|text| text.is_empty())
        })?;
        Ok(())
    });
}

/// Segments whose signature did not match (RFC 2385), counted by the kernel.
fn md5_failures(namespace: &lab::netns::Netns) -> Result<u64> {
    let text = namespace.show("cat /proc/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        anyhow::bail!("no TcpExt counters");
    };
    names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "TCPMD5Failure")
        .context("no TCPMD5Failure")?
        .1
        .parse()
        .context("a counter")
}

fn what_was_refused_is_told(agent: &Agent) -> Result<()> {
    let routes = agent.client().routes(agentd_proto::v1::ListRoutesRequest {
        table: agentd_proto::v1::RouteTable::AdjRibIn.into(),
        peer: "tor1".into(),
        ..Default::default()
    })?;
    for prefix in [
        "0.0.0.0/0",
        "192.0.2.0/24",
        "10.244.1.0/26",
        "10.244.1.8/29",
    ] {
        let route = routes
            .iter()
            .find(|route| route.prefix == prefix)
            .with_context(|| format!("no {prefix} in the Adj-RIB-In"))?;
        ensure!(!route.best && !route.reason.is_empty(), "{route:?}");
        ensure!(route.policy_rule.starts_with("pools/"), "{route:?}");
    }
    // Somebody who asks for the address hears of the rule, although nothing leads there.
    let explained = agent.client().explain("192.0.2.5")?;
    let told = explained.steps.iter().any(|step| {
        step.text
            .contains("received from tor1: rejected by policy pools/outside-pools")
    });
    ensure!(told, "{explained:?}");
    Ok(())
}
