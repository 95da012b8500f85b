//! BGP messages byte by byte, for tests of what a speaker does with them.
//!
//! Nothing here comes from the library under test, and nothing is checked: tests want messages that
//! are wrong. What a speaker sends is taken apart as strictly as its sender should have built it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;

pub const OPEN: u8 = 1;
pub const UPDATE: u8 = 2;
pub const NOTIFICATION: u8 = 3;
pub const KEEPALIVE: u8 = 4;
pub const ROUTE_REFRESH: u8 = 5;

/// A whole message (RFC 4271 §4.1).
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).expect("a test asked for more than 65,535 octets");
    raw_message([0xff; 16], length, kind, body)
}

/// A message whose header says anything.
pub fn raw_message(marker: [u8; 16], length: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = marker.to_vec();
    out.extend(length.to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

pub fn keepalive() -> Vec<u8> {
    message(KEEPALIVE, &[])
}

pub fn notification(code: u8, subcode: u8, data: &[u8]) -> Vec<u8> {
    message(NOTIFICATION, &[&[code, subcode], data].concat())
}

pub fn route_refresh(afi: u16, subtype: u8, safi: u8) -> Vec<u8> {
    let [high, low] = afi.to_be_bytes();
    message(ROUTE_REFRESH, &[high, low, subtype, safi])
}

/// What an OPEN says; the optional parameters are bytes.
#[derive(Clone, Debug)]
pub struct OpenSpec {
    pub version: u8,
    /// My Autonomous System: two octets.
    pub asn: u16,
    pub hold_time: u16,
    pub router_id: Ipv4Addr,
    pub parameters: Vec<u8>,
    /// In place of the length of the parameters.
    pub parameters_length: Option<u8>,
}

impl OpenSpec {
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.version];
        out.extend(self.asn.to_be_bytes());
        out.extend(self.hold_time.to_be_bytes());
        out.extend(self.router_id.octets());
        let length = u8::try_from(self.parameters.len()).unwrap_or(u8::MAX);
        out.push(self.parameters_length.unwrap_or(length));
        out.extend(&self.parameters);
        out
    }

    pub fn message(&self) -> Vec<u8> {
        message(OPEN, &self.body())
    }
}

/// One capability: code, length, value (RFC 5492 §4).
pub fn capability(code: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("a capability has at most 255 octets");
    [&[code, length], value].concat()
}

/// One optional parameter that holds capabilities.
pub fn parameter(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("a parameter has at most 255 octets");
    [&[kind, length], value].concat()
}

/// An UPDATE (RFC 4271 §4.3) with lengths that are right.
pub fn update(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("too long for a test");
    let mut body = length(withdrawn).to_be_bytes().to_vec();
    body.extend(withdrawn);
    body.extend(length(attributes).to_be_bytes());
    body.extend(attributes);
    body.extend(nlri);
    message(UPDATE, &body)
}

/// A path attribute; the Extended Length bit of `flags` chooses the width of the length.
pub fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![flags, code];
    let length = u16::try_from(value.len()).expect("too long for a test");
    if flags & 0x10 != 0 || length > 255 {
        out[0] |= 0x10;
        out.extend(length.to_be_bytes());
    } else {
        out.push(length.to_be_bytes()[1]);
    }
    out.extend(value);
    out
}

pub fn origin(value: u8) -> Vec<u8> {
    attribute(0x40, 1, &[value])
}

/// One AS_SEQUENCE of four-octet numbers, or an empty path.
pub fn as_path(asns: &[u32]) -> Vec<u8> {
    attribute(0x40, 2, &segment(2, asns))
}

/// A path segment with four-octet numbers; nothing when there are none.
pub fn segment(kind: u8, asns: &[u32]) -> Vec<u8> {
    if asns.is_empty() {
        return Vec::new();
    }
    let mut out = vec![kind, u8::try_from(asns.len()).expect("at most 255")];
    out.extend(asns.iter().flat_map(|asn| asn.to_be_bytes()));
    out
}

/// The same with two-octet numbers.
pub fn segment2(kind: u8, asns: &[u16]) -> Vec<u8> {
    let mut out = vec![kind, u8::try_from(asns.len()).expect("at most 255")];
    out.extend(asns.iter().flat_map(|asn| asn.to_be_bytes()));
    out
}

pub fn next_hop(address: Ipv4Addr) -> Vec<u8> {
    attribute(0x40, 3, &address.octets())
}

pub fn med(value: u32) -> Vec<u8> {
    attribute(0x80, 4, &value.to_be_bytes())
}

pub fn local_pref(value: u32) -> Vec<u8> {
    attribute(0x40, 5, &value.to_be_bytes())
}

pub fn communities(values: &[u32]) -> Vec<u8> {
    let value: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect();
    attribute(0xc0, 8, &value)
}

/// MP_REACH_NLRI for IPv6 unicast (RFC 4760 §3).
pub fn mp_reach6(next_hop: &[u8], nlri: &[u8]) -> Vec<u8> {
    let mut value = vec![0, 2, 1, u8::try_from(next_hop.len()).expect("short")];
    value.extend(next_hop);
    value.push(0);
    value.extend(nlri);
    attribute(0x80, 14, &value)
}

/// MP_UNREACH_NLRI for IPv6 unicast.
pub fn mp_unreach6(nlri: &[u8]) -> Vec<u8> {
    attribute(0x80, 15, &[&[0, 2, 1], nlri].concat())
}

/// A prefix as NLRI.
pub fn nlri(prefix: &str) -> Vec<u8> {
    let net: IpNet = prefix.parse().expect("a test's prefix");
    net_nlri(net)
}

pub fn net_nlri(net: IpNet) -> Vec<u8> {
    let octets = match net.addr() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let count = usize::from(net.prefix_len()).div_ceil(8);
    let mut out = vec![net.prefix_len()];
    out.extend(octets.iter().take(count));
    out
}

/// A received attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub flags: u8,
    pub code: u8,
    pub value: Vec<u8>,
}

/// The attributes a prefix was last announced with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub attributes: Vec<Attribute>,
}

impl Route {
    pub fn get(&self, code: u8) -> Option<&Attribute> {
        self.attributes
            .iter()
            .find(|attribute| attribute.code == code)
    }

    pub fn value(&self, code: u8) -> Option<&[u8]> {
        self.get(code).map(|attribute| attribute.value.as_slice())
    }
}

/// What a speaker has announced on one session.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub routes: BTreeMap<IpNet, Route>,
    /// End-of-RIB of IPv4 and of IPv6 (RFC 4724 §2).
    pub end_of_rib: [u32; 2],
    /// UPDATEs in all, and prefixes announced or withdrawn in all.
    pub updates: u64,
    pub prefixes: u64,
    /// Prefixes withdrawn in all.
    pub withdrawn: u64,
}

impl Table {
    pub fn get(&self, prefix: &str) -> Option<&Route> {
        self.routes.get(&prefix.parse::<IpNet>().ok()?)
    }

    pub fn has(&self, prefix: &str) -> bool {
        self.get(prefix).is_some()
    }

    /// Applies the body of an UPDATE; an error is one of the sender.
    pub fn apply(&mut self, body: &[u8]) -> Result<()> {
        self.updates += 1;
        if body == [0, 0, 0, 0] {
            self.end_of_rib[0] += 1;
            return Ok(());
        }
        let (withdrawn, rest) = length_and(body).context("withdrawn routes")?;
        let (attributes, announced) = length_and(rest).context("attributes")?;
        for net in prefixes(withdrawn, false)? {
            self.prefixes += 1;
            self.withdrawn += 1;
            self.routes.remove(&net);
        }
        let attributes = parse_attributes(attributes)?;
        let announced = prefixes(announced, false)?;
        let plain: Vec<Attribute> = attributes
            .iter()
            .filter(|attribute| !matches!(attribute.code, 14 | 15))
            .cloned()
            .collect();
        let mut codes: Vec<u8> = attributes.iter().map(|a| a.code).collect();
        codes.sort_unstable();
        ensure!(
            codes.windows(2).all(|pair| pair[0] != pair[1]),
            "an attribute twice: {codes:?}"
        );
        let in_body = !announced.is_empty();
        for net in announced {
            self.announce(net, plain.clone());
        }
        for attribute in &attributes {
            let value = attribute.value.as_slice();
            match attribute.code {
                15 => {
                    let Some(([0, 2, 1], rest)) = value.split_first_chunk::<3>() else {
                        bail!("MP_UNREACH_NLRI of another family: {value:?}");
                    };
                    if rest.is_empty() && attributes.len() == 1 && !in_body {
                        self.end_of_rib[1] += 1;
                    }
                    for net in prefixes(rest, true)? {
                        self.prefixes += 1;
                        self.withdrawn += 1;
                        self.routes.remove(&net);
                    }
                }
                14 => {
                    let Some(([0, afi, 1, length], rest)) = value.split_first_chunk::<4>() else {
                        bail!("MP_REACH_NLRI of another family: {value:?}");
                    };
                    let (hop, rest) = rest
                        .split_at_checked(usize::from(*length))
                        .context("next hop")?;
                    let (_, rest) = rest.split_first().context("reserved octet")?;
                    let mut attributes = plain.clone();
                    // The next hop stands where that of the body would.
                    attributes.push(Attribute {
                        flags: attribute.flags,
                        code: 14,
                        value: hop.to_vec(),
                    });
                    for net in prefixes(rest, *afi == 2)? {
                        self.announce(net, attributes.clone());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn announce(&mut self, net: IpNet, attributes: Vec<Attribute>) {
        self.prefixes += 1;
        self.routes.insert(net, Route { attributes });
    }
}

fn length_and(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

fn parse_attributes(mut bytes: &[u8]) -> Result<Vec<Attribute>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (head, length) = match *bytes {
            [flags, _, high, low, ..] if flags & 0x10 != 0 => {
                (4, usize::from(u16::from_be_bytes([high, low])))
            }
            [_, _, length, ..] => (3, usize::from(length)),
            _ => bail!("attributes end early"),
        };
        let (whole, rest) = bytes
            .split_at_checked(head + length)
            .context("attribute overruns")?;
        out.push(Attribute {
            // Without Extended Length, which says nothing of the attribute.
            flags: whole[0] & 0xef,
            code: whole[1],
            value: whole[head..].to_vec(),
        });
        bytes = rest;
    }
    Ok(out)
}

fn prefixes(mut bytes: &[u8], v6: bool) -> Result<Vec<IpNet>> {
    let mut out = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (octets, rest) = rest
            .split_at_checked(usize::from(*length).div_ceil(8))
            .context("a prefix overruns")?;
        let mut full = [0u8; 16];
        full.get_mut(..octets.len())
            .context("a prefix is too long")?
            .copy_from_slice(octets);
        let address: IpAddr = if v6 {
            Ipv6Addr::from(full).into()
        } else {
            Ipv4Addr::new(full[0], full[1], full[2], full[3]).into()
        };
        let net = IpNet::new(address, *length)?;
        ensure!(net.trunc() == net, "host bits in {net}");
        out.push(net);
        bytes = rest;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_follows_announcements_and_withdrawals() {
        let mut table = Table::default();
        let attributes = [
            origin(0),
            as_path(&[1]),
            next_hop(Ipv4Addr::new(10, 0, 0, 1)),
        ]
        .concat();
        let nlri4 = [nlri("10.1.0.0/16"), nlri("10.2.3.4/32"), nlri("0.0.0.0/0")].concat();
        let body = |message: Vec<u8>| message[19..].to_vec();
        table
            .apply(&body(update(&[], &attributes, &nlri4)))
            .expect("good");
        assert_eq!(table.routes.len(), 3);
        let mp = [
            mp_reach6(&[0xfe; 16], &nlri("2001:db8::/33")),
            origin(0),
            as_path(&[1]),
        ]
        .concat();
        table
            .apply(&body(update(&nlri("0.0.0.0/0"), &mp, &[])))
            .expect("good");
        assert!(table.has("2001:db8::/33") && !table.has("0.0.0.0/0"));
        assert_eq!(
            table.get("10.2.3.4/32").and_then(|r| r.value(1)),
            Some(&[0][..])
        );
        table
            .apply(&body(update(&[], &mp_unreach6(&[]), &[])))
            .expect("good");
        table.apply(&[0, 0, 0, 0]).expect("good");
        assert_eq!(table.end_of_rib, [1, 1]);
        assert!(table.apply(&[0, 9, 0, 0]).is_err());
    }
}
