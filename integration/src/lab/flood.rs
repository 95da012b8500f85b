//! A stream of numbered packets from one namespace to another, of which every one is counted.
//!
//! Pings every 50 ms see an outage; this sees a single packet that took a wrong route.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use super::netns::Netns;

const PORT: u16 = 9000;
/// Between two packets.
const INTERVAL: Duration = Duration::from_micros(200);
/// How long after the last packet others may still be on their way.
const TAIL: Duration = Duration::from_millis(500);

/// What became of a flood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub sent: u64,
    pub received: u64,
    /// The sender's kernel refused them: no route, or a blackhole of its own.
    pub refused: u64,
    /// Numbers that are missing, the first few.
    pub missing: Vec<u64>,
}

/// A flood that goes on until it is finished.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<Result<(u64, u64)>>,
    receiver: JoinHandle<Result<Vec<bool>>>,
}

impl Flood {
    /// Starts it; the address is one of the receiver's.
    pub fn start(from: &Netns, to: &Netns, address: IpAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let target = SocketAddr::new(address, PORT);
        let socket = to.enter(|| UdpSocket::bind(target))?.context("receiver")?;
        // Whatever the receiver does in the meantime, nothing is lost in its own buffer.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let receiver = thread::spawn({
            let stop = Arc::clone(&stop);
            move || receive(&socket, &stop)
        });
        let sender = thread::spawn({
            let (stop, sent, from) = (Arc::clone(&stop), Arc::clone(&sent), from.clone());
            move || {
                setns(&from, CloneFlags::CLONE_NEWNET)?;
                send(target, &stop, &sent)
            }
        });
        Ok(Self {
            stop,
            sent,
            sender,
            receiver,
        })
    }

    /// How many packets were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn finish(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, refused) = self
            .sender
            .join()
            .map_err(|_| anyhow!("the sender panicked"))??;
        let mut seen = self
            .receiver
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))??;
        seen.resize(usize::try_from(sent)?, false);
        let received = seen.iter().filter(|seen| **seen).count();
        let missing = (0u64..)
            .zip(&seen)
            .filter(|(_, seen)| !**seen)
            .map(|(number, _)| number)
            .take(20)
            .collect();
        Ok(Report {
            sent,
            received: received as u64,
            refused,
            missing,
        })
    }
}

fn send(target: SocketAddr, stop: &AtomicBool, count: &AtomicU64) -> Result<(u64, u64)> {
    let any: SocketAddr = if target.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    let (mut sent, mut refused) = (0u64, 0);
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if socket.send_to(&sent.to_be_bytes(), target).is_err() {
            refused += 1;
        }
        sent += 1;
        count.store(sent, Ordering::Relaxed);
        let due = start + INTERVAL * u32::try_from(sent)?;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok((sent, refused))
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<Vec<bool>> {
    let mut seen = Vec::new();
    let mut buffer = [0; 64];
    let mut quiet_until = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let number = buffer
                    .first_chunk::<8>()
                    .map(|octets| u64::from_be_bytes(*octets));
                let index = usize::try_from(number.unwrap_or_default())?;
                if seen.len() <= index {
                    seen.resize(index + 1, false);
                }
                if let Some(seen) = seen.get_mut(index) {
                    *seen = true;
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        if stop.load(Ordering::Relaxed) {
            let until = *quiet_until.get_or_insert_with(|| Instant::now() + TAIL);
            if Instant::now() >= until {
                return Ok(seen);
            }
        }
    }
}
