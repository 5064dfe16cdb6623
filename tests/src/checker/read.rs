//! Fetches a feed's topics with a plain consumer: assigned partitions, from the beginning, no group.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{BorrowedMessage, Headers as _, Message as _},
};
use schemas::{
    COMMIT_TS_HEADER, META_HEADER,
    digest::record_checksum,
    sluice::v1::{CommitRecord, PartitionRange, RowChange, RowMeta, commit_record::Body},
};

use super::{Commit, Log, Row};

/// How long a record that must come may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of what must be read, by topic and partition: the offset after the last record that is named.
type Ends = BTreeMap<(String, i32), i64>;

/// Reads `<topic>.commits`, then the row topics that it names at least as far as it names them, then `<topic>.schema`.
/// `settings` name the brokers.
pub async fn log(settings: ClientConfig, topic: &str) -> Result<Log> {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || whole_log(&settings, &topic)).await?
}

/// How many records of the row topics `read_uncommitted` shows and `read_committed` does not: those of aborted
/// transactions.
pub async fn aborted_rows(settings: ClientConfig, topic: &str) -> Result<usize> {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        let topics = row_topics(&commit_stream(&settings, &topic)?);
        let mut counts = [0_usize; 2];
        for (count, isolation) in counts.iter_mut().zip(["read_committed", "read_uncommitted"]) {
            fetch(&settings, &topics, isolation, &Ends::new(), |_| {
                *count += 1;
                Ok(())
            })?;
        }
        Ok(counts[1].saturating_sub(counts[0]))
    })
    .await?
}

/// Reads `<topic>.commits` alone.
pub async fn commits(settings: ClientConfig, topic: &str) -> Result<Vec<Commit>> {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || commit_stream(&settings, &topic)).await?
}

fn whole_log(settings: &ClientConfig, topic: &str) -> Result<Log> {
    let commits = commit_stream(settings, topic)?;
    let mut rows = Vec::new();
    fetch(settings, &row_topics(&commits), "read_committed", &named_ends(&commits), |message| {
        rows.push(row(message)?);
        Ok(())
    })?;
    let mut schema_keys = BTreeSet::new();
    fetch(
        settings,
        &BTreeSet::from([format!("{topic}.schema")]),
        "read_committed",
        &Ends::new(),
        |message| {
            let key = message.key().context("a record of the schema topic has no key")?;
            schema_keys.insert(String::from_utf8(key.into())?);
            Ok(())
        },
    )?;
    Ok(Log { commits, rows, schema_keys })
}

fn commit_stream(settings: &ClientConfig, topic: &str) -> Result<Vec<Commit>> {
    let mut commits = Vec::new();
    fetch(
        settings,
        &BTreeSet::from([format!("{topic}.commits")]),
        "read_committed",
        &Ends::new(),
        |message| {
            let value = message.payload().context("a commit record has no value")?;
            let record = CommitRecord::decode(value).context("a commit record does not decode")?;
            commits.push(Commit {
                offset: message.offset(),
                size: value.len(),
                keyed: message.key().is_some(),
                record,
            });
            Ok(())
        },
    )?;
    Ok(commits)
}

fn row_topics(commits: &[Commit]) -> BTreeSet<String> {
    let layouts = commits.iter().filter_map(|commit| match &commit.record.body {
        Some(Body::Start(start)) => start.layout.as_ref(),
        Some(Body::Layout(layout)) => Some(layout),
        _ => None,
    });
    layouts.flat_map(|layout| &layout.topics).map(|layout| layout.topic.clone()).collect()
}

fn named_ends(commits: &[Commit]) -> Ends {
    let mut ends = Ends::new();
    for commit in commits {
        let ranges: &[PartitionRange] = match &commit.record.body {
            Some(Body::Txns(txns)) => &txns.ranges,
            Some(Body::Part(part)) => &part.ranges,
            _ => &[],
        };
        for range in ranges {
            let end = ends.entry((range.topic.clone(), range.partition)).or_default();
            *end = range.last.saturating_add(1).max(*end);
        }
    }
    ends
}

/// Hands over every record of `topics` from the beginning to the end as `isolation` sees it, and no earlier than `ends`
/// (a marker becomes visible in each partition at its own time).
fn fetch(
    settings: &ClientConfig,
    topics: &BTreeSet<String>,
    isolation: &str,
    ends: &Ends,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let consumer: BaseConsumer = settings
        .clone()
        .set("group.id", "sluice-checker")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "50")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    let mut unfinished = BTreeSet::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
        let partitions = metadata.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
        if partitions.is_empty() {
            bail!("topic {topic} does not exist");
        }
        for partition in partitions {
            assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
            unfinished.insert((topic.clone(), partition.id()));
        }
    }
    consumer.assign(&assignment)?;
    let started = Instant::now();
    let mut seen = Ends::new();
    while !unfinished.is_empty() {
        if started.elapsed() > PATIENCE {
            bail!(
                "{unfinished:?}: not read to the end within {PATIENCE:?}; {ends:?} is named, {seen:?} was seen"
            );
        }
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => {
                seen.insert((message.topic().to_owned(), message.partition()), message.offset() + 1);
                let at = format!("{}/{}@{}", message.topic(), message.partition(), message.offset());
                take(&message).context(at)?;
            }
            // The event names only the partition's number: look up which of the topics is at its end.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let positions = consumer.position()?;
                unfinished.retain(|(topic, number)| {
                    let key = (topic.clone(), *number);
                    let read = positions.find_partition(topic, *number).and_then(|at| match at.offset() {
                        Offset::Offset(offset) => Some(offset),
                        _ => None,
                    });
                    let end = consumer
                        .fetch_watermarks(topic, *number, PATIENCE)
                        .map(|(low, high)| (low == high, high));
                    *number != partition || !at_end(read, end, ends.get(&key).copied())
                });
            }
            Some(Err(error)) => return Err(error).with_context(|| format!("read {topics:?}")),
        }
    }
    Ok(())
}

/// Whether a partition is read: up to the end as the isolation level sees it, and past what is named.
fn at_end(read: Option<i64>, end: Result<(bool, i64), KafkaError>, named: Option<i64>) -> bool {
    match (read, end) {
        (Some(read), Ok((_, high))) => read >= high && read >= named.unwrap_or(0),
        (None, Ok((empty, _))) => empty && named.is_none(),
        (_, Err(_)) => false,
    }
}

fn row(message: &BorrowedMessage<'_>) -> Result<Row> {
    let headers = message.headers().context("no headers")?;
    let header = |name: &str| -> Result<&[u8]> {
        let mut found = headers.iter().filter(|header| header.key == name);
        match (found.next(), found.next()) {
            (Some(header), None) => header.value.with_context(|| format!("header {name} is empty")),
            (None, _) => bail!("no header {name}"),
            (Some(_), Some(_)) => bail!("header {name} twice"),
        }
    };
    let meta = RowMeta::decode(header(META_HEADER)?).context("header sluice does not decode")?;
    let commit_ts_header = String::from_utf8(header(COMMIT_TS_HEADER)?.into())?;
    let table = match message.payload() {
        Some(value) if meta.records == 1 => {
            let change = RowChange::decode(value).context("the value does not decode")?;
            Some((change.database, change.table))
        }
        _ => None,
    };
    Ok(Row {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        checksum: record_checksum(message.key(), message.payload()),
        meta,
        commit_ts_header,
        table,
    })
}
