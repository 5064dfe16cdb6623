//! An original pump client, drainer or operator's tool must not notice: recorded conversations, transports, pages, metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use node::tls::Security;
use prost::Message as _;
use schemas::binlog::pump_client::PumpClient;
use schemas::binlog::{Binlog, PrewriteValue, PullBinlogResp, TableMutation, WriteBinlogReq};
use simulator::cluster::Cluster;
use simulator::pd::MockPd;
use simulator::tikv::MockTikv;
use site::{CLUSTER, Drainer, Process, Site, Txn, is_fake, soon, until};
use tidb::ts::{CommitTs, Tso};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::codec::CompressionEncoding;

/// A moment just before the recorded conversations, whose timestamps are their own.
const RECORDED_MS: u64 = 1_700_000_000_000;

/// One call of a recorded conversation: its name, and the writes of the client's connection.
type Call = (String, Vec<Bytes>);

fn recorded(name: &str) -> Vec<Call> {
    let path =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/recorded").join(name);
    let mut calls: Vec<Call> = Vec::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if let Some(name) = line.strip_prefix("# ") {
            calls.push((name.to_owned(), Vec::new()));
        } else {
            let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            calls.last_mut().unwrap().1.push((0..line.len()).step_by(2).map(byte).collect());
        }
    }
    calls
}

/// The client's end of an HTTP/2 connection, which understands just enough of the answers.
struct Replay {
    stream: TcpStream,
    received: Vec<u8>,
}

/// What came on one stream: gRPC messages, and whether it is over.
#[derive(Default)]
struct Answer {
    data: Vec<u8>,
    ended: bool,
}

impl Replay {
    async fn connect(addr: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(addr).await.unwrap(), received: Vec::new() }
    }

    /// Takes frames until `done` says so of the answer on a stream.
    async fn until(&mut self, id: u32, answer: &mut Answer, done: impl Fn(&Answer) -> bool) {
        soon("the pump answers", async {
            while !done(answer) {
                let Some(frame) = self.frame() else {
                    assert!(self.stream.read_buf(&mut self.received).await.unwrap() > 0, "the pump hung up");
                    continue;
                };
                let (kind, flags, stream, payload) = frame;
                assert!(kind != 3 && kind != 7, "RST_STREAM or GOAWAY: {payload:?}");
                if stream == id {
                    if kind == 0 {
                        answer.data.extend_from_slice(&payload);
                    }
                    answer.ended |= kind <= 1 && flags & 1 != 0;
                }
            }
        })
        .await;
    }

    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head: [u8; 9] = self.received.get(..9)?.try_into().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if self.received.len() < 9 + length {
            return None;
        }
        let frame: Vec<u8> = self.received.drain(..9 + length).collect();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, frame[9..].to_vec()))
    }

    /// Sends the first call's beginning up to the client's settings, and waits for the pump's.
    async fn begin(&mut self, writes: &[Bytes]) {
        for write in &writes[..2] {
            self.stream.write_all(write).await.unwrap();
        }
        soon("the pump's settings", async {
            while self.received.len() < 9 {
                self.stream.read_buf(&mut self.received).await.unwrap();
            }
        })
        .await;
    }

    async fn send(&mut self, writes: &[Bytes]) {
        for write in writes {
            self.stream.write_all(write).await.unwrap();
        }
    }
}

async fn site_of_the_recording() -> (Site, site::Running) {
    let site = Site::start().await;
    site.cluster.freeze(Tso::from_parts(RECORDED_MS, 0));
    let pump = site.pump("p1").await;
    (site, pump)
}

/// What TiDB's Go client sent, byte for byte, gets the answers that it understands; and so does the original drainer,
/// with and without gzip.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_conversations_of_the_originals() {
    let (site, pump) = site_of_the_recording().await;
    let calls = recorded("tidb.hex");
    let names: Vec<_> = calls.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["probe", "prewrite", "prewrite to be rolled back", "commit", "rollback"]);
    let mut tidb = Replay::connect(pump.at.addr).await;
    tidb.begin(&calls[0].1).await;
    for (index, (name, writes)) in calls.iter().enumerate() {
        tidb.send(if index == 0 { &writes[2..] } else { writes }).await;
        let mut answer = Answer::default();
        tidb.until(1 + 2 * index as u32, &mut answer, |answer| answer.ended).await;
        // An empty WriteBinlogResp; a failure would have no message at all.
        assert_eq!(answer.data, [0; 5], "{name}");
    }
    site.cluster.freeze(Tso::from_parts(RECORDED_MS + 5_000, 0));

    for name in ["drainer.hex", "drainer-gzip.hex"] {
        let [(_, writes)] = &recorded(name)[..] else { panic!("{name}") };
        let mut drainer = Replay::connect(pump.at.addr).await;
        drainer.begin(writes).await;
        drainer.send(&writes[2..]).await;
        let mut answer = Answer::default();
        let committed = loop {
            let before = answer.data.len();
            drainer.until(1, &mut answer, |answer| answer.data.len() > before).await;
            assert!(!answer.ended);
            let pulled = messages(&answer.data);
            if let Some(committed) = pulled.into_iter().find(|binlog| !is_fake(binlog)) {
                break committed;
            }
        };
        assert_eq!(committed.start_ts, Some(Tso::from_parts(RECORDED_MS + 1_000, 1).to_i64()), "{name}");
        assert_eq!(committed.commit_ts, Some(Tso::from_parts(RECORDED_MS + 2_000, 3).to_i64()), "{name}");
        assert_eq!(&committed.prewrite_value.unwrap()[..], b"\x08\x65\x12\x07\x08\x2d\x12\x03row", "{name}");
        assert_eq!((committed.ddl_job_id, committed.ddl_schema_state), (Some(0), Some(0)), "{name}");
    }
    pump.stop().await.unwrap();
}

/// The whole gRPC messages in these bytes.
fn messages(mut data: &[u8]) -> Vec<Binlog> {
    let mut messages = Vec::new();
    while let Some((head, rest)) = data.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some((body, rest)) = rest.split_at_checked(length) else { break };
        let plain = if head[0] == 1 { gunzip(body) } else { body.to_vec() };
        let entity = PullBinlogResp::decode(&plain[..]).unwrap().entity.unwrap();
        messages.push(Binlog::decode(entity.payload).unwrap());
        data = rest;
    }
    messages
}

fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed), &mut plain).unwrap();
    plain
}

/// HTTP/1.1 as Go's client sends it, on the port that speaks gRPC.
#[tokio::test(flavor = "multi_thread")]
async fn http_as_the_original_binlogctl_speaks_it() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let ask = async |head: &str| {
        let mut stream = TcpStream::connect(pump.at.addr).await.unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\
             Accept-Encoding: gzip\r\nConnection: close\r\n\r\n",
            pump.at.addr
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    let refused = ask("PUT /state/other/pause").await;
    assert!(refused.starts_with("HTTP/1.1 200 OK\r\n") && refused.contains(r#""code":3"#), "{refused}");
    let accepted = ask("PUT /state/p1/pause").await;
    assert!(accepted.starts_with("HTTP/1.1 200 OK\r\n"), "{accepted}");
    assert!(accepted.contains(r#""message":"apply action pause success!""#), "{accepted}");
    soon("the pump ends", pump.task).await.unwrap().unwrap();
}

/// The original's routes that change something are open to everybody, until a token is configured.
#[tokio::test(flavor = "multi_thread")]
async fn state_changes_want_the_token_where_there_is_one() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.admin =
        serde_json::from_value(serde_json::json!({ "addr": "127.0.0.1:0", "token": "s3cret" })).unwrap();
    let pump = site.launch(config).await;
    pump.online().await;
    let http = Security::default().http_client(site::PATIENCE).unwrap();
    let put = async |path: &str, token: Option<&str>| {
        let request = http.put(format!("http://{}{path}", pump.at.addr));
        let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(put("/state/p1/pause", None).await, 401);
    assert_eq!(put("/state/p1/pause", Some("guess")).await, 401);
    let status = http.get(format!("http://{}/status", pump.at.addr)).send().await.unwrap().status();
    assert_eq!(status, 200);
    assert_eq!(put("/state/p1/pause", Some("s3cret")).await, 200);
    soon("the pump ends", pump.task).await.unwrap().unwrap();
}

/// The page about one binlog: shapes for everybody, contents only where allowed.
#[tokio::test(flavor = "multi_thread")]
async fn a_binlog_is_shown_without_its_contents() {
    let site = Site::start().await;
    let secret = "card 4111 1111";
    let rows = TableMutation {
        table_id: Some(45),
        inserted_rows: vec![Bytes::from(secret)],
        sequence: vec![0],
        ..TableMutation::default()
    };
    let value = PrewriteValue { schema_version: Some(101), mutations: vec![rows] }.encode_to_vec();
    let mut stored: Option<(Txn, CommitTs)> = None;
    for show_row_values in [false, true] {
        let config = pump::config::Config { show_row_values, ..site.config("p1") };
        let pump = site.launch(config).await;
        pump.online().await;
        if stored.is_none() {
            let txn = Txn::begin(&site.cluster, value.clone());
            let commit_ts = txn.run(&site.cluster, &pump.tidb()).await;
            stored = Some((txn, commit_ts));
        }
        let (txn, commit_ts) = stored.as_ref().unwrap();
        let http = Security::default().http_client(site::PATIENCE).unwrap();
        let get = async |ts: String| {
            let answer = http.get(format!("http://{}/debug/binlog/{ts}", pump.at.addr)).send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        for ts in [txn.start_ts.get(), commit_ts.get()] {
            let (status, page) = get(ts.to_string()).await;
            assert_eq!(status, 200, "{page}");
            assert!(page.contains(&format!("start_ts: {}", txn.start_ts)), "{page}");
            assert!(page.contains("table 45: 1 rows inserted (14 bytes)"), "{page}");
            assert_eq!(page.contains(&hex), show_row_values, "{page}");
            assert_eq!(page.contains("TiKV: Committed("), show_row_values, "{page}");
            assert!(!page.contains(secret));
        }
        assert_eq!(get("5".into()).await.0, 404);
        assert_eq!(get("yesterday".into()).await.0, 400);
        // Passed by the watermark, it is only in the index after the next start.
        Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap().reach(commit_ts.0).await;
        pump.stop().await.unwrap();
    }
}

/// Binlogs that this pump could not serve are not passed over in silence.
#[tokio::test(flavor = "multi_thread")]
async fn an_original_pumps_data_is_refused() {
    let site = Site::start().await;
    let config = site.config("p1");
    let values = config.data_dir.join("value");
    std::fs::create_dir_all(&values).unwrap();
    std::fs::write(values.join("000000.vlog"), "binlogs").unwrap();
    let why = site.fails(config.clone()).await;
    assert!(why.contains("value/000000.vlog") && why.contains("another data-dir"), "{why}");
    // Drained and moved away, it is in nobody's way.
    std::fs::rename(&values, config.data_dir.join("value.old")).unwrap();
    site.launch(config).await.stop().await.unwrap();
}

/// TiDB's `binlog-socket`.
#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_as_the_port_does() {
    let site = Site::start().await;
    let socket = site.dir.path().join("pump.sock");
    for spelled in [format!("unix://{}", socket.display()), socket.display().to_string()] {
        let config = pump::config::Config { socket: spelled, ..site.config("p1") };
        let pump = site.launch(config).await;
        pump.online().await;
        let channel = node::dial::channel(&[format!("unix://{}", socket.display())], &Security::default());
        let tidb = site::Tidb { client: PumpClient::new(channel.unwrap()) };
        let commit_ts = Txn::begin(&site.cluster, "by socket").run(&site.cluster, &tidb).await;
        Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap().reach(commit_ts.0).await;
        pump.stop().await.unwrap();
        assert!(!socket.try_exists().unwrap());
    }
}

/// The original's metrics under their own names, for dashboards and alerts that exist.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_originals_names() {
    let site = Site::start().await;
    let process = Process::start(&site, "p1").await;
    let tidb = process.tidb();
    let commit_ts = Txn::begin(&site.cluster, "x").run(&site.cluster, &tidb).await;
    tidb.send(CLUSTER, Bytes::from_static(b"\xff\xff")).await.unwrap_err();
    // A pull that ends is a call that ended.
    drop(site::pull_original(&mut process.tidb().client, Tso::ZERO, commit_ts.0).await.unwrap());
    let http = Security::default().http_client(site::PATIENCE).unwrap();
    let wanted = [
        r#"binlog_pump_rpc_duration_seconds_bucket{method="WriteBinlog",label="succ",le="0.00005"}"#,
        r#"binlog_pump_rpc_duration_seconds_count{method="WriteBinlog",label="fail"} "#,
        r#"binlog_pump_rpc_duration_seconds_count{method="PullBinlogs",label="succ"} 1"#,
        "binlog_pump_loss_binlog_count ",
        "binlog_pump_storage_max_commit_ts ",
        r#"binlog_pump_storage_storage_size_bytes{type="capacity"}"#,
        r#"binlog_pump_storage_storage_size_bytes{type="available"}"#,
        "binlog_pump_storage_query_tikv_count ",
        r#"binlog_pump_storage_error_count{type="write_binlog"} "#,
        r#"binlog_pump_storage_error_count{type="read_value"} 0"#,
        r#"binlog_pump_storage_error_count{type="batch_write_kv"} 0"#,
        r#"binlog_pump_storage_error_count{type="feed_pre_write_value"} 0"#,
        r#"binlog_pump_storage_write_binlog_size_bucket{label="single",le="16"}"#,
        r#"binlog_pump_storage_write_binlog_size_bucket{label="batch",le="16"}"#,
        r#"binlog_pump_storage_write_binlog_duration_time_bucket{label="batch""#,
        "binlog_pump_storage_deleted_kv_total 0",
        r#"binlog_pump_storage_slow_chaser_count{type="turned_on"} 0"#,
        "process_resident_memory_bytes",
    ];
    // On the pump's port, where Prometheus finds the original's, and on the admin listener.
    for listener in [process.addr, process.admin] {
        until("every metric is there", || async {
            let page = http.get(format!("http://{listener}/metrics")).send().await.unwrap();
            let page = page.text().await.unwrap();
            let missing = wanted.iter().find(|name| !page.contains(**name));
            missing.inspect(|name| println!("not yet: {name}")).is_none()
        })
        .await;
    }
    process.kill();
}

struct Authority {
    dir: tempfile::TempDir,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages =
            vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
        let issuer =
            rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.path().join(name))
    }

    fn issue(&self, name: &str) -> Security {
        let mut params =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let security = Security {
            ssl_ca: self.file("ca.pem"),
            ssl_cert: self.file(&format!("{name}.pem")),
            ssl_key: self.file(&format!("{name}.key")),
            cert_allowed_cn: Vec::new(),
        };
        std::fs::write(security.ssl_cert.as_ref().unwrap(), certificate.pem()).unwrap();
        std::fs::write(security.ssl_key.as_ref().unwrap(), key.serialize_pem()).unwrap();
        security
    }
}

/// Every link over TLS with client certificates: PD, the etcd in it, TiKV, TiDB and drainers.
#[tokio::test(flavor = "multi_thread")]
async fn tls_on_every_link() {
    let authority = Authority::new();
    let allowed = vec!["pump".to_owned(), "tidb".to_owned(), "pd".to_owned()];
    let serving = |name: &str| Security { cert_allowed_cn: allowed.clone(), ..authority.issue(name) };
    let plain = Site::start().await;
    let cluster = Cluster::live(CLUSTER);
    let tls = |name: &str| serving(name).server_config(&node::serve::ALPN).unwrap().unwrap();
    let _tikv = MockTikv::over_tls(cluster.clone(), "127.0.0.1:0", tls("pd")).await.unwrap();
    let pd =
        MockPd::over_tls(cluster.clone(), "127.0.0.1:0", Some(plain.etcd_url()), tls("pd")).await.unwrap();
    assert!(pd.url().starts_with("https://"));

    let mut config = plain.config("p1");
    config.pd_urls = pd.url();
    config.security = serving("pump");
    let pump = plain.launch(config).await;
    let client = |security: &Security| {
        let channel = node::dial::channel(&[pump.at.addr.to_string()], security).unwrap();
        site::Tidb { client: PumpClient::new(channel) }
    };
    let tidb = client(&authority.issue("tidb"));
    until("the pump is online", || async { tidb.clone().probe().await.is_ok() }).await;
    let txn = Txn::begin(&cluster, "over TLS");
    tidb.write(&txn.prewrite()).await.unwrap();
    cluster.prewrite(txn.start_ts, txn.key.clone());
    // Only TiKV knows that it committed.
    let commit_ts = cluster.commit_now(txn.start_ts).unwrap();
    let mut puller = tidb.client.clone();
    let pulled = site::pull_original(&mut puller, Tso::ZERO, commit_ts.0).await.unwrap();
    assert_eq!(pulled.last().unwrap().1, commit_ts.get());

    // Compressed on the way, both ways.
    let mut zipped = client(&authority.issue("tidb"));
    zipped.client =
        zipped.client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    let txn = Txn::begin(&cluster, vec![7; 1 << 20]);
    let commit_ts = txn.run(&cluster, &zipped).await;
    let pulled = site::pull_original(&mut zipped.client, Tso::ZERO, commit_ts.0).await.unwrap();
    assert_eq!(pulled.last().unwrap().2.prewrite_value, Some(txn.value));

    // Another name, no certificate, no TLS: none gets through.
    let nameless = Security { ssl_ca: authority.file("ca.pem"), ..Security::default() };
    for security in [authority.issue("stranger"), nameless, Security::default()] {
        let mut stranger = client(&security);
        soon("a refusal", stranger.probe()).await.unwrap_err();
    }
    // HTTP/1.1 over the same TLS.
    let http = authority.issue("tidb").http_client(site::PATIENCE).unwrap();
    let page = http.get(format!("https://{}/status", pump.at.addr)).send().await.unwrap();
    assert_eq!(page.json::<serde_json::Value>().await.unwrap()["ErrMsg"], "");
    pump.stop().await.unwrap();
}

/// A payload that our own decoder never saw: fields of a later TiDB stay as they came.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_kept() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let txn = Txn::begin(cluster, "value");
    let mut payload = txn.prewrite().encode_to_vec();
    // Field 100, a string.
    payload.extend_from_slice(&[0xa2, 0x06, 0x03, b'n', b'e', b'w']);
    let request = WriteBinlogReq { cluster_id: CLUSTER, payload: payload.clone().into() };
    tidb.client.clone().write_binlog(request.clone()).await.unwrap();
    // The very same again is the same; anything else is not.
    tidb.client.clone().write_binlog(request).await.unwrap();
    assert!(tidb.write(&txn.prewrite()).await.unwrap_err().message().contains("differs"));
    pump.stop().await.unwrap();
}

/// Runs the binary with these arguments and variables; its exit code and what it says.
fn said(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pump"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Command line before `PUMP_<FLAG>` before the file; told by whose (bad) value is complained about.
#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pump.toml");
    std::fs::write(&file, "addr = \"h:1\"\npd-urls = \"file\"\n").unwrap();
    let config = file.to_str().unwrap();
    let environment = [("PUMP_PD_URLS", "environment")];
    for (arguments, variables, wins) in [
        (&["-config", config, "-pd-urls", "flag"][..], &environment[..], "`flag`"),
        (&["-config", config], &environment, "`environment`"),
        (&["-config", config], &[], "`file`"),
        (&[], &[("PUMP_CONFIG", config)], "`file`"),
    ] {
        let (code, complaint) = said(arguments, variables);
        assert_eq!(code, Some(2), "{complaint}");
        assert!(complaint.contains("pd-urls") && complaint.contains(wins), "{wins}: {complaint}");
    }
}

/// Every flag of the original is understood in its Go spelling; the one complaint is about the value that is wrong.
#[test]
fn every_flag_of_the_original_is_understood() {
    let arguments = "-addr h:8250 -advertise-addr h:8250 -socket unix:///tmp/s -data-dir d -node-id n \
        -heartbeat-interval 2 -gc 7 -fake-binlog-interval 3 -L info -log-file f -metrics-addr m:1 -metrics-interval 15 \
        -max-message-size 1073741824 -enable-debug -binlog-file-size 1 -enable-binlog-slice -binlog-slice-size 1 \
        -log-rotate day -pd-urls wrong";
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    let (code, complaint) = said(&arguments, &[]);
    assert_eq!(code, Some(2));
    assert!(complaint.contains("`wrong` needs a scheme"), "{complaint}");
    let (code, complaint) = said(&["-unheard-of", "x"], &[]);
    assert_eq!(code, Some(2));
    assert!(complaint.contains("unheard-of"), "{complaint}");
}
