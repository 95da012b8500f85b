//! Which programs of this namespace listen on given ports, asked by sock_diag(7).
//!
//! A published port is taken from packets before a socket sees them, so a program that listens there
//! would lose its clients without a word. One dump for each protocol and family; of a single port
//! the kernel shows no other sockets. No process is looked at: the kernel names the user and the
//! inode of a socket, and not the program.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    decode,
    encode::{AF_INET, AF_INET6, Encoder, NLM_F_DUMP},
    socket::Socket,
};
use crate::desired::Protocol;

/// SOCK_DIAG_BY_FAMILY (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// INET_DIAG_SKV6ONLY (linux/inet_diag.h).
const V6ONLY: u16 = 11;
/// States of linux/tcp_states.h; a UDP socket that is not connected is in CLOSE.
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
/// `inet_diag_req_v2` and `inet_diag_msg` (linux/inet_diag.h).
const REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// A socket that takes what is sent to a port by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub protocol: Protocol,
    /// Unspecified: every address of its family, and with [`Listener::both`] of the other one.
    pub address: IpAddr,
    pub port: u16,
    /// An IPv6 socket of every address that takes IPv4, too.
    pub both: bool,
    /// Who made it.
    pub uid: u32,
    pub inode: u32,
}

impl Listener {
    /// Whether it takes packets to this address.
    pub fn takes(&self, address: IpAddr) -> bool {
        if self.address.is_unspecified() {
            self.takes_family(address.is_ipv4())
        } else {
            self.address == address
        }
    }

    /// Whether it takes packets to some address of the family.
    pub fn takes_family(&self, ipv4: bool) -> bool {
        self.address.is_ipv4() == ipv4 || self.both
    }
}

/// As ss(8) writes it, with the user.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = SocketAddr::new(self.address, self.port);
        write!(f, "{socket}/{}, uid {}", self.protocol, self.uid)
    }
}

/// Those on these ports, in the calling thread's namespace. Nothing is said of a protocol that the
/// kernel does not have. Blocks for as long as the kernel looks.
pub fn listeners(ports: &[(Protocol, u16)]) -> io::Result<Vec<Listener>> {
    let socket = Socket::open_diagnostics()?;
    let mut encoder = Encoder::default();
    let mut buffer = Vec::new();
    let mut sequence = 0;
    let mut found = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let wanted = || ports.iter().filter(|(of, _)| *of == protocol);
        let Some((_, first)) = wanted().next() else {
            continue;
        };
        // 0: all of them.
        let port = if wanted().all(|(_, port)| port == first) {
            *first
        } else {
            0
        };
        for family in [AF_INET, AF_INET6] {
            sequence += 1;
            encoder.clear();
            encoder.begin(
                BY_FAMILY,
                NLM_F_DUMP,
                sequence,
                &request(family, protocol, port),
            );
            encoder.end();
            let result = socket.dump(encoder.bytes(), sequence, &mut buffer, |message| {
                let listener = listener(protocol, message.payload);
                found.extend(listener.filter(|one| wanted().any(|(_, port)| *port == one.port)));
            });
            match result {
                // Sockets come and go; those that have listened for a while are shown.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::EINVAL | libc::EAFNOSUPPORT)
                    ) => {}
                result => result?,
            }
        }
    }
    found.sort();
    Ok(found)
}

fn state(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp | Protocol::Sctp => LISTEN,
        Protocol::Udp => CLOSE,
    }
}

fn request(family: u8, protocol: Protocol, port: u16) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0] = family;
    request[1] = protocol.number();
    let states = 1_u32 << state(protocol);
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    request[8..10].copy_from_slice(&port.to_be_bytes());
    // INET_DIAG_NOCOOKIE.
    request[48..56].fill(0xff);
    request
}

fn listener(protocol: Protocol, payload: &[u8]) -> Option<Listener> {
    let message: &[u8; MESSAGE] = payload.first_chunk()?;
    let [family, shown, ..] = *message;
    if shown != state(protocol) {
        return None;
    }
    let port = u16::from_be_bytes([message[4], message[5]]);
    let address: IpAddr = match family {
        AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(&message[8..12]).ok()?).into(),
        AF_INET6 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..24]).ok()?);
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    let only = decode::attributes(payload.get(MESSAGE..)?)
        .find(|(kind, _)| *kind == V6ONLY)
        .is_some_and(|(_, value)| value == [1]);
    Some(Listener {
        protocol,
        address,
        port,
        both: family == AF_INET6 && address.is_ipv6() && address.is_unspecified() && !only,
        uid: decode::u32_at(payload, 64)?,
        inode: decode::u32_at(payload, 68)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
    };

    use nix::sys::stat::fstat;

    use super::*;

    /// What is said of one socket, whoever else has the port elsewhere.
    fn said(socket: impl AsFd, ports: &[(Protocol, u16)]) -> Option<(String, bool)> {
        let inode = fstat(socket).unwrap().st_ino;
        let found = listeners(ports).unwrap();
        let one = found.iter().find(|one| u64::from(one.inode) == inode)?;
        Some((one.address.to_string(), one.both))
    }

    #[test]
    fn who_listens_is_found_by_protocol_address_and_port() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let two = TcpListener::bind("127.0.0.2:0").unwrap();
        let at = |address: &str| Some((address.to_owned(), false));
        let port = |socket: &TcpListener| (Protocol::Tcp, socket.local_addr().unwrap().port());
        assert_eq!(said(&one, &[port(&one)]), at("127.0.0.1"));
        for socket in [(&one, "127.0.0.1"), (&two, "127.0.0.2")] {
            let ports = [port(&one), port(&two)];
            assert_eq!(said(socket.0, &ports), at(socket.1));
        }
        let number = port(&one).1;
        assert_eq!(said(&one, &[(Protocol::Tcp, number ^ 1)]), None);
        assert_eq!(said(&one, &[(Protocol::Udp, number)]), None);
        assert_eq!(said(&one, &[(Protocol::Sctp, number)]), None);
        // One that is connected is none.
        let client = TcpStream::connect(one.local_addr().unwrap()).unwrap();
        let own = client.local_addr().unwrap().port();
        assert_eq!(said(&client, &[(Protocol::Tcp, own)]), None);
    }

    #[test]
    fn an_ipv6_socket_of_every_address_takes_ipv4_unless_it_says_otherwise() {
        let port = |socket: &UdpSocket| [(Protocol::Udp, socket.local_addr().unwrap().port())];
        let any = UdpSocket::bind("[::]:0").unwrap();
        assert_eq!(said(&any, &port(&any)), Some(("::".to_owned(), true)));
        let one = UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(said(&one, &port(&one)), Some(("::1".to_owned(), false)));
        one.connect("[::1]:9").unwrap();
        assert_eq!(said(&one, &port(&one)), None);
    }

    #[test]
    fn a_socket_of_every_address_takes_all_of_its_families() {
        let listener = |address: &str, both| Listener {
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port: 80,
            both,
            uid: 0,
            inode: 1,
        };
        let takes = |listener: Listener, address: &str| listener.takes(address.parse().unwrap());
        assert!(takes(listener("0.0.0.0", false), "192.0.2.1"));
        assert!(!takes(listener("0.0.0.0", false), "2001:db8::1"));
        assert!(takes(listener("::", true), "192.0.2.1"));
        assert!(!takes(listener("::", false), "192.0.2.1"));
        assert!(takes(listener("::", false), "2001:db8::1"));
        assert!(takes(listener("192.0.2.1", false), "192.0.2.1"));
        assert!(!takes(listener("192.0.2.1", false), "192.0.2.2"));
        assert_eq!(listener("::", true).to_string(), "[::]:80/tcp, uid 0");
    }
}
