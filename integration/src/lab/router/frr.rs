//! FRR: `zebra` for next hops and the kernel, `bgpd`, and `vtysh` to ask them.
//!
//! Its daemons drop to the user `frr`, so their sockets are in a directory of their own that
//! belongs to that user. `bgpd` gets its configuration as a file of its own and not through `vtysh`:
//! configured later, it would send End-of-RIB before its routes.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::{AddPath, Base, Kind, Path, Router, RouterConfig, address, sorted, strings};

/// More networks than this are routes of the kernel: so many statements would take `bgpd` a minute.
const MANY: usize = 1000;
const PROGRAMS: &str = "/usr/lib/frr";

#[derive(Debug)]
pub(super) struct Frr {
    base: Base,
    sockets: String,
}

impl Frr {
    pub(super) fn new(base: Base) -> Result<Self> {
        let sockets = base.file("-sockets");
        std::fs::create_dir_all(&sockets)?;
        let user = nix::unistd::User::from_name("frr")?.context("no user frr; is it installed?")?;
        nix::unistd::chown(sockets.as_str(), Some(user.uid), Some(user.gid))?;
        for command in [
            "show bgp neighbors",
            "show bgp ipv4 unicast",
            "show bgp ipv6 unicast",
        ] {
            base.lab.dump_command(
                &base.namespace,
                ["vtysh", "--vty_socket", &sockets, "-c", command],
            );
        }
        Ok(Self { base, sockets })
    }

    fn vtysh(&self, commands: &[&str]) -> Result<String> {
        let mut words = vec!["vtysh", "--vty_socket", &self.sockets];
        for command in commands {
            words.extend(["-c", command]);
        }
        let answer = self.base.output(&words)?;
        // Its exit status says nothing of the commands.
        ensure!(!answer.contains("% "), "{commands:?}: {answer}");
        Ok(answer)
    }

    fn json(&self, command: &str) -> Result<Value> {
        let text = self.vtysh(&[command])?;
        serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
    }

    /// Commands inside `router bgp`.
    fn set(&self, commands: &[String]) -> Result<()> {
        let router = format!("router bgp {}", self.base.config.asn);
        let mut words = vec!["configure terminal", &router];
        words.extend(commands.iter().map(String::as_str));
        self.vtysh(&words).map(drop)
    }

    fn originate(&self, prefix: IpNet, no: &str) -> Result<()> {
        self.set(&[
            format!("address-family {} unicast", family(prefix.addr())),
            format!("{no}network {prefix}"),
        ])
    }

    /// Puts many networks into the kernel, or takes them away when there are few.
    fn kernel_routes(&self) -> Result<()> {
        let networks = &self.base.config.networks;
        // It fails when there are none.
        let _ = self
            .base
            .output(&["ip", "route", "flush", "type", "blackhole"]);
        if networks.len() <= MANY {
            return Ok(());
        }
        let batch: Vec<_> = networks
            .iter()
            .map(|network| format!("route add blackhole {network}"))
            .collect();
        let batch = self.base.write("-routes", &batch.join("\n"))?;
        self.base.output(&["ip", "-batch", &batch]).map(drop)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let _ = write_config(&mut text, &self.base.config);
        text
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4" } else { "ipv6" }
}

fn write_config(text: &mut String, config: &RouterConfig) -> std::fmt::Result {
    writeln!(
        text,
        "log stdout\nrouter bgp {}\n bgp router-id {}\n no bgp ebgp-requires-policy\n \
         no bgp default ipv4-unicast\n no bgp network import-check\n bgp log-neighbor-changes",
        config.asn, config.router_id
    )?;
    if let Some(time) = config.neighbors.iter().find_map(|n| n.graceful_restart) {
        writeln!(
            text,
            " bgp graceful-restart\n bgp graceful-restart restart-time {time}\n \
             bgp graceful-restart preserve-fw-state"
        )?;
    } else {
        text.push_str(" bgp graceful-restart-disable\n");
    }
    if let Some(time) = config.neighbors.iter().find_map(|n| n.long_lived) {
        writeln!(text, " bgp long-lived-graceful-restart stale-time {time}")?;
    }
    for neighbor in &config.neighbors {
        let name = neighbor.address;
        writeln!(
            text,
            " neighbor {name} remote-as {}\n neighbor {name} timers {} {}\n \
             neighbor {name} timers connect 1\n neighbor {name} advertisement-interval 0\n \
             neighbor {name} update-source {}",
            neighbor.asn,
            neighbor.hold_time / 3,
            neighbor.hold_time,
            neighbor.local
        )?;
        if let Some(password) = &neighbor.password {
            writeln!(text, " neighbor {name} password {password}")?;
        }
        if neighbor.passive {
            writeln!(text, " neighbor {name} passive")?;
        }
        if let Some(role) = neighbor.role {
            // "rs-server" and "rs-client" are its names for the roles of a route server.
            let role = role
                .replace("route-server", "rs-server")
                .replace("rs-server-client", "rs-client");
            writeln!(text, " neighbor {name} local-role {role}")?;
        }
        if neighbor.ttl_security {
            writeln!(text, " neighbor {name} ttl-security hops 1")?;
        }
    }
    for (family, v4) in [("ipv4", true), ("ipv6", false)] {
        writeln!(text, " address-family {family} unicast")?;
        if config.networks.len() > MANY {
            text.push_str("  redistribute kernel\n");
        }
        let few = config.networks.iter().filter(|n| n.addr().is_ipv4() == v4);
        for network in few.take(MANY) {
            writeln!(text, "  network {network}")?;
        }
        for neighbor in &config.neighbors {
            if !(if v4 { neighbor.ipv4 } else { neighbor.ipv6 }) {
                continue;
            }
            let name = neighbor.address;
            writeln!(text, "  neighbor {name} activate")?;
            if neighbor.reflector_client {
                writeln!(text, "  neighbor {name} route-reflector-client")?;
            }
            if let Some(most) = neighbor.max_prefixes {
                writeln!(text, "  neighbor {name} maximum-prefix {most}")?;
            }
            if !neighbor.colored.is_empty() {
                writeln!(text, "  neighbor {name} route-map color-{family} out")?;
            }
            match neighbor.add_path {
                AddPath::Send => writeln!(text, "  neighbor {name} addpath-tx-all-paths")?,
                AddPath::Receive => {}
                AddPath::Off => writeln!(text, "  neighbor {name} disable-addpath-rx")?,
            }
        }
        text.push_str(" exit-address-family\n");
    }
    text.push_str("exit\n");
    for (family, v4, word) in [("ipv4", true, "ip"), ("ipv6", false, "ipv6")] {
        let colored = config.neighbors.iter().flat_map(|n| &n.colored);
        let colored: Vec<_> = colored.filter(|net| net.addr().is_ipv4() == v4).collect();
        for net in &colored {
            writeln!(text, "{word} prefix-list color-{family} permit {net}")?;
        }
        writeln!(
            text,
            "route-map color-{family} permit 1\n match {word} address prefix-list color-{family}\n \
             set community {asn}:7 additive\n set large-community {asn}:1:2 additive\nexit\n\
             route-map color-{family} permit 2\nexit",
            asn = config.asn
        )?;
    }
    Ok(())
}

impl Router for Frr {
    fn kind(&self) -> Kind {
        Kind::Frr
    }

    fn config(&mut self) -> &mut RouterConfig {
        &mut self.base.config
    }

    fn start(&self) -> Result<()> {
        let file = self.base.write("-bgpd.conf", &self.text())?;
        self.kernel_routes()?;
        let server = format!("{}/zserv.api", self.sockets);
        for daemon in ["zebra", "bgpd"] {
            let program = format!("{PROGRAMS}/{daemon}");
            let pid = format!("{}/{daemon}.pid", self.sockets);
            let log = format!("{}-{daemon}", self.base.name);
            let mut command = vec![
                program.as_str(),
                "--vty_socket",
                &self.sockets,
                "-z",
                &server,
                "-i",
                &pid,
                "--log",
                "stdout",
                "-f",
            ];
            match daemon {
                // -K: what an earlier bgpd left in the kernel stays while it restarts.
                "zebra" => command.extend(["/dev/null", "-K", "60"]),
                _ => command.push(&file),
            }
            if daemon == "bgpd" && !self.base.config.kernel {
                command.push("--no_kernel");
            }
            self.base.spawn(&log, &command)?;
            // A bgpd that does not find zebra asks again after ten seconds, and until then refuses
            // IPv6 routes, as it knows no interfaces.
            if daemon == "zebra" {
                self.base.wait_ready(|| {
                    ensure!(std::path::Path::new(&server).exists(), "no socket of zebra");
                    Ok(())
                })?;
            }
        }
        self.base
            .wait_ready(|| self.vtysh(&["show bgp summary json"]).map(drop))
    }

    fn kill(&self) {
        self.base.kill();
        // What is left of them would look like those of the next ones.
        let _ = std::fs::remove_file(format!("{}/zserv.api", self.sockets));
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        self.base.freeze(frozen)
    }

    fn is_established(&self, neighbor: IpAddr) -> Result<bool> {
        let json = self.json(&format!("show bgp neighbors {neighbor} json"))?;
        Ok(json[neighbor.to_string()]["bgpState"] == "Established")
    }

    fn paths(&self, prefix: IpNet) -> Result<Vec<Path>> {
        let command = format!("show bgp {} unicast {prefix} json", family(prefix.addr()));
        let json = self.json(&command)?;
        let paths = json["paths"].as_array().cloned().unwrap_or_default();
        Ok(paths.iter().map(parse).collect())
    }

    fn received(&self, neighbor: IpAddr) -> Result<usize> {
        let family = family(neighbor);
        let command = format!("show bgp {family} unicast summary json");
        let json = self.json(&command)?;
        let count = &json["peers"][neighbor.to_string()]["pfxRcd"];
        let count = count
            .as_u64()
            .with_context(|| format!("no count in {json}"))?;
        Ok(usize::try_from(count)?)
    }

    fn announce(&mut self, prefix: IpNet) -> Result<()> {
        self.base.config.networks.push(prefix);
        self.originate(prefix, "")
    }

    fn withdraw(&mut self, prefix: IpNet) -> Result<()> {
        self.base
            .config
            .networks
            .retain(|network| *network != prefix);
        self.originate(prefix, "no ")
    }

    fn refresh(&self, neighbor: IpAddr) -> Result<()> {
        let family = family(neighbor);
        self.vtysh(&[&format!("clear bgp {family} unicast {neighbor} soft in")])
            .map(drop)
    }

    fn shutdown(&self, neighbor: IpAddr, text: &str) -> Result<()> {
        self.set(&[format!("neighbor {neighbor} shutdown message {text}")])
    }

    fn enable(&self, neighbor: IpAddr) -> Result<()> {
        self.set(&[format!("no neighbor {neighbor} shutdown")])
    }

    fn reset(&self, neighbor: IpAddr) -> Result<()> {
        self.vtysh(&[&format!("clear bgp {neighbor}")]).map(drop)
    }

    fn report(&self, neighbor: IpAddr) -> Result<String> {
        let json = self.vtysh(&[&format!("show bgp neighbors {neighbor} json")])?;
        Ok(json + &self.base.log(&format!("{}-bgpd", self.base.name)))
    }
}

fn parse(path: &Value) -> Path {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    Path {
        from: address(&path["peer"]["peerId"]),
        next_hops: list(&path["nexthops"])
            .iter()
            .filter_map(|hop| address(&hop["ip"]))
            .collect(),
        as_path: path["aspath"]["string"]
            .as_str()
            .unwrap_or_default()
            .replace("Local", ""),
        communities: sorted(strings(&path["community"]["list"])),
        large_communities: sorted(strings(&path["largeCommunity"]["list"])),
        originator: path["originatorId"].as_str().and_then(|id| id.parse().ok()),
        cluster_list: list(&path["clusterList"]["list"])
            .iter()
            .filter_map(|id| id.as_str()?.parse().ok())
            .collect(),
        stale: path["stale"] == true,
    }
}
