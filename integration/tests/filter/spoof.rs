//! Frames that a workload should not send, built by hand, and what became of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::netns::Netns;

/// Of whoever sends these frames.
const MAC: [u8; 6] = [0x02, 0x66, 0x66, 0x66, 0x66, 0x66];
pub const MAC_TEXT: &str = "02:66:66:66:66:66";
/// The host's end of every workload's link.
const HOST: [u8; 6] = [0xee; 6];
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
const ETH_P_ALL: u16 = 3;

/// A packet socket on `eth0` of a namespace.
fn packet_socket(namespace: &Netns) -> Result<OwnedFd> {
    namespace.enter(|| -> Result<OwnedFd> {
        // SAFETY: plain system calls; the address lives until `bind` has returned.
        unsafe {
            let raw = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(ETH_P_ALL.to_be()),
            );
            ensure!(raw >= 0, "{}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(raw);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ETH_P_ALL.to_be();
            address.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()) as i32;
            let length = std::mem::size_of_val(&address) as libc::socklen_t;
            let outcome = libc::bind(raw, (&raw const address).cast(), length);
            ensure!(outcome == 0, "{}", std::io::Error::last_os_error());
            Ok(socket)
        }
    })?
}

fn send(namespace: &Netns, frame: &[u8]) -> Result<()> {
    let socket = packet_socket(namespace)?;
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    ensure!(
        usize::try_from(sent) == Ok(frame.len()),
        "{}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, MAC].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// An ICMPv6 message with hop limit 255 (RFC 4861).
fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, mac: [u8; 6], mut message: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short");
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&message);
    let sum = checksum(&pseudo).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(length).expect("short").to_be_bytes());
    packet.extend([58, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    ethernet(mac, 0x86dd, &packet)
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Says that this address is here: unasked ARP answers and requests, or neighbour advertisements,
/// to the host and to everybody.
pub fn claim(namespace: &Netns, address: IpAddr) -> Result<()> {
    match address {
        IpAddr::V4(address) => {
            for (operation, to) in [(2_u16, HOST), (2, [0xff; 6]), (1, [0xff; 6])] {
                let mut arp = vec![0, 1, 8, 0, 6, 4];
                arp.extend(operation.to_be_bytes());
                arp.extend(MAC);
                arp.extend(address.octets());
                arp.extend([0xee; 6]);
                arp.extend(match operation {
                    2 => Ipv4Addr::new(169, 254, 1, 1).octets(),
                    _ => address.octets(),
                });
                send(namespace, &ethernet(to, 0x0806, &arp))?;
            }
        }
        IpAddr::V6(address) => {
            // Override flag, target, and the option with the sender's link-layer address.
            let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
            message.extend(address.octets());
            message.extend([2, 1]);
            message.extend(MAC);
            for (to, mac) in [(GATEWAY, HOST), (ALL_NODES, ALL_NODES_MAC)] {
                send(namespace, &icmpv6(address, to, mac, message.clone()))?;
                let own = "fe80::66".parse()?;
                send(namespace, &icmpv6(own, to, mac, message.clone()))?;
            }
        }
    }
    Ok(())
}

/// Says with the sender's own MAC address that this address is here, to everybody on the bridge and
/// to one of them.
pub fn claim_on_a_bridge(
    namespace: &Netns,
    own: [u8; 6],
    address: IpAddr,
    victim: (IpAddr, [u8; 6]),
) -> Result<()> {
    let with_own = |mut frame: Vec<u8>| {
        frame[6..12].copy_from_slice(&own);
        frame
    };
    match (address, victim) {
        (IpAddr::V4(address), (IpAddr::V4(asked), mac)) => {
            for (operation, to) in [(2_u16, mac), (2, [0xff; 6]), (1, [0xff; 6]), (1, mac)] {
                let mut arp = vec![0, 1, 8, 0, 6, 4];
                arp.extend(operation.to_be_bytes());
                arp.extend(own);
                arp.extend(address.octets());
                arp.extend(mac);
                arp.extend(asked.octets());
                send(namespace, &with_own(ethernet(to, 0x0806, &arp)))?;
            }
        }
        (IpAddr::V6(address), (IpAddr::V6(asked), mac)) => {
            let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
            message.extend(address.octets());
            message.extend([2, 1]);
            message.extend(own);
            for (to, mac) in [(asked, mac), (ALL_NODES, ALL_NODES_MAC)] {
                let frame = icmpv6(address, to, mac, message.clone());
                send(namespace, &with_own(frame))?;
            }
        }
        _ => anyhow::bail!("two families"),
    }
    Ok(())
}

/// A frame from the MAC address of somebody else, which bridges learn from.
pub fn steal_mac(namespace: &Netns, mac: [u8; 6]) -> Result<()> {
    let mut frame = ethernet([0xff; 6], 0x0806, &[0; 28]);
    frame[6..12].copy_from_slice(&mac);
    send(namespace, &frame)
}

/// A router that wants to be everybody's default.
pub fn router_advertisement(namespace: &Netns) -> Result<()> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x70, 0x80, 0, 0, 0, 0, 0, 0, 0, 0];
    // A prefix to configure addresses from.
    message.extend([3, 4, 64, 0xc0]);
    message.extend([0xff; 8]);
    message.extend([0; 4]);
    message.extend("2001:db8:bad::".parse::<Ipv6Addr>()?.octets());
    let own = "fe80::66".parse()?;
    send(
        namespace,
        &icmpv6(own, ALL_NODES, ALL_NODES_MAC, message.clone()),
    )?;
    send(namespace, &icmpv6(own, GATEWAY, HOST, message))
}

/// RFC 4861 §4.5: that address is better reached by way of me.
pub fn redirect(namespace: &Netns) -> Result<()> {
    let own: Ipv6Addr = "fe80::66".parse()?;
    let mut message = vec![137, 0, 0, 0, 0, 0, 0, 0];
    message.extend(own.octets());
    message.extend("2001:db8::1".parse::<Ipv6Addr>()?.octets());
    send(namespace, &icmpv6(own, GATEWAY, HOST, message))
}

/// Sends an SCTP INIT (RFC 9260 §3.3.2) and looks whether it arrives, with this destination.
pub fn sctp_init(
    from: &Netns,
    to: IpAddr,
    port: u16,
    at: &Netns,
    expected: IpAddr,
    expected_port: u16,
) -> Result<bool> {
    let (IpAddr::V4(_), IpAddr::V4(expected)) = (to, expected) else {
        anyhow::bail!("IPv4 only");
    };
    let watch = packet_socket(at)?;
    let mut chunk = vec![1, 0, 0, 20];
    chunk.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let mut packet = Vec::new();
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend(chunk);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    from.enter(|| -> Result<()> {
        // SAFETY: plain system calls on a descriptor that is owned here, with valid buffers.
        unsafe {
            let raw = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 132);
            ensure!(raw >= 0, "{}", std::io::Error::last_os_error());
            let _socket = OwnedFd::from_raw_fd(raw);
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as u16;
            let IpAddr::V4(to) = to else { return Ok(()) };
            address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
            let sent = libc::sendto(
                raw,
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                std::mem::size_of_val(&address) as libc::socklen_t,
            );
            ensure!(sent > 0, "{}", std::io::Error::last_os_error());
        }
        Ok(())
    })??;
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut buffer = [0_u8; 2048];
    while Instant::now() < deadline {
        // SAFETY: the buffer is valid for its length.
        let length = unsafe {
            libc::recv(
                watch.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let frame = &buffer[..length];
        // Behind the Ethernet header: protocol, destination, and the ports.
        let right = frame.get(23) == Some(&132)
            && frame.get(30..34) == Some(&expected.octets()[..])
            && frame.get(36..38) == Some(&expected_port.to_be_bytes()[..]);
        if right {
            return Ok(true);
        }
    }
    Ok(false)
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// Packets that the table has dropped, as nft shows its counters.
pub fn dropped(agent: &Agent, reason: &str) -> Result<u64> {
    let marks = match reason {
        "router_advertisement" => "nd-router-advert",
        "redirect" => "nd-redirect",
        _ => "",
    };
    let chain = agent
        .namespace()
        .show("nft list chain inet agentd source")?;
    let line = chain
        .lines()
        .rfind(|line| line.contains("drop") && line.contains(marks))
        .with_context(|| chain.clone())?;
    let packets = line
        .split_whitespace()
        .skip_while(|word| *word != "packets")
        .nth(1)
        .with_context(|| line.to_owned())?;
    Ok(packets.parse()?)
}
