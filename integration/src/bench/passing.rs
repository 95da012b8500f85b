//! Routes that one neighbour sends and all others receive: through a daemon, and straight.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::fib::Prefixes;
use super::injector::{self, Session};
use super::receiver::Receivers;
use super::rival::{self, Rival, Task};
use crate::lab::Lab;
use crate::lab::netns::Netns;

const PATIENCE: Duration = Duration::from_secs(150);

/// Times and memory of all repetitions.
#[derive(Debug, Default)]
pub struct Passed {
    /// First octet of the first UPDATE until the last receiver holds the last route.
    pub add: Vec<Duration>,
    pub withdraw: Vec<Duration>,
    /// Connection closed until no receiver holds a route.
    pub lost: Vec<Duration>,
    /// Resident before the first route, and the most there ever was; the last repetition's.
    pub idle_kib: u64,
    pub peak_kib: u64,
    /// Octets that the receivers read, by one round of announcements.
    pub octets: u64,
}

pub(super) struct Place {
    pub(super) daemon: Netns,
    pub(super) neighbours: Netns,
}

pub(super) fn place(lab: &Lab, count: u32) -> Result<Place> {
    let daemon = lab.namespace("daemon")?;
    let neighbours = lab.namespace("neighbours")?;
    lab.link((&neighbours, "eth0"), (&daemon, "eth0"))?;
    lab.address(&daemon, "eth0", &format!("{}/16", rival::ADDRESS))?;
    lab.address(&daemon, "eth0", "fd00:ff::1/64")?;
    daemon.show("sysctl -qw net.ipv6.route.max_size=2147483647")?;
    for index in 0..count {
        lab.address(&neighbours, "eth0", &format!("{}/16", Task::address(index)))?;
    }
    Ok(Place { daemon, neighbours })
}

impl Passed {
    /// Takes over those of a further repetition.
    pub fn merge(&mut self, other: Self) {
        self.add.extend(other.add);
        self.withdraw.extend(other.withdraw);
        self.lost.extend(other.lost);
        (self.idle_kib, self.peak_kib) = (other.idle_kib, other.peak_kib);
    }
}

/// One daemon, `repetitions` times, each with a fresh one.
pub fn through(
    lab: &Lab,
    rival: Rival,
    prefixes: Prefixes,
    task: Task,
    repetitions: usize,
) -> Result<Passed> {
    let mut passed = Passed::default();
    for _ in 0..repetitions {
        let place = place(lab, task.neighbours)?;
        let daemon = rival.start(lab, &place.daemon, task)?;
        let mut receivers = Receivers::new(prefixes);
        let (mut sender, sessions) = place
            .neighbours
            .enter(|| sessions(task, &mut receivers))
            .and_then(|sessions| sessions)
            .with_context(|| rival.name())?;
        // Whatever follows the establishment shall not be measured.
        std::thread::sleep(Duration::from_millis(1500));
        passed.idle_kib = daemon.memory()?.0;
        let next_hop = IpAddr::V4(Task::address(0));
        let streams = if task.internal {
            injector::internal_streams(prefixes, next_hop)
        } else {
            injector::streams(prefixes, task.asn(0), next_hop)
        };
        let before = receivers.octets();
        for (stream, present) in [
            (&streams.announce, true),
            (&streams.withdraw, false),
            (&streams.announce, true),
        ] {
            let start = sender.send(stream)?;
            let end = receivers
                .wait(present, PATIENCE)
                .with_context(|| rival.name())?;
            let list = if present {
                &mut passed.add
            } else {
                &mut passed.withdraw
            };
            list.push(end.saturating_duration_since(start));
            if passed.octets == 0 {
                passed.octets = receivers.octets() - before;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        passed.peak_kib = daemon.memory()?.1;
        let start = sender.drop_connection()?;
        let end = receivers
            .wait(false, PATIENCE)
            .with_context(|| rival.name())?;
        passed.lost.push(end.saturating_duration_since(start));
        drop(sessions);
        daemon.stop()?;
        lab.delete_namespace(&place.daemon)?;
        lab.delete_namespace(&place.neighbours)?;
    }
    Ok(passed)
}

/// The first neighbour sends, the others receive.
fn sessions(task: Task, receivers: &mut Receivers) -> Result<(Session, Vec<Session>)> {
    let to = SocketAddr::new(IpAddr::V4(rival::ADDRESS), 179);
    let mut others = Vec::new();
    for index in 1..task.neighbours {
        let from = Some(IpAddr::V4(Task::address(index)));
        let reader = receivers.reader();
        others.push(Session::connect_with(
            from,
            to,
            task.asn(index),
            PATIENCE,
            reader,
        )?);
    }
    let from = Some(IpAddr::V4(Task::address(0)));
    let sender = Session::connect_with(from, to, task.asn(0), PATIENCE, injector::discard)?;
    Ok((sender, others))
}

/// The same octets written straight to the same number of receivers, one after the other: what
/// remains without any daemon.
pub fn straight(
    lab: &Lab,
    prefixes: Prefixes,
    receivers_count: u32,
    repetitions: usize,
) -> Result<Duration> {
    let place = place(lab, 1)?;
    let streams = injector::streams(prefixes, rival::ASN, IpAddr::V4(Task::address(0)));
    let mut times = Vec::new();
    for _ in 0..repetitions {
        let time = place.neighbours.enter(|| -> Result<Duration> {
            let listener = TcpListener::bind((Task::address(0), 0))?;
            let mut receivers = Receivers::new(prefixes);
            let mut writers = Vec::new();
            let mut readers = Vec::new();
            for _ in 0..receivers_count {
                writers.push(TcpStream::connect(listener.local_addr()?)?);
                let (stream, _) = listener.accept()?;
                let reader = receivers.reader();
                readers.push(std::thread::spawn(move || reader(stream)));
            }
            let start = Instant::now();
            std::thread::scope(|scope| -> Result<()> {
                // Two writers, as many as there are cores here: sockets are filled one by one.
                let half = writers.len().div_ceil(2);
                let mut threads = Vec::new();
                for part in writers.chunks_mut(half.max(1)) {
                    let stream = &streams.announce;
                    threads.push(scope.spawn(move || -> std::io::Result<()> {
                        for writer in part {
                            std::io::Write::write_all(writer, stream)?;
                        }
                        Ok(())
                    }));
                }
                for thread in threads {
                    thread.join().ok().context("a writer panicked")??;
                }
                Ok(())
            })?;
            let end = receivers.wait(true, PATIENCE)?;
            drop(writers);
            for reader in readers {
                let _ = reader.join();
            }
            Ok(end.saturating_duration_since(start))
        })??;
        times.push(time);
    }
    lab.delete_namespace(&place.daemon)?;
    lab.delete_namespace(&place.neighbours)?;
    Ok(super::median(&times))
}
