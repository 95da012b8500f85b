//! The speaker under test, its neighbours, and the list of cases.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::{AgentConfig, BirdConfig, BirdPeer, Peer};
use integration::lab::netns::Netns;
use integration::lab::raw_message as raw;
use integration::lab::raw_peer::{Identity, RawPeer};
use integration::lab::{self, Lab};

pub const ASN: u32 = 65000;
pub const SPEAKER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const CLUSTER: Ipv4Addr = SPEAKER;

/// Last octet of the address in 10.9.0.0/24, AS number, and the lines of the configuration.
const PEERS: [(u8, u32, &str); 18] = [
    (11, 65001, ""),
    (12, 65002, ""),
    (13, 65003, ""),
    (14, 65004, ""),
    (15, 65005, ""),
    (16, 65001, ""),
    (17, 4_200_000_017, ""),
    (21, ASN, ""),
    (22, ASN, ""),
    (31, ASN, "route_reflector_client = true"),
    (32, ASN, "route_reflector_client = true"),
    (41, 65041, "hold_time = \"3s\""),
    (42, 65042, "max_prefixes = 10"),
    (43, 65043, "hold_time = \"0s\""),
    (44, 65044, "passive = false"),
    (45, 65045, "role = \"customer\""),
    (46, 65046, "graceful_restart = false"),
    (47, 65047, "families = [\"ipv4-unicast\"]"),
];

#[derive(Debug)]
pub struct World {
    pub agent: Option<Agent>,
    pub remote: SocketAddr,
    pub peers: Netns,
    _bird: Option<Bird>,
}

pub fn is_bird() -> bool {
    std::env::var("CONFORMANCE_TARGET").is_ok_and(|target| target == "bird")
}

/// Starts the speaker and runs the cases inside the namespace of its neighbours.
pub fn run(cases: impl FnOnce(&World, &mut Cases) -> Result<()> + Send) {
    lab::run(|lab| {
        let world = World::start(lab)?;
        let namespace = world.peers.clone();
        let mut list = Cases::default();
        let world_ref = &world;
        let list_ref = &mut list;
        namespace.enter(move || cases(world_ref, list_ref))??;
        list.finish()
    });
}

impl World {
    fn start(lab: &Lab) -> Result<Self> {
        let speaker = lab.namespace("speaker")?;
        let peers = lab.namespace("peers")?;
        lab.link((&speaker, "eth0"), (&peers, "eth0"))?;
        lab.address(&speaker, "eth0", &format!("{SPEAKER}/24"))?;
        lab.address(&speaker, "eth0", "fd09::1/64")?;
        for (octet, _, _) in PEERS {
            lab.address(&peers, "eth0", &format!("10.9.0.{octet}/24"))?;
            lab.address(&peers, "eth0", &format!("fd09::{octet}/64"))?;
        }
        let (agent, bird) = if is_bird() {
            (
                None,
                Some(Bird::start(lab, &speaker, "bird", &bird_config())?),
            )
        } else {
            let agent = Agent::new(lab, &speaker, agent_config())?;
            agent.start()?;
            (Some(agent), None)
        };
        Ok(Self {
            agent,
            remote: SocketAddr::from((SPEAKER, 179)),
            peers,
            _bird: bird,
        })
    }

    pub fn identity(&self, octet: u8) -> Identity {
        let (_, asn, _) = PEERS
            .into_iter()
            .find(|(other, _, _)| *other == octet)
            .expect("a peer of the list");
        Identity::new(address(octet), asn)
    }

    /// An Established session as that neighbour.
    pub fn peer(&self, octet: u8) -> Result<RawPeer> {
        RawPeer::establish(&self.identity(octet), self.remote)
    }

    /// A connection on which the speaker has sent its OPEN.
    pub fn opened(&self, octet: u8) -> Result<RawPeer> {
        RawPeer::connect_until_served(address(octet), self.remote)
    }

    pub fn pair(&self, sender: u8, observer: u8) -> Result<Pair> {
        Ok(Pair {
            sender: self.peer(sender)?,
            observer: self.peer(observer)?,
            attributes: base(octet_asn(sender), address(sender)),
            markers: 0,
        })
    }
}

pub fn address(octet: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, octet)
}

fn octet_asn(octet: u8) -> u32 {
    PEERS
        .into_iter()
        .find(|(other, _, _)| *other == octet)
        .map_or(0, |(_, asn, _)| asn)
}

/// The attributes of a plain announcement of that neighbour.
pub fn base(asn: u32, next_hop: Ipv4Addr) -> Vec<u8> {
    if asn == ASN {
        [
            raw::origin(0),
            raw::as_path(&[]),
            raw::next_hop(next_hop),
            raw::local_pref(100),
        ]
        .concat()
    } else {
        [
            raw::origin(0),
            raw::as_path(&[asn]),
            raw::next_hop(next_hop),
        ]
        .concat()
    }
}

/// One who sends and one who sees what comes of it.
#[derive(Debug)]
pub struct Pair {
    pub sender: RawPeer,
    pub observer: RawPeer,
    pub attributes: Vec<u8>,
    markers: u32,
}

impl Pair {
    pub fn announce(&mut self, attributes: &[u8], prefix: &str) -> Result<()> {
        self.sender
            .send(&raw::update(&[], attributes, &raw::nlri(prefix)))
    }

    pub fn announce_plain(&mut self, prefix: &str) -> Result<()> {
        self.announce(&self.attributes.clone(), prefix)
    }

    /// Ends both sessions and starts them anew.
    pub fn again(&mut self, world: &World, octets: (u8, u8)) -> Result<()> {
        self.sender.close();
        self.observer.close();
        self.sender = world.peer(octets.0)?;
        self.observer = world.peer(octets.1)?;
        Ok(())
    }

    /// Returns when the observer has seen all that the sender sent before.
    pub fn sync(&mut self) -> Result<()> {
        self.markers += 1;
        let [_, _, high, low] = self.markers.to_be_bytes();
        let marker = format!("10.254.{high}.{low}/32");
        self.announce_plain(&marker)?;
        self.observer
            .until("the marker", |peer| peer.table.has(&marker))?;
        self.sender
            .send(&raw::update(&raw::nlri(&marker), &[], &[]))?;
        self.observer
            .until("the end of the marker", |peer| !peer.table.has(&marker))?;
        self.sender.drain()
    }
}

/// Runs cases and keeps what failed, which is also said when it happens: a long run may be cut off.
#[derive(Debug, Default)]
pub struct Cases {
    passed: usize,
    failed: Vec<String>,
}

impl Cases {
    pub fn case(&mut self, name: &str, body: impl FnOnce() -> Result<()>) {
        match body() {
            Ok(()) => self.passed += 1,
            Err(error) => {
                let failure = format!("{name}: {error:#}");
                println!("failed: {failure}");
                self.failed.push(failure);
            }
        }
    }

    fn finish(&self) -> Result<()> {
        let count = self.passed + self.failed.len();
        println!("{count} cases, {} failed", self.failed.len());
        for failure in &self.failed {
            println!("  {failure}");
        }
        if is_bird() {
            return Ok(());
        }
        ensure!(
            self.failed.is_empty(),
            "{} of {count} cases:\n{}",
            self.failed.len(),
            self.failed.join("\n")
        );
        Ok(())
    }
}

/// Code, subcode, and the data when it matters.
pub fn expect_notification(
    peer: &mut RawPeer,
    code: u8,
    subcode: u8,
    data: Option<&[u8]>,
) -> Result<()> {
    let got = peer.notification_within(Duration::from_secs(5))?;
    if (got.0, got.1) != (code, subcode) {
        bail!(
            "NOTIFICATION {}/{} {:02x?} and not {code}/{subcode}",
            got.0,
            got.1,
            got.2
        );
    }
    if let Some(data) = data {
        ensure!(got.2 == data, "data {:02x?} and not {data:02x?}", got.2);
    }
    Ok(())
}

fn agent_config() -> AgentConfig {
    AgentConfig {
        name: "node".into(),
        address: SPEAKER.to_string(),
        address6: Some("fd09::1".into()),
        asn: ASN,
        pools: Vec::new(),
        claim: Vec::new(),
        cooldown: "1s".into(),
        ipam: String::new(),
        peers: PEERS
            .into_iter()
            .map(|(octet, asn, extra)| {
                let mut peer = Peer::new(&format!("p{octet}"), &address(octet).to_string(), asn);
                let passive = if extra.contains("passive") {
                    ""
                } else {
                    "passive = true\n"
                };
                let hold = if extra.contains("hold_time") {
                    ""
                } else {
                    "hold_time = \"90s\"\n"
                };
                peer.extra = format!("{passive}{hold}{extra}");
                peer
            })
            .collect(),
        bgp: format!(
            "router_id = \"{SPEAKER}\"\ncluster_id = \"{CLUSTER}\"\nlisten = [\"0.0.0.0:179\"]\n\
             import = \"all\"\nexport = \"all\"\nidle_hold_time = \"1s\"\nconnect_retry_time = \"1s\""
        ),
        extra: "[telemetry]\nmetrics_listen = \"off\"\n[log]\nlevel = \"info\"".into(),
    }
}

fn bird_config() -> BirdConfig {
    BirdConfig {
        router_id: SPEAKER.to_string(),
        address: SPEAKER.to_string(),
        address6: "fd09::1".into(),
        asn: ASN,
        peers: PEERS
            .into_iter()
            .map(|(octet, asn, extra)| {
                let mut text = String::from("error wait time 1, 1; error forget time 1; ");
                if !extra.contains("passive") {
                    text.push_str("passive yes; ");
                }
                // It knows no hold time of 0 together with a keepalive time.
                text.push_str(if extra.contains("3s") {
                    "hold time 3; keepalive time 1; "
                } else {
                    "hold time 90; keepalive time 30; "
                });
                if extra.contains("client") {
                    text.push_str("rr client; ");
                }
                BirdPeer {
                    name: format!("p{octet}"),
                    address: address(octet).to_string(),
                    asn,
                    extra: text,
                    families: vec!["ipv4", "ipv6"],
                }
            })
            .collect(),
        extra: String::new(),
    }
}
