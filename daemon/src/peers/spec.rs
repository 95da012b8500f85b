//! A peer of the API as a section of the configuration, so that it is read and checked by the same
//! code as one of the file.

use std::fmt::Write as _;

use agentd_proto::v1::PeerSpec;

use crate::node::Error;

/// `[[bgp.peer]]` with what is set. Only what the section cannot express is an error here.
pub(super) fn section(spec: &PeerSpec) -> Result<String, Error> {
    let mut text = String::from("[[bgp.peer]]\n");
    // Writing to a String cannot fail.
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    for (key, value) in [
        ("name", &spec.name),
        ("address", &spec.address),
        ("range", &spec.range),
        ("local_address", &spec.local_address),
        ("password_file", &spec.password_file),
        ("import", &spec.import),
        ("export", &spec.export),
    ] {
        if !value.is_empty() {
            line(key, quoted(value));
        }
    }
    if !spec.password_file.is_empty() && !spec.password_file.starts_with('/') {
        return Err(Error::invalid(
            "peer.password_file",
            format!("is \"{}\"; an absolute path is needed", spec.password_file),
        ));
    }
    match spec.asns.as_slice() {
        [] => line("asn", quoted("external")),
        [asn] => line("asn", asn.to_string()),
        several => line("asn", format!("{several:?}")),
    }
    for (key, value) in [
        ("limit", spec.limit),
        ("port", spec.port),
        ("ttl_security", spec.ttl_security),
        ("multihop", spec.multihop),
        ("max_prefixes", spec.max_prefixes),
    ] {
        if value != 0 {
            line(key, value.to_string());
        }
    }
    for (key, value) in [
        ("passive", spec.passive),
        ("route_reflector_client", spec.route_reflector_client),
        ("blackhole", spec.blackhole),
    ] {
        if value {
            line(key, "true".to_owned());
        }
    }
    if !spec.families.is_empty() {
        let families: Vec<String> = spec.families.iter().map(|name| quoted(name)).collect();
        line("families", format!("[{}]", families.join(", ")));
    }
    if let Some(time) = &spec.hold_time {
        if time.seconds < 0 || time.nanos != 0 {
            return Err(Error::invalid("peer.hold_time", "needs whole seconds"));
        }
        line("hold_time", quoted(&format!("{}s", time.seconds)));
    }
    Ok(text)
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
