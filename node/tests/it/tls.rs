//! Links with TLS: who gets in, who does not, and certificates that change.

use std::sync::Arc;

use axum::routing::get;
use axum::{Extension, Router};
use node::registry::{NodeKind, Registry};
use node::serve::{ALPN, Listener, Peer, ServeLimits, serve};
use node::shutdown::Shutdown;
use node::tls::Security;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::ServiceExt as _;

use crate::rig::certs::Authority;
use crate::rig::etcd::Etcd;
use crate::rig::{LONG, soon};

/// Answers `/who` with the client's common names.
struct Server {
    port: u16,
    shutdown: Shutdown,
}

impl Server {
    async fn start(security: &Security) -> Self {
        let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let who = get(|Extension(peer): Extension<Peer>| std::future::ready(peer.common_names.join(",")));
        let router = Router::new().route("/who", who);
        let shutdown = Shutdown::new();
        let tls = security.server_config(&ALPN).unwrap();
        tokio::spawn(serve(vec![listener], router, tls, ServeLimits::default(), shutdown.clone()));
        Self { port, shutdown }
    }

    /// Over HTTP/1.1.
    async fn who(&self, client: &Security) -> Result<String, reqwest::Error> {
        let client_http = client.http_client(LONG).unwrap();
        let url =
            format!("{}://127.0.0.1:{}/who", if client.enabled() { "https" } else { "http" }, self.port);
        let response = client_http.get(url).send().await?;
        assert_eq!(response.version(), axum::http::Version::HTTP_11);
        response.text().await
    }

    /// Over HTTP/2, as gRPC goes.
    async fn who_h2(&self, client: &Security) -> Result<String, String> {
        let channel = node::dial::channel(&[format!("127.0.0.1:{}", self.port)], client).unwrap();
        let request = axum::http::Request::get("/who").body(tonic::body::Body::empty()).unwrap();
        let response =
            soon("an answer", channel.oneshot(request)).await.map_err(|error| format!("{error:?}"))?;
        assert_eq!(response.version(), axum::http::Version::HTTP_2);
        let body = axum::body::to_bytes(axum::body::Body::new(response.into_body()), 1024).await.unwrap();
        Ok(String::from_utf8(body.to_vec()).unwrap())
    }

    async fn connect(&self, config: Arc<rustls::ClientConfig>) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn allowing(mut security: Security, names: &[&str]) -> Security {
    security.cert_allowed_cn = names.iter().map(ToString::to_string).collect();
    security
}

#[tokio::test]
async fn one_port_speaks_both_protocols_with_and_without_tls() {
    let ca = Authority::new("authority");
    for security in [Security::default(), ca.issue("server")] {
        let client = if security.enabled() { ca.trust() } else { Security::default() };
        let server = Server::start(&security).await;
        assert_eq!(server.who(&client).await.unwrap(), "");
        assert_eq!(server.who_h2(&client).await.unwrap(), "");
    }
}

#[tokio::test]
async fn http2_needs_no_alpn() {
    let ca = Authority::new("authority");
    let server = Server::start(&ca.issue("server")).await;
    let mut stream = server.connect(ca.trust().client_config(&[]).unwrap().unwrap()).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    // The preface and an empty SETTINGS frame; the server's first frame is its SETTINGS (type 4).
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    soon("the server's first frame", stream.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame[3], 4);
}

#[tokio::test]
async fn who_gets_in_by_name() {
    let ca = Authority::new("authority");
    let server = Server::start(&allowing(ca.issue("server"), &["tidb", "pump"])).await;
    assert_eq!(server.who(&ca.issue("tidb")).await.unwrap(), "tidb");
    assert_eq!(server.who_h2(&ca.issue("pump")).await.unwrap(), "pump");
    // Another name, no certificate, another authority's certificate.
    assert!(server.who(&ca.issue("mallory")).await.is_err());
    assert!(server.who(&ca.trust()).await.is_err());
    let other = Authority::new("authority");
    let mut foreign = other.issue("tidb");
    foreign.ssl_ca = ca.trust().ssl_ca;
    assert!(server.who(&foreign).await.is_err());
    assert!(server.who_h2(&foreign).await.is_err());
}

#[tokio::test]
async fn any_name_on_the_verified_path_counts_and_no_other() {
    let ca = Authority::new("authority");
    let by_authority = Server::start(&allowing(ca.issue("server"), &["authority"])).await;
    assert_eq!(by_authority.who(&ca.issue("anybody")).await.unwrap(), "anybody");
    let by_middle = Server::start(&allowing(ca.issue("server"), &["middle"])).await;
    assert_eq!(by_middle.who(&ca.issue_through("middle", "someone")).await.unwrap(), "someone");
    assert!(by_middle.who(&ca.issue("anybody")).await.is_err());
    // A certificate that is merely sent along proves nothing.
    let smuggled = ca.issue_with("mallory", &Authority::self_signed_pem("middle"));
    assert!(by_middle.who(&smuggled).await.is_err());
}

#[tokio::test]
async fn without_a_list_any_client_gets_in_and_plaintext_does_not() {
    let ca = Authority::new("authority");
    let server = Server::start(&ca.issue("server")).await;
    assert_eq!(server.who(&ca.trust()).await.unwrap(), "");
    assert!(server.who(&Security::default()).await.is_err());
    // The client wants the server's authority, too.
    assert!(server.who(&Authority::new("authority").trust()).await.is_err());
}

#[tokio::test]
async fn certificates_are_read_again_at_each_handshake() {
    let ca = Authority::new("authority");
    let server_files = ca.issue("server");
    let client_files = ca.issue("client");
    let server = Server::start(&allowing(server_files.clone(), &["authority"])).await;
    let config = client_files.client_config(&[]).unwrap().unwrap();
    let names = async || {
        let mut stream = server.connect(Arc::clone(&config)).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (chain, answer.rsplit("\r\n\r\n").next().unwrap().to_owned())
    };
    let (first_server, first_client) = names().await;
    assert_eq!(first_client, "client");

    let copy = |from: &Security, to: &Security| {
        std::fs::copy(from.ssl_cert.as_ref().unwrap(), to.ssl_cert.as_ref().unwrap()).unwrap();
        std::fs::copy(from.ssl_key.as_ref().unwrap(), to.ssl_key.as_ref().unwrap()).unwrap();
    };
    copy(&ca.issue("server-2"), &server_files);
    copy(&ca.issue("client-2"), &client_files);
    let (second_server, second_client) = names().await;
    assert_eq!(second_client, "client-2");
    assert_ne!(first_server, second_server);

    // Half replaced, or broken: the last good pair stays in use.
    std::fs::write(client_files.ssl_key.as_ref().unwrap(), "garbage").unwrap();
    assert_eq!(names().await.1, "client-2");
}

#[test]
fn what_is_missing_is_named() {
    use node::config::Validate as _;
    let ca = Authority::new("authority");
    let error = ca.trust().server_config(&ALPN).unwrap_err().to_string();
    assert!(error.contains("ssl-cert"), "{error}");
    let gone = Security { ssl_ca: Some(ca.path("nowhere.pem")), ..Security::default() };
    let error = gone.client_config(&[]).unwrap_err().to_string();
    assert!(error.contains("ssl-ca") && error.contains("nowhere.pem"), "{error}");
    std::fs::write(ca.path("empty.pem"), "").unwrap();
    let empty = Security { ssl_ca: Some(ca.path("empty.pem")), ..Security::default() };
    assert!(empty.client_config(&[]).unwrap_err().to_string().contains("empty.pem"));

    let half = Security { ssl_key: None, ..ca.issue("half") };
    assert_eq!(half.validate().unwrap_err().field, "security.ssl-key");
    let unchecked = Security { cert_allowed_cn: vec!["tidb".to_owned()], ..Security::default() };
    assert_eq!(unchecked.validate().unwrap_err().field, "security.cert-allowed-cn");
    // The original writes empty strings for absent files.
    let blank: Security = node::config::parse("ssl-ca = \"\"\nssl-cert = \"\"\nssl-key = \"\"", "x").unwrap();
    blank.validate().unwrap();
    assert!(!blank.enabled() && blank.server_config(&ALPN).unwrap().is_none());
}

#[tokio::test]
async fn etcd_with_mutual_tls() {
    let ca = Authority::new("authority");
    let own = ca.issue("etcd");
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let arguments = [
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", path(&own.ssl_ca)),
        format!("--cert-file={}", path(&own.ssl_cert)),
        format!("--key-file={}", path(&own.ssl_key)),
    ];
    let etcd = Etcd::start_with(&arguments, "https").await;
    let urls = [etcd.url().to_owned()];
    let registry = Registry::new(node::etcd::connect(&urls, &ca.issue("pump")).await.unwrap());
    soon("etcd's answer", async {
        // It holds its port a moment before it serves.
        while let Err(error) = registry.list(NodeKind::Pump).await {
            assert!(error.is_retryable(), "{error}");
        }
    })
    .await;
    let nameless = Registry::new(node::etcd::connect(&urls, &ca.trust()).await.unwrap());
    assert!(nameless.list(NodeKind::Pump).await.is_err());
}
