//! The walk over the path attributes of an UPDATE (RFC 4271 §4.3, RFC 7606 §4).

/// Attribute type codes.
pub(super) mod code {
    pub(in crate::wire) const ORIGIN: u8 = 1;
    pub(in crate::wire) const AS_PATH: u8 = 2;
    pub(in crate::wire) const NEXT_HOP: u8 = 3;
    pub(in crate::wire) const MULTI_EXIT_DISC: u8 = 4;
    pub(in crate::wire) const LOCAL_PREF: u8 = 5;
    pub(in crate::wire) const ATOMIC_AGGREGATE: u8 = 6;
    pub(in crate::wire) const AGGREGATOR: u8 = 7;
    pub(in crate::wire) const COMMUNITIES: u8 = 8;
    pub(in crate::wire) const ORIGINATOR_ID: u8 = 9;
    pub(in crate::wire) const CLUSTER_LIST: u8 = 10;
    pub(in crate::wire) const MP_REACH_NLRI: u8 = 14;
    pub(in crate::wire) const MP_UNREACH_NLRI: u8 = 15;
    pub(in crate::wire) const EXTENDED_COMMUNITIES: u8 = 16;
    pub(in crate::wire) const AS4_PATH: u8 = 17;
    pub(in crate::wire) const AS4_AGGREGATOR: u8 = 18;
    pub(in crate::wire) const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    pub(in crate::wire) const LARGE_COMMUNITIES: u8 = 32;
    pub(in crate::wire) const ONLY_TO_CUSTOMER: u8 = 35;
}

/// Attribute flags (RFC 4271 §4.3).
pub(super) mod flag {
    pub(in crate::wire) const OPTIONAL: u8 = 0x80;
    pub(in crate::wire) const TRANSITIVE: u8 = 0x40;
    pub(in crate::wire) const PARTIAL: u8 = 0x20;
    pub(in crate::wire) const EXTENDED_LENGTH: u8 = 0x10;
}

/// One attribute, borrowed from the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tlv<'a> {
    pub(super) flags: u8,
    pub(super) code: u8,
    pub(super) value: &'a [u8],
    /// Flags, code, length and value: what goes back in a NOTIFICATION.
    pub(super) whole: &'a [u8],
}

/// The attribute list ends in the middle of an attribute (RFC 7606 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// Yields attributes until the bytes end; after an overrun, nothing more.
#[derive(Clone, Debug)]
pub(super) struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    pub(super) const fn new(attributes: &'a [u8]) -> Self {
        Self { rest: attributes }
    }

    /// What was not walked yet.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Tlv<'a>, Overrun>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let all = self.rest;
        let parsed = match *all {
            [flags, code, high, low, ..] if flags & flag::EXTENDED_LENGTH != 0 => {
                Some((flags, code, 4, usize::from(u16::from_be_bytes([high, low]))))
            }
            [flags, code, length, ..] if flags & flag::EXTENDED_LENGTH == 0 => {
                Some((flags, code, 3, usize::from(length)))
            }
            _ => None,
        };
        let item = parsed.and_then(|(flags, code, head, length)| {
            let (whole, rest) = all.split_at_checked(head + length)?;
            let value = whole.get(head..)?;
            self.rest = rest;
            Some(Tlv {
                flags,
                code,
                value,
                whole,
            })
        });
        if item.is_none() {
            self.rest = &[];
        }
        Some(item.ok_or(Overrun))
    }
}
