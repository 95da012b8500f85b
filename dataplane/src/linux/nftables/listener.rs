//! Hears when others change the tables.
//!
//! A BPF program in the kernel drops what the own sockets cause and what is of other families.

use std::io;

use netlink_sys::{Socket as Raw, SocketAddr, protocols::NETLINK_NETFILTER};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    super::{
        OpenError, decode,
        listener::{attach, own_or},
        socket::{self, Ports},
    },
    encode::kind,
    read::{number, string},
};
use crate::filter::{
    Tables,
    table::{Family, TABLE},
};

/// Bytes.
const BUFFER: usize = 4 << 20;
const RECEIVE: usize = 64 << 10;
/// NFNLGRP_NFTABLES.
const GROUP: u32 = 7;

/// Changes of the table by others.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<Raw>,
    buffer: Vec<u8>,
}

/// What was heard at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The table was changed, or that cannot be ruled out.
    pub changed: bool,
    /// By whom: program and process id.
    pub by: Option<String>,
    /// Tables that were deleted and not made again by others.
    pub deleted: Tables,
}

impl Changes {
    pub(super) fn open(ports: Ports) -> Result<Self, OpenError> {
        let system = |what| move |source| OpenError::System { what, source };
        let mut raw =
            Raw::new(NETLINK_NETFILTER).map_err(system("cannot open a netfilter socket"))?;
        socket::buffers(&raw, BUFFER);
        attach(&raw, &program(ports)).map_err(system("cannot filter nftables notifications"))?;
        raw.set_non_blocking(true)
            .and_then(|()| raw.bind(&SocketAddr::new(0, 0)))
            .map_err(system("cannot bind a netfilter socket"))?;
        raw.add_membership(GROUP)
            .map_err(system("cannot subscribe to nftables notifications"))?;
        // SAFETY: `Raw` owns its descriptor, always names the same one, and closes it when dropped.
        let socket = unsafe { AsyncFd::register_with_interest(raw, Interest::READABLE) }.map_err(
            |error| OpenError::System {
                what: "cannot wait for a netfilter socket",
                source: error.into(),
            },
        )?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE),
        })
    }

    /// Waits for a change of the table by others, and takes what has come with it; `None` once the
    /// socket is broken. May be dropped while waiting.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            let mut ready = self.socket.readable().await.ok()?;
            let mut heard = Heard::default();
            loop {
                self.buffer.clear();
                self.buffer.reserve(RECEIVE);
                match self
                    .socket
                    .get_ref()
                    .recv(&mut self.buffer, libc::MSG_DONTWAIT)
                {
                    Ok(_) => {
                        for message in decode::messages(&self.buffer) {
                            take(&message, &mut heard);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        heard.changed = true;
                    }
                    Err(error) => {
                        tracing::error!(%error, "nftables notifications cannot be read");
                        return None;
                    }
                }
            }
            if heard.changed {
                return Some(heard);
            }
        }
    }
}

fn take(message: &decode::Message<'_>, heard: &mut Heard) {
    let attributes = message.payload.get(4..).unwrap_or_default();
    if message.kind == kind::NEW_GENERATION {
        // It ends each transaction. NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME.
        if heard.changed
            && heard.by.is_none()
            && let (Some(process), Some(name)) = (number(attributes, 2), string(attributes, 3))
        {
            heard.by = Some(format!("{name}, process {process}"));
        }
        return;
    }
    // The first attribute of every kind of object names its table.
    let family = message.payload.first();
    let ours = Family::ALL
        .iter()
        .any(|ours| family == Some(&ours.number()));
    if !ours || string(attributes, 1) != Some(TABLE) {
        return;
    }
    heard.changed = true;
    let deleted = match message.kind {
        kind::DELETE_TABLE => true,
        kind::NEW_TABLE => false,
        _ => return,
    };
    match family == Some(&Family::Inet.number()) {
        true => heard.deleted.inet = deleted,
        false => heard.deleted.bridge = deleted,
    }
}

/// Offsets are those of `nlmsghdr`; behind it the first byte is the family.
fn program(ports: Ports) -> Vec<libc::sock_filter> {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let one = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = own_or(ports);
    program.extend([
        one(LOAD_HALF, 0, 0, 4),
        one(JUMP_EQUAL, 3, 0, u32::from(kind::NEW_GENERATION.to_be())),
        one(LOAD_BYTE, 0, 0, 16),
        one(JUMP_EQUAL, 1, 0, u32::from(Family::Inet.number())),
        one(JUMP_EQUAL, 0, 1, u32::from(Family::Bridge.number())),
        one(RETURN, 0, 0, u32::MAX),
        one(RETURN, 0, 0, 0),
    ]);
    program
}
