//! The ways in which a workload can be connected, as types that cannot hold anything else.

use std::{fmt, str::FromStr};

use dataplane::{
    desired::{self, Netns},
    kernel::{HOST_MAC, INTERFACE_PREFIX, TUNNEL_PREFIX},
};

use super::spec::{InterfaceName, Invalid, NamespaceName, WorkloadId};

/// A network namespace: as the caller named it, and as it was found when the call arrived, so that a
/// name that later means another one is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: NamespaceName,
    pub netns: Netns,
}

/// An interface in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    pub namespace: Namespace,
    pub interface: InterfaceName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A veth pair, routed by the host.
    Routed(Inside),
    /// A tap device for a virtual machine, routed by the host.
    Tap(Tap),
    /// A veth pair with the host's end on a bridge of the configuration.
    Bridged { inside: Inside, bridge: String },
    /// The namespace of another workload.
    Shared { with: WorkloadId },
    /// The node's own namespace.
    Host,
    /// A namespace with nothing but loopback.
    None(Namespace),
}

impl Attachment {
    /// The namespace that nobody else may have.
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Attachment::Routed(inside) | Attachment::Bridged { inside, .. } => {
                Some(&inside.namespace)
            }
            Attachment::None(namespace) => Some(namespace),
            Attachment::Tap(_) | Attachment::Shared { .. } | Attachment::Host => None,
        }
    }

    /// The interface in that namespace.
    pub fn interface(&self) -> Option<&InterfaceName> {
        match self {
            Attachment::Routed(inside) | Attachment::Bridged { inside, .. } => {
                Some(&inside.interface)
            }
            _ => None,
        }
    }

    /// The name that was asked for a device on the host.
    pub fn tap_name(&self) -> Option<&InterfaceName> {
        match self {
            Attachment::Tap(tap) => tap.name.as_ref(),
            _ => None,
        }
    }

    /// Whether it takes addresses out of the pools, which BGP advertises.
    pub fn is_routed(&self) -> bool {
        matches!(self, Attachment::Routed(_) | Attachment::Tap(_))
    }

    /// As people write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Attachment::Routed(_) => "routed",
            Attachment::Tap(_) => "tap",
            Attachment::Bridged { .. } => "bridged",
            Attachment::Shared { .. } => "shared",
            Attachment::Host => "host",
            Attachment::None(_) => "none",
        }
    }

    /// As the dataplane wants it; `None`: there is nothing to be done in the kernel.
    pub fn desired(&self) -> Option<desired::Attachment> {
        let wanted = |inside: &Inside| desired::Inside {
            netns: inside.namespace.netns.clone(),
            interface: inside.interface.as_str().to_owned(),
        };
        match self {
            Attachment::Routed(inside) => Some(desired::Attachment::Routed(wanted(inside))),
            Attachment::Tap(tap) => Some(desired::Attachment::Tap(desired::Tap {
                name: tap.name.as_ref().map(|name| name.as_str().to_owned()),
                owner: tap.owner,
                group: tap.group,
                multi_queue: tap.multi_queue,
                mac: tap.mac.map(|mac| mac.0),
            })),
            Attachment::Bridged { inside, bridge } => Some(desired::Attachment::Bridged {
                inside: wanted(inside),
                bridge: bridge.as_str().into(),
            }),
            Attachment::None(namespace) => {
                Some(desired::Attachment::Loopback(namespace.netns.clone()))
            }
            Attachment::Shared { .. } | Attachment::Host => None,
        }
    }

    /// The first field in which `other` differs, for a person; `None` when they are equal.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.kind() != other.kind() {
            return Some("attachment");
        }
        if let (Some(mine), Some(theirs)) = (self.namespace(), other.namespace()) {
            if mine.name != theirs.name {
                return Some("namespace");
            }
            if mine.netns != theirs.netns {
                return Some("namespace (the same name, but another namespace stands there now)");
            }
        }
        if self.interface() != other.interface() {
            return Some("interface_name");
        }
        match (self, other) {
            (Attachment::Tap(mine), Attachment::Tap(theirs)) => {
                if mine.mac != theirs.mac {
                    Some("mac")
                } else {
                    (mine != theirs).then_some("tap")
                }
            }
            (
                Attachment::Bridged { bridge: mine, .. },
                Attachment::Bridged { bridge: theirs, .. },
            ) => (mine != theirs).then_some("bridge"),
            (Attachment::Shared { with: mine }, Attachment::Shared { with: theirs }) => {
                (mine != theirs).then_some("shared_with")
            }
            _ => None,
        }
    }
}

/// A tap device, and the guest behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// `None`: derived from the id. See [`Tap::name`].
    pub name: Option<InterfaceName>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub multi_queue: bool,
    pub mac: Option<Mac>,
}

impl Tap {
    /// A name that is asked for must not look like one of those that agentd chooses.
    pub fn name(text: &str) -> Result<InterfaceName, Invalid> {
        let name = InterfaceName::new(text)?;
        let reserved = [INTERFACE_PREFIX, TUNNEL_PREFIX];
        match reserved.iter().find(|prefix| text.starts_with(**prefix)) {
            Some(prefix) => Err(Invalid(format!(
                "is {text:?}; names that start with {prefix:?} are chosen by agentd"
            ))),
            None => Ok(name),
        }
    }
}

/// Ethernet address of a guest: unicast, and not the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    pub fn new(bytes: [u8; 6]) -> Result<Self, Invalid> {
        let mac = Mac(bytes);
        let why = match bytes {
            [0, 0, 0, 0, 0, 0] => "no interface can have",
            HOST_MAC => "is the gateway's",
            [first, ..] if first & 1 != 0 => "is a multicast address",
            _ => return Ok(mac),
        };
        Err(Invalid(format!("is {mac}, which {why}")))
    }

    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let malformed = || {
            Invalid(format!(
                "is {text:?}, which is no MAC address such as 02:00:00:00:00:01"
            ))
        };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(malformed)?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Mac::new(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
