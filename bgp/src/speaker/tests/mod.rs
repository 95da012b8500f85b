//! The speaker without IO: neighbours of ranges, and changes while sessions run.

#![allow(clippy::unwrap_used)]

mod live;
mod ranges;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    config::{PeerConfig, RangeConfig, RemoteAs, SpeakerConfig},
    status::{PeerState, PeerStatus},
    *,
};
use crate::{
    attributes::{AsPath, Attributes, NextHop},
    message::{Announced, Capability, Message, NlriList, Notification, Open, Update},
    policy::Policy,
    rib::LocalRoute,
    types::{Asn, Family},
};

const LOCAL: Asn = Asn(64512);
const REMOTE: Asn = Asn(64513);

/// A speaker with its clock, and neighbours that say what a test wants.
struct Bench {
    speaker: Speaker,
    now: Instant,
    closed: Vec<ConnectionId>,
    notifications: Vec<(ConnectionId, Notification)>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut SpeakerConfig)) -> Self {
        let now = Instant::now();
        let mut config = SpeakerConfig::new(LOCAL, [192, 0, 2, 1].into());
        change(&mut config);
        let mut speaker = Speaker::new(now, config).unwrap();
        speaker.originate(now, "10.9.0.0/24".parse().unwrap(), LocalRoute::default());
        speaker.originations_synced(now);
        let mut bench = Self {
            speaker,
            now,
            closed: Vec::new(),
            notifications: Vec::new(),
        };
        bench.settle();
        bench
    }

    /// Takes all outputs; what was sent counts as taken by the peers.
    fn settle(&mut self) {
        while let Some(output) = self.speaker.poll_output(self.now) {
            match output {
                Output::Send { connection, octets } => {
                    let mut rest = octets.as_slice();
                    while rest.len() >= 19 {
                        let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
                        if rest[18] == 3 {
                            let notification = Notification {
                                code: rest[19],
                                subcode: rest[20],
                                data: rest[21..length].to_vec(),
                            };
                            self.notifications.push((connection, notification));
                        }
                        rest = &rest[length..];
                    }
                    self.speaker.handle_writable(connection);
                }
                Output::Close { connection } => self.closed.push(connection),
                Output::Dial { .. } | Output::Negotiated { .. } => {}
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.speaker.poll_timeout()
            && at <= end
        {
            self.now = self.now.max(at);
            self.speaker.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
        self.speaker.handle_timeout(self.now);
        self.settle();
    }

    fn connect(&mut self, from: &str) -> Option<ConnectionId> {
        let remote = SocketAddr::new(from.parse().unwrap(), 40000);
        let local: SocketAddr = if remote.is_ipv4() {
            "192.0.2.1:179".parse().unwrap()
        } else {
            "[2001:db8::1]:179".parse().unwrap()
        };
        let accepted = self.speaker.handle_accepted(self.now, local, remote);
        self.settle();
        accepted.map(|(connection, _)| connection)
    }

    fn say(&mut self, connection: ConnectionId, message: Message) {
        self.speaker
            .handle_message(self.now, connection, Ok(message));
        self.settle();
    }

    /// OPEN and KEEPALIVE.
    fn establish(&mut self, from: &str, open: Open) -> ConnectionId {
        let connection = self.connect(from).expect("the connection is taken");
        self.say(connection, Message::Open(Box::new(open)));
        self.say(connection, Message::Keepalive);
        connection
    }

    fn lose(&mut self, connection: ConnectionId) {
        let event = ConnectionEvent::Closed {
            reason: "closed by the peer".into(),
        };
        self.speaker.handle_connection(self.now, connection, event);
        self.settle();
    }

    fn announce(&mut self, connection: ConnectionId, prefixes: &[&str]) {
        let next_hop = NextHop::from(IpAddr::from([192, 0, 2, 9]));
        let mut attributes = Attributes::originated(next_hop);
        attributes.as_path = AsPath::sequence([REMOTE]);
        let nlri = prefixes.iter().map(|prefix| {
            let prefix: ipnet::Ipv4Net = prefix.parse().unwrap();
            prefix.into()
        });
        let update = Update {
            announced: [Announced {
                attributes: Arc::new(attributes),
                nlri: NlriList::Ipv4(nlri.collect()),
            }]
            .into_iter()
            .collect(),
            ..Update::default()
        };
        self.say(connection, Message::Update(update));
    }

    fn peer(&self, name: &str) -> Option<PeerStatus> {
        self.speaker
            .peers()
            .into_iter()
            .find(|peer| peer.name == name)
    }

    fn state(&self, name: &str) -> Option<PeerState> {
        self.peer(name).map(|peer| peer.state)
    }

    fn received(&self, name: &str) -> u64 {
        self.peer(name).unwrap().families[0].received
    }
}

fn open(asn: Asn) -> Open {
    Open {
        asn,
        hold_time: Duration::from_secs(90),
        router_id: [192, 0, 2, 9].into(),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ],
    }
}

/// Keeps our routes, and has us keep its.
fn restartable(asn: Asn) -> Open {
    let mut open = open(asn);
    open.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 60,
        families: vec![(1, 1, true)],
    });
    open
}

fn range(name: &str, prefix: &str, limit: usize) -> RangeConfig {
    let mut range = RangeConfig::new(name, prefix.parse().unwrap(), REMOTE);
    range.limit = limit;
    range.peer.import = Arc::new(Policy::all());
    range
}
