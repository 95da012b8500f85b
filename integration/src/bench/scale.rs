//! Many workloads on one node.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::attach;
use crate::lab::agent::Agent;
use crate::lab::netns::Netns;
use crate::lab::{Lab, single};

/// Adds of which figures are told together.
pub const PART: usize = 500;
/// How long thousands of links may take to be reaped or looked at.
const PATIENCE: Duration = Duration::from_secs(120);

/// Many namespaces, removed with this value.
#[derive(Debug)]
pub struct Namespaces(Vec<Netns>);

impl Namespaces {
    pub fn new(lab: &Lab, count: usize) -> Result<Self> {
        let mut all = Self(Vec::with_capacity(count));
        for number in 0..count {
            let name = format!("{}-s{number}", lab.prefix());
            all.0.push(Netns::create_quickly(&name)?);
        }
        Ok(all)
    }

    pub fn all(&self) -> &[Netns] {
        &self.0
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.0.iter().for_each(Netns::remove_quickly);
    }
}

/// Figures of one run.
#[derive(Debug)]
pub struct Figures {
    /// The same kernel state by raw netlink, in the order it was made.
    pub limit: Vec<Duration>,
    /// Adds by one client, in the order they were made.
    pub adds: Vec<Duration>,
    /// Processor time of the agent, with what the kernel did on its behalf, for each part of
    /// [`PART`] adds: it does not depend on what else the machine does.
    pub processor: Vec<Duration>,
    /// From `kill -9` and the start of the next process until it is ready with nothing pending.
    pub restart: Duration,
    pub resident_kib: u64,
    /// How long as many deletes took with no other workloads there, and nothing else to do.
    pub deletes_alone: Duration,
    /// Adds by one client while many workloads are deleted by others at once.
    pub adds_amid_deletes: Vec<Duration>,
    /// How long those deletes took.
    pub deletes: Duration,
}

/// An agent with room for as many workloads as a /17 holds.
pub fn agent(lab: &Lab) -> Result<Agent> {
    let mut config = single::config();
    config.claim = vec!["10.244.0.0/17".into(), "fd10:244::/110".into()];
    let agent = single::prepare(lab, config)?;
    agent.start()?;
    Ok(agent)
}

/// Adds `deletes` workloads and deletes them at once; then adds `count` workloads one by one, restarts
/// the agent, and deletes `deletes` of them at once while `more` are added.
pub fn run(lab: &Lab, count: usize, deletes: usize, more: usize) -> Result<Figures> {
    let namespaces = Namespaces::new(lab, count + more)?;
    let (first, later) = namespaces.all().split_at(count);
    let (deleted, _) = first.split_at(deletes);
    let limit = limit(lab, first)?;
    let agent = agent(lab)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let pid = agent.process()?.pid();
    let deletes_alone = runtime.block_on(async {
        attach::add(&agent.socket(), deleted, 1).await?;
        delete(&agent.socket(), deleted).await
    })?;
    reaped(&agent)?;
    let (mut adds, mut processor) = (Vec::with_capacity(count), Vec::new());
    for part in first.chunks(PART) {
        let before = super::routes::processor_time(pid)?;
        let times = runtime.block_on(attach::add(&agent.socket(), part, 1))?;
        adds.extend(times.each);
        processor.push(super::routes::processor_time(pid)?.saturating_sub(before));
    }
    let resident_kib = super::routes::status_kib(pid, "VmRSS:")?;
    let restart = restart(&agent, count)?;

    let socket = agent.socket();
    let (deletes, amid) = runtime.block_on(async {
        tokio::try_join!(delete(&socket, deleted), attach::add(&socket, later, 1))
    })?;
    at_rest(&agent, Instant::now())?;
    ensure!(
        agent.client().workloads()?.len() == count - deleted.len() + more,
        "workloads are lost"
    );
    Ok(Figures {
        limit,
        adds,
        processor,
        restart,
        resident_kib,
        deletes_alone,
        adds_amid_deletes: amid.each,
        deletes,
    })
}

/// Waits until the links of deleted workloads are gone, of which nobody else has to wait.
fn reaped(agent: &Agent) -> Result<()> {
    let start = Instant::now();
    while agent.namespace().show("ip -brief link")?.contains("agt") {
        ensure!(start.elapsed() < PATIENCE, "links are left");
        std::thread::sleep(Duration::from_millis(50));
    }
    at_rest(agent, start)?;
    Ok(())
}

/// From `kill -9` and the start of the next process until it is ready with nothing pending.
fn restart(agent: &Agent, workloads: usize) -> Result<Duration> {
    agent.kill()?;
    let start = Instant::now();
    agent.start()?;
    let time = at_rest(agent, start)?;
    ensure!(
        agent.client().workloads()?.len() == workloads,
        "workloads are lost"
    );
    Ok(time)
}

/// Workloads by raw netlink, one by one, and all gone again.
fn limit(lab: &Lab, namespaces: &[Netns]) -> Result<Vec<Duration>> {
    let host = lab.namespace("raw")?;
    // Without one, the kernel looks for an address at all links for each IPv4 route.
    host.ip(["address", "add", "192.0.2.1/32", "dev", "lo"])?;
    let times = attach::raw_add_all(&host, namespaces)?;
    attach::raw_delete_all(&host, namespaces.len())?;
    lab.delete_namespace(&host)?;
    Ok(times.each)
}

async fn delete(socket: &Path, namespaces: &[Netns]) -> Result<Duration> {
    // As an orchestrator that drains a node.
    Ok(attach::delete(socket, namespaces, 32).await?.all)
}

/// Waits until the agent is ready with nothing to write.
pub(super) fn at_rest(agent: &Agent, start: Instant) -> Result<Duration> {
    loop {
        let status = agent.client().status()?;
        let dataplane = status.dataplane.unwrap_or_default();
        if status.ready && dataplane.pending == 0 {
            ensure!(dataplane.failing == 0, "{dataplane:?}");
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < PATIENCE, "{dataplane:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
