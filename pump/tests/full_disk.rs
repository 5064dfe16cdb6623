//! A full volume: prewrites are refused and nothing else is; what was acknowledged stays; space that comes back is used
//! without a restart.
//!
//! The pump runs on a small tmpfs of its own, in a mount namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use site::{Drainer, PATIENCE, Site, Tidb, Txn, free_port, until};
use tidb::ts::CommitTs;
use tonic::Code;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Mounts a tmpfs of the size in `$1` on `$0`, then becomes the pump.
const ON_A_SMALL_DISK: &str =
    r#"mount -t tmpfs -o "size=$1" tmpfs "$0" && d="$0" && shift && exec "$@" -data-dir "$d/p1""#;

fn start(site: &Site, port: u16, limit: &str) -> Process {
    let config = site.dir.path().join("pump.toml");
    // The mount hides what is in the directory below it.
    let small = site.dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let text = format!("gc = \"1h\"\n[storage]\nstop-write-at-available-space = \"{limit}\"\n");
    std::fs::write(&config, text).unwrap();
    let child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK])
        .arg(small)
        .args(["24m", env!("CARGO_BIN_EXE_pump"), "-addr", &format!("127.0.0.1:{port}")])
        .args(["-pd-urls", &site.pd_url, "-node-id", "p1", "-admin-addr", "127.0.0.1:0", "-L", "warn"])
        .args(["-heartbeat-interval", "1", "-config"])
        .arg(config)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Process(child)
}

async fn refuses_and_recovers(limit: &str) {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let port = free_port();
    let _process = start(&site, port, limit);
    let addr = ([127, 0, 0, 1], port).into();
    let mut probe = Tidb::new(addr);
    until("the pump is online", || {
        let probe = probe.probe();
        async { probe.await.is_ok() }
    })
    .await;
    let tidb = Tidb::new(addr);
    let before = cluster.tso();

    // Prewrites until the volume is full.
    let mut open = Vec::new();
    let refused = loop {
        assert!(open.len() < 24 * 16, "more went in than the volume holds");
        let txn = Txn::begin(cluster, vec![open.len() as u8; 64 << 10]);
        cluster.prewrite(txn.start_ts, txn.key.clone());
        match tidb.write(&txn.prewrite()).await {
            Ok(()) => open.push(txn),
            Err(refused) => {
                cluster.roll_back(txn.start_ts);
                break refused;
            }
        }
    };
    assert_eq!(refused.code(), Code::Aborted, "{refused}");
    assert!(refused.message().contains("no available space"), "{refused}");
    assert!(open.len() > 16 * 16, "only {} went in", open.len());

    if limit != "0 B" {
        // TiDB asks whether it may come back: not yet. (The disk is looked at every three seconds.)
        until("a probe is refused", || {
            let probe = probe.probe();
            async {
                let refused = probe.await.err();
                refused.is_some_and(|refused| {
                    refused.code() == Code::Aborted && refused.message().contains("no available space")
                })
            }
        })
        .await;
    }

    // Everything that is stored can be completed, on the same connection.
    let mut expected = Vec::new();
    for txn in &open {
        let commit_ts = CommitTs(cluster.tso());
        assert!(cluster.commit(txn.start_ts, commit_ts));
        tidb.write(&txn.commit(commit_ts)).await.unwrap();
        expected.push((txn.start_ts.get(), commit_ts.get(), txn.value.clone()));
    }
    let mut drainer = Drainer::open(addr, before).await.unwrap();
    drainer.reach(cluster.tso()).await;
    let found: Vec<_> =
        drainer.received.iter().map(|t| (t.start_ts, t.commit_ts, t.prewrite_value.clone())).collect();
    assert_eq!(found.len(), expected.len());
    assert!(found == expected, "the contents differ");

    // The drainer has it all, and it is old: space comes back, and with it the pump.
    cluster.advance(std::time::Duration::from_secs(2 * 3600));
    drainer.reach(cluster.tso()).await;
    let http = node::tls::Security::default().http_client(PATIENCE).unwrap();
    let url = format!("http://{addr}/debug/gc/trigger");
    let txn = Txn::begin(cluster, vec![7; 64 << 10]);
    cluster.prewrite(txn.start_ts, txn.key.clone());
    until("prewrites are taken again", || async {
        http.post(&url).send().await.unwrap();
        let taken = tidb.write(&txn.prewrite()).await;
        taken.map_err(|refused| assert_eq!(refused.code(), Code::Aborted, "{refused}")).is_ok()
    })
    .await;
    let commit_ts = CommitTs(cluster.tso());
    assert!(cluster.commit(txn.start_ts, commit_ts));
    tidb.write(&txn.commit(commit_ts)).await.unwrap();
    drainer.reach(commit_ts.0).await;
    assert_eq!(drainer.commits().last(), Some(&(txn.start_ts.get(), commit_ts.get())));
    assert_eq!(cluster.aborted(), 0);
}

/// The log has its space before anything is written to it, the index has not: where there is none, what it should hold
/// stays in memory. Retention makes space all the same.
#[tokio::test(flavor = "multi_thread")]
async fn without_space_for_the_index() {
    let site = Site::start().await;
    let port = free_port();
    let process = start(&site, port, "0 B");
    let addr = ([127, 0, 0, 1], port).into();
    let mut probe = Tidb::new(addr);
    until("the pump is online", || {
        let probe = probe.probe();
        async { probe.await.is_ok() }
    })
    .await;
    let before = site.cluster.tso();
    // Everything that the pump has not prepared goes to somebody else.
    let small = format!("/proc/{}/root{}", process.0.id(), site.dir.path().join("small").display());
    let filler = std::path::Path::new(&small).join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);

    let session = async || {
        let tidb = Tidb::new(addr);
        loop {
            let txn = Txn::begin(&site.cluster, vec![7; 300]);
            site.cluster.prewrite(txn.start_ts, txn.key.clone());
            if let Err(refused) = tidb.write(&txn.prewrite()).await {
                assert_eq!(refused.code(), Code::Aborted, "{refused}");
                site.cluster.roll_back(txn.start_ts);
                return;
            }
            let commit_ts = site.cluster.commit_now(txn.start_ts).unwrap();
            // Refused as well when the reserve is used up: TiKV is asked.
            if let Err(refused) = tidb.write(&txn.commit(commit_ts)).await {
                assert_eq!(refused.code(), Code::Aborted, "{refused}");
            }
        }
    };
    futures::future::join_all((0..16).map(|_| session())).await;
    assert!(site.cluster.committed().len() > 1000, "{} went in", site.cluster.committed().len());
    let mut drainer = Drainer::open(addr, before).await.unwrap();
    drainer.reach(site.cluster.tso()).await;
    site::assert_complete(&site, [&drainer]);

    // All of it is old: it goes, which takes no space, and what the log gets back is enough to go on.
    site.cluster.advance(std::time::Duration::from_secs(2 * 3600));
    drainer.reach(site.cluster.tso()).await;
    let http = node::tls::Security::default().http_client(PATIENCE).unwrap();
    let url = format!("http://{addr}/debug/gc/trigger");
    let (tidb, txn) = (Tidb::new(addr), Txn::begin(&site.cluster, "after"));
    site.cluster.prewrite(txn.start_ts, txn.key.clone());
    until("prewrites are taken again", || async {
        http.post(&url).send().await.unwrap();
        let taken = tidb.write(&txn.prewrite()).await;
        taken.map_err(|refused| assert_eq!(refused.code(), Code::Aborted, "{refused}")).is_ok()
    })
    .await;
    let commit_ts = site.cluster.commit_now(txn.start_ts).unwrap();
    tidb.write(&txn.commit(commit_ts)).await.unwrap();
    drainer.reach(commit_ts.0).await;
    site::assert_complete(&site, [&drainer]);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_of_free_space() {
    refuses_and_recovers("2 MiB").await;
}

/// Without a limit the disk itself says no.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_very_end_of_the_disk() {
    refuses_and_recovers("0 B").await;
}
