//! Witnesses: `ip monitor` for writes to the kernel, `tcpdump` for messages between peers.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::netns::Netns;
use super::process::Process;
use super::{Lab, PATIENCE};

/// `ip monitor` in a namespace.
#[derive(Debug)]
pub struct KernelMonitor(Arc<Process>);

impl KernelMonitor {
    /// Starts it and waits until it is subscribed, so that nothing later is missed.
    pub fn start(lab: &Lab, namespace: &Netns, objects: &[&str]) -> Result<Self> {
        let name = format!("monitor-{}", namespace.name());
        let mut command = vec!["ip", "-timestamp", "monitor"];
        command.extend(objects);
        let process = lab.spawn(namespace, &name, command)?;
        lab.wait_until("ip monitor is subscribed", PATIENCE, || {
            is_subscribed(process.pid())
        })?;
        Ok(Self(process))
    }

    /// Changes so far, one per line, without the lines of time stamps.
    pub fn changes(&self) -> Vec<String> {
        self.0
            .log_text()
            .lines()
            .filter(|line| !line.starts_with("Timestamp:") && !line.trim().is_empty())
            .map(String::from)
            .collect()
    }
}

/// Whether a process has a netlink socket that listens to any group.
fn is_subscribed(pid: i32) -> bool {
    // Columns: sk Eth Pid Groups …; the port of a process's first socket is its pid.
    let Ok(table) = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")) else {
        return false;
    };
    table.lines().skip(1).any(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        match columns.as_slice() {
            [_, _, port, groups, ..] => {
                *port == pid.to_string() && groups.chars().any(|c| c != '0')
            }
            _ => false,
        }
    })
}

/// `tcpdump` of BGP on an interface.
#[derive(Debug)]
pub struct BgpCapture(Arc<Process>);

impl BgpCapture {
    /// Starts it and waits until it listens.
    pub fn start(lab: &Lab, namespace: &Netns, interface: &str) -> Result<Self> {
        let name = format!("tcpdump-{}", namespace.name());
        let process = lab.spawn(
            namespace,
            &name,
            [
                "tcpdump",
                "--immediate-mode",
                "-l",
                "-n",
                "-v",
                "-i",
                interface,
                "tcp port 179",
            ],
        )?;
        lab.wait_until("tcpdump listens", PATIENCE, || {
            process.log_text().contains("listening on")
        })
        .context("tcpdump")?;
        Ok(Self(process))
    }

    /// Number of messages of a kind, such as "Update Message" or "Keepalive Message".
    pub fn count(&self, kind: &str) -> usize {
        self.0.log_text().matches(kind).count()
    }

    pub fn text(&self) -> String {
        self.0.log_text()
    }
}
