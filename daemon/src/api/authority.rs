//! Lets clients in that name the socket's path as their `:authority`.
//!
//! gRPC clients on Unix sockets disagree about that pseudo-header: tonic and grpc-go send
//! "localhost", but C++ and Python (since 1.57), Java and grpcurl send the path, raw or with `%2F`.
//! Neither is an authority (RFC 3986 §3.2), and the HTTP/2 library resets such streams with
//! PROTOCOL_ERROR before any of our code sees them. Nothing here depends on the value, so between
//! the socket and the library each `/` and `%` in it becomes a `-`.
//!
//! This needs no HPACK state, because no length changes: a raw octet is replaced by an octet, and in
//! a Huffman-coded string all three characters have codes of six bits (RFC 7541 Appendix B). Later
//! references to the entry in the dynamic table mean the replaced value. What is not understood
//! passes unchanged; to judge it is the library's affair.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// RFC 9113 §3.4.
const PREFACE: usize = 24;
/// RFC 9113 §4.1.
const FRAME_HEADER: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE that the server leaves at its default; a longer frame is an error.
const MAX_FRAME: usize = 16_384;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Index of `:authority` in the static table (RFC 7541 Appendix A).
const AUTHORITY: usize = 1;
/// How many symbols have a Huffman code of each length (RFC 7541 Appendix B). The code is canonical,
/// so this is enough to find where each symbol ends.
const CODES: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 4),
];
const HUFFMAN_SLASH: u32 = 0x18;
const HUFFMAN_PERCENT: u32 = 0x15;
const HUFFMAN_DASH: u32 = 0x16;

/// A connection whose received header blocks are passed through [`Filter`].
#[derive(Debug)]
pub(super) struct Tolerant {
    stream: UnixStream,
    filter: Filter,
    /// Filtered, and not yet taken.
    ready: Vec<u8>,
    taken: usize,
}

impl Tolerant {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            filter: Filter::default(),
            ready: Vec::new(),
            taken: 0,
        }
    }
}

impl Connected for Tolerant {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Tolerant {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut space = [0; 8192];
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut this.stream).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
            if read.filled().is_empty() {
                // A frame that was cut short is of no use to anybody.
                return Poll::Ready(Ok(()));
            }
            this.filter.pass(read.filled(), &mut this.ready);
        }
        let rest = &this.ready[this.taken..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tolerant {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What comes next on the connection.
#[derive(Debug)]
enum Filter {
    /// So many octets that are of no interest, then a frame.
    Skip(usize),
    /// A frame header, as far as it has come.
    Header(Vec<u8>),
    /// A whole HEADERS frame of that length, as far as it has come.
    Block { frame: Vec<u8>, length: usize },
}

impl Default for Filter {
    fn default() -> Self {
        Filter::Skip(PREFACE)
    }
}

impl Filter {
    /// Appends to `output` what came in and is complete. Holds back at most one HEADERS frame.
    fn pass(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            match self {
                Filter::Skip(left) => {
                    let (now, rest) = input.split_at(input.len().min(*left));
                    output.extend_from_slice(now);
                    input = rest;
                    *left -= now.len();
                    if *left == 0 {
                        *self = Filter::Header(Vec::with_capacity(FRAME_HEADER));
                    }
                }
                Filter::Header(header) => {
                    let (now, rest) = input.split_at(input.len().min(FRAME_HEADER - header.len()));
                    header.extend_from_slice(now);
                    input = rest;
                    if let &[a, b, c, kind, flags, ..] = header.as_slice()
                        && header.len() == FRAME_HEADER
                    {
                        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                        *self = if kind == HEADERS
                            && flags & END_HEADERS != 0
                            && (1..=MAX_FRAME).contains(&length)
                        {
                            Filter::Block {
                                frame: std::mem::take(header),
                                length: FRAME_HEADER + length,
                            }
                        } else {
                            output.extend_from_slice(header);
                            match length {
                                0 => Filter::Header(Vec::with_capacity(FRAME_HEADER)),
                                _ => Filter::Skip(length),
                            }
                        };
                    }
                }
                Filter::Block { frame, length } => {
                    let (now, rest) = input.split_at(input.len().min(*length - frame.len()));
                    frame.extend_from_slice(now);
                    input = rest;
                    if frame.len() == *length {
                        let flags = frame.get(4).copied().unwrap_or(0);
                        if let Some(block) = frame
                            .get_mut(FRAME_HEADER..)
                            .and_then(|payload| fragment(payload, flags))
                        {
                            clean_block(block);
                        }
                        output.append(frame);
                        *self = Filter::Header(Vec::with_capacity(FRAME_HEADER));
                    }
                }
            }
        }
    }
}

/// The header block in the payload of a HEADERS frame (RFC 9113 §6.2).
fn fragment(payload: &mut [u8], flags: u8) -> Option<&mut [u8]> {
    let mut start = 0;
    let mut end = payload.len();
    if flags & PADDED != 0 {
        start = 1;
        end = end.checked_sub(usize::from(*payload.first()?))?;
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    payload.get_mut(start..end)
}

/// Walks the representations of a header block (RFC 7541 §6). `None`: it was not understood, and
/// nothing was changed from there on.
fn clean_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        let prefix = match first {
            // Indexed field, and size update: nothing but a number.
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let name = integer(block, &mut at, prefix)?;
        if matches!(prefix, 7 | 5) {
            continue;
        }
        let is_authority = match name {
            0 => {
                let (text, coded) = string(block, &mut at)?;
                !coded && text == b":authority"
            }
            index => index == AUTHORITY,
        };
        let (value, coded) = string(block, &mut at)?;
        if is_authority {
            if coded {
                clean_huffman(value);
            } else {
                for octet in value
                    .iter_mut()
                    .filter(|octet| matches!(octet, b'/' | b'%'))
                {
                    *octet = b'-';
                }
            }
        }
    }
    Some(())
}

/// RFC 7541 §5.1, for numbers that can be lengths within a frame.
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let octet = usize::from(*block.get(*at)?);
        *at += 1;
        value += (octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541 §5.2: the octets of a string, and whether they are Huffman-coded.
fn string<'a>(block: &'a mut [u8], at: &mut usize) -> Option<(&'a mut [u8], bool)> {
    let coded = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let end = at.checked_add(length)?;
    let text = block.get_mut(*at..end)?;
    *at = end;
    Some((text, coded))
}

fn clean_huffman(text: &mut [u8]) {
    let bits = text.len() * 8;
    let mut at = 0;
    // What is left at the end is padding, all ones, and no whole code.
    while let Some((code, length)) = symbol(text, at) {
        if length == 6 && matches!(code, HUFFMAN_SLASH | HUFFMAN_PERCENT) {
            for offset in 0..6 {
                let position = at + offset;
                let mask = 0x80 >> (position % 8);
                if let Some(octet) = text.get_mut(position / 8) {
                    if HUFFMAN_DASH >> (5 - offset) & 1 == 1 {
                        *octet |= mask;
                    } else {
                        *octet &= !mask;
                    }
                }
            }
        }
        at += length;
        if at >= bits {
            return;
        }
    }
}

/// The code that begins at that bit, and its length in bits.
fn symbol(text: &[u8], start: usize) -> Option<(u32, usize)> {
    let mut code = 0;
    let mut length = 0;
    // First code of the length under consideration.
    let mut first = 0;
    for (bits, count) in CODES {
        while length < bits {
            let position = start + usize::try_from(length).ok()?;
            let octet = *text.get(position / 8)?;
            code = code << 1 | u32::from(octet >> (7 - position % 8) & 1);
            first <<= 1;
            length += 1;
        }
        if code < first + count {
            return Some((code, usize::try_from(length).ok()?));
        }
        first += count;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    // POST, path /a.B/C, scheme http, the authority, `te: trailers`; as python-hpack encodes them.
    const RAW: &str = "8344062f612e422f4386411425324672756e2532466167656e74642e736f636b4002746508747261696c657273";
    const RAW_CLEAN: &str = "8344062f612e422f438641142d324672756e2d32466167656e74642e736f636b4002746508747261696c657273";
    const CODED: &str =
        "834485606bdd62f786418f54586cb6a545847316a4c8ba0e4ebf4082497f864d833505b11f";
    const CODED_CLEAN: &str =
        "834485606bdd62f786418f58586cb6a585847316a4c8ba0e4ebf4082497f864d833505b11f";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn filtered(input: &[u8], portion: usize) -> Vec<u8> {
        let mut filter = Filter::default();
        let mut output = Vec::new();
        for part in input.chunks(portion) {
            filter.pass(part, &mut output);
        }
        output
    }

    fn connection(block: &[u8]) -> Vec<u8> {
        let mut input = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        input.extend(frame(4, 0, &[]));
        input.extend(frame(0, 0, b"DATA / % is left alone"));
        input.extend(frame(HEADERS, END_HEADERS, block));
        input.extend(frame(0, 1, b"/%"));
        input
    }

    #[test]
    fn a_path_in_the_authority_is_replaced_and_a_path_in_the_path_is_not() {
        for (block, clean) in [(RAW, RAW_CLEAN), (CODED, CODED_CLEAN)] {
            for portion in [1, 7, 1000] {
                assert_eq!(
                    filtered(&connection(&bytes(block)), portion),
                    connection(&bytes(clean)),
                );
            }
        }
    }

    #[test]
    fn padding_and_priority_are_stepped_over() {
        let with = |block: &str| {
            let mut payload = vec![2, 0, 0, 0, 0, 0];
            payload.extend(bytes(block));
            payload.extend([0, 0]);
            let mut input = vec![0; PREFACE];
            input.extend(frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &payload));
            input
        };
        assert_eq!(filtered(&with(CODED), 1000), with(CODED_CLEAN));
    }

    proptest! {
        #[test]
        fn whatever_comes_in_goes_out_in_the_same_length(
            payload in proptest::collection::vec(any::<u8>(), 1..200),
            flags in any::<u8>(),
            portion in 1_usize..50,
        ) {
            let mut input = vec![0; PREFACE];
            input.extend(frame(HEADERS, flags | END_HEADERS, &payload));
            input.extend(frame(HEADERS, flags, &payload));
            prop_assert_eq!(filtered(&input, portion).len(), input.len());
        }
    }
}
