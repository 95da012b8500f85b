//! Faults of prefixes, in the body and in the multiprotocol attributes (RFC 4271 §6.3, RFC 4760 §7,
//! RFC 7606 §5), and what only looks like one.

use integration::lab::raw_message::{self as raw, attribute};

use super::attributes::with;
use super::world::{self, address};

#[test]
fn faults_of_prefixes() {
    world::run(|world, cases| {
        let base = world::base(65001, address(11));
        let v6hop = [0xfd, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11];
        let plain = [raw::origin(0), raw::as_path(&[65001])].concat();
        let v6 = |mp: Vec<u8>| raw::update(&[], &[mp, plain.clone()].concat(), &[]);
        let mp = |value: &[u8]| attribute(0x80, 14, value);
        let good6 = raw::mp_reach6(&v6hop, &raw::nlri("2001:db8::/32"));
        let body = |bytes: &[u8]| raw::message(raw::UPDATE, bytes);
        // The messages and, for those that reset the session, code and subcode.
        let list: Vec<(&str, Vec<u8>, Option<(u8, u8)>)> = vec![
            (
                "IPv4 prefix of 33 bits",
                raw::update(&[], &base, &[33, 10, 0, 0, 0, 0]),
                Some((3, 10)),
            ),
            (
                "IPv4 prefix of 255 bits",
                raw::update(&[], &base, &[255; 33]),
                Some((3, 10)),
            ),
            (
                "IPv4 prefix cut short",
                raw::update(&[], &base, &[24, 10, 0]),
                Some((3, 10)),
            ),
            (
                "withdrawn prefix of 33 bits",
                raw::update(&[33, 10, 0, 0, 0, 0], &[], &[]),
                Some((3, 10)),
            ),
            (
                "withdrawn prefix cut short",
                raw::update(&[24, 10, 0], &[], &[]),
                Some((3, 10)),
            ),
            (
                "withdrawn length overruns",
                body(&[0, 9, 0, 0]),
                Some((3, 1)),
            ),
            (
                "attribute length overruns",
                body(&[0, 0, 0, 9, 0x40, 1, 1, 0]),
                Some((3, 1)),
            ),
            ("both lengths overrun", body(&[0, 1, 8, 0, 9]), Some((3, 1))),
            (
                "MP_REACH twice",
                v6([good6.clone(), good6.clone()].concat()),
                Some((3, 1)),
            ),
            ("MP_REACH empty", v6(mp(&[])), Some((3, 9))),
            (
                "MP_REACH cut in the next hop",
                v6(mp(&[0, 2, 1, 16, 1, 2])),
                Some((3, 9)),
            ),
            (
                "MP_REACH with a next hop of 15",
                v6(mp(&[&[0, 2, 1, 15], &[1; 15][..], &[0, 0]].concat())),
                Some((3, 9)),
            ),
            (
                "MP_REACH with a next hop of 0",
                v6(mp(&[0, 2, 1, 0, 0, 0])),
                Some((3, 9)),
            ),
            (
                "MP_REACH with 129 bits",
                v6(raw::mp_reach6(&v6hop, &[129; 18])),
                Some((3, 9)),
            ),
            (
                "MP_REACH cut short",
                v6(raw::mp_reach6(&v6hop, &[64, 1, 2])),
                Some((3, 9)),
            ),
            (
                "MP_UNREACH empty",
                raw::update(&[], &attribute(0x80, 15, &[]), &[]),
                Some((3, 9)),
            ),
            (
                "MP_UNREACH cut",
                raw::update(&[], &attribute(0x80, 15, &[0, 2]), &[]),
                Some((3, 9)),
            ),
            (
                "MP_UNREACH with 129 bits",
                raw::update(&[], &raw::mp_unreach6(&[129; 18]), &[]),
                Some((3, 9)),
            ),
            (
                "MP_UNREACH twice",
                raw::update(
                    &[],
                    &[raw::mp_unreach6(&[]), raw::mp_unreach6(&[])].concat(),
                    &[],
                ),
                Some((3, 1)),
            ),
            (
                "attributes with faults and no prefix",
                raw::update(&[], &with(&base, 1, &raw::origin(9)), &[]),
                Some((3, 1)),
            ),
            ("nothing at all: End-of-RIB", body(&[0, 0, 0, 0]), None),
            (
                "End-of-RIB of IPv6",
                raw::update(&[], &raw::mp_unreach6(&[]), &[]),
                None,
            ),
            (
                "attributes without a prefix",
                raw::update(&[], &base, &[]),
                None,
            ),
            (
                "withdrawal of an unknown prefix",
                raw::update(&raw::nlri("10.99.0.0/16"), &[], &[]),
                None,
            ),
            (
                "the same prefix withdrawn twice",
                raw::update(&raw::nlri("10.99.0.0/16").repeat(2), &[], &[]),
                None,
            ),
            ("withdrawn default route", raw::update(&[0], &[], &[]), None),
            (
                "MP_REACH of a family that was not negotiated",
                v6(mp(&[
                    0, 1, 128, 12, 0, 0, 0, 0, 0, 0, 0, 0, 10, 9, 0, 11, 0, 0,
                ])),
                None,
            ),
            (
                "MP_UNREACH of a family that was not negotiated",
                raw::update(&[], &attribute(0x80, 15, &[0, 25, 70, 1]), &[]),
                None,
            ),
            (
                "MP_REACH for IPv4 with an IPv4 next hop",
                raw::update(
                    &[],
                    &[
                        mp(&[0, 1, 1, 4, 10, 9, 0, 11, 0, 16, 10, 77]),
                        plain.clone(),
                    ]
                    .concat(),
                    &[],
                ),
                None,
            ),
            (
                "IPv6 with a global and a link-local next hop",
                v6(raw::mp_reach6(
                    &[
                        v6hop,
                        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                    ]
                    .concat(),
                    &raw::nlri("2001:db8:1::/48"),
                )),
                None,
            ),
            (
                "NEXT_HOP beside MP_REACH",
                raw::update(
                    &[],
                    &[good6.clone(), plain.clone(), raw::next_hop(address(11))].concat(),
                    &[],
                ),
                None,
            ),
            (
                "both families in one UPDATE",
                raw::update(
                    &[],
                    &[good6.clone(), base.clone()].concat(),
                    &raw::nlri("10.55.0.0/16"),
                ),
                None,
            ),
            (
                "host bits in a prefix",
                raw::update(&[], &base, &[8, 10]),
                None,
            ),
        ];
        let mut pair = world.pair(11, 12)?;
        for (name, message, outcome) in list {
            cases.case(name, || {
                pair.sender.send(&message)?;
                if let Some((code, subcode)) = outcome {
                    let result = world::expect_notification(&mut pair.sender, code, subcode, None);
                    pair.again(world, (11, 12))?;
                    result
                } else {
                    let result = pair.sync();
                    if result.is_err() {
                        pair.again(world, (11, 12))?;
                    }
                    result
                }
            });
        }
        Ok(())
    });
}
