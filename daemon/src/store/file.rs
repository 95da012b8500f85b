//! The state directory and the database in it: opening, reading everything, writing a batch.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use redb::{
    AccessGuard, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition,
};

use super::{
    codec::{self, DecodeError},
    error::{PersistError, StoreError},
    record::{Record, Recovered},
    upgrade,
};

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const WORKLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workloads");
const BLOCKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("blocks");
const COOLING: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("cooling");

/// Text about the file, since schema version 2.
pub(super) const ABOUT: TableDefinition<'_, &str, &str> = TableDefinition::new("about");

const DATABASE: &str = "state.redb";
/// Under which a new database is made. One that is found is left over from a crash.
const UNFINISHED: &str = "state.redb.new";
const LOCK: &str = "lock";

/// What every redb file starts with.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// The state is small: a few hundred bytes for each workload.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// An open state directory.
#[derive(Debug)]
pub(super) struct Files {
    file: PathBuf,
    /// `None` after a failure: opened again with the next batch.
    database: Option<Database>,
    /// Of the last batch that is known to be stored. Tells after a failure whether it was.
    sequence: u64,
    /// A batch that was reported as failed while nobody could tell.
    doubtful: Option<Doubtful>,
    /// Held to the end.
    _lock: Flock<File>,
}

/// A batch that may be on disk, and what takes it back.
#[derive(Debug)]
pub(super) struct Doubtful {
    sequence: u64,
    undo: Vec<Undo>,
}

/// A row as it was before.
#[derive(Debug)]
pub(super) enum Undo {
    Workload(String, Option<Vec<u8>>),
    Block(Vec<u8>, Option<Vec<u8>>),
    Cooling(Vec<u8>, Option<Vec<u8>>),
    /// Of the table of numbers.
    Number(String, u64),
}

/// Anything redb complains about while reading or writing.
pub(super) type Failure = redb::Error;

impl Files {
    pub(super) fn open(directory: &Path) -> Result<(Files, Recovered), StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| io_error("the state directory", directory, "made", source))?;
        let lock = lock(directory)?;
        let file = directory.join(DATABASE);
        let unfinished = directory.join(UNFINISHED);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("the file", &unfinished, "removed", error));
            }
            _ => {}
        }
        if !is_there(&file)? {
            create(directory, &unfinished, &file)?;
        }
        let database = upgrade::upgraded(directory, &file, open(&file, true)?)?;
        let (recovered, sequence) = guarded(&file, || read(&file, &database))?;
        let files = Files {
            file,
            database: Some(database),
            sequence,
            doubtful: None,
            _lock: lock,
        };
        Ok((files, recovered))
    }

    /// Stores all of these or nothing, and returns when they are on disk.
    pub(super) fn write<'r>(
        &mut self,
        records: impl Iterator<Item = &'r Record>,
    ) -> Result<(), PersistError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        let sequence = self.sequence + 1;
        let mut undo = Vec::new();
        let error = match write(&database, sequence, records, &mut undo) {
            Ok(()) => {
                self.database = Some(database);
                self.sequence = sequence;
                return Ok(());
            }
            Err(error) => self.persist_error(&error),
        };
        // After an error redb takes no more: it must be opened again. That also tells whether the
        // batch reached the disk in spite of the error; it must not, because it is reported as
        // failed. Where that does not work now, it is made good with the next batch.
        drop(database);
        self.doubtful = Some(Doubtful { sequence, undo });
        self.database = self.reopen().ok();
        Err(error)
    }

    /// Everything that is on disk.
    pub(super) fn read(&mut self) -> Result<Recovered, PersistError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        let read = guarded(&self.file, || read(&self.file, &database));
        self.database = Some(database);
        let failed = |error: StoreError| PersistError::Failed {
            file: self.file.clone(),
            text: error.to_string(),
        };
        read.map(|(recovered, _)| recovered).map_err(failed)
    }

    /// The database without any batch that was reported as failed.
    fn reopen(&mut self) -> Result<Database, PersistError> {
        let database = match open(&self.file, false) {
            Ok(database) => database,
            Err(StoreError::Io { source, .. }) if is_disk_full(&source) => {
                return Err(PersistError::DiskFull {
                    file: self.file.clone(),
                });
            }
            Err(error) => {
                return Err(PersistError::Failed {
                    file: self.file.clone(),
                    text: error.to_string(),
                });
            }
        };
        let stored =
            read_meta(&database, "sequence").map_err(|error| self.persist_error(&error))?;
        self.sequence = stored.unwrap_or(0);
        if let Some(doubtful) = &self.doubtful
            && doubtful.sequence == self.sequence
        {
            take_back(&database, doubtful).map_err(|error| self.persist_error(&error))?;
            self.sequence += 1;
        }
        self.doubtful = None;
        Ok(database)
    }

    /// As if the last batch, which took back with `undo`, had been reported as failed.
    #[cfg(test)]
    pub(super) fn doubt_last(&mut self, undo: Doubtful) {
        self.database = None;
        self.sequence = undo.sequence - 1;
        self.doubtful = Some(undo);
    }

    /// As [`write`](Self::write), and what would take the batch back.
    #[cfg(test)]
    pub(super) fn write_with_undo(&mut self, records: &[Record]) -> Doubtful {
        let database = self.database.as_ref().expect("it is open");
        let mut undo = Vec::new();
        self.sequence += 1;
        write(database, self.sequence, records.iter(), &mut undo).expect("room on the disk");
        Doubtful {
            sequence: self.sequence,
            undo,
        }
    }

    fn persist_error(&self, error: &Failure) -> PersistError {
        match error {
            Failure::Io(source) if is_disk_full(source) => PersistError::DiskFull {
                file: self.file.clone(),
            },
            other => PersistError::Failed {
                file: self.file.clone(),
                text: other.to_string(),
            },
        }
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    // A file size limit or a quota is no different to those who wait.
    let codes = [
        libc_code(Errno::ENOSPC),
        libc_code(Errno::EDQUOT),
        libc_code(Errno::EFBIG),
    ];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

fn libc_code(errno: Errno) -> i32 {
    errno as i32
}

pub(super) fn io_error(kind: &str, path: &Path, verb: &str, source: io::Error) -> StoreError {
    StoreError::Io {
        what: format!("{kind} {} cannot be {verb}", path.display()),
        source,
    }
}

/// How long a lock is waited for: an agent that was killed holds it until the kernel has taken the
/// process apart, and a supervisor may start the next one before that.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Takes the directory for this process. A lock goes with its process, however that ends.
fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| io_error("the lock file", &path, "opened", source))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((held, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = held;
                std::thread::sleep(LOCK_RETRY);
            }
            Err((mut held, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let read = held.read_to_string(&mut text);
                return Err(StoreError::InUse {
                    directory: directory.to_owned(),
                    pid: read.ok().and_then(|_| text.trim().parse().ok()),
                });
            }
            Err((_, errno)) => {
                return Err(io_error("the lock file", &path, "locked", errno.into()));
            }
        }
    };
    let pid = std::process::id();
    // Only for the message of another agent: not worth failing for.
    let _ = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{pid}"));
    Ok(lock)
}

fn is_there(file: &Path) -> Result<bool, StoreError> {
    fs::exists(file).map_err(|source| io_error("the state file", file, "looked at", source))
}

/// Makes an empty database under a name of its own, and gives it its name when it is whole.
fn create(directory: &Path, unfinished: &Path, file: &Path) -> Result<(), StoreError> {
    let failed = |source| io_error("the state file", file, "made", source);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(unfinished)
        .map_err(failed)?;
    let database = Database::create(unfinished).map_err(|error| open_error(file, error))?;
    initialize(&database).map_err(|error| failure(file, error))?;
    drop(database);
    let sync = |path: &Path| File::open(path)?.sync_all();
    sync(unfinished).map_err(failed)?;
    fs::rename(unfinished, file).map_err(failed)?;
    sync(directory).map_err(failed)
}

/// What a new database starts with.
pub(super) fn initialize(database: &Database) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("schema", codec::SCHEMA)?;
        meta.insert("generation", 0)?;
        meta.insert("sequence", 0)?;
        transaction.open_table(WORKLOADS)?;
        transaction.open_table(BLOCKS)?;
        transaction.open_table(COOLING)?;
        let mut about = transaction.open_table(ABOUT)?;
        about.insert("agentd", env!("CARGO_PKG_VERSION"))?;
    }
    transaction.commit()?;
    Ok(())
}

/// With `check`, every page is verified; an open without trusts a file this process had open.
pub(super) fn open(file: &Path, check: bool) -> Result<Database, StoreError> {
    if check {
        check_magic(file)?;
    }
    guarded(file, || {
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(check)
            .open(file)
            .map_err(|error| open_error(file, error))
    })
}

/// redb may panic on damaged pages; for us that is an error like any other.
pub(super) fn guarded<T>(
    file: &Path,
    action: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(StoreError::Corrupt {
            file: file.to_owned(),
            text: text.unwrap_or_else(|| "reading it failed".to_owned()),
        })
    })
}

fn check_magic(file: &Path) -> Result<(), StoreError> {
    let mut start = Vec::new();
    File::open(file)
        .and_then(|open| open.take(MAGIC.len() as u64).read_to_end(&mut start))
        .map_err(|source| io_error("the state file", file, "read", source))?;
    if start == MAGIC {
        return Ok(());
    }
    let text = if start.is_empty() {
        "it is empty"
    } else {
        "it does not start as one"
    };
    Err(StoreError::Foreign {
        file: file.to_owned(),
        text: text.to_owned(),
    })
}

fn open_error(file: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse {
                directory: file.parent().unwrap_or(file).to_owned(),
                pid: None,
            }
        }
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            io_error("the state file", file, "opened", source)
        }
        other => StoreError::Corrupt {
            file: file.to_owned(),
            text: other.to_string(),
        },
    }
}

pub(super) fn failure(file: &Path, error: Failure) -> StoreError {
    match error {
        Failure::Io(source) => io_error("the state file", file, "used", source),
        Failure::TableDoesNotExist(_) | Failure::TableTypeMismatch { .. } => StoreError::Foreign {
            file: file.to_owned(),
            text: error.to_string(),
        },
        other => StoreError::Corrupt {
            file: file.to_owned(),
            text: other.to_string(),
        },
    }
}

pub(super) fn read_meta(database: &Database, key: &str) -> Result<Option<u64>, Failure> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    Ok(meta.get(key)?.map(|value| value.value()))
}

/// Everything, and the number of the last batch.
fn read(file: &Path, database: &Database) -> Result<(Recovered, u64), StoreError> {
    let failed = |error: Failure| failure(file, error);
    let schema = read_meta(database, "schema").map_err(failed)?;
    match schema {
        Some(codec::SCHEMA) => {}
        Some(found) => {
            return Err(StoreError::Schema {
                file: file.to_owned(),
                found,
                known: codec::SCHEMA,
                writer: upgrade::writer(database),
            });
        }
        None => {
            return Err(StoreError::Foreign {
                file: file.to_owned(),
                text: "it has no schema version".to_owned(),
            });
        }
    }
    let undecodable = |what: &str, error: DecodeError| StoreError::Corrupt {
        file: file.to_owned(),
        text: format!("the record of {what} cannot be understood: {error}"),
    };
    let mut recovered = Recovered::default();
    let tables = || -> Result<_, Failure> {
        let transaction = database.begin_read()?;
        Ok((
            transaction.open_table(META)?,
            transaction.open_table(WORKLOADS)?,
            transaction.open_table(BLOCKS)?,
            transaction.open_table(COOLING)?,
        ))
    };
    let storage = |error: StorageError| failure(file, error.into());
    let (meta, workloads, blocks, cooling) = tables().map_err(failed)?;
    for row in workloads.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        let record = codec::decode_workload(key.value(), value.value())
            .map_err(|error| undecodable(&format!("workload {}", key.value()), error))?;
        recovered.workloads.push(record);
    }
    for row in blocks.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        let record = codec::decode_block(key.value(), value.value())
            .map_err(|error| undecodable("a block", error))?;
        recovered.blocks.push(record);
    }
    recovered.blocks.sort_by_key(|block| block.cidr);
    for row in cooling.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        let record = codec::decode_cooling(key.value(), value.value())
            .map_err(|error| undecodable("a cooling address", error))?;
        recovered.cooling.push(record);
    }
    recovered.cooling.sort_by_key(|cooling| cooling.address);
    let number = |key: &str| -> Result<u64, StoreError> {
        let value = meta.get(key).map_err(storage)?;
        Ok(value.map_or(0, |value| value.value()))
    };
    recovered.generation = number("generation")?;
    recovered.drained = match number("drained")? {
        0 => None,
        at => {
            let at = codec::decode_time(at);
            Some(at.map_err(|error| undecodable("the time of a drain", error))?)
        }
    };
    for row in meta.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        let Some(name) = key.value().strip_prefix(codec::POOL_KEY) else {
            continue;
        };
        let to = codec::decode_override(value.value())
            .map_err(|error| undecodable(&format!("pool {name}"), error))?;
        recovered.pools.extend(to.map(|to| (name.to_owned(), to)));
    }
    let sequence = number("sequence")?;
    Ok((recovered, sequence))
}

/// One transaction, on disk when this returns. `undo` gets the rows as they were.
pub(super) fn write<'r>(
    database: &Database,
    sequence: u64,
    records: impl Iterator<Item = &'r Record>,
    undo: &mut Vec<Undo>,
) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let mut workloads = transaction.open_table(WORKLOADS)?;
        let mut blocks = transaction.open_table(BLOCKS)?;
        let mut cooling = transaction.open_table(COOLING)?;
        meta.insert("sequence", sequence)?;
        for record in records {
            match record {
                Record::PutWorkload(record) => {
                    let value = codec::encode_workload(record);
                    let old = workloads.insert(record.id.as_str(), value.as_slice())?;
                    undo.push(Undo::Workload(record.id.to_string(), bytes(old)));
                }
                Record::DeleteWorkload(id) => {
                    let old = workloads.remove(id.as_str())?;
                    undo.push(Undo::Workload(id.to_string(), bytes(old)));
                }
                Record::PutBlock(record) => {
                    let key = codec::block_key(record.cidr);
                    let value = codec::encode_block(record);
                    let old = bytes(blocks.insert(key.as_slice(), value.as_slice())?);
                    undo.push(Undo::Block(key, old));
                }
                Record::DeleteBlock(cidr) => {
                    let key = codec::block_key(*cidr);
                    let old = bytes(blocks.remove(key.as_slice())?);
                    undo.push(Undo::Block(key, old));
                }
                Record::PutCooling(record) => {
                    let key = codec::address_key(record.address);
                    let value = codec::encode_cooling(record);
                    let old = bytes(cooling.insert(key.as_slice(), value.as_slice())?);
                    undo.push(Undo::Cooling(key, old));
                }
                Record::DeleteCooling(address) => {
                    let key = codec::address_key(*address);
                    let old = bytes(cooling.remove(key.as_slice())?);
                    undo.push(Undo::Cooling(key, old));
                }
                Record::Generation(generation) => {
                    let stored = meta.get("generation")?.map_or(0, |value| value.value());
                    if *generation > stored {
                        meta.insert("generation", generation)?;
                    }
                }
                Record::Drained(at) => {
                    let value = at.map_or(0, codec::encode_time);
                    let old = meta.insert("drained", value)?.map_or(0, |old| old.value());
                    undo.push(Undo::Number("drained".to_owned(), old));
                }
                Record::PoolOverride(name, to) => {
                    let key = format!("{}{name}", codec::POOL_KEY);
                    let value = codec::encode_override(*to);
                    let old = meta
                        .insert(key.as_str(), value)?
                        .map_or(0, |old| old.value());
                    undo.push(Undo::Number(key, old));
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn bytes(value: Option<AccessGuard<'_, &'static [u8]>>) -> Option<Vec<u8>> {
    value.map(|value| value.value().to_vec())
}

/// Restores the rows a batch changed, last change first. The generation stays: it only ever grows.
fn take_back(database: &Database, batch: &Doubtful) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let mut workloads = transaction.open_table(WORKLOADS)?;
        let mut blocks = transaction.open_table(BLOCKS)?;
        let mut cooling = transaction.open_table(COOLING)?;
        meta.insert("sequence", batch.sequence + 1)?;
        for row in batch.undo.iter().rev() {
            match row {
                Undo::Workload(key, Some(old)) => {
                    workloads.insert(key.as_str(), old.as_slice())?;
                }
                Undo::Workload(key, None) => {
                    workloads.remove(key.as_str())?;
                }
                Undo::Block(key, Some(old)) => {
                    blocks.insert(key.as_slice(), old.as_slice())?;
                }
                Undo::Block(key, None) => {
                    blocks.remove(key.as_slice())?;
                }
                Undo::Cooling(key, Some(old)) => {
                    cooling.insert(key.as_slice(), old.as_slice())?;
                }
                Undo::Cooling(key, None) => {
                    cooling.remove(key.as_slice())?;
                }
                Undo::Number(key, old) => {
                    meta.insert(key.as_str(), old)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}
