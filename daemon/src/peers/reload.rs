//! What a reload did, for people and programs.

use std::fmt;

use crate::config::ConfigErrors;

/// How a change came into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// No session was touched.
    Live,
    /// From the next session on.
    NextSession,
    /// The session was started anew.
    Reset,
    Added,
    Removed,
    /// Not done.
    Failed,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `peer tor-a`
    pub subject: String,
    pub effect: Effect,
    /// Which keys, or why not.
    pub text: String,
}

/// Everything a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub changes: Vec<Change>,
    /// Sections and keys.
    pub needs_restart: Vec<String>,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Live => "changed, no session touched",
            Effect::NextSession => "changed, in force from the next session on",
            Effect::Reset => "changed, session started anew",
            Effect::Added => "added",
            Effect::Removed => "removed",
            Effect::Failed => "not changed",
        })
    }
}

/// One line for each change, or for each error of the file.
pub fn log_reload(result: &Result<Report, ConfigErrors>) {
    match result {
        Ok(report) => {
            for Change {
                subject,
                effect,
                text,
            } in &report.changes
            {
                if *effect == Effect::Failed {
                    tracing::error!("reload: {subject}: {effect}: {text}");
                } else if text.is_empty() {
                    tracing::info!("reload: {subject}: {effect}");
                } else {
                    tracing::info!("reload: {subject}: {effect}: {text}");
                }
            }
            if !report.needs_restart.is_empty() {
                tracing::warn!(
                    sections = report.needs_restart.join(", "),
                    "reload: changes in these sections need a restart of agentd"
                );
            } else if report.changes.is_empty() {
                tracing::info!("reload: nothing has changed");
            } else {
                tracing::info!("reload: everything is applied");
            }
        }
        Err(errors) => {
            for error in errors.iter() {
                tracing::error!("reload: {error}");
            }
            tracing::error!("reload: the running configuration stays in force");
        }
    }
}
