//! `[ipam.etcd]`: the store that a fleet shares.
//!
//! Certificates, keys and the password are named by path and read at every connect, so that they
//! can be renewed while the agent runs. Here it is only checked that they are there.

use std::path::{Path, PathBuf};

use super::{
    Etcd, EtcdTls, Store,
    document::{Found, Section, Span},
    sections::{defaults, seconds},
};

const ENDPOINT: &str = "a URL such as \"https://192.168.26.10:2379\"";

/// `store` and `etcd` of `[ipam]`.
pub(super) fn read_store(section: &mut Section<'_, '_, '_>) -> (Store, Option<Etcd>) {
    let store = section.choice("store", &[("local", Store::Local), ("etcd", Store::Etcd)]);
    let etcd = read(section.section("etcd"));
    let span = store.as_ref().map(|found| found.span.clone());
    let store = store.map_or(Store::Local, |found| found.value);
    if store == Store::Etcd && section.value("etcd").is_none() {
        let reason = "\"etcd\" needs the section [ipam.etcd] with endpoints";
        section.error("store", span, reason);
    }
    (store, etcd)
}

fn read(mut section: Section<'_, '_, '_>) -> Option<Etcd> {
    let endpoints = read_endpoints(&mut section);
    let prefix = read_prefix(&mut section);
    let tls = read_tls(&mut section, &endpoints);
    let login = read_login(&mut section);
    let lease = section.duration("lease", seconds(5)..=seconds(3_600));
    let reclaim_after = read_reclaim(&mut section);
    let is_present = section.is_present();
    if is_present && section.value("endpoints").is_none() {
        section.error("endpoints", None, "is missing; it says where etcd is");
    }
    section.finish();
    is_present.then(|| Etcd {
        endpoints: endpoints.into_iter().map(|found| found.value).collect(),
        prefix,
        tls,
        login,
        lease: lease.map_or(defaults::ETCD_LEASE, |found| found.value),
        reclaim_after,
    })
}

fn read_endpoints(section: &mut Section<'_, '_, '_>) -> Vec<Found<String>> {
    let Some(list) = section.list::<String>("endpoints", ENDPOINT) else {
        return Vec::new();
    };
    if list.is_empty() {
        let span = section.value("endpoints").map(|value| value.span());
        section.error("endpoints", span, "is empty; name at least one member");
    }
    for (index, Found { value, span }) in list.iter().enumerate() {
        let rest = value
            .strip_prefix("https://")
            .or_else(|| value.strip_prefix("http://"));
        let valid =
            rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', ' ', '@', '?', '#']));
        if !valid {
            let reason = format!("\"{value}\" is not {ENDPOINT}");
            section.error_at("endpoints", index, span.clone(), reason);
        }
    }
    list
}

fn read_prefix(section: &mut Section<'_, '_, '_>) -> String {
    let Some(Found { value, span }) = section.string("prefix") else {
        return defaults::ETCD_PREFIX.to_owned();
    };
    if !value.starts_with('/') || value.ends_with('/') || value.len() > 200 {
        let reason = format!(
            "\"{value}\" is not a prefix; it starts with a slash and does not end with one, as \
             \"{}\" does",
            defaults::ETCD_PREFIX
        );
        section.error("prefix", Some(span), reason);
    }
    value.to_owned()
}

fn read_tls(section: &mut Section<'_, '_, '_>, endpoints: &[Found<String>]) -> Option<EtcdTls> {
    let mut table = section.section("tls");
    let ca = read_file(&mut table, "ca", true);
    let cert = read_file(&mut table, "cert", true);
    let key = read_file(&mut table, "key", true);
    let is_present = table.is_present();
    if cert.is_some() != key.is_some() {
        let (name, other) = if cert.is_some() {
            ("key", "cert")
        } else {
            ("cert", "key")
        };
        if table.value(name).is_none() {
            table.error(name, None, format!("is missing; it belongs to {other}"));
        }
    }
    table.finish();
    for (index, Found { value, span }) in endpoints.iter().enumerate() {
        let reason = match (is_present, value.starts_with("https://")) {
            (true, false) => "does not use TLS, but there is a section tls; write \"https://…\"",
            (false, true) => "needs tls, with at least ca",
            _ => continue,
        };
        section.error_at("endpoints", index, span.clone(), reason);
    }
    is_present.then_some(EtcdTls {
        ca,
        identity: cert.zip(key),
    })
}

fn read_login(section: &mut Section<'_, '_, '_>) -> Option<(String, PathBuf)> {
    let username = section.string("username");
    let password = read_file(section, "password_file", false);
    match (&username, section.value("password_file").is_some()) {
        (Some(found), false) => {
            let reason = "is missing; username needs it";
            section.error("password_file", Some(found.span.clone()), reason);
        }
        (None, true) => section.error("username", None, "is missing; password_file needs it"),
        _ => {}
    }
    Some((username?.value.to_owned(), password?))
}

fn read_reclaim(section: &mut Section<'_, '_, '_>) -> Option<std::time::Duration> {
    let value = section.value("reclaim_after")?;
    if value.get_ref().as_str() == Some("never") {
        return None;
    }
    // Shorter would take blocks from nodes that merely restart.
    section
        .duration("reclaim_after", seconds(60)..=seconds(31_536_000))
        .map(|found| found.value)
}

/// A file that is there now. Relative paths start at the directory of the configuration.
fn read_file(
    section: &mut Section<'_, '_, '_>,
    name: &'static str,
    is_pem: bool,
) -> Option<PathBuf> {
    let Found { value, span } = section.string(name)?;
    let directory = section.document.file.parent();
    let path = directory.map_or_else(|| PathBuf::from(value), |parent| parent.join(value));
    match check_file(&path, is_pem) {
        Ok(()) => Some(path),
        Err(reason) => {
            let span: Option<Span> = Some(span);
            section.error(name, span, reason);
            None
        }
    }
}

fn check_file(path: &Path, is_pem: bool) -> Result<(), String> {
    let shown = path.display();
    let content =
        std::fs::read(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if content.iter().all(u8::is_ascii_whitespace) {
        return Err(format!("{shown} is empty"));
    }
    if is_pem && !content.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(format!("{shown} is not in the PEM format"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "etcd_tests.rs"]
mod tests;
