//! BGP messages as values, between the codec and the machines.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use ipnet::{Ipv4Net, Ipv6Net};
use smallvec::SmallVec;

use crate::{
    attributes::Attributes,
    types::{Asn, Family},
};

/// A received message that passed validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Open(Box<Open>),
    Update(Update),
    Notification(Notification),
    Keepalive,
    RouteRefresh(RouteRefresh),
}

/// RFC 4271 §4.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The four-octet number when that capability is present, else My Autonomous System.
    pub asn: Asn,
    /// 0 or at least 3 seconds; anything else is refused by the codec.
    pub hold_time: Duration,
    pub router_id: Ipv4Addr,
    /// In the order received; those we do not know as `Unknown`.
    pub capabilities: Vec<Capability>,
}

/// RFC 5492 capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760; raw AFI and SAFI, because peers announce families we do not carry.
    MultiProtocol {
        afi: u16,
        safi: u8,
    },
    /// RFC 2918.
    RouteRefresh,
    /// RFC 8950: (NLRI AFI, NLRI SAFI, next hop AFI).
    ExtendedNextHop(Vec<(u16, u16, u16)>),
    /// RFC 8654.
    ExtendedMessage,
    /// RFC 9234: 0 provider, 1 route server, 2 route server client, 3 customer, 4 peer.
    Role(u8),
    /// RFC 4724 with the N bit of RFC 8538.
    GracefulRestart {
        restarting: bool,
        notification: bool,
        /// Seconds, 12 bits.
        restart_time: u16,
        /// AFI, SAFI, forwarding state preserved.
        families: Vec<(u16, u8, bool)>,
    },
    /// RFC 6793.
    FourOctetAs(Asn),
    /// RFC 7911: AFI, SAFI, 1 receive, 2 send, 3 both.
    AddPath(Vec<(u16, u8, u8)>),
    /// RFC 7313.
    EnhancedRouteRefresh,
    /// RFC 9494: AFI, SAFI, forwarding state preserved, stale time in seconds (24 bits).
    LongLivedGracefulRestart(Vec<(u16, u8, bool, u32)>),
    /// draft-walton-bgp-hostname: host and domain name.
    Fqdn {
        host: String,
        domain: String,
    },
    Unknown {
        code: u8,
        value: Vec<u8>,
    },
}

/// A received UPDATE after RFC 7606: what it withdraws, then what it announces. Withdrawals and
/// announcements of one UPDATE are applied in this order; a prefix in both is announced
/// (RFC 4271 §4.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Withdrawn, with what was announced in an UPDATE that is treated as a withdraw.
    pub withdrawn: SmallVec<[NlriList; 1]>,
    /// Body NLRI and MP_REACH_NLRI, each with its next hop in its attributes.
    pub announced: SmallVec<[Announced; 1]>,
    /// Set when the message is an End-of-RIB marker (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
    /// What was wrong with it and did not reset the session; almost always empty.
    pub faults: Vec<Fault>,
}

/// Prefixes that share attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub attributes: Arc<Attributes>,
    pub nlri: NlriList,
}

/// Prefixes of one family. Host bits are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NlriList {
    Ipv4(Vec<Nlri<Ipv4Net>>),
    Ipv6(Vec<Nlri<Ipv6Net>>),
}

impl NlriList {
    /// The family of the prefixes.
    pub const fn family(&self) -> Family {
        match self {
            NlriList::Ipv4(_) => Family::Ipv4Unicast,
            NlriList::Ipv6(_) => Family::Ipv6Unicast,
        }
    }

    /// How many prefixes.
    pub fn len(&self) -> usize {
        match self {
            NlriList::Ipv4(list) => list.len(),
            NlriList::Ipv6(list) => list.len(),
        }
    }

    /// Not a single prefix.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A prefix with its ADD-PATH identifier, 0 where ADD-PATH was not negotiated (RFC 7911).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri<P> {
    pub path_id: u32,
    pub prefix: P,
}

impl<P> From<P> for Nlri<P> {
    /// Without ADD-PATH.
    fn from(prefix: P) -> Self {
        Self { path_id: 0, prefix }
    }
}

/// A fault in an UPDATE that RFC 7606 lets the session survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub disposition: Disposition,
    /// Attribute type code.
    pub attribute: u8,
    /// For a person: what was wrong, with the value.
    pub text: String,
}

/// RFC 7606 §2, weakest first. A session reset is not among them: it is an `Err(Notification)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disposition {
    /// A family that was not negotiated, and the like: passed over and counted.
    Ignored,
    AttributeDiscard,
    TreatAsWithdraw,
}

/// RFC 4271 §4.5. As received, and as it is to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

/// RFC 2918 and RFC 7313.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRefresh {
    pub afi: u16,
    pub safi: u8,
    /// 0 request, 1 begin, 2 end.
    pub subtype: u8,
}

/// What both sides agreed on: everything the codec must know about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Both sides sent capability 65; otherwise two-octet numbers with AS4_PATH.
    pub four_octet_as: bool,
    /// The peer is in our AS: decides which attributes are allowed (RFC 7606 §7).
    pub internal: bool,
    /// Both sides announced it; indexed by `Family::index`.
    pub families: [bool; 2],
    /// We may receive, and may send, path identifiers.
    pub add_path_receive: [bool; 2],
    pub add_path_send: [bool; 2],
    /// IPv4 NLRI may carry IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// 4,096 or 65,535 octets (RFC 8654); never for OPEN and KEEPALIVE.
    pub max_message_size: u16,
    pub route_refresh: bool,
    pub enhanced_route_refresh: bool,
    /// We, and the peer, announced long-lived graceful restart beside graceful restart (RFC 9494).
    pub long_lived_sent: bool,
    pub long_lived_received: bool,
}

impl Open {
    /// The Graceful Restart capability; of several the last one counts (RFC 4724 §3).
    pub fn graceful_restart(&self) -> Option<&Capability> {
        self.capabilities
            .iter()
            .rfind(|capability| matches!(capability, Capability::GracefulRestart { .. }))
    }

    /// The Long-Lived Graceful Restart capability; without the Graceful Restart capability it is to
    /// be ignored (RFC 9494 §3.1). Of several the last one counts.
    pub fn long_lived_graceful_restart(&self) -> Option<&[(u16, u8, bool, u32)]> {
        self.graceful_restart()?;
        self.capabilities
            .iter()
            .rev()
            .find_map(|capability| match capability {
                Capability::LongLivedGracefulRestart(families) => Some(families.as_slice()),
                _ => None,
            })
    }

    /// Whether a capability without a value is present.
    pub fn has(&self, capability: &Capability) -> bool {
        self.capabilities.contains(capability)
    }

    /// Whether the sender carries a family. Without any multiprotocol capability it carries IPv4
    /// unicast alone (RFC 4760 §8).
    pub fn carries(&self, family: Family) -> bool {
        let wanted = family.afi_safi();
        let mut announced_any = false;
        for capability in &self.capabilities {
            if let Capability::MultiProtocol { afi, safi } = capability {
                if (*afi, *safi) == wanted {
                    return true;
                }
                announced_any = true;
            }
        }
        !announced_any && family == Family::Ipv4Unicast
    }
}

impl Default for Negotiated {
    /// What holds before the OPENs were exchanged.
    fn default() -> Self {
        Self {
            four_octet_as: false,
            internal: false,
            families: [true, false],
            add_path_receive: [false; 2],
            add_path_send: [false; 2],
            extended_next_hop: false,
            max_message_size: 4096,
            route_refresh: false,
            enhanced_route_refresh: false,
            long_lived_sent: false,
            long_lived_received: false,
        }
    }
}
