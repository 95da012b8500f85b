//! What the tables `inet agentd` and `bridge agentd` are made of: the sets, and the words that rules
//! consist of. The chains with their rules stand in `chains`.
//!
//! Chains and rules are the same on every node and at all times; they find the agent's interfaces by
//! the prefix of their names. What differs stands in sets, so a change writes elements and nothing
//! else, a lookup costs the same whatever their number, and a workload without [`Access`] needs no
//! element at all.
//!
//! Values are those of the kernel's `nf_tables.h`.
//!
//! [`Access`]: crate::desired::Access

mod chains;

pub use chains::{CHAINS, DROP_REASONS};

/// In both families.
pub const TABLE: &str = "agentd";

/// Of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Inet,
    /// Sees frames between ports of bridges, ARP among them. Exists only while there are bridges.
    Bridge,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Inet, Family::Bridge];

    pub fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        }
    }

    /// NFPROTO_*.
    pub fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Bridge => 7,
        }
    }
}

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// Interfaces of workloads, and bridges, whose names do not have the prefix.
    Interfaces,
    /// Where workloads are.
    Inside4,
    Inside6,
    /// Sources that are masqueraded towards everything outside.
    Masquerade4,
    Masquerade6,
    /// Subnets of bridges: masqueraded towards everything but workloads of this node.
    Bridged4,
    Bridged6,
    /// Interface and source, beside the workload's own addresses.
    Allowed4,
    Allowed6,
    /// Workloads that can reach themselves through a published port: source and destination.
    Hairpin4,
    Hairpin6,
    /// Published ports of one address of the node: address, protocol, port to address, port.
    Ports4,
    Ports6,
    /// Published ports of every address of the node: protocol, port to address, port.
    AnyPorts4,
    AnyPorts6,
    /// Ports of bridges, and the MAC address behind each.
    MemberMac,
    /// ... and the addresses.
    Member4,
    Member6,
}

impl SetName {
    pub const ALL: [SetName; 18] = [
        SetName::Interfaces,
        SetName::Inside4,
        SetName::Inside6,
        SetName::Masquerade4,
        SetName::Masquerade6,
        SetName::Bridged4,
        SetName::Bridged6,
        SetName::Allowed4,
        SetName::Allowed6,
        SetName::Hairpin4,
        SetName::Hairpin6,
        SetName::Ports4,
        SetName::Ports6,
        SetName::AnyPorts4,
        SetName::AnyPorts6,
        SetName::MemberMac,
        SetName::Member4,
        SetName::Member6,
    ];

    /// Of its table.
    pub fn family(self) -> Family {
        match self {
            SetName::MemberMac | SetName::Member4 | SetName::Member6 => Family::Bridge,
            _ => Family::Inet,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            SetName::Interfaces => "interfaces",
            SetName::Inside4 => "inside4",
            SetName::Inside6 => "inside6",
            SetName::Masquerade4 => "masquerade4",
            SetName::Masquerade6 => "masquerade6",
            SetName::Bridged4 => "bridged4",
            SetName::Bridged6 => "bridged6",
            SetName::Allowed4 => "allowed4",
            SetName::Allowed6 => "allowed6",
            SetName::Hairpin4 => "hairpin4",
            SetName::Hairpin6 => "hairpin6",
            SetName::Ports4 => "ports4",
            SetName::Ports6 => "ports6",
            SetName::AnyPorts4 => "any-ports4",
            SetName::AnyPorts6 => "any-ports6",
            SetName::MemberMac => "member-mac",
            SetName::Member4 => "member4",
            SetName::Member6 => "member6",
        }
    }

    pub fn index(self) -> usize {
        Self::ALL
            .iter()
            .position(|set| *set == self)
            .expect("ALL names every set")
    }

    pub fn shape(self) -> Shape {
        use Field::{Address4, Address6, Interface, Mac, Port, Protocol};
        let (key, data, kind): (&[Field], &[Field], Kind) = match self {
            SetName::Interfaces => (&[Interface], &[], Kind::Exact),
            SetName::Inside4 | SetName::Masquerade4 | SetName::Bridged4 => {
                (&[Address4], &[], Kind::Ranges)
            }
            SetName::Inside6 | SetName::Masquerade6 | SetName::Bridged6 => {
                (&[Address6], &[], Kind::Ranges)
            }
            SetName::MemberMac => (&[Interface, Mac], &[], Kind::Exact),
            SetName::Allowed4 | SetName::Member4 => (&[Interface, Address4], &[], Kind::KeyRanges),
            SetName::Allowed6 | SetName::Member6 => (&[Interface, Address6], &[], Kind::KeyRanges),
            SetName::Hairpin4 => (&[Address4, Address4], &[], Kind::Exact),
            SetName::Hairpin6 => (&[Address6, Address6], &[], Kind::Exact),
            SetName::Ports4 => (&[Address4, Protocol, Port], &[Address4, Port], Kind::Exact),
            SetName::Ports6 => (&[Address6, Protocol, Port], &[Address6, Port], Kind::Exact),
            SetName::AnyPorts4 => (&[Protocol, Port], &[Address4, Port], Kind::Exact),
            SetName::AnyPorts6 => (&[Protocol, Port], &[Address6, Port], Kind::Exact),
        };
        Shape { key, data, kind }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub key: &'static [Field],
    /// Empty: a set and not a map.
    pub data: &'static [Field],
    pub kind: Kind,
}

/// How the kernel stores elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A hash table.
    Exact,
    /// Each range is two elements: its first address, and the first one behind it, marked as an end.
    /// Replaced as a whole.
    Ranges,
    /// Each element has a first and a last key.
    KeyRanges,
}

/// A part of a key or of data. Each occupies a multiple of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Interface,
    Address4,
    Address6,
    Mac,
    Protocol,
    Port,
}

impl Field {
    /// Bytes, padding included.
    pub fn length(self) -> u32 {
        match self {
            Field::Interface | Field::Address6 => 16,
            Field::Mac => 8,
            Field::Address4 | Field::Protocol | Field::Port => 4,
        }
    }

    /// The number by which the nft program knows the type; the kernel only stores it.
    pub fn type_number(self) -> u32 {
        match self {
            Field::Address4 => 7,
            Field::Address6 => 8,
            Field::Mac => 9,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Interface => 41,
        }
    }
}

/// A register, counted in words of 32 bits: 0 to 15.
pub type Register = u8;

/// The part of a packet an offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Link,
    Network,
    Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    InputName,
    OutputName,
    Family,
    /// Of what follows the Ethernet header, in network order.
    EtherType,
    Layer4,
}

/// One step of a rule. A step that does not match ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Meta(Meta, Register),
    Payload {
        base: Base,
        offset: u8,
        length: u8,
        into: Register,
    },
    Equal(Register, Vec<u8>),
    NotEqual(Register, Vec<u8>),
    /// Whether the registers from there on are in the set; of a map, the data goes into registers
    /// from 0 on.
    Find {
        set: SetName,
        from: Register,
    },
    NotIn {
        set: SetName,
        from: Register,
    },
    /// Interface that the route back to the source leads through, if it is the input's; else 0.
    ReversePath(Register),
    /// Kind of the destination (RTN_*).
    DestinationKind(Register),
    /// Bit IPS_DST_NAT of the connection, or 0.
    DestinationTranslated(Register),
    Counter,
    /// To address and port in these registers.
    TranslateTo {
        ipv6: bool,
        address: Register,
        port: Register,
    },
    Masquerade,
    Drop,
    Return,
    Jump(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub family: Family,
    pub name: &'static str,
    /// `None`: only jumped to.
    pub hook: Option<Hook>,
    pub rules: Vec<Vec<Step>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Chain type: `filter` or `nat`.
    pub kind: &'static str,
    /// NF_INET_*.
    pub number: u32,
    pub priority: i32,
}
