//! Somebody touches the topics. Whoever would have to skip something stops, with the topic and the range.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    harness::{kafka::Kafka, process::eventually, site::Speed},
    recording::Checkpoint,
};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::{BaseConsumer, Consumer as _},
};

use crate::cast::{Cast, ends_badly, ends_well};

/// How many partitions the drainer gives the row topic unless told otherwise.
const PARTITIONS: i32 = 8;

/// A site where the drainer has written everything and was stopped, while `apply-mysql` stands at the first recorded moment.
async fn with_a_stopped_consumer(name: &str) -> Result<Cast> {
    let mut cast = Cast::begin(name, "shop", Speed::Max).await?;
    let first = first(&cast);
    cast.apply_until(first.commit_ts).await?;
    cast.verify_log().await?;
    cast.drainer.1.signal(nix::sys::signal::Signal::SIGTERM)?;
    ends_well(&mut cast.drainer.1).await?;
    Ok(cast)
}

fn first(cast: &Cast) -> Checkpoint {
    cast.site.recording().checkpoints()[0].clone()
}

/// `apply-mysql` goes on and has to stop, naming what is asked of it; MariaDB stays where it was.
async fn consumer_stops_saying(cast: &Cast, words: &[&str]) -> Result<()> {
    let end = cast.site.recording().end().commit_ts.to_string();
    let mut apply = cast.site.apply()?.with(&["--until-commit-ts", &end]).program.start()?;
    let log = ends_badly(&mut apply).await?;
    says(&log, words)?;
    cast.compare_with(&first(cast)).await
}

/// The drainer is started again and has to stop, naming what is asked of it.
async fn drainer_stops_saying(cast: &Cast, words: &[&str]) -> Result<()> {
    let mut drainer = cast.drainer.0.program.start()?;
    let log = ends_badly(&mut drainer).await?;
    says(&log, words)
}

fn says(log: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(log.contains(word), "nothing says {word:?} in\n{log}");
    }
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

/// Deletes a topic and makes an empty one of the same name and settings.
async fn recreate(kafka: &Kafka, topic: &str, partitions: i32) -> Result<()> {
    let admin = kafka.admin()?;
    for outcome in admin.delete_topics(&[topic], &AdminOptions::new()).await? {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("delete {topic}: {code}"))?;
    }
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

/// The partition of the row topic that holds most records, and its end.
async fn fullest(cast: &Cast) -> Result<(i32, i64)> {
    let mut fullest = (0, 0);
    for partition in 0..PARTITIONS {
        let (_, end) = bounds(&cast.site.kafka, cast.site.topic(), partition).await?;
        if end > fullest.1 {
            fullest = (partition, end);
        }
    }
    ensure!(fullest.1 > 100, "the row topic holds next to nothing: {fullest:?}");
    Ok(fullest)
}

#[tokio::test]
async fn a_recreated_row_topic_stops_drainer_and_consumer() -> Result<()> {
    let cast = with_a_stopped_consumer("recreated-rows").await?;
    let topic = cast.site.topic().to_owned();
    recreate(&cast.site.kafka, &topic, PARTITIONS).await?;
    consumer_stops_saying(&cast, &[&topic, "offset"]).await?;
    drainer_stops_saying(&cast, &[&topic]).await
}

#[tokio::test]
async fn rows_trimmed_past_a_stopped_consumer_stop_it() -> Result<()> {
    let cast = with_a_stopped_consumer("trimmed-rows").await?;
    let topic = cast.site.topic().to_owned();
    let (partition, end) = fullest(&cast).await?;
    trim(&cast.site.kafka, &topic, partition, end).await?;
    consumer_stops_saying(&cast, &[&topic, &partition.to_string(), &end.to_string()]).await
}

#[tokio::test]
async fn commits_trimmed_past_a_stopped_consumer_stop_it() -> Result<()> {
    let cast = with_a_stopped_consumer("trimmed-commits").await?;
    let commits = format!("{}.commits", cast.site.topic());
    let (_, end) = bounds(&cast.site.kafka, &commits, 0).await?;
    trim(&cast.site.kafka, &commits, 0, end - 1).await?;
    consumer_stops_saying(&cast, &[&commits, &(end - 1).to_string()]).await
}

#[tokio::test]
async fn an_emptied_commit_stream_stops_drainer_and_consumer() -> Result<()> {
    let cast = with_a_stopped_consumer("emptied-commits").await?;
    let commits = format!("{}.commits", cast.site.topic());
    let (_, end) = bounds(&cast.site.kafka, &commits, 0).await?;
    trim(&cast.site.kafka, &commits, 0, end).await?;
    consumer_stops_saying(&cast, &[&commits]).await?;
    drainer_stops_saying(&cast, &[&commits]).await
}

#[tokio::test]
async fn a_recreated_commit_stream_stops_drainer_and_consumer() -> Result<()> {
    let cast = with_a_stopped_consumer("recreated-commits").await?;
    let commits = format!("{}.commits", cast.site.topic());
    recreate(&cast.site.kafka, &commits, 1).await?;
    consumer_stops_saying(&cast, &[&commits]).await?;
    drainer_stops_saying(&cast, &[&commits]).await
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

/// Without the definitions rows could not be read, or would be read wrongly: there is no going on with fewer of them.
#[tokio::test]
async fn a_trimmed_emptied_or_recreated_schema_topic_stops_the_drainer() -> Result<()> {
    let cast = with_a_stopped_consumer("schema-gone").await?;
    let schema = format!("{}.schema", cast.site.topic());
    let kafka = &cast.site.kafka;
    let (_, end) = bounds(kafka, &schema, 0).await?;
    // Kafka deletes nothing from a compacted topic unless it is made another one for a while.
    clean_up_by(kafka, &schema, "delete").await?;
    trim(kafka, &schema, 0, 3).await?;
    clean_up_by(kafka, &schema, "compact").await?;
    drainer_stops_saying(&cast, &[&schema, "records were deleted"]).await?;
    clean_up_by(kafka, &schema, "delete").await?;
    trim(kafka, &schema, 0, end).await?;
    clean_up_by(kafka, &schema, "compact").await?;
    drainer_stops_saying(&cast, &[&format!("topic {schema} holds 0 of the")]).await?;
    recreate(kafka, &schema, 1).await?;
    drainer_stops_saying(
        &cast,
        &[&format!("topic {schema} partition 0 ends at offset 0"), "deleted and created again"],
    )
    .await
}

/// An empty commit stream and an empty schema topic are no new feed where rows of an old one are.
#[tokio::test]
async fn a_feed_does_not_begin_over_the_rows_of_another() -> Result<()> {
    let cast = with_a_stopped_consumer("second-beginning").await?;
    let topic = cast.site.topic().to_owned();
    let (_, end) = fullest(&cast).await?;
    recreate(&cast.site.kafka, &format!("{topic}.commits"), 1).await?;
    recreate(&cast.site.kafka, &format!("{topic}.schema"), 1).await?;
    drainer_stops_saying(
        &cast,
        &[&format!("topic {topic} partition "), &format!("ends at offset {end}"), "another topic name"],
    )
    .await
}

/// A drainer that runs while all its topics vanish does not begin a feed of its own accord.
#[tokio::test]
async fn a_feed_that_vanishes_under_a_drainer_stops_it() -> Result<()> {
    let mut cast = Cast::begin("vanished", "shop", Speed::Max).await?;
    cast.verify_log().await?;
    let topic = cast.site.topic().to_owned();
    let (commits, schema) = (format!("{topic}.commits"), format!("{topic}.schema"));
    for outcome in
        cast.site.kafka.admin()?.delete_topics(&[&commits, &schema, &topic], &AdminOptions::new()).await?
    {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("delete {topic}: {code}"))?;
    }
    let log = ends_badly(&mut cast.drainer.1).await?;
    says(&log, &[&format!("is gone from the commit stream {commits}")])
}
