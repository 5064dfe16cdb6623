//! One unary gRPC message off an HTTP/2 request, without allocating what the peer merely declares.
//!
//! A ready-made server reserves the declared length before the bytes are there: five bytes would claim a gigabyte. Here
//! the length is checked, the receive budget is charged as the bytes arrive, and memory grows with them. A peer that does not
//! send on, or only drips, is given up.

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
use tokio::time::Instant;
use tonic::Status;

use super::write::Intake;
use crate::budget::{Receiving, SMALL, Share};

/// A peer that sends nothing for this long is given up.
const STALL: Duration = Duration::from_secs(10);

/// Bytes a second that a peer has to keep up on the average, once [`STALL`] has passed. TiDB gives up a call after 15 s.
const SLOWEST: u64 = 1 << 20;

/// Compression flag and length.
const PREFIX: usize = 5;

/// Bytes that are claimed before they arrive, at most.
const AHEAD: usize = 256 << 10;

/// A received message, the share of the receive budget that it holds, and its call.
pub(super) struct Received {
    pub(super) message: Bytes,
    pub(super) share: Share,
    pub(super) _call: OwnedSemaphorePermit,
}

/// Reads the one message of a unary call.
pub(super) async fn receive(intake: &Intake, request: Request<Incoming>) -> Result<Received, Status> {
    let (parts, body) = request.into_parts();
    // Calls that say nothing yet cost memory too.
    let call = intake.admit_call().await?;
    let mut body = Arriving { body, arrived: 0, began: None };
    let mut received = BytesMut::new();
    let mut first = Bytes::new();
    while first.len() + received.len() < PREFIX {
        let data = body.next().await?.ok_or_else(|| Status::internal("the request has no message"))?;
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

    let (message, share) = if length <= SMALL {
        let share = intake.reserve(u64::from(length)).await?;
        (body.rest(head, length as usize, None).await?, share)
    } else {
        let mut receiving = intake.budget.large(u64::from(length));
        intake.make_room(&mut receiving, head.len() as u64).await?;
        let message = body.rest(head, length as usize, Some((intake, &mut receiving))).await?;
        (message, receiving.whole())
    };
    if !compressed {
        return Ok(Received { message, share, _call: call });
    }
    match parts.headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        Some(b"gzip") => {}
        other => {
            let other = String::from_utf8_lossy(other.unwrap_or(b"none"));
            return Err(Status::unimplemented(format!("compression {other} is not supported, gzip is")));
        }
    }
    let length = unpacked_length(&message)?;
    intake.check_size(length)?;
    let unpacked = intake.reserve(length).await?;
    let message = tokio::task::spawn_blocking(move || unpack(&message, length))
        .await
        .map_err(|_| Status::internal("unpacking failed"))??;
    drop(share);
    Ok(Received { message, share: unpacked, _call: call })
}

/// A request's body as it arrives.
struct Arriving {
    body: Incoming,
    arrived: u64,
    /// Since when the peer is waited for; what it had to wait for us is left out.
    began: Option<Instant>,
}

impl Arriving {
    /// The message that begins with `head`. A large one holds its share as it arrives.
    async fn rest(
        &mut self,
        head: Bytes,
        length: usize,
        mut budget: Option<(&Intake, &mut Receiving)>,
    ) -> Result<Bytes, Status> {
        let mut message = head;
        if message.len() < length {
            // A little is claimed ahead so that ordinary messages are not moved as they grow.
            let mut rest = BytesMut::with_capacity(length.min(AHEAD));
            rest.extend_from_slice(&message);
            while rest.len() < length {
                let data = self.next().await?.ok_or_else(|| {
                    Status::internal(format!("the request ended after {} of {length} bytes", rest.len()))
                })?;
                let upto = (rest.len() + data.len()) as u64;
                if let Some((intake, receiving)) = &mut budget
                    && !receiving.holds(upto)
                {
                    let asked = Instant::now();
                    intake.make_room(receiving, upto).await?;
                    self.began = self.began.map(|began| began + asked.elapsed());
                }
                rest.extend_from_slice(&data);
            }
            message = rest.freeze();
        }
        if message.len() > length {
            return Err(Status::internal("a unary call carries more than one message"));
        }
        Ok(message)
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let mut frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            // Mostly it is there, so no timer is set.
            let arrived = match (&mut frame).now_or_never() {
                Some(arrived) => Ok(arrived),
                None => {
                    let now = Instant::now();
                    let began = *self.began.get_or_insert(now);
                    let slowest = began + STALL + Duration::from_secs(self.arrived / SLOWEST);
                    tokio::time::timeout_at(slowest.min(now + STALL), frame).await
                }
            };
            match arrived {
                Err(_) => {
                    let text = format!(
                        "the peer sent nothing for {STALL:?}, or too slowly: {} bytes so far",
                        self.arrived
                    );
                    return Err(Status::aborted(text));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Status::cancelled(format!("the request broke off: {error}")));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.arrived += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// What a gzip says of itself in its last four bytes. [`unpack`] holds it to that.
fn unpacked_length(packed: &[u8]) -> Result<u64, Status> {
    let length = packed.last_chunk().ok_or_else(|| Status::internal("gzip: it is cut off"))?;
    Ok(u64::from(u32::from_le_bytes(*length)))
}

fn unpack(packed: &[u8], length: u64) -> Result<Bytes, Status> {
    let mut message = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(packed).take(length + 1);
    decoder.read_to_end(&mut message).map_err(|error| Status::internal(format!("gzip: {error}")))?;
    if message.len() as u64 != length {
        return Err(Status::internal(format!(
            "gzip: it does not unpack to the {length} bytes that it names"
        )));
    }
    Ok(message.into())
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
