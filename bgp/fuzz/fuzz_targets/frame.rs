//! A byte stream as it comes from a socket: framing never runs away, and every frame decodes or is
//! refused.
#![no_main]

use bgp::wire::{Decoder, frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut decoder = Decoder::new();
    let mut rest = stream;
    while let Ok(Some(length)) = frame(rest, decoder.max_message_size()) {
        assert!((19..=4096).contains(&length) && length <= rest.len());
        let (message, after) = rest.split_at(length);
        let _ = decoder.decode(message);
        rest = after;
    }
});
