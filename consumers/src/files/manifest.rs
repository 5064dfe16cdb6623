//! What the export consists of: `manifest.jsonl` in its folder.
//!
//! One line a checkpoint: the files that were finished since the one before, and the position after them. A line is
//! appended only when its files are in place and durable, so what the manifest names is complete; what it does not name
//! is not part of the export. The position and the files are in one line: a crash keeps both or neither.
//!
//! ```text
//! {"checkpoint":{"position":{"feed_id":…,"seq":…,"commit_ts":…,…},"files":[{"path":…,"crc32c":…,…}]},"crc32c":"…"}
//! ```
//!
//! The trailing checksum covers the text of `checkpoint`. A last line that is not whole was being written when the
//! process died and is cut off; anything else that does not fit is an error, never skipped.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::config::JsonColumns;
use crate::position::Position;

/// The manifest's name.
pub const NAME: &str = "manifest.jsonl";

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Row changes of one table.
    Rows,
    /// One version of a table's definition.
    Schema,
    /// Schema changes.
    Ddl,
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path below the export's folder.
    pub path: String,
    /// What it holds.
    pub kind: FileKind,
    /// Database; empty for schema changes.
    pub database: String,
    /// Table; empty for schema changes.
    pub table: String,
    /// TiDB's table id; 0 for schema changes.
    pub table_id: i64,
    /// Version of the definition; 0 for schema changes.
    pub schema_version: i64,
    /// Size.
    pub bytes: u64,
    /// How documents of JSON columns stand in it; only in files of row changes. Where a build before this field wrote the
    /// file it is not there: they are embedded in JSON lines and text in CSV.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_columns: Option<JsonColumns>,
    /// CRC-32C of its bytes, eight hexadecimal digits.
    pub crc32c: String,
    /// Changes in it (an update is one, however many lines it has), or schema changes, or 1 for a definition.
    pub rows: u64,
    /// commit_ts of its first change.
    pub first_commit_ts: u64,
    /// commit_ts of its last change.
    pub last_commit_ts: u64,
    /// seq of its first change.
    pub first_seq: u64,
    /// seq of its last change.
    pub last_seq: u64,
}

/// One line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Everything before it is in the files named so far.
    pub position: Position,
    /// The files finished since the checkpoint before.
    pub files: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    checkpoint: &'a RawValue,
    crc32c: String,
}

/// The manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line in the middle is damaged.
    #[error(
        "{path} line {line} is damaged: {reason}. Without it nobody knows what the export consists of; restore it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// The manifest, open for appending.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    file: File,
}

impl Manifest {
    /// Opens or makes the manifest in `dir`, cuts off a line that was being written, and hands every checkpoint to
    /// `each`.
    pub fn open(dir: &Path, mut each: impl FnMut(Checkpoint)) -> Result<Self, ManifestError> {
        let path = dir.join(NAME);
        let io = |source| ManifestError::Io { path: path.clone(), source };
        let file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(io)?;
        let mut reader = BufReader::new(&file);
        let (mut whole, mut number) = (0_u64, 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(io)?;
            if read == 0 {
                break;
            }
            number += 1;
            let ended = line.last() == Some(&b'\n');
            match parse(&line) {
                Ok(checkpoint) if ended => {
                    each(checkpoint);
                    whole += read as u64;
                }
                // Only the last line can be torn; and it is, unless another one follows.
                result => {
                    let mut next = Vec::new();
                    if reader.read_until(b'\n', &mut next).map_err(io)? > 0 {
                        let reason = result.err().unwrap_or_else(|| "it does not end".to_owned());
                        return Err(ManifestError::Damaged { path, line: number, reason });
                    }
                    break;
                }
            }
        }
        drop(reader);
        if whole < file.metadata().map_err(io)?.len() {
            file.set_len(whole).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        let mut file = file;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        sync_dir(dir).map_err(io)?;
        Ok(Self { path, file })
    }

    /// Appends a checkpoint. It counts once this returns.
    pub fn append(&mut self, checkpoint: &Checkpoint) -> Result<(), ManifestError> {
        let line = render(checkpoint);
        let result = line.and_then(|line| {
            self.file.write_all(&line)?;
            self.file.sync_data()
        });
        result.map_err(|source| ManifestError::Io { path: self.path.clone(), source })
    }
}

fn render(checkpoint: &Checkpoint) -> io::Result<Vec<u8>> {
    let text = serde_json::value::to_raw_value(checkpoint)?;
    let crc32c = format!("{:08x}", crc32c::crc32c(text.get().as_bytes()));
    let mut line = serde_json::to_vec(&Line { checkpoint: &text, crc32c })?;
    line.push(b'\n');
    Ok(line)
}

fn parse(line: &[u8]) -> Result<Checkpoint, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let found = format!("{:08x}", crc32c::crc32c(line.checkpoint.get().as_bytes()));
    if found != line.crc32c {
        return Err(format!("its checksum is {found}, not {}", line.crc32c));
    }
    serde_json::from_str(line.checkpoint.get()).map_err(|error| error.to_string())
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use tidb::ts::CommitTs;

    use super::*;
    use crate::position::FeedId;

    fn checkpoint(seq: u64) -> Checkpoint {
        let feed_id = FeedId::from_bytes(&[7; 16]).unwrap();
        let position =
            Position { feed_id, epoch: 1, seq, commit_ts: CommitTs::new(seq * 10), commits_offset: 3 };
        let file = FileEntry {
            path: format!("data/a/b/{seq}.jsonl"),
            kind: FileKind::Rows,
            database: "a\n\"".into(),
            table: "青".into(),
            table_id: -1,
            schema_version: 5,
            bytes: u64::MAX,
            json_columns: Some(JsonColumns::Text),
            crc32c: "00000000".into(),
            rows: 1,
            first_commit_ts: 1,
            last_commit_ts: 2,
            first_seq: seq,
            last_seq: seq,
        };
        Checkpoint { position, files: vec![file; 2] }
    }

    fn read(dir: &Path) -> Result<Vec<Checkpoint>, ManifestError> {
        let mut all = Vec::new();
        Manifest::open(dir, |checkpoint| all.push(checkpoint))?;
        Ok(all)
    }

    #[test]
    fn a_crash_while_appending_loses_that_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::open(dir.path(), |_| unreachable!()).unwrap();
        manifest.append(&checkpoint(1)).unwrap();
        let first = std::fs::read(dir.path().join(NAME)).unwrap().len();
        manifest.append(&checkpoint(2)).unwrap();
        let whole = std::fs::read(dir.path().join(NAME)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [checkpoint(1), checkpoint(2)]);
        // Whatever part of the second line reached the disk: the first one stands, and appending goes on behind it.
        for cut in first..whole.len() {
            std::fs::write(dir.path().join(NAME), &whole[..cut]).unwrap();
            let mut manifest = Manifest::open(dir.path(), |found| assert_eq!(found, checkpoint(1))).unwrap();
            manifest.append(&checkpoint(3)).unwrap();
            assert_eq!(read(dir.path()).unwrap(), [checkpoint(1), checkpoint(3)], "cut at {cut}");
        }
    }

    #[test]
    fn a_line_from_before_json_columns_were_named_is_read() {
        let mut old = checkpoint(1);
        old.files.iter_mut().for_each(|file| file.json_columns = None);
        let line = render(&old).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains("json_columns"));
        assert_eq!(parse(&line), Ok(old));
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::open(dir.path(), |_| {}).unwrap();
        manifest.append(&checkpoint(1)).unwrap();
        manifest.append(&checkpoint(2)).unwrap();
        let whole = std::fs::read(dir.path().join(NAME)).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap();
        for at in 0..first {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(dir.path().join(NAME), &damaged).unwrap();
            let error = read(dir.path()).unwrap_err();
            assert!(matches!(error, ManifestError::Damaged { line: 1, .. }), "{at}: {error}");
        }
    }
}
