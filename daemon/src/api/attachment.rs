//! How an add wants its workload attached. Each kind takes some fields of the request and refuses the
//! others: one that is accepted has an effect.

use agentd_proto::v1::{self, add_workload_request::Namespace as Given};

use super::{namespace, parse::field};
use crate::node::{
    Error,
    attachment::{Attachment, Inside, Mac, Namespace, Tap},
    spec::{InterfaceName, NamespaceName, WorkloadId},
};

/// An attachment of which the namespace is yet to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfound {
    Routed(NamespaceName, InterfaceName),
    Tap(Tap),
    Bridged(NamespaceName, InterfaceName, String),
    Shared(WorkloadId),
    Host,
    None(NamespaceName),
}

impl Unfound {
    /// Finds the namespace. Blocks for as long as the file system takes.
    pub fn find(self) -> Result<Attachment, Error> {
        let find = |name: NamespaceName| -> Result<Namespace, Error> {
            let netns = namespace::find(&name)?;
            Ok(Namespace { name, netns })
        };
        Ok(match self {
            Unfound::Routed(name, interface) => Attachment::Routed(Inside {
                namespace: find(name)?,
                interface,
            }),
            Unfound::Bridged(name, interface, bridge) => Attachment::Bridged {
                inside: Inside {
                    namespace: find(name)?,
                    interface,
                },
                bridge,
            },
            Unfound::None(name) => Attachment::None(find(name)?),
            Unfound::Tap(tap) => Attachment::Tap(tap),
            Unfound::Shared(with) => Attachment::Shared { with },
            Unfound::Host => Attachment::Host,
        })
    }
}

/// The fields that not every kind takes.
const NAMESPACE: &str = "netns";
const INTERFACE: &str = "interface_name";
const POOL: &str = "pool";
const POOLS: &str = "pools";
const ADDRESSES: &str = "addresses";
const MTU: &str = "mtu";
const TAP: &str = "tap";
const MAC: &str = "mac";
const BRIDGE: &str = "bridge";
const SHARED_WITH: &str = "shared_with";
const ADVERTISED: &str = "wait_for";

/// Whether the request has that field.
fn has(request: &v1::AddWorkloadRequest, name: &str) -> bool {
    match name {
        NAMESPACE => request.namespace.is_some(),
        INTERFACE => !request.interface_name.is_empty(),
        POOL => !request.pool.is_empty(),
        POOLS => !request.pools.is_empty(),
        ADDRESSES => !request.addresses.is_empty(),
        MTU => request.mtu != 0,
        TAP => request.tap.is_some(),
        MAC => !request.mac.is_empty(),
        BRIDGE => !request.bridge.is_empty(),
        SHARED_WITH => !request.shared_with.is_empty(),
        ADVERTISED => request.wait_for == i32::from(v1::WorkloadState::Advertised),
        _ => false,
    }
}

/// Refuses every field that is not one of those.
fn only(request: &v1::AddWorkloadRequest, kind: &str, taken: &[&str]) -> Result<(), Error> {
    let all = [
        NAMESPACE,
        INTERFACE,
        POOL,
        POOLS,
        ADDRESSES,
        MTU,
        TAP,
        MAC,
        BRIDGE,
        SHARED_WITH,
        ADVERTISED,
    ];
    let refused = all
        .into_iter()
        .find(|name| !taken.contains(name) && has(request, name));
    match refused {
        None => Ok(()),
        Some(NAMESPACE) => {
            let name = match request.namespace {
                Some(Given::Pid(_)) => "pid",
                _ => NAMESPACE,
            };
            Err(Error::invalid(
                name,
                format!("means nothing with attachment {kind}"),
            ))
        }
        Some(ADVERTISED) => Err(Error::invalid(
            ADVERTISED,
            format!("cannot be ADVERTISED with attachment {kind}, which advertises nothing"),
        )),
        Some(name) => Err(Error::invalid(
            name,
            format!("means nothing with attachment {kind}"),
        )),
    }
}

pub(super) fn parse(request: &v1::AddWorkloadRequest) -> Result<Unfound, Error> {
    use v1::Attachment as Kind;

    let kind = Kind::try_from(request.attachment).map_err(|_| {
        Error::invalid(
            "attachment",
            format!(
                "is {}; known are ROUTED (1), TAP (2), BRIDGED (3), SHARED (4), HOST (5) and NONE (6)",
                request.attachment
            ),
        )
    })?;
    match kind {
        Kind::Unspecified | Kind::Routed => {
            let taken = [
                NAMESPACE, INTERFACE, POOL, POOLS, ADDRESSES, MTU, ADVERTISED,
            ];
            only(request, "ROUTED", &taken)?;
            Ok(Unfound::Routed(required(request)?, interface(request)?))
        }
        Kind::Tap => {
            only(
                request,
                "TAP",
                &[POOL, ADDRESSES, MTU, TAP, MAC, ADVERTISED],
            )?;
            tap(request).map(Unfound::Tap)
        }
        Kind::Bridged => {
            let taken = [NAMESPACE, INTERFACE, ADDRESSES, MTU, BRIDGE];
            only(request, "BRIDGED", &taken)?;
            let (namespace, interface) = (required(request)?, interface(request)?);
            if request.bridge.is_empty() {
                let text = "is required: the name of a bridge of the configuration";
                return Err(Error::invalid(BRIDGE, text));
            }
            Ok(Unfound::Bridged(
                namespace,
                interface,
                request.bridge.clone(),
            ))
        }
        Kind::Shared => {
            only(request, "SHARED", &[SHARED_WITH])?;
            if request.shared_with.is_empty() {
                let text = "is required: the id of the workload whose namespace is joined";
                return Err(Error::invalid(SHARED_WITH, text));
            }
            let with = field(SHARED_WITH, WorkloadId::new(&request.shared_with))?;
            if request.shared_with == request.id {
                return Err(Error::invalid(SHARED_WITH, "names the workload itself"));
            }
            Ok(Unfound::Shared(with))
        }
        Kind::Host => {
            only(request, "HOST", &[])?;
            Ok(Unfound::Host)
        }
        Kind::None => {
            only(request, "NONE", &[NAMESPACE])?;
            required(request).map(Unfound::None)
        }
    }
}

fn required(request: &v1::AddWorkloadRequest) -> Result<NamespaceName, Error> {
    match &request.namespace {
        Some(Given::Netns(path)) => field(NAMESPACE, NamespaceName::path(path)),
        Some(Given::Pid(pid)) => field("pid", NamespaceName::pid(*pid)),
        None => Err(Error::invalid(
            NAMESPACE,
            "is required (or pid): the workload's network namespace",
        )),
    }
}

fn interface(request: &v1::AddWorkloadRequest) -> Result<InterfaceName, Error> {
    match request.interface_name.as_str() {
        "" => Ok(InterfaceName::default()),
        name => field(INTERFACE, InterfaceName::new(name)),
    }
}

fn tap(request: &v1::AddWorkloadRequest) -> Result<Tap, Error> {
    let options = request.tap.clone().unwrap_or_default();
    let name = match options.name.as_str() {
        "" => None,
        name => Some(field("tap.name", Tap::name(name))?),
    };
    let id = |name: &str, id: Option<u32>| match id {
        // The kernel takes it for "nobody".
        Some(u32::MAX) => Err(Error::invalid(name, "is 4294967295, which means nobody")),
        id => Ok(id),
    };
    let mac = match request.mac.as_str() {
        "" => None,
        text => Some(field(MAC, text.parse::<Mac>())?),
    };
    Ok(Tap {
        name,
        owner: id("tap.owner_uid", options.owner_uid)?,
        group: id("tap.owner_gid", options.owner_gid)?,
        multi_queue: options.multi_queue,
        mac,
    })
}
