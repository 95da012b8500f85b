//! `[[bgp.originate]]`: prefixes that are announced beside the blocks of this node.

use bgp::{attributes::Origin, rib::LocalRoute};
use ipnet::IpNet;

use super::{
    Pool,
    document::{Found, Section},
    policy::{community, large_community, read_net},
};

pub(super) fn read(
    sections: Vec<Section<'_, '_, '_>>,
    pools: &[Found<Pool>],
) -> Vec<(IpNet, LocalRoute)> {
    let mut originate: Vec<(IpNet, LocalRoute)> = Vec::new();
    for mut section in sections {
        let prefix = section.string("prefix");
        let prefix = section.required("prefix", prefix, "it is what is announced");
        let origin = section.choice(
            "origin",
            &[
                ("igp", Origin::Igp),
                ("egp", Origin::Egp),
                ("incomplete", Origin::Incomplete),
            ],
        );
        let med = section.integer("med", 0..=u32::MAX);
        let route = LocalRoute {
            origin: origin.map_or(Origin::Igp, |found| found.value),
            med: med.map(|found| found.value),
            communities: section
                .list_with("communities", community)
                .unwrap_or_default(),
            large_communities: section
                .list_with("large_communities", large_community)
                .unwrap_or_default(),
            // The blocks of other nodes may lie inside.
            owns_inside: false,
            local_pref: None,
        };
        if let Some(Found { value, span }) = prefix {
            match check(value, pools, &originate) {
                Ok(prefix) => originate.push((prefix, route)),
                Err(reason) => section.error("prefix", Some(span), reason),
            }
        }
        section.finish();
    }
    originate
}

/// Blocks are announced by themselves and as a whole: nothing inside a pool may come from here.
fn check(
    text: &str,
    pools: &[Found<Pool>],
    earlier: &[(IpNet, LocalRoute)],
) -> Result<IpNet, String> {
    let prefix = read_net(text)?;
    if earlier.iter().any(|(known, _)| *known == prefix) {
        return Err(format!("{prefix} is named twice"));
    }
    let pool = pools.iter().map(|pool| &pool.value).find(|pool| {
        pool.cidr.contains(&prefix)
            && (pool.cidr != prefix || pool.block_size == pool.cidr.prefix_len())
    });
    match pool {
        Some(pool) => Err(format!(
            "{prefix} lies inside the pool \"{}\" ({}); of a pool only blocks are announced, by \
             themselves",
            pool.name, pool.cidr
        )),
        None => Ok(prefix),
    }
}
