//! Workloads that are not routed veths, end to end: added, reached, damaged, kept over a kill of the
//! agent, deleted.

use std::process::Command;

use agentd_proto::v1::{self, Attachment};
use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::guest::Guest;
use integration::lab::monitor::KernelMonitor;
use integration::lab::netns::Netns;
use integration::lab::ping::{Endless, ping, ping_all};
use integration::lab::two_nodes::{TwoNodes, node_address};
use integration::lab::workload::request;
use integration::lab::{self, Lab, PATIENCE, binaries, single};
use tonic::Code;

const MAC: &str = "02:00:00:00:00:01";

fn add(agent: &Agent, request: v1::AddWorkloadRequest) -> Result<v1::Workload> {
    let id = request.id.clone();
    agent
        .client()
        .add(request)
        .with_context(|| format!("add {id}"))?
        .workload
        .context("an answer without a workload")
}

fn refused(agent: &Agent, request: v1::AddWorkloadRequest, code: Code, word: &str) -> Result<()> {
    let Err(status) = agent.client().add(request) else {
        anyhow::bail!("not refused: {word}");
    };
    ensure!(
        status.code() == code && status.message().contains(word),
        "wanted {code:?} and {word:?}: {status:?}"
    );
    Ok(())
}

fn of_kind(id: &str, kind: Attachment) -> v1::AddWorkloadRequest {
    v1::AddWorkloadRequest {
        id: id.to_owned(),
        attachment: kind.into(),
        ..Default::default()
    }
}

fn bridged(id: &str, namespace: &Netns) -> v1::AddWorkloadRequest {
    v1::AddWorkloadRequest {
        attachment: Attachment::Bridged.into(),
        bridge: "apps0".to_owned(),
        ..request(id, namespace)
    }
}

fn addresses(workload: &v1::Workload) -> Result<Vec<std::net::IpAddr>> {
    let parse = |address: &v1::WorkloadAddress| Ok(address.address.parse()?);
    workload.addresses.iter().map(parse).collect()
}

/// Kills the agent, starts it again, and demands that nothing was written to the kernel.
fn restart_writes_nothing(lab: &Lab, agent: &Agent, watched: &[&Netns]) -> Result<()> {
    agent.kill()?;
    let watched = [&[agent.namespace()], watched].concat();
    let monitors = watched
        .iter()
        .map(|namespace| KernelMonitor::start(lab, namespace, &["link", "address", "route"]))
        .collect::<Result<Vec<_>>>()?;
    // The witnesses of one namespace share a file.
    let known: Vec<usize> = monitors.iter().map(|m| m.changes().len()).collect();
    agent.start()?;
    for (monitor, known) in monitors.iter().zip(known) {
        let changes = monitor.changes().split_off(known);
        ensure!(changes.is_empty(), "{changes:#?}");
    }
    Ok(())
}

#[test]
fn a_virtual_machine_is_reached_on_its_tap_whatever_happens_to_the_agent() {
    lab::run(|lab| {
        let nodes = TwoNodes::start(lab)?;
        let far = nodes.b.workload("far")?;
        let host = nodes.a.namespace();
        let vm = add(
            &nodes.a,
            v1::AddWorkloadRequest {
                tap: Some(v1::TapOptions {
                    name: "vm0".to_owned(),
                    owner_uid: Some(65534),
                    owner_gid: Some(65534),
                    multi_queue: false,
                }),
                mac: MAC.to_owned(),
                ..of_kind("vm", Attachment::Tap)
            },
        )?;
        ensure!(
            vm.host_interface == "vm0" && vm.addresses.len() == 2,
            "{vm:?}"
        );
        let details = host.show("ip -details link show vm0")?;
        ensure!(
            details.contains("persist on") && details.contains("user nobody"),
            "{details}"
        );
        let guest = Guest::boot(host, "vm0", &lab.namespace("guest")?, MAC)?;
        guest.configure(&vm.addresses)?;
        for address in far.addresses() {
            ping_all(&guest.namespace, address, 2)?;
        }
        for address in addresses(&vm)? {
            ping_all(&far.namespace, address, 2)?;
            ping_all(host, address, 2)?;
        }
        // Traffic goes on while the agent is killed and comes back, and nothing is written.
        let endless = Endless::start(lab, &far.namespace, addresses(&vm)?[0])?;
        restart_writes_nothing(lab, &nodes.a, &[])?;
        let report = endless.finish(lab)?;
        ensure!(report.lost() == 0, "{report:?}");

        // Damage is undone.
        let first = &vm.addresses[0].address;
        for damage in [
            "ip address delete 169.254.1.1/32 dev vm0".to_owned(),
            "ip link set vm0 down".to_owned(),
            format!("ip neighbour delete {first} dev vm0"),
            "ip link set vm0 name vm1".to_owned(),
            "ip link set vm0 mtu 1400".to_owned(),
        ] {
            host.show(&damage)?;
            lab.wait_for(&format!("after {damage}"), PATIENCE, || {
                let link = host.show("ip link show vm0")?;
                let addresses = host.show("ip address show vm0")?;
                let neighbours = host.show("ip neighbour show dev vm0")?;
                ensure!(link.contains(",UP") && !link.contains("mtu 1400"), "{link}");
                ensure!(addresses.contains("169.254.1.1/32"), "{addresses}");
                ensure!(
                    addresses.contains("fe80::ecee:eeff:feee:eeee"),
                    "{addresses}"
                );
                ensure!(
                    neighbours.contains(&format!("{first} lladdr {MAC} PERMANENT")),
                    "{neighbours}"
                );
                ping_all(&far.namespace, first.parse()?, 1)
            })?;
        }

        // The guest goes: its addresses stay its own, and nothing is written about it.
        guest.stop()?;
        ensure!(ping(&far.namespace, first.parse()?, 2)?.received == 0);
        ensure!(host.show("ip route")?.contains(&format!("{first} dev vm0")));
        restart_writes_nothing(lab, &nodes.a, &[])?;
        let guest = Guest::boot(host, "vm0", &lab.namespace("guest2")?, MAC)?;
        guest.configure(&vm.addresses)?;
        lab.wait_for("the guest is back", PATIENCE, || {
            ping_all(&far.namespace, first.parse()?, 1)
        })?;

        ensure!(nodes.a.client().delete("vm")?);
        ensure!(!host.show("ip route")?.contains("vm0"));
        lab.wait_until("the device is gone", PATIENCE, || {
            host.show("ip link")
                .is_ok_and(|links| !links.contains("vm0"))
        })
    });
}

#[test]
fn a_guest_whose_mac_is_not_known_is_found_by_asking() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        agent.start()?;
        let vm = add(&agent, of_kind("vm", Attachment::Tap))?;
        ensure!(vm.host_interface.starts_with("agt"), "{vm:?}");
        let host = agent.namespace();
        let guest = Guest::boot(host, &vm.host_interface, &lab.namespace("guest")?, MAC)?;
        guest.configure(&vm.addresses)?;
        for address in addresses(&vm)? {
            ping_all(host, address, 2)?;
        }
        // A device of somebody else is never taken.
        host.show("ip tuntap add dev foreign mode tap")?;
        refused(
            &agent,
            v1::AddWorkloadRequest {
                tap: Some(v1::TapOptions {
                    name: "foreign".to_owned(),
                    ..Default::default()
                }),
                ..of_kind("other", Attachment::Tap)
            },
            Code::FailedPrecondition,
            "foreign",
        )?;
        ensure!(host.show("ip link show foreign")?.contains("foreign"));
        ensure!(agent.client().workloads()?.len() == 1);
        Ok(())
    });
}

#[test]
fn workloads_on_a_bridge_talk_to_each_other_and_go_out_behind_the_node() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        nodes.a.config_mut().extra = "[[bridge]]\nname = \"apps0\"\ncidr = \"172.30.0.0/24\"\n\
                                      cidr6 = \"fd00:172:30::/64\"\n"
            .to_owned();
        nodes.a.start()?;
        nodes.b.start()?;
        nodes.wait_converged()?;
        let far = nodes.b.workload("far")?;
        let host = nodes.a.namespace().clone();
        let host = &host;
        let (one, two) = (lab.namespace("one")?, lab.namespace("two")?);
        let first = add(&nodes.a, bridged("one", &one))?;
        let second = add(&nodes.a, bridged("two", &two))?;
        ensure!(first.addresses[0].address == "172.30.0.2", "{first:?}");
        ensure!(first.addresses[0].gateway == "172.30.0.1", "{first:?}");
        ensure!(
            first.bridge == "apps0" && first.addresses.len() == 2,
            "{first:?}"
        );
        let reachable = || -> Result<()> {
            for address in addresses(&second)? {
                ping_all(&one, address, 2)?;
                ping_all(host, address, 2)?;
            }
            // Masqueraded: nobody but this node has a route to 172.30.0.0/24.
            ping_all(&one, node_address(2).0.parse()?, 2)?;
            ping_all(&two, far.ipv4()?, 2)
        };
        reachable()?;
        let known = nodes.reflector.prefixes()?;
        ensure!(
            !known.iter().any(|prefix| prefix.starts_with("172.30")),
            "{known:?}"
        );
        // At layer 2: the other's own MAC address, not the gateway's.
        let neighbours = one.show("ip neighbour show 172.30.0.3")?;
        let own = two.show("ip -brief link show eth0")?;
        let mac = own.split_whitespace().nth(2).context("a MAC address")?;
        ensure!(neighbours.contains(mac), "{neighbours} {own}");

        // Traffic goes on while the agent is killed and comes back: on the bridge, and out of it.
        let near = Endless::start(lab, &one, addresses(&second)?[0])?;
        let out = Endless::start(lab, &two, far.ipv4()?)?;
        restart_writes_nothing(lab, &nodes.a, &[&one, &two])?;
        for report in [near.finish(lab)?, out.finish(lab)?] {
            ensure!(report.lost() == 0, "{report:?}");
        }
        let port = &first.host_interface;
        for (place, damage) in [
            (host, "ip link delete apps0".to_owned()),
            (host, format!("ip link set {port} nomaster")),
            (host, format!("ip link delete {port}")),
            (host, "ip link set apps0 down".to_owned()),
            (host, "ip address delete 172.30.0.1/24 dev apps0".to_owned()),
            (&one, "ip route delete default".to_owned()),
            (&one, "ip link set eth0 name eth9".to_owned()),
        ] {
            place.show(&damage)?;
            lab.wait_for(&format!("after {damage}"), PATIENCE, || {
                one.show("ip link show eth0")?;
                reachable()
            })?;
        }

        ensure!(nodes.a.client().delete("one")?);
        let third = add(&nodes.a, bridged("three", &lab.namespace("three")?))?;
        ensure!(
            third.addresses[0].address == "172.30.0.4",
            "cooling down: {third:?}"
        );
        ensure!(nodes.a.client().delete("two")? && nodes.a.client().delete("three")?);
        // Without the bridge in the configuration its device goes.
        nodes.a.terminate()?;
        nodes.a.config_mut().extra = String::new();
        nodes.a.start()?;
        lab.wait_until("the bridge is gone", PATIENCE, || {
            host.show("ip link")
                .is_ok_and(|links| !links.contains("apps0"))
        })
    });
}

#[test]
fn shared_host_and_loopback_workloads_are_listed_like_all_others() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        agent.start()?;
        let pod = agent.workload("pod")?;
        let sidecar = v1::AddWorkloadRequest {
            shared_with: "pod".to_owned(),
            ..of_kind("sidecar", Attachment::Shared)
        };
        let shared = add(&agent, sidecar.clone())?;
        ensure!(shared.addresses == pod.answer.addresses, "{shared:?}");
        ensure!(
            shared.host_interface == pod.answer.host_interface,
            "{shared:?}"
        );
        let host = add(&agent, of_kind("daemon", Attachment::Host))?;
        ensure!(host.addresses[0].address == node_address(1).0, "{host:?}");
        let alone = lab.namespace("alone")?;
        let none = v1::AddWorkloadRequest {
            attachment: Attachment::None.into(),
            ..request("alone", &alone)
        };
        add(&agent, none.clone())?;
        ping_all(&alone, "127.0.0.1".parse()?, 1)?;
        refused(
            &agent,
            request("more", &alone),
            Code::FailedPrecondition,
            "workload alone",
        )?;
        alone.show("ip link set lo down")?;
        lab.wait_for("lo is up again", PATIENCE, || {
            ping_all(&alone, "127.0.0.1".parse()?, 1)
        })?;

        let listed = |wanted: [(&str, Attachment); 4]| -> Result<()> {
            let workloads = agent.client().workloads()?;
            let seen: Vec<_> = workloads
                .iter()
                .map(|w| (w.id.as_str(), w.attachment()))
                .collect();
            ensure!(seen == wanted, "{seen:?}");
            ensure!(
                workloads
                    .iter()
                    .all(|w| w.state() == v1::WorkloadState::Programmed),
                "{workloads:?}"
            );
            Ok(())
        };
        let all = [
            ("alone", Attachment::None),
            ("daemon", Attachment::Host),
            ("pod", Attachment::Routed),
            ("sidecar", Attachment::Shared),
        ];
        listed(all)?;
        restart_writes_nothing(lab, &agent, &[&alone, &pod.namespace])?;
        listed(all)?;
        ensure!(!agent.client().add(sidecar)?.created, "repeated");
        ensure!(!agent.client().add(none)?.created, "repeated");

        let status = agent.client().delete("pod").err().context("not refused")?;
        ensure!(
            status.code() == Code::FailedPrecondition && status.message().contains("sidecar"),
            "{status:?}"
        );
        for id in ["sidecar", "pod", "daemon", "alone"] {
            ensure!(agent.client().delete(id)?, "{id}");
        }
        ensure!(agent.client().workloads()?.is_empty());
        Ok(())
    });
}

#[test]
fn workloads_of_the_node_itself_follow_its_addresses() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        agent.start()?;
        let host = agent.namespace();
        let (v4, v6) = node_address(1);
        add(&agent, of_kind("daemon", Attachment::Host))?;
        let shown = |wanted: &[&str]| {
            lab.wait_for(&format!("it has {wanted:?}"), PATIENCE, || {
                let seen = agent.client().get("daemon")?.addresses;
                let seen: Vec<&str> = seen.iter().map(|a| a.address.as_str()).collect();
                ensure!(seen == wanted, "{seen:?}");
                Ok(())
            })
        };
        shown(&[&v4, &v6])?;
        host.show("ip address add 192.168.27.77/24 dev eth0")?;
        host.show(&format!("ip address delete {v4}/24 dev eth0"))?;
        shown(&["192.168.27.77", &v6])?;
        host.show(&format!("ip address delete {v6}/64 dev eth0"))?;
        shown(&["192.168.27.77"])?;
        // By which others know it.
        host.show(&format!("ip address add {v4}/24 dev eth0"))?;
        shown(&[&v4])
    });
}

fn agentctl(agent: &Agent, line: &str) -> Result<(bool, String)> {
    let output = Command::new("env")
        .arg(binaries::find("agentctl")?)
        .arg("--socket")
        .arg(agent.socket())
        .args(line.split_whitespace())
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn agentctl_knows_every_kind_and_names_the_field_that_is_wrong() {
    lab::run(|lab| {
        let mut config = single::config();
        config.extra = "[[bridge]]\nname = \"apps0\"\ncidr = \"172.30.0.0/24\"\n".to_owned();
        let agent = single::prepare(lab, config)?;
        agent.start()?;
        let (pod, app) = (lab.namespace("pod")?, lab.namespace("app")?);
        let (pod, app) = (pod.path(), app.path());
        for (line, word) in [
            (format!("add pod --netns {}", pod.display()), "10.244.1."),
            (
                format!(
                    "add app --attachment bridged --bridge apps0 --netns {}",
                    app.display()
                ),
                "172.30.0.2",
            ),
            (
                format!("add vm --attachment tap --tap-name vm0 --tap-owner 0 --mac {MAC}"),
                "on vm0",
            ),
            (
                "add side --attachment shared --shared-with pod".to_owned(),
                "10.244.1.",
            ),
            ("add d --attachment host".to_owned(), "192.168.26."),
            ("list".to_owned(), "bridged"),
            ("show vm".to_owned(), MAC),
            ("show side".to_owned(), "Shared with"),
        ] {
            let (done, text) = agentctl(&agent, &format!("workload {line}"))?;
            ensure!(done && text.contains(word), "{line}: {text}");
        }
        let (done, text) = agentctl(&agent, "explain 172.30.0.2")?;
        ensure!(done && text.contains("behind bridge apps0"), "{text}");
        for (line, word) in [
            ("add x --attachment bridged".to_owned(), "--netns"),
            (
                format!("add x --attachment bridged --netns {}", pod.display()),
                "bridge is required",
            ),
            ("add x --attachment tap --mac zz".to_owned(), "mac"),
            (
                "add x --attachment tap --tap-name agt0".to_owned(),
                "tap.name",
            ),
            (
                "add x --attachment host --mtu 1400".to_owned(),
                "mtu means nothing",
            ),
            (
                "add x --attachment shared".to_owned(),
                "shared_with is required",
            ),
            (
                format!("add x --netns {}", pod.display()),
                "by workload pod",
            ),
            ("delete pod".to_owned(), "side"),
        ] {
            let (done, text) = agentctl(&agent, &format!("workload {line}"))?;
            ensure!(!done && text.contains(word), "{line}: {text}");
        }
        Ok(())
    });
}

#[test]
fn workloads_follow_the_mtu_of_the_underlay_while_it_changes() {
    lab::run(|lab| {
        let mut config = single::config();
        config.extra = "[[bridge]]\nname = \"apps0\"\ncidr = \"172.30.0.0/24\"\n".to_owned();
        let agent = single::prepare(lab, config)?;
        agent.start()?;
        let host = agent.namespace();
        let pod = agent.workload("pod")?;
        let app = lab.namespace("app")?;
        add(&agent, bridged("app", &app))?;
        let vm = add(&agent, of_kind("vm", Attachment::Tap))?;
        let mut fixed = request("fixed", &lab.namespace("fixed")?);
        fixed.mtu = 1300;
        add(&agent, fixed)?;
        host.show("ip link set eth0 mtu 1450")?;
        lab.wait_for("everything has the new MTU", PATIENCE, || {
            for (place, link) in [
                (&pod.namespace, "eth0"),
                (&app, "eth0"),
                (host, pod.answer.host_interface.as_str()),
                (host, vm.host_interface.as_str()),
                (host, "apps0"),
            ] {
                let text = place.show(&format!("ip link show {link}"))?;
                ensure!(text.contains("mtu 1450"), "{link}: {text}");
            }
            ensure!(agent.client().get("pod")?.mtu == 1450);
            Ok(())
        })?;
        ensure!(agent.client().get("fixed")?.mtu == 1300);
        Ok(())
    });
}
