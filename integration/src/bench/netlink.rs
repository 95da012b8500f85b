//! Raw rtnetlink: messages built by hand and sent in batches, with an acknowledgement asked of the
//! last only (errors of others come back all the same).

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

pub const NEWLINK: u16 = 16;
pub const DELLINK: u16 = 17;
pub const GETLINK: u16 = 18;
pub const NEWADDR: u16 = 20;
pub const NEWROUTE: u16 = 24;
pub const DELROUTE: u16 = 25;
pub const GETROUTE: u16 = 26;
pub const NEWNEIGH: u16 = 28;
pub const NEWNEXTHOP: u16 = 104;
pub const DELNEXTHOP: u16 = 105;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// Messages that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    last: usize,
    sequence: u32,
}

impl Batch {
    /// Starts a message with its fixed part.
    pub fn start(&mut self, kind: u16, flags: u16, fixed: &[u8]) {
        self.last = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        self.close_message();
    }

    /// Adds an attribute to the message.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes here are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.close_message();
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Adds an attribute that holds what `body` adds.
    pub fn nest(&mut self, kind: u16, fixed: &[u8], body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.put(kind, fixed);
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("messages here are short");
        self.patch(start, &length.to_ne_bytes());
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn close_message(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        let length = u32::try_from(self.bytes.len() - self.last).expect("messages are short");
        self.patch(self.last, &length.to_ne_bytes());
    }
}

/// A netlink socket of the namespace its thread was in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// One answer: kind, sequence number, payload.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize;
        let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer {
            kind: u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(message.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?),
            payload: message.get(HEADER..)?,
        })
    })
}

fn error_number(payload: &[u8]) -> i32 {
    payload
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, i32::from_ne_bytes)
}

impl Socket {
    pub fn open() -> Result<Self> {
        Self::of(SockProtocol::NetlinkRoute)
    }

    /// For nftables.
    pub fn open_netfilter() -> Result<Self> {
        Self::of(SockProtocol::NetlinkNetFilter)
    }

    fn of(protocol: SockProtocol) -> Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        setsockopt(&fd, sockopt::SndBufForce, &(64 << 20))?;
        setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            fd,
            buffer: vec![0; 1 << 18],
        })
    }

    /// Sends a batch and waits until the kernel has done all of it. The batch is empty then.
    pub fn execute(&mut self, batch: &mut Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let flags = batch.last + 6;
        let old = batch
            .bytes
            .get(flags..flags + 2)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u16::from_ne_bytes);
        batch.patch(flags, &(old | ACK).to_ne_bytes());
        let sent = send(self.fd.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
        ensure!(sent == batch.bytes.len(), "a short write to netlink");
        batch.bytes.clear();
        let mut failure = None;
        loop {
            let count = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for answer in answers(self.buffer.get(..count).unwrap_or_default()) {
                if answer.kind != ERROR {
                    continue;
                }
                let number = error_number(answer.payload);
                if number != 0 && failure.is_none() {
                    failure = Some(nix::errno::Errno::from_raw(-number));
                }
                if answer.sequence == batch.sequence {
                    return match failure {
                        Some(error) => Err(error).context("netlink"),
                        None => Ok(()),
                    };
                }
            }
        }
    }

    /// Dumps routes and calls `each` with the fixed part and the attributes of every one.
    pub fn routes(&mut self, family: u8, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut batch = Batch::default();
        batch.start(GETROUTE, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        send(self.fd.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
        loop {
            let count = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for answer in answers(self.buffer.get(..count).unwrap_or_default()) {
                match answer.kind {
                    DONE => return Ok(()),
                    ERROR => bail!("dump of routes: error {}", error_number(answer.payload)),
                    NEWROUTE => each(answer.payload),
                    _ => {}
                }
            }
        }
    }

    /// Dumps objects of one kind (a `GET…` message with this fixed part) and calls `each` with the
    /// fixed part and the attributes of every one. An interrupted dump is an error.
    pub fn dump(&mut self, kind: u16, fixed: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        const INTERRUPTED: u16 = 0x10;
        let mut batch = Batch::default();
        batch.start(kind, DUMP, fixed);
        send(self.fd.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
        loop {
            let count = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for answer in answers(self.buffer.get(..count).unwrap_or_default()) {
                ensure!(answer.flags & INTERRUPTED == 0, "an interrupted dump");
                match answer.kind {
                    DONE => return Ok(()),
                    ERROR => bail!("dump: error {}", error_number(answer.payload)),
                    _ => each(answer.payload),
                }
            }
        }
    }

    /// The route that this request finds, or none.
    pub fn route(&mut self, request: &Batch) -> Result<Option<Vec<u8>>> {
        send(self.fd.as_raw_fd(), &request.bytes, MsgFlags::empty())?;
        let count = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        let answer = answers(self.buffer.get(..count).unwrap_or_default()).next();
        Ok(answer
            .filter(|answer| answer.kind == NEWROUTE)
            .map(|answer| answer.payload.to_vec()))
    }
}

/// The fixed part of a route message (struct rtmsg).
pub fn route_header(family: u8, length: u8, protocol: u8, scope: u8) -> [u8; 12] {
    // family, destination length, source length, tos, table main, protocol, scope, type unicast
    [family, length, 0, 0, 254, protocol, scope, 1, 0, 0, 0, 0]
}

/// The fixed part of a link message (struct ifinfomsg).
pub fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&1u32.to_ne_bytes());
        header[12..16].copy_from_slice(&1u32.to_ne_bytes());
    }
    header
}
