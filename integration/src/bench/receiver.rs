//! The far end of a session: knows at any moment which of the announced prefixes it holds, and tells
//! when it holds all of them or none.

use std::io::{BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver as Inbox, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::fib::Prefixes;

const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;

/// What a session's reader holds.
#[derive(Debug)]
struct Held {
    bits: Vec<u64>,
    count: u32,
}

impl Held {
    fn new(count: u32) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or_default();
        Self {
            bits: vec![0; words],
            count: 0,
        }
    }

    fn set(&mut self, index: u32, present: bool) {
        let Some(word) = self.bits.get_mut((index / 64) as usize) else {
            return;
        };
        let bit = 1 << (index % 64);
        if (*word & bit != 0) == present {
            return;
        }
        *word ^= bit;
        if present {
            self.count += 1;
        } else {
            self.count -= 1;
        }
    }

    /// IPv4 prefixes of one length, in the encoding of RFC 4271 §4.3.
    fn apply(&mut self, prefixes: Prefixes, mut nlri: &[u8], present: bool) {
        while let [bits, rest @ ..] = nlri {
            let size = usize::from(bits.div_ceil(8)).min(rest.len());
            let (octets, rest) = rest.split_at(size);
            let mut address = [0; 4];
            address
                .iter_mut()
                .zip(octets)
                .for_each(|(to, from)| *to = *from);
            if *bits == prefixes.length() {
                let offset = u32::from_be_bytes(address).wrapping_sub(20 << 24);
                let index = offset >> (32 - u32::from(*bits));
                if index < prefixes.count {
                    self.set(index, present);
                }
            }
            nlri = rest;
        }
    }
}

/// All receivers of a measurement.
#[derive(Debug)]
pub struct Receivers {
    inbox: Inbox<(usize, bool, Instant)>,
    outbox: Sender<(usize, bool, Instant)>,
    prefixes: Prefixes,
    count: usize,
    /// Octets read, for reports.
    octets: Arc<AtomicU64>,
}

impl Receivers {
    pub fn new(prefixes: Prefixes) -> Self {
        let (outbox, inbox) = channel();
        Self {
            inbox,
            outbox,
            prefixes,
            count: 0,
            octets: Arc::default(),
        }
    }

    pub fn octets(&self) -> u64 {
        self.octets.load(Ordering::Relaxed)
    }

    /// A reader for one more session: give it the stream.
    pub fn reader<R: Read>(&mut self) -> impl FnOnce(R) + Send + 'static + use<R> {
        let outbox = self.outbox.clone();
        let octets = Arc::clone(&self.octets);
        let (prefixes, number) = (self.prefixes, self.count);
        self.count += 1;
        move |stream| {
            // The session's end is told by those who wait in vain.
            let _ = read(stream, prefixes, &octets, |present, at| {
                let _ = outbox.send((number, present, at));
            });
        }
    }

    /// Waits until every receiver holds all prefixes, or none: the time at which the last one did.
    pub fn wait(&self, present: bool, patience: Duration) -> Result<Instant> {
        let deadline = Instant::now() + patience;
        let mut done = vec![false; self.count];
        let mut last = None;
        while done.contains(&false) {
            let left = deadline.saturating_duration_since(Instant::now());
            let (number, is_present, at) = match self.inbox.recv_timeout(left) {
                Ok(told) => told,
                Err(RecvTimeoutError::Timeout) => {
                    let missing = done.iter().filter(|done| !**done).count();
                    bail!("{missing} of {} receivers are not complete", self.count)
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(done) = done.get_mut(number) {
                *done = is_present == present;
            }
            last = last.max(Some(at));
        }
        last.context("no receivers")
    }
}

fn read(
    stream: impl Read,
    prefixes: Prefixes,
    octets: &AtomicU64,
    mut tell: impl FnMut(bool, Instant),
) -> Result<()> {
    let mut stream = BufReader::with_capacity(256 << 10, stream);
    let mut held = Held::new(prefixes.count);
    let mut body = Vec::new();
    loop {
        let mut header = [0; 19];
        stream.read_exact(&mut header)?;
        let length = u16::from_be_bytes([header[16], header[17]]);
        octets.fetch_add(u64::from(length), Ordering::Relaxed);
        let length = usize::from(length).checked_sub(19).context("length")?;
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
        ensure!(header[18] != NOTIFICATION, "NOTIFICATION {body:?}");
        if header[18] != UPDATE {
            continue;
        }
        let before = held.count;
        let (withdrawn, rest) = section(&body)?;
        let (_, nlri) = section(rest)?;
        held.apply(prefixes, withdrawn, false);
        held.apply(prefixes, nlri, true);
        if held.count == prefixes.count && before != held.count {
            tell(true, Instant::now());
        } else if held.count == 0 && before != 0 {
            tell(false, Instant::now());
        }
    }
}

/// Splits off what follows a length of two octets.
fn section(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>().context("a length")?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        .context("a section")
}

#[cfg(test)]
mod tests {
    use super::super::injector::streams;
    use super::*;

    #[test]
    fn a_receiver_is_complete_with_the_last_prefix_and_empty_without_any() {
        let prefixes = Prefixes {
            v6: false,
            count: 3000,
        };
        let streams = streams(prefixes, 65001, "10.0.0.1".parse().expect("address"));
        let all = [&streams.announce[..], &streams.withdraw].concat();
        let mut receivers = Receivers::new(prefixes);
        receivers.reader()(all.as_slice());
        receivers
            .wait(true, Duration::ZERO)
            .expect("it held all at once");
        receivers
            .wait(false, Duration::ZERO)
            .expect("and then none");
        let message = u16::from_be_bytes([streams.announce[16], streams.announce[17]]);
        let without_first = &streams.announce[usize::from(message)..];
        receivers.count = 0;
        receivers.reader()(without_first);
        receivers
            .wait(true, Duration::ZERO)
            .expect_err("the first message is missing");
    }
}
