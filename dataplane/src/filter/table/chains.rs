//! The chains and their rules, hook by hook.
//!
//! ```text
//! prerouting -300   from the agent's interfaces: source     (drops what is not the workload's own)
//! prerouting -100   to an address of the node: ports        (DNAT for clients outside and workloads)
//! output     -100   to an address of the node: ports        (DNAT for the node itself)
//! postrouting 100   after DNAT: hairpin; from pools to the world: masquerade
//! bridge, prerouting -300   from the agent's ports of bridges: members (likewise, at layer 2)
//! ```
//!
//! Values are those of the kernel's headers; offsets are those of the IPv4, IPv6, ICMPv6, TCP, UDP
//! and SCTP headers.

use std::sync::LazyLock;

use super::{Base, Chain, Family, Hook, Meta, Register, SetName, Step};
use crate::kernel::INTERFACE_PREFIX;

/// Why packets are dropped, in order of the counters in the chains `source` and `members`.
pub const DROP_REASONS: [&str; 11] = [
    "router_advertisement",
    "redirect",
    "loopback_destination",
    "source_address",
    "bridge_router_advertisement",
    "bridge_redirect",
    "bridge_mac_address",
    "bridge_arp_mac_address",
    "bridge_arp_address",
    "bridge_neighbour_advertisement",
    "bridge_source_address",
];

/// Chains in an order in which each stands before it is jumped to.
pub static CHAINS: LazyLock<Vec<Chain>> = LazyLock::new(|| {
    vec![
        source(),
        ports(),
        hairpin(),
        bridged(),
        prerouting(),
        translate("translate", NF_PRE_ROUTING),
        translate("translate-own", NF_LOCAL_OUT),
        postrouting(),
        members(),
    ]
});

const NF_PRE_ROUTING: u32 = 0;
const NF_LOCAL_OUT: u32 = 3;
const NF_POST_ROUTING: u32 = 4;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const ICMPV6: u8 = 58;
/// RFC 4861 §4.2, §4.4, §4.5.
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const RTN_LOCAL: u32 = 2;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

fn family(number: u8) -> [Step; 2] {
    [Step::Meta(Meta::Family, 0), Step::Equal(0, vec![number])]
}

fn network(offset: u8, length: u8, into: Register) -> Step {
    Step::Payload {
        base: Base::Network,
        offset,
        length,
        into,
    }
}

fn transport(offset: u8, length: u8, into: Register) -> Step {
    Step::Payload {
        base: Base::Transport,
        offset,
        length,
        into,
    }
}

fn rule(parts: impl IntoIterator<Item = impl IntoIterator<Item = Step>>) -> Vec<Step> {
    parts.into_iter().flatten().collect()
}

fn icmpv6(kind: u8) -> [Step; 4] {
    [
        Step::Meta(Meta::Layer4, 0),
        Step::Equal(0, vec![ICMPV6]),
        transport(0, 1, 0),
        Step::Equal(0, vec![kind]),
    ]
}

/// From an interface of a workload. What returns goes on.
fn source() -> Chain {
    let refused = |kind| rule([icmpv6(kind).to_vec(), vec![Step::Counter, Step::Drop]]);
    let allowed = |number, offset, length, set| {
        rule([
            family(number).to_vec(),
            vec![Step::Meta(Meta::InputName, 0), network(offset, length, 4)],
            vec![Step::Find { set, from: 0 }, Step::Return],
        ])
    };
    Chain {
        family: Family::Inet,
        name: "source",
        hook: None,
        rules: vec![
            refused(ROUTER_ADVERTISEMENT),
            refused(REDIRECT),
            // Interfaces with a port published at 127.0.0.1 have route_localnet: without this, the
            // workload could reach what listens on the node's loopback.
            rule([
                family(IPV4).to_vec(),
                vec![network(16, 1, 0), Step::Equal(0, vec![127])],
                vec![Step::Counter, Step::Drop],
            ]),
            // Duplicate address detection, router solicitation, multicast listener reports
            // (RFC 4862 §5.4.2, RFC 4861 §6.3.7, RFC 3590): never forwarded.
            rule([
                family(IPV6).to_vec(),
                vec![network(8, 16, 0), Step::Equal(0, vec![0; 16])],
                vec![Step::Meta(Meta::Layer4, 0), Step::Equal(0, vec![ICMPV6])],
                vec![Step::Return],
            ]),
            vec![
                Step::ReversePath(0),
                Step::NotEqual(0, vec![0; 4]),
                Step::Return,
            ],
            allowed(IPV4, 12, 4, SetName::Allowed4),
            allowed(IPV6, 8, 16, SetName::Allowed6),
            vec![Step::Counter, Step::Drop],
        ],
    }
}

fn ports() -> Chain {
    // Into registers: address (one port, one address) or not (every address), protocol, port.
    let exact = |number, offset, length: u8, set, ipv6| {
        let words = length / 4;
        rule([
            family(number).to_vec(),
            vec![
                network(offset, length, 0),
                Step::Meta(Meta::Layer4, words),
                transport(2, 2, words + 1),
                Step::Find { set, from: 0 },
                Step::TranslateTo {
                    ipv6,
                    address: 0,
                    port: words,
                },
            ],
        ])
    };
    let any = |number, length: u8, set, ipv6| {
        rule([
            family(number).to_vec(),
            vec![
                Step::Meta(Meta::Layer4, 0),
                transport(2, 2, 1),
                Step::Find { set, from: 0 },
                Step::TranslateTo {
                    ipv6,
                    address: 0,
                    port: length / 4,
                },
            ],
        ])
    };
    Chain {
        family: Family::Inet,
        name: "ports",
        hook: None,
        rules: vec![
            exact(IPV4, 16, 4, SetName::Ports4, false),
            any(IPV4, 4, SetName::AnyPorts4, false),
            exact(IPV6, 24, 16, SetName::Ports6, true),
            any(IPV6, 16, SetName::AnyPorts6, true),
        ],
    }
}

/// Connections to published ports whose answers would not come back through the node, or not to
/// the address they are expected from.
fn hairpin() -> Chain {
    let both = |number, source, destination, length: u8, set| {
        rule([
            family(number).to_vec(),
            vec![
                network(source, length, 0),
                network(destination, length, length / 4),
                Step::Find { set, from: 0 },
                Step::Masquerade,
            ],
        ])
    };
    let bridged = |number, source, destination, length, set| {
        rule([
            family(number).to_vec(),
            vec![network(source, length, 0), Step::Find { set, from: 0 }],
            vec![network(destination, length, 0), Step::Find { set, from: 0 }],
            vec![Step::Masquerade],
        ])
    };
    Chain {
        family: Family::Inet,
        name: "hairpin",
        hook: None,
        rules: vec![
            both(IPV4, 12, 16, 4, SetName::Hairpin4),
            both(IPV6, 8, 24, 16, SetName::Hairpin6),
            // From the node to 127.0.0.1.
            rule([
                family(IPV4).to_vec(),
                vec![network(12, 1, 0), Step::Equal(0, vec![127])],
                vec![Step::Masquerade],
            ]),
            // On one bridge, answers would go past the node.
            bridged(IPV4, 12, 16, 4, SetName::Bridged4),
            bridged(IPV6, 8, 24, 16, SetName::Bridged6),
        ],
    }
}

/// From the subnet of a bridge: nobody outside of this node knows a route to it.
fn bridged() -> Chain {
    Chain {
        family: Family::Inet,
        name: "bridged",
        hook: None,
        rules: vec![
            vec![
                Step::Meta(Meta::OutputName, 0),
                Step::Equal(0, INTERFACE_PREFIX.as_bytes().to_vec()),
                Step::Return,
            ],
            vec![
                Step::Meta(Meta::OutputName, 0),
                Step::Find {
                    set: SetName::Interfaces,
                    from: 0,
                },
                Step::Return,
            ],
            vec![Step::Masquerade],
        ],
    }
}

fn prerouting() -> Chain {
    Chain {
        family: Family::Inet,
        name: "prerouting",
        hook: Some(Hook {
            kind: "filter",
            number: NF_PRE_ROUTING,
            priority: -300,
        }),
        rules: vec![
            vec![
                Step::Meta(Meta::InputName, 0),
                Step::Equal(0, INTERFACE_PREFIX.as_bytes().to_vec()),
                Step::Jump("source"),
            ],
            vec![
                Step::Meta(Meta::InputName, 0),
                Step::Find {
                    set: SetName::Interfaces,
                    from: 0,
                },
                Step::Jump("source"),
            ],
        ],
    }
}

fn translate(name: &'static str, number: u32) -> Chain {
    Chain {
        family: Family::Inet,
        name,
        hook: Some(Hook {
            kind: "nat",
            number,
            priority: -100,
        }),
        rules: vec![vec![
            Step::DestinationKind(0),
            Step::Equal(0, RTN_LOCAL.to_ne_bytes().to_vec()),
            Step::Jump("ports"),
        ]],
    }
}

fn postrouting() -> Chain {
    let masquerade = |number, source, destination, length, from, to| {
        rule([
            family(number).to_vec(),
            vec![
                network(source, length, 0),
                Step::Find { set: from, from: 0 },
            ],
            vec![
                network(destination, length, 0),
                Step::NotIn { set: to, from: 0 },
            ],
            vec![Step::Masquerade],
        ])
    };
    let bridged = |number, offset, length, set| {
        rule([
            family(number).to_vec(),
            vec![network(offset, length, 0), Step::Find { set, from: 0 }],
            vec![Step::Jump("bridged")],
        ])
    };
    Chain {
        family: Family::Inet,
        name: "postrouting",
        hook: Some(Hook {
            kind: "nat",
            number: NF_POST_ROUTING,
            priority: 100,
        }),
        rules: vec![
            vec![
                Step::DestinationTranslated(0),
                Step::NotEqual(0, vec![0; 4]),
                Step::Jump("hairpin"),
            ],
            masquerade(IPV4, 12, 16, 4, SetName::Masquerade4, SetName::Inside4),
            masquerade(IPV6, 8, 24, 16, SetName::Masquerade6, SetName::Inside6),
            bridged(IPV4, 12, 4, SetName::Bridged4),
            bridged(IPV6, 8, 16, SetName::Bridged6),
        ],
    }
}

/// Between ports of a bridge: a workload is held to its own MAC address, to its own addresses in ARP,
/// neighbour discovery and packets, and is no router. Without this, neighbours on one bridge could
/// take each other's traffic.
fn members() -> Chain {
    let is = |kind: u16| {
        [
            Step::Meta(Meta::EtherType, 0),
            Step::Equal(0, kind.to_be_bytes().to_vec()),
        ]
    };
    // Unless the port and that part of the frame are in the set.
    let held = |payload: Step, set| {
        vec![
            Step::Meta(Meta::InputName, 0),
            payload,
            Step::NotIn { set, from: 0 },
            Step::Counter,
            Step::Drop,
        ]
    };
    let own = |kind, address, set| {
        let found = vec![
            Step::Meta(Meta::InputName, 0),
            address,
            Step::Find { set, from: 0 },
            Step::Return,
        ];
        rule([is(kind).to_vec(), found])
    };
    let mac = Step::Payload {
        base: Base::Link,
        offset: 6,
        length: 6,
        into: 4,
    };
    let refused = |kind| rule([icmpv6(kind).to_vec(), vec![Step::Counter, Step::Drop]]);
    Chain {
        family: Family::Bridge,
        name: "members",
        hook: Some(Hook {
            kind: "filter",
            number: NF_PRE_ROUTING,
            priority: -300,
        }),
        rules: vec![
            // Ports of others, or of their bridges.
            vec![
                Step::Meta(Meta::InputName, 0),
                Step::NotEqual(0, INTERFACE_PREFIX.as_bytes().to_vec()),
                Step::Return,
            ],
            refused(ROUTER_ADVERTISEMENT),
            refused(REDIRECT),
            held(mac, SetName::MemberMac),
            // ARP (RFC 826): hardware and protocol address of the sender, whether it asks or
            // answers. A probe has none (RFC 5227 §2.1.1).
            rule([
                is(ETHERTYPE_ARP).to_vec(),
                held(network(8, 6, 4), SetName::MemberMac),
            ]),
            rule([
                is(ETHERTYPE_ARP).to_vec(),
                vec![network(14, 4, 0), Step::Equal(0, vec![0; 4]), Step::Return],
            ]),
            rule([
                is(ETHERTYPE_ARP).to_vec(),
                held(network(14, 4, 4), SetName::Member4),
            ]),
            // The target of the advertisement.
            rule([
                icmpv6(NEIGHBOUR_ADVERTISEMENT).to_vec(),
                held(transport(8, 16, 4), SetName::Member6),
            ]),
            // As in the chain `source`.
            rule([
                is(ETHERTYPE_IPV6).to_vec(),
                vec![network(8, 16, 0), Step::Equal(0, vec![0; 16])],
                vec![Step::Meta(Meta::Layer4, 0), Step::Equal(0, vec![ICMPV6])],
                vec![Step::Return],
            ]),
            own(ETHERTYPE_IPV4, network(12, 4, 4), SetName::Member4),
            own(ETHERTYPE_IPV6, network(8, 16, 4), SetName::Member6),
            rule([is(ETHERTYPE_ARP).to_vec(), vec![Step::Return]]),
            // Neither ARP nor a packet from an address of its own.
            vec![Step::Counter, Step::Drop],
        ],
    }
}
