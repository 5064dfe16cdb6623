//! The pump as TiDB and drainers meet it: real gRPC, a real etcd, stand-ins for PD and TiKV.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use bytes::Bytes;
use pump::config::Config;
use schemas::binlog::{Binlog, BinlogType};
use simulator::topology::Fault;
use simulator::transactions::{End, Transaction};
use site::{CLUSTER, Drainer, Process, Site, Txn, is_fake, pull_original, soon, until};
use tidb::ts::{CommitTs, StartTs, Tso};
use tonic::Code;
use tonic::codec::CompressionEncoding;

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_codes_that_tidb_understands() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.max_message_size = bytesize::ByteSize::kib(64);
    let pump = site.launch(config).await;
    pump.online().await;
    let mut tidb = pump.tidb();
    tidb.probe().await.unwrap();

    let foreign = tidb.send(8, Bytes::new()).await.unwrap_err();
    assert_eq!((foreign.code(), foreign.message()), (Code::Unknown, "cluster ID are mismatch, 8 vs 7000001"));

    let garbage = tidb.send(CLUSTER, Bytes::from_static(b"\xff\xff\xff")).await.unwrap_err();
    assert_eq!(garbage.code(), Code::Unknown);
    assert!(garbage.message().contains("does not decode"), "{}", garbage.message());

    let large = Txn::begin(&site.cluster, vec![1; 100 << 10]);
    let refused = tidb.write(&large.prewrite()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("message larger than max"), "{}", refused.message());
    // Only that one fails, on the same connection.
    Txn::begin(&site.cluster, "small").run(&site.cluster, &tidb).await;

    let obsolete = Binlog { tp: Some(BinlogType::PreDdl.into()), start_ts: Some(5), ..Binlog::default() };
    assert!(tidb.write(&obsolete).await.unwrap_err().message().contains("obsolete"));
    let headless = Binlog { tp: Some(0), start_ts: Some(0), commit_ts: Some(9), ..Binlog::default() };
    assert_eq!(tidb.write(&headless).await.unwrap_err().code(), Code::Unknown);

    // Timestamps that PD never gave out.
    let future = StartTs(Tso::from_parts(site.cluster.tso().physical_ms() + 3_600_000, 0));
    let foreign = Txn { start_ts: future, ..Txn::begin(&site.cluster, "x") };
    assert!(tidb.write(&foreign.prewrite()).await.unwrap_err().message().contains("ahead of PD"));
    let txn = Txn::begin(&site.cluster, "y");
    tidb.write(&txn.prewrite()).await.unwrap();
    let error = tidb.write(&txn.commit(CommitTs(future.0))).await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert!(error.message().contains("ahead of PD"), "{}", error.message());

    // The same again is welcome, something else under the same name is not.
    tidb.write(&txn.prewrite()).await.unwrap();
    let other = Txn { value: "z".into(), ..txn.clone() };
    assert!(tidb.write(&other.prewrite()).await.unwrap_err().message().contains("differs"));
    let commit_ts = CommitTs(site.cluster.tso());
    tidb.write(&txn.commit(commit_ts)).await.unwrap();
    tidb.write(&txn.commit(commit_ts)).await.unwrap();
    let second = CommitTs(site.cluster.tso());
    assert!(tidb.write(&txn.commit(second)).await.unwrap_err().message().contains("already settled"));
    // A commit without a prewrite here says nothing.
    let elsewhere = Txn::begin(&site.cluster, "elsewhere");
    tidb.write(&elsewhere.commit(CommitTs(site.cluster.tso()))).await.unwrap();
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_bring_every_transaction_in_order() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let before = site.cluster.tso();
    let mut sessions = tokio::task::JoinSet::new();
    for session in 0..16 {
        let (cluster, tidb) = (site.cluster.clone(), pump.tidb());
        sessions.spawn(async move {
            let mut done = Vec::new();
            for i in 0..25 {
                let txn = Txn::begin(&cluster, format!("{session}/{i}"));
                // Another prewrite in between, so that commits arrive out of order.
                let commit_ts = txn.run(&cluster, &tidb).await;
                done.push((txn, commit_ts));
            }
            done
        });
    }
    let mut expected = soon("the load", sessions.join_all()).await.concat();
    expected.sort_by_key(|(_, commit_ts)| *commit_ts);
    let end = expected.last().unwrap().1.0;

    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(end).await;
    let ours: Vec<_> =
        drainer.received.iter().map(|t| (t.start_ts, t.commit_ts, t.prewrite_value.clone())).collect();
    let wanted: Vec<_> = expected.iter().map(|(t, c)| (t.start_ts.get(), c.get(), t.value.clone())).collect();
    assert_eq!(ours, wanted);

    let mut client = pump.tidb().client;
    let pulled = pull_original(&mut client, before, end.next()).await.unwrap();
    let real: Vec<_> = pulled.iter().filter(|(.., binlog)| !is_fake(binlog)).collect();
    assert_eq!(real.len(), expected.len());
    for ((txn, commit_ts), (.., binlog)) in expected.iter().zip(real) {
        assert_eq!(*binlog, Binlog { prewrite_value: Some(txn.value.clone()), ..txn.commit(*commit_ts) });
    }
    assert!(is_fake(&pulled.last().unwrap().2), "past the last commit only a fake can be");

    // The same from the middle: an exclusive start, the identical suffix.
    let (_, middle) = &expected[200];
    let mut again = Drainer::open(pump.at.addr, middle.0).await.unwrap();
    again.reach(end).await;
    assert_eq!(again.commits(), drainer.commits()[201..]);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_pump_tells_progress() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let now = site.cluster.tso();
    let pulled = pull_original(&mut pump.tidb().client, now, site.cluster.tso()).await.unwrap();
    assert!(pulled.iter().all(|(.., binlog)| is_fake(binlog)));
    Drainer::open(pump.at.addr, now).await.unwrap().reach(site.cluster.tso()).await;
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_drainer_gets_a_tick_at_once() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    // Without being asked, the pump would not tick again within this test.
    config.tick_interval = node::config::HumanDuration::from_secs(3600);
    let pump = site.launch(config).await;
    pump.online().await;
    let mut drainer = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    for _ in 0..3 {
        let wanted = site.cluster.tso();
        drainer.want(wanted).await;
        drainer.reach(wanted).await;
    }
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_come_in_chunks_and_whole() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    // Smaller than the transaction: it goes alone.
    config.receive_budget = bytesize::ByteSize::mib(4);
    let pump = site.launch(config).await;
    pump.online().await;
    let before = site.cluster.tso();
    let value: Bytes = (0..24 << 20).map(|i: u32| (i >> 8) as u8).collect::<Vec<_>>().into();
    let tidb = pump.tidb();
    Txn::begin(&site.cluster, "before").run(&site.cluster, &tidb).await;
    let large = Txn::begin(&site.cluster, value.clone());
    large.run(&site.cluster, &tidb).await;
    let last = Txn::begin(&site.cluster, "after").run(&site.cluster, &tidb).await;

    let mut drainer = Drainer::open_with(pump.at.addr, before, 1 << 20).await.unwrap();
    drainer.reach(last.0).await;
    assert_eq!(drainer.received.len(), 3);
    assert_eq!(drainer.received[1].prewrite_value, value);
    assert_eq!(drainer.chunks, 24);

    let mut client = pump.tidb().client.max_decoding_message_size(usize::MAX);
    let pulled = pull_original(&mut client, before, last.0).await.unwrap();
    let real: Vec<_> = pulled.iter().filter(|(.., binlog)| !is_fake(binlog)).collect();
    assert_eq!(real[1].2.prewrite_value, Some(value));
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_both_ways() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let before = site.cluster.tso();
    let mut tidb = pump.tidb();
    tidb.client =
        tidb.client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    let txn = Txn::begin(&site.cluster, vec![7; 3 << 20]);
    let commit_ts = txn.run(&site.cluster, &tidb).await;
    let pulled = pull_original(&mut tidb.client, before, commit_ts.0).await.unwrap();
    assert_eq!(pulled.last().unwrap().2.prewrite_value, Some(txn.value.clone()));
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tikv_decides_what_tidb_left_open() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    let open = async |value: &str| {
        let txn = Txn::begin(cluster, value.to_owned());
        tidb.write(&txn.prewrite()).await.unwrap();
        txn
    };
    // The region moves about meanwhile.
    cluster.inject([Fault::NotLeader, Fault::EpochNotMatch, Fault::RegionNotFound, Fault::ServerIsBusy]);
    cluster.split(b"t_5");

    let lost_commit = open("lost commit").await;
    cluster.prewrite(lost_commit.start_ts, lost_commit.key.clone());
    let lost_at = cluster.commit_now(lost_commit.start_ts).unwrap();

    // TiDB did not learn that its commit succeeded, and sends a rollback.
    let undetermined = open("undetermined").await;
    cluster.prewrite(undetermined.start_ts, undetermined.key.clone());
    let undetermined_at = cluster.commit_now(undetermined.start_ts).unwrap();
    tidb.write(&undetermined.rollback()).await.unwrap();

    let rolled_back = open("rolled back").await;
    cluster.prewrite(rolled_back.start_ts, rolled_back.key.clone());
    assert!(cluster.roll_back(rolled_back.start_ts));
    tidb.write(&rolled_back.rollback()).await.unwrap();

    let silently_rolled_back = open("rolled back, no binlog").await;
    cluster.prewrite(silently_rolled_back.start_ts, silently_rolled_back.key.clone());
    assert!(cluster.roll_back(silently_rolled_back.start_ts));

    let vanished = open("failed before it locked anything").await;
    tidb.write(&vanished.rollback()).await.unwrap();

    let end = cluster.tso();
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(end).await;
    let expected =
        [(lost_commit.start_ts.get(), lost_at.get()), (undetermined.start_ts.get(), undetermined_at.get())];
    assert_eq!(drainer.commits(), expected);
    // By the original protocol too; such commits have no key of their own.
    let pulled = pull_original(&mut pump.tidb().client, before, end).await.unwrap();
    let first = &pulled.iter().find(|(.., binlog)| !is_fake(binlog)).unwrap().2;
    assert_eq!((first.prewrite_key.clone(), first.prewrite_value.clone()), (None, Some(lost_commit.value)));
    assert_eq!(cluster.aborted(), 0);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_transactions_do_not_hold_the_stream_and_are_not_killed() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();

    // Locked in TiKV by a TiDB that keeps it alive.
    let slow = Txn::begin(cluster, "slow");
    let alive = Transaction { ttl_ms: 3_600_000, ..Transaction::locked(slow.start_ts, slow.key.clone()) };
    cluster.begin(slow.start_ts, alive);
    tidb.write(&slow.prewrite()).await.unwrap();
    // Its prewrite is still on the way to TiKV.
    let slower = Txn::begin(cluster, "slower");
    tidb.write(&slower.prewrite()).await.unwrap();

    // The watermark passes both all the same.
    drainer.reach(cluster.tso()).await;
    assert_eq!(drainer.commits(), []);
    let slow_at = cluster.commit_now(slow.start_ts).unwrap();
    tidb.write(&slow.commit(slow_at)).await.unwrap();
    let slower_at = slower.run(cluster, &tidb).await;
    drainer.reach(slower_at.0).await;
    assert_eq!(
        drainer.commits(),
        [(slow.start_ts.get(), slow_at.get()), (slower.start_ts.get(), slower_at.get())]
    );
    assert_eq!(cluster.aborted(), 0);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_cannot_be_pushed_holds_the_stream_until_it_expires() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let txn = Txn::begin(cluster, "old tidb");
    let old = Transaction {
        ttl_ms: 600_000,
        min_commit_ts: Tso::ZERO,
        end: End::Open,
        ..Transaction::locked(txn.start_ts, txn.key.clone())
    };
    cluster.begin(txn.start_ts, old);
    tidb.write(&txn.prewrite()).await.unwrap();
    let floor_at_most = cluster.tso();
    let mut drainer = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    let asked = cluster.questions();
    until("TiKV was asked twice", || async { cluster.questions() >= asked + 2 }).await;
    let status = pump.status().await;
    assert!(status["watermark"].as_u64().unwrap() < floor_at_most.get());
    assert_eq!(status["holding_watermark"]["start_ts"].as_u64(), Some(txn.start_ts.get()));
    cluster.advance(std::time::Duration::from_secs(700));
    drainer.reach(cluster.tso()).await;
    assert_eq!(drainer.commits(), []);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn late_second_copies_are_never_emitted() {
    let site = Site::start().await;
    let (first, second) = (site.pump("p1").await, site.pump("p2").await);
    let cluster = &site.cluster;
    let before = cluster.tso();
    let txn = Txn::begin(cluster, "twice");
    let commit_ts = txn.run(cluster, &first.tidb()).await;
    // The pump that was slow to answer stores its copy only now; the stream has passed the commit there.
    let mut behind = Drainer::open(second.at.addr, before).await.unwrap();
    behind.reach(commit_ts.0).await;
    second.tidb().write(&txn.prewrite()).await.unwrap();
    let asked = cluster.questions();
    until("TiKV was asked", || async { cluster.questions() > asked }).await;
    behind.reach(cluster.tso()).await;
    assert_eq!(behind.commits(), []);
    let mut drainer = Drainer::open(first.at.addr, before).await.unwrap();
    drainer.reach(commit_ts.0).await;
    assert_eq!(drainer.commits(), [(txn.start_ts.get(), commit_ts.get())]);
    // Its own commit binlog, late too, is taken and changes nothing.
    second.tidb().write(&txn.commit(commit_ts)).await.unwrap();
    behind.reach(cluster.tso()).await;
    assert_eq!(behind.commits(), []);
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_was() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, before) = (site.cluster.clone(), site.cluster.tso());
    let done = Txn::begin(&cluster, "done");
    let done_at = done.run(&cluster, &pump.tidb()).await;
    let open = Txn::begin(&cluster, "open");
    cluster.prewrite(open.start_ts, open.key.clone());
    pump.tidb().write(&open.prewrite()).await.unwrap();
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(done_at.0).await;
    let watermark = drainer.watermark;
    let stopped = pump.stop();
    // The stream ends with the pump.
    let ended = async { while drainer.step().await.is_ok() {} };
    let (stopped, ()) = tokio::join!(stopped, soon("the stream ends", ended));
    stopped.unwrap();

    let open_at = cluster.commit_now(open.start_ts).expect("the lock was not touched");
    assert!(open_at.0 > drainer.watermark);
    let pump = site.pump("p1").await;
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    assert!(drainer.watermark >= watermark);
    assert_eq!(
        drainer.commits(),
        [(done.start_ts.get(), done_at.get()), (open.start_ts.get(), open_at.get())]
    );
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pd_going_back_ends_the_pump() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let now = site.cluster.tso();
    Txn::begin(&site.cluster, "x").run(&site.cluster, &pump.tidb()).await;
    let past = Tso::from_parts(now.physical_ms() - 3_600_000, 0);
    site.cluster.freeze(past);
    let error = format!("{:#}", soon("the pump ends", pump.task).await.unwrap().unwrap_err());
    assert!(error.contains("went back"), "{error}");
    // And it does not come back before PD does.
    let error = site.fails(site.config("p1")).await;
    assert!(error.contains("PD went back"), "{error}");
    site.cluster.freeze(Tso::from_parts(now.physical_ms() + 60_000, 0));
    let pump = site.pump("p1").await;
    pump.stop().await.unwrap();
}

/// A restored PD may be ahead of the watermark that was saved last, and behind what is stored all the same.
#[tokio::test(flavor = "multi_thread")]
async fn pd_must_not_be_behind_any_commit() {
    let site = Site::start().await;
    let process = Process::start(&site, "p1").await;
    // The clock stands still: no watermark comes near the commit_ts.
    let before = site.cluster.tso();
    site.cluster.freeze(before);
    let (tidb, txn) = (process.tidb(), Txn::begin(&site.cluster, "x"));
    site.cluster.prewrite(txn.start_ts, txn.key.clone());
    tidb.write(&txn.prewrite()).await.unwrap();
    let commit_ts = CommitTs(Tso::from_parts(before.physical_ms() + 2_000, 0));
    assert!(site.cluster.commit(txn.start_ts, commit_ts));
    tidb.write(&txn.commit(commit_ts)).await.unwrap();
    process.kill();
    let error = site.fails(site.config("p1")).await;
    assert!(error.contains("PD went back") && error.contains(&commit_ts.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn collected_positions_are_refused() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let before = cluster.tso();
    for i in 0..50 {
        Txn::begin(cluster, format!("old {i}")).run(cluster, &tidb).await;
    }
    let rolled_back = Txn::begin(cluster, "rolled back");
    cluster.prewrite(rolled_back.start_ts, rolled_back.key.clone());
    tidb.write(&rolled_back.prewrite()).await.unwrap();
    cluster.roll_back(rolled_back.start_ts);
    tidb.write(&rolled_back.rollback()).await.unwrap();
    cluster.advance(std::time::Duration::from_secs(8 * 24 * 3600));
    let young = Txn::begin(cluster, "young");
    let young_at = young.run(cluster, &tidb).await;
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(young_at.0).await;
    assert_eq!(drainer.received.len(), 51);

    let url = format!("http://{}/debug/gc/trigger", pump.at.addr);
    let http = node::tls::Security::default().http_client(site::PATIENCE).unwrap();
    assert_eq!(http.post(url).send().await.unwrap().text().await.unwrap(), "trigger gc success");
    until("the old transactions are collected", || async {
        pump.status().await["collected"].as_u64().unwrap() > before.get()
    })
    .await;
    let refused = Drainer::open(pump.at.addr, before).await.unwrap().step().await.unwrap().unwrap();
    assert_eq!(refused.requested, before.get());
    assert!(refused.oldest > before.get() && refused.oldest < young_at.get());
    let error = pull_original(&mut pump.tidb().client, before, young_at.0).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    // From where it begins, by either protocol, the young one is there.
    let mut rest = Drainer::open(pump.at.addr, Tso::new(refused.oldest)).await.unwrap();
    rest.reach(young_at.0).await;
    assert_eq!(rest.commits(), [(young.start_ts.get(), young_at.get())]);
    let pulled = pull_original(&mut pump.tidb().client, Tso::ZERO, young_at.0).await.unwrap();
    assert_eq!(pulled.iter().filter(|(.., binlog)| !is_fake(binlog)).count(), 1);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tikv_may_have_forgotten_is_a_declared_gap() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let pump = site.pump("p1").await;
    let txn = Txn::begin(cluster, "forgotten");
    pump.tidb().write(&txn.prewrite()).await.unwrap();
    pump.stop().await.unwrap();
    // While the pump was down for days its safe point ran out and TiKV collected.
    cluster.advance(std::time::Duration::from_secs(3 * 24 * 3600));
    cluster.update_safe_point("sluice-pump-p1", 0, 0);
    cluster.update_safe_point("gc_worker", i64::MAX, cluster.tso().get());
    let pump = site.pump("p1").await;
    until("the gap is declared", || async { pump.status().await["gaps"][0]["start_ts"].is_u64() }).await;
    let status = pump.status().await;
    assert_eq!(status["gaps"][0]["start_ts"].as_u64(), Some(txn.start_ts.get()));
    // The stream goes on, with the gap in its place, however often and from wherever below it somebody asks.
    let last = Txn::begin(cluster, "after").run(cluster, &pump.tidb()).await;
    let mut drainer = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    drainer.reach(last.0).await;
    let [gap] = drainer.gaps.as_slice() else { panic!("{:?}", drainer.gaps) };
    assert_eq!(gap.start_ts, txn.start_ts.get());
    assert!(gap.after >= txn.start_ts.get() && gap.upto < last.get());
    assert!(gap.cause.contains("safe point"), "{}", gap.cause);
    pump.stop().await.unwrap();
    let pump = site.pump("p1").await;
    for (after, gaps) in [(0, 1), (gap.upto - 1, 1), (gap.upto, 0)] {
        let mut again = Drainer::open(pump.at.addr, Tso::new(after)).await.unwrap();
        again.reach(last.0).await;
        assert_eq!(again.gaps, vec![gap.clone(); gaps]);
        assert_eq!(again.commits(), drainer.commits());
    }
    // The original protocol has no words for it: it does not pass, and everybody is told.
    for _ in 0..2 {
        let error = pull_original(&mut pump.tidb().client, Tso::ZERO, last.0).await.unwrap_err();
        assert_eq!(error.code(), Code::DataLoss, "{error}");
        let fix = format!("accept-gaps-upto = {}", gap.upto);
        assert!(
            error.message().contains(&fix) && error.message().contains(&txn.start_ts.to_string()),
            "{error}"
        );
    }
    until("orchestrators are told", || async { !pump.is_ready().await }).await;
    pump.stop().await.unwrap();
    // Until the operator knows of it.
    let accepting = Config { accept_gaps_upto: Tso::new(gap.upto), ..site.config("p1") };
    let pump = site.launch(accepting).await;
    pump.online().await;
    let pulled = pull_original(&mut pump.tidb().client, Tso::ZERO, last.0).await.unwrap();
    assert_eq!(pulled.iter().filter(|(.., binlog)| !is_fake(binlog)).count(), 1);
    until("the pump is ready again", || pump.is_ready()).await;
    let mut again = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    again.reach(last.0).await;
    assert_eq!(again.gaps, drainer.gaps);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_after_tikv_said_rolled_back_is_emitted_or_declared_lost() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let rolled_back = async || {
        let txn = Txn::begin(cluster, "rolled back, they say");
        tidb.write(&txn.prewrite()).await.unwrap();
        let commit_ts = CommitTs(cluster.tso());
        cluster.prewrite(txn.start_ts, txn.key.clone());
        cluster.roll_back(txn.start_ts);
        tidb.write(&txn.rollback()).await.unwrap();
        until("it is settled", || async { pump.status().await["pending"] == 0 }).await;
        (txn, commit_ts)
    };
    let before = cluster.tso();
    let (ahead, _) = rolled_back().await;
    let (behind, behind_at) = rolled_back().await;
    let mut drainer = Drainer::open(pump.at.addr, before).await.unwrap();
    drainer.reach(behind_at.0).await;
    tidb.write(&behind.commit(behind_at)).await.unwrap();
    // PD is asked for this one now, so it lies ahead of everything that was handed out.
    cluster.advance(std::time::Duration::from_secs(2));
    let ahead_at = CommitTs(Tso::from_parts(cluster.tso().physical_ms() + 1_000, 0));
    tidb.write(&ahead.commit(ahead_at)).await.unwrap();
    cluster.advance(std::time::Duration::from_secs(2));
    drainer.reach(ahead_at.0).await;
    assert_eq!(drainer.commits(), [(ahead.start_ts.get(), ahead_at.get())]);
    let gaps = &pump.status().await["gaps"];
    assert_eq!(gaps.as_array().unwrap().len(), 1);
    assert_eq!(gaps[0]["start_ts"].as_u64(), Some(behind.start_ts.get()));
    // The drainer was past its place, and is told all the same.
    let [gap] = drainer.gaps.as_slice() else { panic!("{:?}", drainer.gaps) };
    assert_eq!((gap.start_ts, gap.after), (behind.start_ts.get(), behind_at.get() - 1));
    assert!(gap.upto > behind_at.get() && gap.upto < ahead_at.get());
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_safe_point_is_held_at_the_watermark() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    until("it is held", || async { site.cluster.safe_points().contains_key("sluice-pump-p1") }).await;
    let held = site.cluster.safe_points()["sluice-pump-p1"];
    assert!(held > Tso::ZERO && held <= site.cluster.tso());
    pump.stop().await.unwrap();
}
