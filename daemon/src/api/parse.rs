//! Requests into domain types. What passes here needs no further check of its form.

use std::net::IpAddr;

use agentd_proto::v1;
use ipnet::IpNet;

use super::attachment::Unfound;
use crate::node::{
    Error,
    access::AccessSpec,
    spec::{FixedAddresses, Invalid, Labels, Mtu, Owner, WorkloadId},
};

/// How far an add is waited for.
pub use crate::node::WaitFor;

/// An add whose form is right; the namespace is yet to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedAdd {
    pub id: WorkloadId,
    pub attachment: Unfound,
    pub pools: Vec<String>,
    pub addresses: FixedAddresses,
    pub mtu: Option<Mtu>,
    pub labels: Labels,
    pub access: AccessSpec,
    pub owner: Option<Owner>,
    pub wait_for: WaitFor,
}

pub(super) fn field<T>(name: &str, value: Result<T, Invalid>) -> Result<T, Error> {
    value.map_err(|Invalid(text)| Error::invalid(name, text))
}

pub fn workload_id(text: &str) -> Result<WorkloadId, Error> {
    field("id", WorkloadId::new(text))
}

pub fn add(request: v1::AddWorkloadRequest) -> Result<ParsedAdd, Error> {
    let id = workload_id(&request.id)?;
    let attachment = super::attachment::parse(&request)?;
    let pools = pools(&request)?;
    let owner = owner("owner", &request.owner)?;
    let mut addresses = Vec::with_capacity(request.addresses.len().min(2));
    for (index, text) in request.addresses.iter().enumerate() {
        if index >= 2 {
            return Err(Error::invalid(
                format!("addresses[{index}]"),
                "is one too many; at most one of each family is allowed",
            ));
        }
        addresses.push(address(&format!("addresses[{index}]"), text)?);
    }
    let addresses = FixedAddresses::new(addresses)
        .map_err(|(index, Invalid(text))| Error::invalid(format!("addresses[{index}]"), text))?;
    let mtu = match request.mtu {
        0 => None,
        bytes => Some(field("mtu", Mtu::new(bytes))?),
    };
    if let Some(mtu) = mtu {
        field("mtu", mtu.check_family(addresses.as_slice()))?;
    }
    let access = super::access::parse(&request.ports, &request.allowed_addresses)?;
    let labels = field("labels", Labels::new(request.labels))?;
    let wait_for = match v1::WorkloadState::try_from(request.wait_for) {
        Ok(v1::WorkloadState::Unspecified | v1::WorkloadState::Programmed) => WaitFor::Programmed,
        Ok(v1::WorkloadState::Advertised) => WaitFor::Advertised,
        Ok(other) => {
            return Err(Error::invalid(
                "wait_for",
                format!(
                    "is {}; PROGRAMMED and ADVERTISED can be waited for",
                    other.as_str_name().trim_start_matches("WORKLOAD_STATE_")
                ),
            ));
        }
        Err(_) => {
            return Err(Error::invalid(
                "wait_for",
                format!(
                    "is {}; PROGRAMMED (2) and ADVERTISED (3) can be waited for",
                    request.wait_for
                ),
            ));
        }
    };
    Ok(ParsedAdd {
        id,
        attachment,
        pools,
        addresses,
        mtu,
        labels,
        access,
        owner,
        wait_for,
    })
}

/// Names of pools, in `pool` or in `pools`.
fn pools(request: &v1::AddWorkloadRequest) -> Result<Vec<String>, Error> {
    let mut pools = Vec::new();
    if let Some(name) = pool(&request.pool)? {
        if !request.pools.is_empty() {
            return Err(Error::invalid(
                "pools",
                "stands beside pool; one of them is enough",
            ));
        }
        pools.push(name);
    }
    for (index, name) in request.pools.iter().enumerate() {
        let path = format!("pools[{index}]");
        if index >= 2 {
            let text = "is one too many; at most one of each family is allowed";
            return Err(Error::invalid(path, text));
        }
        if pools.contains(name) {
            return Err(Error::invalid(path, format!("names {name:?} again")));
        }
        match pool(name) {
            Ok(Some(name)) => pools.push(name),
            Ok(None) => return Err(Error::invalid(path, "is empty")),
            Err(_) => return Err(Error::invalid(path, POOL_NAME)),
        }
    }
    Ok(pools)
}

/// Empty: nobody.
pub fn owner(name: &str, text: &str) -> Result<Option<Owner>, Error> {
    match text {
        "" => Ok(None),
        text => field(name, Owner::new(text)).map(Some),
    }
}

const POOL_NAME: &str = "is no pool name: 1 to 63 bytes without control characters";

/// A pool's name; whether there is one of that name is found out later. Empty: none named.
pub fn pool(name: &str) -> Result<Option<String>, Error> {
    match name {
        "" => Ok(None),
        name if name.len() <= 63 && !name.chars().any(char::is_control) => {
            Ok(Some(name.to_owned()))
        }
        _ => Err(Error::invalid("pool", POOL_NAME)),
    }
}

/// An address without prefix length.
pub fn address(name: &str, text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| {
        let hint = if text.contains('/') {
            "; it must be without prefix length"
        } else {
            ""
        };
        Error::invalid(
            name,
            format!("is {text:?}, which is no IPv4 or IPv6 address{hint}"),
        )
    })
}

/// A prefix, or an address as the prefix that holds it alone. Empty: none.
pub fn prefix(name: &str, text: &str) -> Result<Option<IpNet>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Some(IpNet::from(address)));
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => Ok(Some(net)),
        Ok(net) => Err(Error::invalid(
            name,
            format!(
                "is {text}, which has host bits set; {} is meant?",
                net.trunc()
            ),
        )),
        Err(_) => Err(Error::invalid(
            name,
            format!("is {text:?}, which is no prefix such as 10.244.0.0/16 or fd00::/64"),
        )),
    }
}
