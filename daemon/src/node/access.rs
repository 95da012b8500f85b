//! Published ports and allowed addresses: what a caller may ask for, and who holds which port.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use dataplane::{
    desired::{Access, Protocol, PublishedPort},
    linux::listeners::Listener,
};
use ipnet::IpNet;

use super::{Error, WorkloadId, spec::Invalid};

/// Ports and allowed addresses of one workload; most have none of either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessSpec {
    ports: Vec<PublishedPort>,
    allowed: Vec<IpNet>,
}

impl AccessSpec {
    pub const MAX_PORTS: usize = 1024;
    pub const MAX_ALLOWED: usize = 64;

    /// On error, also the field, as the request names it.
    pub fn new(ports: Vec<PublishedPort>, allowed: Vec<IpNet>) -> Result<Self, (String, Invalid)> {
        let refuse = |field: String, text: String| Err((field, Invalid(text)));
        if ports.len() > Self::MAX_PORTS {
            let text = format!(
                "has {} entries; at most {} are allowed",
                ports.len(),
                Self::MAX_PORTS
            );
            return refuse("ports".to_owned(), text);
        }
        let mut held = Holders::default();
        for (index, port) in ports.iter().enumerate() {
            let field = |name| format!("ports[{index}].{name}");
            for (name, number) in [
                ("host_port", port.host_port),
                ("container_port", port.container_port),
            ] {
                if number == 0 {
                    return refuse(field(name), "is 0; 1 to 65535 are allowed".to_owned());
                }
            }
            if let Some(address) = port.host_address
                && !is_host_address(address)
            {
                let text = format!(
                    "is {address}; an address of the node is needed, or none for all of them"
                );
                return refuse(field("host_address"), text);
            }
            if let Some((earlier, ())) = held.conflict(port) {
                let text = format!(
                    "is {}, which {} takes already",
                    Shown(port),
                    Shown(&earlier)
                );
                return refuse(field("host_port"), text);
            }
            held.insert(*port, ());
        }
        if allowed.len() > Self::MAX_ALLOWED {
            let text = format!(
                "has {} entries; at most {} are allowed",
                allowed.len(),
                Self::MAX_ALLOWED
            );
            return refuse("allowed_addresses".to_owned(), text);
        }
        for (index, prefix) in allowed.iter().enumerate() {
            let field = format!("allowed_addresses[{index}]");
            if prefix.trunc() != *prefix {
                let text = format!(
                    "is {prefix}, which has host bits set; {} is meant?",
                    prefix.trunc()
                );
                return refuse(field, text);
            }
            if !is_source(*prefix) {
                let text = format!("is {prefix}, from which nobody can send across a router");
                return refuse(field, text);
            }
        }
        Ok(Self { ports, allowed })
    }

    pub fn ports(&self) -> &[PublishedPort] {
        &self.ports
    }

    pub fn allowed(&self) -> &[IpNet] {
        &self.allowed
    }

    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.allowed.is_empty()
    }

    /// As the dataplane wants it.
    pub fn desired(&self) -> Access {
        Access {
            ports: self.ports.clone(),
            allowed: self.allowed.clone(),
        }
    }

    /// The first thing in which `other` differs.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.ports != other.ports {
            Some("ports")
        } else if self.allowed != other.allowed {
            Some("allowed_addresses")
        } else {
            None
        }
    }

    /// Whether each port leads to one of these addresses.
    pub fn check_families(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        for (index, port) in self.ports.iter().enumerate() {
            let leads = match port.host_address {
                None => !addresses.is_empty(),
                Some(host) => addresses.iter().any(|own| own.is_ipv4() == host.is_ipv4()),
            };
            if !leads {
                return Err(Error::invalid(
                    format!("ports[{index}]"),
                    format!(
                        "is {}, but the workload has no address of that family",
                        Shown(port)
                    ),
                ));
            }
        }
        if addresses.is_empty() && !self.allowed.is_empty() {
            let text = "is not empty, but the workload has no interface of its own";
            return Err(Error::invalid("allowed_addresses", text));
        }
        Ok(())
    }
}

impl AccessSpec {
    /// Whether no program of the node would lose what is sent to it: packets to a published port
    /// never reach a socket. Of a port of every address, those families count of which the workload
    /// has an address.
    pub fn check_listeners(
        &self,
        addresses: &[IpAddr],
        listening: &[Listener],
    ) -> Result<(), Error> {
        for port in &self.ports {
            let loses = |listener: &&Listener| {
                (listener.protocol, listener.port) == (port.protocol, port.host_port)
                    && match port.host_address {
                        Some(host) => listener.takes(host),
                        // What is sent to groups is not for an address of the node.
                        None if listener.address.is_multicast() => false,
                        None => addresses
                            .iter()
                            .any(|own| listener.takes_family(own.is_ipv4())),
                    }
            };
            if let Some(listener) = listening.iter().find(loses) {
                return Err(Error::PortListened {
                    port: Shown(port).to_string(),
                    listener: *listener,
                });
            }
        }
        Ok(())
    }
}

/// 127.0.0.1 can be published; ::1 cannot, because the kernel never lets its packets leave the
/// loopback interface.
fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

fn is_source(prefix: IpNet) -> bool {
    if prefix.prefix_len() == 0 {
        return true;
    }
    match prefix.network() {
        IpAddr::V4(v4) => !(v4.octets()[0] == 0 || v4.is_loopback() || v4.octets()[0] >= 224),
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local())
        }
    }
}

/// As the command line writes it.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a PublishedPort);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PublishedPort {
            protocol,
            host_address,
            host_port,
            container_port,
        } = self.0;
        match host_address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{host_port}:{container_port}/{protocol}")
    }
}

/// Who holds which port of the node.
///
/// A port of every address and the same port of one address exclude each other: which of them a
/// packet means would depend on the address, and nobody expects that.
#[derive(Clone, Debug)]
pub struct Holders<H = WorkloadId> {
    by_port: BTreeMap<(Protocol, u16), Vec<(PublishedPort, H)>>,
}

impl<H> Default for Holders<H> {
    fn default() -> Self {
        Self {
            by_port: BTreeMap::new(),
        }
    }
}

impl<H: Clone + PartialEq> Holders<H> {
    /// Who stands in the way of a port.
    pub fn conflict(&self, port: &PublishedPort) -> Option<(PublishedPort, H)> {
        self.by_port
            .get(&(port.protocol, port.host_port))?
            .iter()
            .find(|(other, _)| {
                other.host_address.is_none()
                    || port.host_address.is_none()
                    || other.host_address == port.host_address
            })
            .cloned()
    }

    pub fn insert(&mut self, port: PublishedPort, holder: H) {
        self.by_port
            .entry((port.protocol, port.host_port))
            .or_default()
            .push((port, holder));
    }

    /// Frees what that holder holds of these.
    pub fn remove(&mut self, ports: &[PublishedPort], holder: &H) {
        for port in ports {
            let key = (port.protocol, port.host_port);
            let Some(list) = self.by_port.get_mut(&key) else {
                continue;
            };
            list.retain(|(other, by)| other != port || by != holder);
            if list.is_empty() {
                self.by_port.remove(&key);
            }
        }
    }
}

impl Holders<WorkloadId> {
    pub fn check(&self, access: &AccessSpec) -> Result<(), Error> {
        for port in access.ports() {
            if let Some((_, by)) = self.conflict(port) {
                return Err(Error::PortInUse {
                    port: Shown(port).to_string(),
                    by: by.to_string(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn port(host: &str, host_port: u16) -> PublishedPort {
        PublishedPort {
            protocol: Protocol::Tcp,
            host_address: (!host.is_empty()).then(|| host.parse().unwrap()),
            host_port,
            container_port: 80,
        }
    }

    #[test]
    fn a_port_excludes_the_same_port_of_the_same_or_of_every_address() {
        let mut holders = Holders::default();
        holders.insert(port("192.0.2.1", 80), "one");
        fn conflict(holders: &Holders<&'static str>, new: PublishedPort) -> Option<&'static str> {
            holders.conflict(&new).map(|(_, by)| by)
        }
        assert_eq!(conflict(&holders, port("192.0.2.1", 80)), Some("one"));
        assert_eq!(conflict(&holders, port("", 80)), Some("one"));
        assert_eq!(conflict(&holders, port("192.0.2.2", 80)), None);
        assert_eq!(conflict(&holders, port("192.0.2.1", 81)), None);
        let udp = PublishedPort {
            protocol: Protocol::Udp,
            ..port("", 80)
        };
        assert_eq!(conflict(&holders, udp), None);
        holders.insert(port("", 90), "all");
        assert_eq!(conflict(&holders, port("2001:db8::1", 90)), Some("all"));
        holders.remove(&[port("192.0.2.1", 80)], &"other");
        assert_eq!(conflict(&holders, port("", 80)), Some("one"));
        holders.remove(&[port("192.0.2.1", 80)], &"one");
        assert_eq!(conflict(&holders, port("", 80)), None);
    }

    #[test]
    fn what_cannot_be_published_or_sent_from_is_refused_by_field() {
        let refused = |ports: &[PublishedPort], allowed: &[&str]| {
            let allowed = allowed.iter().map(|net| net.parse().unwrap()).collect();
            AccessSpec::new(ports.to_vec(), allowed).map_err(|(field, _)| field)
        };
        let no_port = PublishedPort {
            container_port: 0,
            ..port("", 80)
        };
        for (ports, allowed, field) in [
            (vec![port("", 0)], vec![], "ports[0].host_port"),
            (vec![no_port], vec![], "ports[0].container_port"),
            (vec![port("::1", 80)], vec![], "ports[0].host_address"),
            (vec![port("0.0.0.0", 80)], vec![], "ports[0].host_address"),
            (
                vec![port("", 80), port("192.0.2.1", 80)],
                vec![],
                "ports[1].host_port",
            ),
            (vec![], vec!["10.0.0.1/8"], "allowed_addresses[0]"),
            (vec![], vec!["fe80::/64"], "allowed_addresses[0]"),
            (vec![], vec!["127.0.0.0/8"], "allowed_addresses[0]"),
        ] {
            let error = refused(&ports, &allowed).unwrap_err();
            assert_eq!(error, field);
        }
        let fine = [port("127.0.0.1", 80), port("192.0.2.1", 80), port("", 81)];
        assert!(refused(&fine, &["0.0.0.0/0", "2001:db8::/32"]).is_ok());
    }

    #[test]
    fn a_port_on_which_a_program_of_the_node_listens_is_refused() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let both = [v4, v6];
        for (published, listener, own, refused) in [
            ("", "0.0.0.0", &both[..], true),
            ("", "0.0.0.0", &[v6][..], false),
            ("", "::", &[v4][..], true),
            ("", "127.0.0.53", &both[..], true),
            ("", "::1", &[v4][..], false),
            ("", "224.0.0.251", &both[..], false),
            ("192.0.2.1", "0.0.0.0", &both[..], true),
            ("192.0.2.1", "192.0.2.1", &both[..], true),
            ("192.0.2.1", "192.0.2.2", &both[..], false),
            ("192.0.2.1", "127.0.0.1", &both[..], false),
            ("2001:db8::1", "0.0.0.0", &both[..], false),
            ("2001:db8::1", "::", &both[..], true),
        ] {
            let access = AccessSpec::new(vec![port(published, 80)], Vec::new()).unwrap();
            let listener = Listener {
                protocol: Protocol::Tcp,
                address: listener.parse().unwrap(),
                port: 80,
                both: listener == "::",
                uid: 0,
                inode: 7,
            };
            let answer = access.check_listeners(own, &[listener]);
            assert_eq!(answer.is_err(), refused, "{published:?} {listener} {own:?}");
            for other in [
                Listener {
                    port: 81,
                    ..listener
                },
                Listener {
                    protocol: Protocol::Udp,
                    ..listener
                },
            ] {
                assert!(access.check_listeners(own, &[other]).is_ok());
            }
        }
    }

    #[test]
    fn a_port_of_a_family_the_workload_does_not_have_is_refused() {
        let access = AccessSpec::new(vec![port("2001:db8::1", 80)], Vec::new()).unwrap();
        let v4 = ["10.0.0.1".parse().unwrap()];
        let v6 = ["fd00::1".parse().unwrap()];
        assert!(access.check_families(&v4).is_err());
        assert!(access.check_families(&v6).is_ok());
        let allowed = AccessSpec::new(Vec::new(), vec!["192.0.2.1/32".parse().unwrap()]).unwrap();
        assert!(allowed.check_families(&v4).is_ok());
        assert!(allowed.check_families(&[]).is_err());
    }
}
