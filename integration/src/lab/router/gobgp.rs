//! GoBGP: one process with a gRPC API on the loopback of its namespace, and `gobgp` to call that.
//!
//! Its configuration holds no routes: they are added through the API once it answers.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::{AddPath, Base, Kind, Path, Router, RouterConfig, address, sorted};

/// Lets nobody connect.
const DOOR: &str = "table inet gobgp { chain in { type filter hook input priority 0; \
                    tcp dport 179 drop; tcp sport 179 drop; }; }";

#[derive(Debug)]
pub(super) struct Gobgp(Base);

impl Gobgp {
    pub(super) fn new(base: Base) -> Self {
        for command in [
            "gobgp neighbor",
            "gobgp global rib",
            "gobgp global rib -a ipv6",
        ] {
            base.lab.dump_command(&base.namespace, command.split(' '));
        }
        Self(base)
    }

    fn gobgp(&self, command: &str) -> Result<String> {
        let mut words = vec!["gobgp"];
        words.extend(command.split(' '));
        self.0.output(&words)
    }

    fn json(&self, command: &str) -> Result<Value> {
        let text = self.gobgp(&format!("-j {command}"))?;
        serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
    }

    fn rib(&self, action: &str, prefix: IpNet) -> Result<()> {
        let family = family(prefix.addr());
        let hop = self.0.next_hop(prefix);
        let colors = self
            .0
            .config
            .neighbors
            .iter()
            .any(|n| n.colored.contains(&prefix));
        let asn = self.0.config.asn;
        let colors = if colors {
            format!(" community {asn}:7 large-community {asn}:1:2")
        } else {
            String::new()
        };
        self.gobgp(&format!(
            "global rib {action} -a {family} {prefix} origin igp nexthop {hop}{colors}"
        ))
        .map(drop)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let _ = write_config(&mut text, &self.0.config);
        text
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4" } else { "ipv6" }
}

fn write_config(text: &mut String, config: &RouterConfig) -> std::fmt::Result {
    writeln!(
        text,
        "[global.config]\nas = {}\nrouter-id = \"{}\"",
        config.asn, config.router_id
    )?;
    for neighbor in &config.neighbors {
        writeln!(
            text,
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {}",
            neighbor.address, neighbor.asn
        )?;
        if let Some(password) = &neighbor.password {
            writeln!(text, "auth-password = \"{password}\"")?;
        }
        writeln!(
            text,
            "[neighbors.transport.config]\nlocal-address = \"{}\"\npassive-mode = {}\n\
             [neighbors.timers.config]\nhold-time = {}\nkeepalive-interval = {}\n\
             connect-retry = 1\nidle-hold-time-after-reset = 1",
            neighbor.local,
            neighbor.passive,
            neighbor.hold_time,
            neighbor.hold_time / 3
        )?;
        if let Some(time) = neighbor.graceful_restart {
            writeln!(
                text,
                "[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = {time}\n\
                 notification-enabled = true\nlong-lived-enabled = {}",
                neighbor.long_lived.is_some()
            )?;
        }
        if neighbor.reflector_client {
            writeln!(
                text,
                "[neighbors.route-reflector.config]\nroute-reflector-client = true\n\
                 route-reflector-cluster-id = \"{}\"",
                config.router_id
            )?;
        }
        if neighbor.ttl_security {
            text.push_str("[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n");
        }
        match neighbor.add_path {
            AddPath::Off => {}
            AddPath::Receive => text.push_str("[neighbors.add-paths.config]\nreceive = true\n"),
            AddPath::Send => text.push_str("[neighbors.add-paths.config]\nsend-max = 8\n"),
        }
        for (family, on) in [("ipv4", neighbor.ipv4), ("ipv6", neighbor.ipv6)] {
            if !on {
                continue;
            }
            writeln!(
                text,
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}-unicast\""
            )?;
            if neighbor.graceful_restart.is_some() {
                text.push_str("[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n");
            }
            if let Some(time) = neighbor.long_lived {
                writeln!(
                    text,
                    "[neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true\n\
                     restart-time = {time}"
                )?;
            }
            if let Some(most) = neighbor.max_prefixes {
                writeln!(
                    text,
                    "[neighbors.afi-safis.prefix-limit.config]\nmax-prefixes = {most}"
                )?;
            }
        }
    }
    Ok(())
}

impl Router for Gobgp {
    fn kind(&self) -> Kind {
        Kind::Gobgp
    }

    fn config(&mut self) -> &mut RouterConfig {
        &mut self.0.config
    }

    fn start(&self) -> Result<()> {
        let file = self.0.write(".toml", &self.text())?;
        let mut command = vec![
            "gobgpd",
            "-f",
            &file,
            "--api-hosts",
            "127.0.0.1:50051",
            "--pprof-disable",
            "--log-plain",
        ];
        if self.0.was_killed() {
            // It tells its neighbors that it restarted.
            command.push("--graceful-restart");
        }
        // It would send End-of-RIB before the routes that the API gives it.
        self.0.output(&["nft", DOOR])?;
        self.0.spawn(&self.0.name, &command)?;
        // The API answers before the configuration was read.
        let last = self
            .0
            .config
            .neighbors
            .last()
            .map(|neighbor| neighbor.address);
        self.0.wait_ready(|| match last {
            Some(last) => self.gobgp(&format!("neighbor {last}")).map(drop),
            None => self.gobgp("global").map(drop),
        })?;
        let networks = &self.0.config.networks;
        if networks.len() > 1000 {
            // One call each would take minutes.
            let file = self.0.file(".mrt");
            std::fs::write(&file, mrt(&self.0.config, networks))?;
            self.gobgp(&format!("mrt inject global {file}"))?;
        } else {
            for network in networks {
                self.rib("add", *network)?;
            }
        }
        self.0.output(&["nft", "delete table inet gobgp"]).map(drop)
    }

    fn kill(&self) {
        self.0.kill();
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        self.0.freeze(frozen)
    }

    fn is_established(&self, neighbor: IpAddr) -> Result<bool> {
        Ok(self.json(&format!("neighbor {neighbor}"))?["state"]["session_state"] == 6)
    }

    fn paths(&self, prefix: IpNet) -> Result<Vec<Path>> {
        let family = family(prefix.addr());
        let Ok(json) = self.json(&format!("global rib {prefix} -a {family}")) else {
            // "network not in table"
            return Ok(Vec::new());
        };
        let paths = json[prefix.to_string()]
            .as_array()
            .cloned()
            .unwrap_or_default();
        Ok(paths.iter().map(parse).collect())
    }

    fn received(&self, neighbor: IpAddr) -> Result<usize> {
        let json = self.json(&format!("neighbor {neighbor}"))?;
        let families = json["afi_safis"].as_array().context("no families")?;
        let count = families
            .iter()
            .filter_map(|f| f["state"]["received"].as_u64())
            .sum::<u64>();
        Ok(usize::try_from(count)?)
    }

    fn announce(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.push(prefix);
        self.rib("add", prefix)
    }

    fn withdraw(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.retain(|network| *network != prefix);
        self.rib("del", prefix)
    }

    fn refresh(&self, neighbor: IpAddr) -> Result<()> {
        let family = family(neighbor);
        self.gobgp(&format!("neighbor {neighbor} softresetin -a {family}"))
            .map(drop)
    }

    fn shutdown(&self, neighbor: IpAddr, text: &str) -> Result<()> {
        let address = neighbor.to_string();
        self.0
            .output(&["gobgp", "neighbor", &address, "shutdown", "--reason", text])
            .map(drop)
    }

    fn enable(&self, neighbor: IpAddr) -> Result<()> {
        self.gobgp(&format!("neighbor {neighbor} enable")).map(drop)
    }

    fn reset(&self, neighbor: IpAddr) -> Result<()> {
        self.gobgp(&format!("neighbor {neighbor} reset")).map(drop)
    }

    fn report(&self, neighbor: IpAddr) -> Result<String> {
        Ok(self.gobgp(&format!("neighbor {neighbor}"))? + &self.0.log(&self.0.name))
    }
}

fn parse(path: &Value) -> Path {
    let mut out = Path {
        from: address(&path["neighbor-ip"]),
        stale: path["stale"] == true,
        ..Path::default()
    };
    for attribute in path["attrs"].as_array().into_iter().flatten() {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        match attribute["type"].as_u64() {
            Some(2) => {
                let segments = list(&attribute["as_paths"]);
                let numbers = segments.iter().flat_map(|segment| list(&segment["asns"]));
                let numbers: Vec<String> = numbers.map(|asn| asn.to_string()).collect();
                out.as_path = numbers.join(" ");
            }
            Some(3 | 14) => out.next_hops.extend(address(&attribute["nexthop"])),
            Some(8) => {
                let values = list(&attribute["communities"]);
                let values = values.iter().filter_map(Value::as_u64);
                out.communities = sorted(
                    values
                        .map(|v| format!("{}:{}", v >> 16, v & 0xffff))
                        .collect(),
                );
            }
            Some(9) => out.originator = attribute["value"].as_str().and_then(|id| id.parse().ok()),
            Some(10) => {
                let ids = list(&attribute["value"]);
                out.cluster_list = ids
                    .iter()
                    .filter_map(|id| id.as_str()?.parse().ok())
                    .collect();
            }
            Some(32) => {
                let values = list(&attribute["value"]);
                let text =
                    |v: &Value| format!("{}:{}:{}", v["ASN"], v["LocalData1"], v["LocalData2"]);
                out.large_communities = sorted(values.iter().map(text).collect());
            }
            _ => {}
        }
    }
    out
}

/// IPv4 networks as a table dump (RFC 6396 §4.3), each from a peer of one's own.
fn mrt(config: &RouterConfig, networks: &[IpNet]) -> Vec<u8> {
    let record = |out: &mut Vec<u8>, subtype: u16, body: &[u8]| {
        let length = u32::try_from(body.len()).expect("short");
        // Time stamp; type 13, TABLE_DUMP_V2.
        out.extend([0, 0, 0, 0, 0, 13]);
        out.extend(subtype.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(body);
    };
    let address = config.address.octets();
    let mut out = Vec::new();
    // PEER_INDEX_TABLE: collector, no view name, one IPv4 peer with a four-octet number.
    let asn = config.asn.to_be_bytes();
    let table = [&address[..], &[0, 0, 0, 1, 2], &address, &address, &asn].concat();
    record(&mut out, 1, &table);
    // ORIGIN, an empty AS_PATH, NEXT_HOP.
    let attributes = [&[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4][..], &address].concat();
    let length = u16::try_from(attributes.len())
        .expect("short")
        .to_be_bytes();
    for (number, network) in (0u32..).zip(networks) {
        let IpNet::V4(network) = network else {
            continue;
        };
        let octets = network.addr().octets();
        let octets = &octets[..usize::from(network.prefix_len()).div_ceil(8)];
        let head = [&number.to_be_bytes()[..], &[network.prefix_len()], octets].concat();
        // RIB_IPV4_UNICAST: one entry, of peer 0.
        let entry = [&[0, 1, 0, 0, 0, 0, 0, 0][..], &length, &attributes].concat();
        record(&mut out, 2, &[head, entry].concat());
    }
    out
}
