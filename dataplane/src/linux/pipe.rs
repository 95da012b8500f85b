//! Many requests in one send, and the answers matched to what they belong to by sequence number.

use std::{io, sync::Arc};

use super::{
    Counters,
    decode::{self, Message},
    describe::describe,
    encode::{Encoder, kind},
    socket::Socket,
};
use crate::kernel::{Op, OpError, OpResult};

/// Bytes in one send. Larger ones gain nothing, and hold the kernel's lock longer.
const SEND: usize = 64 << 10;
/// Room for the message that fills it up.
const ROOM: usize = 8 << 10;

/// Whatever the answer is, it is no failure of the operation.
pub(super) const ANY: i32 = -1;

/// A message on its way.
#[derive(Clone, Copy, Debug)]
struct Owner {
    sequence: u32,
    /// Index of the operation.
    op: usize,
    /// An errno that counts as success, or [`ANY`].
    tolerated: i32,
}

/// Operations and what became of them.
#[derive(Debug)]
pub(super) struct Answers<'a> {
    pub(super) ops: &'a [Op],
    pub(super) results: Vec<OpResult>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(ops: &'a [Op]) -> Self {
        Self {
            ops,
            results: vec![Ok(()); ops.len()],
        }
    }

    /// The first failure of an operation is the one that is told.
    pub(super) fn fail(&mut self, op: usize, errno: i32, said: Option<&str>) {
        let (Some(what), Some(result)) = (self.ops.get(op), self.results.get_mut(op)) else {
            return;
        };
        if result.is_ok() {
            *result = Err(error(&describe(what), errno, said));
        }
    }

    pub(super) fn fail_io(&mut self, op: usize, error: &io::Error) {
        match error.raw_os_error() {
            Some(errno) => self.fail(op, errno, None),
            None => self.fail(op, libc::EIO, Some(&error.to_string())),
        }
    }

    pub(super) fn is_ok(&self, op: usize) -> bool {
        self.results.get(op).is_some_and(Result::is_ok)
    }
}

/// An error about `what`.
pub(super) fn error(what: &str, errno: i32, said: Option<&str>) -> OpError {
    let system = io::Error::from_raw_os_error(errno).to_string();
    // "File exists (os error 17)": the number is told apart.
    let system = system.split(" (os error").next().unwrap_or_default();
    let text: Arc<str> = match said {
        Some(said) if !said.is_empty() => format!("{what}: {system}: {said}").into(),
        _ => format!("{what}: {system}").into(),
    };
    OpError { errno, text }
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) encoder: Encoder,
    pub(super) receive: Vec<u8>,
    sequence: u32,
    /// Ascending by sequence number. One message can carry several operations, and an operation can
    /// need several messages.
    owners: Vec<Owner>,
    /// Of links that are deleted together; `None`: still to be chosen.
    pub(super) group: Option<u32>,
    counters: Arc<Counters>,
}

impl Pipe {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            encoder: Encoder::with_capacity(SEND + ROOM),
            receive: Vec::new(),
            sequence: 0,
            owners: Vec::new(),
            group: None,
            counters,
        }
    }

    /// A dump was read, of so many messages.
    pub(super) fn count_dump(&self, answers: usize) {
        Counters::add(&self.counters.requests, 1);
        Counters::add(&self.counters.answers, answers);
    }

    pub(super) fn count_file(&self) {
        Counters::add(&self.counters.files, 1);
    }

    /// A sequence number for the next message, which belongs to that operation.
    pub(super) fn next(&mut self, op: usize) -> u32 {
        self.next_tolerant(op, 0)
    }

    pub(super) fn next_tolerant(&mut self, op: usize, tolerated: i32) -> u32 {
        self.sequence += 1;
        self.also(op, tolerated);
        self.sequence
    }

    /// The last message belongs to this operation, too.
    pub(super) fn also(&mut self, op: usize, tolerated: i32) {
        self.owners.push(Owner {
            sequence: self.sequence,
            op,
            tolerated,
        });
    }

    /// A sequence number outside of batches, for a dump.
    pub(super) fn sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) fn is_full(&self, socket: &Socket) -> bool {
        self.encoder.len() >= SEND || self.encoder.count() >= socket.window()
    }

    /// Sends what has gathered and reads the answers. Messages that are not acknowledgements (the
    /// answers to gets) are handed to `reply` with the index of their operation.
    pub(super) fn flush(
        &mut self,
        socket: &Socket,
        answers: &mut Answers<'_>,
        mut reply: impl FnMut(usize, Message<'_>),
    ) {
        if self.encoder.is_empty() {
            return;
        }
        Counters::add(&self.counters.requests, self.encoder.count());
        self.encoder.acknowledge_last();
        let last = self.sequence;
        let mut failure = socket.send(self.encoder.bytes()).err();
        let mut done = failure.is_some();
        while !done {
            match socket.receive(&mut self.receive) {
                Ok(()) => {}
                // Answers were dropped; which ones is unknown, and later ones may still be there.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    failure = Some(error);
                    continue;
                }
                Err(error) => {
                    // Everything was handled inside `send`, so the last answer was dropped.
                    failure.get_or_insert(error);
                    break;
                }
            }
            for message in decode::messages(&self.receive) {
                Counters::add(&self.counters.answers, 1);
                let start = self
                    .owners
                    .partition_point(|owner| owner.sequence < message.sequence);
                let owners = self
                    .owners
                    .iter()
                    .skip(start)
                    .take_while(|owner| owner.sequence == message.sequence);
                if message.kind == kind::ERROR {
                    let (errno, said) = decode::error(&message);
                    for owner in owners {
                        if errno != 0 && ![errno, ANY].contains(&owner.tolerated) {
                            answers.fail(owner.op, errno, said);
                        }
                    }
                    done |= message.sequence == last;
                } else {
                    for owner in owners {
                        reply(owner.op, message);
                    }
                }
            }
        }
        if let Some(error) = failure {
            for owner in &self.owners {
                answers.fail_io(owner.op, &error);
            }
            socket.discard(&mut self.receive);
        }
        self.encoder.clear();
        self.owners.clear();
        if self.sequence > u32::MAX / 2 {
            self.sequence = 0;
        }
    }
}
