//! Configuration files of agents and of BIRD for the lab.

use std::fmt::Write as _;

/// What an agent of the lab is configured with. Text of this is made for every start, so a test
/// may change it between two starts.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub name: String,
    /// Empty: not said.
    pub address: String,
    pub address6: Option<String>,
    pub asn: u32,
    pub pools: Vec<Pool>,
    /// Ranges the node claims its blocks from.
    pub claim: Vec<String>,
    pub cooldown: String,
    /// Further lines of the `[ipam]` table.
    pub ipam: String,
    pub peers: Vec<Peer>,
    /// Further lines of the `[bgp]` table.
    pub bgp: String,
    /// Text after everything else: further tables.
    pub extra: String,
}

#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub cidr: String,
    pub block_size: u8,
    /// Further lines of this `[[pool]]` table.
    pub extra: String,
}

#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    pub address: String,
    pub asn: u32,
    /// Further lines of this `[[bgp.peer]]` table.
    pub extra: String,
}

impl Peer {
    pub fn new(name: &str, address: &str, asn: u32) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            asn,
            extra: String::new(),
        }
    }
}

impl Pool {
    pub fn new(name: &str, cidr: &str, block_size: u8) -> Self {
        Self {
            name: name.into(),
            cidr: cidr.into(),
            block_size,
            extra: String::new(),
        }
    }
}

impl AgentConfig {
    /// The configuration file; `directory` holds the state and the socket.
    pub fn toml(&self, directory: &std::path::Path) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text, directory);
        text
    }

    fn write(&self, text: &mut String, directory: &std::path::Path) -> std::fmt::Result {
        writeln!(text, "[node]\nname = {:?}", self.name)?;
        if !self.address.is_empty() {
            writeln!(text, "address = {:?}", self.address)?;
        }
        if let Some(address6) = &self.address6 {
            writeln!(text, "address6 = {address6:?}")?;
        }
        writeln!(text, "state_dir = {:?}", directory.join("state"))?;
        writeln!(
            text,
            "\n[api]\nsocket = {:?}",
            directory.join("agentd.sock")
        )?;
        for pool in &self.pools {
            writeln!(
                text,
                "\n[[pool]]\nname = {:?}\ncidr = {:?}\nblock_size = {}\n{}",
                pool.name, pool.cidr, pool.block_size, pool.extra
            )?;
        }
        writeln!(
            text,
            "\n[ipam]\nclaim = {:?}\ncooldown = {:?}\n{}",
            self.claim, self.cooldown, self.ipam
        )?;
        writeln!(text, "\n[bgp]\nasn = {}\n{}", self.asn, self.bgp)?;
        for peer in &self.peers {
            writeln!(
                text,
                "\n[[bgp.peer]]\nname = {:?}\naddress = {:?}\nasn = {}\n{}",
                peer.name, peer.address, peer.asn, peer.extra
            )?;
        }
        writeln!(text, "\n{}", self.extra)
    }
}

/// One neighbour of a BIRD.
#[derive(Clone, Debug)]
pub struct BirdPeer {
    /// The protocol's name in BIRD.
    pub name: String,
    pub address: String,
    pub asn: u32,
    /// Further lines of the protocol, such as `rr client;` or `password "…";`.
    pub extra: String,
    /// Families of the session: `ipv4`, `ipv6`.
    pub families: Vec<&'static str>,
}

/// What a BIRD of the lab is configured with.
#[derive(Clone, Debug)]
pub struct BirdConfig {
    pub router_id: String,
    /// Its end of a session of either family.
    pub address: String,
    pub address6: String,
    pub asn: u32,
    pub peers: Vec<BirdPeer>,
    /// Whole protocols, such as `protocol static { … }`.
    pub extra: String,
}

impl BirdConfig {
    /// The configuration file. Timers are short: BIRD's own defaults wait for a minute after an
    /// error. Next hops are resolved on the link, so the table holds what BGP brought and no more.
    pub fn text(&self) -> String {
        let mut text = format!(
            "router id {};\nlog stderr all;\nprotocol device {{ }}\n{}\n",
            self.router_id, self.extra
        );
        for peer in &self.peers {
            // Next hops of an internal peer would be looked up in a table; these are neighbours.
            let internal = peer.asn == self.asn;
            let direct = if internal { "direct; " } else { "" };
            let gateway = if internal { "gateway direct; " } else { "" };
            let local = if peer.address.contains(':') {
                &self.address6
            } else {
                &self.address
            };
            let _ = write!(
                text,
                "protocol bgp {} {{\n  local {local} as {};\n  neighbor {} as {};\n  hold time 9; \
                 keepalive time 3;\n  connect delay time 1; connect retry time 2; error wait time \
                 1, 5;\n  {direct}{}\n",
                peer.name, self.asn, peer.address, peer.asn, peer.extra,
            );
            for family in &peer.families {
                let _ = writeln!(text, "  {family} {{ import all; export all; {gateway}}};");
            }
            text.push_str("}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::two_nodes;

    #[test]
    fn the_agent_accepts_the_configurations_of_the_lab() {
        let directory = tempfile::tempdir().expect("directory");
        let key = directory.path().join("key");
        std::fs::write(&key, "secret\n").expect("key");
        for number in [1, 2] {
            let mut config = two_nodes::node_config(number);
            config.bgp = "import = \"all\"\nhold_time = \"240s\"".into();
            config.pools.push(Pool::new("tiny", "10.99.0.0/29", 29));
            config.claim.push("10.99.0.0/29".into());
            let mut peer = Peer::new("tor", "10.1.1.1", 64513);
            peer.extra = format!("password_file = {key:?}\npassive = true\nmax_prefixes = 2000000");
            config.peers.push(peer);
            config.extra = "[telemetry]\nmetrics_listen = \"127.0.0.1:9473\"".into();
            let file = directory.path().join("agentd.toml");
            std::fs::write(&file, config.toml(directory.path())).expect("file");
            if let Err(errors) = agentd::config::Config::load(&file) {
                panic!("{errors}\n{}", config.toml(directory.path()));
            }
        }
    }
}
