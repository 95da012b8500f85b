//! Cleans up after an owner that was killed.
//!
//! A shell in a session of its own waits at a pipe. The owner of the lab either writes a word into
//! it ("all is clean") or dies, which closes the pipe: then the shell kills what runs in the lab's
//! namespaces, deletes them and removes the lab's directory.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

const SCRIPT: &str = r#"
read -r word && exit 0
for path in /run/netns/"$1"-*; do
    name=${path##*/}
    for attempt in 1 2 3; do
        pids=$(ip netns pids "$name" 2>/dev/null)
        [ -z "$pids" ] || kill -KILL $pids 2>/dev/null
    done
    ip netns delete "$name" 2>/dev/null
done
rm -rf "$2"
"#;

#[derive(Debug)]
pub(super) struct Reaper(Child);

impl Reaper {
    pub(super) fn start(prefix: &str, directory: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "lab-reaper", prefix])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec only the system call setsid is made. In a session of its
        // own the shell survives a signal to the owner's process group.
        unsafe {
            command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
        }
        command.spawn().map(Self).context("cannot start sh")
    }

    /// The lab is gone, or is meant to stay: there is nothing to clean up.
    pub(super) fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"clean\n");
        }
        let _ = self.0.wait();
    }
}

/// Does the cleaning now, for a lab that its owner let go.
pub(super) fn reap(prefix: &str, directory: &Path) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", SCRIPT, "lab-reaper", prefix])
        .arg(directory)
        .stdin(Stdio::null())
        .status()
        .context("cannot start sh")?;
    ensure!(status.success(), "cleaning up {prefix}: {status}");
    Ok(())
}
