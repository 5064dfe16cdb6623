//! Configuration: TOML files with real types, secrets by reference, errors that name file, line and key.
//!
//! Precedence is flag, then environment, then file, then default: let clap settle the first two (`#[arg(long, env)]` on
//! `Option` fields), [`load`] the file, then [`overlay`] one over the other, then [`Validate::validate`] the whole.

mod address;
mod duration;
mod secret;

use std::path::{Path, PathBuf};

pub use address::{Addresses, listed, validate_pd_urls};
pub use bytesize::ByteSize;
pub use duration::{DurationError, HumanDuration, days, parse_days, parse_seconds, seconds};
pub use secret::{Secret, SecretError};
use serde::de::DeserializeOwned;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Read {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not the TOML that is expected: syntax, an unknown key, a value of the wrong kind.
    #[error("{name}:{line}:{column}: {}{message}", key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
    Parse {
        /// File name, or what the text was called.
        name: String,
        /// Counted from one.
        line: usize,
        /// Counted from one, in bytes.
        column: usize,
        /// Dotted path of the key, where one can be told.
        key: Option<String>,
        /// What is wrong. Never shows the value's text as written, which may be a secret.
        message: String,
    },
    /// Well-formed, but a value makes no sense.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// A value that makes no sense, by its dotted key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration: {field}: {reason}")]
pub struct Invalid {
    /// Dotted key, as in the file: `storage.sync-log`.
    pub field: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl Invalid {
    /// `field` as a dotted key, `reason` as a sentence that also says what to do.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// The same complaint from a section that is embedded as `section`.
    #[must_use]
    pub fn within(self, section: &str) -> Self {
        Self { field: format!("{section}.{}", self.field), reason: self.reason }
    }
}

/// A configuration that can tell whether it makes sense.
pub trait Validate {
    /// Checks what types cannot; names the first field that is wrong.
    fn validate(&self) -> Result<(), Invalid>;
}

/// Reads a TOML file. Use `#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]` on the type.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
    parse(&text, &path.display().to_string())
}

/// Parses TOML text; `name` stands for the file in errors.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let (line, column) = position(text, at);
        ConfigError::Parse {
            name: name.to_owned(),
            line,
            column,
            key: key_at(text, at),
            message: error.message().trim().replace('\n', ", "),
        }
    })
}

/// Puts what a flag or the environment gave over what the file gave.
pub fn overlay<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (line, at - start + 1)
}

/// The dotted key whose line holds `at`, if the line is of the form `key = …`.
fn key_at(text: &str, at: usize) -> Option<String> {
    let mut section = String::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        let holds = (offset..offset + line.len()).contains(&at) || offset + line.len() == text.len();
        if trimmed.starts_with('[') {
            section = trimmed
                .split('#')
                .next()
                .unwrap_or_default()
                .trim()
                .trim_matches(['[', ']'])
                .trim()
                .to_owned();
            if holds {
                return (!section.is_empty()).then_some(section);
            }
        } else if holds {
            let (key, _) = trimmed.split_once('=')?;
            let key = key.trim();
            return Some(if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") });
        }
        offset += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct Sample {
        addr: String,
        #[serde(deserialize_with = "seconds")]
        heartbeat_interval: HumanDuration,
        #[serde(deserialize_with = "days")]
        gc: HumanDuration,
        storage: Storage,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct Storage {
        stop_write_at_available_space: ByteSize,
        sync_log: bool,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(text, "pump.toml").unwrap_err().to_string()
    }

    #[test]
    fn units_of_the_original() {
        let sample: Sample = parse(
            "addr = \"a:1\"\nheartbeat-interval = 2\ngc = \"7\"\n[storage]\nstop-write-at-available-space = \"42 mib\"",
            "x",
        )
        .unwrap();
        assert_eq!(sample.heartbeat_interval, HumanDuration::from_secs(2));
        assert_eq!(sample.gc, HumanDuration::from_secs(7 * 86_400));
        assert_eq!(sample.storage.stop_write_at_available_space.as_u64(), 42 << 20);
    }

    #[test]
    fn a_misspelt_key_is_named_with_file_and_line() {
        let text = "addr = \"a:1\"\n\n[storage]\nsync-logs = true\n";
        let message = error(text);
        assert!(
            message.starts_with("pump.toml:4:1: storage.sync-logs: unknown field `sync-logs`"),
            "{message}"
        );
        assert!(message.contains("`sync-log`"), "{message}");
        assert!(error("adr = 1").starts_with("pump.toml:1:1: adr: unknown field"), "{}", error("adr = 1"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let message = error("addr = \"x\"\nheartbeat-interval = \"2 parsecs\"\n");
        assert!(message.starts_with("pump.toml:2:22: heartbeat-interval: "), "{message}");
        assert!(message.contains("parsecs"), "{message}");
        let message = error("addr = [");
        assert!(message.starts_with("pump.toml:1:"), "{message}");
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = load::<Sample>(Path::new("/no/such/pump.toml")).unwrap_err().to_string();
        assert!(error.contains("/no/such/pump.toml"), "{error}");
    }

    #[test]
    fn sections_prefix_their_fields() {
        let invalid = Invalid::new("ssl-cert", "is missing").within("security");
        assert_eq!(invalid.to_string(), "configuration: security.ssl-cert: is missing");
    }
}
