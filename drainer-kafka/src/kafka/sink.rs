//! Writes the log: takes shaped transactions in order, puts them into Kafka transactions, and ends each with the commit
//! records that name its rows.
//!
//! A Kafka transaction is committed as soon as the one before is done and nothing more is at hand, when it is full, or
//! when `commit-interval` is over; meanwhile the next transactions are being shaped. Idle, a TICK goes out each second.
//!
//! Crash: whatever was not committed is aborted by the successor's `init_transactions`, which then goes on after the last
//! commit record. Any failure here ends the epoch; the producer is dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::sluice::v1::RowMeta;
use tidb::ts::{CommitTs, Tso};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::LogError;
use super::producer::{Acks, Place, Producer};
use super::topics::Topics;
use crate::claims::Claims;
use crate::inflight::{HeldChange, InFlight, InFlightError};
use crate::metrics;
use crate::schema::Definition;
use crate::schema::history::SchemaHistory;
use crate::schema::records::SchemaTopicRecord;
use crate::sequence::{Delivered, RowPartition, RowRecord, Sequencer, TxnHeader};
use crate::status::Status;
use crate::translate::{Shape, TranslateError, TranslateFault, TxnRows};

/// How often an idle log gets a record.
const TICK: Duration = Duration::from_secs(1);

/// How long TiDB is asked about a column that does not exist yet.
const ASK: Duration = Duration::from_secs(2);

/// Bytes of a large transaction that are shaped at a time.
const SLICE: usize = 1 << 20;

/// Changes of a large transaction that are passed over at a time, where a predecessor has written them.
const SKIPPED: u32 = 10_000;

/// A transaction whose rows are shaped, or about to be.
#[derive(Debug)]
pub struct Shaped {
    /// What it is.
    pub header: TxnHeader,
    /// Its rows.
    pub rows: Rows,
    /// Rows of dropped tables.
    pub discarded: u64,
    /// Rows that the rules leave out.
    pub filtered: u64,
    /// Values that its rows brought for columns that do not exist yet.
    pub held: Vec<HeldChange>,
    /// Its share of its pump's budget, given back when it is in Kafka.
    pub budget: Option<Arc<OwnedSemaphorePermit>>,
}

/// The rows of a transaction.
#[derive(Debug)]
pub enum Rows {
    /// All of them.
    Whole(Vec<RowRecord>),
    /// Too many to hold: shaped slice by slice.
    Sliced(Box<TxnRows>),
}

/// What the sink is handed, in order.
#[derive(Debug)]
pub enum Work {
    /// Transactions that are being shaped; nothing else comes before them.
    Shaping(JoinHandle<Result<Vec<Shaped>, TranslateError>>),
    /// A DDL: what the schema topic gets, and its entry if it goes out.
    Ddl {
        /// Its place.
        commit_ts: CommitTs,
        /// Definitions and DDL.
        records: Vec<SchemaTopicRecord>,
        /// Its entry; `None` if the rules leave it out.
        entry: Option<TxnHeader>,
        /// Tables as they were and as they are now.
        reshaped: Vec<(Arc<Definition>, Arc<Definition>)>,
        /// Columns that the statement gives another name: from, to.
        renamed: Vec<(String, String)>,
        /// Table ids that are gone, or whose coming columns are.
        dropped: Vec<i64>,
    },
    /// Everything at or below it came before.
    Resolved(Tso),
    /// Transactions in (from, to] are missing; everything up to `from` came before.
    Gap {
        /// Exclusive.
        from: Tso,
        /// Inclusive.
        to: Tso,
        /// Whose, and why.
        cause: String,
    },
}

/// Why the sink ended.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Kafka, or the order of the log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A transaction cannot be shaped.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// Values for coming columns cannot be held.
    #[error(transparent)]
    InFlight(#[from] InFlightError),
    /// An update that must follow a DDL cannot be written.
    #[error("an update after DDL {commit_ts}: {fault}")]
    Fulfil {
        /// The DDL.
        commit_ts: CommitTs,
        /// Why.
        fault: TranslateFault,
    },
    /// A large value cannot be put into its file.
    #[error("output.claim-check-dir: cannot write {name}: {source}")]
    Claim {
        /// The file.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// A shaping task panicked.
    #[error("a shaping task did not come back")]
    Shaping,
}

impl SinkError {
    /// True if a new epoch may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Log(error) => error.is_retryable(),
            Self::Shaping | Self::Claim { .. } => true,
            Self::Translate(_) | Self::InFlight(_) | Self::Fulfil { .. } => false,
        }
    }
}

impl From<crate::sequence::SequenceError> for SinkError {
    fn from(error: crate::sequence::SequenceError) -> Self {
        Self::Log(error.into())
    }
}

/// How the log is written.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Names.
    pub topics: Topics,
    /// Names of the row topics, as the layout numbers them.
    pub row_topics: Vec<String>,
    /// The longest a transaction waits.
    pub commit_interval: Duration,
    /// Bytes of rows in a Kafka transaction.
    pub max_transaction: usize,
    /// How rows become records.
    pub shape: Shape,
    /// Where values too large for a record go, under that policy.
    pub claims: Option<Claims>,
    /// The most bytes of values held for columns that do not exist yet.
    pub in_flight_budget: usize,
}

/// The sink of one epoch.
#[derive(Debug)]
pub struct Sink<H> {
    producer: Producer,
    sequencer: Sequencer,
    options: SinkOptions,
    status: Status,
    /// Asked about columns that do not exist yet.
    history: Arc<H>,
    inflight: InFlight,
    /// The open Kafka transaction.
    acks: Option<Arc<Acks>>,
    begun: Instant,
    /// Permits of the transactions in it.
    budgets: Vec<Arc<OwnedSemaphorePermit>>,
    /// Keys of the schema records sent in it.
    schema_keys: HashSet<String>,
    /// When the log gets a record even if nothing happens.
    tick_due: tokio::time::Instant,
}

impl<H: SchemaHistory> Sink<H> {
    /// Over a producer that has fenced its predecessor.
    pub fn new(
        producer: Producer,
        sequencer: Sequencer,
        options: SinkOptions,
        history: Arc<H>,
        status: Status,
    ) -> Self {
        Self {
            producer,
            sequencer,
            status,
            history,
            inflight: InFlight::new(options.in_flight_budget),
            options,
            acks: None,
            begun: Instant::now(),
            budgets: Vec::new(),
            schema_keys: HashSet::new(),
            tick_due: tokio::time::Instant::now() + TICK,
        }
    }

    /// Begins the epoch: START, together with what the schema topic lacks.
    pub async fn start(&mut self, schema: &[SchemaTopicRecord]) -> Result<(), SinkError> {
        self.begin()?;
        self.send_schema(schema, Tso::ZERO).await?;
        self.delivered().await?;
        let record = self.sequencer.start();
        self.commit("start", vec![record]).await?;
        metrics::epoch();
        self.status.began(self.sequencer.epoch());
        info!(
            epoch = self.sequencer.epoch(), position = %self.sequencer.watermark(), next_seq = self.sequencer.next_seq(),
            definitions = schema.len(), "began an epoch"
        );
        Ok(())
    }

    /// The epoch's number.
    pub fn epoch(&self) -> u64 {
        self.sequencer.epoch()
    }

    /// Where values too large for a record go.
    pub fn claims(&self) -> Option<&Claims> {
        self.options.claims.as_ref()
    }

    /// Everything at or below it is in the log.
    pub fn watermark(&self) -> Tso {
        self.sequencer.watermark()
    }

    /// Writes what comes until nothing more does; then the log is complete up to there. On an error the epoch is over.
    pub async fn run(mut self, mut work: mpsc::Receiver<Work>) -> Result<(), SinkError> {
        self.write(&mut work).await
    }

    async fn write(&mut self, work: &mut mpsc::Receiver<Work>) -> Result<(), SinkError> {
        let mut ready: Option<Work> = None;
        loop {
            let next = match ready.take() {
                Some(work) => Some(work),
                None => tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(self.tick_due) => None,
                    next = work.recv() => match next {
                        Some(work) => Some(work),
                        None => return Ok(()),
                    },
                },
            };
            match next {
                None => {
                    self.begin()?;
                    let record = self.sequencer.tick();
                    self.commit("tick", vec![record]).await?;
                }
                Some(Work::Resolved(watermark)) => self.sequencer.advance(watermark),
                Some(Work::Gap { from, to, cause }) => {
                    if let Some(record) = self.sequencer.gap(from, to, cause) {
                        self.begin()?;
                        self.commit("gap", vec![record]).await?;
                    }
                }
                Some(first) => ready = self.batch(first, work).await?,
            }
        }
    }

    /// Fills a Kafka transaction and commits it. Returns work that did not belong into it.
    async fn batch(
        &mut self,
        first: Work,
        work: &mut mpsc::Receiver<Work>,
    ) -> Result<Option<Work>, SinkError> {
        self.begun = Instant::now();
        let mut next = Some(first);
        let mut left_over = None;
        while let Some(item) = next.take() {
            match item {
                Work::Shaping(mut shaping) => {
                    // What is not ready when the interval is over waits for the next transaction.
                    let rest = self.options.commit_interval.saturating_sub(self.begun.elapsed());
                    let shaped = if self.acks.is_none() {
                        (&mut shaping).await
                    } else {
                        match tokio::time::timeout(rest, &mut shaping).await {
                            Ok(shaped) => shaped,
                            Err(_) => {
                                left_over = Some(Work::Shaping(shaping));
                                break;
                            }
                        }
                    };
                    for transaction in shaped.map_err(|_| SinkError::Shaping)?? {
                        self.transaction(transaction).await?;
                    }
                }
                Work::Ddl { commit_ts, records, entry, reshaped, renamed, dropped } => {
                    let updates = self.fulfil(commit_ts, &reshaped, &renamed, &dropped)?;
                    self.ddl(commit_ts, records, entry, updates).await?;
                }
                Work::Resolved(watermark) => self.sequencer.advance(watermark),
                gap @ Work::Gap { .. } => {
                    left_over = Some(gap);
                    break;
                }
            }
            if self.sequencer.batch_bytes() >= self.options.max_transaction
                || self.begun.elapsed() >= self.options.commit_interval
            {
                break;
            }
            next = work.try_recv().ok();
        }
        self.settle("batch").await?;
        Ok(left_over)
    }

    async fn transaction(&mut self, shaped: Shaped) -> Result<(), SinkError> {
        metrics::skipped_rows(shaped.discarded, shaped.filtered);
        let commit_ts = shaped.header.commit_ts;
        if shaped.header.changes == 0 {
            self.hold(commit_ts, shaped.held).await?;
            if let Rows::Sliced(mut rows) = shaped.rows {
                let written = rows.changes();
                self.skip(commit_ts, &mut rows, written).await?;
            }
            self.sequencer.held(self.inflight.oldest());
            self.sequencer.advance(commit_ts.0);
            return Ok(());
        }
        let room = self.options.max_transaction.saturating_sub(self.sequencer.batch_bytes());
        let alone = match &shaped.rows {
            Rows::Sliced(_) => true,
            Rows::Whole(records) => records.iter().map(RowRecord::size).sum::<usize>() > room,
        };
        if alone || !self.sequencer.fits(&shaped.header) {
            self.settle("batch").await?;
        }
        self.begin()?;
        let opened = self.sequencer.open(shaped.header)?;
        self.budgets.extend(shaped.budget);
        match shaped.rows {
            Rows::Whole(mut records) => {
                records.retain(|record| record.change >= opened.skip_changes);
                self.rows(&records).await?;
                self.hold(commit_ts, shaped.held).await?;
                self.sequencer.held(self.inflight.oldest());
            }
            Rows::Sliced(rows) => self.sliced(commit_ts, *rows, opened.skip_changes).await?,
        }
        self.sequencer.close()?;
        if self.sequencer.has_open() {
            self.settle("part").await?;
        }
        Ok(())
    }

    /// Sends rows of the open transaction. Where it grows over `max-kafka-transaction`, a part ends before the change that
    /// would not fit.
    async fn rows(&mut self, records: &[RowRecord]) -> Result<(), SinkError> {
        for change in records.chunk_by(|a, b| a.change == b.change) {
            let bytes: usize = change.iter().map(RowRecord::size).sum();
            let full = self.sequencer.batch_bytes() + bytes > self.options.max_transaction;
            if full && self.sequencer.batch_bytes() > 0 {
                self.settle("part").await?;
                self.begin()?;
            }
            for record in change {
                self.row(record).await?;
            }
        }
        Ok(())
    }

    /// A transaction too large to be shaped at once.
    async fn sliced(
        &mut self,
        commit_ts: CommitTs,
        mut rows: TxnRows,
        skip_changes: u32,
    ) -> Result<(), SinkError> {
        self.skip(commit_ts, &mut rows, skip_changes).await?;
        loop {
            let shape = self.options.shape;
            let (slice, back) = tokio::task::spawn_blocking(move || {
                let slice = rows.next_slice(&shape, SLICE);
                (slice, rows)
            })
            .await
            .map_err(|_| SinkError::Shaping)?;
            rows = back;
            let slice = slice?;
            self.hold(commit_ts, rows.take_held()).await?;
            if slice.is_empty() {
                // The transaction counts as a whole: until it is closed, the watermark stays before it, and a successor
                // reads all of it again.
                self.sequencer.held(self.inflight.oldest());
                return Ok(());
            }
            self.rows(&slice).await?;
        }
    }

    /// Passes over changes that a predecessor has written.
    async fn skip(&mut self, commit_ts: CommitTs, rows: &mut TxnRows, changes: u32) -> Result<(), SinkError> {
        let mut left = changes;
        while left > 0 {
            let changes = left.min(SKIPPED);
            rows.skip(changes)?;
            self.hold(commit_ts, rows.take_held()).await?;
            left -= changes;
        }
        Ok(())
    }

    async fn row(&mut self, record: &RowRecord) -> Result<(), SinkError> {
        if let (Some(claim), Some(claims)) = (record.claim.clone(), self.options.claims.clone()) {
            let name = claim.name.clone();
            let stored = tokio::task::spawn_blocking(move || claims.store(&claim)).await;
            let stored = stored.map_err(|_| SinkError::Shaping)?;
            stored.map_err(|source| SinkError::Claim { name, source })?;
        }
        let (Some(acks), Some(meta)) = (&self.acks, self.sequencer.row(record)) else { return Ok(()) };
        let topic = &self.options.row_topics[usize::from(record.place.topic)];
        let (place, key) = (Place::Rows(record.place), record.key.as_deref());
        self.producer.send(acks, topic, record.place.partition, place, key, &record.value, &meta).await?;
        Ok(())
    }

    /// Holds values for columns that do not exist yet. The sequencer is told when the whole transaction is.
    async fn hold(&mut self, commit_ts: CommitTs, changes: Vec<HeldChange>) -> Result<(), SinkError> {
        if changes.is_empty() {
            return Ok(());
        }
        for table_id in self.inflight.strangers(&changes) {
            // TiDB tells the default of a column that is being added; without an answer everything is held.
            let asked = tokio::time::timeout(ASK, self.history.table(table_id)).await;
            let info = asked.ok().and_then(Result::ok).flatten();
            self.inflight.learn(table_id, &changes, info.as_ref());
        }
        self.inflight.take(commit_ts, changes)?;
        Ok(())
    }

    /// The updates that bring held values into the columns that a DDL made.
    fn fulfil(
        &mut self,
        commit_ts: CommitTs,
        reshaped: &[(Arc<Definition>, Arc<Definition>)],
        renamed: &[(String, String)],
        dropped: &[i64],
    ) -> Result<Vec<RowRecord>, SinkError> {
        let mut records = Vec::new();
        for (before, after) in reshaped {
            let updates = self.inflight.fulfil(before, after, renamed)?;
            if after.place.is_some() {
                let shaped = self.options.shape.fulfilled(after, commit_ts, updates, &mut records);
                shaped.map_err(|fault| SinkError::Fulfil { commit_ts, fault })?;
            }
        }
        dropped.iter().for_each(|table_id| self.inflight.dropped(*table_id));
        self.sequencer.held(self.inflight.oldest());
        Ok(records)
    }

    async fn ddl(
        &mut self,
        commit_ts: CommitTs,
        records: Vec<SchemaTopicRecord>,
        entry: Option<TxnHeader>,
        updates: Vec<RowRecord>,
    ) -> Result<(), SinkError> {
        if entry.as_ref().is_some_and(|header| !self.sequencer.fits(header)) {
            self.settle("batch").await?;
        }
        if !records.is_empty() || entry.is_some() {
            self.begin()?;
            self.send_schema(&records, commit_ts.0).await?;
        }
        match entry {
            Some(header) => {
                let changes = updates.last().map_or(0, |last| last.change + 1);
                self.sequencer.open(TxnHeader { changes, ..header })?;
                for record in &updates {
                    self.row(record).await?;
                }
                self.sequencer.close()?;
            }
            // The definitions and the watermark that covers them belong into one Kafka transaction.
            None => self.sequencer.advance(commit_ts.0),
        }
        Ok(())
    }

    async fn send_schema(&mut self, records: &[SchemaTopicRecord], commit_ts: Tso) -> Result<(), SinkError> {
        let Some(acks) = &self.acks else { return Ok(()) };
        for record in records {
            let meta = RowMeta { epoch: self.sequencer.epoch(), commit_ts: commit_ts.get(), ..record.meta };
            let key = Some(record.key.as_bytes());
            let topic = &self.options.topics.schema;
            self.producer.send(acks, topic, 0, Place::Schema, key, &record.value, &meta).await?;
            self.schema_keys.insert(record.key.clone());
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        if self.acks.is_none() {
            self.acks = Some(self.producer.begin()?);
            self.begun = Instant::now();
        }
        Ok(())
    }

    /// Waits until everything in the Kafka transaction has its offset; where the rows went.
    async fn delivered(&mut self) -> Result<HashMap<RowPartition, Delivered>, SinkError> {
        let Some(acks) = self.acks.clone() else { return Ok(HashMap::new()) };
        self.producer.flush().await?;
        let delivered = acks.all().await?;
        if let Some(schema) = delivered.schema {
            let keys = self.schema_keys.len() as u64;
            self.sequencer.schema_written(schema, keys)?;
        }
        Ok(delivered.rows)
    }

    /// Ends the Kafka transaction: all offsets first, then the commit records that name them.
    async fn settle(&mut self, kind: &'static str) -> Result<(), SinkError> {
        if self.acks.is_none() {
            return Ok(());
        }
        if self.sequencer.batch_is_empty() && self.schema_keys.is_empty() {
            return Ok(());
        }
        let delivered = self.delivered().await?;
        let (transactions, changes) = self.sequencer.batch_counts();
        let bytes = self.sequencer.batch_bytes();
        let records = self.sequencer.settle(&delivered)?;
        self.commit(kind, records).await?;
        debug!(transactions, changes, bytes, "committed a Kafka transaction");
        metrics::written_batch(transactions, changes, bytes);
        Ok(())
    }

    async fn commit(
        &mut self,
        kind: &'static str,
        records: Vec<schemas::sluice::v1::CommitRecord>,
    ) -> Result<(), SinkError> {
        let Some(acks) = self.acks.take() else { return Ok(()) };
        for record in &records {
            self.producer.send_commit(&acks, &self.options.topics.commits, record).await?;
        }
        self.producer.commit().await?;
        // Everything was delivered before the commit; this only picks up a report of failure.
        acks.all().await?;
        metrics::committed(kind, self.begun.elapsed());
        self.budgets.clear();
        self.schema_keys.clear();
        self.tick_due = tokio::time::Instant::now() + TICK;
        self.status.written(self.sequencer.watermark(), self.sequencer.next_seq());
        Ok(())
    }
}
