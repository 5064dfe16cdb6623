//! kill -9 under load: what was acknowledged is there, once, in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::sync::{Arc, Mutex};

use site::{Drainer, Process, Site, Tidb, Txn, free_port, soon, until};
use tidb::ts::{CommitTs, Tso};
use tokio::task::JoinSet;

/// Runs transactions until the pump is gone. A prewrite without an answer counts as failed, as TiDB counts it; what was
/// acknowledged commits in TiKV, whether or not its commit binlog arrives.
async fn session(
    site: &Site,
    addr: std::net::SocketAddr,
    name: usize,
    committed: Arc<Mutex<Vec<(Txn, CommitTs)>>>,
) {
    let tidb = Tidb::new(addr);
    for i in 0.. {
        let txn = Txn::begin(&site.cluster, format!("{name}/{i}"));
        site.cluster.prewrite(txn.start_ts, txn.key.clone());
        if tidb.write(&txn.prewrite()).await.is_err() {
            site.cluster.roll_back(txn.start_ts);
            return;
        }
        let commit_ts = site.cluster.commit_now(txn.start_ts).unwrap();
        committed.lock().unwrap().push((txn.clone(), commit_ts));
        if tidb.write(&txn.commit(commit_ts)).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_binlogs_survive_kill_9() {
    let site = Arc::new(Site::start().await);
    let (port, admin) = (free_port(), free_port());
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let before = site.cluster.tso();
    let committed = Arc::new(Mutex::new(Vec::new()));
    let mut watermark = Tso::ZERO;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    for round in 0..5_usize {
        let process = Process::launch(&site, "p1", port, admin);
        let mut probe = Tidb::new(addr);
        until("the pump is online", || {
            let probe = probe.probe();
            async { probe.await.is_ok() }
        })
        .await;
        let target = committed.lock().unwrap().len() + 40 + 37 * round;
        let mut sessions = JoinSet::new();
        for name in 0..8 {
            let (site, committed) = (site.clone(), committed.clone());
            sessions.spawn(async move { session(&site, addr, name, committed).await });
        }
        // A drainer looks on; nothing that it saw may change.
        let mut drainer = Drainer::open(addr, before).await.unwrap();
        until("some transactions are done", || async { committed.lock().unwrap().len() >= target }).await;
        let half = committed.lock().unwrap()[target / 2].1.0;
        drainer.reach(watermark.max(half)).await;
        process.kill();
        soon("the sessions notice", sessions.join_all()).await;
        assert_eq!(drainer.commits()[..seen.len().min(drainer.received.len())], seen[..]);
        watermark = drainer.watermark;
        seen = drainer.commits();
    }
    let process = Process::launch(&site, "p1", port, admin);
    let drainer = async {
        loop {
            if let Ok(drainer) = Drainer::open(addr, before).await {
                break drainer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let mut drainer = soon("the pump is back", drainer).await;
    drainer.reach(site.cluster.tso()).await;
    let mut expected = std::mem::take(&mut *committed.lock().unwrap());
    expected.sort_by_key(|(_, commit_ts)| *commit_ts);
    let expected: Vec<_> =
        expected.iter().map(|(txn, c)| (txn.start_ts.get(), c.get(), txn.value.clone())).collect();
    let found: Vec<_> =
        drainer.received.iter().map(|t| (t.start_ts, t.commit_ts, t.prewrite_value.clone())).collect();
    assert_eq!(found, expected);
    assert_eq!(site.cluster.aborted(), 0);
    process.kill();
}
