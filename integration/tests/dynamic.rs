//! Peers that are not in the configuration when the agent starts: those of a range, those the API
//! adds, and what a reload changes. The other side is a real BIRD.

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::{AgentConfig, BirdConfig, BirdPeer, Peer};
use integration::lab::netns::Netns;
use integration::lab::{self, Lab, PATIENCE, single};
use nix::sys::signal::Signal;

const NODE: u32 = 64512;
const TOR: u32 = 64513;
const LEARNED: &str = "10.244.100.0/26";

/// A router on a link of its own to the node: 10.1.1.1 and 10.1.1.2, fd00:1:1::1 and ::2.
fn linked(lab: &Lab) -> Result<(Netns, Netns)> {
    let router = lab.namespace("tor")?;
    let node = single::node_namespace(lab)?;
    lab.link((&router, "eth0"), (&node, "eth1"))?;
    for (namespace, link, end) in [(&router, "eth0", 1), (&node, "eth1", 2)] {
        lab.address(namespace, link, &format!("10.1.1.{end}/24"))?;
        lab.address(namespace, link, &format!("fd00:1:1::{end}/64"))?;
    }
    Ok((router, node))
}

fn router_config(password: Option<&str>) -> BirdConfig {
    let session = |name: &str, address: &str, family| BirdPeer {
        name: name.into(),
        address: address.into(),
        asn: NODE,
        extra: password.map_or_else(String::new, |key| format!("password \"{key}\";")),
        families: vec![family],
    };
    BirdConfig {
        router_id: "10.1.1.1".into(),
        address: "10.1.1.1".into(),
        address6: "fd00:1:1::1".into(),
        asn: TOR,
        peers: vec![
            session("node", "10.1.1.2", "ipv4"),
            session("node6", "fd00:1:1::2", "ipv6"),
        ],
        extra: format!("protocol static {{ ipv4; route {LEARNED} blackhole; }}"),
    }
}

/// Ranges of both families with this key.
fn ranges(key: &std::path::Path) -> String {
    ["10.1.1.0/24", "fd00:1:1::/64"]
        .iter()
        .enumerate()
        .map(|(index, range)| {
            format!(
                "[[bgp.peer]]\nname = \"tors{index}\"\nrange = \"{range}\"\nasn = \"external\"\n\
                 limit = 2\npassword_file = {key:?}\n"
            )
        })
        .collect()
}

fn names(agent: &Agent) -> Result<Vec<String>> {
    let mut names: Vec<String> = agent
        .client()
        .peers()?
        .into_iter()
        .map(|peer| peer.name)
        .collect();
    names.sort();
    Ok(names)
}

fn has_route(agent: &Agent) -> Result<()> {
    let routes = agent
        .namespace()
        .output(["ip", "route", "show", "protocol", "71"])?;
    ensure!(routes.contains(LEARNED), "{routes}");
    Ok(())
}

#[test]
fn neighbours_of_ranges_with_md5_come_and_go() {
    lab::run(|lab| {
        let (router, node) = linked(lab)?;
        let key = lab.write_file("range.key", "secret\n")?;
        let config = AgentConfig {
            extra: ranges(&key),
            ..single::config()
        };
        let agent = Agent::new(lab, &node, config)?;
        agent.start()?;
        // Without the key of the range nobody gets as far as a connection.
        let bird = Bird::start(lab, &router, "tor", &router_config(None))?;
        lab.wait_for("unsigned segments", PATIENCE, || {
            let text = agent.namespace().show("cat /proc/net/netstat")?;
            let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
            let (names, values) = (
                lines.next().context("names")?,
                lines.next().context("values")?,
            );
            let mut pairs = names.split(' ').zip(values.split(' '));
            let dropped = pairs.find(|(name, _)| *name == "TCPMD5NotFound");
            let dropped: u64 = dropped.context("no TCPMD5NotFound")?.1.parse()?;
            ensure!(dropped > 1, "{dropped}");
            Ok(())
        })?;
        ensure!(names(&agent)?.is_empty(), "{:?}", names(&agent)?);

        bird.configure(&router_config(Some("secret")))?;
        bird.wait_established("node")?;
        bird.wait_established("node6")?;
        ensure!(names(&agent)? == ["tors0:10.1.1.1", "tors1:fd00:1:1::1"]);
        lab.wait_for("what it announces", PATIENCE, || has_route(&agent))?;
        let shown = agent.agentctl(&["peer", "show", "tors0:10.1.1.1"])?;
        for text in [
            "the range tors0",
            "Established",
            "TCP MD5",
            "64513 (external",
        ] {
            ensure!(shown.contains(text), "no {text:?} in\n{shown}");
        }
        let range = agent.agentctl(&["peer", "show", "tors0"])?;
        ensure!(range.contains("1 of at most 2, 1 Established"), "{range}");

        // Gone, and with it all that was kept for it.
        bird.process().kill();
        lab.wait_for("no peers", PATIENCE, || {
            let names = names(&agent)?;
            ensure!(names.is_empty(), "{names:?}");
            Ok(())
        })?;
        ensure!(has_route(&agent).is_err(), "the route is still there");
        Ok(())
    });
}

#[test]
fn peers_are_added_changed_shut_down_and_removed_while_the_agent_runs() {
    lab::run(|lab| {
        let (router, node) = linked(lab)?;
        let mut agent = Agent::new(lab, &node, single::config())?;
        agent.start()?;
        let bird = Bird::start(lab, &router, "tor", &router_config(None))?;

        let said = agent.agentctl(&[
            "peer",
            "add",
            "tor",
            "--address",
            "10.1.1.1",
            "--asn",
            "64513",
        ])?;
        ensure!(said == "peer tor: added\n", "{said}");
        bird.wait_established("node")?;
        lab.wait_for("its route", PATIENCE, || has_route(&agent))?;

        // Durable: it is there again after a crash, and so is that it was shut down.
        agent.agentctl(&["peer", "shutdown", "tor", "--message", "back at noon"])?;
        lab.wait_until("the message at the other end", PATIENCE, || {
            bird.process().log_text().contains("back at noon")
        })?;
        agent.kill()?;
        agent.start()?;
        let list = agent.agentctl(&["peer", "list"])?;
        ensure!(list.contains("back at noon"), "{list}");
        ensure!(!bird.is_established("node")?, "it is shut down");
        agent.agentctl(&["peer", "enable", "tor"])?;
        bird.wait_established("node")?;

        // A reset ends the session, a soft one does not.
        let sessions = |agent: &Agent| -> Result<u64> {
            let peers = agent.client().peers()?;
            let peer = peers.first().context("no peer")?;
            Ok(peer.counters.context("no counters")?.established_count)
        };
        let before = sessions(&agent)?;
        agent.agentctl(&["peer", "reset", "tor", "--soft"])?;
        ensure!(sessions(&agent)? == before);
        agent.agentctl(&["peer", "reset", "tor"])?;
        lab.wait_for("the next session", PATIENCE, || {
            let now = sessions(&agent)?;
            ensure!(now == before + 1, "{now} after {before}");
            Ok(())
        })?;
        bird.wait_established("node")?;
        agent.agentctl(&["peer", "remove", "tor"])?;
        ensure!(names(&agent)?.is_empty());

        reloads(lab, &mut agent, &bird)
    });
}

/// The same router as a peer of the configuration file, with a key that changes.
fn reloads(lab: &Lab, agent: &mut Agent, bird: &Bird) -> Result<()> {
    let key = lab.write_file("tor.key", "first\n")?;
    let mut peer = Peer::new("tor", "10.1.1.1", TOR);
    peer.extra = format!("password_file = {key:?}");
    agent.config_mut().peers = vec![peer.clone()];
    agent.write_config()?;
    bird.configure(&router_config(Some("first")))?;
    let said = agent.agentctl(&["reload"])?;
    ensure!(
        said.contains("peer tor") && said.contains("added"),
        "{said}"
    );
    bird.wait_established("node")?;

    // A new key for both ends, without a restart.
    lab.write_file("tor.key", "second\n")?;
    bird.configure(&router_config(Some("second")))?;
    agent.process()?.signal(Signal::SIGHUP)?;
    bird.wait_established("node")?;
    lab.wait_for("routes with the new key", PATIENCE, || has_route(agent))?;

    // An empty key is never no key: the file is refused, and all stays as it is.
    lab.write_file("tor.key", "\n")?;
    let refused = agent
        .agentctl(&["reload"])
        .map_err(|error| error.to_string());
    let Err(refused) = refused else {
        anyhow::bail!("an empty password file was taken");
    };
    ensure!(refused.contains("tor.key is empty"), "{refused}");
    ensure!(bird.is_established("node")?, "the session was touched");

    agent.config_mut().peers.clear();
    agent.write_config()?;
    let said = agent.agentctl(&["reload"])?;
    ensure!(said.contains("removed"), "{said}");
    ensure!(names(agent)?.is_empty());
    lab.wait_until("no session", PATIENCE, || {
        bird.is_established("node").is_ok_and(|up| !up)
    })
}
