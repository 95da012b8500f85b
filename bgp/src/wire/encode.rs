//! Messages to bytes. Every function appends whole messages to `out`.

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    attributes::Attributes,
    message::{Negotiated, Nlri, Notification, RouteRefresh},
    types::Family,
};

/// The attributes leave no room for even one prefix in a message of the negotiated size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attributes do not fit into one message")]
pub struct TooLong;

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

mod sealed {
    pub trait Sealed {}
    impl Sealed for ipnet::Ipv4Net {}
    impl Sealed for ipnet::Ipv6Net {}
}

/// Attributes encoded once for sessions with equal parameters, reused for many messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedAttributes {
    family: Family,
}

impl EncodedAttributes {
    /// For NLRI of `family` on a session with these parameters. LOCAL_PREF, ORIGINATOR_ID and
    /// CLUSTER_LIST are left out towards external peers; everything else is sent as it stands.
    pub fn new(attributes: &Attributes, negotiated: &Negotiated, family: Family) -> Self {
        let _ = (attributes, negotiated);
        Self { family }
    }

    /// The family of the NLRI these go with.
    pub fn family(&self) -> Family {
        self.family
    }
}

/// Appends one UPDATE that announces as many of `nlri` as fit, and says how many.
pub fn encode_announce<P: WirePrefix>(
    out: &mut Vec<u8>,
    negotiated: &Negotiated,
    attributes: &EncodedAttributes,
    nlri: &[Nlri<P>],
) -> Result<usize, TooLong> {
    let _ = (out, negotiated, attributes, nlri);
    unimplemented!()
}

/// Appends one UPDATE that withdraws as many of `nlri` as fit, and says how many (0 only when
/// `nlri` is empty; then nothing is appended).
pub fn encode_withdraw<P: WirePrefix>(
    out: &mut Vec<u8>,
    negotiated: &Negotiated,
    nlri: &[Nlri<P>],
) -> usize {
    let _ = (out, negotiated, nlri);
    unimplemented!()
}

/// Appends the End-of-RIB marker of a family (RFC 4724 §2).
pub fn encode_end_of_rib(out: &mut Vec<u8>, family: Family) {
    let _ = (out, family);
    unimplemented!()
}

/// Appends a KEEPALIVE.
pub fn encode_keepalive(out: &mut Vec<u8>) {
    let _ = out;
    unimplemented!()
}

/// Appends a NOTIFICATION; its data is cut where the message would be too long.
pub fn encode_notification(out: &mut Vec<u8>, notification: &Notification) {
    let _ = (out, notification);
    unimplemented!()
}

/// Appends a ROUTE-REFRESH (RFC 2918, RFC 7313).
pub fn encode_route_refresh(out: &mut Vec<u8>, refresh: &RouteRefresh) {
    let _ = (out, refresh);
    unimplemented!()
}
