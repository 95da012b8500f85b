//! Forgets connections of addresses: an entry that outlives its workload would lead packets of an
//! old flow to whoever has the address next.
//!
//! Each dump walks the kernel's whole table, of which all namespaces have their part. So it is first
//! asked how many connections there are: with none there is nothing to be done, and a few are listed
//! at once. Of many the kernel shows those of one address, where addresses are few (Linux 5.8); what
//! it shows is compared here all the same, so an older kernel only takes longer.

use std::{io, net::IpAddr};

use hashbrown::HashSet;

use super::{
    super::{
        decode,
        encode::{NLM_F_DUMP, family_of},
    },
    Lane,
    read::value,
};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const STATISTICS: u16 = 1 << 8 | 5;
/// Addresses for which the kernel filters.
const FILTERED: usize = 4;
/// Connections that are rather listed all together.
const FEW: u32 = 1000;
/// Deletes in one send.
const TOGETHER: usize = 256;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

impl Lane {
    /// Whose first packet came from one of these addresses, or whose answers come from one.
    pub(super) fn forget(&mut self, addresses: &[IpAddr]) -> io::Result<u64> {
        let mut found = Vec::new();
        let count = self.count();
        if count == Some(0) {
            return Ok(0);
        }
        let many = count.is_none_or(|count| count > FEW);
        if many && addresses.len() <= FILTERED {
            for address in addresses {
                for direction in [TUPLE_ORIGINAL, TUPLE_REPLY] {
                    self.connections(
                        family_of(address),
                        Some((direction, *address)),
                        &HashSet::from([*address]),
                        &mut found,
                    )?;
                }
            }
        } else {
            let wanted: HashSet<IpAddr> = addresses.iter().copied().collect();
            let families: HashSet<u8> = addresses.iter().map(family_of).collect();
            for family in families {
                self.connections(family, None, &wanted, &mut found)?;
            }
        }
        found.sort();
        found.dedup();
        for group in found.chunks(TOGETHER) {
            self.socket.discard(&mut self.receive);
            self.encoder.clear();
            for (family, attributes) in group {
                self.sequence += 1;
                let header = [*family, 0, 0, 0];
                self.encoder.begin(DELETE, 0, self.sequence, &header);
                self.encoder.append(attributes);
                self.encoder.end();
            }
            // An entry that is gone by itself meanwhile is refused with ENOENT, which is as good.
            self.socket.send(self.encoder.bytes())?;
        }
        self.socket.discard(&mut self.receive);
        Ok(u64::try_from(found.len()).unwrap_or(u64::MAX))
    }

    /// Of all connections in this namespace; `None` when the kernel does not say.
    fn count(&mut self) -> Option<u32> {
        self.socket.discard(&mut self.receive);
        self.sequence += 1;
        let encoder = &mut self.encoder;
        encoder.clear();
        encoder.begin(STATISTICS, 0, self.sequence, &[0; 4]);
        encoder.end();
        self.socket.send(self.encoder.bytes()).ok()?;
        self.socket.receive(&mut self.receive).ok()?;
        let answer = decode::messages(&self.receive)
            .find(|message| message.kind == STATISTICS && message.sequence == self.sequence)?;
        // CTA_STATS_GLOBAL_ENTRIES, behind nfgenmsg.
        let entries = value(answer.payload.get(4..)?, 1)?;
        Some(u32::from_be_bytes(entries.try_into().ok()?))
    }

    /// Collects what a request to delete has to name.
    fn connections(
        &mut self,
        family: u8,
        filter: Option<(u16, IpAddr)>,
        wanted: &HashSet<IpAddr>,
        found: &mut Vec<(u8, Vec<u8>)>,
    ) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        let encoder = &mut self.encoder;
        encoder.clear();
        encoder.begin(GET, NLM_F_DUMP, sequence, &[family, 0, 0, 0]);
        if let Some((direction, address)) = filter {
            // CTA_TUPLE_IP, CTA_IP_V4_SRC or CTA_IP_V6_SRC.
            let tuple = encoder.begin_nest(direction);
            let ip = encoder.begin_nest(1);
            encoder.address(if address.is_ipv4() { 1 } else { 3 }, address);
            encoder.end_nest(ip);
            encoder.end_nest(tuple);
            // CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS; bit 0 is the source address.
            let nest = encoder.begin_nest(FILTER);
            encoder.u32(1, u32::from(direction == TUPLE_ORIGINAL));
            encoder.u32(2, u32::from(direction == TUPLE_REPLY));
            encoder.end_nest(nest);
        }
        encoder.end();
        let result = self
            .socket
            .dump(encoder.bytes(), sequence, &mut self.receive, |message| {
                // Behind nfgenmsg.
                let Some(attributes) = message.payload.get(4..) else {
                    return;
                };
                let ours = [TUPLE_ORIGINAL, TUPLE_REPLY].into_iter().any(|direction| {
                    source(attributes, direction).is_some_and(|source| wanted.contains(&source))
                });
                if ours {
                    found.push((family, name(attributes)));
                }
            });
        match result {
            // No connection tracking in this kernel, or not in use.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP)
                ) =>
            {
                Ok(())
            }
            // Entries come and go all the time; those of these addresses do not come any more.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }
}

fn source(attributes: &[u8], direction: u16) -> Option<IpAddr> {
    let ip = value(value(attributes, direction)?, 1)?;
    if let Some(address) = value(ip, 1) {
        return Some(<[u8; 4]>::try_from(address).ok()?.into());
    }
    Some(<[u8; 16]>::try_from(value(ip, 3)?).ok()?.into())
}

/// The attributes that name one entry: its first tuple, its zone and its id.
fn name(attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in decode::attributes(attributes) {
        let nested = match kind {
            TUPLE_ORIGINAL => 0x8000,
            ID | ZONE => 0,
            _ => continue,
        };
        let length = u16::try_from(4 + value.len()).unwrap_or(4);
        bytes.extend(length.to_ne_bytes());
        bytes.extend((kind | nested).to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
