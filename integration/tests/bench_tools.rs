//! The measuring programs measure: each part once, with few routes and workloads.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::bench::fib::Prefixes;
use integration::bench::{attach, ecmp, routes};
use integration::lab::{self, ping::ping_all};

#[test]
fn routes_through_raw_netlink_and_through_bird_are_timed_in_both_families() {
    lab::run(|lab| {
        for v6 in [false, true] {
            let prefixes = Prefixes { v6, count: 2000 };
            for nexthop in [false, true] {
                let limit = routes::limit(lab, prefixes, nexthop, 1)?;
                ensure!(limit.add > Duration::ZERO && limit.add < Duration::from_secs(1));
            }
            let times = routes::bird(lab, prefixes, 1)?;
            ensure!(times.add.len() == 2 && times.withdraw.len() == 1 && times.lost.len() == 1);
            ensure!(times.add.iter().all(|time| *time < Duration::from_secs(5)));
            ensure!(times.memory_kib > 1000, "{} KiB", times.memory_kib);
        }
        Ok(())
    });
}

#[test]
fn the_loss_of_one_of_two_routers_is_seen_in_the_kernel() {
    lab::run(|lab| {
        let prefixes = Prefixes {
            v6: false,
            count: 500,
        };
        let loss = ecmp::bird(lab, prefixes)?;
        ensure!(loss.healed > Duration::ZERO && loss.healed < Duration::from_secs(5));
        let loss = ecmp::agent(lab, prefixes)?;
        ensure!(loss.operations == Some(1), "{loss:?}");
        Ok(())
    });
}

#[test]
fn workloads_made_by_raw_netlink_reach_their_host() {
    lab::run(|lab| {
        let host = lab.namespace("host")?;
        let targets: Vec<_> = (0..4)
            .map(|number| lab.namespace(&format!("w{number}")))
            .collect::<Result<_>>()?;
        host.ip(["address", "add", "192.0.2.1/32", "dev", "lo"])?;
        host.ip(["address", "add", "2001:db8::1/128", "dev", "lo", "nodad"])?;
        let add = attach::raw_add_all(&host, &targets)?;
        ensure!(add.each.len() == 4);
        for (target, number) in targets.iter().zip(0..) {
            ping_all(target, "192.0.2.1".parse()?, 2)?;
            // The addresses are the ones that are routed.
            for address in attach::raw_addresses(number) {
                let own = target.show("ip -brief address show dev eth0")?;
                ensure!(own.contains(&address.to_string()), "no {address} in {own}");
            }
        }
        let (routes, _) = attach::raw_delete_all(&host, targets.len())?;
        ensure!(routes.each.len() == 4);
        // All is removed again.
        let links = host.show("ip -brief link")?;
        ensure!(links.lines().count() == 1, "{links}");
        Ok(())
    });
}
