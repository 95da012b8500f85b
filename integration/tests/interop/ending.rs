//! How sessions end, and what each side is told: shutdown texts, limits, refused OPENs, silence.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use agentd_proto::v1;
use anyhow::{Context as _, Result, ensure};
use integration::lab::netns::Netns;
use integration::lab::router::Kind;

use crate::world::{NETWORK, PEER, Plan, World, net, v4, v6};

interop!(md5: super::md5; bird frr gobgp openbgpd exabgp);
interop!(gtsm: super::gtsm; bird frr gobgp openbgpd exabgp);
interop!(silence: super::silence; bird frr gobgp openbgpd exabgp);
interop!(bad_as: super::bad_as; bird frr gobgp openbgpd exabgp);
interop!(shutdown_in: super::shutdown_in; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP sends no text of the operator's with its teardown.");
interop!(shutdown_out: super::shutdown_out; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP takes a NOTIFICATION with a shutdown text for an error (a TypeError of its decoder).");
interop!(max_prefix_in: super::max_prefix_in; bird frr gobgp openbgpd exabgp);
interop!(max_prefix_out: super::max_prefix_out; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP has no limit of prefixes.");

/// Whether a plain TCP connection to the BGP port is taken.
fn is_taken(from: &Netns, to: SocketAddr) -> Result<bool> {
    from.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok())
}

fn md5(mut plan: Plan) -> Result<()> {
    let key = plan.lab.write_file("router.key", "s3cret\n")?;
    plan.for_peers(&format!("password_file = {key:?}"));
    for neighbor in &mut plan.router.neighbors {
        neighbor.password = Some("s3cret".into());
    }
    let world = plan.start()?;
    world.wait_learned()?;
    world.wait_announced()?;
    // Without the key nobody gets through to the node, from the same addresses.
    for to in [IpAddr::V4(v4(1)), v6(1).into()] {
        ensure!(
            !is_taken(&world.outside, (to, 179).into())?,
            "a connection to {to} without the key"
        );
    }
    Ok(())
}

fn gtsm(mut plan: Plan) -> Result<()> {
    plan.for_peers("ttl_security = 1");
    for neighbor in &mut plan.router.neighbors {
        neighbor.ttl_security = true;
    }
    let world = plan.start()?;
    world.wait_learned()?;
    world.wait_announced()
}

/// The last NOTIFICATION received from, or sent to, the first peer.
fn notification(world: &World, received: bool) -> Result<v1::LastNotification> {
    let peer = world.peer(PEER)?;
    let last = if received {
        peer.last_notification_received
    } else {
        peer.last_notification_sent
    };
    last.with_context(|| format!("none; {:?}, {}", peer.state, peer.reason))
}

/// Waits for a NOTIFICATION of this code and subcode; its text.
fn wait_notification(world: &World, received: bool, code: (u32, u32)) -> Result<String> {
    let what = format!("NOTIFICATION {code:?}");
    world.wait(&what, || {
        let last = notification(world, received)?;
        ensure!((last.code, last.subcode) == code, "{last:?}");
        Ok(last.text)
    })
}

/// Waits until the router shows one of these texts.
fn wait_shown(world: &World, texts: &[&str]) -> Result<()> {
    world.wait(&format!("{texts:?} at the router"), || {
        let report = world.router.report(v4(1).into())?;
        ensure!(
            texts.iter().any(|text| report.contains(text)),
            "not in\n{report}"
        );
        Ok(())
    })
}

fn silence(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.for_peers("hold_time = \"3s\"\ngraceful_restart = false");
    plan.router.neighbors[0].hold_time = 3;
    let mut world = plan.start()?;
    world.wait("the network in the kernel", || world.in_kernel(NETWORK, 2))?;
    let start = Instant::now();
    world.router.freeze(true)?;
    wait_notification(&world, false, (4, 0))?;
    let after = start.elapsed();
    // The last keepalive came at most a second before it froze.
    ensure!(
        (Duration::from_millis(1800)..Duration::from_millis(4500)).contains(&after),
        "after {after:?}"
    );
    world.wait("the network leaves the kernel", || {
        ensure!(!world.kernel()?.contains(NETWORK), "still there");
        Ok(())
    })?;
    world.router.freeze(false)?;
    world.wait_sessions()?;
    world.wait("the network is back", || world.in_kernel(NETWORK, 2))
}

fn bad_as(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    // The router expects another number, and so do we.
    plan.agent.peers[0].asn = 64999;
    let world = plan.launch()?;
    wait_notification(&world, false, (2, 2))?;
    let texts: &[&str] = match world.kind {
        Kind::Bird => &["Bad peer AS"],
        Kind::Frr => &["Bad Peer AS", "0202"],
        // It shows that it is idle, and not why.
        Kind::Gobgp => &["BGP state = IDLE"],
        Kind::Openbgpd => &["peer AS unacceptable", "AS unacceptable"],
        Kind::Exabgp => &["\"code\": 2, \"subcode\": 2", "Bad Peer AS", "(2,2)"],
    };
    wait_shown(&world, texts)
}

fn shutdown_in(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    let mut world = plan.start()?;
    let text = "maintenance at nine";
    world.router.shutdown(v4(1).into(), text)?;
    let shown = wait_notification(&world, true, (6, 2))?;
    ensure!(shown.contains(text), "{shown}");
    ensure!(
        world
            .agent
            .agentctl(&["peer", "show", PEER])?
            .contains(text),
        "agentctl does not show it"
    );
    world.router.enable(v4(1).into())?;
    world.wait_sessions()
}

fn shutdown_out(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.for_peers("graceful_restart = false");
    let world = plan.start()?;
    ensure!(world.agent.terminate()?.success(), "the agent's end");
    wait_shown(&world, &["agentd is stopping"])
}

fn max_prefix_in(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.for_peers("max_prefixes = 3");
    let mut world = plan.start()?;
    for number in 0..4 {
        world
            .router
            .announce(net(&format!("10.70.{number}.0/24")))?;
    }
    wait_notification(&world, false, (6, 1))?;
    let texts: &[&str] = match world.kind {
        Kind::Bird => &["Maximum number of prefixes reached"],
        Kind::Frr => &[
            "Cease/Maximum Number of Prefixes Reached",
            "Cease\\/Maximum Number of Prefixes Reached",
        ],
        Kind::Gobgp => &[
            "Code=6 Data=\"[0 1 1 0 0 0 3]\"",
            "subcode 1(maximum number of prefixes reached)",
        ],
        Kind::Openbgpd => &["Cease, maximum number of prefixes", "max-prefix"],
        Kind::Exabgp => &["Cease / Maximum Number of Prefixes Reached"],
    };
    wait_shown(&world, texts)
}

fn max_prefix_out(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.router.neighbors[0].max_prefixes = Some(2);
    for number in 1..5 {
        plan.agent.extra += &format!("[[bgp.originate]]\nprefix = \"203.0.{number}.0/24\"\n");
    }
    let world = plan.launch()?;
    wait_notification(&world, true, (6, 1)).map(drop)
}
