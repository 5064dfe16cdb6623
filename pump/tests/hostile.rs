//! Peers that declare much and send little.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Frame;
use site::{Site, channel};
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
