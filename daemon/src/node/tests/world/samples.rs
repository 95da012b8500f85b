//! What tests of the node ask for, and the configuration of its world.

use std::{net::IpAddr, time::Duration};

use dataplane::desired::Netns;
use ipnet::IpNet;

use crate::{
    config,
    node::{
        WorkloadId, WorkloadSpec,
        attachment::{Attachment, Inside, Namespace},
        spec::{FixedAddresses, InterfaceName, Labels, NamespaceName},
    },
};

pub(in crate::node::tests) fn id(name: &str) -> WorkloadId {
    WorkloadId::new(name).expect("a valid id")
}

pub(in crate::node::tests) fn net(text: &str) -> IpNet {
    text.parse().expect("a valid prefix")
}

pub(in crate::node::tests) fn spec() -> WorkloadSpec {
    WorkloadSpec {
        attachment: Attachment::Routed(Inside {
            namespace: Namespace {
                name: NamespaceName::path("/run/netns/a").expect("a valid path"),
                netns: Netns {
                    path: "/run/netns/a".into(),
                    device: 4,
                    inode: 4026531840,
                },
            },
            interface: InterfaceName::default(),
        }),
        pools: Vec::new(),
        owner: None,
        addresses: FixedAddresses::default(),
        mtu: None,
        labels: Labels::default(),
        access: Default::default(),
    }
}

pub(in crate::node::tests) fn fixed(address: &str) -> WorkloadSpec {
    let addresses = vec![address.parse::<IpAddr>().expect("a valid address")];
    WorkloadSpec {
        addresses: FixedAddresses::new(addresses).expect("one address"),
        ..spec()
    }
}

/// Each workload has a namespace of its own.
pub(in crate::node::tests) fn in_own_namespace(name: &str, mut spec: WorkloadSpec) -> WorkloadSpec {
    if let Attachment::Routed(inside) = &mut spec.attachment {
        let number = |sum: u64, byte: u8| sum * 257 + u64::from(byte);
        inside.namespace.netns.inode = name.bytes().fold(1, number);
    }
    spec
}

pub(in crate::node::tests) fn attached(attachment: Attachment) -> WorkloadSpec {
    WorkloadSpec {
        attachment,
        ..spec()
    }
}

/// On a bridge, in a namespace of its own.
pub(in crate::node::tests) fn bridged(name: &str, bridge: &str) -> WorkloadSpec {
    let Attachment::Routed(inside) = in_own_namespace(name, spec()).attachment else {
        unreachable!("made so");
    };
    attached(Attachment::Bridged {
        inside,
        bridge: bridge.to_owned(),
    })
}

pub(super) fn bridges() -> Vec<config::Bridge> {
    vec![config::Bridge {
        name: "apps0".to_owned(),
        subnets: vec![config::Subnet {
            cidr: net("172.30.0.0/29"),
            gateway: net("172.30.0.1/32").addr(),
            reserved: Vec::new(),
        }],
        mtu: None,
        nat_outgoing: true,
    }]
}

pub(super) fn pools() -> Vec<config::Pool> {
    let pool = |name: &str, cidr, block_size, claim| config::Pool {
        claim: vec![net(claim)],
        ..config::Pool::new(name, net(cidr), block_size)
    };
    vec![
        pool("four", "10.0.0.0/24", 30, "10.0.0.0/28"),
        pool("six", "fd00::/112", 126, "fd00::/124"),
    ]
}

pub(super) const SETTINGS: config::Ipam = config::Ipam {
    cooldown: Duration::from_secs(2),
    claim_ahead: 75,
    release_empty_after: Duration::from_secs(20),
    release_unnamed_after: Duration::from_secs(10),
    store: config::Store::Local,
    etcd: None,
};
