//! Follows a feed: reads the commit stream, fetches exactly the rows it names, verifies, and hands over whole
//! transactions in commit order with the schema changes between them.
//!
//! ```text
//! <topic>.commits ─▶ chain ─▶ ranges ─▶ read rows ─▶ align ─▶ definitions ─▶ Event queue
//!                                        <topic>…            <topic>.schema
//! ```
//!
//! One thread does all of it; librdkafka reads ahead in the background. Nothing is stored here: where to begin is the
//! target's knowledge, and a crash loses only what the target has not taken yet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use node::shutdown::Shutdown;
use schemas::sluice::v1::{CommitRecord, PartitionRange, Txn, TxnKind, commit_record::Body};
use prost::Message as _;
use tidb::ts::{CommitTs, StartTs};
use tracing::{info, warn};

use crate::align::{AlignError, AlignedTxn, Aligner, Step, Taken};
use crate::chain::Start;
use crate::event::{Ddl, Event, Rows};
use crate::kafka::{LogReader, Polled, ReadError, Record};
use crate::metrics;
use crate::position::Position;
use crate::progress::FollowProgress;
use crate::queue::{Closed, EventSender};
use crate::schema::{SchemaError, SchemaView, Table};
use crate::shape::{Assembler, ShapeError, decode};

/// How long one look at an empty queue may take: the time in which a shutdown is noticed.
const LOOK: Duration = Duration::from_millis(100);
/// How often a wait is reported, and how often an idle log is checked to be still the same.
const REPORT: Duration = Duration::from_secs(10);
/// How long a definition may be missing although rows that need it are visible.
const DEFINITION: Duration = Duration::from_secs(60);
/// The only partition of the commit stream and of the schema topic.
const ONLY: i32 = 0;

/// What to follow and how.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// librdkafka settings: brokers, security.
    pub settings: Vec<(String, String)>,
    /// The feed's name: its commit stream is `<topic>.commits`, its definitions are in `<topic>.schema`.
    pub topic: String,
    /// Where rows wait that exceed the budget.
    pub dir: PathBuf,
    /// Bytes for everything between the brokers and the queue.
    pub memory: usize,
    /// Ends with [`Event::Reached`] once everything up to and including it was handed over.
    pub until: Option<CommitTs>,
}

impl FollowOptions {
    /// The commit stream's topic.
    pub fn commits_topic(&self) -> String {
        format!("{}.commits", self.topic)
    }

    /// The topic of table definitions.
    pub fn schema_topic(&self) -> String {
        format!("{}.schema", self.topic)
    }
}

/// Following cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log does not add up.
    #[error(transparent)]
    Align(#[from] AlignError),
    /// A definition cannot be read.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A row cannot be read.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A commit record cannot be read.
    #[error("the commit record at offset {offset} does not parse: {reason}")]
    NotACommitRecord {
        /// Where.
        offset: i64,
        /// Why.
        reason: String,
    },
    /// The feed is written in a format that this build does not read.
    #[error("epoch {epoch} writes values as `{format}`; this build applies `protobuf`")]
    Format {
        /// The epoch.
        epoch: u64,
        /// Its format.
        format: String,
    },
    /// A table's definition is not in the schema topic.
    #[error("the definition of table id {table_id} version {version} is not in {topic}, but transaction {seq} needs it")]
    NoDefinition {
        /// The table.
        table_id: i64,
        /// The version.
        version: i64,
        /// The transaction.
        seq: u64,
        /// The schema topic.
        topic: String,
    },
    /// The text of a long statement is not in the schema topic.
    #[error("the statement of job {job_id} is not in {topic}, but transaction {seq} needs it")]
    NoStatement {
        /// The job.
        job_id: i64,
        /// The transaction.
        seq: u64,
        /// The schema topic.
        topic: String,
    },
    /// The target is already past the end asked for.
    #[error("the target already stands at commit_ts {at}, past the end asked for ({until}): nothing was done")]
    PastTheEnd {
        /// Where it stands.
        at: CommitTs,
        /// Where to end.
        until: CommitTs,
    },
    /// A topic of the contract has another number of partitions.
    #[error("topic {topic} has {found} partitions, it must have one")]
    Partitions {
        /// The topic.
        topic: String,
        /// What it has.
        found: usize,
    },
}

/// Ends the loop: the end was reached or asked for.
enum Stop {
    Ended,
    Failed(FollowError),
}

impl<E: Into<FollowError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Ended
    }
}

/// Follows a feed on the calling thread until the shutdown, the end asked for, or an error. Call it from a thread on
/// which blocking is allowed.
pub fn follow(
    options: FollowOptions,
    start: Start,
    events: EventSender,
    progress: Arc<FollowProgress>,
    shutdown: Shutdown,
) -> Result<(), FollowError> {
    let reader = LogReader::new(&options.settings, options.memory / 16)?;
    let follower = Follower {
        commits: options.commits_topic(),
        schema_topic: options.schema_topic(),
        aligner: Aligner::new(&start, &options.dir, options.memory / 2),
        slice: (options.memory / 16).clamp(64 * 1024, 8 << 20),
        position: match &start {
            Start::Resume(position) => Some(position.clone()),
            Start::Attach { .. } => None,
        },
        schema: SchemaView::default(),
        options,
        start,
        reader,
        events,
        progress,
        shutdown,
    };
    match follower.run() {
        Stop::Ended => Ok(()),
        Stop::Failed(error) => Err(error),
    }
}

struct Follower {
    options: FollowOptions,
    commits: String,
    schema_topic: String,
    start: Start,
    reader: LogReader,
    aligner: Aligner,
    schema: SchemaView,
    events: EventSender,
    progress: Arc<FollowProgress>,
    shutdown: Shutdown,
    /// Bytes of a slice.
    slice: usize,
    /// The newest one handed over.
    position: Option<Position>,
}

impl Follower {
    fn run(mut self) -> Stop {
        loop {
            if let Err(stop) = self.follow() {
                return stop;
            }
        }
    }

    /// Opens the log and reads it to the end of all days.
    fn follow(&mut self) -> Result<(), Stop> {
        if let Some(until) = self.options.until {
            let at = self.aligner.chain().floor();
            if at > until {
                return Err(FollowError::PastTheEnd { at, until }.into());
            }
            if at == until && self.position.is_some() {
                return self.reached(until);
            }
        }
        let offset = self.open_commits()?;
        self.open_schema()?;
        info!(topic = self.commits, offset, "following");
        let mut idle = Instant::now();
        loop {
            match self.poll(&self.commits.clone(), ONLY)? {
                Polled::Record(record) => {
                    self.progress.waiting(None);
                    self.commit_record(record)?;
                    idle = Instant::now();
                }
                Polled::End | Polled::Nothing if idle.elapsed() >= REPORT => {
                    idle = Instant::now();
                    self.still_there()?;
                    let at = self.reader.next_offset(&self.commits, ONLY).unwrap_or_default();
                    self.progress.waiting(Some(format!("a record of {} at offset {at}", self.commits)));
                }
                Polled::End | Polled::Nothing => {}
            }
        }
    }

    /// A look at a partition; notices the shutdown.
    fn poll(&mut self, topic: &str, partition: i32) -> Result<Polled, Stop> {
        if self.shutdown.is_cancelled() {
            return Err(Stop::Ended);
        }
        Ok(self.reader.poll(topic, partition, LOOK)?)
    }

    /// Asks the brokers until they answer.
    fn ask<T>(&mut self, what: &str, ask: impl Fn(&LogReader) -> Result<T, ReadError>) -> Result<T, Stop> {
        loop {
            match ask(&self.reader) {
                Err(error) if error.is_transient() => {
                    warn!(%error, what, "the brokers did not answer, asking again");
                    self.progress.waiting(Some(format!("the brokers ({what}): {error}")));
                    self.pause()?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits a second, or for the shutdown.
    fn pause(&self) -> Result<(), Stop> {
        let second = Duration::from_secs(1);
        let runtime = tokio::runtime::Handle::current();
        match runtime.block_on(async { tokio::time::timeout(second, self.shutdown.cancelled()).await }) {
            Ok(()) => Err(Stop::Ended),
            Err(_) => Ok(()),
        }
    }

    /// Waits until a topic is there. A first attach waits for ever (the drainer may not have begun), a resume does not.
    fn await_topic(&mut self, topic: &str) -> Result<(), Stop> {
        let since = Instant::now();
        loop {
            match self.ask(topic, |reader| reader.partitions(topic))? {
                1 => return Ok(()),
                0 if matches!(self.start, Start::Resume(_)) && since.elapsed() >= REPORT => {
                    return Err(ReadError::NoTopic { topic: topic.to_owned(), partition: ONLY }.into());
                }
                0 => {
                    self.progress.waiting(Some(format!("topic {topic} to be created")));
                    self.pause()?;
                }
                found => return Err(FollowError::Partitions { topic: topic.to_owned(), found }.into()),
            }
        }
    }

    fn open_commits(&mut self) -> Result<i64, Stop> {
        let topic = self.commits.clone();
        self.await_topic(&topic)?;
        let (log_start, end) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
        if log_start == end && end > 0 {
            return Err(ReadError::Emptied { topic, partition: ONLY, end }.into());
        }
        let offset = match &self.start {
            Start::Attach { .. } => log_start,
            Start::Resume(position) => position.commits_offset,
        };
        if offset < log_start {
            let (first, last) = (offset, log_start - 1);
            return Err(ReadError::Gap { topic, partition: ONLY, first, last, log_start }.into());
        }
        if offset > end {
            return Err(ReadError::Shorter { topic, partition: ONLY, offset: offset - 1, end }.into());
        }
        self.reader.open(&topic, ONLY, offset)?;
        Ok(offset)
    }

    /// Reads all definitions there are.
    fn open_schema(&mut self) -> Result<(), Stop> {
        let topic = self.schema_topic.clone();
        self.await_topic(&topic)?;
        let (log_start, _) = self.ask(&topic, |reader| reader.bounds(&topic, ONLY))?;
        self.reader.open(&topic, ONLY, log_start)?;
        loop {
            match self.poll(&topic, ONLY)? {
                Polled::Record(record) => self.schema_record(record)?,
                Polled::End => break,
                Polled::Nothing => self.progress.waiting(Some(format!("the definitions in {topic}"))),
            }
        }
        if let Some(position) = &self.position {
            self.schema.forget_before(position.commit_ts);
        }
        Ok(())
    }

    fn schema_record(&mut self, record: Record) -> Result<(), Stop> {
        Ok(self.schema.apply(record.offset, record.key.as_deref(), record.value, record.meta.as_deref())?)
    }

    /// Nothing came for a while: is it still the same log?
    fn still_there(&mut self) -> Result<(), Stop> {
        let topic = self.commits.clone();
        let Some(next) = self.reader.next_offset(&topic, ONLY) else { return Ok(()) };
        let (log_start, end) = match self.reader.bounds(&topic, ONLY) {
            Ok(bounds) => bounds,
            Err(error) if error.is_transient() => return Ok(()),
            Err(ReadError::NoTopic { .. }) => return self.await_topic(&topic),
            Err(error) => return Err(error.into()),
        };
        let partition = ONLY;
        if log_start == end && end > 0 {
            return Err(ReadError::Emptied { topic, partition, end }.into());
        }
        if next < log_start {
            return Err(ReadError::Gap { topic, partition, first: next, last: log_start - 1, log_start }.into());
        }
        if next > end {
            return Err(ReadError::Shorter { topic, partition, offset: next - 1, end }.into());
        }
        Ok(())
    }

    fn commit_record(&mut self, record: Record) -> Result<(), Stop> {
        let offset = record.offset;
        let not_one = |reason: String| FollowError::NotACommitRecord { offset, reason };
        let value = record.value.ok_or_else(|| not_one("it has no value".to_owned()))?;
        let commit = CommitRecord::decode(value).map_err(|error| not_one(error.to_string()))?;
        let watermark = CommitTs::new(commit.watermark);
        let first = first_commit_ts(&commit);
        let step = self.aligner.begin(offset, commit)?;
        if !matches!(step, Step::Stale) {
            self.progress.saw(watermark);
        }
        match step {
            Step::Stale => {
                metrics::stale_commit_record();
                warn!(offset, "ignored a commit record of an epoch that was over");
                Ok(())
            }
            Step::Started { start, epoch, position } => {
                if start.value_format != "protobuf" {
                    return Err(FollowError::Format { epoch, format: start.value_format }.into());
                }
                info!(epoch, resumed_from = start.resumed_from, next_seq = start.next_seq, "an epoch began");
                self.passed(position)
            }
            Step::Passed(position) | Step::LayoutChanged(_, position) => self.passed(position),
            Step::Gap(gap, after) => {
                warn!(from = gap.from, to = gap.to, cause = gap.cause, "upstream declared a gap");
                if let Some(after) = &after {
                    self.position = Some(after.clone());
                }
                self.events.send(Event::Gap { gap, after }, 0)?;
                self.check_end()
            }
            // What begins after the end is not looked at further.
            Step::Rows(_) if self.position.is_some() && self.past_end(first).is_some() => {
                self.reached(self.past_end(first).unwrap_or_default())
            }
            Step::Rows(ranges) => {
                for (index, range) in ranges.iter().enumerate() {
                    self.read_range(index, range)?;
                }
                let mut batch = self.aligner.finish()?;
                while let Some(txn) = batch.next_txn()? {
                    self.hand_over(txn)?;
                }
                self.check_end()
            }
        }
    }

    /// Reads a range's records into the aligner, and past its end.
    fn read_range(&mut self, index: usize, range: &PartitionRange) -> Result<(), Stop> {
        let PartitionRange { topic, partition, first, last, .. } = range;
        let partition = *partition;
        // Far behind: what lies between is not wanted.
        let far = |next: i64| next > *last || first.saturating_sub(next) > 10_000;
        if self.reader.next_offset(topic, partition).is_none_or(far) {
            self.reader.open(topic, partition, *first)?;
        }
        let began = Instant::now();
        let mut reported = began;
        // Set once the brokers said that the log ends past the range and reading began anew after that: if its end comes
        // again, what was not seen is not there.
        let mut confirmed = false;
        loop {
            match self.poll(topic, partition)? {
                Polled::Record(record) if record.offset < *first => {}
                Polled::Record(record) if record.offset > *last => {
                    self.reader.put_back(topic, partition, record);
                    break;
                }
                Polled::Record(record) => {
                    let Record { offset, key, value, meta } = record;
                    match self.aligner.row(index, offset, meta.as_deref(), key.as_deref(), value)? {
                        Taken::Row => {}
                        Taken::Stranger => metrics::stranger(topic),
                        Taken::Stale => {
                            metrics::stale_row(topic);
                            warn!(topic, partition, offset, "ignored a row of an epoch that was over");
                        }
                    }
                    if offset == *last {
                        break;
                    }
                }
                Polled::End if confirmed => break,
                Polled::End => {
                    let (_, end) = self.ask(topic, |reader| reader.bounds(topic, partition))?;
                    if end > *last {
                        let next = self.reader.next_offset(topic, partition).unwrap_or(*first).max(*first);
                        self.reader.open(topic, partition, next)?;
                        confirmed = true;
                    }
                }
                Polled::Nothing => {}
            }
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                let what = format!("{topic} partition {partition} to be readable up to offset {last}");
                warn!(topic, partition, last, seconds = began.elapsed().as_secs(), "waiting for rows");
                self.progress.waiting(Some(what));
            }
        }
        self.progress.waiting(None);
        // An offset that is not there any more shows as a range that is not whole.
        if let Some((seen, expected)) = self.aligner.seen(index)
            && seen < expected
        {
            let (log_start, _) = self.ask(topic, |reader| reader.bounds(topic, partition))?;
            if log_start > *first {
                let (topic, first, last) = (topic.clone(), *first, *last);
                return Err(ReadError::Gap { topic, partition, first, last, log_start }.into());
            }
        }
        Ok(self.aligner.end_range(index)?)
    }

    /// Sends a transaction on, unless it is past the end.
    fn hand_over(&mut self, aligned: AlignedTxn) -> Result<(), Stop> {
        let AlignedTxn { txn, rows, before, mut after } = aligned;
        let commit_ts = CommitTs::new(txn.commit_ts);
        if self.position.is_none() {
            self.attached(before)?;
        }
        if let Some(until) = self.options.until {
            if commit_ts > until {
                return self.reached(until);
            }
            after.commit_ts = after.commit_ts.min(until);
        }
        let changes = rows.len();
        if txn.kind() == TxnKind::Ddl {
            let ddl = self.ddl(&txn, (changes == 0).then(|| after.clone()))?;
            self.events.send(Event::Ddl(Box::new(ddl)), 1024)?;
        }
        if changes > 0 || txn.kind() == TxnKind::Rows {
            self.rows(&txn, rows, &after)?;
        }
        metrics::transaction();
        self.progress.handed_over(&after);
        if txn.kind() == TxnKind::Ddl {
            self.schema.forget_before(CommitTs(commit_ts.0.prev()));
        }
        self.position = Some(after);
        Ok(())
    }

    fn rows(&mut self, txn: &Txn, rows: crate::spill::RowLog, after: &Position) -> Result<(), Stop> {
        let slice = |first_change, changes, cost, after| Rows {
            seq: txn.seq,
            commit_ts: CommitTs::new(txn.commit_ts),
            start_ts: StartTs::new(txn.start_ts),
            origin: txn.origin,
            first_change,
            changes,
            cost,
            after,
        };
        let mut assembler = Assembler::default();
        let (mut changes, mut cost, mut first) = (Vec::new(), 0, 0);
        for row in rows.into_rows().map_err(AlignError::Spill)? {
            let row = row.map_err(AlignError::Spill)?;
            let Some(value) = assembler.push(&row) else { continue };
            let table = self.table(row.table_id, row.schema_version, txn.seq)?;
            let change = decode(&row, value, &table)?;
            if cost + change.cost > self.slice && !changes.is_empty() {
                let next = row.change;
                let full = slice(first, std::mem::take(&mut changes), cost, None);
                self.events.send(Event::Rows(full), cost)?;
                (first, cost) = (next, 0);
            }
            cost += change.cost;
            metrics::row(change.kind.op());
            changes.push(change);
        }
        self.events.send(Event::Rows(slice(first, changes, cost, Some(after.clone()))), cost)?;
        Ok(())
    }

    fn ddl(&mut self, txn: &Txn, after_position: Option<Position>) -> Result<Ddl, Stop> {
        let mut entry = txn.ddl.clone().unwrap_or_default();
        let mut tables = |versions: &[schemas::sluice::v1::TableVersion]| -> Result<Vec<Arc<Table>>, Stop> {
            versions.iter().map(|v| self.table(v.table_id, v.version, txn.seq)).collect()
        };
        let (before, after) = (tables(&entry.before)?, tables(&entry.after)?);
        // The record is written with the entry; only a sequence's setval, which is no job, has none.
        let job_id = entry.job_id;
        let is_job = entry.statement.get(..7).is_none_or(|verb| !verb.eq_ignore_ascii_case("select "));
        let record = self.wait_for(|schema| schema.ddl(job_id).cloned(), is_job)?;
        if entry.statement.is_empty() {
            let missing = FollowError::NoStatement { job_id: entry.job_id, seq: txn.seq, topic: self.schema_topic.clone() };
            entry.statement = record.as_ref().map(|record| record.statement.clone()).ok_or(missing)?;
        }
        Ok(Ddl {
            seq: txn.seq,
            commit_ts: CommitTs::new(txn.commit_ts),
            start_ts: StartTs::new(txn.start_ts),
            entry,
            before,
            after,
            job: record.map(|record| record.tidb_json.clone()).filter(|json| !json.is_empty()),
            after_position,
        })
    }

    fn table(&mut self, table_id: i64, version: i64, seq: u64) -> Result<Arc<Table>, Stop> {
        let found = self.wait_for(|schema| schema.table(table_id, version).cloned(), true)?;
        found.ok_or_else(|| {
            FollowError::NoDefinition { table_id, version, seq, topic: self.schema_topic.clone() }.into()
        })
    }

    /// Looks something up in the schema topic, reading on there if need be. What is not there at the topic's end may not
    /// be visible yet: markers of one Kafka transaction show at different times. `must` waits for it.
    fn wait_for<T>(&mut self, look: impl Fn(&SchemaView) -> Option<T>, must: bool) -> Result<Option<T>, Stop> {
        if let Some(found) = look(&self.schema) {
            return Ok(Some(found));
        }
        let topic = self.schema_topic.clone();
        let began = Instant::now();
        loop {
            match self.poll(&topic, ONLY)? {
                Polled::Record(record) => {
                    self.schema_record(record)?;
                    if let Some(found) = look(&self.schema) {
                        return Ok(Some(found));
                    }
                }
                Polled::End | Polled::Nothing if !must || began.elapsed() >= DEFINITION => return Ok(None),
                Polled::End | Polled::Nothing => {
                    self.progress.waiting(Some(format!("a definition in {topic}")));
                }
            }
        }
    }

    fn passed(&mut self, position: Option<Position>) -> Result<(), Stop> {
        let Some(position) = position else { return Ok(()) };
        if self.position.is_none() {
            // Before the log has come to where the target stands, there is nothing to say about the target.
            if self.aligner.chain().watermark() < self.aligner.chain().floor() {
                return Ok(());
            }
            self.attached(position.clone())?;
        }
        if let Some(until) = self.options.until.filter(|until| position.commit_ts >= *until) {
            let position = Position { commit_ts: until, ..position };
            self.position = Some(position);
            return self.reached(until);
        }
        self.progress.handed_over(&position);
        self.position = Some(position.clone());
        self.events.send(Event::Passed(position), 0)?;
        Ok(())
    }

    /// The end asked for, if a transaction of this commit_ts lies after it.
    fn past_end(&self, commit_ts: Option<CommitTs>) -> Option<CommitTs> {
        self.options.until.filter(|until| commit_ts > Some(*until))
    }

    /// After transactions: is everything up to the end handed over?
    fn check_end(&mut self) -> Result<(), Stop> {
        match self.options.until {
            Some(until) if self.aligner.chain().watermark() >= until => self.reached(until),
            _ => Ok(()),
        }
    }

    fn reached(&mut self, until: CommitTs) -> Result<(), Stop> {
        if let Some(position) = &self.position {
            let position = Position { commit_ts: position.commit_ts.max(until), ..position.clone() };
            info!(%position, "reached the end asked for");
            self.events.send(Event::Reached(position), 0)?;
        }
        Err(Stop::Ended)
    }

    fn attached(&mut self, position: Position) -> Result<(), Stop> {
        info!(%position, "attached");
        self.position = Some(position.clone());
        self.schema.forget_before(position.commit_ts);
        self.events.send(Event::Attached(position), 0)?;
        Ok(())
    }
}

/// commit_ts of the first transaction that a record speaks of.
fn first_commit_ts(record: &CommitRecord) -> Option<CommitTs> {
    match record.body.as_ref()? {
        Body::Txns(txns) => txns.txns.first().map(|txn| CommitTs::new(txn.commit_ts)),
        Body::Part(part) => Some(CommitTs::new(part.commit_ts)),
        _ => None,
    }
}
