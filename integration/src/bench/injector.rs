//! A BGP speaker that sends prepared routes: opens one session, keeps it alive, writes streams.
//!
//! RFC 4271, RFC 4760 and RFC 6793, as much as an injector needs.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::fib::{Prefixes, octets};

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const LARGEST: usize = 4096;

/// An established session.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Announcements and withdrawals of the same prefixes.
#[derive(Debug)]
pub struct Streams {
    pub announce: Vec<u8>,
    pub withdraw: Vec<u8>,
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    let length = u16::try_from(19 + body.len()).expect("messages are at most 4096 octets");
    bytes.extend(length.to_be_bytes());
    bytes.push(kind);
    bytes.extend(body);
    bytes
}

/// For both families (RFC 4724 §2).
pub fn end_of_rib() -> Vec<u8> {
    let v6 = [0, 0, 0, 7, 0x90, 15, 0, 3, 0, 2, 1];
    [message(UPDATE, &[0; 4]), message(UPDATE, &v6)].concat()
}

fn open(asn: u32, router_id: [u8; 4]) -> Vec<u8> {
    let short = u16::try_from(asn).unwrap_or(23456);
    // IPv4 and IPv6 unicast, and four-octet AS numbers.
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4];
    capabilities.extend(asn.to_be_bytes());
    let length = u8::try_from(capabilities.len()).expect("short");
    let mut body = vec![4];
    body.extend(short.to_be_bytes());
    body.extend(240u16.to_be_bytes());
    body.extend(router_id);
    body.extend([length + 2, 2, length]);
    body.extend(capabilities);
    message(OPEN, &body)
}

/// The streams for these prefixes from a neighbour of that AS, full messages of one attribute set.
pub fn streams(prefixes: Prefixes, asn: u32, next_hop: IpAddr) -> Streams {
    encode(prefixes, asn, next_hop, &[])
}

/// The same from an internal neighbour, which has the routes of another AS.
pub fn internal_streams(prefixes: Prefixes, next_hop: IpAddr) -> Streams {
    const LOCAL_PREF: [u8; 7] = [0x40, 5, 4, 0, 0, 0, 100];
    encode(prefixes, 64999, next_hop, &LOCAL_PREF)
}

fn encode(prefixes: Prefixes, asn: u32, next_hop: IpAddr, further: &[u8]) -> Streams {
    let mut path = vec![0x40, 1, 1, 0, 0x40, 2, 6, 2, 1];
    path.extend(asn.to_be_bytes());
    let mut streams = Streams {
        announce: Vec::new(),
        withdraw: Vec::new(),
    };
    let mut index = 0;
    while index < prefixes.count {
        let mut reach = Vec::new();
        // Room for the header, lengths, attributes and the head of MP_REACH_NLRI.
        while index < prefixes.count && reach.len() < LARGEST - 120 {
            let bits = prefixes.length();
            reach.push(bits);
            let address = octets(prefixes.address(index));
            reach.extend(
                address
                    .get(..usize::from(bits).div_ceil(8))
                    .unwrap_or_default(),
            );
            index += 1;
        }
        let (announce, withdraw) = if prefixes.v6 {
            v6_bodies(&path, next_hop, further, &reach)
        } else {
            v4_bodies(&path, next_hop, further, &reach)
        };
        streams.announce.extend(message(UPDATE, &announce));
        streams.withdraw.extend(message(UPDATE, &withdraw));
    }
    streams
}

fn short(length: usize) -> [u8; 2] {
    u16::try_from(length)
        .expect("less than a message")
        .to_be_bytes()
}

fn v4_bodies(path: &[u8], next_hop: IpAddr, further: &[u8], reach: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut attributes = path.to_vec();
    attributes.extend([0x40, 3, 4]);
    attributes.extend(octets(next_hop));
    attributes.extend(further);
    let announce = [&[0, 0][..], &short(attributes.len()), &attributes, reach].concat();
    let withdraw = [&short(reach.len())[..], reach, &[0, 0]].concat();
    (announce, withdraw)
}

fn v6_bodies(path: &[u8], next_hop: IpAddr, further: &[u8], reach: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let multiprotocol = |kind: u8, head: &[u8]| {
        let length = short(head.len() + reach.len());
        [&[0x90, kind][..], &length, head, reach].concat()
    };
    let head = [&[0, 2, 1, 16][..], &octets(next_hop), &[0]].concat();
    let attributes = [path, further, &multiprotocol(14, &head)].concat();
    let announce = [&[0, 0][..], &short(attributes.len()), &attributes].concat();
    let attributes = multiprotocol(15, &[0, 2, 1]);
    let withdraw = [&[0, 0][..], &short(attributes.len()), &attributes].concat();
    (announce, withdraw)
}

/// Reads one message; its kind.
fn read_message(stream: &mut TcpStream) -> Result<u8> {
    let mut header = [0; 19];
    stream.read_exact(&mut header)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let mut body = vec![
        0;
        length
            .checked_sub(19)
            .context("a message of less than 19 octets")?
    ];
    stream.read_exact(&mut body)?;
    ensure!(header[18] != NOTIFICATION, "NOTIFICATION {body:?}");
    Ok(header[18])
}

/// Reads and drops what the speaker sends, so that it never has to wait for us.
pub fn discard(mut stream: TcpStream) {
    while read_message(&mut stream).is_ok() {}
}

fn dial(from: Option<IpAddr>, to: SocketAddr) -> Result<TcpStream> {
    let domain = socket2::Domain::for_address(to);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(1))?;
    Ok(socket.into())
}

impl Session {
    /// Connects, again and again until the speaker listens, and brings the session up. Must be
    /// called inside the injector's namespace.
    pub fn connect(to: SocketAddr, asn: u32, patience: Duration) -> Result<Self> {
        Self::connect_with(None, to, asn, patience, discard)
    }

    /// The same from one of several addresses; `reader` gets what the speaker sends once the
    /// session is up.
    pub fn connect_with(
        from: Option<IpAddr>,
        to: SocketAddr,
        asn: u32,
        patience: Duration,
        reader: impl FnOnce(TcpStream) + Send + 'static,
    ) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let attempt = dial(from, to).and_then(|stream| Self::shake_hands(stream, asn));
            match attempt {
                Ok(stream) => return Self::established(stream, reader),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("no session with {to}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits for the speaker's connection.
    pub fn accept(listener: &TcpListener, asn: u32) -> Result<Self> {
        let (stream, _) = listener.accept()?;
        Self::established(Self::shake_hands(stream, asn)?, discard)
    }

    fn shake_hands(mut stream: TcpStream, asn: u32) -> Result<TcpStream> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let IpAddr::V4(local) = stream.local_addr()?.ip() else {
            bail!("sessions run over IPv4");
        };
        stream.write_all(&open(asn, local.octets()))?;
        ensure!(read_message(&mut stream)? == OPEN, "no OPEN");
        stream.write_all(&message(KEEPALIVE, &[]))?;
        ensure!(read_message(&mut stream)? == KEEPALIVE, "no KEEPALIVE");
        stream.set_read_timeout(None)?;
        Ok(stream)
    }

    fn established(
        stream: TcpStream,
        reader: impl FnOnce(TcpStream) + Send + 'static,
    ) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let copy = stream.try_clone()?;
        let flag = Arc::clone(&ended);
        let threads = vec![std::thread::spawn(move || {
            reader(copy);
            flag.store(true, Ordering::Relaxed);
        })];
        Ok(Self {
            stream,
            ended,
            threads,
        })
    }

    /// Writes a stream and returns the time just before its first octet.
    pub fn send(&mut self, stream: &[u8]) -> Result<Instant> {
        ensure!(
            !self.ended.load(Ordering::Relaxed),
            "the speaker ended the session"
        );
        let start = Instant::now();
        self.stream.write_all(stream)?;
        Ok(start)
    }

    /// Restarts the speaker's hold timer.
    pub fn keep_alive(&mut self) -> Result<()> {
        self.stream.write_all(&message(KEEPALIVE, &[]))?;
        Ok(())
    }

    /// Closes the connection without a NOTIFICATION, as a crash would, and returns when.
    pub fn drop_connection(mut self) -> Result<Instant> {
        self.ended.store(true, Ordering::Relaxed);
        let start = Instant::now();
        self.stream.shutdown(std::net::Shutdown::Both)?;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_of_a_stream_has_a_valid_length_and_all_prefixes_are_in() {
        for v6 in [false, true] {
            let prefixes = Prefixes { v6, count: 5000 };
            let next_hop = if v6 { "fd00::2" } else { "10.0.0.2" };
            let streams = streams(prefixes, 65001, next_hop.parse().expect("address"));
            for stream in [&streams.announce, &streams.withdraw] {
                let mut rest = stream.as_slice();
                let mut largest = 0;
                while let Some(header) = rest.get(..19) {
                    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
                    assert!((19..=LARGEST).contains(&length));
                    largest = largest.max(length);
                    rest = rest.get(length..).expect("a whole message");
                }
                assert!(rest.is_empty());
                assert!(largest > 3900, "messages are filled: {largest}");
            }
            let size = if v6 { 17 } else { 5 };
            assert!(streams.announce.len() > 5000 * size);
        }
    }
}
