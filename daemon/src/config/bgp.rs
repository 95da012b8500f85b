//! `[bgp]` and `[[bgp.peer]]`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use bgp::{rib::Role, speaker::config::LongLived, types::Family};
use ipnet::IpNet;

use super::{
    Bgp, ExportPolicy, GracefulRestart, ImportPolicy, Node, Password, Peer, PeerRange, Pool, Store,
    document::{Found, Section},
    mesh,
    neighbor::{self, Neighbor, Neighbors},
    originate, paths,
    policy::Named,
    restart,
    sections::{defaults, is_name, is_usable, name_rule, seconds},
    tunnel,
};

/// Linux takes keys of at most TCP_MD5SIG_MAXKEYLEN bytes.
const PASSWORD_MAX: usize = 80;

const FAMILIES: [(&str, Family); 2] = [
    ("ipv4-unicast", Family::Ipv4Unicast),
    ("ipv6-unicast", Family::Ipv6Unicast),
];

const ROLES: [(&str, Role); 5] = [
    ("provider", Role::Provider),
    ("route-server", Role::RouteServer),
    ("route-server-client", Role::RouteServerClient),
    ("customer", Role::Customer),
    ("peer", Role::Peer),
];

/// What peers inherit when they do not say otherwise.
#[derive(Clone)]
pub(super) struct Inherited {
    pub(super) import: ImportPolicy,
    pub(super) export: ExportPolicy,
    pub(super) hold_time: Duration,
    pub(super) connect_retry_time: Duration,
    pub(super) idle_hold_time: Duration,
    pub(super) idle_hold_time_max: Duration,
    pub(super) graceful_restart: Option<GracefulRestart>,
    pub(super) long_lived: Option<LongLived>,
}

/// `None` after an error that leaves nothing to return; `Some(None)` without the section.
pub(super) fn read(
    mut section: Section<'_, '_, '_>,
    node: Option<&Node>,
    pools: &[Found<Pool>],
    named: &Named,
    store: Store,
) -> Option<Option<Bgp>> {
    let asn = section.integer("asn", 1..=u32::MAX);
    let router_id = section.parsed::<Ipv4Addr>("router_id", "an IPv4 address");
    let cluster_id = section.parsed::<Ipv4Addr>("cluster_id", "an IPv4 address");
    for (key, id) in [("router_id", &router_id), ("cluster_id", &cluster_id)] {
        // RFC 6286 §2.1: any value but zero.
        if let Some(Found { value, span }) = id
            && value.is_unspecified()
        {
            section.error(key, Some(span.clone()), "0.0.0.0 is not an identifier");
        }
    }
    let listen = read_listen(&mut section);
    let install_routes = section.boolean("install_routes");
    let resilient_hashing = tunnel::read_resilient(&mut section);
    let mesh = mesh::read(&mut section, store, node);
    let inherited = read_inherited(
        &mut section,
        named,
        &Inherited {
            import: ImportPolicy::default(),
            export: ExportPolicy::default(),
            hold_time: defaults::HOLD_TIME,
            connect_retry_time: defaults::CONNECT_RETRY_TIME,
            idle_hold_time: defaults::IDLE_HOLD_TIME,
            idle_hold_time_max: defaults::IDLE_HOLD_TIME_MAX,
            graceful_restart: Some(GracefulRestart {
                restart_time: defaults::RESTART_TIME,
                assume_forwarding: false,
            }),
            long_lived: None,
        },
    );
    let originate = originate::read(section.sections("originate"), pools);
    let sections = section.sections("peer");
    if !section.is_present() {
        // Makes the keys of a peer known.
        return Some(None);
    }
    let asn = section.required("asn", asn, "it is the autonomous system of this node");
    let mesh = mesh
        .then(|| {
            asn.as_ref()
                .map(|asn| Box::new(mesh::peer(asn.value, &inherited)))
        })
        .flatten();
    let mut neighbors = Neighbors::default();
    let context = Context {
        asn: asn.as_ref().map(|found| found.value),
        reflector: cluster_id.is_some(),
        listens: !listen.is_empty(),
        node,
        named,
        inherited,
    };
    for section in sections {
        if let Some(neighbor) = read_peer(section, &context, &neighbors) {
            neighbors.push(neighbor);
        }
    }
    section.finish();
    Some(Some(Bgp {
        asn: asn?.value,
        router_id: router_id.map(|found| found.value),
        listen,
        cluster_id: cluster_id.map(|found| found.value),
        install_routes: install_routes.is_none_or(|found| found.value),
        resilient_hashing,
        originate,
        peers: neighbors.peers,
        ranges: neighbors.ranges,
        mesh,
    }))
}

fn read_listen(section: &mut Section<'_, '_, '_>) -> Vec<SocketAddr> {
    let expected = "an address with a port, \"IP:PORT\" or \"[IP]:PORT\"";
    let Some(list) = section.list::<SocketAddr>("listen", expected) else {
        return defaults::LISTEN
            .iter()
            .map(|address| address.parse().expect("a constant"))
            .collect();
    };
    let mut listen = Vec::new();
    for (index, Found { value, span }) in list.into_iter().enumerate() {
        if listen.contains(&value) {
            section.error_at("listen", index, span, format!("{value} is named twice"));
        } else {
            listen.push(value);
        }
    }
    listen
}

/// Keys that stand in `[bgp]` and, for one peer, in `[[bgp.peer]]`.
fn read_inherited(section: &mut Section<'_, '_, '_>, named: &Named, base: &Inherited) -> Inherited {
    let import = named.choose(
        section,
        "import",
        &[
            ("pools", ImportPolicy::Pools),
            ("all", ImportPolicy::All),
            ("none", ImportPolicy::None),
        ],
        ImportPolicy::Named,
    );
    let export = named.choose(
        section,
        "export",
        &[
            ("blocks", ExportPolicy::Blocks),
            ("all", ExportPolicy::All),
            ("none", ExportPolicy::None),
        ],
        ExportPolicy::Named,
    );
    // RFC 4271 §4.2: zero or at least three seconds, and two octets of seconds.
    let hold_time = section.duration("hold_time", seconds(0)..=seconds(65_535));
    if let Some(Found { value, span }) = &hold_time
        && (value.subsec_nanos() != 0 || (1..3).contains(&value.as_secs()))
    {
        let value = humantime::format_duration(*value);
        let reason = format!(
            "\"{value}\" is out of range; \"0s\", or 3s and more in whole seconds, are allowed"
        );
        section.error("hold_time", Some(span.clone()), reason);
    }
    let connect_retry_time = section.duration("connect_retry_time", seconds(1)..=seconds(65_535));
    let idle_hold_time = section.duration("idle_hold_time", seconds(1)..=seconds(3_600));
    let most = section.duration("idle_hold_time_max", seconds(1)..=seconds(86_400));
    let idle_hold_time = idle_hold_time.map_or(base.idle_hold_time, |found| found.value);
    if let Some(Found { value, span }) = &most
        && *value < idle_hold_time
    {
        let first = humantime::format_duration(idle_hold_time);
        let reason = format!("is less than idle_hold_time, which is \"{first}\"");
        section.error("idle_hold_time_max", Some(span.clone()), reason);
    }
    let graceful_restart = restart::read_graceful(section);
    let long_lived = restart::read_long_lived(section);
    Inherited {
        import: import.unwrap_or_else(|| base.import.clone()),
        export: export.unwrap_or_else(|| base.export.clone()),
        hold_time: hold_time.map_or(base.hold_time, |found| found.value),
        connect_retry_time: connect_retry_time.map_or(base.connect_retry_time, |found| found.value),
        idle_hold_time,
        // A first wait that is longer than the default maximum is one.
        idle_hold_time_max: most
            .map_or(base.idle_hold_time_max, |found| found.value)
            .max(idle_hold_time),
        graceful_restart: graceful_restart.unwrap_or(base.graceful_restart),
        long_lived: long_lived.unwrap_or(base.long_lived),
    }
}

/// What a peer is checked against.
struct Context<'c> {
    /// `None` when it is in error.
    asn: Option<u32>,
    reflector: bool,
    listens: bool,
    node: Option<&'c Node>,
    named: &'c Named,
    inherited: Inherited,
}

fn read_peer(
    mut section: Section<'_, '_, '_>,
    context: &Context<'_>,
    earlier: &Neighbors,
) -> Option<Neighbor> {
    for key in ["interface", "bfd"] {
        section.unsupported(key);
    }
    let interface = section.value("interface").is_some();
    let is_range = section.value("range").is_some();
    let name = read_name(&mut section, earlier);
    let range = neighbor::read_range(&mut section, context.listens, earlier);
    let address = match range {
        Some((range, _)) => Some(range.addr()),
        None => read_address(&mut section, context, &earlier.peers, interface || is_range),
    };
    let place = range.map(|(range, _)| range).or(address.map(IpNet::from));
    let asn = neighbor::read_asn(&mut section, context.asn);
    let exact = asn.as_ref().map(|asn| asn.value.exact().map(|asn| asn.0));
    let internal = exact.map(|exact| exact.is_some() && exact == context.asn);

    let local_address = section.parsed::<IpAddr>("local_address", "an IP address");
    if let Some(place) = place {
        neighbor::check_local_address(&section, local_address.as_ref(), place);
    }
    let port = section.integer("port", 1..=65_535);
    let passive = section.boolean("passive");
    if let Some(Found { value: true, span }) = &passive
        && !context.listens
    {
        let reason = "a passive peer can never connect, because bgp.listen is empty";
        section.error("passive", Some(span.clone()), reason);
    }
    let client = section.boolean("route_reflector_client");
    if let Some(Found { value: true, span }) = &client {
        // RFC 4456 §6: clients are internal peers.
        if internal == Some(false) {
            let reason = "only a peer of the own autonomous system (bgp.asn) can be a client";
            section.error("route_reflector_client", Some(span.clone()), reason);
        }
        if !context.reflector {
            let reason = "needs bgp.cluster_id, which makes this node a route reflector";
            section.error("route_reflector_client", Some(span.clone()), reason);
        }
    }
    let password = read_password(&mut section);
    if let Some(place) = place {
        let wanted = section.value("password_file").is_some();
        neighbor::check_password(&mut section, place, wanted, earlier);
    }
    let (ttl_security, multihop) = read_hops(&mut section, internal);
    let families = read_families(&mut section);
    let add_path = paths::read_add_path(&mut section);
    let extended_next_hop = section.boolean("extended_next_hop");
    let role = read_role(&mut section, internal);
    let blackhole = section.boolean("blackhole");
    let limits = read_limits(&mut section);
    let paths = read_paths(&mut section, context, internal, exact.flatten());
    let own = read_inherited(&mut section, context.named, &context.inherited);
    section.finish();
    let peer = Peer {
        name: name?,
        address: address?,
        port: port.map_or(defaults::BGP_PORT, |found| {
            u16::try_from(found.value).expect("at most 65535")
        }),
        asn: asn?.value,
        local_address: local_address.map(|found| found.value),
        passive: range.is_some() || passive.is_some_and(|found| found.value),
        route_reflector_client: client.is_some_and(|found| found.value),
        password,
        ttl_security,
        multihop,
        families,
        add_path_receive: add_path.receive,
        add_path_send: add_path.send,
        extended_next_hop: extended_next_hop.map(|found| found.value),
        max_prefixes: limits.most,
        max_prefixes_warning: limits.warning,
        max_prefixes_restart: limits.restart,
        local_as: paths.local_as,
        allow_own_as: paths.allow_own_as,
        next_hop_self: paths.next_hop_self,
        remove_private_as: paths.remove_private_as,
        blackhole: blackhole.is_some_and(|found| found.value),
        import: own.import,
        export: own.export,
        hold_time: own.hold_time,
        connect_retry_time: own.connect_retry_time,
        idle_hold_time: own.idle_hold_time,
        idle_hold_time_max: own.idle_hold_time_max,
        role,
        graceful_restart: own.graceful_restart,
        long_lived: own.long_lived,
    };
    Some(match range {
        Some((range, limit)) => Neighbor::Range(Box::new(PeerRange { range, limit, peer })),
        None => Neighbor::Peer(Box::new(peer)),
    })
}

/// RFC 9234 §4.1.
fn read_role(section: &mut Section<'_, '_, '_>, internal: Option<bool>) -> Option<Role> {
    let Found { value, span } = section.string("role")?;
    let found = ROLES.iter().find(|(name, _)| *name == value);
    if found.is_none() {
        let names: Vec<_> = ROLES.iter().map(|(name, _)| *name).collect();
        let reason = format!("\"{value}\" is none of {}", names.join(", "));
        section.error("role", Some(span), reason);
    } else if internal == Some(true) {
        let reason = "only external peers have a role";
        section.error("role", Some(span), reason);
    }
    found.map(|(_, role)| *role)
}

fn read_name(section: &mut Section<'_, '_, '_>, earlier: &Neighbors) -> Option<String> {
    let name = section.string("name");
    let Found { value, span } = section.required("name", name, "every peer needs one")?;
    if !is_name(value, 63) {
        let reason = format!("\"{value}\" is not {}", name_rule(63));
        section.error("name", Some(span), reason);
    } else if earlier.has_name(value) {
        let reason = format!("another peer is named \"{value}\"; names are unique");
        section.error("name", Some(span), reason);
    }
    Some(value.to_owned())
}

fn read_address(
    section: &mut Section<'_, '_, '_>,
    context: &Context<'_>,
    earlier: &[Peer],
    elsewhere: bool,
) -> Option<IpAddr> {
    let address = section.parsed::<IpAddr>("address", "an IP address");
    let address = if elsewhere {
        address
    } else {
        section.required("address", address, "it is where the peer is reached")
    };
    let Found { value, span } = address?;
    let own = |node: &&Node| {
        node.address.map(IpAddr::from) == Some(value)
            || node.address6.map(IpAddr::from) == Some(value)
    };
    let link_local = matches!(value, IpAddr::V6(address) if address.is_unicast_link_local());
    let reason = if link_local {
        Some(format!(
            "{value} needs an interface, and a peer on an interface is not supported yet"
        ))
    } else if value.is_unspecified()
        || value.is_multicast()
        || !is_usable(value) && !value.is_loopback()
    {
        Some(format!("{value} cannot be the address of a peer"))
    } else if context.node.as_ref().is_some_and(own) {
        Some(format!("{value} is the address of this node"))
    } else {
        let other = earlier.iter().find(|peer| peer.address == value);
        other.map(|other| format!("peer \"{}\" has the address {value} too", other.name))
    };
    if let Some(reason) = reason {
        section.error("address", Some(span), reason);
    }
    Some(value)
}

/// `(ttl_security, multihop)`
fn read_hops(
    section: &mut Section<'_, '_, '_>,
    internal: Option<bool>,
) -> (Option<u8>, Option<u8>) {
    let byte = |found: &Found<u32>| u8::try_from(found.value).expect("checked by its range");
    let ttl_security = section.integer("ttl_security", 1..=254);
    let multihop = section.integer("multihop", 2..=255);
    if let Some(Found { span, .. }) = &multihop {
        if ttl_security.is_some() {
            let reason = "excludes ttl_security; ttl_security = N also allows N hops";
            section.error("multihop", Some(span.clone()), reason);
        }
        if internal == Some(true) {
            let reason = "is for external peers; internal ones may be any number of hops away";
            section.error("multihop", Some(span.clone()), reason);
        }
    }
    (ttl_security.as_ref().map(byte), multihop.as_ref().map(byte))
}

/// What `max_prefixes` and the keys around it say.
struct Limits {
    most: Option<u32>,
    warning: Option<u32>,
    restart: Option<Duration>,
}

fn read_limits(section: &mut Section<'_, '_, '_>) -> Limits {
    let most = section.integer("max_prefixes", 1..=u32::MAX);
    let percent = section.integer("max_prefixes_warning", 1..=100);
    let restart = section.duration("max_prefixes_restart", seconds(1)..=seconds(86_400));
    if most.is_none() {
        for (key, span) in [
            (
                "max_prefixes_warning",
                percent.as_ref().map(|found| &found.span),
            ),
            (
                "max_prefixes_restart",
                restart.as_ref().map(|found| &found.span),
            ),
        ] {
            if let Some(span) = span {
                section.error(key, Some(span.clone()), "needs max_prefixes");
            }
        }
    }
    let most = most.map(|found| found.value);
    let percent = percent.map_or(defaults::MAX_PREFIXES_WARNING, |found| found.value);
    Limits {
        most,
        warning: most.map(|most| {
            let share = u64::from(most) * u64::from(percent) / 100;
            u32::try_from(share).expect("not more than the whole")
        }),
        restart: restart.map(|found| found.value),
    }
}

/// How paths and next hops are treated.
struct Paths {
    local_as: Option<u32>,
    allow_own_as: u8,
    next_hop_self: bool,
    remove_private_as: bool,
}

fn read_paths(
    section: &mut Section<'_, '_, '_>,
    context: &Context<'_>,
    internal: Option<bool>,
    asn: Option<u32>,
) -> Paths {
    let local_as = section.integer("local_as", 1..=u32::MAX);
    let allow_own_as = section.integer("allow_own_as", 0..=10);
    let next_hop_self = section.boolean("next_hop_self");
    let remove_private_as = section.boolean("remove_private_as");
    if let Some(Found { value, span }) = &local_as {
        let reason = if internal == Some(true) {
            "is for external peers"
        } else if asn == Some(*value) {
            "is the number of the peer itself"
        } else if context.asn == Some(*value) {
            "is the same as bgp.asn; remove it"
        } else {
            ""
        };
        if !reason.is_empty() {
            section.error("local_as", Some(span.clone()), reason);
        }
    }
    if let Some(Found { value: true, span }) = &next_hop_self
        && internal == Some(false)
    {
        let reason = "is for internal peers; external ones always get this node as next hop";
        section.error("next_hop_self", Some(span.clone()), reason);
    }
    if let Some(Found { value: true, span }) = &remove_private_as
        && internal == Some(true)
    {
        let reason = "is for external peers";
        section.error("remove_private_as", Some(span.clone()), reason);
    }
    Paths {
        local_as: local_as.map(|found| found.value),
        allow_own_as: allow_own_as
            .map_or(0, |found| u8::try_from(found.value).expect("at most 10")),
        next_hop_self: next_hop_self.is_some_and(|found| found.value),
        remove_private_as: remove_private_as.is_some_and(|found| found.value),
    }
}

fn read_families(section: &mut Section<'_, '_, '_>) -> Vec<Family> {
    let Some(list) = section.list::<String>("families", "a string") else {
        return Family::ALL.to_vec();
    };
    if list.is_empty() {
        let allowed = super::document::words(FAMILIES.iter().map(|(word, _)| *word));
        let span = section.value("families").map(|value| value.span());
        section.error("families", span, format!("is empty; {allowed} are allowed"));
    }
    let mut families = Vec::new();
    for (index, Found { value, span }) in list.into_iter().enumerate() {
        match FAMILIES.iter().find(|(word, _)| *word == value) {
            Some((_, family)) if families.contains(family) => {
                section.error_at(
                    "families",
                    index,
                    span,
                    format!("\"{value}\" is named twice"),
                );
            }
            Some((_, family)) => families.push(*family),
            None => {
                let allowed = super::document::words(FAMILIES.iter().map(|(word, _)| *word));
                let reason = format!("\"{value}\" is unknown; {allowed} are allowed");
                section.error_at("families", index, span, reason);
            }
        }
    }
    families
}

/// A missing or empty file is an error, never "no password".
fn read_password(section: &mut Section<'_, '_, '_>) -> Option<Password> {
    let Found { value, span } = section.string("password_file")?;
    let directory = section.document.file.parent();
    let path = directory.map_or_else(|| PathBuf::from(value), |parent| parent.join(value));
    let shown = path.display();
    let reason = match std::fs::read(&path) {
        Err(error) => format!("{shown} cannot be read: {error}"),
        Ok(mut content) => {
            if content.ends_with(b"\n") {
                content.pop();
                if content.ends_with(b"\r") {
                    content.pop();
                }
            }
            match content.len() {
                0 => format!("{shown} is empty; write the password into it, or remove this key"),
                1..=PASSWORD_MAX => return Some(Password(content)),
                length => format!(
                    "{shown} holds {length} bytes; TCP MD5 keys have at most {PASSWORD_MAX}"
                ),
            }
        }
    };
    section.error("password_file", Some(span), reason);
    None
}
