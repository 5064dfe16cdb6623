//! An operator's word on what nobody else can settle.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::ffi::OsString;
use std::process::ExitCode;

use bytes::Bytes;
use schemas::binlog::Binlog;
use simulator::transactions::{End, Transaction};
use site::{Drainer, Site, Txn, soon};
use tidb::ts::{CommitTs, Tso};

/// TiKV cannot be asked about a prewrite that names no primary key. It is taken, as the original pump takes it: its own commit
/// settles it like any other; without one it holds the stream, by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_prewrite_without_a_primary_key_waits_for_its_commit() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    for (key, value) in [(None, "none"), (Some(Bytes::new()), "empty")] {
        let txn = Txn::begin(cluster, value);
        tidb.write(&Binlog { prewrite_key: key, ..txn.prewrite() }).await.unwrap();
        let start_ts = txn.start_ts.get();
        site::until("it is named", || async {
            pump.status().await["holding_watermark"]["start_ts"].as_u64() == Some(start_ts)
        })
        .await;
        let commit_ts = CommitTs(cluster.tso());
        tidb.write(&txn.commit(commit_ts)).await.unwrap();
        let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
        drainer.reach(commit_ts.0).await;
        assert_eq!(drainer.commits().last(), Some(&(start_ts, commit_ts.get())));
    }
    pump.stop().await.unwrap();
}

/// Three prewrites whose locks cannot be pushed and live on hold the stream; an operator says what became of each.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_settle_what_nobody_else_can() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.admin.token = Some("sesame".into());
    let pump = site.launch(config).await;
    pump.online().await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    let mut stuck = Vec::new();
    for i in 0..3 {
        let txn = Txn::begin(cluster, format!("stuck {i}"));
        let old = Transaction {
            ttl_ms: 600_000,
            min_commit_ts: Tso::ZERO,
            end: End::Open,
            ..Transaction::locked(txn.start_ts, txn.key.clone())
        };
        cluster.begin(txn.start_ts, old);
        tidb.write(&txn.prewrite()).await.unwrap();
        stuck.push(txn);
    }
    // A commit_ts above the floor and known to the pump.
    let commit_ts = CommitTs(cluster.tso());
    site::until("the pump knows of it", || async {
        pump.status().await["newest_timestamp"].as_u64().unwrap() >= commit_ts.0.get()
    })
    .await;
    let addr = pump.at.admin_addr.to_string();
    let settle = async |words: &[&str], token: Option<&str>| {
        let mut arguments = vec!["binlogctl", "settle", "--addr", &addr, "--yes"];
        arguments.extend(words);
        arguments.extend(token.iter().flat_map(|token| ["--token", token]));
        soon("an answer", node::ctl::run(arguments.into_iter().map(OsString::from))).await
    };
    let [committed, rolled_back, lost] = [0, 1, 2].map(|i: usize| stuck[i].start_ts.to_string());
    let dropped = ["rolled-back", "--start-ts", &rolled_back];
    assert_eq!(settle(&dropped, None).await, ExitCode::FAILURE);
    assert_eq!(settle(&dropped, Some("wrong")).await, ExitCode::FAILURE);
    assert_eq!(settle(&["show"], None).await, ExitCode::SUCCESS);
    assert_eq!(pump.status().await["pending"], 3);

    let sesame = Some("sesame");
    let too_late = (commit_ts.0.get() + (3_600_000 << 18)).to_string();
    let emitted = |commit_ts| ["committed", "--start-ts", &committed, "--commit-ts", commit_ts];
    assert_eq!(settle(&emitted(&too_late), sesame).await, ExitCode::FAILURE);
    assert_eq!(settle(&emitted(&committed), sesame).await, ExitCode::FAILURE);
    assert_eq!(pump.status().await["pending"], 3);
    assert_eq!(settle(&emitted(&commit_ts.to_string()), sesame).await, ExitCode::SUCCESS);
    assert_eq!(settle(&dropped, sesame).await, ExitCode::SUCCESS);
    assert_eq!(settle(&["lost", "--start-ts", &lost], sesame).await, ExitCode::SUCCESS);
    assert_eq!(settle(&["lost", "--start-ts", &lost], sesame).await, ExitCode::FAILURE);

    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    assert_eq!(drainer.commits(), [(stuck[0].start_ts.get(), commit_ts.get())]);
    let gaps = &pump.status().await["gaps"];
    assert_eq!(gaps.as_array().unwrap().len(), 1);
    assert_eq!(gaps[0]["start_ts"].as_u64(), Some(stuck[2].start_ts.get()));
    assert!(gaps[0]["cause"].as_str().unwrap().contains("operator"), "{gaps}");
    pump.stop().await.unwrap();
}
