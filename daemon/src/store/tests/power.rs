//! A crash after every single write of the database: of the process, which leaves all writes so
//! far, and of the machine, which leaves any part of those since the last fsync.

use std::{
    io,
    sync::{Mutex, MutexGuard},
};

use redb::{Database, StorageBackend};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    SetLength(u64),
    Sync,
}

/// A disk in memory that keeps a log. The lock is never contended: redb runs on one thread here.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<(Vec<u8>, Vec<Step>)>>);

impl Recorder {
    fn locked(&self) -> MutexGuard<'_, (Vec<u8>, Vec<Step>)> {
        self.0.lock().unwrap()
    }

    fn log(&self) -> Vec<Step> {
        self.locked().1.clone()
    }

    fn record(&self, step: Step) {
        let mut state = self.locked();
        apply(&mut state.0, &step);
        state.1.push(step);
    }
}

fn apply(content: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            let start = usize::try_from(*offset).unwrap();
            let end = start + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[start..end].copy_from_slice(data);
        }
        Step::SetLength(length) => content.resize(usize::try_from(*length).unwrap(), 0),
        Step::Sync => {}
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.locked().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let state = self.locked();
        let Some(found) = state.0.get(start..start + out.len()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.record(Step::SetLength(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.record(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record(Step::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// The number of operations that a database with this content has; each whole, none left out.
fn recovered(directory: &Path, content: &[u8]) -> u64 {
    std::fs::write(directory.join("state.redb"), content).unwrap();
    let (store, _, recovered) = Store::open(directory).unwrap();
    drop(store);
    let count = recovered.generation;
    let expected: Vec<WorkloadRecord> = (1..=count)
        .map(|number| workload(&format!("w{number:08}"), number))
        .collect();
    assert_eq!(recovered.workloads, expected);
    assert_eq!(recovered.blocks.len() as u64, count);
    assert_eq!(recovered.cooling.len() as u64, count);
    count
}

#[test]
fn a_crash_after_any_write_leaves_a_prefix_with_everything_acknowledged() {
    let disk = Recorder::default();
    let database = Database::builder()
        .create_with_backend(disk.clone())
        .unwrap();
    file::initialize(&database).unwrap();
    // How long the log was when an operation was acknowledged; the first is the empty database.
    let mut acknowledged = vec![disk.log().len()];
    for number in 1..=3 {
        let records = child::operation(number);
        file::write(&database, number, records.iter(), &mut Vec::new()).unwrap();
        acknowledged.push(disk.log().len());
    }
    let log = disk.log();
    let directory = tempfile::tempdir().unwrap();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut images = 0;
    for cut in acknowledged[0]..=log.len() {
        let durable = acknowledged.iter().filter(|length| **length <= cut).count() as u64 - 1;
        let synced = log[..cut]
            .iter()
            .rposition(|step| matches!(step, Step::Sync));
        let synced = synced.map_or(0, |position| position + 1);
        for lossy in [false, true] {
            let mut content = Vec::new();
            for (position, step) in log[..cut].iter().enumerate() {
                let lost = lossy && position >= synced && matches!(step, Step::Write(..));
                if !(lost && random.bool()) {
                    apply(&mut content, step);
                }
            }
            let count = recovered(directory.path(), &content);
            assert!(
                (durable..=durable + 1).contains(&count),
                "{durable} acknowledged, {count} found; cut at {cut} of {}, seed {seed}",
                log.len()
            );
            images += 1;
        }
    }
    assert!(images > 20, "only {images} crashes");
}
