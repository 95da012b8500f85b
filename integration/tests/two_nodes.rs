//! Two nodes with a BIRD route reflector: traffic, kernel forms, BGP content, restart, repair.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::config::Peer;
use integration::lab::monitor::{BgpCapture, KernelMonitor};
use integration::lab::netns::Netns;
use integration::lab::ping::{Endless, ping_all};
use integration::lab::two_nodes::{ASN, TwoNodes, node_address};
use integration::lab::workload::Workload;
use integration::lab::{self, Lab, PATIENCE};

/// A line of `ip route` without what the kernel adds by itself: metric and preference of IPv6,
/// the device of an IPv6 blackhole, and the number of the nexthop object.
fn normal(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let blackhole = words.peek() == Some(&"blackhole");
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "nhid" | "metric" | "pref" => drop(words.next()),
            "dev" if blackhole => drop(words.next()),
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// This node's routes of agentd, as `ip route` shows them.
fn our_routes(namespace: &Netns) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for family in ["-4", "-6"] {
        let text = namespace.ip_route(family)?;
        lines.extend(
            text.lines()
                .filter(|line| line.contains("proto agentd"))
                .map(normal),
        );
    }
    Ok(lines)
}

/// The block a workload's address of this family lies in.
fn block(workload: &Workload, v4: bool) -> Result<String> {
    workload
        .answer
        .addresses
        .iter()
        .find(|a| a.address.contains(':') != v4)
        .map(|a| a.block.clone())
        .context("no address of this family")
}

/// What `ip route` must show on a node, by the documented forms.
fn expected_routes(
    own: &[Workload],
    other: &[Workload],
    other_number: u8,
) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for v4 in [true, false] {
        for workload in own {
            lines.insert(format!("blackhole {} proto agentd", block(workload, v4)?));
            let address = if v4 {
                workload.ipv4()?
            } else {
                workload.ipv6()?
            };
            let scope = if v4 { " scope link" } else { "" };
            lines.insert(format!(
                "{address} dev {} proto agentd{scope}",
                workload.answer.host_interface
            ));
        }
        for workload in other {
            let (via4, via6) = node_address(other_number);
            let via = if v4 { via4 } else { via6 };
            lines.insert(format!(
                "{} via {via} dev eth0 proto agentd-bgp",
                block(workload, v4)?
            ));
        }
    }
    Ok(lines)
}

fn workloads(agent: &Agent, ids: &[&str]) -> Result<Vec<Workload>> {
    ids.iter().map(|id| agent.workload(id)).collect()
}

/// Names of the host sides of workloads.
fn host_links(namespace: &Netns) -> Result<Vec<String>> {
    Ok(namespace
        .show("ip -brief link")?
        .lines()
        .filter(|line| line.starts_with("agt"))
        .map(String::from)
        .collect())
}

fn one<T>(items: &[T]) -> Result<&T> {
    items.first().context("empty")
}

#[test]
fn workloads_talk_across_nodes_and_everything_has_the_documented_form() {
    lab::run(|lab| {
        let nodes = TwoNodes::start(lab)?;
        let on_a = workloads(&nodes.a, &["a1", "a2", "a3"])?;
        let on_b = workloads(&nodes.b, &["b1", "b2", "b3"])?;

        // Right after the answer, without any wait: the answer means programmed.
        let pings =
            TwoNodes::ping_across(&on_a, &on_b, 3)? + TwoNodes::ping_across(&on_b, &on_a, 3)?;
        ensure!(pings == 36, "{pings} pairs were pinged");
        // Workloads of one node, and the node's own address.
        ping_all(&one(&on_a)?.namespace, on_a[1].ipv4()?, 3)?;
        ping_all(&one(&on_a)?.namespace, on_a[1].ipv6()?, 3)?;
        ping_all(&one(&on_a)?.namespace, node_address(1).0.parse()?, 3)?;

        let on_node_a = our_routes(nodes.a.namespace())?;
        ensure!(
            on_node_a == expected_routes(&on_a, &on_b, 2)?,
            "node-a has {on_node_a:#?}"
        );
        let on_node_b = our_routes(nodes.b.namespace())?;
        ensure!(
            on_node_b == expected_routes(&on_b, &on_a, 1)?,
            "node-b has {on_node_b:#?}"
        );
        host_side_is_as_documented(nodes.a.namespace(), one(&on_a)?)?;
        workload_side_is_as_documented(one(&on_a)?)?;

        let mut blocks = BTreeSet::new();
        for workload in on_a.iter().chain(&on_b) {
            blocks.insert(block(workload, true)?);
            blocks.insert(block(workload, false)?);
        }
        let known: BTreeSet<String> = nodes.reflector.prefixes()?.into_iter().collect();
        ensure!(known == blocks && known.len() == 4, "BIRD has {known:?}");
        ensure!(
            known.iter().filter(|p| p.ends_with("/26")).count() == 2
                && known.iter().filter(|p| p.ends_with("/122")).count() == 2,
            "{known:?}"
        );

        adding_inside_an_owned_block_sends_no_update(lab, &nodes)?;

        // Idempotence: the same call, the same answer.
        let first = one(&on_a)?;
        let again = nodes
            .a
            .client()
            .add(lab::workload::request("a1", &first.namespace))?;
        ensure!(!again.created);
        let again = again.workload.context("no workload")?;
        ensure!(
            again.addresses == first.answer.addresses
                && again.generation == first.answer.generation
        );

        explain_tells_the_way(&nodes, one(&on_b)?)?;

        // Delete releases everything.
        for workload in &on_a {
            ensure!(nodes.a.client().delete(&workload.id)?);
            ensure!(!nodes.a.client().delete(&workload.id)?);
        }
        ensure!(nodes.a.client().delete("a4")?);
        let left = our_routes(nodes.a.namespace())?;
        let host_routes: Vec<_> = left
            .iter()
            .filter(|line| line.contains(" dev agt"))
            .collect();
        ensure!(host_routes.is_empty(), "{host_routes:?}");
        ensure!(nodes.a.client().workloads()?.is_empty());
        lab.wait_until("links of deleted workloads are gone", PATIENCE, || {
            host_links(nodes.a.namespace()).is_ok_and(|links| links.is_empty())
                && on_a
                    .iter()
                    .all(|w| w.namespace.show("ip link show eth0").is_err())
        })?;
        // The last block of a pool stays.
        ensure!(nodes.reflector.prefixes()?.len() == 4);
        for block in nodes.a.client().blocks()? {
            ensure!(block.used == 0, "{block:?}");
        }

        // SIGTERM: a clean end that leaves the kernel alone.
        let before = our_routes(nodes.b.namespace())?;
        let status = nodes.b.terminate()?;
        ensure!(status.success(), "SIGTERM: {status}");
        ensure!(our_routes(nodes.b.namespace())? == before);
        ensure!(!nodes.b.socket().exists(), "the socket is still there");
        Ok(())
    });
}

fn host_side_is_as_documented(node: &Netns, workload: &Workload) -> Result<()> {
    let name = &workload.answer.host_interface;
    ensure!(name.len() == 14 && name.starts_with("agt"), "{name}");
    let link = node.show(&format!("ip -details link show {name}"))?;
    ensure!(link.contains("link/ether ee:ee:ee:ee:ee:ee"), "{link}");
    ensure!(
        link.contains(&format!("alias agentd:{}", workload.id)),
        "{link}"
    );
    let address = node.show(&format!("ip -6 address show dev {name}"))?;
    ensure!(!address.contains("fe80"), "{address}");
    for (key, value) in [
        (format!("net.ipv4.conf.{name}.proxy_arp"), "1"),
        (format!("net.ipv4.neigh.{name}.proxy_delay"), "0"),
        (format!("net.ipv4.conf.{name}.forwarding"), "1"),
        (format!("net.ipv4.conf.{name}.route_localnet"), "0"),
        (format!("net.ipv4.conf.{name}.rp_filter"), "1"),
        (format!("net.ipv6.conf.{name}.disable_ipv6"), "0"),
        (format!("net.ipv6.conf.{name}.accept_dad"), "0"),
        (format!("net.ipv6.conf.{name}.accept_ra"), "0"),
        (format!("net.ipv6.conf.{name}.forwarding"), "1"),
        (format!("net.ipv6.conf.{name}.proxy_ndp"), "1"),
        ("net.ipv4.ip_forward".to_owned(), "1"),
        ("net.ipv6.conf.all.forwarding".to_owned(), "1"),
    ] {
        let is = node.show(&format!("sysctl -n {key}"))?;
        ensure!(is.trim() == value, "{key} = {}", is.trim());
    }
    Ok(())
}

fn workload_side_is_as_documented(workload: &Workload) -> Result<()> {
    let addresses = workload.namespace.show("ip address show dev eth0")?;
    ensure!(
        addresses.contains(&format!("inet {}/32", workload.ipv4()?)),
        "{addresses}"
    );
    ensure!(
        addresses.contains(&format!("inet6 {}/128", workload.ipv6()?)),
        "{addresses}"
    );
    ensure!(addresses.contains("mtu 1500"), "{addresses}");
    // The mark of agentd is beside the documented form.
    let routes = workload
        .namespace
        .show("ip route")?
        .replace("proto 70 ", "");
    ensure!(
        routes.contains("default via 169.254.1.1 dev eth0"),
        "{routes}"
    );
    ensure!(
        routes.contains("169.254.1.1 dev eth0 scope link"),
        "{routes}"
    );
    let routes = workload.namespace.show("ip -6 route")?;
    ensure!(
        routes.contains("default via fe80::ecee:eeff:feee:eeee dev eth0"),
        "{routes}"
    );
    let neighbours = workload.namespace.show("ip neighbour show nud permanent")?;
    for gateway in ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"] {
        ensure!(
            neighbours.contains(&format!("{gateway} dev eth0 lladdr ee:ee:ee:ee:ee:ee")),
            "{neighbours}"
        );
    }
    Ok(())
}

fn adding_inside_an_owned_block_sends_no_update(lab: &Lab, nodes: &TwoNodes) -> Result<()> {
    let capture = BgpCapture::start(lab, nodes.reflector.namespace(), "pa")?;
    let before = nodes.reflector.updates_received("node_a")?;
    nodes.a.workload("a4")?;
    // Messages are in order: after two more rounds of keepalives, an UPDATE would have been seen.
    let keepalives = capture.count("Keepalive Message");
    lab.wait_until("two rounds of keepalives", PATIENCE, || {
        capture.count("Keepalive Message") >= keepalives + 4
    })?;
    ensure!(capture.count("Update Message") == 0, "{}", capture.text());
    ensure!(nodes.reflector.updates_received("node_a")? == before);
    Ok(())
}

fn explain_tells_the_way(nodes: &TwoNodes, remote: &Workload) -> Result<()> {
    let answer = nodes.a.client().explain(&remote.ipv4()?.to_string())?;
    ensure!(answer.reachable, "{answer:?}");
    let text = format!("{answer:?}");
    ensure!(text.contains(&node_address(2).0), "no next hop in {text}");
    let nowhere = nodes.a.client().explain("10.244.77.7")?;
    ensure!(!nowhere.reachable, "{nowhere:?}");
    Ok(())
}

#[test]
fn kill_9_and_a_start_lose_no_packet_and_write_nothing_to_the_kernel() {
    lab::run(|lab| {
        let nodes = TwoNodes::start(lab)?;
        let on_a = nodes.a.workload("a1")?;
        let on_b = nodes.b.workload("b1")?;
        let routes = our_routes(nodes.a.namespace())?;
        let pings = vec![
            Endless::start(lab, &on_a.namespace, on_b.ipv4()?)?,
            Endless::start(lab, &on_b.namespace, on_a.ipv4()?)?,
            Endless::start(lab, &on_a.namespace, on_b.ipv6()?)?,
        ];
        let watched = [nodes.a.namespace(), nodes.b.namespace(), &on_a.namespace];
        // The kernel tells the end of duplicate address detection as a change, and it may come late.
        lab.wait_for("no address is tentative", PATIENCE, || {
            for namespace in watched {
                let tentative = namespace.show("ip -6 -o addr show tentative")?;
                ensure!(tentative.is_empty(), "{tentative}");
            }
            Ok(())
        })?;
        let objects = ["link", "address", "route", "nexthop", "rule"];
        let monitors = watched
            .into_iter()
            .map(|namespace| KernelMonitor::start(lab, namespace, &objects))
            .collect::<Result<Vec<_>>>()?;

        nodes.a.kill()?;
        lab.wait_until("BIRD saw the session end", PATIENCE, || {
            nodes.reflector.is_established("node_a").is_ok_and(|up| !up)
        })?;
        ensure!(
            our_routes(nodes.a.namespace())? == routes,
            "kill -9 changed the kernel"
        );
        nodes.a.start()?;
        restarted_is_whole(lab, &nodes, &on_a)?;

        // The same with SIGTERM: systemd restarts that way.
        ensure!(nodes.a.terminate()?.success());
        nodes.a.start()?;
        restarted_is_whole(lab, &nodes, &on_a)?;

        ensure!(our_routes(nodes.a.namespace())? == routes);
        for ping in pings {
            // Long enough to see a late consequence, too.
            lab.wait_until("60 answers", PATIENCE, || ping.answers() >= 60)?;
            let report = ping.finish(lab)?;
            ensure!(report.sent >= 60 && report.lost() == 0, "{report:?}");
        }
        for monitor in monitors {
            ensure!(monitor.changes().is_empty(), "{:#?}", monitor.changes());
        }
        Ok(())
    });
}

/// Waits until a restarted node-a has its session, all routes of its peer, and its workload.
fn restarted_is_whole(lab: &Lab, nodes: &TwoNodes, workload: &Workload) -> Result<()> {
    nodes.wait_converged()?;
    lab.wait_for("End-of-RIB in both families", PATIENCE, || {
        let peers = nodes.a.client().peers()?;
        let peer = one(&peers)?;
        ensure!(
            peer.families.len() == 2 && peer.families.iter().all(|f| f.end_of_rib_received),
            "{:?}",
            peer.families
        );
        Ok(())
    })?;
    lab.wait_for("node-a has all again", PATIENCE, || {
        let status = nodes.a.client().status()?;
        let dataplane = status.dataplane.unwrap_or_default();
        ensure!(
            status.routes_installed == 2 && dataplane.pending == 0 && dataplane.failing == 0,
            "{} installed, {dataplane:?}",
            status.routes_installed
        );
        Ok(())
    })?;
    let after = nodes.a.client().get(&workload.id)?;
    ensure!(after.addresses == workload.answer.addresses, "{after:?}");
    Ok(())
}

#[test]
fn what_somebody_deletes_comes_back_and_what_is_not_ours_stays() {
    lab::run(|lab| {
        let nodes = TwoNodes::start(lab)?;
        let on_a = nodes.a.workload("a1")?;
        let on_b = nodes.b.workload("b1")?;
        let node = nodes.a.namespace();
        let routes = our_routes(node)?;

        // Not ours: without our protocol, name or alias.
        node.ip([
            "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1",
        ])?;
        node.ip(["route", "add", "blackhole", "203.0.113.0/24"])?;
        node.ip([
            "route",
            "add",
            "10.244.200.0/26",
            "via",
            "192.168.26.1",
            "proto",
            "static",
        ])?;
        node.ip([
            "-6",
            "route",
            "add",
            "2001:db8::/64",
            "via",
            "fd00:26::1",
            "proto",
            "static",
        ])?;
        let all_routes =
            || -> Result<String> { Ok(node.show("ip route")? + &node.show("ip -6 route")?) };
        let foreign = |text: &str| -> Vec<String> {
            text.lines()
                .filter(|l| {
                    ["203.0.113", "10.244.200", "2001:db8"]
                        .iter()
                        .any(|p| l.contains(p))
                })
                .map(String::from)
                .collect()
        };
        let foreign_before = foreign(&all_routes()?);
        ensure!(foreign_before.len() == 3);

        let back = |what: &str| -> Result<()> {
            lab.wait_for(&format!("{what} is back"), PATIENCE, || {
                let now = our_routes(node)?;
                ensure!(now == routes, "{now:#?}");
                ping_all(&on_a.namespace, on_b.ipv4()?, 1)?;
                ping_all(&on_a.namespace, on_b.ipv6()?, 1)
            })
        };
        let (v4, v6) = (on_a.ipv4()?.to_string(), on_a.ipv6()?.to_string());
        node.ip(["route", "delete", &v4])?;
        node.ip(["-6", "route", "delete", &v6])?;
        back("a workload's route")?;
        node.ip(["route", "delete", "blackhole", &block(&on_a, true)?])?;
        node.ip(["-6", "route", "delete", "blackhole", &block(&on_a, false)?])?;
        back("a block's blackhole")?;
        node.ip(["route", "delete", &block(&on_b, true)?])?;
        node.ip(["-6", "route", "delete", &block(&on_b, false)?])?;
        back("a learned route")?;
        let name = on_a.answer.host_interface.as_str();
        node.ip(["link", "set", name, "down"])?;
        back("a link set down")?;
        node.ip(["link", "delete", name])?;
        back("a deleted link")?;
        workload_side_is_as_documented(&on_a)?;
        on_a.namespace
            .ip(["address", "flush", "dev", "eth0", "scope", "global"])?;
        back("the workload's address")?;
        on_a.namespace.ip(["route", "delete", "default"])?;
        back("the workload's default route")?;

        // A route with our mark that nobody asked for is a leftover of ours.
        node.ip(["route", "add", "10.244.1.250", "dev", "eth0", "proto", "70"])?;
        back("the table without a leftover")?;

        nodes.a.kill()?;
        node.ip(["route", "delete", &v4])?;
        nodes.a.start()?;
        back("what was deleted while agentd was away")?;

        ensure!(
            foreign(&all_routes()?) == foreign_before,
            "{}",
            all_routes()?
        );
        node.show("ip link show foreign0")?;
        Ok(())
    });
}

#[test]
fn a_workload_that_is_a_process_is_connected_by_pid() {
    lab::run(|lab| {
        let nodes = TwoNodes::prepare(lab)?;
        nodes.a.start()?;
        let namespace = lab.namespace("process")?;
        let process = lab.spawn(&namespace, "sleep", ["sleep", "1000"])?;
        let mut request = lab::workload::request("by-pid", &namespace);
        request.namespace = Some(agentd_proto::v1::add_workload_request::Namespace::Pid(
            process.pid().unsigned_abs(),
        ));
        request.interface_name = "net0".into();
        let answer = nodes.a.client().add(request)?;
        let workload = answer.workload.context("no workload")?;
        ensure!(workload.interface_name == "net0", "{workload:?}");
        let gateway: IpAddr = node_address(1).0.parse()?;
        ping_all(&namespace, gateway, 3)?;
        ensure!(
            namespace
                .show("ip -brief address show net0")?
                .contains("10.244.1.")
        );
        Ok(())
    });
}

#[test]
fn another_address_of_the_node_is_followed_by_tunnels_and_next_hops_without_a_new_session() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        for node in [&mut nodes.a, &mut nodes.b] {
            for pool in &mut node.config_mut().pools {
                if pool.cidr.contains(':') {
                    pool.extra = "encapsulation = \"vxlan\"".to_owned();
                }
            }
        }
        let config = nodes.a.config_mut();
        config.address6 = None;
        // By the route to it the node finds its own address; nobody takes its connections.
        config.peers.push(Peer::new("rr6", "fd00:26::1", ASN));
        nodes.a.start()?;
        nodes.b.start()?;
        nodes.wait_converged()?;
        let on_a = nodes.a.workload("a1")?;
        let on_b = nodes.b.workload("b1")?;
        let reached = || ping_all(&on_b.namespace, on_a.ipv6()?, 1);
        lab.wait_for("the first packet", PATIENCE, || reached().map(drop))?;
        let namespace = nodes.a.namespace();
        lab.address(namespace, "eth0", "fd00:26::21/64")?;
        namespace.show("ip -6 address del fd00:26::11/64 dev eth0")?;
        lab.wait_for("node-b reaches it there", PATIENCE, || {
            let link = namespace.show("ip -d link show agentd.vxlan6")?;
            ensure!(link.contains("local fd00:26::21"), "{link}");
            let way = nodes
                .b
                .namespace()
                .show("bridge fdb show dev agentd.vxlan6")?;
            ensure!(
                way.contains("fd00:26::21") && !way.contains("fd00:26::11"),
                "{way}"
            );
            reached().map(drop)
        })?;
        ensure!(nodes.a.client().status()?.address6 == "fd00:26::21");
        let log = nodes.a.process()?.log_text();
        let sessions = log.matches("session established peer=\"rr\"").count();
        ensure!(sessions == 1, "{sessions} sessions");
        Ok(())
    });
}
