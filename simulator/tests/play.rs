//! Recorded folders played to pumps that check TiDB's, PD's and TiKV's promises record by record.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test prepares may fail loudly"
)]

mod etcd;
mod witness;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use etcd::Etcd;
use simulator::client::{ClientOptions, PumpClient};
use simulator::player::{PlayError, PlayOptions, Player, Progress, Speed};
use simulator::pumps::Strategy;
use simulator::recording::Recording;
use simulator::schedule::Kind;
use simulator::script::Script;
use simulator::stage::{Stage, StageOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use witness::{Witness, register};

fn fixture(name: &str) -> Arc<Script> {
    let folder =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/fixtures").join(name);
    Arc::new(Recording::load(&folder).unwrap().script)
}

/// A stage with witnesses on it.
struct Scene {
    etcd: Etcd,
    script: Arc<Script>,
    stage: Stage,
    witness: Arc<Witness>,
    pumps: Vec<JoinHandle<()>>,
}

impl Scene {
    async fn set(script: Arc<Script>, pumps: usize, speed: Speed, seed: u64) -> Self {
        let etcd = Etcd::start().await;
        let options = StageOptions { etcd: Some(etcd.url.clone()), seed, ..StageOptions::default() };
        let stage = Stage::for_playback(&script, speed.rate(), &options).await.unwrap();
        let witness = Witness::new(stage.cluster.clone(), Arc::clone(&script), &stage.tikv.address());
        let mut running = Vec::new();
        for index in 1..=pumps {
            running.push(witness.pump(&etcd.url, index).await);
        }
        Self { etcd, script, stage, witness, pumps: running }
    }

    async fn player(&self, speed: Speed, client: ClientOptions) -> Player {
        let client =
            PumpClient::connect(&self.stage.pd.url(), self.stage.cluster.id(), client).await.unwrap();
        client.wait_online(self.pumps.len()).await;
        let options = PlayOptions { speed, ..PlayOptions::default() };
        Player::new(Arc::clone(&self.script), &self.stage, client, options)
    }

    async fn play(&self, speed: Speed) -> Progress {
        let player = self.player(speed, ClientOptions::default()).await;
        player.play(CancellationToken::new()).await.unwrap()
    }

    fn assert_no_complaints(&self) {
        let seen = self.witness.seen();
        assert!(
            seen.complaints.is_empty(),
            "{} complaints, first {}",
            seen.complaints.len(),
            seen.complaints[0]
        );
    }

    /// Every record arrived byte for byte, on the pump that stands for the recorded one.
    fn assert_all_arrived(&self) {
        let pumps = self.pumps.len() as u32;
        let key = |pump: usize, payload: &bytes::Bytes| (pump, payload.clone());
        let mut arrived: Vec<_> =
            self.witness.seen().arrived.iter().map(|(pump, record)| key(*pump, &record.payload)).collect();
        let sent = self.script.records().iter();
        let mut sent: Vec<_> = sent.map(|r| key(((r.pump - 1) % pumps + 1) as usize, &r.payload)).collect();
        arrived.sort();
        sent.sort();
        assert!(arrived == sent, "{} arrived, {} recorded", arrived.len(), sent.len());
    }

    /// In the end TiKV knows the truth about each transaction.
    async fn assert_ends(&self) {
        // Locks of transactions that nobody ended run out after three seconds of PD's time.
        let expired = async {
            for record in self.script.records().iter().filter(|record| record.kind == Kind::Prewrite) {
                let truth = self.script.commit_ts(record.start_ts).map_or(0, |ts| ts.get());
                loop {
                    let answer = self.witness.check(record, self.stage.cluster.tso(), true).await;
                    if answer.lock_ttl == 0 {
                        assert_eq!(answer.commit_version, truth, "{record:?}");
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), expired).await.expect("every transaction ends");
        assert_eq!(self.stage.cluster.aborted(), 0);
    }
}

async fn plays(name: &str, pumps: usize, speed: Speed, seed: u64) {
    let scene = Scene::set(fixture(name), pumps, speed, seed).await;
    let before = scene.stage.cluster.tso();
    let progress = scene.play(speed).await;
    scene.assert_no_complaints();
    scene.assert_all_arrived();
    assert!(progress.is_faithful(), "{progress:?}");
    let recorded = scene.script.recorded();
    assert!(before < recorded.first().unwrap());
    // It runs on from the end of the recording.
    let after = scene.stage.cluster.tso();
    assert!(after > recorded.last().unwrap());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(scene.stage.cluster.tso().physical_ms() > after.physical_ms());
    scene.assert_ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shop_at_ten_times_its_pace() {
    plays("shop", 2, Speed::Factor(10.0), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_flat_out() {
    plays("concurrent", 3, Speed::Max, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_into_fewer_pumps_than_it_was_recorded_with() {
    plays("concurrent", 2, Speed::Factor(8.0), 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_flat_out() {
    plays("orphans", 2, Speed::Max, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_flat_out() {
    plays("ddl", 2, Speed::Max, 5).await;
}

/// The recorded pace is kept: not faster, and with pumps this quick hardly slower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_before_its_time() {
    let script = fixture("types");
    let last = script.records().last().unwrap().at;
    let scene = Scene::set(script, 2, Speed::Factor(4.0), 1).await;
    let begin = tokio::time::Instant::now();
    scene.play(Speed::Factor(4.0)).await;
    assert!(begin.elapsed() >= last / 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_pump_loses_its_prewrites_to_the_next_and_keeps_its_commits() {
    let scene = Scene::set(fixture("shop"), 2, Speed::Max, 1).await;
    // More than a pump may fail in a row before it is left alone.
    let failures = vec![Status::unavailable("gone"); 30];
    scene.witness.seen().refusals.insert(1, failures);
    let progress = scene.play(Speed::Max).await;
    scene.assert_no_complaints();
    assert!(progress.is_faithful() && progress.retries >= 11, "{progress:?}");
    let arrived = scene.witness.seen().arrived.len();
    assert_eq!(arrived, scene.script.records().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_strategies_keep_a_transaction_on_one_pump() {
    for strategy in [Strategy::Range, Strategy::Hash] {
        let scene = Scene::set(fixture("shop"), 3, Speed::Max, 1).await;
        let client = ClientOptions { strategy, ..ClientOptions::default() };
        let player = scene.player(Speed::Max, client).await;
        assert!(player.play(CancellationToken::new()).await.unwrap().is_faithful());
        scene.assert_no_complaints();
        for pump in 1..=3 {
            assert!(
                scene.witness.seen().arrived.iter().any(|(index, _)| *index == pump),
                "{strategy:?} {pump}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_record_fails_its_transaction_alone() {
    let scene = Scene::set(fixture("types"), 2, Speed::Max, 1).await;
    let records = scene.script.records();
    let refused = records.iter().rfind(|r| r.kind == Kind::Prewrite && r.ddl.is_none()).unwrap();
    scene.witness.seen().poison.insert(refused.start_ts);
    let progress = scene.play(Speed::Max).await;
    assert_eq!((progress.refused, progress.is_faithful()), (1, false));
    assert_eq!(scene.witness.seen().arrived.len(), records.len() - 2);
    assert_eq!(scene.stage.cluster.status(refused.start_ts), simulator::transactions::Status::RolledBack);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tidb_stops_when_no_pump_takes_a_prewrite() {
    let scene = Scene::set(fixture("shop"), 1, Speed::Max, 1).await;
    scene.witness.seen().refusals.insert(1, vec![Status::aborted("no online: closing"); 100_000]);
    let client = ClientOptions { write_timeout: Duration::from_secs(2), ..ClientOptions::default() };
    let player = scene.player(Speed::Max, client).await;
    let error = player.play(CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, PlayError::Critical(_)), "{error}");
    assert!(error.to_string().contains("no online: closing"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_transaction_sends_its_rollback() {
    let scene = Scene::set(fixture("shop"), 2, Speed::Max, 1).await;
    let records = scene.script.records();
    let victim = records.iter().rfind(|record| record.kind == Kind::Commit).unwrap().clone();
    // Somebody fences it off before its prewrite arrives in TiKV.
    scene.witness.check(&victim, scene.stage.cluster.tso(), true).await;
    let progress = scene.play(Speed::Max).await;
    assert_eq!((progress.aborted, progress.is_faithful()), (1, false));
    let seen = scene.witness.seen();
    let (_, last) = seen.arrived.iter().rfind(|(_, record)| record.start_ts == victim.start_ts).unwrap();
    assert_eq!((last.kind, last.commit_ts), (Kind::Rollback, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pumps_that_come_online_later_are_found() {
    let scene = Scene::set(fixture("shop"), 0, Speed::Max, 1).await;
    register(&scene.etcd.url, 1, "127.0.0.1:1", "paused").await;
    let (pd, cluster_id) = (scene.stage.pd.url(), scene.stage.cluster.id());
    let client = PumpClient::connect(&pd, cluster_id, ClientOptions::default()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), client.wait_online(1)).await.is_err());
    let _pump = scene.witness.pump(&scene.etcd.url, 1).await;
    let online = tokio::time::timeout(Duration::from_secs(120), client.wait_online(1)).await.unwrap();
    assert_eq!(online[0].node_id, "pump-1");
}

#[tokio::test]
async fn an_unreadable_registration_is_named() {
    let scene = Scene::set(fixture("shop"), 0, Speed::Max, 1).await;
    let mut etcd = etcd_client::Client::connect([&scene.etcd.url], None).await.unwrap();
    etcd.put("/tidb-binlog/v1/pumps/broken", "{", None).await.unwrap();
    let client = PumpClient::connect(&scene.stage.pd.url(), 1, ClientOptions::default()).await;
    let error = format!("{:#}", client.unwrap_err());
    assert!(error.contains("/tidb-binlog/v1/pumps/broken"), "{error}");
}
