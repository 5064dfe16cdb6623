//! `binlogctl` as a process, against a real etcd behind a stand-in for PD.

use std::process::{Output, Stdio};
use std::sync::Arc;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::put;
use axum::{Json, Router};
use node::admin::{Admin, AdminConfig, Health};
use node::registry::{NodeKind, NodeRecord, NodeState, Registry, Side};
use node::serve::{Listener, ServeLimits, serve};
use node::shutdown::Shutdown;
use node::telemetry::Telemetry;
use serde_json::{Value, json};
use tidb::ts::{CommitTs, Tso};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::rig::certs::Authority;
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_binlogctl"));
    let run = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
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

/// A pump's admin listener: a page that names what holds the watermark, and a word that is taken for start_ts 7 only. What it
/// was told comes out at the other end.
async fn fake_pump(config: AdminConfig) -> (String, mpsc::Receiver<String>, Shutdown) {
    let (told, words) = mpsc::channel(16);
    let settle = put(move |Path((start_ts, word)): Path<(u64, String)>| {
        if start_ts != 7 {
            let text = format!("no prewrite of start_ts {start_ts} is open here\n");
            return std::future::ready((StatusCode::NOT_FOUND, text));
        }
        told.try_send(word).unwrap();
        std::future::ready((StatusCode::OK, "start_ts 7 is settled\n".to_owned()))
    });
    let watermark = (NOW_MS - 4_500) << 18;
    let admin = Admin::new(Telemetry::detached(), Health::new())
        .status(move || {
            json!({
                "node_id": "p1", "state": "online", "watermark": watermark, "watermark_lag_seconds": 4.5, "pending": 3,
                "holding_watermark": { "start_ts": 7, "floor": watermark }, "gaps": [],
            })
        })
        .protected(Router::new().route("/settle/{start_ts}/{*word}", settle));
    let bound = admin.bind(&config).await.unwrap();
    let address = bound.local_addr().to_string();
    let shutdown = Shutdown::new();
    tokio::spawn(bound.run(shutdown.clone()));
    (address, words, shutdown)
}

#[tokio::test]
async fn what_holds_a_watermark_is_shown_and_settled() {
    let config = AdminConfig { token: Some("sesame".into()), ..AdminConfig::default() };
    let (address, mut words, _pump) = fake_pump(config).await;
    let watermark = (NOW_MS - 4_500) << 18;
    let shown = binlogctl(&["settle", "show", "-addr", &address]).await;
    assert_eq!(code(&shown), 0, "{}", err(&shown));
    assert_eq!(
        out(&shown),
        format!(
            "pump p1, online: its watermark is {watermark} (2019-04-28 09:29:55 +0000), 4.5 s behind PD\n\
             held by the transaction of start_ts 7 (1970-01-01 00:00:00 +0000)\n\
             which commits above {watermark} (2019-04-28 09:29:55 +0000) if it does; 3 are undecided\n"
        )
    );
    let shown = binlogctl(&["settle", "show", "--addr", &address, "--output", "json"]).await;
    let page: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(page["holding_watermark"], json!({ "start_ts": 7, "floor": watermark }));
    assert_eq!((&page["node_id"], &page["pending"]), (&json!("p1"), &json!(3)));

    let at = ["--addr", address.as_str(), "--yes"];
    let settle = async |words: &[&str]| binlogctl(&[&["settle"], words, &at].concat()).await;
    for (given, expected) in [(vec![], "Authorization"), (vec!["--token", "guessed"], "token is wrong")] {
        let refused = settle(&[&["lost", "--start-ts", "7"][..], &given].concat()).await;
        assert_eq!((code(&refused), out(&refused).as_str()), (1, ""));
        assert!(err(&refused).contains(expected) && err(&refused).contains("401"), "{}", err(&refused));
    }
    for (given, word, what) in [
        (
            &["committed", "--start-ts", "7", "--commit-ts", "9"][..],
            "committed/9",
            "is emitted at commit_ts 9",
        ),
        (&["rolled-back", "--start-ts", "7"], "rolled-back", "is dropped"),
        (&["lost", "--start-ts", "7"], "lost", "is declared lost"),
    ] {
        let done = settle(&[given, &["--token", "sesame"]].concat()).await;
        assert_eq!(code(&done), 0, "{}", err(&done));
        assert!(
            out(&done).starts_with("pump p1: start_ts 7 is settled; it ") && out(&done).contains(what),
            "{}",
            out(&done)
        );
        assert_eq!(words.try_recv().unwrap(), word);
    }
    let done = settle(&["lost", "--start-ts", "7", "--token", "sesame", "--output", "json"]).await;
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        said,
        json!({
            "node_id": "p1", "start_ts": 7, "verdict": "lost", "commit_ts": null, "message": "start_ts 7 is settled",
        })
    );
    words.try_recv().unwrap();
    let refused = settle(&["lost", "--start-ts", "8", "--token", "sesame", "--output", "json"]).await;
    assert_eq!((code(&refused), out(&refused).as_str()), (1, ""));
    let said: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert!(said["error"].as_str().unwrap().contains("no prewrite of start_ts 8 is open here"), "{said}");
    // Nobody agreed, and nobody can be asked.
    let alone =
        binlogctl(&["settle", "lost", "--start-ts", "7", "--token", "sesame", "--addr", &address]).await;
    assert_eq!(code(&alone), 2);
    assert!(err(&alone).contains("--yes"), "{}", err(&alone));
    assert!(words.try_recv().is_err(), "told without anybody's word");
    let nobody = format!("127.0.0.1:{}", free_port());
    let silent = binlogctl(&["settle", "show", "--addr", &nobody]).await;
    assert_eq!(code(&silent), 1);
    assert!(err(&silent).contains(&format!("the pump at {nobody} does not answer")), "{}", err(&silent));
}

#[tokio::test]
async fn a_pump_is_settled_over_tls() {
    let authority = Authority::new("ours");
    let mut security = authority.issue("pump");
    security.cert_allowed_cn = vec!["operator".to_owned()];
    let (address, mut words, _pump) = fake_pump(AdminConfig { security, ..AdminConfig::default() }).await;
    let word = ["settle", "rolled-back", "--start-ts", "7", "--yes", "--addr", &address];
    let ca = authority.path("ca.pem");
    let files = |name: &str| -> Vec<String> {
        let file = |kind: &str| authority.path(&format!("{name}.{kind}")).display().to_string();
        ["-ssl-ca", &ca.display().to_string(), "-ssl-cert", &file("pem"), "-ssl-key", &file("key")]
            .map(str::to_owned)
            .into()
    };
    for name in ["operator", "stranger"] {
        authority.issue(name);
    }
    let run = async |files: Vec<String>| {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        binlogctl(&[&word[..], &files].concat()).await
    };
    assert_eq!(code(&run(vec![]).await), 1, "without TLS");
    assert_eq!(code(&run(files("stranger")).await), 1, "another name");
    assert!(words.try_recv().is_err());
    let done = run(files("operator")).await;
    assert_eq!(code(&done), 0, "{}", err(&done));
    assert_eq!(words.try_recv().unwrap(), "rolled-back");
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
