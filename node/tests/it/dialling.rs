//! Listeners and channels: limits, draining, fail-over, Unix sockets.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use node::serve::{Listener, ServeLimits, serve};
use node::shutdown::Shutdown;
use node::tls::Security;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::rig::{free_port, soon};

struct Server {
    port: u16,
    shutdown: Shutdown,
    served: JoinHandle<anyhow::Result<()>>,
}

async fn start(router: Router, limits: ServeLimits) -> Server {
    let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = Shutdown::new();
    let served = tokio::spawn(serve(vec![listener], router, None, limits, shutdown.clone()));
    Server { port, shutdown, served }
}

fn channel(address: &str) -> Channel {
    node::dial::channel(&[address], &Security::default()).unwrap()
}

async fn ask(channel: Channel, path: &str) -> Result<String, String> {
    let request = axum::http::Request::get(path).body(tonic::body::Body::empty()).unwrap();
    let response = soon("an answer", channel.oneshot(request)).await.map_err(|error| format!("{error:?}"))?;
    let body = axum::body::to_bytes(axum::body::Body::new(response.into_body()), 1024)
        .await
        .map_err(|error| format!("{error:?}"))?;
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

fn hello() -> Router {
    Router::new().route("/", get(|| std::future::ready("hello")))
}

#[tokio::test]
async fn a_peer_that_does_not_get_to_the_point_is_cut_off() {
    const LIMIT: Duration = Duration::from_secs(2);
    let limits = ServeLimits { header_timeout: LIMIT, ..ServeLimits::default() };
    let server = start(hello(), limits).await;
    for beginning in [&b""[..], b"PRI * HT", b"GET / HT"] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut rest = Vec::new();
        // Closed, with or without a word about it.
        let _ = soon("the end of the connection", stream.read_to_end(&mut rest)).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{beginning:?}");
    }
    // Who is quick is served, also after the limit has passed.
    let channel = channel(&format!("127.0.0.1:{}", server.port));
    assert_eq!(ask(channel.clone(), "/").await.unwrap(), "hello");
    tokio::time::sleep(LIMIT + LIMIT / 2).await;
    assert_eq!(ask(channel, "/").await.unwrap(), "hello");
}

#[tokio::test]
async fn one_connection_carries_any_number_of_calls() {
    // More than the 200 streams that HTTP/2 servers commonly allow; none ends before all have begun.
    const CALLS: usize = 500;
    let barrier = Arc::new(Barrier::new(CALLS));
    let waiting = Arc::clone(&barrier);
    let handler = get(move || {
        let barrier = Arc::clone(&waiting);
        async move {
            barrier.wait().await;
            "done"
        }
    });
    let server = start(Router::new().route("/", handler), ServeLimits::default()).await;
    let channel = channel(&format!("127.0.0.1:{}", server.port));
    let calls = (0..CALLS).map(|_| ask(channel.clone(), "/"));
    let answers = soon("all calls", futures::future::join_all(calls)).await;
    assert!(answers.iter().all(|answer| answer.as_deref() == Ok("done")));
}

#[tokio::test]
async fn running_requests_finish_at_shutdown() {
    let (began, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (has_begun, may_finish) = (Arc::clone(&began), Arc::clone(&finish));
    let handler = get(move || {
        let (began, finish) = (Arc::clone(&has_begun), Arc::clone(&may_finish));
        async move {
            began.notify_one();
            finish.notified().await;
            "finished"
        }
    });
    let server = start(Router::new().route("/", handler), ServeLimits::default()).await;
    let address = format!("127.0.0.1:{}", server.port);
    let running = tokio::spawn(ask(channel(&address), "/"));
    soon("the request", began.notified()).await;
    server.shutdown.cancel();
    soon("a refusal", async {
        while TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!server.served.is_finished());
    finish.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), "finished");
    soon("the server's end", server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_dropped() {
    let began = Arc::new(Notify::new());
    let has_begun = Arc::clone(&began);
    let handler = get(move || {
        has_begun.notify_one();
        std::future::pending::<&'static str>()
    });
    let limits = ServeLimits { drain: Duration::from_millis(50), ..ServeLimits::default() };
    let server = start(Router::new().route("/", handler), limits).await;
    let running = tokio::spawn(ask(channel(&format!("127.0.0.1:{}", server.port)), "/"));
    soon("the request", began.notified()).await;
    server.shutdown.cancel();
    soon("the server's end", server.served).await.unwrap().unwrap();
    assert!(soon("the request's end", running).await.unwrap().is_err());
}

#[tokio::test]
async fn a_channel_finds_the_address_that_answers() {
    let server = start(hello(), ServeLimits::default()).await;
    let (dead, alive) =
        (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", server.port));
    let channel = node::dial::channel(&[dead.clone(), alive.clone()], &Security::default()).unwrap();
    assert_eq!(ask(channel.clone(), "/").await.unwrap(), "hello");
    server.shutdown.cancel();
    soon("the server's end", server.served).await.unwrap().unwrap();
    // All are dead: the error names each.
    let error = soon("a refusal", async {
        loop {
            if let Err(error) = ask(channel.clone(), "/").await
                && error.contains("refused")
            {
                return error;
            }
        }
    })
    .await;
    for address in [dead, alive] {
        let port = address.rsplit(':').next().unwrap();
        assert!(error.contains(port), "{error}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_served_beside_tcp_and_replaced_when_abandoned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pump.sock");
    // Left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listeners = vec![Listener::tcp("127.0.0.1:0").await.unwrap(), Listener::unix(&path).await.unwrap()];
    let shutdown = Shutdown::new();
    let served = tokio::spawn(serve(listeners, hello(), None, ServeLimits::default(), shutdown.clone()));
    let address = format!("unix://{}", path.display());
    assert_eq!(ask(channel(&address), "/").await.unwrap(), "hello");
    // One that is in use is not taken over; nor is a file of another kind.
    assert!(Listener::unix(&path).await.is_err());
    let file = dir.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    assert!(Listener::unix(&file).await.is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    shutdown.cancel();
    soon("the server's end", served).await.unwrap().unwrap();
    assert!(!path.try_exists().unwrap());
}
