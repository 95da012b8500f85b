//! What the filter table costs: `cargo run --release -p dataplane --example filter_rates` as root.
//!
//! Measures, in a network namespace of its own: the time until the element of one more published
//! port stands, with none and with 10,000 there; the time of a TCP connection through a published
//! port, likewise; and the time until the table is whole again after each kind of damage.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use dataplane::{
    desired::{Access, FilterSettings, Protocol, PublishedPort},
    filter::{Entry, Event, Filter, Output},
    linux::nftables::{Changes, Filtering},
};
use nix::sched::{CloneFlags, unshare};

struct World {
    filter: Filter,
    kernel: Filtering,
    changes: Changes,
}

impl World {
    async fn settle(&mut self) -> bool {
        let mut repaired = false;
        while let Some(output) = self.filter.poll_output() {
            let now = Instant::now();
            match output {
                Output::Read(id) => {
                    let snapshot = self.kernel.read().await;
                    self.filter.handle_snapshot(now, id, snapshot);
                }
                Output::Commit(id, ops) => {
                    let result = self.kernel.commit(ops).await;
                    self.filter.handle_committed(now, id, result);
                }
                Output::Flush(id, addresses) => {
                    let _ = self.kernel.forget(addresses).await;
                    self.filter.handle_flushed(id);
                }
                Output::Event(event) => repaired |= matches!(event, Event::Repaired { .. }),
            }
        }
        repaired
    }

    fn publish(&mut self, id: &str, address: IpAddr, ports: &[(u16, u16)]) {
        let ports = ports
            .iter()
            .map(|&(host_port, container_port)| PublishedPort {
                protocol: Protocol::Tcp,
                host_address: None,
                host_port,
                container_port,
            })
            .collect();
        let access = Access {
            ports,
            allowed: Vec::new(),
        };
        self.filter
            .set_workload(&Arc::from(id), Entry::Own("agt0"), &[address], &access);
    }

    async fn add_times(&mut self, count: u16) -> Vec<Duration> {
        let mut times = Vec::new();
        for number in 0..count {
            let address = IpAddr::from([10, 99, 0, 1]);
            let begun = Instant::now();
            self.publish("probe", address, &[(60_000 + number, 80)]);
            self.settle().await;
            times.push(begun.elapsed());
        }
        self.filter.remove_workload(&Arc::from("probe"));
        self.filter.routes_removed(&Arc::from("probe"));
        self.settle().await;
        times
    }

    async fn damage(&mut self, command: &str, count: usize) -> Vec<Duration> {
        let mut times = Vec::new();
        for _ in 0..count {
            let words: Vec<&str> = command.split_whitespace().collect();
            // The kernel is done with it before the program ends, so this counts a little too much.
            let begun = Instant::now();
            let mut child = Command::new("nft").args(&words).spawn().expect("nft");
            let heard = self.changes.next().await.expect("notifications go on");
            let heard_at = Instant::now();
            self.filter.handle_change(heard.by, heard.deleted);
            let repaired = self.settle().await;
            times.push(heard_at.elapsed());
            child.wait().expect("nft ends");
            assert!(repaired, "{command}: {:?}", begun.elapsed());
        }
        times
    }
}

fn connections(to: SocketAddr, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(to).expect("a connection");
        times.push(begun.elapsed());
        let _ = stream.read(&mut [0; 1]);
    }
    times
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "{what:<58} p50 {:>9.1?}  p99 {:>9.1?}  max {:>9.1?}  n {}",
        at(50),
        at(99),
        at(100),
        times.len()
    );
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("ip");
    assert!(status.success(), "ip {arguments}");
}

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root");
    ip("link set lo up");
    ip("address add 192.0.2.1/32 dev lo");
    ip("address add 10.99.0.2/32 dev lo");
    let listener = TcpListener::bind("10.99.0.2:80").expect("a listener");
    thread::spawn(move || for _ in listener.incoming() {});
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(measure());
}

async fn measure() {
    let (kernel, changes) = Filtering::open().expect("netfilter");
    let mut filter = Filter::new();
    let pool = "10.99.0.0/16".parse().expect("a prefix");
    filter.set_settings(FilterSettings {
        inside: vec![pool],
        masquerade: vec![pool],
        bridged: Vec::new(),
    });
    filter.synced();
    let mut world = World {
        filter,
        kernel,
        changes,
    };
    let begun = Instant::now();
    world.settle().await;
    println!("the table is made in {:?}", begun.elapsed());

    let server = IpAddr::from([10, 99, 0, 2]);
    world.publish("server", server, &[(8080, 80)]);
    world.settle().await;
    let published = SocketAddr::from(([192, 0, 2, 1], 8080));
    let damages = [
        "delete table inet agentd",
        "flush chain inet agentd ports",
        "flush map inet agentd any-ports4",
    ];

    show("one more port stands, 1 there", world.add_times(300).await);
    show(
        "a connection, directly",
        connections(SocketAddr::new(server, 80), 2000),
    );
    show(
        "a connection through a port, 1 there",
        connections(published, 2000),
    );
    for damage in damages {
        let times = world.damage(damage, 200).await;
        show(&format!("{damage}, 1 port, heard to repaired"), times);
    }

    for workload in 0..100_u16 {
        let [high, low] = workload.to_be_bytes();
        let ports: Vec<(u16, u16)> = (0..100)
            .map(|port| (10_000 + workload * 100 + port, 80))
            .collect();
        let address = IpAddr::from([10, 99, 1 + high, low]);
        world.publish(&workload.to_string(), address, &ports);
    }
    let begun = Instant::now();
    world.settle().await;
    println!("10,000 ports are added at once in {:?}", begun.elapsed());
    show(
        "one more port stands, 10,000 there",
        world.add_times(300).await,
    );
    show(
        "a connection through a port, 10,000 there",
        connections(published, 2000),
    );
    for damage in damages {
        let times = world.damage(damage, 50).await;
        show(&format!("{damage}, 10,000 ports"), times);
    }
    let begun = Instant::now();
    world.kernel.read().await.expect("a table");
    println!("10,000 ports are read back in {:?}", begun.elapsed());
}
