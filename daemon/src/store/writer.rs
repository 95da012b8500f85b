//! The thread that writes: everything that waits shares one commit.

use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::{Completion, Counters, Job, Submission, file::Files};

/// Submissions in one commit. Bounds the time until the first of them is answered.
const BATCH: usize = 1024;

/// Runs until the store is dropped and everything submitted is answered.
pub(super) fn run(
    files: &mut Files,
    mut queue: mpsc::Receiver<Job>,
    completed: &mpsc::UnboundedSender<Completion>,
    counters: &Counters,
) {
    let mut jobs: Vec<Job> = Vec::new();
    let mut batch: Vec<Submission> = Vec::new();
    while queue.blocking_recv_many(&mut jobs, BATCH) > 0 {
        let mut readers = Vec::new();
        for job in jobs.drain(..) {
            match job {
                Job::Write(submission) => batch.push(submission),
                Job::Read(reply) => readers.push(reply),
            }
        }
        if !batch.is_empty() {
            store(files, &mut batch, completed, counters);
        }
        for reply in readers {
            // Whoever asked may have gone.
            let _ = reply.send(files.read());
        }
    }
}

/// One commit.
fn store(
    files: &mut Files,
    batch: &mut Vec<Submission>,
    completed: &mpsc::UnboundedSender<Completion>,
    counters: &Counters,
) {
    {
        let records = batch.iter().flat_map(|submission| &submission.records);
        let result = files.write(records);
        // Independent counts, read for display only.
        match result {
            Ok(()) => {
                counters.commits.fetch_add(1, Ordering::Relaxed);
                counters
                    .submissions
                    .fetch_add(count(batch.len()), Ordering::Relaxed);
            }
            Err(_) => {
                counters.failed_commits.fetch_add(1, Ordering::Relaxed);
            }
        }
        for Submission { token, .. } in batch.drain(..) {
            let result = result.clone();
            // Nobody listens any more when the agent stops.
            let _ = completed.send(Completion { token, result });
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a count")
}
