//! Working inside other network namespaces.
//!
//! A thread enters a namespace with setns(2), works, and returns to the one it came from. When
//! returning fails the thread must not be used any more: it says so by [`Home::lost`].

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
};

use nix::sched::{CloneFlags, setns};

use crate::desired::Netns;

/// Opens the namespace's file. ENOENT: there is none; ESTALE: the path names something else now.
pub(super) fn open(netns: &Netns) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        // Whatever stands there by now: opening it must not wait.
        .custom_flags(libc::O_NONBLOCK)
        .open(&netns.path)?;
    let metadata = file.metadata()?;
    if (metadata.dev(), metadata.ino()) != (netns.device, netns.inode) {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    Ok(file)
}

/// The network namespace a thread belongs to.
#[derive(Debug)]
pub(super) struct Home {
    file: File,
    lost: bool,
}

impl Home {
    /// The calling thread's.
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/thread-self/ns/net")?,
            lost: false,
        })
    }

    /// Another handle on the same namespace.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            lost: false,
        })
    }

    /// The thread could not return: it stands in another namespace and has to end.
    pub(super) fn lost(&self) -> bool {
        self.lost
    }

    /// Runs `work` inside `namespace`.
    pub(super) fn inside<T>(
        &mut self,
        namespace: &File,
        work: impl FnOnce() -> T,
    ) -> io::Result<T> {
        if self.lost {
            return Err(io::Error::other("the thread could not leave a namespace"));
        }
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        if setns(&self.file, CloneFlags::CLONE_NEWNET).is_err() {
            tracing::error!("cannot return to the host's network namespace");
            self.lost = true;
        }
        Ok(result)
    }
}
