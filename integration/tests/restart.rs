//! Restarts and leaving, with a real BIRD on the other side: drain (RFC 8326), a reflector that
//! starts afresh (RFC 4724 §4.2), and one that stays away (RFC 9494).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::lab::bird::Bird;
use integration::lab::ping::Endless;
use integration::lab::two_nodes::{TwoNodes, reflector_config};
use integration::lab::{self, PATIENCE};

/// A prefix of node-a at BIRD, with its attributes.
fn shown(reflector: &Bird, prefix: &str) -> Result<String> {
    reflector.birdc(&format!("show route {prefix} all"))
}

fn blocks(nodes: &TwoNodes) -> Result<Vec<String>> {
    let blocks = nodes.a.client().blocks()?;
    Ok(blocks.into_iter().map(|block| block.cidr).collect())
}

fn has_none_of(reflector: &Bird, blocks: &[String]) -> Result<()> {
    let known = reflector.prefixes()?;
    ensure!(
        !blocks.iter().any(|block| known.contains(block)),
        "{known:?}"
    );
    Ok(())
}

#[test]
fn a_drained_node_is_a_last_resort_first_then_gone_over_a_restart_and_back_on_request() {
    lab::run(|lab| {
        let nodes = TwoNodes::start(lab)?;
        let workload = nodes.a.workload("stays")?;
        let other = nodes.b.workload("other")?;
        let blocks = blocks(&nodes)?;
        ensure!(blocks.len() == 2, "{blocks:?}");

        nodes
            .a
            .agentctl(&["drain", "--timeout", "3", "--no-wait"])?;
        lab.wait_for("GRACEFUL_SHUTDOWN at BIRD", PATIENCE, || {
            for block in &blocks {
                let text = shown(&nodes.reflector, block)?;
                ensure!(
                    text.contains("(65535,0)") && text.contains("BGP.local_pref: 0"),
                    "{text}"
                );
            }
            Ok(())
        })?;
        let status = nodes.a.agentctl(&["status"])?;
        ensure!(status.contains("leaving"), "{status}");
        // Everything still works, in both directions.
        TwoNodes::ping_across(
            std::slice::from_ref(&workload),
            std::slice::from_ref(&other),
            3,
        )?;

        let text = nodes.a.agentctl(&["drain", "--timeout", "1"])?;
        ensure!(text.contains("drained"), "{text}");
        lab.wait_for("nothing of the node at BIRD", PATIENCE, || {
            has_none_of(&nodes.reflector, &blocks)
        })?;
        let refused = nodes.a.workload("new").err().context("a new workload")?;
        ensure!(format!("{refused:#}").contains("drained"), "{refused:#}");
        let explained = nodes.a.agentctl(&["peer", "list"])?;
        ensure!(explained.contains("Established"), "{explained}");

        nodes.a.kill()?;
        nodes.a.start()?;
        nodes.reflector.wait_established("node_a")?;
        lab.wait_for("its table at BIRD is complete", PATIENCE, || {
            let peers = nodes.a.client().peers()?;
            let families = peers.first().context("a peer")?.families.clone();
            ensure!(families.iter().all(|f| f.end_of_rib_sent), "{families:?}");
            Ok(())
        })?;
        has_none_of(&nodes.reflector, &blocks)?;

        nodes.a.agentctl(&["undrain"])?;
        lab.wait_for("the blocks at BIRD", PATIENCE, || {
            for block in &blocks {
                let text = shown(&nodes.reflector, block)?;
                ensure!(
                    text.contains("unicast") && !text.contains("(65535,0)"),
                    "{text}"
                );
            }
            Ok(())
        })?;
        nodes.a.workload("newer")?;
        TwoNodes::ping_across(
            std::slice::from_ref(&workload),
            std::slice::from_ref(&other),
            3,
        )
        .map(drop)
    });
}

/// Kills BIRD and starts it again as a program that knows nothing of the time before.
fn start_afresh(lab: &lab::Lab, nodes: &mut TwoNodes, extra: &str) -> Result<()> {
    let namespace = nodes.reflector.namespace().clone();
    nodes.reflector.process().kill();
    lab.wait_for("both nodes saw it go", PATIENCE, || {
        for agent in [&nodes.a, &nodes.b] {
            let status = agent.client().status()?;
            ensure!(status.peers_established == 0, "{}", agent.name());
        }
        Ok(())
    })?;
    nodes.reflector = Bird::start(lab, &namespace, "bird-again", &reflector(extra))?;
    Ok(())
}

fn reflector(extra: &str) -> integration::lab::config::BirdConfig {
    let mut config = reflector_config();
    for peer in &mut config.peers {
        peer.extra += extra;
    }
    config
}

#[test]
fn a_reflector_that_starts_afresh_costs_no_packet_where_nodes_are_told_that_it_forwards_nothing() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        let graceful = " graceful restart on; graceful restart time 60;";
        nodes.reflector.configure(&reflector(graceful))?;
        for agent in [&mut nodes.a, &mut nodes.b] {
            agent.config_mut().bgp = "graceful_restart = { assume_forwarding = true }".into();
            agent.start()?;
        }
        nodes.wait_converged()?;
        let on_a = nodes.a.workload("a1")?;
        let on_b = nodes.b.workload("b1")?;
        let pings = vec![
            Endless::start(lab, &on_a.namespace, on_b.ipv4()?)?,
            Endless::start(lab, &on_b.namespace, on_a.ipv6()?)?,
        ];
        lab.wait_until("some answers", PATIENCE, || {
            pings.iter().all(|ping| ping.answers() >= 5)
        })?;
        start_afresh(lab, &mut nodes, graceful)?;
        nodes.wait_converged()?;
        lab.wait_for("End-of-RIB of the new reflector", PATIENCE, || {
            for agent in [&nodes.a, &nodes.b] {
                let peers = agent.client().peers()?;
                let families = &peers.first().context("a peer")?.families;
                ensure!(families.iter().all(|f| f.end_of_rib_received));
            }
            Ok(())
        })?;
        let answers: Vec<usize> = pings.iter().map(Endless::answers).collect();
        lab.wait_until("answers afterwards", PATIENCE, || {
            let mut both = pings.iter().zip(&answers);
            both.all(|(ping, before)| ping.answers() >= before + 20)
        })?;
        for ping in pings {
            let report = ping.finish(lab)?;
            ensure!(report.lost() == 0, "{report:?}");
        }
        Ok(())
    });
}

#[test]
fn a_reflector_that_stays_away_leaves_its_routes_as_a_last_resort_where_both_sides_want_it() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        let long = " graceful restart on; graceful restart time 1;\n  long lived graceful restart on; \
                    long lived stale time 600;";
        nodes.reflector.configure(&reflector(long))?;
        for agent in [&mut nodes.a, &mut nodes.b] {
            agent.config_mut().bgp = "long_lived_graceful_restart = { stale_time = \"5m\" }".into();
            agent.start()?;
        }
        nodes.wait_converged()?;
        let on_a = nodes.a.workload("a1")?;
        let on_b = nodes.b.workload("b1")?;
        nodes.reflector.process().kill();
        lab.wait_for("the routes are long-lived stale", PATIENCE, || {
            let text = nodes
                .a
                .agentctl(&["--output", "json", "route", "list", "--table", "loc"])?;
            ensure!(text.contains("llgr-stale"), "{text}");
            Ok(())
        })?;
        TwoNodes::ping_across(std::slice::from_ref(&on_a), std::slice::from_ref(&on_b), 3)?;
        // Back again: BIRD sends them anew, and nothing is stale.
        start_afresh(lab, &mut nodes, long)?;
        nodes.wait_converged()?;
        lab.wait_for("nothing is stale", Duration::from_secs(30), || {
            let text = nodes
                .a
                .agentctl(&["--output", "json", "route", "list", "--table", "loc"])?;
            ensure!(!text.contains("llgr-stale"), "{text}");
            Ok(())
        })?;
        nodes.wait_converged()?;
        TwoNodes::ping_across(std::slice::from_ref(&on_a), std::slice::from_ref(&on_b), 3).map(drop)
    });
}

/// What node-a has said of its restart in the OPEN of its session.
fn said(nodes: &TwoNodes) -> Result<String> {
    nodes.reflector.wait_established("node_a")?;
    nodes.a.wait_peers(1)?;
    let peers = nodes.a.client().peers()?;
    let sent = &peers.first().context("a peer")?.capabilities_sent;
    let found = sent
        .iter()
        .find(|text| text.starts_with("graceful-restart"));
    found.cloned().with_context(|| format!("{sent:?}"))
}

#[test]
fn forwarding_is_claimed_for_a_family_only_when_the_kernel_still_has_what_was_announced_of_it() {
    lab::run(|lab| {
        let nodes = TwoNodes::prepare(lab)?;
        nodes.a.start()?;
        let fresh = said(&nodes)?;
        ensure!(
            fresh == "graceful-restart 120s notification ipv4-unicast ipv6-unicast",
            "{fresh}"
        );
        nodes.a.kill()?;
        nodes.a.start()?;
        let whole = said(&nodes)?;
        ensure!(
            whole.contains("restarting")
                && whole.contains("ipv4-unicast (forwarding)")
                && whole.contains("ipv6-unicast (forwarding)"),
            "{whole}"
        );
        for (family, kept, lost) in [
            ("-6", "ipv4-unicast", "ipv6-unicast"),
            ("-4", "ipv6-unicast", "ipv4-unicast"),
        ] {
            nodes.a.kill()?;
            let command = ["ip", family, "route", "flush", "type", "blackhole"];
            nodes.a.namespace().output(command)?;
            nodes.a.start()?;
            let half = said(&nodes)?;
            ensure!(
                half.contains(&format!("{kept} (forwarding)"))
                    && half.contains(lost)
                    && !half.contains(&format!("{lost} (forwarding)")),
                "{half}"
            );
        }
        Ok(())
    });
}
