//! A node at rest: what it costs, and how soon it is ready after it was killed.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::fib::{self, Prefixes};
use super::injector::{self, Session};
use super::passing;
use super::rival::{self, Rival, Task};
use super::routes::{INJECTOR_ASN, PATIENCE, Place, place, processor_time, status_kib};
use super::scale::{Namespaces, at_rest};
use crate::lab::agent::Agent;
use crate::lab::config::Peer;
use crate::lab::{Lab, single};

/// Resident KiB of a daemon with three neighbours, of which one has sent 100 routes.
pub fn resident(lab: &Lab, daemon: Rival) -> Result<u64> {
    let task = Task {
        neighbours: 3,
        internal: false,
        // The others write no routes to this kernel.
        install: matches!(daemon, Rival::Agentd | Rival::Bird | Rival::Frr),
    };
    let prefixes = Prefixes {
        v6: false,
        count: 100,
    };
    let place = passing::place(lab, task.neighbours)?;
    let started = daemon.start(lab, &place.daemon, task)?;
    let to = SocketAddr::new(IpAddr::V4(rival::ADDRESS), 179);
    let mut sessions = Vec::new();
    for index in 0..task.neighbours {
        let from = Some(IpAddr::V4(Task::address(index)));
        let asn = task.asn(index);
        sessions.push(
            place
                .neighbours
                .enter(|| Session::connect_with(from, to, asn, PATIENCE, injector::discard))??,
        );
    }
    let hop = IpAddr::V4(Task::address(0));
    if let Some(first) = sessions.first_mut() {
        first.send(&injector::streams(prefixes, task.asn(0), hop).announce)?;
    }
    std::thread::sleep(Duration::from_secs(3));
    let resident = started.memory()?.0;
    drop(sessions);
    started.stop()?;
    lab.delete_namespace(&place.daemon)?;
    lab.delete_namespace(&place.neighbours)?;
    Ok(resident)
}

/// An agent with workloads and routes.
pub struct Loaded {
    agent: Agent,
    place: Place,
    session: Option<Session>,
    prefixes: Prefixes,
    workloads: usize,
    _namespaces: Namespaces,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

impl Loaded {
    pub fn new(lab: &Lab, workloads: usize, prefixes: Prefixes) -> Result<Self> {
        let place = place(lab, "node-loaded")?;
        let mut config = single::config();
        config.name = "node-loaded".into();
        config.claim = vec!["10.244.0.0/17".into(), "fd10:244::/110".into()];
        config.bgp = "import = \"all\"\nhold_time = \"240s\"".into();
        let mut peer = Peer::new("injector", "192.168.26.1", INJECTOR_ASN);
        peer.extra = "passive = true\nmax_prefixes = 2000000".into();
        config.peers.push(peer);
        let agent = Agent::new(lab, &place.daemon, config)?;
        agent.start()?;
        let namespaces = Namespaces::new(lab, workloads)?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(super::attach::add(&agent.socket(), namespaces.all(), 8))?;
        let mut loaded = Self {
            agent,
            place,
            session: None,
            prefixes,
            workloads,
            _namespaces: namespaces,
        };
        loaded.announce()?;
        Ok(loaded)
    }

    fn announce(&mut self) -> Result<()> {
        let target: SocketAddr = "192.168.26.11:179".parse()?;
        let hop: IpAddr = "192.168.26.1".parse()?;
        let mut session = self
            .place
            .injector
            .enter(|| Session::connect(target, INJECTOR_ASN, PATIENCE))??;
        session.send(&injector::streams(self.prefixes, INJECTOR_ASN, hop).announce)?;
        self.session = Some(session);
        let prefixes = self.prefixes;
        self.place
            .daemon
            .enter(move || fib::wait_for_all(prefixes, true, PATIENCE))??;
        at_rest(&self.agent, Instant::now())?;
        Ok(())
    }

    pub fn resident_kib(&self) -> Result<u64> {
        status_kib(self.agent.process()?.pid(), "VmRSS:")
    }

    /// Processor time while nothing happens for so long.
    pub fn idle(&self, time: Duration) -> Result<Duration> {
        std::thread::sleep(Duration::from_secs(3));
        let pid = self.agent.process()?.pid();
        let before = processor_time(pid)?;
        std::thread::sleep(time);
        Ok(processor_time(pid)?.saturating_sub(before))
    }

    /// From the start of the next process until it is ready, has read the kernel and has nothing to
    /// write; the killed one's routes stand all the time.
    pub fn restart(&mut self) -> Result<Duration> {
        self.agent.kill()?;
        self.session = None;
        let start = Instant::now();
        self.agent.start()?;
        let time = at_rest(&self.agent, start)?;
        ensure!(
            self.agent.client().workloads()?.len() == self.workloads,
            "workloads are lost"
        );
        self.announce()?;
        Ok(time)
    }

    pub fn end(self, lab: &Lab) -> Result<()> {
        self.agent.terminate()?;
        std::fs::remove_dir_all(self.agent.directory())?;
        lab.delete_namespace(&self.place.daemon)?;
        lab.delete_namespace(&self.place.injector)
    }
}
