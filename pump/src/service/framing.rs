//! One unary gRPC message off an HTTP/2 request, without allocating what the peer merely declares.
//!
//! A ready-made server reserves the declared length before the bytes are there: five bytes would claim a gigabyte. Here
//! the length is checked, then reserved in the receive budget, and memory grows with what really arrives.

use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::FutureExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::write::Intake;

/// A peer that sends nothing for this long is given up.
const STALL: Duration = Duration::from_secs(10);

/// Compression flag and length.
const PREFIX: usize = 5;

/// Bytes that are claimed before they arrive, at most.
const AHEAD: usize = 256 << 10;

/// Steps in which a compressed message may grow.
const STEP: u32 = 1 << 20;

/// A received message and the share of the receive budget that it holds.
pub(super) struct Received {
    pub(super) message: Bytes,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Reads the one message of a unary call.
pub(super) async fn receive(intake: &Intake, request: Request<Incoming>) -> Result<Received, Status> {
    let (parts, mut body) = request.into_parts();
    // Calls that say nothing yet cost memory too.
    let _call = intake.admit_call().await?;
    let mut received = BytesMut::new();
    let mut first = Bytes::new();
    while first.len() + received.len() < PREFIX {
        let data = next(&mut body).await?.ok_or_else(|| Status::internal("the request has no message"))?;
        if first.is_empty() && received.is_empty() {
            first = data;
        } else {
            received.extend_from_slice(&std::mem::take(&mut first));
            received.extend_from_slice(&data);
        }
    }
    // Nearly every message arrives in one frame and is never copied.
    let mut head = if received.is_empty() { first } else { received.freeze() };
    let compressed = match head.get_u8() {
        0 => false,
        1 => true,
        flag => return Err(Status::internal(format!("invalid compression flag {flag}"))),
    };
    let length = head.get_u32();
    intake.check_size(u64::from(length))?;
    let permit = intake.reserve(u64::from(length)).await?;
    let length = usize::try_from(length).map_err(|_| Status::internal("message length"))?;

    let mut message = head;
    if message.len() < length {
        // The receive budget holds all of it; a little is claimed ahead so that ordinary messages are not moved as they grow.
        let mut rest = BytesMut::with_capacity(length.min(AHEAD));
        rest.extend_from_slice(&message);
        while rest.len() < length {
            let data = next(&mut body).await?.ok_or_else(|| {
                Status::internal(format!("the request ended after {} of {length} bytes", rest.len()))
            })?;
            rest.extend_from_slice(&data);
        }
        message = rest.freeze();
    }
    if message.len() > length {
        return Err(Status::internal("a unary call carries more than one message"));
    }
    if !compressed {
        return Ok(Received { message, permit });
    }
    match parts.headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        Some(b"gzip") => {}
        other => {
            let other = String::from_utf8_lossy(other.unwrap_or(b"none"));
            return Err(Status::unimplemented(format!("compression {other} is not supported, gzip is")));
        }
    }
    let budget = (intake.budget.clone(), intake.budget_total, intake.max_message);
    let unpacked = tokio::task::spawn_blocking(move || unpack(&message, permit, budget)).await;
    unpacked.map_err(|_| Status::internal("unpacking failed"))?
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Status> {
    loop {
        let mut frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        // Mostly it is there, so no timer is set.
        let arrived = match (&mut frame).now_or_never() {
            Some(arrived) => Ok(arrived),
            None => tokio::time::timeout(STALL, frame).await,
        };
        match arrived {
            Err(_) => return Err(Status::aborted(format!("the peer sent nothing for {STALL:?}"))),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Status::cancelled(format!("the request broke off: {error}"))),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn unpack(
    packed: &[u8],
    mut permit: OwnedSemaphorePermit,
    (budget, total, max): (std::sync::Arc<tokio::sync::Semaphore>, u32, u64),
) -> Result<Received, Status> {
    let mut decoder = flate2::read::GzDecoder::new(packed);
    let mut message = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = decoder.read(&mut chunk).map_err(|e| Status::internal(format!("gzip: {e}")))?;
        if count == 0 {
            return Ok(Received { message: message.into(), permit });
        }
        message.extend_from_slice(&chunk[..count]);
        let length = message.len() as u64;
        if length > max {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({length} vs. {max})"
            )));
        }
        let held = permit.num_permits();
        if message.len() > held && held < total as usize {
            let more = STEP.min(total - u32::try_from(held).unwrap_or(total));
            let more = budget.clone().try_acquire_many_owned(more).map_err(|_| {
                Status::aborted("pump is overloaded: receive-budget is used up, try another pump")
            })?;
            permit.merge(more);
        }
    }
}

/// A successful unary answer.
pub(super) fn reply(message: &impl Message) -> Response<Body> {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(PREFIX + length);
    data.extend_from_slice(&[0]);
    data.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // Cannot fail: the buffer grows.
    let _ = message.encode(&mut data);
    let mut response = Response::new(Body::new(Reply { data: Some(data.freeze()), trailers: true }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

struct Reply {
    data: Option<Bytes>,
    trailers: bool,
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if std::mem::take(&mut self.trailers) {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && !self.trailers
    }
}
