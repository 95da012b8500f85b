//! Servers that answer with the address they saw, and clients that ask them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::lab::netns::Netns;

const WAIT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Serves until the process ends. The sockets belong to the namespace, the thread does not.
pub fn serve(namespace: &Netns, protocol: Protocol, own: SocketAddr) -> Result<()> {
    match protocol {
        Protocol::Tcp => {
            let listener = namespace.enter(|| TcpListener::bind(own))??;
            thread::spawn(move || {
                for connection in listener.incoming() {
                    let Ok(mut connection) = connection else {
                        return;
                    };
                    if let Ok(peer) = connection.peer_addr() {
                        // The client may have gone.
                        let _ = connection.write_all(peer.ip().to_string().as_bytes());
                    }
                }
            });
        }
        Protocol::Udp => {
            let socket = namespace.enter(|| UdpSocket::bind(own))??;
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
                }
            });
        }
    }
    Ok(())
}

/// As whom a server saw a client in that namespace.
pub fn ask(from: &Netns, protocol: Protocol, to: SocketAddr) -> Result<IpAddr> {
    match protocol {
        Protocol::Tcp => {
            let mut stream = from.enter(|| TcpStream::connect_timeout(&to, WAIT))??;
            stream.set_read_timeout(Some(WAIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            text.parse().with_context(|| format!("{text:?}"))
        }
        Protocol::Udp => {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => [0, 0, 0, 0].into(),
                SocketAddr::V6(_) => [0_u16; 8].into(),
            };
            let socket = from.enter(|| UdpSocket::bind((any, 0)))??;
            exchange(&socket, to)
        }
    }
}

/// One question and its answer.
pub fn exchange(socket: &UdpSocket, to: SocketAddr) -> Result<IpAddr> {
    socket.set_read_timeout(Some(WAIT))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 64];
    let (length, from) = socket
        .recv_from(&mut buffer)
        .with_context(|| format!("no answer from {to}"))?;
    ensure!(from == to, "{from} answered what {to} was asked");
    let text = std::str::from_utf8(&buffer[..length])?;
    text.parse().with_context(|| format!("{text:?}"))
}

/// Whether a datagram with that source arrives at `sink`.
pub fn ask_from(from: &Netns, source: IpAddr, sink: &UdpSocket, to: SocketAddr) -> Result<bool> {
    let socket = from.enter(|| UdpSocket::bind((source, 0)))??;
    let mine = socket.local_addr()?;
    socket.send_to(b"!", to)?;
    sink.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 16];
    match sink.recv_from(&mut buffer) {
        Ok((_, peer)) => {
            ensure!(peer == mine, "{peer} arrived, {mine} was sent");
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

/// Nobody accepts connections there.
pub fn refused(from: &Netns, to: SocketAddr) -> Result<()> {
    let wait = Duration::from_millis(500);
    let outcome = from.enter(|| TcpStream::connect_timeout(&to, wait))?;
    ensure!(outcome.is_err(), "{to} accepted a connection");
    Ok(())
}
