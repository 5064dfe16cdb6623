//! A node's data directory: one process at a time, one node id, one cluster.
//!
//! ```text
//! .lock        locked (flock) while the process lives
//! .node        node id; beats the flag
//! .cluster-id  decimal id of the cluster whose data lies here
//! ```
//!
//! The first two are the original's. Nothing here is written in place: a crash leaves the old file or the new one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be created, read or written.
    #[error("data-dir: {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("data-dir {0} is in use by another process")]
    Locked(PathBuf),
    /// The data belongs to another cluster.
    #[error(
        "data-dir {path} belongs to cluster {found}, but PD says {expected}: use another data-dir, or the right pd-urls"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The id stored in it.
        found: String,
        /// The id of the cluster that is connected.
        expected: u64,
    },
    /// A node id that cannot be a key.
    #[error(
        "node id `{id}` (from {origin}) must not be empty or hold slashes, spaces or control characters: TiDB could not list the nodes"
    )]
    NodeId {
        /// As found.
        id: String,
        /// Flag or file.
        origin: String,
    },
}

/// A data directory that this process holds; dropping it lets go.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be, so that it survives a crash with what it will hold, and locks it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        create_durably(&path).map_err(|source| DataDirError::Io { path: path.clone(), source })?;
        let lock_path = path.join(".lock");
        let io = |source| DataDirError::Io { path: lock_path.clone(), source };
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&lock_path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::Locked(path)),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's id: what `.node` holds; else the flag (not stored); else `hostname:listen_port`, stored.
    pub fn node_id(&self, flag: Option<&str>, listen_port: u16) -> Result<String, DataDirError> {
        let file = self.path.join(".node");
        let flag = flag.filter(|id| !id.is_empty());
        if let Some(stored) = self.read(&file)? {
            let stored = stored.trim().to_owned();
            if let Some(flag) = flag.filter(|flag| *flag != stored) {
                warn!(stored, flag, "the node id in the data directory beats the flag");
            }
            return checked(stored, &file.display().to_string());
        }
        if let Some(flag) = flag {
            return checked(flag.to_owned(), "node-id");
        }
        let host = nix::unistd::gethostname()
            .map_err(|errno| DataDirError::Io { path: file.clone(), source: errno.into() })?;
        let id = checked(format!("{}:{listen_port}", host.to_string_lossy()), "the host name")?;
        self.write(&file, &id)?;
        Ok(id)
    }

    /// Binds the directory to a cluster: stores its id the first time, refuses another one afterwards.
    pub fn claim_cluster(&self, cluster_id: u64) -> Result<(), DataDirError> {
        let file = self.path.join(".cluster-id");
        match self.read(&file)? {
            None => self.write(&file, &cluster_id.to_string()),
            Some(stored) if stored.trim() == cluster_id.to_string() => Ok(()),
            Some(stored) => Err(DataDirError::OtherCluster {
                path: self.path.clone(),
                found: stored.trim().to_owned(),
                expected: cluster_id,
            }),
        }
    }

    fn read(&self, file: &Path) -> Result<Option<String>, DataDirError> {
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirError::Io { path: file.to_path_buf(), source }),
        }
    }

    fn write(&self, file: &Path, text: &str) -> Result<(), DataDirError> {
        replace_file(file, text.as_bytes())
            .map_err(|source| DataDirError::Io { path: file.to_path_buf(), source })
    }
}

/// Creates a directory and those above it that are missing, each of them synced in its parent when this returns.
fn create_durably(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && path.try_exists().is_ok_and(|there| !there))
        .collect();
    std::fs::create_dir_all(path)?;
    for created in missing {
        File::open(directory_of(created))?.sync_all()?;
    }
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn checked(id: String, origin: &str) -> Result<String, DataDirError> {
    if id.is_empty() || id.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
        return Err(DataDirError::NodeId { id, origin: origin.to_owned() });
    }
    Ok(id)
}

/// Puts `content` in the place of `file` so that a crash leaves either the old file or the new one, on disk when this
/// returns. Blocks.
pub fn replace_file(file: &Path, content: &[u8]) -> io::Result<()> {
    let name = file.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let directory = directory_of(file);
    let temporary = directory.join(format!("{}.tmp", name.to_string_lossy()));
    let mut writer =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    writer.write_all(content)?;
    writer.sync_all()?;
    std::fs::rename(&temporary, file)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data.pump");
        let held = DataDir::open(&path).unwrap();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::Locked(locked)) if locked == path));
        drop(held);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn node_ids() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        // A flag is not stored.
        assert_eq!(data.node_id(Some("pump-a"), 8250).unwrap(), "pump-a");
        assert!(!dir.path().join(".node").try_exists().unwrap());
        // Neither flag nor file: host name and port, stored.
        let made = data.node_id(None, 8250).unwrap();
        assert!(made.ends_with(":8250"), "{made}");
        assert_eq!(data.node_id(Some("pump-a"), 9999).unwrap(), made);
        // The file wins, trimmed.
        std::fs::write(dir.path().join(".node"), "pump-b\n").unwrap();
        assert_eq!(data.node_id(Some(""), 1).unwrap(), "pump-b");
        std::fs::write(dir.path().join(".node"), "a/b").unwrap();
        let error = data.node_id(None, 1).unwrap_err().to_string();
        assert!(error.contains("`a/b`") && error.contains(".node"), "{error}");
    }

    #[test]
    fn a_foreign_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.claim_cluster(7).unwrap();
        data.claim_cluster(7).unwrap();
        let error = data.claim_cluster(8).unwrap_err().to_string();
        assert!(error.contains("cluster 7") && error.contains("says 8"), "{error}");
    }
}
