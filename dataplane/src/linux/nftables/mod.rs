//! The kernel's nftables and conntrack, over NETLINK_NETFILTER sockets.
//!
//! ```text
//!   commit, read, dropped ──► "nftables" thread  ──► one send is one transaction ──► kernel
//!   forget                ──► "conntrack" thread ──► dump, delete               ◄─► kernel
//!   changes               ◄── multicast socket (BPF filter inside the kernel)   ◄── kernel
//! ```
//!
//! Requests are handled inside `send`, as with NETLINK_ROUTE. They take another lock than those, so
//! that elements are written while the other writer makes links and routes.

mod conntrack;
mod encode;
mod listener;
mod read;

use std::{
    io,
    net::IpAddr,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot;

pub use self::listener::{Changes, Heard};
use super::{
    OpenError, decode,
    encode::Encoder,
    pipe,
    socket::{DUMP_PAUSE, Ports, Socket},
};
use crate::{
    filter::{ForwardDrop, Op, Snapshot},
    kernel::OpError,
};

/// Attempts at a read that others interrupt by changing something.
const READS: u32 = 20;

type Answer<T> = oneshot::Sender<Result<T, OpError>>;

#[derive(Debug)]
enum Job {
    Commit(Vec<Op>, Answer<()>),
    Read(Answer<Box<Snapshot>>),
    Dropped(Answer<Vec<u64>>),
    ForwardDrops(Answer<Vec<ForwardDrop>>),
}

#[derive(Debug)]
struct Forget(Vec<IpAddr>, Answer<u64>);

/// Its threads end when it is dropped, after what they have been given.
#[derive(Debug)]
pub struct Filtering {
    jobs: Mutex<mpsc::Sender<Job>>,
    forgets: Mutex<mpsc::Sender<Forget>>,
}

/// A socket with what is needed to talk over it; belongs to one thread.
#[derive(Debug)]
struct Lane {
    socket: Socket,
    encoder: Encoder,
    receive: Vec<u8>,
    sequence: u32,
}

impl Filtering {
    /// In the calling thread's network namespace; call it inside a tokio runtime. The listener
    /// hears changes from now on.
    pub fn open() -> Result<(Self, Changes), OpenError> {
        let system = |what| move |source| OpenError::System { what, source };
        let ports = Ports::choose();
        let changes = Changes::open(ports)?;
        let open =
            |number| Lane::open(ports, number).map_err(system("cannot open a netfilter socket"));
        let mut lane = open(1)?;
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("nftables".to_owned())
            .spawn(move || {
                // Whoever asked and went away needs no answer.
                for job in queue {
                    match job {
                        Job::Commit(ops, answer) => {
                            let _ = answer.send(lane.commit(&ops));
                        }
                        Job::Read(answer) => {
                            let _ = answer.send(lane.read());
                        }
                        Job::ForwardDrops(answer) => {
                            let _ = answer.send(lane.retry(Lane::forward_drops));
                        }
                        Job::Dropped(answer) => {
                            let result = lane.retry(Lane::dropped);
                            let _ = answer.send(result);
                        }
                    }
                }
            })
            .map_err(system("cannot start a thread"))?;
        let mut lane = open(2)?;
        let (forgets, queue) = mpsc::channel::<Forget>();
        thread::Builder::new()
            .name("conntrack".to_owned())
            .spawn(move || {
                for Forget(addresses, answer) in queue {
                    let result = lane.forget(&addresses);
                    let _ =
                        answer.send(result.map_err(|error| words("forget connections", &error)));
                }
            })
            .map_err(system("cannot start a thread"))?;
        let filtering = Self {
            jobs: Mutex::new(jobs),
            forgets: Mutex::new(forgets),
        };
        Ok((filtering, changes))
    }

    /// All of it, or nothing.
    pub fn commit(
        &self,
        ops: Vec<Op>,
    ) -> impl Future<Output = Result<(), OpError>> + Send + 'static {
        self.ask(|answer| Job::Commit(ops, answer))
    }

    pub fn read(&self) -> impl Future<Output = Result<Box<Snapshot>, OpError>> + Send + 'static {
        self.ask(Job::Read)
    }

    /// Packets dropped since the table was made, in the order of
    /// [`DROP_REASONS`](crate::filter::table::DROP_REASONS).
    pub fn dropped(&self) -> impl Future<Output = Result<Vec<u64>, OpError>> + Send + 'static {
        self.ask(Job::Dropped)
    }

    /// Chains of other programs that drop what the node forwards, unless a rule accepts it.
    pub fn forward_drops(
        &self,
    ) -> impl Future<Output = Result<Vec<ForwardDrop>, OpError>> + Send + 'static {
        self.ask(Job::ForwardDrops)
    }

    /// Deletes every connection that one of these addresses opened or answers, as it is before and
    /// after translation. Returns how many.
    pub fn forget(
        &self,
        addresses: Vec<IpAddr>,
    ) -> impl Future<Output = Result<u64, OpError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let jobs = self.forgets.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.send(Forget(addresses, answer));
        drop(jobs);
        wait(sent.is_ok(), answered)
    }

    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(Answer<T>) -> Job,
    ) -> impl Future<Output = Result<T, OpError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.send(job(answer));
        drop(jobs);
        wait(sent.is_ok(), answered)
    }
}

async fn wait<T>(
    sent: bool,
    answered: oneshot::Receiver<Result<T, OpError>>,
) -> Result<T, OpError> {
    let stopped = || super::stopped("the thread for nftables");
    if !sent {
        return Err(stopped());
    }
    answered.await.unwrap_or_else(|_| Err(stopped()))
}

fn words(what: &str, error: &io::Error) -> OpError {
    match error.raw_os_error() {
        Some(errno) => pipe::error(what, errno, None),
        None => pipe::error(what, libc::EIO, Some(&error.to_string())),
    }
}

impl Lane {
    fn open(ports: Ports, number: u8) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open_netfilter(ports, number)?,
            encoder: Encoder::default(),
            receive: Vec::new(),
            sequence: 0,
        })
    }

    fn read(&mut self) -> Result<Box<Snapshot>, OpError> {
        self.retry(Lane::snapshot).map(Box::new)
    }

    /// Again where others changed something meanwhile.
    fn retry<T>(&mut self, work: impl Fn(&mut Self) -> io::Result<T>) -> Result<T, OpError> {
        let mut left = READS;
        loop {
            match work(self) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && left > 0 => {
                    left -= 1;
                    thread::sleep(DUMP_PAUSE);
                }
                result => {
                    return result
                        .map_err(|error| words("read the nftables table inet agentd", &error));
                }
            }
        }
    }

    fn commit(&mut self, ops: &[Op]) -> Result<(), OpError> {
        const WHAT: &str = "change the nftables table inet agentd";
        self.socket.discard(&mut self.receive);
        self.encoder.clear();
        let first = self.sequence + 1;
        self.sequence = encode::transaction(&mut self.encoder, first, ops);
        self.socket
            .send(self.encoder.bytes())
            .map_err(|error| words(WHAT, &error))?;
        let mut refused = None;
        let mut acknowledged = false;
        // Everything was handled inside `send`.
        loop {
            match self.socket.receive(&mut self.receive) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(_) => break,
            }
            for message in decode::messages(&self.receive) {
                if message.sequence < first || message.kind != super::encode::kind::ERROR {
                    continue;
                }
                match decode::error(&message) {
                    (0, _) => acknowledged = true,
                    (errno, said) if refused.is_none() => {
                        let at = message.sequence.saturating_sub(first + 1);
                        let what = format!("{WHAT} (message {at})");
                        refused = Some(pipe::error(&what, errno, said));
                    }
                    _ => {}
                }
            }
        }
        if self.sequence > u32::MAX / 2 {
            self.sequence = 0;
        }
        match refused {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(pipe::error(WHAT, libc::EIO, Some("no answer"))),
        }
    }
}
