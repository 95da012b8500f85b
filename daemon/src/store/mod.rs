//! The agent's durable state: an embedded database in the state directory, written by one thread.
//!
//! Acknowledged means durable. [`Store::submit`] hands over the changes of one operation; they are
//! applied together or not at all, in the order of submission, and [`Completions`] says when they
//! are on disk. All submissions that wait while a commit is under way share the next one: one
//! fsync serves many callers.
//!
//! ```text
//!   submit ─► queue (bounded) ─► writer thread: drain, one transaction, fsync ─► Completions
//! ```
//!
//! Files in the state directory:
//!
//! * `state.redb`: the database. Made under another name and renamed, so it is always whole. A
//!   file of another kind, a damaged one, or one of a newer schema is refused and left alone.
//!   One of an older schema is brought up to date in one transaction, after a copy of it was put
//!   beside it as `state.redb.schema-N`.
//! * `lock`: held while an agent runs; contains its process id.
//!
//! A failed commit (disk full) changes nothing: the database is opened again as it was, and its
//! submissions fail with an error that says why. Later ones are tried anew.

pub(crate) mod beside;
mod codec;
#[cfg(test)]
pub(crate) mod disk;
mod error;
mod file;
pub mod record;
mod upgrade;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot};

pub use error::{PersistError, StoreError};
pub use record::{BlockRecord, CoolingRecord, Record, Recovered, WorkloadRecord};

/// Names a submission in its completion. Chosen by the caller.
pub type Token = u64;

/// Submissions that may wait. When that many do, [`Store::submit`] refuses further ones.
pub const QUEUE_LENGTH: usize = 4096;

/// An open state directory. Dropping it finishes what was submitted and releases the directory.
#[derive(Debug)]
pub struct Store {
    submissions: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
}

/// What became of submissions, in their order.
#[derive(Debug)]
pub struct Completions {
    receiver: mpsc::UnboundedReceiver<Completion>,
}

/// What became of one submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    pub token: Token,
    /// On an error nothing of the submission was stored.
    pub result: Result<(), PersistError>,
}

/// A submission that was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// [`QUEUE_LENGTH`] submissions wait already.
    #[error("the store is busy: {QUEUE_LENGTH} changes wait to be written")]
    Full,
    /// The writer thread is gone, which only a fault in it can cause.
    #[error("the store has stopped")]
    Stopped,
}

/// Since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Transactions, each with one fsync.
    pub commits: u64,
    pub failed_commits: u64,
    /// Submissions that became durable.
    pub submissions: u64,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    failed_commits: AtomicU64,
    submissions: AtomicU64,
}

#[derive(Debug)]
struct Submission {
    records: Vec<Record>,
    token: Token,
}

/// What the thread is asked for.
#[derive(Debug)]
enum Job {
    Write(Submission),
    /// Everything there is, as it is on disk.
    Read(oneshot::Sender<Result<Recovered, PersistError>>),
}

impl Store {
    /// Opens the state directory, makes it when it is missing (mode 0700), and reads everything.
    pub fn open(directory: &Path) -> Result<(Store, Completions, Recovered), StoreError> {
        let (mut files, recovered) = file::Files::open(directory)?;
        let (submissions, queue) = mpsc::channel(QUEUE_LENGTH);
        let (completed, receiver) = mpsc::unbounded_channel();
        let counters = Arc::new(Counters::default());
        let counted = counters.clone();
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer::run(&mut files, queue, &completed, &counted))
            .map_err(|source| StoreError::Io {
                what: "the store's thread cannot be started".to_owned(),
                source,
            })?;
        let store = Store {
            submissions: Some(submissions),
            writer: Some(writer),
            counters,
        };
        Ok((store, Completions { receiver }, recovered))
    }

    /// Hands over changes. Never blocks; the completion carries the same token.
    pub fn submit(&self, records: Vec<Record>, token: Token) -> Result<(), SubmitError> {
        self.send(Job::Write(Submission { records, token }))
    }

    /// Reads everything from the database, behind what was submitted before.
    pub fn read(&self) -> Result<oneshot::Receiver<Result<Recovered, PersistError>>, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Read(reply))?;
        Ok(answer)
    }

    fn send(&self, job: Job) -> Result<(), SubmitError> {
        let submissions = self.submissions.as_ref().ok_or(SubmitError::Stopped)?;
        submissions.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Full,
            mpsc::error::TrySendError::Closed(_) => SubmitError::Stopped,
        })
    }

    pub fn statistics(&self) -> Statistics {
        // The counters tell nothing about each other.
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            commits: load(&self.counters.commits),
            failed_commits: load(&self.counters.failed_commits),
            submissions: load(&self.counters.submissions),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.submissions = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was reported when it happened.
            let _ = writer.join();
        }
    }
}

impl Completions {
    /// The next completion. `None`: the store was dropped, and everything is told. Cancel-safe.
    pub async fn next(&mut self) -> Option<Completion> {
        self.receiver.recv().await
    }

    /// As [`next`](Self::next), for threads without a runtime.
    pub fn blocking_next(&mut self) -> Option<Completion> {
        self.receiver.blocking_recv()
    }
}
