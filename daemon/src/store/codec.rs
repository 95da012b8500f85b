//! The bytes of a record: protobuf messages of schema version 2.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `schema`, `generation`, `sequence`, `drained` (ms) | number |
//! | `meta` | `pool:` and the name of a pool | 0 nothing, 1 disabled, 2 draining |
//! | `workloads` | id | [`WorkloadRow`] |
//! | `blocks` | address (4 or 16 bytes) and prefix length | [`BlockRow`] |
//! | `cooling` | address (4 or 16 bytes) | [`CoolingRow`] |
//!
//! | `about` | `agentd` | version of the agent that opened it last |
//!
//! Fields are only ever added, with new tags, and must mean what they meant when they are absent.
//! A change that old readers would misunderstand raises [`SCHEMA`]. Tags are never reused.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::IpAddr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use dataplane::desired::{Netns, Protocol, PublishedPort};
use ipnet::IpNet;
use prost::Message;

use super::record::{BlockRecord, CoolingRecord, WorkloadRecord};
use crate::node::{
    WorkloadId, WorkloadSpec,
    access::AccessSpec,
    attachment::{Attachment, Inside, Mac, Namespace, Tap},
    spec::{FixedAddresses, InterfaceName, Labels, Mtu, NamespaceName, Owner},
    view::{AssignedAddress, PoolOverride},
};

/// Of what this module writes.
pub(super) const SCHEMA: u64 = 2;

#[derive(Clone, PartialEq, Message)]
struct WorkloadRow {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(uint64, tag = "2")]
    created_at_ms: u64,
    #[prost(message, repeated, tag = "3")]
    addresses: Vec<AssignedRow>,
    /// The namespace as the caller named it: one of these two.
    #[prost(string, tag = "4")]
    namespace_path: String,
    #[prost(uint32, tag = "5")]
    namespace_pid: u32,
    /// The namespace as it was found.
    #[prost(bytes = "vec", tag = "6")]
    netns_path: Vec<u8>,
    #[prost(uint64, tag = "7")]
    netns_device: u64,
    #[prost(uint64, tag = "8")]
    netns_inode: u64,
    #[prost(string, tag = "9")]
    interface: String,
    /// The first that was asked for; empty: none.
    #[prost(string, tag = "10")]
    pool: String,
    #[prost(bytes = "vec", repeated, tag = "11")]
    fixed_addresses: Vec<Vec<u8>>,
    /// 0: follows the underlay.
    #[prost(uint32, tag = "12")]
    mtu: u32,
    #[prost(btree_map = "string, string", tag = "13")]
    labels: BTreeMap<String, String>,
    /// How it is attached, where that is not the veth that the fields above describe; one of these.
    #[prost(message, optional, tag = "14")]
    tap: Option<TapRow>,
    /// Besides the fields above.
    #[prost(string, tag = "15")]
    bridge: String,
    #[prost(string, tag = "16")]
    shared_with: String,
    #[prost(bool, tag = "17")]
    host: bool,
    /// Loopback only, in the namespace above.
    #[prost(bool, tag = "18")]
    loopback: bool,
    #[prost(message, repeated, tag = "19")]
    ports: Vec<PortRow>,
    /// As the key of a block.
    #[prost(bytes = "vec", repeated, tag = "20")]
    allowed: Vec<Vec<u8>>,
    /// Asked for besides `pool`.
    #[prost(string, repeated, tag = "21")]
    more_pools: Vec<String>,
    /// Empty: none.
    #[prost(string, tag = "22")]
    owner: String,
}

#[derive(Clone, PartialEq, Message)]
struct PortRow {
    /// As assigned by IANA.
    #[prost(uint32, tag = "1")]
    protocol: u32,
    /// Empty: every address of the node.
    #[prost(bytes = "vec", tag = "2")]
    host_address: Vec<u8>,
    #[prost(uint32, tag = "3")]
    host_port: u32,
    #[prost(uint32, tag = "4")]
    container_port: u32,
}

#[derive(Clone, PartialEq, Message)]
struct TapRow {
    /// As asked for; empty: none.
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, optional, tag = "2")]
    owner: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    group: Option<u32>,
    #[prost(bool, tag = "4")]
    multi_queue: bool,
    /// Of the guest; empty: not known.
    #[prost(bytes = "vec", tag = "5")]
    mac: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct AssignedRow {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(string, tag = "2")]
    pool: String,
    /// As the key of a block.
    #[prost(bytes = "vec", tag = "3")]
    block: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct BlockRow {
    #[prost(string, tag = "1")]
    pool: String,
    #[prost(uint64, tag = "2")]
    claimed_at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CoolingRow {
    #[prost(uint64, tag = "1")]
    until_ms: u64,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint64, tag = "3")]
    generation: u64,
}

/// Why bytes are not a record; for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct DecodeError(String);

fn bad<T>(text: impl std::fmt::Display) -> Result<T, DecodeError> {
    Err(DecodeError(text.to_string()))
}

pub(super) fn address_key(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn decode_address(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else {
        bad(format_args!("an address has {} bytes", bytes.len()))
    }
}

pub(super) fn block_key(cidr: IpNet) -> Vec<u8> {
    let mut key = address_key(cidr.addr());
    key.push(cidr.prefix_len());
    key
}

fn decode_block_key(bytes: &[u8]) -> Result<IpNet, DecodeError> {
    let Some((length, address)) = bytes.split_last() else {
        return bad("a prefix is empty");
    };
    let address = decode_address(address)?;
    let prefix = IpNet::new(address, *length);
    match prefix {
        Ok(prefix) if prefix.trunc() == prefix => Ok(prefix),
        _ => bad(format_args!("{address}/{length} is not a prefix")),
    }
}

pub(super) fn encode_time(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let milliseconds = since.unwrap_or(Duration::ZERO).as_millis();
    u64::try_from(milliseconds).unwrap_or(u64::MAX)
}

pub(super) fn decode_time(milliseconds: u64) -> Result<SystemTime, DecodeError> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds));
    time.map_or_else(|| bad(format_args!("{milliseconds} ms is no time")), Ok)
}

/// What the keys of [`PoolOverride`]s start with.
pub(super) const POOL_KEY: &str = "pool:";

pub(super) fn encode_override(to: Option<PoolOverride>) -> u64 {
    match to {
        None => 0,
        Some(PoolOverride::Disabled) => 1,
        Some(PoolOverride::Draining) => 2,
    }
}

pub(super) fn decode_override(number: u64) -> Result<Option<PoolOverride>, DecodeError> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(PoolOverride::Disabled)),
        2 => Ok(Some(PoolOverride::Draining)),
        other => bad(format_args!("{other} is no state of a pool")),
    }
}

pub(super) fn encode_workload(record: &WorkloadRecord) -> Vec<u8> {
    let spec = &record.spec;
    let assigned = |assigned: &AssignedAddress| AssignedRow {
        address: address_key(assigned.address),
        pool: assigned.pool.clone(),
        block: block_key(assigned.block),
    };
    WorkloadRow {
        generation: record.generation,
        created_at_ms: encode_time(record.created_at),
        addresses: record.addresses.iter().map(assigned).collect(),
        pool: spec.pools.first().cloned().unwrap_or_default(),
        more_pools: spec.pools.iter().skip(1).cloned().collect(),
        owner: spec
            .owner
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        fixed_addresses: spec
            .addresses
            .as_slice()
            .iter()
            .map(|a| address_key(*a))
            .collect(),
        mtu: spec.mtu.map_or(0, Mtu::get),
        labels: spec.labels.as_map().clone(),
        ports: spec.access.ports().iter().map(encode_port).collect(),
        allowed: spec
            .access
            .allowed()
            .iter()
            .copied()
            .map(block_key)
            .collect(),
        ..encode_attachment(&spec.attachment)
    }
    .encode_to_vec()
}

/// A row with nothing but how the workload is attached.
fn encode_attachment(attachment: &Attachment) -> WorkloadRow {
    let mut row = WorkloadRow::default();
    if let Some(Namespace { name, netns }) = attachment.namespace() {
        match name {
            // Built from a string, so nothing is lost.
            NamespaceName::Path(path) => row.namespace_path = path.to_string_lossy().into_owned(),
            NamespaceName::Pid(pid) => row.namespace_pid = *pid,
        }
        row.netns_path = netns.path.as_os_str().as_bytes().to_vec();
        row.netns_device = netns.device;
        row.netns_inode = netns.inode;
    }
    if let Some(interface) = attachment.interface() {
        row.interface = interface.as_str().to_owned();
    }
    match attachment {
        Attachment::Routed(_) => {}
        Attachment::Tap(tap) => {
            row.tap = Some(TapRow {
                name: tap
                    .name
                    .as_ref()
                    .map(|name| name.as_str().to_owned())
                    .unwrap_or_default(),
                owner: tap.owner,
                group: tap.group,
                multi_queue: tap.multi_queue,
                mac: tap.mac.map(|mac| mac.bytes().to_vec()).unwrap_or_default(),
            });
        }
        Attachment::Bridged { bridge, .. } => row.bridge.clone_from(bridge),
        Attachment::Shared { with } => row.shared_with = with.as_str().to_owned(),
        Attachment::Host => row.host = true,
        Attachment::None(_) => row.loopback = true,
    }
    row
}

fn field(name: &str, error: &dyn std::fmt::Display) -> DecodeError {
    DecodeError(format!("{name} {error}"))
}

fn decode_attachment(row: &WorkloadRow) -> Result<Attachment, DecodeError> {
    if row.host {
        return Ok(Attachment::Host);
    }
    if !row.shared_with.is_empty() {
        let with = WorkloadId::new(&row.shared_with);
        let with = with.map_err(|error| field("the shared workload's id", &error))?;
        return Ok(Attachment::Shared { with });
    }
    if let Some(tap) = &row.tap {
        return decode_tap(tap).map(Attachment::Tap);
    }
    let name = match row.namespace_pid {
        0 => NamespaceName::path(&row.namespace_path),
        pid => NamespaceName::pid(pid),
    };
    let namespace = Namespace {
        name: name.map_err(|error| field("the namespace", &error))?,
        netns: Netns {
            path: PathBuf::from(OsString::from_vec(row.netns_path.clone())),
            device: row.netns_device,
            inode: row.netns_inode,
        },
    };
    if row.loopback {
        return Ok(Attachment::None(namespace));
    }
    let interface =
        InterfaceName::new(&row.interface).map_err(|error| field("the interface name", &error))?;
    let inside = Inside {
        namespace,
        interface,
    };
    Ok(match row.bridge.as_str() {
        "" => Attachment::Routed(inside),
        bridge => Attachment::Bridged {
            inside,
            bridge: bridge.to_owned(),
        },
    })
}

fn decode_tap(row: &TapRow) -> Result<Tap, DecodeError> {
    let name = match row.name.as_str() {
        "" => None,
        name => Some(InterfaceName::new(name).map_err(|e| field("the device's name", &e))?),
    };
    let mac = match row.mac.as_slice() {
        [] => None,
        bytes => {
            let bytes = <[u8; 6]>::try_from(bytes)
                .map_err(|_| DecodeError(format!("a MAC address has {} bytes", bytes.len())))?;
            Some(Mac::new(bytes).map_err(|error| field("the MAC address", &error))?)
        }
    };
    Ok(Tap {
        name,
        owner: row.owner,
        group: row.group,
        multi_queue: row.multi_queue,
        mac,
    })
}

pub(super) fn decode_workload(id: &str, bytes: &[u8]) -> Result<WorkloadRecord, DecodeError> {
    let row = WorkloadRow::decode(bytes).map_err(|error| DecodeError(error.to_string()))?;
    let attachment = decode_attachment(&row)?;
    let addresses = row.addresses.iter().map(|assigned| {
        Ok(AssignedAddress {
            address: decode_address(&assigned.address)?,
            pool: assigned.pool.clone(),
            block: decode_block_key(&assigned.block)?,
        })
    });
    let fixed = row
        .fixed_addresses
        .iter()
        .map(|bytes| decode_address(bytes));
    let fixed = fixed.collect::<Result<Vec<_>, _>>()?;
    let ports = row
        .ports
        .iter()
        .map(decode_port)
        .collect::<Result<_, _>>()?;
    let allowed = row.allowed.iter().map(|bytes| decode_block_key(bytes));
    let access = AccessSpec::new(ports, allowed.collect::<Result<_, _>>()?)
        .map_err(|(name, error)| field(&name, &error))?;
    let mtu = (row.mtu != 0).then(|| Mtu::new(row.mtu)).transpose();
    Ok(WorkloadRecord {
        id: WorkloadId::new(id).map_err(|error| field("the id", &error))?,
        generation: row.generation,
        addresses: addresses.collect::<Result<_, _>>()?,
        created_at: decode_time(row.created_at_ms)?,
        spec: Arc::new(WorkloadSpec {
            attachment,
            pools: std::iter::once(row.pool)
                .filter(|pool| !pool.is_empty())
                .chain(row.more_pools)
                .collect(),
            owner: match row.owner.as_str() {
                "" => None,
                owner => Some(Owner::new(owner).map_err(|error| field("the owner", &error))?),
            },
            addresses: FixedAddresses::new(fixed)
                .map_err(|(_, error)| field("a fixed address", &error))?,
            mtu: mtu.map_err(|error| field("the MTU", &error))?,
            labels: Labels::new(row.labels).map_err(|error| field("the set of labels", &error))?,
            access,
        }),
    })
}

fn encode_port(port: &PublishedPort) -> PortRow {
    PortRow {
        protocol: port.protocol.number().into(),
        host_address: port.host_address.map(address_key).unwrap_or_default(),
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
    }
}

fn decode_port(row: &PortRow) -> Result<PublishedPort, DecodeError> {
    let number = |number: u32| {
        u16::try_from(number).map_err(|_| DecodeError(format!("{number} is no port")))
    };
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocols
        .into_iter()
        .find(|protocol| u32::from(protocol.number()) == row.protocol);
    Ok(PublishedPort {
        protocol: protocol
            .ok_or_else(|| DecodeError(format!("{} is no protocol with ports", row.protocol)))?,
        host_address: match row.host_address.as_slice() {
            [] => None,
            bytes => Some(decode_address(bytes)?),
        },
        host_port: number(row.host_port)?,
        container_port: number(row.container_port)?,
    })
}

pub(super) fn encode_block(record: &BlockRecord) -> Vec<u8> {
    BlockRow {
        pool: record.pool.clone(),
        claimed_at_ms: encode_time(record.claimed_at),
    }
    .encode_to_vec()
}

pub(super) fn decode_block(key: &[u8], bytes: &[u8]) -> Result<BlockRecord, DecodeError> {
    let row = BlockRow::decode(bytes).map_err(|error| DecodeError(error.to_string()))?;
    let cidr = decode_block_key(key)?;
    // What this agent can hold: the allocator keeps a bit for each address.
    if cidr.max_prefix_len() - cidr.prefix_len() > 12 {
        return bad(format_args!("{cidr} is too large for a block"));
    }
    Ok(BlockRecord {
        cidr,
        pool: row.pool,
        claimed_at: decode_time(row.claimed_at_ms)?,
    })
}

pub(super) fn encode_cooling(record: &CoolingRecord) -> Vec<u8> {
    CoolingRow {
        until_ms: encode_time(record.until),
        id: record.id.as_str().to_owned(),
        generation: record.generation,
    }
    .encode_to_vec()
}

pub(super) fn decode_cooling(key: &[u8], bytes: &[u8]) -> Result<CoolingRecord, DecodeError> {
    let row = CoolingRow::decode(bytes).map_err(|error| DecodeError(error.to_string()))?;
    Ok(CoolingRecord {
        address: decode_address(key)?,
        until: decode_time(row.until_ms)?,
        id: WorkloadId::new(&row.id).map_err(|error| DecodeError(format!("the id {error}")))?,
        generation: row.generation,
    })
}
