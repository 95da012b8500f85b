//! The daemons of a comparison, each with the same task: sessions with many neighbours on one link,
//! everything accepted and passed on, and the routes in the kernel only where the measurement is
//! about that.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::lab::agent::Agent;
use crate::lab::config::Peer;
use crate::lab::netns::Netns;
use crate::lab::process::Process;
use crate::lab::{Lab, PATIENCE, single};

/// AS of the daemon.
pub const ASN: u32 = 65000;
/// Where it listens.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    Agentd,
    Bird,
    Frr,
    OpenBgpd,
    GoBgp,
}

/// What the daemon is to do.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub neighbours: u32,
    /// Internal neighbours are clients of the daemon as their route reflector; external ones have
    /// an AS each.
    pub internal: bool,
    /// Learned routes go to the kernel.
    pub install: bool,
}

impl Task {
    /// The AS of a neighbour.
    pub fn asn(self, neighbour: u32) -> u32 {
        if self.internal {
            ASN
        } else {
            ASN + 1 + neighbour
        }
    }

    /// The address of a neighbour.
    pub fn address(neighbour: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 255, 1, 1)) + neighbour)
    }

    fn each(self) -> impl Iterator<Item = (u32, Ipv4Addr, u32)> {
        (0..self.neighbours).map(move |index| (index, Self::address(index), self.asn(index)))
    }
}

/// A started daemon.
#[derive(Debug)]
pub struct Started {
    agent: Option<Agent>,
    processes: Vec<Arc<Process>>,
}

impl Rival {
    pub fn name(self) -> &'static str {
        match self {
            Self::Agentd => "agentd",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::OpenBgpd => "OpenBGPD",
            Self::GoBgp => "GoBGP",
        }
    }

    /// Starts it; whether it listens is found by connecting.
    pub fn start(self, lab: &Lab, namespace: &Netns, task: Task) -> Result<Started> {
        let mut agent = None;
        let processes = match self {
            Self::Agentd => {
                let started = agentd(lab, namespace, task)?;
                let process = started.process()?;
                agent = Some(started);
                vec![process]
            }
            Self::Bird => bird(lab, namespace, task)?,
            Self::Frr => frr(lab, namespace, task)?,
            Self::OpenBgpd => openbgpd(lab, namespace, task)?,
            Self::GoBgp => gobgp(lab, namespace, task)?,
        };
        Ok(Started { agent, processes })
    }
}

impl Started {
    /// Resident memory of all its processes, in KiB: now, and the most there ever was.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for pid in self
            .processes
            .iter()
            .flat_map(|process| tree(process.pid()))
        {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            sum.0 += field(&status, "VmRSS:")?;
            sum.1 += field(&status, "VmHWM:")?;
        }
        Ok(sum)
    }

    /// Processor time of all its processes in clock ticks (1/100 s).
    pub fn ticks(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self
            .processes
            .iter()
            .flat_map(|process| tree(process.pid()))
        {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (_, rest) = stat.rsplit_once(')').context("stat")?;
            // utime and stime, the 14th and 15th field.
            for field in rest.split_whitespace().skip(11).take(2) {
                sum += field.parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        if let Some(agent) = &self.agent {
            agent.terminate()?;
            std::fs::remove_dir_all(agent.directory())?;
            return Ok(());
        }
        for process in self.processes.iter().rev() {
            // OpenBGPD ends its children itself.
            if process.end(Signal::SIGTERM, PATIENCE).is_err() {
                process.kill();
            }
        }
        Ok(())
    }
}

fn field(status: &str, name: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| name.to_owned())
}

/// A process and its descendants.
fn tree(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        if let Ok(child) = child.parse() {
            all.extend(tree(child));
        }
    }
    all
}

fn agentd(lab: &Lab, namespace: &Netns, task: Task) -> Result<Agent> {
    let mut config = single::config();
    config.address = ADDRESS.to_string();
    config.address6 = Some("fd00:ff::1".into());
    config.asn = ASN;
    config.bgp = format!(
        "import = \"all\"\nexport = \"all\"\nhold_time = \"240s\"\ninstall_routes = {}\n\
         graceful_restart = false\n",
        task.install
    );
    if task.internal {
        let _ = writeln!(config.bgp, "cluster_id = \"{ADDRESS}\"");
    }
    for (index, address, asn) in task.each() {
        let mut peer = Peer::new(&format!("n{index}"), &address.to_string(), asn);
        peer.extra = "passive = true\nmax_prefixes = 5000000\n".into();
        if task.internal {
            peer.extra.push_str("route_reflector_client = true\n");
        }
        config.peers.push(peer);
    }
    let agent = Agent::new(lab, namespace, config)?;
    agent.start()?;
    Ok(agent)
}

fn bird(lab: &Lab, namespace: &Netns, task: Task) -> Result<Vec<Arc<Process>>> {
    let mut text = format!(
        "router id {ADDRESS};\nlog stderr {{ warning, error, fatal, bug }};\nprotocol device {{ }}\n"
    );
    if task.install {
        for family in ["ipv4", "ipv6"] {
            let _ = writeln!(
                text,
                "protocol kernel {{ {family} {{ import none; export all; }}; }}"
            );
        }
    }
    let client = if task.internal { "rr client;" } else { "" };
    for (index, address, asn) in task.each() {
        let _ = writeln!(
            text,
            "protocol bgp n{index} {{ local {ADDRESS} as {ASN}; neighbor {address} as {asn}; passive; \
             hold time 240; graceful restart off; {client} ipv4 {{ import all; export all; }}; \
             ipv6 {{ import all; export all; next hop address fd00:ff::1; }}; }}"
        );
    }
    let file = lab.write_file("bird.conf", &text)?;
    let control = lab.directory().join("bird.ctl");
    let command = [
        "bird".as_ref(),
        "-f".as_ref(),
        "-c".as_ref(),
        file.as_os_str(),
        "-s".as_ref(),
        control.as_os_str(),
    ];
    Ok(vec![lab.spawn(namespace, "bird", command)?])
}

/// A directory that programs which give up root can write to.
fn open_directory(lab: &Lab, name: &str) -> Result<std::path::PathBuf> {
    let directory = lab.directory().join(name);
    std::fs::create_dir_all(&directory)?;
    let mut path: &Path = &directory;
    while path.starts_with(lab.directory()) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        path = path.parent().context("parent")?;
    }
    Ok(directory)
}

fn frr(lab: &Lab, namespace: &Netns, task: Task) -> Result<Vec<Arc<Process>>> {
    let directory = open_directory(lab, "frr")?;
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    lab.write_file("frr/zebra.conf", "frr defaults datacenter\n")?;
    // Without a pause between advertisements: the default of the datacenter profile.
    let mut text = format!(
        "frr defaults datacenter\nrouter bgp {ASN}\n bgp router-id {ADDRESS}\n \
         no bgp ebgp-requires-policy\n no bgp network import-check\n bgp cluster-id {ADDRESS}\n \
         timers bgp 60 240\n"
    );
    for (_, address, asn) in task.each() {
        let _ = writeln!(
            text,
            " neighbor {address} remote-as {asn}\n neighbor {address} passive\n \
             neighbor {address} timers 60 240\n neighbor {address} advertisement-interval 0"
        );
    }
    for family in ["ipv4", "ipv6"] {
        let _ = writeln!(text, " address-family {family} unicast");
        for (_, address, _) in task.each() {
            let _ = writeln!(text, "  neighbor {address} activate");
            if task.internal {
                let _ = writeln!(text, "  neighbor {address} route-reflector-client");
            }
        }
        text.push_str(" exit-address-family\n");
    }
    lab.write_file("frr/bgpd.conf", &text)?;
    for name in ["frr/zebra.conf", "frr/bgpd.conf"] {
        let file = lab.directory().join(name);
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644))?;
    }
    let program = |name: &str, extra: &[&str]| {
        let mut command = vec![
            format!("/usr/lib/frr/{name}"),
            "-f".into(),
            path(&format!("{name}.conf")),
            "-i".into(),
            path(&format!("{name}.pid")),
        ];
        command.extend(["-u", "frr", "-g", "frr", "-z"].map(String::from));
        command.push(path("zserv.api"));
        command.push("--vty_socket".into());
        command.push(directory.to_string_lossy().into_owned());
        command.extend(["-A", "127.0.0.1", "-P", "0"].map(String::from));
        command.extend(extra.iter().map(|word| (*word).to_owned()));
        command
    };
    let zebra = lab.spawn(namespace, "zebra", program("zebra", &[]))?;
    let socket = path("zserv.api");
    lab.wait_until("zebra listens", PATIENCE, || Path::new(&socket).exists())?;
    let extra: &[&str] = if task.install { &[] } else { &["-n"] };
    let bgpd = lab.spawn(namespace, "bgpd-frr", program("bgpd", extra))?;
    Ok(vec![zebra, bgpd])
}

fn openbgpd(lab: &Lab, namespace: &Netns, task: Task) -> Result<Vec<Arc<Process>>> {
    let socket = lab.directory().join("openbgpd.sock");
    let update = if task.install { "yes" } else { "no" };
    let mut text = format!(
        "AS {ASN}\nrouter-id {ADDRESS}\nlisten on {ADDRESS}\nsocket \"{}\"\nfib-update {update}\n\
         holdtime 240\n",
        socket.display()
    );
    let client = if task.internal {
        "route-reflector\n"
    } else {
        ""
    };
    for (_, address, asn) in task.each() {
        let _ = writeln!(
            text,
            "neighbor {address} {{\nremote-as {asn}\npassive\nannounce IPv4 unicast\n\
             announce IPv6 unicast\n{client}}}"
        );
    }
    text.push_str("allow from any\nallow to any\n");
    let file = lab.write_file("openbgpd.conf", &text)?;
    // It refuses files that others can read.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    // Its children change their root to the home of their user, which without systemd does not
    // exist; it sees a user whose home does.
    let home = lab.directory().join("openbgpd");
    std::fs::create_dir_all(&home)?;
    let users = std::fs::read_to_string("/etc/passwd")?;
    let users = users.replace(":/run/openbgpd:", &format!(":{}:", home.display()));
    let users = lab.write_file("passwd", &users)?;
    let script = r#"mount --bind "$1" /etc/passwd && exec /usr/sbin/bgpd -d -f "$2""#;
    let command = [
        "unshare".as_ref(),
        "--mount".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        script.as_ref(),
        "sh".as_ref(),
        users.as_os_str(),
        file.as_os_str(),
    ];
    Ok(vec![lab.spawn(namespace, "openbgpd", command)?])
}

fn gobgp(lab: &Lab, namespace: &Netns, task: Task) -> Result<Vec<Arc<Process>>> {
    let mut text = format!(
        "[global.config]\nas = {ASN}\nrouter-id = \"{ADDRESS}\"\nlocal-address-list = [\"{ADDRESS}\"]\n"
    );
    for (_, address, asn) in task.each() {
        let _ = write!(
            text,
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\npeer-as = {asn}\n\
             [neighbors.transport.config]\npassive-mode = true\n[neighbors.timers.config]\n\
             hold-time = 240\nkeepalive-interval = 60\n"
        );
        if task.internal {
            let _ = write!(
                text,
                "[neighbors.route-reflector.config]\nroute-reflector-client = true\n\
                 route-reflector-cluster-id = \"{ADDRESS}\"\n"
            );
        }
        for family in ["ipv4-unicast", "ipv6-unicast"] {
            let _ = write!(
                text,
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n"
            );
        }
    }
    let file = lab.write_file("gobgp.toml", &text)?;
    let file = file.to_string_lossy().into_owned();
    let command = [
        "gobgpd",
        "-f",
        &file,
        "--api-hosts",
        "127.0.0.1:50051",
        "--pprof-disable",
        "-l",
        "warn",
    ];
    Ok(vec![lab.spawn(namespace, "gobgp", command)?])
}
