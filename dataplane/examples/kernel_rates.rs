//! How fast the driver writes to the kernel: routes, and workloads. Needs root; works in network
//! namespaces of its own, which are gone with it.
//!
//! ```text
//! kernel_rates [--rounds 5] [--workloads 300] [--routes 100000] [--raw DIR]
//! ```
//!
//! With `--raw`, the programs `nlroute` and `nlveth` in that folder (raw netlink in C, as fast as
//! the kernel allows) are run in turn with it, and ratios are printed.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use dataplane::{
    desired::Netns,
    kernel::{
        Address, CreateVeth, Gateway, Neighbour, NextHop, NextHopKind, Op, PROTOCOL_AGENTD,
        PROTOCOL_AGENTD_BGP, Place, Query, Route, Target,
    },
    linux::Kernel,
};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};

fn main() {
    let mut rounds = 5;
    let mut workloads = 300;
    let mut most_routes = 100_000;
    let mut raw = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().expect("every option has a value");
        match argument.as_str() {
            "--rounds" => rounds = value.parse().expect("a number"),
            "--workloads" => workloads = value.parse().expect("a number"),
            "--routes" => most_routes = value.parse().expect("a number"),
            "--raw" => raw = Some(value),
            other => panic!("unknown option {other}"),
        }
    }
    for family in [4, 6] {
        for count in [most_routes / 10, most_routes] {
            if count == 0 {
                continue;
            }
            for by_next_hop in [false, true] {
                routes(family, count, by_next_hop, rounds, raw.as_deref());
            }
        }
    }
    workload_rates(workloads, rounds, raw.as_deref());
}

/// Runs on a thread in a fresh namespace, which stands for the host's.
fn on_a_host<T: Send + 'static, F: Future<Output = T>>(
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        ip("link set lo up");
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(work())
    })
    .join()
    .unwrap()
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn prefix(family: u8, number: u32) -> IpNet {
    if family == 4 {
        let bits = u32::from_be_bytes([20, 0, 0, 0]) + (number << 6);
        IpNet::new(Ipv4Addr::from_bits(bits).into(), 26).unwrap()
    } else {
        let bits = (0xfd10_u128 << 112) + (u128::from(number) << 6);
        IpNet::new(Ipv6Addr::from_bits(bits).into(), 122).unwrap()
    }
}

fn routes(family: u8, count: u32, by_next_hop: bool, rounds: usize, raw: Option<&str>) {
    let mut adds = Vec::new();
    let mut deletes = Vec::new();
    let mut flushes = Vec::new();
    let mut reads = Vec::new();
    let mut raw_adds = Vec::new();
    let mut raw_deletes = Vec::new();
    for _ in 0..rounds {
        let [add, delete, flush, read] = on_a_host(move || route_round(family, count, by_next_hop));
        adds.push(add);
        deletes.push(delete);
        flushes.push(flush);
        reads.push(read);
        if let Some(folder) = raw {
            let mut arguments = format!("-f {family} -n {count} -m batch");
            if by_next_hop {
                arguments += " -N";
            }
            let text = raw_program(folder, "nlroute", &arguments);
            raw_adds.push(field(&text, "add", "rate"));
            let text = raw_program(folder, "nlroute", &format!("{arguments} -p shuf"));
            raw_deletes.push(field(&text, "del", "rate"));
        }
    }
    let (add, delete) = (median(adds), median(deletes));
    print!(
        "IPv{family} {count:>6} {}: add {:>4.0}k/s, delete {:>4.0}k/s, dump {:>5.0}k/s",
        if by_next_hop { "nexthop" } else { "gateway" },
        add / 1e3,
        delete / 1e3,
        median(reads) / 1e3,
    );
    if by_next_hop {
        print!(
            ", by deleting the nexthop {:>5.0}k/s",
            median(flushes) / 1e3
        );
    }
    if raw.is_some() {
        let (raw_add, raw_delete) = (median(raw_adds), median(raw_deletes));
        print!(
            "; raw {:.0}k/s and {:.0}k/s: {:.2} and {:.2} of it",
            raw_add / 1e3,
            raw_delete / 1e3,
            add / raw_add,
            delete / raw_delete
        );
    }
    println!();
}

/// Routes a second: added, deleted, deleted with their nexthop, dumped.
async fn route_round(family: u8, count: u32, by_next_hop: bool) -> [f64; 4] {
    ip("link add under0 index 77 type veth peer name under1");
    ip("link set under0 up");
    ip("link set under1 up");
    ip("address add 10.255.0.1/24 dev under0");
    ip("address add fd00:ff::1/64 dev under0 nodad");
    let address: IpAddr = match family {
        4 => "10.255.0.2",
        _ => "fd00:ff::2",
    }
    .parse()
    .unwrap();
    let gateway = Gateway {
        address: Some(address),
        index: 77,
        onlink: false,
        weight: 1,
    };
    let (kernel, _changes) = Kernel::open().unwrap();
    let next_hop = || {
        vec![Op::ReplaceNextHop(NextHop {
            id: 1,
            protocol: PROTOCOL_AGENTD_BGP,
            kind: NextHopKind::Gateway(gateway),
            resilient: None,
        })]
    };
    apply(&kernel, next_hop()).await;
    let all: Vec<Route> = (0..count)
        .map(|number| Route {
            prefix: prefix(family, number),
            table: 254,
            metric: 0,
            protocol: PROTOCOL_AGENTD_BGP,
            target: if by_next_hop {
                Target::NextHop { id: 1 }
            } else {
                Target::Gateways(vec![gateway])
            },
        })
        .collect();
    let place = Place::Host;
    let adds = || -> Vec<Op> {
        all.iter()
            .map(|route| Op::AddRoute {
                place: place.clone(),
                route: route.clone(),
            })
            .collect()
    };
    let deletes: Vec<Op> = all
        .iter()
        .map(|route| Op::DeleteRoute {
            place: place.clone(),
            route: route.clone(),
        })
        .collect();
    let rate = |time: Duration| f64::from(count) / time.as_secs_f64();
    let add = rate(apply(&kernel, adds()).await);
    let start = Instant::now();
    let snapshot = kernel
        .query(Query::Place {
            place: Place::Host,
            sysctls: Vec::new(),
        })
        .await
        .unwrap();
    let read = rate(start.elapsed());
    assert!(snapshot.routes.len() >= all.len());
    let delete = rate(apply(&kernel, deletes).await);
    let mut flush = f64::NAN;
    if by_next_hop {
        apply(&kernel, adds()).await;
        flush = rate(apply(&kernel, vec![Op::DeleteNextHop { id: 1 }]).await);
    }
    [add, delete, flush, read]
}

async fn apply(kernel: &Kernel, ops: Vec<Op>) -> Duration {
    let start = Instant::now();
    let results = kernel.apply(ops).await;
    let time = start.elapsed();
    if let Some(error) = results.into_iter().find_map(Result::err) {
        panic!("{error}");
    }
    time
}

/// Namespaces that exist as long as this: each belongs to a thread that waits.
struct Namespaces {
    list: Vec<Netns>,
    _release: Vec<mpsc::Sender<()>>,
}

fn namespaces(count: usize) -> Namespaces {
    let mut list = Vec::new();
    let mut release = Vec::new();
    for _ in 0..count {
        let (sender, receiver) = mpsc::channel::<()>();
        let (made, path) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let task = fs::read_link("/proc/thread-self").unwrap();
            made.send(format!("/proc/{}/ns/net", task.display()))
                .unwrap();
            let _ = receiver.recv();
        });
        let path = path.recv().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        list.push(Netns {
            path: path.into(),
            device: metadata.dev(),
            inode: metadata.ino(),
        });
        release.push(sender);
    }
    Namespaces {
        list,
        _release: release,
    }
}

fn workload_rates(count: usize, rounds: usize, raw: Option<&str>) {
    let mut p50 = Vec::new();
    let mut p99 = Vec::new();
    let mut one_by_one = Vec::new();
    let mut batched = Vec::new();
    let mut removed = Vec::new();
    let mut reaped = Vec::new();
    let (mut raw_p50, mut raw_rate, mut raw_delete) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        settle();
        let round = on_a_host(move || one_by_one_round(count));
        p50.push(round.p50);
        p99.push(round.p99);
        one_by_one.push(round.rate);
        settle();
        let round = on_a_host(move || batch_round(count));
        batched.push(round.added);
        removed.push(round.routes_removed);
        reaped.push(round.reaped);
        if let Some(folder) = raw {
            settle();
            let text = raw_program(
                folder,
                "nlveth",
                &format!("-n {count} -v fast -y netlink -q 1 -6 1 -D group"),
            );
            raw_p50.push(field(&text, "", "add_p50_us"));
            raw_rate.push(field(&text, "", "add_rate"));
            raw_delete.push(field(&text, "", "del_rate"));
        }
    }
    let (p50, rate) = (median(p50), median(batched));
    print!(
        "workloads, {count}: add and read back, one by one p50 {:.0} us, p99 {:.0} us, {:.0}/s; \
         in one batch {:.0}/s; routes removed {:.0}/s; links reaped {:.0}/s",
        p50,
        median(p99),
        median(one_by_one),
        rate,
        median(removed),
        median(reaped),
    );
    if raw.is_some() {
        print!(
            "; raw (IPv4 only, no reading back) p50 {:.0} us, {:.0}/s, reaped {:.0}/s",
            median(raw_p50),
            median(raw_rate),
            median(raw_delete)
        );
    }
    println!();
}

/// The kernel tears namespaces down in the background, under the lock that every change needs.
fn settle() {
    thread::sleep(Duration::from_secs(1));
}

struct OneByOne {
    /// Microseconds.
    p50: f64,
    p99: f64,
    rate: f64,
}

/// As the daemon does: each is read back before the next.
async fn one_by_one_round(count: usize) -> OneByOne {
    let spaces = namespaces(count);
    let (kernel, _changes) = Kernel::open().unwrap();
    let mut times = Vec::new();
    let start = Instant::now();
    for (number, netns) in (0_u32..).zip(&spaces.list) {
        let begin = Instant::now();
        apply(&kernel, attach(number, netns)).await;
        for (place, index) in [
            (Place::Host, index_of(number)),
            (Place::Netns(netns.clone()), 2),
        ] {
            let query = Query::Link {
                place,
                index,
                neighbours: Vec::new(),
                sysctls: Vec::new(),
            };
            let snapshot = kernel.query(query).await.unwrap();
            assert_eq!(snapshot.links.len(), 1);
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    OneByOne {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        rate,
    }
}

/// All a second.
struct Batch {
    added: f64,
    routes_removed: f64,
    reaped: f64,
}

async fn batch_round(count: usize) -> Batch {
    let spaces = namespaces(count);
    let (kernel, _changes) = Kernel::open().unwrap();
    let rate = |time: Duration| count as f64 / time.as_secs_f64();
    let ops = (0..)
        .zip(&spaces.list)
        .flat_map(|(number, netns)| attach(number, netns))
        .collect();
    let added = rate(apply(&kernel, ops).await);
    let numbers: Vec<u32> = (0..).take(count).collect();
    let deletes = numbers
        .iter()
        .flat_map(|number| {
            host_routes(*number).map(|route| Op::DeleteRoute {
                place: Place::Host,
                route,
            })
        })
        .collect();
    let routes_removed = rate(apply(&kernel, deletes).await);
    let links = numbers.into_iter().map(index_of).collect();
    let reaped = rate(apply(&kernel, vec![Op::DeleteLinks(links)]).await);
    Batch {
        added,
        routes_removed,
        reaped,
    }
}

fn index_of(number: u32) -> u32 {
    100_000 + number
}

fn host_routes(number: u32) -> [Route; 2] {
    let route = |prefix, metric| Route {
        prefix,
        table: 254,
        metric,
        protocol: PROTOCOL_AGENTD,
        target: Target::Link {
            index: index_of(number),
        },
    };
    let v4 = Ipv4Addr::from_bits(u32::from_be_bytes([10, 100, 0, 1]) + number);
    let v6 = Ipv6Addr::from_bits((0xfd00_u128 << 112) + 1 + u128::from(number));
    [
        route(IpNet::new(v4.into(), 32).unwrap(), 0),
        route(IpNet::new(v6.into(), 128).unwrap(), 1024),
    ]
}

/// What a workload with addresses of both families needs.
fn attach(number: u32, netns: &Netns) -> Vec<Op> {
    let name = format!("agt{number:011x}");
    let index = index_of(number);
    let inside = Place::Netns(netns.clone());
    let gateway4: IpAddr = "169.254.1.1".parse().unwrap();
    let gateway6: IpAddr = "fe80::ecee:eeff:feee:eeee".parse().unwrap();
    let bytes = number.to_be_bytes();
    let peer_mac = [2, 1, bytes[0], bytes[1], bytes[2], bytes[3]];
    let mut ops = vec![Op::CreateVeth(Box::new(CreateVeth {
        alias: format!("agentd:{name}"),
        name: name.clone(),
        index,
        mac: [0xee; 6],
        mtu: 1450,
        peer_netns: netns.clone(),
        peer_name: "eth0".to_owned(),
        peer_index: 2,
        peer_mac,
        master: None,
        deaf: true,
    }))];
    for (key, value) in [
        ("ipv4/conf/NAME/proxy_arp", "1"),
        ("ipv4/conf/NAME/forwarding", "1"),
        ("ipv4/conf/NAME/rp_filter", "1"),
        ("ipv4/conf/NAME/route_localnet", "0"),
        ("ipv4/neigh/NAME/proxy_delay", "0"),
        ("ipv6/conf/NAME/disable_ipv6", "0"),
        ("ipv6/conf/NAME/accept_dad", "0"),
        ("ipv6/conf/NAME/accept_ra", "0"),
        ("ipv6/conf/NAME/forwarding", "1"),
        ("ipv6/conf/NAME/proxy_ndp", "1"),
    ] {
        ops.push(Op::WriteSysctl {
            place: Place::Host,
            path: format!("net/{}", key.replace("NAME", &name)),
            value: value.to_owned(),
        });
    }
    ops.push(Op::AddAddress {
        place: Place::Host,
        address: Address {
            index,
            net: IpNet::new(gateway6, 64).unwrap(),
            nodad: true,
        },
    });
    let routes = host_routes(number);
    for route in &routes {
        ops.push(Op::ReplaceNeighbour {
            place: Place::Host,
            neighbour: Neighbour {
                index,
                address: route.prefix.addr(),
                mac: peer_mac,
                permanent: true,
            },
        });
        ops.push(Op::AddRoute {
            place: Place::Host,
            route: route.clone(),
        });
    }
    for route in &routes {
        ops.push(Op::AddAddress {
            place: inside.clone(),
            address: Address {
                index: 2,
                net: route.prefix,
                nodad: true,
            },
        });
    }
    for gateway in [gateway4, gateway6] {
        ops.push(Op::ReplaceNeighbour {
            place: inside.clone(),
            neighbour: Neighbour {
                index: 2,
                address: gateway,
                mac: [0xee; 6],
                permanent: true,
            },
        });
    }
    let mut inside_route = |prefix: &str, target| {
        ops.push(Op::AddRoute {
            place: inside.clone(),
            route: Route {
                prefix: prefix.parse().unwrap(),
                table: 254,
                metric: 0,
                protocol: PROTOCOL_AGENTD,
                target,
            },
        });
    };
    let via = |address| {
        Target::Gateways(vec![Gateway {
            address: Some(address),
            index: 2,
            onlink: false,
            weight: 1,
        }])
    };
    inside_route("169.254.1.1/32", Target::Link { index: 2 });
    inside_route("0.0.0.0/0", via(gateway4));
    inside_route("::/0", via(gateway6));
    ops
}

fn raw_program(folder: &str, program: &str, arguments: &str) -> String {
    let output = Command::new(format!("{folder}/{program}"))
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

/// A number in the JSON line of that step.
fn field(text: &str, step: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| step.is_empty() || line.contains(&format!("\"step\":\"{step}")))
        .find_map(|line| {
            let (_, rest) = line.split_once(&format!("\"{name}\":"))?;
            rest.split([',', '}']).next()?.parse().ok()
        })
        .unwrap_or(f64::NAN)
}
