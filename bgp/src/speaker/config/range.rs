//! Neighbours that are not named one by one: from which prefix they come, and which AS they may be.

use std::{fmt, sync::Arc};

use ipnet::IpNet;

use super::{ConfigError, PeerConfig, SpeakerConfig};
use crate::types::{Asn, Family};

/// Most neighbours of all kinds.
const MAX_PEERS: usize = 50_000;

/// The AS numbers that a neighbour may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAs {
    Exactly(Asn),
    /// One of these; none is our own.
    OneOf(Arc<[Asn]>),
    /// Any but our own.
    External,
}

impl RemoteAs {
    /// Whether an OPEN may carry the number.
    pub fn allows(&self, asn: Asn, local: Asn) -> bool {
        match self {
            RemoteAs::Exactly(only) => asn == *only,
            RemoteAs::OneOf(list) => list.contains(&asn),
            RemoteAs::External => asn != local && asn.0 != 0,
        }
    }

    /// The number, where it is certain.
    pub fn exact(&self) -> Option<Asn> {
        match self {
            RemoteAs::Exactly(asn) => Some(*asn),
            RemoteAs::OneOf(_) | RemoteAs::External => None,
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        match self {
            RemoteAs::Exactly(asn) => asn.0 != 0,
            RemoteAs::OneOf(list) => !list.is_empty() && list.iter().all(|asn| asn.0 != 0),
            RemoteAs::External => true,
        }
    }
}

impl From<Asn> for RemoteAs {
    fn from(asn: Asn) -> Self {
        RemoteAs::Exactly(asn)
    }
}

impl fmt::Display for RemoteAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteAs::Exactly(asn) => asn.fmt(f),
            RemoteAs::OneOf(list) => {
                for (index, asn) in list.iter().enumerate() {
                    write!(f, "{}{asn}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            RemoteAs::External => f.write_str("external"),
        }
    }
}

/// Whoever connects from the range becomes a neighbour named `NAME:ADDRESS`, and is forgotten soon
/// after its session has ended, unless its routes are still kept (RFC 4724). Of several ranges the
/// most specific one counts, and a neighbour that is configured by itself before any range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeConfig {
    /// Without host bits.
    pub range: IpNet,
    /// Most neighbours at once, with those that have not said yet who they are. At least 1.
    pub limit: usize,
    /// What holds for each of them: its name is the range's, its address means nothing, and no
    /// neighbour of a range is dialled.
    pub peer: PeerConfig,
}

impl RangeConfig {
    /// A range of 100 neighbours with every default.
    pub fn new(name: impl Into<String>, range: IpNet, asn: impl Into<RemoteAs>) -> Self {
        let range = range.trunc();
        let mut peer = PeerConfig::new(name, range.addr(), asn);
        peer.passive = true;
        Self {
            range,
            limit: 100,
            peer,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let fail = |reason: &'static str| {
            Err(ConfigError::Peer {
                name: self.peer.name.clone(),
                reason,
            })
        };
        if self.range != self.range.trunc() {
            return fail("the range has host bits");
        }
        if self.limit == 0 {
            return fail("the limit must be at least 1");
        }
        let local = self.peer.local_address.map(Family::of);
        if local.is_some_and(|local| local != Family::of(self.range.addr())) {
            return fail("local_address and range are of different families");
        }
        self.peer.validate()
    }
}

impl SpeakerConfig {
    /// What no peer or range shows by itself.
    pub(super) fn validate_ranges(&self) -> Result<(), ConfigError> {
        for (index, range) in self.ranges.iter().enumerate() {
            range.validate()?;
            for earlier in self.ranges.iter().take(index) {
                if earlier.range == range.range {
                    return Err(ConfigError::DuplicateRange(
                        range.peer.name.clone(),
                        range.range,
                    ));
                }
            }
        }
        check_count(self.peers.len(), self.ranges.iter())?;
        for peer in &self.peers {
            check_password(peer, IpNet::from(peer.address), self.ranges.iter())?;
        }
        for range in &self.ranges {
            check_password(&range.peer, range.range, self.ranges.iter())?;
        }
        Ok(())
    }
}

/// All neighbours that could be there at once.
pub(crate) fn check_count<'r>(
    peers: usize,
    ranges: impl Iterator<Item = &'r RangeConfig>,
) -> Result<(), ConfigError> {
    let all = ranges.fold(peers, |sum, range| sum.saturating_add(range.limit));
    if all > MAX_PEERS {
        return Err(ConfigError::TooManyPeers(MAX_PEERS));
    }
    Ok(())
}

/// The kernel asks everybody in a range with a password for signatures, and knows no exception.
pub(crate) fn check_password<'r>(
    peer: &PeerConfig,
    prefix: IpNet,
    mut ranges: impl Iterator<Item = &'r RangeConfig>,
) -> Result<(), ConfigError> {
    if peer.password.is_some() {
        return Ok(());
    }
    match ranges.find(|range| range.peer.password.is_some() && range.range.contains(&prefix)) {
        Some(range) => Err(ConfigError::PasswordOfRange {
            name: peer.name.clone(),
            range: range.peer.name.clone(),
        }),
        None => Ok(()),
    }
}
