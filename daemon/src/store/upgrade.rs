//! From the schema of an older agent to that of this one.
//!
//! One step for each version, all of them in one transaction: after a crash in between the file is
//! as it was. Before that a copy is put beside it, whole and durable, because the older agent cannot
//! read the file any more afterwards.

use std::{
    fs::{self, File},
    path::Path,
};

use redb::{Database, ReadableDatabase, WriteTransaction};

use super::{
    codec,
    error::StoreError,
    file::{ABOUT, Failure, META, failure, guarded, io_error, open, read_meta},
};

type Step = fn(&WriteTransaction) -> Result<(), Failure>;

/// What leads from each version to the next one, beginning with version 1.
const STEPS: [Step; 1] = [since_2];

/// Version 2 says which agent wrote the file.
fn since_2(transaction: &WriteTransaction) -> Result<(), Failure> {
    transaction.open_table(ABOUT)?;
    Ok(())
}

/// The database with the schema of this agent. What is newer or of somebody else is left as it is,
/// for the reader to refuse.
pub(super) fn upgraded(
    directory: &Path,
    file: &Path,
    database: Database,
) -> Result<Database, StoreError> {
    let failed = |error: Failure| failure(file, error);
    let found = guarded(file, || read_meta(&database, "schema").map_err(failed))?;
    let Some(found) = found.filter(|found| *found <= codec::SCHEMA) else {
        return Ok(database);
    };
    if found == codec::SCHEMA && writer(&database).as_deref() == Some(env!("CARGO_PKG_VERSION")) {
        return Ok(database);
    }
    let database = if found < codec::SCHEMA {
        // Closed, so that the copy is of a whole file.
        drop(database);
        let copy = directory.join(format!("state.redb.schema-{found}"));
        back_up(directory, file, &copy)?;
        tracing::info!(
            from = found,
            to = codec::SCHEMA,
            copy = %copy.display(),
            "the state file is brought to the schema of this agentd"
        );
        open(file, false)?
    } else {
        database
    };
    guarded(file, || upgrade(&database, found).map_err(failed))?;
    Ok(database)
}

fn upgrade(database: &Database, found: u64) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    let done = usize::try_from(found.saturating_sub(1)).unwrap_or(usize::MAX);
    for step in STEPS.iter().skip(done) {
        step(&transaction)?;
    }
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("schema", codec::SCHEMA)?;
        let mut about = transaction.open_table(ABOUT)?;
        about.insert("agentd", env!("CARGO_PKG_VERSION"))?;
    }
    transaction.commit()?;
    Ok(())
}

/// A whole copy, or none of that name. One that is there already is of an upgrade that a crash cut
/// off, or of an earlier one: it is replaced.
fn back_up(directory: &Path, file: &Path, copy: &Path) -> Result<(), StoreError> {
    let unfinished = copy.with_extension("copying");
    let failed = |source| io_error("the state file", file, "copied before its upgrade", source);
    let copied = fs::copy(file, &unfinished)
        .and_then(|_| File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, copy))
        .and_then(|()| File::open(directory)?.sync_all());
    copied.map_err(|source| {
        // Of no use to anybody.
        let _ = fs::remove_file(&unfinished);
        failed(source)
    })
}

/// The version of the agent that opened the file last, as far as it says.
pub(super) fn writer(database: &Database) -> Option<String> {
    let transaction = database.begin_read().ok()?;
    let about = transaction.open_table(ABOUT).ok()?;
    let version = about.get("agentd").ok()??;
    Some(version.value().to_owned())
}
