//! The schema at the position where a feed begins, from the upstream's DDL history.
//!
//! The history is read page by page into a temporary file, so that a long one does not fill memory, and replayed in the
//! order of schema versions, which is commit order.
//!
//! Which jobs precede the position? A job's binlog commits after its `start_ts` and before its `FinishedTS`, and commit
//! order is version order; so every version up to the highest one finished by the position precedes it, and every
//! version from the lowest one started after it does not. The versions in between are settled by looking at the
//! pumps' streams after the position: the first of these jobs to appear there, and all above it, come after.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use tidb::model::{DbInfo, Job, TableInfo};
use tidb::ts::{CommitTs, Tso};
use tracing::warn;

use super::history::{HistoryError, SchemaHistory};
use super::{SchemaError, Tracker};
use crate::routing::Routing;

/// Why the schema at the start cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// TiDB does not tell.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A job of the history cannot be applied.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The temporary file.
    #[error("temporary file for the DDL history: {0}")]
    Io(#[from] std::io::Error),
    /// A job is not TiDB's JSON.
    #[error("DDL history: job {job} cannot be read: {reason}")]
    Unreadable {
        /// Job id; 0 for the list as a whole.
        job: i64,
        /// What is wrong.
        reason: String,
    },
}

/// What is kept in memory of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobPlace {
    /// Its id.
    pub id: i64,
    /// Its schema version; positive.
    pub version: i64,
    /// It had not committed at this timestamp.
    pub started: Tso,
    /// It had committed at this timestamp.
    pub finished: Tso,
    offset: u64,
    length: usize,
}

/// The history, in a file.
#[derive(Debug)]
pub struct Jobs {
    file: File,
    /// By version.
    index: Vec<JobPlace>,
}

#[derive(Deserialize)]
struct Head {
    id: i64,
    #[serde(default)]
    start_ts: u64,
    #[serde(default)]
    real_start_ts: u64,
    binlog: HeadBinlog,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HeadBinlog {
    #[serde(default)]
    schema_version: i64,
    #[serde(default, rename = "FinishedTS")]
    finished_ts: u64,
}

impl Jobs {
    /// Reads the whole history. The file lives in `directory` and has no name.
    pub async fn load<H: SchemaHistory>(history: &H, directory: &Path) -> Result<Self, BootstrapError> {
        let mut jobs = Self { file: tempfile::tempfile_in(directory)?, index: Vec::new() };
        let mut seen = HashSet::new();
        let mut length = 0_u64;
        let mut from = 0;
        loop {
            let body = history.page(from).await?;
            // Parsing and writing a page is no work for the runtime's threads.
            let taken = tokio::task::spawn_blocking(move || {
                let lowest = jobs.take_page(&body, &mut seen, &mut length)?;
                Ok::<_, BootstrapError>((jobs, seen, length, lowest))
            });
            let lowest;
            (jobs, seen, length, lowest) = taken.await.map_err(std::io::Error::other)??;
            let Some(lowest) = lowest else { break };
            from = lowest;
        }
        jobs.index.sort_unstable_by_key(|job| (job.version, job.id));
        Ok(jobs)
    }

    /// Stores a page; returns its lowest id, or `None` if it brought nothing new.
    fn take_page(
        &mut self,
        body: &[u8],
        seen: &mut HashSet<i64>,
        length: &mut u64,
    ) -> Result<Option<i64>, BootstrapError> {
        let unreadable =
            |job, e: serde_json::Error| BootstrapError::Unreadable { job, reason: e.to_string() };
        let page: Option<Vec<&RawValue>> = serde_json::from_slice(body).map_err(|e| unreadable(0, e))?;
        let mut lowest = None;
        for raw in page.unwrap_or_default() {
            let head: Head = serde_json::from_str(raw.get()).map_err(|e| unreadable(0, e))?;
            if !seen.insert(head.id) {
                continue;
            }
            lowest = Some(lowest.unwrap_or(head.id).min(head.id));
            if head.binlog.schema_version <= 0 {
                continue;
            }
            let text = raw.get().as_bytes();
            self.file.write_all_at(text, *length)?;
            self.index.push(JobPlace {
                id: head.id,
                version: head.binlog.schema_version,
                started: Tso::new(head.real_start_ts.max(head.start_ts)),
                finished: Tso::new(head.binlog.finished_ts),
                offset: *length,
                length: text.len(),
            });
            *length += text.len() as u64;
        }
        Ok(lowest)
    }

    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True if the cluster has run no DDL.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The jobs whose place relative to `position` only the pumps can tell, by version.
    pub fn undecided(&self, position: Tso) -> &[JobPlace] {
        let before = self.index.iter().rposition(|job| job.finished <= position).map_or(0, |at| at + 1);
        let after = self.index.iter().position(|job| job.started > position).unwrap_or(self.index.len());
        self.index.get(before..after).unwrap_or_default()
    }

    /// The jobs that precede `position`, given the first undecided one that follows it (`None`: all of them precede).
    fn applied(&self, position: Tso, first_after: Option<i64>) -> &[JobPlace] {
        let before = self.index.iter().rposition(|job| job.finished <= position).map_or(0, |at| at + 1);
        let undecided = self.undecided(position);
        let more = first_after
            .and_then(|id| undecided.iter().position(|job| job.id == id))
            .unwrap_or(undecided.len());
        &self.index[..before + more]
    }

    /// Replays the jobs that precede `position`. Blocks.
    pub fn replay(
        &self,
        routing: Arc<Routing>,
        position: Tso,
        first_after: Option<i64>,
    ) -> Result<Replayed, BootstrapError> {
        let mut tracker = Tracker::new(routing);
        let applied = self.applied(position, first_after);
        let mut buffer = Vec::new();
        for place in applied {
            let job = self.read(place, &mut buffer)?;
            match tracker.apply(&job, CommitTs::default()) {
                // Kinds come and go with TiDB's versions. What one of an older version did long ago, `/schema` shows.
                Err(SchemaError::UnknownKind { kind, .. }) => {
                    warn!(
                        job = job.id,
                        kind,
                        version = job.schema_version(),
                        "passed over a job of the DDL history"
                    );
                    tracker.pass(&job);
                }
                applied => drop(applied?),
            }
        }
        // Ids that later jobs mention are not missing from the history, they are just not there yet.
        let mut mentioned: HashSet<i64> = tracker.definitions().tables().map(|table| table.id()).collect();
        mentioned.extend(tracker.definitions().dropped().map(|(id, _)| id));
        for place in &self.index[applied.len()..] {
            let job = self.read(place, &mut buffer)?;
            let tables = job.binlog.table_info.iter().chain(job.binlog.multiple_table_infos.iter());
            mentioned.extend(tables.flat_map(|table| {
                let partitions = table.partition.iter().flat_map(|p| p.definitions.iter().map(|d| d.id));
                std::iter::once(table.id).chain(partitions).collect::<Vec<_>>()
            }));
        }
        Ok(Replayed { tracker, mentioned })
    }

    fn read(&self, place: &JobPlace, buffer: &mut Vec<u8>) -> Result<Job, BootstrapError> {
        buffer.resize(place.length, 0);
        self.file.read_exact_at(buffer, place.offset)?;
        Job::parse(buffer).map_err(|e| BootstrapError::Unreadable { job: place.id, reason: e.to_string() })
    }
}

/// The schema at a position, as far as the history tells.
#[derive(Debug)]
pub struct Replayed {
    /// At the position.
    pub tracker: Tracker,
    mentioned: HashSet<i64>,
}

impl Replayed {
    /// Adds tables that exist now and that no job of the history made (TiDB makes some system tables without one).
    pub async fn complete<H: SchemaHistory>(mut self, history: &H) -> Result<Tracker, BootstrapError> {
        let unreadable = |e: serde_json::Error| BootstrapError::Unreadable { job: 0, reason: e.to_string() };
        let databases: Vec<DbInfo> =
            tidb::schema_api::parse_list(&history.schema(None).await?).map_err(unreadable)?;
        let version = self.tracker.version();
        // `.` and `..` cannot be named in a URL, however encoded. TiDB itself makes no such database: jobs tell all of it.
        let nameable = |database: &DbInfo| !matches!(database.name.as_str(), "." | "..");
        for database in databases.into_iter().filter(nameable) {
            let tables = history.schema(Some(database.name.as_str())).await?;
            let tables: Vec<TableInfo> = tidb::schema_api::parse_list(&tables).map_err(unreadable)?;
            for table in tables.into_iter().filter(|table| !self.mentioned.contains(&table.id)) {
                if self.tracker.definitions().database(database.id).is_none() {
                    self.tracker.restore_database(database.clone(), version);
                }
                self.tracker.restore_table(&database, table, version, CommitTs::default());
            }
        }
        Ok(self.tracker)
    }
}
