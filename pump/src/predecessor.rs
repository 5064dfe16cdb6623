//! What an original pump left in the data directory.
//!
//! Our store cannot serve it, and drainers that still need it would never be told: so a pump does not start over it.

use std::io;
use std::path::{Path, PathBuf};

/// There are binlogs of an original pump in the data directory.
#[derive(Debug, thiserror::Error)]
pub enum PredecessorError {
    /// A file of its value log.
    #[error(
        "{} is a value log of an original pump, which this one cannot read: start the original again, let it drain and go \
         offline (binlogctl -cmd offline-pump), or give another data-dir; if its binlogs are not needed any more, move the \
         directory away",
        .0.display()
    )]
    ValueLog(PathBuf),
    /// The directory cannot be looked at.
    #[error("cannot look for an original pump's files in {}: {source}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Refuses a data directory with an original pump's value log (`value/%06d.vlog`, `pump-spec.md` §4.1).
///
/// # Errors
/// There is one, or nobody can tell.
pub fn refuse(data_dir: &Path) -> Result<(), PredecessorError> {
    let path = data_dir.join("value");
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PredecessorError::Io { path, source }),
    };
    for entry in entries {
        let file = entry.map_err(|source| PredecessorError::Io { path: path.clone(), source })?.path();
        if file.extension().is_some_and(|extension| extension == "vlog") {
            return Err(PredecessorError::ValueLog(file));
        }
    }
    Ok(())
}
