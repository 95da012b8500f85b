//! How `agentd` ends when it cannot start: the exit status and what it says. The errors come before
//! anything is written to the kernel, so that no namespace is needed.

#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt as _},
    path::Path,
    process::{Command, Output},
};

struct Case {
    directory: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn config(&self, more: &str) -> std::path::PathBuf {
        let path = self.path().join("agentd.toml");
        let text = format!(
            r#"
[node]
name = "a"
address = "192.0.2.1"
state_dir = "{0}/state"
[api]
socket = "{0}/agentd.sock"
[[pool]]
name = "default"
cidr = "10.0.0.0/16"
{more}
"#,
            self.path().display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, config: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentd"));
        command
            .arg("--config")
            .arg(config)
            .env("RUST_BACKTRACE", "0");
        command
    }
}

/// The exit status, and that standard error says all of this.
fn check(output: &Output, code: i32, says: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for part in says {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

const METRICS_OFF: &str = "[telemetry]\nmetrics_listen = \"off\"";

#[test]
fn check_accepts_a_valid_configuration_and_says_so() {
    let case = Case::new();
    let config = case.config("");
    let output = case.command(&config).arg("--check").output().unwrap();
    check(&output, 0, &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("valid"));
    assert!(!case.path().join("state").exists(), "--check makes nothing");
}

#[test]
fn check_names_file_line_key_and_what_is_allowed() {
    let case = Case::new();
    let config = case.config("block_size = 33");
    let output = case.command(&config).arg("--check").output().unwrap();
    check(
        &output,
        2,
        &["agentd.toml:11: pool[0].block_size", "20 to 32"],
    );
}

#[test]
fn missing_configuration_and_unknown_option_end_with_2() {
    let case = Case::new();
    let output = case
        .command(&case.path().join("nope.toml"))
        .output()
        .unwrap();
    check(&output, 2, &["nope.toml", "cannot be read"]);
    let config = case.config("");
    let output = case.command(&config).arg("--nope").output().unwrap();
    check(&output, 2, &["--nope"]);
}

#[test]
fn foreign_file_in_the_place_of_the_state_is_left_alone() {
    let case = Case::new();
    let config = case.config(METRICS_OFF);
    let state = case.path().join("state/state.redb");
    std::fs::create_dir(case.path().join("state")).unwrap();
    std::fs::write(&state, "precious").unwrap();
    let output = case.command(&config).output().unwrap();
    check(&output, 6, &["state.redb", "node.state_dir"]);
    assert_eq!(std::fs::read_to_string(&state).unwrap(), "precious");
}

#[test]
fn socket_of_a_live_agent_is_not_taken() {
    let case = Case::new();
    let config = case.config(METRICS_OFF);
    let _live = UnixListener::bind(case.path().join("agentd.sock")).unwrap();
    let output = case.command(&config).output().unwrap();
    check(&output, 3, &["another agentd", "agentd.sock"]);
}

#[test]
fn metrics_port_in_use_is_named_with_its_key() {
    let case = Case::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = case.config(&format!("[telemetry]\nmetrics_listen = \"{address}\""));
    let output = case.command(&config).output().unwrap();
    check(
        &output,
        4,
        &["metrics_listen", &address.to_string(), "in use"],
    );
}

#[test]
fn bgp_without_any_router_id_says_which_keys_help() {
    let case = Case::new();
    let config = case.config(&format!("[bgp]\nasn = 64512\nlisten = []\n{METRICS_OFF}"));
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("address = \"192.0.2.1\"\n", "")).unwrap();
    let output = case.command(&config).output().unwrap();
    check(&output, 2, &["bgp.router_id", "node.address"]);
}

#[test]
fn missing_capability_is_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can start a program as somebody else");
        return;
    }
    let case = Case::new();
    // The built program may lie where only root can reach it.
    let program = case.path().join("agentd");
    std::fs::copy(env!("CARGO_BIN_EXE_agentd"), &program).unwrap();
    let config = case.config(METRICS_OFF);
    let output = Command::new(&program)
        .arg("--config")
        .arg(&config)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    check(&output, 5, &["CAP_NET_ADMIN"]);
}
