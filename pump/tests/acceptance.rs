//! What users of the original rely on and no other test here shows: very large transactions, and a DDL in two records.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use schemas::binlog::Binlog;
use site::{Drainer, Site, Txn, is_fake, pull_original};

/// More than 100 MiB in one binlog, with the budgets that a pump has by default, while small ones go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_more_than_100_mib_passes() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    let value: bytes::Bytes = (0..101_u32 << 20).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    let large = Txn::begin(cluster, value.clone());
    let small = async {
        for i in 0..20 {
            Txn::begin(cluster, format!("small {i}")).run(cluster, &tidb).await;
        }
    };
    let (large_at, ()) = tokio::join!(large.run(cluster, &tidb), small);
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    assert_eq!(drainer.received.len(), 21);
    let found = drainer.received.iter().find(|t| t.commit_ts == large_at.0.get()).unwrap();
    assert!(found.prewrite_value == value, "the value differs");
    pump.stop().await.unwrap();
}

/// DROP COLUMN comes as two transactions with one job id: at "delete only", and when it is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_is_two_records_with_one_job() {
    const JOB: i64 = 90;
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    let mut expected = Vec::new();
    for state in [1, 0] {
        let txn = Txn::begin(cluster, "");
        let query = Some("ALTER TABLE `t` DROP COLUMN `c`;".into());
        let ddl = |binlog: Binlog| Binlog {
            ddl_query: query.clone(),
            ddl_job_id: Some(JOB),
            ddl_schema_state: Some(state),
            ..binlog
        };
        cluster.prewrite(txn.start_ts, txn.key.clone());
        tidb.write(&ddl(txn.prewrite())).await.unwrap();
        let commit_ts = cluster.commit_now(txn.start_ts).unwrap();
        tidb.write(&ddl(txn.commit(commit_ts))).await.unwrap();
        expected.push((commit_ts.0.get(), JOB, state));
    }
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    let ours: Vec<_> =
        drainer.received.iter().map(|t| (t.commit_ts, t.ddl_job_id, t.ddl_schema_state)).collect();
    assert_eq!(ours, expected);
    let pulled = pull_original(&mut pump.tidb().client, before, cluster.tso()).await.unwrap();
    let theirs: Vec<_> = pulled
        .iter()
        .filter(|(.., binlog)| !is_fake(binlog))
        .map(|(_, at, binlog)| (*at, binlog.ddl_job_id.unwrap(), binlog.ddl_schema_state.unwrap()))
        .collect();
    assert_eq!(theirs, expected);
    pump.stop().await.unwrap();
}
