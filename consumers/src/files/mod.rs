//! `export-files`: a feed as files, exactly once.
//!
//! ```text
//! follow ─▶ queue ─▶ output (one file a table and date) ─▶ manifest
//! ```
//!
//! What counts is what the manifest names. A crash loses only files that it does not name; they are removed at the next
//! start and written again from the manifest's position.

pub mod config;
pub mod csv;
pub mod json;
pub mod manifest;
pub mod name;
pub mod output;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use node::admin::{Admin, Health};
use node::data_dir::DataDir;
use node::shutdown::{Shutdown, Tasks};
use node::telemetry::Telemetry;
use serde_json::json;
use tidb::ts::CommitTs;
use tokio::runtime::Handle;
use tracing::{info, warn};

pub use config::{Args, Config};

use self::output::Output;
use crate::chain::Start;
use crate::config::{GapPolicy, follow_options};
use crate::event::Event;
use crate::follow::{follow, tail};
use crate::metrics;
use crate::position::Position;
use crate::progress::FollowProgress;
use crate::queue::{self, EventReceiver};

/// How long tasks may take to finish what they hold.
const DRAIN: Duration = Duration::from_secs(30);

/// Exports until the shutdown, the end asked for, or an error.
pub async fn run(config: Config, telemetry: Telemetry, shutdown: Shutdown) -> anyhow::Result<()> {
    metrics::describe();
    let lock = DataDir::open(&config.output.dir)?;
    let output_config = config.output.clone();
    let output = tokio::task::spawn_blocking(move || Output::open(&output_config)).await??;
    let progress = Arc::new(FollowProgress::new());
    if let Some(position) = output.position() {
        info!(%position, "going on from the manifest's position");
        progress.applied(position);
    }
    let start = match output.position() {
        Some(position) => Start::Resume(position.clone()),
        None => Start::Attach { initial: config.feed.initial_commit_ts.map(CommitTs::new) },
    };
    let health = Health::new();
    health.set("output", Ok(()));
    let status = progress.clone();
    let name = config.name.clone();
    let admin = Admin::new(telemetry, health)
        .status(move || json!({ "consumer": name, "progress": status.to_json() }));

    let mut tasks = Tasks::new(&shutdown);
    tasks.spawn("admin", admin.serve(config.admin.clone(), shutdown.clone()));
    let memory = config.memory_budget.as_u64() as usize;
    let (events, queue) = queue::channel(memory / 4, &shutdown);
    // Rows beyond the budget wait in unnamed files beside those in the making.
    let spill = config.output.dir.join(".tmp");
    let until = config.until_commit_ts.map(CommitTs::new);
    let options = follow_options(&config.kafka, &config.feed, spill, memory / 2, until)?;
    let (seen, ended, runtime) = (progress.clone(), shutdown.clone(), Handle::current());
    let waiting = runtime.clone();
    let (tail_options, tail_progress, tail_ended) = (options.clone(), progress.clone(), shutdown.clone());
    tasks.spawn_blocking("tail", move || Ok(tail::watch(&tail_options, &tail_progress, &tail_ended)?));
    tasks.spawn_blocking("follow", move || {
        follow(options, start, events, seen, ended.clone())?;
        // What was handed over is still to be written; that task ends everything.
        waiting.block_on(ended.cancelled());
        Ok(())
    });
    let writer = Writer {
        output,
        progress,
        flush_interval: config.output.flush_interval.0,
        rotate_bytes: config.output.rotate_bytes.as_u64(),
        on_gap: config.feed.on_gap,
        after: None,
        open: false,
        bytes: 0,
        last: Instant::now(),
    };
    let ended = shutdown.clone();
    tasks.spawn_blocking("write", move || writer.run(queue, &runtime, &ended));
    let result = tasks.join(DRAIN).await;
    drop(lock);
    result
}

/// Writes events; one thread, because disks block.
struct Writer {
    output: Output,
    progress: Arc<FollowProgress>,
    flush_interval: Duration,
    rotate_bytes: u64,
    on_gap: GapPolicy,
    /// The position after what was written, if it differs from the checkpoint's.
    after: Option<Position>,
    /// A transaction is written in part.
    open: bool,
    /// Written since the last checkpoint.
    bytes: u64,
    last: Instant,
}

impl Writer {
    fn run(mut self, mut events: EventReceiver, runtime: &Handle, shutdown: &Shutdown) -> anyhow::Result<()> {
        loop {
            let wait = self.flush_interval.saturating_sub(self.last.elapsed());
            let next = runtime.block_on(shutdown.unless(tokio::time::timeout(wait, events.recv())));
            let ended = match next {
                None => true,
                Some(Err(_elapsed)) => {
                    self.checkpoint(false)?;
                    continue;
                }
                Some(Ok(None)) => {
                    runtime.block_on(shutdown.cancelled());
                    true
                }
                Some(Ok(Some(event))) => self.event(event)?,
            };
            if ended {
                self.checkpoint(true)?;
                return Ok(());
            }
            if self.bytes >= self.rotate_bytes || self.last.elapsed() >= self.flush_interval {
                self.checkpoint(false)?;
            }
        }
    }

    /// True at the end asked for.
    fn event(&mut self, event: Event) -> anyhow::Result<bool> {
        match event {
            Event::Attached(position) => {
                // The place is known from here on, even if nothing follows.
                self.output.checkpoint(position.clone())?;
                self.progress.applied(&position);
            }
            Event::Rows(rows) => {
                self.output.rows(&rows)?;
                self.bytes += rows.cost as u64;
                self.open = rows.after.is_none();
                if rows.after.is_some() {
                    self.after = rows.after;
                }
            }
            Event::Ddl(ddl) => {
                self.output.ddl(&ddl)?;
                self.open = ddl.after_position.is_none();
                if ddl.after_position.is_some() {
                    self.after = ddl.after_position;
                }
            }
            Event::Passed(position) => self.after = Some(position),
            Event::Gap { gap, after } => {
                if self.on_gap == GapPolicy::Stop {
                    // What came before it counts, so that the export is as complete as the message says.
                    self.checkpoint(true)?;
                    bail!(
                        "the upstream declares that transactions in ({}, {}] are missing ({}). The export is complete up \
                         to {}. To go on without them, set feed.on-gap = \"continue\"",
                        gap.from,
                        gap.to,
                        gap.cause,
                        gap.from
                    );
                }
                warn!(
                    from = gap.from,
                    to = gap.to,
                    cause = gap.cause,
                    "going on without the transactions of a gap"
                );
                if after.is_some() {
                    self.after = after;
                }
            }
            Event::Reached(position) => {
                info!(%position, "exported everything up to the end asked for");
                self.after = Some(position);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Finishes what is written and stores the position, unless a transaction is written in part.
    fn checkpoint(&mut self, at_the_end: bool) -> anyhow::Result<()> {
        self.last = Instant::now();
        if self.open {
            return Ok(());
        }
        let Some(after) = self.after.take() else { return Ok(()) };
        // Positions alone are kept in memory: an idle feed must not fill the manifest.
        let moved = self
            .output
            .position()
            .is_none_or(|stored| at_the_end && *stored != after || worth_storing(stored, &after));
        if self.output.is_dirty() || moved {
            self.output.checkpoint(after.clone())?;
            self.bytes = 0;
        }
        self.progress.applied(&after);
        Ok(())
    }
}

/// A position without files is stored if much of the commit stream would have to be read again without it.
fn worth_storing(stored: &Position, after: &Position) -> bool {
    after.commits_offset - stored.commits_offset > 1000
        || after.commit_ts.0.seconds_since(stored.commit_ts.0) > 300.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::sluice::v1::{Column, Gap, Key, TableDefinition};
    use tidb::ts::StartTs;

    use super::*;
    use crate::event::{Change, ChangeKind, Rows, Value};
    use crate::position::FeedId;
    use crate::schema::Table;

    fn position(seq: u64) -> Position {
        let feed_id = FeedId::from_bytes(&[1; 16]).unwrap();
        Position { feed_id, epoch: 1, seq, commit_ts: CommitTs::new(seq * 10), commits_offset: seq as i64 }
    }

    #[test]
    fn what_came_before_a_gap_is_in_the_export() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::OutputConfig { dir: dir.path().to_owned(), ..Default::default() };
        let mut writer = Writer {
            output: Output::open(&config).unwrap(),
            progress: Arc::new(FollowProgress::new()),
            flush_interval: Duration::from_secs(3600),
            rotate_bytes: u64::MAX,
            on_gap: GapPolicy::Stop,
            after: None,
            open: false,
            bytes: 0,
            last: Instant::now(),
        };
        let table = Arc::new(Table::new(TableDefinition {
            table_id: 1,
            database: "d".into(),
            table: "t".into(),
            columns: vec![Column {
                id: 1,
                name: "id".into(),
                mysql_type: 3,
                not_null: true,
                ..Default::default()
            }],
            unique_keys: vec![Key { primary: true, column_ids: vec![1], ..Default::default() }],
            ..Default::default()
        }));
        let kind = ChangeKind::Insert { after: vec![Some(Value::Int(1))].into() };
        let rows = Rows {
            seq: 1,
            commit_ts: CommitTs::new(10),
            start_ts: StartTs::new(9),
            origin: None,
            first_change: 0,
            changes: vec![Change { table, kind, cost: 100 }],
            cost: 100,
            after: Some(position(1)),
        };
        writer.event(Event::Attached(position(0))).unwrap();
        writer.event(Event::Rows(rows)).unwrap();
        let gap = Gap { from: 10, to: 20, cause: "a lost disk".into() };
        let error = writer.event(Event::Gap { gap, after: Some(position(2)) }).unwrap_err().to_string();
        assert!(error.contains("(10, 20]") && error.contains("complete up to 10"), "{error}");
        drop(writer);
        let mut files = Vec::new();
        manifest::Manifest::open(dir.path(), |checkpoint| files.extend(checkpoint.files)).unwrap();
        assert!(
            files.iter().any(|file: &manifest::FileEntry| file.kind == manifest::FileKind::Rows),
            "{files:?}"
        );
        assert_eq!(Output::open(&config).unwrap().position(), Some(&position(1)));
    }
}
