//! From the configuration to what the parts are started with.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::SystemTime,
};

use bgp::{
    policy::Policy,
    speaker::config::{
        ConfigError, Password, PeerConfig, RangeConfig, Restarting, SpeakerConfig, Timers,
    },
    types::Asn,
};
use dataplane::desired::FilterSettings;
use ipnet::IpNet;

use super::StartError;
use crate::{
    api::Identity,
    config::{Bgp, Config, ExportPolicy, ImportPolicy, Peer, PeerRange},
};

/// The node's addresses: what the configuration says, completed by what the kernel's routes say.
pub(crate) fn addresses(config: &Config) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let peers = config.bgp.iter().flat_map(|bgp| &bgp.peers);
    let source = |is_ipv4: bool| {
        peers
            .clone()
            .filter(|peer| peer.address.is_ipv4() == is_ipv4)
            .find_map(|peer| peer.local_address.or_else(|| source_address(peer.address)))
    };
    let address = config.node.address.or_else(|| match source(true) {
        Some(IpAddr::V4(address)) => Some(address),
        _ => None,
    });
    let address6 = config.node.address6.or_else(|| match source(false) {
        Some(IpAddr::V6(address)) => Some(address),
        _ => None,
    });
    (address, address6)
}

/// Who this node is.
pub(super) fn identity(config: &Config) -> Result<Identity, StartError> {
    let (address, address6) = addresses(config);
    let router_id = config
        .bgp
        .as_ref()
        .and_then(|bgp| bgp.router_id)
        .or(address);
    if config.bgp.is_some() && router_id.is_none() {
        return Err(StartError::NoRouterId);
    }
    Ok(Identity {
        name: config.node.name.clone(),
        started_at: SystemTime::now(),
        address,
        address6,
        asn: config.bgp.as_ref().map(|bgp| bgp.asn),
        router_id: config.bgp.as_ref().and(router_id),
    })
}

/// What workloads in the node's own namespace have, of all the addresses that the node has now: of
/// each family that by which others know the node, or else the first.
pub(super) fn own_addresses(config: &Config, all: &[IpAddr]) -> Vec<IpAddr> {
    let known = identity(config).ok();
    let of = |known: Option<IpAddr>, is_ipv4: bool| {
        let mut family = all.iter().filter(|address| address.is_ipv4() == is_ipv4);
        match known.filter(|known| all.contains(known)) {
            Some(known) => Some(known),
            None => family.next().copied(),
        }
    };
    let known = |is_ipv4: bool| match (&known, is_ipv4) {
        (Some(known), true) => known.address.map(IpAddr::V4),
        (Some(known), false) => known.address6.map(IpAddr::V6),
        (None, _) => None,
    };
    [of(known(true), true), of(known(false), false)]
        .into_iter()
        .flatten()
        .collect()
}

/// What the filter table is made of.
pub(crate) fn filter(config: &Config) -> FilterSettings {
    let masqueraded = config.pools.iter().filter(|pool| pool.nat_outgoing);
    let bridges = config.bridges.iter().filter(|bridge| bridge.nat_outgoing);
    FilterSettings {
        inside: config.pools.iter().map(|pool| pool.cidr).collect(),
        masquerade: masqueraded.map(|pool| pool.cidr).collect(),
        bridged: bridges
            .flat_map(|bridge| &bridge.subnets)
            .map(|subnet| subnet.cidr)
            .collect(),
    }
}

/// The source address that the kernel would use towards `peer`. Connecting a datagram socket sends
/// nothing; it only looks up the route.
fn source_address(peer: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(peer, 179)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    let usable = !address.is_unspecified() && !address.is_loopback();
    usable.then_some(address)
}

/// The speaker's configuration. `restarting`: there was an earlier run whose routes peers may
/// still use.
pub(crate) fn speaker(
    bgp: &Bgp,
    pools: &[IpNet],
    router_id: Ipv4Addr,
    restarting: Option<Restarting>,
) -> Result<SpeakerConfig, ConfigError> {
    let import_pools = Arc::new(Policy::import_pools(pools));
    let mut config = SpeakerConfig::new(Asn(bgp.asn), router_id);
    config.cluster_id = bgp.cluster_id;
    config.listen.clone_from(&bgp.listen);
    config.restarting = restarting;
    config.originate.clone_from(&bgp.originate);
    config.seed = u64::from(std::process::id()) ^ u64::from(u32::from(router_id)) << 32;
    config.ranges = bgp
        .ranges
        .iter()
        .map(|configured| range(configured, &import_pools))
        .collect::<Result<_, _>>()?;
    config.peers = bgp
        .peers
        .iter()
        .map(|configured| peer(configured, &import_pools))
        .collect::<Result<_, _>>()?;
    Ok(config)
}

/// What is taken from a peer, and what it is sent.
fn policies(configured: &Peer, import_pools: &Arc<Policy>) -> (Arc<Policy>, Arc<Policy>) {
    let mut import = match &configured.import {
        ImportPolicy::Pools => import_pools.clone(),
        ImportPolicy::All => Arc::new(Policy::all()),
        ImportPolicy::None => Arc::new(Policy::none()),
        ImportPolicy::Named(policy) => policy.clone(),
    };
    if configured.blackhole {
        import = Arc::new(Policy::clone(&import).honouring_blackhole());
    }
    let export = match &configured.export {
        ExportPolicy::Blocks => Arc::new(Policy::export_blocks()),
        ExportPolicy::All => Arc::new(Policy::all()),
        ExportPolicy::None => Arc::new(Policy::none()),
        ExportPolicy::Named(policy) => policy.clone(),
    };
    (import, export)
}

/// Peers that come from a prefix.
pub(crate) fn range(
    configured: &PeerRange,
    import_pools: &Arc<Policy>,
) -> Result<RangeConfig, ConfigError> {
    let mut range = RangeConfig::new(
        configured.peer.name.clone(),
        configured.range,
        configured.peer.asn.clone(),
    );
    range.limit = usize::try_from(configured.limit).unwrap_or(usize::MAX);
    range.peer = peer(&configured.peer, import_pools)?;
    Ok(range)
}

pub(crate) fn peer(
    configured: &Peer,
    import_pools: &Arc<Policy>,
) -> Result<PeerConfig, ConfigError> {
    let mut peer = PeerConfig::new(
        configured.name.clone(),
        configured.address,
        configured.asn.clone(),
    );
    peer.port = configured.port;
    peer.local_address = configured.local_address;
    peer.passive = configured.passive;
    peer.route_reflector_client = configured.route_reflector_client;
    peer.password = configured
        .password
        .as_ref()
        .map(|password| Password::new(password.as_bytes()))
        .transpose()?;
    peer.ttl_security = configured.ttl_security;
    peer.multihop = configured.multihop;
    peer.families.clone_from(&configured.families);
    peer.add_path_receive = configured.add_path_receive;
    peer.add_path_send = configured.add_path_send;
    peer.extended_next_hop = configured.extended_next_hop;
    peer.max_prefixes = configured.max_prefixes;
    peer.warn_prefixes = configured.max_prefixes_warning;
    peer.max_prefixes_restart = configured.max_prefixes_restart;
    peer.local_as = configured.local_as.map(Asn);
    peer.allow_own_as = configured.allow_own_as;
    peer.next_hop_self = configured.next_hop_self;
    peer.role = configured.role;
    peer.remove_private_as = configured.remove_private_as;
    (peer.import, peer.export) = policies(configured, import_pools);
    let defaults = Timers::default();
    peer.timers = Timers {
        hold_time: configured.hold_time,
        connect_retry: configured.connect_retry_time,
        connect_retry_max: defaults
            .connect_retry_max
            .max(configured.connect_retry_time),
        error_hold: configured.idle_hold_time,
        error_hold_max: configured.idle_hold_time_max,
        ..defaults
    };
    peer.graceful_restart = configured
        .graceful_restart
        .map(|restart| restart.restart_time);
    peer.assume_forwarding = configured
        .graceful_restart
        .is_some_and(|restart| restart.assume_forwarding);
    peer.long_lived = configured.long_lived;
    Ok(peer)
}
