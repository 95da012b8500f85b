//! One external session that sends many routes, and how long until the kernel has them: with
//! agentd, with BIRD, and without any BGP through raw netlink.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::fib::{self, Limit, Prefixes};
use super::injector::{self, Session};
use super::rival::{self, Rival, Task};
use crate::lab::agent::Agent;
use crate::lab::bird::Bird;
use crate::lab::config::{BirdConfig, BirdPeer, Peer};
use crate::lab::netns::Netns;
use crate::lab::{Lab, single};

pub(super) const INJECTOR_ASN: u32 = 65001;
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Times of all repetitions.
#[derive(Debug, Default)]
pub struct Times {
    pub add: Vec<Duration>,
    pub withdraw: Vec<Duration>,
    pub lost: Vec<Duration>,
    /// Resident before the first route, and the most there ever was.
    pub idle_kib: u64,
    pub memory_kib: u64,
    /// Peak above idle, of each repetition.
    pub above_kib: Vec<u64>,
}

impl Times {
    /// Takes over those of a further repetition.
    pub fn merge(&mut self, other: Self) {
        self.add.extend(other.add);
        self.withdraw.extend(other.withdraw);
        self.lost.extend(other.lost);
        self.idle_kib = self.idle_kib.max(other.idle_kib);
        self.memory_kib = self.memory_kib.max(other.memory_kib);
        self.above_kib.extend(other.above_kib);
    }
}

/// A namespace with the injector's link and a daemon's namespace at its other end.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) daemon: Netns,
    pub(super) injector: Netns,
    interface: u32,
}

pub(super) fn place(lab: &Lab, name: &str) -> Result<Place> {
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

/// Resident KiB now, and the most there ever was.
type Memory<'a> = &'a dyn Fn() -> Result<(u64, u64)>;

fn memory_of(pid: i32) -> Result<(u64, u64)> {
    Ok((status_kib(pid, "VmRSS:")?, status_kib(pid, "VmHWM:")?))
}

fn measure(place: &Place, prefixes: Prefixes, memory: Memory<'_>, times: &mut Times) -> Result<()> {
    let target: SocketAddr = "192.168.26.11:179".parse()?;
    measure_at(place, prefixes, target, next_hop(prefixes)?, memory, times)
}

/// One session: all routes in, all out, in again, and the session lost.
fn measure_at(
    place: &Place,
    prefixes: Prefixes,
    target: SocketAddr,
    hop: IpAddr,
    memory: Memory<'_>,
    times: &mut Times,
) -> Result<()> {
    let streams = injector::streams(prefixes, INJECTOR_ASN, hop);
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
    let idle = memory()?.0;
    times.idle_kib = times.idle_kib.max(idle);
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
    let peak = memory()?.1;
    times.memory_kib = times.memory_kib.max(peak);
    times.above_kib.push(peak.saturating_sub(idle));
    let (start, end) = std::thread::scope(|scope| -> Result<_> {
        let watcher = scope.spawn(|| wait(false));
        let start = session.drop_connection()?;
        let end = watcher.join().ok().context("the watcher panicked")??;
        Ok((start, end))
    })?;
    times.lost.push(end.saturating_duration_since(start));
    Ok(())
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
        let pid = process.pid();
        measure(&place, prefixes, &|| memory_of(pid), &mut times)?;
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

/// agentd with routes from an external peer, left alone.
pub fn idle(lab: &Lab, prefixes: Prefixes, patience: Duration) -> Result<Idle> {
    let place = place(lab, "node-idle")?;
    let mut config = single::config();
    // A directory of its own.
    config.name = "node-idle".into();
    config.bgp = "import = \"all\"\nhold_time = \"240s\"".into();
    let mut peer = Peer::new("injector", "192.168.26.1", INJECTOR_ASN);
    peer.extra = "passive = true\nmax_prefixes = 2000000".into();
    config.peers.push(peer);
    let agent = Agent::new(lab, &place.daemon, config)?;
    agent.start()?;
    let pid = agent.process()?.pid();
    let streams = injector::streams(prefixes, INJECTOR_ASN, next_hop(prefixes)?);
    let target: SocketAddr = "192.168.26.11:179".parse()?;
    let mut session = place
        .injector
        .enter(|| Session::connect(target, INJECTOR_ASN, PATIENCE))??;
    session.send(&streams.announce)?;
    place
        .daemon
        .enter(move || fib::wait_for_all(prefixes, true, PATIENCE))??;
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
        let pid = bird.process().pid();
        measure(&place, prefixes, &|| memory_of(pid), &mut times)?;
        bird.process().kill();
        lab.delete_namespace(&place.daemon)?;
        lab.delete_namespace(&place.injector)?;
    }
    Ok(times)
}

/// Another daemon that writes its routes to the kernel, once.
pub fn rival(lab: &Lab, daemon: Rival, prefixes: Prefixes) -> Result<Times> {
    let mut times = Times::default();
    let place = place(lab, "rival")?;
    let hop = IpAddr::V4(Task::address(0));
    lab.address(&place.daemon, "eth0", &format!("{}/16", rival::ADDRESS))?;
    lab.address(&place.injector, "eth0", &format!("{hop}/16"))?;
    let task = Task {
        neighbours: 1,
        internal: false,
        install: true,
    };
    let started = daemon.start(lab, &place.daemon, task)?;
    let target = SocketAddr::new(IpAddr::V4(rival::ADDRESS), 179);
    let memory = || started.memory();
    measure_at(&place, prefixes, target, hop, &memory, &mut times)
        .with_context(|| daemon.name())?;
    started.stop()?;
    lab.delete_namespace(&place.daemon)?;
    lab.delete_namespace(&place.injector)?;
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
