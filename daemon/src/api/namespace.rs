//! Finds and identifies the network namespace that a caller named.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use dataplane::desired::Netns;
use nix::{libc, sys::statfs::statfs};

use crate::node::{Error, spec::NamespaceName};

/// File system type of namespace files (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// linux/nsfs.h: `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Identifies the namespace. Blocks for as long as the file system takes.
pub fn find(name: &NamespaceName) -> Result<Netns, Error> {
    let path = name.file();
    let field = match name {
        NamespaceName::Path(_) => "netns",
        NamespaceName::Pid(_) => "pid",
    };
    let not_found = |source: io::Error| Error::NamespaceNotFound {
        name: name.to_string(),
        text: match source.kind() {
            io::ErrorKind::NotFound => "it does not exist".to_owned(),
            _ => source.to_string(),
        },
    };
    // Asked before opening: opening a FIFO or a device could block or do something.
    let kind = statfs(&path).map_err(|errno| not_found(errno.into()))?;
    let no_namespace = || {
        Error::invalid(
            field,
            format!("names {name}, which is no network namespace"),
        )
    };
    if kind.filesystem_type().0 as i64 != NSFS_MAGIC {
        return Err(no_namespace());
    }
    let file = open(&path).map_err(not_found)?;
    if namespace_type(&file) != Some(libc::CLONE_NEWNET) {
        return Err(no_namespace());
    }
    let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino()));
    let (device, inode) = identity(&file).map_err(not_found)?;
    let own = open(Path::new("/proc/self/ns/net")).and_then(|file| identity(&file));
    if own.is_ok_and(|own| own == (device, inode)) {
        return Err(Error::invalid(
            field,
            format!("names {name}, which is the namespace agentd itself runs in"),
        ));
    }
    Ok(Netns {
        path,
        device,
        inode,
    })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// The CLONE_NEW* constant of a namespace file.
fn namespace_type(file: &File) -> Option<libc::c_int> {
    // SAFETY: the descriptor is open for the duration of the call, and the request takes no
    // argument and writes nothing.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn missing_path_is_not_found() {
        let name = NamespaceName::path("/run/netns/there-is-no-such-thing").unwrap();
        let error = find(&name).unwrap_err();
        assert!(matches!(error, Error::NamespaceNotFound { .. }), "{error}");
        assert!(error.to_string().contains("does not exist"), "{error}");
    }

    #[test]
    fn missing_process_is_not_found() {
        let error = find(&NamespaceName::pid(4_194_304).unwrap()).unwrap_err();
        assert!(matches!(error, Error::NamespaceNotFound { .. }), "{error}");
    }

    #[test]
    fn plain_file_and_other_namespace_are_refused() {
        for path in ["/etc/passwd", "/dev/null", "/proc/self/ns/mnt"] {
            let error = find(&NamespaceName::path(path).unwrap()).unwrap_err();
            assert!(
                matches!(&error, Error::Invalid { field, .. } if field == "netns"),
                "{path}: {error}"
            );
        }
    }

    #[test]
    fn own_namespace_is_refused() {
        let error = find(&NamespaceName::pid(std::process::id()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("itself"), "{error}");
    }
}
