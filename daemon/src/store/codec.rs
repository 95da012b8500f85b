//! The bytes of a record: protobuf messages of schema version 1.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `schema`, `generation`, `sequence` | number |
//! | `workloads` | id | [`WorkloadRow`] |
//! | `blocks` | address (4 or 16 bytes) and prefix length | [`BlockRow`] |
//! | `cooling` | address (4 or 16 bytes) | [`CoolingRow`] |
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

use dataplane::desired::Netns;
use ipnet::IpNet;
use prost::Message;

use super::record::{BlockRecord, CoolingRecord, WorkloadRecord};
use crate::node::{
    WorkloadId, WorkloadSpec,
    spec::{FixedAddresses, InterfaceName, Labels, Mtu, NamespaceName},
    view::AssignedAddress,
};

/// Of what this module writes.
pub(super) const SCHEMA: u64 = 1;

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
    /// As asked for; empty: none.
    #[prost(string, tag = "10")]
    pool: String,
    #[prost(bytes = "vec", repeated, tag = "11")]
    fixed_addresses: Vec<Vec<u8>>,
    /// 0: follows the underlay.
    #[prost(uint32, tag = "12")]
    mtu: u32,
    #[prost(btree_map = "string, string", tag = "13")]
    labels: BTreeMap<String, String>,
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

fn encode_time(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let milliseconds = since.unwrap_or(Duration::ZERO).as_millis();
    u64::try_from(milliseconds).unwrap_or(u64::MAX)
}

fn decode_time(milliseconds: u64) -> Result<SystemTime, DecodeError> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds));
    time.map_or_else(|| bad(format_args!("{milliseconds} ms is no time")), Ok)
}

pub(super) fn encode_workload(record: &WorkloadRecord) -> Vec<u8> {
    let spec = &record.spec;
    let (namespace_path, namespace_pid) = match &spec.namespace {
        // Built from a string, so nothing is lost.
        NamespaceName::Path(path) => (path.to_string_lossy().into_owned(), 0),
        NamespaceName::Pid(pid) => (String::new(), *pid),
    };
    let assigned = |assigned: &AssignedAddress| AssignedRow {
        address: address_key(assigned.address),
        pool: assigned.pool.clone(),
        block: block_key(assigned.block),
    };
    WorkloadRow {
        generation: record.generation,
        created_at_ms: encode_time(record.created_at),
        addresses: record.addresses.iter().map(assigned).collect(),
        namespace_path,
        namespace_pid,
        netns_path: spec.netns.path.as_os_str().as_bytes().to_vec(),
        netns_device: spec.netns.device,
        netns_inode: spec.netns.inode,
        interface: spec.interface.as_str().to_owned(),
        pool: spec.pool.clone().unwrap_or_default(),
        fixed_addresses: spec
            .addresses
            .as_slice()
            .iter()
            .map(|a| address_key(*a))
            .collect(),
        mtu: spec.mtu.map_or(0, Mtu::get),
        labels: spec.labels.as_map().clone(),
    }
    .encode_to_vec()
}

pub(super) fn decode_workload(id: &str, bytes: &[u8]) -> Result<WorkloadRecord, DecodeError> {
    let row = WorkloadRow::decode(bytes).map_err(|error| DecodeError(error.to_string()))?;
    let field = |name: &str, error: &dyn std::fmt::Display| DecodeError(format!("{name} {error}"));
    let namespace = match row.namespace_pid {
        0 => NamespaceName::path(&row.namespace_path),
        pid => NamespaceName::pid(pid),
    };
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
    let mtu = (row.mtu != 0).then(|| Mtu::new(row.mtu)).transpose();
    Ok(WorkloadRecord {
        id: WorkloadId::new(id).map_err(|error| field("the id", &error))?,
        generation: row.generation,
        addresses: addresses.collect::<Result<_, _>>()?,
        created_at: decode_time(row.created_at_ms)?,
        spec: Arc::new(WorkloadSpec {
            namespace: namespace.map_err(|error| field("the namespace", &error))?,
            netns: Netns {
                path: PathBuf::from(OsString::from_vec(row.netns_path)),
                device: row.netns_device,
                inode: row.netns_inode,
            },
            interface: InterfaceName::new(&row.interface)
                .map_err(|error| field("the interface name", &error))?,
            pool: (!row.pool.is_empty()).then_some(row.pool),
            addresses: FixedAddresses::new(fixed)
                .map_err(|(_, error)| field("a fixed address", &error))?,
            mtu: mtu.map_err(|error| field("the MTU", &error))?,
            labels: Labels::new(row.labels).map_err(|error| field("the set of labels", &error))?,
        }),
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
