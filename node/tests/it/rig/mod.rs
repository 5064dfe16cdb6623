//! What the tests stand on.

pub(crate) mod certs;
pub(crate) mod etcd;
pub(crate) mod pd;

use std::time::Duration;

/// Far longer than anything here takes; only a hang meets it.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The future's result, or a failed test if it hangs.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// Asks again and again until the answer is yes.
pub(crate) async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A TCP port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
