//! What is given up, when, and that its space is really back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::os::unix::fs::MetadataExt as _;

use bytesize::ByteSize;
use node::registry::{NodeKind, NodeRecord, NodeState};
use pump::config::Config;
use site::{Drainer, Process, Running, Site, Txn, until};
use tidb::ts::{CommitTs, Tso};

const SEGMENT: u64 = 256 << 10;
const LIMIT: u64 = 1 << 20;

fn limited(site: &Site) -> Config {
    let mut config = site.config("p1");
    config.storage.segment_size = Some(ByteSize(SEGMENT));
    config.gc_size = Some(ByteSize(LIMIT));
    config
}

/// 4 MiB of transactions.
async fn fill(site: &Site, pump: &Running) -> Vec<CommitTs> {
    let tidb = pump.tidb();
    let mut committed = Vec::new();
    for i in 0..64_u8 {
        committed.push(Txn::begin(&site.cluster, vec![i; 64 << 10]).run(&site.cluster, &tidb).await);
    }
    committed
}

async fn stand_at(site: &Site, position: CommitTs) {
    let mut record = NodeRecord::new("d1", "127.0.0.1:9", NodeState::Online);
    record.max_commit_ts = position;
    site.registry.put(NodeKind::Drainer, &record).await.unwrap();
}

/// Asks for a run of retention, and says up to where all is collected now.
async fn collect(pump: &Running) -> Tso {
    let http = node::tls::Security::default().http_client(site::PATIENCE).unwrap();
    http.post(format!("http://{}/debug/gc/trigger", pump.at.addr)).send().await.unwrap();
    let status: serde_json::Value =
        http.get(format!("http://{}/status", pump.at.admin_addr)).send().await.unwrap().json().await.unwrap();
    Tso::new(status["collected"].as_u64().unwrap())
}

fn bytes_on_disk(site: &Site) -> u64 {
    let files = std::fs::read_dir(site.dir.path().join("p1/store")).unwrap();
    // A file may go between the listing and the look.
    files.filter_map(|file| Some(file.unwrap().metadata().ok()?.blocks() * 512)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn space_comes_back_as_far_as_drainers_are() {
    let site = Site::start().await;
    let before = site.cluster.tso();
    let pump = site.launch(limited(&site)).await;
    pump.online().await;
    let committed = fill(&site, &pump).await;
    let full = bytes_on_disk(&site);
    assert!(full > 64 * (64 << 10));

    let tenth = committed[9];
    stand_at(&site, tenth).await;
    until("what the drainer has is collected", || async { collect(&pump).await == tenth.0 }).await;
    // However often retention runs.
    for _ in 0..3 {
        assert_eq!(collect(&pump).await, tenth.0);
    }
    let refused = Drainer::open(pump.at.addr, before).await.unwrap().step().await.unwrap().unwrap();
    assert_eq!((refused.requested, refused.oldest), (before.get(), tenth.get()));
    let mut drainer = Drainer::open(pump.at.addr, tenth.0).await.unwrap();
    drainer.reach(committed[63].0).await;
    assert_eq!(drainer.received.len(), 54);

    stand_at(&site, committed[63]).await;
    // The limit, a segment that is not full, and the prepared ones; the index and the mark are small.
    let least = LIMIT + 4 * SEGMENT + (64 << 10);
    until("the log fits its size again", || async {
        collect(&pump).await;
        bytes_on_disk(&site) <= least
    })
    .await;
    assert!(bytes_on_disk(&site) < full / 2);
    // No more than needed went: the youngest are there.
    let kept = collect(&pump).await;
    assert!(kept < committed[60].0, "{kept}");
    let mut drainer = Drainer::open(pump.at.addr, kept).await.unwrap();
    drainer.reach(committed[63].0).await;
    let expected = committed.iter().filter(|commit_ts| commit_ts.0 > kept).count();
    assert_eq!(drainer.received.len(), expected);
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_go_past_a_drainer() {
    let site = Site::start().await;
    let before = site.cluster.tso();
    let pump = site.launch(Config { gc_past_drainers: true, ..limited(&site) }).await;
    pump.online().await;
    let committed = fill(&site, &pump).await;
    stand_at(&site, CommitTs(before)).await;
    until("the size counts, not the drainer", || async { collect(&pump).await > committed[9].0 }).await;
    // The drainer is told what it lost.
    let refused = Drainer::open(pump.at.addr, before).await.unwrap().step().await.unwrap().unwrap();
    assert_eq!(refused.requested, before.get());
    assert!(refused.oldest > committed[9].get());
    pump.stop().await.unwrap();
}

/// How far each drainer is from what would be given up, for alerts.
#[tokio::test(flavor = "multi_thread")]
async fn headroom_is_a_metric() {
    const WEEK: f64 = 7.0 * 86_400.0;
    let site = Site::start().await;
    let process = Process::start(&site, "p1").await;
    let http = node::tls::Security::default().http_client(site::PATIENCE).unwrap();
    let headroom = async || {
        http.post(format!("http://{}/debug/gc/trigger", process.addr)).send().await.unwrap();
        let page = http.get(format!("http://{}/metrics", process.addr)).send().await.unwrap();
        let page = page.text().await.unwrap();
        let value = page.lines().find_map(|line| {
            line.strip_prefix(r#"pump_retention_headroom_seconds{drainer="d1"} "#).map(str::to_owned)
        });
        value.map(|value| value.parse::<f64>().unwrap())
    };
    let now = site.cluster.tso();
    // As far as the stream goes: by default, seven days are left.
    stand_at(&site, CommitTs(now)).await;
    until("it is told", || async { headroom().await.is_some_and(|left| (left - WEEK).abs() < 60.0) }).await;
    // A drainer that stopped eight days ago holds back a day of binlogs.
    let eight_days_ago = Tso::from_parts(now.physical_ms() - 8 * 86_400_000, 0);
    stand_at(&site, CommitTs(eight_days_ago)).await;
    let due = WEEK - 8.0 * 86_400.0;
    until("it is told", || async { headroom().await.is_some_and(|left| (left - due).abs() < 60.0) }).await;
    // Given up, it has none, and nothing to be alarmed about.
    site.registry.set_state(NodeKind::Drainer, "d1", NodeState::Offline).await.unwrap();
    until("it is told", || async { headroom().await.is_some_and(f64::is_nan) }).await;
    process.kill();
}
