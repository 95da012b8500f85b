//! The body of an OPEN. What was accepted reads back the same when we say it, and can be negotiated
//! with.
#![no_main]

use bgp::{
    message::Message,
    wire::{Decoder, encode_open, negotiate},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let length = body.len() + 19;
    if !(29..=4096).contains(&length) {
        return;
    }
    let mut message = vec![0xff; 16];
    message.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
    message.push(1);
    message.extend_from_slice(body);
    match Decoder::new().decode(&message) {
        Ok(Message::Open(open)) => {
            let negotiated = negotiate(&open, &open);
            assert!(negotiated.internal);
            let mut out = Vec::new();
            encode_open(&mut out, &open);
            let Ok(Message::Open(again)) = Decoder::new().decode(&out) else {
                // My Autonomous System is derived from the number: 23456 is not 0.
                panic!("our own OPEN was refused");
            };
            assert_eq!(again.asn, open.asn);
            assert!(again.capabilities.len() <= open.capabilities.len());
        }
        Ok(other) => panic!("an OPEN became {other:?}"),
        Err(notification) => assert_eq!(notification.code, 2),
    }
});
