//! How long something stays wrong that somebody spoilt: for each kind of kernel object, from the
//! moment a witness sees that it is not as before until it sees that it is.
//!
//! The witness looks at the kernel itself, with dumps of raw netlink every tenth of a millisecond;
//! the spoiling is done by `ip` and `nft`, as a person would.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::netlink::Socket;
use crate::lab::Lab;
use crate::lab::netns::Netns;
use crate::lab::two_nodes::TwoNodes;
use crate::lab::workload::Workload;

const GETLINK: u16 = 18;
const GETADDR: u16 = 22;
const GETROUTE: u16 = 26;
const GETNEIGH: u16 = 30;
const GETNEXTHOP: u16 = 106;

/// Between two looks.
const INTERVAL: Duration = Duration::from_micros(100);
/// How long a spoilt object may stay so before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the witness looks at.
#[derive(Clone, Debug)]
pub enum Look {
    /// Unicast and special routes of the main table.
    Routes,
    /// Links with this prefix of their names.
    Links(&'static str),
    Addresses,
    PermanentNeighbours,
    Nexthops,
    /// A file, such as a sysctl.
    File(PathBuf),
    /// The table of the agent, as `nft` lists it.
    Table,
}

/// A way to spoil an object.
#[derive(Clone, Debug)]
pub struct Spoiling {
    /// The kind of object, and what is done to it.
    pub object: &'static str,
    pub how: &'static str,
    pub namespace: Netns,
    pub look: Look,
    /// A command line that runs inside the namespace.
    pub command: String,
}

/// Attributes that count: fixed octets by position, then attributes by type.
struct Shape {
    kind: u16,
    request: &'static [u8],
    fixed: usize,
    fixed_kept: &'static [usize],
    kept: &'static [u16],
}

const fn shape(look: &Look) -> Option<Shape> {
    Some(match look {
        // family, length, table, protocol, scope, type; destination, gateway, metric, nexthop
        Look::Routes => Shape {
            kind: GETROUTE,
            request: &[0; 12],
            fixed: 12,
            fixed_kept: &[0, 1, 4, 5, 6, 7],
            kept: &[1, 5, 6, 8, 18, 30],
        },
        // flags; address, name, MTU, alias
        Look::Links(_) => Shape {
            kind: GETLINK,
            request: &[0; 16],
            fixed: 16,
            fixed_kept: &[8],
            kept: &[1, 3, 4, 20],
        },
        // family, length, scope; address, local
        Look::Addresses => Shape {
            kind: GETADDR,
            request: &[0; 8],
            fixed: 8,
            fixed_kept: &[0, 1, 3],
            kept: &[1, 2],
        },
        // family, state; destination, link-layer address
        Look::PermanentNeighbours => Shape {
            kind: GETNEIGH,
            request: &[0; 12],
            fixed: 12,
            fixed_kept: &[0, 8],
            kept: &[1, 2],
        },
        // family, protocol; id, group, gateway
        Look::Nexthops => Shape {
            kind: GETNEXTHOP,
            request: &[0; 8],
            fixed: 8,
            fixed_kept: &[0, 2],
            kept: &[1, 2, 4, 6],
        },
        Look::File(_) | Look::Table => return None,
    })
}

/// What of one object counts.
fn essence(shape: &Shape, payload: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = shape
        .fixed_kept
        .iter()
        .filter_map(|index| payload.get(*index).copied())
        .collect();
    let mut rest = payload.get(shape.fixed..).unwrap_or_default();
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        if shape.kept.contains(&kind) {
            out.extend(rest.get(..length).unwrap_or_default());
        }
        rest = rest
            .get(length.max(4).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    out
}

/// Looks from inside the namespace of its thread.
struct Witness<'a> {
    look: &'a Look,
    socket: Socket,
}

impl Witness<'_> {
    fn see(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut seen = Vec::new();
        match (self.look, shape(self.look)) {
            (Look::File(path), _) => {
                seen.push(std::fs::read(path).with_context(|| path.display().to_string())?)
            }
            (Look::Table, _) => {
                // Counters of rules and sets are no difference.
                let output = std::process::Command::new("nft")
                    .args(["--stateless", "list", "table", "inet", "agentd"])
                    .output()?;
                seen.push(output.stdout);
            }
            (look, Some(shape)) => {
                // An interrupted dump is taken again.
                for attempt in 0.. {
                    seen.clear();
                    let result = self.socket.dump(shape.kind, shape.request, |payload| {
                        if matters(look, payload) {
                            seen.push(essence(&shape, payload));
                        }
                    });
                    match result {
                        Err(error) if attempt == 100 => return Err(error),
                        Err(_) => self.socket = Socket::open()?,
                        Ok(()) => break,
                    }
                }
                seen.sort();
            }
            (_, None) => bail!("nothing to look at"),
        }
        Ok(seen)
    }
}

fn matters(look: &Look, payload: &[u8]) -> bool {
    match look {
        // Not of the kernel's own making.
        Look::Routes => payload.get(4) == Some(&254) && payload.get(5) != Some(&2),
        Look::Links(prefix) => payload
            .windows(prefix.len())
            .any(|window| window == prefix.as_bytes()),
        Look::PermanentNeighbours => payload.get(8) == Some(&0x80),
        _ => true,
    }
}

/// Spoils once. `None`: it was repaired before the witness could see it.
pub fn measure(spoiling: &Spoiling) -> Result<Option<Duration>> {
    let namespace = &spoiling.namespace;
    namespace.enter(|| -> Result<_> {
        let mut witness = Witness {
            look: &spoiling.look,
            socket: Socket::open()?,
        };
        let before = witness.see()?;
        let (spoilt, ended) = thread::scope(|scope| -> Result<_> {
            let doing = scope.spawn(|| namespace.show(&spoiling.command));
            let mut done_at = None;
            let mut spoilt = None;
            let deadline = Instant::now() + PATIENCE;
            let ended = loop {
                let same = witness.see()? == before;
                let now = Instant::now();
                match (spoilt, same) {
                    (None, false) => spoilt = Some(now),
                    (Some(_), true) => break Some(now),
                    _ => {}
                }
                if done_at.is_none() && doing.is_finished() {
                    done_at = Some(now);
                }
                if spoilt.is_none()
                    && done_at.is_some_and(|at| now > at + Duration::from_millis(50))
                {
                    break None;
                }
                ensure!(
                    now < deadline,
                    "{}, {}: not repaired within {PATIENCE:?}",
                    spoiling.object,
                    spoiling.how
                );
                thread::sleep(INTERVAL);
            };
            doing
                .join()
                .map_err(|_| anyhow::anyhow!("the spoiler panicked"))?
                .with_context(|| spoiling.command.clone())?;
            Ok((spoilt, ended))
        })?;
        Ok(spoilt.zip(ended).map(|(spoilt, ended)| ended - spoilt))
    })?
}

/// Two nodes with a workload each, and every way to spoil what the first one has.
pub struct Scene {
    pub nodes: TwoNodes,
    pub local: Workload,
    pub spoilings: Vec<Spoiling>,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").finish_non_exhaustive()
    }
}

/// The block of an address, as the node with 26 and 122 bits makes them.
fn block(workload: &Workload, v6: bool) -> Result<String> {
    let of = workload
        .answer
        .addresses
        .iter()
        .find(|address| address.address.contains(':') == v6)
        .context("an address of the family")?;
    Ok(of.block.clone())
}

pub fn scene(lab: &Lab) -> Result<Scene> {
    let nodes = TwoNodes::start(lab)?;
    let local = nodes.a.workload("a1")?;
    let remote = nodes.b.workload("b1")?;
    let node = nodes.a.namespace().clone();
    let inside = local.namespace.clone();
    let (v4, v6) = (local.ipv4()?.to_string(), local.ipv6()?.to_string());
    let (own4, own6) = (block(&local, false)?, block(&local, true)?);
    let (learned4, learned6) = (block(&remote, false)?, block(&remote, true)?);
    let link = local.answer.host_interface.clone();
    lab.wait_for("the learned routes", PATIENCE, || {
        let routes = node.show("ip route")? + &node.show("ip -6 route")?;
        ensure!(
            routes.contains(&learned4) && routes.contains(&learned6),
            "{routes}"
        );
        Ok(())
    })?;
    let nexthop = node
        .show("ip nexthop")?
        .split_whitespace()
        .nth(1)
        .context("a nexthop object")?
        .to_owned();
    let mut spoilings = Vec::new();
    let mut add = |object, how, namespace: &Netns, look: &Look, command: String| {
        spoilings.push(Spoiling {
            object,
            how,
            namespace: namespace.clone(),
            look: look.clone(),
            command,
        });
    };
    let routes = Look::Routes;
    let links = Look::Links("agt");
    for (object, family, prefix, wrong) in [
        (
            "workload route, IPv4",
            "-4",
            &v4,
            "via 192.168.26.1 dev eth0",
        ),
        ("workload route, IPv6", "-6", &v6, "via fd00:26::1 dev eth0"),
        ("blackhole, IPv4", "-4", &own4, "via 192.168.26.1 dev eth0"),
        ("blackhole, IPv6", "-6", &own6, "via fd00:26::1 dev eth0"),
        (
            "learned route, IPv4",
            "-4",
            &learned4,
            "via 192.168.26.1 dev eth0",
        ),
        (
            "learned route, IPv6",
            "-6",
            &learned6,
            "via fd00:26::1 dev eth0",
        ),
    ] {
        let blackhole = if object.starts_with("blackhole") {
            "blackhole "
        } else {
            ""
        };
        let protocol = if object.starts_with("learned") {
            71
        } else {
            70
        };
        let deleted = format!("ip {family} route delete {blackhole}{prefix}");
        add(object, "deleted", &node, &routes, deleted);
        // A route that replaces another of IPv6 must be of the same kind.
        if family == "-4" || blackhole.is_empty() {
            let altered = format!("ip {family} route replace {prefix} {wrong} proto {protocol}");
            add(object, "replaced", &node, &routes, altered);
        }
    }
    let nexthops = Look::Nexthops;
    add(
        "nexthop object",
        "deleted",
        &node,
        &nexthops,
        format!("ip nexthop delete id {nexthop}"),
    );
    add(
        "nexthop object",
        "replaced",
        &node,
        &nexthops,
        format!("ip nexthop replace id {nexthop} via 192.168.26.1 dev eth0 proto 71"),
    );
    add(
        "host link",
        "set down",
        &node,
        &links,
        format!("ip link set {link} down"),
    );
    add(
        "host link",
        "MTU altered",
        &node,
        &links,
        format!("ip link set {link} mtu 1280"),
    );
    add(
        "host link",
        "MAC altered",
        &node,
        &links,
        format!("ip link set {link} address 02:00:00:00:00:01"),
    );
    add(
        "host link",
        "deleted",
        &node,
        &links,
        format!("ip link delete {link}"),
    );
    let neighbours = Look::PermanentNeighbours;
    add(
        "host neighbour",
        "deleted",
        &node,
        &neighbours,
        format!("ip neighbour delete {v4} dev {link}"),
    );
    add(
        "host neighbour",
        "altered",
        &node,
        &neighbours,
        format!("ip neighbour replace {v4} lladdr 02:00:00:00:00:02 nud permanent dev {link}"),
    );
    let addresses = Look::Addresses;
    for (family, address, length) in [("-4", &v4, 32), ("-6", &v6, 128)] {
        add(
            "workload address",
            if family == "-4" {
                "IPv4 deleted"
            } else {
                "IPv6 deleted"
            },
            &inside,
            &addresses,
            format!("ip {family} address delete {address}/{length} dev eth0"),
        );
    }
    add(
        "workload default route",
        "IPv4 deleted",
        &inside,
        &routes,
        "ip route delete default".into(),
    );
    add(
        "workload default route",
        "IPv6 deleted",
        &inside,
        &routes,
        "ip -6 route delete default".into(),
    );
    add(
        "workload neighbour",
        "deleted",
        &inside,
        &neighbours,
        "ip neighbour delete 169.254.1.1 dev eth0".into(),
    );
    add(
        "workload link",
        "set down",
        &inside,
        &Look::Links("eth0"),
        "ip link set eth0 down".into(),
    );
    for (name, wrong) in [
        (format!("net/ipv4/conf/{link}/forwarding"), 0),
        (format!("net/ipv4/conf/{link}/rp_filter"), 0),
        (format!("net/ipv6/conf/{link}/forwarding"), 0),
    ] {
        let how = match name.as_str() {
            name if name.ends_with("rp_filter") => "IPv4 rp_filter altered",
            name if name.contains("ipv6") => "IPv6 forwarding altered",
            _ => "IPv4 forwarding altered",
        };
        add(
            "sysctl",
            how,
            &node,
            &Look::File(PathBuf::from("/proc/sys").join(&name)),
            format!("sysctl -qw {}={wrong}", name.replace('/', ".")),
        );
    }
    add(
        "nftables table",
        "deleted",
        &node,
        &Look::Table,
        "nft delete table inet agentd".into(),
    );
    add(
        "nftables table",
        "rules flushed",
        &node,
        &Look::Table,
        "nft flush table inet agentd".into(),
    );
    Ok(Scene {
        nodes,
        local,
        spoilings,
    })
}

/// Waits until the agent has nothing to do.
pub fn settle(lab: &Lab, scene: &Scene) -> Result<()> {
    lab.wait_for("the agent is at rest", PATIENCE, || {
        let dataplane = scene
            .nodes
            .a
            .client()
            .status()?
            .dataplane
            .unwrap_or_default();
        ensure!(
            dataplane.pending == 0 && dataplane.failing == 0,
            "{dataplane:?}"
        );
        Ok(())
    })
}
