//! The sections of the file, except pools and BGP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Api, Config, Ipam, Log, LogFormat, Node, Telemetry, bgp, bridge,
    document::{Document, Found, Section},
    error::ConfigErrors,
    etcd, policy, pool, tunnel,
};
use crate::node::spec::{Invalid, Labels};

/// What a value becomes when the file does not name it. Kept in one place because
/// `deploy/config/agentd.toml` documents each.
pub(super) mod defaults {
    use std::time::Duration;

    pub(crate) const STATE_DIR: &str = "/var/lib/agentd";
    pub(crate) const SOCKET: &str = "/run/agentd/agentd.sock";
    pub(crate) const METRICS_LISTEN: &str = "127.0.0.1:9472";
    pub(crate) const LOG_LEVEL: &str = "info";
    pub(crate) const IPAM: super::Ipam = super::Ipam {
        cooldown: Duration::from_secs(130),
        claim_ahead: 75,
        release_empty_after: Duration::from_secs(600),
        release_unnamed_after: Duration::from_secs(60),
        store: crate::config::Store::Local,
        etcd: None,
    };
    pub(crate) const BLOCK_SIZE_V4: u8 = 26;
    pub(crate) const BLOCK_SIZE_V6: u8 = 122;
    pub(crate) const LISTEN: [&str; 2] = ["0.0.0.0:179", "[::]:179"];
    /// Percent of `max_prefixes`.
    pub(crate) const MAX_PREFIXES_WARNING: u32 = 80;
    pub(crate) const BGP_PORT: u16 = 179;
    pub(crate) const ETCD_PREFIX: &str = "/agentd/v1";
    pub(crate) const ETCD_LEASE: Duration = Duration::from_secs(15);
    pub(crate) const HOLD_TIME: Duration = Duration::from_secs(9);
    pub(crate) const CONNECT_RETRY_TIME: Duration = Duration::from_secs(1);
    pub(crate) const IDLE_HOLD_TIME: Duration = Duration::from_secs(1);
    pub(crate) const IDLE_HOLD_TIME_MAX: Duration = Duration::from_secs(60);
    pub(crate) const RESTART_TIME: Duration = Duration::from_secs(120);
}

/// Room for a path in `struct sockaddr_un`, less its terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// The configuration or its errors, and the name of every key there is.
pub(super) fn parse(text: &str, file: &Path) -> (Result<Config, ConfigErrors>, BTreeSet<String>) {
    let document = Document::new(file, text);
    let table = document.parse();
    let config = if document.is_clean() {
        read(Section::root(&document, &table))
    } else {
        // What stands after a syntax error is guesswork: complaining about it would confuse.
        None
    };
    let (errors, known) = document.finish();
    let result = match (config, errors) {
        (_, Some(errors)) => Err(errors),
        (Some(config), None) => Ok(config),
        (None, None) => unreachable!("a part that cannot be read is reported"),
    };
    (result, known)
}

fn read(mut root: Section<'_, '_, '_>) -> Option<Config> {
    let node = read_node(root.section("node"));
    let api = read_api(root.section("api"));
    let labels = node.as_ref().map(|node| &node.labels);
    let mut pools = pool::read(root.sections("pool"), labels);
    let tunnel = tunnel::read(root.section("tunnel"));
    let ipam = read_ipam(root.section("ipam"), &mut pools);
    let bridges = bridge::read(root.sections("bridge"), &pools);
    let named = policy::read(root.sections("policy"), &pools);
    let bgp = bgp::read(
        root.section("bgp"),
        node.as_ref(),
        &pools,
        &named,
        ipam.store,
    );
    let telemetry = read_telemetry(root.section("telemetry"));
    let log = read_log(root.section("log"));
    if let Some(node) = &node {
        pool::check_node(&root, node, &pools);
        bridge::check_node(&root, node, &bridges);
    }
    let file = root.document.file.to_owned();
    root.finish();
    Some(Config {
        file,
        node: node?,
        api,
        pools: pools.into_iter().map(|pool| pool.value).collect(),
        bridges,
        tunnel,
        ipam,
        bgp: bgp?,
        policies: named.into_policies(),
        telemetry,
        log,
    })
}

fn read_node(mut section: Section<'_, '_, '_>) -> Option<Node> {
    let name = match section.string("name") {
        Some(Found { value, span }) => {
            if is_name(value, 253) {
                Some(value.to_owned())
            } else {
                let reason = format!("\"{value}\" is not {}", name_rule(253));
                section.error("name", Some(span), reason);
                None
            }
        }
        None => match std::fs::read_to_string("/proc/sys/kernel/hostname") {
            Ok(name) if is_name(name.trim_end(), 253) => Some(name.trim_end().to_owned()),
            _ => {
                let reason = "is missing, and the host name cannot serve as its default; set it";
                section.error("name", None, reason);
                None
            }
        },
    };
    let address = section.parsed("address", "an IPv4 address");
    let address6 = section.parsed("address6", "an IPv6 address");
    for (key, found) in [
        ("address", address.clone().map(into_ip)),
        ("address6", address6.clone().map(into_ip)),
    ] {
        if let Some(Found { value, span }) = found
            && !is_usable(value)
        {
            let reason = format!("{value} cannot be the address of a node");
            section.error(key, Some(span), reason);
        }
    }
    let state_dir = section.absolute_path("state_dir");
    let labels = read_labels(&mut section);
    section.finish();
    Some(Node {
        labels,
        name: name?,
        address: address.map(|found| found.value),
        address6: address6.map(|found| found.value),
        state_dir: state_dir.map_or_else(|| defaults::STATE_DIR.into(), |found| found.value),
    })
}

/// The rules are those of workloads.
fn read_labels(section: &mut Section<'_, '_, '_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, Found { value, span }) in section.strings("labels").unwrap_or_default() {
        let one = BTreeMap::from([(key.clone(), value.clone())]);
        if let Err(Invalid(reason)) = Labels::new(one) {
            section.error(&format!("labels.{key}"), Some(span), reason);
        }
        labels.insert(key, value);
    }
    labels
}

fn into_ip<A: Into<IpAddr>>(found: Found<A>) -> Found<IpAddr> {
    Found {
        value: found.value.into(),
        span: found.span,
    }
}

/// A unicast address another host can send to.
pub(super) fn is_usable(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !broadcast
}

/// Whether `name` consists of 1 to `longest` characters of `[A-Za-z0-9._-]`.
pub(super) fn is_name(name: &str, longest: usize) -> bool {
    (1..=longest).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

pub(super) fn name_rule(longest: usize) -> String {
    format!("a name of 1 to {longest} letters, digits, dots, dashes and underscores")
}

fn read_api(mut section: Section<'_, '_, '_>) -> Api {
    let socket = section.absolute_path("socket");
    if let Some(Found { value, span }) = &socket
        && value.as_os_str().len() > SOCKET_PATH_MAX
    {
        let length = value.as_os_str().len();
        let reason =
            format!("the path has {length} bytes; socket paths take at most {SOCKET_PATH_MAX}");
        section.error("socket", Some(span.clone()), reason);
    }
    section.unsupported("listen");
    section.unsupported("tls");
    section.finish();
    Api {
        socket: socket.map_or_else(|| PathBuf::from(defaults::SOCKET), |found| found.value),
    }
}

fn read_ipam(mut section: Section<'_, '_, '_>, pools: &mut [Found<super::Pool>]) -> Ipam {
    let (store, etcd) = etcd::read_store(&mut section);
    pool::read_claims(&mut section, pools);
    // Never zero: while a release is on its way to the disk, its address must not be taken.
    let cooldown = section.duration("cooldown", seconds(1)..=seconds(86_400));
    let claim_ahead = section.integer("claim_ahead", 1..=100);
    let release_empty_after =
        section.duration("release_empty_after", seconds(1)..=seconds(31_536_000));
    let release_unnamed_after =
        section.duration("release_unnamed_after", seconds(1)..=seconds(86_400));
    section.finish();
    let default = defaults::IPAM;
    let percent = |found: Found<u32>| u8::try_from(found.value).expect("at most 100");
    Ipam {
        cooldown: cooldown.map_or(default.cooldown, |found| found.value),
        claim_ahead: claim_ahead.map_or(default.claim_ahead, percent),
        release_empty_after: release_empty_after
            .map_or(default.release_empty_after, |found| found.value),
        release_unnamed_after: release_unnamed_after
            .map_or(default.release_unnamed_after, |found| found.value),
        store,
        etcd,
    }
}

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn read_telemetry(mut section: Section<'_, '_, '_>) -> Telemetry {
    let default: SocketAddr = defaults::METRICS_LISTEN.parse().expect("a constant");
    let metrics_listen = match section.string("metrics_listen") {
        None => Some(default),
        Some(Found { value: "off", .. }) => None,
        Some(Found { value, span }) => {
            let parsed = value.parse().ok();
            if parsed.is_none() {
                let reason =
                    format!("\"{value}\" is not an address with a port, \"IP:PORT\", nor \"off\"");
                section.error("metrics_listen", Some(span), reason);
            }
            parsed
        }
    };
    section.finish();
    Telemetry { metrics_listen }
}

fn read_log(mut section: Section<'_, '_, '_>) -> Log {
    let format = section.choice(
        "format",
        &[
            ("auto", LogFormat::Auto),
            ("json", LogFormat::Json),
            ("text", LogFormat::Text),
            ("journald", LogFormat::Journald),
        ],
    );
    let level = section.string("level");
    if let Some(Found { value, span }) = &level
        && !value.split(',').all(is_log_directive)
    {
        let reason = format!(
            "\"{value}\" is not a log level; error, warn, info, debug, trace and off are allowed, \
             or a list such as \"info,bgp=debug\""
        );
        section.error("level", Some(span.clone()), reason);
    }
    section.finish();
    Log {
        format: format.map_or(LogFormat::default(), |found| found.value),
        level: level
            .map_or(defaults::LOG_LEVEL, |found| found.value)
            .to_owned(),
    }
}

/// `LEVEL` or `TARGET=LEVEL`
fn is_log_directive(directive: &str) -> bool {
    let level = match directive.split_once('=') {
        Some((target, level)) if !target.trim().is_empty() => level,
        Some(_) => return false,
        None => directive,
    };
    let level = level.trim().to_ascii_lowercase();
    ["error", "warn", "info", "debug", "trace", "off"].contains(&level.as_str())
}
