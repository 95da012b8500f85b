//! OpenBGPD: a parent with three children, and `bgpctl`.
//!
//! The children change their root to the home of the user `_openbgpd`, which on a machine without
//! systemd does not exist. In a mount namespace of its own the daemon sees a user whose home is in
//! the lab's directory. The children of a killed parent end by themselves, a moment later; a new
//! parent could be refused the port in between, so they are waited for.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::{AddPath, Base, Kind, Path, Router, RouterConfig, address, label, sorted, strings};

const HOME: &str = ":/run/openbgpd:";
/// More networks than this are a set.
const MANY: usize = 1000;

#[derive(Debug)]
pub(super) struct Openbgpd(Base);

impl Openbgpd {
    pub(super) fn new(base: Base) -> Result<Self> {
        let home = base.file("-home");
        std::fs::create_dir_all(&home)?;
        let users = std::fs::read_to_string("/etc/passwd")?;
        base.write("-passwd", &users.replace(HOME, &format!(":{home}:")))?;
        let socket = base.file(".sock");
        for command in ["show neighbor", "show rib detail"] {
            let mut words = vec!["bgpctl", "-s", &socket];
            words.extend(command.split(' '));
            base.lab.dump_command(&base.namespace, words);
        }
        Ok(Self(base))
    }

    fn bgpctl(&self, command: &str) -> Result<String> {
        let socket = self.0.file(".sock");
        let mut words = vec!["bgpctl", "-j", "-s", &socket];
        words.extend(command.split(' '));
        self.0.output(&words)
    }

    fn json(&self, command: &str) -> Result<Value> {
        let text = self.bgpctl(command)?;
        serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
    }

    fn neighbor(&self, neighbor: IpAddr) -> Result<Value> {
        Ok(self.json(&format!("show neighbor {neighbor}"))?["neighbors"][0].take())
    }

    /// Arguments of `network add`.
    fn colors(&self, prefix: IpNet) -> String {
        let asn = self.0.config.asn;
        if self
            .0
            .config
            .neighbors
            .iter()
            .any(|n| n.colored.contains(&prefix))
        {
            format!(" community {asn}:7 large-community {asn}:1:2")
        } else {
            String::new()
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let _ = self.write_config(&mut text);
        text
    }

    fn write_config(&self, text: &mut String) -> std::fmt::Result {
        let config = &self.0.config;
        writeln!(
            text,
            "AS {}\nrouter-id {}\nconnect-retry 1\nlog updates\nsocket \"{}\"",
            config.asn,
            config.router_id,
            self.0.file(".sock")
        )?;
        // A statement for each of many would take its parser minutes; a set is quick.
        let many = config.networks.len() > MANY;
        if many {
            text.push_str("prefix-set many {\n");
            for network in &config.networks {
                writeln!(text, "\t{network}")?;
            }
            text.push_str("}\nnetwork prefix-set many\n");
        }
        for network in config.networks.iter().take(if many { 0 } else { MANY }) {
            let colors = self.colors(*network);
            if colors.is_empty() {
                writeln!(text, "network {network}")?;
            } else {
                let asn = config.asn;
                writeln!(
                    text,
                    "network {network} set {{ community {asn}:7 large-community {asn}:1:2 }}"
                )?;
            }
        }
        for (index, neighbor) in config.neighbors.iter().enumerate() {
            let yes = |on: bool| if on { "unicast" } else { "none" };
            writeln!(
                text,
                "neighbor {} {{\n\tremote-as {}\n\tdescr {}\n\tlocal-address {}\n\tholdtime {}\n\
                 \tannounce IPv4 {}\n\tannounce IPv6 {}\n\tannounce restart {}\n\
                 \tannounce enhanced refresh yes",
                neighbor.address,
                neighbor.asn,
                label(index),
                neighbor.local,
                neighbor.hold_time,
                yes(neighbor.ipv4),
                yes(neighbor.ipv6),
                if neighbor.graceful_restart.is_some() {
                    "yes"
                } else {
                    "no"
                }
            )?;
            if let Some(password) = &neighbor.password {
                writeln!(text, "\ttcp md5sig password {password}")?;
            }
            if neighbor.passive {
                text.push_str("\tpassive\n");
            }
            if neighbor.reflector_client {
                text.push_str("\troute-reflector\n");
            }
            if let Some(most) = neighbor.max_prefixes {
                writeln!(text, "\tmax-prefix {most}")?;
            }
            if let Some(role) = neighbor.role {
                let role = match role {
                    "route-server" => "rs",
                    "route-server-client" => "rs-client",
                    other => other,
                };
                writeln!(text, "\tannounce policy {role}")?;
            }
            if neighbor.ttl_security {
                text.push_str("\tttl-security yes\n");
            }
            match neighbor.add_path {
                AddPath::Off => {}
                AddPath::Receive => text.push_str("\tannounce add-path recv yes\n"),
                AddPath::Send => text.push_str("\tannounce add-path send all\n"),
            }
            text.push_str("}\n");
        }
        text.push_str("allow from any\nallow to any\n");
        Ok(())
    }
}

impl Router for Openbgpd {
    fn kind(&self) -> Kind {
        Kind::Openbgpd
    }

    fn config(&mut self) -> &mut RouterConfig {
        &mut self.0.config
    }

    fn start(&self) -> Result<()> {
        let file = self.0.write(".conf", &self.text())?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        let script = "mount --bind \"$1\" /etc/passwd && exec bgpd -d -v -f \"$2\"";
        let users = self.0.file("-passwd");
        self.0.spawn(
            &self.0.name,
            &[
                "unshare", "--mount", "sh", "-c", script, "sh", &users, &file,
            ],
        )?;
        self.0.wait_ready(|| self.bgpctl("show neighbor").map(drop))
    }

    fn kill(&self) {
        self.0.kill();
        // Its children have the connections and the port.
        let _ = self
            .0
            .lab
            .wait_until("the children of bgpd have ended", super::PATIENCE, || {
                self.0
                    .output(&["ss", "-Htln", "sport", "=", ":179"])
                    .is_ok_and(|text| text.is_empty())
            });
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let pids = self
            .0
            .output(&["ip", "netns", "pids", self.0.namespace.name()])?;
        for pid in pids.split_whitespace() {
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if command.trim() == "bgpd" {
                self.0.output(&["kill", signal, pid])?;
            }
        }
        Ok(())
    }

    fn is_established(&self, neighbor: IpAddr) -> Result<bool> {
        Ok(self.neighbor(neighbor)?["state"] == "Established")
    }

    fn paths(&self, prefix: IpNet) -> Result<Vec<Path>> {
        let json = self.json(&format!("show rib detail {prefix}"))?;
        let paths = json["rib"].as_array().cloned().unwrap_or_default();
        // The answer is the longest match.
        let exact = paths
            .iter()
            .filter(|path| path["prefix"] == prefix.to_string());
        Ok(exact.map(parse).collect())
    }

    fn received(&self, neighbor: IpAddr) -> Result<usize> {
        let count = &self.neighbor(neighbor)?["stats"]["prefixes"]["received"];
        Ok(usize::try_from(count.as_u64().context("no count")?)?)
    }

    fn announce(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.push(prefix);
        self.bgpctl(&format!("network add {prefix}{}", self.colors(prefix)))
            .map(drop)
    }

    fn withdraw(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.retain(|network| *network != prefix);
        self.bgpctl(&format!("network delete {prefix}")).map(drop)
    }

    fn refresh(&self, neighbor: IpAddr) -> Result<()> {
        self.bgpctl(&format!("neighbor {neighbor} refresh"))
            .map(drop)
    }

    fn shutdown(&self, neighbor: IpAddr, text: &str) -> Result<()> {
        let (socket, address) = (self.0.file(".sock"), neighbor.to_string());
        self.0
            .output(&["bgpctl", "-s", &socket, "neighbor", &address, "down", text])
            .map(drop)
    }

    fn enable(&self, neighbor: IpAddr) -> Result<()> {
        self.bgpctl(&format!("neighbor {neighbor} up")).map(drop)
    }

    fn reset(&self, neighbor: IpAddr) -> Result<()> {
        self.bgpctl(&format!("neighbor {neighbor} clear")).map(drop)
    }

    fn report(&self, neighbor: IpAddr) -> Result<String> {
        let json = self.bgpctl(&format!("show neighbor {neighbor}"))?;
        Ok(json + &self.0.log(&self.0.name))
    }
}

/// The value of a key, however deep.
fn find<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn parse(path: &Value) -> Path {
    let list = |key: &str| find(path, key).map(strings).unwrap_or_default();
    Path {
        from: address(&path["neighbor"]["remote_addr"]),
        next_hops: address(&path["exit_nexthop"]).into_iter().collect(),
        as_path: path["aspath"].as_str().unwrap_or_default().to_owned(),
        communities: sorted(list("communities")),
        large_communities: sorted(list("large_communities")),
        originator: find(path, "originator").and_then(|id| id.as_str()?.parse().ok()),
        cluster_list: list("cluster_list")
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect(),
        stale: path["stale"] == true,
    }
}
