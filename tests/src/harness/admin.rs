//! Our services' admin listener, and the same kind of question to the simulated TiDB's status port.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Asks `http://<address><path>` for JSON.
pub async fn json(address: &str, path: &str) -> Result<Value> {
    let url = format!("http://{address}{path}");
    let answer = get(&url).await?.error_for_status()?;
    let body = answer.bytes().await.with_context(|| format!("read {url}"))?;
    serde_json::from_slice(&body).with_context(|| format!("{url} did not answer with JSON"))
}

/// Asks `http://<address><path>` for text.
pub async fn text(address: &str, path: &str) -> Result<String> {
    let url = format!("http://{address}{path}");
    get(&url).await?.error_for_status()?.text().await.with_context(|| format!("read {url}"))
}

/// Whether `/readyz` says yes.
pub async fn is_ready(address: &str) -> bool {
    get(&format!("http://{address}/readyz")).await.is_ok_and(|answer| answer.status().is_success())
}

async fn get(url: &str) -> Result<reqwest::Response> {
    // The client wants a provider even for plain HTTP; a second installation changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
    client.get(url).send().await.with_context(|| format!("ask {url}"))
}
