//! Small files beside the database, for what is no record of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::Serialize;

/// Writes a whole file of the state directory; durable when it returns. Made under another name and
/// renamed, so a crash leaves the old one or the new one.
pub(crate) fn write_json(directory: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    let unfinished = directory.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(&serde_json::to_vec_pretty(content).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&unfinished, directory.join(name))?;
    File::open(directory)?.sync_all()
}
