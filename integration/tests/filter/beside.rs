//! Beside tables of others.

use super::*;

#[test]
fn a_chain_of_another_program_that_drops_what_is_forwarded_is_named() {
    lab::run(|lab| {
        let site = site(lab, |_| {})?;
        let workload = add(lab, &site.agent, "w", &[], &[])?;
        let (v4, v6) = (workload.ipv4()?.to_string(), workload.ipv6()?.to_string());
        let host = site.agent.namespace();
        let text = site.agent.agentctl(&["explain", &v4])?;
        ensure!(!text.contains("firewall"), "{text}");
        host.show("nft add table ip fw")?;
        let chain = "nft add chain ip fw FORWARD { type filter hook forward priority 0 ; policy";
        host.show(&format!("{chain} accept ; }}"))?;
        let text = site.agent.agentctl(&["explain", &v4])?;
        ensure!(!text.contains("firewall"), "{text}");
        host.show(&format!("{chain} drop ; }}"))?;
        let text = site.agent.agentctl(&["explain", &v4])?;
        ensure!(text.contains("chain ip fw FORWARD"), "{text}");
        let text = site.agent.agentctl(&["explain", &v6])?;
        ensure!(!text.contains("firewall"), "of the other family: {text}");
        // Of ip_tables, where there is such a program and kernel, only that it is in use.
        if host.show("iptables-legacy -P FORWARD ACCEPT").is_ok() {
            let text = site.agent.agentctl(&["explain", &v4])?;
            ensure!(text.contains("iptables-legacy -S FORWARD"), "{text}");
            let text = site.agent.agentctl(&["explain", &v6])?;
            ensure!(!text.contains("firewall"), "of the other family: {text}");
        } else {
            println!("skipped: iptables-legacy");
        }
        // Nobody touched it.
        let table = host.show("nft list table ip fw")?;
        ensure!(table.contains("policy drop"), "{table}");
        Ok(())
    });
}
