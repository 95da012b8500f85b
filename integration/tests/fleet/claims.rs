//! Many nodes that claim at the same moment.

use anyhow::{Context as _, ensure};
use integration::bench::claims::{Agents, inside};
use integration::lab;
use integration::lab::fleet::Fleet;

#[test]
fn fifty_agents_claim_at_once_without_a_retry_storm_and_fill_a_pool_to_the_last_block() {
    lab::run(|lab| {
        let fleet = Fleet::start(lab, 1, false)?;
        let endpoints = fleet.etcd.endpoints();
        inside(fleet.etcd.namespace(), move || {
            let mut agents = Agents::start(&endpoints, "task", 50)?;
            let wide = agents.claim("10.0.0.0/12".parse()?, 26, 1)?;
            println!("{wide:?}");
            ensure!(wide.blocks.len() == 50);
            ensure!(wide.retries <= 2, "{} retries", wide.retries);
            agents.check_up()?;
            // 64 blocks for 50 nodes: nearly full from the first moment.
            let narrow = agents.claim("10.64.0.0/20".parse()?, 26, 1)?;
            println!("{narrow:?}");
            ensure!(narrow.blocks.len() == 50);
            ensure!(narrow.retries < 250, "{} retries", narrow.retries);
            // And the rest, by as many as there are blocks.
            let mut more = Agents::start(&endpoints, "more", 14)?;
            let last = more.claim("10.64.0.0/20".parse()?, 26, 1)?;
            ensure!(last.blocks.len() == 14);
            Ok(())
        })
        .context("agents as tasks")
    });
}
