//! Other BGP speakers, all of them behind one face: BIRD, FRR, GoBGP, OpenBGPD and ExaBGP.
//!
//! A test says in a [`RouterConfig`] what the router is to be; each module turns that into the
//! configuration of its daemon, starts it in a namespace, and asks it what it sees. So a case is
//! written once and runs against every daemon. What a daemon cannot do is no method that fails but
//! a line in the test's table.
//!
//! Nothing is kept outside of the lab's directory: sockets, pid files and state are all in there,
//! and all processes belong to the lab.

mod bird;
mod exabgp;
mod frr;
mod gobgp;
mod openbgpd;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::netns::Netns;
use super::process::Process;
use super::{Lab, PATIENCE, lock};

/// A BGP daemon of Debian 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Bird,
    Frr,
    Gobgp,
    Openbgpd,
    Exabgp,
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::Bird,
        Self::Frr,
        Self::Gobgp,
        Self::Openbgpd,
        Self::Exabgp,
    ];

    /// As its authors write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::Gobgp => "GoBGP",
            Self::Openbgpd => "OpenBGPD",
            Self::Exabgp => "ExaBGP",
        }
    }

    /// Upstream's version of the installed daemon.
    pub fn version(self) -> Result<String> {
        let command = match self {
            Self::Bird => ["bird", "--version"],
            Self::Frr => ["/usr/lib/frr/bgpd", "--version"],
            Self::Gobgp => ["gobgpd", "--version"],
            Self::Openbgpd => ["bgpd", "-V"],
            Self::Exabgp => ["exabgp", "--version"],
        };
        let output = Command::new(command[0])
            .arg(command[1])
            .output()
            .with_context(|| format!("{}: is it installed?", command[0]))?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        // "BIRD version 2.0.12", "bgpd version 8.4.4", "gobgpd version 3.10.0", "OpenBGPD 7.7".
        text.split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
            .map(|word| word.split('-').next().unwrap_or(word).to_owned())
            .with_context(|| format!("no version in {text:?}"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a router is configured with.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    /// Next hops of what it announces, where its daemon has to be told.
    pub address: Ipv4Addr,
    pub address6: Ipv6Addr,
    /// Announced from the start.
    pub networks: Vec<IpNet>,
    pub neighbors: Vec<Neighbor>,
    /// Write learned routes to the kernel, where the daemon can.
    pub kernel: bool,
}

/// Which way several paths for a prefix may go (RFC 7911).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddPath {
    Off,
    Receive,
    Send,
}

/// One session of a router.
#[derive(Clone, Debug)]
pub struct Neighbor {
    pub address: IpAddr,
    pub local: IpAddr,
    pub asn: u32,
    pub ipv4: bool,
    pub ipv6: bool,
    /// Seconds; keepalives are sent at a third of it.
    pub hold_time: u16,
    pub password: Option<String>,
    pub passive: bool,
    /// Restart time in seconds (RFC 4724).
    pub graceful_restart: Option<u16>,
    /// Stale time in seconds (RFC 9494).
    pub long_lived: Option<u32>,
    pub add_path: AddPath,
    pub reflector_client: bool,
    pub max_prefixes: Option<u32>,
    /// As RFC 9234 names it.
    pub role: Option<&'static str>,
    /// GTSM with the neighbor one hop away (RFC 5082).
    pub ttl_security: bool,
    /// Routes with these prefixes get communities `ASN:7`, `ASN:1:2`.
    pub colored: Vec<IpNet>,
}

impl Neighbor {
    /// A session from `local` to `address` for the family of the addresses, with short timers.
    pub fn new(local: IpAddr, address: IpAddr, asn: u32) -> Self {
        Self {
            address,
            local,
            asn,
            ipv4: address.is_ipv4(),
            ipv6: address.is_ipv6(),
            hold_time: 9,
            password: None,
            passive: false,
            graceful_restart: None,
            long_lived: None,
            add_path: AddPath::Off,
            reflector_client: false,
            max_prefixes: None,
            role: None,
            ttl_security: false,
            colored: Vec::new(),
        }
    }
}

/// What a router knows of one way to a prefix. What its daemon does not show is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// The neighbor that sent it.
    pub from: Option<IpAddr>,
    pub next_hops: Vec<IpAddr>,
    /// Numbers divided by blanks.
    pub as_path: String,
    /// `ASN:VALUE`, sorted.
    pub communities: Vec<String>,
    /// `ASN:VALUE:VALUE`, sorted.
    pub large_communities: Vec<String>,
    pub originator: Option<Ipv4Addr>,
    pub cluster_list: Vec<Ipv4Addr>,
    /// Kept over a restart of the neighbor (RFC 4724).
    pub stale: bool,
}

/// A router of the lab. Dropping it leaves its processes to the lab.
pub trait Router: fmt::Debug + Send {
    fn kind(&self) -> Kind;

    /// What the next start is configured with.
    fn config(&mut self) -> &mut RouterConfig;

    /// Starts it, with an empty memory, and waits until it answers.
    fn start(&self) -> Result<()>;

    /// `kill -9` of all its processes.
    fn kill(&self);

    /// Stops its processes, so that nothing is answered any more (SIGSTOP), or lets them go on.
    fn freeze(&self, frozen: bool) -> Result<()>;

    /// Whether the session with this neighbor is established.
    fn is_established(&self, neighbor: IpAddr) -> Result<bool>;

    /// All ways it has to exactly this prefix.
    fn paths(&self, prefix: IpNet) -> Result<Vec<Path>>;

    /// How many prefixes of the session's family it has from this neighbor.
    fn received(&self, neighbor: IpAddr) -> Result<usize>;

    fn announce(&mut self, prefix: IpNet) -> Result<()>;

    fn withdraw(&mut self, prefix: IpNet) -> Result<()>;

    /// Asks the neighbor for all its routes again (RFC 2918).
    fn refresh(&self, neighbor: IpAddr) -> Result<()>;

    /// Ends the session with Cease, administrative shutdown, and this text (RFC 9003).
    fn shutdown(&self, neighbor: IpAddr, text: &str) -> Result<()>;

    /// Lets the neighbor come back.
    fn enable(&self, neighbor: IpAddr) -> Result<()>;

    /// Ends the session so that it comes back by itself.
    fn reset(&self, neighbor: IpAddr) -> Result<()>;

    /// All that it says about its sessions and what ended them: counters, logs. For people, and
    /// for tests that look for a text.
    fn report(&self, neighbor: IpAddr) -> Result<String>;
}

/// A router, not yet started.
pub fn new(
    kind: Kind,
    lab: &Lab,
    namespace: &Netns,
    name: &str,
    config: RouterConfig,
) -> Result<Box<dyn Router>> {
    let base = Base {
        lab: lab.clone(),
        namespace: namespace.clone(),
        name: name.to_owned(),
        config,
        processes: Mutex::default(),
        killed: AtomicBool::new(false),
    };
    Ok(match kind {
        Kind::Bird => Box::new(bird::BirdRouter::new(base)),
        Kind::Frr => Box::new(frr::Frr::new(base)?),
        Kind::Gobgp => Box::new(gobgp::Gobgp::new(base)),
        Kind::Openbgpd => Box::new(openbgpd::Openbgpd::new(base)?),
        Kind::Exabgp => Box::new(exabgp::Exabgp::new(base)?),
    })
}

/// What all of them have.
#[derive(Debug)]
struct Base {
    lab: Lab,
    namespace: Netns,
    name: String,
    config: RouterConfig,
    // A mutex and no channel: a start replaces them, and `kill` takes `&self` so that threads may.
    processes: Mutex<Vec<Arc<Process>>>,
    /// Whether it ran before and was killed.
    killed: AtomicBool,
}

impl Base {
    fn file(&self, suffix: &str) -> String {
        let path = self.lab.directory().join(format!("{}{suffix}", self.name));
        path.to_string_lossy().into_owned()
    }

    fn write(&self, suffix: &str, content: &str) -> Result<String> {
        let path = self
            .lab
            .write_file(&format!("{}{suffix}", self.name), content)?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn spawn(&self, name: &str, command: &[&str]) -> Result<()> {
        let process = self.lab.spawn(&self.namespace, name, command)?;
        lock(&self.processes).push(process);
        Ok(())
    }

    fn output(&self, command: &[&str]) -> Result<String> {
        self.namespace.output(command)
    }

    /// Waits until `ask` succeeds, while the processes run.
    fn wait_ready(&self, ask: impl Fn() -> Result<()>) -> Result<()> {
        let what = format!("{} answers", self.name);
        self.lab.wait_for(&what, PATIENCE, || {
            for process in lock(&self.processes).iter() {
                ensure!(
                    process.is_running(),
                    "{} has ended: {}",
                    process.name(),
                    process.log_text()
                );
            }
            ask()
        })
    }

    fn kill(&self) {
        for process in lock(&self.processes).drain(..) {
            process.kill();
        }
        self.killed.store(true, Ordering::SeqCst);
    }

    fn was_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        use nix::sys::signal::Signal;
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        for process in lock(&self.processes).iter() {
            process.signal(signal)?;
        }
        Ok(())
    }

    fn log(&self, name: &str) -> String {
        let path = self.lab.directory().join(format!("{name}.log"));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    fn neighbor(&self, address: IpAddr) -> Result<&Neighbor> {
        self.config
            .neighbors
            .iter()
            .find(|neighbor| neighbor.address == address)
            .with_context(|| format!("{} has no neighbor {address}", self.name))
    }

    /// The next hop it announces for a prefix.
    fn next_hop(&self, prefix: IpNet) -> IpAddr {
        match prefix {
            IpNet::V4(_) => self.config.address.into(),
            IpNet::V6(_) => self.config.address6.into(),
        }
    }
}

/// A name for a neighbor made of its place in the configuration.
fn label(index: usize) -> String {
    format!("n{index}")
}

/// The strings of a JSON array, or of one string.
fn strings(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::String(text) => vec![text.clone()],
        serde_json::Value::Array(list) => list
            .iter()
            .filter_map(|item| item.as_str().map(String::from))
            .collect(),
        _ => Vec::new(),
    }
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

fn address(value: &serde_json::Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}
