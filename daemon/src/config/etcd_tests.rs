//! `[ipam.etcd]` and `bgp.mesh`.
#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf, time::Duration};

use crate::config::{Config, Store};

fn parse(text: &str) -> Result<Config, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "node.pem", "node.key"] {
        fs::write(directory.path().join(name), "-----BEGIN X-----\n").unwrap();
    }
    fs::write(directory.path().join("password"), "secret\n").unwrap();
    fs::write(directory.path().join("empty"), "\n").unwrap();
    let file: PathBuf = directory.path().join("agentd.toml");
    Config::parse(text, &file).map_err(|errors| {
        errors
            .iter()
            .map(|error| format!("{}: {}", error.key, error.reason))
            .collect()
    })
}

#[track_caller]
fn check(text: &str, key: &str, reason: &str) {
    let errors = parse(text).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with(&format!("{key}: ")), "{errors:?}");
    assert!(errors[0].contains(reason), "{errors:?}");
}

#[test]
fn etcd_gets_every_default() {
    let config =
        parse("[ipam]\nstore = \"etcd\"\netcd = { endpoints = [\"http://192.0.2.1:2379\"] }\n")
            .unwrap();
    assert_eq!(config.ipam.store, Store::Etcd);
    let etcd = config.ipam.etcd.unwrap();
    assert_eq!(etcd.endpoints, ["http://192.0.2.1:2379"]);
    assert_eq!(etcd.prefix, "/agentd/v1");
    assert_eq!(etcd.lease, Duration::from_secs(15));
    assert_eq!(
        (etcd.tls, etcd.login, etcd.reclaim_after),
        (None, None, None)
    );
}

#[test]
fn tls_files_password_file_and_times_are_read() {
    let config = parse(
        "[ipam]\nstore = \"etcd\"\n[ipam.etcd]\nendpoints = [\"https://etcd-1:2379\"]\n\
         prefix = \"/fleet\"\ntls = { ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\" }\n\
         username = \"agentd\"\npassword_file = \"password\"\nlease = \"5s\"\nreclaim_after = \"1h\"\n",
    )
    .unwrap();
    let etcd = config.ipam.etcd.unwrap();
    let tls = etcd.tls.unwrap();
    assert!(tls.ca.unwrap().ends_with("ca.pem"));
    let (cert, key) = tls.identity.unwrap();
    assert!(cert.ends_with("node.pem") && key.ends_with("node.key"));
    let (username, password) = etcd.login.unwrap();
    assert_eq!(username, "agentd");
    assert!(password.ends_with("password"));
    assert_eq!(etcd.lease, Duration::from_secs(5));
    assert_eq!(etcd.reclaim_after, Some(Duration::from_secs(3600)));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    check(
        "[ipam]\nstore = \"etcd\"\n",
        "ipam.store",
        "needs the section [ipam.etcd]",
    );
    check("[ipam]\netcd = {}\n", "ipam.etcd.endpoints", "is missing");
    check(
        "[ipam]\netcd = { endpoints = [] }\n",
        "ipam.etcd.endpoints",
        "is empty",
    );
    check(
        "[ipam]\netcd = { endpoints = [\"192.0.2.1:2379\"] }\n",
        "ipam.etcd.endpoints[0]",
        "is not a URL",
    );
    let with =
        |more: &str| format!("[ipam.etcd]\nendpoints = [\"http://192.0.2.1:2379\"]\n{more}\n");
    check(
        &with("prefix = \"x/\""),
        "ipam.etcd.prefix",
        "is not a prefix",
    );
    check(
        &with("username = \"a\""),
        "ipam.etcd.password_file",
        "is missing",
    );
    check(
        &with("password_file = \"password\""),
        "ipam.etcd.username",
        "is missing",
    );
    check(
        &with("username = \"a\"\npassword_file = \"empty\""),
        "ipam.etcd.password_file",
        "is empty",
    );
    check(&with("lease = \"1s\""), "ipam.etcd.lease", "out of range");
    check(
        &with("reclaim_after = \"5s\""),
        "ipam.etcd.reclaim_after",
        "out of range",
    );
    check(
        &with("tls = { ca = \"ca.pem\" }"),
        "ipam.etcd.endpoints[0]",
        "does not use TLS",
    );
    let tls = |more: &str| {
        format!("[ipam.etcd]\nendpoints = [\"https://192.0.2.1:2379\"]\ntls = {{ {more} }}\n")
    };
    check(
        &tls("ca = \"password\""),
        "ipam.etcd.tls.ca",
        "not in the PEM format",
    );
    check(
        &tls("ca = \"none.pem\""),
        "ipam.etcd.tls.ca",
        "cannot be read",
    );
    check(
        &tls("cert = \"node.pem\""),
        "ipam.etcd.tls.key",
        "is missing",
    );
    check(
        "[ipam.etcd]\nendpoints = [\"https://192.0.2.1:2379\"]\n",
        "ipam.etcd.endpoints[0]",
        "needs tls",
    );
}

#[test]
fn a_mesh_needs_the_registry_and_takes_what_peers_inherit() {
    check(
        "[bgp]\nasn = 64512\nmesh = true\n",
        "bgp.mesh",
        "store = \"etcd\"",
    );
    let etcd = "[ipam]\nstore = \"etcd\"\netcd = { endpoints = [\"http://192.0.2.1:2379\"] }\n";
    let text = format!("{etcd}[bgp]\nasn = 64512\nmesh = true\n");
    check(&text, "bgp.mesh", "needs node.address");
    let node = "[node]\naddress = \"192.0.2.9\"\n";
    let text = format!("{node}{text}hold_time = \"30s\"\n");
    let mesh = parse(&text).unwrap().bgp.unwrap().mesh.unwrap();
    assert_eq!(mesh.hold_time, Duration::from_secs(30));
    assert_eq!(mesh.port, 179);
    let text = format!("{etcd}[bgp]\nasn = 64512\n");
    assert_eq!(parse(&text).unwrap().bgp.unwrap().mesh, None);
}
