//! Encodes requests straight into a buffer that holds many of them.
//!
//! Building a typed message and then emitting it costs as much as the kernel's own work on a route,
//! so routes, nexthop objects, neighbours and addresses are written by hand; tests compare the bytes
//! with those of `netlink-packet-route`. Links are few, and are built with `rtnetlink`'s builders.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::Emitable;
use netlink_packet_route::link::LinkMessage;

use crate::kernel::{
    Address, CreateTunnel, FdbEntry, GATEWAY_V4, Gateway, Neighbour, NextHop, NextHopKind,
    PROTOCOL_AGENTD, Route, Target, Tunnel,
};

pub(super) const NLM_F_REQUEST: u16 = 0x01;
pub(super) const NLM_F_ACK: u16 = 0x04;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// Message types of rtnetlink(7).
pub(super) mod kind {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const NEW_LINK: u16 = 16;
    pub(crate) const DELETE_LINK: u16 = 17;
    pub(crate) const GET_LINK: u16 = 18;
    pub(crate) const SET_LINK: u16 = 19;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const DELETE_ADDRESS: u16 = 21;
    pub(crate) const GET_ADDRESS: u16 = 22;
    pub(crate) const NEW_ROUTE: u16 = 24;
    pub(crate) const DELETE_ROUTE: u16 = 25;
    pub(crate) const GET_ROUTE: u16 = 26;
    pub(crate) const NEW_NEIGHBOUR: u16 = 28;
    pub(crate) const DELETE_NEIGHBOUR: u16 = 29;
    pub(crate) const GET_NEIGHBOUR: u16 = 30;
    pub(crate) const SET_NEIGHBOUR_TABLE: u16 = 67;
    pub(crate) const NEW_NETCONF: u16 = 80;
    pub(crate) const NEW_NSID: u16 = 88;
    pub(crate) const DELETE_NSID: u16 = 89;
    pub(crate) const GET_NSID: u16 = 90;
    pub(crate) const NEW_NEXT_HOP: u16 = 104;
    pub(crate) const DELETE_NEXT_HOP: u16 = 105;
    pub(crate) const GET_NEXT_HOP: u16 = 106;
}

/// Attribute types and values, named as in the kernel's headers.
pub(super) mod attribute {
    pub(crate) const IFLA_ADDRESS: u16 = 1;
    pub(crate) const IFLA_IFNAME: u16 = 3;
    pub(crate) const IFLA_MTU: u16 = 4;
    pub(crate) const IFLA_LINKINFO: u16 = 18;
    pub(crate) const IFLA_INFO_KIND: u16 = 1;
    pub(crate) const IFLA_INFO_DATA: u16 = 2;
    pub(crate) const IFLA_IPTUN_LOCAL: u16 = 2;
    pub(crate) const IFLA_IPTUN_REMOTE: u16 = 3;
    pub(crate) const IFLA_IPTUN_TTL: u16 = 4;
    pub(crate) const IFLA_VXLAN_ID: u16 = 1;
    pub(crate) const IFLA_VXLAN_GROUP: u16 = 2;
    pub(crate) const IFLA_VXLAN_LOCAL: u16 = 4;
    pub(crate) const IFLA_VXLAN_LEARNING: u16 = 7;
    pub(crate) const IFLA_VXLAN_PORT: u16 = 15;
    pub(crate) const IFLA_VXLAN_GROUP6: u16 = 16;
    pub(crate) const IFLA_VXLAN_LOCAL6: u16 = 17;
    pub(crate) const IFLA_IFALIAS: u16 = 20;
    pub(crate) const IFLA_AF_SPEC: u16 = 26;
    pub(crate) const IFLA_GROUP: u16 = 27;
    pub(crate) const IFLA_EXT_MASK: u16 = 29;
    pub(crate) const IFLA_INET_CONF: u16 = 1;
    pub(crate) const IFLA_INET6_CONF: u16 = 2;
    pub(crate) const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    pub(crate) const RTEXT_FILTER_SKIP_STATS: u32 = 8;

    pub(crate) const IFA_ADDRESS: u16 = 1;
    pub(crate) const IFA_LOCAL: u16 = 2;
    pub(crate) const IFA_FLAGS: u16 = 8;
    pub(crate) const IFA_PROTO: u16 = 11;
    pub(crate) const IFA_F_NODAD: u32 = 0x02;
    pub(crate) const IFA_F_NOPREFIXROUTE: u32 = 0x200;

    pub(crate) const RTA_DST: u16 = 1;
    pub(crate) const RTA_OIF: u16 = 4;
    pub(crate) const RTA_GATEWAY: u16 = 5;
    pub(crate) const RTA_PRIORITY: u16 = 6;
    pub(crate) const RTA_MULTIPATH: u16 = 9;
    pub(crate) const RTA_TABLE: u16 = 15;
    pub(crate) const RTA_VIA: u16 = 18;
    pub(crate) const RTA_NH_ID: u16 = 30;
    pub(crate) const RTNH_F_ONLINK: u8 = 4;
    pub(crate) const RTM_F_FIB_MATCH: u32 = 0x2000;

    pub(crate) const NDA_DST: u16 = 1;
    pub(crate) const NDA_LLADDR: u16 = 2;
    pub(crate) const NDA_IFINDEX: u16 = 8;
    pub(crate) const NUD_PERMANENT: u16 = 0x80;
    pub(crate) const NTF_SELF: u8 = 2;

    pub(crate) const NDTA_NAME: u16 = 1;
    pub(crate) const NDTA_PARMS: u16 = 6;
    pub(crate) const NDTPA_IFINDEX: u16 = 1;
    pub(crate) const NDTPA_PROXY_DELAY: u16 = 13;

    pub(crate) const NETNSA_NSID: u16 = 1;
    pub(crate) const NETNSA_FD: u16 = 3;

    pub(crate) const NHA_ID: u16 = 1;
    pub(crate) const NHA_GROUP: u16 = 2;
    pub(crate) const NHA_GROUP_TYPE: u16 = 3;
    pub(crate) const NHA_BLACKHOLE: u16 = 4;
    pub(crate) const NHA_OIF: u16 = 5;
    pub(crate) const NHA_GATEWAY: u16 = 6;
    pub(crate) const NHA_RES_GROUP: u16 = 12;
    pub(crate) const NHA_RES_GROUP_BUCKETS: u16 = 1;
    pub(crate) const NHA_RES_GROUP_IDLE_TIMER: u16 = 2;
    pub(crate) const NHA_RES_GROUP_UNBALANCED_TIMER: u16 = 3;
    pub(crate) const NEXTHOP_GRP_TYPE_RES: u16 = 1;
}

/// USER_HZ: ticks of `clock_t` in a second.
const CLOCK: u128 = 100;

pub(super) const AF_UNSPEC: u8 = 0;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
pub(super) const AF_BRIDGE: u8 = 7;

pub(super) const TABLE_MAIN: u32 = 254;
const TABLE_COMPAT: u8 = 252;
pub(super) const SCOPE_UNIVERSE: u8 = 0;
pub(super) const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const SCOPE_NOWHERE: u8 = 255;
/// RTN_*.
pub(super) mod route_type {
    pub(crate) const UNSPEC: u8 = 0;
    pub(crate) const UNICAST: u8 = 1;
    pub(crate) const BLACKHOLE: u8 = 6;
    pub(crate) const UNREACHABLE: u8 = 7;
    pub(crate) const PROHIBIT: u8 = 8;
    pub(crate) const THROW: u8 = 9;
}
/// IP6_RT_PRIO_USER: what the kernel makes of metric 0.
pub(super) const IPV6_DEFAULT_METRIC: u32 = 1024;

const NLA_F_NESTED: u16 = 0x8000;

/// A buffer of requests, each with its own sequence number.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    buffer: Vec<u8>,
    /// Where the last message begins.
    message: usize,
    count: usize,
}

impl Encoder {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: Vec::with_capacity(bytes),
            message: 0,
            count: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.message = 0;
        self.count = 0;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// How many messages.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Begins a message; `header` is the fixed part that follows `nlmsghdr`.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, sequence: u32, header: &[u8]) {
        self.message = self.buffer.len();
        self.count += 1;
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(header);
        self.pad();
    }

    /// Writes the length of the message into its header.
    pub(super) fn end(&mut self) {
        let length = u32::try_from(self.buffer.len() - self.message)
            .expect("one request is far below 4 GiB");
        self.buffer[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Asks for an acknowledgement of the last message.
    pub(super) fn acknowledge_last(&mut self) {
        let at = self.message + 6;
        if let Some(&[low, high]) = self.buffer.get(at..).and_then(|rest| rest.first_chunk()) {
            let flags = u16::from_ne_bytes([low, high]) | NLM_F_ACK;
            self.buffer[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }

    pub(super) fn attribute(&mut self, kind: u16, data: &[u8]) {
        let length = u16::try_from(4 + data.len()).expect("attributes are short");
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(data);
        self.pad();
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub(super) fn string(&mut self, kind: u16, value: &str) {
        let start = self.begin_raw(kind);
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        self.end_nest(start);
    }

    pub(super) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    pub(super) fn begin_nest(&mut self, kind: u16) -> usize {
        self.begin_raw(kind | NLA_F_NESTED)
    }

    fn begin_raw(&mut self, kind: u16) -> usize {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    pub(super) fn end_nest(&mut self, start: usize) {
        let length =
            u16::try_from(self.buffer.len() - start).expect("attributes are far below 64 KiB");
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Attributes that another crate encodes.
    pub(super) fn emit(&mut self, attributes: &impl Emitable) {
        let start = self.buffer.len();
        self.buffer.resize(start + attributes.buffer_len(), 0);
        attributes.emit(&mut self.buffer[start..]);
        self.pad();
    }

    /// Attributes that are encoded already.
    pub(super) fn append(&mut self, attributes: &[u8]) {
        self.buffer.extend_from_slice(attributes);
        self.pad();
    }

    // ---- whole messages ----

    pub(super) fn link(&mut self, kind: u16, flags: u16, sequence: u32, link: &LinkMessage) {
        self.begin(kind, flags, sequence, &[]);
        let start = self.buffer.len();
        self.buffer.resize(start + link.buffer_len(), 0);
        link.emit(&mut self.buffer[start..]);
        self.pad();
        self.end();
    }

    /// A message about one link that is named by its index, with attributes to follow.
    pub(super) fn begin_link(&mut self, kind: u16, flags: u16, sequence: u32, index: u32) {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        self.begin(kind, flags, sequence, &header);
    }

    pub(super) fn route(&mut self, kind: u16, flags: u16, sequence: u32, route: &Route) {
        let add = kind == self::kind::NEW_ROUTE;
        let family = family_of_net(&route.prefix);
        let (route_type, scope, onlink) = if add {
            shape(&route.target)
        } else {
            // Whatever leads wherever: the key and the protocol alone decide.
            (route_type::UNSPEC, SCOPE_NOWHERE, false)
        };
        let mut header = [0; 12];
        header[0] = family;
        header[1] = route.prefix.prefix_len();
        header[4] = u8::try_from(route.table).unwrap_or(TABLE_COMPAT);
        header[5] = route.protocol;
        header[6] = scope;
        header[7] = route_type;
        if onlink {
            header[8..12].copy_from_slice(&u32::from(attribute::RTNH_F_ONLINK).to_ne_bytes());
        }
        self.begin(kind, flags, sequence, &header);
        if route.prefix.prefix_len() != 0 {
            self.address(attribute::RTA_DST, route.prefix.network());
        }
        // RTA_TABLE only where the header's byte is too small: it costs a little for each route.
        if header[4] == TABLE_COMPAT {
            self.u32(attribute::RTA_TABLE, route.table);
        }
        let metric = match route.metric {
            // For a delete 0 would mean "any metric".
            0 if !add && family == AF_INET6 => IPV6_DEFAULT_METRIC,
            metric => metric,
        };
        if metric != 0 {
            self.u32(attribute::RTA_PRIORITY, metric);
        }
        if add {
            self.target(&route.target, family);
        }
        self.end();
    }

    fn target(&mut self, target: &Target, family: u8) {
        match target {
            Target::Blackhole | Target::Reject => {}
            Target::Link { index } => self.u32(attribute::RTA_OIF, *index),
            Target::NextHop { id } => self.u32(attribute::RTA_NH_ID, *id),
            Target::Gateways(gateways) => match gateways.as_slice() {
                [] => {}
                [only] => {
                    self.gateway(only, family);
                    self.u32(attribute::RTA_OIF, only.index);
                }
                several => {
                    let nest = self.begin_raw(attribute::RTA_MULTIPATH);
                    for gateway in several {
                        let start = self.buffer.len();
                        let flags = if gateway.onlink {
                            attribute::RTNH_F_ONLINK
                        } else {
                            0
                        };
                        self.buffer
                            .extend_from_slice(&[0, 0, flags, hops(gateway.weight)]);
                        self.buffer.extend_from_slice(&gateway.index.to_ne_bytes());
                        self.gateway(gateway, family);
                        let length = u16::try_from(self.buffer.len() - start)
                            .expect("one next hop is short");
                        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
                    }
                    self.end_nest(nest);
                }
            },
        }
    }

    fn gateway(&mut self, gateway: &Gateway, family: u8) {
        match gateway.address {
            None => {}
            Some(address) if family_of(&address) == family => {
                self.address(attribute::RTA_GATEWAY, address);
            }
            Some(address) => {
                // struct rtvia: an IPv4 route through an IPv6 gateway.
                let mut via = [0; 18];
                via[..2].copy_from_slice(&u16::from(family_of(&address)).to_ne_bytes());
                match address {
                    IpAddr::V4(address) => {
                        via[2..6].copy_from_slice(&address.octets());
                        self.attribute(attribute::RTA_VIA, &via[..6]);
                    }
                    IpAddr::V6(address) => {
                        via[2..].copy_from_slice(&address.octets());
                        self.attribute(attribute::RTA_VIA, &via);
                    }
                }
            }
        }
    }

    pub(super) fn next_hop(&mut self, flags: u16, sequence: u32, next_hop: &NextHop) {
        let (family, onlink) = match &next_hop.kind {
            NextHopKind::Gateway(gateway) => (
                gateway.address.as_ref().map_or(AF_INET, family_of),
                gateway.onlink,
            ),
            // A blackhole that routes of both families may point to does not exist.
            NextHopKind::Blackhole => (AF_INET, false),
            NextHopKind::Group(_) => (AF_UNSPEC, false),
        };
        let mut header = [0; 8];
        header[0] = family;
        header[2] = next_hop.protocol;
        if onlink {
            header[4..8].copy_from_slice(&u32::from(attribute::RTNH_F_ONLINK).to_ne_bytes());
        }
        self.begin(kind::NEW_NEXT_HOP, flags, sequence, &header);
        self.u32(attribute::NHA_ID, next_hop.id);
        match &next_hop.kind {
            NextHopKind::Gateway(gateway) => {
                self.u32(attribute::NHA_OIF, gateway.index);
                if let Some(address) = gateway.address {
                    self.address(attribute::NHA_GATEWAY, address);
                }
            }
            NextHopKind::Blackhole => self.attribute(attribute::NHA_BLACKHOLE, &[]),
            NextHopKind::Group(members) => {
                let nest = self.begin_raw(attribute::NHA_GROUP);
                for (id, weight) in members {
                    self.buffer.extend_from_slice(&id.to_ne_bytes());
                    self.buffer.extend_from_slice(&[hops(*weight), 0, 0, 0]);
                }
                self.end_nest(nest);
                if let Some(resilient) = &next_hop.resilient {
                    let kind = attribute::NEXTHOP_GRP_TYPE_RES;
                    self.attribute(attribute::NHA_GROUP_TYPE, &kind.to_ne_bytes());
                    let nest = self.begin_nest(attribute::NHA_RES_GROUP);
                    let buckets = resilient.buckets.to_ne_bytes();
                    self.attribute(attribute::NHA_RES_GROUP_BUCKETS, &buckets);
                    let ticks = |time: std::time::Duration| {
                        u32::try_from(time.as_millis() * CLOCK / 1000).unwrap_or(u32::MAX)
                    };
                    self.u32(
                        attribute::NHA_RES_GROUP_IDLE_TIMER,
                        ticks(resilient.idle_timer),
                    );
                    self.u32(
                        attribute::NHA_RES_GROUP_UNBALANCED_TIMER,
                        ticks(resilient.unbalanced_timer),
                    );
                    self.end_nest(nest);
                }
            }
        }
        self.end();
    }

    /// RTM_NEWLINK of a tunnel device.
    pub(super) fn tunnel(&mut self, flags: u16, sequence: u32, create: &CreateTunnel) {
        self.begin_link(kind::NEW_LINK, flags, sequence, create.index);
        self.string(attribute::IFLA_IFNAME, &create.name);
        self.u32(attribute::IFLA_MTU, create.mtu);
        if let Some(mac) = &create.mac {
            self.attribute(attribute::IFLA_ADDRESS, mac);
        }
        let information = self.begin_nest(attribute::IFLA_LINKINFO);
        match create.tunnel {
            Tunnel::Ipip { local } => {
                self.string(attribute::IFLA_INFO_KIND, "ipip");
                let data = self.begin_nest(attribute::IFLA_INFO_DATA);
                self.attribute(attribute::IFLA_IPTUN_LOCAL, &local.octets());
                // Inherited from the packet inside: it does not lose hops to the underlay.
                self.attribute(attribute::IFLA_IPTUN_TTL, &[0]);
                self.end_nest(data);
            }
            Tunnel::Vxlan {
                vni,
                port,
                local,
                learning,
            } => {
                self.string(attribute::IFLA_INFO_KIND, "vxlan");
                let data = self.begin_nest(attribute::IFLA_INFO_DATA);
                self.u32(attribute::IFLA_VXLAN_ID, vni);
                let kind = match local {
                    IpAddr::V4(_) => attribute::IFLA_VXLAN_LOCAL,
                    IpAddr::V6(_) => attribute::IFLA_VXLAN_LOCAL6,
                };
                self.address(kind, local);
                self.attribute(attribute::IFLA_VXLAN_LEARNING, &[u8::from(learning)]);
                self.attribute(attribute::IFLA_VXLAN_PORT, &port.to_be_bytes());
                self.end_nest(data);
            }
        }
        self.end_nest(information);
        self.end();
    }

    /// RTM_NEWNEIGH or RTM_DELNEIGH of a forwarding database.
    pub(super) fn fdb(&mut self, kind: u16, flags: u16, sequence: u32, entry: &FdbEntry) {
        let mut header = [0; 12];
        header[0] = AF_BRIDGE;
        header[4..8].copy_from_slice(&entry.index.to_ne_bytes());
        header[8..10].copy_from_slice(&attribute::NUD_PERMANENT.to_ne_bytes());
        header[10] = attribute::NTF_SELF;
        self.begin(kind, flags, sequence, &header);
        self.attribute(attribute::NDA_LLADDR, &entry.mac);
        self.address(attribute::NDA_DST, entry.remote);
        self.end();
    }

    pub(super) fn delete_next_hop(&mut self, sequence: u32, id: u32) {
        self.begin(kind::DELETE_NEXT_HOP, 0, sequence, &[0; 8]);
        self.u32(attribute::NHA_ID, id);
        self.end();
    }

    pub(super) fn interface_address(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        address: &Address,
    ) {
        let mut header = [0; 8];
        header[0] = family_of_net(&address.net);
        header[1] = address.net.prefix_len();
        // The header's byte carries IFA_F_NODAD as well.
        if address.nodad {
            header[2] = u8::try_from(attribute::IFA_F_NODAD).expect("one bit of the low byte");
        }
        if matches!(address.net.addr(), IpAddr::V6(address) if address.is_unicast_link_local()) {
            header[3] = SCOPE_LINK;
        }
        // Answers ARP, but is no source of the host's own packets.
        if address.net.addr() == IpAddr::V4(GATEWAY_V4) {
            header[3] = SCOPE_HOST;
        }
        header[4..8].copy_from_slice(&address.index.to_ne_bytes());
        self.begin(kind, flags, sequence, &header);
        self.address(attribute::IFA_LOCAL, address.net.addr());
        self.address(attribute::IFA_ADDRESS, address.net.addr());
        // A single address leads nowhere but to itself, which the local table says already.
        if matches!(address.net, IpNet::V6(net) if net.prefix_len() == 128) {
            let flags = u32::from(header[2]) | attribute::IFA_F_NOPREFIXROUTE;
            self.u32(attribute::IFA_FLAGS, flags);
        }
        self.end();
    }

    /// An address that carries our mark (IFA_PROTO). Kernels before Linux 5.18 leave it out.
    pub(super) fn marked_address(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        address: &Address,
    ) {
        self.interface_address(kind, flags, sequence, address);
        self.attribute(attribute::IFA_PROTO, &[PROTOCOL_AGENTD]);
        self.end();
    }

    pub(super) fn neighbour(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        neighbour: &Neighbour,
    ) {
        let mut header = [0; 12];
        header[0] = family_of(&neighbour.address);
        header[4..8].copy_from_slice(&neighbour.index.to_ne_bytes());
        if kind == self::kind::NEW_NEIGHBOUR {
            header[8..10].copy_from_slice(&attribute::NUD_PERMANENT.to_ne_bytes());
        }
        self.begin(kind, flags, sequence, &header);
        self.address(attribute::NDA_DST, neighbour.address);
        if kind == self::kind::NEW_NEIGHBOUR {
            self.attribute(attribute::NDA_LLADDR, &neighbour.mac);
        }
        self.end();
    }
}

/// A weight of 1 is 0 hops on the wire.
fn hops(weight: u16) -> u8 {
    u8::try_from(weight.saturating_sub(1)).unwrap_or(u8::MAX)
}

fn shape(target: &Target) -> (u8, u8, bool) {
    match target {
        Target::Blackhole => (route_type::BLACKHOLE, SCOPE_UNIVERSE, false),
        Target::Reject => (route_type::UNREACHABLE, SCOPE_UNIVERSE, false),
        Target::Link { .. } => (route_type::UNICAST, SCOPE_LINK, false),
        Target::NextHop { .. } => (route_type::UNICAST, SCOPE_UNIVERSE, false),
        Target::Gateways(gateways) => {
            let direct = gateways.iter().all(|gateway| gateway.address.is_none());
            let scope = if direct { SCOPE_LINK } else { SCOPE_UNIVERSE };
            let onlink = matches!(gateways.as_slice(), [only] if only.onlink);
            (route_type::UNICAST, scope, onlink)
        }
    }
}

pub(super) fn family_of(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

pub(super) fn family_of_net(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => AF_INET,
        IpNet::V6(_) => AF_INET6,
    }
}

impl Encoder {
    /// Asks which number a namespace has in the socket's.
    pub(super) fn get_nsid(&mut self, sequence: u32, netns: &std::fs::File) {
        use std::os::fd::AsRawFd;
        self.begin(kind::GET_NSID, 0, sequence, &[0; 4]);
        self.attribute(attribute::NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
        self.end();
    }

    /// Gives a namespace a number; -1: whichever is free.
    pub(super) fn new_nsid(&mut self, sequence: u32, netns: &std::fs::File, nsid: i32) {
        use std::os::fd::AsRawFd;
        self.begin(kind::NEW_NSID, 0, sequence, &[0; 4]);
        self.attribute(attribute::NETNSA_NSID, &nsid.to_ne_bytes());
        self.attribute(attribute::NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
        self.end();
    }

    /// Delay of answers for proxied IPv4 neighbours of an interface, in milliseconds.
    pub(super) fn proxy_delay(&mut self, sequence: u32, index: u32, delay: u64) {
        let header = [AF_INET, 0, 0, 0];
        self.begin(kind::SET_NEIGHBOUR_TABLE, NLM_F_REPLACE, sequence, &header);
        self.string(attribute::NDTA_NAME, "arp_cache");
        let nest = self.begin_nest(attribute::NDTA_PARMS);
        self.u32(attribute::NDTPA_IFINDEX, index);
        self.attribute(attribute::NDTPA_PROXY_DELAY, &delay.to_ne_bytes());
        self.end_nest(nest);
        self.end();
    }
}
