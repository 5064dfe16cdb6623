//! Peers that declare much and send little.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::convert::Infallible;
use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Frame;
use site::{CLUSTER, Drainer, Site, channel};
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

/// Five bytes that announce a message of `length` bytes.
fn claim(length: u32) -> tonic::codegen::http::Request<tonic::body::Body> {
    let mut head = vec![0];
    head.extend_from_slice(&length.to_be_bytes());
    tonic::codegen::http::Request::post("/binlog.Pump/WriteBinlog")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Stalled(Some(head.into()))))
        .unwrap()
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

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_holds_calls_then_aborts_them() {
    let site = Site::start().await;
    let mut config = site.config("p1");
    config.receive_budget = bytesize::ByteSize::mib(1);
    let pump = site.launch(config).await;
    pump.online().await;
    // Claims the whole budget and sends nothing.
    let mut channel = channel(pump.at.addr);
    let claimed = tokio::spawn(async move { channel.ready().await.unwrap().call(claim(1 << 20)).await });
    let mut tidb = pump.tidb();
    let refused = site::soon("a call is aborted", async {
        loop {
            // Until the claim is in, calls pass.
            if let Err(status) = tidb.probe().await {
                break status;
            }
        }
    })
    .await;
    assert_eq!(refused.code(), Code::Aborted);
    assert!(refused.message().contains("overloaded"), "{}", refused.message());
    // A peer that stalls is given up, and its share comes back.
    let response = site::soon("the stalled call is given up", claimed).await.unwrap().unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("sent nothing"), "{}", status.message());
    tidb.probe().await.unwrap();
    pump.stop().await.unwrap();
}

/// A little gzip that unpacks to much is refused at the limit, and costs no more memory than the limit.
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
    let mut message = vec![1];
    message.extend_from_slice(&(packed.len() as u32).to_be_bytes());
    message.extend_from_slice(&packed);
    let request = tonic::codegen::http::Request::post("/binlog.Pump/WriteBinlog")
        .header("content-type", "application/grpc")
        .header("grpc-encoding", "gzip")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Whole(Some(message.into()))))
        .unwrap();
    let mut channel = channel(pump.at.addr);
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("message larger than max"), "{}", status.message());
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
    let mut silent = tokio::task::JoinSet::new();
    for _ in 0..calls {
        let mut channel = channel(pump.at.addr);
        let request = tonic::codegen::http::Request::post("/binlog.Pump/WriteBinlog")
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(Stalled(None)))
            .unwrap();
        silent.spawn(async move { channel.ready().await.unwrap().call(request).await });
    }
    let mut tidb = pump.tidb();
    let refused = site::soon("a call is aborted", async {
        loop {
            if let Err(status) = tidb.probe().await {
                break status;
            }
        }
    })
    .await;
    assert_eq!(refused.code(), Code::Aborted);
    assert!(refused.message().contains("too many calls"), "{}", refused.message());
    for response in site::soon("they are given up", silent.join_all()).await {
        let status = tonic::Status::from_header_map(response.unwrap().headers()).unwrap();
        assert_eq!(status.code(), Code::Aborted);
    }
    tidb.probe().await.unwrap();
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
    tokio::time::timeout(std::time::Duration::from_millis(300), &mut waiting).await.unwrap_err();
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
