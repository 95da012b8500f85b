//! ExaBGP: an injector. It has no table; a helper process of its own writes down every event, and
//! reads commands out of a FIFO.
//!
//! What a neighbor announced is put together from the events since its session came up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::{AddPath, Base, Kind, Path, Router, RouterConfig, address, sorted};

#[derive(Debug)]
pub(super) struct Exabgp(Base);

impl Exabgp {
    pub(super) fn new(base: Base) -> Result<Self> {
        let fifo = base.file("-commands");
        nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU)?;
        // The shell keeps the pipes to ExaBGP open, which takes their end for its own.
        let script = base.write(
            "-helper.sh",
            &format!(
                "#!/bin/sh\ncat <>{fifo} &\ncat >>{}\n",
                base.file("-events")
            ),
        )?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let events = base.file("-events");
        base.lab
            .dump_command(&base.namespace, ["tail", "-n", "40", &events]);
        Ok(Self(base))
    }

    fn command(&self, command: &str) -> Result<()> {
        // Reading too, so that opening waits for nobody.
        let mut fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.0.file("-commands"))?;
        writeln!(fifo, "{command}").context("ExaBGP reads no commands")
    }

    fn route(&self, prefix: IpNet) -> String {
        let mut text = format!("route {prefix} next-hop {}", self.0.next_hop(prefix));
        let asn = self.0.config.asn;
        if self
            .0
            .config
            .neighbors
            .iter()
            .any(|n| n.colored.contains(&prefix))
        {
            let _ = write!(text, " community [ {asn}:7 ] large-community [ {asn}:1:2 ]");
        }
        text
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
            "process helper {{ run {}; encoder json; }}",
            self.0.file("-helper.sh")
        )?;
        for neighbor in &config.neighbors {
            writeln!(
                text,
                "neighbor {} {{ router-id {}; local-address {}; local-as {}; peer-as {}; hold-time {};",
                neighbor.address,
                config.router_id,
                neighbor.local,
                config.asn,
                neighbor.asn,
                neighbor.hold_time
            )?;
            if let Some(password) = &neighbor.password {
                writeln!(text, " md5-password \"{password}\"; md5-base64 false;")?;
            }
            if neighbor.passive {
                text.push_str(" passive true; listen 179;\n");
            }
            if neighbor.ttl_security {
                text.push_str(" outgoing-ttl 255; incoming-ttl 255;\n");
            }
            text.push_str(" capability { route-refresh; extended-message enable;");
            if let Some(time) = neighbor.graceful_restart {
                write!(text, " graceful-restart {time};")?;
            }
            match neighbor.add_path {
                AddPath::Off => {}
                AddPath::Receive => text.push_str(" add-path receive;"),
                AddPath::Send => text.push_str(" add-path send;"),
            }
            text.push_str(" }\n family {");
            for (family, on) in [("ipv4", neighbor.ipv4), ("ipv6", neighbor.ipv6)] {
                if on {
                    write!(text, " {family} unicast;")?;
                }
            }
            text.push_str(
                " }\n api { processes [ helper ]; neighbor-changes; \
                 receive { parsed; update; open; } }\n static {\n",
            );
            for network in &config.networks {
                if if network.addr().is_ipv4() {
                    neighbor.ipv4
                } else {
                    neighbor.ipv6
                } {
                    writeln!(text, "  {};", self.route(*network))?;
                }
            }
            text.push_str(" }\n}\n");
        }
        Ok(())
    }

    /// Events of this neighbor's current session; `None` when it is down.
    fn session(&self, neighbor: IpAddr) -> Result<Option<Vec<Value>>> {
        let text = std::fs::read_to_string(self.0.file("-events")).unwrap_or_default();
        let mark = format!("\"peer\": \"{neighbor}\"");
        let mut events = None;
        for line in text.lines().filter(|line| line.contains(&mark)) {
            let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if event["type"] == "state" {
                events = (event["neighbor"]["state"] == "up").then(Vec::new);
            } else if let Some(events) = &mut events {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// What the neighbor has announced; each path with its identifier.
    fn table(&self, neighbor: IpAddr) -> Result<BTreeMap<(IpNet, String), Path>> {
        let mut table = BTreeMap::new();
        for event in self.session(neighbor)?.unwrap_or_default() {
            let update = &event["neighbor"]["message"]["update"];
            for (_, list) in update["withdraw"].as_object().into_iter().flatten() {
                for entry in list.as_array().into_iter().flatten() {
                    table.remove(&key(entry)?);
                }
            }
            for (_, hops) in update["announce"].as_object().into_iter().flatten() {
                for (hop, list) in hops.as_object().into_iter().flatten() {
                    for entry in list.as_array().into_iter().flatten() {
                        let path = parse(neighbor, hop, &update["attribute"]);
                        table.insert(key(entry)?, path);
                    }
                }
            }
        }
        Ok(table)
    }
}

fn key(entry: &Value) -> Result<(IpNet, String)> {
    let text = entry["nlri"].as_str().with_context(|| entry.to_string())?;
    Ok((text.parse()?, entry["path-information"].to_string()))
}

impl Router for Exabgp {
    fn kind(&self) -> Kind {
        Kind::Exabgp
    }

    fn config(&mut self) -> &mut RouterConfig {
        &mut self.0.config
    }

    fn start(&self) -> Result<()> {
        let file = self.0.write(".conf", &self.text())?;
        let _ = std::fs::remove_file(self.0.file("-events"));
        self.0.spawn(
            &self.0.name,
            &[
                "env",
                "exabgp.daemon.user=root",
                "exabgp.daemon.drop=false",
                "exabgp.api.cli=false",
                "exabgp.log.destination=stdout",
                "exabgp.tcp.delay=0",
                "exabgp",
                &file,
            ],
        )?;
        self.0.wait_ready(|| {
            let log = self.0.log(&self.0.name);
            ensure!(log.contains("loaded new configuration"), "{log}");
            Ok(())
        })
    }

    fn kill(&self) {
        self.0.kill();
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        self.0.freeze(frozen)
    }

    fn is_established(&self, neighbor: IpAddr) -> Result<bool> {
        Ok(self.session(neighbor)?.is_some())
    }

    fn paths(&self, prefix: IpNet) -> Result<Vec<Path>> {
        let mut paths = Vec::new();
        for neighbor in &self.0.config.neighbors {
            let table = self.table(neighbor.address)?;
            let exact = table.into_iter().filter(|((net, _), _)| *net == prefix);
            paths.extend(exact.map(|(_, path)| path));
        }
        Ok(paths)
    }

    fn received(&self, neighbor: IpAddr) -> Result<usize> {
        let events = std::fs::read_to_string(self.0.file("-events")).unwrap_or_default();
        // A large table is counted without a look at it.
        if events.len() > 1_000_000 && !events.contains("\"withdraw\"") {
            return Ok(events.matches("\"nlri\"").count());
        }
        Ok(self.table(neighbor)?.len())
    }

    fn announce(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.push(prefix);
        self.command(&format!("announce {}", self.route(prefix)))
    }

    fn withdraw(&mut self, prefix: IpNet) -> Result<()> {
        let route = self.route(prefix);
        self.0.config.networks.retain(|network| *network != prefix);
        self.command(&format!("withdraw {route}"))
    }

    fn refresh(&self, neighbor: IpAddr) -> Result<()> {
        let family = if neighbor.is_ipv4() { "ipv4" } else { "ipv6" };
        self.command(&format!("announce route-refresh {family} unicast"))
    }

    fn shutdown(&self, neighbor: IpAddr, _text: &str) -> Result<()> {
        self.0.neighbor(neighbor)?;
        self.command(&format!("neighbor {neighbor} teardown 2"))
    }

    fn enable(&self, neighbor: IpAddr) -> Result<()> {
        self.0.neighbor(neighbor).map(drop)
    }

    fn reset(&self, neighbor: IpAddr) -> Result<()> {
        self.command(&format!("neighbor {neighbor} teardown 4"))
    }

    fn report(&self, neighbor: IpAddr) -> Result<String> {
        let text = std::fs::read_to_string(self.0.file("-events")).unwrap_or_default();
        let mark = format!("\"peer\": \"{neighbor}\"");
        let lines: Vec<_> = text.lines().filter(|line| line.contains(&mark)).collect();
        Ok(lines.join("\n") + &self.0.log(&self.0.name))
    }
}

fn parse(neighbor: IpAddr, hop: &str, attributes: &Value) -> Path {
    let list = |key: &str| attributes[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), String::from)
    };
    let groups = |key: &str| {
        let parts = list(key);
        let join = |part: &Value| {
            let numbers = part.as_array().into_iter().flatten().map(text);
            numbers.collect::<Vec<_>>().join(":")
        };
        sorted(parts.iter().map(join).collect())
    };
    Path {
        from: Some(neighbor),
        next_hops: hop
            .split_whitespace()
            .filter_map(|hop| hop.parse().ok())
            // Of a global and a link-local next hop it shows only the second.
            .filter(|hop| !matches!(hop, IpAddr::V6(hop) if hop.is_unicast_link_local()))
            .collect(),
        as_path: list("as-path")
            .iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(" "),
        communities: groups("community"),
        large_communities: groups("large-community"),
        originator: address(&attributes["originator-id"]).and_then(|id| match id {
            IpAddr::V4(id) => Some(id),
            IpAddr::V6(_) => None,
        }),
        cluster_list: list("cluster-list")
            .iter()
            .filter_map(|id| id.as_str()?.parse().ok())
            .collect(),
        stale: false,
    }
}
