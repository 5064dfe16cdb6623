//! Reads a recorded folder: what a real TiDB sent, and what its database looked like afterwards.
//!
//! | file (each may end in `.gz`) | content |
//! |---|---|
//! | `pump-N.rec` | frames of what pump N received: arrival in Unix nanoseconds (u64 BE), length (u32 BE), payload; an empty payload is TiDB's liveness probe |
//! | `ddl-history.json` | TiDB's `/ddl/history` at the end |
//! | `txn-status.json` | optional: TiKV's word on prewrites without a commit binlog |
//! | `corpus.json` | a note and the checkpoints in order |
//! | `state-LABEL.json` | the whole database at one commit timestamp |

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use tidb::model::Job;
use tidb::ts::{CommitTs, StartTs};

use crate::script::{Record, Script, ScriptError};

/// Why a folder cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to play.
    #[error("{} holds no pump-N.rec or pump-N.rec.gz: not a recording", .0.display())]
    Empty(PathBuf),
    /// A frame goes past the end of its file.
    #[error("{} ends inside record {record} (at byte {offset} of the uncompressed file)", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Counted from zero.
        record: usize,
        /// Where the record begins.
        offset: usize,
    },
    /// A record that cannot be played.
    #[error("record {record} of {}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Counted from zero.
        record: usize,
        /// Why.
        source: ScriptError,
    },
    /// The records do not fit together.
    #[error("{}: {source}", path.display())]
    Script {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: ScriptError,
    },
    /// Not the JSON it should be.
    #[error("{} is not what it should be: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// A state of the database that the folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Checkpoint {
    /// Names the file `state-LABEL.json`.
    pub label: String,
    /// The state includes every transaction up to this timestamp.
    pub commit_ts: CommitTs,
}

/// A recorded folder.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What to play.
    pub script: Script,
    /// What the workload was.
    pub note: String,
    /// The states at hand, in order.
    pub checkpoints: Vec<Checkpoint>,
    /// How many pumps received it.
    pub pumps: u32,
}

#[derive(Default, Deserialize)]
struct Corpus {
    #[serde(default)]
    note: String,
    #[serde(default)]
    checkpoints: Vec<Checkpoint>,
}

#[derive(Deserialize)]
struct TxnStatus {
    start_ts: StartTs,
    status: Fate,
    commit_ts: CommitTs,
}

#[derive(PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    Committed,
    RolledBack,
}

impl Recording {
    /// Reads a whole folder into memory.
    pub fn load(folder: &Path) -> Result<Self, RecordingError> {
        let mut records = Vec::new();
        let pumps = pump_files(folder)?;
        for (pump, path) in &pumps {
            read_records(path, *pump, &mut records)?;
        }
        // Times count from the first record, so that a playback starts at once.
        let begin = records.iter().map(|record| record.at).min().unwrap_or_default();
        records.iter_mut().for_each(|record| record.at -= begin);
        let corpus: Corpus = read_json(folder, "corpus.json")?.unwrap_or_default();
        let truth: Vec<TxnStatus> = read_json(folder, "txn-status.json")?.unwrap_or_default();
        let truth = truth.into_iter().filter(|txn| txn.status == Fate::Committed);
        let jobs: Vec<Job> = read_json(folder, "ddl-history.json")?.unwrap_or_default();
        let script = Script::new(records, truth.map(|txn| (txn.start_ts, txn.commit_ts)), jobs)
            .map_err(|source| RecordingError::Script { path: folder.to_owned(), source })?;
        let pumps = pumps.last().map_or(0, |(pump, _)| *pump);
        Ok(Self { script, note: corpus.note, checkpoints: corpus.checkpoints, pumps })
    }
}

/// The pump files by number.
fn pump_files(folder: &Path) -> Result<Vec<(u32, PathBuf)>, RecordingError> {
    let failed = |source| RecordingError::Read { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
            let name = name.strip_suffix(".gz").unwrap_or(name);
            name.strip_prefix("pump-")?.strip_suffix(".rec")?.parse().ok()
        });
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    if found.is_empty() {
        return Err(RecordingError::Empty(folder.to_owned()));
    }
    Ok(found)
}

fn read_records(path: &Path, pump: u32, records: &mut Vec<Record>) -> Result<(), RecordingError> {
    let file = Bytes::from(read(path)?);
    let mut rest = file.clone();
    let mut latest = Duration::ZERO;
    for record in 0.. {
        if rest.is_empty() {
            break;
        }
        let truncated =
            || RecordingError::Truncated { path: path.to_owned(), record, offset: file.len() - rest.len() };
        let mut frame = rest.clone();
        let at = frame.try_get_u64().map_err(|_| truncated())?;
        let length = frame.try_get_u32().map_err(|_| truncated())? as usize;
        if frame.len() < length {
            return Err(truncated());
        }
        let payload = frame.split_to(length);
        rest = frame;
        // The order of arrival counts, should the clock have gone back.
        latest = latest.max(Duration::from_nanos(at));
        if !payload.is_empty() {
            let failed = |source| RecordingError::Record { path: path.to_owned(), record, source };
            records.push(Record::new(latest, pump, payload).map_err(failed)?);
        }
    }
    Ok(())
}

/// A JSON file, compressed or not; `None` if there is neither.
fn read_json<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<Option<T>, RecordingError> {
    for name in [name.to_owned(), format!("{name}.gz")] {
        let path = folder.join(name);
        match read(&path) {
            Ok(text) => {
                let parsed = serde_json::from_slice(&text);
                return parsed.map(Some).map_err(|source| RecordingError::Json { path, source });
            }
            Err(RecordingError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Vec<u8>, RecordingError> {
    let read = || {
        let mut content = Vec::new();
        let file = File::open(path)?;
        if path.extension().is_some_and(|extension| extension == "gz") {
            MultiGzDecoder::new(file).read_to_end(&mut content)?;
        } else {
            io::BufReader::new(file).read_to_end(&mut content)?;
        }
        Ok(content)
    };
    read().map_err(|source| RecordingError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use prost::Message as _;
    use schemas::binlog::Binlog;

    use super::*;
    use crate::schedule::Kind;

    fn payload(tp: i32, start_ts: i64, commit_ts: i64) -> Vec<u8> {
        Binlog { tp: Some(tp), start_ts: Some(start_ts), commit_ts: Some(commit_ts), ..Binlog::default() }
            .encode_to_vec()
    }

    fn frame(at: u64, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        [&at.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
    }

    #[test]
    fn reads_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first =
            [frame(1_000, &payload(0, 5, 0)), frame(2_000, b""), frame(4_000, &payload(1, 5, 9))].concat();
        fs::write(folder.path().join("pump-1.rec"), first).unwrap();
        let mut second = GzEncoder::new(Vec::new(), Compression::fast());
        second.write_all(&frame(3_000, &payload(0, 6, 0))).unwrap();
        fs::write(folder.path().join("pump-2.rec.gz"), second.finish().unwrap()).unwrap();
        let truth = r#"[{"start_ts":6,"primary_key":"","had_rollback_binlog":false,"status":"committed","commit_ts":8}]"#;
        fs::write(folder.path().join("txn-status.json"), truth).unwrap();
        let corpus = r#"{"note":"two","checkpoints":[{"label":"end","commit_ts":10}]}"#;
        fs::write(folder.path().join("corpus.json"), corpus).unwrap();

        let recording = Recording::load(folder.path()).unwrap();
        let seen: Vec<_> =
            recording.script.records().iter().map(|r| (r.at.as_nanos(), r.pump, r.kind)).collect();
        assert_eq!(seen, [(0, 1, Kind::Prewrite), (2_000, 2, Kind::Prewrite), (3_000, 1, Kind::Commit)]);
        assert_eq!(recording.script.commit_ts(StartTs::new(6)), Some(CommitTs::new(8)));
        assert_eq!(recording.checkpoints, [Checkpoint { label: "end".into(), commit_ts: CommitTs::new(10) }]);
        assert_eq!((recording.note.as_str(), recording.pumps), ("two", 2));
    }

    #[test]
    fn names_the_file_and_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let error = Recording::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("not a recording"), "{error}");
        let error = Recording::load(&folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");

        let path = folder.path().join("pump-1.rec");
        let whole = frame(1, &payload(0, 5, 0));
        fs::write(&path, [&whole[..], &whole[..whole.len() - 1]].concat()).unwrap();
        let error = Recording::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("ends inside record 1 (at byte 18"), "{error}");

        fs::write(&path, [whole, frame(2, b"\xff")].concat()).unwrap();
        let error = Recording::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("record 1 of") && error.contains("pump-1.rec"), "{error}");

        fs::write(&path, frame(1, &payload(0, 5, 0))).unwrap();
        fs::write(folder.path().join("ddl-history.json"), "{").unwrap();
        let error = Recording::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("ddl-history.json"), "{error}");
    }
}
