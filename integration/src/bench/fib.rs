//! The routes of a measurement, the raw-netlink limit for them, and a watcher that tells when a
//! kernel holds all or none of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::netlink::{
    Batch, CREATE, DELNEXTHOP, DELROUTE, EXCL, NEWNEXTHOP, NEWROUTE, Socket, route_header,
};

const DESTINATION: u16 = 1;
const OUTPUT: u16 = 4;
const GATEWAY: u16 = 5;
const NEXTHOP_ID: u16 = 30;
/// RTM_F_FIB_MATCH: answer with the route, not with the result of a lookup.
const FIB_MATCH: u32 = 0x2000;

/// `count` neighbouring prefixes of one length, from 20.0.0.0 or fd10:: on.
#[derive(Clone, Copy, Debug)]
pub struct Prefixes {
    pub v6: bool,
    pub count: u32,
}

impl Prefixes {
    pub fn family(self) -> u8 {
        if self.v6 { 10 } else { 2 }
    }

    /// 26 or 122.
    pub fn length(self) -> u8 {
        if self.v6 { 122 } else { 26 }
    }

    /// The address of one prefix.
    pub fn address(self, index: u32) -> IpAddr {
        if self.v6 {
            let first = u128::from(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0));
            IpAddr::V6(Ipv6Addr::from(first + (u128::from(index) << 6)))
        } else {
            IpAddr::V4(Ipv4Addr::from((20 << 24) + (index << 6)))
        }
    }

    /// Whether this destination is one of ours.
    fn holds(self, destination: &[u8]) -> bool {
        let index = if self.v6 {
            let Ok(bytes) = <[u8; 16]>::try_from(destination) else {
                return false;
            };
            let first = u128::from(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0));
            u128::from_be_bytes(bytes).wrapping_sub(first) >> 6
        } else {
            let Ok(bytes) = <[u8; 4]>::try_from(destination) else {
                return false;
            };
            u128::from(u32::from_be_bytes(bytes).wrapping_sub(20 << 24) >> 6)
        };
        index < u128::from(self.count)
    }
}

/// The bytes of an address.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Times of the raw writes.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub add: Duration,
    pub remove: Duration,
}

/// Writes the routes as fast as raw netlink can, with one nexthop object or with the gateway in
/// every route, and removes them: by deleting the nexthop object, or one by one. Must be called
/// inside a namespace with the gateway on the link `interface`.
pub fn limit(prefixes: Prefixes, gateway: IpAddr, interface: u32, nexthop: bool) -> Result<Limit> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::default();
    let gateway = octets(gateway);
    let family = prefixes.family();
    let start = Instant::now();
    if nexthop {
        batch.start(NEWNEXTHOP, CREATE | EXCL, &[family, 0, 99, 0, 0, 0, 0, 0]);
        batch.put_u32(1, 1);
        batch.put_u32(5, interface);
        batch.put(6, &gateway);
    }
    let write = |socket: &mut Socket, batch: &mut Batch, kind, flags| -> Result<()> {
        for index in 0..prefixes.count {
            let scope = if kind == DELROUTE { 255 } else { 0 };
            batch.start(
                kind,
                flags,
                &route_header(family, prefixes.length(), 99, scope),
            );
            batch.put(DESTINATION, &octets(prefixes.address(index)));
            if kind == NEWROUTE {
                if nexthop {
                    batch.put_u32(NEXTHOP_ID, 1);
                } else {
                    batch.put(GATEWAY, &gateway);
                    batch.put_u32(OUTPUT, interface);
                }
            }
            if batch.len() > 65_000 {
                socket.execute(batch)?;
            }
        }
        socket.execute(batch)
    };
    write(&mut socket, &mut batch, NEWROUTE, CREATE | EXCL)?;
    let add = start.elapsed();
    let start = Instant::now();
    if nexthop {
        batch.start(DELNEXTHOP, 0, &[0, 0, 0, 0, 0, 0, 0, 0]);
        batch.put_u32(1, 1);
        socket.execute(&mut batch)?;
    } else {
        write(&mut socket, &mut batch, DELROUTE, 0)?;
    }
    Ok(Limit {
        add,
        remove: start.elapsed(),
    })
}

/// Waits until the kernel of the calling thread's namespace holds all routes (or none), and
/// returns when that was. Looks at 64 of them in order, then counts all.
///
/// Routes whose nexthop object is being deleted are not found any more, long before they are gone.
/// For IPv6 a count holds the lock that the deletion needs, and counts one upon the other would take
/// several times as long as what is measured, so the kernel's own number is looked at before.
pub fn wait_for_all(prefixes: Prefixes, present: bool, patience: Duration) -> Result<Instant> {
    let mut socket = Socket::open()?;
    let deadline = Instant::now() + patience;
    let mut sample = 0u32;
    let mut counted = 0;
    loop {
        while sample <= 64 {
            let index = u64::from(sample) * u64::from(prefixes.count - 1) / 64;
            let index = u32::try_from(index).unwrap_or_default();
            if has(&mut socket, prefixes, index)? != present {
                break;
            }
            sample += 1;
        }
        if sample > 64 {
            let now = Instant::now();
            if prefixes.v6 && now < deadline {
                let held = held6()?;
                let too_early = match present {
                    true => held < prefixes.count,
                    // Others are a few.
                    false => held > prefixes.count / 100 + 64,
                };
                if too_early {
                    std::thread::sleep(Duration::from_micros(500));
                    continue;
                }
            }
            counted = count(&mut socket, prefixes, |_| {})?;
            if counted == if present { prefixes.count } else { 0 } {
                return Ok(now);
            }
            // A count of many routes costs more than a look, and holds up the writer.
            std::thread::sleep(Duration::from_millis(2) + now.elapsed() / 2);
        } else {
            std::thread::sleep(Duration::from_micros(500));
        }
        if Instant::now() > deadline {
            bail!("waited {patience:?} for routes: sample {sample} of 64, {counted} counted");
        }
    }
}

/// Waits until all routes lead to so many next hops, 1 or 2, and returns when that was.
pub fn wait_for_paths(prefixes: Prefixes, paths: usize, patience: Duration) -> Result<Instant> {
    let mut socket = Socket::open()?;
    let deadline = Instant::now() + patience;
    let mut sample = 0u32;
    loop {
        while sample <= 64 {
            let index = u64::from(sample) * u64::from(prefixes.count - 1) / 64;
            let index = u32::try_from(index).unwrap_or_default();
            let found = look(&mut socket, prefixes, index)?;
            if found.is_none_or(|route| paths_of(&route) != paths) {
                break;
            }
            sample += 1;
        }
        let now = Instant::now();
        if sample > 64 {
            let mut found = 0;
            count(&mut socket, prefixes, |route| {
                found += u32::from(paths_of(route) == paths);
            })?;
            if found == prefixes.count {
                return Ok(now);
            }
            std::thread::sleep(now.elapsed() / 2);
        }
        if now > deadline {
            bail!("waited {patience:?} for {paths} paths: sample {sample} of 64");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Next hops of a route as the kernel shows it; those of a nexthop object are shown as well.
fn paths_of(route: &[u8]) -> usize {
    const MULTIPATH: u16 = 9;
    let mut attributes = route.get(12..).unwrap_or_default();
    while let Some(head) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(4);
        if u16::from_ne_bytes([head[2], head[3]]) == MULTIPATH {
            let mut hops = attributes.get(4..length).unwrap_or_default();
            let mut count = 0;
            // struct rtnexthop begins with its length.
            while let Some(head) = hops.get(..2) {
                count += 1;
                let size = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(8);
                hops = hops.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
            return count;
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    1
}

/// IPv6 routes of the calling thread's namespace, of all tables. Costs nothing.
fn held6() -> Result<u32> {
    let text = std::fs::read_to_string("/proc/thread-self/net/rt6_stats")?;
    let entries = text.split_whitespace().nth(3).context("rt6_stats")?;
    Ok(u32::from_str_radix(entries, 16)?)
}

fn has(socket: &mut Socket, prefixes: Prefixes, index: u32) -> Result<bool> {
    let found = look(socket, prefixes, index)?;
    Ok(found.is_some_and(|route| route.get(1) == Some(&prefixes.length())))
}

fn look(socket: &mut Socket, prefixes: Prefixes, index: u32) -> Result<Option<Vec<u8>>> {
    let mut request = Batch::default();
    let full = if prefixes.v6 { 128 } else { 32 };
    let mut header = route_header(prefixes.family(), full, 0, 0);
    header[4] = 0;
    header[7] = 0;
    header[8..12].copy_from_slice(&FIB_MATCH.to_ne_bytes());
    request.start(super::netlink::GETROUTE, 0, &header);
    request.put(DESTINATION, &octets(prefixes.address(index)));
    socket.route(&request)
}

fn count(socket: &mut Socket, prefixes: Prefixes, mut each: impl FnMut(&[u8])) -> Result<u32> {
    let mut found = 0;
    socket.routes(prefixes.family(), |route| {
        if route.get(1) != Some(&prefixes.length()) || route.get(4) != Some(&254) {
            return;
        }
        // The destination is the first attribute but for the table.
        let mut attributes = route.get(12..).unwrap_or_default();
        while let Some(head) = attributes.get(..4) {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let kind = u16::from_ne_bytes([head[2], head[3]]);
            if kind == DESTINATION {
                if prefixes.holds(attributes.get(4..length).unwrap_or_default()) {
                    found += 1;
                    each(route);
                }
                return;
            }
            attributes = attributes
                .get(length.max(4).next_multiple_of(4)..)
                .unwrap_or_default();
        }
    })?;
    Ok(found)
}
