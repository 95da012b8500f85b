//! What is wrong with a configuration file, for the person who wrote it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// One finding: `FILE:LINE: KEY: REASON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Starting at 1; `None` when it belongs to no line, as with a file that cannot be read.
    pub line: Option<usize>,
    /// As `pool[0].block_size`; empty when it belongs to no key.
    pub key: String,
    /// What is wrong, with the value, and what is allowed.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.reason)
    }
}

/// Everything that is wrong with the file, in the order of its lines; at least one error. Shown
/// as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// One that belongs to no line.
    pub fn of_file(file: &Path, reason: String) -> Self {
        ConfigErrors {
            errors: vec![ConfigError {
                file: file.to_owned(),
                line: None,
                key: String::new(),
                reason,
            }],
        }
    }

    /// `None` when there are none.
    pub(super) fn collect(mut errors: Vec<ConfigError>) -> Option<Self> {
        errors.sort_by_key(|error| error.line);
        errors.dedup();
        (!errors.is_empty()).then_some(ConfigErrors { errors })
    }

    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.errors.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
