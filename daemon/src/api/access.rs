//! Published ports and allowed addresses, between messages and domain types.

use agentd_proto::v1;
use dataplane::desired::{Protocol, PublishedPort};
use ipnet::IpNet;

use super::parse;
use crate::node::{Error, access::AccessSpec, spec::Invalid};

pub(super) fn parse(ports: &[v1::PublishedPort], allowed: &[String]) -> Result<AccessSpec, Error> {
    let ports = ports
        .iter()
        .enumerate()
        .map(|(index, port)| published(&format!("ports[{index}]"), port))
        .collect::<Result<Vec<_>, _>>()?;
    let allowed = allowed
        .iter()
        .enumerate()
        .map(|(index, text)| prefix(&format!("allowed_addresses[{index}]"), text))
        .collect::<Result<Vec<_>, _>>()?;
    AccessSpec::new(ports, allowed).map_err(|(field, Invalid(text))| Error::invalid(field, text))
}

fn published(field: &str, port: &v1::PublishedPort) -> Result<PublishedPort, Error> {
    let number = |name: &str, number: u32| {
        u16::try_from(number).map_err(|_| {
            let text = format!("is {number}; 1 to 65535 are allowed");
            Error::invalid(format!("{field}.{name}"), text)
        })
    };
    let protocol = match v1::Protocol::try_from(port.protocol) {
        Ok(v1::Protocol::Unspecified | v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => {
            return Err(Error::invalid(
                format!("{field}.protocol"),
                format!(
                    "is {}; TCP (1), UDP (2) and SCTP (3) are known",
                    port.protocol
                ),
            ));
        }
    };
    let host_address = match port.host_address.as_str() {
        "" => None,
        text => Some(parse::address(&format!("{field}.host_address"), text)?),
    };
    Ok(PublishedPort {
        protocol,
        host_address,
        host_port: number("host_port", port.host_port)?,
        container_port: number("container_port", port.container_port)?,
    })
}

fn prefix(field: &str, text: &str) -> Result<IpNet, Error> {
    parse::prefix(field, text)?
        .ok_or_else(|| Error::invalid(field, "is empty; an address or a prefix is needed"))
}

pub(super) fn port(port: &PublishedPort) -> v1::PublishedPort {
    v1::PublishedPort {
        host_address: port
            .host_address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: match port.protocol {
            Protocol::Tcp => v1::Protocol::Tcp,
            Protocol::Udp => v1::Protocol::Udp,
            Protocol::Sctp => v1::Protocol::Sctp,
        }
        .into(),
    }
}

/// A single address without prefix length.
pub(super) fn allowed(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn message(host: &str, host_port: u32, protocol: i32) -> v1::PublishedPort {
        v1::PublishedPort {
            host_address: host.to_owned(),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn what_is_parsed_is_rendered_the_same() {
        let ports = [
            message("192.0.2.1", 8080, v1::Protocol::Tcp.into()),
            message("2001:db8::1", 53, v1::Protocol::Udp.into()),
            message("", 9899, v1::Protocol::Sctp.into()),
        ];
        let allowed = ["192.0.2.7".to_owned(), "2001:db8::/64".to_owned()];
        let access = parse(&ports, &allowed).unwrap();
        let rendered: Vec<_> = access.ports().iter().map(port).collect();
        assert_eq!(rendered, ports);
        let rendered: Vec<_> = access.allowed().iter().map(super::allowed).collect();
        assert_eq!(rendered, allowed);
    }

    #[test]
    fn malformed_ports_are_refused_by_field() {
        let field = |port, allowed: &[String]| match parse(&[port], allowed) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(message("", 70_000, 1), &[]), "ports[0].host_port");
        assert_eq!(field(message("", 1, 9), &[]), "ports[0].protocol");
        assert_eq!(field(message("node", 1, 1), &[]), "ports[0].host_address");
        let empty = [String::new()];
        assert_eq!(field(message("", 1, 1), &empty), "allowed_addresses[0]");
    }
}
