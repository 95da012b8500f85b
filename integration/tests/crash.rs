//! What holds whatever happens: kills at any moment, a full disk, leftovers of others, and two nodes
//! that hold one block. `agentctl ipam check` is the judge, pings are the proof.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentd_proto::v1;
use anyhow::{Context as _, Result, bail, ensure};
use dataplane::reconcile::host_interface;
use integration::lab::agent::Agent;
use integration::lab::client::Client;
use integration::lab::netns::Netns;
use integration::lab::ping::ping_all;
use integration::lab::two_nodes::{TwoNodes, node_address, reflector_config};
use integration::lab::workload::request;
use integration::lab::{self, Lab, PATIENCE, single};
use tonic::Code;

fn check_is_clean(agent: &Agent) -> Result<String> {
    agent.agentctl_expecting(&["ipam", "check"], 0, "checked: no problem")
}

#[test]
fn check_finds_nothing_on_a_healthy_node_and_names_what_is_wrong() {
    lab::run(|lab| {
        let mut config = single::config();
        config.cooldown = "1s".into();
        let agent = single::prepare(lab, config)?;
        agent.start()?;
        let stays = agent.workload("stays")?;
        let goes = agent.workload("goes")?;
        let text = check_is_clean(&agent)?;
        ensure!(
            text.starts_with("2 workloads, 4 addresses, 2 blocks"),
            "{text}"
        );
        let shown = agent.agentctl_expecting(&["ipam", "show"], 0, "default 10.244.0.0/16")?;
        for address in stays.addresses() {
            ensure!(
                shown.contains(&format!("    {address}  stays")),
                "{address}: {shown}"
            );
        }
        lab.delete_namespace(&goes.namespace)?;
        drop(goes);
        lab.wait_for("the loss is found", PATIENCE, || {
            let text = agent.agentctl_expecting(&["ipam", "check"], 1, "kernel: goes")?;
            ensure!(text.contains("1 problem"), "{text}");
            Ok(())
        })?;
        let json = agent.agentctl_expecting(&["-o", "json", "ipam", "check"], 1, "KIND_KERNEL")?;
        let value: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(value["problems"][0]["subject"] == "goes", "{json}");

        let refused = ["block", "release", "10.244.1.0/26"];
        agent.agentctl_expecting(&refused, 1, "used by 2 workloads: goes, stays")?;
        agent.agentctl_expecting(&["block", "release", "10.9.0.0/26"], 1, "holds no block")?;
        for id in ["stays", "goes"] {
            ensure!(agent.client().delete(id)?);
        }
        lab.wait_for("the cool-down is over", PATIENCE, || {
            agent
                .agentctl_expecting(&refused, 0, "is released")
                .map(drop)
        })?;
        let routes = agent.namespace().show("ip route show type blackhole")?;
        ensure!(routes.trim().is_empty(), "{routes}");
        let text = check_is_clean(&agent)?;
        ensure!(text.starts_with("0 workloads"), "{text}");
        // The next workload gets a block again.
        let again = agent.workload("again")?;
        ping_all(&again.namespace, node_address(1).0.parse()?, 1)?;
        check_is_clean(&agent).map(drop)
    });
}

#[test]
fn a_start_removes_what_no_record_wants_makes_what_one_does_and_reports_both() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        agent.start()?;
        let whole = agent.workload("whole")?;
        let broken = agent.workload("broken")?;
        agent.kill()?;
        let node = agent.namespace();
        let ghost = host_interface("ghost");
        for line in [
            format!("link add {ghost} address ee:ee:ee:ee:ee:ee type veth peer name ghost0"),
            format!("link set {ghost} alias agentd:ghost up"),
            format!("route add 10.244.1.50 dev {ghost} proto 70"),
            "route add blackhole 10.244.77.0/26 proto 70".to_owned(),
            "route add 10.244.99.0/26 via 192.168.26.1 proto 71".to_owned(),
            // Of somebody else, whatever it looks like.
            "link add agtforeign type veth peer name foreign0".to_owned(),
            "route add blackhole 10.244.88.0/26 proto static".to_owned(),
            format!("link delete {}", host_interface("broken")),
        ] {
            node.ip(line.split(' '))?;
        }
        agent.start()?;
        lab.wait_for("strangers are gone and others are not", PATIENCE, || {
            let links = node.show("ip -brief link")?;
            ensure!(!links.contains(&ghost), "{links}");
            ensure!(links.contains("agtforeign"), "{links}");
            let routes = node.show("ip route")?;
            for gone in ["10.244.77.0/26", "10.244.99.0/26", "10.244.1.50 "] {
                ensure!(!routes.contains(gone), "{gone}: {routes}");
            }
            ensure!(routes.contains("10.244.88.0/26"), "{routes}");
            Ok(())
        })?;
        for workload in [&whole, &broken] {
            ping_all(&workload.namespace, node_address(1).0.parse()?, 1)?;
        }
        check_is_clean(&agent)?;
        let recovery = agent.client().status()?.recovery.context("it says so")?;
        ensure!(
            recovery.workloads == 2
                && recovery.removed_blackholes == 1
                && recovery.removed_workload_objects >= 1
                && recovery.removed_learned_routes == 1
                && recovery.notices.is_empty(),
            "{recovery:?}"
        );
        agent.agentctl_expecting(&["status"], 0, "removed from the kernel, of nobody")?;
        // What is as it should be is left alone by the next start.
        agent.kill()?;
        agent.start()?;
        let recovery = agent.client().status()?.recovery.context("it says so")?;
        ensure!(recovery.removed_workload_objects == 0, "{recovery:?}");
        ensure!(
            agent
                .client()
                .status()?
                .dataplane
                .unwrap_or_default()
                .writes
                == 0
        );
        Ok(())
    });
}

/// A file system of its own for the state, unmounted at the end.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path, size: &str) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(path)
            .status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn with_a_full_disk_adds_and_deletes_are_unavailable_and_nothing_is_half_done() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        let state = agent.directory().join("state");
        let _disk = SmallDisk::mount(&state, "8m")?;
        agent.start()?;
        let before = agent.workload("before")?;
        let ballast = state.join("ballast");
        // It ends with an error when the disk is full.
        let _ = Command::new("dd")
            .args(["if=/dev/zero", "bs=4096"])
            .arg(format!("of={}", ballast.display()))
            .output()?;
        let namespaces: Vec<Netns> = (0..40)
            .map(|number| lab.namespace(&format!("n{number}")))
            .collect::<Result<_>>()?;
        // What is free inside the database file serves for a while.
        let mut added = vec!["before".to_owned()];
        let mut refused = Vec::new();
        for round in 0..50 {
            for namespace in &namespaces {
                let mut add = request(namespace.name(), namespace);
                add.labels = (0..60)
                    .map(|label| (format!("key-{label}"), "v".repeat(60)))
                    .collect();
                match agent.client().add(add) {
                    Ok(_) => added.push(namespace.name().to_owned()),
                    Err(status) => {
                        ensure!(
                            status.code() == Code::Unavailable
                                && status.message().contains("no space left"),
                            "{status:?}"
                        );
                        refused.push(namespace);
                    }
                }
            }
            if !refused.is_empty() {
                break;
            }
            ensure!(round < 49, "the disk never gets full");
            for namespace in &namespaces {
                agent.client().delete(namespace.name())?;
                added.retain(|id| id != namespace.name());
            }
        }
        // Links are deleted in groups, a moment after the answer.
        lab.wait_for("nothing is half-done", PATIENCE, || {
            for namespace in &refused {
                let name = namespace.name();
                ensure!(namespace.show("ip link show eth0").is_err(), "{name}");
            }
            Ok(())
        })?;
        check_is_clean(&agent)?;
        match agent.client().delete("before") {
            Err(status) => ensure!(status.code() == Code::Unavailable, "{status:?}"),
            // There may be room for so small a change.
            Ok(_) => added.retain(|id| id != "before"),
        }
        if added.iter().any(|id| id == "before") {
            ping_all(&before.namespace, node_address(1).0.parse()?, 1)?;
        }
        // What is on disk now is what the agent says, also after a crash.
        agent.kill()?;
        std::fs::remove_file(&ballast)?;
        agent.start()?;
        let known: BTreeSet<String> = agent
            .client()
            .workloads()?
            .into_iter()
            .map(|workload| workload.id)
            .collect();
        ensure!(
            known == added.iter().cloned().collect(),
            "{known:?} {added:?}"
        );
        check_is_clean(&agent)?;
        // With room again everything works.
        for namespace in refused.iter().take(3) {
            agent.client().add(request(namespace.name(), namespace))?;
            ping_all(namespace, node_address(1).0.parse()?, 1)?;
        }
        check_is_clean(&agent).map(drop)
    });
}

/// Two nodes that claim from the same ranges, which is a mistake in their configuration.
fn same_claims(lab: &Lab) -> Result<TwoNodes> {
    let mut nodes = TwoNodes::prepare(lab)?;
    let claim = nodes.a.config_mut().claim.clone();
    nodes.b.config_mut().claim = claim;
    Ok(nodes)
}

fn blocks(agent: &Agent) -> Result<BTreeSet<String>> {
    let blocks = agent.client().blocks()?;
    Ok(blocks.into_iter().map(|block| block.cidr).collect())
}

fn are_apart(nodes: &TwoNodes) -> Result<()> {
    let (of_a, of_b) = (blocks(&nodes.a)?, blocks(&nodes.b)?);
    ensure!(
        of_a.is_disjoint(&of_b) && !of_a.is_empty() && !of_b.is_empty(),
        "{of_a:?} and {of_b:?}"
    );
    Ok(())
}

/// `first` uses its blocks; `second` comes later, and has to give way whichever is preferred by the
/// reflector between them.
fn gives_way(nodes: &TwoNodes, lab: &Lab, first: &Agent, second: &Agent) -> Result<()> {
    first.start()?;
    first.wait_peers(1)?;
    let one = first.workload("one")?;
    let held: BTreeSet<String> = one
        .answer
        .addresses
        .iter()
        .map(|a| a.block.clone())
        .collect();
    second.start()?;
    lab.wait_for(
        "the blocks are of one each",
        Duration::from_secs(40),
        || {
            are_apart(nodes)?;
            ensure!(
                blocks(first)?.is_superset(&held),
                "the user has lost its blocks"
            );
            for agent in [first, second] {
                let claims = agent.client().status()?.duplicate_claims;
                ensure!(claims.is_empty(), "{}: {claims:?}", agent.name());
            }
            Ok(())
        },
    )?;
    nodes.wait_converged()?;
    let two = second.workload("two")?;
    TwoNodes::ping_across(&[one], &[two], 2)?;
    for agent in [first, second] {
        check_is_clean(agent)?;
    }
    let log = second.process()?.log_text();
    ensure!(log.contains("unused and given up"), "{log}");
    Ok(())
}

#[test]
fn of_two_nodes_with_the_same_claim_range_the_one_that_does_not_use_the_block_gives_it_up() {
    lab::run(|lab| {
        let nodes = same_claims(lab)?;
        gives_way(&nodes, lab, &nodes.a, &nodes.b)
    });
}

#[test]
fn the_node_that_does_not_use_the_block_learns_of_the_other_one_through_a_reflector_that_prefers_it()
 {
    lab::run(|lab| {
        let nodes = same_claims(lab)?;
        gives_way(&nodes, lab, &nodes.b, &nodes.a)
    });
}

#[test]
fn a_block_in_use_that_another_speaker_announces_is_kept_and_told_until_that_is_over() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        nodes.a.config_mut().extra = "[telemetry]\nmetrics_listen = \"127.0.0.1:9472\"".to_owned();
        nodes.a.start()?;
        nodes.b.start()?;
        nodes.wait_converged()?;
        let one = nodes.a.workload("one")?;
        check_is_clean(&nodes.a)?;
        let mut config = reflector_config();
        config.extra = "protocol static rival { ipv4; route 10.244.1.0/26 blackhole; }".to_owned();
        nodes.reflector.configure(&config)?;
        lab.wait_for("the duplicate is told", PATIENCE, || {
            nodes.a.agentctl_expecting(&["status"], 0, "WARNING")?;
            let text = nodes.a.agentctl_expecting(
                &["ipam", "check"],
                1,
                "duplicate claim: 10.244.1.0/26",
            )?;
            ensure!(text.contains("192.168.26.1"), "{text}");
            Ok(())
        })?;
        let claims = nodes.a.client().status()?.duplicate_claims;
        ensure!(
            claims.len() == 1 && !claims[0].yields && claims[0].peer == "rr",
            "{claims:?}"
        );
        let metrics = nodes.a.namespace().enter(|| {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect("127.0.0.1:9472")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            std::io::Result::Ok(text)
        })??;
        for line in [
            "agentd_duplicate_claims 1",
            "agentd_duplicate_claims_seen_total 1",
        ] {
            ensure!(metrics.contains(line), "{line}: {metrics}");
        }
        let log = nodes.a.process()?.log_text();
        ensure!(log.contains("two nodes hold it"), "{log}");
        // The workload stays, and a new one gets an address of another block.
        ping_all(&one.namespace, node_address(1).0.parse()?, 1)?;
        let another = nodes.a.workload("another")?;
        ensure!(
            another
                .answer
                .addresses
                .iter()
                .all(|a| a.block != "10.244.1.0/26"),
            "{:?}",
            another.answer
        );
        nodes.reflector.configure(&reflector_config())?;
        lab.wait_for("it is over", PATIENCE, || {
            let text = nodes.a.agentctl_expecting(&["status"], 0, "")?;
            ensure!(!text.contains("WARNING"), "{text}");
            check_is_clean(&nodes.a).map(drop)
        })
    });
}

/// What a client knows of one of its workloads.
#[derive(Clone, Debug, PartialEq)]
enum Known {
    Gone,
    Lives(Vec<String>),
}

fn addresses(workload: &v1::Workload) -> Vec<String> {
    workload
        .addresses
        .iter()
        .map(|a| a.address.clone())
        .collect()
}

/// The connection or the agent went away in the middle: what became of the call is unknown. It is
/// repeated until it is acknowledged.
fn is_crash(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            // Or too much cools down at the moment.
            | Code::ResourceExhausted
    )
}

/// Adds and deletes until `done` reaches `operations`; each is repeated until it is acknowledged.
fn client(
    socket: &Path,
    namespaces: &[Netns],
    seed: u64,
    operations: usize,
    (done, acknowledged): (&AtomicUsize, &AtomicUsize),
    given_up: &AtomicBool,
) -> Result<BTreeMap<String, Known>> {
    let client = Client::new(socket)?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut known: BTreeMap<String, Known> = namespaces
        .iter()
        .map(|namespace| (namespace.name().to_owned(), Known::Gone))
        .collect();
    while done.fetch_add(1, Ordering::Relaxed) < operations {
        let namespace = &namespaces[rng.usize(..namespaces.len())];
        let id = namespace.name();
        let adds = known[id] == Known::Gone || rng.u8(..4) == 0;
        loop {
            if given_up.load(Ordering::Relaxed) {
                bail!("the agent is gone for good");
            }
            let result = match adds {
                true => client
                    .add(request(id, namespace))
                    .map(|answer| Known::Lives(addresses(&answer.workload.unwrap_or_default()))),
                false => client.delete(id).map(|_| Known::Gone),
            };
            match result {
                Ok(state) => {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    let before = known.insert(id.to_owned(), state.clone());
                    if let (Some(Known::Lives(before)), Known::Lives(now)) = (before, &state) {
                        ensure!(before == *now, "{id} had {before:?} and has {now:?}");
                    }
                    break;
                }
                Err(status) if is_crash(status.code()) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(status) => bail!("{id}: {status:?}"),
            }
        }
    }
    Ok(known)
}

/// No address of an earlier workload of that id is left inside.
fn has_exactly(namespace: &Netns, addresses: &[String]) -> Result<()> {
    let text = namespace.show("ip -o address show dev eth0 scope global")?;
    // "7: eth0    inet 10.244.16.3/32 scope global eth0 …"
    let found: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next())
        .collect();
    let wanted: BTreeSet<&str> = addresses.iter().map(String::as_str).collect();
    ensure!(found == wanted, "wanted {wanted:?}:\n{text}");
    Ok(())
}

/// Operations; many more with AGENTD_CRASH_OPERATIONS, which `./dev soak` sets.
const OPERATIONS: usize = 1_500;
const CLIENTS: usize = 8;
const NAMESPACES: usize = 6;

#[test]
fn with_kill_9_every_second_under_eight_clients_nothing_is_lost_leaked_or_given_twice() {
    let operations = std::env::var("AGENTD_CRASH_OPERATIONS")
        .ok()
        .map_or(OPERATIONS, |text| text.parse().expect("a number"));
    lab::run(|lab| {
        let mut config = single::config();
        // Room for what cools down.
        config.claim = vec!["10.244.16.0/20".into(), "fd10:244::1:0/112".into()];
        config.cooldown = "2s".into();
        config.ipam = "release_empty_after = \"3s\"".into();
        let agent = single::prepare(lab, config)?;
        agent.start()?;
        let namespaces: Vec<Vec<Netns>> = (0..CLIENTS)
            .map(|client| {
                (0..NAMESPACES)
                    .map(|number| lab.namespace(&format!("c{client}w{number}")))
                    .collect()
            })
            .collect::<Result<_>>()?;
        let (done, given_up) = (AtomicUsize::new(0), AtomicBool::new(false));
        let acknowledged = AtomicUsize::new(0);
        let knowledge = Mutex::new(BTreeMap::new());
        let begun = Instant::now();
        let mut kills = 0;
        std::thread::scope(|scope| -> Result<()> {
            let clients: Vec<_> = (0u64..)
                .zip(&namespaces)
                .map(|(seed, own)| {
                    let (done, given_up, knowledge) = (&done, &given_up, &knowledge);
                    let acknowledged = &acknowledged;
                    let socket = agent.socket();
                    scope.spawn(move || -> Result<()> {
                        let counters = (done, acknowledged);
                        let known = client(&socket, own, seed, operations, counters, given_up)?;
                        knowledge.lock().expect("no holder panics").extend(known);
                        Ok(())
                    })
                })
                .collect();
            let result = (|| {
                while clients.iter().any(|client| !client.is_finished()) {
                    let before = acknowledged.load(Ordering::Relaxed);
                    std::thread::sleep(Duration::from_secs(1));
                    // A machine that is too slow to start within a second gets no further.
                    lab.wait_until("something is acknowledged", PATIENCE, || {
                        acknowledged.load(Ordering::Relaxed) > before
                            || clients.iter().all(|client| client.is_finished())
                    })?;
                    agent.kill()?;
                    kills += 1;
                    agent.launch()?;
                }
                agent.kill()?;
                agent.start()
            })();
            given_up.store(result.is_err(), Ordering::Relaxed);
            for client in clients {
                client.join().expect("clients do not panic")?;
            }
            result
        })?;
        let took = begun.elapsed();
        let text = lab
            .wait_for("the check is clean", PATIENCE, || {
                check_is_clean(&agent).map(drop)
            })
            .and_then(|()| check_is_clean(&agent))?;
        let knowledge = knowledge.into_inner().expect("no holder panics");
        let now: BTreeMap<String, Vec<String>> = agent
            .client()
            .workloads()?
            .iter()
            .map(|workload| (workload.id.clone(), addresses(workload)))
            .collect();
        let mut given: BTreeMap<&str, &str> = BTreeMap::new();
        for (id, list) in &now {
            for address in list {
                if let Some(other) = given.insert(address, id) {
                    bail!("{address} is of {id} and of {other}");
                }
            }
        }
        let gateway: IpAddr = node_address(1).0.parse()?;
        for namespace in namespaces.iter().flatten() {
            let id = namespace.name();
            let known = match now.get(id) {
                Some(list) => Known::Lives(list.clone()),
                None => Known::Gone,
            };
            ensure!(
                known == knowledge[id],
                "{id}: {known:?}, client: {knowledge:?}"
            );
            match known {
                Known::Lives(addresses) => {
                    has_exactly(namespace, &addresses)?;
                    ping_all(namespace, gateway, 1)?;
                }
                Known::Gone => lab.wait_for(&format!("no link of {id}"), PATIENCE, || {
                    ensure!(namespace.show("ip link show eth0").is_err());
                    Ok(())
                })?,
            }
        }
        println!(
            "{operations} operations of {CLIENTS} clients in {took:.1?}, {kills} kills, {} live, \
             all answer pings; {text}",
            now.len()
        );
        Ok(())
    });
}
