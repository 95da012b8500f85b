use std::{path::Path, time::Duration};

use super::*;

/// The errors of `text`, one line each.
fn errors(text: &str) -> Vec<String> {
    match Config::parse(text, Path::new("agentd.toml")) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// `text` has exactly this error.
#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(errors(text), [expected.to_owned()], "in:\n{text}");
}

#[track_caller]
fn parsed(text: &str) -> Config {
    Config::parse(text, Path::new("agentd.toml")).expect("a valid configuration")
}

#[test]
fn an_empty_file_is_a_node_without_pools_and_bgp_and_with_every_default() {
    let config = parsed("[node]\nname = \"a\"\n");
    assert_eq!(
        config,
        Config {
            file: "agentd.toml".into(),
            node: Node {
                name: "a".into(),
                address: None,
                address6: None,
                state_dir: "/var/lib/agentd".into(),
            },
            api: Api {
                socket: "/run/agentd/agentd.sock".into(),
            },
            pools: Vec::new(),
            ipam: Ipam {
                cooldown: Duration::from_secs(130),
                claim_ahead: 75,
                release_empty_after: Duration::from_secs(600),
            },
            bgp: None,
            telemetry: Telemetry {
                metrics_listen: Some("127.0.0.1:9472".parse().expect("an address")),
            },
            log: Log {
                format: LogFormat::Auto,
                level: "info".into(),
            },
        }
    );
}

#[test]
fn the_node_is_named_after_the_host_by_default() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    assert_eq!(parsed("").node.name, host.trim_end());
}

#[test]
fn an_error_names_file_line_key_value_and_what_is_allowed() {
    check(
        "\n\n[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\nblock_size = 19\n",
        "agentd.toml:6: pool[0].block_size: 19 is out of range; IPv4 pools take 20 to 32",
    );
}

#[test]
fn all_errors_come_at_once_in_the_order_of_lines() {
    let text = "[log]\nlevel = \"loud\"\ncolour = true\n[[pool]]\nname = \"\"\ncidr = 7\n[bgp]\n";
    let errors = errors(text);
    let lines: Vec<&str> = errors
        .iter()
        .map(|error| error.split(": ").next().expect("a place"))
        .collect();
    assert_eq!(
        lines,
        [
            "agentd.toml:2",
            "agentd.toml:3",
            "agentd.toml:5",
            "agentd.toml:6",
            "agentd.toml:7"
        ],
        "{errors:#?}"
    );
}
