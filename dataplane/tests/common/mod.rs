//! Private network namespaces for tests. Each test runs in one of its own, on a thread of its own,
//! and everything is gone with it, also when it fails.

#![allow(dead_code, clippy::unwrap_used)]

pub mod ops;

use std::{
    future::Future,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use dataplane::desired::Netns;
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a fresh namespace that stands for the host's.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2);
    on_a_host_with(runtime, test);
}

/// The same with all tasks on the thread of the test: while it blocks, nothing is read.
pub fn on_one_thread<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    on_a_host_with(tokio::runtime::Builder::new_current_thread(), test);
}

fn on_a_host_with<F: Future<Output = ()>>(
    mut runtime: tokio::runtime::Builder,
    test: impl FnOnce() -> F + Send + 'static,
) {
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the driver need root");
        ip("link set lo up");
        // Its threads are started by this one, and so belong to the same namespace.
        runtime.enable_all().build().unwrap().block_on(test());
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A workload's namespace; deleted when dropped.
pub struct Workload {
    name: String,
}

impl Workload {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "linux-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        ip(&format!("netns add {name}"));
        Self { name }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub fn netns(&self) -> Netns {
        let path = self.path();
        let metadata = std::fs::metadata(&path).unwrap();
        Netns {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    pub fn read(&self, file: &str) -> String {
        run("ip", &format!("netns exec {} cat {file}", self.name))
            .trim()
            .to_owned()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output();
    }
}

/// Waits until `check` gives something; fails with what it said last.
pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match check() {
            Ok(value) => return value,
            Err(state) => assert!(Instant::now() < deadline, "{what}: {state}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
