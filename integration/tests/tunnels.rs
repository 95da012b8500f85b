//! Two nodes with a router between them that forwards nothing but tunnels.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::netns::Netns;
use integration::lab::ping::{Endless, ping_all};
use integration::lab::routed_pair::RoutedPair;
use integration::lab::{self, Lab, PATIENCE};
use integration::vm;

const NONE: &str = "encapsulation = \"none\"";
const VXLAN: &str = "encapsulation = \"vxlan\"";
const CROSS: &str = "encapsulation = \"vxlan\"\nencapsulation_scope = \"cross-subnet\"";

/// Packets that went out through an interface.
fn sent(namespace: &Netns, interface: &str) -> Result<u64> {
    let text = namespace.show(&format!("ip -s link show dev {interface}"))?;
    // "TX: bytes packets …", and below it the numbers.
    let mut lines = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("TX:"));
    let numbers = lines.nth(1).context(text.clone())?;
    let packets = numbers.split_whitespace().nth(1).context(text.clone())?;
    packets.parse().context(text)
}

fn mtu_of(namespace: &Netns, interface: &str) -> Result<u32> {
    let text = namespace.show(&format!("ip -o link show {interface}"))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    let mtu = words.nth(1).context(text.clone())?;
    mtu.parse().context(text)
}

fn writes(agent: &Agent) -> Result<u64> {
    let status = agent.client().status()?;
    Ok(status.dataplane.context("no dataplane")?.writes)
}

/// Workloads reach each other through the device, packets that fill the MTU included, and from the
/// node itself.
fn through(lab: &Lab, pair: &RoutedPair, device: &str, mtu: u32) -> Result<()> {
    let on_a = pair.a.workload("a1")?;
    let on_b = pair.b.workload("b1")?;
    let before = sent(pair.a.namespace(), device)?;
    ping_all(&on_a.namespace, on_b.ipv4()?, 5)?;
    ensure!(sent(pair.a.namespace(), device)? >= before + 5);
    ensure!(mtu_of(&on_a.namespace, "eth0")? == mtu);
    // 20 bytes of IPv4 and 8 of ICMP.
    let size = (mtu - 28).to_string();
    let to = on_b.ipv4()?.to_string();
    let full = ["ping", "-n", "-c", "2", "-M", "do", "-s", &size, &to];
    on_a.namespace.output(full)?;
    ping_all(pair.a.namespace(), on_b.ipv4()?, 3)?;

    let text = pair.a.agentctl(&["explain", &on_b.ipv4()?.to_string()])?;
    ensure!(
        text.contains(&format!("{device}, to 192.168.27.12")),
        "{text}"
    );
    let text = pair.a.agentctl(&["status"])?;
    ensure!(
        text.contains(&format!("{device}: up, 1 other nodes")),
        "{text}"
    );

    // Repair: what somebody deletes or alters comes back.
    let own_mtu = mtu_of(pair.a.namespace(), device)?;
    for damage in [
        format!("link delete {device}"),
        format!("link set {device} down"),
        format!("link set {device} mtu 1300"),
        format!("address delete 192.168.26.11/32 dev {device}"),
    ] {
        let namespace = pair.a.namespace();
        namespace.show(&format!("ip {damage}"))?;
        lab.wait_for(&format!("all is right after {damage}"), PATIENCE, || {
            let link = namespace.show(&format!("ip address show {device}"))?;
            ensure!(
                link.contains(",UP") && link.contains("192.168.26.11/32"),
                "{link}"
            );
            ensure!(mtu_of(namespace, device)? == own_mtu, "{link}");
            ping_all(&on_a.namespace, on_b.ipv4()?, 1)
        })?;
    }

    // Restart: nothing is written, and packets go on meanwhile.
    let flood = Endless::dense(lab, &on_a.namespace, on_b.ipv4()?)?;
    pair.a.kill()?;
    pair.a.start()?;
    pair.a.wait_peers(1)?;
    std::thread::sleep(Duration::from_millis(500));
    let report = flood.finish(lab)?;
    ensure!(report.lost() == 0 && report.received > 10, "{report:?}");
    ensure!(writes(&pair.a)? == 0, "{} writes", writes(&pair.a)?);
    Ok(())
}

#[test]
fn vxlan_carries_both_families_over_a_router() {
    lab::run(|lab| {
        let pair = RoutedPair::start(lab, VXLAN, Some(VXLAN), "")?;
        // Room for the wider header, that over IPv6.
        through(lab, &pair, "agentd.vxlan", 1430)?;
        let on_a = pair.a.workload("a2")?;
        let on_b = pair.b.workload("b2")?;
        // The first packet may wait for the underlay's neighbours.
        lab.wait_for("the first IPv6 packet", PATIENCE, || {
            ping_all(&on_a.namespace, on_b.ipv6()?, 1)
        })?;
        ping_all(&on_a.namespace, on_b.ipv6()?, 5)?;
        ping_all(pair.a.namespace(), on_b.ipv6()?, 3)?;
        ensure!(sent(pair.a.namespace(), "agentd.vxlan6")? >= 8);
        let text = pair.a.agentctl(&["pool", "list"])?;
        ensure!(text.contains("vxlan"), "{text}");
        Ok(())
    });
}

#[test]
fn ipv6_is_carried_over_an_underlay_that_has_only_ipv4() {
    lab::run(|lab| {
        let mut pair = RoutedPair::prepare(lab, VXLAN, Some(VXLAN), "")?;
        for agent in [&mut pair.a, &mut pair.b] {
            agent.config_mut().address6 = None;
            let namespace = agent.namespace();
            namespace.ip(["-6", "address", "flush", "dev", "eth0"])?;
            agent.start()?;
        }
        pair.wait_route(&pair.a, "-6", "dev agentd.vxlan")?;
        pair.wait_route(&pair.b, "-6", "dev agentd.vxlan")?;
        let on_a = pair.a.workload("a1")?;
        let on_b = pair.b.workload("b1")?;
        lab.wait_for("the first IPv6 packet", PATIENCE, || {
            ping_all(&on_a.namespace, on_b.ipv6()?, 1)
        })?;
        ping_all(&on_a.namespace, on_b.ipv6()?, 3)?;
        ping_all(&on_b.namespace, on_a.ipv4()?, 3)?;
        let links = pair.a.namespace().show("ip link")?;
        ensure!(!links.contains("agentd.vxlan6"), "{links}");
        // The narrower header alone.
        ensure!(mtu_of(&on_a.namespace, "eth0")? == 1450);
        Ok(())
    });
}

#[test]
fn tunnels_and_workloads_follow_the_mtu_of_the_underlay() {
    lab::run(|lab| {
        let pair = RoutedPair::start(lab, VXLAN, Some(VXLAN), "")?;
        let on_a = pair.a.workload("a1")?;
        let on_b = pair.b.workload("b1")?;
        ping_all(&on_a.namespace, on_b.ipv4()?, 3)?;
        let flood = Endless::dense(lab, &on_a.namespace, on_b.ipv4()?)?;
        for underlay in [1400, 1500] {
            for agent in [&pair.a, &pair.b] {
                let namespace = agent.namespace();
                namespace.show(&format!("ip link set eth0 mtu {underlay}"))?;
            }
            lab.wait_for("everything has followed", PATIENCE, || {
                for (namespace, device, overhead) in [
                    (pair.a.namespace(), "agentd.vxlan", 50),
                    (pair.b.namespace(), "agentd.vxlan6", 70),
                    (&on_a.namespace, "eth0", 70),
                    (&on_b.namespace, "eth0", 70),
                ] {
                    let mtu = mtu_of(namespace, device)?;
                    ensure!(mtu == underlay - overhead, "{device}: {mtu}");
                }
                Ok(())
            })?;
            // Packets that fill it: 20 bytes of IPv4 and 8 of ICMP.
            let size = (underlay - 70 - 28).to_string();
            let to = on_b.ipv4()?.to_string();
            let full = ["ping", "-n", "-c", "2", "-M", "do", "-s", &size, &to];
            on_a.namespace.output(full)?;
        }
        let report = flood.finish(lab)?;
        ensure!(report.lost() == 0 && report.received > 10, "{report:?}");
        Ok(())
    });
}

#[test]
fn nodes_of_other_subnets_are_reached_through_the_tunnel_with_cross_subnet() {
    lab::run(|lab| {
        let pair = RoutedPair::start(lab, CROSS, None, "")?;
        let on_a = pair.a.workload("a1")?;
        let on_b = pair.b.workload("b1")?;
        ping_all(&on_a.namespace, on_b.ipv4()?, 5)?;
        pair.wait_route(&pair.a, "-4", "dev agentd.vxlan")?;
        // The other node is in a subnet of this one from now on.
        let namespace = pair.a.namespace();
        namespace.ip(["address", "add", "192.168.27.77/24", "dev", "eth0"])?;
        pair.wait_route(&pair.a, "-4", "dev eth0")?;
        namespace.ip(["address", "delete", "192.168.27.77/24", "dev", "eth0"])?;
        pair.wait_route(&pair.a, "-4", "dev agentd.vxlan")?;
        ping_all(&on_a.namespace, on_b.ipv4()?, 5)
    });
}

#[test]
fn a_pool_changes_over_to_vxlan_and_back_without_loss() {
    lab::run(|lab| {
        let accept = "[tunnel]\naccept = [\"vxlan\"]";
        let mut pair = RoutedPair::start(lab, NONE, Some(NONE), accept)?;
        // Here the router knows the way to the blocks.
        for (via, block, block6) in [
            (
                ("192.168.26.11", "fd00:26::11"),
                "10.244.1.0/24",
                "fd10:244::1:0/112",
            ),
            (
                ("192.168.27.12", "fd00:27::12"),
                "10.244.2.0/24",
                "fd10:244::2:0/112",
            ),
        ] {
            pair.router.ip(["route", "add", block, "via", via.0])?;
            pair.router.ip(["route", "add", block6, "via", via.1])?;
        }
        let on_a = pair.a.workload("a1")?;
        let on_b = pair.b.workload("b1")?;
        ping_all(&on_a.namespace, on_b.ipv4()?, 3)?;
        ping_all(&on_a.namespace, on_b.ipv6()?, 3)?;
        let floods = [
            Endless::dense(lab, &on_a.namespace, on_b.ipv4()?)?,
            Endless::dense(lab, &on_b.namespace, on_a.ipv4()?)?,
            Endless::dense(lab, &on_a.namespace, on_b.ipv6()?)?,
        ];
        for (lines, device) in [
            (VXLAN, "agentd.vxlan"),
            (NONE, "eth0"),
            (VXLAN, "agentd.vxlan"),
        ] {
            for number in [1, 2] {
                let agent = if number == 1 {
                    &mut pair.a
                } else {
                    &mut pair.b
                };
                RoutedPair::change_over(agent, lines)?;
                let agent = if number == 1 { &pair.a } else { &pair.b };
                pair.wait_route(agent, "-4", &format!("dev {device}"))?;
                pair.wait_route(agent, "-6", &format!("dev {device}"))?;
                // One node is changed over, the other not yet.
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        for flood in floods {
            let report = flood.finish(lab)?;
            println!("{report:?}");
            ensure!(report.received > 50 && report.lost() <= 1, "{report:?}");
        }
        ensure!(sent(pair.a.namespace(), "agentd.vxlan")? > 20);
        ensure!(mtu_of(&on_a.namespace, "eth0")? == 1430);
        Ok(())
    });
}

/// The scenarios with IPIP. They run where the kernel knows it: here, or in a VM.
fn ipip_scenarios() {
    const IPIP: &str = "encapsulation = \"ipip\"";
    lab::run(|lab| {
        let pair = RoutedPair::start(lab, IPIP, None, "")?;
        through(lab, &pair, "agentd.ipip", 1480)
    });
    lab::run(|lab| {
        let lines = format!("{IPIP}\nencapsulation_scope = \"cross-subnet\"");
        let mut pair = RoutedPair::start(lab, &lines, None, "")?;
        let on_a = pair.a.workload("a1")?;
        let on_b = pair.b.workload("b1")?;
        ping_all(&on_a.namespace, on_b.ipv4()?, 5)?;
        pair.wait_route(&pair.a, "-4", "dev agentd.ipip")?;
        // From one kind of tunnel to another, under way.
        for lines in [VXLAN, IPIP] {
            for number in [1, 2] {
                let agent = if number == 1 {
                    &mut pair.a
                } else {
                    &mut pair.b
                };
                RoutedPair::change_over(agent, lines)?;
            }
            let device = if lines == IPIP {
                "agentd.ipip"
            } else {
                "agentd.vxlan"
            };
            pair.wait_route(&pair.a, "-4", &format!("dev {device}"))?;
            pair.wait_route(&pair.b, "-4", &format!("dev {device}"))?;
            ping_all(&on_a.namespace, on_b.ipv4()?, 5)?;
        }
        Ok(())
    });
}

#[test]
fn ipip_carries_ipv4_over_a_router() {
    if vm::has_ipip() {
        ipip_scenarios();
    } else {
        vm::run_this_test("ipip_carries_ipv4_over_a_router");
    }
}
