//! BIRD 2: one process, a configuration file, `birdc`.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::{AddPath, Base, Kind, Neighbor, Path, Router, RouterConfig, label};

#[derive(Debug)]
pub(super) struct BirdRouter(Base);

impl BirdRouter {
    pub(super) fn new(base: Base) -> Self {
        let control = base.file(".ctl");
        for command in ["show protocols all", "show route all"] {
            base.lab
                .dump_command(&base.namespace, ["birdc", "-s", &control, command]);
        }
        Self(base)
    }

    fn birdc(&self, command: &str) -> Result<String> {
        let control = self.0.file(".ctl");
        let mut words = vec!["birdc", "-s", &control];
        words.extend(command.split(' '));
        self.0.output(&words)
    }

    fn protocol(&self, neighbor: IpAddr) -> Result<String> {
        let neighbors = &self.0.config.neighbors;
        let index = neighbors.iter().position(|n| n.address == neighbor);
        Ok(label(index.context("no such neighbor")?))
    }

    fn text(&self) -> String {
        let config = &self.0.config;
        let mut text = format!(
            "router id {};\nlog stderr all;\nprotocol device {{ }}\n",
            config.router_id
        );
        for family in ["ipv4", "ipv6"] {
            let _ = write!(text, "protocol static {{ {family};");
            for network in config
                .networks
                .iter()
                .filter(|n| n.addr().is_ipv4() == (family == "ipv4"))
            {
                let _ = write!(text, " route {network} blackhole;");
            }
            text.push_str(" }\n");
            if config.kernel {
                let _ = writeln!(
                    text,
                    "protocol kernel {{ {family} {{ export where source = RTS_BGP; }}; }}"
                );
            }
        }
        for (index, neighbor) in config.neighbors.iter().enumerate() {
            let _ = session(&mut text, config, &label(index), neighbor);
        }
        text
    }

    fn configure(&self) -> Result<()> {
        self.0.write(".conf", &self.text())?;
        self.birdc("configure").map(drop)
    }
}

fn session(
    text: &mut String,
    config: &RouterConfig,
    name: &str,
    neighbor: &Neighbor,
) -> std::fmt::Result {
    let internal = neighbor.asn == config.asn;
    write!(
        text,
        "protocol bgp {name} {{\n local {} as {};\n neighbor {} as {};\n hold time {}; \
         error wait time 1, 2; connect retry time 1; connect delay time 1; startup hold time 9;\n",
        neighbor.local, config.asn, neighbor.address, neighbor.asn, neighbor.hold_time
    )?;
    // Next hops of an internal peer would be looked up in a table; these are neighbours.
    if internal {
        text.push_str(" direct;\n");
    }
    if let Some(password) = &neighbor.password {
        writeln!(text, " password \"{password}\";")?;
    }
    if neighbor.passive {
        text.push_str(" passive;\n");
    }
    match neighbor.graceful_restart {
        Some(time) => writeln!(text, " graceful restart on; graceful restart time {time};")?,
        None => text.push_str(" graceful restart off;\n"),
    }
    match neighbor.long_lived {
        Some(time) => writeln!(
            text,
            " long lived graceful restart on; long lived stale time {time};"
        )?,
        None => text.push_str(" long lived graceful restart off;\n"),
    }
    if neighbor.reflector_client {
        text.push_str(" rr client;\n");
    }
    if let Some(role) = neighbor.role {
        writeln!(text, " local role {};", role.replace('-', "_"))?;
    }
    if neighbor.ttl_security {
        text.push_str(" ttl security on;\n");
    }
    text.push_str(" enable extended messages on;\n");
    for (family, on) in [("ipv4", neighbor.ipv4), ("ipv6", neighbor.ipv6)] {
        if !on {
            continue;
        }
        write!(text, " {family} {{ import all; export ")?;
        let colored: Vec<String> = neighbor
            .colored
            .iter()
            .filter(|net| net.addr().is_ipv4() == (family == "ipv4"))
            .map(ToString::to_string)
            .collect();
        if colored.is_empty() {
            text.push_str("all;");
        } else {
            write!(
                text,
                "filter {{ if net ~ [ {} ] then {{ bgp_community.add(({asn}, 7)); \
                 bgp_large_community.add(({asn}, 1, 2)); }} accept; }};",
                colored.join(", "),
                asn = config.asn
            )?;
        }
        if internal {
            text.push_str(" gateway direct;");
        }
        if family == "ipv6" && neighbor.local.is_ipv4() {
            write!(text, " next hop address {};", config.address6)?;
        }
        if let Some(most) = neighbor.max_prefixes {
            write!(text, " receive limit {most} action disable;")?;
        }
        match neighbor.add_path {
            AddPath::Off => {}
            AddPath::Receive => text.push_str(" add paths rx;"),
            AddPath::Send => text.push_str(" add paths tx;"),
        }
        text.push_str(" };\n");
    }
    text.push_str("}\n");
    Ok(())
}

impl Router for BirdRouter {
    fn kind(&self) -> Kind {
        Kind::Bird
    }

    fn config(&mut self) -> &mut RouterConfig {
        &mut self.0.config
    }

    fn start(&self) -> Result<()> {
        let file = self.0.write(".conf", &self.text())?;
        let control = self.0.file(".ctl");
        let mut command = vec!["bird", "-f", "-c", &file, "-s", &control];
        if self.0.was_killed() {
            // It recovers gracefully, as after a crash of the daemon alone.
            command.push("-R");
        }
        self.0.spawn(&self.0.name, &command)?;
        self.0.wait_ready(|| self.birdc("show status").map(drop))
    }

    fn kill(&self) {
        self.0.kill();
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        self.0.freeze(frozen)
    }

    fn is_established(&self, neighbor: IpAddr) -> Result<bool> {
        let name = self.protocol(neighbor)?;
        Ok(self
            .birdc(&format!("show protocols {name}"))?
            .contains("Established"))
    }

    fn paths(&self, prefix: IpNet) -> Result<Vec<Path>> {
        match self.birdc(&format!("show route {prefix} all")) {
            Err(error) if format!("{error:#}").contains("Network not found") => Ok(Vec::new()),
            answer => Ok(parse(&answer?, &self.0.config)),
        }
    }

    fn received(&self, neighbor: IpAddr) -> Result<usize> {
        let name = self.protocol(neighbor)?;
        // "100000 of 100002 routes for 100002 networks in table master4", one line for each table.
        let text = self.birdc(&format!("show route protocol {name} count"))?;
        let mut sum = 0;
        for line in text.lines().filter(|line| line.contains(" routes for ")) {
            let number = line.split(' ').next().context("empty")?;
            sum += number.parse::<usize>().with_context(|| line.to_owned())?;
        }
        // The last line is the total of all tables when there are several.
        let tables = text
            .lines()
            .filter(|line| line.contains("in table"))
            .count();
        ensure!(tables > 0, "no counts in {text}");
        Ok(if text.contains("in total") || text.contains("tables") {
            sum / 2
        } else {
            sum
        })
    }

    fn announce(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.push(prefix);
        self.configure()
    }

    fn withdraw(&mut self, prefix: IpNet) -> Result<()> {
        self.0.config.networks.retain(|network| *network != prefix);
        self.configure()
    }

    fn refresh(&self, neighbor: IpAddr) -> Result<()> {
        let name = self.protocol(neighbor)?;
        self.birdc(&format!("reload in {name}")).map(drop)
    }

    fn shutdown(&self, neighbor: IpAddr, text: &str) -> Result<()> {
        let name = self.protocol(neighbor)?;
        self.birdc(&format!("disable {name} \"{text}\"")).map(drop)
    }

    fn enable(&self, neighbor: IpAddr) -> Result<()> {
        let name = self.protocol(neighbor)?;
        self.birdc(&format!("enable {name}")).map(drop)
    }

    fn reset(&self, neighbor: IpAddr) -> Result<()> {
        let name = self.protocol(neighbor)?;
        self.birdc(&format!("restart {name}")).map(drop)
    }

    fn report(&self, neighbor: IpAddr) -> Result<String> {
        let name = self.protocol(neighbor)?;
        Ok(self.birdc(&format!("show protocols all {name}"))? + &self.0.log(&self.0.name))
    }
}

/// The answer to `show route PREFIX all`.
fn parse(text: &str, config: &RouterConfig) -> Vec<Path> {
    let mut paths: Vec<Path> = Vec::new();
    for line in text.lines() {
        if let Some((head, _)) = line.split_once("] ")
            && let Some((_, source)) = head.split_once('[')
        {
            let name = source.split(' ').next().unwrap_or_default();
            let index = name.strip_prefix('n').and_then(|n| n.parse::<usize>().ok());
            let from = index
                .and_then(|index| config.neighbors.get(index))
                .map(|neighbor| neighbor.address);
            paths.push(Path {
                from,
                stale: head.contains("stale") || line.contains('s') && line.ends_with("s)"),
                ..Path::default()
            });
            continue;
        }
        let Some(path) = paths.last_mut() else {
            continue;
        };
        let Some((key, value)) = line.trim().split_once(": ") else {
            continue;
        };
        let groups = || {
            let parts = value.split(')').filter_map(|part| part.split_once('('));
            super::sorted(
                parts
                    .map(|(_, g)| g.replace(',', ":").replace(' ', ""))
                    .collect(),
            )
        };
        match key {
            "BGP.as_path" => path.as_path = value.to_owned(),
            "BGP.next_hop" => {
                path.next_hops = value
                    .split(' ')
                    .filter_map(|word| word.parse().ok())
                    .collect();
            }
            "BGP.community" => path.communities = groups(),
            "BGP.large_community" => path.large_communities = groups(),
            "BGP.originator_id" => path.originator = value.parse().ok(),
            "BGP.cluster_list" => {
                path.cluster_list = value
                    .split(' ')
                    .filter_map(|word| word.parse().ok())
                    .collect();
            }
            _ => {}
        }
    }
    paths
}
