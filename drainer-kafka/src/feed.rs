//! The middle of the pipeline: the merge, and behind it the schema.
//!
//! ```text
//!   pulls ──▶ merge task ──▶ shape task ──▶ (workers) ──▶ sink
//!               Merger        Tracker        TxnRows
//! ```
//!
//! The merge task owns the [`Merger`]; the shape task owns the [`Tracker`]. Rows are shaped by workers, in parallel, with
//! the definitions as they were at the rows' place; the queue of their results keeps the order. Only a DDL waits, for its
//! job; what came before it is written meanwhile.
//!
//! Everything here is lost in a crash and rebuilt from the log: transactions are pulled again from the position.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::sluice::v1::DdlEntry;
use tidb::model::{ActionType, Job};
use tidb::ts::Tso;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::ddl;
use crate::kafka::sink::{Rows, Shaped, Work};
use crate::merge::{Gap, Lost, MergeError, Merger, Released, SourceId};
use crate::metrics;
use crate::pull::{LostTransaction, PumpBatch};
use crate::routing::Routing;
use crate::schema::history::{HistoryError, SchemaHistory};
use crate::schema::{Definition, Definitions, SchemaError, Tracker, records, was_undone};
use crate::sequence::TxnHeader;
use crate::statement::renamed_columns;
use crate::status::{Status, WaitingDdl};
use crate::transaction::{DdlBinlog, Transaction};
use crate::translate::{Shape, TranslateError, TxnRows};

/// TiDB's schema state 1: the extra record of a DROP COLUMN, which changes no definition.
const DELETE_ONLY: i32 = 1;

/// Payload bytes and transactions that one worker shapes at a time.
const UNIT_BYTES: usize = 256 << 10;
const UNIT_TRANSACTIONS: usize = 512;

/// A transaction above this is shaped slice by slice while it is written.
const SLICED_BYTES: usize = 4 << 20;

/// The first and the longest wait for a DDL's job.
const MIN_WAIT: Duration = Duration::from_millis(20);
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How much of a statement the status shows.
const SHOWN_QUERY: usize = 200;

/// A change of the merge's sources.
#[derive(Debug)]
pub enum SourceChange {
    /// A pump to wait for from now on.
    Add {
        /// Which.
        id: SourceId,
        /// Batches of another generation of this pump's pull are ignored.
        generation: u64,
        /// Receives the timestamp that the merge waits for.
        want: watch::Sender<Tso>,
        /// Answers the position after which the pump must deliver.
        reply: oneshot::Sender<Tso>,
    },
    /// A pump that went offline.
    End {
        /// Which.
        id: SourceId,
        /// Answers the watermark that had arrived from it.
        reply: oneshot::Sender<Tso>,
    },
    /// Transactions up to `to` that will never come, from the position on.
    Gap {
        /// Inclusive.
        to: Tso,
        /// Whose, and why.
        cause: String,
    },
}

/// What leaves the merge.
#[derive(Debug)]
pub enum Merged {
    /// Transactions in order.
    Transactions(Vec<Transaction>),
    /// Everything at or below it came before.
    Resolved(Tso),
    /// Declared missing: everything before the range came before, nothing in it did.
    Gap(Gap),
}

/// The merge task.
#[derive(Debug)]
pub struct MergeTask {
    merger: Merger,
    members: HashMap<SourceId, (u64, watch::Sender<Tso>)>,
    /// Taken from the merger, to leave next.
    gap: Option<Gap>,
    resolved: Tso,
    status: Status,
}

impl MergeTask {
    /// Begins after `position`; what is missing up to `declared` is in the log.
    pub fn new(position: Tso, declared: Tso, status: Status) -> Self {
        let merger = Merger::new(position, declared);
        Self { merger, members: HashMap::new(), gap: None, resolved: position, status }
    }

    /// Runs until the pulls and the membership are gone, or the shape task is; an error stops the feed. Changes of the
    /// sources are answered even while the shape task takes nothing (it may wait hours for a DDL), so that a pump can
    /// join then.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<PumpBatch>,
        mut changes: mpsc::Receiver<SourceChange>,
        out: mpsc::Sender<Merged>,
    ) -> Result<(), MergeError> {
        let mut output = None;
        loop {
            tokio::select! {
                biased;
                change = changes.recv() => match change {
                    Some(change) => self.change(change),
                    None => return Ok(()),
                },
                place = out.reserve(), if output.is_some() => match (place, output.take()) {
                    (Ok(place), Some(output)) => place.send(output),
                    _ => return Ok(()),
                },
                batch = batches.recv(), if output.is_none() => match batch {
                    Some(batch) => {
                        self.take(batch)?;
                        // Whatever else is there comes along, so that a burst leaves in large pieces.
                        for _ in 0..64 {
                            let Ok(batch) = batches.try_recv() else { break };
                            self.take(batch)?;
                        }
                    }
                    None => return Ok(()),
                },
            }
            if output.is_none() {
                output = self.next_output()?;
            }
        }
    }

    fn take(&mut self, batch: PumpBatch) -> Result<(), MergeError> {
        if self.members.get(&batch.source).is_none_or(|(generation, _)| *generation != batch.generation) {
            return Ok(());
        }
        for LostTransaction { start_ts, after, upto, cause } in batch.lost {
            let cause = format!("pump {} lost transaction {start_ts}: {cause}", batch.source);
            match self.merger.lose(start_ts, after, upto, cause.clone()) {
                Lost::Declared => error!(%after, %upto, cause, "declaring a gap"),
                Lost::Known => info!(%after, %upto, cause, "this gap is in the log, or behind it"),
            }
        }
        for transaction in batch.transactions {
            self.merger.push(&batch.source, transaction)?;
        }
        self.merger.advance(&batch.source, batch.watermark);
        Ok(())
    }

    fn change(&mut self, change: SourceChange) {
        match change {
            SourceChange::Add { id, generation, want, reply } => {
                let after = self.merger.add(&id);
                self.members.insert(id, (generation, want));
                let _ = reply.send(after);
            }
            SourceChange::End { id, reply } => {
                let arrived = self.merger.watermarks().find(|(source, _)| **source == id).map(|(_, ts)| ts);
                self.merger.end(&id);
                self.members.remove(&id);
                let _ = reply.send(arrived.unwrap_or_default());
            }
            SourceChange::Gap { to, cause } => {
                self.merger.miss(self.merger.position(), to, cause);
            }
        }
    }

    fn next_output(&mut self) -> Result<Option<Merged>, MergeError> {
        let mut released = Vec::new();
        let mut bytes = 0;
        while self.gap.is_none() && released.len() < UNIT_TRANSACTIONS && bytes < UNIT_BYTES {
            match self.merger.pop()? {
                Some(Released::Transaction(transaction)) => {
                    bytes += transaction.payload.len();
                    released.push(transaction);
                }
                Some(Released::Gap(gap)) => self.gap = Some(gap),
                None => break,
            }
        }
        let position = self.merger.position();
        self.status.merged(position);
        if !released.is_empty() {
            return Ok(Some(Merged::Transactions(released)));
        }
        if let Some(gap) = self.gap.take() {
            return Ok(Some(Merged::Gap(gap)));
        }
        metrics::copies_dropped(self.merger.copies_dropped());
        self.want();
        if position > self.resolved {
            self.resolved = position;
            return Ok(Some(Merged::Resolved(position)));
        }
        Ok(None)
    }

    /// Tells the pump that everything waits for which timestamp that is.
    fn want(&self) {
        let Some(lagging) = self.merger.lagging() else { return };
        if let Some((_, want)) = self.members.get(&lagging.source) {
            want.send_if_modified(|wanted| {
                let newer = *wanted < lagging.wanted.0;
                *wanted = lagging.wanted.0.max(*wanted);
                newer
            });
        }
    }
}

/// Why the shape task ended.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A DDL cannot be applied.
    #[error("DDL at commit_ts {commit_ts} ({query}): {source}")]
    Schema {
        /// Its place.
        commit_ts: Tso,
        /// The statement.
        query: String,
        /// Why.
        source: SchemaError,
    },
    /// A DDL cannot go out.
    #[error("DDL at commit_ts {commit_ts} ({query}): {source}")]
    Ddl {
        /// Its place.
        commit_ts: Tso,
        /// The statement.
        query: String,
        /// Why.
        source: ddl::DdlError,
    },
    /// Its job cannot be read, and asking again will not help.
    #[error("DDL at commit_ts {commit_ts}: job {job_id}: {source}")]
    History {
        /// Its place.
        commit_ts: Tso,
        /// The job.
        job_id: i64,
        /// Why.
        source: HistoryError,
    },
    /// A transaction cannot be read.
    #[error(transparent)]
    Translate(#[from] TranslateError),
}

/// The shape task.
#[derive(Debug)]
pub struct ShapeTask<H> {
    tracker: Tracker,
    history: Arc<H>,
    routing: Arc<Routing>,
    shape: Shape,
    schema_limit: usize,
    /// Transactions up to here are in the log; they come again only for values that must be held.
    written: Tso,
    status: Status,
}

impl<H: SchemaHistory> ShapeTask<H> {
    /// With the schema as it is at `written`, where the log ends.
    pub fn new(
        tracker: Tracker,
        history: Arc<H>,
        routing: Arc<Routing>,
        shape: Shape,
        schema_limit: usize,
        written: Tso,
        status: Status,
    ) -> Self {
        Self { tracker, history, routing, shape, schema_limit, written, status }
    }

    /// Runs until the merge or the sink is gone; an error stops the feed.
    pub async fn run(
        mut self,
        mut merged: mpsc::Receiver<Merged>,
        out: mpsc::Sender<Work>,
    ) -> Result<(), FeedError> {
        while let Some(item) = merged.recv().await {
            let sent = match item {
                Merged::Resolved(watermark) => out.send(Work::Resolved(watermark)).await.is_ok(),
                Merged::Gap(Gap { from, to, cause }) => out.send(Work::Gap { from, to, cause }).await.is_ok(),
                Merged::Transactions(transactions) => self.transactions(transactions, &out).await?,
            };
            if !sent {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn transactions(
        &mut self,
        transactions: Vec<Transaction>,
        out: &mpsc::Sender<Work>,
    ) -> Result<bool, FeedError> {
        let mut unit = Vec::new();
        for transaction in transactions {
            let Some(ddl) = transaction.ddl.clone() else {
                unit.push(transaction);
                continue;
            };
            if !self.rows(std::mem::take(&mut unit), out).await {
                return Ok(false);
            }
            let Some(work) = self.ddl(&transaction, &ddl).await? else { continue };
            if out.send(work).await.is_err() {
                return Ok(false);
            }
        }
        Ok(self.rows(unit, out).await)
    }

    /// Hands transactions to a worker. The queue to the sink keeps the order.
    async fn rows(&self, unit: Vec<Transaction>, out: &mpsc::Sender<Work>) -> bool {
        if unit.is_empty() {
            return true;
        }
        let (definitions, shape, written) = (self.tracker.definitions(), self.shape, self.written);
        // A place in the queue first: shaped rows wait nowhere else, so their number is bounded.
        let Ok(place) = out.reserve().await else { return false };
        place.send(Work::Shaping(tokio::task::spawn_blocking(move || {
            shape_unit(unit, &definitions, &shape, written)
        })));
        true
    }

    async fn ddl(&mut self, transaction: &Transaction, ddl: &DdlBinlog) -> Result<Option<Work>, FeedError> {
        let written = transaction.commit_ts.0 <= self.written;
        if written || ddl.schema_state == DELETE_ONLY {
            return Ok(None);
        }
        if ddl::is_setval(&ddl.query) {
            return Ok(self.sequence_value(transaction, ddl));
        }
        let job = self.job(transaction, ddl).await?;
        let commit_ts = transaction.commit_ts;
        let query = || shown(&ddl.query);
        let effect = self.tracker.apply(&job, commit_ts).map_err(|source| FeedError::Schema {
            commit_ts: commit_ts.0,
            query: query(),
            source,
        })?;
        let replicated = effect.after.iter().filter(|table| table.place.is_some());
        let unread = replicated.filter_map(|table| table.unread_default(&self.routing)).next();
        if let Some(unread) = unread {
            let source = SchemaError::UnreadDefault { job: job.id, unread };
            return Err(FeedError::Schema { commit_ts: commit_ts.0, query: query(), source });
        }
        let outgoing =
            ddl::outgoing(self.routing.filter(), &job, &effect, &ddl.query, transaction.start_ts, commit_ts)
                .map_err(|source| FeedError::Ddl { commit_ts: commit_ts.0, query: query(), source })?;
        let (entry, record) = match outgoing {
            Some(outgoing) => (Some(outgoing.entry), Some(outgoing.record)),
            None => (None, None),
        };
        let (version, statement) = (job.schema_version(), query());
        if entry.is_some() {
            info!(job = job.id, kind = %job.kind, version, %commit_ts, statement, "applied a DDL job");
        } else {
            debug!(job = job.id, kind = %job.kind, version, %commit_ts, statement, "applied a DDL job that is not replicated");
        }
        let records = records::of_effect(&effect, record.as_ref(), commit_ts, self.schema_limit);
        // What rows brought for the columns of a job that was undone is for nobody.
        let undone = was_undone(&job).then_some(job.table_id);
        let reshaped = |before: &Arc<Definition>| {
            let after = effect.after.iter().find(|after| after.id() == before.id())?;
            Some((before.clone(), after.clone()))
        };
        Ok(Some(Work::Ddl {
            commit_ts,
            records,
            entry: entry.map(|entry| header(transaction, entry)),
            reshaped: effect.before.iter().filter_map(reshaped).collect(),
            renamed: renamed_columns(&String::from_utf8_lossy(&ddl.query)),
            dropped: effect.dropped.iter().map(|(table_id, _)| *table_id).chain(undone).collect(),
        }))
    }

    /// What a sequence has handed out: no job, and nothing for the schema topic.
    fn sequence_value(&self, transaction: &Transaction, ddl: &DdlBinlog) -> Option<Work> {
        let definitions = self.tracker.definitions();
        let entry = ddl::sequence_value(self.routing.filter(), &definitions, ddl.job_id, &ddl.query);
        let Some(entry) = entry else {
            debug!(commit_ts = %transaction.commit_ts, statement = shown(&ddl.query), "left out a sequence's value");
            return None;
        };
        Some(Work::Ddl {
            commit_ts: transaction.commit_ts,
            records: Vec::new(),
            entry: Some(header(transaction, entry)),
            reshaped: Vec::new(),
            renamed: Vec::new(),
            dropped: Vec::new(),
        })
    }

    /// The job of a DDL; waits until TiDB shows it.
    async fn job(&self, transaction: &Transaction, ddl: &DdlBinlog) -> Result<Job, FeedError> {
        let since = Instant::now();
        let mut wait = MIN_WAIT;
        let mut warned = since;
        loop {
            let reason = match self.history.job(ddl.job_id, transaction.start_ts).await {
                Ok(Some(job)) if is_settled(&job) => {
                    self.status.waiting_ddl(None);
                    return Ok(job);
                }
                Ok(Some(job)) => format!("the job's state is {:?}", job.state),
                Ok(None) => "TiDB shows the job neither in its history nor as running".to_owned(),
                Err(source) if source.is_retryable() => source.to_string(),
                Err(source) => {
                    let commit_ts = transaction.commit_ts.0;
                    return Err(FeedError::History { commit_ts, job_id: ddl.job_id, source });
                }
            };
            if warned.elapsed() > Duration::from_secs(10) {
                warned = Instant::now();
                let waiting = since.elapsed().as_secs();
                warn!(job = ddl.job_id, reason, waiting_seconds = waiting, "waiting for a DDL job");
            }
            self.status.waiting_ddl(Some(WaitingDdl {
                job_id: ddl.job_id,
                commit_ts: transaction.commit_ts.0,
                query: shown(&ddl.query),
                since,
                reason,
            }));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(MAX_WAIT);
        }
    }
}

fn header(transaction: &Transaction, entry: DdlEntry) -> TxnHeader {
    TxnHeader {
        start_ts: transaction.start_ts,
        commit_ts: transaction.commit_ts,
        changes: 0,
        ddl: Some(entry),
        origin: None,
    }
}

/// True if the job will not change any more as far as the schema goes: done, undone or cancelled.
fn is_settled(job: &Job) -> bool {
    use tidb::model::JobState as S;
    match job.state {
        S::Done | S::Synced | S::RollbackDone | S::Cancelled => true,
        // FLASHBACK CLUSTER never looks done in its own history: it turned that back too.
        S::None
        | S::Running
        | S::RollingBack
        | S::Cancelling
        | S::Queueing
        | S::Paused
        | S::Pausing
        | S::Other(_) => job.kind == ActionType::FlashbackCluster,
    }
}

fn shown(query: &[u8]) -> String {
    let text = String::from_utf8_lossy(query);
    match text.char_indices().nth(SHOWN_QUERY) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into_owned(),
    }
}

/// Shapes transactions; runs on a worker.
fn shape_unit(
    unit: Vec<Transaction>,
    definitions: &Definitions,
    shape: &Shape,
    written: Tso,
) -> Result<Vec<Shaped>, TranslateError> {
    unit.into_iter()
        .map(|transaction| {
            let (start_ts, commit_ts) = (transaction.start_ts, transaction.commit_ts);
            let header = |changes| TxnHeader { start_ts, commit_ts, changes, ddl: None, origin: None };
            if commit_ts.0 <= written {
                let mut rows = TxnRows::of_written(&transaction, definitions)?;
                let (rows, held) = if transaction.payload.len() > SLICED_BYTES {
                    (Rows::Sliced(Box::new(rows)), Vec::new())
                } else {
                    rows.skip(rows.changes())?;
                    (Rows::Whole(Vec::new()), rows.take_held())
                };
                let (header, budget) = (header(0), transaction.budget);
                return Ok(Shaped { header, rows, discarded: 0, filtered: 0, held, budget });
            }
            let mut rows = TxnRows::new(&transaction, definitions)?;
            let header = header(rows.changes());
            let (discarded, filtered) = (rows.discarded(), rows.filtered());
            let (rows, held) = if transaction.payload.len() > SLICED_BYTES {
                (Rows::Sliced(Box::new(rows)), Vec::new())
            } else {
                let records = rows.next_slice(shape, usize::MAX)?;
                (Rows::Whole(records), rows.take_held())
            };
            Ok(Shaped { header, rows, discarded, filtered, held, budget: transaction.budget })
        })
        .collect()
}
