//! NLRI: prefixes as length and leading octets (RFC 4271 §4.3), with or without a path identifier
//! (RFC 7911 §3).
//!
//! This is the innermost loop of the codec: a full message holds about a thousand prefixes. Host
//! bits are cleared rather than refused: their value is irrelevant (RFC 4271 §4.3).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{message::Nlri, types::Family};

/// A prefix that NLRI can carry: `Ipv4Net` or `Ipv6Net`.
pub trait WirePrefix: Copy + sealed::Sealed {
    /// Its family.
    const FAMILY: Family;
}

impl WirePrefix for Ipv4Net {
    const FAMILY: Family = Family::Ipv4Unicast;
}

impl WirePrefix for Ipv6Net {
    const FAMILY: Family = Family::Ipv6Unicast;
}

pub(super) mod sealed {
    /// What the codec needs to know of a prefix; out of reach of other crates.
    pub trait Sealed: Copy {
        /// Octets of an address.
        const OCTETS: usize;

        /// The prefix of `length` bits in `octets`, which holds at least the octets it needs.
        /// `None` when no prefix is that long.
        fn read(length: u8, octets: &[u8]) -> Option<Self>;

        /// Writes length and address, all octets of it, and returns how many of them count.
        /// `slot` holds `OCTETS + 1` octets.
        fn write(self, slot: &mut [u8]) -> usize;

        /// Octets of its NLRI without a path identifier.
        fn wire_len(self) -> usize;
    }
}

/// Octets of a prefix of that many bits.
#[inline]
const fn octets_of(length: u8) -> usize {
    (length as usize).div_ceil(8)
}

impl sealed::Sealed for Ipv4Net {
    const OCTETS: usize = 4;

    #[inline]
    fn read(length: u8, octets: &[u8]) -> Option<Self> {
        let address = match octets.first_chunk::<4>() {
            Some(octets) => u32::from_be_bytes(*octets),
            None => {
                let mut padded = [0; 4];
                let count = octets.len();
                padded[..count].copy_from_slice(octets);
                u32::from_be_bytes(padded)
            }
        };
        let mask = u32::MAX
            .checked_shl(32u32.checked_sub(u32::from(length))?)
            .unwrap_or(0);
        Ipv4Net::new(Ipv4Addr::from_bits(address & mask), length).ok()
    }

    #[inline]
    fn write(self, slot: &mut [u8]) -> usize {
        if let Some(slot) = slot.first_chunk_mut::<5>() {
            let [a, b, c, d] = self.addr().octets();
            *slot = [self.prefix_len(), a, b, c, d];
        }
        1 + octets_of(self.prefix_len())
    }

    #[inline]
    fn wire_len(self) -> usize {
        1 + octets_of(self.prefix_len())
    }
}

impl sealed::Sealed for Ipv6Net {
    const OCTETS: usize = 16;

    #[inline]
    fn read(length: u8, octets: &[u8]) -> Option<Self> {
        let address = match octets.first_chunk::<16>() {
            Some(octets) => u128::from_be_bytes(*octets),
            None => {
                let mut padded = [0; 16];
                let count = octets.len();
                padded[..count].copy_from_slice(octets);
                u128::from_be_bytes(padded)
            }
        };
        let mask = u128::MAX
            .checked_shl(128u32.checked_sub(u32::from(length))?)
            .unwrap_or(0);
        Ipv6Net::new(Ipv6Addr::from_bits(address & mask), length).ok()
    }

    #[inline]
    fn write(self, slot: &mut [u8]) -> usize {
        if let Some(slot) = slot.first_chunk_mut::<17>() {
            slot[0] = self.prefix_len();
            slot[1..].copy_from_slice(&self.addr().octets());
        }
        1 + octets_of(self.prefix_len())
    }

    #[inline]
    fn wire_len(self) -> usize {
        1 + octets_of(self.prefix_len())
    }
}

/// What is wrong with a run of NLRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadNlri;

/// Decodes a whole run of NLRI. Memory stays within a fixed multiple of the input: a prefix takes
/// at least one octet, and the list is sized by its first entry.
#[inline]
pub(super) fn decode<P: WirePrefix>(
    mut bytes: &[u8],
    add_path: bool,
) -> Result<Vec<Nlri<P>>, BadNlri> {
    // RFC 7911 §3: an identifier is always there or never; the length is not for guessing.
    let identifier = if add_path { 4 } else { 0 };
    let Some(first_length) = bytes.get(identifier) else {
        return if bytes.is_empty() {
            Ok(Vec::new())
        } else {
            Err(BadNlri)
        };
    };
    let entry = identifier + 1 + octets_of(*first_length);
    // The division is dear enough to be seen when there is only one.
    let count = if bytes.len() <= entry {
        1
    } else {
        bytes.len().div_ceil(entry)
    };
    let mut list = Vec::with_capacity(count);
    if add_path {
        while !bytes.is_empty() {
            let (path_id, rest) = bytes.split_first_chunk::<4>().ok_or(BadNlri)?;
            let (prefix, rest) = decode_one(rest)?;
            list.push(Nlri {
                path_id: u32::from_be_bytes(*path_id),
                prefix,
            });
            bytes = rest;
        }
    } else {
        while !bytes.is_empty() {
            let (prefix, rest) = decode_one(bytes)?;
            list.push(Nlri { path_id: 0, prefix });
            bytes = rest;
        }
    }
    Ok(list)
}

#[inline]
fn decode_one<P: WirePrefix>(bytes: &[u8]) -> Result<(P, &[u8]), BadNlri> {
    let (length, rest) = bytes.split_first().ok_or(BadNlri)?;
    let count = octets_of(*length);
    // All that follows is handed over, so that the common case reads a whole address at once.
    let after = rest.get(count..).ok_or(BadNlri)?;
    let prefix = if rest.len() >= P::OCTETS {
        P::read(*length, rest)
    } else {
        // Here `count` is less than an address unless the length is too long, which `read` refuses.
        P::read(*length, &rest[..count])
    }
    .ok_or(BadNlri)?;
    Ok((prefix, after))
}

/// Appends as many of `nlri` as fit into `room` octets, and says how many.
#[inline]
pub(super) fn encode<P: WirePrefix>(
    out: &mut Vec<u8>,
    nlri: &[Nlri<P>],
    add_path: bool,
    room: usize,
) -> usize {
    let identifier = if add_path { 4 } else { 0 };
    let start = out.len();
    let most = identifier + 1 + P::OCTETS;
    // Room for whole slots, also for the last one; cut back to what was used at the end.
    let space = room.min(nlri.len().saturating_mul(most)) + most;
    out.resize(start + space, 0);
    let buffer = &mut out[start..];
    let mut used = 0;
    let mut taken = 0;
    for entry in nlri {
        if used + identifier + entry.prefix.wire_len() > room {
            break;
        }
        let Some(slot) = buffer.get_mut(used..used + most) else {
            break;
        };
        if add_path {
            slot[..4].copy_from_slice(&entry.path_id.to_be_bytes());
            used += 4 + entry.prefix.write(&mut slot[4..]);
        } else {
            used += entry.prefix.write(slot);
        }
        taken += 1;
    }
    out.truncate(start + used);
    taken
}
