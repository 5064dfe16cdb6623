//! TiDB's DDL jobs along a playback: which are in the history, which only in `mysql.tidb_ddl_job`, and the schema. Pure.
//!
//! A job's binlog is written by the transaction that ends the job; the job enters the history in a later transaction,
//! once every TiDB holding the metadata lock has seen it: usually at once, sometimes seconds later. Until then only the
//! job's own row shows it.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidb::model::{HistoryInfo, Job, JobState, SchemaState};
use tidb::schema_api::DdlJobVersions;
use tidb::ts::{CommitTs, StartTs, Tso};

use crate::catalog::Catalog;
use crate::schedule::Kind;
use crate::script::Script;

/// How late a late job enters the history unless told otherwise, in milliseconds.
const LATENESS_MS: std::ops::Range<u64> = 1000..4000;

/// Which jobs enter the history some time after their binlog.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lateness {
    /// The share of them, from 0 to 1; which, a seed says.
    pub share: f64,
    /// By how much; none: a seeded one to four seconds each. Longer than the playback means never, as behind a
    /// transaction that holds the metadata lock for hours.
    pub by: Option<Duration>,
}

impl Default for Lateness {
    /// A fifth of the jobs, by one to four seconds.
    fn default() -> Self {
        Self { share: 0.2, by: None }
    }
}

/// A moment of a playback.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The newest timestamp that anyone can have seen.
    pub now: Tso,
    /// Real time since the playback was set up.
    pub elapsed: Duration,
}

/// When a job shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the recording began.
    Start,
    /// It sent no binlog: when the clock passes its own idea of its end.
    Finished(Tso),
    /// When its binlog has been sent, and the history that much later.
    Binlog { late: Duration },
}

/// A version of a job's row.
#[derive(Clone, Copy, Debug)]
struct Version {
    start_ts: StartTs,
    commit_ts: CommitTs,
    /// The step of DROP COLUMN to delete-only, not the job's end.
    delete_only: bool,
}

/// The jobs of a playback.
#[derive(Debug, Default)]
pub struct DdlJobs {
    jobs: Vec<(Job, Place)>,
    versions: HashMap<i64, Vec<Version>>,
    /// By the job's last binlog, since when.
    sent: HashMap<i64, Duration>,
}

impl DdlJobs {
    /// The jobs of a recording; `seed` says which of them are late.
    pub fn new(script: &Script, lateness: Lateness, seed: u64) -> Self {
        let mut versions: HashMap<i64, Vec<Version>> = HashMap::new();
        for record in script.records().iter().filter(|record| record.kind == Kind::Prewrite) {
            if let (Some(ddl), Some(commit_ts)) = (record.ddl, script.commit_ts(record.start_ts)) {
                let state = u32::try_from(ddl.schema_state).map(SchemaState::from);
                let delete_only = state == Ok(SchemaState::DeleteOnly);
                let version = Version { start_ts: record.start_ts, commit_ts, delete_only };
                versions.entry(ddl.job_id).or_default().push(version);
            }
        }
        let ends =
            |id: &i64| versions.get(id).is_some_and(|all| all.iter().any(|version| !version.delete_only));
        let recorded = script.jobs().iter().filter(|job| ends(&job.id) && job.schema_version() > 0);
        let first_version = recorded.map(Job::schema_version).min().unwrap_or(i64::MAX);
        let first_ts = script.recorded().first().unwrap_or(Tso::MAX);
        let place = |job: &Job| {
            if ends(&job.id) {
                let mut rng =
                    StdRng::seed_from_u64(seed ^ (job.id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let late = if rng.random_bool(lateness.share.clamp(0.0, 1.0)) {
                    lateness.by.unwrap_or_else(|| Duration::from_millis(rng.random_range(LATENESS_MS)))
                } else {
                    Duration::ZERO
                };
                return Place::Binlog { late };
            }
            let finished = Tso::new(job.binlog.finished_ts);
            if finished < first_ts || (1..first_version).contains(&job.schema_version()) {
                Place::Start
            } else {
                Place::Finished(finished)
            }
        };
        let jobs = script.jobs().iter().map(|job| (job.clone(), place(job))).collect();
        Self { jobs, versions, sent: HashMap::new() }
    }

    /// Adds a job of a live cluster, whose binlog has been sent.
    pub fn add(&mut self, job: Job, start_ts: StartTs, commit_ts: CommitTs, at: Duration) {
        self.sent.insert(job.id, at);
        self.versions.entry(job.id).or_default().push(Version { start_ts, commit_ts, delete_only: false });
        self.jobs.push((job, Place::Binlog { late: Duration::ZERO }));
    }

    /// A DDL binlog is out: the transaction's last record of the recording was sent.
    pub fn sent(&mut self, job_id: i64, start_ts: StartTs, at: Duration) {
        let of_the_end = |version: &&Version| version.start_ts == start_ts && !version.delete_only;
        if self.versions.get(&job_id).is_some_and(|all| all.iter().any(|version| of_the_end(&version))) {
            self.sent.entry(job_id).or_insert(at);
        }
    }

    /// Since when the schema has the job, by real time.
    fn in_effect(&self, job: &Job, place: Place, moment: Moment) -> Option<Duration> {
        match place {
            Place::Start => Some(Duration::ZERO),
            Place::Finished(ts) => (ts <= moment.now).then_some(Duration::ZERO),
            Place::Binlog { .. } => self.sent.get(&job.id).copied(),
        }
    }

    /// The history, newest first: jobs up to `start_job_id` if given, at most `limit` of them.
    pub fn history(&self, moment: Moment, start_job_id: Option<i64>, limit: Option<usize>) -> Vec<&Job> {
        let visible = |(job, place): &&(Job, Place)| {
            let late = if let Place::Binlog { late } = place { *late } else { Duration::ZERO };
            self.in_effect(job, *place, moment).is_some_and(|since| moment.elapsed >= since + late)
        };
        let mut jobs: Vec<&Job> = self.jobs.iter().filter(visible).map(|(job, _)| job).collect();
        jobs.retain(|job| start_job_id.is_none_or(|start| job.id <= start));
        jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
        jobs.truncate(limit.unwrap_or(usize::MAX));
        jobs
    }

    /// How many jobs have sent their binlog and are not yet in the history.
    pub fn late(&self, moment: Moment) -> usize {
        let in_effect = self.jobs.iter().filter(|(job, place)| self.in_effect(job, *place, moment).is_some());
        in_effect.count() - self.history(moment, None, None).len()
    }

    /// The schema, which every job changes at once, in the history or not.
    pub fn catalog(&self, moment: Moment) -> Catalog {
        let applied = self.jobs.iter().filter(|(job, place)| self.in_effect(job, *place, moment).is_some());
        Catalog::after(self.jobs.iter().map(|(job, _)| job), applied.map(|(job, _)| job))
    }

    /// The versions of a job's row in `mysql.tidb_ddl_job` that its DDL binlogs' transactions wrote.
    pub fn versions(&self, moment: Moment, job_id: i64) -> serde_json::Result<DdlJobVersions> {
        let mut found = DdlJobVersions { key: row_key(job_id), ..DdlJobVersions::default() };
        let Some((job, _)) = self.jobs.iter().find(|(job, _)| job.id == job_id) else { return Ok(found) };
        let committed = self.versions.get(&job_id).into_iter().flatten();
        for version in committed.filter(|version| version.commit_ts.0 <= moment.now) {
            found.insert(version.start_ts, &as_of(job, version.delete_only))?;
        }
        Ok(found)
    }
}

/// A job as the transaction of its DDL binlog left it; the history has it later, as *synced*.
fn as_of(job: &Job, delete_only: bool) -> Job {
    let mut job = job.clone();
    if delete_only {
        job.state = JobState::Running;
        job.schema_state = SchemaState::DeleteOnly;
        job.binlog = HistoryInfo::default();
    } else if job.state == JobState::Synced {
        job.state = JobState::Done;
    }
    job
}

/// The key of a job's row, in hexadecimal as TiDB shows it. The table has a reserved id.
fn row_key(job_id: i64) -> String {
    const DDL_JOB_TABLE: i64 = (1 << 48) - 2;
    let key = tidb::key::record(DDL_JOB_TABLE, &tidb::key::Handle::Int(job_id));
    key.iter().map(|byte| format!("{byte:02X}")).collect()
}
