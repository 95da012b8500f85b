//! One external session that sends many routes, and how long until the kernel has them: with
//! agentd, with BIRD, and without any BGP through raw netlink.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::fib::{self, Limit, Prefixes};
use super::injector::{self, Session};
use crate::lab::agent::Agent;
use crate::lab::bird::Bird;
use crate::lab::config::{BirdConfig, BirdPeer, Peer};
use crate::lab::netns::Netns;
use crate::lab::{Lab, single};

const INJECTOR_ASN: u32 = 65001;
const PATIENCE: Duration = Duration::from_secs(60);

/// Times of all repetitions.
#[derive(Debug, Default)]
pub struct Times {
    pub add: Vec<Duration>,
    pub withdraw: Vec<Duration>,
    pub lost: Vec<Duration>,
    /// The most the daemon ever had resident.
    pub memory_kib: u64,
}

/// A namespace with the injector's link and a daemon's namespace at its other end.
struct Place {
    daemon: Netns,
    injector: Netns,
    interface: u32,
}

fn place(lab: &Lab, name: &str) -> Result<Place> {
    let daemon = lab.namespace(name)?;
    let injector = lab.namespace(&format!("{name}-injector"))?;
    lab.link((&injector, "eth0"), (&daemon, "eth0"))?;
    for (namespace, number) in [(&daemon, 11), (&injector, 1)] {
        lab.address(namespace, "eth0", &format!("192.168.26.{number}/24"))?;
        lab.address(namespace, "eth0", &format!("fd00:26::{number}/64"))?;
    }
    // The default limits IPv6 routes.
    daemon.show("sysctl -qw net.ipv6.route.max_size=2147483647")?;
    let interface = daemon
        .show("ip -oneline link show eth0")?
        .split(':')
        .next()
        .context("index")?
        .parse()?;
    Ok(Place {
        daemon,
        injector,
        interface,
    })
}

fn next_hop(prefixes: Prefixes) -> Result<IpAddr> {
    Ok(if prefixes.v6 {
        "fd00:26::1"
    } else {
        "192.168.26.1"
    }
    .parse()?)
}

/// One session: all routes in, all out, in again, and the session lost.
fn measure(place: &Place, prefixes: Prefixes, pid: i32, times: &mut Times) -> Result<()> {
    let streams = injector::streams(prefixes, INJECTOR_ASN, next_hop(prefixes)?);
    let target: SocketAddr = "192.168.26.11:179".parse()?;
    let mut session = place
        .injector
        .enter(|| Session::connect(target, INJECTOR_ASN, PATIENCE))??;
    let wait = |present| {
        place
            .daemon
            .enter(move || fib::wait_for_all(prefixes, present, PATIENCE))?
    };
    // Whatever follows the establishment shall not be measured.
    std::thread::sleep(Duration::from_millis(500));
    for (stream, present) in [
        (&streams.announce, true),
        (&streams.withdraw, false),
        (&streams.announce, true),
    ] {
        let (start, end) = std::thread::scope(|scope| -> Result<_> {
            let watcher = scope.spawn(|| wait(present));
            let start = session.send(stream)?;
            let end = watcher.join().ok().context("the watcher panicked")??;
            Ok((start, end))
        })?;
        let list = if present {
            &mut times.add
        } else {
            &mut times.withdraw
        };
        list.push(end.saturating_duration_since(start));
        session.keep_alive()?;
        std::thread::sleep(Duration::from_millis(300));
    }
    times.memory_kib = times.memory_kib.max(peak_memory(pid)?);
    let (start, end) = std::thread::scope(|scope| -> Result<_> {
        let watcher = scope.spawn(|| wait(false));
        let start = session.drop_connection()?;
        let end = watcher.join().ok().context("the watcher panicked")??;
        Ok((start, end))
    })?;
    times.lost.push(end.saturating_duration_since(start));
    Ok(())
}

fn peak_memory(pid: i32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

/// A line of `/proc/PID/status` that is told in kB.
pub fn status_kib(pid: i32, name: &'static str) -> Result<u64> {
    std::fs::read_to_string(format!("/proc/{pid}/status"))?
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .context(name)
}

/// agentd with the injector as its external peer.
pub fn agent(lab: &Lab, prefixes: Prefixes, repetitions: usize) -> Result<Times> {
    let mut times = Times::default();
    for _ in 0..repetitions {
        let place = place(lab, "node-a")?;
        let mut config = single::config();
        config.bgp = "import = \"all\"\nhold_time = \"240s\"".into();
        let mut peer = Peer::new("injector", "192.168.26.1", INJECTOR_ASN);
        peer.extra = "passive = true\nmax_prefixes = 2000000".into();
        config.peers.push(peer);
        let agent = Agent::new(lab, &place.daemon, config)?;
        agent.start()?;
        let process = agent.process()?;
        measure(&place, prefixes, process.pid(), &mut times)?;
        agent.terminate()?;
        std::fs::remove_dir_all(agent.directory())?;
        lab.delete_namespace(&place.daemon)?;
        lab.delete_namespace(&place.injector)?;
    }
    Ok(times)
}

/// What an agent with all these routes costs while nothing happens, until it has audited the kernel
/// once: processor time, the time it was watched, and its memory.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    pub processor: Duration,
    pub watched: Duration,
    pub resident_kib: u64,
}

/// An agent with routes from an external peer in the kernel, and room for many workloads.
pub(super) struct Loaded {
    pub agent: Agent,
    place: Place,
    session: Session,
}

impl Loaded {
    pub fn new(lab: &Lab, name: &str, prefixes: Prefixes) -> Result<Self> {
        let place = place(lab, name)?;
        let mut config = single::config();
        // A directory of its own.
        config.name = name.into();
        config.claim = vec!["10.244.0.0/17".into(), "fd10:244::/110".into()];
        config.bgp = "import = \"all\"\nhold_time = \"240s\"".into();
        let mut peer = Peer::new("injector", "192.168.26.1", INJECTOR_ASN);
        peer.extra = "passive = true\nmax_prefixes = 2000000".into();
        config.peers.push(peer);
        let agent = Agent::new(lab, &place.daemon, config)?;
        agent.start()?;
        let streams = injector::streams(prefixes, INJECTOR_ASN, next_hop(prefixes)?);
        let target: SocketAddr = "192.168.26.11:179".parse()?;
        let mut session = place
            .injector
            .enter(|| Session::connect(target, INJECTOR_ASN, PATIENCE))??;
        session.send(&streams.announce)?;
        let loaded = Self {
            agent,
            place,
            session,
        };
        loaded.wait_for_routes(prefixes)?;
        Ok(loaded)
    }

    /// Until the kernel has them all.
    pub fn wait_for_routes(&self, prefixes: Prefixes) -> Result<()> {
        self.place
            .daemon
            .enter(move || fib::wait_for_all(prefixes, true, PATIENCE))??;
        Ok(())
    }
}

/// agentd with routes from an external peer, left alone.
pub fn idle(lab: &Lab, prefixes: Prefixes, patience: Duration) -> Result<Idle> {
    let Loaded {
        agent, mut session, ..
    } = Loaded::new(lab, "node-idle", prefixes)?;
    let pid = agent.process()?.pid();
    std::thread::sleep(Duration::from_secs(2));
    let audited = || -> Result<_> {
        let dataplane = agent.client().status()?.dataplane.unwrap_or_default();
        // The agent tells it by the clock of each answer: fractions of a second differ.
        Ok(dataplane.last_audit_at.map_or(0, |at| at.seconds))
    };
    let before = audited()?;
    let (start, used) = (Instant::now(), processor_time(pid)?);
    while audited()? <= before + 2 && start.elapsed() < patience {
        session.keep_alive()?;
        std::thread::sleep(Duration::from_secs(10));
    }
    let idle = Idle {
        processor: processor_time(pid)?.saturating_sub(used),
        watched: start.elapsed(),
        resident_kib: status_kib(pid, "VmRSS:")?,
    };
    agent.terminate()?;
    Ok(idle)
}

/// User and system time of a process.
pub fn processor_time(pid: i32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold blanks.
    let (_, rest) = text.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every Linux.
    Ok(Duration::from_millis(ticks * 10))
}

/// BIRD 2, writing its routes to the kernel.
pub fn bird(lab: &Lab, prefixes: Prefixes, repetitions: usize) -> Result<Times> {
    let mut times = Times::default();
    for _ in 0..repetitions {
        let place = place(lab, "bird")?;
        let kernel = "import none; export all;";
        let config = BirdConfig {
            router_id: "192.168.26.11".into(),
            address: "192.168.26.11".into(),
            address6: "fd00:26::11".into(),
            asn: 64512,
            peers: vec![BirdPeer {
                name: "injector".into(),
                address: "192.168.26.1".into(),
                asn: INJECTOR_ASN,
                extra: "passive; hold time 240;".into(),
                families: vec!["ipv4", "ipv6"],
            }],
            extra: format!(
                "protocol kernel {{ ipv4 {{ {kernel} }}; }}\nprotocol kernel {{ ipv6 {{ {kernel} }}; }}"
            ),
        };
        let bird = Bird::start(lab, &place.daemon, "bird", &config)?;
        measure(&place, prefixes, bird.process().pid(), &mut times)?;
        bird.process().kill();
        lab.delete_namespace(&place.daemon)?;
        lab.delete_namespace(&place.injector)?;
    }
    Ok(times)
}

/// Raw netlink in a namespace of the same kind; medians.
pub fn limit(lab: &Lab, prefixes: Prefixes, nexthop: bool, repetitions: usize) -> Result<Limit> {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let place = place(lab, "raw")?;
        let gateway = next_hop(prefixes)?;
        let limit = place
            .daemon
            .enter(|| fib::limit(prefixes, gateway, place.interface, nexthop))??;
        add.push(limit.add);
        remove.push(limit.remove);
        lab.delete_namespace(&place.daemon)?;
        lab.delete_namespace(&place.injector)?;
    }
    Ok(Limit {
        add: super::median(&add),
        remove: super::median(&remove),
    })
}
