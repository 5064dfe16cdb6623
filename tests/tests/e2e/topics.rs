//! Somebody touches the topics. Whoever would have to skip something stops, with the topic and the range.
//!
//! Every sentence is looked for in what the process wrote since its start, and its numbers come from the log as a plain
//! consumer read it before anything was touched.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    checker::{self, Log},
    harness::{
        admin,
        kafka::Kafka,
        process::{Process, eventually},
        site::{Format, Speed},
    },
    recording::Checkpoint,
};
use mysql_async::prelude::Queryable as _;
use nix::sys::signal::Signal;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::{BaseConsumer, Consumer as _},
};
use schemas::sluice::v1::{PartitionRange, commit_record::Body};

use crate::cast::{Cast, ends_badly, ends_well};

/// How many partitions the drainer gives the row topic unless told otherwise.
const PARTITIONS: i32 = 8;

/// A site where the drainer has written everything and was stopped, while `apply-mysql` stands at the first recorded moment.
struct Stopped {
    cast: Cast,
    rows: String,
    commits: String,
    /// What the topics held then.
    log: Log,
    /// The offset in the commit stream at which `apply-mysql` will go on.
    position: i64,
}

impl Stopped {
    async fn new(name: &str) -> Result<Self> {
        let mut cast = Cast::begin(name, "shop", Speed::Max).await?;
        let first = first(&cast);
        cast.apply_until(first.commit_ts).await?;
        cast.verify_log().await?;
        cast.drainer.1.signal(Signal::SIGTERM)?;
        ends_well(&mut cast.drainer.1).await?;
        let mut session = cast.site.mariadb.connect().await?;
        let position = session
            .query_first("SELECT commits_offset FROM sluice_meta.progress")
            .await?
            .context("apply-mysql stored no progress")?;
        session.disconnect().await?;
        let rows = cast.site.topic().to_owned();
        let log = checker::read::log(cast.site.kafka.client(), &rows).await?;
        Ok(Self { commits: format!("{rows}.commits"), cast, rows, log, position })
    }

    fn kafka(&self) -> &Kafka {
        &self.cast.site.kafka
    }

    /// `apply-mysql` goes on and has to stop with this sentence; MariaDB stays where it was.
    async fn consumer_stops_saying(&self, sentence: &str) -> Result<()> {
        let end = self.cast.site.recording().end().commit_ts.to_string();
        let mut apply = self.cast.site.apply()?.with(&["--until-commit-ts", &end]).program.start()?;
        stops_saying(&mut apply, sentence).await?;
        self.cast.compare_with(&first(&self.cast)).await
    }

    /// The drainer is started again and has to stop with this sentence.
    async fn drainer_stops_saying(&self, sentence: &str) -> Result<()> {
        stops_saying(&mut self.cast.drainer.0.program.start()?, sentence).await
    }

    /// The ranges of the row topic that `apply-mysql` reads from where it stands, in the order in which it does.
    fn wanted(&self) -> impl Iterator<Item = &PartitionRange> {
        let from = self.log.commits.iter().filter(|commit| commit.offset >= self.position);
        from.flat_map(|commit| ranges(commit.record.body.as_ref()))
    }

    /// The least partition of the row topic that holds anything, and the last offset that the commit stream names in it.
    fn least(&self) -> Result<(i32, i64)> {
        let all = || self.log.commits.iter().flat_map(|commit| ranges(commit.record.body.as_ref()));
        let partition = all().map(|range| range.partition).min().context("no rows")?;
        let last = all().filter(|range| range.partition == partition).map(|range| range.last).max();
        Ok((partition, last.context("no rows")?))
    }
}

fn ranges(body: Option<&Body>) -> &[PartitionRange] {
    match body {
        Some(Body::Txns(txns)) => &txns.ranges,
        Some(Body::Part(part)) => &part.ranges,
        _ => &[],
    }
}

fn first(cast: &Cast) -> Checkpoint {
    cast.site.recording().checkpoints()[0].clone()
}

/// Waits for a process that is to stop with this sentence.
async fn stops_saying(process: &mut Process, sentence: &str) -> Result<()> {
    let log = ends_badly(process).await?;
    ensure!(log.contains(sentence), "{} does not say\n{sentence}\nin\n{log}", process.name());
    Ok(())
}

/// First and last offset (exclusive) of a partition.
async fn bounds(kafka: &Kafka, topic: &str, partition: i32) -> Result<(i64, i64)> {
    let (settings, topic) = (kafka.client(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = settings.create()?;
        Ok(consumer.fetch_watermarks(&topic, partition, std::time::Duration::from_secs(30))?)
    })
    .await?
}

/// Removes everything before `offset`.
async fn trim(kafka: &Kafka, topic: &str, partition: i32, offset: i64) -> Result<()> {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    kafka.admin()?.delete_records(&offsets, &AdminOptions::new()).await?;
    let (low, _) = bounds(kafka, topic, partition).await?;
    ensure!(low == offset, "{topic}/{partition} begins at {low} after trimming to {offset}");
    Ok(())
}

async fn delete(kafka: &Kafka, topic: &str) -> Result<()> {
    for outcome in kafka.admin()?.delete_topics(&[topic], &AdminOptions::new()).await? {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("delete {topic}: {code}"))?;
    }
    Ok(())
}

/// Deletes a topic and makes an empty one of the same name and settings.
async fn recreate(kafka: &Kafka, topic: &str, partitions: i32) -> Result<()> {
    delete(kafka, topic).await?;
    let admin = kafka.admin()?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime")
        .set("retention.ms", "-1")
        .set("cleanup.policy", "delete");
    // The name is free a moment after the deletion was accepted.
    eventually("the topic to be made anew", async || {
        let outcomes = admin.create_topics([&new], &AdminOptions::new()).await?;
        Ok(outcomes.into_iter().all(|outcome| outcome.is_ok()).then_some(()))
    })
    .await
}

/// The partition of the row topic that holds most records, the last of them, and its end.
async fn fullest(cast: &Cast) -> Result<(i32, i64)> {
    let mut fullest = (0, 0);
    for partition in 0..PARTITIONS {
        let (_, end) = bounds(&cast.site.kafka, cast.site.topic(), partition).await?;
        if end >= fullest.1 {
            fullest = (partition, end);
        }
    }
    ensure!(fullest.1 > 100, "the row topic holds next to nothing: {fullest:?}");
    Ok(fullest)
}

#[tokio::test]
async fn a_recreated_row_topic_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("recreated-rows").await?;
    recreate(site.kafka(), &site.rows, PARTITIONS).await?;
    let PartitionRange { partition, first, .. } = site.wanted().next().context("nothing is left to apply")?;
    site.consumer_stops_saying(&format!(
        "{} partition {partition} ends at offset 0, but offset {first} was there before: the topic lost records or was made anew",
        site.rows
    ))
    .await?;
    let (partition, last) = site.least()?;
    site.drainer_stops_saying(&format!(
        "topic {} partition {partition} ends at offset 0, but the commit stream names offset {last} in it: the topic was deleted \
         and created again, or truncated. Offsets 0 to {last} are lost",
        site.rows
    ))
    .await
}

#[tokio::test]
async fn a_deleted_row_topic_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("deleted-rows").await?;
    delete(site.kafka(), &site.rows).await?;
    let partition = site.wanted().next().context("nothing is left to apply")?.partition;
    site.consumer_stops_saying(&format!(
        "topic {} does not exist (any more), or has no partition {partition}",
        site.rows
    ))
    .await?;
    let (partition, last) = site.least()?;
    site.drainer_stops_saying(&format!(
        "topic {} partition {partition} ends at offset none, but the commit stream names offset {last} in it",
        site.rows
    ))
    .await
}

#[tokio::test]
async fn rows_trimmed_past_a_stopped_consumer_stop_it() -> Result<()> {
    let site = Stopped::new("trimmed-rows").await?;
    let (partition, end) = fullest(&site.cast).await?;
    let mut wanted = site.wanted();
    let first = wanted.find(|range| range.partition == partition).context("it is not read any more")?.first;
    trim(site.kafka(), &site.rows, partition, end).await?;
    site.consumer_stops_saying(&format!(
        "{} partition {partition} begins at offset {end}, but offsets {first}..={} are needed: they were deleted",
        site.rows,
        end - 1
    ))
    .await
}

#[tokio::test]
async fn commits_trimmed_past_a_stopped_consumer_stop_it() -> Result<()> {
    let site = Stopped::new("trimmed-commits").await?;
    let (_, end) = bounds(site.kafka(), &site.commits, 0).await?;
    trim(site.kafka(), &site.commits, 0, end - 1).await?;
    site.consumer_stops_saying(&format!(
        "{} partition 0 begins at offset {}, but offsets {}..={} are needed: they were deleted",
        site.commits,
        end - 1,
        site.position,
        end - 2
    ))
    .await
}

#[tokio::test]
async fn an_emptied_commit_stream_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("emptied-commits").await?;
    let (_, end) = bounds(site.kafka(), &site.commits, 0).await?;
    trim(site.kafka(), &site.commits, 0, end).await?;
    site.consumer_stops_saying(&format!(
        "{} partition 0 was emptied: it holds no record, and its next offset is {end}",
        site.commits
    ))
    .await?;
    site.drainer_stops_saying(&format!(
        "the commit stream {} was emptied: its first {end} offsets are gone and nothing follows",
        site.commits
    ))
    .await
}

#[tokio::test]
async fn a_recreated_commit_stream_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("recreated-commits").await?;
    recreate(site.kafka(), &site.commits, 1).await?;
    site.consumer_stops_saying(&format!(
        "{} partition 0 ends at offset 0, but offset {} was there before",
        site.commits,
        site.position - 1
    ))
    .await?;
    site.drainer_stops_saying(&format!(
        "the commit stream {0} is empty, but the schema topic {1}.schema is not: {0} was emptied or made anew",
        site.commits, site.rows
    ))
    .await
}

#[tokio::test]
async fn a_deleted_commit_stream_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("deleted-commits").await?;
    let schema = format!("{}.schema", site.rows);
    delete(site.kafka(), &site.commits).await?;
    site.consumer_stops_saying(&format!(
        "topic {} does not exist (any more), or has no partition 0",
        site.commits
    ))
    .await?;
    site.drainer_stops_saying(&format!(
        "the commit stream {} is empty, but the schema topic {schema} is not",
        site.commits
    ))
    .await
}

#[tokio::test]
async fn a_deleted_schema_topic_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("deleted-schema").await?;
    let schema = format!("{}.schema", site.rows);
    delete(site.kafka(), &schema).await?;
    site.consumer_stops_saying(&format!("topic {schema} does not exist (any more), or has no partition 0"))
        .await?;
    site.drainer_stops_saying(&format!(
        "topic {schema} is gone, though the feed has begun: the definitions of its tables are lost"
    ))
    .await
}

/// Under way: the row topic goes and is there again, empty, before the drainer writes the next rows.
#[tokio::test]
async fn a_row_topic_recreated_under_a_running_drainer_stops_it() -> Result<()> {
    let mut cast = Cast::begin("recreated-running", "shop", Speed::Times(0.5)).await?;
    cast.await_share(0.4).await?;
    let topic = cast.site.topic().to_owned();
    recreate(&cast.site.kafka, &topic, PARTITIONS).await?;
    let log = ends_badly(&mut cast.drainer.1).await?;
    let commits = checker::read::commits(cast.site.kafka.client(), &topic).await?;
    let ends: BTreeMap<i32, i64> = commits
        .iter()
        .flat_map(|commit| ranges(commit.record.body.as_ref()))
        .map(|range| (range.partition, range.last))
        .collect();
    // New rows got offsets that the commit stream names already, or no place at all; which, is a matter of moments.
    let says = |(partition, last): (&i32, &i64)| {
        log.contains(&format!(
            "offsets of {topic}[{partition}] go back: the commit stream names offset {last}, new records got "
        )) || log.contains(&format!("topic {topic} partition {partition} ends at offset "))
            && log.contains(&format!(
                "but the commit stream names offset {last} in it: the topic was deleted and created again"
            ))
    };
    ensure!(ends.iter().any(says), "{ends:?} is named, but the drainer says\n{log}");
    Ok(())
}

/// Nobody takes a commit stream that vanishes for one that has nothing to say.
#[tokio::test]
async fn a_commit_stream_deleted_under_running_processes_stops_them() -> Result<()> {
    let mut cast = Cast::begin("deleted-running", "shop", Speed::Times(0.5)).await?;
    let mut apply = cast.site.apply()?.program.start()?;
    let mut export = cast.site.export(Format::Jsonl)?.program.start()?;
    cast.await_share(0.4).await?;
    let topic = cast.site.topic().to_owned();
    let commits = format!("{topic}.commits");
    delete(&cast.site.kafka, &commits).await?;
    let sentence = format!("topic {commits} does not exist (any more), or has no partition 0");
    stops_saying(&mut apply, &sentence).await?;
    stops_saying(&mut export, &sentence).await?;
    let sentence = format!(
        "which this process wrote, is gone from the commit stream {commits}: its topics were deleted while it ran"
    );
    stops_saying(&mut cast.drainer.1, &sentence).await
}

/// A consumer that was held up (here: by SIGSTOP) while rows that it had yet to read were deleted.
#[tokio::test]
async fn rows_trimmed_past_a_running_consumer_stop_it() -> Result<()> {
    let cast = Cast::begin("trimmed-running", "shop", Speed::Times(2.0)).await?;
    let mut apply = cast.site.apply()?.program.start()?;
    cast.await_share(0.3).await?;
    apply.signal(Signal::SIGSTOP)?;
    cast.await_share(1.0).await?;
    cast.verify_log().await?;
    let (partition, end) = fullest(&cast).await?;
    trim(&cast.site.kafka, cast.site.topic(), partition, end).await?;
    apply.signal(Signal::SIGCONT)?;
    let log = ends_badly(&mut apply).await?;
    // Where it was when it was held up is the scheduler's choice.
    let sentence = log.split_once(&format!(
        "{} partition {partition} begins at offset {end}, but offsets ",
        cast.site.topic()
    ));
    let (first, rest) = sentence.and_then(|(_, rest)| rest.split_once("..=")).with_context(|| log.clone())?;
    ensure!((0..end).contains(&first.parse()?), "{log}");
    ensure!(rest.starts_with(&format!("{} are needed: they were deleted", end - 1)), "{log}");
    cast.finish().await
}

/// Rows that every consumer has passed may go: nobody is stopped by that.
#[tokio::test]
async fn trimming_behind_everyone_is_harmless() -> Result<()> {
    let mut cast = Cast::begin("trimmed-behind", "shop", Speed::Max).await?;
    let end = cast.site.recording().end().commit_ts;
    cast.apply_until(end).await?;
    cast.verify_log().await?;
    let (partition, _) = fullest(&cast).await?;
    let (_, high) = bounds(&cast.site.kafka, cast.site.topic(), partition).await?;
    trim(&cast.site.kafka, cast.site.topic(), partition, high).await?;
    // A restarted drainer and a consumer that goes on past the end both accept it.
    cast.drainer.1.kill().await?;
    cast.drainer.1 = cast.drainer.0.start().await.context("the drainer does not come back")?;
    let now = e2e::harness::pd::timestamp(cast.site.pd()).await?;
    cast.apply_until(now).await?;
    cast.compare_with_end().await?;
    cast.finish().await
}

/// Sets a topic's cleanup policy; of the other settings those that the log needs.
async fn clean_up_by(kafka: &Kafka, topic: &str, policy: &str) -> Result<()> {
    let settings = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("cleanup.policy", policy)
        .set("message.timestamp.type", "LogAppendTime");
    for outcome in kafka.admin()?.alter_configs([&settings], &AdminOptions::new()).await? {
        outcome.map_err(|(_, code)| anyhow::anyhow!("configure {topic}: {code}"))?;
    }
    Ok(())
}

/// Removes everything before `offset` from the schema topic. Kafka deletes nothing from a compacted topic unless it is made
/// another one for a while.
async fn trim_schema(kafka: &Kafka, schema: &str, offset: i64) -> Result<()> {
    clean_up_by(kafka, schema, "delete").await?;
    trim(kafka, schema, 0, offset).await?;
    clean_up_by(kafka, schema, "compact").await
}

/// What the commit stream says last of the schema topic: the last offset written, and how many keys.
fn extent(log: &Log) -> Result<(i64, u64)> {
    let summaries = log.commits.iter().filter_map(|commit| commit.record.summary.as_ref());
    let extent = summaries.filter_map(|summary| summary.schema).next_back().context("nobody counted")?;
    Ok((extent.end - 1, extent.keys))
}

/// Without the definitions rows could not be read, or would be read wrongly: there is no going on with fewer of them.
#[tokio::test]
async fn a_trimmed_emptied_or_recreated_schema_topic_stops_drainer_and_consumer() -> Result<()> {
    let site = Stopped::new("schema-gone").await?;
    let schema = format!("{}.schema", site.rows);
    let (_, end) = bounds(site.kafka(), &schema, 0).await?;
    let (last, keys) = extent(&site.log)?;
    let deleted = |begins: i64, held: u64| {
        format!(
            "{schema} partition 0 begins at offset {begins} and holds {held} of the {keys} definitions and DDLs that the feed \
             wrote up to offset {last}: records were deleted (compaction takes repetitions only)"
        )
    };
    // The first records are definitions of the beginning, each of a key of its own.
    trim_schema(site.kafka(), &schema, 3).await?;
    site.consumer_stops_saying(&deleted(3, keys - 3)).await?;
    site.drainer_stops_saying("records were deleted (compaction takes repetitions only)").await?;
    trim_schema(site.kafka(), &schema, end).await?;
    site.consumer_stops_saying(&deleted(end, 0)).await?;
    site.drainer_stops_saying(&format!("topic {schema} holds 0 of the ")).await?;
    recreate(site.kafka(), &schema, 1).await?;
    site.consumer_stops_saying(&format!(
        "{schema} partition 0 ends at offset 0, but offset {last} was there before: the topic lost records or was made anew"
    ))
    .await?;
    site.drainer_stops_saying(&format!(
        "topic {schema} partition 0 ends at offset 0, but the feed wrote up to offset "
    ))
    .await
}

/// A consumer that has read everything, and waits at the end of a log to which nobody writes.
#[tokio::test]
async fn a_schema_topic_trimmed_or_recreated_under_a_running_consumer_stops_it() -> Result<()> {
    let mut cast = Cast::begin("schema-running", "shop", Speed::Max).await?;
    let schema = format!("{}.schema", cast.site.topic());
    cast.verify_log().await?;
    cast.drainer.1.signal(Signal::SIGTERM)?;
    ends_well(&mut cast.drainer.1).await?;
    let log = checker::read::log(cast.site.kafka.client(), cast.site.topic()).await?;
    let (last, keys) = extent(&log)?;
    let (apply, export) = (cast.site.apply()?, cast.site.export(Format::Jsonl)?);
    let (mut applying, mut exporting) = (apply.program.start()?, export.program.start()?);
    let end = cast.site.recording().end().commit_ts;
    for service in [&apply, &export] {
        eventually("everything to be applied", async || {
            let Ok(status) = admin::json(&service.admin, "/status").await else { return Ok(None) };
            Ok((status["progress"]["commit_ts"].as_u64() >= Some(end)).then_some(()))
        })
        .await?;
    }
    trim_schema(&cast.site.kafka, &schema, 2).await?;
    let sentence = format!(
        "{schema} partition 0 begins at offset 2 and holds {} of the {keys} definitions and DDLs that the feed wrote up to \
         offset {last}",
        keys - 2
    );
    stops_saying(&mut applying, &sentence).await?;
    // The other one comes back after the topic was made anew, and before.
    recreate(&cast.site.kafka, &schema, 1).await?;
    let log = ends_badly(&mut exporting).await?;
    ensure!(
        log.contains(&sentence)
            || log.contains(&format!("{schema} partition 0 ends at offset 0, but offset ")),
        "{log}"
    );
    Ok(())
}

/// An empty commit stream and an empty schema topic are no new feed where rows of an old one are.
#[tokio::test]
async fn a_feed_does_not_begin_over_the_rows_of_another() -> Result<()> {
    let site = Stopped::new("second-beginning").await?;
    let (schema, (partition, end)) = (format!("{}.schema", site.rows), fullest(&site.cast).await?);
    recreate(site.kafka(), &site.commits, 1).await?;
    recreate(site.kafka(), &schema, 1).await?;
    site.drainer_stops_saying(&format!(
        "the commit stream {} and the schema topic {schema} hold nothing, but topic {} partition {partition} ends at offset {end}",
        site.commits, site.rows
    ))
    .await
}

/// A drainer that runs while all its topics vanish does not begin a feed of its own accord.
#[tokio::test]
async fn a_feed_that_vanishes_under_a_drainer_stops_it() -> Result<()> {
    let mut cast = Cast::begin("vanished", "shop", Speed::Max).await?;
    cast.verify_log().await?;
    let topic = cast.site.topic().to_owned();
    let (commits, schema) = (format!("{topic}.commits"), format!("{topic}.schema"));
    for topic in [&commits, &schema, &topic] {
        delete(&cast.site.kafka, topic).await?;
    }
    stops_saying(
        &mut cast.drainer.1,
        &format!("which this process wrote, is gone from the commit stream {commits}"),
    )
    .await
}
