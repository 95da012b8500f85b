//! Answers queries: dumps of a place, and single gets whose cost does not grow with the number of
//! links or routes.

use std::{
    fs::File,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use hashbrown::HashSet;
use ipnet::IpNet;

use super::{
    Station, decode,
    describe::describe_query,
    encode::{
        AF_BRIDGE, AF_INET, AF_INET6, AF_UNSPEC, NLM_F_DUMP, TABLE_MAIN, attribute, family_of,
        family_of_net, kind,
    },
    netns,
    pipe::{self, Answers, Pipe},
    socket::{DUMP_PAUSE, Ports, Socket},
    sysctl::{self, Folders, Shown},
};
use crate::{
    desired::Netns,
    kernel::{
        ALIAS_PREFIX, FdbEntry, INTERFACE_PREFIX, Op, OpError, PROTOCOL_AGENTD, Place, Query,
        Route, Snapshot, TUNNEL_PREFIX, Target, Tunnel,
    },
};

static INTERRUPTED: AtomicU64 = AtomicU64::new(0);

/// Dumps of this process during which something changed (NLM_F_DUMP_INTR), and which were not used.
pub fn interrupted_dumps() -> u64 {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// How often an interrupted dump is repeated.
const ATTEMPTS: u32 = 20;
/// Random addresses of a prefix that are looked up to find its route.
const PROBES: usize = 6;

/// Belongs to the reader thread.
#[derive(Debug)]
pub(super) struct Reader(pub(super) Station);

impl Reader {
    /// The thread stands in the wrong namespace and has to end.
    pub(super) fn lost(&self) -> bool {
        self.0.home.lost()
    }

    pub(super) fn query(&mut self, query: &Query) -> Result<Snapshot, OpError> {
        self.answer(query).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            pipe::error(&describe_query(query), errno, None)
        })
    }

    fn answer(&mut self, query: &Query) -> io::Result<Snapshot> {
        let host = Arc::clone(&self.0.host);
        host.discard(&mut self.0.pipe.receive);
        match query {
            Query::Place { place, sysctls } => self.at(&host, place, sysctls, |reading| {
                reading.place(matches!(place, Place::Host))
            }),
            Query::Inside {
                netns,
                neighbours,
                sysctls,
            } => {
                let place = Place::Netns(netns.clone());
                self.at(&host, &place, sysctls, |reading| reading.inside(neighbours))
            }
            Query::Link {
                place,
                index,
                neighbours,
                sysctls,
            } => self.at(&host, place, sysctls, |reading| {
                reading.link(*index, neighbours)
            }),
            Query::Routes(prefixes) => self.at(&host, &Place::Host, &[], |reading| {
                reading.exact_routes(prefixes)
            }),
        }
    }

    fn at(
        &mut self,
        host: &Socket,
        place: &Place,
        sysctls: &[String],
        work: impl FnOnce(&mut Reading<'_>) -> io::Result<()>,
    ) -> io::Result<Snapshot> {
        match place {
            Place::Host => {
                let mut reading = Reading::new(host, &mut self.0.pipe, sysctls);
                work(&mut reading)?;
                reading.finish(Some(&self.0.folders))
            }
            Place::Netns(netns) => {
                let file = netns::open(netns)?;
                // Changes are heard from before the reading on.
                self.learn_nsid(host, &file, netns);
                let ports = self.0.ports;
                let pipe = &mut self.0.pipe;
                self.0
                    .home
                    .inside(&file, || {
                        let socket = Socket::open(ports, Ports::READER)?;
                        let mut reading = Reading::new(&socket, pipe, sysctls);
                        work(&mut reading)?;
                        reading.finish(None)
                    })
                    .flatten()
            }
        }
    }

    /// Without a number the listener does not hear of a namespace. Failing here is no failure of
    /// the query: the slow audit finds what is not heard.
    fn learn_nsid(&mut self, host: &Socket, file: &File, netns: &Netns) {
        if self.0.namespaces.is_known(netns) {
            return;
        }
        for number in [false, true] {
            let op = [Op::DeleteLinks(Vec::new())];
            let mut answers = Answers::new(&op);
            if number {
                let sequence = self.0.pipe.next(0);
                self.0.pipe.encoder.new_nsid(sequence, file, -1);
            }
            let sequence = self.0.pipe.next(0);
            self.0.pipe.encoder.get_nsid(sequence, file);
            let mut known = false;
            self.0.pipe.flush(host, &mut answers, |_, message| {
                if message.kind == kind::NEW_NSID
                    && let Some(nsid) = decode::nsid(message.payload)
                {
                    self.0.namespaces.learn(nsid, netns);
                    known = true;
                }
            });
            if known {
                return;
            }
        }
    }
}

/// Reads one place.
struct Reading<'a> {
    socket: &'a Socket,
    pipe: &'a mut Pipe,
    snapshot: Snapshot,
    sysctls: &'a [String],
    /// Those of them that messages about links show: position among them, and how.
    shown: Vec<(usize, Shown<'a>)>,
    /// By position, as far as they were shown.
    values: Vec<Option<String>>,
}

impl<'a> Reading<'a> {
    fn new(socket: &'a Socket, pipe: &'a mut Pipe, sysctls: &'a [String]) -> Self {
        let shown = sysctls
            .iter()
            .enumerate()
            .filter_map(|(position, path)| Some((position, sysctl::shown(path)?)))
            .collect();
        Self {
            socket,
            pipe,
            snapshot: Snapshot::default(),
            sysctls,
            shown,
            values: vec![None; sysctls.len()],
        }
    }

    /// Reads the sysctls that no message showed. `folders`: the host's, if that is the place.
    fn finish(mut self, folders: Option<&Folders>) -> io::Result<Snapshot> {
        for (path, value) in self.sysctls.iter().zip(self.values) {
            if value.is_none() {
                self.pipe.count_file();
            }
            let value = match (value, folders) {
                (Some(value), _) => Some(value),
                (None, Some(folders)) => folders.read(path)?,
                (None, None) => sysctl::read(path)?,
            };
            self.snapshot.sysctls.push((path.clone(), value));
        }
        Ok(self.snapshot)
    }

    fn links(&mut self) -> io::Result<()> {
        let shown = std::mem::take(&mut self.shown);
        let links = self.dump(
            |pipe, sequence| {
                pipe.encoder
                    .begin_link(kind::GET_LINK, NLM_F_DUMP, sequence, 0);
                pipe.encoder
                    .u32(attribute::IFLA_EXT_MASK, attribute::RTEXT_FILTER_SKIP_STATS);
            },
            kind::NEW_LINK,
            |payload| {
                let link = decode::link(payload)?;
                let values = shown_values(&shown, &link.name, payload);
                Some((link, values))
            },
        )?;
        for (link, values) in links {
            self.snapshot.links.push(link);
            self.note(values);
        }
        self.shown = shown;
        Ok(())
    }

    fn note(&mut self, values: Vec<(usize, String)>) {
        for (position, value) in values {
            if let Some(slot) = self.values.get_mut(position) {
                *slot = Some(value);
            }
        }
    }

    fn inside(&mut self, neighbours: &[(u32, IpAddr)]) -> io::Result<()> {
        self.links()?;
        self.addresses(0)?;
        for family in [AF_INET, AF_INET6] {
            let routes = self.routes(family)?;
            self.snapshot.routes.extend(routes);
        }
        for (index, address) in neighbours {
            self.ask_neighbour(*index, *address);
        }
        self.flush_gets()
    }

    fn ask_neighbour(&mut self, index: u32, address: IpAddr) {
        let sequence = self.pipe.next(0);
        let mut header = [0; 12];
        header[0] = family_of(&address);
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let encoder = &mut self.pipe.encoder;
        encoder.begin(kind::GET_NEIGHBOUR, 0, sequence, &header);
        encoder.address(attribute::NDA_DST, address);
        encoder.end();
    }

    /// Asks for single links and neighbours, and takes over the answers.
    fn flush_gets(&mut self) -> io::Result<()> {
        let Self {
            snapshot,
            shown,
            pipe,
            ..
        } = self;
        let mut values = Vec::new();
        // What does not exist is refused with ENODEV or ENOENT, and is missing in the answer.
        let op = [Op::DeleteLinks(Vec::new())];
        let mut answers = Answers::new(&op);
        pipe.flush(self.socket, &mut answers, |_, message| match message.kind {
            kind::NEW_LINK => {
                if let Some(link) = decode::link(message.payload) {
                    values.extend(shown_values(shown, &link.name, message.payload));
                    snapshot.links.push(link);
                }
            }
            kind::NEW_NEIGHBOUR => snapshot
                .neighbours
                .extend(decode::neighbour(message.payload).filter(|entry| entry.permanent)),
            _ => {}
        });
        self.note(values);
        match answers.results.first() {
            Some(Err(error)) if !matches!(error.errno, libc::ENODEV | libc::ENOENT) => {
                Err(io::Error::from_raw_os_error(error.errno))
            }
            _ => Ok(()),
        }
    }

    fn place(&mut self, host: bool) -> io::Result<()> {
        self.links()?;
        self.addresses(0)?;
        for family in [AF_INET, AF_INET6] {
            let routes = self.routes(family)?;
            if self.snapshot.routes.is_empty() {
                self.snapshot.routes = routes;
            } else {
                self.snapshot.routes.extend(routes);
            }
        }
        self.snapshot.next_hops = self.dump(
            |pipe, sequence| {
                pipe.encoder
                    .begin(kind::GET_NEXT_HOP, NLM_F_DUMP, sequence, &[0; 8]);
            },
            kind::NEW_NEXT_HOP,
            decode::next_hop,
        )?;
        let ours: HashSet<u32> = self
            .snapshot
            .links
            .iter()
            .filter(|link| {
                let alias = link.alias.as_deref().unwrap_or_default();
                !host
                    || link.name.starts_with(INTERFACE_PREFIX)
                    || link.name.starts_with(TUNNEL_PREFIX)
                    || alias.starts_with(ALIAS_PREFIX)
            })
            .map(|link| link.index)
            .collect();
        if !ours.is_empty() {
            self.snapshot.neighbours = self.dump(
                |pipe, sequence| {
                    pipe.encoder
                        .begin(kind::GET_NEIGHBOUR, NLM_F_DUMP, sequence, &[0; 12]);
                },
                kind::NEW_NEIGHBOUR,
                |payload| {
                    decode::neighbour(payload)
                        .filter(|entry| entry.permanent && ours.contains(&entry.index))
                },
            )?;
        }
        if host {
            let tunnels: Vec<u32> = self
                .snapshot
                .links
                .iter()
                .filter(|link| {
                    matches!(link.tunnel, Some(Tunnel::Vxlan { .. }))
                        && link.name.starts_with(TUNNEL_PREFIX)
                })
                .map(|link| link.index)
                .collect();
            for index in tunnels {
                let entries = self.fdb(index)?;
                self.snapshot.fdb.extend(entries);
            }
        }
        Ok(())
    }

    /// Permanent entries of one device's forwarding database.
    fn fdb(&mut self, index: u32) -> io::Result<Vec<FdbEntry>> {
        self.dump(
            |pipe, sequence| {
                let mut header = [0; 12];
                header[0] = AF_BRIDGE;
                pipe.encoder
                    .begin(kind::GET_NEIGHBOUR, NLM_F_DUMP, sequence, &header);
                pipe.encoder.u32(attribute::NDA_IFINDEX, index);
            },
            kind::NEW_NEIGHBOUR,
            |payload| {
                let entry = decode::fdb(payload).filter(|_| decode::is_permanent(payload));
                entry.filter(|entry| entry.index == index)
            },
        )
    }

    /// Of one link, or (0) of all.
    fn addresses(&mut self, index: u32) -> io::Result<()> {
        let read = self.dump(
            |pipe, sequence| {
                let mut header = [0; 8];
                header[0] = AF_UNSPEC;
                header[4..8].copy_from_slice(&index.to_ne_bytes());
                pipe.encoder
                    .begin(kind::GET_ADDRESS, NLM_F_DUMP, sequence, &header);
            },
            kind::NEW_ADDRESS,
            |payload| {
                let address = decode::interface_address(payload)
                    .filter(|address| index == 0 || address.index == index)?;
                Some((address, decode::is_marked_address(payload)))
            },
        )?;
        for (address, marked) in read {
            self.snapshot.addresses.push(address);
            if marked {
                self.snapshot.marked_addresses.push(address);
            }
        }
        Ok(())
    }

    /// Routes of the main table.
    fn routes(&mut self, family: u8) -> io::Result<Vec<Route>> {
        let outcome = self.dump(
            |pipe, sequence| {
                let mut header = [0; 12];
                header[0] = family;
                header[4] = u8::try_from(TABLE_MAIN).expect("254");
                pipe.encoder
                    .begin(kind::GET_ROUTE, NLM_F_DUMP, sequence, &header);
            },
            kind::NEW_ROUTE,
            |payload| {
                // Without IPv6 in the kernel another family answers.
                (payload.first() == Some(&family))
                    .then(|| decode::route(payload))
                    .flatten()
                    .filter(|route| route.table == TABLE_MAIN)
            },
        );
        match outcome {
            // A namespace that never had a route has no such table.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            outcome => outcome,
        }
    }

    /// Dumps until nothing changed meanwhile.
    fn dump<T>(
        &mut self,
        request: impl Fn(&mut Pipe, u32),
        wanted: u16,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            let sequence = self.pipe.sequence();
            request(self.pipe, sequence);
            self.pipe.encoder.end();
            let message = self.pipe.encoder.bytes().to_vec();
            self.pipe.encoder.clear();
            let mut list = Vec::new();
            let mut answers = 0;
            let outcome = self
                .socket
                .dump(&message, sequence, &mut self.pipe.receive, |message| {
                    answers += 1;
                    if message.kind == wanted {
                        list.extend(decode(message.payload));
                    }
                });
            self.pipe.count_dump(answers);
            match outcome {
                Ok(()) => return Ok(list),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {
                    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(DUMP_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    /// One link with what belongs to it; an unknown one gives an empty snapshot.
    fn link(&mut self, index: u32, neighbours: &[IpAddr]) -> io::Result<()> {
        let sequence = self.pipe.next(0);
        let encoder = &mut self.pipe.encoder;
        encoder.begin_link(kind::GET_LINK, 0, sequence, index);
        encoder.u32(attribute::IFLA_EXT_MASK, attribute::RTEXT_FILTER_SKIP_STATS);
        encoder.end();
        for address in neighbours {
            self.ask_neighbour(index, *address);
        }
        self.flush_gets()?;
        if !self.snapshot.links.is_empty() {
            match self.addresses(index) {
                Ok(()) => {}
                // Deleted in between.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The kernel cannot be asked for the route of a prefix, but for the route that an address
    /// matches. For a host route that is the same. For a shorter prefix some of its addresses are
    /// looked up, until one is not covered by a longer prefix. When none is, and for IPv4
    /// blackholes of others (such a lookup fails without telling the route), the table is dumped.
    fn exact_routes(&mut self, prefixes: &[IpNet]) -> io::Result<()> {
        let mut wanted: Vec<(IpNet, bool)> = Vec::new();
        for prefix in prefixes {
            let prefix = prefix.trunc();
            let index = wanted.len();
            wanted.push((prefix, false));
            if prefix.prefix_len() == prefix.max_prefix_len() {
                self.probe_address(index, prefix.network());
            } else {
                if matches!(prefix, IpNet::V4(_)) {
                    self.probe_blackhole(index, prefix);
                }
                self.probe_address(index, prefix.broadcast());
                self.probe_address(index, prefix.network());
                for _ in 2..PROBES {
                    self.probe_address(index, random_address(&prefix));
                }
            }
            if self.pipe.is_full(self.socket) {
                self.flush_probes(&mut wanted);
            }
        }
        self.flush_probes(&mut wanted);
        for family in [AF_INET, AF_INET6] {
            // A host route that no lookup shows is not there, or hidden behind another of its kind.
            let missing: HashSet<IpNet> = wanted
                .iter()
                .filter(|(prefix, found)| {
                    !found
                        && family_of_net(prefix) == family
                        && prefix.prefix_len() != prefix.max_prefix_len()
                })
                .map(|(prefix, _)| *prefix)
                .collect();
            if !missing.is_empty() {
                let routes = self.routes(family)?;
                self.snapshot.routes.extend(
                    routes
                        .into_iter()
                        .filter(|route| missing.contains(&route.prefix)),
                );
            }
        }
        Ok(())
    }

    fn probe_address(&mut self, index: usize, address: IpAddr) {
        let sequence = self.pipe.next_tolerant(index, 0);
        let mut header = [0; 12];
        header[0] = family_of(&address);
        header[1] = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        header[8..12].copy_from_slice(&attribute::RTM_F_FIB_MATCH.to_ne_bytes());
        let encoder = &mut self.pipe.encoder;
        encoder.begin(kind::GET_ROUTE, 0, sequence, &header);
        encoder.address(attribute::RTA_DST, address);
        encoder.end();
    }

    /// IPv4: a request to add a route, without leave to create or replace one, is refused with
    /// EEXIST when exactly this route stands, with ENOENT when not, and never changes anything.
    fn probe_blackhole(&mut self, index: usize, prefix: IpNet) {
        let sequence = self.pipe.next(index);
        self.pipe
            .encoder
            .route(kind::NEW_ROUTE, 0, sequence, &own_blackhole(prefix));
    }

    fn flush_probes(&mut self, wanted: &mut [(IpNet, bool)]) {
        // Refusals are told by operation: stand-ins, one for each prefix.
        let ops = vec![Op::DeleteLinks(Vec::new()); wanted.len()];
        let mut answers = Answers::new(&ops);
        let routes = &mut self.snapshot.routes;
        self.pipe
            .flush(self.socket, &mut answers, |index, message| {
                let Some((prefix, found)) = wanted.get_mut(index) else {
                    return;
                };
                if message.kind == kind::NEW_ROUTE
                    && !*found
                    && let Some(route) = decode::route(message.payload)
                    && route.prefix == *prefix
                    && route.table == TABLE_MAIN
                {
                    *found = true;
                    routes.push(route);
                }
            });
        for ((prefix, found), result) in wanted.iter_mut().zip(&answers.results) {
            if !*found && matches!(result, Err(error) if error.errno == libc::EEXIST) {
                *found = true;
                routes.push(own_blackhole(*prefix));
            }
        }
    }
}

/// What a message about a link shows of the wanted sysctls, by their position.
fn shown_values(shown: &[(usize, Shown<'_>)], name: &str, payload: &[u8]) -> Vec<(usize, String)> {
    shown
        .iter()
        .filter(|(_, one)| one.interface == name)
        .filter_map(|(position, one)| {
            let value = decode::configuration(payload, one.family, one.position)?;
            Some((*position, value.to_string()))
        })
        .collect()
}

fn own_blackhole(prefix: IpNet) -> Route {
    Route {
        prefix,
        table: TABLE_MAIN,
        metric: 0,
        protocol: PROTOCOL_AGENTD,
        target: Target::Blackhole,
    }
}

fn random_address(prefix: &IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(net) => {
            let host = fastrand::u32(..) & net.hostmask().to_bits();
            std::net::Ipv4Addr::from_bits(net.network().to_bits() | host).into()
        }
        IpNet::V6(net) => {
            let host = fastrand::u128(..) & net.hostmask().to_bits();
            std::net::Ipv6Addr::from_bits(net.network().to_bits() | host).into()
        }
    }
}
