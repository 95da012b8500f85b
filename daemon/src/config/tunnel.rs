//! How pools are reached on other nodes: keys of `[[pool]]`, the section `[tunnel]`, and resilient
//! hashing over equal-cost next hops.

use dataplane::{
    desired::{Encapsulation, Scope},
    kernel::Resilient,
};
use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    Tunnel,
    document::{Found, Section},
    sections::seconds,
};

/// VXLAN network identifier that no other VXLAN of the network should have.
const VNI: u32 = 4096;
/// RFC 7348 §5.
const PORT: u32 = 4789;
const BUCKETS: u32 = 128;

pub(super) fn read(mut section: Section<'_, '_, '_>) -> Tunnel {
    let vni = section.integer("vni", 1..=0xff_ffff);
    let port = section.integer("port", 1..=65_535);
    let mut accept = Vec::new();
    let words = section.list::<String>("accept", "a string");
    for (index, Found { value, span }) in words.into_iter().flatten().enumerate() {
        match value.as_str() {
            "ipip" => accept.push(Encapsulation::Ipip),
            "vxlan" => accept.push(Encapsulation::Vxlan),
            _ => {
                let reason = format!("\"{value}\" is unknown; \"ipip\" and \"vxlan\" are allowed");
                section.error_at("accept", index, span, reason);
            }
        }
    }
    accept.sort_unstable();
    accept.dedup();
    section.finish();
    let port = port.map_or(PORT, |found| found.value);
    Tunnel {
        vni: vni.map_or(VNI, |found| found.value),
        port: u16::try_from(port).expect("at most 65535"),
        accept,
    }
}

/// `encapsulation` and `encapsulation_scope` of a pool.
pub(super) fn read_pool(
    section: &mut Section<'_, '_, '_>,
    cidr: Option<IpNet>,
) -> (Encapsulation, Scope) {
    let encapsulation = section.choice(
        "encapsulation",
        &[
            ("none", Encapsulation::None),
            ("ipip", Encapsulation::Ipip),
            ("vxlan", Encapsulation::Vxlan),
        ],
    );
    let scope = section.choice(
        "encapsulation_scope",
        &[
            ("always", Scope::Always),
            ("cross-subnet", Scope::CrossSubnet),
        ],
    );
    if let (
        Some(Found {
            value: Encapsulation::Ipip,
            span,
        }),
        Some(IpNet::V6(_)),
    ) = (&encapsulation, cidr)
    {
        let reason = "\"ipip\" carries IPv4 only; IPv6 pools take \"none\" or \"vxlan\"";
        section.error("encapsulation", Some(span.clone()), reason);
    }
    (
        encapsulation.map_or_else(Encapsulation::default, |found| found.value),
        scope.map_or_else(Scope::default, |found| found.value),
    )
}

/// `resilient_hashing`: `false`, or a table.
pub(super) fn read_resilient(section: &mut Section<'_, '_, '_>) -> Option<Resilient> {
    let value = section.value("resilient_hashing")?;
    if let DeValue::Boolean(wanted) = value.get_ref() {
        if *wanted {
            let reason = "true is not allowed; write false, or a table such as { buckets = 128 }";
            section.error("resilient_hashing", Some(value.span()), reason);
        }
        return None;
    }
    let mut table = section.section("resilient_hashing");
    let buckets = table.integer("buckets", 1..=65_535);
    let idle_timer = table.duration("idle_timer", seconds(0)..=seconds(86_400));
    let unbalanced_timer = table.duration("unbalanced_timer", seconds(0)..=seconds(86_400));
    table.finish();
    let buckets = buckets.map_or(BUCKETS, |found| found.value);
    Some(Resilient {
        buckets: u16::try_from(buckets).expect("at most 65535"),
        idle_timer: idle_timer.map_or(seconds(120), |found| found.value),
        unbalanced_timer: unbalanced_timer.map_or(seconds(0), |found| found.value),
    })
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use dataplane::{
        desired::{Encapsulation, Scope},
        kernel::Resilient,
    };

    use crate::config::{Config, ConfigErrors};

    fn parse(pool: &str, rest: &str) -> Result<Config, ConfigErrors> {
        let text = format!(
            "[node]\nname = \"a\"\naddress = \"192.0.2.1\"\n[[pool]]\nname = \"p\"\n{pool}\n{rest}"
        );
        Config::parse(&text, Path::new("agentd.toml"))
    }

    fn check(pool: &str, rest: &str, error: &str) {
        let errors = parse(pool, rest).expect_err("an error").to_string();
        assert!(errors.contains(error), "{errors}");
    }

    #[test]
    fn pools_tunnels_and_resilient_hashing_are_read_with_their_defaults() {
        let cidr = "cidr = \"10.0.0.0/16\"";
        let plain = parse(cidr, "[bgp]\nasn = 1\n").expect("valid");
        assert_eq!(plain.pools[0].encapsulation, Encapsulation::None);
        assert_eq!((plain.tunnel.vni, plain.tunnel.port), (4096, 4789));
        assert_eq!(plain.bgp.expect("bgp").resilient_hashing, None);
        let pool =
            format!("{cidr}\nencapsulation = \"vxlan\"\nencapsulation_scope = \"cross-subnet\"");
        let rest = "[tunnel]\nvni = 7\nport = 8472\naccept = [\"vxlan\", \"ipip\"]\n\
                    [bgp]\nasn = 1\nresilient_hashing = { idle_timer = \"30s\" }\n";
        let config = parse(&pool, rest).expect("valid");
        let pool = &config.pools[0];
        let mode = (pool.encapsulation, pool.encapsulation_scope);
        assert_eq!(mode, (Encapsulation::Vxlan, Scope::CrossSubnet));
        assert_eq!((config.tunnel.vni, config.tunnel.port), (7, 8472));
        let accept = [Encapsulation::Ipip, Encapsulation::Vxlan];
        assert_eq!(config.tunnel.accept, accept);
        let resilient = Resilient {
            buckets: 128,
            idle_timer: Duration::from_secs(30),
            unbalanced_timer: Duration::ZERO,
        };
        let bgp = config.bgp.expect("bgp");
        assert_eq!(bgp.resilient_hashing, Some(resilient));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        check(
            "cidr = \"fd00:9::/64\"\nencapsulation = \"ipip\"",
            "",
            "agentd.toml:7: pool[0].encapsulation: \"ipip\" carries IPv4 only",
        );
        let cidr = "cidr = \"10.0.0.0/16\"";
        check(cidr, "[tunnel]\nvni = 0\n", "tunnel.vni: 0 is out of range");
        check(
            cidr,
            "[tunnel]\naccept = [\"gre\"]\n",
            "tunnel.accept[0]: \"gre\" is unknown",
        );
        check(
            cidr,
            "[bgp]\nasn = 1\nresilient_hashing = true\n",
            "bgp.resilient_hashing: true is not allowed",
        );
    }
}
