//! Values too large for a record, under `large-row = "claim-check"`: files that the records name.
//!
//! A file is whole and synced before its record is sent, so a commit record never speaks of one that is not there. It is
//! named after its change: a successor that writes the change again replaces the file by the same one. A crash may leave
//! a file that no record names, or a temporary one; both go with their day.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidb::ts::Tso;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A value on its way into its file.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Path below the feed's directory.
    pub name: String,
    /// What it holds: a serialised `RowChange`.
    pub content: Bytes,
}

/// The days since 1970 at a timestamp: the folder of a file.
pub fn day(ts: Tso) -> u64 {
    ts.physical_ms() / DAY_MS
}

/// The directory of one feed's files.
#[derive(Clone, Debug)]
pub struct Claims {
    directory: PathBuf,
}

impl Claims {
    /// The files of the feed `topic` below `base`.
    pub fn new(base: &Path, topic: &str) -> Self {
        Self { directory: base.join(topic) }
    }

    /// Writes a file that is there for good when this returns. Blocks.
    pub fn store(&self, claim: &Claim) -> io::Result<()> {
        let path = self.directory.join(&claim.name);
        let folder = path.parent().unwrap_or(&self.directory);
        if !folder.is_dir() {
            std::fs::create_dir_all(folder)?;
            for made in folder.ancestors().take(3) {
                sync(made)?;
            }
        }
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&claim.content)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        sync(folder)
    }

    /// Removes the folders of days that were over at `oldest`; returns how many. Blocks.
    pub fn forget_before(&self, oldest: Tso) -> io::Result<usize> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            let of_day = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if of_day.is_some_and(|of_day| of_day < day(oldest)) {
                std::fs::remove_dir_all(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_by_themselves_and_go_with_their_day() {
        let base = tempfile::tempdir().unwrap();
        let claims = Claims::new(base.path(), "feed");
        let at = |days: u64| Tso::from_parts(days * DAY_MS + 5, 7);
        assert_eq!(claims.forget_before(at(9)).unwrap(), 0);
        for (days, content) in [(8, "old"), (9, "torn"), (9, "whole")] {
            let name = format!("{}/{}-0", day(at(days)), at(days).get());
            claims.store(&Claim { name, content: Bytes::from(content) }).unwrap();
        }
        assert_eq!(claims.forget_before(at(9)).unwrap(), 1);
        let left: Vec<_> =
            std::fs::read_dir(base.path().join("feed")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [base.path().join("feed/9")]);
        assert_eq!(std::fs::read(left[0].join(format!("{}-0", at(9).get()))).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(&left[0]).unwrap().count(), 1);
    }
}
