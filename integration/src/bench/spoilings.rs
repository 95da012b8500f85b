//! Every way to delete or alter what the agent keeps in the kernel, for [`repair`](super::repair).
//!
//! The first of two nodes has a workload of each kind with a link, routes to the other node directly
//! and through VXLAN of both families, and a published port.

use std::path::PathBuf;

use agentd_proto::v1::{self, Attachment};
use anyhow::{Context as _, Result, ensure};

use super::repair::{Look, PATIENCE, Spoiling};
use crate::lab::Lab;
use crate::lab::config::Pool;
use crate::lab::netns::Netns;
use crate::lab::two_nodes::TwoNodes;
use crate::lab::workload::{Workload, request};

const GUEST: &str = "02:00:00:00:00:07";

pub struct Scene {
    pub nodes: TwoNodes,
    pub spoilings: Vec<Spoiling>,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").finish_non_exhaustive()
    }
}

/// The block of an address, as the node with 26 and 122 bits makes them.
fn block(workload: &Workload, v6: bool) -> Result<String> {
    let of = workload
        .answer
        .addresses
        .iter()
        .find(|address| address.address.contains(':') == v6)
        .context("an address of the family")?;
    Ok(of.block.clone())
}

/// Two nodes with a further pool of each family, which is reached by VXLAN, and a bridge.
fn start(lab: &Lab) -> Result<TwoNodes> {
    let mut nodes = TwoNodes::prepare(lab)?;
    for (number, agent) in [(1, &mut nodes.a), (2, &mut nodes.b)] {
        let config = agent.config_mut();
        for (name, cidr, size) in [("far", "10.245.0.0/16", 26), ("far6", "fd10:245::/64", 122)] {
            let mut pool = Pool::new(name, cidr, size);
            pool.extra = "encapsulation = \"vxlan\"".to_owned();
            config.pools.push(pool);
        }
        config.claim.push(format!("10.245.{number}.0/24"));
        config.claim.push(format!("fd10:245::{number}:0/112"));
        config.extra = "[[bridge]]\nname = \"apps0\"\ncidr = \"172.30.0.0/24\"\n\
                        cidr6 = \"fd00:172:30::/64\"\n"
            .to_owned();
    }
    nodes.a.start()?;
    nodes.b.start()?;
    nodes.wait_converged()?;
    Ok(nodes)
}

/// The word after another one, in the first line with all of these words.
fn word_of(text: &str, with: &[&str], after: Option<&str>) -> Result<String> {
    let line = text
        .lines()
        .find(|line| with.iter().all(|word| line.contains(word)))
        .with_context(|| format!("no line with {with:?} in:\n{text}"))?;
    let mut words = line.split_whitespace();
    let word = match after {
        None => words.next(),
        Some(after) => words.skip_while(|word| *word != after).nth(1),
    };
    Ok(word.with_context(|| line.to_owned())?.to_owned())
}

/// Collects spoilings of one kind of object after the other.
struct List(Vec<Spoiling>);

impl List {
    fn of<'a>(
        &'a mut self,
        object: &'static str,
        kind: &'static str,
        namespace: &'a Netns,
        look: Look,
        said: impl Into<String>,
    ) -> Of<'a> {
        Of {
            list: self,
            object,
            kind,
            namespace,
            look,
            said: said.into(),
        }
    }
}

struct Of<'a> {
    list: &'a mut List,
    object: &'static str,
    kind: &'static str,
    namespace: &'a Netns,
    look: Look,
    said: String,
}

impl Of<'_> {
    fn by(self, how: &'static str, command: impl Into<String>) -> Self {
        self.list.0.push(Spoiling {
            object: self.object,
            how,
            namespace: self.namespace.clone(),
            look: self.look.clone(),
            command: command.into(),
            kind: self.kind,
            said: self.said.clone(),
        });
        self
    }
}

pub fn scene(lab: &Lab) -> Result<Scene> {
    let nodes = start(lab)?;
    let local = nodes.a.workload("a1")?;
    let remote = nodes.b.workload("b1")?;
    let node = nodes.a.namespace().clone();
    let app = lab.namespace("app")?;
    let bridged = v1::AddWorkloadRequest {
        attachment: Attachment::Bridged.into(),
        bridge: "apps0".to_owned(),
        ..request("app", &app)
    };
    let bridged = nodes.a.client().add(bridged)?.workload.context("bridged")?;
    let tap = v1::AddWorkloadRequest {
        id: "vm".to_owned(),
        attachment: Attachment::Tap.into(),
        mac: GUEST.to_owned(),
        tap: Some(v1::TapOptions {
            name: "vm0".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let tap = nodes.a.client().add(tap)?.workload.context("tap")?;
    let alone = lab.namespace("alone")?;
    let none = v1::AddWorkloadRequest {
        attachment: Attachment::None.into(),
        ..request("alone", &alone)
    };
    nodes.a.client().add(none)?;
    let (learned4, learned6) = (block(&remote, false)?, block(&remote, true)?);
    let device = |name: &str| node.show(&format!("bridge fdb show dev {name}"));
    lab.wait_for("the learned routes and entries", PATIENCE, || {
        let routes = node.show("ip route")? + &node.show("ip -6 route")?;
        for text in [&learned4, &learned6, "10.245.2.0/26", "fd10:245::2:0/122"] {
            ensure!(routes.contains(text), "no {text} in {routes}");
        }
        for name in ["agentd.vxlan", "agentd.vxlan6"] {
            ensure!(device(name)?.contains("dst"), "{name}");
        }
        Ok(())
    })?;

    let mut list = List(Vec::new());
    routes(&mut list, &node, &local, (&learned4, &learned6))?;
    links(&mut list, &node, &local, &bridged, &tap)?;
    inside(&mut list, &local, &app, &bridged, &alone)?;
    sysctls(&mut list, &node, &local, &app);
    tunnels(&mut list, &node)?;
    tables(&mut list, &node);
    Ok(Scene {
        nodes,
        spoilings: list.0,
    })
}

fn routes(
    list: &mut List,
    node: &Netns,
    local: &Workload,
    (learned4, learned6): (&str, &str),
) -> Result<()> {
    let (v4, v6) = (local.ipv4()?.to_string(), local.ipv6()?.to_string());
    let (own4, own6) = (block(local, false)?, block(local, true)?);
    let (via4, via6) = ("via 192.168.26.1 dev eth0", "via fd00:26::1 dev eth0");
    for (object, kind, family, prefix, wrong) in [
        ("workload route, IPv4", "route", "-4", v4.as_str(), via4),
        ("workload route, IPv6", "route", "-6", &v6, via6),
        ("blackhole, IPv4", "blackhole", "-4", &own4, via4),
        ("blackhole, IPv6", "blackhole", "-6", &own6, via6),
        ("learned route, IPv4", "learned-route", "-4", learned4, via4),
        ("learned route, IPv6", "learned-route", "-6", learned6, via6),
        (
            "tunnelled route, IPv4",
            "learned-route",
            "-4",
            "10.245.2.0/26",
            via4,
        ),
        (
            "tunnelled route, IPv6",
            "learned-route",
            "-6",
            "fd10:245::2:0/122",
            via6,
        ),
    ] {
        let (kind_word, protocol) = match kind {
            "blackhole" => ("blackhole ", 70),
            "route" => ("", 70),
            _ => ("", 71),
        };
        let of = list
            .of(object, kind, node, Look::Routes, format!("route {prefix}"))
            .by(
                "deleted",
                format!("ip {family} route delete {kind_word}{prefix}"),
            );
        // A route that replaces another of IPv6 must be of the same kind.
        if family == "-4" || kind_word.is_empty() {
            let replace = format!("ip {family} route replace {prefix} {wrong} proto {protocol}");
            of.by("replaced", replace);
        }
    }
    let objects = node.show("ip nexthop")?;
    for (object, device) in [
        ("nexthop object", "eth0"),
        ("nexthop object of a tunnel", "agentd.vxlan"),
        ("nexthop object of a tunnel, IPv6", "agentd.vxlan6"),
    ] {
        let id = word_of(&objects, &[&format!("dev {device} ")], Some("id"))?;
        let via = if device == "agentd.vxlan6" {
            via6
        } else {
            via4
        };
        list.of(
            object,
            "nexthop",
            node,
            Look::Nexthops,
            format!("nexthop object {id}"),
        )
        .by("deleted", format!("ip nexthop delete id {id}"))
        .by(
            "replaced",
            format!("ip nexthop replace id {id} {via} proto 71"),
        );
    }
    Ok(())
}

fn links(
    list: &mut List,
    node: &Netns,
    local: &Workload,
    bridged: &v1::Workload,
    tap: &v1::Workload,
) -> Result<()> {
    let link = local.answer.host_interface.as_str();
    let port = bridged.host_interface.as_str();
    for (object, kind, name, prefix) in [
        ("host link", "link", link, "agt"),
        ("port of a bridge", "link", port, "agt"),
        ("tap device", "link", "vm0", "vm0"),
        ("bridge", "bridge", "apps0", "apps0"),
    ] {
        let mut of = list
            .of(object, kind, node, Look::Links(prefix), "link (")
            .by("set down", format!("ip link set {name} down"))
            .by("MTU altered", format!("ip link set {name} mtu 1280"))
            .by(
                "MAC altered",
                format!("ip link set {name} address 02:00:00:00:00:01"),
            )
            .by("alias altered", format!("ip link set {name} alias other"))
            .by("deleted", format!("ip link delete {name}"));
        if name == port {
            of = of.by(
                "taken off the bridge",
                format!("ip link set {name} nomaster"),
            );
        }
        let _ = of;
    }
    for (object, device, address) in [
        ("address of a tap device", "vm0", "169.254.1.1/32"),
        ("address of a bridge, IPv4", "apps0", "172.30.0.1/24"),
        ("address of a bridge, IPv6", "apps0", "fd00:172:30::1/64"),
    ] {
        list.of(
            object,
            "address",
            node,
            Look::Addresses,
            format!("address {address}"),
        )
        .by(
            "deleted",
            format!("ip address delete {address} dev {device}"),
        );
    }
    let guest = tap.addresses.first().context("an address")?.address.clone();
    for (object, device, address) in [
        ("host neighbour, IPv4", link, local.ipv4()?.to_string()),
        ("host neighbour, IPv6", link, local.ipv6()?.to_string()),
        ("neighbour of a tap device", "vm0", guest),
    ] {
        neighbour(list, object, node, device, &address);
    }
    Ok(())
}

fn neighbour(list: &mut List, object: &'static str, place: &Netns, device: &str, address: &str) {
    const OTHER: &str = "lladdr 02:00:00:00:00:02";
    let said = format!("neighbour {address}");
    list.of(object, "neighbour", place, Look::PermanentNeighbours, said)
        .by(
            "deleted",
            format!("ip neighbour delete {address} dev {device}"),
        )
        .by(
            "altered",
            format!("ip neighbour replace {address} {OTHER} nud permanent dev {device}"),
        )
        .by(
            "not permanent any more",
            format!("ip neighbour replace {address} {OTHER} nud reachable dev {device}"),
        );
}

fn inside(
    list: &mut List,
    local: &Workload,
    app: &Netns,
    bridged: &v1::Workload,
    alone: &Netns,
) -> Result<()> {
    let pod = &local.namespace;
    for (object, place) in [("workload link", pod), ("bridged workload link", app)] {
        list.of(object, "link", place, Look::Links("eth0"), "link inside (")
            .by("set down", "ip link set eth0 down")
            .by("MTU altered", "ip link set eth0 mtu 1280");
    }
    for (object, place, interface) in [
        ("loopback", pod, "link"),
        ("loopback of a workload without a link", alone, "link"),
    ] {
        list.of(object, interface, place, Look::Links("lo"), "lo inside")
            .by("set down", "ip link set lo down");
    }
    let subnet = |address: &v1::WorkloadAddress| match address.address.contains(':') {
        true => format!("{}/64", address.address),
        false => format!("{}/24", address.address),
    };
    let mut addresses = vec![
        (
            "workload address, IPv4",
            pod,
            format!("{}/32", local.ipv4()?),
        ),
        (
            "workload address, IPv6",
            pod,
            format!("{}/128", local.ipv6()?),
        ),
    ];
    for address in &bridged.addresses {
        let object = match address.address.contains(':') {
            true => "bridged workload address, IPv6",
            false => "bridged workload address, IPv4",
        };
        addresses.push((object, app, subnet(address)));
    }
    for (object, place, address) in addresses {
        list.of(
            object,
            "address",
            place,
            Look::Addresses,
            format!("address {address} inside"),
        )
        .by("deleted", format!("ip address delete {address} dev eth0"));
    }
    for (object, place, family, said) in [
        (
            "workload default route, IPv4",
            pod,
            "-4",
            "route 0.0.0.0/0 inside",
        ),
        (
            "workload default route, IPv6",
            pod,
            "-6",
            "route ::/0 inside",
        ),
        (
            "bridged workload default route, IPv4",
            app,
            "-4",
            "route 0.0.0.0/0 inside",
        ),
        (
            "bridged workload default route, IPv6",
            app,
            "-6",
            "route ::/0 inside",
        ),
    ] {
        list.of(object, "route", place, Look::Routes, said)
            .by("deleted", format!("ip {family} route delete default"));
    }
    list.of(
        "workload gateway route",
        "route",
        pod,
        Look::Routes,
        "route 169.254.1.1/32 inside",
    )
    .by("deleted", "ip route delete 169.254.1.1");
    for (object, gateway) in [
        ("workload neighbour, IPv4", "169.254.1.1"),
        ("workload neighbour, IPv6", "fe80::ecee:eeff:feee:eeee"),
    ] {
        neighbour(list, object, pod, "eth0", gateway);
    }
    Ok(())
}

/// First those of which the kernel tells by RTM_NEWNETCONF, then others.
fn sysctls(list: &mut List, node: &Netns, local: &Workload, app: &Netns) {
    let link = &local.answer.host_interface;
    for (object, name) in [
        (
            "sysctl, IPv4 forwarding",
            format!("net/ipv4/conf/{link}/forwarding"),
        ),
        (
            "sysctl, rp_filter",
            format!("net/ipv4/conf/{link}/rp_filter"),
        ),
        (
            "sysctl, proxy_arp",
            format!("net/ipv4/conf/{link}/proxy_arp"),
        ),
        (
            "sysctl, IPv6 forwarding",
            format!("net/ipv6/conf/{link}/forwarding"),
        ),
        (
            "sysctl, proxy_ndp",
            format!("net/ipv6/conf/{link}/proxy_ndp"),
        ),
        (
            "sysctl of a bridge",
            "net/ipv4/conf/apps0/rp_filter".to_owned(),
        ),
        (
            "sysctl of a tunnel",
            "net/ipv4/conf/agentd.vxlan/rp_filter".to_owned(),
        ),
        ("ip_forward", "net/ipv4/ip_forward".to_owned()),
        (
            "IPv6 forwarding of all",
            "net/ipv6/conf/all/forwarding".to_owned(),
        ),
    ] {
        sysctl(list, object, node, &name, "0");
    }
    for (object, key, value) in [
        ("sysctl, accept_ra", "ipv6/conf/IF/accept_ra", "2"),
        ("sysctl, accept_dad", "ipv6/conf/IF/accept_dad", "1"),
        ("sysctl, disable_ipv6", "ipv6/conf/IF/disable_ipv6", "1"),
        ("sysctl, route_localnet", "ipv4/conf/IF/route_localnet", "1"),
        ("sysctl, proxy_delay", "ipv4/neigh/IF/proxy_delay", "80"),
    ] {
        let name = format!("net/{}", key.replace("IF", link));
        sysctl(list, object, node, &name, value);
    }
    for (object, place, name, value) in [
        (
            "sysctl of a bridge, accept_ra",
            node,
            "net/ipv6/conf/apps0/accept_ra",
            "2",
        ),
        (
            "sysctl of a tunnel, accept_ra",
            node,
            "net/ipv6/conf/agentd.vxlan/accept_ra",
            "2",
        ),
        (
            "sysctl of a bridged workload, accept_dad",
            app,
            "net/ipv6/conf/eth0/accept_dad",
            "1",
        ),
        (
            "sysctl of a bridged workload, accept_ra",
            app,
            "net/ipv6/conf/eth0/accept_ra",
            "1",
        ),
    ] {
        sysctl(list, object, place, name, value);
    }
}

fn sysctl(list: &mut List, object: &'static str, place: &Netns, name: &str, value: &str) {
    let path = PathBuf::from("/proc/sys").join(name);
    let said = format!("sysctl {name}");
    list.of(object, "sysctl", place, Look::File(path), said)
        .by("altered", format!("sysctl -qw {name}={value}"));
}

fn of_tables<'a>(list: &'a mut List, object: &'static str, node: &'a Netns) -> Of<'a> {
    let said = "nftables changed by others";
    list.of(object, "nftables", node, Look::Tables, said)
}

fn tables(list: &mut List, node: &Netns) {
    of_tables(list, "nftables table", node)
        .by("deleted", "nft delete table inet agentd")
        .by("all tables flushed", "nft flush ruleset")
        .by("rules flushed", "nft flush table inet agentd")
        .by(
            "switched off",
            "nft add table inet agentd { flags dormant; }",
        );
    of_tables(list, "nftables table of bridges", node)
        .by("deleted", "nft delete table bridge agentd")
        .by("rules flushed", "nft flush table bridge agentd");
    of_tables(list, "nftables chain", node)
        .by("flushed", "nft flush chain inet agentd source")
        .by("deleted", "nft delete chain inet agentd postrouting")
        .by(
            "policy altered",
            "nft add chain inet agentd postrouting \
             { type nat hook postrouting priority 100; policy drop; }",
        )
        .by("added", "nft add chain inet agentd other")
        .by("rule inserted", "nft insert rule inet agentd source accept")
        .by("rule added", "nft add rule inet agentd hairpin accept");
    of_tables(list, "nftables set", node)
        .by("flushed", "nft flush set inet agentd inside4")
        .by("added", "nft add set inet agentd other { type mark; }")
        .by(
            "element added",
            "nft add element inet agentd inside4 { 192.0.2.0/24 }",
        )
        .by(
            "element deleted",
            "nft delete element inet agentd bridged4 { 172.30.0.0/24 }",
        )
        .by(
            "map's element added",
            "nft add element inet agentd any-ports4 { tcp . 7 : 192.0.2.1 . 7 }",
        );
    of_tables(list, "nftables set of bridges", node)
        .by("flushed", "nft flush set bridge agentd member-mac");
}

fn tunnels(list: &mut List, node: &Netns) -> Result<()> {
    for (device, objects, other) in [
        (
            "agentd.vxlan",
            [
                "tunnel device, IPv4",
                "address of a tunnel, IPv4",
                "forwarding entry, IPv4",
                "tunnel neighbour, IPv4",
            ],
            "192.168.26.99",
        ),
        (
            "agentd.vxlan6",
            [
                "tunnel device, IPv6",
                "address of a tunnel, IPv6",
                "forwarding entry, IPv6",
                "tunnel neighbour, IPv6",
            ],
            "fd00:26::99",
        ),
    ] {
        let [link, address, entry, neighbour_of] = objects;
        list.of(link, "tunnel", node, Look::Links("agentd."), device)
            .by("set down", format!("ip link set {device} down"))
            .by("MTU altered", format!("ip link set {device} mtu 1280"))
            .by(
                "MAC altered",
                format!("ip link set {device} address 02:00:00:00:00:01"),
            )
            .by("deleted", format!("ip link delete {device}"));
        let own = match device {
            "agentd.vxlan" => "192.168.26.11/32",
            _ => "fd00:26::11/128",
        };
        list.of(
            address,
            "address",
            node,
            Look::Addresses,
            format!("address {own} of {device}"),
        )
        .by("deleted", format!("ip address delete {own} dev {device}"));
        let entries = node.show(&format!("bridge fdb show dev {device}"))?;
        let mac = word_of(&entries, &["dst"], None)?;
        let remote = word_of(&entries, &["dst"], Some("dst"))?;
        list.of(
            entry,
            "fdb",
            node,
            Look::Forwarding,
            format!("entry for {remote}"),
        )
        .by(
            "deleted",
            format!("bridge fdb delete {mac} dev {device} dst {remote}"),
        )
        .by(
            "altered",
            format!("bridge fdb replace {mac} dev {device} dst {other} self permanent"),
        );
        let neighbours = node.show(&format!("ip neighbour show dev {device}"))?;
        let gateway = word_of(&neighbours, &["PERMANENT"], None)?;
        neighbour(list, neighbour_of, node, device, &gateway);
    }
    Ok(())
}
