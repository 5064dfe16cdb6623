//! `<data-dir>/savepoint`: the commit_ts that a drainer starts from, in the original's file: TOML with `commitTS`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tidb::ts::{CommitTs, Tso};

use crate::config::{ConfigError, parse};
use crate::data_dir::replace_file;

/// Why a savepoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SavepointError {
    /// The file system.
    #[error("savepoint {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not the TOML that is expected.
    #[error("savepoint: {0}")]
    Parse(#[from] ConfigError),
}

/// The original's drainer also keeps `consistent` and `schema-version` here; they are not used.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "commitTS")]
    commit_ts: u64,
}

/// The path within a data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("savepoint")
}

/// What is stored; `None` if there is no file. Blocks.
pub fn read(data_dir: &Path) -> Result<Option<CommitTs>, SavepointError> {
    let path = path(data_dir);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SavepointError::Io { path, source }),
    };
    let file: File = parse(&text, &path.display().to_string())?;
    Ok(Some(CommitTs(Tso::new(file.commit_ts))))
}

/// Stores `commit_ts` durably, creating the directory if need be. Blocks.
pub fn write(data_dir: &Path, commit_ts: CommitTs) -> Result<(), SavepointError> {
    let path = path(data_dir);
    std::fs::create_dir_all(data_dir)
        .and_then(|()| replace_file(&path, format!("commitTS = {commit_ts}\n").as_bytes()))
        .map_err(|source| SavepointError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data.drainer");
        assert_eq!(read(&data).unwrap(), None);
        write(&data, CommitTs::new(412_518_831_338_292_471)).unwrap();
        assert_eq!(std::fs::read_to_string(path(&data)).unwrap(), "commitTS = 412518831338292471\n");
        assert_eq!(read(&data).unwrap(), Some(CommitTs::new(412_518_831_338_292_471)));
    }

    #[test]
    fn the_originals_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            path(dir.path()),
            "consistent = true\ncommitTS = 7\nschema-version = 41\n\n[ts-map]\n",
        )
        .unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(CommitTs::new(7)));
    }

    #[test]
    fn garbage_is_an_error_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["commitTS = 7+08:00", "commitTS = -1", "schema-version = 1", ""] {
            std::fs::write(path(dir.path()), text).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("savepoint:"), "{error}");
        }
    }
}
