//! The admin listener.

use axum::Router;
use axum::routing::put;
use node::admin::{Admin, AdminConfig, Health};
use node::shutdown::Shutdown;
use node::telemetry::Telemetry;
use serde_json::{Value, json};

use crate::rig::certs::Authority;
use crate::rig::{LONG, soon};

struct Running {
    base: String,
    shutdown: Shutdown,
    health: Health,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn start(config: AdminConfig) -> Running {
    let health = Health::new();
    let admin = Admin::new(Telemetry::detached(), health.clone())
        .status(|| json!({ "watermark": 7 }))
        .routes(Router::new().route("/extra", axum::routing::get(|| std::future::ready("more"))))
        .protected(Router::new().route("/pause", put(|| std::future::ready("paused"))));
    let bound = admin.bind(&config).await.unwrap();
    let scheme = if config.security.enabled() { "https" } else { "http" };
    let base = format!("{scheme}://{}", bound.local_addr());
    let shutdown = Shutdown::new();
    tokio::spawn(bound.run(shutdown.clone()));
    Running { base, shutdown, health }
}

async fn get(base: &str, path: &str) -> (u16, String) {
    let response = reqwest::get(format!("{base}{path}")).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn what_can_be_read() {
    // reqwest::get wants a provider to be installed, as every use of ours does.
    let _ = node::tls::Security::default().http_client(LONG).unwrap();
    let running = start(AdminConfig::default()).await;
    assert_eq!(get(&running.base, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&running.base, "/status").await, (200, "{\"watermark\":7}".to_owned()));
    assert_eq!(get(&running.base, "/extra").await, (200, "more".to_owned()));
    let (code, metrics) = get(&running.base, "/metrics").await;
    assert_eq!(code, 200);
    assert!(metrics.contains("\nprocess_resident_memory_bytes "), "{metrics}");

    // Not ready until somebody says so, nor while anybody objects.
    assert_eq!(get(&running.base, "/readyz").await.0, 503);
    running.health.set("store", Ok(()));
    assert_eq!(get(&running.base, "/readyz").await.0, 200);
    running.health.set("pd", Err("no answer".to_owned()));
    let (code, body) = get(&running.base, "/readyz").await;
    assert_eq!(code, 503);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body, json!({ "ready": false, "parts": { "store": "ok", "pd": "no answer" } }));
}

#[tokio::test]
async fn changing_state_wants_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "open sesame\n").unwrap();
    let token = Some(format!("file:{}", file.display()).as_str().into());
    let running = start(AdminConfig { token, ..AdminConfig::default() }).await;
    let client = node::tls::Security::default().http_client(LONG).unwrap();
    let put = async |path: &str, token: Option<&str>, body: &'static str| {
        let mut request = client.put(format!("{}{path}", running.base)).body(body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        soon("an answer", request.send()).await.unwrap().status().as_u16()
    };
    assert_eq!(put("/pause", None, "").await, 401);
    assert_eq!(put("/pause", Some(""), "").await, 401);
    assert_eq!(put("/pause", Some("open sesam"), "").await, 401);
    assert_eq!(put("/pause", Some("open sesame"), "").await, 200);
    assert_eq!(put("/log-level", None, "debug").await, 401);
    assert_eq!(put("/log-level", Some("open sesame"), "debug").await, 200);
    assert_eq!(put("/log-level", Some("open sesame"), "loud").await, 400);
    // A token that cannot be read, or is empty, opens nothing.
    std::fs::write(&file, "").unwrap();
    assert_eq!(put("/pause", Some(""), "").await, 401);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(put("/pause", Some("open sesame"), "").await, 500);
}

#[tokio::test]
async fn without_token_or_certificate_nothing_changes() {
    let running = start(AdminConfig::default()).await;
    let client = node::tls::Security::default().http_client(LONG).unwrap();
    let answer = client.put(format!("{}/pause", running.base)).bearer_auth("guess").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 403);
    assert!(answer.text().await.unwrap().contains("admin.token"));
}

#[tokio::test]
async fn a_client_certificate_does_instead_of_a_token() {
    let ca = Authority::new("authority");
    let mut security = ca.issue("admin");
    security.cert_allowed_cn = vec!["operator".to_owned()];
    let running = start(AdminConfig { security, ..AdminConfig::default() }).await;
    let put = async |client: node::tls::Security| {
        let request = client.http_client(LONG).unwrap().put(format!("{}/pause", running.base));
        request.send().await.map(|answer| answer.status().as_u16())
    };
    assert_eq!(put(ca.issue("operator")).await.unwrap(), 200);
    assert!(put(ca.issue("stranger")).await.is_err());
    // Without the list nobody is known by certificate.
    let open = start(AdminConfig { security: ca.issue("admin"), ..AdminConfig::default() }).await;
    let request = ca.issue("operator").http_client(LONG).unwrap().put(format!("{}/pause", open.base));
    assert_eq!(request.send().await.unwrap().status().as_u16(), 403);
}
