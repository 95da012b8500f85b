//! One named network namespace: made, entered, and deleted.
//!
//! Programs are started by `setns` in the child, and not through `ip netns exec`, which would
//! also give them a mount namespace of their own in which later namespaces stay unseen.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A handle on a namespace; dropping it does not delete the namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Makes the namespace with `ip netns add`.
    pub(super) fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let path = PathBuf::from("/run/netns").join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            name: name.into(),
            file: Arc::new(file),
        })
    }

    /// The same without a program, in half a millisecond: for thousands of them. The loopback stays
    /// down, and the caller removes it with [`Netns::remove_quickly`].
    pub fn create_quickly(name: &str) -> Result<Self> {
        let path = PathBuf::from("/run/netns").join(name);
        File::create_new(&path).with_context(|| path.display().to_string())?;
        let target = path.clone();
        // The namespace lives on in the mount when its thread has ended.
        thread::spawn(move || -> Result<()> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            nix::mount::mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                None::<&str>,
                nix::mount::MsFlags::MS_BIND,
                None::<&str>,
            )?;
            Ok(())
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread of a new namespace panicked"))??;
        Ok(Self {
            name: name.into(),
            file: Arc::new(File::open(&path)?),
        })
    }

    /// Removes what [`Netns::create_quickly`] made.
    pub fn remove_quickly(&self) {
        let _ = nix::mount::umount2(&self.path(), nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(self.path());
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/run/netns/NAME`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&*self.name)
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec only the system call setns is made; it takes a file
        // descriptor that the closure keeps open.
        unsafe {
            command.pre_exec(move || Ok(setns(&*file, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// Runs a command to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails; the error holds both outputs.
    pub fn output<I, S>(&self, command: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut words = command.into_iter();
        let program = words.next().context("empty command")?;
        run(self.command(program).args(words))
    }

    /// Runs `ip` with these arguments.
    pub fn ip<I, S>(&self, arguments: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        run(self.command("ip").args(arguments)).map(drop)
    }

    /// The main routing table as `ip route` shows it where agentd's package is installed: with
    /// names for its route protocols. `family` is `-4` or `-6`.
    pub fn ip_route(&self, family: &str) -> Result<String> {
        // The names come from a file; a private mount puts ours in place.
        let names = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/iproute2/rt_protos.d");
        let mut command = self.command("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$1\" /etc/iproute2/rt_protos.d && exec ip \"$2\" route")
            .arg("sh")
            .arg(names)
            .arg(family);
        run(&mut command)
    }

    /// Standard output of a command given as one line, split at blanks.
    pub fn show(&self, line: &str) -> Result<String> {
        self.output(line.split_whitespace())
    }

    /// Calls a function on a thread inside the namespace: sockets opened there belong to it.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| -> Result<T> {
                    setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
                    Ok(body())
                })
                .join()
                .map_err(|_| anyhow::anyhow!("a thread inside {} panicked", self.name))?
        })
    }

    /// Kills what runs inside. Only programs of the lab can be inside a namespace of the lab.
    pub(super) fn kill_processes(&self) {
        let Ok(pids) = run(Command::new("ip").args(["netns", "pids", &self.name])) else {
            return;
        };
        for pid in pids.split_whitespace().filter_map(|p| p.parse().ok()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            if pid != nix::unistd::getpid() {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }

    pub(super) fn delete(&self) -> Result<()> {
        run(Command::new("ip").args(["netns", "delete", &self.name])).map(drop)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs a command to its end; standard output, or an error with everything it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{:?} {:?}: {}\n{}{}",
            command.get_program(),
            command.get_args().collect::<Vec<_>>(),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            stdout
        );
    }
    Ok(stdout)
}

/// Names of namespaces of this machine that begin with `prefix`.
pub fn names(prefix: &str) -> Vec<String> {
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
