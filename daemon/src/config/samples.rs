//! The samples in `deploy/config` stay true.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Config, sections};

fn parsed(text: &str) -> Config {
    Config::parse(text, Path::new("agentd.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

/// `deploy/config`
fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config")
}

#[test]
fn every_sample_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tor-a.key"), "secret\n").unwrap();
    let mut count = 0;
    for entry in fs::read_dir(samples()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let file = directory.path().join(path.file_name().unwrap());
        let config = Config::parse(&text, &file).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(config.to_string().contains(": valid; node "), "{config}");
        count += 1;
    }
    assert!(count >= 4, "only {count} samples");
}

/// The keys a file names, commented out or not: `bgp.peer.asn`.
fn named_keys(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        let line = line.trim_start_matches('#').trim_start();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']).to_owned();
            let mut path = String::new();
            for part in section.split('.') {
                path += part;
                keys.insert(path.clone());
                path.push('.');
            }
        } else if let Some((key, value)) = line.split_once(" = ")
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte == b'6')
        {
            keys.insert(format!("{section}.{key}"));
            if let Some((inner, _)) = value.strip_prefix("{ ").and_then(|v| v.split_once(" = ")) {
                keys.insert(format!("{section}.{key}.{inner}"));
            }
        }
    }
    keys
}

#[test]
fn the_reference_names_every_key() {
    let text = fs::read_to_string(samples().join("agentd.toml")).unwrap();
    let (_, known) = sections::parse(&text, Path::new("agentd.toml"));
    let named = named_keys(&text);
    let mut missing: Vec<&String> = known.difference(&named).collect();
    // Documented once, in [bgp].
    missing.retain(|key| {
        *key != "bgp.peer.graceful_restart.restart_time"
            && *key != "bgp.peer.graceful_restart.assume_forwarding"
            && *key != "bgp.peer.long_lived_graceful_restart.stale_time"
    });
    // Beside "ca", in one table.
    missing.retain(|key| !["ipam.etcd.tls.cert", "ipam.etcd.tls.key"].contains(&key.as_str()));
    // The same as in "match".
    missing.retain(|key| !key.starts_with("policy.rule.unless."));
    assert!(missing.is_empty(), "not in agentd.toml: {missing:?}");
    assert!(known.len() > 40, "{known:?}");
}

#[test]
fn lines_marked_default_in_the_reference_are_the_defaults() {
    let text = fs::read_to_string(samples().join("agentd.toml")).unwrap();
    let (defaults, others): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.ends_with("# default"));
    assert!(defaults.len() > 25, "{defaults:?}");
    assert_eq!(parsed(&text), parsed(&others.join("\n")));
}
