//! The reconciler and the driver together, against the kernel, compared in the words of `ip`.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::Read,
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Workload as Namespace, eventually, ip, on_a_host};
use dataplane::{
    desired::{Attachment, Event, Inside, LearnedRoute, Object, ObjectId, Source, Workload},
    reconcile::Config,
    runtime::{self, Events, Handle},
};
use ipnet::IpNet;

const TIME: Duration = Duration::from_secs(10);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The daemon's side of a running dataplane.
struct Agent {
    handle: Handle,
    events: Events,
    task: tokio::task::JoinHandle<()>,
    seen: Vec<Event>,
}

impl Agent {
    fn start() -> Self {
        let config = Config {
            underlay: vec![address("192.168.7.1")],
            ..Config::default()
        };
        let (handle, events, task) = runtime::spawn(config).unwrap();
        Self {
            handle,
            events,
            task,
            seen: Vec::new(),
        }
    }

    /// Waits for an event, which is taken out of those seen.
    async fn wait(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = tokio::time::Instant::now() + TIME;
        loop {
            if let Some(position) = self.seen.iter().position(&wanted) {
                return self.seen.remove(position);
            }
            match tokio::time::timeout_at(deadline, self.events.next()).await {
                Ok(Some(list)) => self.seen.extend(list),
                Ok(None) => panic!("{what}: the task has ended; seen {:#?}", self.seen),
                Err(_) => panic!("{what}: seen only {:#?}", self.seen),
            }
        }
    }

    async fn programmed(&mut self, id: &ObjectId) {
        let what = format!("{id:?} is programmed");
        self.wait(
            &what,
            |event| matches!(event, Event::Programmed { id: done, .. } if done == id),
        )
        .await;
    }

    async fn synced(&mut self) {
        for source in [Source::Block, Source::Workload, Source::Bgp] {
            self.handle.source_synced(source).await.unwrap();
        }
        for source in [Source::Block, Source::Workload, Source::Bgp] {
            self.wait(
                "a source is swept",
                |event| matches!(event, Event::Swept { source: done, .. } if *done == source),
            )
            .await;
        }
    }

    async fn stop(self) {
        self.handle.shutdown().await;
        self.task.await.unwrap();
    }
}

fn underlay() {
    ip("link add under0 type veth peer name under1");
    ip("link set under0 mtu 1480");
    ip("link set under0 up");
    ip("link set under1 up");
    ip("address add 192.168.7.1/24 dev under0");
    ip("address add fd00:7::1/64 dev under0 nodad");
}

fn workload(id: &str, namespace: &Namespace, addresses: &[&str]) -> Object {
    Object::Workload(Arc::new(Workload {
        id: id.into(),
        attachment: Attachment::Routed(Inside {
            netns: namespace.netns(),
            interface: "eth0".to_owned(),
        }),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        mtu: None,
        access: Default::default(),
    }))
}

fn learned(prefix: &str, next_hops: &[&str]) -> Object {
    Object::Route(LearnedRoute {
        prefix: net(prefix),
        next_hops: next_hops.iter().map(|text| address(text).into()).collect(),
    })
}

/// Two workloads, their blocks, and learned routes.
fn wanted(first: &Namespace, second: &Namespace) -> Vec<Object> {
    vec![
        Object::Blackhole(net("10.244.1.0/26")),
        Object::Blackhole(net("fd00:1::/122")),
        workload("pod/one", first, &["10.244.1.5", "fd00:1::5"]),
        workload("pod/two", second, &["10.244.1.6", "fd00:1::6"]),
        learned("10.244.2.0/26", &["192.168.7.2"]),
        learned("10.244.3.0/26", &["192.168.7.2", "192.168.7.3"]),
        learned("fd00:2::/122", &["fd00:7::2"]),
    ]
}

fn workload_ids() -> [ObjectId; 2] {
    ["pod/one", "pod/two"].map(|id| ObjectId::Workload(id.into()))
}

/// Name of a workload's host interface, by what it has to be: prefix and SHA-256.
fn interface(id: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", "printf %s \"$1\" | sha256sum | cut -c1-11", "sh", id])
        .output()
        .unwrap();
    format!("agt{}", String::from_utf8(output.stdout).unwrap().trim())
}

/// Lines of `ip route`, without the kernel's own, sorted, single-spaced.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.contains("proto kernel") && !line.contains("fe80::/64"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort();
    lines
}

fn routes() -> Vec<String> {
    let mut all = lines(&ip("route show"));
    all.extend(lines(&ip("-6 route show")));
    // The id of a nexthop object is nobody's business.
    for line in &mut all {
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(at) = words.iter().position(|word| *word == "nhid") {
            words.drain(at..at + 2);
        }
        *line = words.join(" ");
    }
    all
}

fn expected_routes() -> Vec<String> {
    let (one, two) = (interface("pod/one"), interface("pod/two"));
    [
        format!("10.244.1.5 dev {one} proto 70 scope link"),
        format!("10.244.1.6 dev {two} proto 70 scope link"),
        "10.244.2.0/26 via 192.168.7.2 dev under0 proto 71".to_owned(),
        "10.244.3.0/26 proto 71".to_owned(),
        "blackhole 10.244.1.0/26 proto 70".to_owned(),
        "nexthop via 192.168.7.2 dev under0 weight 1".to_owned(),
        "nexthop via 192.168.7.3 dev under0 weight 1".to_owned(),
        "blackhole fd00:1::/122 dev lo proto 70 metric 1024 pref medium".to_owned(),
        format!("fd00:1::5 dev {one} proto 70 metric 1024 pref medium"),
        format!("fd00:1::6 dev {two} proto 70 metric 1024 pref medium"),
        "fd00:2::/122 via fd00:7::2 dev under0 proto 71 metric 1024 pref medium".to_owned(),
    ]
    .into()
}

/// Programmed and at rest.
async fn up(first: &Namespace, second: &Namespace) -> Agent {
    let mut agent = Agent::start();
    agent.handle.set(wanted(first, second)).await.unwrap();
    for id in workload_ids() {
        agent.programmed(&id).await;
    }
    agent.synced().await;
    common::eventually("all routes stand", || {
        let routes = routes();
        if routes == expected_routes() {
            Ok(())
        } else {
            Err(format!("{routes:#?} is not {:#?}", expected_routes()))
        }
    })
    .await;
    agent
}

/// Everything a test compares before and after.
fn state(namespaces: &[&Namespace]) -> String {
    let mut text = ip("-d link show") + &ip("address show") + &ip("neighbour show nud permanent");
    text += &(routes().join("\n") + "\n");
    text += &ip("nexthop show");
    for namespace in namespaces {
        text += &namespace.ip("address show");
        text += &namespace.ip("route show");
        text += &namespace.ip("-6 route show");
        text += &namespace.ip("neighbour show nud permanent");
    }
    // Tables have an order of their own, and link-local addresses become ready by themselves.
    let text = text.replace(" tentative", "");
    let mut lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.trim().is_empty() && !line.ends_with("alias end"))
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

fn same(before: &str, after: &str) {
    let missing: Vec<_> = before.lines().filter(|l| !after.contains(l)).collect();
    let extra: Vec<_> = after.lines().filter(|l| !before.contains(l)).collect();
    assert!(before == after, "missing {missing:#?}, instead {extra:#?}");
}

#[test]
fn a_node_looks_as_promised() {
    on_a_host(|| async {
        underlay();
        let (first, second) = (Namespace::new(), Namespace::new());
        let agent = up(&first, &second).await;

        let one = interface("pod/one");
        let link = ip(&format!("-d link show {one}"));
        assert!(link.contains("alias agentd:pod/one"), "{link}");
        assert!(link.contains("mtu 1480"), "{link}");
        assert!(link.contains("link/ether ee:ee:ee:ee:ee:ee"), "{link}");
        // What grows with the number of links: no address of its own, and none of the kernel's routes
        // to multicast groups.
        let addresses = ip(&format!("-br address show {one}"));
        assert!(!addresses.contains("fe80"), "{addresses}");
        let routes = ip(&format!("-6 route show table all dev {one}"));
        assert!(!routes.contains("ff00::/8"), "{routes}");
        for (key, value) in [
            ("ipv4/conf/IF/proxy_arp", "1"),
            ("ipv4/neigh/IF/proxy_delay", "0"),
            ("ipv4/conf/IF/forwarding", "1"),
            ("ipv4/conf/IF/route_localnet", "0"),
            ("ipv4/conf/IF/rp_filter", "1"),
            ("ipv6/conf/IF/disable_ipv6", "0"),
            ("ipv6/conf/IF/accept_dad", "0"),
            ("ipv6/conf/IF/accept_ra", "0"),
            ("ipv6/conf/IF/forwarding", "1"),
            ("ipv6/conf/IF/proxy_ndp", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            let file = format!("/proc/sys/net/{}", key.replace("IF", &one));
            assert_eq!(common::run("cat", &file).trim(), value, "{key}");
        }

        assert_eq!(
            lines(&first.ip("route show")),
            [
                "169.254.1.1 dev eth0 proto 70 scope link",
                "default via 169.254.1.1 dev eth0 proto 70"
            ]
        );
        assert_eq!(
            lines(&first.ip("-6 route show default")),
            ["default via fe80::ecee:eeff:feee:eeee dev eth0 proto 70 metric 1024 pref medium"]
        );
        let inside = first.ip("-br address show eth0");
        assert!(
            inside.contains("10.244.1.5/32") && inside.contains("fd00:1::5/128"),
            "{inside}"
        );
        let neighbours = first.ip("neighbour show nud permanent");
        for gateway in ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"] {
            assert!(
                neighbours.contains(&format!("{gateway} dev eth0 lladdr ee:ee:ee:ee:ee:ee")),
                "{neighbours}"
            );
        }
        // Packets pass between the workloads, in both families, from the first one on.
        let name = first.path();
        let name = name.file_name().unwrap().to_str().unwrap();
        for target in ["10.244.1.6", "fd00:1::6"] {
            let ping = common::run(
                "ip",
                &format!("netns exec {name} ping -n -c 3 -i 0.2 -W 2 {target}"),
            );
            assert!(ping.contains(" 0% packet loss"), "{ping}");
        }
        agent.stop().await;
    });
}

#[test]
fn what_others_delete_comes_back_within_milliseconds() {
    on_a_host(|| async {
        underlay();
        let (first, second) = (Namespace::new(), Namespace::new());
        let agent = up(&first, &second).await;
        let one = interface("pod/one");
        // Addresses that were made again have another age, and links another number of flaps.
        let before = state(&[&first, &second]);
        let mut times = Vec::new();
        let mut harm = |what: &str, act: &dyn Fn()| {
            act();
            let start = Instant::now();
            loop {
                let now = state(&[&first, &second]);
                let took = start.elapsed();
                if now == before {
                    times.push((what.to_owned(), took));
                    break;
                }
                if took > TIME {
                    eprintln!("{what} does not come back");
                    same(&before, &now);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let host = |arguments: &'static str| move || drop(ip(arguments));
        harm("route of a workload", &host("route delete 10.244.1.5/32"));
        harm("blackhole", &host("route delete blackhole 10.244.1.0/26"));
        harm("learned route", &host("route delete 10.244.2.0/26"));
        harm("IPv6 learned route", &host("-6 route delete fd00:2::/122"));
        harm("neighbour", &|| {
            drop(ip(&format!("neighbour delete 10.244.1.5 dev {one}")));
        });
        harm("MTU", &|| drop(ip(&format!("link set {one} mtu 1300"))));
        harm("alias", &|| {
            drop(ip(&format!("link set {one} alias other")))
        });
        harm("sysctl", &|| {
            let file = format!("/proc/sys/net/ipv4/conf/{one}/rp_filter");
            std::fs::write(file, "0").unwrap();
        });
        harm("default route inside", &|| {
            drop(first.ip("route delete default"));
        });
        harm("neighbour inside", &|| {
            drop(first.ip("neighbour delete 169.254.1.1 dev eth0"));
        });
        // Most of it is the time of the `ip` calls that look.
        for (what, took) in &times {
            eprintln!("{what}: {took:?}");
            assert!(*took < Duration::from_secs(2), "{what}: {took:?}");
        }
        agent.stop().await;
    });
}

/// `ip monitor` of the host and of all namespaces it has a link into.
struct Monitor {
    child: Child,
}

impl Monitor {
    async fn start() -> Self {
        let child = Command::new("ip")
            .args([
                "-ts", "monitor", "all-nsid", "link", "address", "route", "neigh", "nexthop",
                "netconf",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It listens once it can be seen to have a socket.
        let own = std::process::id().to_string();
        assert!(!own.is_empty());
        let sockets = format!("/proc/{}/fd", child.id());
        eventually("ip monitor listens", || {
            let open = std::fs::read_dir(&sockets)
                .map_err(|error| error.to_string())?
                .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .any(|target| target.to_string_lossy().starts_with("socket:"));
            if open {
                Ok(())
            } else {
                Err("no socket".to_owned())
            }
        })
        .await;
        Self { child }
    }

    fn stop(mut self) -> String {
        self.child.kill().unwrap();
        let mut text = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_restart_writes_nothing() {
    on_a_host(|| async {
        underlay();
        let (first, second) = (Namespace::new(), Namespace::new());
        up(&first, &second).await.stop().await;
        let before = state(&[&first, &second]);

        let monitor = Monitor::start().await;
        let agent = up(&first, &second).await;
        let status = agent.handle.status().await.unwrap();
        assert_eq!(status.writes, 0, "{status:#?}");
        assert_eq!(status.learned_installed, 3);
        // The monitor hears this last.
        ip("link set under1 alias end");
        tokio::time::sleep(Duration::from_millis(50)).await;
        agent.stop().await;
        let heard = monitor.stop();
        assert!(heard.contains("under1"), "{heard}");
        for ours in ["agt", "10.244.", "eth0", "nhid", "fd00:1", "fd00:2"] {
            assert!(!heard.contains(ours), "{heard}");
        }
        same(&before, &state(&[&first, &second]));
    });
}

#[test]
fn what_is_removed_goes_and_what_is_stale_is_swept() {
    on_a_host(|| async {
        underlay();
        let (first, second) = (Namespace::new(), Namespace::new());
        ip("route add 10.50.0.0/16 via 192.168.7.9");
        ip("route add blackhole 10.51.0.0/16 proto 70");
        let mut agent = up_with_foreign(&first, &second).await;
        let [one, two] = workload_ids();
        agent.handle.remove(vec![one.clone()]).await.unwrap();
        agent
            .wait(
                "a workload is removed",
                |event| matches!(event, Event::Removed { id } if *id == one),
            )
            .await;
        assert!(!ip("route show").contains("10.244.1.5"));
        let name = interface("pod/one");
        eventually("the link is reaped", || {
            let links = ip("-br link show");
            if links.contains(&name) {
                Err(links)
            } else {
                Ok(())
            }
        })
        .await;
        assert!(!first.ip("-br link show").contains("eth0"));
        agent.stop().await;

        // The next one wants nothing any more.
        let mut agent = Agent::start();
        agent.synced().await;
        eventually("all of ours is gone", || {
            let text = ip("-br link show") + &ip("route show") + &ip("-6 route show");
            let left = ["agt", "proto 70", "proto 71"]
                .iter()
                .any(|mark| text.contains(mark));
            if left || !ip("nexthop show").is_empty() {
                Err(text)
            } else {
                Ok(())
            }
        })
        .await;
        assert!(ip("route show").contains("10.50.0.0/16 via 192.168.7.9"));
        drop(two);
        agent.stop().await;
    });
}

/// As [`up`], among routes of others.
async fn up_with_foreign(first: &Namespace, second: &Namespace) -> Agent {
    let mut agent = Agent::start();
    agent.handle.set(wanted(first, second)).await.unwrap();
    for id in workload_ids() {
        agent.programmed(&id).await;
    }
    agent.synced().await;
    eventually("the stale blackhole is swept", || {
        let text = ip("route show");
        if text.contains("10.51.0.0/16") {
            Err(text)
        } else {
            Ok(())
        }
    })
    .await;
    agent
}

#[test]
fn a_failed_workload_leaves_nothing_and_comes_when_it_can() {
    on_a_host(|| async {
        underlay();
        let (first, second) = (Namespace::new(), Namespace::new());
        let mut agent = Agent::start();
        // The name is taken inside.
        first.ip("link add eth0 type veth peer name other");
        let id = ObjectId::Workload("pod/one".into());
        agent
            .handle
            .set(vec![workload("pod/one", &first, &["10.244.1.5"])])
            .await
            .unwrap();
        let event = agent
            .wait("it fails", |event| matches!(event, Event::Failed { .. }))
            .await;
        let Event::Failed { error, .. } = event else {
            unreachable!()
        };
        assert_eq!(
            error.kind,
            dataplane::desired::FailureKind::InterfaceInUse,
            "{error:?}"
        );
        assert!(!ip("-br link show").contains("agt"));
        first.ip("link delete eth0");
        agent.programmed(&id).await;

        // A namespace that goes takes the link with it; the error says so.
        let path = second.path();
        let gone = workload("pod/two", &second, &["10.244.1.6"]);
        drop(second);
        agent.handle.set(vec![gone]).await.unwrap();
        let event = agent
            .wait("it fails", |event| matches!(event, Event::Failed { .. }))
            .await;
        let Event::Failed { error, .. } = event else {
            unreachable!()
        };
        assert_eq!(
            error.kind,
            dataplane::desired::FailureKind::NamespaceGone,
            "{error:?}"
        );
        assert!(
            error.text.contains(&path.display().to_string()),
            "{error:?}"
        );
        agent.stop().await;
    });
}

#[test]
fn many_workloads_are_added_and_removed_together() {
    on_a_host(|| async {
        underlay();
        let namespaces: Vec<Namespace> = (0..60).map(|_| Namespace::new()).collect();
        let mut agent = Agent::start();
        agent.synced().await;
        let objects: Vec<Object> = namespaces
            .iter()
            .enumerate()
            .map(|(number, namespace)| {
                workload(
                    &format!("pod/{number}"),
                    namespace,
                    &[
                        &format!("10.244.1.{number}"),
                        &format!("fd00:1::{number:x}"),
                    ],
                )
            })
            .collect();
        let ids: Vec<ObjectId> = objects.iter().map(Object::id).collect();
        let start = Instant::now();
        agent.handle.set(objects).await.unwrap();
        for id in &ids {
            agent.programmed(id).await;
        }
        eprintln!("60 workloads were added in {:?}", start.elapsed());
        let start = Instant::now();
        agent.handle.remove(ids.clone()).await.unwrap();
        for id in &ids {
            let what = format!("{id:?} is removed");
            agent
                .wait(
                    &what,
                    |event| matches!(event, Event::Removed { id: gone } if gone == id),
                )
                .await;
        }
        eprintln!("their routes were removed in {:?}", start.elapsed());
        eventually("all links are reaped", || {
            let links = ip("-br link show");
            if links.contains("agt") {
                Err(links)
            } else {
                Ok(())
            }
        })
        .await;
        eprintln!("their links were reaped after {:?}", start.elapsed());
        assert!(lines(&ip("route show")).is_empty());
        agent.stop().await;
    });
}

#[test]
fn what_an_add_asks_of_the_kernel_does_not_depend_on_how_many_workloads_there_are() {
    const WORKLOADS: usize = 40;
    on_a_host(|| async {
        underlay();
        let namespaces: Vec<Namespace> = (0..WORKLOADS).map(|_| Namespace::new()).collect();
        let mut agent = Agent::start();
        agent.synced().await;
        let mut asked = Vec::new();
        for (number, namespace) in namespaces.iter().enumerate() {
            let before = agent.handle.counts().await.unwrap();
            let id = format!("pod/{number}");
            let addresses = [format!("10.244.1.{number}"), format!("fd00:1::{number:x}")];
            let [v4, v6] = addresses.each_ref().map(String::as_str);
            agent
                .handle
                .set(vec![workload(&id, namespace, &[v4, v6])])
                .await
                .unwrap();
            agent.programmed(&ObjectId::Workload(id.into())).await;
            let after = agent.handle.counts().await.unwrap();
            asked.push((
                after.requests - before.requests,
                after.answers - before.answers,
                after.files - before.files,
            ));
        }
        let first = asked[0];
        // Now and then the kernel tells late of what a link does by itself, and something is looked
        // at again.
        let others = asked.iter().filter(|each| **each != first).count();
        assert!(others <= WORKLOADS / 10, "{asked:?}");
        // Three writes and one read on the host, for what netlink does not have.
        assert!(first.2 <= 4, "{first:?}");
        agent.stop().await;
    });
}
