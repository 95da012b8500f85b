//! What the kernel says of the sockets, and what it lets through, over the loopback device.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{net::Ipv6Addr, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;

/// Until something that cannot come is given up.
const MOMENT: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(10);
const OURS: Asn = Asn(64512);
const THEIRS: Asn = Asn(64513);

fn addresses() -> [IpAddr; 2] {
    [[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()]
}

fn peer(listener: &TcpListener, asn: Asn) -> PeerConfig {
    let address = listener.local_addr().unwrap();
    let mut peer = PeerConfig::new("peer", address.ip(), asn);
    peer.port = address.port();
    peer
}

fn option(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int) -> i32 {
    let mut value: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap();
    // SAFETY: the descriptor is open, and the kernel writes at most `length` octets to `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut length,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value
}

/// Traffic class, TTL and least TTL.
fn network_options(socket: &impl AsRawFd, ipv6: bool) -> [i32; 3] {
    if ipv6 {
        [
            libc::IPV6_TCLASS,
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_MINHOPCOUNT,
        ]
        .map(|name| option(socket, libc::IPPROTO_IPV6, name))
    } else {
        [libc::IP_TOS, libc::IP_TTL, libc::IP_MINTTL]
            .map(|name| option(socket, libc::IPPROTO_IP, name))
    }
}

/// A dialled connection to a listening socket of ours, and its other end, configured as the driver
/// does it.
async fn pair(address: IpAddr, asn: Asn, change: impl Fn(&mut PeerConfig)) -> [TcpStream; 2] {
    let listener = listen((address, 0).into()).unwrap();
    let mut towards = peer(&listener, asn);
    change(&mut towards);
    let dialled = dial(OURS, &towards).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    configure(&SockRef::from(&accepted), OURS, &towards).unwrap();
    [dialled, accepted]
}

#[tokio::test]
async fn every_connection_has_class_cs6_and_a_bound_on_what_is_not_acknowledged() {
    for address in addresses() {
        for (hold_time, expected) in [(9, 120_000), (90, 270_000), (0, 120_000)] {
            let sockets = pair(address, THEIRS, |peer| {
                peer.timers.hold_time = Duration::from_secs(hold_time);
            });
            for socket in sockets.await {
                let [class, ..] = network_options(&socket, address.is_ipv6());
                assert_eq!(class, 0xc0, "RFC 4594, CS6");
                let bound = option(&socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
                assert_eq!(bound, expected);
                assert!(socket.nodelay().unwrap());
            }
        }
    }
}

#[tokio::test]
async fn the_ttl_is_that_of_the_kind_of_neighbour() {
    type Change = fn(&mut PeerConfig);
    let cases: [(Asn, Change, i32, i32); 5] = [
        (THEIRS, |_| {}, 1, 0),
        (OURS, |_| {}, 64, 0),
        (THEIRS, |peer| peer.multihop = Some(7), 7, 0),
        // RFC 5082: whoever is nearer than that has sent it with more.
        (THEIRS, |peer| peer.ttl_security = Some(1), 255, 255),
        (THEIRS, |peer| peer.ttl_security = Some(3), 255, 253),
    ];
    for address in addresses() {
        for (asn, change, ttl, least) in cases {
            for socket in pair(address, asn, change).await {
                let [_, sends, takes] = network_options(&socket, address.is_ipv6());
                assert_eq!((sends, takes), (ttl, least), "{address}");
            }
        }
    }
}

#[tokio::test]
async fn with_ttl_security_what_comes_from_too_far_away_is_not_heard() {
    for address in addresses() {
        for (ttl, heard) in [(255, true), (254, false)] {
            let near = |peer: &mut PeerConfig| peer.ttl_security = Some(1);
            let [mut dialled, mut accepted] = pair(address, THEIRS, near).await;
            set_ttl(&SockRef::from(&dialled), address.is_ipv6(), ttl).unwrap();
            dialled.write_all(b"x").await.unwrap();
            let mut octet = [0; 1];
            let patience = if heard { PATIENCE } else { MOMENT };
            let read = timeout(patience, accepted.read_exact(&mut octet)).await;
            assert_eq!(read.is_ok(), heard, "{address} with a TTL of {ttl}");
        }
    }
}

#[tokio::test]
async fn connections_come_from_the_address_they_are_to_come_from() {
    let local: IpAddr = [127, 0, 0, 9].into();
    let [_, accepted] = pair([127, 0, 0, 1].into(), THEIRS, |peer| {
        peer.local_address = Some(local);
    })
    .await;
    assert_eq!(accepted.peer_addr().unwrap().ip(), local);
    // An address that is not here is an error at once, and not a connection from another.
    let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
    let mut towards = peer(&listener, THEIRS);
    towards.local_address = Some([192, 0, 2, 1].into());
    let start = Instant::now();
    assert!(dial(OURS, &towards).await.is_err());
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_key_is_asked_for_in_both_families_and_no_other_will_do() {
    for address in addresses() {
        let listener = listen((address, 0).into()).unwrap();
        let key = Password::new("right").unwrap();
        set_password(&listener, address.into(), 0, Some(&key)).unwrap();
        for (tried, connects) in [(Some("right"), true), (Some("wrong"), false), (None, false)] {
            let mut towards = peer(&listener, THEIRS);
            towards.password = tried.map(|key| Password::new(key).unwrap());
            let patience = if connects { PATIENCE } else { MOMENT };
            let dialled = timeout(patience, dial(OURS, &towards)).await;
            assert_eq!(
                matches!(dialled, Ok(Ok(_))),
                connects,
                "{address} {tried:?}"
            );
        }
        // Taken away again, nobody needs one.
        set_password(&listener, address.into(), 0, None).unwrap();
        let dialled = timeout(PATIENCE, dial(OURS, &peer(&listener, THEIRS))).await;
        assert!(matches!(dialled, Ok(Ok(_))), "{address}");
    }
}
