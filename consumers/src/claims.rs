//! Values that the drainer put into files because they are too large for a record (`large-row = "claim-check"`).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use schemas::sluice::v1::ClaimCheck;

/// A value in a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Nobody said where the files are.
    #[error(
        "a row's value lies in the file {name} below the drainer's output.claim-check-dir: make that directory readable \
         here and set feed.claim-check-dir"
    )]
    NoDirectory {
        /// The file.
        name: String,
    },
    /// The name leads out of the directory, or is none.
    #[error("a row's value is said to lie in {name:?}, which is no name that a drainer gives")]
    BadName {
        /// The name.
        name: String,
    },
    /// The file cannot be read.
    #[error("a row's value lies in {path}, which cannot be read (feed.claim-check-dir): {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not the one that was written.
    #[error("{path} is not what its row says: {what}")]
    Differs {
        /// The file.
        path: PathBuf,
        /// In what.
        what: String,
    },
}

/// Where the files of a feed are.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    directory: Option<PathBuf>,
}

impl Claims {
    /// Below `base`, the drainer's `claim-check-dir` as seen from here, for the feed `topic`.
    pub fn new(base: Option<&Path>, topic: &str) -> Self {
        Self { directory: base.map(|base| base.join(topic)) }
    }

    /// Reads and verifies a value. Blocks.
    pub fn fetch(&self, claim: &ClaimCheck) -> Result<Bytes, ClaimError> {
        let name = || claim.name.clone();
        let legal = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !claim.name.split('/').all(legal) {
            return Err(ClaimError::BadName { name: name() });
        }
        let directory = self.directory.as_ref().ok_or_else(|| ClaimError::NoDirectory { name: name() })?;
        let path = directory.join(&claim.name);
        let differs = |what: String| ClaimError::Differs { path: path.clone(), what };
        let unreadable = |source| ClaimError::Unreadable { path: path.clone(), source };
        let file = File::open(&path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        if length != claim.length {
            return Err(differs(format!("it has {length} bytes instead of {}", claim.length)));
        }
        let mut content = Vec::with_capacity(length as usize);
        file.take(length).read_to_end(&mut content).map_err(unreadable)?;
        let found = crc32c::crc32c(&content);
        if found != claim.checksum {
            return Err(differs(format!("its checksum is {found:08x} instead of {:08x}", claim.checksum)));
        }
        Ok(content.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_written_counts() {
        let base = tempfile::tempdir().unwrap();
        let claims = Claims::new(Some(base.path()), "feed");
        std::fs::create_dir_all(base.path().join("feed/20000")).unwrap();
        std::fs::write(base.path().join("feed/20000/7-1"), b"content").unwrap();
        std::fs::write(base.path().join("secret"), b"content").unwrap();
        let claim =
            |name: &str| ClaimCheck { name: name.into(), length: 7, checksum: crc32c::crc32c(b"content") };
        assert_eq!(claims.fetch(&claim("20000/7-1")).unwrap(), "content");
        let other = ClaimCheck { checksum: 1, ..claim("20000/7-1") };
        assert!(matches!(claims.fetch(&other), Err(ClaimError::Differs { .. })));
        let longer = ClaimCheck { length: u64::MAX, ..claim("20000/7-1") };
        assert!(matches!(claims.fetch(&longer), Err(ClaimError::Differs { .. })));
        assert!(matches!(claims.fetch(&claim("20000/8-1")), Err(ClaimError::Unreadable { .. })));
        for name in ["../secret", "/secret", "20000/../../secret", "", "a//b", "20000/.x"] {
            assert!(matches!(claims.fetch(&claim(name)), Err(ClaimError::BadName { .. })), "{name}");
        }
        let error = Claims::default().fetch(&claim("20000/7-1")).unwrap_err().to_string();
        assert!(error.contains("20000/7-1") && error.contains("feed.claim-check-dir"), "{error}");
    }
}
