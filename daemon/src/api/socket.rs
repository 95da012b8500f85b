//! The Unix socket of the API: made with mode 0660 and group `agentd`, and never taken away from an
//! agent that still listens on it.

use std::{
    io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Group, chown},
};

/// Group whose members may use the API.
const GROUP: &str = "agentd";

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "[api] socket = {path:?}: another agentd answers there; stop it first, or choose another path"
    )]
    InUse { path: PathBuf },
    #[error(
        "[api] socket = {path:?}: something that is no socket stands there; move it away, or choose another path"
    )]
    NoSocket { path: PathBuf },
    #[error("[api] socket = {path:?}: {what}: {source}")]
    Io {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
}

/// A listening socket; its file is removed on drop.
#[derive(Debug)]
pub struct Socket {
    pub listener: tokio::net::UnixListener,
    pub guard: SocketFile,
}

/// Removes the file when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whether it was there or not does not matter any more.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `path`. The directory is made when missing. A socket file on which nobody answers is
/// what a killed agent leaves: it is replaced.
///
/// Call it after the lock on the state directory was taken and before other threads make files:
/// the umask of the process is narrowed for a moment.
pub fn bind(path: &Path) -> Result<Socket, SocketError> {
    let error = |what| {
        let path = path.to_owned();
        move |source| SocketError::Io { path, what, source }
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(error("the directory cannot be made"))?;
    }
    remove_stale(path)?;
    // Nobody may connect before mode and group are right.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(path);
    umask(before);
    let listener = bound.map_err(error("cannot listen"))?;
    let guard = SocketFile(path.to_owned());
    if let Ok(Some(group)) = Group::from_name(GROUP)
        && let Err(errno) = chown(path, None, Some(group.gid))
    {
        tracing::warn!(%errno, socket = %path.display(), "the socket's group cannot be set");
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(error("its mode cannot be set"))?;
    listener
        .set_nonblocking(true)
        .map_err(error("cannot be made non-blocking"))?;
    let listener = tokio::net::UnixListener::from_std(listener)
        .map_err(error("cannot be given to the runtime"))?;
    Ok(Socket { listener, guard })
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::Io {
                path: path.to_owned(),
                what: "cannot be looked at",
                source,
            });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NoSocket {
            path: path.to_owned(),
        });
    }
    match StdStream::connect(path) {
        Ok(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| SocketError::Io {
                path: path.to_owned(),
                what: "the socket file of an earlier run cannot be removed",
                source,
            })
        }
        Err(source) => Err(SocketError::Io {
            path: path.to_owned(),
            what: "cannot find out whether an agent listens there",
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn socket_has_mode_0660_and_goes_away_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agentd.sock");
        let socket = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agentd.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn socket_of_a_live_agent_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agentd.sock");
        let _first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
    }

    #[tokio::test]
    async fn file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agentd.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NoSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
