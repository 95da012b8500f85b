//! Hears what others change, on the host and in every namespace the host has a veth into
//! (NETLINK_LISTEN_ALL_NSID).
//!
//! A BPF program inside the kernel drops what this driver's own sockets cause, and what is of no
//! interest, before it costs a wake-up or room in the buffer. When the buffer overflows nevertheless
//! the kernel says ENOBUFS once, and changes are missing: [`ChangeEvent::Overrun`].

use std::{collections::VecDeque, io, mem, os::fd::AsRawFd, sync::Arc};

use netlink_sys::{Socket as Raw, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    ChangeEvent, Namespaces, OpenError,
    decode::{self, Message},
    encode::{
        AF_BRIDGE, AF_INET, AF_INET6, TABLE_MAIN, attribute::NUD_PERMANENT, kind, route_type,
    },
    socket::{self, Ports},
};
use crate::kernel::{Change, INDEX_RANGE, PROTOCOL_AGENTD_BGP, Place};

/// Bytes; some ten thousand changes.
const BUFFER: usize = 16 << 20;
/// One notification; a link's is the longest, at about 2 KiB.
const RECEIVE: usize = 32 << 10;
/// Datagrams read before other tasks get their turn.
const BURST: usize = 256;

/// RTNLGRP_*.
const GROUPS: [u32; 10] = [
    1,  // LINK
    3,  // NEIGH
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
    24, // IPV4_NETCONF
    25, // IPV6_NETCONF
    28, // NSID
    32, // NEXTHOP
];

/// Changes in the kernel, in order.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<Raw>,
    namespaces: Arc<Namespaces>,
    buffer: Vec<u8>,
    queue: VecDeque<ChangeEvent>,
}

impl Changes {
    pub(super) fn open(ports: Ports, namespaces: Arc<Namespaces>) -> Result<Self, OpenError> {
        let system = |what| move |source| OpenError::System { what, source };
        let mut raw = Raw::new(NETLINK_ROUTE).map_err(system("cannot open a netlink socket"))?;
        socket::buffers(&raw, BUFFER);
        attach(&raw, &filter(ports)).map_err(system("cannot filter notifications"))?;
        raw.set_non_blocking(true)
            .and_then(|()| raw.bind(&SocketAddr::new(0, 0)))
            .map_err(system("cannot bind a netlink socket"))?;
        for group in GROUPS {
            raw.add_membership(group)
                .map_err(system("cannot subscribe to the kernel's notifications"))?;
        }
        raw.set_listen_all_namespaces(true)
            .map_err(system("cannot listen to other network namespaces"))?;
        // SAFETY: `Raw` owns its descriptor, always names the same one, and closes it when dropped.
        let socket = unsafe { AsyncFd::register_with_interest(raw, Interest::READABLE) }.map_err(
            |error| OpenError::System {
                what: "cannot wait for a netlink socket",
                source: error.into(),
            },
        )?;
        Ok(Self {
            socket,
            namespaces,
            buffer: vec![0; RECEIVE],
            queue: VecDeque::new(),
        })
    }

    /// What has been notified by now, without waiting. Should it be very much, the rest stays for
    /// [`next`](Self::next), as does a fault of the socket.
    pub fn ready(&mut self) -> impl Iterator<Item = ChangeEvent> + '_ {
        for _ in 0..BURST {
            let raw = self.socket.get_ref();
            match take(raw, &self.namespaces, &mut self.buffer, &mut self.queue) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
        self.queue.drain(..)
    }

    /// The next change; `None` once the socket is broken. May be dropped while waiting.
    pub async fn next(&mut self) -> Option<ChangeEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let mut ready = self.socket.readable().await.ok()?;
            for _ in 0..BURST {
                let raw = self.socket.get_ref();
                match take(raw, &self.namespaces, &mut self.buffer, &mut self.queue) {
                    Ok(true) => {}
                    Ok(false) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the kernel's notifications cannot be read");
                        return None;
                    }
                }
            }
        }
    }
}

/// Reads one datagram into the queue; `false`: there is none.
fn take(
    raw: &Raw,
    namespaces: &Namespaces,
    buffer: &mut [u8],
    queue: &mut VecDeque<ChangeEvent>,
) -> io::Result<bool> {
    match receive(raw, buffer) {
        Ok((length, nsid)) => {
            let bytes = buffer.get(..length).unwrap_or(&[]);
            for message in decode::messages(bytes) {
                queue.extend(event(namespaces, nsid, message));
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            namespaces.doubt();
            queue.push_back(ChangeEvent::Overrun);
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

fn event(namespaces: &Namespaces, nsid: Option<i32>, message: Message<'_>) -> Option<ChangeEvent> {
    let payload = message.payload;
    if nsid.is_none() && message.kind == kind::DELETE_NSID {
        if let Some(gone) = decode::nsid(payload) {
            namespaces.forget(gone);
        }
        return None;
    }
    let place = match nsid {
        None => Place::Host,
        // Namespaces that are nobody's workload are heard, too.
        Some(nsid) => Place::Netns(namespaces.get(nsid)?),
    };
    let change = match message.kind {
        kind::NEW_LINK => Change::Link(decode::link(payload)?),
        kind::DELETE_LINK => Change::LinkDeleted {
            index: decode::u32_at(payload, 4)?,
        },
        kind::NEW_ADDRESS => Change::Address(decode::interface_address(payload)?),
        kind::DELETE_ADDRESS => Change::AddressDeleted(decode::interface_address(payload)?),
        kind::NEW_ROUTE => Change::Route(decode::route(payload)?),
        kind::DELETE_ROUTE => Change::RouteDeleted(decode::route(payload)?),
        kind::NEW_NEXT_HOP => Change::NextHop(decode::next_hop(payload)?),
        kind::DELETE_NEXT_HOP => Change::NextHopDeleted {
            id: decode::next_hop_id(payload)?,
        },
        kind::NEW_NEIGHBOUR if payload.first() == Some(&AF_BRIDGE) => {
            match decode::is_permanent(payload) {
                true => Change::Fdb(decode::fdb(payload)?),
                // It may have been permanent before.
                false => Change::FdbDeleted(decode::fdb(payload)?),
            }
        }
        kind::DELETE_NEIGHBOUR if payload.first() == Some(&AF_BRIDGE) => {
            Change::FdbDeleted(decode::fdb(payload)?)
        }
        kind::NEW_NEIGHBOUR => Change::Neighbour(decode::neighbour(payload)?),
        kind::DELETE_NEIGHBOUR => Change::NeighbourDeleted(decode::neighbour(payload)?),
        kind::NEW_NETCONF => Change::Netconf {
            // 0 for "all" and "default".
            index: u32::try_from(decode::netconf_index(payload)?).unwrap_or(0),
        },
        _ => return None,
    };
    Some(ChangeEvent::Change(place, change))
}

/// Reads one datagram; the namespace is `None` for the socket's own.
fn receive(socket: &Raw, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    /// Holds one control message with an i32; aligned as `cmsghdr` must be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero bytes are a valid msghdr: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.0).cast();
    header.msg_controllen = control.0.len();
    // SAFETY: the header points to a buffer and to control space that outlive the call, with their
    // true lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    let mut nsid = None;
    // SAFETY: the kernel has filled `control` and set `msg_controllen`; the macros walk inside it.
    unsafe {
        let mut item = libc::CMSG_FIRSTHDR(&raw const header);
        while !item.is_null() {
            if (*item).cmsg_level == libc::SOL_NETLINK
                && (*item).cmsg_type == libc::NETLINK_LISTEN_ALL_NSID
            {
                nsid = Some(libc::CMSG_DATA(item).cast::<i32>().read_unaligned());
            }
            item = libc::CMSG_NXTHDR(&raw const header, item);
        }
    }
    Ok((length, nsid))
}

pub(super) fn attach(socket: &Raw, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program from a pointer and length that belong together, and
    // does not write to it.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            libc::socklen_t::try_from(mem::size_of_val(&program)).expect("a small struct"),
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The beginning of a filter program: drops what the own sockets cause.
pub(super) fn own_or(ports: Ports) -> Vec<libc::sock_filter> {
    let one = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    vec![
        // Load a word, mask it, compare, return.
        one(0x20, 0, 0, 12),
        one(0x54, 0, 0, Ports::MASK.to_be()),
        one(0x15, 0, 1, ports.base().to_be()),
        one(0x06, 0, 0, 0),
    ]
}

/// The filter program. Offsets are those of `nlmsghdr` (16 bytes: length, type, flags, sequence,
/// port id) and of the fixed header behind it. BPF loads are big-endian, netlink is native.
fn filter(ports: Ports) -> Vec<libc::sock_filter> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_SET: u16 = 0x45;
    const JUMP_AT_LEAST: u16 = 0x35;
    /// Where the highest octet of a neighbour's interface index is.
    const INDEX_TOP: u32 = if cfg!(target_endian = "little") {
        23
    } else {
        20
    };
    const RETURN: u16 = 0x06;
    let one = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let kind = |kind: u16| u32::from(kind.to_be());
    let drop = one(RETURN, 0, 0, 0);
    let keep = one(RETURN, 0, 0, u32::MAX);

    let mut program = own_or(ports);
    // Links: not those of bridge ports (AF_BRIDGE).
    for wanted in [kind::NEW_LINK, kind::DELETE_LINK] {
        program.extend([
            one(LOAD_HALF, 0, 0, 4),
            one(JUMP_EQUAL, 0, 4, kind(wanted)),
            one(LOAD_BYTE, 0, 0, 16),
            one(JUMP_EQUAL, 0, 1, 0),
            keep,
            drop,
        ]);
    }
    // A nexthop object of IPv6 takes its routes along, and the kernel tells of each, in nobody's name
    // (port id 0). That the object is gone was said, and is enough: for IPv4 nothing else is said.
    program.extend([
        one(LOAD_HALF, 0, 0, 4),
        one(JUMP_EQUAL, 0, 5, kind(kind::DELETE_ROUTE)),
        one(LOAD_WORD, 0, 0, 12),
        one(JUMP_EQUAL, 0, 3, 0),
        one(LOAD_BYTE, 0, 0, 21),
        one(JUMP_EQUAL, 0, 1, u32::from(PROTOCOL_AGENTD_BGP)),
        drop,
    ]);
    // Routes: of the main table; not local, broadcast, anycast and multicast ones.
    for wanted in [kind::NEW_ROUTE, kind::DELETE_ROUTE] {
        program.extend([
            one(LOAD_HALF, 0, 0, 4),
            one(JUMP_EQUAL, 0, 10, kind(wanted)),
            one(LOAD_BYTE, 0, 0, 20),
            one(JUMP_EQUAL, 1, 0, TABLE_MAIN),
            drop,
            one(LOAD_BYTE, 0, 0, 23),
            one(JUMP_EQUAL, 4, 0, u32::from(route_type::UNICAST)),
            one(JUMP_EQUAL, 3, 0, u32::from(route_type::BLACKHOLE)),
            one(JUMP_EQUAL, 2, 0, u32::from(route_type::UNREACHABLE)),
            one(JUMP_EQUAL, 1, 0, u32::from(route_type::PROHIBIT)),
            one(JUMP_EQUAL, 0, 1, u32::from(route_type::THROW)),
            keep,
        ]);
        // What matched the type but no kind of route falls through to the next test, which it
        // fails, and is dropped in the end.
    }
    // Neighbours: permanent ones, and all of links with an index of our making, because one may
    // have been permanent before; entries that come and go by themselves elsewhere are of no
    // interest. Deleted ones of IPv4 and IPv6; those of forwarding databases when permanent.
    program.extend([
        one(LOAD_HALF, 0, 0, 4),
        one(JUMP_EQUAL, 0, 6, kind(kind::NEW_NEIGHBOUR)),
        one(LOAD_HALF, 0, 0, 24),
        // The bridge tool sets another bit beside it.
        one(JUMP_SET, 2, 0, u32::from(NUD_PERMANENT.to_be())),
        one(LOAD_BYTE, 0, 0, INDEX_TOP),
        one(JUMP_AT_LEAST, 0, 1, INDEX_RANGE.start >> 24),
        keep,
        drop,
    ]);
    program.extend([
        one(JUMP_EQUAL, 0, 8, kind(kind::DELETE_NEIGHBOUR)),
        one(LOAD_BYTE, 0, 0, 16),
        one(JUMP_EQUAL, 4, 0, u32::from(AF_INET)),
        one(JUMP_EQUAL, 3, 0, u32::from(AF_INET6)),
        one(JUMP_EQUAL, 0, 3, u32::from(AF_BRIDGE)),
        one(LOAD_HALF, 0, 0, 24),
        // The bridge tool sets another bit beside it.
        one(JUMP_SET, 0, 1, u32::from(NUD_PERMANENT.to_be())),
        keep,
        drop,
    ]);
    // Everything else that is of interest, whole.
    for wanted in [
        kind::NEW_ADDRESS,
        kind::DELETE_ADDRESS,
        kind::NEW_NEXT_HOP,
        kind::DELETE_NEXT_HOP,
        kind::NEW_NETCONF,
        kind::DELETE_NSID,
    ] {
        program.extend([one(JUMP_EQUAL, 0, 1, kind(wanted)), keep]);
    }
    program.push(drop);
    program
}
