//! Secrets: given by reference, never shown.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// A password, token or key: `env:NAME` (read from the environment), `file:/path` (the file's text, one trailing newline
/// cut off), or the text itself. Read each time it is asked for, so that a rotated file takes effect. Debug and Serialize
/// show the reference, or `***` for a literal.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Source);

#[derive(Clone, PartialEq, Eq)]
enum Source {
    Literal(String),
    Env(String),
    File(PathBuf),
}

/// A secret that cannot be had. Never contains it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment has no such variable (or its text is not UTF-8).
    #[error("the secret's environment variable {0} is not set")]
    Env(String),
    /// The file cannot be read.
    #[error("cannot read the secret's file {path}: {source}")]
    File {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Secret {
    /// The secret itself. Reads the environment or the file.
    pub fn reveal(&self) -> Result<String, SecretError> {
        match &self.0 {
            Source::Literal(text) => Ok(text.clone()),
            Source::Env(name) => std::env::var(name).map_err(|_| SecretError::Env(name.clone())),
            Source::File(path) => {
                let mut text = std::fs::read_to_string(path)
                    .map_err(|source| SecretError::File { path: path.clone(), source })?;
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                Ok(text)
            }
        }
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(if let Some(name) = text.strip_prefix("env:") {
            Source::Env(name.to_owned())
        } else if let Some(path) = text.strip_prefix("file:") {
            Source::File(PathBuf::from(path))
        } else {
            Source::Literal(text)
        })
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Literal(_) => f.write_str("***"),
            Source::Env(name) => write!(f, "env:{name}"),
            Source::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_never_shown() {
        let secret = Secret::from("hunter2");
        assert_eq!(secret.reveal().unwrap(), "hunter2");
        let shown = format!("{secret} {secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn references() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "pa ss\r\n").unwrap();
        let secret = Secret::from(format!("file:{}", path.display()));
        assert_eq!(secret.reveal().unwrap(), "pa ss");
        std::fs::write(&path, "rotated").unwrap();
        assert_eq!(secret.reveal().unwrap(), "rotated");
        std::fs::remove_file(&path).unwrap();
        assert!(secret.reveal().unwrap_err().to_string().contains("password"));

        let home: Secret = serde_json::from_str("\"env:PATH\"").unwrap();
        assert_eq!(home.reveal().unwrap(), std::env::var("PATH").unwrap());
        assert_eq!(home.to_string(), "env:PATH");
        let missing = Secret::from("env:SLUICE_NO_SUCH_VARIABLE").reveal().unwrap_err();
        assert!(missing.to_string().contains("SLUICE_NO_SUCH_VARIABLE"));
    }
}
