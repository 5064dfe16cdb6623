//! Opens the log: fences the predecessor, reads where it stopped, and refuses to go on if the topics are not what the
//! feed left there ([`remains`](super::remains) says when).
//!
//! The order matters (a predecessor may still be committing): first `init_transactions`, which fences it and settles its
//! open transaction; then wait until nothing is open on any partition; only then read the end of the commit stream.

use std::time::{Duration, Instant};

use rdkafka::message::Message as _;
use tracing::{info, warn};

use super::producer::{Producer, ProducerOptions};
use super::reader::{Reader, commit_record, row_meta};
use super::remains::{self, SchemaTopic};
use super::topics::{Creation, Purpose, Topics, create, verify};
use super::{Kafka, LogError, blocking};
use crate::schema::records::SchemaReader;
use crate::sequence::{RowLayout, SchemaExtent, Tail, TailReader, TopicPartition};

/// How far before the end of the commit stream the first look goes: offsets, markers included.
const TAIL_WINDOW: i64 = 2_000;

/// How long a topic that must be there may be unknown to a broker, which perhaps has only just started.
const TOPIC: Duration = Duration::from_secs(10);

/// How the log is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Names.
    pub topics: Topics,
    /// For topics that are not there yet.
    pub creation: Creation,
    /// For the producer.
    pub producer: ProducerOptions,
    /// The upstream.
    pub cluster_id: u64,
    /// The feed that this process wrote before, if it did: another one, or none, is not gone on with.
    pub feed_id: Option<Vec<u8>>,
}

/// A log that this process alone may write.
#[derive(Debug)]
pub struct OpenLog {
    /// Fenced off and ready.
    pub producer: Producer,
    /// Where the feed stands; `None`: it has not begun.
    pub tail: Option<Tail>,
    /// What the schema topic holds.
    pub schema: SchemaReader,
    /// How far it goes.
    pub schema_extent: SchemaExtent,
    /// Row topics and partition counts to use from now on.
    pub layout: RowLayout,
    /// The most bytes of key and value in a row record.
    pub row_limit: usize,
    /// The same for the schema topic.
    pub schema_limit: usize,
    /// The offset in the commit stream at which this epoch will begin.
    pub commits_end: i64,
}

/// Opens the log.
pub async fn open(kafka: &Kafka, options: &OpenOptions) -> Result<OpenLog, LogError> {
    let producer = Producer::init(kafka, &options.producer).await?;
    let patience = options.producer.transaction_timeout + Duration::from_secs(10);
    let (look, client) = (options.clone(), kafka.clone());
    let expected = options.feed_id.is_some();
    let found = blocking(move || Found::look(&client, &look.topics, expected, patience)).await?;
    let topics = &options.topics;
    let missing = |what: &str| {
        LogError::Refused(format!(
            "topic {what} is gone, though the feed has begun: its records are lost. Restore it, or begin a new feed \
             under another topic name"
        ))
    };
    let begun = found.tail.is_some();
    remains::check_same_feed(topics, options.feed_id.as_deref(), found.tail.as_ref())
        .and_then(|()| remains::check(topics, found.tail.as_ref(), &found.schema_topic(), &found.row_ends))
        .map_err(LogError::Refused)?;
    for (topic, partitions, purpose) in [
        (&topics.commits, found.commits, Purpose::Commits),
        (&topics.rows, found.rows, Purpose::Rows),
        (&topics.schema, found.schema_partitions, Purpose::Schema),
    ] {
        match partitions {
            None if begun => return Err(missing(topic)),
            None => create(kafka, topic, purpose, &options.creation).await?,
            Some(many) if many > 1 && purpose != Purpose::Rows => {
                return Err(LogError::Refused(format!(
                    "topic {topic} has {many} partitions; the log keeps one order in it and needs exactly 1"
                )));
            }
            Some(_) => {}
        }
    }
    verify(kafka, &topics.commits, Purpose::Commits).await?;
    let row_limit = verify(kafka, &topics.rows, Purpose::Rows).await?;
    let schema_limit = verify(kafka, &topics.schema, Purpose::Schema).await?;
    let (names, client) = (topics.clone(), kafka.clone());
    let partitions = match found.rows {
        Some(partitions) => partitions,
        None => blocking(move || await_topic(&client, &names.rows)).await?,
    };
    let layout = layout(options, found.tail.as_ref(), partitions)?;
    if let Some(tail) = &found.tail {
        check_feed(options, tail)?;
        info!(
            feed = crate::sequence::hex(&tail.feed_id), epoch = tail.epoch, watermark = %tail.watermark,
            next_seq = tail.next_seq, unfinished = tail.unfinished.is_some(), "read the end of the commit stream"
        );
    }
    Ok(OpenLog {
        producer,
        tail: found.tail,
        schema: found.schema,
        schema_extent: found.schema_extent,
        layout,
        row_limit,
        schema_limit,
        commits_end: found.commits_end,
    })
}

/// A topic that was just created shows up on every broker a moment later.
fn await_topic(kafka: &Kafka, topic: &str) -> Result<u32, LogError> {
    let reader = Reader::new(kafka)?;
    let begun = Instant::now();
    loop {
        match reader.partitions(topic)? {
            Some(partitions) => return Ok(partitions),
            None if begun.elapsed() > Duration::from_secs(30) => {
                return Err(LogError::Refused(format!("topic {topic} was created, but does not appear")));
            }
            None => reader.pause(),
        }
    }
}

fn check_feed(options: &OpenOptions, tail: &Tail) -> Result<(), LogError> {
    let stream = &options.topics.commits;
    if tail.cluster_id != options.cluster_id {
        return Err(LogError::Refused(format!(
            "the commit stream {stream} belongs to cluster {}, this drainer to {}; use another topic name",
            tail.cluster_id, options.cluster_id
        )));
    }
    if tail.contract_version > schemas::CONTRACT_VERSION {
        return Err(LogError::Refused(format!(
            "the commit stream {stream} was written by contract version {}, this drainer knows {}; upgrade it",
            tail.contract_version,
            schemas::CONTRACT_VERSION
        )));
    }
    Ok(())
}

/// The layout to use: that of the log. More partitions than that are used only when the configuration asks for
/// exactly what the topic has; the new epoch's START is the barrier.
fn layout(options: &OpenOptions, tail: Option<&Tail>, partitions: u32) -> Result<RowLayout, LogError> {
    let topic = &options.topics.rows;
    let Some(tail) = tail else { return Ok(RowLayout { topics: vec![(topic.clone(), partitions)] }) };
    let [(name, fixed)] = tail.layout.topics.as_slice() else {
        return Err(LogError::Refused(format!(
            "the log of {topic} spreads over several row topics; upgrade the drainer"
        )));
    };
    if name != topic {
        return Err(LogError::Refused(format!(
            "the commit stream of {topic} names another row topic, {name}"
        )));
    }
    if partitions < *fixed {
        return Err(LogError::Refused(format!(
            "topic {topic} has {partitions} partitions, the log was written to {fixed}: the topic was made anew"
        )));
    }
    if partitions > *fixed && options.creation.partitions == partitions && tail.unfinished.is_none() {
        info!(topic, from = fixed, to = partitions, "spreading over more partitions from this epoch on");
        return Ok(RowLayout { topics: vec![(topic.clone(), partitions)] });
    }
    if partitions > *fixed {
        warn!(topic, partitions, used = fixed, "the topic has more partitions than the log uses");
    }
    Ok(RowLayout { topics: vec![(topic.clone(), *fixed)] })
}

/// What was found in Kafka.
struct Found {
    commits: Option<u32>,
    rows: Option<u32>,
    schema_partitions: Option<u32>,
    tail: Option<Tail>,
    schema: SchemaReader,
    schema_extent: SchemaExtent,
    /// The schema topic's own end, markers included.
    schema_end: i64,
    row_ends: Vec<(TopicPartition, i64)>,
    commits_end: i64,
}

impl Found {
    fn schema_topic(&self) -> SchemaTopic {
        match self.schema_partitions {
            None => SchemaTopic::Missing,
            Some(_) => SchemaTopic::There { end: self.schema_end, keys: self.schema.keys() },
        }
    }

    /// `expected`: the topics must be there, for this process has written them.
    fn look(kafka: &Kafka, topics: &Topics, expected: bool, patience: Duration) -> Result<Self, LogError> {
        let reader = Reader::new(kafka)?;
        let partitions =
            |topic: &str| if expected { known(&reader, topic) } else { reader.partitions(topic) };
        let commits = partitions(&topics.commits)?;
        let rows = partitions(&topics.rows)?;
        let schema_partitions = partitions(&topics.schema)?;
        let all = [(&topics.commits, commits), (&topics.rows, rows), (&topics.schema, schema_partitions)];
        for (topic, partitions) in all {
            for partition in 0..partitions.unwrap_or_default() as i32 {
                await_settled(&reader, topic, partition, patience)?;
            }
        }
        let (mut tail, mut commits_end) = (None, 0);
        if commits.is_some() {
            let span = reader.span(&topics.commits, 0)?;
            commits_end = span.end;
            tail = read_tail(&reader, &topics.commits, span.low, span.end)?;
            if tail.is_none() && span.low > 0 {
                return Err(LogError::Refused(format!(
                    "the commit stream {} was emptied: its first {} offsets are gone and nothing follows. Restore it, or \
                     begin a new feed under another topic name",
                    topics.commits, span.low
                )));
            }
        }
        if let Some(tail) = &tail {
            check_ends(&reader, tail)?;
        }
        let mut schema = SchemaReader::default();
        let (mut schema_extent, mut schema_end) = (SchemaExtent::default(), 0);
        if schema_partitions.is_some() {
            let span = reader.span(&topics.schema, 0)?;
            schema_end = span.end;
            if span.low < span.end {
                reader.read(&topics.schema, 0, span.low, |message| {
                    let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
                    let pushed =
                        schema.push(&key, &row_meta(message)?, message.payload().unwrap_or_default());
                    pushed.map_err(|e| LogError::Refused(format!("schema topic {}: {e}", topics.schema)))?;
                    schema_extent.end = message.offset() + 1;
                    Ok(true)
                })?;
            }
            schema_extent.keys = schema.keys();
        }
        let mut row_ends = Vec::new();
        for partition in 0..rows.unwrap_or_default() as i32 {
            let at = TopicPartition { topic: topics.rows.clone(), partition };
            row_ends.push((at, reader.span(&topics.rows, partition)?.end));
        }
        Ok(Self {
            commits,
            rows,
            schema_partitions,
            tail,
            schema,
            schema_extent,
            schema_end,
            row_ends,
            commits_end,
        })
    }
}

/// The partitions of a topic that must be there; `None` if it stays unknown.
fn known(reader: &Reader, topic: &str) -> Result<Option<u32>, LogError> {
    let begun = Instant::now();
    loop {
        match reader.partitions(topic)? {
            None if begun.elapsed() < TOPIC => reader.pause(),
            found => return Ok(found),
        }
    }
}

/// Waits until no transaction is open on a partition.
fn await_settled(reader: &Reader, topic: &str, partition: i32, patience: Duration) -> Result<(), LogError> {
    let begun = Instant::now();
    loop {
        let stable = reader.stable_end(topic, partition)?;
        let end = reader.span(topic, partition)?.end;
        if stable >= end {
            return Ok(());
        }
        if begun.elapsed() > patience {
            return Err(LogError::OpenTransaction { topic: topic.to_owned(), partition, stable, end });
        }
        reader.pause();
    }
}

/// Reads the last records of the commit stream, from one that carries a summary.
fn read_tail(reader: &Reader, topic: &str, low: i64, end: i64) -> Result<Option<Tail>, LogError> {
    if low >= end {
        return Ok(None);
    }
    let mut window = TAIL_WINDOW;
    loop {
        let from = (end - window).max(low);
        let mut fold = TailReader::default();
        reader.read(topic, 0, from, |message| {
            fold.push(&commit_record(message)?)
                .map_err(|source| LogError::Tail { topic: topic.to_owned(), source })?;
            Ok(true)
        })?;
        match fold.finish() {
            Some(tail) => return Ok(Some(tail)),
            None if from == low => return Ok(None),
            None => window *= 4,
        }
    }
}

/// No partition may end before an offset that the commit stream names.
fn check_ends(reader: &Reader, tail: &Tail) -> Result<(), LogError> {
    for (at, last) in &tail.ends {
        let gone = |end: Option<i64>| {
            LogError::Refused(format!(
                "topic {} partition {} ends at offset {}, but the commit stream names offset {last} in it: the topic was \
                 deleted and created again, or truncated. Offsets {} to {last} are lost",
                at.topic,
                at.partition,
                end.map_or_else(|| "none".to_owned(), |end| end.to_string()),
                end.unwrap_or_default(),
            ))
        };
        match reader.partitions(&at.topic)? {
            Some(partitions) if (at.partition as u32) < partitions => {
                let end = reader.span(&at.topic, at.partition)?.end;
                if end <= *last {
                    return Err(gone(Some(end)));
                }
            }
            _ => return Err(gone(None)),
        }
    }
    Ok(())
}
