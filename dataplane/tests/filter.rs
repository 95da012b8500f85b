//! The filter table in a real kernel: written, read back, heard, and what it does to packets.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use dataplane::{
    desired::{Access, FilterSettings, Protocol, PublishedPort},
    filter::{Entry, Event, Filter, Output, Tables, table::TABLE},
    linux::nftables::{Changes, Filtering},
};

use common::{on_a_host, run};

struct World {
    filter: Filter,
    kernel: Filtering,
    changes: Changes,
    commits: usize,
}

fn settings() -> FilterSettings {
    FilterSettings {
        inside: ["10.244.0.0/16", "10.250.0.0/16", "fd00:244::/48"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        masquerade: ["10.244.0.0/16", "fd00:244::/48"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        bridged: vec!["172.30.0.0/24".parse().unwrap()],
    }
}

fn access(port: u16) -> Access {
    let published = |host_address: Option<&str>, protocol| PublishedPort {
        protocol,
        host_address: host_address.map(|address| address.parse().unwrap()),
        host_port: port,
        container_port: 80,
    };
    Access {
        ports: vec![
            published(None, Protocol::Tcp),
            published(Some("192.0.2.1"), Protocol::Udp),
            published(Some("2001:db8::1"), Protocol::Sctp),
        ],
        allowed: vec![
            "198.51.100.0/24".parse().unwrap(),
            "198.51.100.7/32".parse().unwrap(),
            "2001:db8:1::/64".parse().unwrap(),
        ],
    }
}

fn addresses(host: u8) -> Vec<IpAddr> {
    vec![
        IpAddr::from([10, 244, 0, host]),
        format!("fd00:244::{host:x}").parse().unwrap(),
    ]
}

impl World {
    fn new() -> Self {
        let (kernel, changes) = Filtering::open().unwrap();
        let mut filter = Filter::new();
        filter.set_settings(settings());
        filter.synced();
        Self {
            filter,
            kernel,
            changes,
            commits: 0,
        }
    }

    async fn settle(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(output) = self.filter.poll_output() {
            let now = Instant::now();
            match output {
                Output::Read(id) => {
                    let snapshot = self.kernel.read().await;
                    self.filter.handle_snapshot(now, id, snapshot);
                }
                Output::Commit(id, ops) => {
                    self.commits += 1;
                    let result = self.kernel.commit(ops).await;
                    if let Err(error) = &result {
                        panic!("{error}");
                    }
                    self.filter.handle_committed(now, id, result);
                }
                Output::Flush(id, addresses) => {
                    self.kernel.forget(addresses).await.unwrap();
                    self.filter.handle_flushed(id);
                }
                Output::Event(event) => events.push(event),
            }
        }
        events
    }

    async fn hear(&mut self) {
        let heard = tokio::time::timeout(Duration::from_secs(5), self.changes.next());
        let heard = heard.await.expect("a change is heard").unwrap();
        self.filter.handle_change(heard.by, heard.deleted);
    }

    async fn silent(&mut self) {
        let heard = tokio::time::timeout(Duration::from_millis(100), self.changes.next());
        assert!(heard.await.is_err(), "own writes are not heard");
    }
}

#[test]
fn the_table_is_read_back_as_it_was_written() {
    on_a_host(|| async {
        let mut world = World::new();
        assert_eq!(world.settle().await, [Event::Programmed]);
        world.filter.set_workload(
            &"a".into(),
            Entry::Own("agt0a"),
            &addresses(1),
            &access(8080),
        );
        world.filter.set_workload(
            &"t".into(),
            Entry::Own("vm0"),
            &addresses(2),
            &Access::default(),
        );
        let subnets = vec!["172.30.0.0/24".parse().unwrap()];
        world.filter.set_bridge("br-web".into(), subnets);
        let port = Entry::Port {
            bridge: "br-web",
            port: "agt0c",
            mac: [2, 0, 0, 0, 0, 1],
        };
        world
            .filter
            .set_workload(&"c".into(), port, &addresses(3), &access(8081));
        world.settle().await;
        assert_eq!(world.commits, 2);
        world.silent().await;
        println!("{}", run("nft", "list table inet agentd"));
        println!("{}", run("nft", "list table bridge agentd"));

        // Another run, with the same wishes.
        world.filter.handle_change(None, Tables::default());
        assert!(world.settle().await.is_empty());
        assert_eq!(world.commits, 2, "what stands is right");

        world.filter.remove_workload(&"a".into());
        world.filter.routes_removed(&"a".into());
        world.settle().await;
        assert_eq!(world.commits, 3);
        world.filter.handle_change(None, Tables::default());
        world.settle().await;
        assert_eq!(world.commits, 3);
    });
}

#[test]
fn whatever_others_do_to_the_table_is_heard_and_put_back() {
    on_a_host(|| async {
        let mut world = World::new();
        world.filter.set_workload(
            &"a".into(),
            Entry::Own("agt0a"),
            &addresses(1),
            &access(8080),
        );
        world.settle().await;
        let before = run("nft", "list table inet agentd");
        for (command, expected) in [
            ("delete table inet agentd", "table inet agentd was deleted"),
            (
                "flush table inet agentd",
                "rules of chain source were changed",
            ),
            ("flush set inet agentd inside4", "set inside4: 4 elements"),
            ("flush chain inet agentd ports", "rules of chain ports"),
            (
                "insert rule inet agentd prerouting accept",
                "rules of chain prerouting",
            ),
            ("add chain inet agentd mine", "chain mine was added"),
            (
                "add set inet agentd mine { type mark; }",
                "set mine was added",
            ),
            (
                "add table inet agentd { flags dormant; }",
                "table inet agentd got flags",
            ),
            (
                "delete element inet agentd any-ports4 { tcp . 8080 }",
                "set any-ports4: 1 elements were deleted",
            ),
            ("flush ruleset", "table inet agentd was deleted"),
        ] {
            run("nft", command);
            world.hear().await;
            let events = world.settle().await;
            let [Event::Repaired { what }] = events.as_slice() else {
                panic!("{command}: {events:?}");
            };
            assert!(what.starts_with(expected), "{command}: {what}");
            assert!(what.contains("(by nft, process "), "{command}: {what}");
            assert_eq!(run("nft", "list table inet agentd"), before, "{command}");
            world.silent().await;
        }
        // Others' tables are nobody's business.
        run("nft", "add table inet other");
        run("nft", "add table ip agentd");
        world.silent().await;
        assert_eq!(TABLE, "agentd");
    });
}

/// Connections of each source address, by the destination port.
fn flows(from: &str, count: u16) {
    let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
    for port in 20_000..20_000 + count {
        // Nobody listens: what comes back is an error, at times of the call after.
        let _ = socket.send_to(&[0], ("127.0.0.2", port));
    }
}

#[test]
fn connections_of_an_address_are_forgotten_and_no_others_however_many_there_are() {
    for others in [10, 1500] {
        on_a_host(move || async move {
            // Connections are tracked where a rule asks for their state.
            run("nft", "add table inet t");
            run(
                "nft",
                "add chain inet t c { type filter hook output priority 0 ; }",
            );
            run("nft", "add rule inet t c ct state new accept");
            let (kernel, _changes) = Filtering::open().unwrap();
            let gone: IpAddr = "127.0.0.3".parse().unwrap();
            assert_eq!(kernel.forget(vec![gone]).await.unwrap(), 0, "none at all");
            flows("127.0.0.1", others);
            flows("127.0.0.3", 7);
            let forgotten = kernel.forget(vec![gone]).await.unwrap();
            assert_eq!(forgotten, 7, "beside {others}");
            assert_eq!(kernel.forget(vec![gone]).await.unwrap(), 0);
            let left = kernel.forget(vec!["127.0.0.1".parse().unwrap()]).await;
            assert_eq!(left.unwrap(), u64::from(others), "others stayed");
        });
    }
}
