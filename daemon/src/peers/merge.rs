//! The configuration file and the peers of the API as one configuration.

use std::path::Path;

use super::saved::Added;
use crate::config::{Bgp, Config, ConfigErrors};

/// One configuration, and the added peers that are not part of it, with the reason.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) config: Config,
    pub(super) left_out: Vec<(String, String)>,
}

/// Whether there is a peer or range of that name.
pub(super) fn has(config: &Config, name: &str) -> bool {
    let in_bgp = |bgp: &Bgp| {
        bgp.peers.iter().any(|peer| peer.name == name)
            || bgp.ranges.iter().any(|range| range.peer.name == name)
    };
    config.bgp.as_ref().is_some_and(in_bgp)
}

/// The file alone must be right. What the API added comes beside it, one after the other, as far
/// as it goes with what is there; the file comes first.
pub(super) fn merge(text: &str, file: &Path, added: &[Added]) -> Result<Merged, ConfigErrors> {
    let mut merged = Merged {
        config: Config::parse(text, file)?,
        left_out: Vec::new(),
    };
    let mut whole = text.to_owned();
    for one in added {
        if has(&merged.config, &one.name) {
            let reason = "the configuration file has a peer of that name".to_owned();
            merged.left_out.push((one.name.clone(), reason));
            continue;
        }
        let candidate = format!("{whole}\n{}", one.section);
        match Config::parse(&candidate, file) {
            Ok(config) => {
                merged.config = config;
                whole = candidate;
            }
            Err(errors) => {
                let reasons: Vec<String> = errors.iter().map(reason).collect();
                merged.left_out.push((one.name.clone(), reasons.join("; ")));
            }
        }
    }
    Ok(merged)
}

/// An error in a section that stands in no file: the key inside the section, and the reason.
fn reason(error: &crate::config::ConfigError) -> String {
    match field(&error.key) {
        Some(field) => format!("{field}: {}", error.reason),
        None => error.to_string(),
    }
}

/// `hold_time` of `bgp.peer[3].hold_time`.
pub(super) fn field(key: &str) -> Option<&str> {
    key.strip_prefix("bgp.peer[")?
        .split_once("]")?
        .1
        .strip_prefix('.')
}
