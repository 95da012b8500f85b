//! What a caller may ask for, as types that cannot hold anything else.
//!
//! Each constructor checks its rule and says what is allowed. Whoever holds a value need not check
//! again: the API builds these from requests, the store from its records.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{access::AccessSpec, attachment::Attachment};

/// Why a value was refused: what is wrong with it, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

fn invalid<T>(text: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(text.into()))
}

/// Chosen by the caller: 1 to 253 characters of `[A-Za-z0-9._:/-]`. Cheap to clone.
///
/// The limit lets the id stand whole in the alias of its interface, which the kernel bounds at 255.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId(Arc<str>);

impl WorkloadId {
    pub const MAX_LENGTH: usize = 253;

    pub fn new(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return invalid("is required: 1 to 253 characters of [A-Za-z0-9._:/-]");
        }
        if text.len() > Self::MAX_LENGTH {
            return invalid(format!(
                "has {} bytes; 1 to 253 characters of [A-Za-z0-9._:/-] are allowed",
                text.len()
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
        if let Some(character) = text.chars().find(|c| !allowed(*c)) {
            return invalid(format!(
                "holds {character:?}; only [A-Za-z0-9._:/-] are allowed"
            ));
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl Borrow<str> for WorkloadId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Name of the interface inside the namespace; the rules are the kernel's (`dev_valid_name`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    pub fn new(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 15 {
            return invalid(format!(
                "has {} bytes; an interface name has 1 to 15",
                text.len()
            ));
        }
        if matches!(text, "." | ".." | "lo" | "all" | "default") {
            return invalid(format!("cannot be {text:?}: the kernel gives it a meaning"));
        }
        let refused =
            |c: char| c.is_whitespace() || c.is_control() || !c.is_ascii() || "/:%".contains(c);
        if let Some(character) = text.chars().find(|c| refused(*c)) {
            return invalid(format!(
                "holds {character:?}; printable ASCII without space, '/', ':' and '%' is allowed"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InterfaceName {
    fn default() -> Self {
        Self("eth0".to_owned())
    }
}

/// Maximum transmission unit in bytes: 68 to 65535 (RFC 791), from 1280 on where IPv6 is used
/// (RFC 8200 §5). The second rule needs the addresses, so it is checked by [`Mtu::check_family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u32);

impl Mtu {
    pub fn new(bytes: u32) -> Result<Self, Invalid> {
        if (68..=65535).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            invalid(format!(
                "is {bytes}; 68 to 65535 bytes are allowed (1280 to 65535 with an IPv6 address), \
                 or 0 to follow the underlay"
            ))
        }
    }

    pub fn get(self) -> u32 {
        self.0
    }

    /// Whether a workload with these addresses can use it.
    pub fn check_family<'a>(
        self,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) -> Result<(), Invalid> {
        if self.0 < 1280 && addresses.into_iter().any(IpAddr::is_ipv6) {
            return invalid(format!(
                "is {}; a workload with an IPv6 address needs 1280 to 65535 bytes",
                self.0
            ));
        }
        Ok(())
    }
}

/// Kept and shown, never interpreted: at most 64; keys of 1 to 63 bytes, values of up to 255.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, Invalid> {
        if labels.len() > 64 {
            return invalid(format!(
                "has {} entries; at most 64 are allowed",
                labels.len()
            ));
        }
        for (key, value) in &labels {
            if key.is_empty() || key.len() > 63 {
                return invalid(format!(
                    "has a key of {} bytes ({key:?}); 1 to 63 are allowed",
                    key.len()
                ));
            }
            if value.len() > 255 {
                return invalid(format!(
                    "has a value of {} bytes (key {key:?}); at most 255 are allowed",
                    value.len()
                ));
            }
            if key.chars().chain(value.chars()).any(char::is_control) {
                return invalid(format!("holds a control character (key {key:?})"));
            }
        }
        Ok(Self(labels))
    }

    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// Whose workload it is: 1 to 63 characters of `[A-Za-z0-9._-]`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Arc<str>);

impl Owner {
    pub fn new(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 63 {
            return invalid(format!(
                "has {} bytes; 1 to 63 characters of [A-Za-z0-9._-] are allowed",
                text.len()
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text.chars().find(|c| !allowed(*c)) {
            Some(character) => invalid(format!(
                "holds {character:?}; only [A-Za-z0-9._-] are allowed"
            )),
            None => Ok(Self(text.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The namespace as the caller named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceName {
    Path(PathBuf),
    /// A process; its namespace was identified when the call arrived.
    Pid(u32),
}

impl NamespaceName {
    /// An absolute path without `..`, at most 4095 bytes.
    pub fn path(text: &str) -> Result<Self, Invalid> {
        let path = Path::new(text);
        if !path.is_absolute() {
            return invalid(format!(
                "is {text:?}; an absolute path is needed, such as /run/netns/NAME"
            ));
        }
        if text.len() > 4095 || text.contains('\0') {
            return invalid("is no path: at most 4095 bytes, none of them zero");
        }
        if path
            .components()
            .any(|part| part == std::path::Component::ParentDir)
        {
            return invalid(format!("is {text:?}; \"..\" is not allowed in it"));
        }
        Ok(Self::Path(path.to_owned()))
    }

    pub fn pid(pid: u32) -> Result<Self, Invalid> {
        // The kernel's PID_MAX_LIMIT.
        if (1..=4_194_304).contains(&pid) {
            Ok(Self::Pid(pid))
        } else {
            invalid(format!("is {pid}; a process id is 1 to 4194304"))
        }
    }

    /// The file that names the namespace.
    pub fn file(&self) -> PathBuf {
        match self {
            NamespaceName::Path(path) => path.clone(),
            NamespaceName::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamespaceName::Path(path) => path.display().fmt(f),
            NamespaceName::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

/// Fixed addresses: at most one of each family, none of them unspecified, multicast, loopback or
/// link-local. May be empty: then the node chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FixedAddresses(Vec<IpAddr>);

impl FixedAddresses {
    /// On error, also the position of the address that was refused.
    pub fn new(addresses: Vec<IpAddr>) -> Result<Self, (usize, Invalid)> {
        let mut seen = [false; 2];
        for (index, address) in addresses.iter().enumerate() {
            if !is_usable(address) {
                return Err((
                    index,
                    Invalid(format!("is {address}, which no workload can have")),
                ));
            }
            let family = &mut seen[usize::from(address.is_ipv6())];
            if *family {
                return Err((
                    index,
                    Invalid(format!(
                        "is a second {} address; at most one of each family is allowed",
                        if address.is_ipv6() { "IPv6" } else { "IPv4" }
                    )),
                ));
            }
            *family = true;
        }
        Ok(Self(addresses))
    }

    pub fn as_slice(&self) -> &[IpAddr] {
        &self.0
    }
}

fn is_usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

/// What a caller asks for with an add. Two adds of one id are the same add when these are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSpec {
    pub attachment: Attachment,
    /// Empty: one address of each family from the first pool of that family with room. Else at
    /// most one of each family.
    pub pools: Vec<String>,
    pub addresses: FixedAddresses,
    /// `None` follows the underlay.
    pub mtu: Option<Mtu>,
    pub labels: Labels,
    pub access: AccessSpec,
    /// `None`: nobody's in particular.
    pub owner: Option<Owner>,
}

impl WorkloadSpec {
    /// The first thing in which `other` differs, for a person; `None` when they are equal.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let attachment = self.attachment.difference(&other.attachment);
        if attachment.is_some() {
            attachment
        } else if self.owner != other.owner {
            Some("owner")
        } else if self.pools != other.pools {
            Some("pools")
        } else if self.addresses != other.addresses {
            Some("addresses")
        } else if self.mtu != other.mtu {
            Some("mtu")
        } else if self.labels != other.labels {
            Some("labels")
        } else {
            self.access.difference(&other.access)
        }
    }
}
