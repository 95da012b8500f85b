//! One program inside a namespace, with its output in a log file.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::lock;
use super::netns::Netns;

/// A started program. It is killed with the lab, and dies with the thread that started it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: i32,
    log: PathBuf,
    // A mutex: the lab's end and the test both wait for the child.
    child: Mutex<Child>,
}

pub(super) struct Spawn<'a> {
    pub namespace: &'a Netns,
    pub name: &'a str,
    pub command: &'a [OsString],
    pub log: &'a Path,
    pub environment: &'a [(&'a str, &'a str)],
    pub outlive_owner: bool,
}

impl Process {
    pub(super) fn spawn(spawn: &Spawn<'_>) -> Result<Self> {
        let (program, arguments) = spawn.command.split_first().context("empty command")?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(spawn.log)
            .with_context(|| format!("cannot open {}", spawn.log.display()))?;
        let mut command = spawn.namespace.command(program);
        command
            .args(arguments)
            .envs(spawn.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Control-C is for the owner of the lab, who ends the lab in order.
            .process_group(0);
        if !spawn.outlive_owner {
            // SAFETY: between fork and exec only the system call prctl is made.
            unsafe {
                command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
            }
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            name: spawn.name.to_owned(),
            pid: i32::try_from(child.id()).context("pid")?,
            log: spawn.log.to_owned(),
            child: Mutex::new(child),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// What it wrote so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal, unless the program has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = lock(&self.child);
        if child.try_wait()?.is_some() {
            bail!("{} has ended", self.name);
        }
        // The child was not waited for, so its pid cannot belong to another process.
        nix::sys::signal::kill(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits for its end.
    pub fn wait(&self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = lock(&self.child).try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} still runs after {patience:?}; its output:\n{}",
                    self.name,
                    self.log_text()
                );
            }
            std::thread::sleep(super::wait::INTERVAL);
        }
    }

    /// Asks it to end with a signal, and waits for that.
    pub fn end(&self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(patience)
    }
}
