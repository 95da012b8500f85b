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
use super::ruleset;
use super::spoilings::Scene;
use crate::lab::Lab;
use crate::lab::netns::Netns;

const GETLINK: u16 = 18;
const GETADDR: u16 = 22;
const GETROUTE: u16 = 26;
const GETNEIGH: u16 = 30;
const GETNEXTHOP: u16 = 106;

/// Between two looks.
const INTERVAL: Duration = Duration::from_micros(100);
/// How long a spoilt object may stay so before the measurement is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What the witness looks at.
#[derive(Clone, Debug)]
pub enum Look {
    /// Unicast and special routes of the main table.
    Routes,
    /// Links with this prefix of their names.
    Links(&'static str),
    Addresses,
    PermanentNeighbours,
    /// Permanent entries of VXLAN devices.
    Forwarding,
    Nexthops,
    /// A file, such as a sysctl.
    File(PathBuf),
    /// The nftables tables of the agent.
    Tables,
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
    /// As which the agent counts the repair, and what it says of it in the log.
    pub kind: &'static str,
    pub said: String,
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
        // flags; address, name, MTU, bridge, alias
        Look::Links(_) => Shape {
            kind: GETLINK,
            request: &[0; 16],
            fixed: 16,
            fixed_kept: &[8],
            kept: &[1, 3, 4, 10, 20],
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
        // state; destination, link-layer address
        Look::Forwarding => Shape {
            kind: GETNEIGH,
            request: &[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            fixed: 12,
            fixed_kept: &[8],
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
        Look::File(_) | Look::Tables => return None,
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
            (Look::Tables, _) => {
                seen = again(&mut self.socket, ruleset::read, Socket::open_netfilter)?
            }
            (look, Some(shape)) => {
                let dump = |socket: &mut Socket| {
                    let mut seen = Vec::new();
                    socket.dump(shape.kind, shape.request, |payload| {
                        if matters(look, payload) {
                            seen.push(essence(&shape, payload));
                        }
                    })?;
                    Ok(seen)
                };
                seen = again(&mut self.socket, dump, Socket::open)?;
                seen.sort();
            }
            (_, None) => bail!("nothing to look at"),
        }
        Ok(seen)
    }
}

/// Reads, and reads again where a change interrupted it.
fn again<T>(
    socket: &mut Socket,
    read: impl Fn(&mut Socket) -> Result<T>,
    open: impl Fn() -> Result<Socket>,
) -> Result<T> {
    for _ in 0..100 {
        match read(socket) {
            Ok(seen) => return Ok(seen),
            Err(_) => *socket = open()?,
        }
    }
    read(socket)
}

/// Whether a neighbour message has an NDA_DST.
fn destination(payload: &[u8]) -> bool {
    let mut rest = payload.get(12..).unwrap_or_default();
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        if u16::from_ne_bytes([head[2], head[3]]) == 1 {
            return true;
        }
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        rest = rest
            .get(length.max(4).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

fn matters(look: &Look, payload: &[u8]) -> bool {
    match look {
        // Not of the kernel's own making.
        Look::Routes => payload.get(4) == Some(&254) && payload.get(5) != Some(&2),
        Look::Links(prefix) => payload
            .windows(prefix.len())
            .any(|window| window == prefix.as_bytes()),
        Look::PermanentNeighbours => payload.get(8) == Some(&0x80),
        // With a destination, which entries of bridges do not have.
        Look::Forwarding => {
            payload.get(8).is_some_and(|state| state & 0x80 != 0) && destination(payload)
        }
        _ => true,
    }
}

/// Spoils once. `None`: it was repaired before the witness could see it.
pub fn measure(spoiling: &Spoiling) -> Result<Option<Duration>> {
    let namespace = &spoiling.namespace;
    namespace.enter(|| -> Result<_> {
        let mut witness = Witness {
            look: &spoiling.look,
            socket: match spoiling.look {
                Look::Tables => Socket::open_netfilter()?,
                _ => Socket::open()?,
            },
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
