//! One question to a process, by HTTP: to its admin listener, or to the address that it registered.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Method, RequestBuilder, StatusCode, Url};

use super::args::Common;

/// For one answer: whatever is asked is accepted or refused at once.
const REQUEST: Duration = Duration::from_secs(10);
/// Of an answer, this much is read: it may repeat a statement.
const ANSWER: usize = 16 * 1024 * 1024;

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Its text, without the end of the line.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// A path at `addr`, by TLS where files for it are given.
///
/// # Errors
/// `addr` is not host:port.
pub(super) fn url(common: &Common, addr: &str, path: &[&str]) -> anyhow::Result<Url> {
    let scheme = if common.security().enabled() { "https" } else { "http" };
    let mut url = Url::parse(&format!("{scheme}://{addr}"))?;
    url.path_segments_mut().map_err(|()| anyhow!("it can have no path"))?.extend(path);
    Ok(url)
}

/// A request that waits for its answer only so long, with the token if there is one.
pub(super) fn request(common: &Common, method: Method, url: Url) -> anyhow::Result<RequestBuilder> {
    let request = common.security().http_client(REQUEST)?.request(method, url);
    Ok(match &common.token {
        Some(token) => request.bearer_auth(token.reveal()?),
        None => request,
    })
}

/// Sends it, and reads an answer of at most `limit` bytes. `silence` says that none comes.
pub(super) async fn answer(request: RequestBuilder, limit: usize, silence: String) -> anyhow::Result<Answer> {
    let mut response = request.send().await.context(silence)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.context("its answer broke off")? {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            bail!("its answer is longer than {limit} bytes");
        }
    }
    Ok(Answer { status, body })
}

/// Asks `whom` at `addr`, by TLS where files for it are given, with the token if there is one.
pub(super) async fn ask(
    common: &Common,
    whom: &str,
    addr: &str,
    method: Method,
    path: &[&str],
    body: Option<String>,
) -> anyhow::Result<Answer> {
    let url = url(common, addr, path).with_context(|| format!("-addr `{addr}` is not host:port"))?;
    let mut request = request(common, method, url)?;
    if let Some(body) = body {
        request = request.body(body);
    }
    answer(request, ANSWER, format!("{whom} at {addr} does not answer")).await
}
