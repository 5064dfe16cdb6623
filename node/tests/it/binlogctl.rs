//! `binlogctl` as a process, against a real etcd behind a stand-in for PD.

use std::process::Output;
use std::sync::Arc;

use axum::extract::Path;
use axum::routing::put;
use axum::{Json, Router};
use node::registry::{NodeKind, NodeRecord, NodeState, Registry, Side};
use node::serve::{Listener, ServeLimits, serve};
use node::shutdown::Shutdown;
use serde_json::{Value, json};
use tidb::ts::{CommitTs, Tso};
use tokio::process::Command;

use crate::rig::etcd::Etcd;
use crate::rig::pd::{Cluster, MockPd};
use crate::rig::{free_port, soon};

struct Rig {
    registry: Registry,
    pd: MockPd,
    _cluster: Arc<Cluster>,
    _etcd: Etcd,
}

/// PD's present: 2019-04-28 09:30:00 UTC.
const NOW_MS: u64 = 1_556_443_800_000;

impl Rig {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let (pd, cluster) = MockPd::start(etcd.url()).await;
        cluster.clock.store(NOW_MS << 18, std::sync::atomic::Ordering::SeqCst);
        Self { registry: Registry::new(etcd.client().await), pd, _cluster: cluster, _etcd: etcd }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        binlogctl(&[&["-pd-urls", self.pd.url.as_str()], arguments].concat()).await
    }

    async fn register(&self, id: &str, host: &str, state: NodeState) -> NodeRecord {
        let mut record = NodeRecord::new(id, host, state);
        record.max_commit_ts = CommitTs(Tso::from_parts(NOW_MS - 4_500, 0));
        record.update_ts = Tso::from_parts(NOW_MS - 3_000, 0);
        self.registry.put(NodeKind::Pump, &record).await.unwrap();
        record
    }
}

async fn binlogctl(arguments: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_binlogctl")).args(arguments).kill_on_drop(true).output();
    soon("binlogctl's end", run).await.unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn pumps_in_a_table_and_as_json() {
    let rig = Rig::start().await;
    let empty = rig.run(&["-cmd", "pumps"]).await;
    assert_eq!((code(&empty), out(&empty).contains("no pump is registered")), (0, true));

    rig.register("pump-1", "10.0.0.1:8250", NodeState::Online).await;
    rig.register("pump-2", "10.0.0.2:8250", NodeState::Offline).await;
    let listed = rig.run(&["-cmd", "pumps"]).await;
    assert_eq!(code(&listed), 0, "{}", err(&listed));
    let max = (NOW_MS - 4_500) << 18;
    assert_eq!(
        out(&listed),
        format!(
            "NodeID  Addr           State          MaxCommitTS  UpdateTime                 Alive   Lag\n\
             pump-1  10.0.0.1:8250  online  {max}  2019-04-28 09:29:57 +0000  yes    4.5s\n\
             (1 offline; -show-offline-nodes shows them)\n"
        )
    );
    let listed =
        rig.run(&["pumps", "--output", "json", "-show-offline-nodes", "-time-zone", "Asia/Shanghai"]).await;
    let nodes: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        nodes[0],
        json!({
            "NodeID": "pump-1", "Addr": "10.0.0.1:8250", "State": "online", "MaxCommitTS": max,
            "UpdateTime": "2019-04-28 17:29:57 +0800", "Alive": true, "LagSeconds": 4.5, "Version": null, "Facts": null,
        })
    );
    assert_eq!(nodes[1]["State"], "offline");
    assert_eq!(nodes.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn drainers_and_those_who_stand_by() {
    let rig = Rig::start().await;
    let leader = NodeRecord {
        max_commit_ts: CommitTs::default(),
        ..NodeRecord::new("d1", "h:8249", NodeState::Online)
    };
    rig.registry.put(NodeKind::Drainer, &leader).await.unwrap();
    let mut side = Side::new("d2", "h:8259");
    side.facts = json!({ "topic": "t" });
    let _presence = rig.registry.announce(NodeKind::Drainer, side).await.unwrap();
    let listed = rig.run(&["drainers", "--output=json"]).await;
    let nodes: Value = serde_json::from_slice(&listed.stdout).unwrap();
    // Never written to since registration: neither alive nor behind by anything that could be told.
    assert_eq!((&nodes[0]["Alive"], &nodes[0]["LagSeconds"]), (&json!(false), &json!(null)));
    assert_eq!((&nodes[1]["State"], &nodes[1]["Alive"]), (&json!("standby"), &json!(true)));
    assert_eq!(nodes[1]["Facts"], json!({ "topic": "t" }));
}

#[tokio::test]
async fn generate_meta_writes_the_savepoint() {
    let rig = Rig::start().await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.drainer");
    let done = rig.run(&["-cmd", "generate_meta", "-data-dir", data.to_str().unwrap()]).await;
    assert_eq!(code(&done), 0, "{}", err(&done));
    let written = std::fs::read_to_string(data.join("savepoint")).unwrap();
    assert_eq!(written, format!("commitTS = {}\n", NOW_MS << 18));
    assert!(out(&done).starts_with(&written), "{}", out(&done));
    let again = rig.run(&["generate_meta", "-data-dir", data.to_str().unwrap(), "--output", "json"]).await;
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(report["CommitTS"], json!((NOW_MS << 18) + 1));
    assert_eq!(node::savepoint::read(&data).unwrap(), Some(CommitTs::new((NOW_MS << 18) + 1)));
    // A directory that cannot be one.
    let failed = rig.run(&["generate_meta", "-data-dir", "/dev/null/x"]).await;
    assert_eq!(code(&failed), 1);
    assert!(err(&failed).contains("/dev/null/x"), "{}", err(&failed));
}

#[tokio::test]
async fn update_rewrites_only_the_state() {
    let rig = Rig::start().await;
    let before = rig.register("p", "h:1", NodeState::Online).await;
    let done = rig.run(&["-cmd", "update-pump", "-node-id", "p", "-state", "offline"]).await;
    assert_eq!(code(&done), 0, "{}", err(&done));
    let after = rig.registry.get(NodeKind::Pump, "p").await.unwrap().unwrap().record.unwrap();
    assert_eq!(after, NodeRecord { state: NodeState::Offline, ..before });
    let unknown = rig.run(&["-cmd", "update-pump", "-node-id", "q", "-state", "offline"]).await;
    assert_eq!(code(&unknown), 1);
    assert!(err(&unknown).contains("`q`") && err(&unknown).contains("p are"), "{}", err(&unknown));
}

/// A node that answers as the original's do: always 200, the truth in the body. `pause` is accepted and then done, `close`
/// refused.
async fn fake_node(registry: Registry) -> (String, Shutdown) {
    let handler = put(move |Path((id, action)): Path<(String, String)>| {
        let registry = registry.clone();
        async move {
            if action == "close" {
                return Json(json!({ "message": "this pump is not online", "code": 3, "data": null }));
            }
            tokio::spawn(async move {
                registry.set_state(NodeKind::Pump, &id, NodeState::Pausing).await.unwrap();
                registry.set_state(NodeKind::Pump, &id, NodeState::Paused).await.unwrap();
            });
            Json(json!({ "message": format!("apply action {action} success!"), "code": 200, "data": null }))
        }
    });
    let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shutdown = Shutdown::new();
    let router = Router::new().route("/state/{id}/{action}", handler);
    tokio::spawn(serve(vec![listener], router, None, ServeLimits::default(), shutdown.clone()));
    (address, shutdown)
}

#[tokio::test]
async fn a_nodes_answer_is_believed() {
    let rig = Rig::start().await;
    let (address, _node) = fake_node(rig.registry.clone()).await;
    rig.register("host:8250", &address, NodeState::Online).await;
    let done = rig.run(&["pause-pump", "host:8250", "--wait"]).await;
    assert_eq!(code(&done), 0, "{}", err(&done));
    assert!(out(&done).contains("apply action pause success!"), "{}", out(&done));
    assert!(out(&done).contains("host:8250 is paused"), "{}", out(&done));

    let refused = rig.run(&["-cmd", "offline-pump", "-node-id", "host:8250"]).await;
    assert_eq!((code(&refused), out(&refused).as_str()), (1, ""));
    assert!(err(&refused).contains("this pump is not online"), "{}", err(&refused));
    let refused = rig.run(&["offline-pump", "host:8250", "--output", "json"]).await;
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().contains("code 3"), "{error}");

    // Accepted, but it never gets there.
    rig.register("stuck", &address, NodeState::Online).await;
    let waited = rig.run(&["pause-drainer", "stuck", "--wait=100ms"]).await;
    assert_eq!(code(&waited), 1, "no drainer has that id");
    rig.register("dead", &format!("127.0.0.1:{}", free_port()), NodeState::Online).await;
    let silent = rig.run(&["pause-pump", "dead"]).await;
    assert_eq!(code(&silent), 1);
    assert!(err(&silent).contains("does not answer"), "{}", err(&silent));
}

#[tokio::test]
async fn exit_status_and_version() {
    let version = binlogctl(&["-V"]).await;
    assert_eq!((code(&version), out(&version)), (0, format!("binlogctl {}\n", env!("CARGO_PKG_VERSION"))));
    let help = binlogctl(&["-help"]).await;
    assert_eq!(code(&help), 0);
    assert!(out(&help).contains("offline-pump"), "{}", out(&help));
    let wrong = binlogctl(&["-cmd", "dance"]).await;
    assert_eq!(code(&wrong), 2);
    let url = format!("http://127.0.0.1:{}", free_port());
    let nobody = binlogctl(&["-pd-urls", &url]).await;
    assert_eq!((code(&nobody), out(&nobody).as_str()), (1, ""));
    assert!(err(&nobody).contains(&url), "{}", err(&nobody));
}
