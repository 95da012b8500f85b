//! Workloads on one bridge share a link, and cannot take each other's traffic on it.

use super::*;

/// Of `eth0` in a namespace.
fn mac_of(namespace: &Netns) -> Result<[u8; 6]> {
    let text = namespace.show("cat /sys/class/net/eth0/address")?;
    let octets = text
        .trim()
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16));
    let octets: Vec<u8> = octets.collect::<Result<_, _>>()?;
    octets.try_into().ok().context(text)
}

#[test]
fn workloads_on_a_bridge_cannot_answer_for_each_other() {
    lab::run(|lab| {
        let site = site(lab, |config| {
            config.extra = "[[bridge]]\nname = \"apps0\"\ncidr = \"172.30.0.0/24\"\n\
                            cidr6 = \"fd00:172:30::/64\"\n"
                .to_owned();
        })?;
        let agent = &site.agent;
        let add = |id: &str| -> Result<(Netns, Vec<IpAddr>, [u8; 6])> {
            let namespace = lab.namespace(id)?;
            let request = v1::AddWorkloadRequest {
                attachment: v1::Attachment::Bridged.into(),
                bridge: "apps0".to_owned(),
                ..request(id, &namespace)
            };
            let added = agent.client().add(request)?.workload.context("workload")?;
            let parse = |address: &v1::WorkloadAddress| address.address.parse();
            let addresses = added
                .addresses
                .iter()
                .map(parse)
                .collect::<Result<_, _>>()?;
            let mac = mac_of(&namespace)?;
            Ok((namespace, addresses, mac))
        };
        let (one, one_addresses, one_mac) = add("one")?;
        let (two, two_addresses, two_mac) = add("two")?;
        let (bad, bad_addresses, bad_mac) = add("bad")?;
        let reachable = |from: &Netns, to: &[IpAddr]| -> Result<()> {
            for address in to {
                lab::ping::ping_all(from, *address, 2)?;
            }
            Ok(())
        };
        reachable(&one, &two_addresses)?;
        reachable(&one, &bad_addresses)?;
        reachable(&bad, &one_addresses)?;
        // What one and the host believe of two, and one of the gateway.
        let gateways: [IpAddr; 2] = [address("172.30.0.1"), address("fd00:172:30::1")];
        reachable(&one, &gateways)?;
        reachable(agent.namespace(), &two_addresses)?;
        for (index, asked) in one_addresses.iter().enumerate() {
            for target in [two_addresses[index], gateways[index]] {
                spoof::claim_on_a_bridge(&bad, bad_mac, target, (*asked, one_mac))?;
            }
        }
        spoof::router_advertisement(&bad)?;
        spoof::steal_mac(&bad, two_mac)?;
        let bad_text = bad_mac.map(|octet| format!("{octet:02x}")).join(":");
        for target in two_addresses.iter().chain(&gateways) {
            let entry = one.show(&format!("ip neighbour show {target}"))?;
            ensure!(!entry.is_empty() && !entry.contains(&bad_text), "{entry}");
        }
        for place in [&one, &two] {
            let routes = place.show("ip -6 route")? + &place.show("ip -6 address")?;
            ensure!(!routes.contains("2001:db8:bad"), "{routes}");
        }
        let learned = agent.namespace().show("bridge fdb show br apps0")?;
        let text = two_mac.map(|octet| format!("{octet:02x}")).join(":");
        let lines: Vec<&str> = learned
            .lines()
            .filter(|line| line.contains(&text))
            .collect();
        let port = agent.client().get("two")?.host_interface;
        ensure!(lines.iter().all(|line| line.contains(&port)), "{learned}");
        // From an address of the other, to the host's own and to a neighbour.
        bad.show(&format!("ip address add {}/32 dev lo", two_addresses[0]))?;
        for to in [one_addresses[0], gateways[0]] {
            let from = two_addresses[0].to_string();
            let to = to.to_string();
            let command = [
                "ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-I", &from, &to,
            ];
            ensure!(bad.output(command).is_err(), "{from} to {to}");
        }
        reachable(&one, &two_addresses)?;
        reachable(&one, &gateways)?;
        reachable(agent.namespace(), &two_addresses)?;
        let chain = agent
            .namespace()
            .show("nft list chain bridge agentd members")?;
        ensure!(
            chain.matches("packets 0 ").count() < chain.matches("packets").count(),
            "{chain}"
        );

        // Who may use more addresses may use them here, too; and all of it outlives a restart.
        agent.kill()?;
        let monitor = Monitor::start(lab, agent.namespace())?;
        agent.start()?;
        ensure!(monitor.writes().is_empty(), "{:?}", monitor.writes());
        reachable(&one, &two_addresses)
    });
}
