//! A real etcd for one test.

#![allow(unreachable_pub, missing_docs)]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;

/// A real etcd on free ports, with a directory of its own.
pub struct Etcd {
    child: Child,
    pub url: String,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let (url, peer) = (free(), free());
        let child = Command::new("etcd")
            .args(["--name", "test", "--data-dir", dir.path().to_str().unwrap()])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian package etcd-server)");
        let etcd = Self { child, url, _dir: dir };
        let ready = async {
            loop {
                if let Ok(mut client) = Client::connect([&etcd.url], None).await
                    && client.get("/", None).await.is_ok()
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), ready).await.expect("etcd answers");
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
