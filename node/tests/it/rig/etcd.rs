//! A real etcd on ports of its own, in a directory that vanishes with it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use node::tls::Security;
use tempfile::TempDir;

use super::{free_port, soon};

pub(crate) struct Etcd {
    process: Child,
    url: String,
    _dir: TempDir,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[], "http").await
    }

    /// With further arguments, waiting only for the process to hold its port if it is not plain HTTP.
    pub(crate) async fn start_with(arguments: &[String], scheme: &str) -> Self {
        for _ in 0..5 {
            if let Some(etcd) = Self::try_start(arguments, scheme).await {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    /// On a port that was chosen before, where somebody may be trying already.
    pub(crate) async fn start_at(port: u16) -> Self {
        Self::try_start_at(port, &[], "http").await.expect("etcd starts")
    }

    /// `None` if it exits, as it does when somebody took one of its ports meanwhile.
    async fn try_start(arguments: &[String], scheme: &str) -> Option<Self> {
        Self::try_start_at(free_port(), arguments, scheme).await
    }

    async fn try_start_at(port: u16, arguments: &[String], scheme: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) =
            (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        let process = Command::new("etcd")
            .args(["--data-dir", dir.path().to_str().unwrap(), "--log-level", "error", "--unsafe-no-fsync"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed");
        let mut etcd = Self { process, url: client, _dir: dir };
        let ready = soon("etcd's start", async {
            loop {
                if etcd.process.try_wait().unwrap().is_some() {
                    return false;
                }
                let up = if scheme == "http" {
                    let mut client = etcd.client().await;
                    let get = client.get("ready", None);
                    matches!(tokio::time::timeout(Duration::from_secs(2), get).await, Ok(Ok(_)))
                } else {
                    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
                };
                if up {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        ready.then_some(etcd)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn client(&self) -> Client {
        node::etcd::connect(std::slice::from_ref(&self.url), &Security::default()).await.unwrap()
    }

    /// Stops the process in its tracks, or lets it run on: an etcd that does not answer.
    pub(crate) fn freeze(&self, frozen: bool) {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        kill(pid, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
