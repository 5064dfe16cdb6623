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

mod rows;
pub mod tail;
mod topics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use node::kafka::Troubles;
use node::shutdown::Shutdown;
use prost::Message as _;
use schemas::sluice::v1::{CommitRecord, commit_record::Body};
use tidb::ts::CommitTs;
use tracing::{info, warn};

use crate::align::{AlignError, Aligner, Step};
use crate::chain::Start;
use crate::claims::{ClaimError, Claims};
use crate::event::Event;
use crate::kafka::{LogReader, Polled, ReadError, Record};
use crate::metrics;
use crate::position::Position;
use crate::progress::FollowProgress;
use crate::queue::{Closed, EventSender};
use crate::remains::Remains;
use crate::schema::{SchemaError, SchemaView};
use crate::shape::ShapeError;

/// How long one look at an empty queue may take: the time in which a shutdown is noticed.
const LOOK: Duration = Duration::from_millis(100);
/// How often a wait is reported, and how often an idle log is checked to be still the same.
const REPORT: Duration = Duration::from_secs(10);
/// The only partition of the commit stream and of the schema topic.
const ONLY: i32 = 0;

/// What to follow and how.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// librdkafka settings: brokers, security.
    pub settings: Vec<(String, String)>,
    /// What the Kafka clients complain of.
    pub troubles: Troubles,
    /// The feed's name: its commit stream is `<topic>.commits`, its definitions are in `<topic>.schema`.
    pub topic: String,
    /// Where rows wait that exceed the budget.
    pub dir: PathBuf,
    /// Bytes for everything between the brokers and the queue.
    pub memory: usize,
    /// Where values too large for a record are.
    pub claims: Claims,
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
    /// A value in a file cannot be had.
    #[error(transparent)]
    Claim(#[from] ClaimError),
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
    #[error(
        "the definition of table id {table_id} version {version} is not in {topic}, but transaction {seq} needs it"
    )]
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
    #[error(
        "the target already stands at commit_ts {at}, past the end asked for ({until}): nothing was done"
    )]
    PastTheEnd {
        /// Where it stands.
        at: CommitTs,
        /// Where to end.
        until: CommitTs,
    },
    /// The schema topic holds less than the feed wrote into it.
    #[error(
        "{topic} partition 0 begins at offset {log_start} and holds {held} of the {wanted} definitions and DDLs that the feed \
         wrote up to offset {last}: records were deleted (compaction takes repetitions only). What they said is lost to this \
         consumer"
    )]
    DefinitionsDeleted {
        /// The schema topic.
        topic: String,
        /// First offset there is.
        log_start: i64,
        /// Distinct keys in it.
        held: u64,
        /// Distinct keys written.
        wanted: u64,
        /// The last offset written.
        last: i64,
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
    let reader = LogReader::new(&options.settings, options.memory / 16, &options.troubles)?;
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
        remains: Remains::default(),
        schema_start: 0,
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
    /// What the schema topic must hold, and the keys it was seen to hold.
    remains: Remains,
    /// Where the schema topic began when it was read.
    schema_start: i64,
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
        let offset = self.find_commits()?;
        self.read_newest_summary()?;
        self.open_schema()?;
        let commits = self.commits.clone();
        self.reader.open(&commits, ONLY, offset)?;
        info!(topic = self.commits, offset, "following");
        let (mut idle, mut looked) = (Instant::now(), Instant::now());
        loop {
            if looked.elapsed() >= REPORT {
                looked = Instant::now();
                self.schema_still_there()?;
            }
            match self.poll(&commits, ONLY)? {
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

    fn commit_record(&mut self, record: Record) -> Result<(), Stop> {
        let offset = record.offset;
        let not_one = |reason: String| FollowError::NotACommitRecord { offset, reason };
        let value = record.value.ok_or_else(|| not_one("it has no value".to_owned()))?;
        let commit = CommitRecord::decode(value).map_err(|error| not_one(error.to_string()))?;
        let watermark = CommitTs::new(commit.watermark);
        let first = first_commit_ts(&commit);
        let told = self.remains.told(&commit);
        let step = self.aligner.begin(offset, commit)?;
        if !matches!(step, Step::Stale) {
            self.progress.saw(watermark);
        }
        if told {
            self.hold_schema()?;
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
