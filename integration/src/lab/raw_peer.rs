//! A BGP peer made of a socket and bytes: it sends what a test wants, however wrong.
//!
//! It answers nothing by itself. Reading keeps the table of what the speaker announces and counts
//! keepalives, and stops at whatever the caller waits for.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd as _, IntoRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

use super::raw_message::{self as raw, OpenSpec, Table};

/// How long to wait for what should come at once.
pub const SOON: Duration = Duration::from_secs(5);

/// What came over a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Message {
        kind: u8,
        body: Vec<u8>,
    },
    /// Closed or reset by the speaker.
    Closed,
    /// Nothing in the time given.
    Quiet,
}

/// Who a peer says it is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub address: Ipv4Addr,
    pub asn: u32,
    pub router_id: Ipv4Addr,
    pub hold_time: u16,
    /// Send capability 65; without it the session has two-octet AS numbers.
    pub four_octet_as: bool,
    /// AFIs announced with SAFI 1.
    pub families: Vec<u16>,
    /// Further capabilities, each whole.
    pub capabilities: Vec<Vec<u8>>,
}

impl Identity {
    pub fn new(address: Ipv4Addr, asn: u32) -> Self {
        Self {
            address,
            asn,
            router_id: address,
            hold_time: 180,
            four_octet_as: true,
            families: vec![1, 2],
            capabilities: vec![raw::capability(2, &[])],
        }
    }

    /// The OPEN of this peer.
    pub fn open(&self) -> OpenSpec {
        let mut capabilities = Vec::new();
        for afi in &self.families {
            let [high, low] = afi.to_be_bytes();
            capabilities.extend(raw::capability(1, &[high, low, 0, 1]));
        }
        if self.four_octet_as {
            capabilities.extend(raw::capability(65, &self.asn.to_be_bytes()));
        }
        capabilities.extend(self.capabilities.iter().flatten());
        OpenSpec {
            version: 4,
            asn: u16::try_from(self.asn).unwrap_or(23456),
            hold_time: self.hold_time,
            router_id: self.router_id,
            parameters: if capabilities.is_empty() {
                Vec::new()
            } else {
                raw::parameter(2, &capabilities)
            },
            parameters_length: None,
        }
    }
}

/// A connection to the speaker under test.
#[derive(Debug)]
pub struct RawPeer {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Body of the OPEN that the speaker sent.
    pub remote_open: Vec<u8>,
    pub table: Table,
    pub keepalives: u32,
    /// How often the speaker closed without a word before it served this connection.
    pub refusals: u32,
}

impl RawPeer {
    /// Connects from `local`; nothing is sent. Must be called inside the peer's namespace.
    pub fn connect(local: Ipv4Addr, remote: SocketAddr) -> Result<Self> {
        let IpAddr::V4(remote_address) = remote.ip() else {
            bail!("raw peers speak over IPv4");
        };
        let descriptor = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let [a, b, c, d] = local.octets();
        bind(
            std::os::fd::AsRawFd::as_raw_fd(&descriptor),
            &SockaddrIn::new(a, b, c, d, 0),
        )
        .context("bind")?;
        let [a, b, c, d] = remote_address.octets();
        connect(
            std::os::fd::AsRawFd::as_raw_fd(&descriptor),
            &SockaddrIn::new(a, b, c, d, remote.port()),
        )
        .with_context(|| format!("connect from {local} to {remote}"))?;
        // SAFETY: the descriptor is an open TCP socket, and its ownership moves.
        let stream = unsafe { TcpStream::from_raw_fd(descriptor.into_raw_fd()) };
        Self::over(stream)
    }

    /// Waits for the speaker to connect.
    pub fn accept(listener: &TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Self::over(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ensure!(Instant::now() < deadline, "nobody connects");
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            remote_open: Vec::new(),
            table: Table::default(),
            keepalives: 0,
            refusals: 0,
        })
    }

    /// A session in Established.
    pub fn establish(identity: &Identity, remote: SocketAddr) -> Result<Self> {
        let mut peer = Self::connect_until_served(identity.address, remote)?;
        peer.handshake(&identity.open().message())?;
        Ok(peer)
    }

    /// Connects, and again as long as the speaker closes without a word, which is how one that
    /// rests after an error refuses. The OPEN of the speaker has been read then.
    pub fn connect_until_served(local: Ipv4Addr, remote: SocketAddr) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut refusals = 0;
        loop {
            let mut peer = Self::connect(local, remote)?;
            match peer.event(SOON)? {
                Event::Message {
                    kind: raw::OPEN,
                    body,
                } => {
                    peer.remote_open = body;
                    peer.refusals = refusals;
                    return Ok(peer);
                }
                Event::Closed => {
                    ensure!(
                        Instant::now() < deadline,
                        "connections are refused for too long"
                    );
                    refusals += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => bail!("in place of an OPEN: {other:?}"),
            }
        }
    }

    /// Sends OPEN and KEEPALIVE and waits for those of the speaker.
    pub fn handshake(&mut self, open: &[u8]) -> Result<()> {
        self.send(open)?;
        if self.remote_open.is_empty() {
            self.remote_open = self.expect(raw::OPEN)?;
        }
        self.expect(raw::KEEPALIVE)?;
        self.send(&raw::keepalive())
    }

    pub fn send(&mut self, octets: &[u8]) -> Result<()> {
        self.stream.write_all(octets).context("send")
    }

    /// Sends and ignores that the speaker may have closed.
    pub fn try_send(&mut self, octets: &[u8]) {
        let _ = self.stream.write_all(octets);
    }

    /// Ends the connection with a FIN, without a NOTIFICATION.
    pub fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Says that nothing more follows, and goes on reading.
    pub fn close_sending(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Ends the connection with a RST.
    pub fn reset(self) -> Result<()> {
        let at_once = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &at_once)?;
        Ok(())
    }

    /// Whether the speaker has sent something that was not read yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    pub fn local_port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// The next message of any kind.
    pub fn event(&mut self, patience: Duration) -> Result<Event> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(event) = self.take_message()? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Quiet);
            }
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Event::Closed),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                    ) =>
                {
                    return Ok(Event::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Event>> {
        let Some((header, _)) = self.buffer.split_first_chunk::<19>() else {
            return Ok(None);
        };
        ensure!(header[..16] == [0xff; 16], "the speaker's marker is wrong");
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        ensure!(length >= 19, "the speaker's length is {length}");
        let kind = header[18];
        if self.buffer.len() < length {
            return Ok(None);
        }
        let body = self.buffer[19..length].to_vec();
        self.buffer.drain(..length);
        match kind {
            raw::UPDATE => self
                .table
                .apply(&body)
                .with_context(|| format!("the speaker's UPDATE {body:02x?}"))?,
            raw::KEEPALIVE => self.keepalives += 1,
            _ => {}
        }
        Ok(Some(Event::Message { kind, body }))
    }

    /// Waits for a message of this type; UPDATEs and KEEPALIVEs before it are taken in.
    pub fn expect(&mut self, wanted: u8) -> Result<Vec<u8>> {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.event(left)? {
                Event::Message { kind, body } if kind == wanted => return Ok(body),
                Event::Message {
                    kind: raw::UPDATE | raw::KEEPALIVE | raw::ROUTE_REFRESH,
                    ..
                } => {}
                other => bail!("in place of a message of type {wanted}: {other:?}"),
            }
        }
    }

    /// Code, subcode and data of the NOTIFICATION that must come within the time, then the close.
    pub fn notification_within(&mut self, patience: Duration) -> Result<(u8, u8, Vec<u8>)> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.event(left)? {
                Event::Message {
                    kind: raw::NOTIFICATION,
                    body,
                } => {
                    let [code, subcode, ref data @ ..] = *body.as_slice() else {
                        bail!("a NOTIFICATION without code");
                    };
                    match self.event(SOON)? {
                        Event::Closed => return Ok((code, subcode, data.to_vec())),
                        other => bail!("after its NOTIFICATION: {other:?}"),
                    }
                }
                Event::Message { .. } => {}
                Event::Closed => bail!("closed without a NOTIFICATION"),
                Event::Quiet => bail!("no NOTIFICATION"),
            }
        }
    }

    pub fn notification(&mut self) -> Result<(u8, u8, Vec<u8>)> {
        self.notification_within(SOON)
    }

    /// Reads until the condition holds for what has come.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        self.until_within(SOON, what, condition)
    }

    pub fn until_within(
        &mut self,
        patience: Duration,
        what: &str,
        condition: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !condition(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.event(left)? {
                Event::Message {
                    kind: raw::NOTIFICATION,
                    body,
                } => bail!("waiting for {what}: NOTIFICATION {body:02x?}"),
                Event::Message { .. } => {}
                Event::Closed => bail!("waiting for {what}: closed"),
                Event::Quiet => bail!("waited in vain for {what}"),
            }
        }
        Ok(())
    }

    /// Takes in what has already come; an error when the session has ended.
    pub fn drain(&mut self) -> Result<()> {
        loop {
            match self.event(Duration::from_millis(1))? {
                Event::Quiet => return Ok(()),
                Event::Message {
                    kind: raw::NOTIFICATION,
                    body,
                } => bail!("NOTIFICATION {body:02x?}"),
                Event::Message { .. } => {}
                Event::Closed => bail!("closed"),
            }
        }
    }
}
