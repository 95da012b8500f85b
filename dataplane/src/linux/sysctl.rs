//! Kernel parameters below /proc/sys.
//!
//! Which namespace a path below `net` belongs to is decided by the thread that opens it.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

/// Some IPv4 parameters of an interface can be set in one message with others
/// (IFLA_AF_SPEC/AF_INET/IFLA_INET_CONF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByMessage<'a> {
    /// IPV4_DEVCONF_* number.
    Conf { interface: &'a str, number: u16 },
    /// NDTPA_PROXY_DELAY.
    ProxyDelay { interface: &'a str },
}

/// Tells whether a parameter can be written by a netlink message.
pub(super) fn by_message(path: &str) -> Option<ByMessage<'_>> {
    let mut parts = path.strip_prefix("net/ipv4/")?.split('/');
    let (table, interface, key) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || matches!(interface, "all" | "default") {
        return None;
    }
    match (table, key) {
        ("neigh", "proxy_delay") => Some(ByMessage::ProxyDelay { interface }),
        ("conf", key) => {
            // include/uapi/linux/ip.h
            let number = match key {
                "forwarding" => 1,
                "proxy_arp" => 3,
                "send_redirects" => 6,
                "rp_filter" => 8,
                "arp_ignore" => 19,
                "accept_local" => 23,
                "route_localnet" => 26,
                _ => return None,
            };
            Some(ByMessage::Conf { interface, number })
        }
        _ => None,
    }
}

fn file(path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(Path::new("/proc/sys").join(relative))
}

pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(file(path)?)?
        .write_all(value.as_bytes())
}

/// `None`: there is no such parameter.
pub(super) fn read(path: &str) -> io::Result<Option<String>> {
    let mut text = String::new();
    let opened = OpenOptions::new().read(true).open(file(path)?);
    match opened.and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
