//! A lab: network namespaces, links between them and processes inside them.
//!
//! A [`Lab`] owns all it makes. Names begin with `lab<pid>-<counter>`, so that labs of several
//! tests run side by side. Dropping the lab (also in a panic) kills its processes by pid and
//! deletes its namespaces, and with them every link. A [`reaper`] does the same when the process
//! that owns the lab is killed and cannot do it itself.
//!
//! Nothing is made in the namespace of the caller: links are created directly inside the lab's
//! namespaces.
//!
//! ```text
//!   Lab ── Netns ── links, addresses          Agent, Bird, Monitor, Workload
//!    │       └───── Process (log file)   ◄──── are handles on these
//!    └──── Reaper (cleans up after SIGKILL)
//! ```

pub mod agent;
pub mod binaries;
pub mod bird;
pub mod client;
pub mod config;
pub mod etcd;
pub mod fleet;
pub mod flood;
pub mod guest;
pub mod monitor;
pub mod netns;
pub mod ping;
pub mod process;
pub mod raw_message;
pub mod raw_peer;
mod reaper;
pub mod routed_pair;
pub mod router;
pub mod single;
pub mod two_nodes;
pub mod wait;
pub mod workload;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use netns::Netns;
use process::Process;
use reaper::Reaper;

/// Set in the environment of every process of a lab; its value is the lab's prefix.
pub const ENVIRONMENT_MARK: &str = "AGENTD_LAB";

/// How long a wait takes at most where the thing waited for has no deadline of its own.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Counts the labs of this process.
static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// A handle on a lab. The lab is taken down when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Lab(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    prefix: String,
    directory: PathBuf,
    kept: bool,
    done: AtomicBool,
    // A mutex and no channel: the owner of a lab and the guard against signals both end it.
    state: Mutex<State>,
    reaper: Mutex<Option<Reaper>>,
}

#[derive(Debug, Default)]
struct State {
    namespaces: Vec<Netns>,
    processes: Vec<Arc<Process>>,
    dumps: Vec<Dump>,
}

/// A command whose output belongs to the dump of a failed test.
#[derive(Debug, Clone)]
struct Dump {
    namespace: Netns,
    command: Vec<String>,
}

/// Takes a lab down from outside, for example from a signal handler's thread.
#[derive(Debug, Clone)]
pub struct Guard(Weak<Inner>);

impl Guard {
    /// Takes the lab down now, if it still exists.
    pub fn tear_down(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.tear_down();
        }
    }
}

/// Runs `body` in a new lab. When it fails or panics, the state of the lab is printed before it
/// is taken down.
///
/// # Panics
///
/// When `body` returns an error or the lab cannot be made.
pub fn run(body: impl FnOnce(&Lab) -> Result<()>) {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(error) => panic!("cannot make a lab: {error:#}"),
    };
    if let Err(error) = body(&lab) {
        // The drop of the lab prints its state, as this panics.
        panic!("{error:#}");
    }
}

/// Takes down a lab that was let go with [`Lab::release`].
///
/// # Errors
///
/// When a namespace is still there after the cleaning.
pub fn tear_down_released(prefix: &str, directory: &Path) -> Result<()> {
    anyhow::ensure!(prefix.starts_with("lab"), "{prefix} is not of a lab");
    reaper::reap(prefix, directory)?;
    let left = netns::names(prefix);
    anyhow::ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

impl Lab {
    /// An empty lab that is taken down when its owner ends.
    pub fn new() -> Result<Self> {
        Self::make(false)
    }

    /// An empty lab that outlives its owner, unless [`Lab::tear_down`] is called: its processes
    /// do not die with the caller. [`Lab::release`] lets go of it.
    pub fn new_kept() -> Result<Self> {
        Self::make(true)
    }

    fn make(kept: bool) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab needs root: it makes network namespaces");
        }
        let prefix = format!(
            "lab{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(format!("agentd-{prefix}"));
        // A directory of that name is one of an ended process that had our pid.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let reaper = Reaper::start(&prefix, &directory)?;
        Ok(Self(Arc::new(Inner {
            prefix,
            directory,
            kept,
            done: AtomicBool::new(false),
            state: Mutex::default(),
            reaper: Mutex::new(Some(reaper)),
        })))
    }

    /// What the names of this lab's namespaces begin with.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The lab's directory: configuration, state, sockets and logs.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// A file in the lab's directory with this content.
    pub fn write_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.0.directory.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A way to take the lab down from another thread that does not keep it alive.
    pub fn guard(&self) -> Guard {
        Guard(Arc::downgrade(&self.0))
    }

    /// A new network namespace with its loopback up.
    pub fn namespace(&self, name: &str) -> Result<Netns> {
        let namespace = Netns::create(&format!("{}-{name}", self.0.prefix))?;
        self.state().namespaces.push(namespace.clone());
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Deletes a namespace before the lab ends. Its processes must have ended.
    pub fn delete_namespace(&self, namespace: &Netns) -> Result<()> {
        {
            let mut state = self.state();
            let name = namespace.name();
            state.namespaces.retain(|n| n.name() != name);
            // Their handles would keep the namespace alive.
            state.dumps.retain(|dump| dump.namespace.name() != name);
        }
        namespace.delete()
    }

    /// A veth pair with one end in each namespace, both up.
    pub fn link(&self, a: (&Netns, &str), b: (&Netns, &str)) -> Result<()> {
        a.0.ip([
            "link",
            "add",
            a.1,
            "type",
            "veth",
            "peer",
            "name",
            b.1,
            "netns",
            b.0.name(),
        ])?;
        for (namespace, interface) in [a, b] {
            bring_up(namespace, interface)?;
        }
        Ok(())
    }

    /// A bridge, up.
    pub fn bridge(&self, namespace: &Netns, name: &str) -> Result<()> {
        namespace.ip(["link", "add", name, "type", "bridge"])?;
        bring_up(namespace, name)
    }

    /// A link from `node`'s `interface` to a port of the bridge.
    pub fn bridge_port(
        &self,
        bridge: (&Netns, &str),
        port: &str,
        node: (&Netns, &str),
    ) -> Result<()> {
        self.link((bridge.0, port), node)?;
        bridge.0.ip(["link", "set", port, "master", bridge.1])
    }

    /// An address with prefix length on an interface. IPv6 addresses are usable at once.
    pub fn address(&self, namespace: &Netns, interface: &str, address: &str) -> Result<()> {
        if address.contains(':') {
            namespace.ip(["address", "add", address, "dev", interface, "nodad"])
        } else {
            namespace.ip(["address", "add", address, "dev", interface])
        }
    }

    /// Starts a program inside a namespace. Its output goes to `NAME.log` in the lab's directory.
    pub fn spawn<I, S>(&self, namespace: &Netns, name: &str, command: I) -> Result<Arc<Process>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let command: Vec<_> = command
            .into_iter()
            .map(|s| s.as_ref().to_os_string())
            .collect();
        let log = self.0.directory.join(format!("{name}.log"));
        let process = Process::spawn(&process::Spawn {
            namespace,
            name,
            command: &command,
            log: &log,
            environment: &[(ENVIRONMENT_MARK, &self.0.prefix)],
            outlive_owner: self.0.kept,
        })?;
        let process = Arc::new(process);
        self.state().processes.push(Arc::clone(&process));
        Ok(process)
    }

    /// Adds a command's output to the dump of a failed test.
    pub fn dump_command<I, S>(&self, namespace: &Netns, command: I)
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.state().dumps.push(Dump {
            namespace: namespace.clone(),
            command: command.into_iter().map(Into::into).collect(),
        });
    }

    /// Everything known about the lab: commands of [`Lab::dump_command`], addresses and routes of
    /// every namespace, and the ends of all logs.
    pub fn dump(&self) -> String {
        self.0.dump()
    }

    /// The pids of this lab's processes that still run.
    pub fn pids(&self) -> Vec<i32> {
        let state = self.state();
        state
            .processes
            .iter()
            .filter(|p| p.is_running())
            .map(|p| p.pid())
            .collect()
    }

    /// Kills all processes and deletes all namespaces and files, now.
    pub fn tear_down(&self) {
        self.0.tear_down();
    }

    /// Lets go of a kept lab: it goes on after its owner's end.
    pub fn release(self) {
        self.0.done.store(true, Ordering::SeqCst);
        if let Some(reaper) = lock(&self.0.reaper).take() {
            reaper.dismiss();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

/// Sets a link up. Duplicate address detection is off, so that no change of the kernel's own comes
/// a second later.
fn bring_up(namespace: &Netns, interface: &str) -> Result<()> {
    namespace.show(&format!(
        "sysctl -qw net.ipv6.conf.{interface}.accept_dad=0"
    ))?;
    namespace.ip(["link", "set", interface, "up"])
}

/// The content counts even when a holder panicked: it is only used to clean up and to report.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn dump(&self) -> String {
        let (namespaces, dumps) = {
            let state = lock(&self.state);
            (state.namespaces.clone(), state.dumps.clone())
        };
        let mut text = format!("===== state of {} =====\n", self.prefix);
        for dump in dumps {
            section(&mut text, &dump.namespace, &dump.command);
        }
        for namespace in namespaces {
            for command in [
                "ip -brief address",
                "ip route",
                "ip -6 route",
                "ip neighbour",
                "ip nexthop",
            ] {
                let command: Vec<_> = command.split(' ').map(String::from).collect();
                section(&mut text, &namespace, &command);
            }
        }
        let mut logs: Vec<_> = std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        logs.sort();
        for log in logs {
            let content = std::fs::read(&log).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<_> = content.lines().collect();
            let _ = writeln!(text, "--- {} (last 120 lines)", log.display());
            for line in lines.iter().skip(lines.len().saturating_sub(120)) {
                let _ = writeln!(text, "{line}");
            }
        }
        text.push_str("===== end of state =====");
        text
    }

    fn tear_down(&self) {
        if self.done.swap(true, Ordering::SeqCst) {
            return;
        }
        let (namespaces, processes) = {
            let mut state = lock(&self.state);
            (
                std::mem::take(&mut state.namespaces),
                std::mem::take(&mut state.processes),
            )
        };
        for process in processes.iter().rev() {
            process.kill();
        }
        for namespace in namespaces.iter().rev() {
            // Children of our processes, such as a helper that a daemon started.
            namespace.kill_processes();
            if let Err(error) = namespace.delete() {
                eprintln!("lab: {error:#}");
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("lab: cannot remove {}: {error}", self.directory.display());
        }
        if let Some(reaper) = lock(&self.reaper).take() {
            reaper.dismiss();
        }
    }
}

/// Appends a command's output to a dump; a failing command is part of the picture.
fn section(text: &mut String, namespace: &Netns, command: &[String]) {
    let output = match namespace.output(command) {
        Ok(output) => output,
        Err(error) => format!("{error:#}"),
    };
    if !output.trim().is_empty() {
        let _ = writeln!(
            text,
            "--- {}: {}\n{}",
            namespace.name(),
            command.join(" "),
            output.trim_end()
        );
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.done.load(Ordering::SeqCst) {
            eprintln!("{}", self.dump());
        }
        self.tear_down();
    }
}
