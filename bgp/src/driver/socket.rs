//! Sockets with the options BGP wants: source address, TTL and GTSM (RFC 5082), TCP MD5 (RFC 2385),
//! DSCP CS6, no Nagle, and a bound on unacknowledged data.

use std::{
    io, mem,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
    time::Duration,
};

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::{
    speaker::config::{Password, PeerConfig},
    types::Asn,
};

/// DSCP CS6, network control (RFC 4594), as it stands in the traffic class octet.
const CLASS_CS6: u32 = 0xc0;
/// Pending connections of a listening socket; a node restart makes many peers come at once.
const BACKLOG: i32 = 1024;
/// Beside the hold timer, for sessions without one.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(120);

/// A listening socket. IPv6 sockets take IPv6 only, so both wildcards can be listened on.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it, and the SYN-ACK must pass the GTSM check of the peer.
    set_ttl(&socket, address.is_ipv6(), 255)?;
    set_class(&socket, address.is_ipv6())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to the peer as its configuration says.
pub(super) async fn dial(local_asn: Asn, peer: &PeerConfig) -> io::Result<TcpStream> {
    let remote = match peer.address {
        IpAddr::V4(address) => SocketAddr::from((address, peer.port)),
        IpAddr::V6(address) => SocketAddrV6::new(address, peer.port, 0, peer.scope_id).into(),
    };
    let socket = Socket::new(
        Domain::for_address(remote),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    configure(&SockRef::from(&socket), local_asn, peer)?;
    if let Some(password) = &peer.password {
        set_password(&socket, peer.address.into(), peer.scope_id, Some(password))?;
    }
    if let Some(local) = peer.local_address {
        let local = match local {
            IpAddr::V4(address) => SocketAddr::from((address, 0)),
            IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, peer.scope_id).into(),
        };
        socket.bind(&local.into())?;
    }
    // SAFETY: the descriptor is an open, nonblocking TCP socket, and its ownership moves.
    let socket = unsafe { TcpSocket::from_raw_fd(socket.into_raw_fd()) };
    socket.connect(remote).await
}

/// The options of every connection, dialled or accepted.
pub(super) fn configure(socket: &SockRef<'_>, local_asn: Asn, peer: &PeerConfig) -> io::Result<()> {
    let ipv6 = peer.address.is_ipv6();
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX.max(peer.timers.hold_time * 3)))?;
    set_class(socket, ipv6)?;
    if let Some(hops) = peer.ttl_security {
        set_ttl(socket, ipv6, 255)?;
        set_minimum_ttl(socket, ipv6, 256 - i32::from(hops))?;
    } else if let Some(hops) = peer.multihop {
        set_ttl(socket, ipv6, u32::from(hops))?;
    } else if peer.asn.exact() != Some(local_asn) {
        set_ttl(socket, ipv6, 1)?;
    } else {
        set_ttl(socket, ipv6, 64)?;
    }
    Ok(())
}

fn set_ttl(socket: &Socket, ipv6: bool, ttl: u32) -> io::Result<()> {
    if ipv6 {
        socket.set_unicast_hops_v6(ttl)
    } else {
        socket.set_ttl_v4(ttl)
    }
}

fn set_class(socket: &Socket, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        socket.set_tclass_v6(CLASS_CS6)
    } else {
        socket.set_tos_v4(CLASS_CS6)
    }
}

/// RFC 5082 §3: the kernel drops what has a smaller TTL.
fn set_minimum_ttl(socket: &Socket, ipv6: bool, ttl: i32) -> io::Result<()> {
    if ipv6 {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &ttl)
    } else {
        set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &ttl)
    }
}

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct TcpMd5Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: libc::c_int,
    key: [u8; Password::MAX_LENGTH],
}

/// TCP_MD5SIG with a prefix (linux/tcp.h), and the flag that says that it has one.
const TCP_MD5SIG_EXT: libc::c_int = 32;
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;

/// Signs and checks all segments exchanged with the addresses on this socket, and on what a
/// listening socket accepts from them. Of several keys the one of the longest prefix counts. `None`
/// takes the key of exactly this prefix away.
pub(super) fn set_password(
    socket: &impl AsRawFd,
    peer: IpNet,
    scope_id: u32,
    password: Option<&Password>,
) -> io::Result<()> {
    let address: SockAddr = match peer.addr() {
        IpAddr::V4(address) => SocketAddr::from((address, 0)).into(),
        IpAddr::V6(address) => SocketAddr::from(SocketAddrV6::new(address, 0, 0, scope_id)).into(),
    };
    let octets = password.map_or(&[][..], Password::octets);
    let mut key = [0; Password::MAX_LENGTH];
    for (slot, octet) in key.iter_mut().zip(octets) {
        *slot = *octet;
    }
    let mut storage = mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // SAFETY: `SockAddr` holds `len` initialised octets of a socket address, which fit a
    // `sockaddr_storage`, and all zeros is a valid `sockaddr_storage`.
    let storage = unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            storage.as_mut_ptr().cast::<u8>(),
            address.len() as usize,
        );
        storage.assume_init()
    };
    let signature = TcpMd5Signature {
        address: storage,
        flags: TCP_MD5SIG_FLAG_PREFIX,
        prefix_length: peer.prefix_len(),
        key_length: u16::try_from(octets.len()).unwrap_or(0),
        interface: 0,
        key,
    };
    set_option(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &signature)
}

fn set_option<T>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(mem::size_of::<T>())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open for the time of the call, and the kernel reads `length` octets
    // of `value`, which is a plain C value of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a listening socket takes connections from the address.
pub(super) fn listens_for(listener: SocketAddr, peer: IpNet) -> bool {
    listener.is_ipv4() == peer.addr().is_ipv4()
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
