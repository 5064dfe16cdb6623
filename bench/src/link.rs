//! A gRPC client for `WriteBinlog` that costs as little as it can: it shares the machine with the pump it measures.
//!
//! One HTTP/2 connection, as one TiDB server has to a pump, with a stream per call.

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use prost::Message as _;
use schemas::binlog::{WriteBinlogReq, WriteBinlogResp};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A refused or failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// gRPC's code, 14 (unavailable) if the connection broke.
    pub code: u16,
    /// What the pump said.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}: {}", self.code, self.message)
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub struct Link {
    send: SendRequest<Bytes>,
    uri: Uri,
}

/// Ends the connection when dropped.
pub struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// Connects to a pump at `host:port`.
    ///
    /// # Errors
    /// Nobody answers there, or not in HTTP/2.
    pub async fn connect(addr: &str) -> anyhow::Result<(Self, Connection)> {
        let stream =
            TcpStream::connect(addr).await.with_context(|| format!("connect to the pump at {addr}"))?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .max_concurrent_reset_streams(0);
        let handshake = builder.handshake::<_, Bytes>(stream).await;
        let (send, connection) = handshake.with_context(|| format!("HTTP/2 with the pump at {addr}"))?;
        // How it ends is seen by the calls that it carries.
        let task = tokio::spawn(async move { drop(connection.await) });
        let uri = format!("http://{addr}/binlog.Pump/WriteBinlog").parse()?;
        Ok((Self { send, uri }, Connection(task)))
    }

    /// Sends a message made by [`frame`]; returns when the pump has answered.
    ///
    /// # Errors
    /// It refused, or the connection broke.
    pub async fn write(&self, message: Bytes) -> Result<(), Refused> {
        self.call(message).await.map_err(|error| match error {
            Failure::Status(refused) => refused,
            Failure::Transport(error) => Refused { code: 14, message: error.to_string() },
        })
    }

    async fn call(&self, message: Bytes) -> Result<(), Failure> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));

        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(message, true)?;
        let response = response.await?;
        let status = response.status();
        check(response.headers(), false)?;
        let mut body = response.into_body();
        let mut received = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            received.extend_from_slice(&part);
        }
        match body.trailers().await? {
            Some(trailers) => check(&trailers, true)?,
            None => return Err(refused(2, format!("HTTP {status} without a gRPC status"))),
        }
        let answer = received.get(5..).ok_or_else(|| refused(13, "an answer without a message".into()))?;
        let answer = WriteBinlogResp::decode(answer).map_err(|error| refused(13, error.to_string()))?;
        if answer.errmsg.is_empty() { Ok(()) } else { Err(refused(2, answer.errmsg)) }
    }
}

enum Failure {
    Status(Refused),
    Transport(h2::Error),
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self::Transport(error)
    }
}

fn refused(code: u16, message: String) -> Failure {
    Failure::Status(Refused { code, message })
}

/// Looks at a gRPC status, which must be there `at_end`.
fn check(headers: &HeaderMap, at_end: bool) -> Result<(), Failure> {
    let text = |name| {
        headers.get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status") {
        Some(code) if code == "0" => Ok(()),
        Some(code) => Err(refused(code.parse().unwrap_or(2), text("grpc-message").unwrap_or_default())),
        None if at_end => Err(refused(2, "no gRPC status".into())),
        None => Ok(()),
    }
}

/// A `WriteBinlog` message as it goes over the wire.
pub fn frame(cluster_id: u64, payload: Bytes) -> Bytes {
    let request = WriteBinlogReq { cluster_id, payload };
    let len = request.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + len);
    framed.put_u8(0);
    framed.put_u32(len as u32);
    // Cannot fail: the buffer grows.
    let _ = request.encode(&mut framed);
    framed.freeze()
}
