//! Finding TiDB's status ports and asking them.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use node::serve::{Listener, ServeLimits, serve};
use node::shutdown::Shutdown;
use node::tidb_status::{StatusError, TidbStatus};
use node::tls::Security;

use crate::rig::etcd::Etcd;
use crate::rig::free_port;

async fn tidb(name: &'static str) -> (u16, Shutdown) {
    let router = Router::new()
        .route("/schema", get(move || std::future::ready(name)))
        .route("/schema/nowhere", get(|| std::future::ready((StatusCode::NOT_FOUND, "no such database"))))
        .route("/broken", get(|| std::future::ready((StatusCode::INTERNAL_SERVER_ERROR, "out of order"))));
    let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = Shutdown::new();
    tokio::spawn(serve(vec![listener], router, None, ServeLimits::default(), shutdown.clone()));
    (port, shutdown)
}

async fn register(etcd: &Etcd, id: &str, port: u16) {
    let value = format!(
        r#"{{"version":"5.7.25-TiDB-v7.1.6","git_hash":"x","ddl_id":"{id}","ip":"127.0.0.1","listening_port":4000,"status_port":{port},"lease":"45s","binlog_status":"On","start_timestamp":1,"labels":{{}},"server_id":1}}"#
    );
    etcd.client().await.put(format!("/tidb/server/info/{id}"), value, None).await.unwrap();
}

#[tokio::test]
async fn found_in_etcd_and_followed_when_they_move() {
    let etcd = Etcd::start().await;
    let status = TidbStatus::new(etcd.client().await, &[], &Security::default()).unwrap();
    let error = status.get("/schema", 100).await.unwrap_err();
    assert!(matches!(error, StatusError::NoServer) && error.is_retryable());

    register(&etcd, "a", free_port()).await;
    let error = status.get("/schema", 100).await.unwrap_err();
    assert!(matches!(&error, StatusError::Unreachable { failures, .. } if failures.len() == 1), "{error}");

    let (port, shutdown) = tidb("first").await;
    register(&etcd, "b", port).await;
    assert_eq!(status.get("/schema", 100).await.unwrap(), "first");
    let (port, _second) = tidb("second").await;
    register(&etcd, "a", port).await;
    shutdown.cancel();
    // Whichever of them answers now; once the first is gone it is the second.
    crate::rig::until("the second server", async || status.get("/schema", 100).await.unwrap() == "second")
        .await;

    etcd.client().await.put("/tidb/server/info/c", "{\"ip\":1}", None).await.unwrap();
    let fresh = TidbStatus::new(etcd.client().await, &[], &Security::default()).unwrap();
    let error = fresh.get("/schema", 100).await.unwrap_err().to_string();
    assert!(error.contains("/tidb/server/info/c"), "{error}");
}

#[tokio::test]
async fn answers_and_refusals() {
    // Never asked: the servers are configured.
    let etcd = node::etcd::connect(&["http://127.0.0.1:1".to_owned()], &Security::default()).await.unwrap();
    let (port, _shutdown) = tidb("text").await;
    let addresses = [format!("127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{port}")];
    let status = TidbStatus::new(etcd, &addresses, &Security::default()).unwrap();
    assert_eq!(status.get("/schema", 4).await.unwrap(), "text");
    let error = status.get("/schema", 3).await.unwrap_err();
    assert!(matches!(error, StatusError::TooLarge { limit: 3, .. }));
    let error = status.get("/schema/nowhere", 100).await.unwrap_err();
    assert!(!error.is_retryable());
    assert!(matches!(error, StatusError::Refused { status: 404, body, .. } if body == "no such database"));
    let error = status.get("/broken", 100).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("out of order"), "{error}");
}
