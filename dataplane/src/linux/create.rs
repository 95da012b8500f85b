//! Makes links: pairs of veths, tap devices, bridges, tunnel devices.
//!
//! Later operations of a batch use a link, so its fate is learned at once. Each is marked as ours in
//! the same step, or vanishes when the agent dies in between, or is recognised without its alias
//! (see `reconcile::values`).

use std::{fs::File, net::Ipv6Addr};

use hashbrown::HashMap;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{
    decode,
    encode::{AF_INET6, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attribute, kind},
    netns,
    pipe::ANY,
    tap,
    write::Run,
};
use crate::{
    desired::Netns,
    kernel::{CreateBridge, CreateTap, CreateTunnel, CreateVeth},
};

/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;

impl<'a> Run<'_, 'a> {
    /// Makes the pair. Later operations of the batch use it, so its fate is learned at once.
    pub(super) fn create_veth(
        &mut self,
        index: usize,
        veth: &'a CreateVeth,
        files: &mut HashMap<&'a Netns, File>,
    ) {
        self.flush();
        let file = match files.remove(&veth.peer_netns) {
            Some(file) => Ok(file),
            None => netns::open(&veth.peer_netns),
        };
        match file {
            Ok(file) => {
                self.number(index, &file);
                self.send_link(
                    index,
                    kind::NEW_LINK,
                    NLM_F_CREATE | NLM_F_EXCL,
                    &veth_message(veth, &file),
                );
                self.flush();
                if self.answers.is_ok(index) {
                    // The peer is not up yet, so no link-local address was made until now.
                    self.finish_link(index, veth.index, &veth.alias);
                    self.learn_nsid(index, &file, &veth.peer_netns);
                }
                files.insert(&veth.peer_netns, file);
            }
            Err(error) => self.answers.fail_io(index, &error),
        }
        if self.answers.is_ok(index) {
            self.links.made.insert(&veth.name, veth.index);
            self.links.down.insert(veth.index, index);
        } else {
            let inside = Some(&veth.peer_netns);
            self.links.missing.insert((None, veth.index));
            self.links.missing.insert((inside, veth.peer_index));
            // Its namespace stays as it was.
            self.links.missing.insert((inside, LOOPBACK));
            self.links.unnamed.insert((None, &veth.name));
            self.links.unnamed.insert((inside, &veth.peer_name));
        }
    }

    /// What RTM_NEWLINK ignores while it makes a link: the alias, and no link-local address.
    fn finish_link(&mut self, index: usize, link: u32, alias: &str) {
        let sequence = self.pipe.next(index);
        let encoder = &mut self.pipe.encoder;
        encoder.begin_link(kind::SET_LINK, 0, sequence, link);
        encoder.string(attribute::IFLA_IFALIAS, alias);
        encoder.end();
        self.no_link_local(index, link);
    }

    /// No link-local address by itself. A kernel without IPv6 does not know this, and makes none.
    pub(super) fn no_link_local(&mut self, index: usize, link: u32) {
        let sequence = self.pipe.next_tolerant(index, libc::EAFNOSUPPORT);
        let encoder = &mut self.pipe.encoder;
        encoder.begin_link(kind::SET_LINK, 0, sequence, link);
        let specification = encoder.begin_nest(attribute::IFLA_AF_SPEC);
        let family = encoder.begin_nest(u16::from(AF_INET6));
        const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
        encoder.attribute(
            attribute::IFLA_INET6_ADDR_GEN_MODE,
            &[IN6_ADDR_GEN_MODE_NONE],
        );
        encoder.end_nest(family);
        encoder.end_nest(specification);
        encoder.end();
    }

    /// Takes away the kernel's route to ff00::/8 at a link. The kernel makes one for each link that
    /// comes up, all in one list, which it walks for every new one.
    pub(super) fn deafen(&mut self, index: usize, link: u32) {
        if !self.answers.is_ok(index) {
            return;
        }
        // It does so when it is told of the carrier, which may be later; asking for a link waits
        // for that.
        let sequence = self.pipe.next_tolerant(index, ANY);
        let encoder = &mut self.pipe.encoder;
        encoder.begin_link(kind::GET_LINK, 0, sequence, link);
        encoder.u32(attribute::IFLA_EXT_MASK, attribute::RTEXT_FILTER_SKIP_STATS);
        encoder.end();
        // Nothing depends on it: one that is there, or comes back, costs time only.
        let sequence = self.pipe.next_tolerant(index, ANY);
        let mut header = [0; 12];
        header[0] = AF_INET6;
        header[1] = 8;
        header[4] = libc::RT_TABLE_LOCAL;
        header[6] = libc::RT_SCOPE_NOWHERE;
        header[7] = libc::RTN_MULTICAST;
        let encoder = &mut self.pipe.encoder;
        encoder.begin(kind::DELETE_ROUTE, 0, sequence, &header);
        let groups = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);
        encoder.address(attribute::RTA_DST, groups.into());
        encoder.u32(attribute::RTA_OIF, link);
        encoder.end();
    }

    /// Gives the namespace a number before the kernel does. One that has one keeps it.
    fn number(&mut self, index: usize, file: &File) {
        let (pipe, socket) = (&mut *self.pipe, self.socket);
        let nsid = self.namespaces.choose(|| {
            let sequence = pipe.sequence();
            let encoder = &mut pipe.encoder;
            encoder.begin(kind::GET_NSID, NLM_F_DUMP, sequence, &[0; 4]);
            encoder.end();
            let request = encoder.bytes().to_vec();
            encoder.clear();
            let mut used = Vec::new();
            // Interrupted, it tells too few; a number that is taken is refused.
            let _ = socket.dump(&request, sequence, &mut pipe.receive, |message| {
                used.extend(decode::nsid(message.payload));
            });
            used
        });
        let sequence = self.pipe.next_tolerant(index, ANY);
        self.pipe.encoder.new_nsid(sequence, file, nsid);
    }

    /// The number by which the listener hears of that namespace.
    fn learn_nsid(&mut self, index: usize, file: &File, netns: &Netns) {
        let sequence = self.pipe.next(index);
        self.pipe.encoder.get_nsid(sequence, file);
        let namespaces = self.namespaces;
        self.pipe.flush(self.socket, self.answers, |_, message| {
            if message.kind == kind::NEW_NSID
                && let Some(nsid) = decode::nsid(message.payload)
            {
                namespaces.learn(nsid, netns);
            }
        });
    }

    /// Until it is persistent the device lives only as long as its file: it is complete by then.
    pub(super) fn create_tap(&mut self, index: usize, tap: &'a CreateTap) {
        self.flush();
        match tap::create(tap) {
            Ok(device) => {
                self.no_link_local(index, tap.index);
                let link = LinkUnspec::new_with_index(tap.index)
                    .alias(tap.alias.as_str())
                    .address(tap.mac.to_vec())
                    .mtu(tap.mtu)
                    .up()
                    .build();
                self.send_link(index, kind::SET_LINK, 0, &link);
                self.flush();
                if self.answers.is_ok(index)
                    && let Err(error) = device.persist()
                {
                    self.answers.fail_io(index, &error);
                }
            }
            // Here ENOENT would be taken for a namespace that is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let said = "/dev/net/tun is missing";
                self.answers.fail(index, libc::ENODEV, Some(said));
            }
            Err(error) => self.answers.fail_io(index, &error),
        }
        self.note_made(index, &tap.name, tap.index);
    }

    pub(super) fn create_bridge(&mut self, index: usize, bridge: &'a CreateBridge) {
        self.flush();
        let link = LinkMessageBuilder::<LinkBridge>::new(&bridge.name)
            .index(bridge.index)
            .address(bridge.mac.to_vec())
            .build();
        self.send_link(index, kind::NEW_LINK, NLM_F_CREATE | NLM_F_EXCL, &link);
        self.flush();
        if self.answers.is_ok(index) {
            self.no_link_local(index, bridge.index);
            // Set at creation, the MTU would follow that of the ports.
            let link = LinkUnspec::new_with_index(bridge.index)
                .alias(bridge.alias.as_str())
                .mtu(bridge.mtu)
                .up()
                .build();
            self.send_link(index, kind::SET_LINK, 0, &link);
            self.flush();
        }
        self.note_made(index, &bridge.name, bridge.index);
    }

    pub(super) fn create_tunnel(&mut self, index: usize, tunnel: &'a CreateTunnel) {
        self.flush();
        let sequence = self.pipe.next(index);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.pipe.encoder.tunnel(flags, sequence, tunnel);
        self.flush();
        if self.answers.is_ok(index) {
            self.finish_link(index, tunnel.index, &tunnel.alias);
            let up = LinkUnspec::new_with_index(tunnel.index).up().build();
            self.send_link(index, kind::SET_LINK, 0, &up);
            self.flush();
        }
        self.note_made(index, &tunnel.name, tunnel.index);
    }

    fn note_made(&mut self, index: usize, name: &'a str, link: u32) {
        if self.answers.is_ok(index) {
            self.links.made.insert(name, link);
        } else {
            self.links.missing.insert((None, link));
            self.links.unnamed.insert((None, name));
        }
    }
}

/// Both ends in one message, the peer directly in its namespace: moving it there later would wait
/// for an RCU grace period, some 20 ms. One queue each: more serve XDP only, and cost time.
fn veth_message(veth: &CreateVeth, netns: &File) -> LinkMessage {
    use std::os::fd::AsRawFd;
    let peer = LinkUnspec::new_with_index(veth.peer_index)
        .name(veth.peer_name.as_str())
        .mtu(veth.mtu)
        .address(veth.peer_mac.to_vec())
        .setns_by_fd(netns.as_raw_fd())
        .append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
        .build();
    let link = LinkMessageBuilder::<LinkVeth>::new(&veth.name, &veth.peer_name)
        .index(veth.index)
        .mtu(veth.mtu)
        .address(veth.mac.to_vec())
        .append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    match veth.master {
        Some(master) => link.controller(master).build(),
        None => link.build(),
    }
}
