//! What fuzzing calls, shared by the ordinary test beside this file and by the libFuzzer programs
//! under `bgp/fuzz`. Each takes any octets and panics when something that must hold does not.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bgp::{
    attributes::Attributes,
    message::{Message, Negotiated, Nlri, NlriList, Update},
    policy::Policy,
    rib::{NextHopState, NextHopWatch},
    speaker::{
        ConnectionEvent, Output, Speaker,
        config::{PeerConfig, SpeakerConfig},
    },
    types::{Asn, ConnectionId},
    wire::{
        Decoder, EncodedAttributes, WirePrefix, encode_announce, encode_notification, encode_open,
        encode_route_refresh, frame, negotiate,
    },
};

/// A target and its name.
#[allow(dead_code)]
pub type Target = (&'static str, fn(&[u8]));

/// Every target by its name, which is also that of its corpus.
#[allow(dead_code)]
pub const ALL: [Target; 6] = [
    ("frame", stream),
    ("open", open),
    ("decode", update),
    ("notification", notification),
    ("refresh", refresh),
    ("session", session),
];

fn message(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(body.len() + 19).ok()?;
    let mut message = vec![0xff; 16];
    message.extend_from_slice(&length.to_be_bytes());
    message.push(kind);
    message.extend_from_slice(body);
    Some(message)
}

/// A byte stream as it comes from a socket: framing never runs away, and every frame decodes or is
/// refused.
pub fn stream(octets: &[u8]) {
    let mut decoder = Decoder::new();
    let mut rest = octets;
    while let Ok(Some(length)) = frame(rest, decoder.max_message_size()) {
        assert!((19..=4096).contains(&length) && length <= rest.len());
        let (message, after) = rest.split_at(length);
        let _ = decoder.decode(message);
        rest = after;
    }
}

/// The body of an OPEN. What was accepted reads back the same when we say it, and can be negotiated
/// with.
pub fn open(body: &[u8]) {
    let Some(octets) = message(1, body).filter(|octets| (29..=4096).contains(&octets.len())) else {
        return;
    };
    match Decoder::new().decode(&octets) {
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
}

/// The body of an UPDATE under session parameters taken from the first octet. What was accepted and
/// announced must be sayable again, and read back the same.
pub fn update(input: &[u8]) {
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
    let Some(octets) = message(2, body) else {
        return;
    };
    if !(23..=usize::from(negotiated.max_message_size)).contains(&octets.len()) {
        return;
    }
    let Some(update) = decode(&negotiated, &octets) else {
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
            // That of an AS4 attribute which is not needed.
            got.partial = expected.partial;
        }
        assert_eq!(got, expected);
    }
}

fn decode(negotiated: &Negotiated, octets: &[u8]) -> Option<Update> {
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated.clone());
    let first = decoder.decode(octets);
    // The second time the cache may answer.
    assert_eq!(first, decoder.decode(octets));
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

/// The body of a NOTIFICATION: it has words of bounded length without control characters, and goes
/// out as it came in.
pub fn notification(body: &[u8]) {
    let Some(octets) = message(3, body).filter(|octets| (21..=4096).contains(&octets.len())) else {
        return;
    };
    let Ok(Message::Notification(notification)) = Decoder::new().decode(&octets) else {
        panic!("every NOTIFICATION of two octets is one");
    };
    let words = notification.describe();
    assert!(!words.is_empty() && words.len() < 4096, "{words}");
    assert!(!words.chars().any(char::is_control), "{words:?}");
    let _ = notification.shutdown_text();
    let _ = notification.hard_reset_reason();
    let mut out = Vec::new();
    encode_notification(&mut out, &notification);
    assert_eq!(out, octets);
}

/// The body of a ROUTE-REFRESH.
pub fn refresh(body: &[u8]) {
    let Some(octets) = message(5, body).filter(|octets| (23..=4096).contains(&octets.len())) else {
        return;
    };
    match Decoder::new().decode(&octets) {
        Ok(Message::RouteRefresh(refresh)) => {
            let mut out = Vec::new();
            encode_route_refresh(&mut out, &refresh);
            assert_eq!(out, octets);
        }
        Ok(other) => panic!("a ROUTE-REFRESH became {other:?}"),
        Err(notification) => assert!(matches!(notification.code, 1 | 7), "{notification}"),
    }
}

/// One end of a session with the speaker.
struct Neighbour {
    connection: ConnectionId,
    decoder: Decoder,
    /// After an OPEN nothing is decoded before its parameters are known.
    waits: bool,
    closed: bool,
    /// What the speaker says is read with the parameters as the neighbour sees them.
    hears: Decoder,
}

/// A whole speaker: the octets are what one neighbour sends, after its OPEN and KEEPALIVE unless
/// the first octet is odd. Time passes between its messages. Another neighbour, which is told of
/// everything, must notice nothing, and all the speaker says must be readable.
pub fn session(input: &[u8]) {
    let Some((flavour, octets)) = input.split_first() else {
        return;
    };
    static START: OnceLock<Instant> = OnceLock::new();
    let mut now = *START.get_or_init(Instant::now);
    let address = |host| SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 179));
    let mut config = SpeakerConfig::new(Asn(64512), Ipv4Addr::new(192, 0, 2, 1));
    config.cluster_id = Some(config.router_id);
    let external = Asn(if flavour & 2 == 0 { 64513 } else { 64512 });
    for (host, asn) in [(2, external), (3, Asn(64514))] {
        let mut peer = PeerConfig::new(format!("p{host}"), address(host).ip(), asn);
        peer.import = Arc::new(Policy::all());
        peer.export = Arc::new(Policy::all());
        peer.passive = true;
        peer.max_prefixes = Some(200);
        config.peers.push(peer);
    }
    let mut speaker = Speaker::new(now, config).unwrap();
    speaker.originations_synced(now);
    let mut neighbours: Vec<Neighbour> = [2, 3]
        .into_iter()
        .map(|host| {
            let (connection, _) = speaker
                .handle_accepted(now, address(1), address(host))
                .expect("it is served");
            Neighbour {
                connection,
                decoder: Decoder::new(),
                waits: false,
                closed: false,
                hears: Decoder::new(),
            }
        })
        .collect();
    settle(now, &mut speaker, &mut neighbours);

    let hello = |asn: Asn, host: u8| {
        let two = asn.two_octet().to_be_bytes();
        let four = asn.0.to_be_bytes();
        let body = [
            &[4, two[0], two[1], 0, 9, 192, 0, 2, host, 32, 2, 30][..],
            &[1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4],
            &four,
            &[64, 6, 0x40, 5, 0, 1, 1, 0x80, 6, 0],
        ]
        .concat();
        [message(1, &body).unwrap(), message(4, &[]).unwrap()].concat()
    };
    feed(
        &mut now,
        &mut speaker,
        &mut neighbours,
        1,
        &hello(Asn(64514), 3),
    );
    if flavour & 1 == 0 {
        feed(
            &mut now,
            &mut speaker,
            &mut neighbours,
            0,
            &hello(external, 2),
        );
        assert!(!neighbours[0].closed, "a good handshake was refused");
    }
    feed(&mut now, &mut speaker, &mut neighbours, 0, octets);
    assert!(!neighbours[1].closed, "the other neighbour was cut off");
    // The first goes; nothing of it stays beyond the restart time.
    if !neighbours[0].closed {
        let reason = "the end of the input".into();
        let event = ConnectionEvent::Closed { reason };
        speaker.handle_connection(now, neighbours[0].connection, event);
        settle(now, &mut speaker, &mut neighbours);
    }
}

/// The octets arrive as if from a socket, with time between messages.
fn feed(
    now: &mut Instant,
    speaker: &mut Speaker,
    neighbours: &mut [Neighbour],
    from: usize,
    octets: &[u8],
) {
    let mut rest = octets;
    let mut count = 0;
    while !neighbours[from].closed && !neighbours[from].waits {
        let neighbour = &mut neighbours[from];
        let decoded = match frame(rest, neighbour.decoder.max_message_size()) {
            Ok(None) => return,
            Ok(Some(length)) => {
                let (octets, after) = rest.split_at(length);
                rest = after;
                neighbour.decoder.decode(octets)
            }
            Err(notification) => Err(notification),
        };
        neighbour.waits = matches!(decoded, Ok(Message::Open(_)));
        let was_error = decoded.is_err();
        speaker.handle_message(*now, neighbour.connection, decoded);
        settle(*now, speaker, neighbours);
        if was_error {
            // Nothing after it can be read.
            return;
        }
        count += 1;
        if count % 4 == 0 {
            *now += Duration::from_millis(250);
            // The others keep their sessions.
            for neighbour in neighbours.iter().filter(|neighbour| !neighbour.closed) {
                speaker.handle_message(*now, neighbour.connection, Ok(Message::Keepalive));
            }
            speaker.handle_timeout(*now);
            settle(*now, speaker, neighbours);
        }
    }
}

/// Does what the speaker wants until it wants nothing.
fn settle(now: Instant, speaker: &mut Speaker, neighbours: &mut [Neighbour]) {
    for _ in 0..10_000 {
        while let Some(watch) = speaker.poll_next_hop_watch() {
            if let NextHopWatch::Watch(address) = watch {
                let metric = u32::from(address.address.is_ipv6());
                speaker.set_next_hop(address, NextHopState::Reachable { metric });
            }
        }
        while speaker.poll_route_change().is_some() {}
        let Some(output) = speaker.poll_output(now) else {
            return;
        };
        let of = |connection: ConnectionId| {
            neighbours
                .iter()
                .position(|neighbour| neighbour.connection == connection)
        };
        match output {
            Output::Dial { .. } => panic!("the neighbours are passive"),
            Output::Close { connection } => {
                if let Some(index) = of(connection) {
                    neighbours[index].closed = true;
                }
            }
            Output::Negotiated {
                connection,
                negotiated,
            } => {
                if let Some(index) = of(connection) {
                    neighbours[index].waits = false;
                    let decoder = &mut neighbours[index].decoder;
                    decoder.set_negotiated((*negotiated).clone());
                    let mirrored = Negotiated {
                        add_path_receive: negotiated.add_path_send,
                        add_path_send: negotiated.add_path_receive,
                        ..(*negotiated).clone()
                    };
                    neighbours[index].hears.set_negotiated(mirrored);
                }
            }
            Output::Send { connection, octets } => {
                if let Some(index) = of(connection) {
                    hear(&mut neighbours[index].hears, &octets);
                }
                speaker.handle_writable(connection);
            }
        }
    }
    panic!("the speaker does not come to rest");
}

/// All the speaker says is whole messages without faults.
fn hear(decoder: &mut Decoder, mut octets: &[u8]) {
    while !octets.is_empty() {
        let length = frame(octets, decoder.max_message_size())
            .expect("a good header")
            .expect("a whole message");
        let (message, rest) = octets.split_at(length);
        match decoder.decode(message) {
            Ok(Message::Update(update)) => assert_eq!(update.faults, [], "{message:02x?}"),
            Ok(_) => {}
            Err(notification) => panic!("{notification}: {message:02x?}"),
        }
        octets = rest;
    }
}
