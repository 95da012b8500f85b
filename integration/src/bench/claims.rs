//! Many agents that claim blocks at once, as tasks with the agent's own code, against a real etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use agentd::config;
use agentd::fleet::core::Settings;
use agentd::fleet::etcd::Etcd;
use agentd::fleet::keys::{Keys, NodeRecord};
use agentd::fleet::{Event, Handle, State, task};
use agentd::ipam::Wanted;
use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc;

use crate::lab::netns::Netns;

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From the first claim to the last block.
    pub took: Duration,
    pub claims: u64,
    /// Tries that found every candidate taken.
    pub retries: u64,
    /// Requests without an answer.
    pub failures: u64,
    pub requests: u64,
    /// Each once, or the run would have failed.
    pub blocks: BTreeSet<IpNet>,
    /// The longest wait of one agent for a block.
    pub slowest: Duration,
}

/// Agents that are registered and wait for nothing.
#[derive(Debug)]
pub struct Agents {
    runtime: tokio::runtime::Runtime,
    agents: Vec<(Handle, mpsc::Receiver<Event>)>,
}

/// Runs `body` on a thread inside that namespace.
pub fn inside<T: Send + 'static>(
    namespace: &Netns,
    body: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let file = std::fs::File::open(namespace.path())?;
    let thread = thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        body()
    });
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

impl Agents {
    /// Starts so many, named after `name`, and waits until all are registered.
    pub fn start(endpoints: &[String], name: &str, count: usize) -> Result<Self> {
        // One thread: it is in the namespace, and others would not be.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let agents = runtime.block_on(async {
            let agents: Vec<_> = (0..count)
                .map(|number| agent(endpoints, &format!("{name}-{number}")))
                .collect();
            let deadline = Instant::now() + Duration::from_secs(60);
            for (handle, _) in &agents {
                while !handle.view().status.registered {
                    ensure!(
                        Instant::now() < deadline,
                        "not registered: {:?}",
                        handle.view().status
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Ok(agents)
        })?;
        Ok(Self { runtime, agents })
    }

    /// Each claims so many blocks of the pool, all at the same time.
    pub fn claim(&mut self, pool: IpNet, block_size: u8, each: usize) -> Result<Outcome> {
        let wanted = Wanted {
            pool: "pool".to_owned(),
            cidr: pool,
            block_size,
            reserved: Vec::new(),
            block: None,
        };
        let before = self.counters();
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let agents = &mut self.agents;
        self.runtime.block_on(async {
            for (handle, _) in agents.iter() {
                for _ in 0..each {
                    handle.acquire(wanted.clone());
                }
            }
            let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
            for (handle, events) in agents.iter_mut() {
                let mut left = each;
                while left > 0 {
                    let event = tokio::time::timeout_at(deadline, events.recv()).await;
                    let event = event.with_context(|| format!("{:?}", handle.view().status))?;
                    if let Event::Acquired { block, .. } = event.context("the task has ended")? {
                        ensure!(outcome.blocks.insert(block), "{block} was given twice");
                        left -= 1;
                        outcome.slowest = outcome.slowest.max(start.elapsed());
                    }
                }
            }
            Ok(())
        })?;
        outcome.took = start.elapsed();
        let after = self.counters();
        outcome.claims = after.0 - before.0;
        outcome.retries = after.1 - before.1;
        outcome.requests = after.2 - before.2;
        outcome.failures = after.3 - before.3;
        Ok(outcome)
    }

    fn counters(&self) -> (u64, u64, u64, u64) {
        let mut sum = (0, 0, 0, 0);
        for (handle, _) in &self.agents {
            let view = handle.view();
            sum.0 += view.status.claims;
            sum.1 += view.status.retries;
            sum.2 += view.status.requests;
            sum.3 += view.status.failures;
        }
        sum
    }

    /// Whether all of them say that etcd answers.
    pub fn check_up(&self) -> Result<()> {
        for (handle, _) in &self.agents {
            let view = handle.view();
            if view.status.state != State::Up {
                bail!("{:?}", view.status);
            }
        }
        Ok(())
    }
}

fn agent(endpoints: &[String], name: &str) -> (Handle, mpsc::Receiver<Event>) {
    let settings = Settings {
        keys: Keys::new("/agentd/v1"),
        node: name.to_owned(),
        record: NodeRecord {
            identity: format!("identity of {name}"),
            address: None::<IpAddr>,
            address6: None,
            asn: None,
            labels: BTreeMap::new(),
            version: String::new(),
        },
        lease: Duration::from_secs(60),
        follow: false,
        reclaim_after: None,
        seed: agentd::fleet::claim::hash(&[name.as_bytes()]),
    };
    let seed = settings.seed;
    let etcd = Etcd::new(
        config::Etcd {
            endpoints: endpoints.to_vec(),
            prefix: "/agentd/v1".to_owned(),
            tls: None,
            login: None,
            lease: settings.lease,
            reclaim_after: None,
        },
        seed,
    );
    task::spawn(settings, etcd, Vec::new())
}
