//! One question to a process's admin listener, for the commands that need neither PD nor etcd.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Method, StatusCode};

use super::args::Common;

/// For one answer.
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

/// Asks `whom` at `addr`, by TLS where files for it are given, with the token if there is one.
pub(super) async fn ask(
    common: &Common,
    whom: &str,
    addr: &str,
    method: Method,
    path: &[&str],
    body: Option<String>,
) -> anyhow::Result<Answer> {
    let security = common.security();
    let scheme = if security.enabled() { "https" } else { "http" };
    let not_an_address = || anyhow!("-addr `{addr}` is not host:port");
    let mut url = reqwest::Url::parse(&format!("{scheme}://{addr}")).map_err(|_| not_an_address())?;
    url.path_segments_mut().map_err(|()| not_an_address())?.extend(path);
    let mut request = security.http_client(REQUEST)?.request(method, url);
    if let Some(body) = body {
        request = request.body(body);
    }
    if let Some(token) = &common.token {
        request = request.bearer_auth(token.reveal()?);
    }
    let mut response = request.send().await.with_context(|| format!("{whom} at {addr} does not answer"))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.context("its answer broke off")? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER {
            bail!("its answer is longer than {ANSWER} bytes");
        }
    }
    Ok(Answer { status, body })
}
