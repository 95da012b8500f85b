//! Framing, OPEN, negotiation, NOTIFICATION, ROUTE-REFRESH.

use std::{net::Ipv4Addr, time::Duration};

use super::*;
use crate::{
    message::{Capability, Open, RouteRefresh},
    types::{Asn, Family},
    wire::notify::UnexpectedIn,
};

fn error(bytes: &[u8]) -> Notification {
    Decoder::new().decode(bytes).unwrap_err()
}

fn open(capabilities: Vec<Capability>) -> Open {
    Open {
        asn: Asn(65001),
        hold_time: Duration::from_secs(9),
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        capabilities,
    }
}

fn decode_open(body: &[u8]) -> Result<Open, Notification> {
    match Decoder::new().decode(&message(1, body))? {
        Message::Open(open) => Ok(*open),
        other => panic!("an OPEN became {other:?}"),
    }
}

#[test]
fn a_frame_needs_its_whole_header_and_its_whole_body() {
    let keepalive = message(4, &[]);
    for cut in 0..19 {
        assert_eq!(frame(&keepalive[..cut], 4096), Ok(None));
    }
    assert_eq!(frame(&keepalive, 4096), Ok(Some(19)));
    let mut two = message(2, &[0; 100]);
    assert_eq!(frame(&two[..118], 4096), Ok(None));
    two.extend_from_slice(&keepalive);
    assert_eq!(frame(&two, 4096), Ok(Some(119)));
}

// RFC 4271 §6.1
#[test]
fn header_faults_carry_the_right_code_and_data() {
    let mut bytes = message(4, &[]);
    bytes[15] = 0xfe;
    assert_eq!(error(&bytes), Notification::connection_not_synchronized());

    for (kind, length) in [
        (1, 28),
        (2, 22),
        (3, 20),
        (4, 20),
        (5, 22),
        (2, 4097),
        (9, 18),
    ] {
        let mut bytes = message(kind, &[0; 10]);
        bytes[16..18].copy_from_slice(&u16::to_be_bytes(length));
        let told = Notification::new(1, 2, &length.to_be_bytes());
        assert_eq!(error(&bytes), told, "type {kind} length {length}");
    }
    for kind in [0, 6, 255] {
        let told = Notification::new(1, 3, &[kind]);
        assert_eq!(error(&message(kind, &[0; 4])), told);
    }
}

// RFC 8654 §3
#[test]
fn extended_messages_are_for_everything_but_open_and_keepalive() {
    let mut header = message(2, &[]);
    header[16..18].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(frame(&header, MAX_EXTENDED_MESSAGE), Ok(None));
    for kind in [1, 4] {
        header[18] = kind;
        assert!(frame(&header, MAX_EXTENDED_MESSAGE).is_err());
    }
}

// RFC 4271 §6.2
#[test]
fn open_faults_carry_the_right_subcode() {
    let good = "04 fde9 0009 0a000001 00";
    assert!(decode_open(&hex(good)).is_ok());
    for (body, subcode, data) in [
        ("03 fde9 0009 0a000001 00", 1, &[0, 4][..]),
        ("05 fde9 0009 0a000001 00", 1, &[0, 4]),
        ("04 0000 0009 0a000001 00", 2, &[]),
        // Capability 65 with number 0 (RFC 7607).
        ("04 fde9 0009 0a000001 08 0206 4104 00000000", 2, &[]),
        ("04 fde9 0009 00000000 00", 3, &[]),
        // A parameter that is not capabilities.
        ("04 fde9 0009 0a000001 03 0101 00", 4, &[]),
        ("04 fde9 0001 0a000001 00", 6, &[]),
        ("04 fde9 0002 0a000001 00", 6, &[]),
        // The length says more, or less, than there is.
        ("04 fde9 0009 0a000001 01", 0, &[]),
        ("04 fde9 0009 0a000001 00 02", 0, &[]),
        // A parameter and a capability that overrun.
        ("04 fde9 0009 0a000001 03 0202 02", 0, &[]),
        ("04 fde9 0009 0a000001 04 0202 0201", 0, &[]),
        // Capability 1 with three octets, 65 with two, 64 with one.
        ("04 fde9 0009 0a000001 07 0205 0103 000100", 0, &[]),
        ("04 fde9 0009 0a000001 06 0204 4102 0001", 0, &[]),
        ("04 fde9 0009 0a000001 05 0203 4001 00", 0, &[]),
    ] {
        let told = decode_open(&hex(body)).expect_err(body);
        assert_eq!(told, Notification::new(2, subcode, data), "{body}");
    }
    let no_hold_time = decode_open(&hex("04 fde9 0000 0a000001 00")).unwrap();
    assert_eq!(no_hold_time.hold_time, Duration::ZERO);
}

// RFC 5492 §4, RFC 9072 §2
#[test]
fn capabilities_come_in_several_parameters_and_in_the_extended_format() {
    let expected = vec![
        Capability::RouteRefresh,
        Capability::FourOctetAs(Asn(4_200_000_000)),
        Capability::Unknown {
            code: 200,
            value: vec![1, 2],
        },
    ];
    for body in [
        "04 5ba0 0009 0a000001 10 0202 0200 020a 4104 fa56ea00 c802 0102",
        "04 5ba0 0009 0a000001 0e 020c 0200 4104 fa56ea00 c802 0102",
        "04 5ba0 0009 0a000001 ff ff 000f 02000c 0200 4104 fa56ea00 c802 0102",
        "04 5ba0 0009 0a000001 04 ff 000f 02000c 0200 4104 fa56ea00 c802 0102",
    ] {
        let open = decode_open(&hex(body)).expect(body);
        assert_eq!(open.capabilities, expected, "{body}");
        assert_eq!(open.asn, Asn(4_200_000_000));
    }
}

#[test]
fn many_capabilities_make_an_extended_open_that_reads_back() {
    let many: Vec<_> = (0..20)
        .map(|code| Capability::Unknown {
            code: 130 + code,
            value: vec![code; 60],
        })
        .collect();
    let sent = open(many);
    let mut bytes = Vec::new();
    encode_open(&mut bytes, &sent);
    assert_eq!(bytes[28..30], [255, 255]);
    assert_eq!(
        Decoder::new().decode(&bytes),
        Ok(Message::Open(Box::new(sent)))
    );
}

#[test]
fn an_open_with_more_capabilities_than_fit_is_still_an_open() {
    let huge: Vec<_> = (0..40)
        .map(|_| Capability::Unknown {
            code: 130,
            value: vec![0; 300],
        })
        .collect();
    let mut bytes = Vec::new();
    encode_open(&mut bytes, &open(huge));
    assert!(bytes.len() <= 4096);
    let Ok(Message::Open(open)) = Decoder::new().decode(&bytes) else {
        panic!("not an OPEN");
    };
    assert_eq!(open.capabilities.len(), 15);
}

// RFC 7911 §4
#[test]
fn add_path_modes_that_are_not_defined_are_passed_over() {
    let body = "04 fde9 0009 0a000001 0c 020a 4508 00010100 00020103";
    assert_eq!(
        decode_open(&hex(body)).unwrap().capabilities,
        [Capability::AddPath(vec![(2, 1, 3)])]
    );
}

#[test]
fn negotiation_takes_what_both_sides_have() {
    let mp = |afi| Capability::MultiProtocol { afi, safi: 1 };
    let local = open(vec![
        mp(1),
        mp(2),
        Capability::FourOctetAs(Asn(65001)),
        Capability::RouteRefresh,
        Capability::ExtendedMessage,
        Capability::ExtendedNextHop(vec![(1, 1, 2)]),
        Capability::AddPath(vec![(1, 1, 3), (2, 1, 1)]),
    ]);
    let mut remote = open(vec![
        mp(2),
        mp(1),
        mp(25),
        Capability::FourOctetAs(Asn(65002)),
        Capability::ExtendedMessage,
        Capability::ExtendedNextHop(vec![(1, 128, 2), (1, 1, 2)]),
        Capability::AddPath(vec![(1, 1, 1), (2, 1, 2)]),
    ]);
    remote.asn = Asn(65002);
    let negotiated = negotiate(&local, &remote);
    assert_eq!(
        negotiated,
        Negotiated {
            four_octet_as: true,
            internal: false,
            families: [true, true],
            add_path_receive: [false, true],
            add_path_send: [true, false],
            extended_next_hop: true,
            max_message_size: 65_535,
            route_refresh: false,
            enhanced_route_refresh: false,
            long_lived_sent: false,
            long_lived_received: false,
        }
    );
    // Seen from the other side, the directions of ADD-PATH are exchanged.
    let mirrored = negotiate(&remote, &local);
    assert_eq!(mirrored.add_path_send, negotiated.add_path_receive);
    assert_eq!(mirrored.add_path_receive, negotiated.add_path_send);
}

// RFC 4760 §8
#[test]
fn a_peer_without_multiprotocol_carries_ipv4_alone() {
    let old = open(vec![]);
    let new = open(vec![
        Capability::MultiProtocol { afi: 1, safi: 1 },
        Capability::MultiProtocol { afi: 2, safi: 1 },
    ]);
    let six = open(vec![Capability::MultiProtocol { afi: 2, safi: 1 }]);
    assert_eq!(negotiate(&new, &old).families, [true, false]);
    assert_eq!(negotiate(&old, &old).families, [true, false]);
    assert_eq!(negotiate(&six, &old).families, [false, false]);
    assert!(negotiate(&old, &old).internal);
}

#[test]
fn keepalive_notification_and_route_refresh_read_back() {
    let mut decoder = Decoder::new();
    let mut bytes = Vec::new();
    encode_keepalive(&mut bytes);
    assert_eq!(decoder.decode(&bytes), Ok(Message::Keepalive));

    let refresh = RouteRefresh {
        afi: 2,
        safi: 1,
        subtype: 0,
    };
    bytes.clear();
    encode_route_refresh(&mut bytes, &refresh);
    assert_eq!(bytes[16..], hex("0017 05 0002 00 01"));
    assert_eq!(decoder.decode(&bytes), Ok(Message::RouteRefresh(refresh)));

    let notification = Notification::administrative_shutdown("maintenance");
    bytes.clear();
    encode_notification(&mut bytes, &notification);
    assert_eq!(
        decoder.decode(&bytes),
        Ok(Message::Notification(notification))
    );
}

#[test]
fn a_notification_with_too_much_data_is_cut_to_a_message() {
    let notification = Notification {
        code: 3,
        subcode: 9,
        data: vec![7; 70_000],
    };
    let mut bytes = Vec::new();
    encode_notification(&mut bytes, &notification);
    assert_eq!(frame(&bytes, 4096), Ok(Some(4096)));
}

// RFC 7313 §5
#[test]
fn a_route_refresh_of_wrong_length_is_told_by_its_kind() {
    for subtype in [1, 2] {
        let bytes = message(5, &[0, 1, subtype, 1, 0]);
        assert_eq!(error(&bytes), Notification::new(7, 1, &bytes));
    }
    assert_eq!(
        error(&message(5, &[0, 1, 0, 1, 0])),
        Notification::new(1, 2, &[0, 24])
    );
}

// RFC 9003 §2
#[test]
fn shutdown_text_is_bounded_and_must_be_utf8() {
    let text = "ä".repeat(200);
    let notification = Notification::administrative_shutdown(&text);
    assert_eq!(notification.data.len(), 255);
    assert_eq!(notification.shutdown_text(), Some(&text[..254]));

    let bad = |data: &[u8]| Notification::new(6, 2, data).shutdown_text().is_some();
    assert!(!bad(&[]));
    assert!(!bad(&[0]));
    assert!(!bad(&[5, b'a']));
    assert!(!bad(&[2, 0xc3, 0x28]));
    assert!(bad(&[1, b'a']));
    assert_eq!(
        Notification::new(6, 5, &[1, b'a']).shutdown_text(),
        None,
        "a rejected connection has no text"
    );
}

// RFC 8538 §3
#[test]
fn a_hard_reset_holds_its_reason() {
    let inner = Notification::administrative_reset("new certificates");
    let hard = Notification::hard_reset(&inner);
    assert_eq!(hard.hard_reset_reason(), Some(inner));
    assert_eq!(Notification::new(6, 9, &[1]).hard_reset_reason(), None);
}

#[test]
fn notifications_are_described_in_words() {
    for (notification, words) in [
        (
            Notification::bad_message_length(18),
            "message header error: bad message length (1/2), length 18",
        ),
        (
            Notification::bad_peer_as(),
            "OPEN message error: bad peer AS (2/2)",
        ),
        (
            Notification::new(3, 5, &[0x40, 1, 2, 0, 0]),
            "UPDATE message error: attribute length error (3/5), attribute 1 ORIGIN, data 4001020000",
        ),
        (
            Notification::hold_timer_expired(),
            "hold timer expired (4/0)",
        ),
        (
            Notification::unexpected_message(UnexpectedIn::OpenConfirm, 2),
            "finite state machine error: unexpected message in OpenConfirm (5/2), message type 2",
        ),
        (
            Notification::maximum_prefixes(Family::Ipv6Unicast, 1000),
            "cease: maximum number of prefixes reached (6/1), AFI 2 SAFI 1, bound 1000",
        ),
        (
            Notification::administrative_shutdown("go\naway"),
            "cease: administrative shutdown (6/2), text \"go\\naway\"",
        ),
        (
            Notification::hard_reset(&Notification::bfd_down()),
            "cease: hard reset (6/9), because of cease: BFD down (6/10)",
        ),
        (
            Notification::new(2, 8, &[]),
            "OPEN message error: unknown subcode (2/8)",
        ),
        (
            Notification::new(99, 1, &[0xab; 40]),
            "unknown error: unknown subcode (99/1), data \
             abababababababababababababababababababababababababababababababab… (40 octets)",
        ),
    ] {
        assert_eq!(notification.describe(), words);
    }
}
