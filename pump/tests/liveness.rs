//! Nothing waits for ever on one bad thing: dangling prewrites, a bad TiKV, no PD, a pump that was stopped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use node::registry::NodeKind;
use schemas::errorpb;
use schemas::kvrpcpb::{Action, CheckTxnStatusRequest, CheckTxnStatusResponse, KeyError};
use simulator::transactions::{End, Transaction};
use site::{Drainer, Process, Site, Txn, UnderLoad, light, registered, soon, until};
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::task::JoinSet;
use tonic::Status;

/// While transactions run, some prewrites stay open for ever, each for a reason of its own. The stream goes on past all of
/// them, and those that live can commit in the end.
#[tokio::test(flavor = "multi_thread")]
async fn dangling_prewrites_under_load_do_not_stop_the_stream() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    let load = UnderLoad::begin(&site, 1, light()).await;
    load.goes_on(20).await;

    let mut living = Vec::new();
    let mut unheard = Vec::new();
    for i in 0..10 {
        // Locked, by a TiDB that lives and takes its time.
        let locked = Txn::begin(cluster, format!("locked {i}"));
        cluster.prewrite(locked.start_ts, locked.key.clone());
        tidb.write(&locked.prewrite()).await.unwrap();
        living.push(locked);
        // Not in TiKV yet, and perhaps never.
        let never = Txn::begin(cluster, format!("never {i}"));
        tidb.write(&never.prewrite()).await.unwrap();
        unheard.push(never);
        // Rolled back, its rollback binlog lost, its record collected; the same with the rollback binlog.
        let forgotten = Txn::begin(cluster, format!("forgotten {i}"));
        tidb.write(&forgotten.prewrite()).await.unwrap();
        cluster.prewrite(forgotten.start_ts, forgotten.key.clone());
        cluster.roll_back(forgotten.start_ts);
        cluster.forget(forgotten.start_ts);
        let rolled_back = Txn::begin(cluster, format!("rolled back {i}"));
        tidb.write(&rolled_back.prewrite()).await.unwrap();
        tidb.write(&rolled_back.rollback()).await.unwrap();
    }
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    for _ in 0..3 {
        load.goes_on(50).await;
        drainer.reach(cluster.tso()).await;
    }
    // Those that live are asked about once a second, and hold the watermark for no longer.
    let end = cluster.tso().physical_ms() + 5_000;
    let mut longest = 0.0_f64;
    while cluster.tso().physical_ms() < end {
        assert_eq!(drainer.step().await.unwrap(), None);
        longest = longest.max(cluster.tso().seconds_since(drainer.watermark));
    }
    assert!(longest < 3.0, "the watermark was {longest} s behind");
    let report = load.end().await;
    assert!(report.rolled_back > 0 && report.lost == 0);
    for locked in &living {
        let commit_ts = cluster.commit_now(locked.start_ts).expect("nobody touched a living transaction");
        assert!(commit_ts.0 > drainer.watermark);
        tidb.write(&locked.commit(commit_ts)).await.unwrap();
    }
    drainer.reach(cluster.tso()).await;
    site::assert_complete(&site, [&drainer]);
    // Only those that TiKV has never heard of (or no longer) are still open.
    let open = unheard.len() as u64 + 10;
    until("the rest is settled", || async { pump.status().await["pending"].as_u64() == Some(open) }).await;
    assert_eq!(cluster.aborted(), 0);
    pump.stop().await.unwrap();
}

/// One transaction in twenty is rolled back, and TiKV has already forgotten it when it is asked; half of them send no
/// rollback binlog either. The watermark stays less than two seconds behind PD all the same.
#[tokio::test(flavor = "multi_thread")]
async fn aborted_transactions_hold_the_watermark_for_less_than_two_seconds() {
    const SESSIONS: usize = 8;
    const EACH: usize = 240;
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let mut drainer = Drainer::open(pump.at.addr, site.cluster.tso()).await.unwrap();
    let mut sessions = JoinSet::new();
    for session in 0..SESSIONS {
        let (cluster, tidb) = (site.cluster.clone(), pump.tidb());
        sessions.spawn(async move {
            for i in 0..EACH {
                let txn = Txn::begin(&cluster, format!("{session}/{i}"));
                if i % 20 == session {
                    tidb.write(&txn.prewrite()).await.unwrap();
                    cluster.prewrite(txn.start_ts, txn.key.clone());
                    cluster.roll_back(txn.start_ts);
                    cluster.forget(txn.start_ts);
                    if i % 40 == session {
                        tidb.write(&txn.rollback()).await.unwrap();
                    }
                } else {
                    txn.run(&cluster, &tidb).await;
                }
                // A rate, not a wait for anything: some hundred transactions a second for several seconds.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    let mut longest = 0.0_f64;
    let mut looks = 0;
    while !sessions.is_empty() {
        while let Some(ended) = sessions.try_join_next() {
            ended.unwrap();
        }
        assert_eq!(drainer.step().await.unwrap(), None);
        longest = longest.max(site.cluster.tso().seconds_since(drainer.watermark));
        looks += 1;
    }
    assert!(looks > 20, "{looks}");
    assert!(longest < 2.0, "the watermark was {longest} s behind");
    drainer.reach(site.cluster.tso()).await;
    assert_eq!(drainer.received.len(), SESSIONS * EACH * 19 / 20);
    pump.stop().await.unwrap();
}

/// What a bad TiKV says; by number, so that it can be changed on the way.
const HONEST: usize = 0;
const SLOW: usize = 1;
const SILENT: usize = 2;
const BAD: [&str; 8] = [
    "fails",
    "committed before it began",
    "committed in the future",
    "pushed to nowhere",
    "pushed without a lock",
    "key error",
    "unheard of region error",
    "all at once",
];

fn distort(
    mode: usize,
    request: &CheckTxnStatusRequest,
    answer: CheckTxnStatusResponse,
) -> (Duration, Result<CheckTxnStatusResponse, Status>) {
    let blank = CheckTxnStatusResponse::default;
    let answer = match mode {
        HONEST => Ok(answer),
        SLOW => return (Duration::from_millis(300), Ok(answer)),
        SILENT => return (Duration::from_secs(3600), Ok(answer)),
        mode => match BAD[mode - SILENT - 1] {
            "fails" => Err(Status::internal("disk on fire")),
            "committed before it began" => {
                Ok(CheckTxnStatusResponse { commit_version: request.lock_ts, ..blank() })
            }
            "committed in the future" => {
                let hour = Tso::new(request.current_ts).physical_ms() + 3_600_000;
                Ok(CheckTxnStatusResponse { commit_version: Tso::from_parts(hour, 0).get(), ..blank() })
            }
            "pushed to nowhere" => Ok(CheckTxnStatusResponse {
                lock_ttl: 3000,
                action: Action::MinCommitTsPushed.into(),
                lock_info: Some(schemas::kvrpcpb::LockInfo {
                    min_commit_ts: request.caller_start_ts,
                    ..Default::default()
                }),
                ..blank()
            }),
            "pushed without a lock" => {
                Ok(CheckTxnStatusResponse { action: Action::MinCommitTsPushed.into(), ..blank() })
            }
            "key error" => {
                let error = KeyError { abort: "not now".into(), ..KeyError::default() };
                Ok(CheckTxnStatusResponse { error: Some(error), ..blank() })
            }
            "unheard of region error" => {
                let error = errorpb::Error { message: "moved to Mars".into(), ..Default::default() };
                Ok(CheckTxnStatusResponse { region_error: Some(error), ..blank() })
            }
            _ => Ok(CheckTxnStatusResponse {
                error: Some(KeyError { retryable: "what".into(), ..KeyError::default() }),
                lock_ttl: 1,
                commit_version: 1,
                ..blank()
            }),
        },
    };
    (Duration::ZERO, answer)
}

/// A TiKV that fails or lies holds up what only it knows, and nothing else; nothing is concluded from what cannot be true.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_tikv_is_survived() {
    let mode = Arc::new(AtomicUsize::new(HONEST));
    let told = mode.clone();
    let mut site = Site::with_tikv(Arc::new(move |request, answer| {
        distort(told.load(Ordering::SeqCst), request, answer)
    }))
    .await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (site.cluster.clone(), pump.tidb());
    let before = cluster.tso();
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    // Its commit binlog is lost, so that only TiKV knows.
    let lose_commit = async |value: String| {
        let txn = Txn::begin(&cluster, value);
        tidb.write(&txn.prewrite()).await.unwrap();
        cluster.prewrite(txn.start_ts, txn.key.clone());
        cluster.commit_now(txn.start_ts).unwrap()
    };
    for bad in SILENT..=SILENT + BAD.len() {
        mode.store(bad, Ordering::SeqCst);
        let committed = lose_commit(format!("mode {bad}")).await;
        let asked = cluster.questions();
        until("TiKV is asked", || async { cluster.questions() >= asked + 2 }).await;
        // Binlogs are taken as ever, and the stream waits where it has to.
        Txn::begin(&cluster, "meanwhile").run(&cluster, &tidb).await;
        let status = pump.status().await;
        assert!(status["watermark"].as_u64().unwrap() < committed.get(), "mode {bad}");
        assert_eq!(status["pending"], 1, "mode {bad}");
        mode.store(HONEST, Ordering::SeqCst);
        drainer.reach(committed.0).await;
    }
    mode.store(SLOW, Ordering::SeqCst);
    let committed = lose_commit("slow".into()).await;
    drainer.reach(committed.0).await;

    site.tikv_is(false).await;
    let committed = lose_commit("down".into()).await;
    Txn::begin(&cluster, "meanwhile").run(&cluster, &tidb).await;
    until("the pump tried", || async {
        pump.status().await["watermark_lag_seconds"].as_f64().unwrap() > 2.0
    })
    .await;
    assert!(pump.status().await["watermark"].as_u64().unwrap() < committed.get());
    site.tikv_is(true).await;
    drainer.reach(cluster.tso()).await;
    site::assert_complete(&site, [&drainer]);
    assert_eq!(cluster.aborted(), 0);
    pump.stop().await.unwrap();
}

/// Without PD binlogs are still taken; the stream stands still and then goes on.
#[tokio::test(flavor = "multi_thread")]
async fn without_pd_the_stream_waits() {
    let mut site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (site.cluster.clone(), pump.tidb());
    let before = cluster.tso();
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    // No time passes by a PD that is not there; only counters do, for TiDB's sake.
    cluster.freeze(cluster.tso());
    site.pd_is(false).await;
    let mut last = Tso::ZERO;
    for i in 0..20 {
        last = Txn::begin(&cluster, format!("without PD {i}")).run(&cluster, &tidb).await.0;
    }
    // Nothing of PD came after these, so none of them can be known to be complete.
    assert!(pump.status().await["watermark"].as_u64().unwrap() < last.get());
    site.pd_is(true).await;
    drainer.reach(last).await;
    site::assert_complete(&site, [&drainer]);
    pump.stop().await.unwrap();
}

/// A pump that is cut off from PD while TiDB is not: timestamps run away from what the pump knows, and it takes everything
/// all the same, at once as soon as it has noticed. What PD cannot have given out it still refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_pump_cut_off_from_pd_goes_on_taking_binlogs() {
    let mut site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (site.cluster.clone(), pump.tidb());
    let mut drainer = Drainer::open(pump.at.addr, cluster.tso()).await.unwrap();
    drainer.reach(cluster.tso()).await;
    site.pd_is(false).await;
    until("it has noticed", || async { !pump.is_ready().await }).await;
    let known = pump.status().await["newest_timestamp"].as_u64().unwrap();
    // The cluster is a minute on; the pump has seen some seconds pass.
    cluster.advance(Duration::from_secs(50));
    let mut last = Tso::ZERO;
    let began = std::time::Instant::now();
    for i in 0..20 {
        last = Txn::begin(&cluster, format!("cut off {i}")).run(&cluster, &tidb).await.0;
    }
    // Each would wait for PD for five seconds, otherwise.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?} for twenty transactions", began.elapsed());
    // A commit_ts from another world; its prewrite is no harm.
    let foreign = Txn::begin(&cluster, "foreign");
    tidb.write(&foreign.prewrite()).await.unwrap();
    let at = CommitTs(Tso::from_parts(cluster.tso().physical_ms() + 3_600_000, 0));
    let refused = tidb.write(&foreign.commit(at)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted);
    assert!(refused.message().contains("ahead of PD's newest timestamp"), "{}", refused.message());
    assert_eq!(pump.status().await["newest_timestamp"].as_u64(), Some(known));
    site.pd_is(true).await;
    drainer.reach(last).await;
    site::assert_complete(&site, [&drainer]);
    // With PD's word a start_ts that it has not given out is refused again.
    let other = StartTs(Tso::from_parts(cluster.tso().physical_ms() + 3_600_000, 0));
    let other = Txn { start_ts: other, ..foreign };
    let refused = tidb.write(&other.prewrite()).await.unwrap_err();
    assert!(refused.message().contains("ahead of PD's newest timestamp"), "{}", refused.message());
    pump.stop().await.unwrap();
}

/// 100,000 transactions open at a time, in a stated amount of memory, and through a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_open_prewrites_fit() {
    const OPEN: usize = 100_000;
    /// What docs/pump.md states for them, over what an idle pump has.
    const BUDGET: u64 = 96 << 20;
    let site = Site::start().await;
    let process = Process::start(&site, "p1").await;
    let cluster = &site.cluster;
    let idle = process.memory();
    let mut sessions = JoinSet::new();
    for _ in 0..64 {
        let (cluster, tidb) = (cluster.clone(), process.tidb());
        sessions.spawn(async move {
            for _ in 0..OPEN / 64 {
                // TiKV has not heard of them: a TiDB that died between the two.
                tidb.write(&Txn::begin(&cluster, Bytes::from_static(&[7; 200])).prewrite()).await.unwrap();
            }
        });
    }
    soon("the prewrites are taken", sessions.join_all()).await;
    let open = (OPEN / 64 * 64) as u64;
    assert_eq!(process.status().await["pending"], open);
    let full = process.memory();
    assert!(full < idle + BUDGET, "{idle} bytes before, {full} with {open} open prewrites");

    let process = process.again(&site).await;
    assert_eq!(process.status().await["pending"], open);
    // Each is asked about: the stream passes a moment at which all of them were open.
    let mut drainer = Drainer::open(process.addr, Tso::ZERO).await.unwrap();
    drainer.reach(cluster.tso()).await;
    let full = process.memory();
    println!("{idle} bytes idle, {full} with {open} open prewrites");
    assert!(full < idle + BUDGET, "{idle} bytes before, {full} with {open} open prewrites after a restart");
    process.kill();
}

/// TiKV does not answer, so one lost commit binlog holds the watermark while thousands of others commit: they are not kept in
/// memory, also not after kill -9, and in the end all of it comes once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_while_the_watermark_stands() {
    const SESSIONS: usize = 32;
    const EACH: usize = 80;
    let mut site = Site::start().await;
    std::fs::write(site.dir.path().join("p1.toml"), "[storage]\ncommit-memory = \"64 KiB\"\n").unwrap();
    // At 200 bytes each, and what a group adds before that many are spilled.
    let fit = (64 * 1024 / 200 + SESSIONS) as f64;
    let cluster = site.cluster.clone();
    let before = cluster.tso();
    let mut process = Process::start(&site, "p1").await;
    let mut drainer = Drainer::open(process.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    site.tikv_is(false).await;
    let stuck = Txn::begin(&cluster, "only TiKV knows");
    process.tidb().write(&stuck.prewrite()).await.unwrap();
    cluster.prewrite(stuck.start_ts, stuck.key.clone());
    let committed = cluster.commit_now(stuck.start_ts).unwrap();

    for round in 1..=2 {
        let mut sessions = JoinSet::new();
        for session in 0..SESSIONS {
            let (cluster, tidb) = (cluster.clone(), process.tidb());
            sessions.spawn(async move {
                for i in 0..EACH {
                    Txn::begin(&cluster, format!("{round}/{session}/{i}")).run(&cluster, &tidb).await;
                }
            });
        }
        soon("they commit", sessions.join_all()).await;
        let all = (round * SESSIONS * EACH) as f64;
        until("they are spilled", || async {
            let in_memory = process.metric("pump_commits_in_memory").await;
            assert!(in_memory.is_none_or(|commits| commits <= fit), "{in_memory:?} in memory");
            process.metric("pump_spilled_commits_total").await.is_some_and(|spilled| spilled >= all - fit)
        })
        .await;
        assert!(process.status().await["watermark"].as_u64().unwrap() < committed.get());
        process = process.again(&site).await;
    }

    site.tikv_is(true).await;
    let mut drainer = Drainer::open(process.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    site::assert_complete(&site, [&drainer]);
    assert_eq!(drainer.received.len(), 1 + 2 * SESSIONS * EACH);
    process.kill();
}

/// A pump that stood still while TiDB went on elsewhere: late copies come, and it neither falls over, nor emits below its
/// watermark (every drainer here checks that), nor has trouble with what it stored when it starts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_pump_goes_on_in_order() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let before = cluster.tso();
    let stopped = Process::start(&site, "p1").await;
    let other = Process::start(&site, "p2").await;
    let mut first = Drainer::open(stopped.addr, before).await.unwrap();
    let mut second = Drainer::open(other.addr, before).await.unwrap();
    let load = UnderLoad::begin(&site, 2, light()).await;
    load.goes_on(200).await;
    first.reach(cluster.tso()).await;

    stopped.signal("STOP");
    // Their prewrites wait in the stopped pump's socket; TiDB gives up on them there and runs them on the other pump.
    let late: Vec<_> = (0..20).map(|i| Txn::begin(cluster, format!("late {i}"))).collect();
    let mut waiting = JoinSet::new();
    for txn in &late {
        let (tidb, prewrite) = (stopped.tidb(), txn.prewrite());
        waiting.spawn(async move { tidb.write(&prewrite).await });
    }
    for txn in &late {
        txn.run(cluster, &other.tidb()).await;
    }
    load.goes_on(200).await;
    second.reach(cluster.tso()).await;
    // Until it counts as dead.
    until("its lease runs out", || async {
        let entry = site.registry.get(NodeKind::Pump, "p1").await.unwrap().unwrap();
        entry.side.is_none()
    })
    .await;
    stopped.signal("CONT");
    until("it lives again", || async {
        let entry = site.registry.get(NodeKind::Pump, "p1").await.unwrap().unwrap();
        entry.side.is_some()
    })
    .await;

    for stored in soon("the late copies are taken", waiting.join_all()).await {
        stored.unwrap();
    }
    load.goes_on(200).await;
    load.end().await;
    let end = cluster.tso();
    first.reach(end).await;
    second.reach(end).await;
    site::assert_complete(&site, [&first, &second]);

    // The same again from the disk, after kill -9.
    let again = stopped.again(&site).await;
    let mut replayed = Drainer::open(again.addr, before).await.unwrap();
    replayed.reach(end).await;
    assert_eq!(replayed.commits()[..first.received.len()], first.commits());
    let mut again = again;
    again.signal("TERM");
    assert!(again.ended().await.success());
    other.kill();
}

/// TiKV may not forget what an open prewrite needs: the safe point stays below its floor, through restarts.
#[tokio::test(flavor = "multi_thread")]
async fn the_safe_point_stays_below_open_prewrites() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let pump = site.pump("p1").await;
    // An old TiDB's lock: it cannot be pushed, so its floor stays.
    let txn = Txn::begin(cluster, "old");
    let old = Transaction {
        ttl_ms: 24 * 3_600_000,
        min_commit_ts: Tso::ZERO,
        end: End::Open,
        ..Transaction::locked(txn.start_ts, txn.key.clone())
    };
    cluster.begin(txn.start_ts, old);
    pump.tidb().write(&txn.prewrite()).await.unwrap();
    let above_floor = cluster.tso();
    pump.stop().await.unwrap();
    cluster.advance(Duration::from_secs(3600));
    // PD's own collector goes as far as it may.
    cluster.update_safe_point("gc_worker", i64::MAX, cluster.tso().get());
    let pump = site.pump("p1").await;
    let asked = cluster.questions();
    until("TiKV is asked, which needs the safe point", || async { cluster.questions() > asked }).await;
    assert!(cluster.safe_points()["sluice-pump-p1"] < above_floor);
    // So its outcome is still known when it comes.
    let commit_ts = cluster.commit_now(txn.start_ts).unwrap();
    let mut drainer = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    drainer.reach(commit_ts.0).await;
    site::assert_complete(&site, [&drainer]);
    assert_eq!(pump.status().await["gaps"].as_array().unwrap().len(), 0);
    pump.stop().await.unwrap();
}

/// A pump that an operator sends away waits for prewrites that TiKV has not heard of, but not for ever: once no working
/// TiDB could still begin them, TiKV is told that they never will.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_pump_fences_off_what_never_began() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let pump = site.pump("p1").await;
    let dead = Txn::begin(cluster, "its TiDB died");
    pump.tidb().write(&dead.prewrite()).await.unwrap();
    let url = format!("http://{}/state/p1/close", pump.at.addr);
    let http = node::tls::Security::default().http_client(site::PATIENCE).unwrap();
    assert_eq!(http.put(url).send().await.unwrap().status(), 200);
    until("it is closing", || async { pump.status().await["state"] == "closing" }).await;
    let asked = cluster.questions();
    until("TiKV is asked again", || async { cluster.questions() >= asked + 2 }).await;
    assert!(pump.status().await["waiting_for"].as_str().unwrap().contains("1 open transaction"));
    cluster.advance(Duration::from_secs(130));
    let registry = site.registry.clone();
    soon("the pump ends", pump.task).await.unwrap().unwrap();
    assert_eq!(registered(&registry, "p1").await, Some(node::registry::NodeState::Offline));
    // Should its TiDB wake up after all, TiKV refuses.
    cluster.prewrite(dead.start_ts, dead.key.clone());
    assert_eq!(cluster.commit_now(dead.start_ts), None);
}
