//! RFC 7606: one case for each attribute and fault, with the disposition that must follow.

use super::*;
use crate::message::Disposition::{self, AttributeDiscard, Ignored, TreatAsWithdraw};

/// What must become of the UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Announced, no fault.
    Accepted,
    Fault(Disposition),
    Reset(u8),
}
use Fate::{Accepted, Fault, Reset};

const ORIGIN: &str = "400101 00";
const AS_PATH: &str = "400206 0201 0000fde9";
const NEXT_HOP: &str = "400304 0a000001";
const AS_PATH_2: &str = "400204 0201 fde9";

/// Looks at one UPDATE that announces 10.0.0.0/8 in its body.
fn fate(negotiated: &Negotiated, attributes: &str) -> Fate {
    let body = update_body(&[], &hex(attributes), &[8, 10]);
    let update = match decode_update(negotiated, &body) {
        Ok(update) => update,
        Err(notification) => {
            assert_eq!(notification.code, 3);
            return Reset(notification.subcode);
        }
    };
    let worst = update.faults.iter().map(|fault| fault.disposition).max();
    // The prefix is in exactly one of the two lists.
    let withdrawn = worst == Some(TreatAsWithdraw);
    assert_eq!(update.withdrawn.len(), usize::from(withdrawn));
    assert_eq!(update.announced.len(), usize::from(!withdrawn));
    worst.map_or(Accepted, Fault)
}

#[track_caller]
fn check(negotiated: &Negotiated, path: &str, cases: &[(&str, &str, Fate)]) {
    for (what, attribute, expected) in cases {
        // The attribute under test replaces the good one of the same code.
        let code = hex(attribute).get(1).copied();
        let mut attributes = String::new();
        for (good_code, good) in [(1, ORIGIN), (2, path), (3, NEXT_HOP)] {
            if code != Some(good_code) {
                attributes.push_str(good);
            }
        }
        attributes.push_str(attribute);
        assert_eq!(fate(negotiated, &attributes), *expected, "{what}");
    }
}

#[test]
fn the_base_of_the_table_is_good() {
    check(&external(), AS_PATH, &[("base", "", Accepted)]);
}

// RFC 7606 §7.1 to §7.10, §7.14, §7.15; RFC 8092 §6; RFC 9234 §5
#[test]
fn each_attribute_and_fault_has_its_disposition() {
    let cases = [
        ("ORIGIN flags", "c00101 00", Fault(TreatAsWithdraw)),
        ("ORIGIN empty", "400100", Fault(TreatAsWithdraw)),
        ("ORIGIN long", "400102 0000", Fault(TreatAsWithdraw)),
        ("ORIGIN undefined", "400101 03", Fault(TreatAsWithdraw)),
        (
            "ORIGIN twice",
            "400101 00 400101 02",
            Fault(AttributeDiscard),
        ),
        ("ORIGIN partial bit", "600101 00", Accepted),
        ("ORIGIN extended length", "50010001 00", Accepted),
        (
            "AS_PATH flags",
            "800206 0201 0000fde9",
            Fault(TreatAsWithdraw),
        ),
        ("AS_PATH empty", "400200", Accepted),
        (
            "AS_PATH stray octet",
            "400207 0201 0000fde9 02",
            Fault(TreatAsWithdraw),
        ),
        (
            "AS_PATH unknown segment",
            "400206 0501 0000fde9",
            Fault(TreatAsWithdraw),
        ),
        (
            "AS_PATH empty segment",
            "400202 0200",
            Fault(TreatAsWithdraw),
        ),
        (
            "AS_PATH overrun",
            "400206 0202 0000fde9",
            Fault(TreatAsWithdraw),
        ),
        (
            "AS_PATH number 0",
            "400206 0201 00000000",
            Fault(TreatAsWithdraw),
        ),
        (
            "AS_PATH confederation",
            "400206 0301 0000fde9",
            Fault(TreatAsWithdraw),
        ),
        ("NEXT_HOP flags", "c00304 0a000001", Fault(TreatAsWithdraw)),
        ("NEXT_HOP short", "400303 0a0000", Fault(TreatAsWithdraw)),
        ("NEXT_HOP long", "400305 0a00000101", Fault(TreatAsWithdraw)),
        ("NEXT_HOP zero", "400304 00000000", Fault(TreatAsWithdraw)),
        (
            "NEXT_HOP loopback",
            "400304 7f000001",
            Fault(TreatAsWithdraw),
        ),
        (
            "NEXT_HOP multicast",
            "400304 e0000001",
            Fault(TreatAsWithdraw),
        ),
        (
            "NEXT_HOP class E",
            "400304 f0000001",
            Fault(TreatAsWithdraw),
        ),
        ("MED flags", "400404 00000001", Fault(TreatAsWithdraw)),
        ("MED transitive", "c00404 00000001", Fault(TreatAsWithdraw)),
        ("MED short", "800403 000001", Fault(TreatAsWithdraw)),
        ("MED empty", "800400", Fault(TreatAsWithdraw)),
        (
            "LOCAL_PREF external",
            "400504 00000064",
            Fault(AttributeDiscard),
        ),
        (
            "LOCAL_PREF external, short",
            "400503 000064",
            Fault(AttributeDiscard),
        ),
        (
            "LOCAL_PREF external, flags",
            "c00504 00000064",
            Fault(TreatAsWithdraw),
        ),
        ("ATOMIC_AGGREGATE", "400600", Accepted),
        ("ATOMIC_AGGREGATE flags", "c00600", Fault(TreatAsWithdraw)),
        (
            "ATOMIC_AGGREGATE long",
            "400601 00",
            Fault(AttributeDiscard),
        ),
        ("AGGREGATOR", "c00708 0000fde9 c0000201", Accepted),
        (
            "AGGREGATOR flags",
            "400708 0000fde9 c0000201",
            Fault(TreatAsWithdraw),
        ),
        (
            "AGGREGATOR of two octets",
            "c00706 fde9 c0000201",
            Fault(AttributeDiscard),
        ),
        ("AGGREGATOR empty", "c00700", Fault(AttributeDiscard)),
        (
            "AGGREGATOR number 0",
            "c00708 00000000 c0000201",
            Fault(AttributeDiscard),
        ),
        ("COMMUNITIES", "c00804 fc000001", Accepted),
        (
            "COMMUNITIES flags",
            "800804 fc000001",
            Fault(TreatAsWithdraw),
        ),
        ("COMMUNITIES empty", "c00800", Fault(TreatAsWithdraw)),
        (
            "COMMUNITIES odd",
            "c00805 fc00000101",
            Fault(TreatAsWithdraw),
        ),
        (
            "ORIGINATOR_ID external",
            "800904 01010101",
            Fault(AttributeDiscard),
        ),
        (
            "ORIGINATOR_ID external, long",
            "800905 0101010101",
            Fault(AttributeDiscard),
        ),
        (
            "CLUSTER_LIST external",
            "800a04 01010101",
            Fault(AttributeDiscard),
        ),
        ("EXTENDED_COMMUNITIES", "c01008 0002fc0000000064", Accepted),
        (
            "EXTENDED_COMMUNITIES flags",
            "801008 0002fc0000000064",
            Fault(TreatAsWithdraw),
        ),
        (
            "EXTENDED_COMMUNITIES empty",
            "c01000",
            Fault(TreatAsWithdraw),
        ),
        (
            "EXTENDED_COMMUNITIES odd",
            "c01007 0002fc00000000",
            Fault(TreatAsWithdraw),
        ),
        (
            "AS4_PATH from a new speaker",
            "c01106 0201 00011170",
            Fault(AttributeDiscard),
        ),
        (
            "AS4_AGGREGATOR from a new speaker",
            "c01208 00011170 c0000201",
            Fault(AttributeDiscard),
        ),
        (
            "IPV6_EXTENDED_COMMUNITIES",
            "c01914 0002 20010db8000000000000000000000001 0064",
            Accepted,
        ),
        (
            "IPV6_EXTENDED_COMMUNITIES odd",
            "c01908 0002 20010db80000",
            Fault(TreatAsWithdraw),
        ),
        (
            "LARGE_COMMUNITIES",
            "c0200c 0000fc00 00000001 00000002",
            Accepted,
        ),
        (
            "LARGE_COMMUNITIES flags",
            "80200c 0000fc00 00000001 00000002",
            Fault(TreatAsWithdraw),
        ),
        ("LARGE_COMMUNITIES empty", "c02000", Fault(TreatAsWithdraw)),
        (
            "LARGE_COMMUNITIES odd",
            "c02008 0000fc00 00000001",
            Fault(TreatAsWithdraw),
        ),
        ("ONLY_TO_CUSTOMER", "c02304 0000fde9", Accepted),
        (
            "ONLY_TO_CUSTOMER flags",
            "402304 0000fde9",
            Fault(TreatAsWithdraw),
        ),
        (
            "ONLY_TO_CUSTOMER short",
            "c02302 fde9",
            Fault(TreatAsWithdraw),
        ),
        ("unknown transitive", "c0fe03 010203", Accepted),
        ("unknown transitive, empty", "c0fe00", Accepted),
        (
            "unknown transitive, twice",
            "c0fe01 01 c0fe01 02",
            Fault(AttributeDiscard),
        ),
        ("unknown non-transitive", "80fe03 010203", Accepted),
        ("unknown well-known", "40fe03 010203", Reset(2)),
        (
            "MP_REACH_NLRI twice",
            "800e05 0002018000 800e05 0002018000",
            Reset(1),
        ),
        (
            "MP_UNREACH_NLRI twice",
            "800f03 000201 800f03 000201",
            Reset(1),
        ),
        ("list ends in a header", "4001", Fault(TreatAsWithdraw)),
        (
            "list ends in an extended header",
            "5001 00",
            Fault(TreatAsWithdraw),
        ),
        (
            "list ends in a value",
            "c0fe04 010203",
            Fault(TreatAsWithdraw),
        ),
    ];
    check(&external(), AS_PATH, &cases);
}

#[test]
fn internal_peers_may_send_what_external_ones_may_not() {
    check(
        &internal(),
        AS_PATH,
        &[
            ("LOCAL_PREF", "400504 00000064", Accepted),
            ("LOCAL_PREF short", "400503 000064", Fault(TreatAsWithdraw)),
            ("LOCAL_PREF empty", "400500", Fault(TreatAsWithdraw)),
            ("ORIGINATOR_ID", "800904 01010101", Accepted),
            (
                "ORIGINATOR_ID flags",
                "c00904 01010101",
                Fault(TreatAsWithdraw),
            ),
            (
                "ORIGINATOR_ID long",
                "800905 0101010101",
                Fault(TreatAsWithdraw),
            ),
            ("CLUSTER_LIST", "800a08 01010101 02020202", Accepted),
            (
                "CLUSTER_LIST flags",
                "400a04 01010101",
                Fault(TreatAsWithdraw),
            ),
            ("CLUSTER_LIST empty", "800a00", Fault(TreatAsWithdraw)),
            (
                "CLUSTER_LIST odd",
                "800a06 01010101 0202",
                Fault(TreatAsWithdraw),
            ),
            ("AS_PATH confederation", "400206 0301 0000fde9", Accepted),
        ],
    );
}

// RFC 6793 §6
#[test]
fn two_octet_speakers_send_as4_attributes() {
    let two = Negotiated {
        four_octet_as: false,
        ..external()
    };
    check(
        &two,
        AS_PATH_2,
        &[
            ("AS4_PATH", "c01106 0201 00011170", Accepted),
            (
                "AS4_PATH flags",
                "801106 0201 00011170",
                Fault(TreatAsWithdraw),
            ),
            ("AS4_PATH empty", "c01100", Fault(AttributeDiscard)),
            (
                "AS4_PATH short",
                "c01104 0201 0001",
                Fault(AttributeDiscard),
            ),
            (
                "AS4_PATH number 0",
                "c01106 0201 00000000",
                Fault(AttributeDiscard),
            ),
            (
                "AS4_PATH stray",
                "c01107 0201 00011170 02",
                Fault(AttributeDiscard),
            ),
            ("AS4_AGGREGATOR", "c01208 00011170 c0000201", Accepted),
            (
                "AS4_AGGREGATOR short",
                "c01206 1170 c0000201",
                Fault(AttributeDiscard),
            ),
            ("AGGREGATOR", "c00706 fde9 c0000201", Accepted),
            (
                "AGGREGATOR of four octets",
                "c00708 0000fde9 c0000201",
                Fault(AttributeDiscard),
            ),
            (
                "AS_PATH of four octets",
                "400206 0201 0000fde9",
                Fault(TreatAsWithdraw),
            ),
        ],
    );
}

// RFC 7606 §3 d
#[test]
fn a_missing_mandatory_attribute_withdraws() {
    for attributes in [
        "".to_owned(),
        format!("{AS_PATH}{NEXT_HOP}"),
        format!("{ORIGIN}{NEXT_HOP}"),
        format!("{ORIGIN}{AS_PATH}"),
    ] {
        assert_eq!(
            fate(&external(), &attributes),
            Fault(TreatAsWithdraw),
            "{attributes}"
        );
    }
}

// RFC 7606 §3 h
#[test]
fn the_strongest_disposition_wins_and_every_fault_is_told() {
    let attributes = format!("{ORIGIN}{AS_PATH}{NEXT_HOP} 400601 00 800400");
    let body = update_body(&[], &hex(&attributes), &[8, 10]);
    let update = decode_update(&external(), &body).unwrap();
    let told: Vec<_> = update
        .faults
        .iter()
        .map(|fault| (fault.attribute, fault.disposition))
        .collect();
    assert_eq!(told, [(6, AttributeDiscard), (4, TreatAsWithdraw)]);
    assert_eq!(update.faults[0].text, "ATOMIC_AGGREGATE: length 1");
    assert_eq!(update.withdrawn.len(), 1);
}

#[test]
fn of_an_attribute_sent_twice_the_first_counts() {
    let attributes = format!("{ORIGIN}{AS_PATH}{NEXT_HOP} 800404 00000001 800404 00000002");
    let body = update_body(&[], &hex(&attributes), &[8, 10]);
    let update = decode_update(&external(), &body).unwrap();
    assert_eq!(update.announced[0].attributes.med, Some(1));
}

// RFC 7606 §5.2
#[test]
fn bad_attributes_without_a_reachable_prefix_reset() {
    for (attributes, withdrawn, resets) in [
        ("400101 03", "", true),
        ("400101 03", "080a", true),
        ("40", "", true),
        // A discarded attribute alone is no reason.
        ("400601 00", "", false),
        // Nothing but MP_UNREACH_NLRI, with bad flags: its prefixes are known.
        ("c00f05 000201 0820", "", false),
        ("400101 03 800f05 000201 0820", "", true),
    ] {
        let body = update_body(&hex(withdrawn), &hex(attributes), &[]);
        match decode_update(&external(), &body) {
            Ok(_) => assert!(!resets, "{attributes}"),
            Err(told) => assert_eq!((resets, told), (true, Notification::new(3, 1, &[]))),
        }
    }
}

// RFC 7606 §3 b, §5.3
#[test]
fn prefixes_and_sections_that_cannot_be_read_reset() {
    let good = format!("{ORIGIN}{AS_PATH}{NEXT_HOP}");
    for nlri in ["21 0a000000 00", "18 0a00", "ff", "080a 20"] {
        let told = decode_update(&external(), &update_body(&[], &hex(&good), &hex(nlri)));
        assert_eq!(told, Err(Notification::new(3, 10, &[])), "{nlri}");
        let told = decode_update(&external(), &update_body(&hex(nlri), &[], &[]));
        assert_eq!(told, Err(Notification::new(3, 10, &[])), "{nlri}");
        // Bad attributes do not make bad prefixes any better.
        let told = decode_update(&external(), &update_body(&[], &[], &hex(nlri)));
        assert_eq!(told, Err(Notification::new(3, 10, &[])), "{nlri}");
    }
    for body in ["0001 0000", "ffff 0000", "0000 0001", "0002 080a 0001"] {
        let told = decode_update(&external(), &hex(body));
        assert_eq!(told, Err(Notification::new(3, 1, &[])), "{body}");
    }
}

// RFC 7606 §7.11, §7.12; RFC 4760 §7
#[test]
fn multiprotocol_attributes_that_cannot_be_read_reset() {
    let v6 = "20010db8000000000000000000000001";
    for attribute in [
        "800e04 00020110".to_owned(),
        // No room for the next hop, no reserved octet.
        "800e05 00020110 00".to_owned(),
        format!("800e14 00020110 {v6}"),
        // Next hop lengths that the family does not have.
        "800e0b 00020104 0a000001 00 0820".to_owned(),
        format!("800e17 00020118 {v6}00 0820").replace("0118", "0111"),
        // IPv4 with an IPv6 next hop that was not negotiated.
        format!("800e17 00010110 {v6} 00 080a"),
        // Prefixes that overrun, and one longer than an address.
        format!("800e16 00020110 {v6} 00 08"),
        format!("800e16 00020110 {v6} 00 81"),
        "800f02 0002".to_owned(),
        "800f04 00020140".to_owned(),
    ] {
        let attributes = format!("{ORIGIN}{AS_PATH}{attribute}");
        let told = decode_update(&external(), &update_body(&[], &hex(&attributes), &[]));
        let expected = Notification::new(3, 9, &hex(&attribute));
        assert_eq!(told, Err(expected), "{attribute}");
    }
}

#[test]
fn multiprotocol_prefixes_are_withdrawn_when_attributes_are_bad() {
    let reach = "800e17 00020110 20010db8000000000000000000000001 00 0820";
    for attributes in [
        format!("{reach}{ORIGIN}"),
        format!("{reach}{AS_PATH}"),
        format!("{reach}{ORIGIN}{AS_PATH} 800400"),
        // Bad flags on MP_REACH_NLRI itself.
        format!("{ORIGIN}{AS_PATH}{reach}").replace("800e17", "c00e17"),
        // A next hop that is no host's address.
        format!("{ORIGIN}{AS_PATH}{reach}").replace("20010db8", "ff020000"),
    ] {
        let body = update_body(&[], &hex(&attributes), &[]);
        let update = decode_update(&external(), &body).unwrap();
        assert_eq!(update.withdrawn.len(), 1, "{attributes}");
        assert!(update.announced.is_empty());
    }
    // NEXT_HOP besides it has no meaning, whatever it says.
    let attributes = format!("{reach}{ORIGIN}{AS_PATH} 400304 00000000");
    let update = decode_update(&external(), &update_body(&[], &hex(&attributes), &[])).unwrap();
    assert_eq!((update.announced.len(), update.faults.len()), (1, 0));
}

#[test]
fn families_that_were_not_negotiated_are_passed_over_and_told() {
    let only_v4 = Negotiated {
        families: [true, false],
        ..external()
    };
    let reach = "800e17 00020110 20010db8000000000000000000000001 00 0820";
    let vpn = "800e0a 001941 04 0a000001 00 01";
    for (negotiated, attribute) in [
        (&only_v4, reach),
        (&external(), vpn),
        (&only_v4, "800f05 000201 0820"),
    ] {
        let attributes = format!("{ORIGIN}{AS_PATH}{NEXT_HOP}{attribute}");
        let body = update_body(&[], &hex(&attributes), &[8, 10]);
        let update = decode_update(negotiated, &body).unwrap();
        assert_eq!(update.faults.len(), 1);
        assert_eq!(update.faults[0].disposition, Ignored);
        assert_eq!((update.announced.len(), update.withdrawn.len()), (1, 0));
    }
    let only_v6 = Negotiated {
        families: [false, true],
        ..external()
    };
    let body = update_body(
        &[8, 11],
        &hex(&format!("{ORIGIN}{AS_PATH}{NEXT_HOP}")),
        &[8, 10],
    );
    let update = decode_update(&only_v6, &body).unwrap();
    assert!(update.announced.is_empty() && update.withdrawn.is_empty());
    assert_eq!(update.faults.len(), 2);
}

// RFC 4271 §6.3
#[test]
fn an_unknown_well_known_attribute_goes_back_whole_but_bounded() {
    let attribute = hex("40fe03 010203");
    let told = decode_update(&external(), &update_body(&[], &attribute, &[]));
    assert_eq!(told, Err(Notification::new(3, 2, &attribute)));

    let extended = Negotiated {
        max_message_size: MAX_EXTENDED_MESSAGE,
        ..external()
    };
    let mut attribute = hex("50fe ea60");
    attribute.resize(4 + 60_000, 7);
    let told = decode_update(&extended, &update_body(&[], &attribute, &[])).unwrap_err();
    assert_eq!(told.data.len(), 4096 - 21);
}

// RFC 8092 §2
#[test]
fn duplicate_large_communities_are_removed_in_silence() {
    let attributes = format!(
        "{ORIGIN}{AS_PATH}{NEXT_HOP} c02024 {0}02 {0}01 {0}02",
        "0000fc00 00000001 000000"
    );
    let body = update_body(&[], &hex(&attributes), &[8, 10]);
    let update = decode_update(&external(), &body).unwrap();
    assert_eq!(update.faults, []);
    assert_eq!(
        update.announced[0].attributes.large_communities,
        [[64512, 1, 2], [64512, 1, 1]]
    );
}

#[test]
fn the_body_and_mp_reach_announce_side_by_side() {
    let reach = "800e17 00020110 20010db8000000000000000000000001 00 0820";
    let attributes = format!("{reach}{ORIGIN}{AS_PATH}{NEXT_HOP}");
    let body = update_body(&[8, 11], &hex(&attributes), &[8, 10]);
    let update = decode_update(&external(), &body).unwrap();
    assert_eq!((update.withdrawn.len(), update.announced.len()), (1, 2));
    let next_hops: Vec<_> = update
        .announced
        .iter()
        .map(|announced| announced.attributes.next_hop.address.to_string())
        .collect();
    assert_eq!(next_hops, ["10.0.0.1", "2001:db8::1"]);
}
