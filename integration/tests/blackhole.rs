//! BLACKHOLE (RFC 7999), from the neighbour's announcement to the kernel's route and back: a real
//! BIRD asks for packets to be dropped, another looks on as a neighbour of another AS.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::{AgentConfig, BirdConfig, BirdPeer, Peer};
use integration::lab::{self, Lab, PATIENCE, single};

const NODE: u32 = 64512;
const CUSTOMER: u32 = 64513;
const OTHER: u32 = 64514;

/// Hosts of the customer, and a prefix of his.
const HOST: &str = "198.51.100.7";
const HOST6: &str = "2001:db8:7::7";
const PREFIX: &str = "198.51.100.0/24";

/// Sessions of both families with the node from network `number`, 10.1.N.0/24 and fd00:1:N::/64.
fn bird_config(number: u8, asn: u32, extra: String) -> BirdConfig {
    let session = |name: &str, address: String, family| BirdPeer {
        name: name.into(),
        address,
        asn: NODE,
        extra: String::new(),
        families: vec![family],
    };
    BirdConfig {
        router_id: format!("10.1.{number}.1"),
        address: format!("10.1.{number}.1"),
        address6: format!("fd00:1:{number}::1"),
        asn,
        peers: vec![
            session("node", format!("10.1.{number}.2"), "ipv4"),
            session("node6", format!("fd00:1:{number}::2"), "ipv6"),
        ],
        extra,
    }
}

/// What the customer announces: a prefix, and with BLACKHOLE these.
fn customer(dropped: &[&str]) -> BirdConfig {
    let mut extra = format!("protocol static {{ ipv4; route {PREFIX} blackhole; }}\n");
    for (family, colon) in [("ipv4", false), ("ipv6", true)] {
        let _ = write!(extra, "protocol static {{ {family};");
        for prefix in dropped
            .iter()
            .filter(|prefix| prefix.contains(':') == colon)
        {
            let _ = write!(
                extra,
                " route {prefix} blackhole {{ bgp_community.add((65535, 666)); }};"
            );
        }
        extra.push_str(" }\n");
    }
    bird_config(1, CUSTOMER, extra)
}

fn config(blackhole: bool) -> AgentConfig {
    let peer = |name: &str, address: &str, asn, extra: &str| {
        let mut peer = Peer::new(name, address, asn);
        peer.extra = extra.to_owned();
        peer
    };
    let honour = format!("import = \"customer\"\nblackhole = {blackhole}");
    AgentConfig {
        peers: vec![
            peer("customer", "10.1.1.1", CUSTOMER, &honour),
            peer("customer6", "fd00:1:1::1", CUSTOMER, &honour),
            peer("other", "10.1.2.1", OTHER, "export = \"all\""),
            peer("other6", "fd00:1:2::1", OTHER, "export = \"all\""),
        ],
        // His networks, not as single addresses.
        extra: "[[policy]]\nname = \"customer\"\n[[policy.rule]]\nname = \"his\"\naction = \"accept\"\n\
                [policy.rule.match]\nprefixes = [\"198.51.100.0/22 le 24\", \"2001:db8::/32 le 64\", \
                \"10.244.0.0/16 le 32\"]\n"
            .into(),
        ..single::config()
    }
}

fn birds(lab: &Lab) -> Result<(Agent, Bird, Bird)> {
    let node = single::node_namespace(lab)?;
    let mut routers = Vec::new();
    for (name, number) in [("customer", 1), ("other", 2)] {
        let router = lab.namespace(name)?;
        let link = format!("eth{number}");
        lab.link((&router, "eth0"), (&node, &link))?;
        for (namespace, link, end) in [(&router, "eth0", 1), (&node, link.as_str(), 2)] {
            lab.address(namespace, link, &format!("10.1.{number}.{end}/24"))?;
            lab.address(namespace, link, &format!("fd00:1:{number}::{end}/64"))?;
        }
        routers.push(router);
    }
    let agent = Agent::new(lab, &node, config(true))?;
    agent.start()?;
    let own = [format!("{HOST}/32"), format!("{HOST6}/128")];
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let from = Bird::start(lab, &routers[0], "customer", &customer(&own))?;
    let other = bird_config(2, OTHER, String::new());
    let other = Bird::start(lab, &routers[1], "other", &other)?;
    for bird in [&from, &other] {
        bird.wait_established("node")?;
        bird.wait_established("node6")?;
    }
    Ok((agent, from, other))
}

/// The line of the kernel for exactly this prefix; empty: there is none.
fn kernel(agent: &Agent, prefix: &str) -> Result<String> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let words = ["ip", family, "route", "show", "exact", prefix];
    Ok(agent.namespace().output(words)?.trim().to_owned())
}

fn wait_kernel(
    lab: &Lab,
    agent: &Agent,
    prefix: &str,
    what: &str,
    holds: impl Fn(&str) -> bool,
) -> Result<()> {
    lab.wait_for(&format!("{prefix}: {what}"), PATIENCE, || {
        let line = kernel(agent, prefix)?;
        ensure!(holds(&line), "{line:?}");
        Ok(())
    })
}

fn is_dropped(line: &str) -> bool {
    // The names of protocols are not installed in the lab.
    line.starts_with("blackhole ") && line.contains(" proto 71")
}

#[test]
fn a_neighbour_has_packets_to_its_hosts_dropped_and_only_here() {
    lab::run(|lab| {
        let (agent, customer_bird, other) = birds(lab)?;
        // RFC 7999 §3.3: more specific than what is taken otherwise.
        for prefix in [HOST, HOST6] {
            wait_kernel(lab, &agent, prefix, "dropped", is_dropped)?;
        }
        wait_kernel(lab, &agent, PREFIX, "a way", |line| line.contains("via"))?;
        let ping = agent.namespace().output(["ping", "-c1", "-W1", HOST]);
        ensure!(ping.is_err(), "an answer: {ping:?}");

        // RFC 7999 §3.2: it does not leave the AS; the prefix around it does.
        lab.wait_for("the prefix around it", PATIENCE, || {
            let prefixes = other.prefixes()?;
            ensure!(prefixes.iter().any(|p| p == PREFIX), "{prefixes:?}");
            Ok(())
        })?;
        let prefixes = other.prefixes()?;
        let leaked = |p: &&String| p.contains(HOST) || p.contains(HOST6);
        ensure!(!prefixes.iter().any(|p| leaked(&p)), "{prefixes:?}");

        // What people see.
        let listed = agent.agentctl(&["route", "list", &format!("{HOST}/32")])?;
        for text in ["discard", "blackhole (RFC 7999) by policy customer/his"] {
            ensure!(listed.contains(text), "no {text:?} in\n{listed}");
        }
        let listed =
            agent.agentctl(&["route", "list", "--table", "kernel", &format!("{HOST}/32")])?;
        ensure!(listed.contains("blackhole"), "{listed}");
        let explained = agent.client().explain(HOST)?;
        let mut steps: Vec<String> = explained.steps.into_iter().map(|step| step.text).collect();
        steps.push(explained.summary);
        let explained = steps.join("\n");
        for text in [
            "is dropped on this node: customer wants 198.51.100.7/32 to be a blackhole",
            "by policy customer/his",
        ] {
            ensure!(explained.contains(text), "no {text:?} in\n{explained}");
        }

        // Taken away by somebody, it comes back; withdrawn, it goes.
        agent
            .namespace()
            .output(["ip", "route", "del", "blackhole", HOST])?;
        wait_kernel(lab, &agent, HOST, "dropped again", is_dropped)?;
        customer_bird.configure(&customer(&[]))?;
        for prefix in [HOST, HOST6] {
            wait_kernel(lab, &agent, prefix, "withdrawn", str::is_empty)?;
        }
        Ok(())
    });
}

#[test]
fn an_own_block_and_its_workloads_are_not_dropped_for_anybody() {
    lab::run(|lab| {
        let (agent, bird, _other) = birds(lab)?;
        let workload = agent.workload("w")?;
        let address = workload.ipv4()?.to_string();
        let block = agent.client().blocks()?;
        let block = block
            .iter()
            .map(|block| block.cidr.clone())
            .find(|cidr| !cidr.contains(':'));
        let block = block.unwrap_or_default();
        let another = "10.244.1.250";
        let mine = [
            format!("{address}/32"),
            block.clone(),
            format!("{another}/32"),
        ];
        let mut mine: Vec<&str> = mine.iter().map(String::as_str).collect();
        let sign = format!("{HOST}/32");
        mine.push(&sign);
        bird.configure(&customer(&mine))?;
        wait_kernel(lab, &agent, HOST, "dropped", is_dropped)?;
        lab.wait_for("the refusal", PATIENCE, || {
            let shown = agent.agentctl(&["route", "list", "--table", "in", &block])?;
            let refusals = shown
                .matches("BLACKHOLE of what is originated here")
                .count();
            ensure!(refusals >= 2, "{refusals} refusals in\n{shown}");
            Ok(())
        })?;
        let route = kernel(&agent, &address)?;
        ensure!(route.contains(" dev agt"), "{route:?}");
        agent.namespace().output(["ping", "-c1", "-W2", &address])?;
        Ok(())
    });
}

/// How often the session with each peer was established.
fn sessions(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let peers = agent.client().peers()?.into_iter();
    Ok(peers
        .map(|peer| {
            let counters = peer.counters.unwrap_or_default();
            (peer.name, counters.established_count)
        })
        .collect())
}

#[test]
fn without_the_key_the_community_means_nothing() {
    lab::run(|lab| {
        let (mut agent, bird, other) = birds(lab)?;
        wait_kernel(lab, &agent, HOST, "dropped", is_dropped)?;
        agent.wait_peers(sessions(&agent)?.len() as u64)?;
        // At the start both sides may connect at once, which costs a session with BIRD.
        let before = sessions(&agent)?;
        // Applied to the running session: the /32 is too long for the policy now.
        *agent.config_mut() = config(false);
        agent.write_config()?;
        let said = agent.agentctl(&["reload"])?;
        ensure!(said.contains("blackhole"), "{said}");
        wait_kernel(lab, &agent, HOST, "too long", str::is_empty)?;
        // What the policy takes is a route as any other, here and elsewhere.
        let prefix = "198.51.101.0/24";
        bird.configure(&customer(&[prefix]))?;
        wait_kernel(lab, &agent, prefix, "a way", |line| {
            line.contains("via") && !line.contains("blackhole")
        })?;
        lab.wait_for("the route elsewhere", PATIENCE, || {
            let shown = other.birdc(&format!("show route all {prefix}"))?;
            ensure!(shown.contains("(65535,666)"), "{shown}");
            Ok(())
        })?;
        // And with the key again it is dropped, over the same session.
        *agent.config_mut() = config(true);
        agent.write_config()?;
        agent.agentctl(&["reload"])?;
        wait_kernel(lab, &agent, prefix, "dropped", is_dropped)?;
        lab.wait_for("nothing elsewhere", PATIENCE, || {
            let prefixes = other.prefixes()?;
            ensure!(!prefixes.iter().any(|p| p == prefix), "{prefixes:?}");
            Ok(())
        })?;
        ensure!(sessions(&agent)? == before, "a session was reset");
        Ok(())
    });
}
