//! `[[bridge]]`: what is accepted, what is refused and how, and the pools that come of it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::{Bridge, Config};

fn parse(bridge: &str) -> Result<Config, String> {
    let text = format!(
        "[node]\nname = \"a\"\naddress = \"192.168.1.1\"\n\
         [[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\n{bridge}"
    );
    Config::parse(&text, Path::new("agentd.toml")).map_err(|errors| errors.to_string())
}

fn bridges(text: &str) -> Vec<Bridge> {
    parse(text)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .bridges
}

#[test]
fn a_bridge_gets_every_default() {
    let list = bridges("[[bridge]]\nname = \"apps0\"\ncidr = \"172.30.0.0/24\"\n");
    let [bridge] = list.as_slice() else {
        panic!("{list:?}");
    };
    assert_eq!(bridge.name, "apps0");
    assert_eq!(bridge.gateway(true), Some("172.30.0.1".parse().unwrap()));
    assert_eq!(bridge.gateway(false), None);
    assert_eq!(bridge.mtu, None);
    assert!(bridge.nat_outgoing);
}

#[test]
fn pools_of_a_bridge_leave_out_what_is_no_workloads() {
    let list = bridges(
        "[[bridge]]\nname = \"b.1\"\ncidr = \"172.30.0.0/28\"\ncidr6 = \"fd00:30::/64\"\n\
         gateway = \"172.30.0.9\"\nreserved = [\"172.30.0.4/31\"]\n",
    );
    let pools: Vec<_> = list[0].pools().collect();
    assert_eq!(pools[0].name, "bridge:b.1:ipv4");
    assert_eq!(pools[0].block_size, 28);
    assert_eq!(pools[1].block_size, 122);
    let reserved = |pool: usize| -> Vec<String> {
        pools[pool]
            .reserved
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let v4 = [
        "172.30.0.4/31",
        "172.30.0.9/32",
        "172.30.0.0/32",
        "172.30.0.15/32",
    ];
    assert_eq!(reserved(0), v4);
    assert_eq!(reserved(1), ["fd00:30::1/128", "fd00:30::/128"]);
    assert_eq!(Bridge::of_pool(&pools[1].name), Some("b.1"));
    assert_eq!(Bridge::of_pool("default"), None);
}

#[test]
fn what_cannot_be_is_refused_with_the_key_and_the_reason() {
    for (text, key, reason) in [
        (
            "name = \"b\"\n",
            "bridge[0].cidr",
            "needs cidr, cidr6, or both",
        ),
        ("cidr = \"172.30.0.0/24\"\n", "bridge[0].name", "is missing"),
        (
            "name = \"agt0\"\ncidr = \"172.30.0.0/24\"\n",
            "bridge[0].name",
            "chosen by agentd",
        ),
        (
            "name = \"a/b\"\ncidr = \"172.30.0.0/24\"\n",
            "bridge[0].name",
            "1 to 15 characters",
        ),
        (
            "name = \"b\"\ncidr = \"10.244.9.0/24\"\n",
            "bridge[0].cidr",
            "overlaps pool \"p\"",
        ),
        (
            "name = \"b\"\ncidr = \"172.30.0.1/24\"\n",
            "bridge[0].cidr",
            "host bits",
        ),
        (
            "name = \"b\"\ncidr = \"172.30.0.0/31\"\n",
            "bridge[0].cidr",
            "no room",
        ),
        (
            "name = \"b\"\ncidr6 = \"172.30.0.0/24\"\n",
            "bridge[0].cidr6",
            "not of IPv6",
        ),
        (
            "name = \"b\"\ncidr = \"192.168.1.0/24\"\n",
            "node.address",
            "inside the subnet",
        ),
        (
            "name = \"b\"\ngateway = \"172.30.0.1\"\n",
            "bridge[0].gateway",
            "needs cidr",
        ),
        (
            "name = \"b\"\ncidr = \"172.30.0.0/24\"\ngateway = \"172.30.0.255\"\n",
            "bridge[0].gateway",
            "no address of a host",
        ),
        (
            "name = \"b\"\ncidr6 = \"fd00:30::/64\"\nmtu = 1000\n",
            "bridge[0].mtu",
            "1280 to 65535",
        ),
        (
            "name = \"b\"\ncidr = \"172.30.0.0/24\"\nreserved = [\"172.31.0.0/32\"]\n",
            "bridge[0].reserved[0]",
            "does not lie inside a subnet",
        ),
        (
            "name = \"b\"\ncidr = \"172.30.0.0/24\"\n[[bridge]]\nname = \"b\"\ncidr = \"172.30.0.0/25\"\n",
            "bridge[1].name",
            "names are unique",
        ),
        (
            "name = \"b\"\ncidr = \"172.30.0.0/24\"\n[[bridge]]\nname = \"c\"\ncidr = \"172.30.0.0/25\"\n",
            "bridge[1].cidr",
            "overlaps bridge \"b\"",
        ),
    ] {
        let errors = parse(&format!("[[bridge]]\n{text}")).unwrap_err();
        assert!(
            errors.contains(key) && errors.contains(reason),
            "{text}\nwanted {key}: {reason}\ngot {errors}"
        );
    }
}
