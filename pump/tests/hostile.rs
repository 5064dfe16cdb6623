//! Peers that declare much and send little.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::convert::Infallible;
use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Frame;
use site::{CLUSTER, Drainer, Site, Txn, channel};
use tidb::ts::Tso;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tower::{Service as _, ServiceExt as _};

/// The beginning of a message, and then nothing for ever.
struct Stalled(Option<Bytes>);

impl hyper::body::Body for Stalled {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Poll::Pending,
        }
    }
}

type Call = tonic::codegen::http::Request<tonic::body::Body>;

fn call(body: tonic::body::Body) -> Call {
    let call = tonic::codegen::http::Request::post("/binlog.Pump/WriteBinlog");
    call.header("content-type", "application/grpc").header("te", "trailers").body(body).unwrap()
}

/// Sends these bytes, and nothing more.
fn sends(bytes: Vec<u8>) -> Call {
    call(tonic::body::Body::new(Stalled(Some(bytes.into()))))
}

/// Five bytes that announce a message.
fn head(length: u32) -> Vec<u8> {
    let mut head = vec![0];
    head.extend_from_slice(&length.to_be_bytes());
    head
}

fn claim(length: u32) -> Call {
    sends(head(length))
}

/// Keeps one request more under way than there are `places`, none of which says anything, until one is refused for want of
/// a place. That answer is handed back, and those that hold the places. Nobody else asks meanwhile, who might take a place
/// from them.
async fn crowd(
    at: std::net::SocketAddr,
    places: usize,
    paths: &[&'static str],
    refusal: &str,
) -> (tonic::Status, tokio::task::JoinSet<tonic::Status>) {
    let mut paths = paths.iter().cycle();
    let mut silent = tokio::task::JoinSet::new();
    let refused = site::soon("there is no place left", async {
        loop {
            while silent.len() <= places {
                let mut channel = channel(at);
                let mut request = call(tonic::body::Body::new(Stalled(None)));
                *request.uri_mut() = paths.next().unwrap().parse().unwrap();
                silent.spawn(async move {
                    let response = channel.ready().await.unwrap().call(request).await.unwrap();
                    tonic::Status::from_header_map(response.headers()).unwrap()
                });
            }
            let answered = silent.join_next().await.unwrap().unwrap();
            if answered.message().contains(refusal) {
                break answered;
            }
        }
    })
    .await;
    (refused, silent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_above_the_limit_is_refused_before_it_is_sent() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.max_message_size = bytesize::ByteSize::mib(1);
    let pump = site.launch(config).await;
    pump.online().await;
    let mut channel = channel(pump.at.addr);
    let response = channel.ready().await.unwrap().call(claim(u32::MAX)).await.unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("message larger than max"), "{}", status.message());
    pump.tidb().probe().await.unwrap();
    pump.stop().await.unwrap();
}

/// Messages above the limit that are sent all the same, one after the other on one connection: each fails alone.
#[tokio::test(flavor = "multi_thread")]
async fn oversize_messages_leave_their_connection_alone() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.max_message_size = bytesize::ByteSize::mib(1);
    let pump = site.launch(config).await;
    pump.online().await;
    let mut tidb = pump.tidb();
    let payload = Bytes::from(vec![7; 2 << 20]);
    for round in 0..30 {
        let status = tidb.send(CLUSTER, payload.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{round}: {status}");
        tidb.probe().await.unwrap();
    }
    pump.stop().await.unwrap();
}

/// A large binlog whose sender stops in the middle: others of its size are held and then refused, commits pass as ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_holds_large_binlogs_then_aborts_them_and_lets_commits_pass() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.receive_budget = bytesize::ByteSize::mib(1);
    let pump = site.launch(config).await;
    pump.online().await;
    // Larger than the budget, and nearly all of it there.
    let mut beginning = vec![0];
    beginning.extend_from_slice(&(1_u32 << 20).to_be_bytes());
    beginning.resize(1 << 20, 7);
    let mut peer = channel(pump.at.addr);
    let stalled = tokio::spawn(async move { peer.ready().await.unwrap().call(sends(beginning)).await });
    let tidb = pump.tidb();
    let large = async || {
        let txn = Txn::begin(&site.cluster, vec![7; 300 << 10]);
        tidb.write(&txn.prewrite()).await
    };
    let refused = site::soon("a call is aborted", async {
        loop {
            // Until the other one is there, they pass.
            let began = Instant::now();
            match large().await {
                Ok(()) => continue,
                Err(status) => break (status, began.elapsed()),
            }
        }
    });
    let commits = async {
        let mut longest = Duration::ZERO;
        for i in 0..200 {
            let began = Instant::now();
            Txn::begin(&site.cluster, format!("small {i}")).run(&site.cluster, &tidb).await;
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        longest
    };
    let ((refused, held), longest) = tokio::join!(refused, commits);
    assert_eq!(refused.code(), Code::Aborted);
    assert!(refused.message().contains("overloaded"), "{}", refused.message());
    assert!(held >= Duration::from_secs(4), "{held:?}");
    assert!(longest < held, "{longest:?} for two small binlogs, {held:?} for the large one");
    // A peer that stalls is given up, and its share comes back.
    let response = site::soon("the stalled call is given up", stalled).await.unwrap().unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("sent nothing"), "{}", status.message());
    large().await.unwrap();
    pump.stop().await.unwrap();
}

/// A claim costs the claimant nothing, so it takes nothing from others; and who only drips is cut off although never silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_drip_takes_nothing_from_others_and_is_cut_off() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.receive_budget = bytesize::ByteSize::mib(1);
    let pump = site.launch(config).await;
    pump.online().await;
    let mut dripping = tokio::task::JoinSet::new();
    for length in [1 << 20, 700 << 10, 100 << 10] {
        let mut peer = channel(pump.at.addr);
        let (drops, arriving) = tokio::sync::mpsc::channel(1);
        dripping.spawn(async move {
            let feed = async move {
                drops.send(head(length)).await.ok();
                let mut seconds = tokio::time::interval(Duration::from_secs(1));
                loop {
                    seconds.tick().await;
                    if drops.send(vec![7]).await.is_err() {
                        return;
                    }
                }
            };
            let request = call(tonic::body::Body::new(Dripping(arriving)));
            let peer = peer.ready().await.unwrap();
            tokio::select! {
                response = peer.call(request) => response.unwrap(),
                () = feed => panic!("the pump stopped reading and did not say why"),
            }
        });
    }
    let tidb = pump.tidb();
    let first = async {
        loop {
            let large = Txn::begin(&site.cluster, vec![7; 300 << 10]);
            large.run(&site.cluster, &tidb).await;
            if let Some(response) = dripping.try_join_next() {
                break response.unwrap();
            }
        }
    };
    assert_given_up(&site::soon("one is cut off", first).await);
    for response in site::soon("all are cut off", dripping.join_all()).await {
        assert_given_up(&response);
    }
    pump.stop().await.unwrap();
}

fn assert_given_up(response: &tonic::codegen::http::Response<tonic::body::Body>) {
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("too slowly"), "{}", status.message());
}

/// What a channel brings, and never an end.
struct Dripping(tokio::sync::mpsc::Receiver<Vec<u8>>);

impl hyper::body::Body for Dripping {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|data| Some(Ok(Frame::data(data?.into()))))
    }
}

/// A little gzip that unpacks to much is refused at the limit, and costs no more memory than the limit; so is one that says
/// that it unpacks to less.
#[tokio::test(flavor = "multi_thread")]
async fn a_gzip_bomb_is_refused_at_the_limit() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.max_message_size = bytesize::ByteSize::mib(1);
    let pump = site.launch(config).await;
    pump.online().await;
    let mut packed = Vec::new();
    let mut encoder =
        flate2::read::GzEncoder::new(std::io::repeat(0).take(64 << 20), flate2::Compression::best());
    encoder.read_to_end(&mut packed).unwrap();
    assert!(packed.len() < 100_000);
    let mut liar = packed.clone();
    let trailer = liar.len() - 4;
    liar[trailer..].copy_from_slice(&1000_u32.to_le_bytes());
    let mut cut_off = packed.clone();
    cut_off.truncate(2);
    for (packed, code, text) in [
        (packed, Code::ResourceExhausted, "message larger than max"),
        (liar, Code::Internal, "does not unpack to the 1000 bytes"),
        (cut_off, Code::Internal, "cut off"),
    ] {
        let mut message = vec![1];
        message.extend_from_slice(&(packed.len() as u32).to_be_bytes());
        message.extend_from_slice(&packed);
        let mut request = call(tonic::body::Body::new(Whole(Some(message.into()))));
        request.headers_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        let mut channel = channel(pump.at.addr);
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(text), "{}", status.message());
    }
    pump.tidb().probe().await.unwrap();
    pump.stop().await.unwrap();
}

/// A message, and the end.
struct Whole(Option<Bytes>);

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }
}

/// Calls that say nothing are counted as well: beyond the limit others are told ABORTED, and the silent ones are given up.
#[tokio::test(flavor = "multi_thread")]
async fn silent_calls_are_bounded() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.receive_budget = bytesize::ByteSize::kib(64);
    let calls = pump::service::calls_within(64 << 10);
    let pump = site.launch(config).await;
    pump.online().await;
    let (refused, silent) = crowd(pump.at.addr, calls, &["/binlog.Pump/WriteBinlog"], "too many calls").await;
    assert_eq!(refused.code(), Code::Aborted, "{refused}");
    for status in site::soon("they are given up", silent.join_all()).await {
        assert_eq!(status.code(), Code::Aborted, "{status}");
        assert!(!status.message().contains("too many calls"), "{status}");
    }
    pump.tidb().probe().await.unwrap();
    pump.stop().await.unwrap();
}

/// Drainers' streams hold read-ahead each, so there is an end to them, and a place is free again when one ends.
#[tokio::test(flavor = "multi_thread")]
async fn pull_streams_are_bounded() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.max_pull_streams = 2;
    let pump = site.launch(config).await;
    pump.online().await;
    let first = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    let _second = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    let refused = Drainer::open(pump.at.addr, Tso::ZERO).await.map(drop).unwrap_err();
    assert!(refused.message().contains("max-pull-streams"), "{}", refused.message());
    drop(first);
    site::until("a place is free", || async { Drainer::open(pump.at.addr, Tso::ZERO).await.is_ok() }).await;
    pump.stop().await.unwrap();
}

/// Pulls that never say what to pull count as streams from the start, and are given up.
#[tokio::test(flavor = "multi_thread")]
async fn silent_pulls_are_bounded_and_given_up() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.max_pull_streams = 2;
    let pump = site.launch(config).await;
    pump.online().await;
    let paths = ["/sluice.pump.v1.Drain/Pull", "/binlog.Pump/PullBinlogs"];
    let (refused, silent) = crowd(pump.at.addr, 2, &paths, "max-pull-streams").await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    for status in site::soon("they are given up", silent.join_all()).await {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
    let mut drainer = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    drainer.reach(site.cluster.tso()).await;
    pump.stop().await.unwrap();
}

/// A peer that connects and does not get to the point is cut off: at once without a word, in the middle of the preface, in
/// the middle of an HTTP/1.1 header.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_beginnings_are_cut_off() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let mut peers = tokio::task::JoinSet::new();
    for beginning in ["", "PRI * HTTP/2.0\r\n", "GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let addr = pump.at.addr;
        peers.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            stream.write_all(beginning.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // Closed or reset, with or without a last word.
            let _ = stream.read_to_end(&mut answer).await;
        });
    }
    site::soon("all are cut off", peers.join_all()).await;
    pump.tidb().probe().await.unwrap();
    pump.stop().await.unwrap();
}

/// Beyond `max-connections` a peer waits for another one to leave; nobody is thrown out for it.
#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait() {
    let site = Site::start().await;
    let pump = site.launch(pump::config::Config { max_connections: 2, ..site.config("p1") }).await;
    pump.online().await;
    const ASK: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: pump\r\n\r\n";
    let ask = async |connection: &mut tokio::net::TcpStream| {
        connection.write_all(ASK).await.unwrap();
        let mut first = [0; 12];
        connection.read_exact(&mut first).await.map(|_| first)
    };
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut connection = tokio::net::TcpStream::connect(pump.at.addr).await.unwrap();
        assert_eq!(&site::soon("an answer", ask(&mut connection)).await.unwrap(), b"HTTP/1.1 200");
        connections.push(connection);
    }
    // The kernel takes it; the pump does not yet.
    let mut third = tokio::net::TcpStream::connect(pump.at.addr).await.unwrap();
    let mut waiting = std::pin::pin!(ask(&mut third));
    tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.unwrap_err();
    // Those inside are served meanwhile.
    assert_eq!(&site::soon("an answer", ask_again(&mut connections[1], ASK)).await, b"HTTP/1.1 200");
    connections.remove(0);
    assert_eq!(&site::soon("an answer to the third", waiting).await.unwrap(), b"HTTP/1.1 200");
    drop(connections);
    pump.stop().await.unwrap();
}

/// Asks once more over a connection whose last answer was begun to be read.
async fn ask_again(connection: &mut tokio::net::TcpStream, ask: &[u8]) -> [u8; 12] {
    connection.write_all(ask).await.unwrap();
    let mut window = Vec::new();
    loop {
        window.push(connection.read_u8().await.unwrap());
        if let Some(last) = window.last_chunk::<12>()
            && last == b"HTTP/1.1 200"
        {
            return *last;
        }
    }
}
