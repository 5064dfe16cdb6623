//! The measuring instruments themselves: services come, go and come back; the comparison sees what MariaDB holds.

use anyhow::Result;
use e2e::{
    compare::{compare, load::load},
    harness::{etcd::Etcd, kafka::Kafka, mariadb::MariaDb, scratch::Scratch},
    recording::Recording,
};
use mysql_async::prelude::Queryable as _;
use rdkafka::{
    ClientConfig,
    admin::{AdminOptions, NewTopic, TopicReplication},
    producer::{BaseRecord, Producer as _, ThreadedProducer},
};

#[tokio::test]
async fn etcd_keeps_its_data_through_a_kill() -> Result<()> {
    let scratch = Scratch::new("etcd")?;
    let mut etcd = Etcd::start(&scratch).await?;
    etcd.client().await?.put("k", "v", None).await?;
    etcd.kill().await?;
    assert!(etcd.client().await?.get("k", None).await.is_err(), "a killed etcd answers");
    etcd.restart().await?;
    assert_eq!(etcd.client().await?.get("k", None).await?.kvs()[0].value(), b"v");
    Ok(())
}

#[tokio::test]
async fn kafka_does_transactions_and_keeps_them_through_a_stop() -> Result<()> {
    let scratch = Scratch::new("broker")?;
    let mut kafka = Kafka::start(&scratch).await?;
    let topic = NewTopic::new("t", 1, TopicReplication::Fixed(1));
    for outcome in kafka.admin()?.create_topics([&topic], &AdminOptions::new()).await? {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("create {topic}: {code}"))?;
    }
    let settings: ClientConfig = kafka.client();
    tokio::task::spawn_blocking(move || -> Result<()> {
        let producer: ThreadedProducer<_> = settings.clone().set("transactional.id", "x").create()?;
        let patience = std::time::Duration::from_secs(30);
        producer.init_transactions(patience)?;
        producer.begin_transaction()?;
        producer.send(BaseRecord::<(), str>::to("t").payload("v")).map_err(|(error, _)| error)?;
        producer.commit_transaction(patience)?;
        Ok(())
    })
    .await??;
    kafka.stop().await?;
    kafka.restart().await?;
    let settings = kafka.client();
    let (_, high) = tokio::task::spawn_blocking(move || {
        use rdkafka::consumer::{BaseConsumer, Consumer as _};
        let consumer: BaseConsumer = settings.create()?;
        consumer.fetch_watermarks("t", 0, std::time::Duration::from_secs(30))
    })
    .await??;
    assert_eq!(high, 2, "the record and the commit marker");
    Ok(())
}

#[tokio::test]
async fn the_comparison_sees_one_changed_row() -> Result<()> {
    let scratch = Scratch::new("compare")?;
    let mut mariadb = MariaDb::start(&scratch).await?;
    let recording = Recording::open("shop")?;
    let state = recording.state(recording.end())?;
    let mut session = mariadb.connect().await?;
    load(&state, &mut session).await?;
    let outcome = compare(&state, &mut session).await?;
    assert!(outcome.is_equal(), "{outcome}");
    assert!(outcome.rows() > 100, "only {} rows compared", outcome.rows());

    mariadb.restart().await?;
    let mut session = mariadb.connect().await?;
    session
        .query_drop("UPDATE shop.customers SET created_at = created_at + INTERVAL 1 SECOND WHERE id = 1")
        .await?;
    session.query_drop("DELETE FROM shop.vouchers LIMIT 1").await?;
    session.query_drop("CREATE TABLE shop.stranger (a int)").await?;
    let outcome = compare(&state, &mut session).await?;
    let differing: Vec<&str> = outcome
        .tables
        .iter()
        .filter(|(_, table)| !table.differences.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(differing, ["shop.customers", "shop.stranger", "shop.vouchers"], "{outcome}");
    Ok(())
}
