//! A netlink socket for requests.
//!
//! NETLINK_ROUTE handles a request inside `send`, so when that returns all answers but the rest of a
//! dump lie in the receive buffer. Nothing here waits: an empty buffer means that an answer was lost.

use std::{io, time::Duration};

use netlink_sys::{
    Socket as Raw, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    decode::{self, Message},
    encode::kind,
};

/// Bytes; refusals of a whole batch fit in.
const BUFFER: usize = 8 << 20;
/// The kernel's dumps come in pieces of at most 32 KiB.
const RECEIVE: usize = 64 << 10;
/// What one refusal occupies in the receive buffer, with its overhead in the kernel.
const ANSWER_COST: usize = 1280;

/// All sockets of this process that change something have a port id from one block of 256: what
/// they cause is dropped by the listener's filter inside the kernel. Blocks lie where the kernel's
/// own choice (process ids, and numbers above 2^31) never falls, so foreign sockets are not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    base: u32,
}

impl Ports {
    pub(super) const MASK: u32 = !0xff;

    pub(super) fn choose() -> Self {
        Self {
            base: (0x4000_0000 + fastrand::u32(0..0x4000_0000)) & Self::MASK,
        }
    }

    pub(super) fn base(self) -> u32 {
        self.base
    }

    pub(super) const WRITER: u8 = 1;
    pub(super) const READER: u8 = 2;
}

#[derive(Debug)]
pub(super) struct Socket {
    raw: Raw,
    /// How many requests may be refused in one send without losing an answer.
    window: usize,
}

impl Socket {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open(ports: Ports, number: u8) -> io::Result<Self> {
        Self::of(NETLINK_ROUTE, ports, number)
    }

    /// For nftables and conntrack, in the calling thread's namespace.
    pub(super) fn open_netfilter(ports: Ports, number: u8) -> io::Result<Self> {
        Self::of(NETLINK_NETFILTER, ports, number)
    }

    /// For questions about sockets, in the calling thread's namespace. It changes nothing, so any
    /// port id will do.
    pub(super) fn open_diagnostics() -> io::Result<Self> {
        Self::at(NETLINK_SOCK_DIAG, 0)
    }

    fn of(protocol: isize, ports: Ports, number: u8) -> io::Result<Self> {
        Self::at(protocol, ports.base | u32::from(number))
    }

    fn at(protocol: isize, port: u32) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind(&SocketAddr::new(port, 0))?;
        // Refusals without a copy of the request, but with the kernel's words.
        raw.set_cap_ack(true)?;
        raw.set_ext_ack(true)?;
        raw.set_netlink_get_strict_chk(true)?;
        let window = buffers(&raw, BUFFER) / ANSWER_COST;
        Ok(Self {
            raw,
            window: window.clamp(16, 4096),
        })
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.raw.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one datagram into `buffer`. WouldBlock: there is none.
    pub(super) fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.reserve(RECEIVE);
        loop {
            match self.raw.recv(buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Throws away what earlier requests may have left.
    pub(super) fn discard(&self, buffer: &mut Vec<u8>) {
        loop {
            match self.receive(buffer) {
                Ok(()) => {}
                // Reported once for each loss.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Sends one dump request with this sequence number, and hands every message of the answer to
    /// `each`. An interrupted dump is the error EINTR.
    pub(super) fn dump(
        &self,
        request: &[u8],
        sequence: u32,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        self.send(request)?;
        let mut interrupted = false;
        loop {
            self.receive(buffer)?;
            for message in decode::messages(buffer) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & decode::NLM_F_DUMP_INTR != 0;
                let end = match message.kind {
                    kind::DONE => Some(
                        decode::i32_at(message.payload, 0)
                            .unwrap_or_default()
                            .saturating_neg(),
                    ),
                    kind::ERROR => Some(decode::error(&message).0),
                    _ => None,
                };
                match end {
                    Some(0) if interrupted => {
                        return Err(io::Error::from_raw_os_error(libc::EINTR));
                    }
                    Some(0) => return Ok(()),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None => each(message),
                }
            }
        }
    }
}

/// Makes a socket's buffers large, past the system's limit where that is permitted, and returns the
/// size of the receive buffer.
pub(super) fn buffers(socket: &Raw, bytes: usize) -> usize {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        // Not in the first user namespace: as large as the system allows.
        let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
    }
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &bytes);
    }
    nix::sys::socket::getsockopt(socket, sockopt::RcvBuf).unwrap_or(200 << 10)
}

/// Between attempts at an interrupted dump.
pub(super) const DUMP_PAUSE: Duration = Duration::from_millis(2);
