//! The body of an UPDATE under session parameters taken from the first octet. What was accepted and
//! announced must be sayable again, and read back the same.
#![no_main]

use bgp::{
    attributes::Attributes,
    message::{Message, Negotiated, Nlri, NlriList, Update},
    wire::{Decoder, EncodedAttributes, WirePrefix, encode_announce},
};
use libfuzzer_sys::fuzz_target;

fn decode(negotiated: &Negotiated, message: &[u8]) -> Option<Update> {
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated.clone());
    let first = decoder.decode(message);
    // The second time the cache may answer.
    assert_eq!(first, decoder.decode(message));
    match first {
        Ok(Message::Update(update)) => Some(update),
        Ok(other) => panic!("an UPDATE became {other:?}"),
        Err(notification) => {
            assert_eq!(notification.code, 3);
            let _ = notification.describe();
            None
        }
    }
}

fn again<P: WirePrefix>(
    negotiated: &Negotiated,
    attributes: &Attributes,
    nlri: &[Nlri<P>],
) -> Option<Update> {
    let encoded = EncodedAttributes::new(attributes, negotiated, P::FAMILY);
    let mut out = Vec::new();
    // What we say may be longer than what we heard: canonical forms, extended lengths.
    let taken = encode_announce(&mut out, negotiated, &encoded, nlri).ok()?;
    assert!(taken >= 1 && out.len() <= usize::from(negotiated.max_message_size));
    Some(decode(negotiated, &out).expect("our own message"))
}

fuzz_target!(|input: &[u8]| {
    let Some((flavour, body)) = input.split_first() else {
        return;
    };
    let bit = |n: u8| flavour & (1 << n) != 0;
    let negotiated = Negotiated {
        four_octet_as: bit(0),
        internal: bit(1),
        families: [!bit(2), !bit(3)],
        add_path_receive: [bit(4); 2],
        add_path_send: [bit(4); 2],
        extended_next_hop: bit(5),
        max_message_size: if bit(6) { 65_535 } else { 4096 },
        ..Negotiated::default()
    };
    let Ok(length) = u16::try_from(body.len() + 19) else {
        return;
    };
    if !(23..=negotiated.max_message_size).contains(&length) {
        return;
    }
    let mut message = vec![0xff; 16];
    message.extend_from_slice(&length.to_be_bytes());
    message.push(2);
    message.extend_from_slice(body);

    let Some(update) = decode(&negotiated, &message) else {
        return;
    };
    for announced in &update.announced {
        let mut expected = Attributes::clone(&announced.attributes);
        let heard = match &announced.nlri {
            NlriList::Ipv4(list) => again(&negotiated, &expected, list),
            NlriList::Ipv6(list) => again(&negotiated, &expected, list),
        };
        let Some(heard) = heard else { continue };
        assert_eq!(heard.faults, []);
        let mut got = Attributes::clone(&heard.announced[0].attributes);
        for unknown in got.unknown.iter_mut().chain(&mut expected.unknown) {
            // Partial is set on the way, the form of the length is ours, the low bits are lost.
            unknown.flags = 0;
        }
        // Both are two ways to the same path.
        if !negotiated.four_octet_as {
            got.as_path = expected.as_path.clone();
            got.aggregator = expected.aggregator;
        }
        assert_eq!(got, expected);
    }
});
