//! Workloads attached by CNI plugins, as container runtimes do it: one process for each call, which
//! starts the plugin for addresses as another.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::attach::Times;
use crate::lab::Lab;
use crate::lab::netns::Netns;

/// Where Debian's package containernetworking-plugins puts them.
pub const PLUGINS: &str = "/usr/lib/cni";

/// Adds a workload in each namespace with `ptp` or `bridge` and `host-local`, by so many callers at
/// once, then deletes them.
pub fn run(
    lab: &Lab,
    plugin: &str,
    host: &Netns,
    namespaces: &[Netns],
    callers: usize,
) -> Result<(Times, Times)> {
    let data = lab.directory().join(format!("cni-{plugin}-{callers}"));
    std::fs::create_dir_all(&data)?;
    let special = match plugin {
        "bridge" => r#","bridge":"bcni0","isGateway":true"#,
        _ => "",
    };
    let config = format!(
        r#"{{"cniVersion":"0.4.0","name":"bench","type":"{plugin}","mtu":1450,"ipMasq":false{special},
        "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.100.0.0/16"}}]],
        "routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#,
        data.display()
    );
    host.show("sysctl -qw net.ipv4.ip_forward=1")?;
    let add = phase("ADD", plugin, &config, host, namespaces, callers)?;
    let delete = phase("DEL", plugin, &config, host, namespaces, callers)?;
    Ok((add, delete))
}

fn phase(
    command: &str,
    plugin: &str,
    config: &str,
    host: &Netns,
    namespaces: &[Netns],
    callers: usize,
) -> Result<Times> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let caller = || -> Result<Vec<_>> {
        host.enter(|| {
            let mut each = Vec::new();
            while let Some(namespace) = namespaces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                call(command, plugin, config, namespace)?;
                each.push(start.elapsed());
            }
            Ok(each)
        })?
    };
    let mut each = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
        for thread in threads {
            each.extend(thread.join().ok().context("a caller panicked")??);
        }
        Ok(())
    })?;
    Ok(Times {
        each,
        all: start.elapsed(),
    })
}

fn call(command: &str, plugin: &str, config: &str, namespace: &Netns) -> Result<()> {
    let mut child = Command::new(Path::new(PLUGINS).join(plugin))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", namespace.name())
        .env("CNI_NETNS", namespace.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(PLUGINS)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(config.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        bail!("{plugin} {command}: {said}");
    }
    Ok(())
}
