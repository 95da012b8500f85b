//! The Linux driver: carries out batches of [`Op`], answers [`Query`], and streams [`Change`]s, all
//! over NETLINK_ROUTE sockets.
//!
//! ```text
//!   apply ──► channel ──► writer thread ──► one send of many messages ──► kernel
//!   query ──► channel ──► reader thread ──► gets and dumps            ◄─► kernel
//!   changes ◄───────────  multicast socket (BPF filter inside the kernel) ◄─ kernel
//!   writes  ◄───────────  fanotify on /proc/sys                           ◄─ kernel
//! ```
//!
//! * Netlink requests are carried out inside `send`, under the kernel's RTNL lock, so more writers do
//!   not help: one thread sends batches, and a second one reads, so that a dump of a large table does
//!   not hold up writes. Neither runs on tokio's workers.
//! * Operations inside a workload's namespace go over a socket made inside it, which lives only as
//!   long as the operation: a socket pins its namespace.
//! * The listener hears every namespace the host has a veth into, and does not hear what the other
//!   two sockets do. Some effects of own operations are still heard, because the kernel does not say
//!   who caused them (a carrier that comes up, RTM_NEWNETCONF after a sysctl).

mod create;
mod decode;
mod describe;
mod encode;
mod group;
mod listener;
pub mod listeners;
mod netns;
pub mod nftables;
mod pipe;
mod read;
mod socket;
mod sysctl;
mod tap;
#[cfg(test)]
mod tests;
mod write;
mod written;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use hashbrown::HashMap;
use tokio::sync::oneshot;

pub use self::{listener::Changes, read::interrupted_dumps, written::Writes};
use self::{
    netns::Home,
    pipe::Pipe,
    read::Reader,
    socket::{Ports, Socket},
    sysctl::Folders,
    write::Writer,
};
use crate::{
    desired::Netns,
    kernel::{Change, Op, OpError, OpResult, Place, Query, Snapshot},
};

/// What [`Changes::next`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeEvent {
    /// Something changed there, and not by this driver.
    Change(Place, Change),
    /// Changes were lost: what was known of the host and of every workload may be wrong.
    Overrun,
}

/// Why the driver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "agentd needs {capability} to configure the network: run it as root, or grant the capability \
         (systemd: AmbientCapabilities={capability})"
    )]
    Capability { capability: &'static str },
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Which namespaces the numbers mean that notifications carry.
///
/// Behind a lock, because the writer and the reader learn them and the listener needs them at once;
/// it is held for one look-up.
#[derive(Debug, Default)]
struct Namespaces {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_nsid: HashMap<i32, Netns>,
    /// By device and inode.
    nsids: HashMap<(u64, u64), i32>,
    /// For the next namespace; `None` until the numbers in use were looked at.
    next: Option<i32>,
}

/// Numbers of our choice, downwards. The kernel looks a namespace up by walking all numbers from the
/// lowest on, for each notification from there, and most come while a workload is new. Others use
/// the numbers from 0 on.
const NSIDS: std::ops::Range<i32> = 0x4000_0000..0x7000_0000;

impl Namespaces {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, nsid: i32, netns: &Netns) {
        let mut known = self.lock();
        known.nsids.insert((netns.device, netns.inode), nsid);
        if known.by_nsid.get(&nsid) != Some(netns) {
            known.by_nsid.insert(nsid, netns.clone());
        }
    }

    fn forget(&self, nsid: i32) {
        let mut known = self.lock();
        if let Some(netns) = known.by_nsid.remove(&nsid) {
            known.nsids.remove(&(netns.device, netns.inode));
        }
    }

    /// A number for a new namespace. `used` tells those in use, and is asked once.
    fn choose(&self, used: impl FnOnce() -> Vec<i32>) -> i32 {
        let next = self.lock().next;
        let nsid = next.unwrap_or_else(|| {
            let ours = used().into_iter().filter(|nsid| NSIDS.contains(nsid));
            ours.min().unwrap_or(NSIDS.end) - 1
        });
        // Below them all: -1 has the kernel choose.
        self.lock().next = Some(if nsid > NSIDS.start { nsid - 1 } else { -1 });
        nsid
    }

    /// Some may be gone of which nothing was heard: all are asked for again.
    fn doubt(&self) {
        self.lock().nsids.clear();
    }

    fn get(&self, nsid: i32) -> Option<Netns> {
        self.lock().by_nsid.get(&nsid).cloned()
    }

    /// Asking the kernel for a number takes the longer the more there are.
    fn is_known(&self, netns: &Netns) -> bool {
        let known = self.lock();
        known
            .nsids
            .get(&(netns.device, netns.inode))
            .is_some_and(|nsid| known.by_nsid.get(nsid) == Some(netns))
    }
}

/// What was asked of the kernel so far, by reading and writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Netlink messages sent.
    pub requests: u64,
    /// Netlink messages received in answer, entries of dumps among them.
    pub answers: u64,
    /// Files below /proc/sys opened.
    pub files: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    answers: AtomicU64,
    files: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
    }
}

type WriteJob = (Vec<Op>, oneshot::Sender<Vec<OpResult>>);
type ReadJob = (Query, oneshot::Sender<Result<Snapshot, OpError>>);

/// The Linux kernel, seen from the namespace in which it was opened. Its threads end when it is
/// dropped, after what they have been given.
#[derive(Debug)]
pub struct Kernel {
    writer: Mutex<mpsc::Sender<WriteJob>>,
    reader: Mutex<mpsc::Sender<ReadJob>>,
    parts: Parts,
}

/// What a thread is made of.
#[derive(Debug)]
struct Parts {
    home: Home,
    ports: Ports,
    write_socket: Arc<Socket>,
    read_socket: Arc<Socket>,
    folders: Arc<Folders>,
    namespaces: Arc<Namespaces>,
    counters: Arc<Counters>,
}

impl Kernel {
    /// Opens sockets in the calling thread's network namespace, and subscribes to changes. Call it
    /// inside a tokio runtime.
    pub fn open() -> Result<(Kernel, Changes), OpenError> {
        capabilities()?;
        let system = |what| move |source| OpenError::System { what, source };
        let ports = Ports::choose();
        let namespaces = Arc::new(Namespaces::default());
        // Before anything is read: nothing may change unheard in between.
        let changes = Changes::open(ports, Arc::clone(&namespaces))?;
        let open = |number| {
            Socket::open(ports, number)
                .map(Arc::new)
                .map_err(system("cannot open a netlink socket"))
        };
        let parts = Parts {
            home: Home::here().map_err(system("cannot open the own network namespace"))?,
            ports,
            write_socket: open(Ports::WRITER)?,
            read_socket: open(Ports::READER)?,
            folders: Arc::new(Folders::open()),
            namespaces,
            counters: Arc::default(),
        };
        let start = system("cannot start a thread");
        let kernel = Kernel {
            writer: Mutex::new(parts.start_writer().map_err(start)?),
            reader: Mutex::new(parts.start_reader().map_err(start)?),
            parts,
        };
        Ok((kernel, changes))
    }

    /// Carries out a batch. One result for each operation, in the same order. Batches are carried
    /// out in the order of the calls, also when the caller does not wait for the answer. The caller
    /// bounds how many are on their way.
    pub fn apply(&self, ops: Vec<Op>) -> impl Future<Output = Vec<OpResult>> + Send + 'static {
        let count = ops.len();
        let (answer, answered) = oneshot::channel();
        submit(&self.writer, (ops, answer), || self.parts.start_writer());
        async move {
            answered
                .await
                .unwrap_or_else(|_| vec![Err(stopped("the writer of netlink messages")); count])
        }
    }

    /// What all batches and queries together asked of the kernel.
    pub fn counts(&self) -> Counts {
        let counters = &self.parts.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: read(&counters.requests),
            answers: read(&counters.answers),
            files: read(&counters.files),
        }
    }

    /// Reads what is asked. Queries are answered in order, independently of batches.
    pub fn query(
        &self,
        query: Query,
    ) -> impl Future<Output = Result<Snapshot, OpError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        submit(&self.reader, (query, answer), || self.parts.start_reader());
        async move {
            answered
                .await
                .unwrap_or_else(|_| Err(stopped("the reader of netlink messages")))
        }
    }
}

fn stopped(what: &str) -> OpError {
    OpError {
        errno: libc::EIO,
        text: format!("{what} has stopped").into(),
    }
}

/// Hands a job to a thread; to a new one where the old one had to end.
fn submit<T>(
    thread: &Mutex<mpsc::Sender<T>>,
    job: T,
    start: impl FnOnce() -> io::Result<mpsc::Sender<T>>,
) {
    let mut sender = thread.lock().unwrap_or_else(PoisonError::into_inner);
    let Err(mpsc::SendError(job)) = sender.send(job) else {
        return;
    };
    match start() {
        Ok(new) => {
            // Should this one end at once, too, the job's answer says so.
            let _ = new.send(job);
            *sender = new;
        }
        Err(error) => tracing::error!(%error, "cannot start a thread"),
    }
}

/// What the writer and the reader each work with.
#[derive(Debug)]
struct Station {
    /// The way into a workload's namespace, and back.
    home: Home,
    /// In the host's namespace.
    host: Arc<Socket>,
    /// Likewise.
    folders: Arc<Folders>,
    ports: Ports,
    namespaces: Arc<Namespaces>,
    pipe: Pipe,
}

impl Parts {
    fn station(&self, host: &Arc<Socket>) -> io::Result<Station> {
        Ok(Station {
            home: self.home.again()?,
            host: Arc::clone(host),
            folders: Arc::clone(&self.folders),
            ports: self.ports,
            namespaces: Arc::clone(&self.namespaces),
            pipe: Pipe::new(Arc::clone(&self.counters)),
        })
    }

    fn start_writer(&self) -> io::Result<mpsc::Sender<WriteJob>> {
        let mut writer = Writer(self.station(&self.write_socket)?);
        let (sender, jobs) = mpsc::channel::<WriteJob>();
        thread::Builder::new()
            .name("netlink-write".to_owned())
            .spawn(move || {
                for (ops, answer) in jobs {
                    let _ = answer.send(writer.apply(&ops));
                    if writer.lost() {
                        return;
                    }
                }
            })?;
        Ok(sender)
    }

    fn start_reader(&self) -> io::Result<mpsc::Sender<ReadJob>> {
        let mut reader = Reader(self.station(&self.read_socket)?);
        let (sender, jobs) = mpsc::channel::<ReadJob>();
        thread::Builder::new()
            .name("netlink-read".to_owned())
            .spawn(move || {
                for (query, answer) in jobs {
                    let _ = answer.send(reader.query(&query));
                    if reader.lost() {
                        return;
                    }
                }
            })?;
        Ok(sender)
    }
}

/// Refuses to start where every operation would fail later.
fn capabilities() -> Result<(), OpenError> {
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(|source| OpenError::System {
            what: "cannot read /proc/self/status",
            source,
        })?;
    match missing_capability(&status) {
        Some(capability) => Err(OpenError::Capability { capability }),
        None => Ok(()),
    }
}

/// From the text of /proc/self/status.
fn missing_capability(status: &str) -> Option<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    // linux/capability.h. CAP_NET_ADMIN: links, addresses, routes. CAP_SYS_ADMIN: setns into
    // workloads' namespaces. CAP_NET_BROADCAST: hearing of changes there.
    [
        (12, "CAP_NET_ADMIN"),
        (21, "CAP_SYS_ADMIN"),
        (11, "CAP_NET_BROADCAST"),
    ]
    .into_iter()
    .find(|(bit, _)| effective & (1 << bit) == 0)
    .map(|(_, name)| name)
}
